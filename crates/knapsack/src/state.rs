//! A feasible partial assignment, kind by kind.
//!
//! Invariant: no knapsack is overcommitted and no conflict broken at any time; a gang may be incomplete
//! only while the caller is placing it.

use std::collections::HashMap;

use crate::model::Model;
use crate::problem::UNCONSTRAINED;
use crate::solution::{Placed, Solution};

#[derive(Clone)]
pub(crate) struct State<'a> {
    pub(crate) model: &'a Model<'a>,
    /// Free capacity, knapsack by knapsack.
    free: Vec<i64>,
    /// Kinds and copies in each knapsack, in no order.
    pub(crate) held: Vec<Vec<(u32, u32)>>,
    /// Copies of each kind that have no place.
    pub(crate) unplaced: Vec<u32>,
    /// Kinds of which some copy has no place, in no order.
    pub(crate) open: Vec<u32>,
    /// Where a kind is in `open`; `u32::MAX`: nowhere.
    open_at: Vec<u32>,
    /// Copies of each conflict's members by domain.
    conflict_counts: Vec<HashMap<u32, u32>>,
    pub(crate) value: i128,
}

impl<'a> State<'a> {
    pub(crate) fn new(model: &'a Model<'a>) -> Self {
        let (mut open, mut open_at) = (Vec::new(), vec![u32::MAX; model.kinds.len()]);
        for (kind, at) in open_at.iter_mut().enumerate() {
            if model.kinds[kind].count > 0 {
                *at = open.len() as u32;
                open.push(kind as u32);
            }
        }
        State {
            model,
            free: model
                .problem
                .knapsacks
                .iter()
                .flat_map(|knapsack| knapsack.capacity.iter().copied())
                .collect(),
            held: vec![Vec::new(); model.knapsack_count],
            unplaced: model.kinds.iter().map(|kind| kind.count).collect(),
            open,
            open_at,
            conflict_counts: vec![HashMap::new(); model.problem.conflicts.len()],
            value: 0,
        }
    }

    pub(crate) fn value(&self) -> i64 {
        self.value.clamp(0, i128::from(i64::MAX)) as i64
    }

    pub(crate) fn free(&self, knapsack: usize) -> &[i64] {
        let dimensions = self.model.dimensions;
        &self.free[knapsack * dimensions..(knapsack + 1) * dimensions]
    }

    /// How many more copies of the kind the knapsack could take now, at most `want`.
    pub(crate) fn room(&self, kind: usize, knapsack: usize, want: u32) -> u32 {
        if want == 0 || self.model.profit(kind, knapsack) < 0 {
            return 0;
        }
        let mut room = want;
        let weight = self.model.weight(kind, knapsack);
        for (weight, free) in weight.iter().zip(self.free(knapsack)) {
            if *weight > 0 {
                if *free < *weight {
                    return 0;
                }
                if want > 1 {
                    room = room.min(u32::try_from(*free / *weight).unwrap_or(u32::MAX));
                }
            }
        }
        if self.conflict_counts.is_empty() {
            return room;
        }
        for conflict in &self.model.kinds[kind].conflicts {
            let domain = self.model.domain(*conflict, knapsack);
            if domain != UNCONSTRAINED {
                let counts = &self.conflict_counts[*conflict as usize];
                let counted = counts.get(&domain).copied().unwrap_or(0);
                let limit = self.model.problem.conflicts[*conflict as usize].limit;
                room = room.min(limit.saturating_sub(counted));
            }
        }
        room
    }

    /// Places `count` copies; the caller has asked [`State::room`].
    pub(crate) fn put(&mut self, kind: usize, knapsack: usize, count: u32) {
        self.shift(kind, knapsack, i64::from(count));
        // The only copies there are cannot be there already.
        let all = self.model.kinds[kind].count == count;
        let held = &mut self.held[knapsack];
        let there = if all {
            None
        } else {
            held.iter_mut().find(|(held, _)| *held as usize == kind)
        };
        match there {
            Some((_, copies)) => *copies += count,
            None => held.push((kind as u32, count)),
        }
        self.unplaced[kind] -= count;
        if self.unplaced[kind] == 0 && self.open_at[kind] != u32::MAX {
            let at = std::mem::replace(&mut self.open_at[kind], u32::MAX);
            self.open.swap_remove(at as usize);
            if let Some(moved) = self.open.get(at as usize) {
                self.open_at[*moved as usize] = at;
            }
        }
    }

    pub(crate) fn take(&mut self, kind: usize, knapsack: usize, count: u32) {
        self.shift(kind, knapsack, -i64::from(count));
        let at = self.held[knapsack]
            .iter()
            .rposition(|(held, _)| *held as usize == kind)
            .expect("only held copies are taken");
        self.held[knapsack][at].1 -= count;
        if self.held[knapsack][at].1 == 0 {
            self.held[knapsack].swap_remove(at);
        }
        self.unplaced[kind] += count;
        if self.open_at[kind] == u32::MAX {
            self.open_at[kind] = self.open.len() as u32;
            self.open.push(kind as u32);
        }
    }

    /// Becomes a copy of another state of the same model, in the memory that it has.
    pub(crate) fn copy(&mut self, other: &State) {
        self.free.clone_from(&other.free);
        self.held.clone_from(&other.held);
        self.unplaced.clone_from(&other.unplaced);
        self.open.clone_from(&other.open);
        self.open_at.clone_from(&other.open_at);
        self.conflict_counts.clone_from(&other.conflict_counts);
        self.value = other.value;
    }

    fn shift(&mut self, kind: usize, knapsack: usize, count: i64) {
        let model = self.model;
        let dimensions = model.dimensions;
        let free = &mut self.free[knapsack * dimensions..(knapsack + 1) * dimensions];
        for (free, weight) in free.iter_mut().zip(model.weight(kind, knapsack)) {
            // Neither saturates: what is placed fits, and what is taken was placed.
            *free = free.saturating_sub(weight.saturating_mul(count));
        }
        let conflicts = if self.conflict_counts.is_empty() {
            &[][..]
        } else {
            &model.kinds[kind].conflicts
        };
        for conflict in conflicts {
            let domain = model.domain(*conflict, knapsack);
            let counts = &mut self.conflict_counts[*conflict as usize];
            let counted = counts.entry(domain).or_insert(0);
            *counted = (i64::from(*counted) + count).max(0) as u32;
        }
        self.value += i128::from(model.profit(kind, knapsack)) * i128::from(count);
    }

    pub(crate) fn into_solution(self, upper_bound: i64) -> Solution {
        let value = self.value();
        let mut placed: Vec<Placed> = Vec::new();
        // Copies of a kind go to its items in order, each up to its multiplicity.
        let items = &self.model.problem.items;
        let mut next: Vec<(usize, u32)> = vec![(0, 0); self.model.kinds.len()];
        for (knapsack, held) in self.held.iter().enumerate() {
            for (kind, count) in held {
                let mut left = *count;
                while left > 0 {
                    let (at, used) = next[*kind as usize];
                    let item = self.model.kinds[*kind as usize].items[at];
                    let count = left.min(items[item as usize].multiplicity - used);
                    if count > 0 {
                        placed.push(Placed {
                            item,
                            knapsack: knapsack as u32,
                            count,
                        });
                    }
                    left -= count;
                    next[*kind as usize] = if used + count == items[item as usize].multiplicity {
                        (at + 1, 0)
                    } else {
                        (at, used + count)
                    };
                }
            }
        }
        placed.sort_unstable();
        Solution {
            placed,
            value,
            upper_bound,
            optimal: value >= upper_bound,
        }
    }
}
