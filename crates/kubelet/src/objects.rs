//! ConfigMaps and Secrets that pods of this node refer to: fetched when first asked for, then followed, so
//! that volumes are updated when they change and a pod that waits for one goes on at once.
//!
//! One watch an object, for as long as some pod refers to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::watch::{Change, follow};

type Poke = Arc<dyn Fn(&str) + Send + Sync>;

/// The ConfigMaps and Secrets of this node's pods.
pub struct Objects {
    config_maps: Store<ConfigMap>,
    secrets: Store<Secret>,
}

impl Objects {
    /// `poke` is told the uid of a pod that refers to what changed.
    pub fn new(client: kube::Client, poke: Poke) -> Objects {
        Objects {
            config_maps: Store::new(client.clone(), Arc::clone(&poke)),
            secrets: Store::new(client, poke),
        }
    }

    /// Says which objects a pod refers to from now on; empty sets when it is gone.
    pub fn refer(
        &self,
        pod_uid: &str,
        namespace: &str,
        config_maps: &BTreeSet<String>,
        secrets: &BTreeSet<String>,
    ) {
        self.config_maps.refer(pod_uid, namespace, config_maps);
        self.secrets.refer(pod_uid, namespace, secrets);
    }

    pub async fn config_maps(
        &self,
        namespace: &str,
        names: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Option<Arc<ConfigMap>>>, kube::Error> {
        self.config_maps.fetch(namespace, names).await
    }

    pub async fn secrets(
        &self,
        namespace: &str,
        names: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Option<Arc<Secret>>>, kube::Error> {
        self.secrets.fetch(namespace, names).await
    }
}

/// What is known of one object: nothing yet, or whether and what it is.
type Known<K> = Option<Option<Arc<K>>>;

struct Entry<K> {
    known: Arc<Mutex<Known<K>>>,
    pods: Arc<Mutex<BTreeSet<String>>>,
    /// Somebody was told that it does not exist.
    missed: Arc<AtomicBool>,
    task: tokio::task::AbortHandle,
}

type Entries<K> = HashMap<(String, String), Entry<K>>;

struct Store<K> {
    client: kube::Client,
    poke: Poke,
    entries: Mutex<Entries<K>>,
}

impl<K> Store<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    fn new(client: kube::Client, poke: Poke) -> Store<K> {
        Store {
            client,
            poke,
            entries: Mutex::default(),
        }
    }

    fn refer(&self, pod_uid: &str, namespace: &str, names: &BTreeSet<String>) {
        let mut entries = lock(&self.entries);
        for name in names {
            let entry = entries
                .entry((namespace.to_owned(), name.clone()))
                .or_insert_with(|| self.open(namespace, name));
            lock(&entry.pods).insert(pod_uid.to_owned());
        }
        entries.retain(|(own_namespace, name), entry| {
            if own_namespace == namespace && names.contains(name) {
                return true;
            }
            let mut pods = lock(&entry.pods);
            pods.remove(pod_uid);
            if pods.is_empty() {
                entry.task.abort();
            }
            !pods.is_empty()
        });
    }

    fn open(&self, namespace: &str, name: &str) -> Entry<K> {
        let known: Arc<Mutex<Known<K>>> = Arc::default();
        let pods: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let missed = Arc::new(AtomicBool::new(false));
        let (sink_known, sink_pods, sink_missed, poke) = (
            Arc::clone(&known),
            Arc::clone(&pods),
            Arc::clone(&missed),
            Arc::clone(&self.poke),
        );
        let sink = move |change: Change<K>| {
            let new = match change {
                Change::Reset(mut list) => list.pop(),
                Change::Applied(object) => Some(object),
                Change::Deleted(_) => None,
            };
            let version = |object: &K| object.meta().resource_version.clone();
            let mut known = lock(&sink_known);
            let changed = match &*known {
                None => true,
                Some(old) => old.as_deref().map(version) != new.as_ref().map(version),
            };
            let news =
                known.is_some() || new.is_some() && sink_missed.swap(false, Ordering::SeqCst);
            *known = Some(new.map(Arc::new));
            drop(known);
            if changed && news {
                for uid in lock(&sink_pods).iter() {
                    poke(uid);
                }
            }
            true
        };
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let task =
            tokio::spawn(follow(api, Some(format!("metadata.name={name}")), sink)).abort_handle();
        Entry {
            known,
            pods,
            missed,
            task,
        }
    }

    async fn fetch(
        &self,
        namespace: &str,
        names: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Option<Arc<K>>>, kube::Error> {
        let mut found = BTreeMap::new();
        for name in names {
            let known = {
                let entries = lock(&self.entries);
                let entry = entries.get(&(namespace.to_owned(), name.clone()));
                entry.and_then(|entry| lock(&entry.known).clone())
            };
            // What is not there may have been made a moment ago: ask again before saying so.
            let object = match known {
                Some(Some(object)) => Some(object),
                _ => Api::<K>::namespaced(self.client.clone(), namespace)
                    .get_opt(name)
                    .await?
                    .map(Arc::new),
            };
            if object.is_none()
                && let Some(entry) = lock(&self.entries).get(&(namespace.to_owned(), name.clone()))
            {
                entry.missed.store(true, Ordering::SeqCst);
            }
            found.insert(name.clone(), object);
        }
        Ok(found)
    }
}

impl<K> Drop for Store<K> {
    fn drop(&mut self) {
        for entry in lock(&self.entries).values() {
            entry.task.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
