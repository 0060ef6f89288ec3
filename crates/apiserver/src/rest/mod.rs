//! The verbs on objects, the same for every kind.
//!
//! Enter at [`Rest`], which is one request's view of one resource; each verb has its file.

mod create;
mod delete;
mod list;
pub mod managed_fields;
pub mod meta;
pub mod options;
pub mod patch;
mod read;
mod selection;
pub mod update;
mod watch;

pub use options::{DeleteOptions, ListOptions, WriteOptions};
pub use selection::Selection;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use api::error::ErrorList;
use api::kind::{Decoded, Kind, Object};
use bytes::Bytes;
use http::Response;

use crate::body::ResponseBody;
use crate::cache::{Cache, Head, Item};
use crate::core::Core;
use crate::handler::Context;
use crate::status::{ApiError, ApiResult};

pub type ApiResponse = ApiResult<Response<ResponseBody>>;

/// One request on one resource.
pub struct Rest<'a> {
    pub core: &'a Arc<Core>,
    pub context: &'a Context,
    pub kind: &'a Arc<Kind>,
    pub cache: &'a Arc<Cache>,
    /// Empty: all namespaces, or a kind without them.
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> Rest<'a> {
    pub fn key(&self) -> String {
        object_key(self.kind, self.namespace, self.name)
    }

    /// The range of keys that a list or watch here covers.
    pub fn key_prefix(&self) -> String {
        if self.kind.namespaced && !self.namespace.is_empty() {
            format!("{}/", self.namespace)
        } else {
            String::new()
        }
    }

    pub fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.kind.group, &self.kind.plural, self.name)
    }

    /// What validation found; kinds of one storage are all of the core group to it, as upstream.
    pub fn invalid(&self, name: &str, errors: &ErrorList) -> ApiError {
        let group = if self.kind.strategy.shares_storage() {
            ""
        } else {
            self.kind.group.as_ref()
        };
        ApiError::invalid(group, &self.kind.kind, name, errors)
    }

    pub fn modified(&self) -> ApiError {
        ApiError::modified(&self.kind.group, &self.kind.plural, self.name)
    }

    pub fn decode_stored(&self, json: &[u8]) -> ApiResult<Box<dyn Object>> {
        decode_stored(self.kind, json)
    }

    /// The head of an object as the cache wants it; `value` is its encoding.
    pub fn head_of(&self, object: &dyn Object, value: &Bytes) -> ApiResult<Arc<Head>> {
        if self.kind.strategy.shares_storage() {
            return self
                .cache
                .head(value)
                .map(Arc::new)
                .map_err(ApiError::internal);
        }
        Ok(Arc::new(Head::of(&*self.kind.strategy, object)))
    }

    /// The newest version in the cache.
    pub fn cached(&self) -> Option<Arc<Item>> {
        self.cache.get(&self.key())
    }

    /// The version that is current now, after waiting for the cache to be.
    pub async fn current(&self) -> ApiResult<Arc<Item>> {
        self.core.caches.fresh().await?;
        self.cached().ok_or_else(|| self.not_found())
    }

    /// The version to try a write on: of the cache, which under load is some commits behind.
    ///
    /// A write compares its revision, so that it cannot overwrite a newer one; whatever else comes of this
    /// version (an error, nothing to write) counts only if there is none [`newer`](Rest::newer_than).
    pub async fn believed(&self) -> ApiResult<Arc<Item>> {
        match self.cached() {
            Some(item) => Ok(item),
            None => self.current().await,
        }
    }

    /// The current version, if it is another one than `seen`.
    pub async fn newer_than(&self, seen: &Item) -> ApiResult<Option<Arc<Item>>> {
        let current = self.current().await?;
        Ok((current.revision != seen.revision).then_some(current))
    }
}

pub fn object_key(kind: &Kind, namespace: &str, name: &str) -> String {
    if kind.namespaced {
        format!("{namespace}/{name}")
    } else {
        name.to_owned()
    }
}

/// Decodes what we stored ourselves.
pub fn decode_stored(kind: &Kind, json: &[u8]) -> ApiResult<Box<dyn Object>> {
    let Decoded { object, .. } = kind.strategy.decode(json, false).map_err(|error| {
        ApiError::internal(format!("a stored object cannot be decoded: {error}"))
    })?;
    Ok(object)
}

/// The value to store: the encoding without a resource version.
pub fn encode(object: &mut dyn Object) -> Bytes {
    object.metadata_mut().resource_version = None;
    object.to_json().into()
}

/// As [`encode`], of an object with an empty list of managed fields, for which their text stands in.
pub fn encode_with(object: &mut dyn Object, managed_fields: &[u8]) -> ApiResult<Bytes> {
    object.metadata_mut().resource_version = None;
    let mut json = object.to_json();
    if !api::managed_fields::fill_managed_fields(&mut json, managed_fields) {
        return Err(ApiError::internal(
            "the encoding has no place for managed fields",
        ));
    }
    Ok(json.into())
}

pub fn now_seconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}
