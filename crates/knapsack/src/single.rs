//! One knapsack of several dimensions: a core problem, neighbourhoods solved exactly, and acceptance that cools.
//!
//! The relaxation splits the items: those whose reduced profit is far from zero are as it says (Balas and
//! Zemel's core, Operations Research 28, 1980; Puchinger, Raidl and Pferschy, INFORMS Journal on Computing
//! 22, 2010), and what a decision loses against the relaxation is the reduced profit that it goes against.
//! A step frees a dozen items near zero, may force one more against its present state, and finds the best
//! completion by depth-first search, cutting where the losses so far leave nothing better than what is
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
const NODES_MAX: u32 = 6_000;
/// Threshold at the start of the hottest cycle, as a share of the gap.
const HOTTEST: f64 = 1.5;
/// Steps of one cycle of the threshold.
const CYCLE: u32 = 20_000;

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
    let mut hottest = HOTTEST / 3.0;
    while !work.exhausted() && best_value < bound as f64 && work.done() - last_gain <= idle_max {
        let phase = step % CYCLE;
        if phase == 0 && step > 0 {
            single.become_like(&best);
            single.choose_core(bound as f64 - best_value);
            hottest = HOTTEST * (-3.0 * random.unit()).exp();
            if single.core.is_empty() {
                break;
            }
        }
        step = step.wrapping_add(1);
        let cool = 1.0 - f64::from(phase) / f64::from(CYCLE);
        let threshold = (bound as f64 - best_value) * hottest * cool / single.dimensions as f64;
        single.step(best_value - threshold, &mut random, work);
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
            for unit in 0..other.len() {
                if other[unit] == target && self.inside[unit] != target {
                    self.flip(unit);
                }
            }
        }
    }

    fn step(&mut self, least: f64, random: &mut Random, work: &mut Work) {
        let wanted = (5 + random.below(8)).min(self.core.len());
        let mut freed: Vec<usize> = Vec::with_capacity(wanted);
        let mean = 15.0 + self.dimensions as f64;
        let draw = |random: &mut Random, core: &[u32]| {
            // Near the front: as many as have no clear side, one a dimension and some.
            let far = -(1.0 - random.unit()).ln() * mean;
            core[(far as usize).min(core.len() - 1)] as usize
        };
        for _ in 0..4 * wanted {
            let unit = draw(random, &self.core);
            if !freed.contains(&unit) {
                freed.push(unit);
                if freed.len() >= wanted {
                    break;
                }
            }
        }
        let forced = freed.pop();
        // Most decisive first: that cuts soonest.
        freed.sort_by_cached_key(|unit| (ordered(-self.units[*unit].reduced.abs()), *unit));
        let old: Vec<bool> = freed.iter().map(|unit| self.inside[*unit]).collect();
        for unit in &freed {
            if self.inside[*unit] {
                self.flip(*unit);
            }
        }
        if let Some(unit) = forced {
            self.flip(unit);
        }
        let mut search = Dive::new(self, &freed, least);
        if search.rest.iter().all(|free| *free >= 0) {
            search.down(0, 0, 0.0, 0.0);
        }
        let (chosen, nodes) = (search.chosen, search.nodes);
        work.spend(u64::from(nodes) / 8 + freed.len() as u64 / 2 + 1);
        match chosen {
            Some(chosen) => {
                for (at, unit) in freed.iter().enumerate() {
                    if chosen >> at & 1 == 1 {
                        self.flip(*unit);
                    }
                }
            }
            None => {
                if let Some(unit) = forced {
                    self.flip(unit);
                }
                for (unit, inside) in freed.iter().zip(old) {
                    if inside {
                        self.flip(*unit);
                    }
                }
            }
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

/// Depth-first search over the freed units.
struct Dive<'a> {
    units: &'a [Unit],
    weight: &'a [i64],
    dimensions: usize,
    freed: &'a [usize],
    rest: Vec<i64>,
    /// What the relaxation could make of the rest: value so far, room at its price, positive reduced profits.
    most: f64,
    value: f64,
    /// The value to beat.
    least: f64,
    chosen: Option<u32>,
    nodes: u32,
}

impl<'a> Dive<'a> {
    fn new(single: &'a Single, freed: &'a [usize], least: f64) -> Self {
        let room: f64 = single
            .free
            .iter()
            .zip(&single.price)
            .map(|(free, y)| *free as f64 * y)
            .sum();
        let positive: f64 = freed
            .iter()
            .map(|unit| single.units[*unit].reduced.max(0.0))
            .sum();
        Dive {
            units: &single.units,
            weight: &single.weight,
            dimensions: single.dimensions,
            freed,
            rest: single.free.clone(),
            most: single.value + room + positive,
            value: single.value,
            least,
            chosen: None,
            nodes: 0,
        }
    }

    /// Decides the unit at `depth`; `lost` is what the decisions so far lost against the relaxation.
    fn down(&mut self, depth: usize, chosen: u32, gained: f64, lost: f64) {
        if self.most - lost <= self.least + 0.5 || self.nodes > NODES_MAX {
            return;
        }
        self.nodes += 1;
        let Some(unit) = self.freed.get(depth) else {
            if self.value + gained > self.least {
                self.least = self.value + gained;
                self.chosen = Some(chosen);
            }
            return;
        };
        let Unit {
            profit, reduced, ..
        } = self.units[*unit];
        let (freed, weight, dimensions) = (*unit, self.weight, self.dimensions);
        let weight = &weight[freed * dimensions..(freed + 1) * dimensions];
        let fits = weight.iter().zip(&self.rest).all(|(w, r)| w <= r);
        for take in [reduced > 0.0, reduced <= 0.0] {
            if !take {
                self.down(depth + 1, chosen, gained, lost + reduced.max(0.0));
            } else if fits {
                for (rest, w) in self.rest.iter_mut().zip(weight) {
                    *rest -= w;
                }
                let against = (-reduced).max(0.0);
                self.down(depth + 1, chosen | 1 << depth, gained + profit, lost + against);
                for (rest, w) in self.rest.iter_mut().zip(weight) {
                    *rest += w;
                }
            }
        }
    }
}
