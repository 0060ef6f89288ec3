//! Validation of what a kubelet reports: conditions, addresses, and containers that do not come back to life.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};
use serde::Serialize;

use super::containers::slice;
use crate::error::{ErrorList, forbidden, invalid, invalid_each};
use crate::ip;
use crate::metadata::IMMUTABLE;
use crate::name;
use crate::path::{Path, root};

pub(super) fn validate(new: &Pod, old: &Pod, old_spec: &PodSpec, errors: &mut ErrorList) {
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
