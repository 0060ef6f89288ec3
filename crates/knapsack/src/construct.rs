//! Constructive heuristics: kinds in some order, each into the knapsack that suits it best.
//!
//! A kind is placed as a count, knapsack by knapsack, so the cost grows with kinds times knapsacks and
//! not with the number of copies.

use std::collections::BinaryHeap;

use crate::model::ordered;
use crate::state::State;
use crate::{Random, Secondary, Work};

/// An order in which kinds are tried.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Largest in its largest dimension first: best-fit-decreasing.
    Largest,
    /// Profit for its size, best first: the greedy of the fractional relaxation.
    Density,
    /// Largest over all dimensions together first.
    Sum,
    /// Most profit first.
    Profit,
}

/// What is placed at once: a kind as far as it goes, or a gang as a whole.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Kind(usize),
    Gang(usize),
}

impl Order {
    pub(crate) const ALL: [Order; 4] = [Order::Largest, Order::Density, Order::Sum, Order::Profit];

    /// Units in this order; with `shake`, keys are varied by up to a quarter. With prices, size is what they say it costs.
    pub(crate) fn sequence(
        self,
        state: &State,
        price: Option<&[f64]>,
        mut shake: Option<&mut Random>,
    ) -> Vec<Unit> {
        let model = state.model;
        let mut units: Vec<Unit> = (0..model.problem.gangs.len()).map(Unit::Gang).collect();
        units.extend(
            (0..model.kinds.len())
                .filter(|kind| model.kinds[*kind].gang.is_none())
                .map(Unit::Kind),
        );
        let mut keyed: Vec<(i64, Unit)> = units
            .into_iter()
            .map(|unit| {
                let mut key = match unit {
                    Unit::Kind(kind) => self.key(state, price, kind),
                    Unit::Gang(gang) => {
                        let kinds = gang_kinds(state, gang);
                        let sum: f64 = kinds.iter().map(|kind| self.key(state, price, *kind)).sum();
                        sum / kinds.len().max(1) as f64
                    }
                };
                if let Some(random) = shake.as_deref_mut() {
                    key *= 0.75 + 0.5 * random.unit();
                }
                (ordered(key), unit)
            })
            .collect();
        keyed.sort_by_key(|(key, _)| std::cmp::Reverse(*key));
        keyed.into_iter().map(|(_, unit)| unit).collect()
    }

    fn key(self, state: &State, price: Option<&[f64]>, kind: usize) -> f64 {
        let model = state.model;
        let class = (0..model.class_count)
            .max_by_key(|class| model.class_profit(kind, *class))
            .unwrap_or(0);
        let weight = model.class_weight(kind, class);
        let parts = || weight.iter().zip(&model.scale).map(|(w, s)| *w as f64 / s);
        let profit = model.class_profit(kind, class) as f64;
        match self {
            Order::Density => {
                let priced = price.map(|price| {
                    let price = &price[class * model.dimensions..];
                    weight
                        .iter()
                        .zip(price)
                        .map(|(w, y)| *w as f64 * y)
                        .sum::<f64>()
                });
                match priced {
                    Some(cost) if cost > 0.0 => profit / cost,
                    _ => profit / (1e-9 + parts().sum::<f64>()),
                }
            }
            Order::Largest => parts().fold(0.0, f64::max),
            Order::Sum => parts().sum(),
            Order::Profit => profit,
        }
    }
}

pub(crate) fn gang_kinds(state: &State, gang: usize) -> Vec<usize> {
    (0..state.model.kinds.len())
        .filter(|kind| state.model.kinds[*kind].gang == Some(gang as u32))
        .collect()
}

impl State<'_> {
    /// Places as much as fits, unit by unit.
    pub(crate) fn fill(&mut self, sequence: &[Unit], secondary: Secondary, work: &mut Work) {
        for (at, unit) in sequence.iter().enumerate() {
            match *unit {
                Unit::Kind(kind) => {
                    self.fill_kind(kind, secondary, work);
                }
                Unit::Gang(gang) => self.fill_gang(gang, secondary, work),
            }
            // The first pass always completes on problems of a usual size; on vast ones the budget rules.
            if at % 64 == 63 && work.overrun() {
                return;
            }
        }
    }

    fn fill_gang(&mut self, gang: usize, secondary: Secondary, work: &mut Work) {
        if gang_kinds(self, gang)
            .iter()
            .any(|kind| self.unplaced[*kind] < self.model.kinds[*kind].count)
        {
            // It is in already.
            return;
        }
        let mut placed: Vec<(usize, usize, u32)> = Vec::new();
        for kind in gang_kinds(self, gang) {
            placed.extend(
                self.fill_kind(kind, secondary, work)
                    .into_iter()
                    .map(|(knapsack, count)| (kind, knapsack, count)),
            );
            if self.unplaced[kind] > 0 {
                for (kind, knapsack, count) in placed.into_iter().rev() {
                    self.take(kind, knapsack, count);
                }
                return;
            }
        }
    }

    /// Places what fits of one kind; answers where.
    pub(crate) fn fill_kind(
        &mut self,
        kind: usize,
        secondary: Secondary,
        work: &mut Work,
    ) -> Vec<(usize, u32)> {
        let mut placed = Vec::new();
        if self.unplaced[kind] == 0 {
            return placed;
        }
        work.spend(self.model.knapsack_count as u64);
        let offer = |state: &Self, knapsack: usize| {
            (
                state.model.profit(kind, knapsack),
                ordered(state.fitness(kind, knapsack, secondary)),
                std::cmp::Reverse(knapsack),
            )
        };
        let fitting = (0..self.model.knapsack_count).filter(|k| self.room(kind, *k, 1) > 0);
        if self.unplaced[kind] == 1 {
            if let Some((_, _, knapsack)) = fitting.map(|k| offer(self, k)).max() {
                self.put(kind, knapsack.0, 1);
                placed.push((knapsack.0, 1));
            }
            return placed;
        }
        let mut heap: BinaryHeap<_> = fitting.map(|k| offer(self, k)).collect();
        while self.unplaced[kind] > 0 {
            let Some((_, _, std::cmp::Reverse(knapsack))) = heap.pop() else {
                break;
            };
            // Packing fills a knapsack before it opens the next; spreading goes one by one.
            let want = match secondary {
                Secondary::Pack => self.unplaced[kind],
                Secondary::Spread => 1,
            };
            let count = self.room(kind, knapsack, want);
            if count == 0 {
                continue;
            }
            self.put(kind, knapsack, count);
            placed.push((knapsack, count));
            work.spend(1);
            if secondary == Secondary::Spread && self.room(kind, knapsack, 1) > 0 {
                heap.push(offer(self, knapsack));
            }
        }
        placed
    }

    /// Higher is better: how well the kind fits what is free there.
    fn fitness(&self, kind: usize, knapsack: usize, secondary: Secondary) -> f64 {
        let left: f64 = self
            .free(knapsack)
            .iter()
            .zip(self.model.weight(kind, knapsack))
            .zip(&self.model.scale)
            .map(|((free, weight), scale)| free.saturating_sub(*weight).max(0) as f64 / scale)
            .sum();
        match secondary {
            Secondary::Pack => -left,
            Secondary::Spread => left,
        }
    }
}
