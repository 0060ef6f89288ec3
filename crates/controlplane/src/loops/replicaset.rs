//! Carries out what `controllers::replicaset` decides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use client::informer::ObjectKey;
use client::workqueue::{Backoff, WorkQueue};
use controllers::event::Event;
use controllers::replicaset::{self, Action, Expectations, Observed, Outcome, PodRef};
use controllers::{owner, pod};
use futures::FutureExt;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use super::{Context, Pending};
use crate::error;
use crate::feed::{Caches, Feeds, Index, controller_key, orphans_of, owner_bucket};
use crate::worker::{self, Next};

const PARALLEL: usize = 5;

#[derive(Clone)]
struct Loop {
    context: Arc<Context>,
    pods: Index<Pod>,
    siblings: Index<ReplicaSet>,
    expectations: Arc<Mutex<Expectations>>,
}

pub fn register(feeds: &mut Feeds, context: Arc<Context>) -> Pending {
    let queue: WorkQueue<ObjectKey> = WorkQueue::new(Backoff::default());
    let by_namespace = feeds
        .replica_sets
        .index(|object| object.metadata.namespace.clone());
    let this = Loop {
        context: Arc::new(Context {
            client: context.client.clone(),
            recorder: context.recorder.component("replicaset-controller"),
        }),
        pods: feeds.pods.index(|pod| Some(owner_bucket(&pod.metadata))),
        siblings: feeds
            .replica_sets
            .index(|object| owner::controller_of(&object.metadata).map(|owner| owner.uid.clone())),
        expectations: Arc::default(),
    };
    let (add, expectations) = (queue.clone(), this.expectations.clone());
    feeds.replica_sets.listen(move |change| {
        if change.after.is_none() {
            lock(&expectations).forget(&change.key.to_string());
        }
        add.add(change.key.clone());
    });
    let (add, expectations) = (queue.clone(), this.expectations.clone());
    feeds.pods.listen(move |change| {
        let going = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
        for (metadata, is_new) in [
            (&change.before, false),
            (&change.after, change.before.is_none()),
        ]
        .into_iter()
        .filter_map(|(p, n)| Some((&p.as_ref()?.metadata, n)))
        {
            match controller_key(metadata, replicaset::KIND) {
                Some(key) => {
                    let uid = metadata.uid.as_deref().unwrap_or_default();
                    if is_new {
                        lock(&expectations).creation_observed(&key.to_string());
                    }
                    if change.after.as_deref().is_none_or(going) {
                        lock(&expectations).deletion_observed(&key.to_string(), uid);
                    }
                    add.add(key);
                }
                None if change.after.is_some() && owner::controller_of(metadata).is_none() => {
                    for candidate in
                        by_namespace.of(metadata.namespace.as_deref().unwrap_or_default())
                    {
                        let selects = |spec: &k8s_openapi::api::apps::v1::ReplicaSetSpec| {
                            controllers::label::selects(&spec.selector, metadata.labels.as_ref())
                        };
                        if candidate.spec.as_ref().is_some_and(selects) {
                            add.add(ObjectKey::of(&*candidate));
                        }
                    }
                }
                None => {}
            }
        }
    });
    Box::new(move |caches| {
        let reconcile = move |key| this.clone().reconcile(caches.clone(), key);
        worker::run("replicaset", queue, PARALLEL, reconcile).boxed()
    })
}

fn lock(expectations: &Mutex<Expectations>) -> std::sync::MutexGuard<'_, Expectations> {
    expectations.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Loop {
    async fn reconcile(self, caches: Caches, key: ObjectKey) -> Result<Next, kube::Error> {
        let Some(replica_set) = caches.replica_sets.get(&key) else {
            return Ok(Next::DONE);
        };
        let now = Timestamp::now();
        let mut pods = self
            .pods
            .of(replica_set.metadata.uid.as_deref().unwrap_or_default());
        pods.extend(self.pods.of(&orphans_of(&key.namespace)));
        let observed = Observed {
            replica_set: &replica_set,
            pods: pods.iter().map(Arc::as_ref).collect(),
            related_per_node: self.related_per_node(&replica_set),
            expectations_met: lock(&self.expectations).met(&key.to_string(), now),
        };
        let outcome = replicaset::reconcile(&observed, now);
        let mut next = Next::after(outcome.requeue_after);
        if !observed.expectations_met && next.after.is_none() {
            // Should what is expected never be seen, this finds it out.
            next.after = Some(std::time::Duration::from_secs(301));
        }
        let failure = self.carry_out(&key, &replica_set, &outcome, now).await;
        self.write_status(&replica_set, &outcome, failure.as_ref(), now)
            .await?;
        match failure {
            Some(error) => Err(error),
            None => Ok(next),
        }
    }

    /// Active pods, by node, of the replica sets with the same owner.
    fn related_per_node(&self, replica_set: &ReplicaSet) -> BTreeMap<String, usize> {
        let mut per_node = BTreeMap::new();
        let siblings = owner::controller_of(&replica_set.metadata)
            .map(|owner| self.siblings.of(&owner.uid))
            .unwrap_or_default();
        let uids = siblings
            .iter()
            .filter_map(|sibling| sibling.metadata.uid.as_deref());
        for candidate in uids
            .flat_map(|uid| self.pods.of(uid))
            .filter(|candidate| pod::is_active(candidate))
        {
            if let Some(node) = pod::node_name(&candidate) {
                *per_node.entry(node.to_string()).or_insert(0) += 1;
            }
        }
        per_node
    }

    /// Carries out all actions; answers the first failure.
    async fn carry_out(
        &self,
        key: &ObjectKey,
        replica_set: &ReplicaSet,
        outcome: &Outcome,
        now: Timestamp,
    ) -> Option<kube::Error> {
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let mut doomed: Vec<&PodRef> = Vec::new();
        for action in &outcome.actions {
            let result = match action {
                Action::Adopt(adopted) => self.adopt(replica_set, &pods, adopted).await,
                Action::Release(released) => {
                    let patch = owner_patch(
                        &released.uid,
                        replica_set.metadata.uid.as_deref().unwrap_or_default(),
                    );
                    pods.patch(
                        &released.name,
                        &PatchParams::default(),
                        &Patch::Strategic(&patch),
                    )
                    .await
                    .map(|_| ())
                }
                Action::Create { pod, count } => {
                    self.create(key, replica_set, &pods, pod, *count, now).await
                }
                Action::Delete(pod) => {
                    doomed.push(pod);
                    Ok(())
                }
            };
            match result {
                Err(error) if !error::is_not_found(&error) => return Some(error),
                _ => {}
            }
        }
        if doomed.is_empty() {
            return None;
        }
        lock(&self.expectations).expect_deletions(
            &key.to_string(),
            doomed.iter().map(|pod| pod.uid.clone()),
            now,
        );
        let results = join_all(
            doomed
                .into_iter()
                .map(|pod| self.delete(key, replica_set, &pods, pod)),
        )
        .await;
        results.into_iter().find_map(Result::err)
    }

    async fn adopt(
        &self,
        replica_set: &ReplicaSet,
        pods: &Api<Pod>,
        adopted: &PodRef,
    ) -> Result<(), kube::Error> {
        let namespace = replica_set
            .metadata
            .namespace
            .as_deref()
            .unwrap_or_default();
        let fresh: ReplicaSet = Api::namespaced(self.context.client.clone(), namespace)
            .get(replica_set.metadata.name.as_deref().unwrap_or_default())
            .await?;
        if fresh.metadata.uid != replica_set.metadata.uid
            || fresh.metadata.deletion_timestamp.is_some()
        {
            return Ok(());
        }
        let reference = owner::controller_reference(
            replicaset::API_VERSION,
            replicaset::KIND,
            &replica_set.metadata,
        );
        let patch = json!({"metadata": {"uid": adopted.uid, "ownerReferences": [reference]}});
        pods.patch(
            &adopted.name,
            &PatchParams::default(),
            &Patch::Strategic(&patch),
        )
        .await
        .map(|_| ())
    }

    async fn create(
        &self,
        key: &ObjectKey,
        replica_set: &ReplicaSet,
        pods: &Api<Pod>,
        pod: &Pod,
        count: usize,
        now: Timestamp,
    ) -> Result<(), kube::Error> {
        let expectation = key.to_string();
        lock(&self.expectations).expect_creations(&expectation, count, now);
        let mut tried = 0;
        for batch in replicaset::slow_start_batches(count) {
            let parameters = PostParams::default();
            let results = join_all((0..batch).map(|_| pods.create(&parameters, pod))).await;
            tried += batch;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(created) => {
                        let name = created.metadata.name.unwrap_or_default();
                        self.context.recorder.record(
                            replica_set,
                            Event::normal("SuccessfulCreate", format!("Created pod: {name}")),
                        );
                    }
                    Err(error) => {
                        lock(&self.expectations).creation_observed(&expectation);
                        if !error::namespace_is_terminating(&error) {
                            let message = format!("Error creating: {}", error::message(&error));
                            self.context
                                .recorder
                                .record(replica_set, Event::warning("FailedCreate", message));
                            failure = Some(error);
                        }
                    }
                }
            }
            if let Some(failure) = failure {
                for _ in tried..count {
                    lock(&self.expectations).creation_observed(&expectation);
                }
                return Err(failure);
            }
        }
        Ok(())
    }

    async fn delete(
        &self,
        key: &ObjectKey,
        replica_set: &ReplicaSet,
        pods: &Api<Pod>,
        doomed: &PodRef,
    ) -> Result<(), kube::Error> {
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(doomed.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match pods.delete(&doomed.name, &parameters).await {
            Ok(_) => {
                self.context.recorder.record(
                    replica_set,
                    Event::normal("SuccessfulDelete", format!("Deleted pod: {}", doomed.name)),
                );
                Ok(())
            }
            Err(error) => {
                lock(&self.expectations).deletion_observed(&key.to_string(), &doomed.uid);
                if error::is_not_found(&error) || error::is_conflict(&error) {
                    return Ok(());
                }
                let message = format!("Error deleting: {}", error::message(&error));
                self.context
                    .recorder
                    .record(replica_set, Event::warning("FailedDelete", message));
                Err(error)
            }
        }
    }

    async fn write_status(
        &self,
        replica_set: &ReplicaSet,
        outcome: &Outcome,
        failure: Option<&kube::Error>,
        now: Timestamp,
    ) -> Result<(), kube::Error> {
        let stored = replica_set.status.clone().unwrap_or_default();
        let status = outcome.status.clone().unwrap_or_else(|| stored.clone());
        let message = failure.map(error::message);
        let status = replicaset::with_failure(status, outcome.surplus, message.as_deref(), now);
        if replica_set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut object = replica_set.clone();
        object.status = Some(status);
        let api: Api<ReplicaSet> = Api::namespaced(
            self.context.client.clone(),
            object.metadata.namespace.as_deref().unwrap_or_default(),
        );
        let name = object.metadata.name.clone().unwrap_or_default();
        match api
            .replace_status(&name, &PostParams::default(), &object)
            .await
        {
            Err(error) if !error::is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// A strategic merge patch that takes the reference to `owner_uid` from the object with this UID.
pub fn owner_patch(uid: &str, owner_uid: &str) -> Value {
    json!({"metadata": {"uid": uid, "ownerReferences": [{"$patch": "delete", "uid": owner_uid}]}})
}
