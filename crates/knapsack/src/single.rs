//! One knapsack of several dimensions: a core problem, neighbourhoods solved exactly, and acceptance that cools.
//!
//! The relaxation splits the items: those whose reduced profit is far from zero are as it says (Balas and
//! Zemel's core, Operations Research 28, 1980; Puchinger, Raidl and Pferschy, INFORMS Journal on Computing
//! 22, 2010), and what a decision loses against the relaxation is the reduced profit that it goes against.
//! A step takes one to four items near zero out, the first of them for good, and finds the best set that
//! fits in their place by depth-first search, cutting where the relaxation leaves nothing better than what is
//! looked for. Whether a step back is taken is decided by a threshold that sinks in cycles (Dueck and
//! Scheuer, Journal of Computational Physics 90, 1990). Floating point here decides only what is tried:
//! feasibility is integer, and the value is summed anew by the state.

use crate::Random;
use crate::Work;
use crate::bound::merged;
use crate::model::{Model, ordered};
use crate::state::State;

/// Copies up to which every copy is an item of its own here.
const UNITS_MAX: u64 = 20_000;
/// Nodes of one exact search at most.
const NODES_MAX: u32 = 1_500;
/// Candidates of one exact search at most.
const CANDIDATES_MAX: usize = 64;
/// Threshold at the start of the hottest cycle, as a share of the gap.
const HOTTEST: f64 = 0.12;
/// Steps of one cycle of the threshold.
const CYCLE: u32 = 8_000;

struct Unit {
    kind: u32,
    profit: f64,
    reduced: f64,
}

struct Single {
    dimensions: usize,
    units: Vec<Unit>,
    weight: Vec<i64>,
    inside: Vec<bool>,
    free: Vec<i64>,
    value: f64,
    /// Indexes of `units`, those about which the relaxation cares least first.
    core: Vec<u32>,
    price: Vec<f64>,
    /// How many units have no clear side, and some.
    undecided: f64,
}

/// Is this a problem for [`improve`]?
pub(crate) fn applies(model: &Model) -> bool {
    let copies: u64 = (0..model.kinds.len())
        .map(|kind| u64::from(model.class_fit(kind, 0)))
        .sum();
    model.knapsack_count == 1
        && model.problem.conflicts.is_empty()
        && model.problem.gangs.is_empty()
        && copies <= UNITS_MAX
}

/// Searches until the work is done or the value meets the bound; leaves the best assignment in `state`.
pub(crate) fn improve(state: &mut State, bound: i64, idle_max: u64, seed: u64, work: &mut Work) {
    let mut random = Random::new(seed);
    let (solution, _) = merged(state.model, 1.0, work);
    let mut single = Single::new(state, &solution.price);
    let mut best = single.inside.clone();
    let mut best_value = single.value;
    single.choose_core(bound as f64 - best_value);
    if single.core.is_empty() {
        return;
    }
    let mut last_gain = work.done();
    let mut step = 0u32;
    let (mut hottest, mut record) = (HOTTEST, single.value);
    while !work.exhausted() && best_value < bound as f64 && work.done() - last_gain <= idle_max {
        let phase = step % CYCLE;
        if phase == 0 {
            single.choose_core(bound as f64 - best_value);
            if single.core.is_empty() {
                break;
            }
            // From the best, or from somewhere else that the relaxation does not mind much.
            if random.below(3) != 0 {
                single.become_like(&best);
            } else {
                single.start_anew(
                    (bound as f64 - best_value) * 0.5 * random.unit(),
                    &mut random,
                );
            }
            record = single.value;
            hottest = HOTTEST * (-2.5 * random.unit()).exp();
        }
        step = step.wrapping_add(1);
        let cool = 1.0 - f64::from(phase) / f64::from(CYCLE);
        let threshold = (bound as f64 - record) * hottest * cool;
        single.step(record - threshold, &mut random, work);
        record = record.max(single.value);
        if single.value > best_value + 0.5 {
            best_value = single.value;
            best.clone_from(&single.inside);
            last_gain = work.done();
        }
    }
    single.become_like(&best);
    single.write(state);
}

impl Single {
    fn new(state: &State, price: &[f64]) -> Self {
        let model = state.model;
        let mut held = vec![0u32; model.kinds.len()];
        for (kind, copies) in &state.held[0] {
            held[*kind as usize] = *copies;
        }
        let mut single = Single {
            dimensions: model.dimensions,
            units: Vec::new(),
            weight: Vec::new(),
            inside: Vec::new(),
            free: state.free(0).to_vec(),
            value: 0.0,
            core: Vec::new(),
            price: price.to_vec(),
            undecided: 1.0,
        };
        for (kind, held) in held.iter().enumerate() {
            let weight = model.weight(kind, 0);
            let profit = model.profit(kind, 0) as f64;
            let cost: f64 = weight.iter().zip(price).map(|(w, y)| *w as f64 * y).sum();
            for copy in 0..model.class_fit(kind, 0) {
                single.units.push(Unit {
                    kind: kind as u32,
                    profit,
                    reduced: profit - cost,
                });
                single.weight.extend_from_slice(weight);
                single.inside.push(copy < *held);
                if copy < *held {
                    single.value += profit;
                }
            }
        }
        single
    }

    /// Keeps what may still be decided otherwise: going against a reduced profit beyond the gap cannot pay.
    fn choose_core(&mut self, gap: f64) {
        let units = &self.units;
        self.core = (0..units.len() as u32)
            .filter(|unit| units[*unit as usize].reduced.abs() <= gap)
            .collect();
        self.core
            .sort_by_cached_key(|unit| (ordered(units[*unit as usize].reduced.abs()), *unit));
        let near = |unit: &&u32| units[**unit as usize].reduced.abs() <= gap / 4.0;
        self.undecided = 8.0 + self.core.iter().filter(near).count() as f64;
    }

    fn flip(&mut self, unit: usize) {
        let weight = &self.weight[unit * self.dimensions..(unit + 1) * self.dimensions];
        let inside = self.inside[unit];
        for (free, w) in self.free.iter_mut().zip(weight) {
            *free = if inside { *free + w } else { *free - w };
        }
        let profit = self.units[unit].profit;
        self.value += if inside { -profit } else { profit };
        self.inside[unit] = !inside;
    }

    fn become_like(&mut self, other: &[bool]) {
        // Out first, so that nothing overflows on the way.
        for target in [false, true] {
            for (unit, inside) in other.iter().enumerate() {
                if *inside == target && self.inside[unit] != target {
                    self.flip(unit);
                }
            }
        }
    }

    /// Fills by reduced profit, shaken by `noise`.
    fn start_anew(&mut self, noise: f64, random: &mut Random) {
        for unit in 0..self.units.len() {
            if self.inside[unit] {
                self.flip(unit);
            }
        }
        let mut order: Vec<(i64, usize)> = (0..self.units.len())
            .map(|unit| {
                let key = self.units[unit].reduced + noise * (random.unit() - 0.5);
                (ordered(-key), unit)
            })
            .collect();
        order.sort_unstable();
        for (_, unit) in order {
            let weight = &self.weight[unit * self.dimensions..(unit + 1) * self.dimensions];
            if weight.iter().zip(&self.free).all(|(w, free)| w <= free) {
                self.flip(unit);
            }
        }
    }

    /// Takes some units out, the first of them for good, and puts the best set in their place whose value exceeds `least`.
    fn step(&mut self, least: f64, random: &mut Random, work: &mut Work) {
        work.spend(1);
        let wanted = 1 + random.below(4);
        let mut out: Vec<usize> = Vec::with_capacity(wanted);
        for _ in 0..16 {
            // Near the front, where the relaxation has no clear opinion, more often than not.
            let far = -(1.0 - random.unit()).ln() * self.undecided;
            let unit = self.core[(far as usize).min(self.core.len() - 1)] as usize;
            if self.inside[unit] && !out.contains(&unit) {
                out.push(unit);
                if out.len() >= wanted {
                    break;
                }
            }
        }
        let Some(forced) = out.first().copied() else {
            return;
        };
        for unit in &out {
            self.flip(*unit);
        }
        let mut dive = Dive::new(self, least);
        let fitting = self
            .core
            .iter()
            .map(|unit| *unit as usize)
            .filter(|unit| !self.inside[*unit] && *unit != forced && dive.fits(*unit));
        let mut candidates: Vec<usize> = fitting.take(CANDIDATES_MAX).collect();
        candidates.sort_by_cached_key(|unit| (ordered(-self.units[*unit].reduced), *unit));
        let positive: f64 = candidates
            .iter()
            .map(|unit| self.units[*unit].reduced.max(0.0))
            .sum();
        dive.down(&candidates, 0.0, positive);
        work.spend(u64::from(dive.nodes) / 4 + self.core.len() as u64 / 8 + 1);
        for unit in dive.best.unwrap_or(out) {
            self.flip(unit);
        }
    }

    fn write(&self, state: &mut State) {
        for (kind, copies) in state.held[0].clone() {
            state.take(kind as usize, 0, copies);
        }
        for (unit, inside) in self.units.iter().zip(&self.inside) {
            if *inside && state.room(unit.kind as usize, 0, 1) > 0 {
                state.put(unit.kind as usize, 0, 1);
            }
        }
    }
}

/// Depth-first search over sets of candidates.
struct Dive<'a> {
    single: &'a Single,
    rest: Vec<i64>,
    /// What is free is worth at the prices of the relaxation.
    room: f64,
    /// The value to beat.
    least: f64,
    taken: Vec<usize>,
    best: Option<Vec<usize>>,
    nodes: u32,
}

impl<'a> Dive<'a> {
    fn new(single: &'a Single, least: f64) -> Self {
        let free = single.free.iter().zip(&single.price);
        Dive {
            single,
            rest: single.free.clone(),
            room: free.map(|(free, y)| *free as f64 * y).sum(),
            least,
            taken: Vec::new(),
            best: None,
            nodes: 0,
        }
    }

    fn weight(&self, unit: usize) -> &'a [i64] {
        let dimensions = self.single.dimensions;
        &self.single.weight[unit * dimensions..(unit + 1) * dimensions]
    }

    fn fits(&self, unit: usize) -> bool {
        let weight = self.weight(unit).iter();
        weight.zip(&self.rest).all(|(w, r)| w <= r)
    }

    /// Adds candidates (all fit) in turn; `positive` is the sum of their positive reduced profits.
    fn down(&mut self, candidates: &[usize], gained: f64, mut positive: f64) {
        let value = self.single.value + gained;
        if value > self.least {
            self.least = value;
            self.best = Some(self.taken.clone());
        }
        for (at, unit) in candidates.iter().enumerate() {
            // The relaxation's bound on whatever these could still add.
            if value + self.room + positive <= self.least + 0.5 || self.nodes >= NODES_MAX {
                return;
            }
            self.nodes += 1;
            let Unit {
                profit, reduced, ..
            } = self.single.units[*unit];
            let cost = profit - reduced;
            positive -= reduced.max(0.0);
            let weight = self.weight(*unit);
            for (rest, w) in self.rest.iter_mut().zip(weight) {
                *rest -= w;
            }
            self.room -= cost;
            self.taken.push(*unit);
            let mut most = 0.0;
            let inner: Vec<usize> = candidates[at + 1..]
                .iter()
                .copied()
                .filter(|other| {
                    let fits = self.fits(*other);
                    if fits {
                        most += self.single.units[*other].reduced.max(0.0);
                    }
                    fits
                })
                .collect();
            self.down(&inner, gained + profit, most);
            self.taken.pop();
            self.room += cost;
            for (rest, w) in self.rest.iter_mut().zip(weight) {
                *rest += w;
            }
        }
    }
}
