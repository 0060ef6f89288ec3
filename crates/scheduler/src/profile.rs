//! How the pods of one `schedulerName` are scheduled: which rules hold, what is preferred, how much.
//!
//! A profile is plain data. [`crate::config`] reads one out of a KubeSchedulerConfiguration; the default
//! packs nodes (the knapsack policy) and keeps kube-scheduler's rules and its weights of wishes.

use crate::class::Spread;
use crate::selector::{NodeTerm, Selector};

pub const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// Rules that a configuration may switch off, by plugin name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Rule {
    NodeUnschedulable = 1,
    NodeName = 1 << 1,
    TaintToleration = 1 << 2,
    NodeAffinity = 1 << 3,
    NodePorts = 1 << 4,
    NodeResourcesFit = 1 << 5,
    VolumeRestrictions = 1 << 6,
    NodeVolumeLimits = 1 << 7,
    VolumeBinding = 1 << 8,
    VolumeZone = 1 << 9,
    PodTopologySpread = 1 << 10,
    InterPodAffinity = 1 << 11,
}

impl Rule {
    pub const ALL: [(&'static str, Rule); 12] = [
        ("NodeUnschedulable", Rule::NodeUnschedulable),
        ("NodeName", Rule::NodeName),
        ("TaintToleration", Rule::TaintToleration),
        ("NodeAffinity", Rule::NodeAffinity),
        ("NodePorts", Rule::NodePorts),
        ("NodeResourcesFit", Rule::NodeResourcesFit),
        ("VolumeRestrictions", Rule::VolumeRestrictions),
        ("NodeVolumeLimits", Rule::NodeVolumeLimits),
        ("VolumeBinding", Rule::VolumeBinding),
        ("VolumeZone", Rule::VolumeZone),
        ("PodTopologySpread", Rule::PodTopologySpread),
        ("InterPodAffinity", Rule::InterPodAffinity),
    ];
}

/// Weights of the scores; zero switches one off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    pub taint_toleration: i64,
    pub node_affinity: i64,
    pub fit: i64,
    pub balanced_allocation: i64,
    pub topology_spread: i64,
    pub pod_affinity: i64,
    pub image_locality: i64,
}

/// How full a node should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FitStrategy {
    /// The knapsack policy: the fullest node over everything that the pod asks for, in fine steps.
    Pack,
    /// The emptiest, counted the same way.
    Spread,
    LeastAllocated(Vec<ResourceWeight>),
    MostAllocated(Vec<ResourceWeight>),
    /// Score (0 to 100) by utilisation (0 to 100) at the given points, straight lines between them.
    RequestedToCapacityRatio {
        resources: Vec<ResourceWeight>,
        shape: Vec<(i64, i64)>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceWeight {
    pub name: String,
    pub weight: i64,
}

/// Spread constraints of pods that have none of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefaultSpread {
    /// Softly over hosts (skew 3) and zones (skew 5).
    System,
    List(Vec<Spread>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    pub scheduler_name: String,
    pub fit: FitStrategy,
    /// Resources that NodeResourcesBalancedAllocation balances.
    pub balanced: Vec<ResourceWeight>,
    pub weights: Weights,
    pub hard_pod_affinity_weight: i64,
    pub ignore_preferred_terms_of_existing_pods: bool,
    /// Node affinity that every pod of the profile has besides its own.
    pub added_terms: Option<Vec<NodeTerm>>,
    pub added_preferred_terms: Vec<(i32, NodeTerm)>,
    pub default_spread: DefaultSpread,
    pub ignored_resources: Vec<String>,
    pub ignored_resource_groups: Vec<String>,
    pub(crate) rules_off: u16,
    pub preempts: bool,
}

impl Default for Profile {
    fn default() -> Self {
        Profile {
            scheduler_name: DEFAULT_SCHEDULER.into(),
            fit: FitStrategy::Pack,
            balanced: cpu_and_memory(),
            weights: Weights {
                taint_toleration: 3,
                node_affinity: 2,
                fit: 1,
                balanced_allocation: 0,
                topology_spread: 2,
                pod_affinity: 2,
                image_locality: 1,
            },
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
            added_terms: None,
            added_preferred_terms: Vec::new(),
            default_spread: DefaultSpread::System,
            ignored_resources: Vec::new(),
            ignored_resource_groups: Vec::new(),
            rules_off: 0,
            preempts: true,
        }
    }
}

impl Profile {
    /// The default profile, preferring the emptiest node.
    pub fn spreading() -> Self {
        Profile {
            fit: FitStrategy::Spread,
            ..Profile::default()
        }
    }

    pub(crate) fn upholds(&self, rule: Rule) -> bool {
        self.rules_off & rule as u16 == 0
    }

    pub fn switch_off(&mut self, rule: Rule) {
        self.rules_off |= rule as u16;
    }

    pub(crate) fn ignores_any(&self) -> bool {
        !self.ignored_resources.is_empty() || !self.ignored_resource_groups.is_empty()
    }

    pub(crate) fn ignores(&self, resource: &str) -> bool {
        self.ignored_resources.iter().any(|name| name == resource)
            || resource
                .split_once('/')
                .is_some_and(|(group, _)| self.ignored_resource_groups.iter().any(|g| g == group))
    }

    /// The constraints that apply to a class without its own, all of them soft unless the configuration says otherwise.
    pub(crate) fn default_constraints(&self, selector: &Selector) -> Vec<Spread> {
        let soft = |key: &str, max_skew| Spread {
            max_skew,
            min_domains: 1,
            topology_key: key.into(),
            selector: selector.clone(),
            hard: false,
            honors_affinity: true,
            honors_taints: false,
        };
        match &self.default_spread {
            DefaultSpread::System => vec![
                soft("kubernetes.io/hostname", 3),
                soft("topology.kubernetes.io/zone", 5),
            ],
            DefaultSpread::List(list) => list
                .iter()
                .map(|constraint| Spread {
                    selector: selector.clone(),
                    ..constraint.clone()
                })
                .collect(),
        }
    }
}

pub(crate) fn cpu_and_memory() -> Vec<ResourceWeight> {
    ["cpu", "memory"]
        .map(|name| ResourceWeight {
            name: name.into(),
            weight: 1,
        })
        .into()
}
