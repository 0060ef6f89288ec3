//! Snapshot and pending pods to a placement plan, as a multiple-knapsack problem. PURE: no I/O, no clock, no task.
//!
//! Items are pods (identical ones once, with a multiplicity), knapsacks are nodes, and what a pod is worth is
//! its own placement plus the share of the cluster that it brings to use. Enter at [`plan`]; a cycle is
//! five steps, each a function of its name:
//!
//! 1. [`collect_demand`]: pending pods, by priority and class, gangs together;
//! 2. [`collect_availability`]: what each node could take of a class, and why not;
//! 3. [`match_pods`]: pods to nodes, with value, upper bound and gap; preemption for who is left;
//! 4. [`reserve`]: the plan's room is taken in the snapshot;
//! 5. [`start`]: the plan as Binding objects, one a pod, for the shell to post.
//!
//! Invariants: no node is overcommitted in any resource; every hard rule of a placed pod holds; no pod waits
//! while one of lower priority takes room that it could have used; the same snapshot, pods and policy give
//! the same plan; planning leaves the snapshot as it was.
//!
//! Deliberately absent: devices by ResourceClaim (such pods wait, and are told so), scheduler extenders,
//! sampling of nodes (all are looked at, by an index).

mod budget;
mod class;
pub mod config;
mod cycle;
mod diagnosis;
mod domains;
mod explain;
mod filter;
mod gang;
mod items;
mod log;
mod owners;
mod preemption;
mod profile;
mod resources;
mod score;
mod selector;
mod snapshot;
mod storage;
mod tier;
mod topology;
mod undo;
mod view;
mod volumes;

use std::sync::Arc;

pub use class::{GroupApi, GroupKey, POD_GROUP_LABEL, PodClass};
pub use config::Configuration;
pub use cycle::{
    Demand, Gang, PendingPod, Tier, collect_availability, collect_demand, match_pods, may_fit,
    plan, release, reserve, start,
};
pub use diagnosis::{Diagnosis, Refusals, Verdict};
pub use explain::{Explanation, explain};
pub use filter::Rejection;
pub use gang::{GroupSpec, Groups};
pub use owners::Owners;
pub use preemption::Victim;
pub use profile::{
    DEFAULT_SCHEDULER, DefaultSpread, FitStrategy, Profile, ResourceWeight, Rule, Weights,
};
pub use resources::{
    Amounts, CPU, EGRESS, EGRESS_BANDWIDTH, INGRESS, INGRESS_BANDWIDTH, NETWORK_BANDWIDTH,
    ResourceIndex, ResourceSpace,
};
pub use snapshot::{NodeState, PlacedPod, Snapshot, Uid};
pub use storage::{ClaimKey, Storage, VolumeAction};

/// How to plan.
#[derive(Clone)]
pub struct Policy<'a> {
    /// By `schedulerName`; pods of a name that is not here follow the first.
    pub profiles: Arc<[Arc<Profile>]>,
    /// Limit of elementary steps of the solver, a batch.
    pub work_max: u64,
    pub seed: u64,
    /// Asked now and then; true ends the search with the best plan so far.
    pub stop: Option<&'a dyn Fn() -> bool>,
}

impl Default for Policy<'_> {
    fn default() -> Self {
        Policy::of(Profile::default())
    }
}

impl Policy<'_> {
    /// One profile for everybody.
    pub fn of(profile: Profile) -> Self {
        Policy::with_profiles([Arc::new(profile)].into())
    }

    pub fn with_profiles(profiles: Arc<[Arc<Profile>]>) -> Self {
        Policy {
            profiles,
            work_max: 2_000_000,
            seed: 1,
            stop: None,
        }
    }

    pub(crate) fn profile(&self, scheduler_name: &str) -> Arc<Profile> {
        let named = self
            .profiles
            .iter()
            .find(|profile| profile.scheduler_name == scheduler_name);
        named.or(self.profiles.first()).cloned().unwrap_or_default()
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
    /// The same by priority, highest first.
    pub tiers: Vec<TierReport>,
}

/// What came of the pods of one priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierReport {
    pub priority: i32,
    pub placed_count: usize,
    pub waiting_count: usize,
    pub value: i64,
    pub upper_bound: i64,
    /// Worth of those who went where room was kept for them.
    nominated_value: i64,
}

impl TierReport {
    fn take(&mut self, placed: &[tier::Placed]) {
        self.placed_count += placed.len();
        self.value = placed
            .iter()
            .fold(self.value, |sum, placed| sum.saturating_add(placed.value));
    }

    fn take_counts(&mut self, placed: usize, waiting: usize) {
        self.placed_count += placed;
        self.waiting_count += waiting;
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Place {
        node: Arc<str>,
        /// To be done before the pod is bound.
        volumes: Vec<VolumeAction>,
    },
    /// The node will do when the victims have left it; until then its room is kept for the pod.
    Preempt {
        node: Arc<str>,
        victims: Vec<Victim>,
        /// Why no node would do without.
        why: Arc<Diagnosis>,
    },
    Wait {
        why: Arc<Diagnosis>,
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
    pub fn placements(&self) -> impl Iterator<Item = (&PendingPod, &Arc<str>)> {
        self.decisions
            .iter()
            .filter_map(|(pod, decision)| match decision {
                Decision::Place { node, .. } => Some((pod, node)),
                Decision::Preempt { .. } | Decision::Wait { .. } => None,
            })
    }
}

#[cfg(test)]
mod tests;
