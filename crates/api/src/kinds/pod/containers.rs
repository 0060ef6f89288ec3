//! Validation of containers of all three sorts: names, images, ports, environment, mounts, probes, lifecycle.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerResizePolicy, ContainerRestartRule, EphemeralContainer,
    Volume, VolumeDevice, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::env::{validate_env, validate_env_from};
use super::probes::validate_running;
use super::security;
use super::volumes::{has_backsteps, validate_local_descending_path};
use crate::error::{
    ErrorList, duplicate, forbidden, invalid, invalid_each, not_found, not_supported, required,
    too_many,
};
use crate::kinds::resources::{Scope, validate_requirements};
use crate::name;
use crate::path::Path;

/// What the rules of a container depend on besides the container.
pub(crate) struct Surroundings<'a> {
    /// The valid volumes of the pod by name.
    pub volumes: BTreeMap<&'a str, &'a Volume>,
    pub claim_names: BTreeSet<&'a str>,
    pub grace_period_seconds: Option<i64>,
    pub restart_policy: &'a str,
    /// The pod shares the host's user namespace.
    pub host_users: bool,
    pub os: Option<&'a str>,
}

pub(super) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) fn validate_containers(
    containers: &[Container],
    around: &Surroundings<'_>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if containers.is_empty() {
        errors.push(required(path, ""));
        return;
    }
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        validate_common(container, around, &path, errors);
        if containers[..index]
            .iter()
            .any(|other| other.name == container.name)
        {
            errors.push(duplicate(&path.child("name"), &container.name));
        }
        validate_running(container, around, &path, errors);
        validate_restart_rules(container, &path, errors);
    }
    validate_host_port_conflicts(containers, path, errors);
}

pub(super) fn validate_init_containers(
    containers: &[Container],
    regular: &[Container],
    around: &Surroundings<'_>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let mut names: HashSet<&str> = regular
        .iter()
        .map(|container| container.name.as_str())
        .collect();
    for (index, container) in containers.iter().enumerate() {
        let list_path = path;
        let path = path.index(index);
        validate_common(container, around, &path, errors);
        let rules = container.restart_policy_rules.as_deref().unwrap_or(&[]);
        if container.restart_policy.is_some() {
            validate_restart_rules(container, &path, errors);
        } else if !rules.is_empty() {
            errors.push(required(
                &path.child("restartPolicy"),
                "must specify restartPolicy when restart rules are used",
            ));
        }
        if names.contains(container.name.as_str()) {
            errors.push(duplicate(&path.child("name"), &container.name));
        } else if !container.name.is_empty() {
            names.insert(&container.name);
        }
        // Init containers run one by one: ports clash only within one of them.
        validate_host_port_conflicts(std::slice::from_ref(container), list_path, errors);
        let restartable = container.restart_policy.as_deref() == Some("Always");
        if restartable {
            validate_running(container, around, &path, errors);
        } else {
            for (field, is_set) in [
                ("lifecycle", container.lifecycle.is_some()),
                ("livenessProbe", container.liveness_probe.is_some()),
                ("readinessProbe", container.readiness_probe.is_some()),
                ("startupProbe", container.startup_probe.is_some()),
            ] {
                if is_set {
                    errors.push(forbidden(
                        &path.child(field),
                        "may not be set for init containers without restartPolicy=Always",
                    ));
                }
            }
            for (policy_index, policy) in container.resize_policy.iter().flatten().enumerate() {
                if policy.restart_policy == "RestartContainer" {
                    errors.push(invalid(
                        &path
                            .child("resizePolicy")
                            .index(policy_index)
                            .child("restartPolicy"),
                        &policy.restart_policy,
                        "must not be set to 'RestartContainer' for non-sidecar initContainers",
                    ));
                }
            }
        }
    }
}

pub(super) fn validate_ephemeral_containers(
    ephemeral: &[EphemeralContainer],
    others: &[&[Container]],
    around: &Surroundings<'_>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let other_names: HashSet<&str> = others
        .iter()
        .copied()
        .flatten()
        .map(|container| container.name.as_str())
        .collect();
    let mut names = other_names.clone();
    for (index, container) in ephemeral.iter().enumerate() {
        let path = path.index(index);
        let common = as_container(container);
        validate_common(&common, around, &path, errors);
        validate_only_for_pod(&common, &path, errors);
        if !names.insert(&container.name) {
            errors.push(duplicate(&path.child("name"), &container.name));
        }
        let target = container.target_container_name.as_deref().unwrap_or("");
        if !target.is_empty() && !other_names.contains(target) {
            errors.push(not_found(&path.child("targetContainerName"), target));
        }
        let resources_set = container.resources.as_ref().is_some_and(|resources| {
            resources
                .limits
                .as_ref()
                .is_some_and(|list| !list.is_empty())
                || resources
                    .requests
                    .as_ref()
                    .is_some_and(|list| !list.is_empty())
                || resources.claims.is_some()
        });
        for (field, is_set) in [
            ("ports", container.ports.is_some()),
            ("resources", resources_set),
            ("resizePolicy", container.resize_policy.is_some()),
            ("restartPolicy", container.restart_policy.is_some()),
            (
                "restartPolicyRules",
                container.restart_policy_rules.is_some(),
            ),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
            ("lifecycle", container.lifecycle.is_some()),
        ] {
            if is_set {
                errors.push(forbidden(
                    &path.child(field),
                    "cannot be set for an Ephemeral Container",
                ));
            }
        }
        for (mount_index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let mounts_path = path.child("volumeMounts");
            let mount_path = mounts_path.index(mount_index);
            for (field, text) in [
                ("subPath", &mount.sub_path),
                ("subPathExpr", &mount.sub_path_expr),
            ] {
                if text.as_deref().is_some_and(|text| !text.is_empty()) {
                    errors.push(forbidden(
                        &mount_path.child(field),
                        "cannot be set for an Ephemeral Container",
                    ));
                }
            }
        }
    }
}

/// An ephemeral container's fields as those of a container, for the rules that both share.
pub(super) fn as_container(container: &EphemeralContainer) -> Container {
    let container = container.clone();
    Container {
        args: container.args,
        command: container.command,
        env: container.env,
        env_from: container.env_from,
        image: container.image,
        image_pull_policy: container.image_pull_policy,
        lifecycle: container.lifecycle,
        liveness_probe: container.liveness_probe,
        name: container.name,
        ports: container.ports,
        readiness_probe: container.readiness_probe,
        resize_policy: container.resize_policy,
        resources: container.resources,
        restart_policy: container.restart_policy,
        restart_policy_rules: container.restart_policy_rules,
        security_context: container.security_context,
        startup_probe: container.startup_probe,
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        termination_message_path: container.termination_message_path,
        termination_message_policy: container.termination_message_policy,
        tty: container.tty,
        volume_devices: container.volume_devices,
        volume_mounts: container.volume_mounts,
        working_dir: container.working_dir,
    }
}

/// Rules of pods that templates are spared for compatibility.
pub(super) fn validate_only_for_pod(
    container: &Container,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let image = container.image.as_deref().unwrap_or("");
    if image.trim().len() != image.len() {
        errors.push(invalid(
            &path.child("image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
}

fn validate_common(
    container: &Container,
    around: &Surroundings<'_>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if container.name.is_empty() {
        errors.push(required(&path.child("name"), ""));
    } else {
        invalid_each(
            errors,
            &path.child("name"),
            &container.name,
            name::dns1123_label(&container.name),
        );
    }
    if container.image.as_deref().unwrap_or("").is_empty() {
        errors.push(required(&path.child("image"), ""));
    }
    match container
        .termination_message_policy
        .as_deref()
        .unwrap_or("")
    {
        "File" | "FallbackToLogsOnError" => {}
        "" => errors.push(required(&path.child("terminationMessagePolicy"), "")),
        other => {
            let supported = &["File", "FallbackToLogsOnError"];
            errors.push(not_supported(
                &path.child("terminationMessagePolicy"),
                other,
                supported,
            ));
        }
    }
    let (mounts, devices) = (
        slice(&container.volume_mounts),
        slice(&container.volume_devices),
    );
    validate_ports(slice(&container.ports), &path.child("ports"), errors);
    validate_env(slice(&container.env), &path.child("env"), errors);
    validate_env_from(slice(&container.env_from), &path.child("envFrom"), errors);
    validate_mounts(
        mounts,
        devices,
        container,
        around,
        &path.child("volumeMounts"),
        errors,
    );
    validate_devices(
        devices,
        mounts,
        around,
        &path.child("volumeDevices"),
        errors,
    );
    validate_pull_policy(
        container.image_pull_policy.as_deref(),
        &path.child("imagePullPolicy"),
        errors,
    );
    if let Some(resources) = &container.resources {
        validate_requirements(
            resources,
            Scope::Container,
            &around.claim_names,
            &path.child("resources"),
            errors,
        );
    }
    validate_resize_policy(
        slice(&container.resize_policy),
        around.restart_policy,
        &path.child("resizePolicy"),
        errors,
    );
    if let Some(context) = &container.security_context {
        security::validate_container(
            context,
            around.host_users,
            &path.child("securityContext"),
            errors,
        );
    }
}

pub(super) fn slice<T>(list: &Option<Vec<T>>) -> &[T] {
    list.as_deref().unwrap_or(&[])
}

fn validate_ports(ports: &[ContainerPort], path: &Path<'_>, errors: &mut ErrorList) {
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let complaints = name::port_name(port_name);
            if complaints.is_empty()
                && ports[..index]
                    .iter()
                    .any(|other| other.name.as_deref() == Some(port_name))
            {
                errors.push(duplicate(&path.child("name"), port_name));
            }
            invalid_each(errors, &path.child("name"), port_name, complaints);
        }
        if port.container_port == 0 {
            errors.push(required(&path.child("containerPort"), ""));
        } else {
            validate_port_number(port.container_port, &path.child("containerPort"), errors);
        }
        if let Some(host_port) = port.host_port.filter(|port| *port != 0) {
            validate_port_number(host_port, &path.child("hostPort"), errors);
        }
        match port.protocol.as_deref().unwrap_or("") {
            "" => errors.push(required(&path.child("protocol"), "")),
            protocol if PROTOCOLS.contains(&protocol) => {}
            protocol => errors.push(not_supported(&path.child("protocol"), protocol, PROTOCOLS)),
        }
    }
}

pub(crate) fn validate_port_number(port: i32, path: &Path<'_>, errors: &mut ErrorList) {
    errors.extend(
        name::port_number(i64::from(port))
            .into_iter()
            .map(|text| invalid(path, &port, text)),
    );
}

pub(crate) fn validate_port_number_or_name(
    port: &IntOrString,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    match port {
        IntOrString::Int(number) => validate_port_number(*number, path, errors),
        IntOrString::String(port_name) => {
            invalid_each(errors, path, port_name, name::port_name(port_name))
        }
    }
}

fn validate_host_port_conflicts(containers: &[Container], path: &Path<'_>, errors: &mut ErrorList) {
    let mut taken = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        for (port_index, port) in container.ports.iter().flatten().enumerate() {
            let Some(host_port) = port.host_port.filter(|port| *port != 0) else {
                continue;
            };
            let (protocol, ip) = (
                port.protocol.as_deref().unwrap_or(""),
                port.host_ip.as_deref().unwrap_or(""),
            );
            if !taken.insert((protocol, ip, host_port)) {
                let path = path.index(index);
                let ports_path = path.child("ports");
                errors.push(duplicate(
                    &ports_path.index(port_index).child("hostPort"),
                    &format!("{protocol}/{ip}/{host_port}"),
                ));
            }
        }
    }
}

fn validate_mounts(
    mounts: &[VolumeMount],
    devices: &[VolumeDevice],
    container: &Container,
    around: &Surroundings<'_>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (index, mount) in mounts.iter().enumerate() {
        let list_path = path;
        let path = path.index(index);
        if mount.name.is_empty() {
            errors.push(required(&path.child("name"), ""));
        }
        if !around.volumes.contains_key(mount.name.as_str()) {
            errors.push(not_found(&path.child("name"), &mount.name));
        }
        if mount.mount_path.is_empty() {
            errors.push(required(&path.child("mountPath"), ""));
        }
        if mounts[..index]
            .iter()
            .any(|other| other.mount_path == mount.mount_path)
        {
            errors.push(invalid(
                &path.child("mountPath"),
                &mount.mount_path,
                "must be unique",
            ));
        }
        if devices.iter().any(|device| device.name == mount.name) {
            errors.push(invalid(
                &path.child("name"),
                &mount.name,
                "must not already exist in volumeDevices",
            ));
        }
        if devices
            .iter()
            .any(|device| device.device_path == mount.mount_path)
        {
            errors.push(invalid(
                &path.child("mountPath"),
                &mount.mount_path,
                "must not already exist as a path in volumeDevices",
            ));
        }
        let (sub_path, expression) = (
            mount.sub_path.as_deref().unwrap_or(""),
            mount.sub_path_expr.as_deref().unwrap_or(""),
        );
        if !sub_path.is_empty() {
            validate_local_descending_path(sub_path, &list_path.child("subPath"), errors);
        }
        if !expression.is_empty() {
            if !sub_path.is_empty() {
                errors.push(invalid(
                    &path.child("subPathExpr"),
                    expression,
                    "subPathExpr and subPath are mutually exclusive",
                ));
            }
            validate_local_descending_path(expression, &list_path.child("subPathExpr"), errors);
        }
        validate_mount_propagation(
            mount,
            container,
            &list_path.child("mountPropagation"),
            errors,
        );
        validate_recursive_read_only(mount, &list_path.child("recursiveReadOnly"), errors);
    }
}

fn validate_mount_propagation(
    mount: &VolumeMount,
    container: &Container,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let Some(propagation) = mount.mount_propagation.as_deref() else {
        return;
    };
    const SUPPORTED: &[&str] = &["Bidirectional", "HostToContainer", "None"];
    if !SUPPORTED.contains(&propagation) {
        errors.push(not_supported(path, propagation, SUPPORTED));
    }
    let privileged = container
        .security_context
        .as_ref()
        .and_then(|context| context.privileged)
        == Some(true);
    if propagation == "Bidirectional" && !privileged {
        errors.push(forbidden(
            path,
            "Bidirectional mount propagation is available only to privileged containers",
        ));
    }
}

fn validate_recursive_read_only(mount: &VolumeMount, path: &Path<'_>, errors: &mut ErrorList) {
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if mount.read_only != Some(true) {
                errors.push(forbidden(
                    path,
                    "may only be specified when readOnly is true",
                ));
            }
            if mount
                .mount_propagation
                .as_deref()
                .is_some_and(|propagation| propagation != "None")
            {
                errors.push(forbidden(
                    path,
                    "may only be specified when mountPropagation is None or not specified",
                ));
            }
        }
        Some(other) => errors.push(not_supported(
            path,
            other,
            &["Disabled", "Enabled", "IfPossible"],
        )),
    }
}

fn validate_devices(
    devices: &[VolumeDevice],
    mounts: &[VolumeMount],
    around: &Surroundings<'_>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (index, device) in devices.iter().enumerate() {
        let path = path.index(index);
        let (name_path, device_path_path) = (path.child("name"), path.child("devicePath"));
        let (name, device_path) = (&device.name, &device.device_path);
        if name.is_empty() {
            errors.push(required(&name_path, ""));
        } else if devices[..index].iter().any(|other| other.name == *name) {
            errors.push(invalid(&name_path, name, "must be unique"));
        }
        match around.volumes.get(name.as_str()) {
            None => errors.push(not_found(&name_path, name)),
            Some(volume)
                if volume.persistent_volume_claim.is_none() && volume.ephemeral.is_none() =>
            {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(invalid(&name_path, name, detail));
            }
            Some(_) => {}
        }
        if device_path.is_empty() {
            errors.push(required(&device_path_path, ""));
        }
        if devices[..index]
            .iter()
            .any(|other| other.device_path == *device_path)
        {
            errors.push(invalid(&device_path_path, device_path, "must be unique"));
        }
        if has_backsteps(device_path) {
            errors.push(invalid(
                &device_path_path,
                device_path,
                "can not contain backsteps ('..')",
            ));
        }
        if mounts.iter().any(|mount| mount.name == *name) {
            errors.push(invalid(
                &name_path,
                name,
                "must not already exist in volumeMounts",
            ));
        }
        if mounts.iter().any(|mount| mount.mount_path == *device_path) {
            errors.push(invalid(
                &device_path_path,
                device_path,
                "must not already exist as a path in volumeMounts",
            ));
        }
    }
}

pub(super) fn validate_pull_policy(policy: Option<&str>, path: &Path<'_>, errors: &mut ErrorList) {
    match policy.unwrap_or("") {
        "Always" | "IfNotPresent" | "Never" => {}
        "" => errors.push(required(path, "")),
        other => errors.push(not_supported(
            path,
            other,
            &["Always", "IfNotPresent", "Never"],
        )),
    }
}

fn validate_resize_policy(
    policies: &[ContainerResizePolicy],
    pod_restart_policy: &str,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (index, policy) in policies.iter().enumerate() {
        if policies[..index]
            .iter()
            .any(|other| other.resource_name == policy.resource_name)
        {
            errors.push(duplicate(&path.index(index), &policy.resource_name));
        }
        match policy.resource_name.as_str() {
            "cpu" | "memory" => {}
            "" => errors.push(required(path, "")),
            other => errors.push(not_supported(path, other, &["cpu", "memory"])),
        }
        match policy.restart_policy.as_str() {
            "NotRequired" | "RestartContainer" => {}
            "" => errors.push(required(path, "")),
            other => errors.push(not_supported(
                path,
                other,
                &["NotRequired", "RestartContainer"],
            )),
        }
        if pod_restart_policy == "Never" && policy.restart_policy != "NotRequired" {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.push(invalid(path, &policy.restart_policy, detail));
        }
    }
}

fn validate_restart_rules(container: &Container, path: &Path<'_>, errors: &mut ErrorList) {
    let rules: &[ContainerRestartRule] = slice(&container.restart_policy_rules);
    match container.restart_policy.as_deref() {
        None if rules.is_empty() => return,
        None => {
            errors.push(required(
                &path.child("restartPolicy"),
                "must specify restartPolicy when restart rules are used",
            ));
        }
        Some("Always" | "Never" | "OnFailure") => {}
        Some(other) => {
            errors.push(not_supported(
                &path.child("restartPolicy"),
                other,
                &["Always", "Never", "OnFailure"],
            ));
        }
    }
    let rules_path = path.child("restartPolicyRules");
    if rules.len() > 20 {
        errors.push(too_many(&rules_path, rules.len(), 20));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = rules_path.index(index);
        if !matches!(rule.action.as_str(), "Restart" | "RestartAllContainers") {
            errors.push(not_supported(
                &path.child("action"),
                &rule.action,
                &["Restart", "RestartAllContainers"],
            ));
        }
        let codes_path = path.child("exitCodes");
        match &rule.exit_codes {
            None => errors.push(required(&codes_path, "must be specified")),
            Some(codes) => {
                if !matches!(codes.operator.as_str(), "In" | "NotIn") {
                    errors.push(not_supported(
                        &codes_path.child("operator"),
                        &codes.operator,
                        &["In", "NotIn"],
                    ));
                }
                let count = codes.values.as_ref().map_or(0, Vec::len);
                if count > 255 {
                    errors.push(too_many(&codes_path.child("values"), count, 255));
                }
            }
        }
    }
}
