//! Objects in requests and responses.

use api::kind::{Decoded, Kind};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::accept::{Accept, Encoding, Shape};
use super::request_body::{MediaType, yaml_to_json};
use super::table;
use crate::body::ResponseBody;
use crate::cache::Item;
use crate::status::{ApiError, ApiResult};

/// `apiVersion` as bodies of a kind have it.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// The body as JSON, whatever it came as.
pub fn to_json(body: Bytes, media_type: MediaType) -> ApiResult<Bytes> {
    match media_type {
        MediaType::Json => Ok(body),
        MediaType::Yaml => yaml_to_json(&body),
        MediaType::Protobuf => {
            let value = api::protobuf::decode_body(&body, None).map_err(|error| {
                ApiError::bad_request(format!("the body cannot be decoded: {error}"))
            })?;
            Ok(value.to_string().into())
        }
    }
}

/// Decodes an object of a kind; says so when the body is one of another kind, or none.
pub fn decode(kind: &Kind, json: &[u8], strict: bool) -> ApiResult<Decoded> {
    // To Go's decoder null is an object without fields.
    let json = if json.trim_ascii() == b"null" {
        b"{}"
    } else {
        json
    };
    kind.strategy.decode(json, strict).map_err(|error| {
        let value: Value = match serde_json::from_slice(json) {
            Ok(value) => value,
            Err(syntax) => {
                let problem = api::decode::syntax_error(json, &syntax);
                return unrecognized(kind, json, &problem);
            }
        };
        if !value.is_object() {
            let problem = format!(
                "json: cannot unmarshal {} into an object",
                api::decode::json_type(&value)
            );
            return unrecognized(kind, json, &problem);
        }
        let of = |field: &str| value[field].as_str().unwrap_or_default();
        let (version, name) = (of("apiVersion"), of("kind"));
        let expect = api_version(&kind.group, &kind.version);
        let is_other =
            (!version.is_empty() && version != expect) || (!name.is_empty() && name != kind.kind);
        if is_other {
            return other_kind(kind, version, name);
        }
        ApiError::undecodable(&kind.kind, &kind.version, &error)
    })
}

/// The body is nothing that has a version and a kind.
fn unrecognized(kind: &Kind, json: &[u8], problem: &str) -> ApiError {
    const SHOWN_MAX: usize = 30;
    let part = &json[..json.len().min(SHOWN_MAX)];
    let mut summary = match part {
        [] => "<empty>".to_owned(),
        [b'{', ..] => String::from_utf8_lossy(part).into_owned(),
        _ => part.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if json.len() > SHOWN_MAX {
        summary += " ...";
    }
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {problem} ({summary})",
        kind.kind
    ))
}

/// The body is an object, but of another kind or version than those of the path.
fn other_kind(kind: &Kind, version: &str, name: &str) -> ApiError {
    let short = |version: &str| version.rsplit('/').next().unwrap_or_default().to_owned();
    let group = match kind.group.split('.').next() {
        None | Some("") => "core",
        Some(group) => group,
    };
    let (found_group, found_version) = version.split_once('/').unwrap_or(("", version));
    let is_known = api::registry::Registry::builtin()
        .by_kind(found_group, found_version, name)
        .is_some();
    let why = if is_known {
        format!(
            "converting ({found_version}.{name}) to ({group}.{}): unknown conversion",
            kind.kind
        )
    } else {
        format!("no kind {name:?} is registered for version {version:?}")
    };
    ApiError::bad_request(format!(
        "{name} in version {:?} cannot be handled as a {}: {why}",
        short(version),
        kind.kind
    ))
}

/// Answers with JSON text, or what the client wants instead.
pub fn respond_value(accept: &Accept, code: StatusCode, value: &Value) -> Response<ResponseBody> {
    if accept.encoding == Encoding::Protobuf
        && let Ok(bytes) = api::protobuf::encode(value)
    {
        return respond_bytes(code, "application/vnd.kubernetes.protobuf", bytes.into());
    }
    let (bytes, content_type) = match accept.encoding {
        Encoding::Yaml => (
            serde_yaml::to_string(value).unwrap_or_else(|_| value.to_string()),
            "application/yaml",
        ),
        _ if accept.pretty => (
            serde_json::to_string_pretty(value).unwrap_or_default(),
            "application/json",
        ),
        _ => (value.to_string(), "application/json"),
    };
    respond_bytes(code, content_type, bytes.into())
}

pub fn respond_bytes(
    code: StatusCode,
    content_type: &'static str,
    bytes: Bytes,
) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::from(bytes));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The JSON of an item as this kind shows it; only where a storage is shared is it another than the stored one.
pub fn json_of(kind: &Kind, item: &Item) -> ApiResult<Bytes> {
    if !kind.strategy.shares_storage() {
        return Ok(item.json.clone());
    }
    let decoded = kind
        .strategy
        .decode(&item.json, false)
        .map_err(ApiError::internal)?;
    Ok(decoded.object.to_json().into())
}

/// Answers with one object, in the form that the client wants.
pub fn respond_item(
    kind: &Kind,
    accept: &Accept,
    code: StatusCode,
    item: &Item,
    now_seconds: i64,
) -> ApiResult<Response<ResponseBody>> {
    match accept.shape {
        Shape::Object => match accept.encoding {
            Encoding::Json if !accept.pretty => Ok(respond_bytes(
                code,
                "application/json",
                json_of(kind, item)?,
            )),
            _ => {
                let value: Value =
                    serde_json::from_slice(&json_of(kind, item)?).map_err(ApiError::internal)?;
                Ok(respond_value(accept, code, &value))
            }
        },
        Shape::Metadata => {
            let text = table::partial_metadata(&item.json)?;
            let value: Value = serde_json::from_str(&text).map_err(ApiError::internal)?;
            Ok(respond_value(accept, code, &value))
        }
        Shape::Table(include) => {
            let rows = vec![table::row(kind, item, include, now_seconds)?];
            let metadata = json!({"resourceVersion": item.revision.to_string()});
            Ok(respond_value(
                accept,
                code,
                &table::table(metadata, Some(kind.strategy.columns()), rows),
            ))
        }
    }
}
