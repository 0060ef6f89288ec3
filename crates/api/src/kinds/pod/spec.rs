//! Validation of whole pod specs, alone and in templates.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig, PodResourceClaim, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::containers::{
    self, Surroundings, slice, validate_containers, validate_ephemeral_containers,
    validate_init_containers,
};
use super::{scheduling, security, volumes};
use crate::error::{
    ErrorList, duplicate, forbidden, invalid, invalid_each, not_found, not_supported, required,
    too_long,
};
use crate::ip;
use crate::kinds::resources::{Scope, amount, is_huge_page, validate_requirements};
use crate::metadata::{validate_annotations, validate_labels};
use crate::name;
use crate::path::{Path, root};
use crate::pod::{aggregate_container_limits, aggregate_container_requests};

const MIRROR_POD: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// A pod to be created.
pub(super) fn validate_create(pod: &Pod, errors: &mut ErrorList) {
    validate_pod(pod, errors);
    let Some(spec) = &pod.spec else { return };
    let path = root("spec");
    if spec
        .ephemeral_containers
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        errors.push(forbidden(
            &path.child("ephemeralContainers"),
            "cannot be set on create",
        ));
    }
    let gated = spec
        .scheduling_gates
        .as_ref()
        .is_some_and(|gates| !gates.is_empty());
    if gated
        && spec
            .node_name
            .as_deref()
            .is_some_and(|node| !node.is_empty())
    {
        errors.push(forbidden(
            &path.child("nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
    if let Some(annotations) = &pod.metadata.annotations {
        security::validate_annotations_match(annotations, spec, &path, errors);
    }
}

/// What holds for a pod at any time: its annotations and its spec.
pub(super) fn validate_pod(pod: &Pod, errors: &mut ErrorList) {
    let path = root("spec");
    let missing = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&missing);
    validate_pod_annotations(&pod.metadata, spec, errors);
    validate_spec(spec, Some(&pod.metadata), true, &path, errors);
    if spec
        .service_account_name
        .as_deref()
        .unwrap_or("")
        .is_empty()
    {
        let volumes_path = path.child("volumes");
        for (index, volume) in spec.volumes.iter().flatten().enumerate() {
            let volume_path = volumes_path.index(index);
            let sources_path = volume_path.child("projected");
            let sources_path = sources_path.child("sources");
            let sources = volume
                .projected
                .iter()
                .flat_map(|source| source.sources.iter().flatten());
            for (index, _) in sources
                .enumerate()
                .filter(|(_, source)| source.service_account_token.is_some())
            {
                errors.push(forbidden(
                    &sources_path.index(index).child("serviceAccountToken"),
                    "must not be specified when serviceAccountName is not set",
                ));
            }
        }
    }
    for (field, list) in [
        ("containers", spec.containers.as_slice()),
        ("initContainers", slice(&spec.init_containers)),
    ] {
        let path = path.child(field);
        for (index, container) in list.iter().enumerate() {
            containers::validate_only_for_pod(container, &path.index(index), errors);
        }
    }
}

pub(super) fn validate_pod_annotations(meta: &ObjectMeta, spec: &PodSpec, errors: &mut ErrorList) {
    let Some(annotations) = &meta.annotations else {
        return;
    };
    let meta_path = root("metadata");
    let path = meta_path.child("annotations");
    if let Some(value) = annotations.get(MIRROR_POD)
        && spec.node_name.as_deref().unwrap_or("").is_empty()
    {
        errors.push(invalid(
            &path.key(MIRROR_POD),
            value,
            "must set spec.nodeName if mirror pod annotation is set",
        ));
    }
    if let Some(cost) = annotations.get(DELETION_COST) {
        // No plus sign and no leading zeros, so that there is one way to write a cost.
        let plain = !cost.starts_with('+')
            && (cost == "0" || !cost.trim_start_matches('-').starts_with('0'));
        if !plain || cost.parse::<i32>().is_err() {
            errors.push(invalid(
                &path.key(DELETION_COST),
                cost,
                "must be a 32bit integer",
            ));
        }
    }
    security::validate_annotations(annotations, spec, &path, errors);
}

pub(super) fn is_mirror(meta: &ObjectMeta) -> bool {
    meta.annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(MIRROR_POD))
}

pub(super) const MIRROR_ANNOTATION: &str = MIRROR_POD;

/// The template of a controller's pods.
pub(crate) fn validate_template(
    template: &PodTemplateSpec,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let missing = PodSpec::default();
    let spec = template.spec.as_ref().unwrap_or(&missing);
    if let Some(meta) = &template.metadata {
        validate_labels(meta.labels.as_ref(), &path.child("labels"), errors);
        validate_annotations(
            meta.annotations.as_ref(),
            &path.child("annotations"),
            errors,
        );
        if meta.annotations.is_some() {
            validate_pod_annotations(meta, spec, errors);
        }
    }
    let spec_path = path.child("spec");
    validate_spec(spec, None, false, &spec_path, errors);
    if spec
        .ephemeral_containers
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        errors.push(forbidden(
            &spec_path.child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

fn validate_spec(
    spec: &PodSpec,
    meta: Option<&ObjectMeta>,
    is_pod: bool,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if spec.termination_grace_period_seconds.is_none() {
        errors.push(required(&path.child("terminationGracePeriodSeconds"), ""));
    }
    let around = Surroundings {
        volumes: volumes::validate_all(
            slice(&spec.volumes),
            meta,
            is_pod,
            &path.child("volumes"),
            errors,
        ),
        claim_names: slice(&spec.resource_claims)
            .iter()
            .map(|claim| claim.name.as_str())
            .filter(|name| !name.is_empty())
            .collect(),
        grace_period_seconds: spec.termination_grace_period_seconds,
        restart_policy: spec.restart_policy.as_deref().unwrap_or(""),
        host_users: spec.host_users != Some(false),
        os: spec.os.as_ref().map(|os| os.name.as_str()),
    };
    validate_resource_claims(
        slice(&spec.resource_claims),
        meta,
        &path.child("resourceClaims"),
        errors,
    );
    validate_containers(&spec.containers, &around, &path.child("containers"), errors);
    let init_containers = slice(&spec.init_containers);
    validate_init_containers(
        init_containers,
        &spec.containers,
        &around,
        &path.child("initContainers"),
        errors,
    );
    let ephemeral_path = path.child("ephemeralContainers");
    let others = [spec.containers.as_slice(), init_containers];
    validate_ephemeral_containers(
        slice(&spec.ephemeral_containers),
        &others,
        &around,
        &ephemeral_path,
        errors,
    );
    validate_pod_level_resources(spec, &around.claim_names, &path.child("resources"), errors);
    validate_host_ports(spec, is_pod, &path.child("containers"), errors);
    validate_choices(spec, path, errors);
    validate_labels(
        spec.node_selector.as_ref(),
        &path.child("nodeSelector"),
        errors,
    );
    if let Some(context) = &spec.security_context {
        security::validate_pod(context, spec, &path.child("securityContext"), errors);
    }
    if let Some(affinity) = &spec.affinity {
        scheduling::validate_affinity(affinity, &path.child("affinity"), errors);
    }
    validate_dns_config(
        spec.dns_config.as_ref(),
        spec.dns_policy.as_deref(),
        &path.child("dnsConfig"),
        errors,
    );
    let gates_path = path.child("readinessGates");
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let type_path = gates_path.index(index);
        invalid_each(
            errors,
            &type_path.child("conditionType"),
            &gate.condition_type,
            name::qualified_name(&gate.condition_type),
        );
    }
    scheduling::validate_scheduling_gates(
        slice(&spec.scheduling_gates),
        &path.child("schedulingGates"),
        errors,
    );
    let spread_path = path.child("topologySpreadConstraints");
    scheduling::validate_topology_spread(
        slice(&spec.topology_spread_constraints),
        &spread_path,
        errors,
    );
    if spec
        .security_context
        .as_ref()
        .is_some_and(|context| context.windows_options.is_some())
        || spec.containers.iter().any(|container| {
            container
                .security_context
                .as_ref()
                .is_some_and(|context| context.windows_options.is_some())
        })
    {
        security::validate_host_process(spec, path, errors);
    }
    security::validate_host_users(spec, path, errors);
    validate_names(spec, path, errors);
    scheduling::validate_tolerations(slice(&spec.tolerations), &path.child("tolerations"), errors);
    let aliases_path = path.child("hostAliases");
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = aliases_path.index(index);
        ip::validate(&alias.ip, &[], &path.child("ip"), errors);
        let names_path = path.child("hostnames");
        for (index, host) in alias.hostnames.iter().flatten().enumerate() {
            invalid_each(
                errors,
                &names_path.index(index),
                host,
                name::dns1123_subdomain(host),
            );
        }
    }
    if let Some(overhead) = spec
        .overhead
        .as_ref()
        .filter(|overhead| !overhead.is_empty())
    {
        let requirements = k8s_openapi::api::core::v1::ResourceRequirements {
            limits: Some(overhead.clone()),
            ..Default::default()
        };
        validate_requirements(
            &requirements,
            Scope::Container,
            &BTreeSet::new(),
            &path.child("overhead"),
            errors,
        );
    }
    security::validate_os(spec, path, errors);
    if let Some(group) = &spec.scheduling_group {
        let path = path.child("schedulingGroup");
        match &group.pod_group_name {
            None => errors.push(invalid(
                &path.child("podGroupName"),
                &group.pod_group_name,
                "must specify one of: `podGroupName`",
            )),
            Some(group) => invalid_each(
                errors,
                &path.child("podGroupName"),
                group,
                name::dns1123_subdomain(group),
            ),
        }
    }
    validate_file_key_volumes(spec, path, errors);
}

/// Enumerated fields.
fn validate_choices(spec: &PodSpec, path: &Path<'_>, errors: &mut ErrorList) {
    let mut choose = |field: &'static str,
                      value: &Option<String>,
                      choices: &[&str],
                      may_be_absent: bool| match value.as_deref() {
        None if may_be_absent => {}
        None | Some("") => errors.push(required(&path.child(field), "")),
        Some(value) if choices.contains(&value) => {}
        Some(value) => errors.push(not_supported(&path.child(field), value, choices)),
    };
    choose(
        "restartPolicy",
        &spec.restart_policy,
        &["Always", "OnFailure", "Never"],
        false,
    );
    choose(
        "dnsPolicy",
        &spec.dns_policy,
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        false,
    );
    choose(
        "preemptionPolicy",
        &spec.preemption_policy,
        &["PreemptLowerPriority", "Never"],
        true,
    );
}

/// Names of other objects, host names, and the deadline.
fn validate_names(spec: &PodSpec, path: &Path<'_>, errors: &mut ErrorList) {
    if let Some(host) = spec.hostname_override.as_deref() {
        let path = path.child("hostnameOverride");
        if spec.set_hostname_as_fqdn == Some(true) {
            errors.push(forbidden(
                &path,
                "may not be specified when setHostnameAsFQDN is true",
            ));
        }
        if spec.host_network == Some(true) {
            errors.push(forbidden(
                &path,
                "may not be specified when hostNetwork is true",
            ));
        }
        if host.len() > 64 {
            errors.push(too_long(&path, 64));
        }
        invalid_each(errors, &path, host, name::dns1123_subdomain(host));
    }
    type Rule = fn(&str) -> Vec<String>;
    let rules: [(&str, &Option<String>, Rule); 5] = [
        (
            "serviceAccountName",
            &spec.service_account_name,
            name::dns1123_subdomain,
        ),
        ("nodeName", &spec.node_name, name::dns1123_subdomain),
        ("hostname", &spec.hostname, name::dns1123_label),
        ("subdomain", &spec.subdomain, name::dns1123_label),
        (
            "priorityClassName",
            &spec.priority_class_name,
            name::dns1123_subdomain,
        ),
    ];
    for (field, value, rule) in rules {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            invalid_each(errors, &path.child(field), value, rule(value));
        }
    }
    if let Some(class) = &spec.runtime_class_name {
        invalid_each(
            errors,
            &path.child("runtimeClassName"),
            class,
            name::dns1123_subdomain(class),
        );
    }
    if let Some(seconds) = spec.active_deadline_seconds {
        let complaints = name::in_range(seconds, 1, i64::from(i32::MAX));
        errors.extend(
            complaints
                .into_iter()
                .map(|text| invalid(&path.child("activeDeadlineSeconds"), &seconds, text)),
        );
    }
}

fn validate_resource_claims(
    claims: &[PodResourceClaim],
    meta: Option<&ObjectMeta>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (index, claim) in claims.iter().enumerate() {
        if meta.is_some_and(is_mirror) {
            errors.push(forbidden(
                &root(""),
                "static pods do not support resource claims",
            ));
            continue;
        }
        let path = path.index(index);
        if claim.name.is_empty() {
            errors.push(required(&path.child("name"), ""));
        } else if claims[..index].iter().any(|other| other.name == claim.name) {
            errors.push(duplicate(&path.child("name"), &claim.name));
        } else {
            invalid_each(
                errors,
                &path.child("name"),
                &claim.name,
                name::dns1123_label(&claim.name),
            );
        }
        match (
            &claim.resource_claim_name,
            &claim.resource_claim_template_name,
        ) {
            (Some(_), Some(_)) => {
                errors.push(invalid(&path, claim, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"));
            }
            (None, None) => {
                errors.push(invalid(
                    &path,
                    claim,
                    "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
                ));
            }
            _ => {}
        }
        for (field, object) in [
            ("resourceClaimName", &claim.resource_claim_name),
            (
                "resourceClaimTemplateName",
                &claim.resource_claim_template_name,
            ),
        ] {
            if let Some(object) = object {
                invalid_each(
                    errors,
                    &path.child(field),
                    object,
                    name::dns1123_subdomain(object),
                );
            }
        }
    }
}

/// `spec.resources`: known names, and room for what the containers ask.
fn validate_pod_level_resources(
    spec: &PodSpec,
    claim_names: &BTreeSet<&str>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let Some(resources) = &spec.resources else {
        return;
    };
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        errors.push(forbidden(path, "may not be set for a windows pod"));
        return;
    }
    if resources.claims.is_some() {
        errors.push(forbidden(
            &path.child("claims"),
            "claims may not be set for Resources at pod-level",
        ));
    }
    validate_requirements(resources, Scope::Pod, claim_names, path, errors);
    let requests_path = path.child("requests");
    for (resource, sum) in aggregate_container_requests(spec) {
        if let Some(request) = resources
            .requests
            .as_ref()
            .and_then(|list| list.get(&resource))
            && sum > amount(request)
        {
            let detail =
                format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.push(invalid(&requests_path.key(&resource), &request.0, detail));
        }
    }
    let limits_path = path.child("limits");
    for (resource, sum) in aggregate_container_limits(spec) {
        if let Some(limit) = resources
            .limits
            .as_ref()
            .and_then(|list| list.get(&resource))
            && is_huge_page(&resource)
            && sum > amount(limit)
        {
            let detail =
                format!("must be greater than or equal to aggregate container limits of {sum}");
            errors.push(invalid(&limits_path.key(&resource), &limit.0, detail));
        }
    }
    let containers_path = path.child("containers");
    for (index, container) in spec.containers.iter().enumerate() {
        let limits = container
            .resources
            .iter()
            .flat_map(|resources| resources.limits.iter().flatten());
        for (resource, limit) in limits {
            if let Some(of_pod) = resources
                .limits
                .as_ref()
                .and_then(|list| list.get(resource))
                && amount(limit) > amount(of_pod)
            {
                let path = containers_path.index(index);
                let detail = format!("must be less than or equal to pod limits of {}", of_pod.0);
                errors.push(invalid(
                    &path.key(resource).child("limits"),
                    &limit.0,
                    detail,
                ));
            }
        }
    }
}

/// On the host's network a container's port is the host's.
fn validate_host_ports(spec: &PodSpec, is_pod: bool, path: &Path<'_>, errors: &mut ErrorList) {
    if spec.host_network != Some(true) {
        return;
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let path = path.index(index);
        let ports_path = path.child("ports");
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let host_port = port.host_port.unwrap_or(0);
            if (is_pod || host_port != 0) && host_port != port.container_port {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.push(invalid(
                    &ports_path.index(index).child("hostPort"),
                    &host_port,
                    detail,
                ));
            }
        }
    }
}

fn validate_dns_config(
    config: Option<&PodDNSConfig>,
    policy: Option<&str>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let servers_path = path.child("nameservers");
    if policy == Some("None") {
        match config {
            None => {
                errors.push(required(
                    path,
                    "must provide `dnsConfig` when `dnsPolicy` is None",
                ));
                return;
            }
            Some(config) if slice(&config.nameservers).is_empty() => {
                let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
                errors.push(required(&servers_path, detail));
                return;
            }
            Some(_) => {}
        }
    }
    let Some(config) = config else { return };
    // The limits of libc's resolver.
    let servers = slice(&config.nameservers);
    if servers.len() > 3 {
        errors.push(invalid(
            &servers_path,
            servers,
            "must not have more than 3 nameservers",
        ));
    }
    for (index, server) in servers.iter().enumerate() {
        ip::validate(server, &[], &servers_path.index(index), errors);
    }
    let searches = slice(&config.searches);
    let searches_path = path.child("searches");
    if searches.len() > 32 {
        errors.push(invalid(
            &searches_path,
            searches,
            "must not have more than 32 search paths",
        ));
    }
    let bytes = searches
        .iter()
        .map(|search| search.len() + 1)
        .sum::<usize>()
        .saturating_sub(1);
    if bytes > 2048 {
        let detail =
            "must not have more than 2048 characters (including spaces) in the search list";
        errors.push(invalid(&searches_path, searches, detail));
    }
    for (index, search) in searches
        .iter()
        .enumerate()
        .filter(|(_, search)| *search != ".")
    {
        let search = search.strip_suffix('.').unwrap_or(search);
        invalid_each(
            errors,
            &searches_path.index(index),
            search,
            name::dns1123_subdomain_with_underscore(search),
        );
    }
    let options_path = path.child("options");
    for (index, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or("").is_empty() {
            errors.push(required(&options_path.index(index), "must not be empty"));
        }
    }
}

/// Variables read from a file read it from an emptyDir of the pod.
fn validate_file_key_volumes(spec: &PodSpec, path: &Path<'_>, errors: &mut ErrorList) {
    let uses_files = |env: &Option<Vec<k8s_openapi::api::core::v1::EnvVar>>| {
        env.iter().flatten().any(|variable| {
            variable
                .value_from
                .as_ref()
                .is_some_and(|source| source.file_key_ref.is_some())
        })
    };
    let any = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .any(|container| uses_files(&container.env))
        || spec
            .ephemeral_containers
            .iter()
            .flatten()
            .any(|container| uses_files(&container.env));
    if !any {
        return;
    }
    security::visit_containers(spec, path, |container, path| {
        let env_path = path.child("env");
        for (index, variable) in container.env.iter().flatten().enumerate() {
            let Some(reference) = variable
                .value_from
                .as_ref()
                .and_then(|source| source.file_key_ref.as_ref())
            else {
                continue;
            };
            let path = env_path.index(index);
            let path = path.child("valueFrom");
            let path = path.child("fileKeyRef");
            let volume = spec
                .volumes
                .iter()
                .flatten()
                .find(|volume| volume.name == reference.volume_name);
            match volume {
                None => errors.push(not_found(&path.child("volumeName"), &reference.volume_name)),
                Some(volume) if volume.empty_dir.is_none() => {
                    let detail = "referenced volume must be of type emptyDir";
                    errors.push(invalid(
                        &path.child("volumeName"),
                        &reference.volume_name,
                        detail,
                    ));
                }
                Some(_) => {}
            }
        }
    });
}
