//! Preemption: whom to ask to leave so that a pod of higher priority finds room.
//!
//! The rules are upstream's (plugin DefaultPreemption): on a node, everybody of lower priority is thought
//! away; if the pod fits then, they are let back in, the most important first (those whose budget would be
//! violated before all others), as long as the pod still fits; who does not get back in is a victim. Of
//! all nodes the one with the fewest violated budgets is taken, then the lowest highest priority of a
//! victim, the lowest sum of priorities, the fewest victims, the youngest victims.
//!
//! Unlike upstream every node is looked at, and once a class: [`Search`] keeps the candidates in a heap and
//! looks again only at nodes that were chosen, and at the top when budgets have shrunk (they never grow
//! within a plan, so a stale candidate is only ever too good). Room of pods that are leaving already is
//! used first and costs nothing.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use crate::class::PodClass;
use crate::diagnosis::Fruitless;
use crate::filter::{self, Rejection};
use crate::profile::{Profile, Rule};
use crate::resources::ResourceIndex;
use crate::snapshot::{NodeIndex, PlacedPod, Snapshot, Uid, address};
use crate::view::View;

/// A pod that has to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    pub uid: Uid,
    pub namespace: String,
    pub name: Arc<str>,
    pub priority: i32,
    pub violates_budget: bool,
}

/// How much a candidate costs; the smallest is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    violation_count: usize,
    highest_priority: i64,
    priority_sum: i128,
    victim_count: usize,
    /// The later the first of the most important victims started, the better.
    earliest_start: Reverse<i64>,
}

/// What budgets still allow within one plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowances {
    left: Vec<i64>,
    /// Budgets that guard a class, by its address; the class is held.
    guards: HashMap<usize, (Arc<PodClass>, Vec<usize>)>,
}

impl Allowances {
    pub fn new(snapshot: &Snapshot) -> Self {
        Allowances {
            left: snapshot
                .budgets
                .iter()
                .map(|budget| budget.allowed)
                .collect(),
            guards: HashMap::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    fn guarding(&mut self, snapshot: &Snapshot, class: &Arc<PodClass>) -> &[usize] {
        let (_, guards) = self.guards.entry(address(class)).or_insert_with(|| {
            let all = snapshot.budgets.iter().enumerate();
            let guards = all
                .filter(|(_, budget)| budget.guards(class))
                .map(|(index, _)| index);
            (class.clone(), guards.collect())
        });
        guards
    }

    /// For each of the pods, most important first: would its disruption violate a budget, with those before it disrupted?
    fn violations(&mut self, snapshot: &Snapshot, pods: &[&PlacedPod]) -> Vec<bool> {
        if self.left.is_empty() {
            return vec![false; pods.len()];
        }
        let budgets: Vec<_> = snapshot.budgets.iter().collect();
        let mut left = self.left.clone();
        let mut violations = Vec::with_capacity(pods.len());
        for pod in pods {
            let mut violates = false;
            for index in self.guarding(snapshot, &pod.class) {
                if budgets[*index].disrupted.contains(&*pod.name) {
                    continue;
                }
                left[*index] -= 1;
                if left[*index] < 0 {
                    violates = true;
                    break;
                }
            }
            violations.push(violates);
        }
        violations
    }

    /// Uses up what the victims cost.
    fn spend(&mut self, snapshot: &Snapshot, victim: &PlacedPod) {
        if self.left.is_empty() {
            return;
        }
        let budgets: Vec<_> = snapshot.budgets.iter().collect();
        for index in self.guarding(snapshot, &victim.class).to_vec() {
            if !budgets[index].disrupted.contains(&*victim.name) {
                self.left[index] -= 1;
            }
        }
    }
}

enum Outcome {
    Candidate(Cost, Vec<Victim>),
    NoVictims,
    Still(Rejection),
}

/// What a node came to when it was last looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Absent,
    NotHelpful,
    NoVictims,
    Still(Rejection),
    Candidate(Cost),
}

/// The candidates of one class.
#[derive(Debug)]
pub(crate) struct Search {
    /// Entries that are not the node's standing any more are stale.
    heap: BinaryHeap<Reverse<(Cost, NodeIndex)>>,
    standings: Vec<Standing>,
}

impl Search {
    /// Looks at every node. The view has caught up.
    pub fn new(snapshot: &mut Snapshot, view: &mut View, allowances: &mut Allowances) -> Search {
        let mut search = Search {
            heap: BinaryHeap::new(),
            standings: Vec::new(),
        };
        for node in 0..snapshot.nodes.len() {
            search.look(snapshot, view, allowances, node);
        }
        search
    }

    /// Finds a node's standing anew. The view has caught up.
    pub fn look(
        &mut self,
        snapshot: &mut Snapshot,
        view: &mut View,
        allowances: &mut Allowances,
        node: NodeIndex,
    ) {
        let standing = stand(snapshot, view, allowances, node);
        if let Standing::Candidate(cost) = standing {
            self.heap.push(Reverse((cost, node)));
        }
        if self.standings.len() <= node {
            self.standings.resize(node + 1, Standing::Absent);
        }
        self.standings[node] = standing;
    }

    /// The cheapest node and its victims; they are doomed, and what budgets allow shrinks. Look at the node again when the pod is nominated to it.
    pub fn take(
        &mut self,
        snapshot: &mut Snapshot,
        view: &mut View,
        allowances: &mut Allowances,
    ) -> Option<(NodeIndex, Vec<Victim>)> {
        while let Some(Reverse((cost, node))) = self.heap.pop() {
            if self.standings[node] != Standing::Candidate(cost) {
                continue;
            }
            let (now, victims) = match evaluate(snapshot, view, allowances, node) {
                Outcome::Candidate(now, victims) => (now, victims),
                Outcome::NoVictims => {
                    self.standings[node] = Standing::NoVictims;
                    continue;
                }
                Outcome::Still(rejection) => {
                    self.standings[node] = Standing::Still(rejection);
                    continue;
                }
            };
            if now > cost {
                self.standings[node] = Standing::Candidate(now);
                self.heap.push(Reverse((now, node)));
                continue;
            }
            for victim in &victims {
                let pods = &snapshot.nodes[node].pods;
                let pod = pods.iter().find(|pod| pod.uid == victim.uid);
                let pod = pod.expect("a victim is a pod of the node").clone();
                allowances.spend(snapshot, &pod);
                snapshot.doom(&victim.uid);
            }
            return Some((node, victims));
        }
        None
    }

    /// What is said when no candidate is left.
    pub fn fruitless(&self) -> Fruitless {
        let mut fruitless = Fruitless::default();
        for standing in &self.standings {
            match standing {
                Standing::Absent => {}
                Standing::NotHelpful => fruitless.not_helpful += 1,
                Standing::NoVictims | Standing::Candidate(_) => fruitless.no_victims += 1,
                Standing::Still(rejection) => fruitless.still.add(rejection.clone()),
            }
        }
        fruitless
    }
}

fn stand(
    snapshot: &mut Snapshot,
    view: &mut View,
    allowances: &mut Allowances,
    node: NodeIndex,
) -> Standing {
    if !snapshot.nodes[node].present {
        return Standing::Absent;
    }
    let resolvable = view.refusal().is_none()
        && view
            .rejection(snapshot, node)
            .is_some_and(|rejection| rejection.is_resolvable());
    if !resolvable {
        return Standing::NotHelpful;
    }
    // Where all pods are alike in importance there is nothing to think through.
    let lower = snapshot.priorities.range(..view.class.priority).next();
    let pods = &snapshot.nodes[node].pods;
    if lower.is_none() && !pods.iter().any(PlacedPod::is_leaving) {
        return Standing::NoVictims;
    }
    match evaluate(snapshot, view, allowances, node) {
        Outcome::Candidate(cost, _) => Standing::Candidate(cost),
        Outcome::NoVictims => Standing::NoVictims,
        Outcome::Still(rejection) => Standing::Still(rejection),
    }
}

/// The node with some pods thought away.
struct Thought<'v> {
    view: &'v mut View,
    node: NodeIndex,
    /// What is free of each resource that the class asks for.
    free: Vec<(ResourceIndex, i64, i64)>,
    /// Pods that are still there, by position; only kept where ports or disks matter.
    gone: Vec<bool>,
}

impl Thought<'_> {
    fn shift(&mut self, snapshot: &mut Snapshot, position: usize, delta: i64) {
        let pod = &snapshot.nodes[self.node].pods[position];
        let (class, terminating) = (pod.class.clone(), pod.terminating);
        for (index, _, free) in &mut self.free {
            *free = free.saturating_sub(class.request.amount(*index).saturating_mul(delta));
        }
        self.gone[position] = delta < 0;
        let (own, profile) = (self.view.class.clone(), self.view.profile.clone());
        if let Some(topology) = self.view.topology_mut() {
            topology.apply(
                snapshot,
                &own,
                &profile,
                &class,
                self.node,
                delta,
                terminating,
            );
        }
    }

    fn rejection(&mut self, snapshot: &Snapshot) -> Option<Rejection> {
        let state = &snapshot.nodes[self.node];
        let class = self.view.class.clone();
        let profile: &Profile = &self.view.profile.clone();
        let staying = || {
            let pods = state.pods.iter().zip(&self.gone);
            pods.filter(|(_, gone)| !**gone).map(|(pod, _)| pod)
        };
        if !class.host_ports.is_empty() && profile.upholds(Rule::NodePorts) {
            let nominated = state
                .nominated
                .iter()
                .filter(|(_, nominee)| nominee.priority >= class.priority);
            let mut held = staying()
                .map(|pod| &pod.class)
                .chain(nominated.map(|(_, nominee)| nominee))
                .flat_map(|holder| &holder.host_ports);
            if held.any(|held| class.host_ports.iter().any(|port| port.conflicts(held))) {
                return Some(Rejection::HostPorts);
            }
        }
        if profile.upholds(Rule::NodeResourcesFit) {
            let lacking: Vec<ResourceIndex> = self
                .free
                .iter()
                .filter(|(_, amount, free)| amount > free)
                .map(|(index, _, _)| *index)
                .collect();
            if !lacking.is_empty() {
                return Some(Rejection::Resources {
                    lacking,
                    never: false,
                });
            }
        }
        let held_disks = || staying().flat_map(|pod| &pod.class.disks);
        if !class.disks.is_empty()
            && profile.upholds(Rule::VolumeRestrictions)
            && held_disks().any(|held| class.disks.iter().any(|disk| disk.conflicts(held)))
        {
            return Some(Rejection::DiskConflict);
        }
        if let Some(rejection) = self
            .view
            .needs()
            .and_then(|needs| needs.rejection(snapshot, profile, self.node))
        {
            return Some(rejection);
        }
        let topology = self.view.topology_mut();
        topology.and_then(|topology| topology.rejection(snapshot, profile, self.node))
    }
}

fn evaluate(
    snapshot: &mut Snapshot,
    view: &mut View,
    allowances: &mut Allowances,
    node: NodeIndex,
) -> Outcome {
    let class = view.class.clone();
    let state = &snapshot.nodes[node];
    if filter::static_rejection(&class, state, &view.profile).is_some() {
        return Outcome::NoVictims;
    }
    // The most important first.
    let mut lower: Vec<usize> = (0..state.pods.len())
        .filter(|at| {
            state.pods[*at].class.priority < class.priority && !state.pods[*at].is_leaving()
        })
        .collect();
    lower.sort_by(|a, b| {
        let (a, b) = (&state.pods[*a], &state.pods[*b]);
        let importance = |pod: &PlacedPod| (Reverse(pod.class.priority), pod.started_seconds);
        importance(a)
            .cmp(&importance(b))
            .then_with(|| a.uid.cmp(&b.uid))
    });
    let leaving: Vec<usize> = (0..state.pods.len())
        .filter(|at| state.pods[*at].is_leaving())
        .collect();
    if lower.is_empty() && leaving.is_empty() {
        return Outcome::NoVictims;
    }
    let pods: Vec<&PlacedPod> = lower.iter().map(|at| &state.pods[*at]).collect();
    let violations = allowances.violations(snapshot, &pods);
    let ignored = |index: ResourceIndex| {
        view.profile.ignores_any() && view.profile.ignores(snapshot.space.name(index))
    };
    let free: Vec<(ResourceIndex, i64, i64)> = class
        .request
        .iter()
        .filter(|(index, _)| !ignored(*index))
        .map(|(index, amount)| (index, amount, state.free_for(class.priority, index)))
        .collect();
    if class.demands_reported_bandwidth && !state.reports_bandwidth {
        return Outcome::NoVictims;
    }
    let mut thought = Thought {
        gone: vec![false; state.pods.len()],
        view,
        node,
        free,
    };
    for at in leaving.iter().chain(&lower) {
        thought.shift(snapshot, *at, -1);
    }
    let mut gone: Vec<usize> = leaving;
    let still = thought.rejection(snapshot);
    let mut victims: Vec<(usize, bool)> = Vec::new();
    if still.is_none() {
        let reprieved = |violating: bool| {
            let all = lower.iter().zip(&violations);
            all.filter(move |(_, violates)| **violates == violating)
                .map(|(at, _)| *at)
        };
        for (violating, at) in reprieved(true)
            .map(|at| (true, at))
            .chain(reprieved(false).map(|at| (false, at)))
        {
            thought.shift(snapshot, at, 1);
            if thought.rejection(snapshot).is_some() {
                thought.shift(snapshot, at, -1);
                victims.push((at, violating));
            }
        }
        gone.extend(victims.iter().map(|(at, _)| *at));
    } else {
        gone.extend(&lower);
    }
    for at in gone {
        thought.shift(snapshot, at, 1);
    }
    if let Some(rejection) = still {
        return if lower.is_empty() {
            Outcome::NoVictims
        } else {
            Outcome::Still(rejection)
        };
    }
    let state = &snapshot.nodes[node];
    victims.sort_by_key(|(at, _)| lower.iter().position(|other| other == at));
    let chosen: Vec<&PlacedPod> = victims.iter().map(|(at, _)| &state.pods[*at]).collect();
    let highest = chosen.iter().map(|pod| pod.class.priority).max();
    let earliest = chosen
        .iter()
        .filter(|pod| Some(pod.class.priority) == highest)
        .map(|pod| pod.started_seconds)
        .min();
    let cost = Cost {
        violation_count: victims.iter().filter(|(_, violates)| *violates).count(),
        highest_priority: highest.map_or(i64::MIN, i64::from),
        priority_sum: chosen
            .iter()
            .map(|pod| i128::from(pod.class.priority) + (1 << 31))
            .sum(),
        victim_count: chosen.len(),
        earliest_start: Reverse(earliest.unwrap_or(i64::MAX)),
    };
    let victims = victims
        .iter()
        .map(|(at, violates_budget)| {
            let pod = &state.pods[*at];
            Victim {
                uid: pod.uid.clone(),
                namespace: pod.class.namespace.clone(),
                name: pod.name.clone(),
                priority: pod.class.priority,
                violates_budget: *violates_budget,
            }
        })
        .collect();
    Outcome::Candidate(cost, victims)
}
