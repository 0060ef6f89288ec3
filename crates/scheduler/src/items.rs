//! Pods as items and nodes as knapsacks: the one file where the two worlds meet.

use std::collections::HashMap;
use std::sync::Arc;

use crate::class::PodClass;
use crate::profile::{FitStrategy, Profile};
use crate::resources::{Amounts, PODS, ResourceIndex};
use crate::snapshot::{NodeIndex, Snapshot};
use crate::{Policy, score};

/// Pairs of class and node above which the problem is not even written down.
const PAIRS_MAX: usize = 20_000_000;

/// Comparisons of a weight with a capacity that a search may cost.
const COMPARISONS_MAX: u64 = 20_000_000;

/// Which rules forbid a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// Those that depend on the node alone: what they leave bounds every plan.
    OfNodes,
    /// Those about other pods too, as things are.
    All,
}

/// Some classes and how many pods of each, against all nodes.
pub(crate) struct Problem {
    problem: knapsack::Problem,
    nodes: Vec<NodeIndex>,
    secondary: knapsack::Secondary,
}

/// What the solver came to.
pub(crate) struct Matched {
    pub value: i64,
    /// For each class: nodes and how many pods go there.
    pub placed: Vec<Vec<(NodeIndex, usize)>>,
    pub upper_bound: i64,
}

impl Problem {
    /// `given_back`: room that counts as free though it is taken. `None` if the problem is too large to be worth it.
    pub fn new(
        snapshot: &mut Snapshot,
        demand: &[(Arc<PodClass>, usize)],
        profiles: &[Arc<Profile>],
        given_back: &HashMap<NodeIndex, Amounts>,
        priority: i32,
        rules: Rules,
    ) -> Option<Problem> {
        if demand.len().saturating_mul(snapshot.node_count()) > PAIRS_MAX {
            return None;
        }
        let mut dimensions: Vec<ResourceIndex> = demand
            .iter()
            .flat_map(|(class, _)| class.request.iter().map(|(index, _)| index))
            .collect();
        dimensions.push(PODS);
        dimensions.sort_unstable();
        dimensions.dedup();
        let nodes: Vec<NodeIndex> = snapshot.nodes().map(|(index, _)| index).collect();
        let knapsacks = nodes
            .iter()
            .map(|index| {
                let back = given_back.get(index);
                let free = |resource: &ResourceIndex| {
                    let free = snapshot.nodes[*index].free_for(priority, *resource);
                    free.saturating_add(back.map_or(0, |back| back.amount(*resource)))
                };
                knapsack::Knapsack {
                    capacity: dimensions.iter().map(free).collect(),
                }
            })
            .collect();
        let mut items = Vec::with_capacity(demand.len());
        for ((class, count), profile) in demand.iter().zip(profiles) {
            items.push(item(
                snapshot,
                class,
                *count,
                profile,
                rules,
                &dimensions,
                &nodes,
            ));
        }
        let spreads = profiles.iter().any(|profile| {
            matches!(
                profile.fit,
                FitStrategy::Spread | FitStrategy::LeastAllocated(_)
            )
        });
        Some(Problem {
            problem: knapsack::Problem {
                dimension_count: dimensions.len(),
                knapsacks,
                items,
                conflicts: Vec::new(),
                gangs: Vec::new(),
            },
            nodes,
            secondary: if spreads {
                knapsack::Secondary::Spread
            } else {
                knapsack::Secondary::Pack
            },
        })
    }

    pub fn upper_bound(&self) -> i64 {
        knapsack::upper_bound(&self.problem)
    }

    pub fn solve(&self, policy: &Policy) -> Matched {
        let options = knapsack::Options {
            // A step costs as much as there are dimensions, and some clusters have a thousand.
            work_max: policy
                .work_max
                .min(COMPARISONS_MAX / self.problem.dimension_count.max(1) as u64),
            seed: policy.seed,
            stop: policy.stop,
            secondary: self.secondary,
        };
        let solution = knapsack::solve(&self.problem, &options).expect(
            "the problem is built from vectors of one length and from requests that are never negative",
        );
        let mut placed = vec![Vec::new(); self.problem.items.len()];
        for place in &solution.placed {
            let node = self.nodes[place.knapsack as usize];
            placed[place.item as usize].push((node, place.count as usize));
        }
        Matched {
            value: solution.value,
            placed,
            upper_bound: solution.upper_bound,
        }
    }
}

fn item(
    snapshot: &mut Snapshot,
    class: &Arc<PodClass>,
    count: usize,
    profile: &Arc<Profile>,
    rules: Rules,
    dimensions: &[ResourceIndex],
    nodes: &[NodeIndex],
) -> knapsack::Item {
    let view = snapshot.view(class, profile);
    let worth = score::worth(snapshot.totals(), class);
    let mut all_allowed = true;
    let mut allowed = knapsack::KnapsackSet::default();
    for (position, node) in nodes.iter().enumerate() {
        let admits = match rules {
            Rules::OfNodes => view.admits(*node),
            Rules::All => view.admits_but_for_room(snapshot, *node),
        };
        if admits {
            allowed.insert(position);
        } else {
            all_allowed = false;
        }
    }
    snapshot.keep_view(view);
    let preference =
        |node: &NodeIndex| score::node_preference(class, &snapshot.nodes[*node], profile);
    let preferences: Vec<i64> = nodes.iter().map(preference).collect();
    let same = preferences.windows(2).all(|pair| pair[0] == pair[1]);
    let profit = match preferences.first() {
        Some(first) if same => knapsack::Profit::Same(worth.saturating_add(*first)),
        _ => knapsack::Profit::PerKnapsack(
            preferences
                .iter()
                .map(|p| worth.saturating_add(*p))
                .collect(),
        ),
    };
    knapsack::Item {
        weight: knapsack::Weight::Same(
            dimensions
                .iter()
                .map(|resource| class.request.amount(*resource))
                .collect(),
        ),
        profit,
        multiplicity: u32::try_from(count).unwrap_or(u32::MAX),
        allowed: (!all_allowed).then(|| Arc::new(allowed)),
    }
}
