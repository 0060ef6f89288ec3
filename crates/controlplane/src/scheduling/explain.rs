//! A pod's placement explained from outside the loop: everything is listed once, planned anew, and thrown away.
//!
//! Enter at [`explain`]. It needs no running scheduler and changes nothing. What it says is about the cluster
//! as it is now: a pod that has its node is taken out and placed again.

use std::fmt::Debug;
use std::sync::Arc;

use client::informer::{Change, ObjectKey};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use scheduler::{Configuration, Explanation, PendingPod, Policy, Snapshot};
use serde::de::DeserializeOwned;

use super::kinds::Observed;
use crate::error;

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error("pod {namespace}/{name} does not exist")]
    NoSuchPod { namespace: String, name: String },
    #[error("pod {namespace}/{name} {why}")]
    NotPlanned {
        namespace: String,
        name: String,
        why: String,
    },
    #[error("list {kind}")]
    List {
        kind: String,
        #[source]
        source: kube::Error,
    },
}

/// The answer about one pod.
pub struct Explained {
    /// Where it is now, if it is anywhere.
    pub bound_to: Option<String>,
    pub explanation: Explanation,
}

pub async fn explain(
    client: &Client,
    configuration: &Configuration,
    namespace: &str,
    name: &str,
) -> Result<Explained, ExplainError> {
    let pods: Vec<Pod> = list(client).await?;
    let refused = |why: String| ExplainError::NotPlanned {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        why,
    };
    let asked = pods
        .iter()
        .find(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && pod.metadata.name.as_deref() == Some(name)
        })
        .ok_or_else(|| ExplainError::NoSuchPod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })?;
    if let Some(why) = not_ours(asked, configuration) {
        return Err(refused(why));
    }
    let uid = asked.metadata.uid.clone().unwrap_or_default();
    let bound_to = controllers::pod::node_name(asked).map(ToOwned::to_owned);
    let mut snapshot = observe(client).await?;
    let mut pending = Vec::new();
    for pod in &pods {
        if controllers::pod::is_terminal(pod) {
            continue;
        }
        let is_asked = pod.metadata.uid.as_deref() == Some(&uid);
        if controllers::pod::node_name(pod).is_some() && !is_asked {
            snapshot.observe_pod(pod);
        } else if is_asked || bound_to.is_none() && not_ours(pod, configuration).is_none() {
            pending.push(pod);
        }
    }
    // Oldest first, as the queue has them.
    pending.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let pending: Vec<PendingPod> = pending
        .into_iter()
        .filter_map(|pod| {
            let mut pod = pod.clone();
            if let Some(spec) = &mut pod.spec {
                spec.node_name = None;
            }
            PendingPod::new(&mut snapshot, &pod)
        })
        .collect();
    let policy = Policy::with_profiles(configuration.profiles.clone());
    let explanation = scheduler::explain(&mut snapshot, &pending, &uid, &policy)
        .ok_or_else(|| refused("was not planned: it has no UID".to_owned()))?;
    Ok(Explained {
        bound_to,
        explanation,
    })
}

/// Why a scheduler of this configuration leaves the pod alone.
fn not_ours(pod: &Pod, configuration: &Configuration) -> Option<String> {
    let spec = pod.spec.as_ref();
    let scheduler_name = spec
        .and_then(|spec| spec.scheduler_name.as_deref())
        .unwrap_or(scheduler::DEFAULT_SCHEDULER);
    let known = configuration
        .profiles
        .iter()
        .any(|profile| profile.scheduler_name == scheduler_name);
    if !known {
        return Some(format!(
            "is left to the scheduler \"{scheduler_name}\", which is no profile here"
        ));
    }
    if controllers::pod::is_terminal(pod) {
        return Some("has ended".to_owned());
    }
    let gates: Vec<&str> = spec
        .and_then(|spec| spec.scheduling_gates.as_ref())
        .into_iter()
        .flatten()
        .map(|gate| gate.name.as_str())
        .collect();
    (!gates.is_empty()).then(|| format!("waits for its scheduling gates: {}", gates.join(", ")))
}

/// Everything but the pods.
async fn observe(client: &Client) -> Result<Snapshot, ExplainError> {
    let mut snapshot = Snapshot::new();
    for namespace in list::<Namespace>(client).await? {
        snapshot.observe_namespace(
            namespace.metadata.name.as_deref().unwrap_or_default(),
            namespace.metadata.labels.clone().unwrap_or_default(),
        );
    }
    for node in list::<Node>(client).await? {
        snapshot.observe_node(&node);
    }
    for service in list::<Service>(client).await? {
        snapshot.owners_mut().observe_service(&service);
    }
    for set in list::<ReplicaSet>(client).await? {
        if let Some(spec) = &set.spec {
            snapshot.owners_mut().observe_controller(
                set.metadata.uid.as_deref().unwrap_or_default(),
                &spec.selector,
            );
        }
    }
    observe_kind(client, &mut snapshot, Observed::Budget).await?;
    observe_kind(client, &mut snapshot, Observed::Claim).await?;
    observe_kind(client, &mut snapshot, Observed::Volume).await?;
    observe_kind(client, &mut snapshot, Observed::Class).await?;
    observe_kind(client, &mut snapshot, Observed::CsiNode).await?;
    observe_kind(client, &mut snapshot, Observed::CsiDriver).await?;
    observe_kind(client, &mut snapshot, Observed::Capacity).await?;
    observe_kind(client, &mut snapshot, Observed::StatefulSet).await?;
    observe_kind(client, &mut snapshot, Observed::Group).await?;
    Ok(snapshot)
}

async fn observe_kind<K>(
    client: &Client,
    snapshot: &mut Snapshot,
    observed: fn(Change<K>) -> Observed,
) -> Result<(), ExplainError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    for object in list::<K>(client).await? {
        let meta = object.meta();
        let change = Change {
            key: ObjectKey::new(
                meta.namespace.clone().unwrap_or_default(),
                meta.name.clone().unwrap_or_default(),
            ),
            before: None,
            after: Some(Arc::new(object)),
        };
        observed(change).apply(snapshot);
    }
    Ok(())
}

/// All objects of a kind; none of one that is not served.
async fn list<K>(client: &Client) -> Result<Vec<K>, ExplainError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    match Api::<K>::all(client.clone())
        .list(&ListParams::default())
        .await
    {
        Ok(list) => Ok(list.items),
        Err(error) if error::is_not_found(&error) => Ok(Vec::new()),
        Err(source) => Err(ExplainError::List {
            kind: K::plural(&()).into_owned(),
            source,
        }),
    }
}
