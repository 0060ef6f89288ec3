//! What may change in a pod after its creation, endpoint by endpoint.
//!
//! | endpoint | may change |
//! | --- | --- |
//! | the pod itself | images, active deadline (shorter), tolerations (more), scheduling gates (fewer); gated pods: more node selectors |
//! | status | status |
//! | ephemeralcontainers | more ephemeral containers |
//! | resize | CPU and memory of containers, and of the pod |

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelectorTerm, Pod, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::Value;

use super::containers::slice;
use super::{resize, scheduling, security, spec, status};
use crate::error::{ErrorList, forbidden, invalid, required};
use crate::kind::Part;
use crate::name;
use crate::path::{Path, root};

pub(super) fn prepare(new: &mut Pod, old: &Pod, part: &Part) {
    match part {
        Part::Main => new.status.clone_from(&old.status),
        Part::Status => {
            new.spec.clone_from(&old.spec);
            // Old kubelets send owner references in a form that breaks garbage collection.
            new.metadata
                .owner_references
                .clone_from(&old.metadata.owner_references);
            let status = new.status.get_or_insert_default();
            let empty = PodStatus::default();
            keep_what_kubelets_drop(status, old.status.as_ref().unwrap_or(&empty));
        }
        Part::Other("ephemeralcontainers") => {
            let ephemeral = new
                .spec
                .as_mut()
                .and_then(|spec| spec.ephemeral_containers.take());
            keep_metadata(&mut new.metadata, &old.metadata);
            new.spec.clone_from(&old.spec);
            new.status.clone_from(&old.status);
            new.spec.get_or_insert_default().ephemeral_containers = ephemeral;
        }
        Part::Other("resize") => resize::prepare(new, old),
        // The server made the change itself: the node, and the condition that says so. It is no new generation.
        Part::Other("binding") => return,
        Part::Other(_) => new.status.clone_from(&old.status),
    }
    if new.spec != old.spec && *part != Part::Status {
        new.metadata.generation = Some(old.metadata.generation.unwrap_or(0) + 1);
    }
}

fn keep_what_kubelets_drop(new: &mut PodStatus, old: &PodStatus) {
    if new.qos_class.as_deref().unwrap_or("").is_empty() {
        new.qos_class.clone_from(&old.qos_class);
    }
    if new.observed_generation.unwrap_or(0) == 0 {
        new.observed_generation = old.observed_generation;
    }
    for condition in new
        .conditions
        .iter_mut()
        .flatten()
        .filter(|condition| condition.observed_generation.unwrap_or(0) == 0)
    {
        let same = old
            .conditions
            .iter()
            .flatten()
            .find(|old| old.type_ == condition.type_);
        condition.observed_generation = same.and_then(|old| old.observed_generation);
    }
}

/// A subresource write leaves the metadata alone, but for managed fields and the version it is based on.
pub(super) fn keep_metadata(new: &mut ObjectMeta, old: &ObjectMeta) {
    let managed_fields = new.managed_fields.take();
    let resource_version = new.resource_version.take();
    new.clone_from(old);
    new.managed_fields = managed_fields;
    new.resource_version = resource_version;
}

pub(super) fn validate(new: &Pod, old: &Pod, part: &Part, errors: &mut ErrorList) {
    let missing = PodSpec::default();
    let (new_spec, old_spec) = (
        new.spec.as_ref().unwrap_or(&missing),
        old.spec.as_ref().unwrap_or(&missing),
    );
    match part {
        Part::Status => {
            validate_annotation_changes(new, old, errors);
            status::validate(new, old, old_spec, errors);
        }
        Part::Other("ephemeralcontainers") => {
            validate_ephemeral(new, old, new_spec, old_spec, errors)
        }
        Part::Other("resize") => resize::validate(new, old, new_spec, old_spec, errors),
        Part::Other("binding") => {}
        Part::Main | Part::Other(_) => {
            spec::validate_pod(new, errors);
            validate_annotation_changes(new, old, errors);
            validate_main(new_spec, old_spec, errors);
        }
    }
}

fn validate_annotation_changes(new: &Pod, old: &Pod, errors: &mut ErrorList) {
    let meta_path = root("metadata");
    let path = meta_path.child("annotations");
    let empty = BTreeMap::new();
    let (new_all, old_all) = (
        new.metadata.annotations.as_ref().unwrap_or(&empty),
        old.metadata.annotations.as_ref().unwrap_or(&empty),
    );
    for (key, _) in old_all
        .iter()
        .filter(|(key, value)| new_all.get(*key) != Some(value))
    {
        if security::is_app_armor_annotation(key) {
            errors.push(forbidden(
                &path.key(key),
                "may not remove or update AppArmor annotations",
            ));
        }
        if key == spec::MIRROR_ANNOTATION {
            errors.push(forbidden(
                &path.key(key),
                "may not remove or update mirror pod annotation",
            ));
        }
    }
    for (key, _) in new_all
        .iter()
        .filter(|(key, _)| !old_all.contains_key(*key))
    {
        if security::is_app_armor_annotation(key) {
            errors.push(forbidden(
                &path.key(key),
                "may not add AppArmor annotations",
            ));
        }
        if key == spec::MIRROR_ANNOTATION {
            errors.push(forbidden(
                &path.key(key),
                "may not add mirror pod annotation",
            ));
        }
    }
}

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn validate_main(new: &PodSpec, old: &PodSpec, errors: &mut ErrorList) {
    let path = root("spec");
    for (field, new, old) in [
        (
            "containers",
            new.containers.as_slice(),
            old.containers.as_slice(),
        ),
        (
            "initContainers",
            slice(&new.init_containers),
            slice(&old.init_containers),
        ),
    ] {
        let path = path.child(field);
        if new.len() != old.len() {
            errors.push(forbidden(
                &path,
                "pod updates may not add or remove containers",
            ));
            return;
        }
        for (index, container) in new.iter().enumerate() {
            if container.image.as_deref().unwrap_or("").is_empty() {
                errors.push(required(&path.index(index).child("image"), ""));
            }
        }
    }
    let deadline_path = path.child("activeDeadlineSeconds");
    match (new.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(seconds), _) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            errors.push(invalid(
                &deadline_path,
                &seconds,
                name::range_complaint(0, i64::from(i32::MAX)),
            ));
            return;
        }
        (Some(seconds), Some(before)) if before < seconds => {
            errors.push(invalid(
                &deadline_path,
                &seconds,
                "must be less than or equal to previous value",
            ));
            return;
        }
        (None, Some(_)) => {
            errors.push(invalid(
                &deadline_path,
                &Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
    let tolerations_path = path.child("tolerations");
    let kept = slice(&old.tolerations).iter().all(|old| {
        slice(&new.tolerations).iter().any(|new| {
            let mut same_seconds = old.clone();
            same_seconds.toleration_seconds = new.toleration_seconds;
            same_seconds == *new
        })
    });
    if kept {
        scheduling::validate_tolerations(slice(&new.tolerations), &tolerations_path, errors);
    } else {
        errors.push(forbidden(
            &tolerations_path,
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    let gates_path = path.child("schedulingGates");
    for (index, gate) in slice(&new.scheduling_gates).iter().enumerate() {
        if !slice(&old.scheduling_gates).contains(gate) {
            let detail = format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                gate.name
            );
            errors.push(forbidden(&gates_path.index(index).child("name"), detail));
        }
    }
    if new == old {
        return;
    }
    let mut masked = new.clone();
    for (container, old) in masked.containers.iter_mut().zip(&old.containers) {
        container.image.clone_from(&old.image);
    }
    for (container, old) in masked
        .init_containers
        .iter_mut()
        .flatten()
        .zip(slice(&old.init_containers))
    {
        container.image.clone_from(&old.image);
    }
    masked.active_deadline_seconds = old.active_deadline_seconds;
    masked.scheduling_gates.clone_from(&old.scheduling_gates);
    masked.tolerations.clone_from(&old.tolerations);
    if old
        .termination_grace_period_seconds
        .is_some_and(|period| period < 0)
        && new.termination_grace_period_seconds == Some(1)
    {
        masked.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    if !slice(&old.scheduling_gates).is_empty() {
        allow_gated_changes(&mut masked, old, &path, errors);
    }
    if masked != *old {
        let detail = format!(
            "pod updates may not change fields other than {UPDATABLE}\n{}",
            difference(old, &masked)
        );
        errors.push(forbidden(&path, detail));
    }
}

/// A pod that waits for gates may still be given more selectors of nodes.
fn allow_gated_changes(
    masked: &mut PodSpec,
    old: &PodSpec,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if masked.node_selector != old.node_selector {
        let lost = old.node_selector.iter().flatten().any(|(key, value)| {
            masked
                .node_selector
                .as_ref()
                .and_then(|selector| selector.get(key))
                != Some(value)
        });
        if lost {
            let detail =
                "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errors.push(invalid(
                &path.child("nodeSelector"),
                &masked.node_selector,
                detail,
            ));
        }
        masked.node_selector.clone_from(&old.node_selector);
    }
    let node_affinity = |affinity: &Option<Affinity>| {
        affinity
            .as_ref()
            .and_then(|affinity| affinity.node_affinity.clone())
    };
    let (new_nodes, old_nodes) = (
        node_affinity(&masked.affinity),
        node_affinity(&old.affinity),
    );
    if new_nodes == old_nodes {
        return;
    }
    let affinity_path = path.child("affinity");
    validate_node_affinity_change(
        new_nodes.as_ref(),
        old_nodes.as_ref(),
        &affinity_path.child("nodeAffinity"),
        errors,
    );
    let only_nodes = masked.affinity.as_ref().is_some_and(|affinity| {
        affinity.pod_affinity.is_none() && affinity.pod_anti_affinity.is_none()
    });
    if old.affinity.is_none() && only_nodes {
        masked.affinity = None;
    } else {
        masked.affinity.get_or_insert_default().node_affinity = old_nodes;
    }
}

fn validate_node_affinity_change(
    new: Option<&NodeAffinity>,
    old: Option<&NodeAffinity>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let terms = |affinity: Option<&NodeAffinity>| -> Vec<NodeSelectorTerm> {
        let required = affinity.and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        required
            .map(|selector| selector.node_selector_terms.clone())
            .unwrap_or_default()
    };
    let (new, old) = (terms(new), terms(old));
    let required_path = path.child("requiredDuringSchedulingIgnoredDuringExecution");
    let path = required_path.child("nodeSelectorTerms");
    if old.is_empty() {
        return;
    }
    if old.len() != new.len() {
        errors.push(invalid(
            &path,
            &new,
            "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
        ));
        return;
    }
    for (index, (new, old)) in new.iter().zip(&old).enumerate() {
        let (new_labels, old_labels) =
            (slice(&new.match_expressions), slice(&old.match_expressions));
        let (new_fields, old_fields) = (slice(&new.match_fields), slice(&old.match_fields));
        let was_empty = old_labels.is_empty() && old_fields.is_empty();
        let only_more = if was_empty {
            new_labels.is_empty() && new_fields.is_empty()
        } else {
            new_labels.starts_with(old_labels) && new_fields.starts_with(old_fields)
        };
        if !only_more {
            errors.push(invalid(
                &path.index(index),
                new,
                "only additions are allowed (no mutations or deletions)",
            ));
        }
    }
}

/// The fields that differ, one a line: `- path: old` and `+ path: new`.
fn difference<T: Serialize>(old: &T, new: &T) -> String {
    fn walk(path: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
        if old == new {
            return;
        }
        match (old, new) {
            (Value::Object(old), Value::Object(new)) => {
                let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
                keys.sort();
                keys.dedup();
                for key in keys {
                    let null = Value::Null;
                    walk(
                        &format!("{path}.{key}"),
                        old.get(key).unwrap_or(&null),
                        new.get(key).unwrap_or(&null),
                        lines,
                    );
                }
            }
            (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
                for (index, (old, new)) in old.iter().zip(new).enumerate() {
                    walk(&format!("{path}[{index}]"), old, new, lines);
                }
            }
            _ => {
                lines.push(format!("- {path}: {old}"));
                lines.push(format!("+ {path}: {new}"));
            }
        }
    }
    let value = |object: &T| serde_json::to_value(object).unwrap_or(Value::Null);
    let mut lines = Vec::new();
    walk("spec", &value(old), &value(new), &mut lines);
    lines.join("\n")
}

fn validate_ephemeral(
    new: &Pod,
    old: &Pod,
    new_spec: &PodSpec,
    old_spec: &PodSpec,
    errors: &mut ErrorList,
) {
    if spec::is_mirror(&old.metadata) {
        errors.clear();
        errors.push(forbidden(
            &root(""),
            "static pods do not support ephemeral containers",
        ));
        return;
    }
    spec::validate_pod(new, errors);
    let path = root("spec");
    let path = path.child("ephemeralContainers");
    for container in slice(&old_spec.ephemeral_containers) {
        match slice(&new_spec.ephemeral_containers)
            .iter()
            .find(|new| new.name == container.name)
        {
            None => errors.push(forbidden(
                &path,
                format!(
                    "existing ephemeral containers {:?} may not be removed\n",
                    container.name
                ),
            )),
            Some(same) if same != container => errors.push(forbidden(
                &path,
                format!(
                    "existing ephemeral containers {:?} may not be changed\n{}",
                    container.name,
                    difference(container, same)
                ),
            )),
            Some(_) => {}
        }
    }
}
