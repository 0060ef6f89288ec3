//! The grid of a [`PairTable`]: cells, the packed keys of vectors, and the hash of all pairs by their cells.

use super::PairTable;

/// Pairs in the cell about the middle of all pairs, on average.
const OCCUPANCY: f64 = 0.5;
/// Dimensions that a grid has at most.
const KEYED_MAX: usize = 8;
/// Spreads the cells over the buckets.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
/// Bits of the hash beyond a bucket's that are marked.
const MARK_BITS: u32 = 4;
/// Pairs up to which hashing them goes without partitions.
const PARTITION_MIN: usize = 1 << 14;

impl PairTable {
    /// A grid on the dimensions that cost something, as fine as the pool's pairs are many.
    pub(super) fn choose_cells(&mut self, price: &[f64], scale: &[f64]) {
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
        self.lane = (64 / self.keyed.len().max(1) as u32).min(32);
        self.unit.clear();
        self.guard = 0;
        let count = (self.paired - 1).max(1) as f64;
        // The logarithms of each dimension's spread, in units, and of what a unit costs.
        let mut logs: Vec<(f64, f64)> = Vec::with_capacity(self.keyed.len());
        for (at, d) in self.keyed.iter().enumerate() {
            let column = || self.weights.iter().skip(*d).step_by(dimensions);
            let most = column().fold(0, |most: i64, w| most.max(*w));
            // A lane holds four of the largest, and a knapsack.
            let reach = most.saturating_mul(4).max(scale[*d] as i64);
            let unit = (reach >> (self.lane - 1)) + 1;
            self.unit.push(unit);
            self.guard |= 1 << (self.lane - 1 + at as u32 * self.lane);
            let mean = column().map(|w| *w as f64).sum::<f64>() / count;
            let squares = column().skip(1).map(|w| (*w as f64 - mean).powi(2));
            let deviation = (2.0 * squares.sum::<f64>() / count).sqrt() / unit as f64;
            // A Gauss curve's middle is as high as a box sqrt(2 pi) deviations wide.
            logs.push((
                (2.5 * deviation).max(1.0).log2(),
                (price[*d] * unit as f64).log2(),
            ));
        }
        let pairs = (count * count / 2.0).max(1.0);
        let volume = logs.iter().map(|log| log.0).sum::<f64>() + (OCCUPANCY / pairs).log2();
        // Sides of equal price, none longer than the spread: the longest with which cells are small enough.
        let side = |log: &(f64, f64), price: f64| (price - log.1).clamp(0.0, log.0);
        let (mut low, mut high) = (-1100.0, 1100.0);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            let sum: f64 = logs.iter().map(|log| side(log, middle)).sum();
            *(if sum > volume { &mut high } else { &mut low }) = middle;
        }
        self.cells = 0;
        let mut carry = 0.0;
        for (at, log) in logs.iter().enumerate() {
            let wanted = side(log, low) + carry;
            let bits = wanted.round().clamp(0.0, f64::from(self.lane - 2));
            carry = wanted - bits;
            let bits = bits as u32;
            let lane = (1u64 << (self.lane - 1 - bits)) - 1;
            self.cells |= lane << (bits + at as u32 * self.lane);
        }
    }

    /// The key of a vector. What is too long for its lane ends at the lane's end.
    pub(super) fn key(&self, vector: &[i64]) -> u64 {
        let most = (1i64 << (self.lane - 1)) - 1;
        let mut key = 0u64;
        for (at, (d, unit)) in self.keyed.iter().zip(&self.unit).enumerate() {
            let along = (vector[*d] / unit).clamp(0, most) as u64;
            key |= along << (at as u32 * self.lane);
        }
        key
    }

    pub(super) fn hash(&self, key: u64) -> u64 {
        (key & self.cells).wrapping_mul(FACTOR)
    }

    /// Might there be a pair in the cell?
    pub(super) fn marked(&self, hash: u64) -> bool {
        let mark = hash >> self.mark_shift;
        self.marks[(mark >> 6) as usize] >> (mark & 63) & 1 != 0
    }

    /// Sorts all pairs by the bucket of their cell: first into partitions that fit into a cache, then each by counting.
    pub(super) fn hash_pairs(&mut self) {
        let count = self.paired;
        let pairs = count * (count + 1) / 2;
        let bits = (pairs / 2).next_power_of_two().trailing_zeros().max(6);
        self.shift = 64 - bits;
        self.mark_shift = self.shift - MARK_BITS;
        self.marks.clear();
        self.marks.resize(1 << (bits + MARK_BITS - 6), 0);
        let partition_bits = if pairs < PARTITION_MIN { 0 } else { 6 };
        let part = |hash: u64| (hash >> (63 - partition_bits) >> 1) as usize;
        let mut ends = [0u32; 65];
        for i in 0..count {
            for j in i..count {
                let hash = self.hash(self.keys[i].wrapping_add(self.keys[j]));
                ends[part(hash) + 1] += 1;
            }
        }
        for at in 1..ends.len() {
            ends[at] += ends[at - 1];
        }
        self.parts.resize(pairs, 0);
        self.entries.resize(pairs, 0);
        self.starts.clear();
        self.starts.resize((1 << bits) + 1, 0);
        let mut next = ends;
        for i in 0..count {
            for j in i..count {
                let hash = self.hash(self.keys[i].wrapping_add(self.keys[j]));
                let at = &mut next[part(hash)];
                self.parts[*at as usize] = hash >> 32 << 32 | (i as u64) << 16 | j as u64;
                *at += 1;
            }
        }
        let width = 1usize << (bits - partition_bits);
        for partition in 0..1usize << partition_bits {
            let (from, to) = (ends[partition], ends[partition + 1]);
            let first = partition * width;
            let parts = &self.parts[from as usize..to as usize];
            let starts = &mut self.starts[first..first + width];
            for part in parts {
                let mark = part >> self.mark_shift;
                self.marks[(mark >> 6) as usize] |= 1 << (mark & 63);
                starts[(part >> self.shift) as usize - first] += 1;
            }
            let mut end = from;
            for start in starts.iter_mut() {
                end += *start;
                *start = end;
            }
            // Backwards, each bucket filled from its end.
            for part in parts.iter().rev() {
                let start = &mut starts[(part >> self.shift) as usize - first];
                *start -= 1;
                self.entries[*start as usize] = *part as u32;
            }
        }
        self.starts[1 << bits] = pairs as u32;
    }
}
