//! Carries out what `controllers::node_lifecycle` decides: judges nodes, taints them, evicts from them.
//!
//! When a node was last heard of is kept by this process's own clock, so a restart gives every node a
//! fresh grace period and clocks of nodes do not matter.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::informer::ObjectKey;
use client::workqueue::{Backoff, WorkQueue};
use controllers::event::Event;
use controllers::node_lifecycle::{self, Eviction, Health};
use controllers::pod;
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tokio::time::Instant;

use super::{Context, Pending};
use crate::error;
use crate::feed::{Caches, Feeds, Index};
use crate::worker::{self, Next};

const PARALLEL: usize = 4;

#[derive(Clone)]
struct Loop {
    context: Arc<Context>,
    pods_by_node: Index<Pod>,
    /// When each node was last heard of.
    heard: Arc<Mutex<HashMap<String, Timestamp>>>,
    /// Since when each pod (by UID) has been due for eviction by the taints of its node.
    tainted: Arc<Mutex<HashMap<String, Instant>>>,
}

pub fn register(feeds: &mut Feeds, context: Arc<Context>) -> Vec<Pending> {
    let nodes: WorkQueue<String> = WorkQueue::new(Backoff {
        base: Duration::from_millis(50),
        max: Duration::from_secs(30),
    });
    let pods: WorkQueue<ObjectKey> = WorkQueue::new(Backoff {
        base: Duration::from_millis(50),
        max: Duration::from_secs(30),
    });
    let this = Loop {
        context: Arc::new(Context {
            client: context.client.clone(),
            recorder: context.recorder.component("node-controller"),
        }),
        pods_by_node: feeds
            .pods
            .index(|pod| pod::node_name(pod).map(ToString::to_string)),
        heard: Arc::default(),
        tainted: Arc::default(),
    };
    let heard = this.heard.clone();
    feeds.node_leases.listen(move |change| {
        if change.after.is_some() {
            lock(&heard).insert(change.key.name.clone(), Timestamp::now());
        }
    });
    listen_to_nodes(feeds, &this, &nodes, &pods);
    let (add, tainted) = (pods.clone(), this.tainted.clone());
    let names = feeds.nodes.index(|node| node.metadata.name.clone());
    feeds.pods.listen(move |change| match &change.after {
        None => {
            if let Some(uid) = change
                .before
                .as_ref()
                .and_then(|pod| pod.metadata.uid.as_ref())
            {
                lock(&tainted).remove(uid);
            }
        }
        Some(after) => {
            let on_tainted = pod::node_name(after).is_some_and(|name| {
                names
                    .of(name)
                    .iter()
                    .any(|node| !no_execute(node).is_empty())
            });
            if on_tainted {
                add.add(change.key.clone());
            }
        }
    });
    let (judging, evicting) = (this.clone(), this);
    vec![
        Box::new(move |caches| {
            let reconcile = move |name| judging.clone().judge(caches.clone(), name);
            worker::run("node-lifecycle", nodes, PARALLEL, reconcile).boxed()
        }),
        Box::new(move |caches| {
            let reconcile = move |key| evicting.clone().evict(caches.clone(), key);
            worker::run("taint-eviction", pods, PARALLEL, reconcile).boxed()
        }),
    ]
}

fn listen_to_nodes(
    feeds: &mut Feeds,
    this: &Loop,
    nodes: &WorkQueue<String>,
    pods: &WorkQueue<ObjectKey>,
) {
    let (this, nodes, pods) = (this.clone(), nodes.clone(), pods.clone());
    feeds.nodes.listen(move |change| {
        let name = &change.key.name;
        let Some(after) = &change.after else {
            lock(&this.heard).remove(name);
            if let Some(before) = &change.before {
                let message = format!("Node {name} event: Removing Node {name} from Controller");
                this.context
                    .recorder
                    .record(&**before, Event::normal("RemovingNode", message));
            }
            return;
        };
        let heartbeat = |node: &Node| {
            node.status
                .as_ref()
                .and_then(|s| s.conditions.as_ref())
                .map(|c| {
                    c.iter()
                        .map(|c| c.last_heartbeat_time.clone())
                        .collect::<Vec<_>>()
                })
        };
        let posted = change
            .before
            .as_deref()
            .is_none_or(|before| heartbeat(before) != heartbeat(after));
        if posted {
            lock(&this.heard).insert(name.clone(), Timestamp::now());
        }
        let before = change.before.as_deref();
        if before.is_none() && node_lifecycle::ready_status(after).is_empty() {
            let message = format!("Node {name} event: Registered Node {name} in Controller");
            this.context
                .recorder
                .record(&**after, Event::normal("RegisteredNode", message));
        }
        if before.map(node_lifecycle::ready_status) == Some("True")
            && node_lifecycle::ready_status(after) != "True"
        {
            let message = format!("Node {name} status is now: NodeNotReady");
            this.context
                .recorder
                .record(&**after, Event::normal("NodeNotReady", message));
        }
        nodes.add(name.clone());
        if before.map(no_execute).unwrap_or_default() != no_execute(after) {
            for pod in this.pods_by_node.of(name) {
                pods.add(ObjectKey::of(&*pod));
            }
        }
    });
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints
        .into_iter()
        .flatten()
        .filter(|taint| taint.effect == "NoExecute")
        .cloned()
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Loop {
    async fn judge(self, caches: Caches, name: String) -> Result<Next, kube::Error> {
        let Some(node) = caches.nodes.get(&ObjectKey::new("", &name)) else {
            return Ok(Next::DONE);
        };
        let now = Timestamp::now();
        let heard = *lock(&self.heard).entry(name.clone()).or_insert(now);
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        let next = match node_lifecycle::health(&node, heard, now) {
            Health::Fine { look_again } => Next::after(Some(look_again)),
            Health::Silent { conditions: None } => Next::DONE,
            Health::Silent {
                conditions: Some(conditions),
            } => {
                tracing::warn!(node = %name, "node fell silent");
                let metadata = json!({"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version});
                let patch = json!({"metadata": metadata, "status": {"conditions": conditions}});
                nodes
                    .patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch))
                    .await?;
                self.mark_pods_unready(&name).await?;
                // The changed node comes back by the watch, and gets its taints then.
                return Ok(Next::DONE);
            }
        };
        if let Some(taints) = node_lifecycle::taints(&node, now) {
            let metadata = json!({"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version});
            let patch = json!({"metadata": metadata, "spec": {"taints": taints}});
            nodes
                .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await?;
        }
        Ok(next)
    }

    /// Nobody can tell whether the pods of a silent node are ready: they are taken out of Services.
    async fn mark_pods_unready(&self, node: &str) -> Result<(), kube::Error> {
        for candidate in self
            .pods_by_node
            .of(node)
            .iter()
            .filter(|candidate| pod::is_ready(candidate))
        {
            let now = Time(controllers::time::whole_seconds(Timestamp::now()));
            let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": now});
            let patch = json!({"metadata": {"uid": candidate.metadata.uid}, "status": {"conditions": [condition]}});
            let key = ObjectKey::of(&**candidate);
            let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
            match api
                .patch_status(
                    &key.name,
                    &PatchParams::default(),
                    &Patch::Strategic(&patch),
                )
                .await
            {
                Err(error) if !error::is_not_found(&error) && !error::is_conflict(&error) => {
                    return Err(error);
                }
                _ => self.context.recorder.record(
                    &**candidate,
                    Event::warning("NodeNotReady", "Node is not ready"),
                ),
            }
        }
        Ok(())
    }

    async fn evict(self, caches: Caches, key: ObjectKey) -> Result<Next, kube::Error> {
        let Some(candidate) = caches.pods.get(&key) else {
            return Ok(Next::DONE);
        };
        let uid = candidate.metadata.uid.clone().unwrap_or_default();
        let node =
            pod::node_name(&candidate).and_then(|name| caches.nodes.get(&ObjectKey::new("", name)));
        let taints = node.as_deref().map(no_execute).unwrap_or_default();
        if candidate.metadata.deletion_timestamp.is_some() {
            return Ok(Next::DONE);
        }
        let recorder = self.context.recorder.component("taint-eviction-controller");
        let delay = match node_lifecycle::eviction(&candidate, &taints) {
            Eviction::Never => {
                if lock(&self.tainted).remove(&uid).is_some() {
                    recorder.record(
                        &*candidate,
                        Event::normal(
                            "TaintManagerEviction",
                            format!("Cancelling deletion of Pod {key}"),
                        ),
                    );
                }
                return Ok(Next::DONE);
            }
            Eviction::After(delay) => Duration::try_from(delay).unwrap_or_default(),
        };
        let since = *lock(&self.tainted)
            .entry(uid.clone())
            .or_insert_with(Instant::now);
        let left = delay.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Next { after: Some(left) });
        }
        recorder.record(
            &*candidate,
            Event::normal(
                "TaintManagerEviction",
                format!("Marking for deletion Pod {key}"),
            ),
        );
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let now = Time(controllers::time::whole_seconds(Timestamp::now()));
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now});
        let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
        match api
            .patch_status(
                &key.name,
                &PatchParams::default(),
                &Patch::Strategic(&patch),
            )
            .await
        {
            Err(error) if error::is_not_found(&error) || error::is_conflict(&error) => {
                return Ok(Next::DONE);
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match api.delete(&key.name, &parameters).await {
            Err(error) if !error::is_not_found(&error) && !error::is_conflict(&error) => Err(error),
            _ => Ok(Next::DONE),
        }
    }
}
