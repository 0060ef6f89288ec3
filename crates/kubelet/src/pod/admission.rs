//! Whether this node takes a pod that was bound to it. Pure.
//!
//! The scheduler has checked already; this holds the line where it was wrong, raced, or was bypassed
//! (`spec.nodeName` set by hand, static pods).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};

use super::resources::{self, Totals};
use super::spec::PodSpecView;
use crate::context::Capacity;

/// Why a pod is refused; its status becomes Failed with this reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
}

/// What pods may use of the node.
#[derive(Clone, Debug, Default)]
pub struct Room {
    pub capacity: Capacity,
    pub pod_count_max: usize,
    /// Extended resources and huge pages that the node has.
    pub others: BTreeMap<String, i64>,
}

/// Sysctls that concern nobody but the pod; all others are refused, as upstream does by default.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Checks the pod against what is left beside `active`.
pub fn admit(
    view: &PodSpecView,
    active: &[&Pod],
    room: &Room,
    node: Option<&Node>,
) -> Result<(), Refusal> {
    check_sysctls(view)?;
    check_app_armor(view)?;
    check_host_ports(&view.pod, active)?;
    if let Some(node) = node {
        check_selector(&view.pod, node)?;
    }
    let used = active.iter().fold(Totals::default(), |mut sum, pod| {
        sum.add(&resources::requests(pod));
        sum
    });
    if active.len() + 1 > room.pod_count_max {
        return Err(out_of(
            "pods",
            1,
            active.len() as i64,
            room.pod_count_max as i64,
        ));
    }
    let wants = resources::requests(&view.pod);
    let check = |name: &str, requested: i64, used: i64, capacity: i64| {
        if requested > 0 && requested > capacity - used {
            Err(out_of(name, requested, used, capacity))
        } else {
            Ok(())
        }
    };
    check(
        "cpu",
        wants.cpu_millis,
        used.cpu_millis,
        room.capacity.allocatable_cpu_millis,
    )?;
    check(
        "memory",
        wants.memory_bytes,
        used.memory_bytes,
        room.capacity.allocatable_memory_bytes,
    )?;
    for (name, requested) in &wants.others {
        let capacity = match name.as_str() {
            "ephemeral-storage" => room.capacity.allocatable_ephemeral_storage_bytes,
            // Nobody counts what the node does not know; as upstream, it is not refused for that.
            other => match room.others.get(other) {
                Some(capacity) => *capacity,
                None => continue,
            },
        };
        check(
            name,
            *requested,
            used.others.get(name).copied().unwrap_or(0),
            capacity,
        )?;
    }
    Ok(())
}

fn out_of(resource: &str, requested: i64, used: i64, capacity: i64) -> Refusal {
    Refusal {
        reason: format!("OutOf{resource}"),
        message: format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    }
}

fn check_sysctls(view: &PodSpecView) -> Result<(), Refusal> {
    let context = view
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let asked = context.and_then(|context| context.sysctls.as_ref());
    for sysctl in asked.into_iter().flatten() {
        let name = sysctl.name.replace('/', ".");
        let why = if !SAFE_SYSCTLS.contains(&name.as_str()) {
            "not allowlisted"
        } else if view.host_network() && name.starts_with("net.") {
            "not allowed with host net enabled"
        } else {
            continue;
        };
        return Err(Refusal {
            reason: "SysctlForbidden".into(),
            message: format!("forbidden sysctl: {:?} {why}", sysctl.name),
        });
    }
    Ok(())
}

/// The runtime confines nothing by AppArmor: a pod that asks for it must not run without.
fn check_app_armor(view: &PodSpecView) -> Result<(), Refusal> {
    let of_pod = view
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref())
        .and_then(|context| context.app_armor_profile.as_ref());
    let of_containers = view.containers.iter().filter_map(|spec| {
        spec.container
            .security_context
            .as_ref()
            .and_then(|context| context.app_armor_profile.as_ref())
    });
    if of_pod
        .into_iter()
        .chain(of_containers)
        .all(|profile| profile.type_ == "Unconfined")
    {
        return Ok(());
    }
    let host_confines = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|enabled| enabled.starts_with('Y'));
    Err(Refusal {
        reason: "AppArmor".into(),
        message: if host_confines {
            "Cannot enforce AppArmor: this container runtime does not load profiles; \
             set appArmorProfile to Unconfined to run without one"
        } else {
            "Cannot enforce AppArmor: AppArmor is not enabled on the host"
        }
        .into(),
    })
}

fn check_host_ports(pod: &Pod, active: &[&Pod]) -> Result<(), Refusal> {
    let wanted = host_ports(pod);
    let taken: Vec<_> = active.iter().flat_map(|pod| host_ports(pod)).collect();
    let everywhere = |address: &str| matches!(address, "" | "0.0.0.0" | "::");
    let clash = wanted.iter().any(|(address, protocol, port)| {
        taken.iter().any(|(other, own_protocol, own_port)| {
            (protocol, port) == (own_protocol, own_port)
                && (address == other || everywhere(address) || everywhere(other))
        })
    });
    if !clash {
        return Ok(());
    }
    Err(Refusal {
        reason: "NodePorts".into(),
        message:
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
                .into(),
    })
}

/// Address, protocol and number of every port that the pod takes on the node.
fn host_ports(pod: &Pod) -> Vec<(&str, &str, i32)> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| api::pod::is_restartable_init(container));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some((
                port.host_ip.as_deref().unwrap_or_default(),
                port.protocol.as_deref().unwrap_or("TCP"),
                port.host_port.filter(|port| *port > 0)?,
            ))
        })
        .collect()
}

fn check_selector(pod: &Pod, node: &Node) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let fits = required.is_none_or(|selector| {
        selector
            .node_selector_terms
            .iter()
            .any(|term| term_matches(term, labels, name))
    });
    if selected && fits {
        return Ok(());
    }
    Err(Refusal {
        reason: "NodeAffinity".into(),
        message: "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
            .into(),
    })
}

fn term_matches(
    term: &NodeSelectorTerm,
    labels: &BTreeMap<String, String>,
    node_name: &str,
) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|requirement| {
        requirement_matches(
            requirement,
            labels.get(&requirement.key).map(String::as_str),
        )
    }) && fields.iter().all(|requirement| {
        requirement_matches(
            requirement,
            (requirement.key == "metadata.name").then_some(node_name),
        )
    })
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|own| own == value));
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |holds: fn(i64, i64) -> bool| match (
        value.and_then(number),
        values.first().and_then(|first| number(first)),
    ) {
        (Some(own), Some(bound)) => holds(own, bound),
        _ => false,
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|own, bound| own > bound),
        "Lt" => compare(|own, bound| own < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    #[test]
    fn what_does_not_fit_is_refused() {
        let pod = |spec: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
        };
        let needs = |cpu: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
        let other = pod(needs("1500m"));
        let capacity = Capacity {
            allocatable_cpu_millis: 2000,
            allocatable_memory_bytes: 1 << 30,
            ..Capacity::default()
        };
        let room = Room {
            capacity,
            pod_count_max: 2,
            others: BTreeMap::new(),
        };
        let node: Node = serde_json::from_value(
            json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "cores": "8"}}}),
        )
        .unwrap();
        let with = |key: &str, value: Value| json!({"containers": [], key: value});
        let port = |address: &str, number: i32| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": number, "hostIP": address}]}]});
        let web = pod(port("", 80));
        let affinity = |expression: Value| {
            with(
                "affinity",
                json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}),
            )
        };
        for (spec, active, expect) in [
            (needs("500m"), vec![&other], Ok(())),
            (needs("501m"), vec![&other], Err("OutOfcpu")),
            (needs("1m"), vec![&other, &other], Err("OutOfpods")),
            (with("nodeSelector", json!({"disk": "ssd"})), vec![], Ok(())),
            (
                with("nodeSelector", json!({"disk": "hdd"})),
                vec![],
                Err("NodeAffinity"),
            ),
            (
                affinity(json!({"key": "disk", "operator": "In", "values": ["a", "ssd"]})),
                vec![],
                Ok(()),
            ),
            (
                affinity(json!({"key": "disk", "operator": "NotIn", "values": ["ssd"]})),
                vec![],
                Err("NodeAffinity"),
            ),
            (
                affinity(json!({"key": "cores", "operator": "Gt", "values": ["7"]})),
                vec![],
                Ok(()),
            ),
            (
                affinity(json!({"key": "gpu", "operator": "Exists"})),
                vec![],
                Err("NodeAffinity"),
            ),
            (
                with(
                    "securityContext",
                    json!({"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}]}),
                ),
                vec![],
                Ok(()),
            ),
            (
                with(
                    "securityContext",
                    json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}),
                ),
                vec![],
                Err("SysctlForbidden"),
            ),
            (
                with(
                    "securityContext",
                    json!({"appArmorProfile": {"type": "Unconfined"}}),
                ),
                vec![],
                Ok(()),
            ),
            (
                with(
                    "securityContext",
                    json!({"appArmorProfile": {"type": "RuntimeDefault"}}),
                ),
                vec![],
                Err("AppArmor"),
            ),
            (port("", 80), vec![&web], Err("NodePorts")),
            (port("192.0.2.1", 80), vec![&web], Err("NodePorts")),
            (port("", 81), vec![&web], Ok(())),
        ] {
            let view = PodSpecView::new(Arc::new(pod(spec.clone())));
            let result =
                admit(&view, &active, &room, Some(&node)).map_err(|refusal| refusal.reason);
            assert_eq!(result, expect.map_err(str::to_owned), "{spec}");
        }
        let refusal = admit(
            &PodSpecView::new(Arc::new(pod(needs("1")))),
            &[&other],
            &room,
            None,
        )
        .unwrap_err();
        assert_eq!(
            refusal.message,
            "Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000"
        );
    }
}
