//! patch: JSON, merge, strategic merge; and server-side apply.

use api::error::{FieldError, FieldErrorReason, go_quoted};
use api::kind::{Object, Part};
use api::patch::{
    APPLY_PATCH_TYPE, JSON_PATCH_TYPE, MERGE_PATCH_TYPE, PatchError, STRATEGIC_MERGE_PATCH_TYPE,
    json_patch, merge_patch, strategic_merge_patch,
};
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use super::managed_fields::Writer;
use super::options::{APPLY, FieldValidation};
use super::update::subresource_name;
use super::{ApiResponse, Rest, WriteOptions};
use crate::cache::Item;
use crate::codec::object::api_version;
use crate::codec::{essence, yaml_to_json};
use crate::status::{ApiError, ApiResult};

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
            let undecodable =
                |problem: String| ApiError::bad_request(format!("error decoding patch: {problem}"));
            let value: Value = serde_json::from_slice(body)
                .map_err(|error| undecodable(api::decode::syntax_error(body, &error)))?;
            if !value.is_object() {
                return Err(undecodable(format!(
                    "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                    api::decode::json_type(&value)
                )));
            }
            Ok(value)
        };
        match content_type {
            JSON_PATCH_TYPE => Ok(Self::Json(body)),
            MERGE_PATCH_TYPE => Ok(Self::Merge(json(&body)?)),
            STRATEGIC_MERGE_PATCH_TYPE => Ok(Self::Strategic(json(&body)?)),
            APPLY_PATCH_TYPE => Ok(Self::Apply(json(&yaml_to_json(&body)?)?)),
            _ => Err(ApiError::unsupported_patch_type()),
        }
    }

    /// What an error shows of a patch whose outcome, `patched`, cannot be decoded.
    pub fn shown(&self, patched: &Value) -> String {
        match self {
            Self::Strategic(patch) => api::patch::shown(patch),
            _ => patched.to_string(),
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
            PatchError::Unprocessable(problem) => {
                tracing::debug!(kind, problem, "a patch does not apply");
                ApiError::patch_does_not_apply()
            }
            PatchError::TooLarge(message) => ApiError::too_large_patch(message),
            PatchError::Internal(message) => ApiError::unexplained(message),
        })
    }
}

impl Rest<'_> {
    pub async fn patch(&self, part: Part, body: Bytes) -> ApiResponse {
        let content_type = essence(&self.context.headers);
        let options = WriteOptions::parse(
            &self.context.query,
            if content_type == APPLY_PATCH_TYPE {
                APPLY
            } else {
                "PatchOptions"
            },
        )?;
        let patch = Patch::parse(content_type, body)?;
        if let Patch::Apply(applied) = &patch {
            return self.apply(part, applied, &options).await;
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
        let uid = current.head.uid.clone();
        let current: Value = serde_json::from_slice(&current.json).map_err(ApiError::internal)?;
        let mut patched = patch.apply(
            &self.kind.group,
            &self.kind.version,
            &self.kind.kind,
            current,
        )?;
        // The object's type is the path's, whatever the patch says.
        if let Some(fields) = patched.as_object_mut() {
            fields.insert(
                "apiVersion".into(),
                api_version(&self.kind.group, &self.kind.version).into(),
            );
            fields.insert("kind".into(), self.kind.kind.as_ref().into());
        }
        let mut object = self.decode_value(&patched, patch, options)?;
        self.check_name(&mut *object)?;
        self.check_namespace(&mut *object)?;
        let own_uid = object.metadata().uid.clone().unwrap_or_default();
        if !own_uid.is_empty() && own_uid != *uid {
            let error = FieldError {
                reason: FieldErrorReason::Invalid,
                field: "metadata.uid".into(),
                bad_value: go_quoted(&own_uid),
                detail: "field is immutable".into(),
            };
            return Err(ApiError::invalid(
                &self.kind.group,
                &self.kind.kind,
                self.name,
                &vec![error],
            ));
        }
        Ok(object)
    }

    /// Decodes a patched object; its unknown fields are the patch's.
    pub fn decode_value(
        &self,
        value: &Value,
        patch: &Patch,
        options: &WriteOptions,
    ) -> ApiResult<Box<dyn Object>> {
        let undecodable = |error: &api::error::DecodeError| {
            ApiError::undecodable_patch(&patch.shown(value), error)
        };
        if options.field_validation == FieldValidation::Ignore {
            let from_value = self.kind.strategy.from_value(value.clone());
            return from_value.map_err(|error| undecodable(&error));
        }
        let text = value.to_string();
        let decoded = self
            .kind
            .strategy
            .decode(text.as_bytes(), true)
            .map_err(|error| undecodable(&error))?;
        let messages: Vec<String> = decoded
            .problems
            .into_iter()
            .map(|problem| problem.message)
            .collect();
        if options.field_validation == FieldValidation::Strict && !messages.is_empty() {
            let problem = format!("strict decoding error: {}", messages.join(", "));
            return Err(ApiError::undecodable_patch(&patch.shown(value), &problem));
        }
        messages
            .into_iter()
            .for_each(|message| self.context.warn(message));
        Ok(decoded.object)
    }
}
