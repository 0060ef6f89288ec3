//! Carries out what `controllers::pod_gc` decides.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use client::informer::ObjectKey;
use client::workqueue::{Backoff, WorkQueue};
use controllers::{pod, pod_gc};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use super::{Context, Pending};
use crate::error;
use crate::feed::{Caches, Feeds, Index};
use crate::worker::{self, Next};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// Pods on a node that may be missing.
    Node(String),
    /// A deleted pod that never got a node.
    Pod(ObjectKey),
    /// Finished pods may be too many.
    Finished,
}

/// Finished pods are counted this long after one finishes, all together.
const COUNT_AFTER: Duration = Duration::from_secs(20);

pub fn register(feeds: &mut Feeds, context: Arc<Context>) -> Pending {
    let queue: WorkQueue<Key> = WorkQueue::new(Backoff {
        base: Duration::from_millis(100),
        max: Duration::from_secs(60),
    });
    let by_node = feeds
        .pods
        .index(|pod| pod::node_name(pod).map(ToString::to_string));
    let finished = feeds
        .pods
        .index(|pod| pod::is_terminal(pod).then(|| "finished".to_string()));
    let nodes = feeds.nodes.index(|node| node.metadata.name.clone());
    let quarantine = Duration::try_from(pod_gc::NODE_QUARANTINE).unwrap_or_default();
    let add = queue.clone();
    feeds.nodes.listen(move |change| {
        if change.after.is_none() {
            add.add_after(Key::Node(change.key.name.clone()), quarantine);
        }
    });
    let add = queue.clone();
    feeds.pods.listen(move |change| {
        let Some(after) = &change.after else { return };
        if pod::is_terminal(after) && !change.before.as_deref().is_some_and(pod::is_terminal) {
            add.add_after(Key::Finished, COUNT_AFTER);
        }
        match pod::node_name(after) {
            None if after.metadata.deletion_timestamp.is_some() => {
                add.add(Key::Pod(change.key.clone()))
            }
            None => {}
            Some(node)
                if change.before.as_deref().and_then(pod::node_name).is_none()
                    && nodes.of(node).is_empty() =>
            {
                add.add_after(Key::Node(node.to_string()), quarantine);
            }
            Some(_) => {}
        }
    });
    Box::new(move |caches| {
        let reconcile = move |key| {
            reconcile(
                context.clone(),
                caches.clone(),
                by_node.clone(),
                finished.clone(),
                key,
            )
        };
        worker::run("podgc", queue, 1, reconcile).boxed()
    })
}

async fn reconcile(
    context: Arc<Context>,
    caches: Caches,
    by_node: Index<Pod>,
    finished: Index<Pod>,
    key: Key,
) -> Result<Next, kube::Error> {
    let now = Timestamp::now();
    let doomed = match key {
        Key::Finished => {
            let pods = finished.of("finished");
            pod_gc::surplus(pods.iter().map(Arc::as_ref), pod_gc::TERMINATED_MAX)
        }
        Key::Pod(key) => {
            let pod = caches.pods.get(&key);
            pod_gc::doomed(pod.as_deref(), &HashSet::new(), now)
        }
        Key::Node(name) => {
            let pods = by_node.of(&name);
            // Only the server itself may say that the node is gone.
            if pods.is_empty()
                || Api::<Node>::all(context.client.clone())
                    .get_opt(&name)
                    .await?
                    .is_some()
            {
                return Ok(Next::DONE);
            }
            pod_gc::doomed(pods.iter().map(Arc::as_ref), &HashSet::from([name]), now)
        }
    };
    for doomed in doomed {
        let pods: Api<Pod> = Api::namespaced(context.client.clone(), &doomed.namespace);
        if let Some(status) = &doomed.status {
            let patch = json!({"metadata": {"uid": doomed.uid}, "status": {"phase": status.phase, "conditions": status.conditions}});
            match pods
                .patch_status(
                    &doomed.name,
                    &PatchParams::default(),
                    &Patch::Strategic(&patch),
                )
                .await
            {
                Err(error) if !error::is_not_found(&error) && !error::is_conflict(&error) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        let preconditions = Some(Preconditions {
            uid: Some(doomed.uid.clone()),
            resource_version: None,
        });
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions,
            ..DeleteParams::background()
        };
        match pods.delete(&doomed.name, &parameters).await {
            Err(error) if !error::is_not_found(&error) && !error::is_conflict(&error) => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(Next::DONE)
}
