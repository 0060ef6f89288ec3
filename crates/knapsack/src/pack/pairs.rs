//! A pool of kinds and all its pairs, found by what they weigh: the fast way to close a knapsack almost exactly.
//!
//! Enter at [`PairTable::build`], then [`PairTable::close`]. All pairs of the pool are hashed by the cell of a grid in
//! which the sum of their weights lies, in every dimension that has a price. Whatever room is left after one or two
//! *heads*, one look into the cell of that room finds pairs that fill it to within a cell's width. This is the meet in
//! the middle of Horowitz and Sahni (Journal of the ACM 21, 1974) for vectors and with some room to spare.
//!
//! Cells are so fine that most are empty. One bit for each of the hash's values says so (Bloom, Communications of the
//! ACM 13, 1970, with one hash), and a room after heads is a subtraction of packed words, so that a pair of heads costs
//! a few nanoseconds.
//!
//! Slot 0 holds nothing and weighs nothing, so that pairs with it are single kinds. A slot whose copies are used up
//! stays in the table and is passed over. Whether a set fits is decided on the weights, never on keys.

mod grid;

use crate::close::worth;
use crate::{Random, Work};

/// Second heads tried with one first.
const RUN: usize = 64;

#[derive(Default)]
pub(super) struct PairTable {
    dimensions: usize,
    /// Dimensions that make up a key, one lane each.
    keyed: Vec<usize>,
    /// What one in a lane stands for, rounded down.
    unit: Vec<i64>,
    lane: u32,
    /// The highest bit of each lane, which shows when a subtraction went below zero.
    guard: u64,
    /// The bits of a key that say which cell it is in.
    cells: u64,
    slots: Vec<Slot>,
    /// Gains, weights and keys once more, lying closer together. Keys add as weights do, to rounding.
    gains: Vec<f64>,
    weights: Vec<i64>,
    keys: Vec<u64>,
    /// Slots that are paired; the ones behind are heads only.
    paired: usize,
    /// Slots whose copies were used up since they were paired.
    spent: usize,
    surplus: f64,
    most: f64,
    /// What a set must weigh at least; empty: nothing.
    least: Vec<i64>,
    starts: Vec<u32>,
    entries: Vec<u32>,
    /// Upper half of the hash and the pair, by partition.
    parts: Vec<u64>,
    /// Bits of the hashes that occur.
    marks: Vec<u64>,
    shift: u32,
    mark_shift: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) kind: u32,
    pub(super) copies: u32,
    /// What a copy gains; not above minus infinity if it may not be taken.
    pub(super) gain: f64,
    /// What it takes at the prices.
    pub(super) cost: f64,
}

/// Up to four slots and what they gain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) gain: f64,
    pub(super) slots: [u16; 4],
}

impl PairTable {
    /// Slots at most, the empty one among them.
    pub(super) const SLOTS_MAX: usize = 1024;

    /// Takes a pool in; gains and costs are told later, by [`PairTable::appraise`].
    pub(super) fn build<'w>(
        &mut self,
        dimensions: usize,
        price: &[f64],
        scale: &[f64],
        pool: impl Iterator<Item = (u32, u32, &'w [i64])>,
        work: &mut Work,
    ) {
        self.dimensions = dimensions;
        self.slots.clear();
        self.least.clear();
        self.weights.clear();
        self.slots.push(Slot {
            kind: u32::MAX,
            copies: u32::MAX,
            gain: 0.0,
            cost: 0.0,
        });
        self.weights.resize(dimensions, 0);
        for (kind, copies, weight) in pool.take(Self::SLOTS_MAX - 1) {
            self.slots.push(Slot {
                kind,
                copies,
                gain: f64::NEG_INFINITY,
                cost: 0.0,
            });
            self.weights.extend_from_slice(weight);
        }
        self.paired = self.slots.len();
        self.spent = 0;
        self.choose_cells(price, scale);
        self.keys.clear();
        for slot in 0..self.paired {
            self.keys.push(self.key(self.weight(slot)));
        }
        self.hash_pairs();
        work.spend((self.paired * self.paired) as u64 / 3);
    }

    /// Tells what each slot gains and costs now.
    pub(super) fn appraise(&mut self, mut value: impl FnMut(u32) -> (f64, f64)) {
        (self.surplus, self.most) = (0.0, 0.0);
        self.gains.clear();
        self.gains.push(0.0);
        for slot in &mut self.slots[1..] {
            (slot.gain, slot.cost) = value(slot.kind);
            if slot.gain > f64::NEG_INFINITY {
                self.surplus = self.surplus.max(slot.gain - slot.cost);
                self.most = self.most.max(slot.gain);
            }
            self.gains.push(match slot.copies {
                0 => f64::NEG_INFINITY,
                _ => slot.gain,
            });
        }
    }

    /// A head that is in no pair.
    pub(super) fn push_head(&mut self, kind: u32, copies: u32, weight: &[i64], value: (f64, f64)) {
        self.slots.push(Slot {
            kind,
            copies,
            gain: value.0,
            cost: value.1,
        });
        self.gains.push(value.0);
        self.weights.extend_from_slice(weight);
        self.keys.push(self.key(weight));
    }

    pub(super) fn is_head(&self, slot: u16) -> bool {
        slot as usize >= self.paired
    }

    /// From now on sets must weigh at least this in every dimension.
    pub(super) fn demand(&mut self, least: &[i64]) {
        self.least.clear();
        self.least.extend_from_slice(least);
    }

    pub(super) fn drop_heads(&mut self) {
        self.slots.truncate(self.paired);
        self.weights.truncate(self.paired * self.dimensions);
        self.gains.truncate(self.paired);
        self.keys.truncate(self.paired);
    }

    pub(super) fn slot(&self, slot: u16) -> Slot {
        self.slots[slot as usize]
    }

    /// One copy of a slot is gone.
    pub(super) fn spend_copy(&mut self, slot: u16) {
        if slot == 0 || slot as usize >= self.paired {
            return;
        }
        let at = slot as usize;
        let slot = &mut self.slots[at];
        slot.copies -= 1;
        if slot.copies == 0 {
            self.gains[at] = f64::NEG_INFINITY;
            self.spent += 1;
        }
    }

    /// Learns how many copies of each kind have no place now.
    pub(super) fn sync(&mut self, unplaced: &[u32]) {
        self.spent = 0;
        for at in 1..self.paired {
            let slot = &mut self.slots[at];
            slot.copies = unplaced[slot.kind as usize];
            self.spent += usize::from(slot.copies == 0);
            self.gains[at] = match slot.copies {
                0 => f64::NEG_INFINITY,
                _ => slot.gain,
            };
        }
    }

    /// Slots that are paired and have copies left, the empty one aside, and those that have none left.
    pub(super) fn live_and_spent(&self) -> (usize, usize) {
        (self.paired.saturating_sub(1 + self.spent), self.spent)
    }

    fn weight(&self, slot: usize) -> &[i64] {
        &self.weights[slot * self.dimensions..(slot + 1) * self.dimensions]
    }

    /// Improves `best` by the pairs in the cell of what is left after the heads.
    fn look(&self, rest: &[i64], left: u64, heads: [u16; 2], gained: f64, best: &mut Choice) {
        let bucket = (self.hash(left) >> self.shift) as usize;
        let (start, end) = (
            self.starts[bucket] as usize,
            self.starts[bucket + 1] as usize,
        );
        for entry in &self.entries[start..end] {
            let (i, j) = ((entry >> 16) as usize, (entry & 0xFFFF) as usize);
            let after = left.wrapping_sub(self.keys[i]).wrapping_sub(self.keys[j]);
            if after & self.guard != self.guard {
                continue;
            }
            let gain = gained + self.gains[i] + self.gains[j];
            if gain <= best.gain {
                continue;
            }
            let slots = [heads[0], heads[1], i as u16, j as u16];
            if self.fit(&slots, rest) && self.has_copies(&slots) && self.weighs_enough(&slots) {
                *best = Choice { gain, slots };
            }
        }
    }

    fn fit(&self, slots: &[u16; 4], rest: &[i64]) -> bool {
        rest.iter().enumerate().all(|(d, rest)| {
            let weight = |slot: &u16| self.weight(*slot as usize)[d];
            slots.iter().map(weight).fold(0i64, i64::saturating_add) <= (*rest).max(0)
        })
    }

    fn weighs_enough(&self, slots: &[u16; 4]) -> bool {
        self.least.iter().enumerate().all(|(d, least)| {
            let weight = |slot: &u16| self.weight(*slot as usize)[d];
            slots.iter().map(weight).fold(0i64, i64::saturating_add) >= *least
        })
    }

    fn has_copies(&self, slots: &[u16; 4]) -> bool {
        slots.iter().all(|slot| {
            let wanted = slots.iter().filter(|other| *other == slot).count() as u32;
            self.slots[*slot as usize].copies >= wanted
        })
    }

    /// The best set of up to four that fits into `rest` and gains more than `floor`, after `tries` pairs of heads at
    /// most, or the first that gains `enough`.
    pub(super) fn close(
        &self,
        rest: &[i64],
        price: &[f64],
        floor: f64,
        enough: f64,
        tries: u32,
        random: &mut Random,
        work: &mut Work,
    ) -> Option<Choice> {
        let mut best = Choice {
            gain: floor,
            slots: [0; 4],
        };
        let worth = worth(rest, price);
        let room = self.key(rest) | self.guard;
        self.look(rest, room, [0, 0], 0.0, &mut best);
        let slots = self.slots.len();
        // Can `more` slots after heads that gain and cost this much be better than the best?
        let hopeless = |gained: f64, cost: f64, more: f64, best: &Choice| {
            gained + more * self.most <= best.gain
                || gained + (worth - cost).max(0.0) + more * self.surplus <= best.gain
        };
        // What is left after a head that may be taken and fits.
        let after = |i: usize, more: f64, best: &Choice| {
            let head = &self.slots[i];
            let left = room.wrapping_sub(self.keys[i]);
            let fits = left & self.guard == self.guard;
            let taken = fits && head.copies > 0 && !hopeless(head.gain, head.cost, more, best);
            taken.then_some(left)
        };
        let start = random.below(slots);
        for step in 0..slots {
            let at = start + step;
            let i = if at < slots { at } else { at - slots };
            if best.gain >= enough {
                break;
            }
            if let Some(left) = after(i, 2.0, &best)
                && self.marked(self.hash(left))
            {
                self.look(rest, left, [i as u16, 0], self.gains[i], &mut best);
            }
        }
        work.spend(1 + slots as u64 / 8);
        // All pairs of heads, if they are few.
        let all = slots * slots / 2 <= tries as usize;
        let run = RUN.min(slots);
        let (mut tried, mut next) = (0, 0);
        let mut marked = [(0u64, 0u16); RUN];
        while tried < tries as usize && best.gain < enough && next < slots {
            let i = match all {
                true => next,
                false => self.pick(random),
            };
            let (mut from, to) = match all {
                true => (0, i + 1),
                false => {
                    let from = random.below(slots - run + 1);
                    (from, from + run)
                }
            };
            next += usize::from(all);
            tried += if all { 1 } else { 8 };
            let Some(one) = after(i, 3.0, &best) else {
                continue;
            };
            tried += to - from;
            while from < to && best.gain < enough {
                let end = (from + RUN).min(to);
                let mut found = 0;
                for (j, key) in self.keys[from..end].iter().enumerate() {
                    let left = one.wrapping_sub(*key);
                    marked[found] = (left, (from + j) as u16);
                    let looked = self.marked(self.hash(left)) && left & self.guard == self.guard;
                    found += usize::from(looked);
                }
                for (left, j) in &marked[..found] {
                    let head = &self.slots[*j as usize];
                    let gained = self.gains[i] + self.gains[*j as usize];
                    let cost = self.slots[i].cost + head.cost;
                    if head.copies > 0 && !hopeless(gained, cost, 2.0, &best) {
                        self.look(rest, *left, [i as u16, *j], gained, &mut best);
                    }
                }
                from = end;
            }
        }
        work.spend(tried as u64 / 16);
        (best.gain > floor).then_some(best)
    }

    /// A slot to be a head; those that are in no pair every other time.
    fn pick(&self, random: &mut Random) -> usize {
        let alone = self.slots.len() - self.paired;
        if alone > 0 && random.below(2) == 0 {
            return self.paired + random.below(alone);
        }
        random.below(self.paired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of kinds 0, 1, ... with one copy each; what a kind gains is what it weighs in all.
    fn table(weights: &[[i64; 3]]) -> PairTable {
        let mut table = PairTable::default();
        let mut work = Work::new(u64::MAX, None);
        let pool = weights.iter().enumerate();
        table.build(
            3,
            &[1.0; 3],
            &[100.0; 3],
            pool.map(|(kind, weight)| (kind as u32, 1, &weight[..])),
            &mut work,
        );
        table.appraise(|kind| {
            let sum: f64 = weights[kind as usize].iter().map(|w| *w as f64).sum();
            (sum, sum)
        });
        table
    }

    fn random_weights(random: &mut Random, count: usize) -> Vec<[i64; 3]> {
        (0..count)
            .map(|_| [0; 3].map(|_| 10 + random.below(90) as i64))
            .collect()
    }

    #[test]
    fn sets_that_fill_a_room_to_the_last_unit_are_found() {
        for members in 1..=4usize {
            let mut random = Random::new(members as u64);
            let (mut exact, rounds) = (0, 60);
            for _ in 0..rounds {
                let weights = random_weights(&mut random, 60);
                let table = table(&weights);
                let mut rest = [0i64; 3];
                for at in 0..members {
                    for (rest, w) in rest.iter_mut().zip(weights[7 * at]) {
                        *rest += w;
                    }
                }
                let mut work = Work::new(u64::MAX, None);
                let choice = table
                    .close(
                        &rest,
                        &[1.0; 3],
                        0.0,
                        f64::INFINITY,
                        20_000,
                        &mut random,
                        &mut work,
                    )
                    .expect("the set that the room was made of fits");
                let chosen = choice.slots.iter().filter(|slot| **slot != 0);
                let mut left = rest;
                let mut seen = Vec::new();
                for slot in chosen {
                    let kind = table.slot(*slot).kind;
                    assert!(!seen.contains(&kind), "one copy each");
                    seen.push(kind);
                    for (left, w) in left.iter_mut().zip(weights[kind as usize]) {
                        *left -= w;
                    }
                }
                assert!(left.iter().all(|left| *left >= 0), "{members}: {left:?}");
                let gained: i64 = rest.iter().sum::<i64>() - left.iter().sum::<i64>();
                assert_eq!(gained as f64, choice.gain);
                exact += u32::from(left == [0; 3]);
            }
            // Sums on the border of a cell may hide in the next one.
            assert!(exact * 10 >= rounds * 9, "{members}: {exact} of {rounds}");
        }
    }

    #[test]
    fn floors_demands_and_spent_copies_are_respected() {
        let weights = [[10, 10, 10], [20, 20, 20], [30, 30, 30]];
        let rest = [30, 30, 30];
        let mut random = Random::new(1);
        let mut close = |table: &PairTable, floor: f64| {
            let mut work = Work::new(u64::MAX, None);
            let found = table.close(
                &rest,
                &[1.0; 3],
                floor,
                f64::INFINITY,
                200,
                &mut random,
                &mut work,
            );
            found.map(|choice| choice.gain)
        };
        let mut table = table(&weights);
        assert_eq!(close(&table, 0.0), Some(90.0));
        assert_eq!(close(&table, 90.0), None);
        table.demand(&[31, 0, 0]);
        assert_eq!(close(&table, 0.0), None);
        table.demand(&[]);
        // Without the third and the first, the second is what is left: it fits with 10 to spare.
        table.spend_copy(3);
        table.spend_copy(1);
        assert_eq!(table.live_and_spent(), (1, 2));
        table.push_head(9, 1, &[10, 10, 10], (30.0, 30.0));
        assert_eq!(close(&table, 0.0), Some(90.0));
        table.drop_heads();
        table.sync(&[1, 1, 1]);
        assert_eq!(table.live_and_spent(), (3, 0));
        assert_eq!(close(&table, 0.0), Some(90.0));
    }

    #[test]
    fn odd_pools_and_rooms_do_no_harm() {
        let huge = i64::MAX / 2;
        let cases: [(&[[i64; 3]], [i64; 3]); 5] = [
            (&[], [10, 10, 10]),
            (&[[0, 0, 0]], [0, 0, 0]),
            (&[[huge, huge, huge], [1, 1, 1]], [huge, huge, huge]),
            (&[[5, 0, 0], [5, 0, 0]], [-1, 0, 0]),
            (&[[1, 2, 3]], [i64::MAX, i64::MAX, i64::MAX]),
        ];
        for (weights, rest) in cases {
            let table = table(weights);
            let mut work = Work::new(u64::MAX, None);
            let mut random = Random::new(3);
            let choice = table.close(
                &rest,
                &[1.0; 3],
                -1.0,
                f64::INFINITY,
                100,
                &mut random,
                &mut work,
            );
            for slot in choice.map_or([0; 4], |choice| choice.slots) {
                if slot != 0 {
                    let weight = weights[table.slot(slot).kind as usize];
                    let fits = weight
                        .iter()
                        .zip(rest)
                        .all(|(w, rest)| *w <= 0 || *w <= rest);
                    assert!(fits, "{weights:?} {rest:?}");
                }
            }
        }
    }
}
