//! `scale`: the replica count of a kind that has one, as an autoscaling/v1 `Scale`.

use api::error::{ErrorList, FieldError, FieldErrorReason};
use api::kind::{Object, Part};
use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::api::autoscaling::v1::Scale;
use serde_json::Value;

use crate::cache::Item;
use crate::codec::essence;
use crate::codec::object::respond_value;
use crate::rest::managed_fields::Writer;
use crate::rest::patch::Patch;
use crate::rest::{ApiResponse, Rest, WriteOptions};
use crate::status::{ApiError, ApiResult};

pub async fn get(rest: &Rest<'_>) -> ApiResponse {
    let item = rest.current().await?;
    respond(rest, &item)
}

fn respond(rest: &Rest<'_>, item: &Item) -> ApiResponse {
    Ok(respond_value(
        &rest.context.accept()?,
        StatusCode::OK,
        &scale_of(rest, item)?,
    ))
}

fn scale_of(rest: &Rest<'_>, item: &Item) -> ApiResult<Value> {
    let object = rest.decode_stored(&item.json)?;
    rest.kind
        .strategy
        .scale(&*object)
        .ok_or_else(ApiError::no_such_path)
}

/// `body` is JSON.
pub async fn update(rest: &Rest<'_>, body: &[u8]) -> ApiResponse {
    let options = WriteOptions::parse(&rest.context.query, "UpdateOptions")?;
    let scale: Scale = serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!(
            "Scale in version \"v1\" cannot be handled as a Scale: {error}"
        ))
    })?;
    let own_name = scale.metadata.name.as_deref().unwrap_or_default();
    if own_name != rest.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({own_name}) does not match the name on the URL ({})",
            rest.name
        )));
    }
    write(rest, &options, |_| Ok(scale.clone())).await
}

pub async fn patch(rest: &Rest<'_>, body: Bytes) -> ApiResponse {
    let options = WriteOptions::parse(&rest.context.query, "PatchOptions")?;
    let patch = Patch::parse(essence(&rest.context.headers), body)?;
    write(rest, &options, |item| {
        let mut patched = match &patch {
            // The only field of a scale's spec: an apply of it is a merge.
            Patch::Apply(applied) => {
                api::patch::merge_patch(scale_of(rest, item)?, applied.clone())
            }
            patch => patch.apply("autoscaling", "v1", "Scale", scale_of(rest, item)?)?,
        };
        patched["apiVersion"] = "autoscaling/v1".into();
        patched["kind"] = "Scale".into();
        let shown = patch.shown(&patched);
        let (scale, _) = api::decode::decode(patched.to_string().as_bytes(), false)
            .map_err(|error| ApiError::undecodable_patch(&shown, &error))?;
        Ok(scale)
    })
    .await
}

async fn write(
    rest: &Rest<'_>,
    options: &WriteOptions,
    scale: impl Fn(&Item) -> ApiResult<Scale>,
) -> ApiResponse {
    let writer = Writer::update(rest, options, "scale");
    let written = rest
        .modify(&Part::Main, options, &writer, |old: &dyn Object, item| {
            let scale = scale(item)?;
            let replicas = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
            if replicas < 0 {
                let error = FieldError {
                    reason: FieldErrorReason::Invalid,
                    field: "spec.replicas".into(),
                    bad_value: replicas.to_string(),
                    detail: "must be greater than or equal to 0".into(),
                };
                return Err(ApiError::invalid(
                    "autoscaling",
                    "Scale",
                    rest.name,
                    &ErrorList::from([error]),
                ));
            }
            let mut new = old.clone_boxed();
            new.metadata_mut().resource_version = scale.metadata.resource_version;
            if let Some(uid) = scale.metadata.uid.filter(|uid| !uid.is_empty()) {
                new.metadata_mut().uid = Some(uid);
            }
            rest.kind.strategy.set_scale_replicas(&mut *new, replicas);
            Ok(new)
        })
        .await?;
    respond(rest, written.item())
}
