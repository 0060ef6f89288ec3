//! Endpoints, the older form of EndpointSlices, for whoever still reads it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::endpointslice::{
    HEADLESS, has_endpoint, hostname, is_headless, note_trigger, noted_trigger, target_port,
    target_reference, trigger_time,
};
use crate::pod;

pub const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
pub const CONTROLLER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses of one object at most, as upstream's.
const ADDRESSES_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Create(Box<Endpoints>),
    Update(Box<Endpoints>),
    Delete { uid: String },
}

/// The write that is needed, if any. Without a Service, Endpoints that this controller made go; with one
/// that has no selector, they are the user's.
pub fn reconcile(
    service: Option<&Service>,
    pods: &[&Pod],
    existing: Option<&Endpoints>,
) -> Option<Action> {
    let Some(service) = service.filter(|service| service.metadata.deletion_timestamp.is_none())
    else {
        let existing = existing?;
        let managed = existing
            .metadata
            .labels
            .as_ref()
            .is_some_and(|labels| labels.get(MANAGED_BY).is_some_and(|by| by == CONTROLLER));
        return managed.then(|| Action::Delete {
            uid: existing.metadata.uid.clone().unwrap_or_default(),
        });
    };
    let spec = service.spec.as_ref()?;
    if spec.selector.as_ref().is_none_or(BTreeMap::is_empty)
        || spec.type_.as_deref() == Some("ExternalName")
    {
        return None;
    }
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let mut subsets = subsets(service, pods);
    let truncated = truncate(&mut subsets);
    let Some(existing) = existing else {
        let annotations = truncated
            .then(|| BTreeMap::from([(OVER_CAPACITY.to_string(), "truncated".to_string())]));
        let mut metadata = ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations,
            ..ObjectMeta::default()
        };
        note_trigger(&mut metadata, trigger_time(service, pods, None));
        return Some(Action::Create(Box::new(Endpoints {
            metadata,
            subsets: Some(subsets).filter(|subsets| !subsets.is_empty()),
        })));
    };
    let marked = existing
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(OVER_CAPACITY));
    if existing.subsets.clone().unwrap_or_default() == subsets
        && existing.metadata.labels.as_ref() == Some(&labels)
        && marked == truncated
    {
        return None;
    }
    let mut updated = existing.clone();
    updated.subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
    updated.metadata.labels = Some(labels);
    let annotations = updated.metadata.annotations.get_or_insert_default();
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    let last = noted_trigger(&existing.metadata);
    note_trigger(&mut updated.metadata, trigger_time(service, pods, last));
    Some(Action::Update(Box::new(updated)))
}

/// Addresses that share their ports share a subset.
fn subsets(service: &Service, pods: &[&Pod]) -> Vec<EndpointSubset> {
    let spec = service.spec.as_ref();
    let publishes = spec
        .and_then(|spec| spec.publish_not_ready_addresses)
        .unwrap_or(false);
    let service_ports = spec.and_then(|spec| spec.ports.clone()).unwrap_or_default();
    let mut by_ports: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    for candidate in pods
        .iter()
        .filter(|candidate| has_endpoint(candidate, publishes))
    {
        let mut ports: Vec<EndpointPort> = service_ports
            .iter()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: port.name.clone().filter(|name| !name.is_empty()),
                    port: target_port(candidate, port)?,
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        if ports.is_empty() && !(service_ports.is_empty() && is_headless(service)) {
            continue;
        }
        ports.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
        let Some(ip) = candidate
            .status
            .as_ref()
            .and_then(|status| status.pod_ip.clone())
        else {
            continue;
        };
        let address = EndpointAddress {
            ip,
            hostname: hostname(service, candidate),
            node_name: pod::node_name(candidate).map(ToString::to_string),
            target_ref: Some(target_reference(candidate)),
        };
        let subset = by_ports
            .entry(format!("{ports:?}"))
            .or_insert_with(|| EndpointSubset {
                ports: Some(ports).filter(|p| !p.is_empty()),
                ..EndpointSubset::default()
            });
        let list = if publishes || pod::is_ready(candidate) {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(address);
    }
    let mut subsets: Vec<EndpointSubset> = by_ports.into_values().collect();
    for subset in &mut subsets {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses]
            .into_iter()
            .flatten()
        {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
    }
    subsets
}

/// Keeps the first [`ADDRESSES_MAX`] addresses, ready ones first. True if some had to go.
fn truncate(subsets: &mut Vec<EndpointSubset>) -> bool {
    let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let total: usize = subsets
        .iter()
        .map(|subset| count(&subset.addresses) + count(&subset.not_ready_addresses))
        .sum();
    if total <= ADDRESSES_MAX {
        return false;
    }
    let mut left = ADDRESSES_MAX;
    let mut keep = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = list {
            addresses.truncate(left);
            left -= addresses.len();
        }
        *list = list.take().filter(|addresses| !addresses.is_empty());
    };
    subsets
        .iter_mut()
        .for_each(|subset| keep(&mut subset.addresses));
    subsets
        .iter_mut()
        .for_each(|subset| keep(&mut subset.not_ready_addresses));
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn service() -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.0.0.1", "ports": [{"port": 80, "targetPort": 8080}]}}))
        .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "a", "uid": name}, "spec": {"containers": []},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
        .unwrap()
    }

    #[test]
    fn made_kept_and_removed() {
        let pods = [
            pod("q", "10.1.0.2", true),
            pod("p", "10.1.0.1", true),
            pod("r", "10.1.0.3", false),
        ];
        let pods: Vec<&Pod> = pods.iter().collect();
        let Some(Action::Create(made)) = reconcile(Some(&service()), &pods, None) else {
            panic!()
        };
        let subset = &made.subsets.as_ref().unwrap()[0];
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            list.iter()
                .flatten()
                .map(|a| a.ip.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (ips(&subset.addresses), ips(&subset.not_ready_addresses)),
            (
                vec!["10.1.0.1".into(), "10.1.0.2".into()],
                vec!["10.1.0.3".into()]
            )
        );
        assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);
        assert_eq!(reconcile(Some(&service()), &pods, Some(&made)), None);
        assert!(matches!(
            reconcile(Some(&service()), &[], Some(&made)),
            Some(Action::Update(_))
        ));
        assert!(matches!(
            reconcile(None, &[], Some(&made)),
            Some(Action::Delete { .. })
        ));
        // A user's own Endpoints stay.
        assert_eq!(reconcile(None, &[], Some(&Endpoints::default())), None);
    }

    #[test]
    fn too_many_addresses_are_cut() {
        let pods: Vec<Pod> = (0..1200)
            .map(|index| {
                pod(
                    &format!("p{index}"),
                    &format!("10.1.{}.{}", index / 250, index % 250),
                    true,
                )
            })
            .collect();
        let pods: Vec<&Pod> = pods.iter().collect();
        let Some(Action::Create(made)) = reconcile(Some(&service()), &pods, None) else {
            panic!()
        };
        assert_eq!(
            made.subsets.unwrap()[0].addresses.as_ref().unwrap().len(),
            ADDRESSES_MAX
        );
        assert_eq!(
            made.metadata.annotations.unwrap()[OVER_CAPACITY],
            "truncated"
        );
    }
}
