//! `/openapi/v2` and `/openapi/v3`: documents are made when asked for, and not kept.

use std::sync::Arc;

use api::kind::Kind;
use api::openapi::{self, Resource, V2_PROTOBUF_ACCEPT, V2_PROTOBUF_TYPE};
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{Response, StatusCode};

use crate::body::ResponseBody;
use crate::core::Core;
use crate::handler::Context;
use crate::rest::ApiResponse;
use crate::status::ApiError;

fn resources(kinds: &[Arc<Kind>]) -> Vec<Resource<'_>> {
    kinds
        .iter()
        .map(|kind| Resource {
            group: &kind.group,
            version: &kind.version,
            kind: &kind.kind,
            plural: &kind.plural,
            namespaced: kind.namespaced,
            verbs: kind.verbs,
            subresources: &kind.subresources,
            schema: None,
        })
        .collect()
}

/// `segments` follow `openapi`: `["v2"]`, `["v3"]`, `["v3", "api", "v1"]`, `["v3", "apis", "apps", "v1"]`.
pub async fn answer(core: &Arc<Core>, context: &Context, segments: &[&str]) -> ApiResponse {
    let kinds: Vec<Arc<Kind>> = core
        .resources
        .iter()
        .map(|resource| resource.kind.clone())
        .collect();
    match segments {
        ["v2"] => v2(context, kinds).await,
        ["v3"] => {
            let index = blocking(move || Some(openapi::v3_index(&resources(&kinds)))).await?;
            Ok(respond("application/json", None, index))
        }
        ["v3", "api", version] => v3(context, kinds, "", version).await,
        ["v3", "apis", group, version] => v3(context, kinds, group, version).await,
        _ => Err(ApiError::no_such_path()),
    }
}

async fn v2(context: &Context, kinds: Vec<Arc<Kind>>) -> ApiResponse {
    let tag = openapi::v2_hash(&resources(&kinds));
    if is_known(context, &tag) {
        return Ok(not_modified(&tag));
    }
    let accept = context
        .headers
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let clauses = accept
        .split(',')
        .map(|clause| clause.split(';').next().unwrap_or_default().trim());
    let protobuf = clauses
        .into_iter()
        .find_map(|clause| match clause {
            V2_PROTOBUF_ACCEPT | V2_PROTOBUF_TYPE => Some(true),
            "application/json" | "application/*" | "*/*" => Some(false),
            _ => None,
        })
        .unwrap_or(false);
    let bytes = blocking(move || {
        let resources = resources(&kinds);
        Some(if protobuf {
            openapi::v2_protobuf(&resources)
        } else {
            openapi::v2_json(&resources)
        })
    })
    .await?;
    Ok(respond(
        if protobuf {
            V2_PROTOBUF_TYPE
        } else {
            "application/json"
        },
        Some(&tag),
        bytes,
    ))
}

async fn v3(context: &Context, kinds: Vec<Arc<Kind>>, group: &str, version: &str) -> ApiResponse {
    let tag =
        openapi::v3_hash(&resources(&kinds), group, version).ok_or_else(ApiError::no_such_path)?;
    if is_known(context, &tag) {
        return Ok(not_modified(&tag));
    }
    let (group, version) = (group.to_owned(), version.to_owned());
    let bytes =
        blocking(move || openapi::v3_document(&resources(&kinds), &group, &version)).await?;
    Ok(respond("application/json", Some(&tag), bytes))
}

/// A document takes tens of milliseconds to make: not on a thread that serves others.
async fn blocking(
    work: impl FnOnce() -> Option<Vec<u8>> + Send + 'static,
) -> Result<Vec<u8>, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(ApiError::internal)?
        .ok_or_else(ApiError::no_such_path)
}

fn is_known(context: &Context, tag: &str) -> bool {
    let known = context
        .headers
        .get(IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok());
    known.is_some_and(|known| known.trim_matches('"') == tag)
}

fn not_modified(tag: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    insert_tag(&mut response, tag);
    response
}

fn respond(
    content_type: &'static str,
    tag: Option<&str>,
    bytes: Vec<u8>,
) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::from(bytes));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(tag) = tag {
        insert_tag(&mut response, tag);
    }
    response
}

fn insert_tag(response: &mut Response<ResponseBody>, tag: &str) {
    if let Ok(value) = HeaderValue::from_str(&format!("{tag:?}")) {
        response.headers_mut().insert(ETAG, value);
    }
}
