//! What is free in many knapsacks is moved into one, where it is enough to be used.
//!
//! Enter at [`Packer::drain`]. Copies of one knapsack change places with copies of another, the *sink*, so that the
//! first is fuller and what was free in it is free in the sink. That changes no value, but a few units here and there are good for
//! nothing, and together they let a better set in. The exchange is a set of four for four, found by a [`PairTable`] of
//! what the sink holds. Only knapsacks in which every kind is worth the same exchange anything.

use super::Packer;
use super::pairs::{Choice, PairTable};
use crate::Work;
use crate::close::worth;
use crate::state::State;

/// Exchanges tried with one knapsack, and pairs of heads for each.
const EXCHANGES: usize = 6;
const TRIES: u32 = 5_000;
/// Attempts to use what has come together in the sink.
const USES: usize = 4;

impl Packer<'_> {
    /// Drains knapsacks into the emptiest of them and closes that one anew.
    pub(super) fn drain(&mut self, state: &mut State, knapsacks: &[usize], work: &mut Work) {
        let emptiest = knapsacks
            .iter()
            .copied()
            .max_by(|a, b| self.loss(state, *a).total_cmp(&self.loss(state, *b)));
        let Some(mut sink) = emptiest else { return };
        if let Some(last) = self.sink
            && last < state.held.len()
            && self.loss(state, last) > self.loss(state, sink)
        {
            sink = last;
        }
        self.sink = Some(sink);
        for knapsack in knapsacks {
            if *knapsack != sink && self.exchangeable(*knapsack, sink) {
                self.exchange(state, *knapsack, sink, work);
            }
        }
        for _ in 0..USES {
            let taken = 2 + self.random.below(4);
            self.reclose(state, sink, taken, work);
        }
    }

    /// Is every kind worth the same in both, and allowed in both or in none?
    fn exchangeable(&self, a: usize, b: usize) -> bool {
        let model = self.model;
        self.profits_same || model.class_count > 1 && model.class_of[a] == model.class_of[b]
    }

    /// Fills a knapsack better by exchanges with the sink, which gets what is free in return.
    fn exchange(&mut self, state: &mut State, knapsack: usize, sink: usize, work: &mut Work) {
        let model = self.model;
        let class = model.class_of[knapsack] as usize * model.dimensions;
        let mut table = std::mem::take(&mut self.drained);
        let mut known = false;
        for _ in 0..EXCHANGES {
            if work.exhausted() {
                break;
            }
            let price = &self.price[class..class + model.dimensions];
            if !known {
                known = true;
                let movable = state.held[sink]
                    .iter()
                    .filter(|(kind, _)| !self.ruled(*kind));
                let pool = movable
                    .map(|(kind, copies)| (*kind, *copies, model.weight(*kind as usize, sink)));
                table.build(model.dimensions, price, &model.scale, pool, work);
                table.appraise(|kind| {
                    let cost = self.cost(kind, knapsack);
                    (cost, cost)
                });
            }
            let out = self.draw(&state.held[knapsack], 4);
            let price = &self.price[class..class + model.dimensions];
            let mut rest = state.free(knapsack).to_vec();
            let mut lost = 0.0;
            for (kind, copies) in &out {
                let weight = model.weight(*kind as usize, knapsack);
                for (rest, w) in rest.iter_mut().zip(weight) {
                    *rest += *w * i64::from(*copies);
                }
                let cost = self.cost(*kind, knapsack);
                lost += cost * f64::from(*copies);
                table.push_head(*kind, *copies, weight, (cost, cost));
            }
            // The sink must hold what comes back.
            let both = state.free(knapsack).iter().zip(state.free(sink));
            let least: Vec<i64> = rest
                .iter()
                .zip(both)
                .map(|(rest, (a, b))| rest.saturating_sub(*a).saturating_sub(*b))
                .collect();
            let floor = lost + 1e-9 * worth(&rest, price) + 1e-12;
            let enough = worth(&rest, price) * (1.0 - 1e-6);
            table.demand(&least);
            let random = &mut self.random;
            let choice = table.close(&rest, price, floor, enough, TRIES, random, work);
            if let Some(choice) = choice {
                self.swap(state, knapsack, sink, &out, &choice, &table);
                known = false;
            }
            table.drop_heads();
        }
        self.drained = table;
    }

    /// `out` leaves the knapsack, the choice goes in; what of `out` was not chosen goes to the sink.
    fn swap(
        &self,
        state: &mut State,
        knapsack: usize,
        sink: usize,
        out: &[(u32, u32)],
        choice: &Choice,
        table: &PairTable,
    ) {
        for (kind, copies) in out {
            state.take(*kind as usize, knapsack, *copies);
        }
        let mut back = out.to_vec();
        for slot in choice.slots {
            if slot == 0 {
                continue;
            }
            let kind = table.slot(slot).kind;
            if table.is_head(slot) {
                let kept = back.iter_mut().find(|(other, _)| *other == kind);
                kept.expect("heads are what was taken out").1 -= 1;
            } else {
                state.take(kind as usize, sink, 1);
            }
            state.put(kind as usize, knapsack, 1);
        }
        for (kind, copies) in back {
            if copies > 0 {
                state.put(kind as usize, sink, copies);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::Model;
    use crate::pack::{Effort, Packer};
    use crate::state::State;
    use crate::{Item, Knapsack, Problem, Profit, Random, Weight, Work};

    /// Exchanges change no value, put nothing over, and never make the drained knapsack emptier.
    #[test]
    fn an_exchange_moves_what_is_free_and_nothing_else() {
        let mut random = Random::new(5);
        let mut pick = |from: i64, to: i64| from + random.below((to - from) as usize) as i64;
        let problem = Problem {
            dimension_count: 2,
            knapsacks: (0..6)
                .map(|_| Knapsack {
                    capacity: vec![pick(900, 1100), pick(900, 1100)],
                })
                .collect(),
            items: (0..200)
                .map(|_| Item {
                    weight: Weight::Same(vec![pick(10, 100), pick(10, 100)]),
                    profit: Profit::Same(pick(10, 100)),
                    multiplicity: 1,
                    allowed: None,
                })
                .collect(),
            ..Problem::default()
        };
        let model = Model::new(&problem);
        let mut work = Work::new(u64::MAX, None);
        let price = crate::bound::prices(&model, 0, &mut work).price;
        let mut packer = Packer::new(&model, price, 1);
        let mut state = State::new(&model);
        let effort = Effort {
            candidates: 8,
            triples: 0,
            attempts: 1,
        };
        packer.fill_all(&mut state, effort, &mut work);
        let mut moved = 0;
        for round in 0..60 {
            let (knapsack, sink) = (round % 5, 5);
            let (value, before) = (state.value, packer.loss(&state, knapsack));
            let both = |state: &State| -> Vec<i64> {
                let free = state.free(knapsack).iter().zip(state.free(sink));
                free.map(|(a, b)| a + b).collect()
            };
            let together = both(&state);
            packer.exchange(&mut state, knapsack, sink, &mut work);
            let after = packer.loss(&state, knapsack);
            assert_eq!(state.value, value);
            assert_eq!(both(&state), together);
            assert!(after <= before);
            assert!(state.free(knapsack).iter().all(|free| *free >= 0));
            assert!(state.free(sink).iter().all(|free| *free >= 0));
            moved += u32::from(after < before);
        }
        assert!(moved > 0, "nothing was ever moved");
    }
}
