//! Hard rules: may a pod of this class go to this node, and if not, why not.
//!
//! The order of the rules and the wording of the reasons are kube-scheduler's: the first rule that fails speaks.

use crate::class::{PodClass, Taint};
use crate::profile::{Profile, Rule};
use crate::resources::{EGRESS, INGRESS, PODS, ResourceIndex, ResourceSpace};
use crate::snapshot::NodeState;

/// Why a node will not do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    Unschedulable,
    NodeName,
    /// The pod's affinity names other nodes, so this one was not even looked at.
    NotNamed,
    Taint,
    AddedAffinity,
    NodeAffinity,
    HostPorts,
    Resources {
        lacking: Vec<ResourceIndex>,
        /// More than the node has even when empty.
        never: bool,
    },
    DiskConflict,
    ReadWriteOncePod,
    VolumeCount,
    Volumes(VolumeRejection),
    VolumeZone,
    SpreadLabelMissing,
    Spread,
    PodAffinity,
    PodAntiAffinity,
    ExistingAntiAffinity,
}

/// What is wrong with a node for a pod's claims; several things may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VolumeRejection {
    pub unreachable: bool,
    pub nothing_to_bind: bool,
    pub no_space: bool,
    pub volume_missing: bool,
}

impl Rejection {
    /// Could it go away if other pods did? (Upstream: Unschedulable as against UnschedulableAndUnresolvable.)
    pub fn is_resolvable(&self) -> bool {
        match self {
            Rejection::Resources { never, .. } => !never,
            Rejection::HostPorts
            | Rejection::DiskConflict
            | Rejection::ReadWriteOncePod
            | Rejection::VolumeCount
            | Rejection::Spread
            | Rejection::PodAntiAffinity
            | Rejection::ExistingAntiAffinity => true,
            _ => false,
        }
    }

    /// The reasons as kube-scheduler v1.36 words them, one a lacking resource.
    pub fn reasons(&self, space: &ResourceSpace) -> Vec<String> {
        let text = match self {
            Rejection::Unschedulable => "node(s) were unschedulable",
            Rejection::NodeName => "node(s) didn't match the requested node name",
            Rejection::NotNamed => "node(s) didn't satisfy plugin(s) [NodeAffinity]",
            Rejection::Taint => "node(s) had untolerated taint(s)",
            Rejection::AddedAffinity => "node(s) didn't match scheduler-enforced node affinity",
            Rejection::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Rejection::HostPorts => "node(s) didn't have free ports for the requested pod ports",
            Rejection::DiskConflict => "node(s) had no available disk",
            Rejection::ReadWriteOncePod => {
                "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod"
            }
            Rejection::VolumeCount => "node(s) exceed max volume count",
            Rejection::VolumeZone => "node(s) had no available volume zone",
            Rejection::SpreadLabelMissing => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Rejection::Spread => "node(s) didn't match pod topology spread constraints",
            Rejection::PodAffinity => "node(s) didn't match pod affinity rules",
            Rejection::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Rejection::ExistingAntiAffinity => {
                "node(s) didn't satisfy existing pods anti-affinity rules"
            }
            Rejection::Volumes(volumes) => return volumes.reasons(),
            Rejection::Resources { lacking, .. } => {
                let mut reasons: Vec<String> = lacking
                    .iter()
                    .map(|index| match *index {
                        PODS => "Too many pods".into(),
                        index => format!("Insufficient {}", space.name(index)),
                    })
                    .collect();
                reasons.dedup();
                return reasons;
            }
        };
        vec![text.to_string()]
    }
}

impl VolumeRejection {
    pub(crate) fn any(self) -> bool {
        self != VolumeRejection::default()
    }

    fn reasons(self) -> Vec<String> {
        let all = [
            (
                self.unreachable,
                "node(s) didn't match PersistentVolume's node affinity",
            ),
            (
                self.nothing_to_bind,
                "node(s) didn't find available persistent volumes to bind",
            ),
            (self.no_space, "node(s) did not have enough free storage"),
            (
                self.volume_missing,
                "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
            ),
        ];
        let holds = all.into_iter().filter(|(holds, _)| *holds);
        holds.map(|(_, reason)| reason.to_string()).collect()
    }
}

/// The first rule that depends on the node alone and fails.
pub(crate) fn static_rejection(
    class: &PodClass,
    node: &NodeState,
    profile: &Profile,
) -> Option<Rejection> {
    if node.unschedulable
        && profile.upholds(Rule::NodeUnschedulable)
        && !tolerates(class, &unschedulable_taint())
    {
        return Some(Rejection::Unschedulable);
    }
    let misnamed = class
        .node_name
        .as_deref()
        .is_some_and(|name| *name != *node.name);
    if misnamed && profile.upholds(Rule::NodeName) {
        return Some(Rejection::NodeName);
    }
    if !node.taints.is_empty()
        && profile.upholds(Rule::TaintToleration)
        && untolerated_taint(class, node).is_some()
    {
        return Some(Rejection::Taint);
    }
    if profile.upholds(Rule::NodeAffinity) {
        let added = profile.added_terms.as_ref();
        if added.is_some_and(|terms| !terms.iter().any(|t| t.matches(&node.name, &node.labels))) {
            return Some(Rejection::AddedAffinity);
        }
        if !matches_node_affinity(class, node) {
            return Some(Rejection::NodeAffinity);
        }
    }
    None
}

/// Is there room for one more pod of the class? The same question as [`room_rejection`] without the reasons.
pub(crate) fn has_room(
    class: &PodClass,
    node: &NodeState,
    profile: &Profile,
    space: &ResourceSpace,
) -> bool {
    if !class.host_ports.is_empty()
        || !node.nominated.is_empty()
        || profile.rules_off != 0
        || profile.ignores_any()
    {
        return room_rejection(class, node, profile, space).is_none();
    }
    (!class.demands_reported_bandwidth || node.reports_bandwidth)
        && class
            .request
            .iter()
            .all(|(index, amount)| amount <= node.free(index))
}

/// The first rule about what the node already holds and fails.
pub(crate) fn room_rejection(
    class: &PodClass,
    node: &NodeState,
    profile: &Profile,
    space: &ResourceSpace,
) -> Option<Rejection> {
    if profile.upholds(Rule::NodePorts) && !ports_are_free(class, node) {
        return Some(Rejection::HostPorts);
    }
    if !profile.upholds(Rule::NodeResourcesFit) {
        return None;
    }
    let mut lacking = Vec::new();
    let mut never = false;
    if class.demands_reported_bandwidth && !node.reports_bandwidth {
        lacking.push(INGRESS);
        never = true;
    }
    for (index, amount) in class.request.iter() {
        if profile.ignores_any() && index > PODS && profile.ignores(space.name(index)) {
            continue;
        }
        if amount > node.free_for(class.priority, index)
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

/// Are the class's host ports free, also of pods nominated to the node that matter as much?
fn ports_are_free(class: &PodClass, node: &NodeState) -> bool {
    let nominated = node
        .nominated
        .iter()
        .filter(|(_, nominee)| nominee.priority >= class.priority)
        .flat_map(|(_, nominee)| &nominee.host_ports);
    let held: Vec<_> = node.host_ports.iter().chain(nominated).collect();
    !class
        .host_ports
        .iter()
        .any(|port| held.iter().any(|held| held.conflicts(port)))
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
