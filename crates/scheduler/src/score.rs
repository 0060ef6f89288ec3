//! Preferences among nodes that would all do, and what a placed pod is worth.
//!
//! Every single score runs from 0 to [`FULL`]. [`own_score`] is what a node is worth by itself and moves
//! only when that node changes; the others are relative to the other candidates and are blended in by
//! [`crate::view`].

use crate::class::PodClass;
use crate::filter;
use crate::profile::{FitStrategy, Profile, ResourceWeight};
use crate::resources::{
    Amounts, CPU, EGRESS, EPHEMERAL_STORAGE, INGRESS, MEMORY, NETWORK_BANDWIDTH, PODS,
    ResourceIndex, ResourceSpace,
};
use crate::snapshot::{NodeIndex, NodeState, Snapshot};

/// Steps between no and full preference in every single score.
pub(crate) const FULL: i64 = 10_000;

/// A pod's worth counts in these; a node's preference is a fraction of one of them, so that it never outweighs a placement.
pub(crate) const PREFERENCE_STEPS: i64 = 128;

/// Image sizes between which locality counts, the upper one for each container (upstream: 23 MB, 1000 MB).
const IMAGE_BYTES_MIN: i64 = 23 << 20;
const IMAGE_BYTES_MAX: i64 = 1000 << 20;

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

/// Does the class prefer some nodes for their own sake (or might it, taints being what they are)?
pub(crate) fn has_node_preference(class: &PodClass, profile: &Profile) -> bool {
    !class.preferred_terms.is_empty() || !profile.added_preferred_terms.is_empty()
}

/// How much the class likes the node for the node's own sake, from 0 to below [`PREFERENCE_STEPS`].
pub(crate) fn node_preference(class: &PodClass, node: &NodeState, profile: &Profile) -> i64 {
    let liked = affinity_weight(class, node, profile);
    let unwelcoming = if node.taints.is_empty() {
        0
    } else {
        filter::unwelcoming_taint_count(class, node)
    };
    preference(liked, affinity_weight_max(class, profile), unwelcoming)
}

/// The same from its parts: weight of the terms that hold, of all terms, and taints that make the node less welcome.
pub(crate) fn preference(liked: i64, liked_max: i64, unwelcoming: i64) -> i64 {
    let affinity = if liked_max > 0 {
        liked * 100 / liked_max
    } else {
        0
    };
    affinity.clamp(0, 100) + (27 - 9 * unwelcoming).max(0)
}

/// Sum of the weights of all preferred node affinity terms.
pub(crate) fn affinity_weight_max(class: &PodClass, profile: &Profile) -> i64 {
    let terms = class
        .preferred_terms
        .iter()
        .chain(&profile.added_preferred_terms);
    terms.map(|(weight, _)| i64::from(*weight).max(0)).sum()
}

/// Sum of the weights of the preferred node affinity terms that hold.
pub(crate) fn affinity_weight(class: &PodClass, node: &NodeState, profile: &Profile) -> i64 {
    let terms = class
        .preferred_terms
        .iter()
        .chain(&profile.added_preferred_terms);
    let liked = terms.filter(|(_, term)| term.matches(&node.name, &node.labels));
    liked.map(|(weight, _)| i64::from(*weight).max(0)).sum()
}

/// A profile's strategies with names resolved to indexes, for one class.
#[derive(Debug)]
pub(crate) struct Scorer {
    kind: Kind,
    /// Resource and weight.
    resources: Vec<(ResourceIndex, i64)>,
    balanced: Vec<ResourceIndex>,
    fit_weight: i64,
    balanced_weight: i64,
    image_weight: i64,
    container_count: i64,
}

#[derive(Debug)]
enum Kind {
    Fullest,
    Emptiest,
    Least,
    Most,
    Shape(Vec<(i64, i64)>),
}

impl Scorer {
    pub fn new(space: &ResourceSpace, class: &PodClass, profile: &Profile) -> Self {
        let asked = |index: ResourceIndex| class.request.amount(index) > 0;
        let named = |list: &[ResourceWeight]| -> Vec<(ResourceIndex, i64)> {
            let found = list.iter().filter_map(|resource| {
                let index = match resource.name.as_str() {
                    NETWORK_BANDWIDTH => INGRESS,
                    name => space.find(name)?,
                };
                // What the pod does not ask for does not count, CPU and memory apart.
                (index <= MEMORY || asked(index)).then_some((index, resource.weight))
            });
            found.collect()
        };
        let own = || {
            let others = class.request.iter().map(|(index, _)| index);
            let others = others.filter(|index| *index > MEMORY && *index != PODS);
            [CPU, MEMORY]
                .into_iter()
                .chain(others)
                .map(|index| (index, 1))
                .collect()
        };
        let (kind, resources) = match &profile.fit {
            FitStrategy::Pack => (Kind::Fullest, own()),
            FitStrategy::Spread => (Kind::Emptiest, own()),
            FitStrategy::LeastAllocated(list) => (Kind::Least, named(list)),
            FitStrategy::MostAllocated(list) => (Kind::Most, named(list)),
            FitStrategy::RequestedToCapacityRatio { resources, shape } => {
                (Kind::Shape(shape.clone()), named(resources))
            }
        };
        Scorer {
            kind,
            resources,
            balanced: named(&profile.balanced)
                .into_iter()
                .map(|(index, _)| index)
                .collect(),
            fit_weight: profile.weights.fit,
            balanced_weight: profile.weights.balanced_allocation,
            image_weight: profile.weights.image_locality,
            container_count: (class.images.len() as i64).max(1),
        }
    }

    /// What the node is worth by itself. `image_bytes`: of the pod's images that it already has, spread-adjusted.
    pub fn own_score(&self, class: &PodClass, node: &NodeState, image_bytes: i64) -> i64 {
        let mut score = self.fit_weight * self.fit(class, node);
        if self.balanced_weight != 0 {
            score += self.balanced_weight * self.balance(class, node);
        }
        if self.image_weight != 0 && image_bytes > 0 {
            score += self.image_weight * self.image(image_bytes);
        }
        score
    }

    fn fit(&self, class: &PodClass, node: &NodeState) -> i64 {
        let mut sum = 0i64;
        let mut weights = 0i64;
        for (index, weight) in &self.resources {
            let Some(share) = used_share(class, node, *index) else {
                continue;
            };
            let score = match &self.kind {
                Kind::Fullest => share.min(FULL),
                Kind::Emptiest => FULL - share.min(FULL),
                Kind::Least => (FULL - share).max(0),
                Kind::Most => {
                    if share > FULL {
                        0
                    } else {
                        share
                    }
                }
                Kind::Shape(shape) => {
                    let score = along(shape, share.min(FULL));
                    if score == 0 {
                        continue;
                    }
                    score
                }
            };
            sum += score * weight;
            weights += weight;
        }
        if weights > 0 { sum / weights } else { 0 }
    }

    /// How alike the shares of the resources are after the placement: 1 minus their standard deviation.
    fn balance(&self, class: &PodClass, node: &NodeState) -> i64 {
        let shares: Vec<i64> = self
            .balanced
            .iter()
            .filter_map(|index| used_share(class, node, *index))
            .map(|share| share.min(FULL))
            .collect();
        if shares.len() < 2 {
            return FULL;
        }
        let mean = shares.iter().sum::<i64>() / shares.len() as i64;
        let variance = shares
            .iter()
            .map(|share| (share - mean).pow(2))
            .sum::<i64>()
            / shares.len() as i64;
        FULL - variance.isqrt()
    }

    fn image(&self, bytes: i64) -> i64 {
        let most = IMAGE_BYTES_MAX.saturating_mul(self.container_count);
        let counted = bytes.clamp(IMAGE_BYTES_MIN, most) - IMAGE_BYTES_MIN;
        (i128::from(counted) * i128::from(FULL) / i128::from(most - IMAGE_BYTES_MIN)) as i64
    }
}

/// Share of a resource that is used with the pod placed, above [`FULL`] if that is too much; `None` where the node has none or no end of it.
fn used_share(class: &PodClass, node: &NodeState, index: ResourceIndex) -> Option<i64> {
    let allocatable = node.allocatable.amount(index);
    if allocatable <= 0 || allocatable == i64::MAX {
        return None;
    }
    let used = match index {
        CPU | MEMORY => i128::from(node.scored[index]) + i128::from(class.scored_request[index]),
        _ => i128::from(node.used.amount(index)) + i128::from(class.request.amount(index)),
    };
    Some((used * i128::from(FULL) / i128::from(allocatable)).clamp(0, 2 * i128::from(FULL)) as i64)
}

/// The score at a utilisation, both in [`FULL`] steps, along straight lines between the points (0 to 100).
fn along(shape: &[(i64, i64)], at: i64) -> i64 {
    let step = FULL / 100;
    let mut previous: Option<(i64, i64)> = None;
    for (utilisation, score) in shape {
        let (x, y) = (utilisation * step, score * step);
        if at <= x {
            return match previous {
                Some((x0, y0)) if x > x0 => y0 + (y - y0) * (at - x0) / (x - x0),
                _ => y,
            };
        }
        previous = Some((x, y));
    }
    previous.map_or(0, |(_, score)| score)
}

/// Bytes of the class's images that each node has, scaled by how many nodes have them, so that one lucky node does not draw all pods.
pub(crate) fn image_bytes(snapshot: &Snapshot, class: &PodClass) -> Vec<(NodeIndex, i64)> {
    let node_count = snapshot.node_count().max(1) as i128;
    let mut bytes = Vec::new();
    for image in class
        .images
        .iter()
        .filter_map(|image| snapshot.images.get(image))
    {
        let scaled = i128::from(image.size_bytes) * image.nodes.len() as i128 / node_count;
        bytes.extend(image.nodes.iter().map(|node| (*node, scaled as i64)));
    }
    bytes
}

/// A raw score's place between the lowest and the highest of all candidates.
pub(crate) fn normalized(raw: i64, low: i64, high: i64, more_is_better: bool) -> i64 {
    if high <= low {
        return if more_is_better { 0 } else { FULL };
    }
    let share = ((i128::from(raw) - i128::from(low)) * i128::from(FULL)
        / (i128::from(high) - i128::from(low))) as i64;
    if more_is_better { share } else { FULL - share }
}
