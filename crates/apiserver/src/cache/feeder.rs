//! Fills the caches from the store and keeps them up to date.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::kind::{Strategy, Verb};
use api::registry::Registry;
use bytes::Bytes;
use store::{Event, KeyRange, RangeRequest, Revision, Store, StoreError, WatchRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Cache, Caches, ROOT};
use crate::server::StartError;

/// Pause before a broken watch of the store is started again.
const RETRY: Duration = Duration::from_millis(200);

/// Reads everything, then follows the store until `stop`.
pub async fn start(
    registry: &Registry,
    store: Arc<dyn Store>,
    stop: CancellationToken,
    tasks: &TaskTracker,
) -> Result<Arc<Caches>, StartError> {
    let mut strategies: HashMap<String, Vec<Arc<dyn Strategy>>> = HashMap::new();
    for kind in registry
        .iter()
        .filter(|kind| kind.verbs.contains(&Verb::Get))
    {
        strategies
            .entry(kind.storage_prefix.to_string())
            .or_default()
            .push(kind.strategy.clone());
    }
    let by_prefix = strategies
        .into_iter()
        .map(|(prefix, strategies)| {
            let cache = Arc::new(Cache::new(&prefix, strategies));
            (prefix, cache)
        })
        .collect();
    let caches = Arc::new(Caches {
        by_prefix,
        store: store.clone(),
        reached: watch::Sender::new(0),
    });
    let revision = load(&caches, &*store).await?;
    tasks.spawn(follow(caches.clone(), store, revision, stop));
    Ok(caches)
}

async fn load(caches: &Caches, store: &dyn Store) -> Result<u64, StartError> {
    let response = store
        .range(RangeRequest {
            range: KeyRange::prefix(ROOT),
            revision: None,
            limit: 0,
            count_only: false,
        })
        .await?;
    let revision = response.revision.0;
    for cache in caches.by_prefix.values() {
        let mut state = cache.write();
        state.revision = revision;
        state.ring_floor = revision;
    }
    for kv in response.kvs {
        let Some((cache, key)) = locate(caches, &kv.key) else {
            continue;
        };
        let item = cache
            .item(key, &kv.value, kv.mod_revision.0)
            .map_err(|detail| StartError::Object {
                key: String::from_utf8_lossy(&kv.key).into_owned(),
                detail,
            })?;
        cache.write().items.insert(key.into(), Arc::new(item));
    }
    caches.reached.send_replace(revision);
    Ok(revision)
}

/// `/registry/pods/default/a` -> the cache of pods and `default/a`.
fn locate<'a, 'k>(caches: &'a Caches, key: &'k Bytes) -> Option<(&'a Arc<Cache>, &'k str)> {
    let path = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?;
    let (prefix, key) = path.split_once('/')?;
    Some((caches.by_prefix.get(prefix)?, key))
}

async fn follow(
    caches: Arc<Caches>,
    store: Arc<dyn Store>,
    mut revision: u64,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let request = WatchRequest {
            range: KeyRange {
                start: Bytes::new(),
                end: None,
            },
            from: Some(Revision(revision + 1)),
            progress: true,
        };
        let error = match store.watch(request).await {
            Ok(watcher) => {
                let mut responses = watcher.responses;
                loop {
                    let response = tokio::select! {
                        response = responses.recv() => response,
                        () = stop.cancelled() => return,
                    };
                    match response {
                        Some(Ok(response)) => {
                            apply(&caches, &response.events);
                            if response.revision.0 > revision {
                                revision = response.revision.0;
                                caches.reached.send_replace(revision);
                            }
                        }
                        Some(Err(error)) => break error,
                        None => break StoreError::Closed,
                    }
                }
            }
            Err(error) => error,
        };
        if stop.is_cancelled() {
            return;
        }
        if let StoreError::Compacted { .. } = error {
            // We follow far more closely than anything is compacted: what is missing is unknown.
            tracing::error!(%error, revision, "the watch cache lost its place; restart the server");
            stop.cancel();
            return;
        }
        tracing::warn!(%error, revision, "the watch of the store broke and is started again");
        tokio::time::sleep(RETRY).await;
    }
}

fn apply(caches: &Caches, events: &[Event]) {
    // A cache announces its changes once a response, not once an event.
    let mut touched: Vec<(&Arc<Cache>, u64)> = Vec::new();
    for event in events {
        let (key, revision) = match event {
            Event::Put { kv, .. } => (&kv.key, kv.mod_revision.0),
            Event::Delete {
                key, mod_revision, ..
            } => (key, mod_revision.0),
        };
        let Some((cache, key)) = locate(caches, key) else {
            continue;
        };
        match event {
            Event::Put { kv, .. } => match cache.item(key, &kv.value, revision) {
                Ok(item) => cache.apply_put(key, item),
                Err(error) => {
                    tracing::error!(key, %error, "a stored object cannot be decoded and is not served");
                    continue;
                }
            },
            Event::Delete { .. } => cache.apply_delete(key, revision),
        }
        match touched.iter_mut().find(|(own, _)| Arc::ptr_eq(own, cache)) {
            Some((_, newest)) => *newest = revision,
            None => touched.push((cache, revision)),
        }
    }
    for (cache, revision) in touched {
        cache.changed.send_replace(revision);
    }
}
