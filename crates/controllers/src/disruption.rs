//! Disruption controller: how many pods of a budget are healthy, and how many may be disrupted.
//!
//! Enter at [`reconcile`]. The count of pods that should be there comes from what controls them
//! ([`Scale`], which the shell looks up; [`needs_scales`] says whether it is wanted). A pod whose
//! eviction was granted counts as gone until it is, or until [`DELETION_TIMEOUT`] has passed.
//! Whatever cannot be counted allows no disruption.

use std::collections::BTreeMap;

use api::disruption::{set_condition, set_failed};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::event::Event;
use crate::{owner, pod};

/// How long an eviction that was granted keeps its pod out of the count.
pub const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);
/// A pod that was to be disrupted and still runs after this long has its condition taken back.
pub const STALE_CONDITION_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);

pub const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// The node agent's own reason: it may take as long as it likes to end such a pod.
const REASON_TERMINATION_BY_KUBELET: &str = "TerminationByKubelet";

/// What controls some pods, and how many it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Of the topmost controller: the replica sets of a deployment count once, as that.
    pub uid: String,
    pub replicas: i32,
}

pub struct Observed<'a> {
    pub budget: &'a PodDisruptionBudget,
    /// Those that the budget selects.
    pub pods: Vec<&'a Pod>,
    /// By UID of the pods' controllers; one that is missing here was not found.
    pub scales: BTreeMap<String, Scale>,
}

#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// `None`: as it is.
    pub status: Option<PodDisruptionBudgetStatus>,
    pub events: Vec<Event>,
    /// Pods that were expected to be deleted and were not.
    pub not_deleted: Vec<String>,
    pub requeue_after: Option<SignedDuration>,
}

/// Whether the budget is a share of what controllers want, so that their scales must be known.
pub fn needs_scales(budget: &PodDisruptionBudget) -> bool {
    budget.spec.as_ref().is_some_and(|spec| {
        spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
    })
}

pub fn reconcile(observed: &Observed<'_>, now: Timestamp) -> Outcome {
    let budget = observed.budget;
    let mut outcome = Outcome::default();
    if observed.pods.is_empty() {
        outcome
            .events
            .push(Event::normal("NoPods", "No matching pods found"));
    }
    let stored = budget.status.clone().unwrap_or_default();
    let mut status = stored.clone();
    match count(observed, &mut outcome.events) {
        Ok((expected, desired)) => {
            let waiting = disrupted(observed, now, &mut outcome);
            let healthy = observed
                .pods
                .iter()
                .filter(|pod| pod.metadata.deletion_timestamp.is_none() && pod::is_ready(pod))
                .filter(|pod| {
                    let name = pod.metadata.name.as_deref().unwrap_or_default();
                    !waiting.contains_key(name)
                })
                .count();
            let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
            // With nothing expected the first pods could go before they are counted.
            let allowed = if expected > 0 {
                healthy.saturating_sub(desired).max(0)
            } else {
                0
            };
            status.current_healthy = Some(healthy);
            status.desired_healthy = Some(desired);
            status.expected_pods = Some(expected);
            status.disruptions_allowed = Some(allowed);
            status.disrupted_pods = Some(waiting).filter(|waiting| !waiting.is_empty());
            status.observed_generation = budget.metadata.generation;
            set_condition(&mut status, &seconds(now));
        }
        Err(message) => {
            outcome.events.push(Event::warning(
                "CalculateExpectedPodCountFailed",
                format!("Failed to calculate the number of expected pods: {message}"),
            ));
            set_failed(&mut status, &message, &seconds(now));
        }
    }
    outcome.status = (status != stored).then_some(status);
    outcome
}

fn seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// How many pods there should be, and how many of them healthy.
fn count(observed: &Observed<'_>, events: &mut Vec<Event>) -> Result<(i32, i32), String> {
    let Some(spec) = &observed.budget.spec else {
        return Ok((0, 0));
    };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(bound), _) => {
            let expected = expected(observed, events)?;
            Ok((expected, (expected - scaled(bound, expected)?).max(0)))
        }
        (None, Some(IntOrString::Int(count))) => {
            let pods = i32::try_from(observed.pods.len()).unwrap_or(i32::MAX);
            Ok((pods, *count))
        }
        (None, Some(bound)) => {
            let expected = expected(observed, events)?;
            Ok((expected, scaled(bound, expected)?))
        }
        (None, None) => Ok((0, 0)),
    }
}

/// The sum of the scales of everything that controls one of the pods.
fn expected(observed: &Observed<'_>, events: &mut Vec<Event>) -> Result<i32, String> {
    let mut replicas: BTreeMap<&str, i32> = BTreeMap::new();
    let mut unmanaged = false;
    for pod in &observed.pods {
        let Some(owner) = owner::controller_of(&pod.metadata) else {
            unmanaged = true;
            continue;
        };
        let scale = observed.scales.get(&owner.uid).ok_or_else(|| {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            format!("found no controllers for pod {name:?}")
        })?;
        replicas.insert(&scale.uid, scale.replicas);
    }
    if unmanaged {
        let selector = observed
            .budget
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.as_ref());
        let selector = api::selector::Labels::from_object(selector)
            .map(|selector| selector.to_string())
            .unwrap_or_default();
        events.push(Event::warning(
            "UnmanagedPods",
            format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
            ),
        ));
    }
    Ok(replicas
        .into_values()
        .fold(0, |sum: i32, replicas| sum.saturating_add(replicas)))
}

/// A count, or a share of `total`, rounded up.
fn scaled(bound: &IntOrString, total: i32) -> Result<i32, String> {
    match bound {
        IntOrString::Int(count) => Ok(*count),
        IntOrString::String(text) => {
            let percent: i64 = text
                .strip_suffix('%')
                .and_then(|digits| digits.parse().ok())
                .ok_or_else(|| {
                    format!(
                        "invalid value for IntOrString: invalid value {text:?}: not a percentage"
                    )
                })?;
            let share = (percent * i64::from(total) + 99).div_euclid(100);
            Ok(i32::try_from(share).unwrap_or(i32::MAX))
        }
    }
}

/// Pods whose eviction was granted and which are not on their way out yet.
fn disrupted(
    observed: &Observed<'_>,
    now: Timestamp,
    outcome: &mut Outcome,
) -> BTreeMap<String, Time> {
    let mut waiting = BTreeMap::new();
    let granted = observed
        .budget
        .status
        .as_ref()
        .and_then(|status| status.disrupted_pods.as_ref());
    for pod in observed
        .pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
    {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let Some(since) = granted.and_then(|granted| granted.get(name)) else {
            continue;
        };
        let left = DELETION_TIMEOUT - now.duration_since(since.0);
        if left.is_negative() {
            outcome.not_deleted.push(name.to_owned());
            continue;
        }
        let soonest = outcome.requeue_after.map_or(left, |other| other.min(left));
        outcome.requeue_after = Some(soonest);
        waiting.insert(name.to_owned(), since.clone());
    }
    waiting
}

/// The event of a pod of [`Outcome::not_deleted`].
pub fn not_deleted(budget: &PodDisruptionBudget) -> Event {
    let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
    let name = budget.metadata.name.as_deref().unwrap_or_default();
    Event::warning(
        "NotDeleted",
        format!("Pod was expected by PDB {namespace}/{name} to be deleted but it wasn't"),
    )
}

/// How long the mark of a disruption may still stand on a pod that is not on its way out; zero:
/// take it back now. `None`: it has none, or one that stays.
pub fn stale_after(pod: &Pod, now: Timestamp) -> Option<SignedDuration> {
    let condition = pod::condition(pod, DISRUPTION_TARGET)?;
    if pod.metadata.deletion_timestamp.is_some()
        || condition.status != "True"
        || condition.reason.as_deref() == Some(REASON_TERMINATION_BY_KUBELET)
        || pod::is_terminal(pod)
    {
        return None;
    }
    let since = condition.last_transition_time.as_ref()?.0;
    Some((STALE_CONDITION_TIMEOUT - now.duration_since(since)).max(SignedDuration::ZERO))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    const NOW: i64 = 1_000_000;

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        serde_json::from_value(
            json!({"metadata": {"name": "b", "namespace": "n", "generation": 3},
            "spec": spec, "status": status}),
        )
        .unwrap()
    }

    /// `owner` empty: nobody controls it.
    fn pod(name: &str, owner: &str, ready: bool) -> Pod {
        let owners = if owner.is_empty() {
            json!([])
        } else {
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}])
        };
        serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owners}, "spec": {"containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
        .unwrap()
    }

    fn run(budget: &PodDisruptionBudget, pods: &[Pod], scales: &[(&str, &str, i32)]) -> Outcome {
        let scales = scales
            .iter()
            .map(|(controller, uid, replicas)| {
                let scale = Scale {
                    uid: (*uid).into(),
                    replicas: *replicas,
                };
                ((*controller).to_string(), scale)
            })
            .collect();
        let observed = Observed {
            budget,
            pods: pods.iter().collect(),
            scales,
        };
        reconcile(&observed, Timestamp::from_second(NOW).unwrap())
    }

    #[test]
    fn counts() {
        let three = [
            pod("a", "x", true),
            pod("b", "x", true),
            pod("c", "y", false),
        ];
        // Both replica sets belong to one deployment.
        let scales = [("x", "d", 4), ("y", "d", 4)];
        // expected, desired, healthy, allowed
        let check = |spec: Value, expect: [i32; 4]| {
            let status = run(&budget(spec.clone(), json!({})), &three, &scales)
                .status
                .unwrap();
            let found = [
                status.expected_pods,
                status.desired_healthy,
                status.current_healthy,
                status.disruptions_allowed,
            ];
            assert_eq!(found, expect.map(Some), "{spec}");
            assert_eq!(status.observed_generation, Some(3));
        };
        check(json!({"minAvailable": 1}), [3, 1, 2, 1]);
        check(json!({"minAvailable": 2}), [3, 2, 2, 0]);
        check(json!({"minAvailable": 9}), [3, 9, 2, 0]);
        check(json!({"minAvailable": "30%"}), [4, 2, 2, 0]);
        check(json!({"minAvailable": "25%"}), [4, 1, 2, 1]);
        check(json!({"maxUnavailable": 3}), [4, 1, 2, 1]);
        check(json!({"maxUnavailable": 9}), [4, 0, 2, 2]);
        check(json!({"maxUnavailable": "60%"}), [4, 1, 2, 1]);
        check(json!({}), [0, 0, 2, 0]);
    }

    #[test]
    fn nothing_changes_twice() {
        let pods = [pod("a", "x", true)];
        let spec = json!({"minAvailable": 0});
        let status = run(&budget(spec.clone(), json!({})), &pods, &[])
            .status
            .unwrap();
        let again = budget(spec, serde_json::to_value(&status).unwrap());
        assert_eq!(run(&again, &pods, &[]), Outcome::default());
    }

    #[test]
    fn what_cannot_be_counted_allows_nothing() {
        let outcome = run(
            &budget(
                json!({"maxUnavailable": 1}),
                json!({"disruptionsAllowed": 1}),
            ),
            &[pod("a", "gone", true)],
            &[],
        );
        let status = outcome.status.unwrap();
        assert_eq!(status.disruptions_allowed, Some(0));
        let condition = &status.conditions.unwrap()[0];
        assert_eq!(
            (condition.reason.as_str(), condition.message.as_str()),
            (
                api::disruption::SYNC_FAILED,
                "found no controllers for pod \"a\""
            )
        );
        assert_eq!(outcome.events[0].reason, "CalculateExpectedPodCountFailed");
        let lone = run(
            &budget(json!({"maxUnavailable": 1}), json!({})),
            &[pod("a", "", true)],
            &[],
        );
        assert_eq!(lone.status.unwrap().disruptions_allowed, Some(0));
        assert_eq!(lone.events[0].reason, "UnmanagedPods");
    }

    #[test]
    fn granted_evictions_count_until_they_are_late() {
        let at = |seconds_ago: i64| Time(Timestamp::from_second(NOW - seconds_ago).unwrap());
        let pods = [
            pod("recent", "x", true),
            pod("late", "x", true),
            pod("other", "x", true),
        ];
        let granted = json!({"recent": at(20), "late": at(121), "gone": at(5)});
        let outcome = run(
            &budget(
                json!({"minAvailable": 1}),
                json!({"disruptedPods": granted}),
            ),
            &pods,
            &[],
        );
        let status = outcome.status.unwrap();
        assert_eq!(
            (status.current_healthy, status.disruptions_allowed),
            (Some(2), Some(1))
        );
        let waiting: Vec<_> = status.disrupted_pods.unwrap().into_keys().collect();
        assert_eq!(
            (waiting, outcome.not_deleted),
            (vec!["recent".to_string()], vec!["late".to_string()])
        );
        assert_eq!(outcome.requeue_after, Some(SignedDuration::from_secs(100)));
    }

    #[test]
    fn marks_go_stale() {
        let check = |status: Value, deleting: bool, expect: Option<i64>| {
            let mut marked = pod("a", "", true);
            marked.status = serde_json::from_value(status.clone()).unwrap();
            if deleting {
                marked.metadata.deletion_timestamp =
                    Some(Time(Timestamp::from_second(NOW).unwrap()));
            }
            let now = Timestamp::from_second(NOW).unwrap();
            let found = stale_after(&marked, now).map(|left| left.as_secs());
            assert_eq!(found, expect, "{status}");
        };
        let mark = |reason: &str, phase: &str, seconds_ago: i64| {
            let since = Time(Timestamp::from_second(NOW - seconds_ago).unwrap());
            json!({"phase": phase, "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": since}]})
        };
        check(json!({}), false, None);
        check(
            mark("EvictionByEvictionAPI", "Running", 20),
            false,
            Some(100),
        );
        check(
            mark("EvictionByEvictionAPI", "Running", 500),
            false,
            Some(0),
        );
        check(mark("EvictionByEvictionAPI", "Running", 500), true, None);
        check(mark("EvictionByEvictionAPI", "Failed", 500), false, None);
        check(mark("TerminationByKubelet", "Running", 500), false, None);
    }
}
