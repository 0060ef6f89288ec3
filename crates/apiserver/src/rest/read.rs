//! get.

use std::sync::Arc;

use http::StatusCode;

use super::options::parse_resource_version;
use super::{ApiResponse, Rest, now_seconds};
use crate::cache::Item;
use crate::codec::object::respond_item;
use crate::status::ApiResult;

impl Rest<'_> {
    pub async fn get(&self) -> ApiResponse {
        let item = self.get_item().await?;
        self.respond(StatusCode::OK, &item)
    }

    async fn get_item(&self) -> ApiResult<Arc<Item>> {
        match self.context.query.value("resourceVersion") {
            None => self.current().await,
            Some("0") => self.cached().ok_or_else(|| self.not_found()),
            Some(version) => {
                self.core
                    .caches
                    .wait_for(parse_resource_version(version)?)
                    .await?;
                self.cached().ok_or_else(|| self.not_found())
            }
        }
    }

    pub fn respond(&self, code: StatusCode, item: &Item) -> ApiResponse {
        respond_item(
            self.kind,
            &self.context.accept()?,
            code,
            item,
            now_seconds(),
        )
    }
}
