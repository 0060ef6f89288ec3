//! What a PodDisruptionBudget means, for both who counts (the controller) and who asks (eviction).

use std::collections::BTreeMap;

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::selector::Labels;

/// The condition type that tells whether a disruption is allowed.
pub const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";
/// The count could not be made, so nothing is allowed.
pub const SYNC_FAILED: &str = "SyncFailed";
const SUFFICIENT_PODS: &str = "SufficientPods";
const INSUFFICIENT_PODS: &str = "InsufficientPods";

/// Does the budget speak of pods with these labels? No selector selects none, an empty one all; a
/// broken one (which validation refuses) none.
pub fn selects(budget: &PodDisruptionBudget, labels: Option<&BTreeMap<String, String>>) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    Labels::from_object(selector).is_ok_and(|selector| selector.matches(labels))
}

/// Brings the condition `DisruptionAllowed` in line with `disruptionsAllowed`.
pub fn set_condition(status: &mut PodDisruptionBudgetStatus, now: &Time) {
    let (value, reason) = if status.disruptions_allowed.unwrap_or(0) > 0 {
        ("True", SUFFICIENT_PODS)
    } else {
        ("False", INSUFFICIENT_PODS)
    };
    put_condition(status, value, reason, "", now);
}

/// Says that nothing is allowed, because the count could not be made.
pub fn set_failed(status: &mut PodDisruptionBudgetStatus, message: &str, now: &Time) {
    status.disruptions_allowed = Some(0);
    put_condition(status, "False", SYNC_FAILED, message, now);
}

fn put_condition(
    status: &mut PodDisruptionBudgetStatus,
    value: &str,
    reason: &str,
    message: &str,
    now: &Time,
) {
    let observed_generation = status.observed_generation;
    let conditions = status.conditions.get_or_insert_default();
    let fresh = Condition {
        type_: DISRUPTION_ALLOWED.into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation,
        last_transition_time: now.clone(),
    };
    match conditions
        .iter_mut()
        .find(|condition| condition.type_ == DISRUPTION_ALLOWED)
    {
        Some(known) => {
            let since = if known.status == fresh.status {
                known.last_transition_time.clone()
            } else {
                fresh.last_transition_time.clone()
            };
            *known = Condition {
                last_transition_time: since,
                ..fresh
            };
        }
        None => conditions.push(fresh),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    #[test]
    fn selectors() {
        let labels = BTreeMap::from([("app".to_string(), "web".to_string())]);
        for (selector, expect) in [
            (json!(null), false),
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "Likes"}]}),
                false,
            ),
        ] {
            let budget =
                serde_json::from_value(json!({"metadata": {}, "spec": {"selector": selector}}));
            assert_eq!(
                selects(&budget.unwrap(), Some(&labels)),
                expect,
                "{selector}"
            );
        }
    }

    #[test]
    fn the_condition_keeps_the_time_of_its_last_change() {
        let at = |second| Time(Timestamp::from_second(second).unwrap());
        let mut status = PodDisruptionBudgetStatus {
            disruptions_allowed: Some(1),
            ..Default::default()
        };
        let seen = |status: &PodDisruptionBudgetStatus| {
            let condition = &status.conditions.as_ref().unwrap()[0];
            (
                condition.status.clone(),
                condition.reason.clone(),
                condition.last_transition_time.0.as_second(),
            )
        };
        set_condition(&mut status, &at(1));
        set_condition(&mut status, &at(2));
        assert_eq!(seen(&status), ("True".into(), "SufficientPods".into(), 1));
        status.disruptions_allowed = Some(0);
        set_condition(&mut status, &at(3));
        assert_eq!(
            seen(&status),
            ("False".into(), "InsufficientPods".into(), 3)
        );
        set_failed(&mut status, "why", &at(4));
        assert_eq!(seen(&status), ("False".into(), "SyncFailed".into(), 3));
        assert_eq!(status.conditions.unwrap().len(), 1);
    }
}
