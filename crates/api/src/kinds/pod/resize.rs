//! The resize endpoint: CPU and memory of containers and of the pod, nothing else.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};

use super::containers::slice;
use super::spec;
use super::update::keep_metadata;
use crate::error::{ErrorList, forbidden, invalid};
use crate::kinds::resources::ResourceList;
use crate::path::{Path, root};
use crate::pod::{is_restartable_init, qos_class, qos_class_of};

pub(super) fn prepare(new: &mut Pod, old: &Pod) {
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

pub(super) fn validate(
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
