//! Objects in requests and responses.

use api::kind::{Decoded, Kind};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;

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

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct TypeMeta<'a> {
    #[serde(borrow, default)]
    api_version: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    kind: Option<Cow<'a, str>>,
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

/// Decodes an object of a kind; says so when the body is one of another kind.
pub fn decode(kind: &Kind, json: &[u8], strict: bool) -> ApiResult<Decoded> {
    kind.strategy.decode(json, strict).map_err(|error| {
        let expect = api_version(&kind.group, &kind.version);
        if let Ok(found) = serde_json::from_slice::<TypeMeta<'_>>(json) {
            if let Some(version) = found.api_version.as_deref().filter(|version| *version != expect) {
                return ApiError::bad_request(format!(
                    "the API version in the data ({version}) does not match the expected API version ({expect})"
                ));
            }
            if let Some(other) = found.kind.as_deref().filter(|other| *other != kind.kind) {
                return ApiError::bad_request(format!("the object provided is unrecognized (must be of type {}): {other} in {expect}", kind.kind));
            }
        }
        ApiError::undecodable(&kind.kind, &kind.version, &error)
    })
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
