//! list: from the cache, or from the store at an older revision.

use std::collections::VecDeque;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{KeyRange, RangeRequest, Revision, StoreError};

use super::options::VersionMatch;
use super::{ApiResponse, ListOptions, Rest, Selection, now_seconds};
use crate::body::ResponseBody;
use crate::cache::Item;
use crate::codec::object::{api_version, json_of, respond_value};
use crate::codec::{Encoding, Shape, table};
use crate::status::{ApiError, ApiResult};

/// A list's answer is sent in pieces of about this size, each encoded when the one before is gone.
const CHUNK_BYTES: usize = 64 << 10;

/// Upstream's continue token: where to go on, in which revision.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: u64,
    start: String,
}

impl Continue {
    fn encode(revision: u64, last_key: &str) -> String {
        let token = Self {
            v: "meta.k8s.io/v1".into(),
            rv: revision,
            start: format!("{last_key}\0"),
        };
        URL_SAFE_NO_PAD.encode(
            serde_json::to_vec(&token).expect("a struct of text and numbers always encodes"),
        )
    }

    fn decode(text: &str) -> ApiResult<Self> {
        URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok())
            .filter(|token| token.v == "meta.k8s.io/v1" && token.rv > 0)
            .ok_or_else(|| {
                ApiError::bad_request(
                    "invalid continue token: continue key is not valid: it must be one that a list answered with",
                )
            })
    }
}

/// One page.
pub struct Page {
    pub revision: u64,
    pub items: Vec<Arc<Item>>,
    continue_token: Option<String>,
    remaining: Option<usize>,
}

impl Rest<'_> {
    pub async fn list(&self) -> ApiResponse {
        let options = ListOptions::parse(&self.context.query, false)?;
        let selection = Selection::parse(
            &*self.kind.strategy,
            &self.context.query,
            self.namespace,
            "",
        )?;
        let accept = self.context.accept()?;
        let page = self.page(&options, &selection).await?;
        let mut metadata = json!({"resourceVersion": page.revision.to_string()});
        if let Some(token) = &page.continue_token {
            metadata["continue"] = token.as_str().into();
        }
        if let Some(remaining) = page.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        match accept.shape {
            Shape::Table(include) => {
                let now = now_seconds();
                let rows = page
                    .items
                    .iter()
                    .map(|item| table::row(self.kind, item, include, now))
                    .collect::<ApiResult<Vec<Value>>>()?;
                Ok(respond_value(
                    &accept,
                    StatusCode::OK,
                    &table::table(metadata, Some(self.kind.strategy.columns()), rows),
                ))
            }
            Shape::Metadata => {
                let items = page
                    .items
                    .iter()
                    .map(|item| {
                        serde_json::from_str(&table::partial_metadata(&item.json)?)
                            .map_err(ApiError::internal)
                    })
                    .collect::<ApiResult<Vec<Value>>>()?;
                let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items});
                Ok(respond_value(&accept, StatusCode::OK, &list))
            }
            Shape::Object => {
                let head = format!(
                    r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
                    self.kind.kind,
                    api_version(&self.kind.group, &self.kind.version)
                );
                if accept.encoding != Encoding::Json
                    || accept.pretty
                    || self.kind.strategy.shares_storage()
                {
                    let mut text = head.into_bytes();
                    for (index, item) in page.items.iter().enumerate() {
                        if index > 0 {
                            text.push(b',');
                        }
                        text.extend_from_slice(&json_of(self.kind, item)?);
                    }
                    text.extend_from_slice(b"]}");
                    let value: Value = serde_json::from_slice(&text).map_err(ApiError::internal)?;
                    return Ok(respond_value(&accept, StatusCode::OK, &value));
                }
                Ok(respond_chunks(head, page.items))
            }
        }
    }

    /// The objects that the options and selectors ask for.
    pub async fn page(&self, options: &ListOptions, selection: &Selection) -> ApiResult<Page> {
        if let Some(token) = &options.continue_token {
            if options.resource_version.is_some_and(|version| version != 0) {
                return Err(ApiError::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = Continue::decode(token)?;
            return self
                .page_at(token.rv, Some(&token.start), options.limit, selection)
                .await;
        }
        let exact = match (options.resource_version, options.version_match) {
            (Some(version), Some(VersionMatch::Exact)) => Some(version),
            // As upstream: a limit with an exact-looking version means that version.
            (Some(version), None) if version > 0 && options.limit > 0 => Some(version),
            _ => None,
        };
        if let Some(version) = exact {
            return self.page_at(version, None, options.limit, selection).await;
        }
        let reached = match options.resource_version {
            None => self.core.caches.fresh().await?,
            Some(0) => self.core.caches.reached(),
            Some(version) => self.core.caches.wait_for(version).await?,
        };
        let prefix = self.key_prefix();
        let snapshot = self
            .cache
            .list(reached, &prefix, None, options.limit, |head| {
                selection.matches(head)
            });
        let mut page = Page {
            revision: snapshot.revision,
            items: snapshot.items,
            continue_token: None,
            remaining: None,
        };
        if options.limit > 0 && page.items.len() > options.limit {
            page.items.truncate(options.limit);
            page.continue_token = page
                .items
                .last()
                .map(|item| Continue::encode(page.revision, &self.item_key(item)));
            if selection.is_everything() {
                page.remaining = Some(self.cache.count(&prefix).saturating_sub(options.limit));
            }
        }
        Ok(page)
    }

    fn item_key(&self, item: &Item) -> String {
        super::object_key(self.kind, &item.head.namespace, &item.head.name)
    }

    /// Reads the store at a revision, page by page until the limit is full.
    async fn page_at(
        &self,
        revision: u64,
        start: Option<&str>,
        limit: usize,
        selection: &Selection,
    ) -> ApiResult<Page> {
        let prefix = self.key_prefix();
        let mut range = KeyRange::prefix(self.cache.store_key(&prefix));
        if let Some(start) = start {
            if !start.starts_with(&prefix) {
                return Err(ApiError::bad_request(
                    "invalid continue token: continue key is not valid: it belongs to another list",
                ));
            }
            range.start = self.cache.store_key(start);
        }
        let mut page = Page {
            revision,
            items: Vec::new(),
            continue_token: None,
            remaining: None,
        };
        loop {
            let request = RangeRequest {
                range: range.clone(),
                revision: Some(Revision(revision)),
                limit,
                count_only: false,
            };
            let response = self.core.store.range(request).await.map_err(|error| match error {
                StoreError::Compacted { .. } if start.is_some() => ApiError::expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
                ),
                other => other.into(),
            })?;
            let read_count = response.kvs.len();
            let mut last_key = None;
            for (index, kv) in response.kvs.iter().enumerate() {
                let key = std::str::from_utf8(&kv.key[self.cache.store_prefix.len()..])
                    .map_err(ApiError::internal)?;
                let item = self
                    .cache
                    .item(key, &kv.value, kv.mod_revision.0)
                    .map_err(ApiError::internal)?;
                last_key = Some(key.to_owned());
                if selection.matches_item(&item) {
                    page.items.push(Arc::new(item));
                }
                if limit > 0 && page.items.len() == limit {
                    let more = response.more || index + 1 < read_count;
                    if more {
                        page.continue_token = last_key
                            .as_deref()
                            .map(|key| Continue::encode(revision, key));
                        if selection.is_everything() {
                            page.remaining = Some(response.count.saturating_sub(index + 1));
                        }
                    }
                    return Ok(page);
                }
            }
            match last_key {
                Some(key) if response.more => {
                    range.start = self.cache.store_key(&format!("{key}\0"))
                }
                _ => return Ok(page),
            }
        }
    }
}

fn respond_chunks(head: String, items: Vec<Arc<Item>>) -> Response<ResponseBody> {
    let total: usize = head.len() + items.iter().map(|item| item.json.len() + 1).sum::<usize>() + 2;
    let mut queue = VecDeque::from(items);
    let mut next = head.into_bytes();
    let mut first = true;
    let mut chunk = move || -> Option<Bytes> {
        if queue.is_empty() && next.is_empty() {
            return None;
        }
        let mut text = std::mem::take(&mut next);
        while let Some(item) = queue.pop_front() {
            if !first {
                text.push(b',');
            }
            first = false;
            text.extend_from_slice(&item.json);
            if text.len() >= CHUNK_BYTES && !queue.is_empty() {
                return Some(text.into());
            }
        }
        text.extend_from_slice(b"]}");
        Some(text.into())
    };
    let body = if total <= CHUNK_BYTES {
        ResponseBody::from(chunk().unwrap_or_default())
    } else {
        ResponseBody::stream(futures::stream::iter(std::iter::from_fn(move || {
            chunk().map(Ok)
        })))
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn continue_tokens() {
        let token = Continue::decode(&Continue::encode(7, "default/a")).unwrap();
        assert_eq!((token.rv, token.start.as_str()), (7, "default/a\0"));
        for text in ["", "x", "e30", "eyJ2IjoieCIsInJ2IjoxLCJzdGFydCI6ImEifQ"] {
            assert!(Continue::decode(text).is_err(), "{text}");
        }
    }
}
