//! Follows objects of one kind: a list, then a watch from where the list ended, for ever.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// What happened to the followed objects.
pub enum Change<K> {
    /// All there is now; everything else is gone.
    Reset(Vec<K>),
    Applied(K),
    Deleted(K),
}

/// A watch is asked to end after this time, so that a dead connection is noticed.
const TIMEOUT_SECONDS: u32 = 290;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Calls `sink` with every change until it answers false or the task is dropped.
pub async fn follow<K>(
    api: Api<K>,
    field_selector: Option<String>,
    mut sink: impl FnMut(Change<K>) -> bool + Send,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut retry = RETRY_FIRST;
    loop {
        let mut list_params = ListParams::default();
        list_params.field_selector.clone_from(&field_selector);
        let mut version = match api.list(&list_params).await {
            Ok(list) => {
                retry = RETRY_FIRST;
                let version = list.metadata.resource_version.clone().unwrap_or_default();
                if !sink(Change::Reset(list.items)) {
                    return;
                }
                version
            }
            Err(error) => {
                tracing::debug!(%error, selector = field_selector, "list failed");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY_MAX);
                continue;
            }
        };
        // Watches, one after another, until one cannot go on from where the last one ended.
        'watches: loop {
            let mut params = WatchParams {
                timeout: Some(TIMEOUT_SECONDS),
                ..WatchParams::default()
            };
            params.field_selector.clone_from(&field_selector);
            let stream = match api.watch(&params, &version).await {
                Ok(stream) => stream,
                Err(kube::Error::Api(status)) if status.code == 410 => break 'watches,
                Err(error) => {
                    tracing::debug!(%error, "watch failed");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                    continue 'watches;
                }
            };
            let mut stream = std::pin::pin!(stream);
            while let Some(event) = stream.next().await {
                let (change, seen) = match event {
                    Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                        let seen = object.meta().resource_version.clone();
                        (Change::Applied(object), seen)
                    }
                    Ok(WatchEvent::Deleted(object)) => {
                        let seen = object.meta().resource_version.clone();
                        (Change::Deleted(object), seen)
                    }
                    Ok(WatchEvent::Bookmark(bookmark)) => {
                        version = bookmark.metadata.resource_version;
                        continue;
                    }
                    Ok(WatchEvent::Error(status)) => {
                        tracing::debug!(code = status.code, message = %status.message, "watch ended");
                        break 'watches;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "watch broke");
                        tokio::time::sleep(retry).await;
                        retry = (retry * 2).min(RETRY_MAX);
                        continue 'watches;
                    }
                };
                retry = RETRY_FIRST;
                if let Some(seen) = seen {
                    version = seen;
                }
                if !sink(change) {
                    return;
                }
            }
        }
        tokio::time::sleep(RETRY_FIRST).await;
    }
}
