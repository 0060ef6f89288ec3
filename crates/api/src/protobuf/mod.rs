//! Kubernetes' protobuf encoding, transcoded to and from JSON values.
//!
//! A body is the magic `k8s\0` and a `runtime.Unknown` that names the kind and carries the object
//! ([`Envelope`]). [`decode`] gives the JSON that upstream would give after reading the message into
//! its Go struct: zero scalars with `omitempty` are left out, structs and fields without it are there.
//! [`encode`] is the inverse, and writes the bytes that upstream writes. Both are driven by
//! [`crate::schema`], so every built-in kind has them and no custom resource does.
//!
//! Outside bytes are bounded: nesting by [`DEPTH_MAX`], created values by [`VALUES_MAX`].
//! Deliberately absent: unknown protobuf fields are skipped, not kept, and never reported (upstream does
//! the same: field validation has no effect on protobuf bodies).

mod decode;
mod encode;
mod time;
mod wire;

use std::fmt;

use serde_json::Value;

use crate::schema::{MessageId, table};

/// The content type of bodies in this encoding.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// The content type of a watch in this encoding.
pub const WATCH_CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// What every body in this encoding starts with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Messages within messages; upstream's deepest built-in type needs about 20, schemas of custom resources more.
const DEPTH_MAX: usize = 100;

/// JSON values made from one body. A body of 3 MiB with real content stays well below; one of empty
/// messages, each of which unfolds into its zero value, does not.
const VALUES_MAX: usize = 2_000_000;

/// A body that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    NotProtobuf,
    #[error("the protobuf envelope does not name {0}")]
    MissingType(&'static str),
    #[error("no protobuf encoding is known for kind {kind:?} in version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("protobuf message ends too early")]
    Truncated,
    #[error("protobuf message is malformed: {0}")]
    Malformed(&'static str),
    #[error("protobuf field {field} of {message}: {problem}")]
    Field {
        message: &'static str,
        field: &'static str,
        problem: String,
    },
    #[error("protobuf message is nested too deeply")]
    TooDeep,
    #[error("protobuf message unfolds into too many values")]
    TooLarge,
}

/// What is inside the `k8s\0` envelope.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    /// The encoded message.
    pub raw: &'a [u8],
    pub content_encoding: &'a str,
    pub content_type: &'a str,
}

impl fmt::Debug for Envelope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Envelope({}/{}, {} bytes)",
            self.api_version,
            self.kind,
            self.raw.len()
        )
    }
}

/// Reads the envelope of a body.
pub fn unwrap_envelope(body: &[u8]) -> Result<Envelope<'_>, ProtobufError> {
    let body = body.strip_prefix(MAGIC).ok_or(ProtobufError::NotProtobuf)?;
    let mut envelope = Envelope {
        api_version: "",
        kind: "",
        raw: &[],
        content_encoding: "",
        content_type: "",
    };
    let mut reader = wire::Reader::new(body);
    while let Some((number, value)) = reader.next_field()? {
        match number {
            1 => {
                let mut type_meta = wire::Reader::new(value.bytes()?);
                while let Some((number, value)) = type_meta.next_field()? {
                    match number {
                        1 => envelope.api_version = value.text()?,
                        2 => envelope.kind = value.text()?,
                        _ => {}
                    }
                }
            }
            2 => envelope.raw = value.bytes()?,
            3 => envelope.content_encoding = value.text()?,
            4 => envelope.content_type = value.text()?,
            _ => {}
        }
    }
    Ok(envelope)
}

/// Decodes a message of the named kind; sets `apiVersion` and `kind`.
pub fn decode(api_version: &str, kind: &str, raw: &[u8]) -> Result<Value, ProtobufError> {
    decode::Decoder::new().kind(api_version, kind, raw, 0)
}

/// Decodes a body with its envelope. `defaults` are the `apiVersion` and `kind` to take where the envelope names none.
pub fn decode_body(body: &[u8], defaults: Option<(&str, &str)>) -> Result<Value, ProtobufError> {
    let envelope = unwrap_envelope(body)?;
    let (default_version, default_kind) = defaults.unwrap_or_default();
    let or = |given, default, what| match (given, default) {
        ("", "") => Err(ProtobufError::MissingType(what)),
        ("", default) => Ok(default),
        (given, _) => Ok(given),
    };
    let api_version = or(envelope.api_version, default_version, "an apiVersion")?;
    let kind = or(envelope.kind, default_kind, "a kind")?;
    decode(api_version, kind, envelope.raw)
}

/// Whether [`encode`] knows the kind.
pub fn knows(api_version: &str, kind: &str) -> bool {
    type_of(api_version, kind).is_ok()
}

/// Encodes an object, with the envelope that its `apiVersion` and `kind` ask for.
pub fn encode(object: &Value) -> Result<Vec<u8>, ProtobufError> {
    let mut out = Vec::with_capacity(1024);
    encode_into(object, &mut out)?;
    Ok(out)
}

/// As [`encode`], appending.
pub fn encode_into(object: &Value, out: &mut Vec<u8>) -> Result<(), ProtobufError> {
    let text = |name| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let id = type_of(api_version, kind)?;
    out.extend_from_slice(MAGIC);
    wire::nested(out, 1, |out| {
        wire::put_bytes(out, 1, api_version.as_bytes());
        wire::put_bytes(out, 2, kind.as_bytes());
        Ok(())
    })?;
    wire::nested(out, 2, |out| encode::message(id, object, out, 0))?;
    wire::put_bytes(out, 3, b"");
    wire::put_bytes(out, 4, b"");
    Ok(())
}

/// One event of a watch, as framed on the wire: its length as 4 bytes big-endian, then a bare `WatchEvent`
/// whose object carries an envelope. `event_type` is `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
pub fn encode_watch_event(event_type: &str, object: &Value) -> Result<Vec<u8>, ProtobufError> {
    watch_frame(event_type, &encode(object)?)
}

/// As [`encode_watch_event`], for an object that is encoded already (with its envelope).
pub fn watch_frame(event_type: &str, encoded_object: &[u8]) -> Result<Vec<u8>, ProtobufError> {
    let mut out = Vec::with_capacity(encoded_object.len() + event_type.len() + 24);
    out.extend_from_slice(&[0; 4]);
    wire::put_bytes(&mut out, 1, event_type.as_bytes());
    wire::nested(&mut out, 2, |out| {
        wire::put_bytes(out, 1, encoded_object);
        Ok(())
    })?;
    let length = u32::try_from(out.len() - 4).map_err(|_| ProtobufError::TooLarge)?;
    out[..4].copy_from_slice(&length.to_be_bytes());
    Ok(out)
}

fn type_of(api_version: &str, kind: &str) -> Result<MessageId, ProtobufError> {
    table()
        .kind(api_version, kind)
        .ok_or_else(|| ProtobufError::UnknownKind {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
        })
}

#[cfg(test)]
mod tests;
