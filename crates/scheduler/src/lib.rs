//! Snapshot and pending pods to a placement plan, as a multiple-knapsack problem. PURE: no I/O, no clock, no task.
//!
//! Items are pods (identical ones once, with a multiplicity), knapsacks are nodes, and what a pod is worth is
//! its own placement plus the share of the cluster that it brings to use. Enter at [`plan`]; a cycle is
//! five steps, each a function of its name:
//!
//! 1. [`collect_demand`]: pending pods, by priority and class;
//! 2. [`collect_availability`]: what each node could take of a class, and why not;
//! 3. [`match_pods`]: pods to nodes, with value, upper bound and gap;
//! 4. [`reserve`]: the plan's room is taken in the snapshot;
//! 5. [`start`]: the plan as Binding objects, one a pod, for the shell to post.
//!
//! Invariants: no node is overcommitted in any resource; every hard rule of a placed pod holds; no pod waits
//! while one of lower priority takes room that it could have used; the same snapshot, pods and policy give
//! the same plan; planning leaves the snapshot as it was.
//!
//! Deliberately absent so far: preemption, gangs, volumes' rules, image locality.

mod class;
mod cycle;
mod diagnosis;
mod filter;
mod resources;
mod score;
mod selector;
mod snapshot;
mod topology;

pub use class::PodClass;
pub use cycle::{
    Demand, PendingPod, Tier, collect_availability, collect_demand, match_pods, may_fit, plan,
    reserve, start,
};
pub use diagnosis::{Diagnosis, Verdict};
pub use filter::Rejection;
pub use resources::{
    Amounts, EGRESS_BANDWIDTH, INGRESS_BANDWIDTH, NETWORK_BANDWIDTH, ResourceIndex, ResourceSpace,
};
pub use snapshot::{NodeState, PlacedPod, Snapshot, Uid};

/// Which node is preferred where several would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// The fullest: fewest nodes used, least fragmentation.
    #[default]
    Pack,
    /// The emptiest, as kube-scheduler's LeastAllocated.
    Spread,
}

/// How to plan.
#[derive(Clone, Copy)]
pub struct Policy<'a> {
    pub placement: Placement,
    /// Limit of elementary steps of the solver, a batch.
    pub work_max: u64,
    pub seed: u64,
    /// Asked now and then; true ends the search with the best plan so far.
    pub stop: Option<&'a dyn Fn() -> bool>,
}

impl Default for Policy<'_> {
    fn default() -> Self {
        Policy {
            placement: Placement::Pack,
            work_max: 2_000_000,
            seed: 1,
            stop: None,
        }
    }
}

/// What is to be done, and why.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// One decision a pending pod.
    pub decisions: Vec<(PendingPod, Decision)>,
    /// Worth of all placements of this plan.
    pub value: i64,
    /// No plan that honours the priorities could be worth more, by the solver's proof: the sum of each tier's bound given the tiers above it.
    pub upper_bound: i64,
}

#[derive(Clone, Debug)]
pub enum Decision {
    Place {
        node: std::sync::Arc<str>,
        /// The verdict on every node at that moment; shared by the pods of a class.
        why: std::sync::Arc<Diagnosis>,
    },
    Wait {
        why: std::sync::Arc<Diagnosis>,
    },
}

impl Plan {
    /// How far the value may be below the best possible, as a share of the bound. Never NaN.
    pub fn gap(&self) -> f64 {
        if self.upper_bound <= 0 || self.value >= self.upper_bound {
            return 0.0;
        }
        self.upper_bound.saturating_sub(self.value) as f64 / self.upper_bound as f64
    }

    /// Pods with the nodes they are to go to.
    pub fn placements(&self) -> impl Iterator<Item = (&PendingPod, &std::sync::Arc<str>)> {
        self.decisions
            .iter()
            .filter_map(|(pod, decision)| match decision {
                Decision::Place { node, .. } => Some((pod, node)),
                Decision::Wait { .. } => None,
            })
    }
}

#[cfg(test)]
mod tests;
