//! Carries out what `controllers::deployment` decides.

use std::sync::Arc;

use client::informer::ObjectKey;
use client::workqueue::{Backoff, WorkQueue};
use controllers::deployment::{self, Action, Observed, Outcome};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::{Context, Pending};
use crate::feed::{Caches, Feeds, Index, controller_key, orphans_of, owner_bucket};
use crate::worker::{self, Next};
use crate::{error, loops::replicaset::owner_patch};

const PARALLEL: usize = 5;

#[derive(Clone)]
struct Loop {
    context: Arc<Context>,
    replica_sets: Index<ReplicaSet>,
    pods: Index<Pod>,
}

pub fn register(feeds: &mut Feeds, context: Arc<Context>) -> Pending {
    let queue: WorkQueue<ObjectKey> = WorkQueue::new(Backoff::default());
    let by_namespace = feeds
        .deployments
        .index(|deployment| deployment.metadata.namespace.clone());
    let replica_set_names = feeds
        .replica_sets
        .index(|object| Some(ObjectKey::of(object).to_string()));
    let this = Loop {
        context: Arc::new(Context {
            client: context.client.clone(),
            recorder: context.recorder.component("deployment-controller"),
        }),
        replica_sets: feeds
            .replica_sets
            .index(|object| Some(owner_bucket(&object.metadata))),
        pods: feeds.pods.index(|pod| Some(owner_bucket(&pod.metadata))),
    };
    let add = queue.clone();
    feeds
        .deployments
        .listen(move |change| add.add(change.key.clone()));
    let add = queue.clone();
    feeds.replica_sets.listen(move |change| {
        for metadata in [&change.before, &change.after]
            .into_iter()
            .flatten()
            .map(|object| &object.metadata)
        {
            match controller_key(metadata, deployment::KIND) {
                Some(key) => add.add(key),
                // An orphan may be any deployment's whose selector matches.
                None => {
                    for candidate in
                        by_namespace.of(metadata.namespace.as_deref().unwrap_or_default())
                    {
                        let selects = |spec: &k8s_openapi::api::apps::v1::DeploymentSpec| {
                            controllers::label::selects(&spec.selector, metadata.labels.as_ref())
                        };
                        if candidate.spec.as_ref().is_some_and(selects) {
                            add.add(ObjectKey::of(&*candidate));
                        }
                    }
                }
            }
        }
    });
    // Under Recreate the new replica set waits for the last old pod to go.
    let add = queue.clone();
    feeds.pods.listen(move |change| {
        if change.after.is_some() {
            return;
        }
        let owner = change
            .before
            .as_ref()
            .and_then(|pod| controller_key(&pod.metadata, controllers::replicaset::KIND));
        for replica_set in owner
            .into_iter()
            .flat_map(|key| replica_set_names.of(&key.to_string()))
        {
            if let Some(key) = controller_key(&replica_set.metadata, deployment::KIND) {
                add.add(key);
            }
        }
    });
    Box::new(move |caches| {
        let reconcile = move |key| this.clone().reconcile(caches.clone(), key);
        worker::run("deployment", queue, PARALLEL, reconcile).boxed()
    })
}

impl Loop {
    async fn reconcile(self, caches: Caches, key: ObjectKey) -> Result<Next, kube::Error> {
        let Some(deployment) = caches.deployments.get(&key) else {
            return Ok(Next::DONE);
        };
        let uid = deployment.metadata.uid.clone().unwrap_or_default();
        let mut replica_sets = self.replica_sets.of(&uid);
        replica_sets.extend(self.replica_sets.of(&orphans_of(&key.namespace)));
        let owned = replica_sets
            .iter()
            .filter_map(|object| object.metadata.uid.as_deref());
        let pods: Vec<Arc<Pod>> = owned.flat_map(|uid| self.pods.of(uid)).collect();
        let observed = Observed {
            deployment: &deployment,
            replica_sets: replica_sets.iter().map(Arc::as_ref).collect(),
            pods: pods.iter().map(Arc::as_ref).collect(),
        };
        let outcome = deployment::reconcile(&observed, Timestamp::now());
        let next = Next::after(outcome.requeue_after);
        self.carry_out(&deployment, outcome).await?;
        Ok(next)
    }

    async fn carry_out(
        &self,
        deployment: &Deployment,
        outcome: Outcome,
    ) -> Result<(), kube::Error> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        let deployments: Api<Deployment> = Api::namespaced(self.context.client.clone(), namespace);
        let replica_sets: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), namespace);
        // What the status is written over: an update of the status writes annotations, too.
        let mut stored = deployment.clone();
        for action in outcome.actions {
            match action {
                Action::Event(event) => self.context.recorder.record(deployment, event),
                Action::Adopt { name: adopted, uid } => {
                    let fresh = deployments.get(name).await?;
                    if fresh.metadata.uid == deployment.metadata.uid
                        && fresh.metadata.deletion_timestamp.is_none()
                    {
                        let reference = controllers::owner::controller_reference(
                            deployment::API_VERSION,
                            deployment::KIND,
                            &deployment.metadata,
                        );
                        let patch =
                            json!({"metadata": {"uid": uid, "ownerReferences": [reference]}});
                        replica_sets
                            .patch(&adopted, &PatchParams::default(), &Patch::Strategic(&patch))
                            .await?;
                    }
                }
                Action::Release {
                    name: released,
                    uid,
                } => {
                    let patch =
                        owner_patch(&uid, deployment.metadata.uid.as_deref().unwrap_or_default());
                    ignore_missing(
                        replica_sets
                            .patch(
                                &released,
                                &PatchParams::default(),
                                &Patch::Strategic(&patch),
                            )
                            .await,
                    )?;
                }
                Action::Create(object) => {
                    self.create(deployment, &deployments, &replica_sets, &object)
                        .await?
                }
                Action::Update(object) => {
                    let updated = object.metadata.name.clone().unwrap_or_default();
                    replica_sets
                        .replace(&updated, &PostParams::default(), &object)
                        .await?;
                }
                Action::Delete {
                    name: deleted,
                    uid,
                    resource_version,
                } => {
                    let preconditions = Preconditions {
                        uid: Some(uid),
                        resource_version: Some(resource_version),
                    };
                    let parameters = DeleteParams {
                        preconditions: Some(preconditions),
                        ..DeleteParams::background()
                    };
                    ignore_missing(replica_sets.delete(&deleted, &parameters).await)?;
                }
                Action::SetRevision(revision) => {
                    let annotations = json!({deployment::REVISION: revision});
                    let patch = json!({"metadata": {"uid": deployment.metadata.uid, "annotations": annotations}});
                    // By way of the status, where an annotation does not make a new generation.
                    let patched = deployments
                        .patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))
                        .await?;
                    // Only if nothing else changed meanwhile may the status be written over the patched version.
                    if patched.metadata.generation == deployment.metadata.generation {
                        stored.metadata = patched.metadata;
                    }
                }
            }
        }
        match outcome.status {
            Some(status) => self.write_status(&deployments, &stored, status).await,
            None => Ok(()),
        }
    }

    async fn write_status(
        &self,
        deployments: &Api<Deployment>,
        deployment: &Deployment,
        status: DeploymentStatus,
    ) -> Result<(), kube::Error> {
        let mut object = deployment.clone();
        object.status = Some(status);
        let name = object.metadata.name.clone().unwrap_or_default();
        deployments
            .replace_status(&name, &PostParams::default(), &object)
            .await
            .map(|_| ())
    }

    async fn create(
        &self,
        deployment: &Deployment,
        deployments: &Api<Deployment>,
        replica_sets: &Api<ReplicaSet>,
        object: &ReplicaSet,
    ) -> Result<(), kube::Error> {
        let failure = match replica_sets.create(&PostParams::default(), object).await {
            Ok(_) => return Ok(()),
            Err(failure) => failure,
        };
        let name = object.metadata.name.as_deref().unwrap_or_default();
        if error::already_exists(&failure) {
            let existing = replica_sets.get(name).await?;
            let Some(status) = deployment::creation_conflict(deployment, &existing) else {
                return Ok(());
            };
            self.write_status(deployments, deployment, status).await?;
        } else if !error::namespace_is_terminating(&failure) {
            let outcome = deployment::creation_failed(
                deployment,
                name,
                &error::message(&failure),
                Timestamp::now(),
            );
            for action in outcome.actions {
                if let Action::Event(event) = action {
                    self.context.recorder.record(deployment, event);
                }
            }
            if let Some(status) = outcome.status {
                self.write_status(deployments, deployment, status).await?;
            }
        }
        Err(failure)
    }
}

fn ignore_missing<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if !error::is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}
