//! Addresses and node ports of Services: what is asked for is checked, the rest is chosen.
//!
//! [`Allocations`] holds what is taken, made from the cache at start. One server writes a cluster,
//! so that it is the only one who gives any out.

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use api::error::{ErrorList, FieldError, FieldErrorReason};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use rand::Rng;

use super::Reservation;
use crate::config::Ipv4Cidr;
use crate::rest::Rest;
use crate::status::{ApiError, ApiResult};

const HEADLESS: &str = "None";

/// Which addresses and ports are taken.
pub struct Allocations {
    cidr: Ipv4Cidr,
    port_range: RangeInclusive<u16>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    addresses: HashSet<Ipv4Addr>,
    ports: HashSet<u16>,
}

impl Allocations {
    pub fn new(cidr: Ipv4Cidr, port_range: RangeInclusive<u16>) -> Arc<Self> {
        Arc::new(Self {
            cidr,
            port_range,
            taken: Mutex::default(),
        })
    }

    /// Marks what a stored service has.
    pub fn adopt(&self, service: &Service) {
        let mut taken = self.lock();
        taken.addresses.extend(addresses_of(service));
        taken.ports.extend(ports_of(service));
    }

    /// Gives back what a deleted service had.
    pub fn release(&self, service: &Service) {
        self.give_back(&addresses_of(service), &ports_of(service));
    }

    fn give_back(&self, addresses: &[Ipv4Addr], ports: &BTreeSet<u16>) {
        let mut taken = self.lock();
        for address in addresses {
            taken.addresses.remove(address);
        }
        for port in ports {
            taken.ports.remove(port);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_address(&self, address: Ipv4Addr) -> Result<(), String> {
        let offset = self.cidr.offset(address);
        if offset.is_none_or(|offset| {
            offset == 0 || (self.cidr.size() > 2 && offset == self.cidr.size() - 1)
        }) {
            return Err(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                self.cidr
            ));
        }
        if self.lock().addresses.insert(address) {
            Ok(())
        } else {
            Err("provided IP is already allocated".into())
        }
    }

    /// A free address, from the upper part of the range as long as it has one: the lower part is
    /// left for addresses that people choose (upstream's static band).
    fn choose_address(&self) -> Option<Ipv4Addr> {
        let end = self.cidr.size().saturating_sub(1);
        let band = (self.cidr.size() / 16).clamp(16, 256);
        let mut taken = self.lock();
        for (low, high) in [(band + 1, end), (1, (band + 1).min(end))] {
            if low >= high {
                continue;
            }
            let start = rand::rng().random_range(low..high);
            let candidates = (start..high).chain(low..start);
            for offset in candidates {
                if let Some(address) = self.cidr.nth(offset)
                    && taken.addresses.insert(address)
                {
                    return Some(address);
                }
            }
        }
        None
    }

    fn take_port(&self, port: u16) -> Result<(), String> {
        if !self.port_range.contains(&port) {
            let (start, end) = (self.port_range.start(), self.port_range.end());
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {start}-{end}"
            ));
        }
        if self.lock().ports.insert(port) {
            Ok(())
        } else {
            Err("provided port is already allocated".into())
        }
    }

    fn choose_port(&self) -> Option<u16> {
        let (low, high) = (*self.port_range.start(), *self.port_range.end());
        // Upstream's static band, for the same reason as of addresses.
        let size = high.saturating_sub(low);
        let band = (size / 32).clamp(16, 128).min(size);
        let mut taken = self.lock();
        for (low, high) in [(low + band, high), (low, low + band)] {
            let start = rand::rng().random_range(low..=high);
            if let Some(port) = (start..=high)
                .chain(low..start)
                .find(|port| !taken.ports.contains(port))
            {
                taken.ports.insert(port);
                return Some(port);
            }
        }
        None
    }
}

fn type_of(spec: &ServiceSpec) -> &str {
    spec.type_.as_deref().unwrap_or("ClusterIP")
}

fn addresses_of(service: &Service) -> Vec<Ipv4Addr> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    if type_of(spec) == "ExternalName" {
        return Vec::new();
    }
    let mut addresses: Vec<Ipv4Addr> = spec
        .cluster_ips
        .iter()
        .flatten()
        .chain(&spec.cluster_ip)
        .filter_map(|address| address.parse().ok())
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

fn ports_of(service: &Service) -> BTreeSet<u16> {
    let Some(spec) = &service.spec else {
        return BTreeSet::new();
    };
    let ports = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| port.node_port)
        .chain(spec.health_check_node_port);
    ports
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .collect()
}

/// Checks and completes a service that is created (`old` is `None`) or updated.
pub fn admit(
    rest: &Rest<'_>,
    new: &mut Service,
    old: Option<&Service>,
    reservation: &mut Reservation,
) -> ApiResult<()> {
    let allocations = &rest.core.allocations;
    let (old_addresses, old_ports) = old
        .map(|old| (addresses_of(old), ports_of(old)))
        .unwrap_or_default();
    let mut errors = ErrorList::new();
    let mut taken_addresses = Vec::new();
    let mut taken_ports = BTreeSet::new();

    allocate_address(
        allocations,
        new,
        &old_addresses,
        &mut taken_addresses,
        &mut errors,
    )?;
    if errors.is_empty() {
        allocate_ports(allocations, new, &old_ports, &mut taken_ports, &mut errors);
    }
    let kept_addresses = addresses_of(new);
    let kept_ports = ports_of(new);
    let (back, addresses, ports) = (allocations.clone(), taken_addresses, taken_ports);
    reservation.on_failure(move || back.give_back(&addresses, &ports));
    if !errors.is_empty() {
        return Err(ApiError::invalid(
            "",
            "Service",
            new.metadata.name.as_deref().unwrap_or_default(),
            &errors,
        ));
    }
    let gone_addresses: Vec<Ipv4Addr> = old_addresses
        .into_iter()
        .filter(|address| !kept_addresses.contains(address))
        .collect();
    let gone_ports: BTreeSet<u16> = old_ports.difference(&kept_ports).copied().collect();
    let back = allocations.clone();
    reservation.on_success(move || back.give_back(&gone_addresses, &gone_ports));
    Ok(())
}

fn allocate_address(
    allocations: &Allocations,
    service: &mut Service,
    held: &[Ipv4Addr],
    taken: &mut Vec<Ipv4Addr>,
    errors: &mut ErrorList,
) -> ApiResult<()> {
    let spec = service.spec.get_or_insert_default();
    if type_of(spec) == "ExternalName" {
        return Ok(());
    }
    check_families(spec, errors);
    if !errors.is_empty() {
        return Ok(());
    }
    match spec.cluster_ip.clone() {
        Some(headless) if headless == HEADLESS => {
            spec.cluster_ips
                .get_or_insert_with(|| vec![HEADLESS.into()]);
        }
        Some(given) => {
            // What is no address of ours is left to validation.
            let Ok(address) = given.parse::<Ipv4Addr>() else {
                return Ok(());
            };
            if !held.contains(&address) {
                match allocations.take_address(address) {
                    Ok(()) => taken.push(address),
                    Err(detail) => errors.push(FieldError {
                        reason: FieldErrorReason::Invalid,
                        field: "spec.clusterIPs".into(),
                        bad_value: format!("[{given:?}]"),
                        detail: format!("failed to allocate IP {address}: {detail}"),
                    }),
                }
            }
            if spec.cluster_ips.as_ref().is_none_or(Vec::is_empty) {
                spec.cluster_ips = Some(vec![given]);
            }
        }
        None => {
            let address = allocations.choose_address().ok_or_else(|| {
                ApiError::internal(format!(
                    "failed to allocate a serviceIP: range {} is full",
                    allocations.cidr
                ))
            })?;
            taken.push(address);
            spec.cluster_ip = Some(address.to_string());
            spec.cluster_ips = Some(vec![address.to_string()]);
        }
    }
    spec.ip_families.get_or_insert_with(|| vec!["IPv4".into()]);
    spec.ip_family_policy
        .get_or_insert_with(|| "SingleStack".into());
    Ok(())
}

/// A cluster of one family cannot serve another one, nor both; only a headless Service without a selector, whose
/// endpoints are its author's, may say so.
fn check_families(spec: &ServiceSpec, errors: &mut ErrorList) {
    let mut refuse = |field: String, bad_value: String, detail: &str| {
        errors.push(FieldError {
            reason: FieldErrorReason::Invalid,
            field,
            bad_value,
            detail: detail.into(),
        });
    };
    let addresses = spec.cluster_ips.as_deref().unwrap_or_default();
    let has_address = spec
        .cluster_ip
        .as_deref()
        .is_some_and(|address| !address.is_empty());
    if !addresses.is_empty() && !has_address {
        refuse(
            "spec.clusterIPs".into(),
            api::error::print_value(addresses),
            "must be empty when `clusterIP` is not specified",
        );
    }
    let unselective = spec.selector.as_ref().is_none_or(|own| own.is_empty());
    if spec.cluster_ip.as_deref() == Some(HEADLESS) && unselective {
        return;
    }
    if spec.ip_family_policy.as_deref() == Some("RequireDualStack") {
        refuse(
            "spec.ipFamilyPolicy".into(),
            "\"RequireDualStack\"".into(),
            "this cluster is not configured for dual-stack services",
        );
    }
    // Names that are no family are left to validation.
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        if family == "IPv6" {
            refuse(
                format!("spec.ipFamilies[{index}]"),
                api::error::print_value(family),
                "not configured on this cluster",
            );
        }
    }
}

fn allocate_ports(
    allocations: &Allocations,
    service: &mut Service,
    held: &BTreeSet<u16>,
    taken: &mut BTreeSet<u16>,
    errors: &mut ErrorList,
) {
    let spec = service.spec.get_or_insert_default();
    let wanted = match type_of(spec) {
        "NodePort" => true,
        "LoadBalancer" => spec.allocate_load_balancer_node_ports.unwrap_or(true),
        _ => false,
    };
    let has_explicit = spec.type_.as_deref() == Some("LoadBalancer");
    if !wanted && !has_explicit {
        return;
    }
    // TCP and UDP of one port share their node port, as upstream.
    let mut shared: Vec<(i32, String, u16)> = Vec::new();
    for (index, port) in spec.ports.iter_mut().flatten().enumerate() {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        let field = format!("spec.ports[{index}].nodePort");
        let given = port
            .node_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port > 0);
        if let Some(given) = given {
            let known = held.contains(&given) || taken.contains(&given);
            if !known && let Err(detail) = allocations.take_port(given) {
                errors.push(FieldError {
                    reason: FieldErrorReason::Invalid,
                    field,
                    bad_value: given.to_string(),
                    detail,
                });
                continue;
            }
            if !known {
                taken.insert(given);
            }
            shared.push((port.port, protocol, given));
        } else if wanted {
            let same = shared
                .iter()
                .find(|(number, other, _)| *number == port.port && *other != protocol)
                .map(|(_, _, node_port)| *node_port);
            let chosen = match same {
                Some(node_port) => Some(node_port),
                None => allocations.choose_port().inspect(|chosen| {
                    taken.insert(*chosen);
                }),
            };
            match chosen {
                Some(chosen) => {
                    port.node_port = Some(chosen.into());
                    shared.push((port.port, protocol, chosen));
                }
                None => errors.push(FieldError {
                    reason: FieldErrorReason::Internal,
                    field,
                    bad_value: String::new(),
                    detail: "failed to allocate a nodePort: range is full".into(),
                }),
            }
        }
    }
    if spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local")
        && spec.health_check_node_port.unwrap_or(0) == 0
        && let Some(chosen) = allocations.choose_port()
    {
        taken.insert(chosen);
        spec.health_check_node_port = Some(chosen.into());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn families_are_those_of_the_cluster() {
        for (spec, expect) in [
            (r#"{"selector":{"a":"b"},"ipFamilies":["IPv4"]}"#, None),
            (
                r#"{"selector":{"a":"b"},"ipFamilyPolicy":"PreferDualStack"}"#,
                None,
            ),
            (
                r#"{"clusterIP":"None","clusterIPs":["None"],"ipFamilyPolicy":"RequireDualStack","ipFamilies":["IPv4","IPv6"]}"#,
                None,
            ),
            (
                r#"{"selector":{"a":"b"},"ipFamilyPolicy":"RequireDualStack"}"#,
                Some(
                    "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
                ),
            ),
            (
                r#"{"selector":{"a":"b"},"ipFamilies":["IPv6"]}"#,
                Some("spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"),
            ),
            (
                r#"{"selector":{"a":"b"},"clusterIPs":["10.43.0.9"]}"#,
                Some(
                    "spec.clusterIPs: Invalid value: [\"10.43.0.9\"]: must be empty when `clusterIP` is not specified",
                ),
            ),
        ] {
            let mut errors = ErrorList::new();
            check_families(&serde_json::from_str(spec).unwrap(), &mut errors);
            let found = errors.first().map(ToString::to_string);
            assert_eq!(found.as_deref(), expect, "{spec}");
        }
    }

    #[test]
    fn a_range_is_used_to_its_last_address() {
        let allocations = Allocations::new("10.0.0.0/29".parse().unwrap(), 30000..=30003);
        allocations
            .take_address(Ipv4Addr::new(10, 0, 0, 1))
            .unwrap();
        let chosen: HashSet<Ipv4Addr> =
            std::iter::from_fn(|| allocations.choose_address()).collect();
        assert_eq!(chosen.len(), 5);
        assert!(
            !chosen.contains(&Ipv4Addr::new(10, 0, 0, 0))
                && !chosen.contains(&Ipv4Addr::new(10, 0, 0, 7))
        );
        assert_eq!(
            allocations
                .take_address(Ipv4Addr::new(10, 0, 0, 1))
                .unwrap_err(),
            "provided IP is already allocated"
        );
        let ports: HashSet<u16> = std::iter::from_fn(|| allocations.choose_port()).collect();
        assert_eq!(ports.len(), 4);
        assert!(
            allocations
                .take_port(80)
                .unwrap_err()
                .contains("30000-30003")
        );
    }

    #[test]
    fn what_is_given_back_can_be_taken() {
        let allocations = Allocations::new("10.0.0.0/24".parse().unwrap(), 30000..=32767);
        let mut service = Service::default();
        let spec = service.spec.get_or_insert_default();
        spec.cluster_ip = Some("10.0.0.9".into());
        allocations.adopt(&service);
        assert!(
            allocations
                .take_address(Ipv4Addr::new(10, 0, 0, 9))
                .is_err()
        );
        allocations.release(&service);
        assert!(allocations.take_address(Ipv4Addr::new(10, 0, 0, 9)).is_ok());
    }
}
