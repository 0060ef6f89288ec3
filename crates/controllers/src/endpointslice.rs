//! EndpointSlices: where the pods of a Service can be reached.
//!
//! [`reconcile`] serves Services with a selector, [`mirror`] copies Endpoints that users wrote for
//! Services without one. Both end in the same difference: endpoints that stay keep their slice, the fewest
//! slices are written, none holds more than [`ENDPOINTS_MAX`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{owner, pod};

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const CONTROLLER: &str = "endpointslice-controller.k8s.io";
pub const MIRRORING_CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Endpoints of one slice at most, as upstream's default.
pub const ENDPOINTS_MAX: usize = 100;
/// Addresses mirrored of one subset at most, as upstream's default.
const MIRRORED_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Named by the server.
    Create(Box<EndpointSlice>),
    /// The whole object with the resourceVersion that it was read at.
    Update(Box<EndpointSlice>),
    Delete {
        name: String,
        uid: String,
    },
}

/// Endpoints that share a slice: those of one address type with the same ports.
type Groups = BTreeMap<(&'static str, String), (Vec<EndpointPort>, Vec<Endpoint>)>;

/// What every slice of a Service carries.
struct Frame {
    namespace: Option<String>,
    generate_name: String,
    labels: BTreeMap<String, String>,
    annotations: Option<BTreeMap<String, String>>,
    owner: OwnerReference,
}

/// The writes for a Service with a selector. `slices`: those that this controller manages for it.
pub fn reconcile(
    service: &Service,
    pods: &[&Pod],
    nodes: &BTreeMap<String, &Node>,
    slices: &[&EndpointSlice],
) -> Vec<Action> {
    let Some(spec) = service.spec.as_ref().filter(|spec| {
        spec.selector
            .as_ref()
            .is_some_and(|selector| !selector.is_empty())
    }) else {
        return slices.iter().map(|slice| delete(slice)).collect();
    };
    if spec.type_.as_deref() == Some("ExternalName")
        || service.metadata.deletion_timestamp.is_some()
    {
        return slices.iter().map(|slice| delete(slice)).collect();
    }
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(
        SERVICE_NAME.into(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    let frame = Frame {
        namespace: service.metadata.namespace.clone(),
        generate_name: format!("{}-", service.metadata.name.as_deref().unwrap_or_default()),
        labels,
        annotations: None,
        owner: owner::controller_reference("v1", "Service", &service.metadata),
    };
    let mut groups = Groups::new();
    let families = address_types(service);
    for candidate in pods
        .iter()
        .filter(|candidate| has_endpoint(candidate, true))
    {
        let ports = pod_ports(service, candidate);
        for family in &families {
            let Some(endpoint) = pod_endpoint(service, candidate, nodes, family) else {
                continue;
            };
            let group = groups
                .entry((family, port_key(&ports)))
                .or_insert_with(|| (ports.clone(), Vec::new()));
            group.1.push(endpoint);
        }
    }
    for family in families {
        // A Service without endpoints still has one (empty) slice of each family.
        if !groups.keys().any(|(known, _)| *known == family) {
            groups.insert((family, String::new()), (Vec::new(), Vec::new()));
        }
    }
    let mut actions = difference(&frame, groups, slices);
    let last = slices
        .iter()
        .filter_map(|slice| noted_trigger(&slice.metadata))
        .max();
    let trigger = trigger_time(service, pods, last);
    for action in &mut actions {
        if let Action::Create(slice) | Action::Update(slice) = action {
            note_trigger(&mut slice.metadata, trigger);
        }
    }
    actions
}

/// When the change happened that a write of endpoints answers to: the earliest of what is later than the change
/// noted `last`. Clients measure by it how long endpoints take to follow.
pub(crate) fn trigger_time(
    service: &Service,
    pods: &[&Pod],
    last: Option<Timestamp>,
) -> Option<Timestamp> {
    let of_service = service.metadata.creation_timestamp.as_ref();
    let of_pods = pods.iter().filter_map(|candidate| {
        pod::condition(candidate, "Ready")?
            .last_transition_time
            .as_ref()
    });
    of_service
        .into_iter()
        .chain(of_pods)
        .map(|time| time.0)
        .filter(|time| last.is_none_or(|last| *time > last))
        .min()
}

/// The trigger time that an object notes.
pub(crate) fn noted_trigger(metadata: &ObjectMeta) -> Option<Timestamp> {
    metadata
        .annotations
        .as_ref()?
        .get(TRIGGER_TIME)?
        .parse()
        .ok()
}

pub(crate) fn note_trigger(metadata: &mut ObjectMeta, trigger: Option<Timestamp>) {
    let annotations = metadata.annotations.get_or_insert_default();
    match trigger {
        Some(time) => annotations.insert(TRIGGER_TIME.into(), time.to_string()),
        None => annotations.remove(TRIGGER_TIME),
    };
    metadata.annotations = metadata.annotations.take().filter(|own| !own.is_empty());
}

/// The writes for Endpoints that users wrote. `service`: of the same name, without a selector.
pub fn mirror(
    endpoints: Option<&Endpoints>,
    service: Option<&Service>,
    slices: &[&EndpointSlice],
) -> Vec<Action> {
    let selector_less = |service: &&Service| {
        service
            .spec
            .as_ref()
            .is_some_and(|spec| spec.selector.as_ref().is_none_or(BTreeMap::is_empty))
    };
    let (Some(endpoints), Some(_)) = (
        endpoints.filter(|endpoints| is_mirrored(endpoints)),
        service.filter(selector_less),
    ) else {
        return slices.iter().map(|slice| delete(slice)).collect();
    };
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(
        SERVICE_NAME.into(),
        endpoints.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.into(), MIRRORING_CONTROLLER.into());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    annotations.remove(TRIGGER_TIME);
    let frame = Frame {
        namespace: endpoints.metadata.namespace.clone(),
        generate_name: format!(
            "{}-",
            endpoints.metadata.name.as_deref().unwrap_or_default()
        ),
        labels,
        annotations: (!annotations.is_empty()).then_some(annotations),
        owner: owner::controller_reference("v1", "Endpoints", &endpoints.metadata),
    };
    let mut groups = Groups::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset
            .addresses
            .iter()
            .flatten()
            .map(|address| (address, true));
        let not_ready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready).take(MIRRORED_MAX) {
            let family = match address.ip.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => continue,
            };
            let endpoint = Endpoint {
                addresses: vec![address.ip.clone()],
                conditions: Some(EndpointConditions {
                    ready: Some(ready),
                    ..EndpointConditions::default()
                }),
                hostname: address.hostname.clone(),
                node_name: address.node_name.clone(),
                target_ref: address.target_ref.clone(),
                ..Endpoint::default()
            };
            groups
                .entry((family, port_key(&ports)))
                .or_insert_with(|| (ports.clone(), Vec::new()))
                .1
                .push(endpoint);
        }
    }
    difference(&frame, groups, slices)
}

/// Are these Endpoints to be mirrored (if their Service has no selector)?
pub fn is_mirrored(endpoints: &Endpoints) -> bool {
    let labelled = endpoints
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SKIP_MIRROR))
        .is_some_and(|skip| skip == "true");
    let leads = endpoints
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(LEADER));
    !labelled && !leads && endpoints.metadata.deletion_timestamp.is_none()
}

pub fn is_headless(service: &Service) -> bool {
    let ip = service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref());
    matches!(ip, None | Some("" | "None"))
}

/// Does the pod count at all: not finished, with an address, and not on its way out unless those count too.
pub(crate) fn has_endpoint(candidate: &Pod, terminating_too: bool) -> bool {
    let has_address = candidate.status.as_ref().is_some_and(|status| {
        status.pod_ip.is_some() || status.pod_ips.as_ref().is_some_and(|ips| !ips.is_empty())
    });
    !pod::is_terminal(candidate)
        && has_address
        && (terminating_too || candidate.metadata.deletion_timestamp.is_none())
}

fn address_types(service: &Service) -> Vec<&'static str> {
    let families = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ip_families.as_ref());
    let mut types: Vec<&'static str> = families
        .into_iter()
        .flatten()
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some("IPv4"),
            "IPv6" => Some("IPv6"),
            _ => None,
        })
        .collect();
    types.sort_unstable();
    types.dedup();
    if types.is_empty() {
        types.push("IPv4");
    }
    types
}

fn pod_endpoint(
    service: &Service,
    candidate: &Pod,
    nodes: &BTreeMap<String, &Node>,
    family: &str,
) -> Option<Endpoint> {
    let status = candidate.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone());
    let single = status
        .pod_ip
        .clone()
        .filter(|_| status.pod_ips.as_ref().is_none_or(Vec::is_empty));
    let of_family = |ip: &String| match ip.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => family == "IPv4",
        Ok(IpAddr::V6(_)) => family == "IPv6",
        Err(_) => false,
    };
    let addresses: Vec<String> = listed.chain(single).filter(of_family).collect();
    if addresses.is_empty() {
        return None;
    }
    let publishes = service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        .unwrap_or(false);
    let serving = pod::is_ready(candidate);
    let terminating = candidate.metadata.deletion_timestamp.is_some();
    let node_name = pod::node_name(candidate).map(ToString::to_string);
    let zone = node_name
        .as_ref()
        .and_then(|name| nodes.get(name))
        .and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned());
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(publishes || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, candidate),
        node_name,
        zone,
        target_ref: Some(target_reference(candidate)),
        ..Endpoint::default()
    })
}

/// The pod's own name in the DNS of a headless service that governs it.
pub(crate) fn hostname(service: &Service, candidate: &Pod) -> Option<String> {
    let spec = candidate.spec.as_ref()?;
    let governed = spec.subdomain.as_ref() == service.metadata.name.as_ref()
        && candidate.metadata.namespace == service.metadata.namespace;
    spec.hostname
        .clone()
        .filter(|hostname| !hostname.is_empty() && governed)
}

pub(crate) fn target_reference(candidate: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: candidate.metadata.namespace.clone(),
        name: candidate.metadata.name.clone(),
        uid: candidate.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

fn pod_ports(service: &Service, candidate: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let resolve = |port: &ServicePort| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(target_port(candidate, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: port.app_protocol.clone(),
        })
    };
    ports.into_iter().flatten().filter_map(resolve).collect()
}

/// The port of the pod that a Service's port means; `None` if the pod has no port of that name.
pub(crate) fn target_port(candidate: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        Some(IntOrString::Int(number)) if *number != 0 => Some(*number),
        Some(IntOrString::String(name)) if !name.is_empty() => {
            let spec = candidate.spec.as_ref()?;
            let restartable = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            spec.containers
                .iter()
                .chain(restartable)
                .flat_map(|container| container.ports.iter().flatten())
                .find(|port| {
                    port.name.as_ref() == Some(name)
                        && port.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|port| port.container_port)
        }
        _ => Some(port.port),
    }
}

fn port_key(ports: &[EndpointPort]) -> String {
    let mut keys: Vec<String> = ports
        .iter()
        .map(|port| {
            format!(
                "{:?}/{:?}/{:?}/{:?}",
                port.name, port.port, port.protocol, port.app_protocol
            )
        })
        .collect();
    keys.sort();
    keys.join(",")
}

/// Who an endpoint is, whatever its state.
fn endpoint_key(endpoint: &Endpoint) -> (Option<String>, Vec<String>) {
    (
        endpoint
            .target_ref
            .as_ref()
            .and_then(|target| target.uid.clone()),
        endpoint.addresses.clone(),
    )
}

fn delete(slice: &EndpointSlice) -> Action {
    Action::Delete {
        name: slice.metadata.name.clone().unwrap_or_default(),
        uid: slice.metadata.uid.clone().unwrap_or_default(),
    }
}

fn difference(frame: &Frame, groups: Groups, slices: &[&EndpointSlice]) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut rest: Vec<&EndpointSlice> = slices
        .iter()
        .copied()
        .filter(|slice| slice.metadata.deletion_timestamp.is_none())
        .collect();
    for ((family, key), (ports, endpoints)) in groups {
        let is_ours = |slice: &&EndpointSlice| {
            slice.address_type == family
                && port_key(slice.ports.as_deref().unwrap_or_default()) == key
        };
        let (ours, others) = rest.into_iter().partition(is_ours);
        rest = others;
        fill(frame, family, &ports, endpoints, ours, &mut actions);
    }
    actions.extend(rest.into_iter().map(delete));
    actions
}

/// Distributes the endpoints of one group over its slices.
fn fill(
    frame: &Frame,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
    slices: Vec<&EndpointSlice>,
    actions: &mut Vec<Action>,
) {
    let mut wanted: BTreeMap<_, Endpoint> = endpoints
        .into_iter()
        .map(|endpoint| (endpoint_key(&endpoint), endpoint))
        .collect();
    let mut kept: Vec<(&EndpointSlice, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let stays = slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|endpoint| wanted.remove(&endpoint_key(endpoint)))
            .collect();
        kept.push((slice, stays));
    }
    // The fullest slices with room first, so that few are written.
    let mut fresh: Vec<Endpoint> = wanted.into_values().collect();
    kept.sort_by_key(|(slice, stays)| {
        (std::cmp::Reverse(stays.len()), slice.metadata.name.clone())
    });
    for (_, stays) in &mut kept {
        let room = ENDPOINTS_MAX.saturating_sub(stays.len()).min(fresh.len());
        stays.extend(fresh.drain(..room));
    }
    let mut some_left = false;
    let mut empty: Vec<(&EndpointSlice, Vec<Endpoint>)> = Vec::new();
    for (slice, stays) in kept {
        if stays.is_empty() {
            empty.push((slice, stays));
        } else {
            some_left = true;
            update(frame, ports, slice, stays, actions);
        }
    }
    while !fresh.is_empty() {
        some_left = true;
        let part: Vec<Endpoint> = fresh.drain(..fresh.len().min(ENDPOINTS_MAX)).collect();
        actions.push(create(frame, family, ports, part));
    }
    let mut empty = empty.into_iter();
    if !some_left {
        match empty.next() {
            Some((slice, stays)) => update(frame, ports, slice, stays, actions),
            None => actions.push(create(frame, family, ports, Vec::new())),
        }
    }
    actions.extend(empty.map(|(slice, _)| delete(slice)));
}

fn create(frame: &Frame, family: &str, ports: &[EndpointPort], endpoints: Vec<Endpoint>) -> Action {
    Action::Create(Box::new(EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(frame.generate_name.clone()),
            namespace: frame.namespace.clone(),
            labels: Some(frame.labels.clone()),
            annotations: frame.annotations.clone(),
            owner_references: Some(vec![frame.owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: family.into(),
        endpoints: Some(endpoints),
        ports: Some(ports.to_vec()),
    }))
}

fn update(
    frame: &Frame,
    ports: &[EndpointPort],
    slice: &EndpointSlice,
    endpoints: Vec<Endpoint>,
    actions: &mut Vec<Action>,
) {
    let same_ports = port_key(slice.ports.as_deref().unwrap_or_default()) == port_key(ports);
    let labels = slice.metadata.labels.clone().unwrap_or_default();
    if slice.endpoints.as_deref().unwrap_or_default() == endpoints
        && same_ports
        && labels == frame.labels
        && (frame.annotations.is_none() || slice.metadata.annotations == frame.annotations)
    {
        return;
    }
    let mut updated = slice.clone();
    updated.endpoints = Some(endpoints);
    updated.ports = Some(ports.to_vec());
    updated.metadata.labels = Some(frame.labels.clone());
    if frame.annotations.is_some() {
        updated.metadata.annotations = frame.annotations.clone();
    }
    actions.push(Action::Update(Box::new(updated)));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn service() -> Service {
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "a", "uid": "s", "labels": {"l": "1"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]}}),
        )
        .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "a", "uid": name},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
        .unwrap()
    }

    fn run(service: &Service, pods: &[Pod], slices: &[EndpointSlice]) -> Vec<Action> {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {ZONE: "z"}}}))
                .unwrap();
        let nodes = BTreeMap::from([("n".to_string(), &node)]);
        let pods: Vec<&Pod> = pods.iter().collect();
        reconcile(service, &pods, &nodes, &slices.iter().collect::<Vec<_>>())
    }

    #[test]
    fn writes_note_what_triggered_them() {
        let mut service = service();
        let at = |second: i64| {
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                Timestamp::from_second(second).unwrap(),
            ))
        };
        service.metadata.creation_timestamp = at(100);
        let ready_at = |second: i64| {
            let mut pod = pod("p", "10.1.0.1", true);
            pod.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].last_transition_time =
                at(second);
            pod
        };
        let noted = |actions: &[Action]| match actions {
            [Action::Create(slice) | Action::Update(slice)] => {
                noted_trigger(&slice.metadata).map(Timestamp::as_second)
            }
            other => panic!("{other:?}"),
        };
        let first = run(&service, &[ready_at(130)], &[]);
        assert_eq!(noted(&first), Some(100));
        let slice = created(&first);
        assert_eq!(
            slice.metadata.annotations.as_ref().unwrap()[TRIGGER_TIME],
            "1970-01-01T00:01:40Z"
        );
        let mut moved = ready_at(150);
        moved.spec.as_mut().unwrap().node_name = Some("m".into());
        let second = run(&service, &[moved], std::slice::from_ref(&slice));
        assert_eq!(noted(&second), Some(150));
        let Action::Update(slice) = &second[0] else {
            panic!("{second:?}")
        };
        // A change that no time is known of.
        let mut back = ready_at(150);
        back.spec.as_mut().unwrap().node_name = Some("n".into());
        let third = run(&service, &[back], std::slice::from_ref(slice));
        assert_eq!(noted(&third), None);
        let Action::Update(slice) = &third[0] else {
            panic!("{third:?}")
        };
        assert!(slice.metadata.annotations.is_none());
    }

    fn created(actions: &[Action]) -> EndpointSlice {
        match actions {
            [Action::Create(slice)] => {
                let mut slice = (**slice).clone();
                slice.metadata.name = Some("web-x".into());
                slice
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_service_gets_a_slice_with_its_pods() {
        let pods = [pod("p", "10.1.0.1", true), pod("q", "10.1.0.2", false)];
        let slice = created(&run(&service(), &pods, &[]));
        assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert_eq!(
            (
                labels[SERVICE_NAME].as_str(),
                labels[MANAGED_BY].as_str(),
                labels["l"].as_str()
            ),
            ("web", CONTROLLER, "1")
        );
        let ready: Vec<_> = slice
            .endpoints
            .iter()
            .flatten()
            .map(|e| e.conditions.as_ref().unwrap().ready.unwrap())
            .collect();
        assert_eq!(ready, [true, false]);
        assert_eq!(
            slice.endpoints.as_ref().unwrap()[0].zone.as_deref(),
            Some("z")
        );
        assert!(run(&service(), &pods, &[slice]).is_empty());
    }

    #[test]
    fn changes_touch_only_what_changed() {
        let slice = created(&run(&service(), &[pod("p", "10.1.0.1", true)], &[]));
        let changed = run(
            &service(),
            &[pod("p", "10.1.0.1", false), pod("q", "10.1.0.2", true)],
            std::slice::from_ref(&slice),
        );
        assert!(
            matches!(&changed[..], [Action::Update(slice)] if slice.endpoints.as_ref().unwrap().len() == 2)
        );
        // The last pod gone, an empty slice stays: of no ports, as none could be resolved.
        let emptied = run(&service(), &[], std::slice::from_ref(&slice));
        assert!(
            emptied.iter().any(
                |action| matches!(action, Action::Create(slice) if slice.endpoints.as_ref().unwrap().is_empty())
            ),
            "{emptied:?}"
        );
        let mut bare = service();
        bare.spec.as_mut().unwrap().selector = None;
        assert!(matches!(
            run(&bare, &[], &[slice])[..],
            [Action::Delete { .. }]
        ));
    }

    #[test]
    fn slices_are_split_and_filled() {
        let pods: Vec<Pod> = (0..150)
            .map(|index| pod(&format!("p{index:03}"), &format!("10.1.0.{index}"), true))
            .collect();
        let actions = run(&service(), &pods, &[]);
        let sizes: Vec<usize> = actions
            .iter()
            .map(|action| {
                if let Action::Create(slice) = action {
                    slice.endpoints.as_ref().unwrap().len()
                } else {
                    0
                }
            })
            .collect();
        assert_eq!(sizes, [100, 50]);
    }

    #[test]
    fn terminating_pods_serve_but_are_not_ready() {
        let mut going = pod("p", "10.1.0.1", true);
        going.metadata.deletion_timestamp =
            serde_json::from_value(json!("2027-01-15T07:00:00Z")).unwrap();
        let slice = created(&run(&service(), &[going], &[]));
        let conditions = slice.endpoints.as_ref().unwrap()[0]
            .conditions
            .clone()
            .unwrap();
        assert_eq!(
            (conditions.ready, conditions.serving, conditions.terminating),
            (Some(false), Some(true), Some(true))
        );
    }

    #[test]
    fn endpoints_without_selector_are_mirrored() {
        let mut service = service();
        service.spec.as_mut().unwrap().selector = None;
        let endpoints: Endpoints = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a", "uid": "e"},
            "subsets": [{"addresses": [{"ip": "1.2.3.4"}, {"ip": "::1"}], "notReadyAddresses": [{"ip": "1.2.3.5"}], "ports": [{"port": 5432}]}]}))
        .unwrap();
        let actions = mirror(Some(&endpoints), Some(&service), &[]);
        let mut sizes: Vec<_> = actions
            .iter()
            .map(|a| {
                if let Action::Create(s) = a {
                    (s.address_type.clone(), s.endpoints.as_ref().unwrap().len())
                } else {
                    panic!()
                }
            })
            .collect();
        sizes.sort();
        assert_eq!(sizes, [("IPv4".to_string(), 2), ("IPv6".to_string(), 1)]);
        assert!(mirror(Some(&endpoints), None, &[]).is_empty());
        assert!(mirror(Some(&endpoints), Some(&super::tests::service()), &[]).is_empty());
    }
}
