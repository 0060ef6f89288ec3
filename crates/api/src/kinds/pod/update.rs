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
    Affinity, Container, ContainerStatus, NodeAffinity, NodeSelectorTerm, Pod, PodSpec, PodStatus,
    ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::Value;

use super::containers::slice;
use super::{scheduling, security, spec};
use crate::error::{ErrorList, forbidden, invalid, invalid_each, required};
use crate::ip;
use crate::kind::Part;
use crate::kinds::resources::ResourceList;
use crate::metadata::IMMUTABLE;
use crate::name;
use crate::path::{Path, root};
use crate::pod::{is_restartable_init, qos_class, qos_class_of};

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
        Part::Other("resize") => prepare_resize(new, old),
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
fn keep_metadata(new: &mut ObjectMeta, old: &ObjectMeta) {
    let managed_fields = new.managed_fields.take();
    let resource_version = new.resource_version.take();
    new.clone_from(old);
    new.managed_fields = managed_fields;
    new.resource_version = resource_version;
}

fn prepare_resize(new: &mut Pod, old: &Pod) {
    let (Some(new_spec), Some(old_spec)) = (&mut new.spec, &old.spec) else {
        return;
    };
    let same_count = |new: &Option<Vec<Container>>, old: &Option<Vec<Container>>| {
        slice(new).len() == slice(old).len()
    };
    if new_spec.containers.len() != old_spec.containers.len()
        || !same_count(&new_spec.init_containers, &old_spec.init_containers)
    {
        // Validation says what is wrong.
        return;
    }
    let merge = |new: &[Container], old: &[Container]| -> Vec<Container> {
        if new.iter().zip(old).any(|(new, old)| new.name != old.name) {
            return new.to_vec();
        }
        new.iter()
            .zip(old)
            .map(|(new, old)| Container {
                resources: new.resources.clone(),
                resize_policy: new.resize_policy.clone(),
                ..old.clone()
            })
            .collect()
    };
    let merged = PodSpec {
        containers: merge(&new_spec.containers, &old_spec.containers),
        init_containers: new_spec
            .init_containers
            .as_ref()
            .map(|list| merge(list, slice(&old_spec.init_containers))),
        resources: new_spec.resources.take(),
        ..old_spec.clone()
    };
    new.spec = Some(merged);
    new.status.clone_from(&old.status);
    keep_metadata(&mut new.metadata, &old.metadata);
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
            validate_status(new, old, old_spec, errors);
        }
        Part::Other("ephemeralcontainers") => {
            validate_ephemeral(new, old, new_spec, old_spec, errors)
        }
        Part::Other("resize") => validate_resize(new, old, new_spec, old_spec, errors),
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

fn validate_resize(
    new: &Pod,
    old: &Pod,
    new_spec: &PodSpec,
    old_spec: &PodSpec,
    errors: &mut ErrorList,
) {
    let only = |detail: &str, errors: &mut ErrorList| {
        errors.clear();
        errors.push(forbidden(&root(""), detail));
    };
    if spec::is_mirror(&old.metadata) {
        return only("static pods cannot be resized", errors);
    }
    if old_spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return only("windows pods cannot be resized", errors);
    }
    spec::validate_pod(new, errors);
    let path = root("spec");
    if qos_class_of(old) != qos_class(new_spec) {
        let class = new
            .status
            .as_ref()
            .and_then(|status| status.qos_class.as_deref())
            .unwrap_or("");
        errors.push(invalid(
            &path,
            class,
            "Pod QOS Class may not change as a result of resizing",
        ));
    }
    let statuses = old
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let running = statuses.into_iter().find(|container| {
        container
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some())
    });
    if running.is_some_and(|container| container.resources.is_none()) {
        errors.push(forbidden(
            &path,
            "Pod running on node without support for resize",
        ));
    }
    let mut masked = new_spec.clone();
    validate_pod_level_resize(&mut masked, old_spec, &path, errors);
    if !validate_order(new_spec, old_spec, &path, errors) {
        return;
    }
    for (field, new, old) in [
        (
            "containers",
            new_spec.containers.as_slice(),
            old_spec.containers.as_slice(),
        ),
        (
            "initContainers",
            slice(&new_spec.init_containers),
            slice(&old_spec.init_containers),
        ),
    ] {
        let list_path = path.child(field);
        for (index, (new, old)) in new.iter().zip(old).enumerate() {
            let container_path = list_path.index(index);
            validate_nothing_removed(
                new.resources.as_ref(),
                old.resources.as_ref(),
                "resource",
                &container_path.child("resources"),
                errors,
            );
        }
    }
    for (container, old) in masked.containers.iter_mut().zip(&old_spec.containers) {
        mask_cpu_and_memory(container, old);
        if container != old {
            errors.push(forbidden(
                &path,
                "only cpu and memory resources are mutable",
            ));
        }
    }
    let init_path = path.child("initContainers");
    for (index, (container, old)) in masked
        .init_containers
        .iter_mut()
        .flatten()
        .zip(slice(&old_spec.init_containers))
        .enumerate()
    {
        let modified = container != old;
        let restartable = is_restartable_init(container);
        mask_cpu_and_memory(container, old);
        if container != old {
            let detail = "only cpu and memory resources for init or sidecar containers are mutable";
            errors.push(forbidden(&init_path.index(index), detail));
        }
        let restarts = container
            .resize_policy
            .iter()
            .flatten()
            .filter(|policy| policy.restart_policy == "RestartContainer");
        if modified && !restartable {
            for _ in restarts {
                let detail = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
                errors.push(forbidden(&init_path.index(index), detail));
            }
        }
    }
    if errors.is_empty() && masked != *old_spec {
        errors.push(forbidden(
            &path,
            "only cpu and memory resources are mutable",
        ));
    }
}

fn validate_order(new: &PodSpec, old: &PodSpec, path: &Path<'_>, errors: &mut ErrorList) -> bool {
    let before = errors.len();
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
                format!("{field} may not be added or removed on resize"),
            ));
            continue;
        }
        for (index, _) in new
            .iter()
            .zip(old)
            .enumerate()
            .filter(|(_, (new, old))| new.name != old.name)
        {
            errors.push(forbidden(
                &path.index(index).child("name"),
                format!("{field} may not be renamed or reordered on resize"),
            ));
        }
    }
    errors.len() == before
}

fn validate_nothing_removed(
    new: Option<&ResourceRequirements>,
    old: Option<&ResourceRequirements>,
    what: &str,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let lists = |requirements: Option<&ResourceRequirements>| {
        (
            requirements
                .and_then(|requirements| requirements.requests.clone())
                .unwrap_or_default(),
            requirements
                .and_then(|requirements| requirements.limits.clone())
                .unwrap_or_default(),
        )
    };
    let ((new_requests, new_limits), (old_requests, old_limits)) = (lists(new), lists(old));
    let lost = |new: &ResourceList, old: &ResourceList| {
        old.keys().any(|resource| !new.contains_key(resource))
    };
    if lost(&new_requests, &old_requests) {
        errors.push(forbidden(
            &path.child("requests"),
            format!("{what} requests cannot be removed"),
        ));
    }
    if lost(&new_limits, &old_limits) {
        errors.push(forbidden(
            &path.child("limits"),
            format!("{what} limits cannot be removed"),
        ));
    }
}

fn validate_pod_level_resize(
    masked: &mut PodSpec,
    old: &PodSpec,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let path_of_resources = path.child("resources");
    match (&mut masked.resources, &old.resources) {
        (None, None) => return,
        (None, Some(_)) => {
            errors.push(forbidden(
                &path_of_resources,
                "pod-level resources cannot be removed",
            ));
            return;
        }
        (Some(new), old) => {
            validate_nothing_removed(
                Some(new),
                old.as_ref(),
                "pod-level resource",
                &path_of_resources,
                errors,
            );
            let empty = ResourceRequirements::default();
            let before = old.as_ref().unwrap_or(&empty);
            new.requests = with_cpu_and_memory_of(new.requests.as_ref(), before.requests.as_ref());
            new.limits = with_cpu_and_memory_of(new.limits.as_ref(), before.limits.as_ref());
        }
    }
    if old.resources.is_none() && masked.resources == Some(ResourceRequirements::default()) {
        masked.resources = None;
    }
    if masked.resources != old.resources {
        errors.push(forbidden(
            path,
            "only cpu and memory resources are mutable at pod-level",
        ));
    }
}

fn mask_cpu_and_memory(container: &mut Container, old: &Container) {
    let empty = ResourceRequirements::default();
    let (new, old) = (
        container.resources.clone().unwrap_or_default(),
        old.resources.as_ref().unwrap_or(&empty),
    );
    container.resources = Some(ResourceRequirements {
        claims: new.claims,
        limits: with_cpu_and_memory_of(new.limits.as_ref(), old.limits.as_ref()),
        requests: with_cpu_and_memory_of(new.requests.as_ref(), old.requests.as_ref()),
    });
}

/// `new` with CPU and memory as in `old`; an empty list is none.
fn with_cpu_and_memory_of(
    new: Option<&ResourceList>,
    old: Option<&ResourceList>,
) -> Option<ResourceList> {
    let mut list = new.cloned().unwrap_or_default();
    for resource in ["cpu", "memory"] {
        list.remove(resource);
        if let Some(text) = old.and_then(|old| old.get(resource)) {
            list.insert(resource.to_string(), text.clone());
        }
    }
    (!list.is_empty()).then_some(list)
}

fn validate_status(new: &Pod, old: &Pod, old_spec: &PodSpec, errors: &mut ErrorList) {
    let empty = PodStatus::default();
    let (new_status, old_status) = (
        new.status.as_ref().unwrap_or(&empty),
        old.status.as_ref().unwrap_or(&empty),
    );
    let path = root("status");
    let conditions_path = path.child("conditions");
    for (index, condition) in new_status.conditions.iter().flatten().enumerate() {
        let path = conditions_path.index(index);
        if let Some(generation) = condition
            .observed_generation
            .filter(|generation| *generation < 0)
        {
            errors.push(invalid(
                &path.child("observedGeneration"),
                &generation,
                "must be a non-negative integer",
            ));
        }
        if !matches!(
            condition.type_.as_str(),
            "PodScheduled" | "Ready" | "Initialized"
        ) {
            invalid_each(
                errors,
                &path.child("Type"),
                &condition.type_,
                name::qualified_name(&condition.type_),
            );
        }
    }
    let node = new_status.nominated_node_name.as_deref().unwrap_or("");
    let old_node = old_status.nominated_node_name.as_deref().unwrap_or("");
    if node != old_node && !node.is_empty() {
        let path = path.child("nominatedNodeName");
        invalid_each(errors, &path, node, name::dns1123_subdomain(node));
        if old_spec
            .node_name
            .as_deref()
            .is_some_and(|node| !node.is_empty())
        {
            errors.push(forbidden(
                &path,
                "may not be set on pods that are already bound to a node",
            ));
        }
    }
    if let Some(generation) = new_status
        .observed_generation
        .filter(|generation| *generation < 0)
    {
        errors.push(invalid(
            &path.child("observedGeneration"),
            &generation,
            "must be a non-negative integer",
        ));
    }
    if new_status.qos_class != old_status.qos_class {
        errors.push(invalid(
            &path.child("qosClass"),
            new_status.qos_class.as_deref().unwrap_or(""),
            IMMUTABLE,
        ));
    }
    for (field, new, old, of_init) in [
        (
            "containerStatuses",
            &new_status.container_statuses,
            &old_status.container_statuses,
            false,
        ),
        (
            "initContainerStatuses",
            &new_status.init_container_statuses,
            &old_status.init_container_statuses,
            true,
        ),
    ] {
        validate_restarts(
            slice(new),
            slice(old),
            old_spec,
            of_init,
            &path.child(field),
            errors,
        );
    }
    validate_no_restart(
        slice(&new_status.ephemeral_container_statuses),
        slice(&old_status.ephemeral_container_statuses),
        &path.child("ephemeralContainerStatuses"),
        errors,
    );
    let new_ips: Vec<&str> = new_status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .collect();
    let old_ips: Vec<&str> = old_status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .collect();
    validate_ips(
        &new_ips,
        &old_ips,
        &new_status.pod_ips,
        &path.child("podIPs"),
        errors,
    );
    let new_hosts: Vec<&str> = new_status
        .host_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .collect();
    let old_hosts: Vec<&str> = old_status
        .host_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .collect();
    let hosts_path = path.child("hostIPs");
    if let Some(first) = new_hosts
        .first()
        .filter(|first| new_status.host_ip.as_deref() != Some(first))
    {
        errors.push(invalid(
            &hosts_path.index(0).child("ip"),
            first,
            "must be equal to `hostIP`",
        ));
    }
    validate_ips(
        &new_hosts,
        &old_hosts,
        &new_status.host_ips,
        &hosts_path,
        errors,
    );
}

fn validate_ips<T: Serialize>(
    new: &[&str],
    old: &[&str],
    shown: &T,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (index, text) in new.iter().enumerate() {
        ip::validate(text, old, &path.index(index), errors);
    }
    if new.len() > 2 || (new.len() == 2 && !ip::is_dual_stack(new.iter().copied())) {
        errors.push(invalid(
            path,
            shown,
            "may specify no more than one IP for each IP family",
        ));
    }
}

/// A container that has ended runs again only where a restart policy says so.
fn validate_restarts(
    new: &[ContainerStatus],
    old: &[ContainerStatus],
    spec: &PodSpec,
    of_init: bool,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let restarts_all = |container: &Container| {
        container
            .restart_policy_rules
            .iter()
            .flatten()
            .any(|rule| rule.action == "RestartAllContainers")
    };
    if containers.into_iter().any(restarts_all) {
        return;
    }
    let list = if of_init {
        slice(&spec.init_containers)
    } else {
        &spec.containers
    };
    for (index, status) in old.iter().enumerate() {
        let Some(ended) = status
            .state
            .as_ref()
            .and_then(|state| state.terminated.as_ref())
        else {
            continue;
        };
        let Some(now) = new.iter().find(|new| new.name == status.name) else {
            continue;
        };
        if now
            .state
            .as_ref()
            .is_some_and(|state| state.terminated.is_some())
        {
            continue;
        }
        let container = list.iter().find(|container| container.name == status.name);
        if !container.is_some_and(|container| should_restart(container, spec, ended.exit_code)) {
            errors.push(forbidden(
                &path.index(index).child("state"),
                "may not be transitioned to non-terminated state",
            ));
        }
    }
}

fn validate_no_restart(
    new: &[ContainerStatus],
    old: &[ContainerStatus],
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let ended = |status: &ContainerStatus| {
        status
            .state
            .as_ref()
            .is_some_and(|state| state.terminated.is_some())
    };
    for (index, status) in old.iter().enumerate().filter(|(_, status)| ended(status)) {
        if new.iter().any(|new| new.name == status.name && !ended(new)) {
            errors.push(forbidden(
                &path.index(index).child("state"),
                "may not be transitioned to non-terminated state",
            ));
        }
    }
}

/// Whether a container that ended with `exit_code` is started again: by its rules, its policy, or the pod's.
fn should_restart(container: &Container, spec: &PodSpec, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else {
            continue;
        };
        let listed = codes
            .values
            .as_ref()
            .is_some_and(|values| values.contains(&exit_code));
        let applies = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if applies && rule.action == "Restart" {
            return true;
        }
    }
    let policy = container
        .restart_policy
        .as_deref()
        .or(spec.restart_policy.as_deref())
        .unwrap_or("");
    match policy {
        "Always" => true,
        "OnFailure" => exit_code != 0,
        _ => false,
    }
}
