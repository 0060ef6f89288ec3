//! Pod garbage collection: pods that no kubelet will ever finish, and finished ones beyond the limit.

use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod;
use crate::time::whole_seconds;

/// Finished pods kept in the whole cluster, as upstream's --terminated-pod-gc-threshold.
pub const TERMINATED_MAX: usize = 12_500;
/// How long a node must be missing before its pods are given up, as upstream's quarantine.
pub const NODE_QUARANTINE: SignedDuration = SignedDuration::from_secs(40);

/// A pod to be deleted at once, without grace. `status`: to be written first, so that nobody takes it for running.
#[derive(Clone, Debug, PartialEq)]
pub struct Doomed {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub status: Option<PodStatus>,
}

/// Pods on nodes in `missing` (confirmed by the server), and deleted pods that never got a node.
pub fn doomed<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    missing: &HashSet<String>,
    now: Timestamp,
) -> Vec<Doomed> {
    let mut doomed = Vec::new();
    for candidate in pods {
        match pod::node_name(candidate) {
            None if candidate.metadata.deletion_timestamp.is_some() => {
                doomed.push(entry(candidate, None))
            }
            Some(node) if missing.contains(node) => {
                doomed.push(entry(candidate, Some(failed_status(candidate, now))))
            }
            _ => {}
        }
    }
    doomed
}

/// Finished pods beyond the limit, oldest first.
pub fn surplus<'a>(pods: impl IntoIterator<Item = &'a Pod>, terminated_max: usize) -> Vec<Doomed> {
    let mut finished: Vec<&Pod> = pods
        .into_iter()
        .filter(|candidate| pod::is_terminal(candidate))
        .collect();
    let count = finished.len().saturating_sub(terminated_max);
    if count == 0 {
        return Vec::new();
    }
    finished.sort_by_key(|candidate| {
        (
            candidate
                .metadata
                .creation_timestamp
                .as_ref()
                .map(|time| time.0),
            candidate.metadata.name.clone(),
        )
    });
    finished
        .into_iter()
        .take(count)
        .map(|candidate| entry(candidate, None))
        .collect()
}

fn entry(pod: &Pod, status: Option<PodStatus>) -> Doomed {
    Doomed {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        status: status.filter(|_| !pod::is_terminal(pod)),
    }
}

fn failed_status(pod: &Pod, now: Timestamp) -> PodStatus {
    let mut status = pod.status.clone().unwrap_or_default();
    status.phase = Some("Failed".into());
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("DeletionByPodGC".into()),
        message: Some("PodGC: node no longer exists".into()),
        last_transition_time: Some(Time(whole_seconds(now))),
        ..PodCondition::default()
    });
    status
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn pod(name: &str, node: Value, phase: &str, deleting: bool) -> Pod {
        let deleted = deleting.then_some("2027-01-15T07:00:00Z");
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "a", "uid": name, "deletionTimestamp": deleted},
            "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}}))
        .unwrap()
    }

    #[test]
    fn who_is_doomed() {
        let pods = [
            pod("lost", json!("gone"), "Running", false),
            pod("done", json!("gone"), "Succeeded", false),
            pod("never", Value::Null, "Pending", true),
            pod("waits", Value::Null, "Pending", false),
            pod("fine", json!("here"), "Running", true),
        ];
        let doomed = doomed(&pods, &HashSet::from(["gone".to_string()]), NOW);
        let names: Vec<_> = doomed
            .iter()
            .map(|doomed| {
                (
                    doomed.name.as_str(),
                    doomed.status.as_ref().map(|s| s.phase.as_deref().unwrap()),
                )
            })
            .collect();
        assert_eq!(
            names,
            [("lost", Some("Failed")), ("done", None), ("never", None)]
        );
    }

    #[test]
    fn only_what_is_too_much_goes() {
        let pods = [
            pod("b", json!("n"), "Failed", false),
            pod("a", json!("n"), "Succeeded", false),
            pod("c", json!("n"), "Running", false),
        ];
        assert_eq!(
            surplus(&pods, 1)
                .iter()
                .map(|doomed| doomed.name.as_str())
                .collect::<Vec<_>>(),
            ["a"]
        );
        assert!(surplus(&pods, 2).is_empty());
    }
}
