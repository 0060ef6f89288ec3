//! Shared caches: one watch a kind, however many loops listen.
//!
//! A loop registers its listeners with the [`Feeds`] it needs, then [`Feeds::start`] opens the watches
//! and hands out the [`Caches`]. Listeners run in the watch's task: they only update indexes and put
//! keys into queues. An [`Index`] groups the objects of a kind, sharing them with the cache.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use client::informer::{Cache, Change, Informer, ObjectKey};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

type Listener<K> = Box<dyn FnMut(&Change<K>) + Send>;

/// The watch of one kind before it is opened.
pub struct Feed<K> {
    listeners: Vec<Listener<K>>,
}

impl<K> Default for Feed<K> {
    fn default() -> Self {
        Feed {
            listeners: Vec::new(),
        }
    }
}

impl<K: 'static> Feed<K> {
    /// Calls `listener` with every change, in order.
    pub fn listen(&mut self, listener: impl FnMut(&Change<K>) + Send + 'static) {
        self.listeners.push(Box::new(listener));
    }

    /// Keeps an index of the kind. Indexes are up to date when listeners registered after them run.
    pub fn index(&mut self, bucket: impl Fn(&K) -> Option<String> + Send + 'static) -> Index<K>
    where
        K: Send + Sync,
    {
        let index = Index::default();
        let kept = index.clone();
        self.listen(move |change| kept.apply(change, &bucket));
        index
    }

    fn start(self, api: Api<K>, config: watcher::Config) -> Informer<K>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync,
    {
        let mut listeners = self.listeners;
        Informer::start(api, config, move |change| {
            listeners.iter_mut().for_each(|listener| listener(&change))
        })
    }
}

/// Objects of a kind by a bucket that a function of the object names.
pub struct Index<K> {
    buckets: Arc<Mutex<HashMap<String, Bucket<K>>>>,
}

type Bucket<K> = BTreeMap<(String, String), Arc<K>>;

impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        Index {
            buckets: self.buckets.clone(),
        }
    }
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Index {
            buckets: Arc::default(),
        }
    }
}

impl<K> Index<K> {
    fn apply(&self, change: &Change<K>, bucket: &impl Fn(&K) -> Option<String>) {
        let key = (change.key.namespace.clone(), change.key.name.clone());
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let before = change.before.as_deref().and_then(bucket);
        let after = change.after.as_deref().and_then(bucket);
        if let Some(before) = before.filter(|before| Some(before) != after.as_ref())
            && let Some(members) = buckets.get_mut(&before)
        {
            members.remove(&key);
            if members.is_empty() {
                buckets.remove(&before);
            }
        }
        if let (Some(after), Some(object)) = (after, &change.after) {
            buckets
                .entry(after)
                .or_default()
                .insert(key, object.clone());
        }
    }

    /// The objects of a bucket, by namespace and name.
    pub fn of(&self, bucket: &str) -> Vec<Arc<K>> {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets
            .get(bucket)
            .into_iter()
            .flat_map(|members| members.values().cloned())
            .collect()
    }
}

/// Every watch of the control plane, before it is opened.
#[derive(Default)]
pub struct Feeds {
    pub pods: Feed<Pod>,
    pub nodes: Feed<Node>,
    pub namespaces: Feed<Namespace>,
    pub deployments: Feed<Deployment>,
    pub replica_sets: Feed<ReplicaSet>,
    pub services: Feed<Service>,
    pub endpoints: Feed<Endpoints>,
    pub endpoint_slices: Feed<EndpointSlice>,
    pub service_accounts: Feed<ServiceAccount>,
    pub disruption_budgets: Feed<PodDisruptionBudget>,
    /// Only those that hold the root CA.
    pub root_ca_maps: Feed<ConfigMap>,
    /// Only those that hold tokens.
    pub token_secrets: Feed<Secret>,
    /// Only those of nodes.
    pub node_leases: Feed<Lease>,
}

/// The open watches. Dropping this closes them.
pub struct Watches {
    _held: Vec<Box<dyn std::any::Any + Send + Sync>>,
    pub caches: Caches,
}

/// Read access to the cache of a kind; of one that nobody listens to, it shows nothing.
pub struct View<K>(Option<Cache<K>>);

impl<K> Clone for View<K> {
    fn clone(&self) -> Self {
        View(self.0.clone())
    }
}

impl<K> View<K> {
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.0.as_ref()?.get(key)
    }

    /// Waits until the first list has arrived.
    pub async fn synced(&self) {
        if let Some(cache) = &self.0 {
            cache.synced().await;
        }
    }
}

/// Read access to what is watched.
#[derive(Clone)]
pub struct Caches {
    pub pods: View<Pod>,
    pub nodes: View<Node>,
    pub namespaces: View<Namespace>,
    pub deployments: View<Deployment>,
    pub replica_sets: View<ReplicaSet>,
    pub services: View<Service>,
    pub endpoints: View<Endpoints>,
    pub endpoint_slices: View<EndpointSlice>,
    pub service_accounts: View<ServiceAccount>,
    pub disruption_budgets: View<PodDisruptionBudget>,
    pub root_ca_maps: View<ConfigMap>,
    pub token_secrets: View<Secret>,
    pub node_leases: View<Lease>,
}

impl Feeds {
    pub fn start(self, client: &Client) -> Watches {
        let mut held: Vec<Box<dyn std::any::Any + Send + Sync>> = Vec::new();
        macro_rules! open {
            ($feed:expr, $api:expr, $config:expr) => {
                // A kind that nobody listens to costs nothing.
                if $feed.listeners.is_empty() {
                    View(None)
                } else {
                    let informer = $feed.start($api, $config);
                    let cache = informer.cache();
                    held.push(Box::new(informer));
                    View(Some(cache))
                }
            };
        }
        let all = || watcher::Config::default().any_semantic();
        // A list that may be old would hide what a scheduler that died just now has bound, and book its room again.
        let most_recent = watcher::Config::default;
        let named = |name: &str| all().fields(&format!("metadata.name={name}"));
        let caches = Caches {
            namespaces: open!(self.namespaces, Api::all(client.clone()), all()),
            nodes: open!(self.nodes, Api::all(client.clone()), most_recent()),
            pods: open!(self.pods, Api::all(client.clone()), most_recent()),
            deployments: open!(self.deployments, Api::all(client.clone()), all()),
            replica_sets: open!(self.replica_sets, Api::all(client.clone()), all()),
            services: open!(self.services, Api::all(client.clone()), all()),
            endpoints: open!(self.endpoints, Api::all(client.clone()), all()),
            endpoint_slices: open!(self.endpoint_slices, Api::all(client.clone()), all()),
            service_accounts: open!(self.service_accounts, Api::all(client.clone()), all()),
            disruption_budgets: open!(self.disruption_budgets, Api::all(client.clone()), all()),
            root_ca_maps: open!(
                self.root_ca_maps,
                Api::all(client.clone()),
                named(controllers::root_ca::NAME)
            ),
            token_secrets: open!(
                self.token_secrets,
                Api::all(client.clone()),
                all().fields(&format!(
                    "type={}",
                    controllers::service_account::TOKEN_SECRET_TYPE
                ))
            ),
            node_leases: open!(
                self.node_leases,
                Api::namespaced(client.clone(), NODE_LEASE_NAMESPACE),
                all()
            ),
        };
        Watches {
            _held: held,
            caches,
        }
    }
}

pub const NODE_LEASE_NAMESPACE: &str = "kube-node-lease";

impl Caches {
    /// Waits until every first list has arrived.
    pub async fn synced(&self) {
        self.namespaces.synced().await;
        self.nodes.synced().await;
        self.pods.synced().await;
        self.deployments.synced().await;
        self.replica_sets.synced().await;
        self.services.synced().await;
        self.endpoints.synced().await;
        self.endpoint_slices.synced().await;
        self.service_accounts.synced().await;
        self.disruption_budgets.synced().await;
        self.root_ca_maps.synced().await;
        self.token_secrets.synced().await;
        self.node_leases.synced().await;
    }
}

/// `uid` of the managing controller, or of the namespace's orphans.
pub fn owner_bucket(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> String {
    match controllers::owner::controller_of(metadata) {
        Some(owner) => owner.uid.clone(),
        None => orphans_of(metadata.namespace.as_deref().unwrap_or_default()),
    }
}

/// The bucket of objects of a namespace that nobody controls. No UID contains a space.
pub fn orphans_of(namespace: &str) -> String {
    format!("orphans of {namespace}")
}

/// The key of the managing controller, if it is of this kind.
pub fn controller_key(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    kind: &str,
) -> Option<ObjectKey> {
    let owner = controllers::owner::controller_of(metadata).filter(|owner| owner.kind == kind)?;
    Some(ObjectKey::new(
        metadata.namespace.clone().unwrap_or_default(),
        owner.name.clone(),
    ))
}
