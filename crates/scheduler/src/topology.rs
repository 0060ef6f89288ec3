//! Rules that speak of other pods: inter-pod affinity and anti-affinity, topology spread.
//!
//! [`Topology::survey`] counts, once for a class, what its rules (and those of others about it) speak of;
//! [`Topology::apply`] keeps the counts as pods come and go, each in constant time; [`Topology::rejection`]
//! asks them for a node. The terms' meaning is upstream's (plugins InterPodAffinity and PodTopologySpread).
//! Invariant: the counts are what a new survey would find, as long as the snapshot's `shape_epoch` stands.

use std::collections::HashMap;
use std::sync::Arc;

use crate::class::{PodClass, PodTerm, Spread};
use crate::domains::{Domain, KeyIndex, NO_DOMAIN};
use crate::filter::{self, Rejection};
use crate::profile::{Profile, Rule};
use crate::snapshot::{NodeIndex, Snapshot, address};

/// Scores of soft spread constraints count in these parts of one pod.
const SPREAD_STEPS: f64 = 1024.0;

/// Crowding of a node without the labels that the constraints speak of.
pub(crate) const OUTSIDE: i64 = 1 << 48;

/// A number for every domain of a topology key.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    pub key: KeyIndex,
    by_domain: Vec<i64>,
}

impl Counts {
    fn new(snapshot: &Snapshot, key: KeyIndex) -> Self {
        Counts {
            key,
            by_domain: vec![0; snapshot.domains.key(key).domain_count()],
        }
    }

    fn of(&self, domain: Domain) -> i64 {
        self.by_domain.get(domain as usize).copied().unwrap_or(0)
    }

    fn at(&self, snapshot: &Snapshot, node: NodeIndex) -> i64 {
        self.of(snapshot.domains.key(self.key).domain(node))
    }

    fn add(&mut self, snapshot: &Snapshot, node: NodeIndex, amount: i64) {
        let domain = snapshot.domains.key(self.key).domain(node);
        if domain != NO_DOMAIN {
            let index = domain as usize;
            if self.by_domain.len() <= index {
                self.by_domain.resize(index + 1, 0);
            }
            self.by_domain[index] += amount;
        }
    }
}

/// One spread constraint with its counts.
#[derive(Clone, Debug)]
pub(crate) struct SpreadCounts {
    pub rule: Spread,
    pub counts: Counts,
    /// Nodes that take part, and how many of them each domain has.
    eligible_nodes: Vec<bool>,
    eligible: Vec<u32>,
    eligible_domain_count: i64,
    /// Eligible domains by their count; tells the smallest in constant time.
    tally: Vec<u32>,
    fewest: usize,
    /// Would the pod itself be counted?
    counts_itself: i64,
    /// Weight of one pod in the score.
    weight: i64,
}

impl SpreadCounts {
    fn takes_part(&self, domain: Domain) -> bool {
        self.eligible
            .get(domain as usize)
            .is_some_and(|nodes| *nodes > 0)
    }

    fn smallest(&self) -> i64 {
        if self.eligible_domain_count < self.rule.min_domains {
            0
        } else {
            self.fewest as i64
        }
    }

    fn retally(&mut self) {
        self.tally.clear();
        for (domain, count) in self.counts.by_domain.iter().enumerate() {
            if self.eligible.get(domain).is_some_and(|nodes| *nodes > 0) {
                let count = (*count).max(0) as usize;
                if self.tally.len() <= count {
                    self.tally.resize(count + 1, 0);
                }
                self.tally[count] += 1;
            }
        }
        self.fewest = self
            .tally
            .iter()
            .position(|domains| *domains > 0)
            .unwrap_or(0);
    }

    /// Counts a pod in (1) or out (-1) of a domain. True if the smallest count has changed.
    fn add(&mut self, domain: Domain, delta: i64) -> bool {
        let index = domain as usize;
        if self.counts.by_domain.len() <= index {
            self.counts.by_domain.resize(index + 1, 0);
        }
        let before = self.counts.by_domain[index].max(0) as usize;
        self.counts.by_domain[index] += delta;
        if !self.takes_part(domain) {
            return false;
        }
        let after = self.counts.by_domain[index].max(0) as usize;
        if self.tally.len() <= before.max(after) {
            self.tally.resize(before.max(after) + 1, 0);
        }
        self.tally[before] = self.tally[before].saturating_sub(1);
        self.tally[after] += 1;
        let fewest = self.fewest;
        if after < self.fewest {
            self.fewest = after;
        } else {
            while self.tally.get(self.fewest) == Some(&0) {
                self.fewest += 1;
            }
        }
        fewest != self.fewest
    }
}

/// What one pod of a class means to the rules.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    affine: bool,
    anti: Vec<usize>,
    closes: Vec<KeyIndex>,
    wishes: Vec<(KeyIndex, i64)>,
    spread: Vec<usize>,
}

/// What a change of the counts may have changed for nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    Nothing,
    /// Only nodes in the domains of the pod's node.
    Domains,
    /// Any node.
    All,
}

/// What a class's rules count, by topology domain.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    /// One a required affinity term: pods that match all of the terms.
    affinity: Vec<Counts>,
    affine_count: i64,
    /// Does the pod match its own affinity terms?
    affine_to_itself: bool,
    anti: Vec<Counts>,
    /// Pods whose anti-affinity keeps the class out of their domain.
    closed: Vec<Counts>,
    /// Weights of wishes, the class's own and those of others about it.
    wishes: Vec<Counts>,
    pub spread: Vec<SpreadCounts>,
    /// The constraints are the profile's, not the pod's.
    defaulted: bool,
    /// What a pod of each class means; the class is held so that its address stays its own.
    effects: HashMap<usize, (Arc<PodClass>, Option<Arc<Effects>>)>,
}

/// Is there anything to count for this class?
pub(crate) fn concerns(snapshot: &Snapshot, class: &PodClass) -> bool {
    class.minds_others() || class.default_selector.is_some() || snapshot.minding_count > 0
}

impl Topology {
    /// `None` if no rule speaks of other pods, neither the class's own nor any placed pod's about it.
    pub fn survey(
        snapshot: &mut Snapshot,
        class: &PodClass,
        profile: &Profile,
    ) -> Option<Topology> {
        if !concerns(snapshot, class) {
            return None;
        }
        let spread_on =
            profile.upholds(Rule::PodTopologySpread) || profile.weights.topology_spread > 0;
        let constraints = match &class.default_selector {
            _ if !spread_on => Vec::new(),
            Some(selector) if class.spread.is_empty() => profile.default_constraints(selector),
            _ => class.spread.clone(),
        };
        let mut topology = Topology {
            defaulted: class.spread.is_empty(),
            ..Topology::default()
        };
        for term in &class.affinity {
            let key = snapshot.topology_key(&term.topology_key);
            topology.affinity.push(Counts::new(snapshot, key));
        }
        let own_labels = snapshot.namespace_labels(&class.namespace);
        topology.affine_to_itself = class
            .affinity
            .iter()
            .all(|term| term.matches(class, own_labels));
        for term in &class.anti_affinity {
            let key = snapshot.topology_key(&term.topology_key);
            topology.anti.push(Counts::new(snapshot, key));
        }
        for rule in constraints {
            let key = snapshot.topology_key(&rule.topology_key);
            topology.spread.push(SpreadCounts {
                counts: Counts::new(snapshot, key),
                eligible_nodes: vec![false; snapshot.nodes.len()],
                eligible: vec![0; snapshot.domains.key(key).domain_count()],
                eligible_domain_count: 0,
                tally: Vec::new(),
                fewest: 0,
                counts_itself: i64::from(rule.selector.matches(&class.labels)),
                weight: 0,
                rule,
            });
        }
        topology.open_domains(snapshot, class);
        // One look at each distinct class, then only at the pods of those that matter.
        let present: Vec<(Arc<PodClass>, Vec<(NodeIndex, (u32, u32))>)> = snapshot
            .presence
            .values()
            .map(|presence| presence.class.clone())
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|other| {
                topology.effects_of(snapshot, class, profile, &other)?;
                let presence = snapshot.presence.get(&address(&other))?;
                Some((
                    other,
                    presence
                        .by_node
                        .iter()
                        .map(|(node, count)| (*node, *count))
                        .collect(),
                ))
            })
            .collect();
        for (other, nodes) in present {
            let effects = topology.effects_of(snapshot, class, profile, &other);
            let Some(effects) = effects else { continue };
            for (node, (all, terminating)) in nodes {
                if snapshot.nodes[node].present {
                    topology.add(
                        snapshot,
                        &effects,
                        node,
                        i64::from(all),
                        i64::from(all - terminating),
                    );
                }
            }
        }
        for spread in &mut topology.spread {
            spread.retally();
        }
        let idle = topology.affinity.is_empty()
            && topology.anti.is_empty()
            && topology.spread.is_empty()
            && topology.closed.is_empty()
            && topology.wishes.is_empty();
        // Nothing counted and nobody there who might begin to matter.
        (!idle || snapshot.minding_count > 0).then_some(topology)
    }

    /// Which domains a spread constraint counts: those of the nodes that take part in it.
    fn open_domains(&mut self, snapshot: &Snapshot, class: &PodClass) {
        if self.spread.is_empty() {
            return;
        }
        let keys: Vec<(KeyIndex, bool)> = self
            .spread
            .iter()
            .map(|spread| (spread.counts.key, spread.rule.hard))
            .collect();
        let defaulted = class.spread.is_empty();
        for (index, node) in snapshot.nodes() {
            let has = |key: KeyIndex| snapshot.domains.key(key).domain(index) != NO_DOMAIN;
            let has_all_hard = keys.iter().all(|(key, hard)| !hard || has(*key));
            let has_all_soft = defaulted || keys.iter().all(|(key, hard)| *hard || has(*key));
            let mut affine = None;
            let mut tolerated = None;
            for spread in &mut self.spread {
                let domain = snapshot.domains.key(spread.counts.key).domain(index);
                let labelled = if spread.rule.hard {
                    has_all_hard
                } else {
                    has_all_soft
                };
                let takes_part = domain != NO_DOMAIN
                    && labelled
                    && (!spread.rule.honors_affinity
                        || *affine
                            .get_or_insert_with(|| filter::matches_node_affinity(class, node)))
                    && (!spread.rule.honors_taints
                        || *tolerated.get_or_insert_with(|| {
                            filter::untolerated_taint(class, node).is_none()
                        }));
                if takes_part {
                    let nodes = &mut spread.eligible[domain as usize];
                    spread.eligible_domain_count += i64::from(*nodes == 0);
                    *nodes += 1;
                    spread.eligible_nodes[index] = true;
                }
            }
        }
        for spread in &mut self.spread {
            let domains = spread.eligible_domain_count.max(0) as f64;
            spread.weight = ((domains + 2.0).ln() * SPREAD_STEPS) as i64;
        }
    }

    /// What a pod of `other` means to the rules; `None`: nothing.
    fn effects_of(
        &mut self,
        snapshot: &mut Snapshot,
        class: &PodClass,
        profile: &Profile,
        other: &Arc<PodClass>,
    ) -> Option<Arc<Effects>> {
        if let Some((_, known)) = self.effects.get(&address(other)) {
            return known.clone();
        }
        let effects = self.judge(snapshot, class, profile, other).map(Arc::new);
        self.effects
            .insert(address(other), (other.clone(), effects.clone()));
        effects
    }

    fn judge(
        &mut self,
        snapshot: &mut Snapshot,
        class: &PodClass,
        profile: &Profile,
        other: &PodClass,
    ) -> Option<Effects> {
        let mut effects = Effects::default();
        let affinity_on = profile.upholds(Rule::InterPodAffinity);
        if affinity_on || profile.weights.pod_affinity > 0 {
            let labels = snapshot.namespace_labels(&other.namespace).clone();
            let own_labels = snapshot.namespace_labels(&class.namespace).clone();
            let speaks_of_other = |term: &PodTerm| term.matches(other, &labels);
            let speaks_of_class = |term: &PodTerm| term.matches(class, &own_labels);
            effects.affine =
                !class.affinity.is_empty() && class.affinity.iter().all(speaks_of_other);
            let anti = class.anti_affinity.iter().enumerate();
            effects.anti = anti
                .filter(|(_, term)| speaks_of_other(term))
                .map(|(i, _)| i)
                .collect();
            if affinity_on {
                for term in other
                    .anti_affinity
                    .iter()
                    .filter(|term| speaks_of_class(term))
                {
                    let key = snapshot.topology_key(&term.topology_key);
                    effects.closes.push(slot(&mut self.closed, snapshot, key));
                }
            }
            let mut wish = |snapshot: &mut Snapshot, term: &PodTerm, weight: i64| {
                if weight != 0 {
                    let key = snapshot.topology_key(&term.topology_key);
                    effects
                        .wishes
                        .push((slot(&mut self.wishes, snapshot, key), weight));
                }
            };
            for (weight, term) in class
                .preferred_affinity
                .iter()
                .filter(|(_, term)| speaks_of_other(term))
            {
                wish(snapshot, term, i64::from(*weight));
            }
            if !profile.ignore_preferred_terms_of_existing_pods
                || !class.preferred_affinity.is_empty()
            {
                for (weight, term) in other
                    .preferred_affinity
                    .iter()
                    .filter(|(_, term)| speaks_of_class(term))
                {
                    wish(snapshot, term, i64::from(*weight));
                }
                for term in other.affinity.iter().filter(|term| speaks_of_class(term)) {
                    wish(snapshot, term, profile.hard_pod_affinity_weight);
                }
            }
        }
        for (index, spread) in self.spread.iter().enumerate() {
            if other.namespace == class.namespace
                && !spread.rule.selector.is_empty()
                && spread.rule.selector.matches(&other.labels)
            {
                effects.spread.push(index);
            }
        }
        let any = effects.affine
            || !effects.anti.is_empty()
            || !effects.closes.is_empty()
            || !effects.wishes.is_empty()
            || !effects.spread.is_empty();
        any.then_some(effects)
    }

    fn add(
        &mut self,
        snapshot: &Snapshot,
        effects: &Effects,
        node: NodeIndex,
        all: i64,
        staying: i64,
    ) -> Touched {
        let mut touched = Touched::Domains;
        if effects.affine {
            let before = self.affine_count;
            self.affine_count += all;
            if (before == 0) != (self.affine_count == 0) {
                touched = Touched::All;
            }
            for counts in &mut self.affinity {
                counts.add(snapshot, node, all);
            }
        }
        for index in &effects.anti {
            self.anti[*index].add(snapshot, node, all);
        }
        for index in &effects.closes {
            self.closed[*index].add(snapshot, node, all);
        }
        for (index, weight) in &effects.wishes {
            self.wishes[*index].add(snapshot, node, weight * all);
        }
        for index in &effects.spread {
            let spread = &mut self.spread[*index];
            if staying == 0 || spread.eligible_nodes.get(node) != Some(&true) {
                continue;
            }
            let domain = snapshot.domains.key(spread.counts.key).domain(node);
            if spread.add(domain, staying) && spread.rule.hard {
                touched = Touched::All;
            }
        }
        touched
    }

    /// Counts a pod of `other` that came to (1) or left (-1) a node.
    pub fn apply(
        &mut self,
        snapshot: &mut Snapshot,
        class: &PodClass,
        profile: &Profile,
        other: &Arc<PodClass>,
        node: NodeIndex,
        delta: i64,
        terminating: bool,
    ) -> Touched {
        let known_keys = self.closed.len() + self.wishes.len();
        let Some(effects) = self.effects_of(snapshot, class, profile, other) else {
            return Touched::Nothing;
        };
        if !snapshot.nodes[node].present {
            return Touched::Nothing;
        }
        let staying = if terminating { 0 } else { delta };
        let touched = self.add(snapshot, &effects, node, delta, staying);
        if self.closed.len() + self.wishes.len() != known_keys {
            // A key that nobody spoke of before: nodes are grouped anew.
            return Touched::All;
        }
        touched
    }

    /// The keys by which nodes differ for the rules.
    pub fn keys(&self) -> Vec<KeyIndex> {
        let counts = self
            .affinity
            .iter()
            .chain(&self.anti)
            .chain(&self.closed)
            .chain(&self.wishes);
        let mut keys: Vec<KeyIndex> = counts
            .chain(self.spread.iter().map(|spread| &spread.counts))
            .map(|counts| counts.key)
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Why the class may not go to the node, if it may not.
    pub fn rejection(
        &self,
        snapshot: &Snapshot,
        profile: &Profile,
        node: NodeIndex,
    ) -> Option<Rejection> {
        if profile.upholds(Rule::PodTopologySpread)
            && let Some(rejection) = self.spread_rejection(snapshot, node)
        {
            return Some(rejection);
        }
        if profile.upholds(Rule::InterPodAffinity) {
            return self.affinity_rejection(snapshot, node);
        }
        None
    }

    fn spread_rejection(&self, snapshot: &Snapshot, node: NodeIndex) -> Option<Rejection> {
        for spread in self.spread.iter().filter(|spread| spread.rule.hard) {
            let domain = snapshot.domains.key(spread.counts.key).domain(node);
            if domain == NO_DOMAIN {
                return Some(Rejection::SpreadLabelMissing);
            }
            if spread.counts.of(domain) + spread.counts_itself - spread.smallest()
                > spread.rule.max_skew
            {
                return Some(Rejection::Spread);
            }
        }
        None
    }

    fn affinity_rejection(&self, snapshot: &Snapshot, node: NodeIndex) -> Option<Rejection> {
        let mut present = true;
        for counts in &self.affinity {
            let domain = snapshot.domains.key(counts.key).domain(node);
            if domain == NO_DOMAIN {
                return Some(Rejection::PodAffinity);
            }
            present &= counts.of(domain) > 0;
        }
        // The first of a series of pods that want to be together may go anywhere.
        let first = self.affine_count == 0 && self.affine_to_itself;
        if !present && !first {
            return Some(Rejection::PodAffinity);
        }
        if self.anti.iter().any(|counts| counts.at(snapshot, node) > 0) {
            return Some(Rejection::PodAntiAffinity);
        }
        if self
            .closed
            .iter()
            .any(|counts| counts.at(snapshot, node) > 0)
        {
            return Some(Rejection::ExistingAntiAffinity);
        }
        None
    }

    /// Is the node rejected by a rule about some of the keys?
    pub fn rejects_over(
        &self,
        snapshot: &Snapshot,
        profile: &Profile,
        node: NodeIndex,
        counted: impl Fn(KeyIndex) -> bool,
    ) -> bool {
        let domain = |key: KeyIndex| snapshot.domains.key(key).domain(node);
        if profile.upholds(Rule::PodTopologySpread) {
            let hard = self
                .spread
                .iter()
                .filter(|s| s.rule.hard && counted(s.counts.key));
            for spread in hard {
                let domain = domain(spread.counts.key);
                let skew = spread.counts.of(domain) + spread.counts_itself - spread.smallest();
                if domain == NO_DOMAIN || skew > spread.rule.max_skew {
                    return true;
                }
            }
        }
        if !profile.upholds(Rule::InterPodAffinity) {
            return false;
        }
        let first = self.affine_count == 0 && self.affine_to_itself;
        let held = |counts: &Counts| counted(counts.key) && counts.at(snapshot, node) > 0;
        self.affinity
            .iter()
            .filter(|counts| counted(counts.key))
            .any(|counts| {
                let domain = domain(counts.key);
                domain == NO_DOMAIN || (!first && counts.of(domain) <= 0)
            })
            || self.anti.iter().chain(&self.closed).any(held)
    }

    /// Weight of the wishes that hold on the node; higher is better.
    pub fn wish(&self, snapshot: &Snapshot, node: NodeIndex) -> i64 {
        self.wishes
            .iter()
            .map(|counts| counts.at(snapshot, node))
            .sum()
    }

    /// How crowded the domains of soft spread constraints are; lower is better, [`OUTSIDE`] and more means that the node takes no part.
    pub fn crowding(&self, snapshot: &Snapshot, node: NodeIndex) -> i64 {
        self.crowding_over(snapshot, node, |_| true)
    }

    /// The share of wishes and crowding that comes from some keys only.
    pub fn standing_over(
        &self,
        snapshot: &Snapshot,
        node: NodeIndex,
        counted: impl Fn(KeyIndex) -> bool,
    ) -> (i64, i64) {
        let wishes = self.wishes.iter().filter(|counts| counted(counts.key));
        let wish = wishes.map(|counts| counts.at(snapshot, node)).sum();
        (wish, self.crowding_over(snapshot, node, counted))
    }

    fn crowding_over(
        &self,
        snapshot: &Snapshot,
        node: NodeIndex,
        counted: impl Fn(KeyIndex) -> bool,
    ) -> i64 {
        let soft = self
            .spread
            .iter()
            .filter(|spread| !spread.rule.hard && counted(spread.counts.key));
        soft.map(|spread| {
            let domain = snapshot.domains.key(spread.counts.key).domain(node);
            if domain == NO_DOMAIN {
                return if self.defaulted { 0 } else { OUTSIDE };
            }
            spread.counts.of(domain) * spread.weight
                + (spread.rule.max_skew - 1).max(0) * SPREAD_STEPS as i64
        })
        .sum()
    }

    pub fn has_soft_spread(&self) -> bool {
        self.spread.iter().any(|spread| !spread.rule.hard)
    }
}

/// The position of a key among some counts, new if it is not there yet.
fn slot(all: &mut Vec<Counts>, snapshot: &Snapshot, key: KeyIndex) -> usize {
    match all.iter().position(|counts| counts.key == key) {
        Some(position) => position,
        None => {
            all.push(Counts::new(snapshot, key));
            all.len() - 1
        }
    }
}
