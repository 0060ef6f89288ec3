//! Hard rules: may a pod of this class go to this node, and if not, why not.
//!
//! The order of the rules and the wording of the reasons are kube-scheduler's: the first rule that fails speaks.

use crate::class::{PodClass, Taint};
use crate::resources::{EGRESS, INGRESS, PODS, ResourceIndex, ResourceSpace};
use crate::snapshot::NodeState;

/// Why a node will not do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    Unschedulable,
    NodeName,
    Taint,
    NodeAffinity,
    HostPorts,
    Resources {
        lacking: Vec<ResourceIndex>,
        /// More than the node has even when empty.
        never: bool,
    },
    SpreadLabelMissing,
    Spread,
    PodAffinity,
    PodAntiAffinity,
    ExistingAntiAffinity,
}

impl Rejection {
    /// Could it go away if other pods did? (Upstream: Unschedulable as against UnschedulableAndUnresolvable.)
    pub fn is_resolvable(&self) -> bool {
        match self {
            Rejection::Resources { never, .. } => !never,
            Rejection::HostPorts
            | Rejection::Spread
            | Rejection::PodAntiAffinity
            | Rejection::ExistingAntiAffinity => true,
            _ => false,
        }
    }

    /// The reasons as kube-scheduler v1.36 words them, one a lacking resource.
    pub fn reasons(&self, space: &ResourceSpace) -> Vec<String> {
        let one = |text: &str| vec![text.to_string()];
        match self {
            Rejection::Unschedulable => one("node(s) were unschedulable"),
            Rejection::NodeName => one("node(s) didn't match the requested node name"),
            Rejection::Taint => one("node(s) had untolerated taint(s)"),
            Rejection::NodeAffinity => one("node(s) didn't match Pod's node affinity/selector"),
            Rejection::HostPorts => {
                one("node(s) didn't have free ports for the requested pod ports")
            }
            Rejection::SpreadLabelMissing => {
                one("node(s) didn't match pod topology spread constraints (missing required label)")
            }
            Rejection::Spread => one("node(s) didn't match pod topology spread constraints"),
            Rejection::PodAffinity => one("node(s) didn't match pod affinity rules"),
            Rejection::PodAntiAffinity => one("node(s) didn't match pod anti-affinity rules"),
            Rejection::ExistingAntiAffinity => {
                one("node(s) didn't satisfy existing pods anti-affinity rules")
            }
            Rejection::Resources { lacking, .. } => {
                let mut reasons: Vec<String> = lacking
                    .iter()
                    .map(|index| {
                        if *index == PODS {
                            "Too many pods".into()
                        } else {
                            format!("Insufficient {}", space.name(*index))
                        }
                    })
                    .collect();
                reasons.dedup();
                reasons
            }
        }
    }
}

/// The first rule that depends on the node alone and fails.
pub(crate) fn static_rejection(class: &PodClass, node: &NodeState) -> Option<Rejection> {
    if node.unschedulable && !tolerates(class, &unschedulable_taint()) {
        return Some(Rejection::Unschedulable);
    }
    if class
        .node_name
        .as_deref()
        .is_some_and(|name| *name != *node.name)
    {
        return Some(Rejection::NodeName);
    }
    if untolerated_taint(class, node).is_some() {
        return Some(Rejection::Taint);
    }
    if !matches_node_affinity(class, node) {
        return Some(Rejection::NodeAffinity);
    }
    None
}

/// The first rule about what the node already holds and fails.
pub(crate) fn room_rejection(class: &PodClass, node: &NodeState) -> Option<Rejection> {
    if class
        .host_ports
        .iter()
        .any(|port| node.host_ports.iter().any(|held| held.conflicts(port)))
    {
        return Some(Rejection::HostPorts);
    }
    let mut lacking = Vec::new();
    let mut never = false;
    if class.demands_reported_bandwidth && !node.reports_bandwidth {
        lacking.push(INGRESS);
        never = true;
    }
    for (index, amount) in class.request.iter() {
        if amount > node.free(index)
            && !(matches!(index, INGRESS | EGRESS) && lacking.contains(&INGRESS))
        {
            lacking.push(index);
            never |= amount > node.allocatable.amount(index);
        }
    }
    if lacking.is_empty() {
        return None;
    }
    // Too many pods comes first, then the resources in the order of their names' first sight.
    lacking.sort_by_key(|index| (*index != PODS, *index));
    Some(Rejection::Resources { lacking, never })
}

fn unschedulable_taint() -> Taint {
    Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        value: String::new(),
        effect: "NoSchedule".into(),
    }
}

fn tolerates(class: &PodClass, taint: &Taint) -> bool {
    class
        .tolerations
        .iter()
        .any(|toleration| toleration.tolerates(taint))
}

/// The first forbidding taint of the node that the class does not tolerate.
pub(crate) fn untolerated_taint<'n>(class: &PodClass, node: &'n NodeState) -> Option<&'n Taint> {
    node.taints
        .iter()
        .find(|taint| taint.forbids() && !tolerates(class, taint))
}

/// PreferNoSchedule taints that the class does not tolerate.
pub(crate) fn unwelcoming_taint_count(class: &PodClass, node: &NodeState) -> i64 {
    node.taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule" && !tolerates(class, taint))
        .count() as i64
}

pub(crate) fn matches_node_affinity(class: &PodClass, node: &NodeState) -> bool {
    class
        .node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value))
        && class.required_terms.as_ref().is_none_or(|terms| {
            terms
                .iter()
                .any(|term| term.matches(&node.name, &node.labels))
        })
}
