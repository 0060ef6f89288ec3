//! Endpoints and EndpointSlice: the addresses behind a Service.

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::{self as discovery, EndpointSlice};
use serde_json::Value;

use super::pod::containers::validate_port_number;
use super::pod::defaults::fill_metadata;
use crate::columns::{self, AGE, NAME, column, joined_with_more};
use crate::empty::drop_empty;
use crate::endpoint_ip::validate_endpoint_ip;
use crate::error::{
    ErrorList, duplicate, invalid, invalid_each, not_supported, required, too_many,
};
use crate::ip;
use crate::kind::{Column, Part};
use crate::metadata::{IMMUTABLE, validate_labels};
use crate::name;
use crate::path::{Path, root};
use crate::typed::ApiType;

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// Addresses, or ports, that one cell lists before it only counts them.
const SHOWN_MAX: usize = 3;

impl ApiType for Endpoints {
    const NAMESPACED: bool = true;
    const CREATE_ON_UPDATE: bool = true;
    const COLUMNS: &'static [Column] = &[
        NAME,
        column(
            "Endpoints",
            "string",
            "Addresses and ports behind the Service.",
        ),
        AGE,
    ];

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        drop_empty!(self.subsets);
        for subset in self.subsets.iter_mut().flatten() {
            drop_empty!(subset.addresses, subset.not_ready_addresses, subset.ports);
            for port in subset.ports.iter_mut().flatten() {
                drop_empty!(port.name, port.protocol);
                port.protocol.get_or_insert_with(|| "TCP".to_string());
            }
        }
    }

    fn validate(&self, errors: &mut ErrorList) {
        let path = root("subsets");
        for (index, subset) in self.subsets.iter().flatten().enumerate() {
            validate_subset(subset, &path.index(index), errors);
        }
    }

    fn validate_update(&self, old: &Self, _part: &Part, errors: &mut ErrorList) {
        if self.subsets != old.subsets {
            self.validate(errors);
        }
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        let mut shown = Vec::new();
        for subset in self.subsets.iter().flatten() {
            let addresses = subset.addresses.as_deref().unwrap_or(&[]);
            let ports = subset.ports.as_deref().unwrap_or(&[]);
            if ports.is_empty() {
                shown.extend(addresses.iter().map(|address| address.ip.clone()));
            }
            for port in ports {
                shown.extend(
                    addresses
                        .iter()
                        .map(|address| host_port(&address.ip, port.port)),
                );
            }
        }
        let text = match self.subsets.as_ref().map_or(0, Vec::len) {
            0 => "<none>".to_string(),
            _ if shown.is_empty() => String::new(),
            _ => joined_with_more(&shown, SHOWN_MAX),
        };
        vec![
            columns::name(&self.metadata),
            Value::from(text),
            columns::age(&self.metadata, now_seconds),
        ]
    }
}

fn host_port(address: &str, port: i32) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

fn validate_subset(subset: &EndpointSubset, path: &Path<'_>, errors: &mut ErrorList) {
    let addresses = subset.addresses.as_deref().unwrap_or(&[]);
    let not_ready = subset.not_ready_addresses.as_deref().unwrap_or(&[]);
    if addresses.is_empty() && not_ready.is_empty() {
        errors.push(required(
            path,
            "must specify `addresses` or `notReadyAddresses`",
        ));
    }
    for (field, list) in [("addresses", addresses), ("notReadyAddresses", not_ready)] {
        let path = path.child(field);
        for (index, address) in list.iter().enumerate() {
            validate_address(address, &path.index(index), errors);
        }
    }
    let ports = subset.ports.as_deref().unwrap_or(&[]);
    let ports_path = path.child("ports");
    for (index, port) in ports.iter().enumerate() {
        validate_port(port, ports.len() > 1, &ports_path.index(index), errors);
    }
}

fn validate_address(address: &EndpointAddress, path: &Path<'_>, errors: &mut ErrorList) {
    ip::validate(&address.ip, &[], &path.child("ip"), errors);
    if let Some(host) = address.hostname.as_deref().filter(|host| !host.is_empty()) {
        invalid_each(
            errors,
            &path.child("hostname"),
            host,
            name::dns1123_label(host),
        );
    }
    if let Some(node) = &address.node_name {
        invalid_each(
            errors,
            &path.child("nodeName"),
            node,
            name::dns1123_subdomain(node),
        );
    }
    validate_endpoint_ip(&address.ip, &path.child("ip"), errors);
}

fn validate_port(port: &EndpointPort, needs_name: bool, path: &Path<'_>, errors: &mut ErrorList) {
    match port.name.as_deref().unwrap_or("") {
        "" if needs_name => errors.push(required(&path.child("name"), "")),
        "" => {}
        port_name => invalid_each(
            errors,
            &path.child("name"),
            port_name,
            name::dns1123_label(port_name),
        ),
    }
    validate_port_number(port.port, &path.child("port"), errors);
    match port.protocol.as_deref().unwrap_or("") {
        "" => errors.push(required(&path.child("protocol"), "")),
        protocol if PROTOCOLS.contains(&protocol) => {}
        protocol => errors.push(not_supported(&path.child("protocol"), protocol, PROTOCOLS)),
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

impl ApiType for EndpointSlice {
    const NAMESPACED: bool = true;
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("AddressType", "string", "Family of the addresses, or FQDN."),
        column("Ports", "string", "Ports of the endpoints."),
        column("Endpoints", "string", "Addresses of the endpoints."),
        AGE,
    ];

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        // Go writes the list even when it is empty, as null.
        self.endpoints.get_or_insert_default();
        self.ports.get_or_insert_default();
        for endpoint in self.endpoints.iter_mut().flatten() {
            endpoint.conditions.get_or_insert_default();
            drop_empty!(endpoint.deprecated_topology);
        }
        for port in self.ports.iter_mut().flatten() {
            port.name.get_or_insert_default();
            port.protocol.get_or_insert_with(|| "TCP".to_string());
        }
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        for endpoint in self.endpoints.iter_mut().flatten() {
            endpoint.deprecated_topology = None;
        }
    }

    fn validate(&self, errors: &mut ErrorList) {
        self.validate_type_and_ports(errors);
        self.validate_endpoints(errors);
    }

    fn prepare_update(&mut self, old: &Self, _part: &Part) {
        let same = self.address_type == old.address_type
            && self.endpoints == old.endpoints
            && self.ports == old.ports
            && self.metadata.labels == old.metadata.labels;
        if !same {
            self.metadata.generation = Some(old.metadata.generation.unwrap_or(0) + 1);
        }
    }

    fn validate_update(&self, old: &Self, _part: &Part, errors: &mut ErrorList) {
        self.validate_type_and_ports(errors);
        if self.endpoints != old.endpoints {
            self.validate_endpoints(errors);
        }
        if self.address_type != old.address_type {
            errors.push(invalid(&root("addressType"), &self.address_type, IMMUTABLE));
        }
    }

    fn warnings(&self) -> Vec<String> {
        if self.address_type == "FQDN" {
            return vec!["addressType: FQDN endpoints are deprecated".to_string()];
        }
        Vec::new()
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        let ports: Vec<String> = self
            .ports
            .iter()
            .flatten()
            .map(|port| match (port.port, &port.name) {
                (Some(number), _) => number.to_string(),
                (None, Some(name)) => name.clone(),
                (None, None) => "*".to_string(),
            })
            .collect();
        let addresses: Vec<String> = self
            .endpoints
            .iter()
            .flatten()
            .flat_map(|endpoint| endpoint.addresses.iter().cloned())
            .collect();
        let shown = |list: &[String]| {
            if list.is_empty() {
                "<unset>".to_string()
            } else {
                joined_with_more(list, SHOWN_MAX)
            }
        };
        vec![
            columns::name(&self.metadata),
            Value::from(self.address_type.as_str()),
            Value::from(shown(&ports)),
            Value::from(shown(&addresses)),
            columns::age(&self.metadata, now_seconds),
        ]
    }
}

trait SliceParts {
    fn validate_type_and_ports(&self, errors: &mut ErrorList);
    fn validate_endpoints(&self, errors: &mut ErrorList);
}

impl SliceParts for EndpointSlice {
    fn validate_type_and_ports(&self, errors: &mut ErrorList) {
        match self.address_type.as_str() {
            "" => errors.push(required(&root("addressType"), "")),
            "IPv4" | "IPv6" | "FQDN" => {}
            other => errors.push(not_supported(
                &root("addressType"),
                other,
                &["FQDN", "IPv4", "IPv6"],
            )),
        }
        let ports: &[discovery::EndpointPort] = self.ports.as_deref().unwrap_or(&[]);
        let path = root("ports");
        if ports.len() > 20_000 {
            errors.push(too_many(&path, ports.len(), 20_000));
            return;
        }
        for (index, port) in ports.iter().enumerate() {
            let path = path.index(index);
            let port_name = port.name.as_deref().unwrap_or("");
            if !port_name.is_empty() {
                invalid_each(
                    errors,
                    &path.child("name"),
                    port_name,
                    name::dns1123_label(port_name),
                );
            }
            if ports[..index]
                .iter()
                .any(|other| other.name.as_deref().unwrap_or("") == port_name)
            {
                errors.push(duplicate(&path.child("name"), port_name));
            }
            match port.protocol.as_deref() {
                None => errors.push(required(&path.child("protocol"), "")),
                Some(protocol) if PROTOCOLS.contains(&protocol) => {}
                Some(protocol) => {
                    errors.push(not_supported(&path.child("protocol"), protocol, PROTOCOLS))
                }
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
    }

    fn validate_endpoints(&self, errors: &mut ErrorList) {
        let endpoints = self.endpoints.as_deref().unwrap_or(&[]);
        let path = root("endpoints");
        if endpoints.len() > 1000 {
            errors.push(too_many(&path, endpoints.len(), 1000));
            return;
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            validate_endpoint(endpoint, &self.address_type, &path.index(index), errors);
        }
    }
}

fn validate_endpoint(
    endpoint: &discovery::Endpoint,
    type_: &str,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let list_path = path.child("addresses");
    match endpoint.addresses.len() {
        0 => errors.push(required(&list_path, "must contain at least 1 address")),
        count if count > 100 => errors.push(too_many(&list_path, count, 100)),
        _ => {}
    }
    for (index, address) in endpoint.addresses.iter().enumerate() {
        let path = list_path.index(index);
        let before = errors.len();
        match type_ {
            "IPv4" => ip::validate(address, &[], &path, errors),
            "IPv6" => ip::validate_strict(address, &path, errors),
            "FQDN" => {
                validate_domain(address, &path, errors);
                continue;
            }
            _ => continue,
        }
        if errors.len() > before {
            continue;
        }
        let is_v4 = ip::parse_sloppy(address).is_some_and(|address| address.is_ipv4());
        if is_v4 != (type_ == "IPv4") {
            errors.push(invalid(
                &list_path,
                address,
                format!("must be an {type_} address"),
            ));
        }
        validate_endpoint_ip(address, &path, errors);
    }
    if let Some(node) = &endpoint.node_name {
        invalid_each(
            errors,
            &path.child("nodeName"),
            node,
            name::dns1123_subdomain(node),
        );
    }
    let topology_path = path.child("deprecatedTopology");
    let topology_count = endpoint
        .deprecated_topology
        .as_ref()
        .map_or(0, |topology| topology.len());
    if topology_count > 16 {
        errors.push(too_many(&topology_path, topology_count, 16));
    }
    validate_labels(
        endpoint.deprecated_topology.as_ref(),
        &topology_path,
        errors,
    );
    if let Some(host) = &endpoint.hostname {
        invalid_each(
            errors,
            &path.child("hostname"),
            host,
            name::dns1123_label(host),
        );
    }
    if let Some(hints) = &endpoint.hints {
        let path = path.child("hints");
        let zones: Vec<&str> = hints
            .for_zones
            .iter()
            .flatten()
            .map(|zone| zone.name.as_str())
            .collect();
        let nodes: Vec<&str> = hints
            .for_nodes
            .iter()
            .flatten()
            .map(|node| node.name.as_str())
            .collect();
        validate_hints(&zones, name::label_value, &path.child("forZones"), errors);
        validate_hints(
            &nodes,
            name::dns1123_subdomain,
            &path.child("forNodes"),
            errors,
        );
    }
}

fn validate_hints(
    names: &[&str],
    rule: fn(&str) -> Vec<String>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if names.len() > 8 {
        errors.push(too_many(path, names.len(), 8));
        return;
    }
    for (index, hint) in names.iter().enumerate() {
        let path = path.index(index);
        let path = path.child("name");
        if names[..index].contains(hint) {
            errors.push(duplicate(&path, hint));
        }
        invalid_each(errors, &path, hint, rule(hint));
    }
}

fn validate_domain(text: &str, path: &Path<'_>, errors: &mut ErrorList) {
    if text.is_empty() {
        errors.push(required(path, ""));
        return;
    }
    let domain = text.strip_suffix('.').unwrap_or(text);
    let complaints = name::dns1123_subdomain(domain);
    if !complaints.is_empty() {
        errors.push(invalid(path, domain, complaints.join(",")));
    } else if !domain.contains('.') {
        errors.push(invalid(
            path,
            domain,
            "should be a domain with at least two segments separated by dots",
        ));
    } else if let Some(label) = domain
        .split('.')
        .find(|label| !name::dns1123_label(label).is_empty())
    {
        errors.push(invalid(path, label, name::dns1123_label(label).join(",")));
    }
}
