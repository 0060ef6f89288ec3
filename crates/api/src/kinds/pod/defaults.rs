//! Defaults of pod specs, alone and in templates, and the form in which Go would write them back.
//!
//! Two steps: [`fill_spec`] is shared by pods and templates, [`fill_pod`] adds what only a pod
//! itself gets (requests from limits, host ports, service links).

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EmptyDirVolumeSource, EphemeralContainer, HTTPGetAction, Lifecycle,
    ObjectFieldSelector, Pod, PodSpec, PodStatus, PodTemplateSpec, Probe, ResourceFieldSelector,
    ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::empty::drop_empty;
use crate::error::DecodeError;
use crate::kinds::resources::{self, finish_list, finish_requirements};
use crate::pod::{aggregate_container_limits, aggregate_container_requests, qos_class};
use crate::quantity;

/// Mode of the files of configMap, secret, downwardAPI and projected volumes: 0644.
const VOLUME_FILE_MODE: i32 = 0o644;

fn default_to<T>(place: &mut Option<T>, value: impl FnOnce() -> T) {
    if place.is_none() {
        *place = Some(value());
    }
}

fn default_text(place: &mut Option<String>, value: &str) {
    if place.as_deref().unwrap_or("").is_empty() {
        *place = Some(value.to_string());
    }
}

/// Checks the quantities of a spec and makes them canonical.
pub(crate) fn finish_spec(spec: &mut PodSpec) -> Result<(), DecodeError> {
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        finish_requirements(container.resources.as_mut())?;
        for variable in container.env.iter_mut().flatten() {
            let reference = variable
                .value_from
                .as_mut()
                .and_then(|source| source.resource_field_ref.as_mut());
            finish_resource_field(reference)?;
        }
    }
    for container in spec.ephemeral_containers.iter_mut().flatten() {
        finish_requirements(container.resources.as_mut())?;
        for variable in container.env.iter_mut().flatten() {
            let reference = variable
                .value_from
                .as_mut()
                .and_then(|source| source.resource_field_ref.as_mut());
            finish_resource_field(reference)?;
        }
    }
    finish_list(&mut spec.overhead)?;
    finish_requirements(spec.resources.as_mut())?;
    for volume in spec.volumes.iter_mut().flatten() {
        if let Some(limit) = volume
            .empty_dir
            .as_mut()
            .and_then(|source| source.size_limit.as_mut())
        {
            quantity::canonicalize(&mut limit.0).map_err(resources::decode_error)?;
        }
        let template = volume
            .ephemeral
            .as_mut()
            .and_then(|source| source.volume_claim_template.as_mut());
        if let Some(resources) = template.and_then(|template| template.spec.resources.as_mut()) {
            finish_list(&mut resources.limits)?;
            finish_list(&mut resources.requests)?;
        }
        let projected = volume
            .projected
            .iter_mut()
            .flat_map(|source| source.sources.iter_mut().flatten());
        let files = projected
            .filter_map(|source| source.downward_api.as_mut())
            .flat_map(|source| source.items.iter_mut().flatten());
        let own_files = volume
            .downward_api
            .iter_mut()
            .flat_map(|source| source.items.iter_mut().flatten());
        for file in files.chain(own_files) {
            finish_resource_field(file.resource_field_ref.as_mut())?;
        }
    }
    Ok(())
}

fn finish_resource_field(reference: Option<&mut ResourceFieldSelector>) -> Result<(), DecodeError> {
    match reference.and_then(|reference| reference.divisor.as_mut()) {
        Some(divisor) => quantity::canonicalize(&mut divisor.0).map_err(resources::decode_error),
        None => Ok(()),
    }
}

pub(crate) fn finish_template(template: &mut PodTemplateSpec) -> Result<(), DecodeError> {
    template.spec.as_mut().map_or(Ok(()), finish_spec)
}

pub(crate) fn finish_status(status: &mut PodStatus) -> Result<(), DecodeError> {
    finish_list(&mut status.allocated_resources)?;
    finish_requirements(status.resources.as_mut())?;
    let lists = [
        &mut status.container_statuses,
        &mut status.init_container_statuses,
        &mut status.ephemeral_container_statuses,
    ];
    for container in lists.into_iter().flatten().flatten() {
        finish_list(&mut container.allocated_resources)?;
        finish_requirements(container.resources.as_mut())?;
    }
    Ok(())
}

/// Defaults of a template; its metadata is there even when empty, as Go writes it.
pub(crate) fn fill_template(template: &mut PodTemplateSpec) {
    fill_metadata(template.metadata.get_or_insert_default());
    fill_spec(template.spec.get_or_insert_default());
}

pub(crate) fn fill_metadata(meta: &mut ObjectMeta) {
    drop_empty!(
        meta.annotations,
        meta.finalizers,
        meta.generate_name,
        meta.generation,
        meta.labels,
        meta.managed_fields,
        meta.name,
        meta.namespace,
        meta.owner_references,
        meta.resource_version,
        meta.self_link,
        meta.uid,
    );
}

/// What a pod gets beyond its spec's defaults.
pub(super) fn fill_pod(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    fill_spec(spec);
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        requests_from_limits(container);
    }
    if spec.resources.is_some() {
        huge_page_limits_of_pod(spec);
        requests_of_pod(spec);
    }
    default_to(&mut spec.enable_service_links, || true);
    if spec.host_network == Some(true) {
        let containers = spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten());
        for port in containers.flat_map(|container| container.ports.iter_mut().flatten()) {
            if port.host_port.is_none() && port.container_port != 0 {
                port.host_port = Some(port.container_port);
            }
        }
    }
    let qos = qos_class(spec);
    let status = pod.status.get_or_insert_default();
    fill_status(status);
    // Set once: later changes of the spec cannot move a pod to another class.
    default_text(&mut status.qos_class, qos.as_str());
}

fn requests_from_limits(container: &mut Container) {
    let Some(ResourceRequirements {
        limits: Some(limits),
        requests,
        ..
    }) = &mut container.resources
    else {
        return;
    };
    let requests = requests.get_or_insert_default();
    for (resource, limit) in limits {
        if !requests.contains_key(resource) {
            requests.insert(resource.clone(), limit.clone());
        }
    }
}

/// A pod-level limit of huge pages is the sum of the containers' where only they name it.
fn huge_page_limits_of_pod(spec: &mut PodSpec) {
    let sums = aggregate_container_limits(spec);
    let Some(resources) = spec.resources.as_mut() else {
        return;
    };
    let is_set =
        |list: &Option<resources::ResourceList>| list.as_ref().is_some_and(|list| !list.is_empty());
    if !is_set(&resources.limits) && !is_set(&resources.requests) {
        return;
    }
    for (resource, sum) in sums {
        let requested = resources
            .requests
            .as_ref()
            .is_some_and(|requests| requests.contains_key(&resource));
        if resources::is_huge_page(&resource) && !requested {
            resources
                .limits
                .get_or_insert_default()
                .entry(resource)
                .or_insert_with(|| Text(sum.to_string()));
        }
    }
}

/// Pod-level requests default to what the containers request together, else to the pod-level limits.
fn requests_of_pod(spec: &mut PodSpec) {
    let sums = aggregate_container_requests(spec);
    let Some(ResourceRequirements {
        limits: Some(limits),
        requests,
        ..
    }) = &mut spec.resources
    else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let mut filled = requests.clone().unwrap_or_default();
    for (resource, sum) in sums {
        if resources::is_pod_level(&resource) && resources::allows_overcommit(&resource) {
            filled
                .entry(resource)
                .or_insert_with(|| Text(sum.to_string()));
        }
    }
    for (resource, limit) in limits {
        if resources::is_pod_level(resource) {
            filled
                .entry(resource.clone())
                .or_insert_with(|| limit.clone());
        }
    }
    if !filled.is_empty() {
        *requests = Some(filled);
    }
}

fn fill_status(status: &mut PodStatus) {
    drop_empty!(
        status.conditions,
        status.container_statuses,
        status.ephemeral_container_statuses,
        status.host_ip,
        status.host_ips,
        status.init_container_statuses,
        status.message,
        status.nominated_node_name,
        status.observed_generation,
        status.phase,
        status.pod_ip,
        status.pod_ips,
        status.qos_class,
        status.reason,
        status.resize,
        status.resource_claim_statuses,
    );
    // The single address and the first of the list are one value in two places; the single one wins.
    match (&status.pod_ip, &mut status.pod_ips) {
        (Some(ip), Some(ips)) if ips.first().is_some_and(|first| first.ip != *ip) => {
            status.pod_ips = Some(vec![k8s_openapi::api::core::v1::PodIP { ip: ip.clone() }]);
        }
        (Some(ip), None) => {
            status.pod_ips = Some(vec![k8s_openapi::api::core::v1::PodIP { ip: ip.clone() }])
        }
        (None, Some(ips)) => status.pod_ip = ips.first().map(|first| first.ip.clone()),
        _ => {}
    }
    let lists = [
        &mut status.container_statuses,
        &mut status.init_container_statuses,
        &mut status.ephemeral_container_statuses,
    ];
    for container in lists.into_iter().flatten().flatten() {
        container.state.get_or_insert_default();
        container.last_state.get_or_insert_default();
        drop_empty!(
            container.container_id,
            container.volume_mounts,
            container.allocated_resources
        );
    }
}

/// Defaults of every pod spec.
pub(crate) fn fill_spec(spec: &mut PodSpec) {
    drop_empty!(
        spec.volumes,
        spec.init_containers,
        spec.ephemeral_containers,
        spec.node_selector,
        spec.service_account,
        spec.service_account_name,
        spec.node_name,
        spec.host_network,
        spec.host_pid,
        spec.host_ipc,
        spec.image_pull_secrets,
        spec.hostname,
        spec.subdomain,
        spec.tolerations,
        spec.host_aliases,
        spec.priority_class_name,
        spec.readiness_gates,
        spec.overhead,
        spec.topology_spread_constraints,
        spec.scheduling_gates,
        spec.resource_claims,
    );
    // The deprecated name and the name are one value in two places.
    match (&spec.service_account_name, &spec.service_account) {
        (Some(name), old) if old.as_ref() != Some(name) => {
            spec.service_account = Some(name.clone())
        }
        (None, Some(old)) => spec.service_account_name = Some(old.clone()),
        _ => {}
    }
    default_text(&mut spec.dns_policy, "ClusterFirst");
    default_text(&mut spec.restart_policy, "Always");
    default_text(&mut spec.scheduler_name, "default-scheduler");
    default_to(&mut spec.termination_grace_period_seconds, || 30);
    // Upstream's conversion reads a negative period as the shortest.
    if spec
        .termination_grace_period_seconds
        .is_some_and(|seconds| seconds < 0)
    {
        spec.termination_grace_period_seconds = Some(1);
    }
    let security = spec.security_context.get_or_insert_default();
    drop_empty!(security.supplemental_groups, security.sysctls);
    for container in &mut spec.containers {
        fill_container(container);
    }
    for container in spec.init_containers.iter_mut().flatten() {
        fill_container(container);
    }
    for container in spec.ephemeral_containers.iter_mut().flatten() {
        fill_ephemeral_container(container);
    }
    for volume in spec.volumes.iter_mut().flatten() {
        fill_volume(volume);
    }
    for toleration in spec.tolerations.iter_mut().flatten() {
        drop_empty!(
            toleration.effect,
            toleration.key,
            toleration.operator,
            toleration.value
        );
    }
}

/// Containers and ephemeral containers have the same fields in two types.
macro_rules! fill_common {
    ($container:ident) => {
        drop_empty!(
            $container.args,
            $container.command,
            $container.env,
            $container.env_from,
            $container.image,
            $container.ports,
            $container.resize_policy,
            $container.restart_policy_rules,
            $container.stdin,
            $container.stdin_once,
            $container.tty,
            $container.volume_devices,
            $container.volume_mounts,
            $container.working_dir,
        );
        if $container
            .image_pull_policy
            .as_deref()
            .unwrap_or("")
            .is_empty()
        {
            $container.image_pull_policy =
                Some(default_pull_policy($container.image.as_deref().unwrap_or("")).to_string());
        }
        default_text(
            &mut $container.termination_message_path,
            "/dev/termination-log",
        );
        default_text(&mut $container.termination_message_policy, "File");
        let resources = $container.resources.get_or_insert_default();
        drop_empty!(resources.claims);
        for port in $container.ports.iter_mut().flatten() {
            fill_port(port);
        }
        for variable in $container.env.iter_mut().flatten() {
            drop_empty!(variable.value);
            if let Some(source) = &mut variable.value_from {
                fill_field_ref(source.field_ref.as_mut());
                fill_resource_field(source.resource_field_ref.as_mut());
                if let Some(file) = &mut source.file_key_ref {
                    default_to(&mut file.optional, || false);
                }
            }
        }
        for source in $container.env_from.iter_mut().flatten() {
            drop_empty!(source.prefix);
        }
        for mount in $container.volume_mounts.iter_mut().flatten() {
            drop_empty!(mount.read_only, mount.sub_path, mount.sub_path_expr);
        }
        for probe in [
            &mut $container.liveness_probe,
            &mut $container.readiness_probe,
            &mut $container.startup_probe,
        ]
        .into_iter()
        .flatten()
        {
            fill_probe(probe);
        }
        if let Some(lifecycle) = &mut $container.lifecycle {
            fill_lifecycle(lifecycle);
        }
    };
}

fn fill_container(container: &mut Container) {
    fill_common!(container);
}

fn fill_ephemeral_container(container: &mut EphemeralContainer) {
    fill_common!(container);
    drop_empty!(container.target_container_name);
}

fn fill_port(port: &mut ContainerPort) {
    drop_empty!(port.host_ip, port.host_port, port.name);
    default_text(&mut port.protocol, "TCP");
}

fn fill_probe(probe: &mut Probe) {
    drop_empty!(
        probe.initial_delay_seconds,
        probe.timeout_seconds,
        probe.period_seconds,
        probe.success_threshold,
        probe.failure_threshold,
    );
    default_to(&mut probe.timeout_seconds, || 1);
    default_to(&mut probe.period_seconds, || 10);
    default_to(&mut probe.success_threshold, || 1);
    default_to(&mut probe.failure_threshold, || 3);
    if let Some(action) = &mut probe.http_get {
        fill_http_get(action);
    }
    if let Some(action) = &mut probe.tcp_socket {
        drop_empty!(action.host);
    }
    if let Some(action) = &mut probe.grpc {
        default_to(&mut action.service, String::new);
    }
}

fn fill_lifecycle(lifecycle: &mut Lifecycle) {
    for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop]
        .into_iter()
        .flatten()
    {
        if let Some(action) = &mut handler.http_get {
            fill_http_get(action);
        }
    }
}

fn fill_http_get(action: &mut HTTPGetAction) {
    drop_empty!(action.host, action.http_headers);
    default_text(&mut action.path, "/");
    default_text(&mut action.scheme, "HTTP");
}

fn fill_field_ref(reference: Option<&mut ObjectFieldSelector>) {
    if let Some(reference) = reference {
        default_text(&mut reference.api_version, "v1");
    }
}

fn fill_resource_field(reference: Option<&mut ResourceFieldSelector>) {
    if let Some(reference) = reference {
        drop_empty!(reference.container_name);
        default_to(&mut reference.divisor, || Text("0".to_string()));
    }
}

fn fill_volume(volume: &mut Volume) {
    if !has_source(volume) {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(source) = &mut volume.empty_dir {
        drop_empty!(source.medium);
    }
    if let Some(source) = &mut volume.host_path {
        default_to(&mut source.type_, String::new);
    }
    if let Some(source) = &mut volume.secret {
        drop_empty!(source.items, source.secret_name);
        default_to(&mut source.default_mode, || VOLUME_FILE_MODE);
    }
    if let Some(source) = &mut volume.config_map {
        drop_empty!(source.items);
        default_to(&mut source.default_mode, || VOLUME_FILE_MODE);
    }
    if let Some(source) = &mut volume.downward_api {
        drop_empty!(source.items);
        default_to(&mut source.default_mode, || VOLUME_FILE_MODE);
        for file in source.items.iter_mut().flatten() {
            fill_field_ref(file.field_ref.as_mut());
            fill_resource_field(file.resource_field_ref.as_mut());
        }
    }
    if let Some(projected) = &mut volume.projected {
        default_to(&mut projected.default_mode, || VOLUME_FILE_MODE);
        for source in projected.sources.iter_mut().flatten() {
            for file in source
                .downward_api
                .iter_mut()
                .flat_map(|source| source.items.iter_mut().flatten())
            {
                fill_field_ref(file.field_ref.as_mut());
                fill_resource_field(file.resource_field_ref.as_mut());
            }
            if let Some(token) = &mut source.service_account_token {
                drop_empty!(token.audience);
                default_to(&mut token.expiration_seconds, || 3600);
            }
        }
    }
    if let Some(source) = &mut volume.image
        && source.pull_policy.as_deref().unwrap_or("").is_empty()
    {
        source.pull_policy =
            Some(default_pull_policy(source.reference.as_deref().unwrap_or("")).to_string());
    }
    if let Some(source) = &mut volume.persistent_volume_claim {
        drop_empty!(source.read_only);
    }
    if let Some(template) = volume
        .ephemeral
        .as_mut()
        .and_then(|source| source.volume_claim_template.as_mut())
    {
        fill_metadata(template.metadata.get_or_insert_default());
        template.spec.resources.get_or_insert_default();
        default_text(&mut template.spec.volume_mode, "Filesystem");
    }
    fill_remote_volume(volume);
}

/// Volumes of particular storage systems.
fn fill_remote_volume(volume: &mut Volume) {
    if let Some(source) = &mut volume.iscsi {
        default_text(&mut source.iscsi_interface, "default");
    }
    if let Some(source) = &mut volume.rbd {
        default_text(&mut source.pool, "rbd");
        default_text(&mut source.user, "admin");
        default_text(&mut source.keyring, "/etc/ceph/keyring");
    }
    if let Some(source) = &mut volume.azure_disk {
        default_to(&mut source.caching_mode, || "ReadWrite".to_string());
        default_to(&mut source.kind, || "Shared".to_string());
        default_to(&mut source.fs_type, || "ext4".to_string());
        default_to(&mut source.read_only, || false);
    }
    if let Some(source) = &mut volume.scale_io {
        default_text(&mut source.storage_mode, "ThinProvisioned");
        default_text(&mut source.fs_type, "xfs");
    }
}

fn has_source(volume: &Volume) -> bool {
    // Destructured whole, so that a new kind of volume cannot be forgotten.
    let Volume {
        name: _,
        aws_elastic_block_store,
        azure_disk,
        azure_file,
        cephfs,
        cinder,
        config_map,
        csi,
        downward_api,
        empty_dir,
        ephemeral,
        fc,
        flex_volume,
        flocker,
        gce_persistent_disk,
        git_repo,
        glusterfs,
        host_path,
        image,
        iscsi,
        nfs,
        persistent_volume_claim,
        photon_persistent_disk,
        portworx_volume,
        projected,
        quobyte,
        rbd,
        scale_io,
        secret,
        storageos,
        vsphere_volume,
    } = volume;
    empty_dir.is_some()
        || config_map.is_some()
        || secret.is_some()
        || projected.is_some()
        || host_path.is_some()
        || downward_api.is_some()
        || persistent_volume_claim.is_some()
        || ephemeral.is_some()
        || csi.is_some()
        || image.is_some()
        || nfs.is_some()
        || iscsi.is_some()
        || fc.is_some()
        || flex_volume.is_some()
        || git_repo.is_some()
        || aws_elastic_block_store.is_some()
        || azure_disk.is_some()
        || azure_file.is_some()
        || cephfs.is_some()
        || cinder.is_some()
        || flocker.is_some()
        || gce_persistent_disk.is_some()
        || glusterfs.is_some()
        || photon_persistent_disk.is_some()
        || portworx_volume.is_some()
        || quobyte.is_some()
        || rbd.is_some()
        || scale_io.is_some()
        || storageos.is_some()
        || vsphere_volume.is_some()
}

/// `Always` for an image that may move (no tag, or `latest`), else `IfNotPresent`.
pub(crate) fn default_pull_policy(image: &str) -> &'static str {
    if tag_of(image) == "latest" {
        "Always"
    } else {
        "IfNotPresent"
    }
}

/// The tag of an image reference: `latest` where it names neither tag nor digest, empty where it is no reference.
fn tag_of(image: &str) -> &str {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let path_start = name.rfind('/').map_or(0, |slash| slash + 1);
    let (repository, tag) = match name[path_start..].split_once(':') {
        Some((last, tag)) => (&name[..path_start + last.len()], Some(tag)),
        None => (name, None),
    };
    let path = match repository.split_once('/') {
        Some((domain, path))
            if domain == "localhost"
                || domain.contains(['.', ':'])
                || domain.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            path
        }
        _ => repository,
    };
    let good_path = !path.is_empty()
        && path.split('/').all(|part| {
            let ends = |byte: Option<&u8>| {
                byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            };
            ends(part.as_bytes().first())
                && ends(part.as_bytes().last())
                && part.bytes().all(|byte| {
                    byte.is_ascii_lowercase()
                        || byte.is_ascii_digit()
                        || matches!(byte, b'.' | b'_' | b'-')
                })
        });
    let good_tag = |tag: &str| {
        tag.len() <= 128
            && tag
                .bytes()
                .next()
                .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && tag
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    match (tag, digest) {
        _ if !good_path => "",
        (Some(tag), _) if good_tag(tag) => tag,
        (Some(_), _) | (None, Some(_)) => "",
        (None, None) => "latest",
    }
}

/// A port number for a service's or probe's target, zero and the empty name counting as unset.
pub(crate) fn is_unset_port(port: Option<&IntOrString>) -> bool {
    match port {
        None => true,
        Some(IntOrString::Int(number)) => *number == 0,
        Some(IntOrString::String(name)) => name.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, expect) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/a/b", "Always"),
            ("localhost:5000/a/b:v1", "IfNotPresent"),
            ("gcr.io/google-samples/hello-app:1.0", "IfNotPresent"),
            (
                "nginx@sha256:0123456789012345678901234567890123456789012345678901234567890123",
                "IfNotPresent",
            ),
            ("UPPER/case", "Always"),
            ("a/UPPER", "IfNotPresent"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(default_pull_policy(image), expect, "{image}");
        }
    }
}
