//! Rules that speak of other pods: inter-pod affinity and anti-affinity, topology spread.
//!
//! [`Topology::survey`] counts, once for a class, what the rules speak of; [`Topology::rejection`] asks
//! it for a node. The terms' meaning is upstream's (plugins InterPodAffinity and PodTopologySpread).

use std::collections::HashMap;
use std::sync::Arc;

use crate::class::PodClass;
use crate::filter::{self, Rejection};
use crate::snapshot::{NodeIndex, NodeState, Snapshot};

type Counts = HashMap<String, i64>;

/// What a class's rules count, by topology domain.
#[derive(Default)]
pub(crate) struct Topology {
    /// One map a required affinity term: pods that match all of the terms.
    affinity: Vec<Counts>,
    /// Does any placed pod match all of the required affinity terms?
    affine_pod_exists: bool,
    anti_affinity: Vec<Counts>,
    /// Domains closed by the anti-affinity of placed pods, by topology key.
    closed: HashMap<String, Counts>,
    /// One entry a spread constraint of the class, in order.
    spread: Vec<Counts>,
    preferred: Vec<Counts>,
}

/// Is this pod among those that a class's terms speak of? One answer a distinct class.
struct Matches<'a> {
    snapshot: &'a Snapshot,
    known: HashMap<(usize, *const PodClass), bool>,
}

impl Matches<'_> {
    fn of(
        &mut self,
        rule: usize,
        pod: &Arc<PodClass>,
        decide: impl FnOnce(&PodClass, &crate::selector::Labels) -> bool,
    ) -> bool {
        let snapshot = self.snapshot;
        *self
            .known
            .entry((rule, Arc::as_ptr(pod)))
            .or_insert_with(|| decide(pod, snapshot.namespace_labels(&pod.namespace)))
    }
}

impl Topology {
    /// Is there anything to count for this class?
    pub(crate) fn concerns(snapshot: &Snapshot, class: &PodClass) -> bool {
        snapshot.anti_affine_count > 0
            || !(class.affinity.is_empty()
                && class.anti_affinity.is_empty()
                && class.preferred_affinity.is_empty()
                && class.spread.is_empty())
    }

    pub(crate) fn survey(snapshot: &Snapshot, class: &PodClass) -> Topology {
        let mut topology = Topology {
            affinity: vec![Counts::new(); class.affinity.len()],
            anti_affinity: vec![Counts::new(); class.anti_affinity.len()],
            spread: vec![Counts::new(); class.spread.len()],
            preferred: vec![Counts::new(); class.preferred_affinity.len()],
            ..Topology::default()
        };
        let only_closed = topology.affinity.is_empty()
            && topology.anti_affinity.is_empty()
            && topology.spread.is_empty()
            && topology.preferred.is_empty();
        let mut matches = Matches {
            snapshot,
            known: HashMap::new(),
        };
        for (_, node) in snapshot.nodes() {
            topology.open_domains(class, node);
            if only_closed && node.anti_affine_count == 0 {
                continue;
            }
            for pod in node.pods.values() {
                topology.count(class, node, &pod.class, pod.terminating, &mut matches);
            }
        }
        topology
    }

    /// Counts a pod that a plan has just placed.
    pub(crate) fn note_placed(
        &mut self,
        snapshot: &Snapshot,
        class: &PodClass,
        pod: &Arc<PodClass>,
        node: NodeIndex,
    ) {
        let mut matches = Matches {
            snapshot,
            known: HashMap::new(),
        };
        self.count(class, &snapshot.nodes[node], pod, false, &mut matches);
    }

    /// A domain without matching pods still counts as a domain of the spread constraint.
    fn open_domains(&mut self, class: &PodClass, node: &NodeState) {
        for (index, counts) in self.spread.iter_mut().enumerate() {
            if let Some(domain) = spread_domain(class, index, node) {
                counts.entry(domain.to_string()).or_insert(0);
            }
        }
    }

    fn count(
        &mut self,
        class: &PodClass,
        node: &NodeState,
        pod: &Arc<PodClass>,
        terminating: bool,
        matches: &mut Matches,
    ) {
        let mut rule = 0;
        if !class.affinity.is_empty()
            && matches.of(rule, pod, |pod, labels| {
                class.affinity.iter().all(|term| term.matches(pod, labels))
            })
        {
            self.affine_pod_exists = true;
            for (term, counts) in class.affinity.iter().zip(&mut self.affinity) {
                bump(counts, node, &term.topology_key);
            }
        }
        for (term, counts) in class.anti_affinity.iter().zip(&mut self.anti_affinity) {
            rule += 1;
            if matches.of(rule, pod, |pod, labels| term.matches(pod, labels)) {
                bump(counts, node, &term.topology_key);
            }
        }
        for ((_, term), counts) in class.preferred_affinity.iter().zip(&mut self.preferred) {
            rule += 1;
            if matches.of(rule, pod, |pod, labels| term.matches(pod, labels)) {
                bump(counts, node, &term.topology_key);
            }
        }
        for (index, constraint) in class.spread.iter().enumerate() {
            rule += 1;
            let same = !terminating
                && matches.of(rule, pod, |pod, _| {
                    pod.namespace == class.namespace && constraint.selector.matches(&pod.labels)
                });
            if same
                && !constraint.selector.is_empty()
                && let Some(domain) = spread_domain(class, index, node)
            {
                *self.spread[index].entry(domain.to_string()).or_insert(0) += 1;
            }
        }
        for (index, term) in pod.anti_affinity.iter().enumerate() {
            let own_namespace = matches.snapshot.namespace_labels(&class.namespace);
            if matches.of(1_000_000 + index, pod, |_, _| {
                term.matches(class, own_namespace)
            }) && let Some(domain) = node.labels.get(&term.topology_key)
            {
                *self
                    .closed
                    .entry(term.topology_key.clone())
                    .or_default()
                    .entry(domain.clone())
                    .or_insert(0) += 1;
            }
        }
    }

    /// Why the class may not go to the node, if it may not.
    pub(crate) fn rejection(
        &self,
        snapshot: &Snapshot,
        class: &PodClass,
        node: &NodeState,
    ) -> Option<Rejection> {
        self.spread_rejection(class, node)
            .or_else(|| self.affinity_rejection(snapshot, class, node))
    }

    fn spread_rejection(&self, class: &PodClass, node: &NodeState) -> Option<Rejection> {
        for (constraint, counts) in class
            .spread
            .iter()
            .zip(&self.spread)
            .filter(|(constraint, _)| constraint.hard)
        {
            let Some(domain) = node.labels.get(&constraint.topology_key) else {
                return Some(Rejection::SpreadLabelMissing);
            };
            let fewest = if (counts.len() as i64) < constraint.min_domains {
                0
            } else {
                counts.values().copied().min().unwrap_or(0)
            };
            let own = i64::from(constraint.selector.matches(&class.labels));
            let here = counts.get(domain).copied().unwrap_or(0);
            if here + own - fewest > constraint.max_skew {
                return Some(Rejection::Spread);
            }
        }
        None
    }

    fn affinity_rejection(
        &self,
        snapshot: &Snapshot,
        class: &PodClass,
        node: &NodeState,
    ) -> Option<Rejection> {
        let mut present = true;
        for (term, counts) in class.affinity.iter().zip(&self.affinity) {
            match node.labels.get(&term.topology_key) {
                Some(domain) => present &= counts.get(domain).copied().unwrap_or(0) > 0,
                None => return Some(Rejection::PodAffinity),
            }
        }
        if !present {
            // The first of a series of pods that want to be together may go anywhere.
            let labels = snapshot.namespace_labels(&class.namespace);
            let first = !self.affine_pod_exists
                && class
                    .affinity
                    .iter()
                    .all(|term| term.matches(class, labels));
            if !first {
                return Some(Rejection::PodAffinity);
            }
        }
        for (term, counts) in class.anti_affinity.iter().zip(&self.anti_affinity) {
            if node
                .labels
                .get(&term.topology_key)
                .is_some_and(|domain| counts.get(domain).copied().unwrap_or(0) > 0)
            {
                return Some(Rejection::PodAntiAffinity);
            }
        }
        let closed = |key: &String, domains: &Counts| {
            node.labels
                .get(key)
                .is_some_and(|domain| domains.contains_key(domain))
        };
        self.closed
            .iter()
            .any(|(key, domains)| closed(key, domains))
            .then_some(Rejection::ExistingAntiAffinity)
    }

    /// Sum of the weights of preferred affinity terms that hold on the node; higher is better.
    pub(crate) fn affinity_preference(&self, class: &PodClass, node: &NodeState) -> i64 {
        let terms = class.preferred_affinity.iter().zip(&self.preferred);
        terms
            .map(|((weight, term), counts)| {
                i64::from(*weight) * domain_count(counts, node, &term.topology_key)
            })
            .sum()
    }

    /// Matching pods in the domains of soft spread constraints; lower is better.
    pub(crate) fn crowding(&self, class: &PodClass, node: &NodeState) -> i64 {
        let soft = class
            .spread
            .iter()
            .zip(&self.spread)
            .filter(|(constraint, _)| !constraint.hard);
        soft.map(|(constraint, counts)| domain_count(counts, node, &constraint.topology_key))
            .sum()
    }
}

fn domain_count(counts: &Counts, node: &NodeState, key: &str) -> i64 {
    node.labels
        .get(key)
        .and_then(|domain| counts.get(domain))
        .copied()
        .unwrap_or(0)
}

fn bump(counts: &mut Counts, node: &NodeState, key: &str) {
    if let Some(domain) = node.labels.get(key) {
        *counts.entry(domain.clone()).or_insert(0) += 1;
    }
}

/// The node's domain for a spread constraint, if the node takes part in it.
fn spread_domain<'n>(class: &PodClass, constraint: usize, node: &'n NodeState) -> Option<&'n str> {
    let constraint = &class.spread[constraint];
    if constraint.hard
        && class
            .spread
            .iter()
            .any(|other| other.hard && !node.labels.contains_key(&other.topology_key))
    {
        return None;
    }
    if constraint.honors_affinity && !filter::matches_node_affinity(class, node) {
        return None;
    }
    if constraint.honors_taints && filter::untolerated_taint(class, node).is_some() {
        return None;
    }
    node.labels
        .get(&constraint.topology_key)
        .map(String::as_str)
}
