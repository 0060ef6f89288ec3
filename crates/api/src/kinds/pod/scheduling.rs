//! Validation of what steers scheduling: affinity, tolerations, topology spread, gates.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm,
    PodSchedulingGate, Toleration, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::containers::slice;
use crate::error::{
    ErrorList, duplicate, forbidden, invalid, invalid_each, not_supported, required,
};
use crate::kinds::label_selector;
use crate::metadata::validate_label_name;
use crate::name;
use crate::path::Path;

pub(super) fn validate_affinity(affinity: &Affinity, path: &Path<'_>, errors: &mut ErrorList) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = &affinity.node_affinity {
        let path = path.child("nodeAffinity");
        if let Some(selector) = &node.required_during_scheduling_ignored_during_execution {
            validate_node_selector(selector, &path.child(REQUIRED), errors);
        }
        let preferred_path = path.child(PREFERRED);
        for (index, term) in node
            .preferred_during_scheduling_ignored_during_execution
            .iter()
            .flatten()
            .enumerate()
        {
            let path = preferred_path.index(index);
            validate_weight(term.weight, &path, errors);
            // Label values that no node can have are let through: a preference need not come true.
            validate_node_selector_term(&term.preference, true, &path.child("preference"), errors);
        }
    }
    let attract = affinity.pod_affinity.as_ref().map(|affinity| {
        (
            "podAffinity",
            slice(&affinity.required_during_scheduling_ignored_during_execution),
            slice(&affinity.preferred_during_scheduling_ignored_during_execution),
        )
    });
    let repel = affinity.pod_anti_affinity.as_ref().map(|affinity| {
        (
            "podAntiAffinity",
            slice(&affinity.required_during_scheduling_ignored_during_execution),
            slice(&affinity.preferred_during_scheduling_ignored_during_execution),
        )
    });
    for (field, required, preferred) in attract.into_iter().chain(repel) {
        let path = path.child(field);
        let required_path = path.child(REQUIRED);
        for (index, term) in required.iter().enumerate() {
            validate_pod_term(term, &required_path.index(index), errors);
        }
        let preferred_path = path.child(PREFERRED);
        for (
            index,
            WeightedPodAffinityTerm {
                weight,
                pod_affinity_term,
            },
        ) in preferred.iter().enumerate()
        {
            let path = preferred_path.index(index);
            validate_weight(*weight, &path, errors);
            validate_pod_term(pod_affinity_term, &path.child("podAffinityTerm"), errors);
        }
    }
}

fn validate_weight(weight: i32, path: &Path<'_>, errors: &mut ErrorList) {
    if !(1..=100).contains(&weight) {
        errors.push(invalid(
            &path.child("weight"),
            &weight,
            "must be in the range 1-100",
        ));
    }
}

pub(crate) fn validate_node_selector(
    selector: &NodeSelector,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let terms_path = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errors.push(required(
            &terms_path,
            "must have at least one node selector term",
        ));
    }
    for (index, term) in selector.node_selector_terms.iter().enumerate() {
        validate_node_selector_term(term, false, &terms_path.index(index), errors);
    }
}

fn validate_node_selector_term(
    term: &NodeSelectorTerm,
    any_value: bool,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let expressions_path = path.child("matchExpressions");
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        validate_node_requirement(
            requirement,
            any_value,
            &expressions_path.index(index),
            errors,
        );
    }
    let fields_path = path.child("matchFields");
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        validate_node_field(requirement, &fields_path.index(index), errors);
    }
}

fn validate_node_requirement(
    requirement: &NodeSelectorRequirement,
    any_value: bool,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let values = slice(&requirement.values);
    let values_path = path.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(required(
                &values_path,
                "must be specified when `operator` is 'In' or 'NotIn'",
            ));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.push(forbidden(
                &values_path,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errors.push(required(
                &values_path,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            ));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        )),
    }
    validate_label_name(&requirement.key, &path.child("key"), errors);
    if !any_value {
        for (index, value) in values.iter().enumerate() {
            invalid_each(
                errors,
                &values_path.index(index),
                value,
                name::label_value(value),
            );
        }
    }
}

fn validate_node_field(
    requirement: &NodeSelectorRequirement,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let values = slice(&requirement.values);
    let values_path = path.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.len() != 1 => {
            let detail =
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(required(&values_path, detail));
        }
        "In" | "NotIn" => {}
        other => errors.push(invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        )),
    }
    if requirement.key == "metadata.name" {
        for (index, value) in values.iter().enumerate() {
            invalid_each(
                errors,
                &values_path.index(index),
                value,
                name::dns1123_subdomain(value),
            );
        }
    } else {
        errors.push(invalid(
            &path.child("key"),
            &requirement.key,
            "not a valid field selector key",
        ));
    }
}

fn validate_pod_term(term: &PodAffinityTerm, path: &Path<'_>, errors: &mut ErrorList) {
    label_selector::validate(
        term.label_selector.as_ref(),
        &path.child("labelSelector"),
        errors,
    );
    label_selector::validate(
        term.namespace_selector.as_ref(),
        &path.child("namespaceSelector"),
        errors,
    );
    for namespace in term.namespaces.iter().flatten() {
        invalid_each(
            errors,
            &path.child("namespace"),
            namespace,
            name::dns1123_label(namespace),
        );
    }
    let (keys, other_keys) = (
        slice(&term.match_label_keys),
        slice(&term.mismatch_label_keys),
    );
    validate_label_keys(keys, other_keys, term.label_selector.as_ref(), path, errors);
    let key_path = path.child("topologyKey");
    if term.topology_key.is_empty() {
        errors.push(required(&key_path, "can not be empty"));
    }
    validate_label_name(&term.topology_key, &key_path, errors);
}

fn validate_label_keys(
    keys: &[String],
    other_keys: &[String],
    selector: Option<&LabelSelector>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (field, keys) in [("matchLabelKeys", keys), ("mismatchLabelKeys", other_keys)] {
        let path = path.child(field);
        if keys.is_empty() {
            continue;
        }
        if selector.is_none() {
            errors.push(forbidden(
                &path,
                "must not be specified when labelSelector is not set",
            ));
            continue;
        }
        for (index, key) in keys.iter().enumerate() {
            validate_label_name(key, &path.index(index), errors);
        }
    }
    // A key may be in the selector once: creation has put it there.
    if let Some(selector) = selector {
        let mut seen: BTreeSet<&str> = selector
            .match_labels
            .iter()
            .flatten()
            .map(|(key, _)| key.as_str())
            .collect();
        for expression in selector.match_expressions.iter().flatten() {
            let position = keys.iter().rposition(|key| *key == expression.key);
            if let Some(position) = position.filter(|_| seen.contains(expression.key.as_str())) {
                errors.push(invalid(
                    &path.index(position),
                    &expression.key,
                    "exists in both matchLabelKeys and labelSelector",
                ));
            }
            seen.insert(&expression.key);
        }
    }
    let keys_path = path.child("matchLabelKeys");
    for (index, key) in keys
        .iter()
        .enumerate()
        .filter(|(_, key)| other_keys.contains(key))
    {
        errors.push(invalid(
            &keys_path.index(index),
            key,
            "exists in both matchLabelKeys and mismatchLabelKeys",
        ));
    }
}

pub(super) fn validate_tolerations(
    tolerations: &[Toleration],
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let key = toleration.key.as_deref().unwrap_or("");
        let operator = toleration.operator.as_deref().unwrap_or("");
        let value = toleration.value.as_deref().unwrap_or("");
        let effect = toleration.effect.as_deref().unwrap_or("");
        if !key.is_empty() {
            validate_label_name(key, &path.child("key"), errors);
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(invalid(&path.child("operator"), operator, detail));
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(invalid(&path.child("effect"), effect, detail));
        }
        match operator {
            "Equal" | "" => {
                let complaints = name::label_value(value);
                if !complaints.is_empty() {
                    errors.push(invalid(
                        &path.child("operator"),
                        value,
                        complaints.join(";"),
                    ));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errors.push(invalid(
                        &path.child("operator"),
                        value,
                        "value must be empty when `operator` is 'Exists'",
                    ));
                }
            }
            // Comparing tolerations are behind an alpha gate in v1.36.
            "Lt" | "Gt" => {
                errors.push(not_supported(
                    &path.child("operator"),
                    operator,
                    &["Equal", "Exists", "Lt", "Gt"],
                ));
            }
            _ => errors.push(not_supported(
                &path.child("operator"),
                operator,
                &["Equal", "Exists"],
            )),
        }
        if !effect.is_empty() {
            validate_taint_effect(effect, &path.child("effect"), errors);
        }
    }
}

pub(crate) fn validate_taint_effect(effect: &str, path: &Path<'_>, errors: &mut ErrorList) {
    const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
    if !EFFECTS.contains(&effect) {
        errors.push(not_supported(path, effect, EFFECTS));
    }
}

pub(super) fn validate_topology_spread(
    constraints: &[TopologySpreadConstraint],
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        let (key, action) = (
            &constraint.topology_key,
            constraint.when_unsatisfiable.as_str(),
        );
        if constraint.max_skew <= 0 {
            errors.push(invalid(
                &path.child("maxSkew"),
                &constraint.max_skew,
                "must be greater than zero",
            ));
        }
        if key.is_empty() {
            errors.push(required(&path.child("topologyKey"), "can not be empty"));
        }
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            errors.push(not_supported(
                &path.child("whenUnsatisfiable"),
                action,
                &["DoNotSchedule", "ScheduleAnyway"],
            ));
        }
        let same = |other: &TopologySpreadConstraint| {
            other.topology_key == *key && other.when_unsatisfiable == action
        };
        if constraints[index + 1..].iter().any(same) {
            let both = path.child("{topologyKey, whenUnsatisfiable}");
            errors.push(duplicate(&both, &format!("{{{key}, {action}}}")));
        }
        if let Some(domains) = constraint.min_domains {
            let domains_path = path.child("minDomains");
            if domains <= 0 {
                errors.push(invalid(
                    &domains_path,
                    &domains,
                    "must be greater than zero",
                ));
            }
            if action != "DoNotSchedule" {
                let detail = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                );
                errors.push(invalid(&domains_path, &domains, detail));
            }
        }
        for (field, policy) in [
            ("nodeAffinityPolicy", &constraint.node_affinity_policy),
            ("nodeTaintsPolicy", &constraint.node_taints_policy),
        ] {
            if let Some(policy) = policy
                .as_deref()
                .filter(|policy| !matches!(*policy, "Honor" | "Ignore"))
            {
                errors.push(not_supported(
                    &path.child(field),
                    policy,
                    &["Honor", "Ignore"],
                ));
            }
        }
        let selector = constraint.label_selector.as_ref();
        validate_label_keys(
            slice(&constraint.match_label_keys),
            &[],
            selector,
            &path,
            errors,
        );
        label_selector::validate(selector, &path.child("labelSelector"), errors);
    }
}

pub(super) fn validate_scheduling_gates(
    gates: &[PodSchedulingGate],
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (index, gate) in gates.iter().enumerate() {
        let path = path.index(index);
        invalid_each(errors, &path, &gate.name, name::qualified_name(&gate.name));
        if gates[..index].iter().any(|other| other.name == gate.name) {
            errors.push(duplicate(&path, &gate.name));
        }
    }
}
