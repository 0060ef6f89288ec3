//! Service: types, ports, cluster IPs and families, traffic policies, session affinity.
//!
//! Addresses and node ports are given out by the server between preparation and validation;
//! [`crate::service`] says which a Service needs.

mod validation;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerStatus, Service, ServiceSpec, ServiceStatus, SessionAffinityConfig,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::pod::defaults::{fill_metadata, is_unset_port};
use crate::columns::{self, AGE, NAME, column, wide};
use crate::empty::drop_empty;
use crate::error::{ErrorList, forbidden, invalid};
use crate::ip;
use crate::kind::{Column, Part};
use crate::name::NameRule;
use crate::path::root;
use crate::service::{
    is_externally_accessible, needs_cluster_ip, needs_health_check_port, needs_node_ports,
};
use crate::typed::ApiType;

const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
/// How long a client sticks to its endpoint unless the Service says otherwise: three hours.
const AFFINITY_SECONDS_DEFAULT: i32 = 10_800;
impl ApiType for Service {
    const NAMESPACED: bool = true;
    const NAME_RULE: NameRule = NameRule::Dns1123Label;
    const CREATE_ON_UPDATE: bool = true;
    const SELECTABLE: &'static [&'static str] = &["spec.clusterIP", "spec.type"];
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("Type", "string", "How the Service is exposed."),
        column("Cluster-IP", "string", "Address inside the cluster."),
        column("External-IP", "string", "Addresses outside the cluster."),
        column("Port(s)", "string", "Ports that the Service exposes."),
        AGE,
        wide(
            "Selector",
            "string",
            "Labels of the pods that traffic goes to.",
        ),
    ];

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        let spec = self.spec.get_or_insert_default();
        fill_spec(spec);
        let status = self.status.get_or_insert_default();
        drop_empty!(status.conditions);
        let balancer = status.load_balancer.get_or_insert_default();
        drop_empty!(balancer.ingress);
        if spec.type_.as_deref() == Some("LoadBalancer") {
            for ingress in balancer.ingress.iter_mut().flatten() {
                drop_empty!(ingress.ip, ingress.hostname);
                if ingress.ip.is_some() {
                    ingress.ip_mode.get_or_insert_with(|| "VIP".to_string());
                }
            }
        }
    }

    fn prepare_create(&mut self) {
        self.status = Some(ServiceStatus {
            load_balancer: Some(LoadBalancerStatus::default()),
            conditions: None,
        });
        let spec = self.spec.get_or_insert_default();
        if spec.cluster_ips.as_ref().is_none_or(Vec::is_empty)
            && let Some(ip) = spec.cluster_ip.as_ref().filter(|ip| !ip.is_empty())
        {
            spec.cluster_ips = Some(vec![ip.clone()]);
        }
        // Not a default: these fields are the allocator's, and no client owns them.
        fill_families(spec);
    }

    fn validate(&self, errors: &mut ErrorList) {
        validation::validate(self, None, errors);
    }

    fn prepare_update(&mut self, old: &Self, part: &Part) {
        if *part == Part::Status {
            self.spec.clone_from(&old.spec);
            return;
        }
        self.status.clone_from(&old.status);
        let (Some(new_spec), Some(old_spec)) = (&mut self.spec, &old.spec) else {
            return;
        };
        keep_allocated(new_spec, old_spec);
        drop_what_the_type_has_not(new_spec, old_spec);
        fill_families(new_spec);
        if new_spec.type_.as_deref() != Some("LoadBalancer") {
            self.status.get_or_insert_default().load_balancer = Some(LoadBalancerStatus::default());
        }
    }

    fn validate_update(&self, old: &Self, part: &Part, errors: &mut ErrorList) {
        if *part == Part::Status {
            validation::validate_status(self, old, errors);
            return;
        }
        if let (Some(new_spec), Some(old_spec)) = (&self.spec, &old.spec) {
            validation::validate_cluster_ip_change(new_spec, old_spec, errors);
            validation::validate_family_change(new_spec, old_spec, errors);
            let path = root("spec");
            let balancer = |spec: &ServiceSpec| spec.type_.as_deref() == Some("LoadBalancer");
            if balancer(new_spec)
                && balancer(old_spec)
                && new_spec.load_balancer_class != old_spec.load_balancer_class
            {
                errors.push(invalid(
                    &path.child("loadBalancerClass"),
                    &new_spec.load_balancer_class,
                    "may not change once set",
                ));
            }
            if needs_health_check_port(old_spec)
                && needs_health_check_port(new_spec)
                && new_spec.health_check_node_port != old_spec.health_check_node_port
            {
                errors.push(forbidden(
                    &path.child("healthCheckNodePort"),
                    "field is immutable",
                ));
            }
        }
        validation::validate(self, Some(old), errors);
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let annotations = self.metadata.annotations.as_ref();
        for key in [TOPOLOGY_HINTS, TOPOLOGY_MODE] {
            if annotations.is_some_and(|annotations| annotations.contains_key(key)) {
                warnings.push(format!(
                    "annotation {key} is deprecated, please use spec.trafficDistribution instead"
                ));
            }
        }
        if let Some(spec) = &self.spec {
            warnings.extend(ignored_fields(spec));
        }
        warnings
    }

    fn selectable_values(&self) -> Vec<String> {
        let spec = self.spec.as_ref();
        vec![
            spec.and_then(|spec| spec.cluster_ip.clone())
                .unwrap_or_default(),
            spec.and_then(|spec| spec.type_.clone()).unwrap_or_default(),
        ]
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        let empty = ServiceSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&empty);
        let ports: Vec<String> = spec
            .ports
            .iter()
            .flatten()
            .map(|port| {
                let protocol = port.protocol.as_deref().unwrap_or("");
                match port.node_port.unwrap_or(0) {
                    0 => format!("{}/{protocol}", port.port),
                    node_port => format!("{}:{node_port}/{protocol}", port.port),
                }
            })
            .collect();
        vec![
            columns::name(&self.metadata),
            Value::from(spec.type_.as_deref().unwrap_or("")),
            Value::from(
                spec.cluster_ips
                    .as_ref()
                    .and_then(|ips| ips.first())
                    .map_or("<none>", String::as_str),
            ),
            Value::from(external_address(spec, self.status.as_ref())),
            Value::from(if ports.is_empty() {
                "<none>".to_string()
            } else {
                ports.join(",")
            }),
            columns::age(&self.metadata, now_seconds),
            Value::from(columns::labels(spec.selector.as_ref())),
        ]
    }
}

fn list(texts: &Option<Vec<String>>) -> &[String] {
    texts.as_deref().unwrap_or(&[])
}

fn external_address(spec: &ServiceSpec, status: Option<&ServiceStatus>) -> String {
    let own = list(&spec.external_ips).join(",");
    match spec.type_.as_deref().unwrap_or("") {
        "ClusterIP" | "NodePort" => {
            if own.is_empty() {
                "<none>".to_string()
            } else {
                own
            }
        }
        "LoadBalancer" => {
            let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
            let mut addresses: Vec<&str> = Vec::new();
            for entry in ingress.into_iter().flatten() {
                let address = entry
                    .ip
                    .as_deref()
                    .filter(|ip| !ip.is_empty())
                    .or(entry.hostname.as_deref())
                    .unwrap_or("");
                if !address.is_empty() && !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            addresses.sort_unstable();
            addresses.extend(list(&spec.external_ips).iter().map(String::as_str));
            if addresses.is_empty() {
                "<pending>".to_string()
            } else {
                addresses.join(",")
            }
        }
        "ExternalName" => spec.external_name.clone().unwrap_or_default(),
        _ => "<unknown>".to_string(),
    }
}

fn fill_spec(spec: &mut ServiceSpec) {
    drop_empty!(
        spec.cluster_ip,
        spec.cluster_ips,
        spec.external_ips,
        spec.external_name,
        spec.external_traffic_policy,
        spec.health_check_node_port,
        spec.ip_families,
        spec.load_balancer_ip,
        spec.load_balancer_source_ranges,
        spec.ports,
        spec.publish_not_ready_addresses,
        spec.selector,
        spec.session_affinity,
        spec.type_,
    );
    match spec
        .session_affinity
        .get_or_insert_with(|| "None".to_string())
        .as_str()
    {
        "None" => spec.session_affinity_config = None,
        "ClientIP" => {
            let seconds = spec
                .session_affinity_config
                .as_ref()
                .and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
            if seconds.is_none() {
                let client_ip = ClientIPConfig {
                    timeout_seconds: Some(AFFINITY_SECONDS_DEFAULT),
                };
                spec.session_affinity_config = Some(SessionAffinityConfig {
                    client_ip: Some(client_ip),
                });
            }
        }
        _ => {}
    }
    let type_ = spec
        .type_
        .get_or_insert_with(|| "ClusterIP".to_string())
        .clone();
    for port in spec.ports.iter_mut().flatten() {
        drop_empty!(port.name, port.node_port, port.protocol);
        port.protocol.get_or_insert_with(|| "TCP".to_string());
        if is_unset_port(port.target_port.as_ref()) {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    if is_externally_accessible(spec) {
        spec.external_traffic_policy
            .get_or_insert_with(|| "Cluster".to_string());
    }
    if matches!(type_.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        spec.internal_traffic_policy
            .get_or_insert_with(|| "Cluster".to_string());
    }
    if type_ == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
}

/// What a Service says that its type does not heed.
fn ignored_fields(spec: &ServiceSpec) -> Vec<String> {
    let type_ = spec.type_.as_deref().unwrap_or("ClusterIP");
    let is_headless = type_ == "ClusterIP" && spec.cluster_ip.as_deref() == Some("None");
    let is_external = type_ == "ExternalName";
    let has = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    let external_ips = !list(&spec.external_ips).is_empty();
    let mut warnings = Vec::new();
    let mut warn = |applies: bool, text: &str| {
        if applies {
            warnings.push(text.to_string());
        }
    };
    warn(
        is_headless && has(&spec.load_balancer_ip),
        "spec.loadBalancerIP is ignored for headless services",
    );
    warn(
        is_headless && external_ips,
        "spec.externalIPs is ignored for headless services",
    );
    warn(
        is_headless && spec.session_affinity.as_deref() != Some("None"),
        "spec.SessionAffinity is ignored for headless services",
    );
    warn(
        external_ips && !is_headless && !is_external,
        "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
    );
    warn(
        is_external && external_ips,
        "spec.externalIPs is ignored when spec.type is \"ExternalName\"",
    );
    warn(
        !is_external && has(&spec.external_name),
        "spec.externalName is ignored when spec.type is not \"ExternalName\"",
    );
    warn(
        spec.traffic_distribution.as_deref() == Some("PreferClose"),
        "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
    );
    warnings
}

/// One family, that of the address given or IPv4; a headless Service without selector is left to its author in both.
fn fill_families(spec: &mut ServiceSpec) {
    if spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let unselective = spec
        .selector
        .as_ref()
        .is_none_or(|selector| selector.is_empty());
    if headless && unselective {
        spec.ip_family_policy
            .get_or_insert_with(|| "RequireDualStack".to_string());
        let families = spec.ip_families.get_or_insert_default();
        for family in ["IPv4", "IPv6"] {
            if families.len() < 2
                && !families.iter().any(|known| known == family)
                && spec.ip_family_policy.as_deref() != Some("SingleStack")
            {
                families.push(family.to_string());
            }
        }
        if families.is_empty() {
            families.push("IPv4".to_string());
        }
        return;
    }
    spec.ip_family_policy
        .get_or_insert_with(|| "SingleStack".to_string());
    if spec.ip_families.is_none() {
        let addresses = list(&spec.cluster_ips)
            .iter()
            .filter_map(|text| ip::parse_sloppy(text));
        let mut families: Vec<String> = addresses
            .map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" }.to_string())
            .collect();
        if families.is_empty() {
            families.push("IPv4".to_string());
        }
        spec.ip_families = Some(families);
    }
}

/// What the server gave out earlier and the client left out is kept.
fn keep_allocated(new: &mut ServiceSpec, old: &ServiceSpec) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        if new.cluster_ip.is_none() && new.cluster_ips.is_none() {
            new.cluster_ip.clone_from(&old.cluster_ip);
        }
        if new.cluster_ips.is_none() && new.cluster_ip == old.cluster_ip {
            new.cluster_ips.clone_from(&old.cluster_ips);
        }
    }
    // Of the single address and the list, the one that changed speaks for both.
    let (single_changed, list_changed) = (
        new.cluster_ip != old.cluster_ip,
        new.cluster_ips != old.cluster_ips,
    );
    if single_changed && !list_changed {
        new.cluster_ips = new.cluster_ip.clone().map(|ip| vec![ip]);
    } else if list_changed && !single_changed && new.cluster_ips.is_none() {
        new.cluster_ip = None;
    }
    if new.cluster_ips.is_none()
        && let Some(ip) = &new.cluster_ip
    {
        new.cluster_ips = Some(vec![ip.clone()]);
    }
    if needs_node_ports(old) && needs_node_ports(new) {
        let mut used: BTreeSet<(Option<String>, i32)> = new
            .ports
            .iter()
            .flatten()
            .filter_map(|port| Some((port.protocol.clone(), port.node_port?)))
            .collect();
        for port in new
            .ports
            .iter_mut()
            .flatten()
            .filter(|port| port.node_port.is_none())
        {
            let same = old
                .ports
                .iter()
                .flatten()
                .find(|old| old.port == port.port && old.protocol == port.protocol);
            if let Some(node_port) = same.and_then(|old| old.node_port)
                && used.insert((port.protocol.clone(), node_port))
            {
                port.node_port = Some(node_port);
            }
        }
    }
    if needs_health_check_port(old)
        && needs_health_check_port(new)
        && new.health_check_node_port.is_none()
    {
        new.health_check_node_port = old.health_check_node_port;
    }
}

/// When the type changes, values that the old type had and the client did not touch go.
fn drop_what_the_type_has_not(new: &mut ServiceSpec, old: &ServiceSpec) {
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        if new.cluster_ip == old.cluster_ip && new.cluster_ips == old.cluster_ips {
            (new.cluster_ip, new.cluster_ips) = (None, None);
        }
        if new.ip_families == old.ip_families {
            new.ip_families = None;
        }
        if new.ip_family_policy == old.ip_family_policy {
            new.ip_family_policy = None;
        }
    }
    let is_external = |spec: &ServiceSpec| spec.type_.as_deref() == Some("ExternalName");
    if is_external(new)
        && !is_external(old)
        && new.internal_traffic_policy == old.internal_traffic_policy
    {
        new.internal_traffic_policy = None;
    }
    if needs_node_ports(old) && !needs_node_ports(new) {
        let had: BTreeSet<i32> = old
            .ports
            .iter()
            .flatten()
            .filter_map(|port| port.node_port)
            .collect();
        let untouched = new
            .ports
            .iter()
            .flatten()
            .filter_map(|port| port.node_port)
            .all(|port| had.contains(&port));
        for port in new.ports.iter_mut().flatten().filter(|_| untouched) {
            port.node_port = None;
        }
    }
    if needs_health_check_port(old)
        && !needs_health_check_port(new)
        && new.health_check_node_port == old.health_check_node_port
    {
        new.health_check_node_port = None;
    }
    let balancer = |spec: &ServiceSpec| spec.type_.as_deref() == Some("LoadBalancer");
    if balancer(old) && !balancer(new) {
        if new.allocate_load_balancer_node_ports == old.allocate_load_balancer_node_ports {
            new.allocate_load_balancer_node_ports = None;
        }
        if new.load_balancer_class == old.load_balancer_class {
            new.load_balancer_class = None;
        }
    }
    if is_externally_accessible(old)
        && !is_externally_accessible(new)
        && new.external_traffic_policy == old.external_traffic_policy
    {
        new.external_traffic_policy = None;
    }
}
