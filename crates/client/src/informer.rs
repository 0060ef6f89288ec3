//! A cache of one kind, kept by list and watch, that reports every change.
//!
//! Enter at [`Informer::start`]. Invariants:
//! - The callback sees every change exactly once, in order, with the version before and after;
//!   when the watch is restarted, what changed meanwhile is reported as the difference.
//! - The cache holds the `after` of a change when its callback runs.
//! - `metadata.managedFields` is left out; an update without it leaves it as it is on the server.
//!
//! Deliberately absent: indexes and resync timers; loops keep their own indexes in the callback.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, RwLock};

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// One observed change; at least one side is there. `before` only: the object was deleted.
#[derive(Clone, Debug)]
pub struct Change<K> {
    pub key: ObjectKey,
    pub before: Option<Arc<K>>,
    pub after: Option<Arc<K>>,
}

/// A running cache; dropping it ends its watch.
pub struct Informer<K> {
    cache: Cache<K>,
    task: tokio::task::JoinHandle<()>,
}

/// Read access to an informer's cache; clones share it.
pub struct Cache<K> {
    objects: Arc<RwLock<HashMap<ObjectKey, Arc<K>>>>,
    synced: watch::Receiver<bool>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            objects: self.objects.clone(),
            synced: self.synced.clone(),
        }
    }
}

impl<K> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Starts listing and watching; `on_change` runs in the informer's task and must not block.
    pub fn start(
        api: Api<K>,
        config: watcher::Config,
        mut on_change: impl FnMut(Change<K>) + Send + 'static,
    ) -> Self {
        let (synced_tx, synced) = watch::channel(false);
        let objects: Arc<RwLock<HashMap<ObjectKey, Arc<K>>>> = Arc::default();
        let cache = Cache {
            objects: objects.clone(),
            synced,
        };
        let task = tokio::spawn(async move {
            // Nobody who reads a cache needs to know who wrote which field, and it is half of an object.
            let strip = |object: &mut K| object.meta_mut().managed_fields = None;
            let mut events = std::pin::pin!(watcher(api, config).default_backoff().modify(strip));
            let mut listed: Option<HashMap<ObjectKey, Arc<K>>> = None;
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Init) => listed = Some(HashMap::new()),
                    Ok(watcher::Event::InitApply(object)) => {
                        listed
                            .get_or_insert_default()
                            .insert(ObjectKey::of(&object), Arc::new(object));
                    }
                    Ok(watcher::Event::InitDone) => {
                        for change in replace(&objects, listed.take().unwrap_or_default()) {
                            on_change(change);
                        }
                        synced_tx.send_replace(true);
                    }
                    Ok(watcher::Event::Apply(object)) => {
                        let key = ObjectKey::of(&object);
                        let after = Arc::new(object);
                        let before = write(&objects).insert(key.clone(), after.clone());
                        on_change(Change {
                            key,
                            before,
                            after: Some(after),
                        });
                    }
                    Ok(watcher::Event::Delete(object)) => {
                        let key = ObjectKey::of(&object);
                        let before = write(&objects)
                            .remove(&key)
                            .or_else(|| Some(Arc::new(object)));
                        on_change(Change {
                            key,
                            before,
                            after: None,
                        });
                    }
                    Err(error) => {
                        tracing::debug!(kind = std::any::type_name::<K>(), %error, "watch restarts");
                    }
                }
            }
        });
        Self { cache, task }
    }

    /// Waits until the first list is in the cache and its changes were reported.
    pub async fn synced(&self) {
        self.cache.synced().await;
    }

    pub fn cache(&self) -> Cache<K> {
        self.cache.clone()
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.cache.get(key)
    }

    /// Every object, in no particular order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.cache.list()
    }
}

impl<K> Cache<K> {
    pub async fn synced(&self) {
        let mut synced = self.synced.clone();
        // An error means that the informer is gone; nothing will ever be synced then.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read().get(key).cloned()
    }

    pub fn list(&self) -> Vec<Arc<K>> {
        self.read().values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<ObjectKey, Arc<K>>> {
        self.objects
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<K> Drop for Informer<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Puts a fresh list in place; answers the differences, deletions first.
fn replace<K: Resource>(
    objects: &RwLock<HashMap<ObjectKey, Arc<K>>>,
    listed: HashMap<ObjectKey, Arc<K>>,
) -> Vec<Change<K>> {
    let old = std::mem::replace(&mut *write(objects), listed.clone());
    let mut changes: Vec<Change<K>> = old
        .iter()
        .filter(|(key, _)| !listed.contains_key(key))
        .map(|(key, before)| Change {
            key: key.clone(),
            before: Some(before.clone()),
            after: None,
        })
        .collect();
    for (key, after) in listed {
        let before = old.get(&key).cloned();
        let unchanged = before.as_ref().is_some_and(|before| {
            before.meta().resource_version == after.meta().resource_version
                && before.meta().uid == after.meta().uid
        });
        if !unchanged {
            changes.push(Change {
                key,
                before,
                after: Some(after),
            });
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str, resource_version: &str) -> (ObjectKey, Arc<ConfigMap>) {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.into());
        object.metadata.resource_version = Some(resource_version.into());
        (ObjectKey::of(&object), Arc::new(object))
    }

    #[test]
    fn a_fresh_list_is_reported_as_differences() {
        let objects = RwLock::new(HashMap::from([
            object("gone", "1"),
            object("same", "2"),
            object("changed", "3"),
        ]));
        let listed = HashMap::from([
            object("same", "2"),
            object("changed", "4"),
            object("new", "5"),
        ]);
        let mut seen: Vec<_> = replace(&objects, listed)
            .into_iter()
            .map(|change| {
                (
                    change.key.name,
                    change.before.is_some(),
                    change.after.is_some(),
                )
            })
            .collect();
        seen.sort();
        assert_eq!(
            seen,
            [
                ("changed".to_owned(), true, true),
                ("gone".to_owned(), true, false),
                ("new".to_owned(), false, true)
            ]
        );
        assert_eq!(objects.read().unwrap().len(), 3);
    }
}
