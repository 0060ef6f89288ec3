//! Preferences among nodes that would all do, and what a placed pod is worth.

use crate::Placement;
use crate::class::PodClass;
use crate::filter;
use crate::resources::{Amounts, CPU, EGRESS, EPHEMERAL_STORAGE, INGRESS, MEMORY, ResourceIndex};
use crate::snapshot::{NodeState, Snapshot};
use crate::topology::Topology;

/// Steps between no and full preference in every single score.
const FULL: i64 = 10_000;
/// Weights as kube-scheduler's default profile has them.
const TAINT_WEIGHT: i64 = 3;
const NODE_AFFINITY_WEIGHT: i64 = 2;
const SPREAD_WEIGHT: i64 = 2;
const POD_AFFINITY_WEIGHT: i64 = 2;
const FIT_WEIGHT: i64 = 1;

/// A pod's worth counts in these; a node's preference is a fraction of one of them, so that it never outweighs a placement.
pub(crate) const PREFERENCE_STEPS: i64 = 128;

/// What placing one pod of the class is worth: something for the pod itself, and the share of the
/// cluster that its request brings to use, in parts per million of each resource.
pub(crate) fn worth(totals: &Amounts, class: &PodClass) -> i64 {
    const PER_POD: i64 = 1000;
    const PARTS: i128 = 1_000_000;
    let mut worth = i128::from(PER_POD);
    for index in [CPU, MEMORY, EPHEMERAL_STORAGE, INGRESS, EGRESS] {
        let total = i128::from(totals.amount(index).max(0));
        if total > 0 {
            worth += (i128::from(class.request.amount(index)) * PARTS / total).min(PARTS);
        }
    }
    worth as i64 * PREFERENCE_STEPS
}

/// How much the class likes the node for the node's own sake, from 0 to below [`PREFERENCE_STEPS`].
pub(crate) fn node_preference(class: &PodClass, node: &NodeState) -> i64 {
    let total: i64 = class
        .preferred_terms
        .iter()
        .map(|(weight, _)| i64::from(*weight))
        .sum();
    let liked = affinity_weight(class, node);
    let affinity = if total > 0 { liked * 100 / total } else { 0 };
    let welcome = (27 - 9 * filter::unwelcoming_taint_count(class, node)).max(0);
    affinity + welcome
}

fn affinity_weight(class: &PodClass, node: &NodeState) -> i64 {
    let liked = class
        .preferred_terms
        .iter()
        .filter(|(_, term)| term.matches(&node.name, &node.labels));
    liked.map(|(weight, _)| i64::from(*weight)).sum()
}

/// Scores of feasible nodes; higher is better. Each part is normalised over the candidates, as upstream does.
pub(crate) fn scores(
    snapshot: &Snapshot,
    class: &PodClass,
    topology: Option<&Topology>,
    placement: Placement,
    nodes: &[usize],
) -> Vec<i64> {
    let of = |part: &dyn Fn(&NodeState) -> i64| {
        nodes
            .iter()
            .map(|index| part(&snapshot.nodes[*index]))
            .collect::<Vec<i64>>()
    };
    let mut total = of(&|node| fit(class, node, placement) * FIT_WEIGHT);
    let mut blend = |raw: Vec<i64>, weight: i64, more_is_better: bool| {
        let (low, high) = (
            raw.iter().copied().min().unwrap_or(0),
            raw.iter().copied().max().unwrap_or(0),
        );
        if low == high {
            return;
        }
        for (total, raw) in total.iter_mut().zip(raw) {
            let share = ((i128::from(raw) - i128::from(low)) * i128::from(FULL)
                / (i128::from(high) - i128::from(low))) as i64;
            *total += weight * if more_is_better { share } else { FULL - share };
        }
    };
    blend(
        of(&|node| filter::unwelcoming_taint_count(class, node)),
        TAINT_WEIGHT,
        false,
    );
    if !class.preferred_terms.is_empty() {
        blend(
            of(&|node| affinity_weight(class, node)),
            NODE_AFFINITY_WEIGHT,
            true,
        );
    }
    if let Some(topology) = topology {
        blend(
            of(&|node| topology.affinity_preference(class, node)),
            POD_AFFINITY_WEIGHT,
            true,
        );
        blend(
            of(&|node| topology.crowding(class, node)),
            SPREAD_WEIGHT,
            false,
        );
    }
    total
}

/// How full (packing) or how empty (spreading) the node would be with the pod, averaged over CPU, memory and what else the pod asks for.
fn fit(class: &PodClass, node: &NodeState, placement: Placement) -> i64 {
    let mut sum = 0;
    let mut count = 0;
    let mut consider = |index: ResourceIndex| {
        let allocatable = node.allocatable.amount(index);
        if allocatable > 0 && allocatable < i64::MAX {
            let used =
                i128::from(node.used.amount(index)) + i128::from(class.request.amount(index));
            sum += (used * i128::from(FULL) / i128::from(allocatable)).clamp(0, i128::from(FULL))
                as i64;
            count += 1;
        }
    };
    consider(CPU);
    consider(MEMORY);
    for (index, _) in class.request.iter().filter(|(index, _)| *index > MEMORY) {
        consider(index);
    }
    let full = if count > 0 { sum / count } else { 0 };
    match placement {
        Placement::Pack => full,
        Placement::Spread => FULL - full,
    }
}
