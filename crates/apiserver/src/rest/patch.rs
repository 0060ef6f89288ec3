//! patch: JSON, merge, strategic merge; and server-side apply.

use api::kind::{Object, Part};
use api::patch::{
    APPLY_PATCH_TYPE, JSON_PATCH_TYPE, MERGE_PATCH_TYPE, PatchError, STRATEGIC_MERGE_PATCH_TYPE,
    json_patch, merge_patch, strategic_merge_patch,
};
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use super::managed_fields::Writer;
use super::options::FieldValidation;
use super::update::subresource_name;
use super::{ApiResponse, Rest, WriteOptions};
use crate::cache::Item;
use crate::codec::object::api_version;
use crate::codec::{essence, yaml_to_json};
use crate::status::{ApiError, ApiResult};

const MEDIA_TYPES: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

/// What to do to an object.
pub enum Patch {
    Json(Bytes),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

impl Patch {
    pub fn parse(content_type: &str, body: Bytes) -> ApiResult<Self> {
        let json = |body: &[u8]| {
            serde_json::from_slice::<Value>(body)
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))
        };
        match content_type {
            JSON_PATCH_TYPE => Ok(Self::Json(body)),
            MERGE_PATCH_TYPE => Ok(Self::Merge(json(&body)?)),
            STRATEGIC_MERGE_PATCH_TYPE => Ok(Self::Strategic(json(&body)?)),
            APPLY_PATCH_TYPE => Ok(Self::Apply(json(&yaml_to_json(&body)?)?)),
            _ => Err(ApiError::unsupported_media_type(MEDIA_TYPES)),
        }
    }

    /// The patched JSON of a kind's object.
    pub fn apply(
        &self,
        group: &str,
        version: &str,
        kind: &str,
        current: Value,
    ) -> ApiResult<Value> {
        let patched = match self {
            Self::Json(patch) => json_patch(current, patch),
            Self::Merge(patch) => Ok(merge_patch(current, patch.clone())),
            Self::Strategic(patch) => {
                let type_ = api::schema::table().kind(&api_version(group, version), kind).ok_or_else(|| {
                    ApiError::unsupported_media_type("application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml")
                })?;
                strategic_merge_patch(current, patch.clone(), type_)
            }
            Self::Apply(_) => return Err(ApiError::internal("an apply is no patch of this kind")),
        };
        patched.map_err(|error| match error {
            PatchError::BadRequest(message) => ApiError::bad_request(message),
            PatchError::Unprocessable(message) => ApiError::unprocessable(message),
            PatchError::TooLarge(message) => ApiError::too_large_patch(message),
            PatchError::Internal(message) => ApiError::internal(message),
        })
    }
}

impl Rest<'_> {
    pub async fn patch(&self, part: Part, body: Bytes) -> ApiResponse {
        let options = WriteOptions::parse(&self.context.query, "PatchOptions")?;
        let patch = Patch::parse(essence(&self.context.headers), body)?;
        if let Patch::Apply(applied) = &patch {
            return self.apply(part, applied, &options).await;
        }
        if options.force {
            return Err(ApiError::bad_request(
                "force is only allowed for server-side apply patches",
            ));
        }
        let writer = Writer::update(self, &options, subresource_name(&part));
        let written = self
            .modify(&part, &options, &writer, |_, current| {
                self.patched(&patch, current, &options)
            })
            .await?;
        self.respond(StatusCode::OK, written.item())
    }

    fn patched(
        &self,
        patch: &Patch,
        current: &Item,
        options: &WriteOptions,
    ) -> ApiResult<Box<dyn Object>> {
        let current: Value = serde_json::from_slice(&current.json).map_err(ApiError::internal)?;
        let patched = patch.apply(
            &self.kind.group,
            &self.kind.version,
            &self.kind.kind,
            current,
        )?;
        let mut object = self.decode_value(&patched, options)?;
        self.check_namespace(&mut *object)?;
        Ok(object)
    }

    /// Decodes a patched object; its unknown fields are the patch's.
    pub fn decode_value(
        &self,
        value: &Value,
        options: &WriteOptions,
    ) -> ApiResult<Box<dyn Object>> {
        if options.field_validation == FieldValidation::Ignore {
            let from_value = self.kind.strategy.from_value(value.clone());
            return from_value.map_err(|error| self.undecodable_patch(&error));
        }
        let text = value.to_string();
        let decoded = self
            .kind
            .strategy
            .decode(text.as_bytes(), true)
            .map_err(|error| self.undecodable_patch(&error))?;
        let messages: Vec<String> = decoded
            .problems
            .into_iter()
            .map(|problem| problem.message)
            .collect();
        if options.field_validation == FieldValidation::Strict && !messages.is_empty() {
            return Err(ApiError::strict(
                &self.kind.kind,
                &self.kind.version,
                &messages,
            ));
        }
        messages
            .into_iter()
            .for_each(|message| self.context.warn(message));
        Ok(decoded.object)
    }

    fn undecodable_patch(&self, error: &api::error::DecodeError) -> ApiError {
        ApiError::unprocessable(format!(
            "the patched {} is invalid: {error}",
            self.kind.kind
        ))
    }
}
