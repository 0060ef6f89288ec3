//! Ruin and recreate, and the polishing of single copies, until the work is done.
//!
//! Enter at [`Packer::improve`]. What makes the state worse is taken back, so it only gets better. Members of gangs
//! are never moved.

use super::arms::{ARMS, Arm, Arms, Way};
use super::fill::Base;
use super::{Effort, Packer, held_copies};
use crate::Work;
use crate::model::ordered;
use crate::state::State;

/// Kinds up to which a knapsack is emptied as a whole; half of that is taken out of a larger one.
const RUIN_MAX: usize = 96;
/// Copies of a knapsack that one polishing tries to replace.
const POLISH_MAX: usize = 24;

impl Packer<'_> {
    /// Ruins and recreates until the work is done; with `tables`, closes by them as well. What is worse is taken back, so the state only gets better.
    pub(crate) fn improve(
        &mut self,
        state: &mut State,
        tables: bool,
        bound: i64,
        idle_max: u64,
        work: &mut Work,
    ) {
        let count = self.model.knapsack_count;
        if count == 0 {
            return;
        }
        let mut arms = Arms::new(tables);
        let mut saved: Vec<(usize, Vec<(u32, u32)>)> = Vec::new();
        let mut best = state.value;
        let mut last_gain = work.done();
        while !work.exhausted() && state.value() < bound {
            if work.done() - last_gain > idle_max {
                return;
            }
            let arm = arms.pick(&mut self.random);
            let before = (state.value, work.done());
            saved.clear();
            let width = ARMS[arm].width.min(count);
            let mut knapsacks: Vec<usize> = Vec::with_capacity(width);
            for _ in 0..width {
                let mut pick = self.random.below(count);
                for _ in 0..ARMS[arm].pressure {
                    let other = self.random.below(count);
                    if self.loss(state, other) > self.loss(state, pick) {
                        pick = other;
                    }
                }
                if !knapsacks.contains(&pick) {
                    knapsacks.push(pick);
                }
            }
            let share = match ARMS[arm].way {
                Way::Ruin(share) => Some(share),
                Way::Polish => {
                    self.polish(state, knapsacks[0], ARMS[arm].effort, work);
                    None
                }
                Way::Reclose => {
                    let taken = 3 + self.random.below(3);
                    self.reclose(state, knapsacks[0], taken, work);
                    work.spend(8);
                    None
                }
                Way::Drain => {
                    self.drain(state, &knapsacks, work);
                    work.spend(8);
                    None
                }
                Way::Regroup => {
                    self.regroup(state, &knapsacks, ARMS[arm].effort.candidates, work);
                    None
                }
            };
            let Some(share) = share else {
                let rise = (state.value - before.0) as f64;
                arms.learn(arm, rise, (work.done() - before.1) as f64);
                if state.value > best {
                    best = state.value;
                    last_gain = work.done();
                }
                continue;
            };
            for knapsack in &knapsacks {
                saved.push((*knapsack, state.held[*knapsack].clone()));
                self.ruin(state, *knapsack, share);
            }
            self.recreate(state, &knapsacks, ARMS[arm], share, work);
            work.spend(8 * width as u64);
            if state.value < before.0 {
                self.restore(state, &saved);
            }
            let rise = (state.value - before.0) as f64;
            arms.learn(arm, rise, (work.done() - before.1) as f64);
            if state.value > best {
                best = state.value;
                last_gain = work.done();
            }
        }
    }

    /// For one and for two copies that a knapsack holds: is there a better set in their place? Takes the first that is.
    fn polish(&mut self, state: &mut State, knapsack: usize, effort: Effort, work: &mut Work) {
        let mut held: Vec<u32> = state.held[knapsack]
            .iter()
            .filter(|(kind, _)| {
                let kind = &self.model.kinds[*kind as usize];
                kind.gang.is_none() && kind.conflicts.is_empty()
            })
            .map(|(kind, _)| *kind)
            .collect();
        for at in (1..held.len()).rev() {
            held.swap(at, self.random.below(at + 1));
        }
        held.truncate(POLISH_MAX);
        let dimensions = self.model.dimensions;
        // What would be free without the two largest in each dimension.
        let mut rest = state.free(knapsack).to_vec();
        for (d, rest) in rest.iter_mut().enumerate() {
            let mut largest = [0i64; 2];
            for kind in &held {
                let weight = self.model.weight(*kind as usize, knapsack)[d];
                if weight > largest[0] {
                    largest = [weight, largest[0]];
                } else {
                    largest[1] = largest[1].max(weight);
                }
            }
            *rest = rest.saturating_add(largest[0]).saturating_add(largest[1]);
        }
        self.gather(state, knapsack, &rest, effort.candidates, 0.0, work);
        let mut candidates = std::mem::take(&mut self.candidates);
        self.closer.load(dimensions, &mut candidates, |kind| {
            self.model.weight(kind as usize, knapsack)
        });
        self.candidates = candidates;
        work.spend(effort.candidates as u64 / 8);
        let price = self.price_at(knapsack).to_vec();
        let pairs = held.len().saturating_sub(1).min(POLISH_MAX);
        for at in 0..held.len() + pairs {
            let (first, second) = match at.checked_sub(held.len()) {
                None => (held[at], None),
                Some(at) => (held[at], Some(held[at + 1])),
            };
            rest.copy_from_slice(state.free(knapsack));
            let mut lost = 0.0;
            for kind in std::iter::once(first).chain(second) {
                let weight = self.model.weight(kind as usize, knapsack);
                for (rest, w) in rest.iter_mut().zip(weight) {
                    *rest += w;
                }
                lost += self.model.profit(kind as usize, knapsack) as f64;
            }
            let best = self
                .closer
                .best(&rest, &price, lost * (1.0 + 1e-12), effort.triples, work);
            if best.count == 0 {
                continue;
            }
            for kind in std::iter::once(first).chain(second) {
                state.take(kind as usize, knapsack, 1);
            }
            for at in &best.chosen[..best.count] {
                let kind = self.closer.candidates[*at as usize].kind;
                state.put(kind as usize, knapsack, 1);
            }
            return;
        }
    }

    /// Takes a share of the copies out of a knapsack, at random: none but up to three for a share of 0, all for 1.
    fn ruin(&mut self, state: &mut State, knapsack: usize, share: f64) {
        if share >= 1.0 && state.held[knapsack].len() <= RUIN_MAX {
            self.empty(state, knapsack);
            return;
        }
        let held: Vec<(u32, u32)> = state.held[knapsack]
            .iter()
            .filter(|(kind, _)| self.model.kinds[*kind as usize].gang.is_none())
            .copied()
            .collect();
        if held.is_empty() {
            return;
        }
        let wanted =
            1 + self.random.below(3) + ((held.len() as f64 * share) as usize).min(RUIN_MAX / 2);
        for _ in 0..wanted {
            // Of two, the one that the relaxation values less.
            let mut kind = held[self.random.below(held.len())].0;
            let other = held[self.random.below(held.len())].0;
            if self.reduced[other as usize] < self.reduced[kind as usize] {
                kind = other;
            }
            if held_copies(state, kind, knapsack) > 0 {
                state.take(kind as usize, knapsack, 1);
            }
        }
    }

    /// Puts back what the knapsacks held.
    pub(super) fn restore(&self, state: &mut State, saved: &[(usize, Vec<(u32, u32)>)]) {
        for (knapsack, _) in saved {
            self.empty(state, *knapsack);
        }
        for (knapsack, held) in saved {
            for (kind, copies) in held {
                let now = held_copies(state, *kind, *knapsack);
                if now < *copies {
                    state.put(*kind as usize, *knapsack, copies - now);
                }
            }
        }
    }

    pub(super) fn empty(&self, state: &mut State, knapsack: usize) {
        for (kind, copies) in state.held[knapsack].clone() {
            if self.model.kinds[kind as usize].gang.is_none() {
                state.take(kind as usize, knapsack, copies);
            }
        }
    }

    fn recreate(
        &mut self,
        state: &mut State,
        knapsacks: &[usize],
        arm: Arm,
        ruined: f64,
        work: &mut Work,
    ) {
        let share = if knapsacks.len() == 1 || self.random.below(2) == 0 {
            0.0
        } else {
            1.0
        };
        if ruined <= 0.0 {
            for knapsack in knapsacks {
                let mut picks = Vec::new();
                self.close(state, *knapsack, arm.effort, share, &mut picks, work);
            }
            return;
        }
        let mut kinds: Vec<u32> = if state.open.len() <= 4096 {
            state.open.clone()
        } else {
            let start = self.random.below(self.near.len().max(1));
            (0..self.near.len().min(2048))
                .map(|step| self.near[(start + step) % self.near.len()])
                .filter(|kind| state.unplaced[*kind as usize] > 0)
                .collect()
        };
        kinds.retain(|kind| self.model.kinds[*kind as usize].gang.is_none());
        kinds.sort_by_cached_key(|kind| {
            let cost = self.cost(*kind, knapsacks[0]);
            let rejected = self.reduced[*kind as usize] < -0.02 * cost;
            (rejected, ordered(-cost), *kind)
        });
        let mut base = Base { kinds, start: 0 };
        for knapsack in knapsacks {
            self.fill(state, *knapsack, &mut base, arm.effort, share, work);
        }
    }
}
