//! `pods/eviction`: a deletion that asks politely. There are no disruption budgets yet, so nothing
//! is in its way.

use http::StatusCode;
use k8s_openapi::api::policy::v1::Eviction;
use serde_json::json;

use crate::codec::object::respond_value;
use crate::request::Query;
use crate::rest::{ApiResponse, DeleteOptions, Rest, WriteOptions};
use crate::status::ApiError;

/// `body` is JSON.
pub async fn create(rest: &Rest<'_>, body: &[u8]) -> ApiResponse {
    let write_options = WriteOptions::parse(&rest.context.query, "CreateOptions")?;
    let eviction: Eviction = serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!(
            "Eviction in version \"v1\" cannot be handled as a Eviction: {error}"
        ))
    })?;
    if eviction
        .metadata
        .name
        .as_deref()
        .is_some_and(|name| !name.is_empty() && name != rest.name)
    {
        return Err(ApiError::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let body = match eviction.delete_options {
        Some(options) => serde_json::to_vec(&options).map_err(ApiError::internal)?,
        None => b"{}".to_vec(),
    };
    let mut options = DeleteOptions::parse(&Query::default(), &body)?;
    options.dry_run |= write_options.dry_run;
    rest.delete_quietly(&options).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond_value(
        &rest.context.accept()?,
        StatusCode::CREATED,
        &status,
    ))
}
