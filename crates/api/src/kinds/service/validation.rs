//! What makes a Service valid, and what of it may not change.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};

use super::{TOPOLOGY_HINTS, TOPOLOGY_MODE, list};
use crate::endpoint_ip::validate_endpoint_ip;
use crate::error::{
    ErrorList, duplicate, forbidden, invalid, invalid_each, not_supported, print_value, required,
};
use crate::ip;
use crate::kinds::pod::containers::{validate_port_number, validate_port_number_or_name};
use crate::metadata::validate_labels;
use crate::name;
use crate::path::{Path, root};
use crate::service::{is_externally_accessible, is_headless, needs_health_check_port};

const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

const AFFINITY_SECONDS_MAX: i32 = 86_400;

pub(super) fn validate(service: &Service, old: Option<&Service>, errors: &mut ErrorList) {
    let empty = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let old_spec = old.and_then(|old| old.spec.as_ref());
    let annotations = service.metadata.annotations.as_ref();
    if let (Some(hints), Some(mode)) = (
        annotations.and_then(|all| all.get(TOPOLOGY_HINTS)),
        annotations.and_then(|all| all.get(TOPOLOGY_MODE)),
    ) && hints != mode
    {
        let meta_path = root("metadata");
        let detail = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.push(invalid(
            &meta_path.child("annotations").key(TOPOLOGY_MODE),
            mode,
            detail,
        ));
    }
    let path = root("spec");
    let headless = is_headless(spec);
    let type_ = spec.type_.as_deref().unwrap_or("");
    let ports = spec.ports.as_deref().unwrap_or(&[]);
    if ports.is_empty() && !headless && type_ != "ExternalName" {
        errors.push(required(&path.child("ports"), ""));
    }
    match type_ {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {type_} services");
            errors.push(invalid(&path.child("clusterIPs").index(0), "None", detail));
        }
        "ExternalName" => validate_external_name(spec, &path, errors),
        _ => {}
    }
    validate_ports(ports, type_, &path.child("ports"), errors);
    validate_labels(spec.selector.as_ref(), &path.child("selector"), errors);
    validate_affinity(spec, &path, errors);
    validate_cluster_ips(spec, old_spec, &path, errors);
    let known: Vec<&str> = old_spec
        .map(|old| list(&old.external_ips).iter().map(String::as_str).collect())
        .unwrap_or_default();
    let external_path = path.child("externalIPs");
    for (index, text) in list(&spec.external_ips).iter().enumerate() {
        let path = external_path.index(index);
        let before = errors.len();
        ip::validate(text, &known, &path, errors);
        if errors.len() == before {
            validate_endpoint_ip(text, &path, errors);
        }
    }
    const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if type_.is_empty() {
        errors.push(required(&path.child("type"), ""));
    } else if !TYPES.contains(&type_) {
        errors.push(not_supported(&path.child("type"), type_, TYPES));
    }
    validate_balancer(service, spec, old, &path, errors);
    validate_traffic(spec, &path, errors);
}

fn validate_external_name(spec: &ServiceSpec, path: &Path<'_>, errors: &mut ErrorList) {
    for (field, is_set) in [
        ("clusterIPs", !list(&spec.cluster_ips).is_empty()),
        ("ipFamilies", !list(&spec.ip_families).is_empty()),
        ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
    ] {
        if is_set {
            errors.push(forbidden(
                &path.child(field),
                "may not be set for ExternalName services",
            ));
        }
    }
    let external = spec.external_name.as_deref().unwrap_or("");
    match external.strip_suffix('.').unwrap_or(external) {
        "" => errors.push(required(&path.child("externalName"), "")),
        external => invalid_each(
            errors,
            &path.child("externalName"),
            external,
            name::dns1123_subdomain(external),
        ),
    }
}

fn validate_ports(ports: &[ServicePort], type_: &str, path: &Path<'_>, errors: &mut ErrorList) {
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        match port.name.as_deref().unwrap_or("") {
            "" if ports.len() > 1 => errors.push(required(&path.child("name"), "")),
            "" => {}
            port_name => {
                invalid_each(
                    errors,
                    &path.child("name"),
                    port_name,
                    name::dns1123_label(port_name),
                );
                if ports[..index]
                    .iter()
                    .any(|other| other.name.as_deref() == Some(port_name))
                {
                    errors.push(duplicate(&path.child("name"), port_name));
                }
            }
        }
        validate_port_number(port.port, &path.child("port"), errors);
        match port.protocol.as_deref().unwrap_or("") {
            "" => errors.push(required(&path.child("protocol"), "")),
            "SCTP" | "TCP" | "UDP" => {}
            other => errors.push(not_supported(
                &path.child("protocol"),
                other,
                &["SCTP", "TCP", "UDP"],
            )),
        }
        if let Some(target) = &port.target_port {
            validate_port_number_or_name(target, &path.child("targetPort"), errors);
        }
        if let Some(protocol) = &port.app_protocol {
            invalid_each(
                errors,
                &path.child("appProtocol"),
                protocol,
                name::qualified_name(protocol),
            );
        }
    }
    for (index, port) in ports.iter().enumerate() {
        if type_ == "ClusterIP" && port.node_port.unwrap_or(0) != 0 {
            errors.push(forbidden(
                &path.index(index).child("nodePort"),
                "may not be used when `type` is 'ClusterIP'",
            ));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let same = |other: &ServicePort| {
            other.protocol == port.protocol && other.node_port == port.node_port
        };
        if let Some(node_port) = port.node_port.filter(|port| *port != 0)
            && ports[..index].iter().any(same)
        {
            errors.push(duplicate(&path.index(index).child("nodePort"), &node_port));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        if ports[..index]
            .iter()
            .any(|other| other.protocol == port.protocol && other.port == port.port)
        {
            // Upstream prints its internal struct, empty fields and all, in the order of declaration.
            let mut error = duplicate(&path.index(index), "");
            error.bad_value = format!(
                r#"{{"Name":"","Protocol":{},"AppProtocol":null,"Port":{},"TargetPort":0,"NodePort":0}}"#,
                print_value(&port.protocol),
                port.port
            );
            errors.push(error);
        }
    }
}

fn validate_affinity(spec: &ServiceSpec, path: &Path<'_>, errors: &mut ErrorList) {
    let config_path = path.child("sessionAffinityConfig");
    match spec.session_affinity.as_deref().unwrap_or("") {
        "" => errors.push(required(&path.child("sessionAffinity"), "")),
        "None" => {
            if spec.session_affinity_config.is_some() {
                errors.push(forbidden(
                    &config_path,
                    "must not be set when session affinity is None",
                ));
            }
        }
        "ClientIP" => {
            const DETAIL: &str = "when session affinity type is ClientIP";
            let client_path = config_path.child("clientIP");
            match spec.session_affinity_config.as_ref().map(|config| {
                config
                    .client_ip
                    .as_ref()
                    .map(|client| client.timeout_seconds)
            }) {
                None => errors.push(required(&config_path, DETAIL)),
                Some(None) => errors.push(required(&client_path, DETAIL)),
                Some(Some(None)) => {
                    errors.push(required(&client_path.child("timeoutSeconds"), DETAIL))
                }
                Some(Some(Some(seconds))) if !(1..=AFFINITY_SECONDS_MAX).contains(&seconds) => {
                    let detail =
                        format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
                    errors.push(invalid(
                        &client_path.child("timeoutSeconds"),
                        &seconds,
                        detail,
                    ));
                }
                Some(Some(Some(_))) => {}
            }
        }
        other => errors.push(not_supported(
            &path.child("sessionAffinity"),
            other,
            &["ClientIP", "None"],
        )),
    }
}

fn validate_cluster_ips(
    spec: &ServiceSpec,
    old: Option<&ServiceSpec>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    let (ips, families) = (list(&spec.cluster_ips), list(&spec.ip_families));
    let ips_path = path.child("clusterIPs");
    match (spec.cluster_ip.as_deref().unwrap_or(""), ips.first()) {
        ("", Some(_)) => errors.push(invalid(
            &ips_path,
            ips,
            "must be empty when `clusterIP` is not specified",
        )),
        ("", None) => {}
        (_, None) => errors.push(required(&ips_path, "")),
        (single, Some(first)) if single != first => {
            errors.push(invalid(
                &ips_path,
                ips,
                "first value must match `clusterIP`",
            ));
        }
        _ => {}
    }
    let families_path = path.child("ipFamilies");
    for (index, family) in families.iter().enumerate() {
        if !matches!(family.as_str(), "IPv4" | "IPv6") {
            errors.push(not_supported(
                &families_path.index(index),
                family,
                &["IPv4", "IPv6"],
            ));
        }
        if families[..index].contains(family) {
            errors.push(duplicate(&families_path.index(index), family));
        }
    }
    const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
    if let Some(policy) = spec
        .ip_family_policy
        .as_deref()
        .filter(|policy| !POLICIES.contains(policy))
    {
        errors.push(not_supported(
            &path.child("ipFamilyPolicy"),
            policy,
            POLICIES,
        ));
    }
    let known: Vec<&str> = old
        .map(|old| list(&old.cluster_ips).iter().map(String::as_str).collect())
        .unwrap_or_default();
    let before = errors.len();
    for (index, text) in ips.iter().enumerate() {
        if index == 0 && text == "None" {
            if ips.len() > 1 {
                errors.push(invalid(
                    &ips_path,
                    ips,
                    "'None' must be the first and only value",
                ));
            }
            continue;
        }
        ip::validate(text, &known, &ips_path.index(index), errors);
    }
    let any_invalid = errors.len() > before;
    if ips.len() > 2 {
        errors.push(invalid(&ips_path, ips, "may only hold up to 2 values"));
    }
    if any_invalid {
        return;
    }
    if ips.len() > 1 && !ip::is_dual_stack(ips.iter().map(String::as_str)) {
        errors.push(invalid(
            &ips_path,
            ips,
            "may specify no more than one IP for each IP family",
        ));
    }
    if is_headless(spec) {
        return;
    }
    for (index, (text, family)) in ips.iter().zip(families).enumerate() {
        let is_v6 = ip::parse_sloppy(text).is_some_and(|address| address.is_ipv6());
        if (family == "IPv4" && is_v6) || (family == "IPv6" && !is_v6) {
            let detail =
                format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.push(invalid(&ips_path.index(index), text, detail));
        }
    }
}

fn validate_balancer(
    service: &Service,
    spec: &ServiceSpec,
    old: Option<&Service>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let balancer = spec.type_.as_deref() == Some("LoadBalancer");
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let ranges = list(&spec.load_balancer_source_ranges);
    let old_spec = old.and_then(|old| old.spec.as_ref());
    let annotation = service
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(SOURCE_RANGES));
    if !ranges.is_empty() {
        let path = path.child("LoadBalancerSourceRanges");
        if !balancer {
            errors.push(forbidden(&path, ONLY));
        }
        let known: Vec<&str> = old_spec
            .map(|old| {
                list(&old.load_balancer_source_ranges)
                    .iter()
                    .map(|text| text.trim())
                    .collect()
            })
            .unwrap_or_default();
        for (index, text) in ranges.iter().enumerate() {
            ip::validate_cidr(text.trim(), &known, &path.index(index), errors);
        }
    } else if let Some(annotation) = annotation {
        let meta_path = root("metadata");
        let annotations_path = meta_path.child("annotations");
        let path = annotations_path.key(SOURCE_RANGES);
        if !balancer {
            errors.push(forbidden(&path, ONLY));
        }
        let before = old.and_then(|old| old.metadata.annotations.as_ref()?.get(SOURCE_RANGES));
        if before != Some(annotation) && !annotation.trim().is_empty() {
            for text in annotation.split(',') {
                ip::validate_cidr(text.trim(), &[], &path, errors);
            }
        }
    }
    if spec.allocate_load_balancer_node_ports.is_some() && !balancer {
        errors.push(forbidden(
            &path.child("allocateLoadBalancerNodePorts"),
            ONLY,
        ));
    }
    if spec.allocate_load_balancer_node_ports.is_none() && balancer {
        errors.push(required(&root("allocateLoadBalancerNodePorts"), ""));
    }
    if let Some(class) = &spec.load_balancer_class {
        let path = path.child("loadBalancerClass");
        if balancer {
            invalid_each(errors, &path, class, name::qualified_name(class));
        } else {
            errors.push(forbidden(&path, ONLY));
        }
    }
}

fn validate_traffic(spec: &ServiceSpec, path: &Path<'_>, errors: &mut ErrorList) {
    let external = spec.external_traffic_policy.as_deref().unwrap_or("");
    let external_path = path.child("externalTrafficPolicy");
    match (is_externally_accessible(spec), external) {
        (false, "") => {}
        (false, _) => errors.push(invalid(
            &external_path,
            external,
            "may only be set for externally-accessible services",
        )),
        (true, "") => errors.push(required(&external_path, "")),
        (true, "Cluster" | "Local") => {}
        (true, other) => errors.push(not_supported(&external_path, other, &["Cluster", "Local"])),
    }
    let health_port = spec.health_check_node_port.unwrap_or(0);
    let health_path = path.child("healthCheckNodePort");
    match (needs_health_check_port(spec), health_port) {
        (false, 0) => {}
        (false, _) => {
            let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(invalid(&health_path, &health_port, detail));
        }
        (true, 0) => errors.push(required(&health_path, "")),
        (true, port) => validate_port_number(port, &health_path, errors),
    }
    let internal_path = path.child("internalTrafficPolicy");
    match spec.internal_traffic_policy.as_deref() {
        None if matches!(
            spec.type_.as_deref(),
            Some("NodePort" | "LoadBalancer" | "ClusterIP")
        ) =>
        {
            errors.push(required(&internal_path, ""));
        }
        None | Some("Cluster" | "Local") => {}
        Some(other) => errors.push(not_supported(&internal_path, other, &["Cluster", "Local"])),
    }
    const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameZone", "PreferSameNode"];
    if let Some(distribution) = spec
        .traffic_distribution
        .as_deref()
        .filter(|value| !DISTRIBUTIONS.contains(value))
    {
        errors.push(not_supported(
            &path.child("trafficDistribution"),
            distribution,
            DISTRIBUTIONS,
        ));
    }
}

/// Addresses stay; a second one may come or go.
pub(super) fn validate_cluster_ip_change(
    new: &ServiceSpec,
    old: &ServiceSpec,
    errors: &mut ErrorList,
) {
    let external = |spec: &ServiceSpec| spec.type_.as_deref() == Some("ExternalName");
    if external(new) || external(old) || (is_headless(new) && is_headless(old)) {
        return;
    }
    let path = root("spec");
    let ips_path = path.child("clusterIPs");
    let (new_ips, old_ips) = (list(&new.cluster_ips), list(&old.cluster_ips));
    if new_ips.len() == old_ips.len() {
        for (index, _) in new_ips
            .iter()
            .zip(old_ips)
            .enumerate()
            .filter(|(_, (new, old))| new != old)
        {
            errors.push(invalid(
                &ips_path.index(index),
                new_ips,
                "may not change once set",
            ));
        }
        return;
    }
    if new_ips.is_empty() {
        errors.push(invalid(
            &ips_path.index(0),
            new_ips,
            "primary clusterIP can not be unset",
        ));
    } else if old_ips.first().is_some_and(|first| *first != new_ips[0]) {
        errors.push(invalid(
            &ips_path.index(0),
            new_ips,
            "may not change once set",
        ));
    }
    if old_ips.len() > new_ips.len()
        && new_ips.len() == 1
        && new.ip_family_policy.as_deref() != Some("SingleStack")
    {
        let detail = "must be set to 'SingleStack' when releasing the secondary clusterIP";
        errors.push(invalid(
            &path.child("ipFamilyPolicy"),
            &new.ip_family_policy,
            detail,
        ));
    }
}

pub(super) fn validate_family_change(new: &ServiceSpec, old: &ServiceSpec, errors: &mut ErrorList) {
    let external = |spec: &ServiceSpec| spec.type_.as_deref() == Some("ExternalName");
    if external(new) || external(old) || is_headless(new) || is_headless(old) {
        return;
    }
    let path = root("spec");
    let families_path = path.child("ipFamilies");
    let first_path = families_path.index(0);
    let (new_families, old_families) = (list(&new.ip_families), list(&old.ip_families));
    if new_families.len() == old_families.len() {
        for _ in new_families
            .iter()
            .zip(old_families)
            .filter(|(new, old)| new != old)
        {
            errors.push(invalid(
                &first_path,
                new_families,
                "may not change once set",
            ));
        }
        return;
    }
    if old_families.len() > new_families.len() && list(&new.cluster_ips).is_empty() {
        errors.push(invalid(
            &first_path,
            new_families,
            "primary ipFamily can not be unset",
        ));
    }
    if let (Some(new_first), Some(old_first)) = (new_families.first(), old_families.first())
        && new_first != old_first
    {
        errors.push(invalid(
            &first_path,
            list(&new.cluster_ips),
            "may not change once set",
        ));
    }
    if old_families.len() > new_families.len()
        && new_families.len() == 1
        && new.ip_family_policy.as_deref() != Some("SingleStack")
    {
        let detail = "must be set to 'SingleStack' when releasing the secondary ipFamily";
        errors.push(invalid(
            &path.child("ipFamilyPolicy"),
            &new.ip_family_policy,
            detail,
        ));
    }
}

pub(super) fn validate_status(new: &Service, old: &Service, errors: &mut ErrorList) {
    let entries = |service: &Service| {
        let balancer = service
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.clone());
        balancer
            .and_then(|balancer| balancer.ingress)
            .unwrap_or_default()
    };
    let (new_entries, old_entries) = (entries(new), entries(old));
    let status_path = root("status");
    let balancer_path = status_path.child("loadBalancer");
    let path = balancer_path.child("ingress");
    if new.spec.as_ref().and_then(|spec| spec.type_.as_deref()) != Some("LoadBalancer") {
        if !new_entries.is_empty() {
            errors.push(forbidden(
                &path,
                "may only be used when `spec.type` is 'LoadBalancer'",
            ));
        }
        return;
    }
    let known: Vec<&str> = old_entries
        .iter()
        .filter_map(|entry| entry.ip.as_deref())
        .collect();
    for (index, entry) in new_entries.iter().enumerate() {
        let path = path.index(index);
        let (address, host) = (
            entry.ip.as_deref().unwrap_or(""),
            entry.hostname.as_deref().unwrap_or(""),
        );
        if !address.is_empty() {
            ip::validate(address, &known, &path.child("ip"), errors);
        }
        let mode_path = path.child("ipMode");
        match entry.ip_mode.as_deref() {
            None if !address.is_empty() => {
                errors.push(required(&mode_path, "must be specified when `ip` is set"))
            }
            None => {}
            Some(_) if address.is_empty() => errors.push(forbidden(
                &mode_path,
                "may not be specified when `ip` is not set",
            )),
            Some("Proxy" | "VIP") => {}
            Some(other) => errors.push(not_supported(&mode_path, other, &["Proxy", "VIP"])),
        }
        if !host.is_empty() {
            invalid_each(
                errors,
                &path.child("hostname"),
                host,
                name::dns1123_subdomain(host),
            );
            if ip::parse_sloppy(host).is_some() {
                errors.push(invalid(
                    &path.child("hostname"),
                    host,
                    "must be a DNS name, not an IP address",
                ));
            }
        }
    }
}
