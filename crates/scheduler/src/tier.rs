//! Step 3 for the pods of one priority: gangs, then pods by class, then what the solver can still gain,
//! then preemption for those who are left.
//!
//! The first pass takes each class's best node in turn (best-fit, the largest classes first) by the
//! class's [`crate::view::View`]. If it places everybody, no plan places more, and the solver is not
//! asked. Else all classes whose rules do not speak of other pods are matched again together by the
//! solver, and the better of the two answers is kept, with the solver's bound as the proof.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::class::PodClass;
use crate::cycle::{Gang, PendingPod, Tier};
use crate::diagnosis::Diagnosis;
use crate::items::{Matched, Problem, Rules};
use crate::preemption::{Allowances, Search};
use crate::profile::Profile;
use crate::snapshot::{NodeIndex, Snapshot, Uid, address};
use crate::view::View;
use crate::{Amounts, Decision, Plan, Policy, TierReport, score};

/// Rounds in which pods that want to be near others are tried again.
const AFFINITY_ROUNDS_MAX: usize = 8;

/// A plan in the making.
pub(crate) struct Run<'p> {
    pub plan: Plan,
    policy: &'p Policy<'p>,
    profiles: HashMap<String, Arc<Profile>>,
    allowances: Option<Allowances>,
}

impl<'p> Run<'p> {
    pub fn new(policy: &'p Policy<'p>) -> Self {
        Run {
            plan: Plan::default(),
            policy,
            profiles: HashMap::new(),
            allowances: None,
        }
    }

    fn profile(&mut self, class: &PodClass) -> Arc<Profile> {
        if let Some(profile) = self.profiles.get(&class.scheduler_name) {
            return profile.clone();
        }
        let profile = self.policy.profile(&class.scheduler_name);
        self.profiles
            .insert(class.scheduler_name.clone(), profile.clone());
        profile
    }

    fn view(&mut self, snapshot: &mut Snapshot, class: &Arc<PodClass>) -> View {
        let profile = self.profile(class);
        snapshot.view(class, &profile)
    }

    fn decide(&mut self, pod: &PendingPod, decision: Decision) {
        self.plan.decisions.push((pod.clone(), decision));
    }

    /// Records the placement of pods that the snapshot holds already.
    fn record(&mut self, snapshot: &Snapshot, placed: &Placed) {
        let node = snapshot.nodes[placed.node].name.clone();
        let volumes = placed.volumes.clone();
        self.decide(&placed.pod, Decision::Place { node, volumes });
    }
}

/// A pod that got a node in this tier.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub pod: PendingPod,
    pub node: NodeIndex,
    pub volumes: Vec<crate::storage::VolumeAction>,
    pub value: i64,
}

/// One class of a tier while it is matched.
struct Lot<'t> {
    class: &'t Arc<PodClass>,
    placed: Vec<Placed>,
    waiting: Vec<&'t PendingPod>,
    worth: i64,
    /// No node is preferred more for its own sake.
    preference_max: i64,
    /// Some node might have done without the other pods of the tier.
    hopeful: bool,
}

pub(crate) fn match_tier(snapshot: &mut Snapshot, tier: &Tier, run: &mut Run) {
    let mut report = TierReport {
        priority: tier.priority,
        ..TierReport::default()
    };
    let mut bound = 0i64;
    let mut doubtful = false;
    let nominated = match_nominated(snapshot, tier, run, &mut report);
    let mut gang_waiting: Vec<(&Gang, Arc<Diagnosis>)> = Vec::new();
    for gang in &tier.gangs {
        match match_gang(snapshot, gang, run) {
            Ok(placed) => {
                bound = bound.saturating_add(gang_bound(snapshot, gang));
                report.take(&placed);
                placed
                    .iter()
                    .for_each(|placed| run.record(snapshot, placed));
            }
            Err(why) => {
                if gang
                    .min_count
                    .is_some_and(|min| snapshot.placed_in_group(&gang.key) + gang.pods.len() >= min)
                {
                    // It might have been placed in another way.
                    bound = bound.saturating_add(gang_bound(snapshot, gang));
                    doubtful = true;
                }
                gang_waiting.push((gang, why));
            }
        }
    }
    let mut lots = match_classes(snapshot, tier, &nominated, run);
    judge_hopes(snapshot, tier, &mut lots, run);
    for lot in &lots {
        let each = lot.worth.saturating_add(lot.preference_max);
        let count = lot.placed.len() + if lot.hopeful { lot.waiting.len() } else { 0 };
        bound = bound.saturating_add(each.saturating_mul(count as i64));
        doubtful |= lot.hopeful && !lot.waiting.is_empty();
    }
    let value = |lots: &[Lot]| {
        let values = lots
            .iter()
            .flat_map(|lot| &lot.placed)
            .map(|placed| placed.value);
        values.fold(0i64, i64::saturating_add)
    };
    let before = report.value;
    if doubtful {
        improve(snapshot, tier, &mut lots, run, &mut bound);
    }
    match_affine(snapshot, &mut lots, run);
    report.value = before.saturating_add(value(&lots));
    report.upper_bound = bound
        .saturating_add(report.nominated_value)
        .max(report.value);
    for lot in &lots {
        report.take_counts(lot.placed.len(), lot.waiting.len());
        lot.placed
            .iter()
            .for_each(|placed| run.record(snapshot, placed));
    }
    for (gang, why) in gang_waiting {
        report.waiting_count += gang.pods.len();
        if !preempt_for_gang(snapshot, gang, run, &why) {
            for pod in &gang.pods {
                run.decide(pod, Decision::Wait { why: why.clone() });
            }
        }
    }
    for lot in &lots {
        leave(snapshot, lot, run);
    }
    run.plan.value = run.plan.value.saturating_add(report.value);
    run.plan.upper_bound = run.plan.upper_bound.saturating_add(report.upper_bound);
    run.plan.tiers.push(report);
}

/// Pods whose victims may be gone by now: first their node, then any other. Answers those that are decided.
fn match_nominated(
    snapshot: &mut Snapshot,
    tier: &Tier,
    run: &mut Run,
    report: &mut TierReport,
) -> HashSet<Uid> {
    let mut decided = HashSet::new();
    for (class, pods) in &tier.classes {
        for pod in pods {
            let Some(node_name) = snapshot.withdraw_nomination(&pod.uid) else {
                continue;
            };
            let mut view = run.view(snapshot, class);
            let own = snapshot
                .index(&node_name)
                .filter(|node| view.is_open(snapshot, *node));
            let worth = score::worth(snapshot.totals(), class);
            if let Some(node) = own.or_else(|| view.best(snapshot, None)) {
                if let Some(placed) = put(snapshot, &view, pod, node, worth) {
                    run.record(snapshot, &placed);
                    report.value = report.value.saturating_add(placed.value);
                    report.nominated_value = report.nominated_value.saturating_add(placed.value);
                    report.take_counts(1, 0);
                }
                decided.insert(pod.uid.clone());
            } else if snapshot
                .node(&node_name)
                .is_some_and(|node| node.has_victims_of(class.priority))
            {
                snapshot.nominate(&pod.uid, class, &node_name);
                let mut why = (*view.diagnose(snapshot)).clone();
                why.preemption =
                    "not eligible due to a terminating pod on the nominated node.".into();
                run.decide(pod, Decision::Wait { why: Arc::new(why) });
                report.take_counts(0, 1);
                decided.insert(pod.uid.clone());
            }
            snapshot.keep_view(view);
        }
    }
    decided
}

/// The first pass: each class's best nodes in turn.
fn match_classes<'t>(
    snapshot: &mut Snapshot,
    tier: &'t Tier,
    decided: &HashSet<Uid>,
    run: &mut Run,
) -> Vec<Lot<'t>> {
    let totals = snapshot.totals().clone();
    let mut lots: Vec<Lot> = tier
        .classes
        .iter()
        .map(|(class, pods)| Lot {
            class,
            placed: Vec::new(),
            waiting: pods
                .iter()
                .filter(|pod| decided.is_empty() || !decided.contains(&pod.uid))
                .collect(),
            worth: score::worth(&totals, class),
            preference_max: 0,
            hopeful: true,
        })
        .filter(|lot| !lot.waiting.is_empty())
        .collect();
    // Rules about other pods first, since the others yield to them; then the largest, as in best-fit-decreasing.
    lots.sort_by_key(|lot| match lot.class.is_entangled() {
        true => (0, 0),
        false => (1, lot.worth.saturating_neg()),
    });
    for lot in &mut lots {
        let mut view = run.view(snapshot, lot.class);
        lot.preference_max = view.preference_max();
        fill(snapshot, lot, &mut view);
        snapshot.keep_view(view);
    }
    lots
}

/// What the solver is asked about lots: their classes, each with all of its pods, placed or waiting.
fn demand_of<'l, 't: 'l>(lots: impl Iterator<Item = &'l Lot<'t>>) -> Vec<(Arc<PodClass>, usize)> {
    lots.map(|lot| (lot.class.clone(), lot.placed.len() + lot.waiting.len()))
        .collect()
}

/// Room that some placed pods would give back, by node.
fn room_of<'p>(placed: impl Iterator<Item = &'p Placed>) -> HashMap<NodeIndex, Amounts> {
    let mut room: HashMap<NodeIndex, Amounts> = HashMap::new();
    for placed in placed {
        room.entry(placed.node)
            .or_default()
            .add(&placed.pod.class.request);
    }
    room
}

/// More than any plan can make of a gang.
fn gang_bound(snapshot: &Snapshot, gang: &Gang) -> i64 {
    let each = |pod: &PendingPod| {
        let worth = score::worth(snapshot.totals(), &pod.class);
        worth.saturating_add(score::PREFERENCE_STEPS)
    };
    gang.pods.iter().map(each).fold(0, i64::saturating_add)
}

/// Which of the classes that wait could have had a node at all: only they leave room for a better plan.
fn judge_hopes(snapshot: &mut Snapshot, tier: &Tier, lots: &mut [Lot], run: &mut Run) {
    if lots.iter().all(|lot| lot.waiting.is_empty()) {
        return;
    }
    let given_back = room_of(lots.iter().flat_map(|lot| &lot.placed));
    let has_gangs = !tier.gangs.is_empty();
    for lot in lots
        .iter_mut()
        .filter(|lot| !lot.waiting.is_empty() && lot.placed.is_empty())
    {
        let view = run.view(snapshot, lot.class);
        let fits = |node: NodeIndex| {
            let state = &snapshot.nodes[node];
            let back = given_back.get(&node);
            view.admits(node)
                && lot.class.request.iter().all(|(index, amount)| {
                    let back = back.map_or(0, |back| back.amount(index));
                    let free = state.free_for(tier.priority, index);
                    // What a gang holds might be free too.
                    amount <= free.saturating_add(back)
                        || has_gangs && amount <= state.allocatable.amount(index)
                })
        };
        lot.hopeful = view.refusal().is_none() && (0..snapshot.nodes.len()).any(fits);
        snapshot.keep_view(view);
    }
}

/// Whoever wants to be near a pod that was placed after it is tried again. Last of all: nobody whom it came to be near is moved any more.
fn match_affine(snapshot: &mut Snapshot, lots: &mut [Lot], run: &mut Run) {
    for _ in 0..AFFINITY_ROUNDS_MAX {
        let mut progress = false;
        let affine = |lot: &&mut Lot| !lot.waiting.is_empty() && !lot.class.affinity.is_empty();
        for lot in lots.iter_mut().filter(affine) {
            let mut view = run.view(snapshot, lot.class);
            progress |= fill(snapshot, lot, &mut view);
            snapshot.keep_view(view);
        }
        if !progress {
            break;
        }
    }
}

/// Places pods of a lot until no node is open. Answers whether any was placed.
fn fill(snapshot: &mut Snapshot, lot: &mut Lot, view: &mut View) -> bool {
    let before = lot.placed.len();
    let mut next = 0;
    while let Some(pod) = lot.waiting.get(next) {
        view.catch_up(snapshot);
        let Some(node) = view.best(snapshot, None) else {
            break;
        };
        lot.placed.extend(put(snapshot, view, pod, node, lot.worth));
        next += 1;
    }
    lot.waiting.drain(..next);
    lot.placed.len() > before
}

/// Assumes a pod on a node, with its volumes. `None` if it is placed already, as a pod given twice would be.
fn put(
    snapshot: &mut Snapshot,
    view: &View,
    pod: &PendingPod,
    node: NodeIndex,
    worth: i64,
) -> Option<Placed> {
    let volumes = view
        .needs()
        .map(|needs| needs.actions(snapshot, node))
        .unwrap_or_default();
    if !snapshot.assume_at(pod, node) {
        return None;
    }
    if view.needs().is_some() {
        let name = snapshot.nodes[node].name.clone();
        snapshot.storage_assume(&pod.uid, &name, &volumes);
        snapshot.storage_epoch += 1;
    }
    let preference = score::node_preference(&pod.class, &snapshot.nodes[node], &view.profile);
    Some(Placed {
        pod: pod.clone(),
        node,
        volumes,
        value: worth.saturating_add(preference),
    })
}

/// Lets the solver match all classes again that do not speak of other pods, and keeps the better answer.
fn improve<'t>(
    snapshot: &mut Snapshot,
    tier: &'t Tier,
    lots: &mut [Lot<'t>],
    run: &mut Run,
    bound: &mut i64,
) {
    // What was placed in this tier is given back in thought: the bound holds for any order of placing.
    let given_back = room_of(lots.iter().flat_map(|lot| &lot.placed));
    let demand = demand_of(lots.iter().filter(|lot| lot.hopeful));
    let has_gangs = !tier.gangs.is_empty();
    let profiles: Vec<Arc<Profile>> = demand.iter().map(|(class, _)| run.profile(class)).collect();
    let Some(problem) = Problem::new(
        snapshot,
        &demand,
        &profiles,
        &given_back,
        tier.priority,
        Rules::OfNodes,
    ) else {
        return;
    };
    let greedy = |lots: &[Lot]| {
        let values = lots
            .iter()
            .flat_map(|lot| &lot.placed)
            .map(|placed| placed.value);
        values.fold(0i64, i64::saturating_add)
    };
    let before = greedy(lots);
    if !has_gangs {
        *bound = (*bound).min(problem.upper_bound());
    }
    if before >= *bound {
        return;
    }
    // Only plain classes go to the solver; the rest keeps its places.
    let plain: Vec<usize> = (0..lots.len())
        .filter(|at| lots[*at].hopeful && !lots[*at].class.is_entangled())
        .collect();
    let short = plain.iter().any(|at| !lots[*at].waiting.is_empty());
    if plain.len() < 2 || !short {
        return;
    }
    let given_back = room_of(plain.iter().flat_map(|at| &lots[*at].placed));
    let demand = demand_of(plain.iter().map(|at| &lots[*at]));
    let profiles: Vec<Arc<Profile>> = demand.iter().map(|(class, _)| run.profile(class)).collect();
    let Some(problem) = Problem::new(
        snapshot,
        &demand,
        &profiles,
        &given_back,
        tier.priority,
        Rules::All,
    ) else {
        return;
    };
    let Matched {
        value,
        placed,
        upper_bound,
    } = problem.solve(run.policy);
    let placed_before: i64 = plain
        .iter()
        .flat_map(|at| &lots[*at].placed)
        .fold(0i64, |sum, placed| sum.saturating_add(placed.value));
    if plain.len() == lots.iter().filter(|lot| lot.hopeful).count() && !has_gangs {
        *bound = (*bound).min(upper_bound.max(placed_before));
    }
    if value <= placed_before {
        return;
    }
    for at in &plain {
        for placed in &lots[*at].placed {
            snapshot.unassume(&placed.pod.uid);
        }
    }
    for (at, places) in plain.iter().zip(placed) {
        let lot = &mut lots[*at];
        let mut pods: Vec<PendingPod> = std::mem::take(&mut lot.placed)
            .into_iter()
            .map(|placed| placed.pod)
            .collect();
        let waiting: Vec<&PendingPod> = std::mem::take(&mut lot.waiting);
        // The oldest first, whoever was placed before.
        let tier_pods = tier
            .classes
            .iter()
            .find(|(class, _)| Arc::ptr_eq(class, lot.class));
        let order = tier_pods
            .map(|(_, pods)| pods.as_slice())
            .unwrap_or_default();
        let mine: HashSet<Uid> = pods
            .drain(..)
            .map(|pod| pod.uid)
            .chain(waiting.iter().map(|pod| pod.uid.clone()))
            .collect();
        let mut left = order.iter().filter(|pod| mine.contains(&pod.uid));
        let mut view = run.view(snapshot, lot.class);
        for (node, count) in places {
            for _ in 0..count {
                view.catch_up(snapshot);
                if !view.is_open(snapshot, node) {
                    break;
                }
                if let Some(pod) = left.next() {
                    lot.placed
                        .extend(put(snapshot, &view, pod, node, lot.worth));
                }
            }
        }
        snapshot.keep_view(view);
        lot.waiting = left.collect();
    }
    // The solver speaks of resources only; who still fits by the finer rules goes in.
    for lot in lots.iter_mut().filter(|lot| !lot.waiting.is_empty()) {
        let mut view = run.view(snapshot, lot.class);
        fill(snapshot, lot, &mut view);
        snapshot.keep_view(view);
    }
}

/// Whoever is left: preempts, or waits and is told why.
fn leave(snapshot: &mut Snapshot, lot: &Lot, run: &mut Run) {
    if lot.waiting.is_empty() {
        return;
    }
    let mut view = run.view(snapshot, lot.class);
    let plain = view.diagnose(snapshot);
    let mut waiting = lot.waiting.as_slice();
    let mut why = (*plain).clone();
    if snapshot.node_count() > 0 && view.profile.preempts {
        if lot.class.never_preempts {
            why.preemption = "not eligible due to preemptionPolicy=Never.".into();
        } else {
            let mut allowances = run
                .allowances
                .take()
                .unwrap_or_else(|| Allowances::new(snapshot));
            let mut search = view.search(snapshot, &mut allowances);
            while let Some((pod, rest)) = waiting.split_first() {
                let Some((node, victims)) = search.take(snapshot, &mut view, &mut allowances)
                else {
                    break;
                };
                let name = snapshot.nodes[node].name.clone();
                snapshot.nominate(&pod.uid, lot.class, &name);
                view.catch_up(snapshot);
                search.look(snapshot, &mut view, &mut allowances, node);
                let decision = Decision::Preempt {
                    node: name,
                    victims,
                    why: plain.clone(),
                };
                run.decide(pod, decision);
                waiting = rest;
            }
            run.allowances = Some(allowances);
            if !waiting.is_empty() {
                let fruitless = search.fruitless();
                why.preemption = fruitless.message(snapshot.node_count(), &snapshot.space);
            }
            view.keep_search(snapshot, search);
        }
    }
    snapshot.keep_view(view);
    let why = Arc::new(why);
    for pod in waiting {
        run.decide(pod, Decision::Wait { why: why.clone() });
    }
}

/// Places a gang's members, as many as it needs at least.
fn match_gang(
    snapshot: &mut Snapshot,
    gang: &Gang,
    run: &mut Run,
) -> Result<Vec<Placed>, Arc<Diagnosis>> {
    let untried = |why: String| Err(Arc::new(Diagnosis::untried(why)));
    let Some(min_count) = gang.min_count else {
        return untried(format!(
            "waiting for pods's pod group \"{}\" to appear in scheduling queue",
            gang.key.name
        ));
    };
    let already = snapshot.placed_in_group(&gang.key);
    if already + gang.pods.len() < min_count {
        return untried(
            "waiting for minCount pods from a gang to appear in scheduling queue".into(),
        );
    }
    let needed = min_count.saturating_sub(already);
    // What is kept for members is theirs to use now.
    let nominations = snapshot.mark();
    for pod in &gang.pods {
        snapshot.withdraw_nomination(&pod.uid);
    }
    let domains = match &gang.topology_key {
        None => vec![None],
        Some(name) => {
            let key = snapshot.topology_key(name);
            let held = snapshot.nodes().find(|(_, node)| {
                node.pods
                    .iter()
                    .any(|pod| pod.class.group.as_ref() == Some(&gang.key))
            });
            match held {
                Some((node, _)) => vec![Some((key, snapshot.domains.key(key).domain(node)))],
                None => {
                    let count = snapshot.domains.key(key).domain_count() as u32;
                    (0..count).map(|domain| Some((key, domain))).collect()
                }
            }
        }
    };
    // The largest members first, in the order given among equals.
    let totals = snapshot.totals().clone();
    let mut pods: Vec<&PendingPod> = gang.pods.iter().collect();
    pods.sort_by_key(|pod| score::worth(&totals, &pod.class).saturating_neg());
    let mut refused: Option<Arc<Diagnosis>> = None;
    for within in domains {
        let mark = snapshot.mark();
        let mut placed = Vec::new();
        let mut hopeless: HashSet<usize> = HashSet::new();
        for pod in &pods {
            if hopeless.contains(&address(&pod.class)) {
                continue;
            }
            let mut view = run.view(snapshot, &pod.class);
            let worth = score::worth(&totals, &pod.class);
            match view.best(snapshot, within) {
                Some(node) => placed.extend(put(snapshot, &view, pod, node, worth)),
                None => {
                    hopeless.insert(address(&pod.class));
                    refused = Some(view.diagnose(snapshot));
                }
            }
            snapshot.keep_view(view);
        }
        if placed.len() >= needed {
            let held: HashSet<&Uid> = placed.iter().map(|placed| &placed.pod.uid).collect();
            let why = refused.unwrap_or_default();
            for pod in gang.pods.iter().filter(|pod| !held.contains(&pod.uid)) {
                run.decide(pod, Decision::Wait { why: why.clone() });
            }
            return Ok(placed);
        }
        snapshot.undo_to(mark);
        if within.is_none()
            && let Some(placed) = solve_gang(snapshot, &pods, needed, run)
        {
            return Ok(placed);
        }
    }
    snapshot.undo_to(nominations);
    Err(refused.unwrap_or_else(|| {
        Arc::new(Diagnosis {
            node_count: snapshot.node_count(),
            ..Diagnosis::default()
        })
    }))
}

/// Best-fit may fail where a plan exists: the solver is asked for a gang of plain pods.
fn solve_gang(
    snapshot: &mut Snapshot,
    pods: &[&PendingPod],
    needed: usize,
    run: &mut Run,
) -> Option<Vec<Placed>> {
    if pods.iter().any(|pod| pod.class.is_entangled()) {
        return None;
    }
    // The smallest ones are enough.
    let chosen = &pods[pods.len().saturating_sub(needed)..];
    let mut lots: Vec<(Arc<PodClass>, Vec<&PendingPod>)> = Vec::new();
    for pod in chosen {
        match lots
            .iter_mut()
            .find(|(class, _)| Arc::ptr_eq(class, &pod.class))
        {
            Some((_, members)) => members.push(pod),
            None => lots.push((pod.class.clone(), vec![pod])),
        }
    }
    let demand: Vec<(Arc<PodClass>, usize)> = lots
        .iter()
        .map(|(class, members)| (class.clone(), members.len()))
        .collect();
    let profiles: Vec<Arc<Profile>> = demand.iter().map(|(class, _)| run.profile(class)).collect();
    let priority = chosen
        .iter()
        .map(|pod| pod.class.priority)
        .min()
        .unwrap_or(0);
    // All of them are worth more than any part, so that a value that is large enough is a whole gang.
    let problem = Problem::new(
        snapshot,
        &demand,
        &profiles,
        &HashMap::new(),
        priority,
        Rules::All,
    )?;
    let matched = problem.solve(run.policy);
    let count: usize = matched
        .placed
        .iter()
        .flatten()
        .map(|(_, count)| count)
        .sum();
    if count < needed {
        return None;
    }
    let mark = snapshot.mark();
    let totals = snapshot.totals().clone();
    let mut placed = Vec::new();
    for ((class, members), places) in lots.iter().zip(matched.placed) {
        let mut members = members.iter();
        let mut view = run.view(snapshot, class);
        for (node, count) in places {
            for pod in members.by_ref().take(count) {
                view.catch_up(snapshot);
                if view.is_open(snapshot, node) {
                    placed.extend(put(
                        snapshot,
                        &view,
                        pod,
                        node,
                        score::worth(&totals, class),
                    ));
                }
            }
        }
        snapshot.keep_view(view);
    }
    if placed.len() < needed {
        snapshot.undo_to(mark);
        return None;
    }
    let held: HashSet<&Uid> = placed.iter().map(|placed| &placed.pod.uid).collect();
    let why = Arc::new(Diagnosis::untried(
        "the gang has its minCount without this pod",
    ));
    for pod in pods.iter().filter(|pod| !held.contains(&pod.uid)) {
        run.decide(pod, Decision::Wait { why: why.clone() });
    }
    Some(placed)
}

/// Makes room for a whole gang, or for nobody of it: its members are nominated together and wait for the victims.
fn preempt_for_gang(
    snapshot: &mut Snapshot,
    gang: &Gang,
    run: &mut Run,
    why: &Arc<Diagnosis>,
) -> bool {
    let Some(min_count) = gang.min_count else {
        return false;
    };
    let already = snapshot.placed_in_group(&gang.key);
    let barred = |pod: &PendingPod| {
        pod.class.never_preempts || !run.policy.profile(&pod.class.scheduler_name).preempts
    };
    if already + gang.pods.len() < min_count
        || gang.topology_key.is_some()
        || gang.pods.iter().any(barred)
    {
        return false;
    }
    let needed = min_count.saturating_sub(already);
    let victims_leave = gang.pods.iter().any(|pod| {
        let node = snapshot
            .nominated_to(&pod.uid)
            .and_then(|node| snapshot.node(node));
        node.is_some_and(|node| node.pods.iter().any(|other| other.doomed))
    });
    if victims_leave {
        return false;
    }
    let mark = snapshot.mark();
    for pod in &gang.pods {
        snapshot.withdraw_nomination(&pod.uid);
    }
    let mut allowances = run
        .allowances
        .clone()
        .unwrap_or_else(|| Allowances::new(snapshot));
    let mut decisions: Vec<(&PendingPod, Decision)> = Vec::new();
    let mut victim_count = 0;
    let mut searches: HashMap<usize, Search> = HashMap::new();
    for pod in &gang.pods {
        if decisions.len() == needed {
            break;
        }
        let mut view = run.view(snapshot, &pod.class);
        let found = match view.best(snapshot, None) {
            Some(node) => Some((node, Vec::new())),
            None => {
                let search = match searches.remove(&address(&pod.class)) {
                    Some(search) => search,
                    None => Search::new(snapshot, &mut view, &mut allowances),
                };
                let search = searches.entry(address(&pod.class)).or_insert(search);
                search.take(snapshot, &mut view, &mut allowances)
            }
        };
        if let Some((node, victims)) = found {
            let name = snapshot.nodes[node].name.clone();
            victim_count += victims.len();
            snapshot.nominate(&pod.uid, &pod.class, &name);
            view.catch_up(snapshot);
            if let Some(search) = searches.get_mut(&address(&pod.class)) {
                search.look(snapshot, &mut view, &mut allowances, node);
            }
            let decision = Decision::Preempt {
                node: name,
                victims,
                why: why.clone(),
            };
            decisions.push((pod, decision));
        }
        snapshot.keep_view(view);
    }
    if decisions.len() < needed || victim_count == 0 {
        snapshot.undo_to(mark);
        return false;
    }
    run.allowances = Some(allowances);
    let decided: HashSet<&Uid> = decisions.iter().map(|(pod, _)| &pod.uid).collect();
    let rest: Vec<&PendingPod> = gang
        .pods
        .iter()
        .filter(|pod| !decided.contains(&pod.uid))
        .collect();
    for (pod, decision) in decisions {
        run.decide(pod, decision);
    }
    for pod in rest {
        run.decide(pod, Decision::Wait { why: why.clone() });
    }
    true
}
