//! Watches every kind that can be deleted and collects what `controllers::garbage` condemns.
//!
//! Only metadata is kept, as the graph of owners. Kinds that appear later (custom resources) are found
//! when an owner of an unknown kind is met, at most every [`REDISCOVER_EVERY`].

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::workqueue::{Backoff, WorkQueue};
use controllers::garbage::{
    Due, FOREGROUND_FINALIZER, Graph, Identity, ORPHAN_FINALIZER, OwnerState, Policy, Verdict,
    judge,
};
use futures::{FutureExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{
    DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Context, Pending};
use crate::error;
use crate::worker::{self, Next};

const PARALLEL: usize = 8;
const REDISCOVER_EVERY: Duration = Duration::from_secs(30);
/// A resource without owners and dependents that upstream leaves out too: events live by their lease.
const IGNORED: [&str; 1] = ["events"];

/// A resource of the server, by discovery.
#[derive(Clone, Debug)]
pub struct Resource {
    pub api: ApiResource,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Resource {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// `resource.group` as conditions show it.
    pub fn title(&self) -> String {
        format!("{}.{}", self.api.plural, self.api.group)
    }
}

/// Every resource of the server, each in its group's preferred version.
pub async fn discover(client: &Client) -> Result<Vec<Resource>, kube::Error> {
    let mut lists = Vec::new();
    for version in client.list_core_api_versions().await?.versions {
        lists.push((
            String::new(),
            version.clone(),
            client.list_core_api_resources(&version).await?,
        ));
    }
    for group in client.list_api_groups().await?.groups {
        let Some(preferred) = group
            .preferred_version
            .or_else(|| group.versions.into_iter().next())
        else {
            continue;
        };
        let list = client
            .list_api_group_resources(&preferred.group_version)
            .await?;
        lists.push((group.name, preferred.version, list));
    }
    let mut resources = Vec::new();
    for (group, version, list) in lists {
        for resource in list
            .resources
            .into_iter()
            .filter(|resource| !resource.name.contains('/'))
        {
            let api_version = if group.is_empty() {
                version.clone()
            } else {
                format!("{group}/{version}")
            };
            let api = ApiResource {
                group: group.clone(),
                version: version.clone(),
                api_version,
                kind: resource.kind,
                plural: resource.name,
            };
            resources.push(Resource {
                api,
                namespaced: resource.namespaced,
                verbs: resource.verbs,
            });
        }
    }
    Ok(resources)
}

#[derive(Clone)]
struct Loop {
    client: Client,
    graph: Arc<Mutex<Graph>>,
    queue: WorkQueue<Due>,
    /// By group and kind.
    kinds: Arc<Mutex<HashMap<(String, String), Resource>>>,
    discover_again: Arc<tokio::sync::Notify>,
}

pub fn register(context: Arc<Context>) -> Pending {
    Box::new(move |_| {
        let this = Loop {
            client: context.client.clone(),
            graph: Arc::default(),
            queue: WorkQueue::new(Backoff {
                base: Duration::from_millis(50),
                max: Duration::from_secs(60),
            }),
            kinds: Arc::default(),
            discover_again: Arc::default(),
        };
        async move {
            let watching = this.clone().watch_all();
            let reconcile = {
                let this = this.clone();
                move |due: Due| this.clone().reconcile(due)
            };
            tokio::join!(
                watching,
                worker::run("garbage", this.queue.clone(), PARALLEL, reconcile)
            );
        }
        .boxed()
    })
}

impl Loop {
    fn graph(&self) -> std::sync::MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_all(&self, due: Vec<Due>) {
        due.into_iter().for_each(|due| self.queue.add(due));
    }

    /// Opens a watch for every resource, and for new ones when some may have appeared.
    async fn watch_all(self) {
        let mut watches = JoinSet::new();
        let mut watched: HashSet<(String, String)> = HashSet::new();
        loop {
            let started = Instant::now();
            match discover(&self.client).await {
                Ok(resources) => {
                    for resource in resources {
                        let key = (resource.api.group.clone(), resource.api.kind.clone());
                        let collectable =
                            resource.can("delete") && resource.can("list") && resource.can("watch");
                        self.kinds
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .insert(key.clone(), resource.clone());
                        if collectable
                            && !IGNORED.contains(&resource.api.plural.as_str())
                            && watched.insert(key)
                        {
                            watches.spawn(self.clone().watch(resource));
                        }
                    }
                    self.discover_again.notified().await;
                }
                Err(error) => tracing::debug!(error = %error::message(&error), "discovery failed"),
            }
            let wait = if watched.is_empty() {
                Duration::from_secs(1)
            } else {
                REDISCOVER_EVERY
            };
            tokio::time::sleep_until(started + wait).await;
        }
    }

    async fn watch(self, resource: Resource) {
        // Of this type the client asks for metadata only.
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::all_with(self.client.clone(), &resource.api);
        let config = watcher::Config::default().any_semantic();
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        // UIDs seen in the list under way, and those that belong to this kind.
        let mut listing: HashSet<Arc<str>> = HashSet::new();
        let mut known: HashSet<Arc<str>> = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listing.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    if let Some(uid) = self.observe(&resource, &object.metadata) {
                        known.insert(uid.clone());
                        listing.insert(uid);
                    }
                }
                Ok(watcher::Event::InitDone) => {
                    for gone in known.extract_if(|uid| !listing.contains(uid)) {
                        self.add_all(self.graph().forget(&gone));
                    }
                    listing = HashSet::new();
                }
                Ok(watcher::Event::Apply(object)) => {
                    known.extend(self.observe(&resource, &object.metadata))
                }
                Ok(watcher::Event::Delete(object)) => {
                    if let Some(uid) = object.metadata.uid.as_deref() {
                        known.remove(uid);
                        let due = self.graph().forget(uid);
                        self.add_all(due);
                    }
                }
                Err(error) => tracing::debug!(kind = %resource.api.kind, %error, "watch restarts"),
            }
        }
    }

    fn observe(&self, resource: &Resource, metadata: &ObjectMeta) -> Option<Arc<str>> {
        let identity = Identity {
            api_version: resource.api.api_version.as_str().into(),
            kind: resource.api.kind.as_str().into(),
            namespace: metadata.namespace.as_deref().unwrap_or_default().into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
        };
        let due = self.graph().observe(identity, metadata);
        self.add_all(due);
        metadata.uid.as_deref().map(Arc::from)
    }

    fn resource_of(&self, api_version: &str, kind: &str) -> Option<Resource> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let known = self
            .kinds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(group.to_string(), kind.to_string()))
            .cloned();
        if known.is_none() {
            self.discover_again.notify_one();
        }
        known
    }

    fn api(&self, resource: &Resource, namespace: &str) -> Api<DynamicObject> {
        if resource.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &resource.api)
        } else {
            Api::all_with(self.client.clone(), &resource.api)
        }
    }

    async fn reconcile(self, due: Due) -> Result<Next, kube::Error> {
        match due {
            Due::Examine(uid) => self.examine(&uid).await,
            Due::Orphan(uid) => self.orphan(&uid).await,
        }
    }

    async fn examine(&self, uid: &str) -> Result<Next, kube::Error> {
        let Some(identity) = self.graph().identity(uid).cloned() else {
            return Ok(Next::DONE);
        };
        let Some(resource) = self.resource_of(&identity.api_version, &identity.kind) else {
            return Ok(Next::DONE);
        };
        let api = self.api(&resource, &identity.namespace);
        let live = api.get_metadata_opt(&identity.name).await?;
        let Some(live) = live.filter(|live| live.metadata.uid.as_deref() == Some(uid)) else {
            // Gone, or another one by now: whatever the watch says later is only a repetition.
            if self.graph().is_observed(uid) {
                return Ok(Next::DONE);
            }
            let due = self
                .graph()
                .dependents(uid)
                .into_iter()
                .map(|(uid, _)| Due::Examine(uid))
                .collect();
            self.add_all(due);
            return Ok(Next::DONE);
        };
        if self.graph().is_deleting_dependents(uid) {
            let blockers = self.graph().finish_foreground(uid);
            return match blockers {
                Ok(()) => {
                    self.remove_finalizer(&api, &identity, &live.metadata, FOREGROUND_FINALIZER)
                        .await
                }
                Err(due) => {
                    self.add_all(due);
                    Ok(Next::DONE)
                }
            };
        }
        let mut states = Vec::new();
        for owner in live.metadata.owner_references.iter().flatten() {
            states.push(self.owner_state(&identity, owner).await?);
        }
        let has_dependents = self.graph().has_dependents(uid);
        let preconditions = Preconditions {
            uid: live.metadata.uid.clone(),
            resource_version: live.metadata.resource_version.clone(),
        };
        let result = match judge(&live.metadata, &states, has_dependents) {
            Verdict::Keep => return Ok(Next::DONE),
            Verdict::Retry => {
                return Ok(Next {
                    after: Some(REDISCOVER_EVERY),
                });
            }
            Verdict::DropOwners(uids) => {
                let kept: Vec<&OwnerReference> = live
                    .metadata
                    .owner_references
                    .iter()
                    .flatten()
                    .filter(|owner| !uids.contains(&owner.uid))
                    .collect();
                let patch = json!({"metadata": {"uid": uid, "resourceVersion": live.metadata.resource_version, "ownerReferences": kept}});
                api.patch(
                    &identity.name,
                    &PatchParams::default(),
                    &Patch::Merge(&patch),
                )
                .await
                .map(|_| ())
            }
            Verdict::Delete { policy } => {
                tracing::debug!(kind = %identity.kind, namespace = %identity.namespace, name = %identity.name, policy = policy.as_str(), "object without owners is deleted");
                let propagation_policy = Some(match policy {
                    Policy::Background => PropagationPolicy::Background,
                    Policy::Foreground => PropagationPolicy::Foreground,
                    Policy::Orphan => PropagationPolicy::Orphan,
                });
                let parameters = DeleteParams {
                    preconditions: Some(preconditions),
                    propagation_policy,
                    ..DeleteParams::default()
                };
                api.delete(&identity.name, &parameters).await.map(|_| ())
            }
        };
        match result {
            Err(error) if !error::is_not_found(&error) => Err(error),
            _ => Ok(Next::DONE),
        }
    }

    async fn owner_state(
        &self,
        dependent: &Identity,
        owner: &OwnerReference,
    ) -> Result<OwnerState, kube::Error> {
        let Some(resource) = self.resource_of(&owner.api_version, &owner.kind) else {
            return Ok(OwnerState::Unknown);
        };
        if resource.namespaced && dependent.namespace.is_empty() {
            // A cluster-scoped object cannot have a namespaced owner; upstream too leaves it alone.
            return Ok(OwnerState::Unknown);
        }
        let live = self
            .api(&resource, &dependent.namespace)
            .get_metadata_opt(&owner.name)
            .await?;
        Ok(match live {
            Some(live) if live.metadata.uid.as_deref() == Some(&owner.uid) => {
                let foreground = live
                    .metadata
                    .finalizers
                    .iter()
                    .flatten()
                    .any(|finalizer| finalizer == FOREGROUND_FINALIZER);
                if live.metadata.deletion_timestamp.is_some() && foreground {
                    OwnerState::Waiting
                } else {
                    OwnerState::Present
                }
            }
            _ => OwnerState::Absent,
        })
    }

    async fn orphan(&self, uid: &str) -> Result<Next, kube::Error> {
        let Some(identity) = self.graph().identity(uid).cloned() else {
            return Ok(Next::DONE);
        };
        let Some(resource) = self.resource_of(&identity.api_version, &identity.kind) else {
            return Ok(Next::DONE);
        };
        let dependents = self.graph().dependents(uid);
        for (dependent_uid, dependent) in dependents {
            let Some(resource) = self.resource_of(&dependent.api_version, &dependent.kind) else {
                continue;
            };
            let api = self.api(&resource, &dependent.namespace);
            let Some(live) = api.get_metadata_opt(&dependent.name).await? else {
                continue;
            };
            if live.metadata.uid.as_deref() != Some(&*dependent_uid) {
                continue;
            }
            let kept: Vec<&OwnerReference> = live
                .metadata
                .owner_references
                .iter()
                .flatten()
                .filter(|owner| owner.uid != uid)
                .collect();
            let patch = json!({"metadata": {"uid": &*dependent_uid, "resourceVersion": live.metadata.resource_version, "ownerReferences": kept}});
            match api
                .patch(
                    &dependent.name,
                    &PatchParams::default(),
                    &Patch::Merge(&patch),
                )
                .await
            {
                Err(error) if !error::is_not_found(&error) => return Err(error),
                _ => {}
            }
        }
        let api = self.api(&resource, &identity.namespace);
        match api.get_metadata_opt(&identity.name).await? {
            Some(live) if live.metadata.uid.as_deref() == Some(uid) => {
                self.remove_finalizer(&api, &identity, &live.metadata, ORPHAN_FINALIZER)
                    .await
            }
            _ => Ok(Next::DONE),
        }
    }

    async fn remove_finalizer(
        &self,
        api: &Api<DynamicObject>,
        identity: &Identity,
        live: &ObjectMeta,
        finalizer: &str,
    ) -> Result<Next, kube::Error> {
        let held = live.finalizers.clone().unwrap_or_default();
        if live.deletion_timestamp.is_none() || !held.iter().any(|held| held == finalizer) {
            return Ok(Next::DONE);
        }
        let kept: Vec<&String> = held.iter().filter(|held| *held != finalizer).collect();
        let patch = json!({"metadata": {"uid": live.uid, "resourceVersion": live.resource_version, "finalizers": kept}});
        match api
            .patch(
                &identity.name,
                &PatchParams::default(),
                &Patch::Merge(&patch),
            )
            .await
        {
            Err(error) if !error::is_not_found(&error) => Err(error),
            _ => Ok(Next::DONE),
        }
    }
}
