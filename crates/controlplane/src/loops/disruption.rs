//! Carries out what `controllers::disruption` decides.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::disruption::selects;
use api::registry::Registry;
use client::informer::ObjectKey;
use client::workqueue::{Backoff, WorkQueue};
use controllers::disruption::{self, Observed, Scale};
use controllers::{deployment, owner, replicaset};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::json;

use super::{Context, Pending};
use crate::error;
use crate::feed::{Caches, Feeds, Index};
use crate::worker::{self, Next};

const PARALLEL: usize = 5;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Budget(ObjectKey),
    /// A pod whose mark of a disruption may have gone stale.
    Pod(ObjectKey),
}

#[derive(Clone)]
struct Loop {
    context: Arc<Context>,
    /// By namespace.
    pods: Index<Pod>,
    /// Names the paths of what controls pods.
    registry: Arc<Registry>,
}

pub fn register(feeds: &mut Feeds, context: Arc<Context>) -> Pending {
    let queue: WorkQueue<Key> = WorkQueue::new(Backoff::default());
    let this = Loop {
        context: Arc::new(Context {
            client: context.client.clone(),
            recorder: context.recorder.component("controllermanager"),
        }),
        pods: feeds.pods.index(|pod| pod.metadata.namespace.clone()),
        registry: Arc::new(Registry::builtin()),
    };
    let budgets = feeds
        .disruption_budgets
        .index(|budget| budget.metadata.namespace.clone());
    let add = queue.clone();
    feeds
        .disruption_budgets
        .listen(move |change| add.add(Key::Budget(change.key.clone())));
    let add = queue.clone();
    feeds.pods.listen(move |change| {
        let labels = [&change.before, &change.after]
            .map(|pod| pod.as_ref().map(|pod| pod.metadata.labels.as_ref()));
        for budget in budgets.of(&change.key.namespace) {
            if labels
                .iter()
                .flatten()
                .any(|labels| selects(&budget, *labels))
            {
                add.add(Key::Budget(ObjectKey::of(&*budget)));
            }
        }
        let stale = change.after.as_deref().and_then(|pod| {
            let left = disruption::stale_after(pod, Timestamp::now())?;
            Next::after(Some(left)).after
        });
        if let Some(left) = stale {
            add.add_after(Key::Pod(change.key.clone()), left);
        }
    });
    Box::new(move |caches| {
        let reconcile = move |key| this.clone().reconcile(caches.clone(), key);
        worker::run("disruption", queue, PARALLEL, reconcile).boxed()
    })
}

impl Loop {
    async fn reconcile(self, caches: Caches, key: Key) -> Result<Next, kube::Error> {
        match key {
            Key::Budget(key) => self.budget(&caches, &key).await,
            Key::Pod(key) => self.stale_mark(&caches, &key).await,
        }
    }

    async fn budget(&self, caches: &Caches, key: &ObjectKey) -> Result<Next, kube::Error> {
        let Some(budget) = caches.disruption_budgets.get(key) else {
            return Ok(Next::DONE);
        };
        let mut pods = self.pods.of(&key.namespace);
        pods.retain(|pod| selects(&budget, pod.metadata.labels.as_ref()));
        let scales = if disruption::needs_scales(&budget) {
            self.scales(caches, &key.namespace, &pods).await?
        } else {
            BTreeMap::new()
        };
        let observed = Observed {
            budget: &budget,
            pods: pods.iter().map(Arc::as_ref).collect(),
            scales,
        };
        let outcome = disruption::reconcile(&observed, Timestamp::now());
        for event in outcome.events {
            self.context.recorder.record(&*budget, event);
        }
        for pod in pods.iter().filter(|pod| {
            let name = pod.metadata.name.as_ref();
            name.is_some_and(|name| outcome.not_deleted.contains(name))
        }) {
            self.context
                .recorder
                .record(&**pod, disruption::not_deleted(&budget));
        }
        if let Some(status) = outcome.status {
            self.write_status(&budget, key, status).await?;
        }
        Ok(Next::after(outcome.requeue_after))
    }

    async fn write_status(
        &self,
        budget: &PodDisruptionBudget,
        key: &ObjectKey,
        status: k8s_openapi::api::policy::v1::PodDisruptionBudgetStatus,
    ) -> Result<(), kube::Error> {
        let mut object = budget.clone();
        object.status = Some(status);
        let api: Api<PodDisruptionBudget> =
            Api::namespaced(self.context.client.clone(), &key.namespace);
        match api
            .replace_status(&key.name, &PostParams::default(), &object)
            .await
        {
            Err(error) if !error::is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// The scales of what controls these pods, by the controllers' UIDs.
    async fn scales(
        &self,
        caches: &Caches,
        namespace: &str,
        pods: &[Arc<Pod>],
    ) -> Result<BTreeMap<String, Scale>, kube::Error> {
        let mut scales = BTreeMap::new();
        for owner in pods
            .iter()
            .filter_map(|pod| owner::controller_of(&pod.metadata))
        {
            if scales.contains_key(&owner.uid) {
                continue;
            }
            if let Some(scale) = self.scale(caches, namespace, owner).await? {
                scales.insert(owner.uid.clone(), scale);
            }
        }
        Ok(scales)
    }

    async fn scale(
        &self,
        caches: &Caches,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<Option<Scale>, kube::Error> {
        if owner.kind != replicaset::KIND || owner.api_version != replicaset::API_VERSION {
            return self.scale_of_other(namespace, owner).await;
        }
        let key = ObjectKey::new(namespace, owner.name.as_str());
        let found = caches
            .replica_sets
            .get(&key)
            .filter(|found| found.metadata.uid.as_deref() == Some(&owner.uid));
        let Some(replica_set) = found else {
            return Ok(None);
        };
        let scale = |uid: &str, replicas: Option<i32>| Scale {
            uid: uid.to_owned(),
            replicas: replicas.unwrap_or(0),
        };
        let parent = owner::controller_of(&replica_set.metadata)
            .filter(|parent| parent.kind == deployment::KIND);
        Ok(match parent {
            Some(parent) => caches
                .deployments
                .get(&ObjectKey::new(namespace, parent.name.as_str()))
                .filter(|found| found.metadata.uid.as_deref() == Some(&parent.uid))
                .map(|found| {
                    scale(
                        &parent.uid,
                        found.spec.as_ref().and_then(|spec| spec.replicas),
                    )
                }),
            None => {
                let replicas = replica_set.spec.as_ref().and_then(|spec| spec.replicas);
                Some(scale(&owner.uid, replicas))
            }
        })
    }

    /// Any other kind with a scale is asked for it.
    async fn scale_of_other(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<Option<Scale>, kube::Error> {
        let (group, version) = owner
            .api_version
            .split_once('/')
            .unwrap_or(("", &owner.api_version));
        let kind = self
            .registry
            .by_kind(group, version, &owner.kind)
            .filter(|kind| kind.subresources.iter().any(|own| own.name == "scale"));
        let Some(kind) = kind else { return Ok(None) };
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            plural: kind.plural.to_string(),
        };
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), namespace, &resource);
        let found = match api.get_scale(&owner.name).await {
            Err(error) if error::is_not_found(&error) => return Ok(None),
            found => found?,
        };
        let is_it = found.metadata.uid.as_deref() == Some(&owner.uid);
        Ok(is_it.then(|| Scale {
            uid: owner.uid.clone(),
            replicas: found.spec.and_then(|spec| spec.replicas).unwrap_or(0),
        }))
    }

    /// Takes back the mark of a disruption that did not come.
    async fn stale_mark(&self, caches: &Caches, key: &ObjectKey) -> Result<Next, kube::Error> {
        let Some(pod) = caches.pods.get(key) else {
            return Ok(Next::DONE);
        };
        let now = Timestamp::now();
        match disruption::stale_after(&pod, now) {
            None => return Ok(Next::DONE),
            Some(left) if left.is_positive() => return Ok(Next::after(Some(left))),
            Some(_) => {}
        }
        let condition = PodCondition {
            type_: disruption::DISRUPTION_TARGET.into(),
            status: "False".into(),
            last_transition_time: Some(Time(now)),
            ..PodCondition::default()
        };
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
            "status": {"conditions": [condition]},
        });
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match pods
            .patch_status(
                &key.name,
                &PatchParams::default(),
                &Patch::Strategic(&patch),
            )
            .await
        {
            Err(error) if !error::is_not_found(&error) => Err(error),
            _ => Ok(Next::DONE),
        }
    }
}
