//! The first packing of many kinds into many knapsacks: bulk to a common rest, then sets of four that close it.
//!
//! Enter at [`Packer::stream`]. What the relaxation takes is divided into *bulk* and four copies for each knapsack, the
//! *closers*: of the kinds about which it cares least, or where sizes differ much the smallest. A knapsack gets bulk,
//! chosen so that what remains free is like the mean of four closers in all dimensions at once, where sets of four lie
//! densest; then a [`PairTable`] finds four that fill it all but exactly. The pool of closers is filled up as it is used,
//! so that the last knapsack is closed from as much choice as the first.
//!
//! Where sizes differ much, bulk is a matter of its own, see [`super::balance`].

use super::Packer;
use super::pairs::PairTable;
use super::supply::Supply;
use crate::Work;
use crate::close::worth;
use crate::model::ordered;
use crate::state::State;

/// Closers for each knapsack.
pub(super) const CLOSERS: f64 = 4.0;
/// Closers at most that are as near as can be to what the relaxation rejects.
const NEAREST: f64 = 1_000.0;
/// Kinds looked at for one choice of bulk.
const WINDOW: usize = 24;
/// What a large kind costs, in parts of the knapsack: such go in first.
const LARGE: f64 = 0.15;
/// How much of what the relaxation gets out of a closer anyway does not count for the knapsack that takes it.
const SHARE: f64 = 1.0;
/// A pool is filled up from bulk to a quarter of all that is left, but to this at least.
const POOL_MIN: usize = 48;
/// Fillings of the pool after which what was not taken goes elsewhere.
const AGE_MAX: u32 = 2;

impl Packer<'_> {
    /// Fills every knapsack from what has no place.
    pub(crate) fn stream(&mut self, state: &mut State, work: &mut Work) {
        let model = self.model;
        assert!(
            model.weights_same(),
            "a table holds one weight of each kind"
        );
        let (mut bulk, mut closers, mut reserve) = self.divide(state);
        let mut knapsacks = self.roomiest_first(state);
        if self.varied {
            self.place_large(state, &mut bulk, &closers, work);
            knapsacks.sort_by_cached_key(|k| (ordered(-self.loss(state, *k)), *k));
        }
        self.table = PairTable::default();
        self.pool.clear();
        self.rest = vec![0.0; model.dimensions];
        self.refill(
            state,
            knapsacks[0],
            &mut bulk,
            &mut closers,
            &mut reserve,
            work,
        );
        for knapsack in knapsacks {
            if work.exhausted() {
                break;
            }
            self.place(state, knapsack, &mut bulk, work);
            // Where bulk is out, or too large, closers take its place; at last those of the pool.
            if self.roomy(state, knapsack) {
                self.place(state, knapsack, &mut closers, work);
            }
            if self.roomy(state, knapsack) {
                let kinds = self.pool.iter().map(|(kind, _)| *kind);
                let left = kinds.filter(|kind| state.unplaced[*kind as usize] > 0);
                let mut supply = Supply::new(left.collect(), false, state);
                self.place(state, knapsack, &mut supply, work);
                self.table.sync(&state.unplaced);
            }
            let goal = self.closing.goal
                * worth(
                    &model.problem.knapsacks[knapsack].capacity,
                    self.price_at(knapsack),
                );
            loop {
                let (live, spent) = self.table.live_and_spent();
                if live == 0 || spent > live / 3 {
                    self.refill(state, knapsack, &mut bulk, &mut closers, &mut reserve, work);
                }
                if !self.uniform {
                    self.appraise(knapsack, SHARE);
                }
                let class = model.class_of[knapsack] as usize * model.dimensions;
                let price = &self.price[class..class + model.dimensions];
                let free = state.free(knapsack);
                let enough = worth(free, price) - goal;
                let choice = self.table.close(
                    free,
                    price,
                    0.0,
                    enough,
                    self.closing.tries,
                    &mut self.random,
                    work,
                );
                let Some(choice) = choice else { break };
                for slot in choice.slots {
                    if slot != 0 {
                        let kind = self.table.slot(slot).kind;
                        state.put(kind as usize, knapsack, 1);
                        self.table.spend_copy(slot);
                        closers.used(kind, state);
                    }
                }
            }
        }
    }

    /// Puts kinds in until what is free is like the common rest.
    fn place(&mut self, state: &mut State, knapsack: usize, supply: &mut Supply, work: &mut Work) {
        if self.varied {
            self.place_bulk(state, knapsack, supply, work);
        } else {
            self.place_alike(state, knapsack, supply, work);
        }
    }

    /// Is much more free than the common rest?
    fn roomy(&self, state: &State, knapsack: usize) -> bool {
        let price = self.price_at(knapsack);
        let rest: f64 = price.iter().zip(&self.rest).map(|(y, r)| y * r).sum();
        worth(state.free(knapsack), price) > 1.5 * rest
    }

    /// Bulk, closers, and what the relaxation just rejects (best last).
    pub(super) fn divide(&mut self, state: &State) -> (Supply, Supply, Vec<u32>) {
        let model = self.model;
        // What is worth just what it costs, to rounding, is taken.
        let ratio =
            |kind: u32| self.reduced[kind as usize] / (self.size[kind as usize] + 1e-30) + 1e-9;
        let mut taken: Vec<u32> = Vec::new();
        let mut reserve: Vec<u32> = Vec::new();
        for kind in &self.order {
            if state.unplaced[*kind as usize] == 0 {
                continue;
            }
            if ratio(*kind) >= 0.0 {
                taken.push(*kind);
            } else if !self.ruled(*kind) {
                reserve.push(*kind);
            }
        }
        taken.sort_by_cached_key(|kind| {
            (
                (ratio(*kind) * 50.0).floor() as i64,
                ordered(self.extent[*kind as usize]),
                *kind,
            )
        });
        let wanted = CLOSERS * model.knapsack_count as f64;
        let nearest = (wanted / 2.0).min(NEAREST);
        let copies_of = |kind: &u32| f64::from(state.unplaced[*kind as usize]);
        let all: f64 = taken.iter().map(copies_of).sum();
        // The nearest come last, so that what is left in the end is worth little; before them any, for
        // sets of kinds that are all alike would fill nothing closely.
        let any = ((wanted - nearest) / (all - nearest).max(1.0)).min(1.0);
        let mut copies = 0.0;
        let (mut bulk, mut last, mut first) = (Vec::new(), Vec::new(), Vec::new());
        for kind in taken {
            let list = match () {
                () if self.ruled(kind) => &mut bulk,
                () if copies < nearest => {
                    copies += copies_of(&kind);
                    &mut last
                }
                () if self.varied && copies < wanted => {
                    copies += copies_of(&kind);
                    &mut first
                }
                () if !self.varied && self.random.unit() < any => &mut first,
                () => &mut bulk,
            };
            list.push(kind);
        }
        bulk.sort_by_cached_key(|kind| (ordered(-self.extent[*kind as usize]), *kind));
        for list in [&mut first, &mut last] {
            for at in (1..list.len()).rev() {
                list.swap(at, self.random.below(at + 1));
            }
        }
        let mut closers = last;
        closers.append(&mut first);
        let most = (wanted as usize / 4 + PairTable::SLOTS_MAX).min(reserve.len());
        if most < reserve.len() {
            reserve.select_nth_unstable_by_key(most, |kind| (ordered(-ratio(*kind)), *kind));
            reserve.truncate(most);
        }
        reserve.sort_by_cached_key(|kind| (ordered(ratio(*kind)), *kind));
        (
            Supply::new(bulk, self.varied, state),
            Supply::new(closers, false, state),
            reserve,
        )
    }

    /// The same for kinds that are much alike: whichever leaves what is nearest to the rest and a multiple of the mean.
    fn place_alike(
        &mut self,
        state: &mut State,
        knapsack: usize,
        bulk: &mut Supply,
        work: &mut Work,
    ) {
        let dimensions = self.model.dimensions;
        let class = self.model.class_of[knapsack] as usize * dimensions;
        let whole = worth(state.free(knapsack), self.price_at(knapsack));
        let mut wanted = vec![0.0; dimensions];
        loop {
            bulk.compact(state);
            if bulk.front == bulk.kinds.len() {
                return;
            }
            let price = &self.price[class..class + dimensions];
            let free = state.free(knapsack);
            let mut missing = 0.0;
            for d in 0..dimensions {
                wanted[d] = free[d] as f64 - self.rest[d];
                missing += price[d] * wanted[d];
            }
            let per_copy = 1.0 / bulk.copies.max(1.0);
            let mean: f64 = (0..dimensions)
                .map(|d| price[d] * bulk.sum[d] * per_copy)
                .sum();
            if missing <= 0.4 * mean {
                return;
            }
            let left = missing / mean.max(1e-30);
            // Near the end every choice counts.
            let last = left < 1.6;
            let window = match left {
                _ if last => 4 * WINDOW,
                8.0.. => WINDOW / 2,
                _ => WINDOW,
            };
            let list = &bulk.kinds[bulk.front..];
            let ordered = self.size[list[0] as usize] > LARGE * whole;
            let mut best: Option<(f64, u32)> = None;
            let (mut seen, mut at) = (0, 0);
            for _ in 0..4 * window {
                if seen == window || at == list.len() {
                    break;
                }
                let kind = if ordered {
                    at += 1;
                    list[at - 1]
                } else {
                    list[self.random.below(list.len())]
                };
                let index = kind as usize;
                if state.unplaced[index] == 0 || state.room(index, knapsack, 1) == 0 {
                    continue;
                }
                seen += 1;
                // How far what is still wanted then is from a multiple of the mean.
                let weight = self.model.weight(index, knapsack);
                let mut cost = 0.0;
                for d in 0..dimensions {
                    cost += price[d] * weight[d] as f64;
                }
                let multiple = match last {
                    true => 0.0,
                    false => ((missing - cost) / mean.max(1e-30)).max(0.0) * per_copy,
                };
                let mut off = 0.0;
                for d in 0..dimensions {
                    let o = price[d] * (wanted[d] - weight[d] as f64 - multiple * bulk.sum[d]);
                    off += o * o;
                }
                if best.is_none_or(|(least, _)| off < least) {
                    best = Some((off, kind));
                }
            }
            work.spend(seen as u64 / 2 + 1);
            let Some((_, kind)) = best else { return };
            if last && self.size[kind as usize] > 2.0 * missing {
                return;
            }
            state.put(kind as usize, knapsack, 1);
            bulk.used(kind, state);
        }
    }

    /// Fills the pool up and pairs it anew.
    fn refill(
        &mut self,
        state: &State,
        knapsack: usize,
        bulk: &mut Supply,
        closers: &mut Supply,
        reserve: &mut Vec<u32>,
        work: &mut Work,
    ) {
        let mut pool = std::mem::take(&mut self.pool);
        pool.retain(|(kind, _)| state.unplaced[*kind as usize] > 0);
        let most = self.closing.pool;
        // What nobody takes must not fill the pool: it becomes bulk.
        for (kind, age) in &mut pool {
            *age += 1;
            if *age > AGE_MAX && self.reduced[*kind as usize] >= 0.0 {
                bulk.add(*kind, state);
            }
        }
        pool.retain(|(kind, age)| *age <= AGE_MAX || self.reduced[*kind as usize] < 0.0);
        while pool.len() < most
            && let Some(kind) = closers.kinds.pop()
        {
            if state.unplaced[kind as usize] > 0 {
                pool.push((kind, 0));
            }
        }
        // A small problem must not become all pool.
        let share = (((bulk.copies + closers.copies) / 4.0) as usize).clamp(POOL_MIN, most);
        while pool.len() < share
            && let Some(kind) = bulk.draw(&mut self.random)
        {
            if state.unplaced[kind as usize] > 0 && !self.ruled(kind) {
                pool.push((kind, 0));
            }
        }
        while pool.len() < most
            && let Some(kind) = reserve.pop()
        {
            if state.unplaced[kind as usize] > 0 {
                pool.push((kind, 0));
            }
        }
        self.rest.fill(0.0);
        let share = CLOSERS / pool.len().max(1) as f64;
        for (kind, _) in &pool {
            let weight = self.model.weight(*kind as usize, knapsack);
            for (rest, w) in self.rest.iter_mut().zip(weight) {
                *rest += *w as f64 * share;
            }
        }
        self.pool = pool;
        let kinds: Vec<u32> = self.pool.iter().map(|(kind, _)| *kind).collect();
        self.pair(state, knapsack, &kinds, SHARE, work);
    }

    /// Makes `pool` the table's, appraised for a knapsack.
    pub(super) fn pair(
        &mut self,
        state: &State,
        knapsack: usize,
        pool: &[u32],
        share: f64,
        work: &mut Work,
    ) {
        let model = self.model;
        let mut table = std::mem::take(&mut self.table);
        table.build(
            model.dimensions,
            self.price_at(knapsack),
            &model.scale,
            pool.iter().map(|kind| {
                let index = *kind as usize;
                (*kind, state.unplaced[index], model.weight(index, knapsack))
            }),
            work,
        );
        self.table = table;
        self.appraise(knapsack, share);
    }

    /// Tells the table what its kinds gain and cost in a knapsack.
    pub(super) fn appraise(&mut self, knapsack: usize, share: f64) {
        let mut table = std::mem::take(&mut self.table);
        table.appraise(|kind| {
            if self.model.profit(kind as usize, knapsack) < 0 {
                return (f64::NEG_INFINITY, 0.0);
            }
            (self.gain(kind, knapsack, share), self.cost(kind, knapsack))
        });
        self.table = table;
    }

    /// Does a conflict or a gang say where the kind may go?
    pub(super) fn ruled(&self, kind: u32) -> bool {
        let kind = &self.model.kinds[kind as usize];
        !kind.conflicts.is_empty() || kind.gang.is_some()
    }
}
