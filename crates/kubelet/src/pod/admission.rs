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

/// Checks the pod against what is left beside `active`.
pub fn admit(
    view: &PodSpecView,
    active: &[&Pod],
    room: &Room,
    node: Option<&Node>,
) -> Result<(), Refusal> {
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
            "Pod was rejected: Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    }
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
    Err(Refusal { reason: "NodeAffinity".into(), message: "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".into() })
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
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000"
        );
    }
}
