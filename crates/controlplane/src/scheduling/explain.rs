//! `explain pod`: lists what the scheduler would see, plans anew without writing anything, and says why.
//!
//! A pod that waits is planned along with all others that wait. A pod that is bound is taken off its node in
//! thought and planned alone: the answer is about the cluster as it is now, not as it was then.

use std::fmt::Debug;

use client::informer::{Change, ObjectKey};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use scheduler::{Configuration, PendingPod, Policy, Snapshot};
use serde::de::DeserializeOwned;
use std::sync::Arc;

use super::kinds::Observed;
use crate::error;

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error("pod {namespace}/{name} does not exist")]
    NoSuchPod { namespace: String, name: String },
    #[error("pod {namespace}/{name} waits for scheduling gates: {gates}")]
    Gated {
        namespace: String,
        name: String,
        gates: String,
    },
    #[error(
        "pod {namespace}/{name} is planned by {scheduler:?}, which is none of the configured profiles"
    )]
    Foreign {
        namespace: String,
        name: String,
        scheduler: String,
    },
    #[error("pod {namespace}/{name} has finished")]
    Finished { namespace: String, name: String },
    #[error("listing {kind} failed: {message}")]
    List { kind: String, message: String },
}

/// Explains the decision about a pod as things are now.
///
/// # Errors
/// [`ExplainError`], in words for the user.
pub async fn explain_pod(
    client: &Client,
    namespace: &str,
    name: &str,
    configuration: &Configuration,
) -> Result<String, ExplainError> {
    let pods: Vec<Pod> = list(client).await?;
    let is_it = |pod: &Pod| {
        pod.metadata.namespace.as_deref() == Some(namespace)
            && pod.metadata.name.as_deref() == Some(name)
    };
    let of = || (namespace.to_string(), name.to_string());
    let Some(target) = pods.iter().find(|pod| is_it(pod)) else {
        let (namespace, name) = of();
        return Err(ExplainError::NoSuchPod { namespace, name });
    };
    check(target, configuration, of())?;
    let mut snapshot = observe(client).await?;
    let bound_to = controllers::pod::node_name(target).map(ToString::to_string);
    let mut waiting: Vec<&Pod> = Vec::new();
    for pod in &pods {
        if controllers::pod::node_name(pod).is_some() {
            if !is_it(pod) {
                snapshot.observe_pod(pod);
            }
        } else if bound_to.is_none() && check(pod, configuration, of()).is_ok() {
            waiting.push(pod);
        }
    }
    let mut alone = target.clone();
    if bound_to.is_some() {
        alone.spec.get_or_insert_default().node_name = None;
        waiting.push(&alone);
    }
    waiting.sort_by(|a, b| {
        let age = |pod: &Pod| pod.metadata.creation_timestamp.clone().map(|time| time.0);
        age(a)
            .cmp(&age(b))
            .then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
    let pending: Vec<PendingPod> = waiting
        .into_iter()
        .filter_map(|pod| PendingPod::new(&mut snapshot, pod))
        .collect();
    let policy = Policy::with_profiles(configuration.profiles.clone());
    let uid = target.metadata.uid.as_deref().unwrap_or_default();
    let explained = scheduler::explain(&mut snapshot, &pending, uid, &policy);
    let text = explained
        .map(|explained| explained.to_string())
        .unwrap_or_default();
    Ok(match bound_to {
        Some(node) => format!(
            "pod {namespace}/{name} is bound to node {node}; planned anew as things are now:\n{text}"
        ),
        None => text,
    })
}

/// Would the scheduler plan this pod at all?
fn check(
    pod: &Pod,
    configuration: &Configuration,
    (namespace, name): (String, String),
) -> Result<(), ExplainError> {
    if controllers::pod::is_terminal(pod) {
        return Err(ExplainError::Finished { namespace, name });
    }
    let spec = pod.spec.as_ref();
    let gates: Vec<&str> = spec
        .into_iter()
        .flat_map(|spec| spec.scheduling_gates.iter().flatten())
        .map(|gate| gate.name.as_str())
        .collect();
    if !gates.is_empty() {
        let gates = gates.join(", ");
        return Err(ExplainError::Gated {
            namespace,
            name,
            gates,
        });
    }
    let own = spec.and_then(|spec| spec.scheduler_name.as_deref());
    let own = own.unwrap_or(scheduler::DEFAULT_SCHEDULER);
    if !configuration
        .profiles
        .iter()
        .any(|profile| profile.scheduler_name == own)
    {
        let scheduler = own.to_string();
        return Err(ExplainError::Foreign {
            namespace,
            name,
            scheduler,
        });
    }
    Ok(())
}

/// Everything but the pods.
async fn observe(client: &Client) -> Result<Snapshot, ExplainError> {
    let mut snapshot = Snapshot::new();
    for namespace in list::<Namespace>(client).await? {
        let labels = namespace.metadata.labels.unwrap_or_default();
        snapshot.observe_namespace(&namespace.metadata.name.unwrap_or_default(), labels);
    }
    for node in list::<Node>(client).await? {
        snapshot.observe_node(&node);
    }
    for service in list::<Service>(client).await? {
        snapshot.owners_mut().observe_service(&service);
    }
    for set in list::<ReplicaSet>(client).await? {
        if let Some(spec) = &set.spec {
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            snapshot
                .owners_mut()
                .observe_controller(uid, &spec.selector);
        }
    }
    observe_if_served(client, &mut snapshot, Observed::Budget).await?;
    observe_if_served(client, &mut snapshot, Observed::Class).await?;
    observe_if_served(client, &mut snapshot, Observed::Volume).await?;
    observe_if_served(client, &mut snapshot, Observed::Claim).await?;
    observe_if_served(client, &mut snapshot, Observed::CsiNode).await?;
    observe_if_served(client, &mut snapshot, Observed::CsiDriver).await?;
    observe_if_served(client, &mut snapshot, Observed::Capacity).await?;
    observe_if_served(client, &mut snapshot, Observed::StatefulSet).await?;
    observe_if_served(client, &mut snapshot, Observed::Group).await?;
    Ok(snapshot)
}

async fn observe_if_served<K>(
    client: &Client,
    snapshot: &mut Snapshot,
    observed: fn(Change<K>) -> Observed,
) -> Result<(), ExplainError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let listed = Api::<K>::all(client.clone())
        .list(&ListParams::default())
        .await;
    let objects = match listed {
        Ok(list) => list.items,
        // Not served, or none of our business.
        Err(error) if error::is_not_found(&error) || error::is_forbidden(&error) => return Ok(()),
        Err(error) => return Err(failed::<K>(&error)),
    };
    for object in objects {
        let change = Change {
            key: ObjectKey::of(&object),
            before: None,
            after: Some(Arc::new(object)),
        };
        observed(change).apply(snapshot);
    }
    Ok(())
}

async fn list<K>(client: &Client) -> Result<Vec<K>, ExplainError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let listed = Api::<K>::all(client.clone())
        .list(&ListParams::default())
        .await;
    listed
        .map(|list| list.items)
        .map_err(|error| failed::<K>(&error))
}

fn failed<K: Resource<DynamicType = ()>>(error: &kube::Error) -> ExplainError {
    ExplainError::List {
        kind: K::plural(&()).into_owned(),
        message: error::message(error),
    }
}
