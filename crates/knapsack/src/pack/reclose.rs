//! Closing anew: a few copies of a knapsack out, the best set of four in, by a table of pairs of what has no place.
//!
//! Enter at [`Packer::tighten`] for all knapsacks, worst first, and at [`Packer::reclose`] for one. A knapsack is
//! changed only if it is worth more afterwards.

use super::Packer;
use crate::Work;
use crate::close::worth;
use crate::model::ordered;
use crate::state::State;

/// Steps after which the table is made anew, whatever it has left.
const REBUILD_AFTER: u64 = 3_000_000;
/// How often one knapsack is tried before the next, unless it is as full as this.
const ROUNDS: usize = 4;
const GOAL: f64 = 1e-3;

impl Packer<'_> {
    /// Goes over all knapsacks, worst first, for as long as that pays.
    pub(crate) fn tighten(&mut self, state: &mut State, bound: i64, work: &mut Work) {
        let count = self.model.knapsack_count;
        if !self.model.weights_same() {
            return;
        }
        let mut knapsacks: Vec<usize> = (0..count).collect();
        let (mut tried, mut changes) = (0, 1);
        self.table_stale = true;
        while changes > tried / 8 && !work.exhausted() && state.value() < bound {
            knapsacks.sort_by_cached_key(|k| (ordered(-self.loss(state, *k)), *k));
            (tried, changes) = (0, 0);
            for knapsack in &knapsacks {
                let class = self.model.class_of[*knapsack] as usize * self.model.dimensions;
                let price = &self.price[class..class + self.model.dimensions];
                let whole = worth(&self.model.problem.knapsacks[*knapsack].capacity, price);
                for _ in 0..ROUNDS {
                    if self.loss(state, *knapsack) <= GOAL * whole {
                        break;
                    }
                    if work.exhausted() {
                        return;
                    }
                    let taken = 3 + self.random.below(3);
                    tried += 1;
                    changes += usize::from(self.reclose(state, *knapsack, taken, work));
                }
            }
        }
    }

    /// Takes up to `taken` copies out if a better set can be put in their place.
    pub(super) fn reclose(
        &mut self,
        state: &mut State,
        knapsack: usize,
        taken: usize,
        work: &mut Work,
    ) -> bool {
        let model = self.model;
        if !self.table_stale {
            self.table.sync(&state.unplaced);
        }
        let (live, spent) = self.table.live_and_spent();
        let old = work.done() - self.paired_at > REBUILD_AFTER;
        if live == 0 || spent > live / 4 || self.table_stale || old {
            self.table_stale = false;
            self.paired_at = work.done();
            self.pair_open(state, knapsack, work);
        } else if !self.uniform {
            self.appraise(knapsack, 0.0);
        }
        let held = &state.held[knapsack];
        if held.is_empty() {
            return false;
        }
        let out = self.draw(held, taken);
        let mut rest = state.free(knapsack).to_vec();
        let mut lost = 0.0;
        for (kind, copies) in &out {
            let weight = model.weight(*kind as usize, knapsack);
            for (rest, w) in rest.iter_mut().zip(weight) {
                *rest += *w * i64::from(*copies);
            }
            let profit = model.profit(*kind as usize, knapsack) as f64;
            lost += profit * f64::from(*copies);
            let value = (profit, self.cost(*kind, knapsack));
            self.table.push_head(*kind, *copies, weight, value);
        }
        let class = model.class_of[knapsack] as usize * model.dimensions;
        let price = &self.price[class..class + model.dimensions];
        let floor = lost * (1.0 + 1e-12);
        let random = &mut self.random;
        let choice = self.table.close(
            &rest,
            price,
            floor,
            f64::INFINITY,
            self.closing.retries,
            random,
            work,
        );
        let found = choice.is_some();
        if let Some(choice) = choice {
            for (kind, copies) in &out {
                state.take(*kind as usize, knapsack, *copies);
            }
            for slot in choice.slots {
                if slot != 0 {
                    state.put(self.table.slot(slot).kind as usize, knapsack, 1);
                }
            }
            self.table.drop_heads();
            for slot in choice.slots {
                self.table.spend_copy(slot);
            }
        } else {
            self.table.drop_heads();
        }
        found
    }

    /// Some copies of what a knapsack holds, rather those that the relaxation values less.
    pub(super) fn draw(&mut self, held: &[(u32, u32)], taken: usize) -> Vec<(u32, u32)> {
        let mut out: Vec<(u32, u32)> = Vec::with_capacity(taken);
        if held.is_empty() {
            return out;
        }
        for _ in 0..taken {
            // Of two, the one that the relaxation values less.
            let (mut kind, mut copies) = held[self.random.below(held.len())];
            let (other, others) = held[self.random.below(held.len())];
            if self.reduced[other as usize] < self.reduced[kind as usize] {
                (kind, copies) = (other, others);
            }
            match out.iter_mut().find(|(taken, _)| *taken == kind) {
                Some((_, count)) if *count < copies => *count += 1,
                None if !self.ruled(kind) => out.push((kind, 1)),
                _ => {}
            }
        }
        out
    }

    /// Takes some copies out of each of a few knapsacks and closes one after the other from all of them and the best
    /// `wanted` of what has no place. Undone if that loses anything.
    pub(super) fn regroup(
        &mut self,
        state: &mut State,
        knapsacks: &[usize],
        wanted: usize,
        work: &mut Work,
    ) {
        let model = self.model;
        let before = state.value;
        let mut saved: Vec<(usize, Vec<(u32, u32)>)> = Vec::with_capacity(knapsacks.len());
        let mut pool: Vec<u32> = Vec::new();
        for knapsack in knapsacks {
            saved.push((*knapsack, state.held[*knapsack].clone()));
            let taken = 3 + self.random.below(3);
            for (kind, copies) in self.draw(&saved[saved.len() - 1].1, taken) {
                state.take(kind as usize, *knapsack, copies);
                pool.push(kind);
            }
        }
        pool.sort_unstable();
        pool.dedup();
        let open = self.best_open(state, wanted, &pool, work);
        pool.extend(open);
        self.table_stale = true;
        for (at, knapsack) in knapsacks.iter().enumerate() {
            // The last one takes what is worth most; those before it leave that for it as far as they can.
            let share = if at + 1 < knapsacks.len() { 1.0 } else { 0.0 };
            if at == 0 {
                self.pair(state, *knapsack, &pool, share, work);
            } else {
                self.appraise(*knapsack, share);
            }
            let class = model.class_of[*knapsack] as usize * model.dimensions;
            for _ in 0..3 {
                let price = &self.price[class..class + model.dimensions];
                let free = state.free(*knapsack);
                let enough = match share > 0.0 {
                    true => worth(free, price) * (1.0 - 1e-6),
                    false => f64::INFINITY,
                };
                let random = &mut self.random;
                let choice =
                    self.table
                        .close(free, price, 0.0, enough, self.closing.retries, random, work);
                let Some(choice) = choice else { break };
                for slot in choice.slots {
                    if slot != 0 {
                        state.put(self.table.slot(slot).kind as usize, *knapsack, 1);
                        self.table.spend_copy(slot);
                    }
                }
            }
        }
        if state.value < before {
            self.restore(state, &saved);
        }
    }

    /// The `wanted` kinds that the relaxation would rather have of those that have no place, without those in `but`, which is sorted.
    pub(super) fn best_open(
        &self,
        state: &State,
        wanted: usize,
        but: &[u32],
        work: &mut Work,
    ) -> Vec<u32> {
        let reduced = |kind: &u32| self.reduced[*kind as usize];
        let mut pool: Vec<u32> = state
            .open
            .iter()
            .copied()
            .filter(|kind| {
                !self.ruled(*kind)
                    && reduced(kind) > f64::NEG_INFINITY
                    && but.binary_search(kind).is_err()
            })
            .collect();
        work.spend(pool.len() as u64 / 4);
        if pool.len() > wanted {
            pool.select_nth_unstable_by_key(wanted, |kind| (ordered(-reduced(kind)), *kind));
            pool.truncate(wanted);
        }
        pool
    }

    /// Pairs what has no place and that the relaxation would rather have.
    fn pair_open(&mut self, state: &State, knapsack: usize, work: &mut Work) {
        let pool = self.best_open(state, self.closing.pool, &[], work);
        self.pair(state, knapsack, &pool, 0.0, work);
    }
}
