//! `/livez`, `/readyz`, `/healthz`.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};

use crate::body::ResponseBody;
use crate::core::Core;
use crate::handler::Context;
use crate::rest::ApiResponse;
use crate::status::ApiError;

/// `segments`: `["readyz"]`, or `["readyz", "<check>"]`.
pub async fn answer(core: &Arc<Core>, context: &Context, segments: &[&str]) -> ApiResponse {
    let endpoint = segments.first().copied().unwrap_or_default();
    let mut checks = vec![
        ("ping", true),
        ("store", core.store.revisions().await.is_ok()),
    ];
    if endpoint == "readyz" {
        let fresh = core.caches.fresh().await.is_ok();
        checks.push(("watch-cache", fresh));
        checks.push(("shutdown", !core.stop.is_cancelled()));
    }
    if let Some(name) = segments.get(1) {
        checks.retain(|(own, _)| own == name);
        if checks.is_empty() || segments.len() > 2 {
            return Err(ApiError::no_such_path());
        }
    }
    let excluded: Vec<&str> = context.query.values("exclude").collect();
    checks.retain(|(name, _)| !excluded.contains(name));
    let healthy = checks.iter().all(|(_, good)| *good);
    let verbose = context.query.contains("verbose") || !healthy;
    let text = if verbose {
        let mut text: String = checks
            .iter()
            .map(|(name, good)| {
                if *good {
                    format!("[+]{name} ok\n")
                } else {
                    format!("[-]{name} failed: reason withheld\n")
                }
            })
            .collect();
        text += &format!(
            "{endpoint} check {}\n",
            if healthy { "passed" } else { "failed" }
        );
        text
    } else {
        "ok".into()
    };
    let mut response = Response::new(ResponseBody::from(text));
    *response.status_mut() = if healthy {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    Ok(response)
}
