//! Namespace deletion: everything in it goes, then its `kubernetes` finalizer.
//!
//! The shell discovers and deletes content and hands in a [`Report`]; [`reconcile`] says whether the
//! namespace can be finalized now and what its conditions are meanwhile. Order: all kinds at once, as
//! upstream does; the kubelet and other finalizers decide how long each object takes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::time::whole_seconds;

pub const FINALIZER: &str = "kubernetes";

/// What a round of deleting found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub discovery_error: Option<String>,
    pub deletion_errors: Vec<String>,
    /// `resource.group` (as messages show it) to the number of objects that are still there.
    pub remaining: BTreeMap<String, usize>,
    /// Finalizer to the number of remaining objects that carry it.
    pub finalizers: BTreeMap<String, usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Not being deleted, or finalized by us already.
    Nothing,
    /// Content remains: the status to write if it changed. The namespace is to be looked at again.
    Wait(Option<NamespaceStatus>),
    /// Nothing remains: the spec's finalizers without ours.
    Finalize {
        finalizers: Vec<String>,
        status: Option<NamespaceStatus>,
    },
}

/// Is there anything to do for this namespace?
pub fn is_due(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
        && finalizers(namespace)
            .iter()
            .any(|finalizer| finalizer == FINALIZER)
}

fn finalizers(namespace: &Namespace) -> Vec<String> {
    namespace
        .spec
        .as_ref()
        .and_then(|spec| spec.finalizers.clone())
        .unwrap_or_default()
}

pub fn reconcile(namespace: &Namespace, report: &Report, now: Timestamp) -> Outcome {
    if !is_due(namespace) {
        return Outcome::Nothing;
    }
    let stored = namespace.status.clone().unwrap_or_default();
    let mut status = stored.clone();
    status.phase = Some("Terminating".into());
    set_conditions(&mut status, report, whole_seconds(now));
    let changed = (status != stored).then_some(status);
    let clean = report.discovery_error.is_none()
        && report.deletion_errors.is_empty()
        && report.remaining.values().all(|count| *count == 0);
    if !clean {
        return Outcome::Wait(changed);
    }
    let kept = finalizers(namespace)
        .into_iter()
        .filter(|finalizer| finalizer != FINALIZER)
        .collect();
    Outcome::Finalize {
        finalizers: kept,
        status: changed,
    }
}

fn set_conditions(status: &mut NamespaceStatus, report: &Report, now: Timestamp) {
    let counted = |counts: &BTreeMap<String, usize>, between: &str| {
        let phrases: Vec<String> = counts
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| format!("{name} {between} {count} resource instances"))
            .collect();
        (!phrases.is_empty()).then(|| phrases.join(", "))
    };
    let mut errors = report.deletion_errors.clone();
    errors.sort();
    let failure = (!errors.is_empty()).then(|| {
        format!(
            "Failed to delete all resource types, {} remaining: {}",
            errors.len(),
            errors.join(", ")
        )
    });
    let remaining = counted(&report.remaining, "has")
        .map(|list| format!("Some resources are remaining: {list}"));
    let finalizers = counted(&report.finalizers, "in")
        .map(|list| format!("Some content in the namespace has finalizers remaining: {list}"));
    for (type_, trouble, reason, fine_reason, fine) in [
        (
            "NamespaceDeletionDiscoveryFailure",
            report.discovery_error.clone(),
            "DiscoveryFailed",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "GroupVersionParsingFailed",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            failure,
            "ContentDeletionFailed",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            remaining,
            "SomeResourcesRemain",
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            finalizers,
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ] {
        let (value, reason, message) = match trouble {
            Some(message) => ("True", reason, message),
            None => ("False", fine_reason, fine.to_string()),
        };
        set_condition(status, type_, value, reason, message, now);
    }
}

fn set_condition(
    status: &mut NamespaceStatus,
    type_: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let fresh = |since| NamespaceCondition {
        type_: type_.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.clone()),
        last_transition_time: since,
    };
    match conditions
        .iter_mut()
        .find(|condition| condition.type_ == type_)
    {
        None => conditions.push(fresh(Some(Time(now)))),
        Some(condition) => {
            let since = if condition.status == value {
                condition.last_transition_time.clone()
            } else {
                Some(Time(now))
            };
            *condition = fresh(since);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn namespace(deleting: bool) -> Namespace {
        let deleted = deleting.then_some("2027-01-15T07:00:00Z");
        serde_json::from_value(json!({"metadata": {"name": "a", "deletionTimestamp": deleted}, "spec": {"finalizers": ["kubernetes", "mine"]}})).unwrap()
    }

    #[test]
    fn only_a_deleted_namespace_is_touched() {
        assert_eq!(
            reconcile(&namespace(false), &Report::default(), NOW),
            Outcome::Nothing
        );
    }

    #[test]
    fn an_empty_one_is_finalized() {
        let Outcome::Finalize { finalizers, status } =
            reconcile(&namespace(true), &Report::default(), NOW)
        else {
            panic!()
        };
        assert_eq!(finalizers, ["mine"]);
        assert!(
            status
                .unwrap()
                .conditions
                .unwrap()
                .iter()
                .all(|condition| condition.status == "False")
        );
    }

    #[test]
    fn what_remains_is_named() {
        let report = Report {
            remaining: BTreeMap::from([("pods.".into(), 2)]),
            finalizers: BTreeMap::from([("x/y".into(), 1)]),
            deletion_errors: vec!["b".into(), "a".into()],
            ..Report::default()
        };
        let Outcome::Wait(Some(status)) = reconcile(&namespace(true), &report, NOW) else {
            panic!()
        };
        let message = |type_: &str| {
            status
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == type_)
                .unwrap()
                .message
                .clone()
                .unwrap()
        };
        assert_eq!(
            message("NamespaceContentRemaining"),
            "Some resources are remaining: pods. has 2 resource instances"
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            "Some content in the namespace has finalizers remaining: x/y in 1 resource instances"
        );
        assert_eq!(
            message("NamespaceDeletionContentFailure"),
            "Failed to delete all resource types, 2 remaining: a, b"
        );
        // Unchanged, it is not written again.
        let mut again = namespace(true);
        again.status = Some(status);
        assert_eq!(reconcile(&again, &report, NOW), Outcome::Wait(None));
    }
}
