//! watch: a stream of changes, from a revision or from what is there now.
//!
//! A watcher has no buffer of its own, only a position: it takes changes from the cache's ring,
//! and where the ring no longer reaches, from the store. One that reads slowly costs nothing, and
//! is closed with 410 when even the store has forgotten its position.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::kind::Kind;
use bytes::Bytes;
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use rand::Rng;
use serde_json::{Value, json};
use store::{Event, KeyRange, Revision, WatchRequest};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{ApiResponse, ListOptions, Rest, Selection, now_seconds};
use crate::body::ResponseBody;
use crate::cache::{Cache, Change, Changes, Item};
use crate::codec::object::{api_version, json_of};
use crate::codec::{Accept, Encoding, IncludeObject, Shape, table};
use crate::core::Core;
use crate::status::{ApiError, ApiResult};

/// How often a quiet watch that wants bookmarks gets one.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Watches without a timeout of their own end after a random time between this and twice it, so
/// that clients do not all come back at once.
const DEFAULT_TIMEOUT_SECONDS: u64 = 1800;
/// Events are sent together up to about this size.
const CHUNK_BYTES: usize = 32 << 10;

impl Rest<'_> {
    /// `name`: of the one object to watch, from the path; else empty.
    pub async fn watch(&self) -> ApiResponse {
        let options = ListOptions::parse(&self.context.query, true)?;
        let selection = Selection::parse(
            &*self.kind.strategy,
            &self.context.query,
            self.namespace,
            self.name,
        )?;
        let accept = self.context.accept()?;

        let initial = match (options.send_initial_events, options.resource_version) {
            (Some(wanted), _) => wanted,
            (None, None | Some(0)) => true,
            (None, Some(_)) => false,
        };
        let reached = match options.resource_version {
            // "Any" is allowed for 0, but what is here is as new as a read gets.
            None => self.core.caches.fresh().await?,
            Some(0) => self.core.caches.reached(),
            Some(version) if options.send_initial_events.is_some() => {
                self.core.caches.wait_for(version).await?
            }
            Some(version) => {
                let current = self.core.caches.reached();
                if version > current {
                    self.core.caches.wait_for(version).await?;
                }
                version
            }
        };
        let changed = self.cache.subscribe();
        let (cursor, initial_items) = if initial {
            let snapshot = self
                .cache
                .list(reached, &self.key_prefix(), None, 0, |head| {
                    selection.matches(head)
                });
            (snapshot.revision, Some(snapshot.items))
        } else {
            (reached, None)
        };
        let timeout_seconds = options.timeout_seconds.unwrap_or_else(|| {
            DEFAULT_TIMEOUT_SECONDS + rand::rng().random_range(0..DEFAULT_TIMEOUT_SECONDS)
        });
        let mut stream = WatchStream {
            core: self.core.clone(),
            cache: self.cache.clone(),
            encoder: EventEncoder {
                kind: self.kind.clone(),
                accept,
                columns_sent: false,
            },
            selection,
            prefix: self.key_prefix(),
            cursor,
            initial: initial_items.map(VecDeque::from),
            // A bookmark ends the initial events of clients that asked for them by name.
            initial_end: options.send_initial_events == Some(true) && options.allow_bookmarks,
            history: VecDeque::new(),
            history_until: 0,
            changed,
            bookmarks: options.allow_bookmarks,
            next_bookmark: Instant::now() + BOOKMARK_INTERVAL,
            deadline: Instant::now() + Duration::from_secs(timeout_seconds),
            ended: false,
        };
        // What is wrong with the position is said with a status code, before the stream begins.
        if stream.initial.is_none() {
            stream.fill_history_if_behind().await?;
        }
        let body = futures::stream::unfold(stream, |mut stream| async move {
            stream.next().await.map(|bytes| (Ok(bytes), stream))
        });
        let mut response = Response::new(ResponseBody::stream(body));
        let content_type = match accept.encoding {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml;stream=watch",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        };
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Ok(response)
    }
}

struct WatchStream {
    core: Arc<Core>,
    cache: Arc<Cache>,
    encoder: EventEncoder,
    selection: Selection,
    prefix: String,
    /// Everything up to this revision has been sent.
    cursor: u64,
    /// Objects that are sent first, as ADDED.
    initial: Option<VecDeque<Arc<Item>>>,
    initial_end: bool,
    /// Changes read from the store because the ring did not reach back.
    history: VecDeque<Arc<Change>>,
    /// Where the history ends: up to here nothing is missing once it is sent.
    history_until: u64,
    changed: watch::Receiver<u64>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    ended: bool,
}

impl WatchStream {
    /// The next bytes to send; `None` at the end of the watch.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        loop {
            if self.ended {
                return None;
            }
            if let Err(error) = self.collect(&mut out).await {
                self.encoder.error(&error, &mut out);
                self.ended = true;
            }
            if !out.is_empty() {
                return Some(out.into());
            }
            tokio::select! {
                changed = self.changed.changed() => self.ended = changed.is_err(),
                () = tokio::time::sleep_until(self.next_bookmark.min(self.deadline)) => {
                    let now = Instant::now();
                    if self.bookmarks {
                        // Read before looking at the ring: what is in it may be newer.
                        let reached = self.core.caches.reached();
                        if let Err(error) = self.collect(&mut out).await {
                            self.encoder.error(&error, &mut out);
                            self.ended = true;
                        } else if out.is_empty() {
                            self.cursor = self.cursor.max(reached);
                            self.encoder.bookmark(self.cursor, false, &mut out);
                        }
                        self.next_bookmark = now + BOOKMARK_INTERVAL;
                    }
                    self.ended |= now >= self.deadline;
                    if !self.bookmarks {
                        self.next_bookmark = self.deadline;
                    }
                    if !out.is_empty() {
                        return Some(out.into());
                    }
                }
                () = self.core.stop.cancelled() => self.ended = true,
            }
        }
    }

    /// Encodes what is there to send, up to a chunk.
    async fn collect(&mut self, out: &mut Vec<u8>) -> ApiResult<()> {
        if let Some(items) = &mut self.initial {
            while let Some(item) = items.pop_front() {
                self.encoder.event("ADDED", &item, out)?;
                if out.len() >= CHUNK_BYTES {
                    return Ok(());
                }
            }
            self.initial = None;
            if std::mem::take(&mut self.initial_end) {
                self.encoder.bookmark(self.cursor, true, out);
            }
        }
        loop {
            while let Some(change) = self.history.pop_front() {
                self.send(&change, out)?;
                if out.len() >= CHUNK_BYTES {
                    self.changed.mark_changed();
                    return Ok(());
                }
            }
            self.cursor = self.cursor.max(self.history_until);
            self.changed.borrow_and_update();
            let Changes::Ready(changes) = self.cache.changes_after(self.cursor) else {
                self.fill_history_if_behind().await?;
                continue;
            };
            for (index, change) in changes.iter().enumerate() {
                self.send(change, out)?;
                // The cursor counts revisions, so the events of one revision stay together; the
                // rest is taken from the ring again when this is on its way.
                let next = changes.get(index + 1);
                if out.len() >= CHUNK_BYTES
                    && next.is_some_and(|next| next.revision > change.revision)
                {
                    self.changed.mark_changed();
                    return Ok(());
                }
            }
            return Ok(());
        }
    }

    fn send(&mut self, change: &Change, out: &mut Vec<u8>) -> ApiResult<()> {
        let matched = change
            .previous
            .as_ref()
            .is_some_and(|previous| self.selection.matches_item(previous));
        let matches = !change.deleted && self.selection.matches_item(&change.item);
        match (matched, matches) {
            (false, false) => {}
            (false, true) => self.encoder.event("ADDED", &change.item, out)?,
            (true, true) => self.encoder.event("MODIFIED", &change.item, out)?,
            (true, false) if change.deleted => self.encoder.event("DELETED", &change.item, out)?,
            (true, false) => {
                // It no longer matches: the watcher is told that it is gone, with what it knew.
                if let Some(previous) = &change.previous {
                    self.encoder
                        .event("DELETED", &previous.at_revision(change.revision), out)?;
                }
            }
        }
        self.cursor = self.cursor.max(change.revision);
        Ok(())
    }

    /// Reads from the store what the ring has lost, up to where the ring begins.
    async fn fill_history_if_behind(&mut self) -> ApiResult<()> {
        if !matches!(self.cache.changes_after(self.cursor), Changes::Behind) {
            return Ok(());
        }
        let until = self.core.caches.reached();
        let range = KeyRange::prefix(self.cache.store_key(&self.prefix));
        let request = WatchRequest {
            range,
            from: Some(Revision(self.cursor + 1)),
            progress: true,
        };
        let mut responses = self.core.store.watch(request).await?.responses;
        let mut position = self.cursor;
        while position < until {
            let Some(response) = responses.recv().await else {
                return Err(ApiError::service_unavailable("the server is shutting down"));
            };
            let response = response?;
            for event in response.events {
                if let Some(change) = self.change_of(event)? {
                    self.history.push_back(Arc::new(change));
                }
            }
            position = response.revision.0.max(position);
        }
        self.history_until = position;
        Ok(())
    }

    fn change_of(&self, event: Event) -> ApiResult<Option<Change>> {
        let key_of = |key: &Bytes| {
            key.get(self.cache.store_prefix.len()..)
                .and_then(|key| std::str::from_utf8(key).ok())
                .map(str::to_owned)
        };
        let item = |kv: &store::KeyValue| -> ApiResult<Arc<Item>> {
            let key = key_of(&kv.key).unwrap_or_default();
            Ok(Arc::new(
                self.cache
                    .item(&key, &kv.value, kv.mod_revision.0)
                    .map_err(ApiError::internal)?,
            ))
        };
        Ok(match event {
            Event::Put { kv, prev } => Some(Change {
                revision: kv.mod_revision.0,
                deleted: false,
                item: item(&kv)?,
                previous: prev.as_ref().map(item).transpose()?,
            }),
            Event::Delete {
                mod_revision,
                prev: Some(prev),
                ..
            } => {
                let previous = item(&prev)?;
                Some(Change {
                    revision: mod_revision.0,
                    deleted: true,
                    item: Arc::new(previous.at_revision(mod_revision.0)),
                    previous: Some(previous),
                })
            }
            // A deletion whose object is unknown: nobody can be told what went.
            Event::Delete { prev: None, .. } => None,
        })
    }
}

/// Encodes events in the form that the watcher wants.
struct EventEncoder {
    kind: Arc<Kind>,
    accept: Accept,
    columns_sent: bool,
}

impl EventEncoder {
    fn event(&mut self, event_type: &str, item: &Item, out: &mut Vec<u8>) -> ApiResult<()> {
        match self.accept.shape {
            Shape::Object if self.accept.encoding == Encoding::Protobuf => {
                let value: Value = serde_json::from_slice(&json_of(&self.kind, item)?)
                    .map_err(ApiError::internal)?;
                let encoded = api::protobuf::encode_watch_event(event_type, &value)
                    .map_err(ApiError::internal)?;
                out.extend_from_slice(&encoded);
            }
            Shape::Object => frame(event_type, &json_of(&self.kind, item)?, out),
            Shape::Metadata => frame(
                event_type,
                table::partial_metadata(&item.json)?.as_bytes(),
                out,
            ),
            Shape::Table(include) => {
                let rows = vec![table::row(&self.kind, item, include, now_seconds())?];
                let table = self.table(item.revision, rows, json!({}));
                frame(event_type, table.to_string().as_bytes(), out);
            }
        }
        Ok(())
    }

    fn table(&mut self, revision: u64, rows: Vec<Value>, annotations: Value) -> Value {
        let columns = (!std::mem::replace(&mut self.columns_sent, true))
            .then(|| self.kind.strategy.columns());
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if annotations
            .as_object()
            .is_some_and(|annotations| !annotations.is_empty())
        {
            metadata["annotations"] = annotations;
        }
        table::table(metadata, columns, rows)
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool, out: &mut Vec<u8>) {
        let mut metadata =
            json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, version) = match self.accept.shape {
            Shape::Metadata => (
                "PartialObjectMetadata".to_owned(),
                "meta.k8s.io/v1".to_owned(),
            ),
            _ => (
                self.kind.kind.to_string(),
                api_version(&self.kind.group, &self.kind.version),
            ),
        };
        let object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        let object = match self.accept.shape {
            Shape::Table(include) => {
                // A table's own list metadata has no annotations: the mark is on the row's object.
                let object = if include == IncludeObject::None {
                    Value::Null
                } else {
                    object
                };
                self.table(
                    revision,
                    vec![json!({"cells": [], "object": object})],
                    json!({}),
                )
            }
            _ => object,
        };
        self.value("BOOKMARK", &object, out);
    }

    fn value(&self, event_type: &str, object: &Value, out: &mut Vec<u8>) {
        if self.accept.encoding == Encoding::Protobuf
            && let Ok(encoded) = api::protobuf::encode_watch_event(event_type, object)
        {
            return out.extend_from_slice(&encoded);
        }
        frame(event_type, object.to_string().as_bytes(), out);
    }

    fn error(&self, error: &ApiError, out: &mut Vec<u8>) {
        self.value("ERROR", &error.to_status(), out);
    }
}

fn frame(event_type: &str, object: &[u8], out: &mut Vec<u8>) {
    out.reserve(object.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(event_type.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}
