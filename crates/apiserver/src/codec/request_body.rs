//! Bodies of requests: their size limit, their media type, and the way to JSON.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt;

use crate::body::RequestBody;
use crate::codec::accept::MEDIA_TYPES;
use crate::status::{ApiError, ApiResult};

/// Upstream's limit for the body of a write.
pub const BODY_BYTES_MAX: usize = 3 << 20;
/// What is read of a larger body, only to be thrown away, and for how long.
const DISCARDED_BYTES_MAX: usize = 16 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    Json,
    Yaml,
    Protobuf,
}

impl MediaType {
    /// Of a body that is an object; no `Content-Type` means JSON.
    pub fn of_object(headers: &HeaderMap) -> ApiResult<Self> {
        match essence(headers) {
            "" | "application/json" => Ok(Self::Json),
            "application/yaml" => Ok(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Ok(Self::Protobuf),
            _ => Err(ApiError::unsupported_media_type(MEDIA_TYPES)),
        }
    }
}

/// The media type without its parameters.
pub fn essence(headers: &HeaderMap) -> &str {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// Collects a body of at most 3 MiB.
pub async fn read(headers: &HeaderMap, mut body: RequestBody) -> ApiResult<Bytes> {
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<usize>().ok());
    if length.is_some_and(|length| length > BODY_BYTES_MAX) {
        return Err(too_large(body).await);
    }
    let mut first: Option<Bytes> = None;
    let mut collected: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::bad_request(format!("cannot read the request's body: {error}"))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let collected_bytes = collected
            .as_ref()
            .map_or(first.as_ref().map_or(0, Bytes::len), BytesMut::len);
        if collected_bytes + data.len() > BODY_BYTES_MAX {
            return Err(too_large(body).await);
        }
        match (&mut collected, &first) {
            (Some(all), _) => all.extend_from_slice(&data),
            // Most bodies are one frame, and are not copied.
            (None, None) => first = Some(data),
            (None, Some(begin)) => {
                let mut all = BytesMut::with_capacity(length.unwrap_or(begin.len() + data.len()));
                all.extend_from_slice(begin);
                all.extend_from_slice(&data);
                collected = Some(all);
            }
        }
    }
    Ok(collected
        .map(BytesMut::freeze)
        .or(first)
        .unwrap_or_default())
}

/// The refusal, once the client has sent the rest: many read no answer before, and take a stream that ends for a
/// failure of the connection.
async fn too_large(mut body: RequestBody) -> ApiError {
    let rest = async {
        let mut rest_bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            rest_bytes += frame.data_ref().map_or(0, Bytes::len);
            if rest_bytes > DISCARDED_BYTES_MAX {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
    ApiError::too_large(BODY_BYTES_MAX)
}

/// YAML to JSON; one document.
pub fn yaml_to_json(body: &[u8]) -> ApiResult<Bytes> {
    let text = std::str::from_utf8(body).map_err(|error| {
        ApiError::bad_request(format!("error converting YAML to JSON: yaml: {error}"))
    })?;
    let value: serde_json::Value = serde_yaml::from_str(text).map_err(|error| {
        ApiError::bad_request(format!("error converting YAML to JSON: yaml: {error}"))
    })?;
    Ok(value.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_yaml_is_refused() {
        let check = |what: &str, body: String| {
            let result = yaml_to_json(body.as_bytes());
            assert!(result.is_err(), "{what}");
        };
        check("nesting", "[".repeat(BODY_BYTES_MAX));
        check("closed nesting", "[".repeat(200_000) + &"]".repeat(200_000));
        check("mappings", "{a: ".repeat(BODY_BYTES_MAX / 4));
        check("sequences", "- ".repeat(BODY_BYTES_MAX / 2));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(", "));
        }
        check("aliases of aliases", bomb);
        check("a second document", "a: 1\n---\nb: 2\n".to_owned());
        check("not text", "\u{0}".to_owned());
    }
}
