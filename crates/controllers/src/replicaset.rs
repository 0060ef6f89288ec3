//! ReplicaSet: as many pods of a template as asked for.
//!
//! Enter at [`reconcile`]. Creation is asked for as a count and carried out in slowly growing batches
//! ([`slow_start_batches`]), so that a template that can never be created does not flood the server;
//! [`Expectations`] keeps a reconciler from acting on a view that does not yet show its own last actions.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::owner::{self, Claim};
use crate::pod;

pub const API_VERSION: &str = "apps/v1";
pub const KIND: &str = "ReplicaSet";
/// Pods created or deleted in one go at most, as upstream's BurstReplicas.
pub const BURST_REPLICAS: usize = 500;
/// Cost of deleting a pod compared to its siblings; lower goes first.
const POD_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub struct Observed<'a> {
    pub replica_set: &'a ReplicaSet,
    /// Pods of the namespace that it owns or could adopt.
    pub pods: Vec<&'a Pod>,
    /// Active pods of its sibling replica sets (those with the same owner) by node: a node with more of them loses one first.
    pub related_per_node: BTreeMap<String, usize>,
    /// False while its own last creations and deletions are not all observed: then only claims and status are worked out.
    pub expectations_met: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub actions: Vec<Action>,
    /// The status as it is now, if it differs from the one stored.
    pub status: Option<ReplicaSetStatus>,
    /// When a ready pod becomes available.
    pub requeue_after: Option<SignedDuration>,
    /// Active pods less desired ones, before the actions.
    pub surplus: i64,
}

/// A pod to act upon; the UID is the precondition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    pub name: String,
    pub uid: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Takes over an orphan, after checking on the server that this replica set itself still lives.
    Adopt(PodRef),
    /// Drops its owner reference from a pod that it no longer selects.
    Release(PodRef),
    /// Creates `count` pods like this one, batch by batch.
    Create {
        pod: Box<Pod>,
        count: usize,
    },
    Delete(PodRef),
}

/// One step. A replica set that is being deleted only gets its status.
pub fn reconcile(observed: &Observed, now: Timestamp) -> Outcome {
    let replica_set = observed.replica_set;
    let mut outcome = Outcome::default();
    let Some(spec) = &replica_set.spec else {
        return outcome;
    };
    let mut active: Vec<&Pod> = Vec::new();
    let mut terminating_count = 0;
    for candidate in &observed.pods {
        match owner::claim(&replica_set.metadata, &spec.selector, &candidate.metadata) {
            Claim::Owned if pod::is_active(candidate) => active.push(candidate),
            Claim::Owned if pod::is_terminating(candidate) => terminating_count += 1,
            Claim::Adopt if pod::is_active(candidate) => {
                outcome.actions.push(Action::Adopt(reference(candidate)));
                active.push(candidate);
            }
            Claim::Release if pod::is_active(candidate) => {
                outcome.actions.push(Action::Release(reference(candidate)))
            }
            _ => {}
        }
    }
    let desired = i64::from(desired_replicas(replica_set));
    outcome.surplus = active.len() as i64 - desired;
    if observed.expectations_met && replica_set.metadata.deletion_timestamp.is_none() {
        let count = (outcome.surplus.unsigned_abs() as usize).min(BURST_REPLICAS);
        match outcome.surplus.cmp(&0) {
            Ordering::Less => outcome.actions.push(Action::Create {
                pod: Box::new(pod_from_template(replica_set)),
                count,
            }),
            Ordering::Greater => {
                let doomed = choose_doomed(&active, &observed.related_per_node, count, now);
                outcome
                    .actions
                    .extend(doomed.into_iter().map(|pod| Action::Delete(reference(pod))));
            }
            Ordering::Equal => {}
        }
    }
    let status = status(replica_set, &active, terminating_count, now);
    let min_ready_seconds = spec.min_ready_seconds.unwrap_or(0);
    if min_ready_seconds > 0 && status.ready_replicas != status.available_replicas {
        outcome.requeue_after = active
            .iter()
            .filter_map(|pod| pod::available_in(pod, min_ready_seconds, now))
            .min();
    }
    outcome.status = (replica_set.status.as_ref() != Some(&status)).then_some(status);
    outcome
}

/// `spec.replicas`, whose default is 1.
pub fn desired_replicas(replica_set: &ReplicaSet) -> i32 {
    replica_set
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
        .max(0)
}

fn reference(pod: &Pod) -> PodRef {
    PodRef {
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
    }
}

/// The pod that the template describes, named by the server after the replica set.
pub fn pod_from_template(replica_set: &ReplicaSet) -> Pod {
    let template = replica_set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.clone())
        .unwrap_or_default();
    let metadata = template.metadata.unwrap_or_default();
    let name = replica_set.metadata.name.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: replica_set.metadata.namespace.clone(),
            generate_name: Some(format!("{name}-")),
            labels: metadata.labels,
            annotations: metadata.annotations,
            finalizers: metadata.finalizers,
            owner_references: Some(vec![owner::controller_reference(
                API_VERSION,
                KIND,
                &replica_set.metadata,
            )]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// Sizes of the batches in which `count` creations are tried: 1, 2, 4, …; a failure in one ends the row.
pub fn slow_start_batches(count: usize) -> impl Iterator<Item = usize> {
    let mut remaining = count;
    let mut size = 1;
    std::iter::from_fn(move || {
        let batch = size.min(remaining);
        remaining -= batch;
        size *= 2;
        (batch > 0).then_some(batch)
    })
}

/// The pods to delete first: unassigned, pending, unready, cheap, crowded, newly ready, often restarted, young.
fn choose_doomed<'a>(
    active: &[&'a Pod],
    related_per_node: &BTreeMap<String, usize>,
    count: usize,
    now: Timestamp,
) -> Vec<&'a Pod> {
    let mut ranked: Vec<&Pod> = active.to_vec();
    if count < ranked.len() {
        ranked.sort_by(|a, b| deletion_order(a, b, related_per_node, now));
    }
    ranked.truncate(count);
    ranked
}

fn deletion_order(
    a: &Pod,
    b: &Pod,
    related_per_node: &BTreeMap<String, usize>,
    now: Timestamp,
) -> Ordering {
    let phase_rank = |pod: &Pod| match pod::phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let cost = |pod: &Pod| -> i32 {
        let annotation = pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(POD_DELETION_COST));
        annotation.and_then(|cost| cost.parse().ok()).unwrap_or(0)
    };
    let crowd = |pod: &Pod| {
        pod::node_name(pod)
            .and_then(|node| related_per_node.get(node))
            .copied()
            .unwrap_or(0)
    };
    // Ages are compared on a logarithmic scale, so that of pods about equally old any may go (KEP-2185).
    let log_age = |since: Option<Timestamp>| {
        since.map_or(-1, |since| {
            now.duration_since(since)
                .as_secs()
                .max(0)
                .checked_ilog2()
                .map_or(0, |log| i64::from(log) + 1)
        })
    };
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    pod::node_name(a)
        .is_some()
        .cmp(&pod::node_name(b).is_some())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| pod::is_ready(a).cmp(&pod::is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| crowd(b).cmp(&crowd(a)))
        .then_with(|| log_age(pod::ready_since(a)).cmp(&log_age(pod::ready_since(b))))
        .then_with(|| pod::restart_count_max(b).cmp(&pod::restart_count_max(a)))
        .then_with(|| log_age(created(a)).cmp(&log_age(created(b))))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

fn status(
    replica_set: &ReplicaSet,
    active: &[&Pod],
    terminating_count: i32,
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = replica_set.spec.as_ref();
    let min_ready_seconds = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let template_labels = spec
        .and_then(|s| s.template.as_ref())
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    let count = |test: &dyn Fn(&Pod) -> bool| active.iter().filter(|pod| test(pod)).count() as i32;
    ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: Some(count(&|pod| {
            crate::label::contains_all(pod.metadata.labels.as_ref(), &template_labels)
        })),
        ready_replicas: Some(count(&pod::is_ready)),
        available_replicas: Some(count(&|pod| pod::is_available(pod, min_ready_seconds, now))),
        terminating_replicas: Some(terminating_count),
        observed_generation: replica_set.metadata.generation,
        conditions: replica_set
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone()),
    }
    .normalised(replica_set.status.as_ref())
}

trait Normalised {
    fn normalised(self, stored: Option<&ReplicaSetStatus>) -> Self;
}

impl Normalised for ReplicaSetStatus {
    /// Zero and absent are the same on the wire for these counts: keeps the stored form, so that equal statuses compare equal.
    fn normalised(mut self, stored: Option<&ReplicaSetStatus>) -> Self {
        let zero_or = |count: &mut Option<i32>, stored: Option<i32>| {
            if *count == Some(0) && stored.is_none() {
                *count = None;
            }
        };
        zero_or(
            &mut self.fully_labeled_replicas,
            stored.and_then(|s| s.fully_labeled_replicas),
        );
        zero_or(
            &mut self.ready_replicas,
            stored.and_then(|s| s.ready_replicas),
        );
        zero_or(
            &mut self.available_replicas,
            stored.and_then(|s| s.available_replicas),
        );
        self
    }
}

/// The status after the actions were tried: a failure becomes a ReplicaFailure condition, success takes it away.
pub fn with_failure(
    mut status: ReplicaSetStatus,
    surplus: i64,
    failure: Option<&str>,
    now: Timestamp,
) -> ReplicaSetStatus {
    const TYPE: &str = "ReplicaFailure";
    let mut conditions = status.conditions.take().unwrap_or_default();
    let present = conditions.iter().any(|condition| condition.type_ == TYPE);
    match failure {
        Some(message) if !present => conditions.push(ReplicaSetCondition {
            type_: TYPE.into(),
            status: "True".into(),
            reason: Some(
                if surplus < 0 {
                    "FailedCreate"
                } else {
                    "FailedDelete"
                }
                .into(),
            ),
            message: Some(message.into()),
            last_transition_time: Some(Time(crate::time::whole_seconds(now))),
        }),
        None => conditions.retain(|condition| condition.type_ != TYPE),
        Some(_) => {}
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
    status
}

/// What each replica set still waits to see of its own creations and deletions.
#[derive(Debug, Default)]
pub struct Expectations {
    by_key: HashMap<String, Expected>,
}

#[derive(Debug)]
struct Expected {
    creations: usize,
    deletions: HashSet<String>,
    since: Timestamp,
}

/// After so long an unmet expectation is given up: the event it waited for was missed.
const EXPECTATION_LIFETIME: SignedDuration = SignedDuration::from_mins(5);

impl Expectations {
    pub fn met(&self, key: &str, now: Timestamp) -> bool {
        self.by_key.get(key).is_none_or(|expected| {
            (expected.creations == 0 && expected.deletions.is_empty())
                || now.duration_since(expected.since) > EXPECTATION_LIFETIME
        })
    }

    pub fn expect_creations(&mut self, key: &str, count: usize, now: Timestamp) {
        self.by_key.insert(
            key.into(),
            Expected {
                creations: count,
                deletions: HashSet::new(),
                since: now,
            },
        );
    }

    /// `uids`: of the pods that are about to be deleted.
    pub fn expect_deletions(
        &mut self,
        key: &str,
        uids: impl IntoIterator<Item = String>,
        now: Timestamp,
    ) {
        self.by_key.insert(
            key.into(),
            Expected {
                creations: 0,
                deletions: uids.into_iter().collect(),
                since: now,
            },
        );
    }

    /// A pod was seen, or its creation failed.
    pub fn creation_observed(&mut self, key: &str) {
        if let Some(expected) = self.by_key.get_mut(key) {
            expected.creations = expected.creations.saturating_sub(1);
        }
    }

    /// A pod was seen going, or its deletion failed.
    pub fn deletion_observed(&mut self, key: &str, uid: &str) {
        if let Some(expected) = self.by_key.get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    pub fn forget(&mut self, key: &str) {
        self.by_key.remove(key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn replica_set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "rs", "generation": 3},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}}
        }))
        .unwrap()
    }

    fn pod(name: &str, change: Value) -> Pod {
        let mut base = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}]},
            "spec": {"containers": [], "nodeName": "n"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2027-01-15T07:00:00Z"}]}
        });
        merge(&mut base, change);
        serde_json::from_value(base).unwrap()
    }

    fn merge(target: &mut Value, change: Value) {
        match (target, change) {
            (Value::Object(target), Value::Object(change)) => {
                for (key, value) in change {
                    merge(target.entry(key).or_insert(Value::Null), value);
                }
            }
            (target, change) => *target = change,
        }
    }

    fn run(replicas: i32, pods: &[Pod]) -> Outcome {
        let replica_set = replica_set(replicas);
        let observed = Observed {
            replica_set: &replica_set,
            pods: pods.iter().collect(),
            related_per_node: BTreeMap::new(),
            expectations_met: true,
        };
        reconcile(&observed, NOW)
    }

    fn deleted(outcome: &Outcome) -> Vec<&str> {
        outcome
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::Delete(pod) => Some(pod.name.as_str()),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn creates_what_is_missing_and_deletes_what_is_too_much() {
        let created = run(3, &[pod("a", json!({}))]);
        let Action::Create {
            pod: made,
            count: 2,
        } = &created.actions[0]
        else {
            panic!("{created:?}")
        };
        assert_eq!(made.metadata.generate_name.as_deref(), Some("web-"));
        assert_eq!(owner::controller_of(&made.metadata).unwrap().uid, "rs");
        assert!(run(1, &[pod("a", json!({}))]).actions.is_empty());
        assert_eq!(deleted(&run(0, &[pod("a", json!({}))])), ["a"]);
        // Finished and terminating pods do not count.
        let gone = [
            pod("a", json!({"status": {"phase": "Failed"}})),
            pod(
                "b",
                json!({"metadata": {"deletionTimestamp": "2027-01-15T07:00:00Z"}}),
            ),
        ];
        let outcome = run(1, &gone);
        assert!(matches!(
            outcome.actions[..],
            [Action::Create { count: 1, .. }]
        ));
        assert_eq!(outcome.status.unwrap().terminating_replicas, Some(1));
    }

    #[test]
    fn deletion_ranks_as_upstream() {
        let check = |worse: Value, better: Value| {
            let pods = [pod("better", better), pod("worse", worse)];
            assert_eq!(deleted(&run(1, &pods)), ["worse"], "{pods:?}");
        };
        check(
            json!({"spec": {"nodeName": null}}),
            json!({"status": {"phase": "Pending"}}),
        );
        check(
            json!({"status": {"phase": "Pending"}}),
            json!({"status": {"conditions": []}}),
        );
        check(json!({"status": {"conditions": []}}), json!({}));
        check(
            json!({"metadata": {"annotations": {POD_DELETION_COST: "-5"}}}),
            json!({}),
        );
        check(
            json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 4}]}}),
            json!({}),
        );
        check(
            json!({"metadata": {"creationTimestamp": "2027-01-15T07:59:00Z"}}),
            json!({"metadata": {"creationTimestamp": "2027-01-01T00:00:00Z"}}),
        );
    }

    #[test]
    fn adopts_orphans_and_releases_strangers() {
        let orphan = pod("orphan", json!({"metadata": {"ownerReferences": null}}));
        let stranger = pod(
            "stranger",
            json!({"metadata": {"labels": {"app": "other"}}}),
        );
        let foreign = pod(
            "foreign",
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "x", "controller": true}]}}),
        );
        let outcome = run(1, &[orphan, stranger, foreign]);
        let names = |pod: &PodRef| pod.name.clone();
        assert!(
            matches!(&outcome.actions[..], [Action::Adopt(a), Action::Release(b)] if names(a) == "orphan" && names(b) == "stranger"),
            "{outcome:?}"
        );
    }

    #[test]
    fn status_counts_and_waits_for_min_ready() {
        let mut replica_set = replica_set(1);
        replica_set.spec.as_mut().unwrap().min_ready_seconds = Some(30);
        let fresh = NOW - SignedDuration::from_secs(10);
        let pods = [pod(
            "a",
            json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": fresh.to_string()}]}}),
        )];
        let observed = |expectations_met| Observed {
            replica_set: &replica_set,
            pods: pods.iter().collect(),
            related_per_node: BTreeMap::new(),
            expectations_met,
        };
        let outcome = reconcile(&observed(true), NOW);
        let status = outcome.status.unwrap();
        assert_eq!(
            (
                status.replicas,
                status.ready_replicas,
                status.available_replicas
            ),
            (1, Some(1), None)
        );
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(outcome.requeue_after, Some(SignedDuration::from_secs(20)));
        // The same status again is no change.
        replica_set.status = Some(status);
        let observed = Observed {
            replica_set: &replica_set,
            pods: pods.iter().collect(),
            related_per_node: BTreeMap::new(),
            expectations_met: true,
        };
        assert_eq!(reconcile(&observed, NOW).status, None);
    }

    #[test]
    fn unmet_expectations_hold_back_creation() {
        let replica_set = replica_set(2);
        let observed = Observed {
            replica_set: &replica_set,
            pods: vec![],
            related_per_node: BTreeMap::new(),
            expectations_met: false,
        };
        assert!(reconcile(&observed, NOW).actions.is_empty());
        let mut expectations = Expectations::default();
        expectations.expect_creations("k", 2, NOW);
        expectations.creation_observed("k");
        assert!(!expectations.met("k", NOW));
        assert!(expectations.met("k", NOW + SignedDuration::from_mins(6)));
        expectations.creation_observed("k");
        assert!(expectations.met("k", NOW));
        expectations.expect_deletions("k", ["u".to_string()], NOW);
        assert!(!expectations.met("k", NOW));
        expectations.deletion_observed("k", "u");
        assert!(expectations.met("k", NOW));
    }

    #[test]
    fn failure_becomes_a_condition_and_goes_again() {
        let status = with_failure(ReplicaSetStatus::default(), -1, Some("quota"), NOW);
        let condition = &status.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (condition.reason.as_deref(), condition.message.as_deref()),
            (Some("FailedCreate"), Some("quota"))
        );
        assert_eq!(with_failure(status, 0, None, NOW).conditions, None);
    }

    #[test]
    fn batches_grow() {
        assert_eq!(slow_start_batches(12).collect::<Vec<_>>(), [1, 2, 4, 5]);
        assert_eq!(slow_start_batches(0).count(), 0);
    }
}
