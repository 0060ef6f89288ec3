//! One knapsack, copy by copy: what is inside, and the step that decides some copies anew.
//!
//! Invariant: what is inside fits, whenever [`Packing::decide`] and its kin return. Integer, but for the
//! reduced profits, which say only where to look.

use super::branch::{Branch, Subproblem};
use crate::model::ordered;
use crate::state::State;
use crate::{Random, Work};

/// Nodes between two questions to the caller.
const NODES_SLICE: u64 = 64;
/// Multiplications of a pivot that count as one elementary step.
const OPERATIONS_STEP: u64 = 32;

pub(super) struct Packing {
    dimensions: usize,
    kind: Vec<u32>,
    profit: Vec<i64>,
    /// Profit less what the unit takes at the prices of the relaxation.
    reduced: Vec<f64>,
    weight: Vec<i64>,
    /// Mean weight of each dimension, at least 1.
    scale: Vec<f64>,
    pub(super) inside: Vec<bool>,
    free: Vec<i64>,
    pub(super) value: i128,
    /// What may still be decided otherwise, those about which the relaxation cares least first.
    pub(super) core: Vec<u32>,
}

impl Packing {
    pub(super) fn new(state: &State, price: &[f64]) -> Self {
        let model = state.model;
        let dimensions = model.dimensions;
        let mut held = vec![0u32; model.kinds.len()];
        for (kind, copies) in &state.held[0] {
            held[*kind as usize] = *copies;
        }
        let mut packing = Packing {
            dimensions,
            kind: Vec::new(),
            profit: Vec::new(),
            reduced: Vec::new(),
            weight: Vec::new(),
            scale: Vec::new(),
            inside: Vec::new(),
            // Below zero only where nothing that fits weighs anything.
            free: state.free(0).iter().map(|free| (*free).max(0)).collect(),
            value: state.value,
            core: Vec::new(),
        };
        for (kind, held) in held.iter().enumerate() {
            let weight = model.weight(kind, 0);
            let profit = model.profit(kind, 0);
            let cost: f64 = weight.iter().zip(price).map(|(w, y)| *w as f64 * y).sum();
            // A copy beyond what fits into the empty knapsack is no choice.
            for copy in 0..model.class_fit(kind, 0) {
                packing.kind.push(kind as u32);
                packing.profit.push(profit);
                packing.reduced.push(profit as f64 - cost);
                packing.weight.extend_from_slice(weight);
                packing.inside.push(copy < *held);
            }
        }
        packing.scale = (0..dimensions)
            .map(|d| {
                let each = packing.weight.iter().skip(d).step_by(dimensions);
                let sum: f64 = each.map(|w| *w as f64).sum();
                (sum / packing.unit_count().max(1) as f64).max(1.0)
            })
            .collect();
        packing
    }

    pub(super) fn unit_count(&self) -> usize {
        self.profit.len()
    }

    /// Keeps what may still be decided otherwise: going against a reduced profit beyond the gap cannot pay.
    pub(super) fn choose_core(&mut self, gap: f64) {
        let reduced = &self.reduced;
        self.core = (0..reduced.len() as u32)
            .filter(|unit| reduced[*unit as usize].abs() <= gap)
            .collect();
        self.core
            .sort_by_cached_key(|unit| (ordered(reduced[*unit as usize].abs()), *unit));
    }

    pub(super) fn become_like(&mut self, other: &[bool]) {
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
    pub(super) fn start_anew(&mut self, noise: f64, random: &mut Random, work: &mut Work) {
        work.spend(self.unit_count() as u64);
        for unit in 0..self.unit_count() {
            if self.inside[unit] {
                self.flip(unit);
            }
        }
        let mut order: Vec<(i64, usize)> = (self.reduced.iter().enumerate())
            .map(|(unit, reduced)| (ordered(noise * (random.unit() - 0.5) - reduced), unit))
            .collect();
        order.sort_unstable();
        for (_, unit) in order {
            let weight = self.weight(unit).iter();
            if weight.zip(&self.free).all(|(w, free)| w <= free) {
                self.flip(unit);
            }
        }
    }

    /// Adds units of the core until there are `size`, near its front more often than not; `reach` says how near.
    pub(super) fn draw(
        &self,
        chosen: &mut Vec<usize>,
        size: usize,
        reach: f64,
        random: &mut Random,
    ) {
        // About as many units as there are dimensions have no clear side, and their surroundings.
        let spread = (10.0 + self.dimensions as f64 / 5.0) * reach;
        let size = size.min(self.core.len());
        for _ in 0..20 * size {
            if chosen.len() >= size {
                break;
            }
            let far = -(1.0 - random.unit()).ln() * spread;
            let unit = self.core[far as usize % self.core.len()] as usize;
            if !chosen.contains(&unit) {
                chosen.push(unit);
            }
        }
    }

    /// Decides `chosen` anew, the best way of more than `least`, or leaves them as they are. True if the search ended.
    pub(super) fn decide(
        &mut self,
        chosen: &[usize],
        least: i128,
        nodes_max: u64,
        branch: &mut Branch,
        work: &mut Work,
    ) -> bool {
        work.spend(1 + self.unit_count() as u64 / 16);
        let before: Vec<bool> = chosen.iter().map(|unit| self.inside[*unit]).collect();
        for unit in chosen {
            if self.inside[*unit] {
                self.flip(*unit);
            }
        }
        let mut weight = Vec::with_capacity(chosen.len() * self.dimensions);
        for unit in chosen {
            weight.extend_from_slice(self.weight(*unit));
        }
        let profit: Vec<f64> = chosen.iter().map(|u| self.profit[*u] as f64).collect();
        branch.load(&Subproblem {
            weight: &weight,
            profit: &profit,
            free: &self.free,
            scale: &self.scale,
            least: (least - self.value) as f64,
        });
        let mut ended = false;
        while !ended && branch.node_count() < nodes_max && !work.exhausted() {
            ended = branch.run(NODES_SLICE.min(nodes_max - branch.node_count()));
            work.spend(branch.operations() / OPERATIONS_STEP + 1);
        }
        let after = branch.found().unwrap_or(&before);
        for (unit, inside) in chosen.iter().zip(after) {
            if *inside {
                self.flip(*unit);
            }
        }
        ended
    }

    /// Like [`Packing::decide`], with the first of `chosen` the other way round.
    pub(super) fn decide_otherwise(
        &mut self,
        chosen: &[usize],
        least: i128,
        nodes_max: u64,
        branch: &mut Branch,
        work: &mut Work,
    ) -> bool {
        let Some((first, others)) = chosen.split_first() else {
            return true;
        };
        let before: Vec<bool> = chosen.iter().map(|unit| self.inside[*unit]).collect();
        if !before[0] {
            for unit in others {
                if self.inside[*unit] {
                    self.flip(*unit);
                }
            }
            let weight = self.weight(*first).iter();
            if weight.zip(&self.free).any(|(w, free)| w > free) {
                self.put_back(chosen, &before);
                return true;
            }
        }
        self.flip(*first);
        let ended = self.decide(others, least, nodes_max, branch, work);
        if self.value <= least {
            self.put_back(chosen, &before);
        }
        ended
    }

    fn put_back(&mut self, chosen: &[usize], before: &[bool]) {
        for target in [false, true] {
            for (unit, inside) in chosen.iter().zip(before) {
                if *inside == target && self.inside[*unit] != target {
                    self.flip(*unit);
                }
            }
        }
    }

    /// Makes the state what is inside here, unless it is better as it is.
    pub(super) fn write(&self, state: &mut State) {
        let mut fresh = State::new(state.model);
        for (kind, inside) in self.kind.iter().zip(&self.inside) {
            if *inside && fresh.room(*kind as usize, 0, 1) > 0 {
                fresh.put(*kind as usize, 0, 1);
            }
        }
        if fresh.value > state.value {
            state.copy(&fresh);
        }
    }

    fn weight(&self, unit: usize) -> &[i64] {
        &self.weight[unit * self.dimensions..(unit + 1) * self.dimensions]
    }

    fn flip(&mut self, unit: usize) {
        let weight = &self.weight[unit * self.dimensions..(unit + 1) * self.dimensions];
        let inside = self.inside[unit];
        for (free, w) in self.free.iter_mut().zip(weight) {
            *free = if inside { *free + w } else { *free - w };
        }
        let profit = i128::from(self.profit[unit]);
        self.value += if inside { -profit } else { profit };
        self.inside[unit] = !inside;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use crate::{Item, Knapsack, Problem, Profit, Weight};

    #[test]
    fn safety_steps_keep_what_is_inside_within_capacity_and_above_the_least() {
        let mut random = Random::new(5);
        let (mut kept, mut changed) = (0, 0);
        for round in 0..60 {
            let (rows, count) = (1 + round % 5, 30);
            let problem = Problem {
                dimension_count: rows,
                knapsacks: vec![Knapsack {
                    capacity: vec![500; rows],
                }],
                items: (0..count)
                    .map(|_| Item {
                        weight: Weight::Same((0..rows).map(|_| random.below(100) as i64).collect()),
                        profit: Profit::Same(1 + random.below(100) as i64),
                        multiplicity: 1 + random.below(2) as u32,
                        allowed: None,
                    })
                    .collect(),
                ..Problem::default()
            };
            let model = Model::new(&problem);
            let mut state = State::new(&model);
            let mut packing = Packing::new(&state, &vec![1.0; rows]);
            packing.choose_core(f64::INFINITY);
            let mut branch = Branch::default();
            let mut work = Work::new(u64::MAX, None);
            packing.start_anew(50.0, &mut random, &mut work);
            for step in 0..40 {
                let before = (packing.value, packing.inside.clone());
                let least = before.0 - (random.below(60) as i128);
                let mut chosen = Vec::new();
                packing.draw(&mut chosen, 1 + random.below(16), 2.0, &mut random);
                if step % 2 == 0 {
                    packing.decide(&chosen, least, 20, &mut branch, &mut work);
                } else {
                    packing.decide_otherwise(&chosen, least, 20, &mut branch, &mut work);
                }
                if packing.inside == before.1 {
                    assert_eq!(packing.value, before.0);
                    kept += 1;
                } else {
                    assert!(packing.value > least);
                    changed += 1;
                }
                let mut free = vec![500; rows];
                let mut value = 0i128;
                for unit in (0..packing.unit_count()).filter(|unit| packing.inside[*unit]) {
                    value += i128::from(packing.profit[unit]);
                    for (free, w) in free.iter_mut().zip(packing.weight(unit)) {
                        *free -= w;
                    }
                }
                assert_eq!((&free, value), (&packing.free, packing.value));
                assert!(free.iter().all(|free| *free >= 0));
            }
            packing.write(&mut state);
            assert_eq!(state.value, packing.value);
        }
        assert!(
            kept > 100 && changed > 100,
            "{kept} steps kept, {changed} changed the packing"
        );
    }
}
