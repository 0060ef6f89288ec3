//! A pool of kinds and all its pairs, found by what they weigh: the fast way to close a knapsack almost exactly.
//!
//! Enter at [`PairTable::build`], then [`PairTable::close`]. All pairs of the pool are hashed by the cell of a grid in
//! which the sum of their weights lies, in every dimension that has a price. Whatever room is left after one or two
//! *heads*, one look into the cell of that room finds pairs that fill it to within a cell's width, so that sets of four
//! are searched at some tens of nanoseconds a pair of heads. This is the meet in the middle of Horowitz and Sahni
//! (Journal of the ACM 21, 1974) for vectors and with some room to spare.
//!
//! Slot 0 holds nothing and weighs nothing, so that pairs with it are single kinds. A slot whose copies are used up
//! stays in the table and is passed over. Whether a set fits is decided on the weights, never on cells.

use crate::close::worth;
use crate::{Random, Work};

/// Pairs in the cell about the middle of all pairs, on average.
const OCCUPANCY: f64 = 6.0;
/// Dimensions that a grid has at most.
const KEYED_MAX: usize = 8;
/// Spreads the cells over the buckets.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

#[derive(Default)]
pub(super) struct PairTable {
    dimensions: usize,
    /// Dimensions that make up a cell's coordinates.
    keyed: Vec<usize>,
    /// What a unit of each of them adds to its lane of a key.
    density: Vec<f64>,
    /// Bits of a lane, and of its fraction; the rest of a lane is the cell's coordinate.
    lane: u32,
    fraction: u32,
    /// Takes the fractions off a key.
    cells: u64,
    slots: Vec<Slot>,
    /// Gains and weights once more, lying closer together.
    gains: Vec<f64>,
    weights: Vec<i64>,
    /// Where a slot's weight lies in the grid, one lane a dimension. Keys add as weights do.
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
    buckets: Vec<u32>,
    shift: u32,
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

/// What a room is and costs after some heads.
struct Room {
    rest: Vec<i64>,
    key: u64,
}

impl PairTable {
    /// Slots at most, the empty one among them.
    pub(super) const SLOTS_MAX: usize = 512;

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

    /// A grid on the dimensions that cost something, as fine as the pool's pairs are many.
    fn choose_cells(&mut self, price: &[f64], scale: &[f64]) {
        let dimensions = self.dimensions;
        let dearest = price
            .iter()
            .zip(scale)
            .map(|(y, s)| y * s)
            .fold(0.0, f64::max);
        self.keyed.clear();
        self.keyed
            .extend((0..dimensions).filter(|d| price[*d] * scale[*d] > 0.02 * dearest));
        self.keyed.truncate(KEYED_MAX);
        let count = (self.paired - 1).max(1) as f64;
        let pairs = (count * count / 2.0).max(1.0);
        self.lane = 64 / self.keyed.len().max(1) as u32;
        self.lane = self.lane.min(20);
        self.fraction = self.lane / 2;
        // The share of a dimension's spread that a cell is wide; a Gauss curve's middle is as high as a box sqrt(2 pi) deviations wide.
        let share = (OCCUPANCY / pairs).powf(1.0 / self.keyed.len().max(1) as f64);
        // What a pair weighs must leave half the lane free, for rooms that are larger.
        let cells_max = f64::from(1u32 << (self.lane - self.fraction - 2));
        self.density.clear();
        self.cells = 0;
        for (at, d) in self.keyed.iter().enumerate() {
            let column = || {
                self.weights[dimensions..]
                    .iter()
                    .skip(*d)
                    .step_by(dimensions)
                    .map(|w| *w as f64)
            };
            let mean = column().sum::<f64>() / count;
            let variance = column().map(|w| (w - mean) * (w - mean)).sum::<f64>() / count;
            let most = column().fold(0.0, f64::max);
            let width = (share * 2.5 * (2.0 * variance).sqrt())
                .max(1.0)
                .max(most / cells_max);
            self.density.push(f64::from(1u32 << self.fraction) / width);
            let cell = (1u64 << (self.lane - self.fraction)) - 1;
            self.cells |= cell << (self.fraction + at as u32 * self.lane);
        }
    }

    /// The key of a vector. What is too long for its lane ends at the lane's end, where no pair is.
    fn key(&self, vector: &[i64]) -> u64 {
        let most = f64::from((1u32 << self.lane) - 1);
        let mut key = 0u64;
        for (at, (d, density)) in self.keyed.iter().zip(&self.density).enumerate() {
            let along = (vector[*d] as f64 * density).clamp(0.0, most) as u64;
            key |= along << (at as u32 * self.lane);
        }
        key
    }

    fn bucket(&self, key: u64) -> usize {
        ((key & self.cells).wrapping_mul(FACTOR) >> self.shift) as usize
    }

    /// Counting sort of all pairs by the bucket of their cell.
    fn hash_pairs(&mut self) {
        let count = self.paired;
        let pairs = count * (count + 1) / 2;
        let bits = (pairs / 2).next_power_of_two().trailing_zeros().max(1);
        self.shift = 64 - bits;
        self.starts.clear();
        self.starts.resize((1 << bits) + 1, 0);
        self.buckets.clear();
        self.buckets.reserve(pairs);
        for i in 0..count {
            let first = self.keys[i];
            for second in &self.keys[i..count] {
                let bucket = self.bucket(first.wrapping_add(*second)) as u32;
                self.buckets.push(bucket);
                self.starts[bucket as usize + 1] += 1;
            }
        }
        for at in 1..self.starts.len() {
            self.starts[at] += self.starts[at - 1];
        }
        self.entries.clear();
        self.entries.resize(pairs, 0);
        let mut at = pairs;
        // Backwards, each bucket filled from its end: afterwards `starts` is shifted by one bucket.
        for i in (0..count).rev() {
            for j in (i..count).rev() {
                at -= 1;
                let end = &mut self.starts[self.buckets[at] as usize + 1];
                *end -= 1;
                self.entries[*end as usize] = (i as u32) << 16 | j as u32;
            }
        }
        // Now the start of bucket b is at b + 1; the end is the next one's start.
        self.starts.remove(0);
        self.starts.push(pairs as u32);
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

    fn fits(&self, slot: usize, rest: &[i64]) -> bool {
        let weight = self.weight(slot);
        weight.iter().zip(rest).all(|(w, r)| *w <= 0 || w <= r)
    }

    fn enter(&self, slot: usize, from: &Room, into: &mut Room) {
        into.rest.clear();
        let weight = self.weight(slot);
        into.rest
            .extend(from.rest.iter().zip(weight).map(|(r, w)| r - w));
        into.key = self.key(&into.rest);
    }

    /// Improves `best` by the pairs in the cell of what is left after the heads.
    fn look(&self, room: &Room, heads: [u16; 2], gained: f64, best: &mut Choice) {
        let bucket = self.bucket(room.key);
        let (start, end) = (
            self.starts[bucket] as usize,
            self.starts[bucket + 1] as usize,
        );
        for entry in &self.entries[start..end] {
            let (i, j) = ((entry >> 16) as usize, (entry & 0xFFFF) as usize);
            let gain = gained + self.gains[i] + self.gains[j];
            if gain <= best.gain {
                continue;
            }
            let (first, second) = (self.weight(i), self.weight(j));
            let fits = first
                .iter()
                .zip(second)
                .zip(&room.rest)
                .all(|((a, b), r)| a.saturating_add(*b) <= (*r).max(0));
            if !fits {
                continue;
            }
            let slots = [heads[0], heads[1], i as u16, j as u16];
            if self.has_copies(&slots) && self.weighs_enough(&slots) {
                *best = Choice { gain, slots };
            }
        }
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
        let whole = Room {
            rest: rest.to_vec(),
            key: self.key(rest),
        };
        let mut one = Room {
            rest: Vec::with_capacity(self.dimensions),
            key: 0,
        };
        let mut two = Room {
            rest: Vec::with_capacity(self.dimensions),
            key: 0,
        };
        self.look(&whole, [0, 0], 0.0, &mut best);
        let slots = self.slots.len();
        // Can a pair after heads that gain and cost this much be better than the best?
        let hopeless = |gained: f64, cost: f64, best: &Choice| {
            gained + 2.0 * self.most <= best.gain
                || gained + (worth - cost).max(0.0) + 2.0 * self.surplus <= best.gain
        };
        let start = random.below(slots);
        let mut looks = 1u64;
        for step in 0..slots {
            let at = start + step;
            let i = if at < slots { at } else { at - slots };
            let head = self.slots[i];
            if i == 0
                || head.copies == 0
                || hopeless(head.gain, head.cost, &best)
                || !self.fits(i, rest)
            {
                continue;
            }
            self.enter(i, &whole, &mut one);
            self.look(&one, [i as u16, 0], head.gain, &mut best);
            looks += 1;
            if best.gain >= enough {
                break;
            }
        }
        work.spend(looks + slots as u64 / 8);
        let mut tried = 0;
        while tried < tries && best.gain < enough {
            // A few second heads for each first one.
            tried += 8;
            let i = self.pick(random);
            let head = self.slots[i];
            if head.copies == 0 || head.gain == f64::NEG_INFINITY || !self.fits(i, rest) {
                continue;
            }
            self.enter(i, &whole, &mut one);
            for _ in 0..8 {
                let j = self.pick(random);
                let next = self.slots[j];
                let (gained, cost) = (head.gain + next.gain, head.cost + next.cost);
                if next.copies == 0 || hopeless(gained, cost, &best) || !self.fits(j, &one.rest) {
                    continue;
                }
                self.enter(j, &one, &mut two);
                self.look(&two, [i as u16, j as u16], gained, &mut best);
            }
        }
        work.spend(u64::from(tried));
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
