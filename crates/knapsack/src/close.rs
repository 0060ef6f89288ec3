//! Which one, two or three candidates fill what is left of a knapsack best?
//!
//! Candidates are sorted by gain. For every dimension and each of some thresholds a bit set says which
//! candidates may weigh no more than that; the intersection over the dimensions holds all candidates
//! that fit, and its first bit that does fit is the best partner. So one query looks at some hundred
//! candidates in tens of nanoseconds, and all pairs of them cost some tens of microseconds. This is
//! the closing step of minimum-bin-slack packing (Gupta and Ho, Production Planning and Control 10,
//! 1999) for vectors.

use crate::Work;

/// Thresholds a dimension; what lies between two is checked candidate by candidate.
const THRESHOLDS: usize = 32;
/// Candidates that a query may try in vain; the bit sets are a little too generous.
const TRIES: u32 = 24;

/// Something that could be put in: what it gains and how many copies there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) kind: u32,
    pub(crate) copies: u32,
    pub(crate) gain: f64,
    /// What its weight costs at the prices.
    pub(crate) cost: f64,
}

#[derive(Default)]
pub(crate) struct Closer {
    dimensions: usize,
    words: usize,
    pub(crate) candidates: Vec<Candidate>,
    weights: Vec<i64>,
    thresholds: Vec<i64>,
    masks: Vec<u64>,
    /// The most that a candidate gains above its cost.
    surplus: f64,
    sorted: Vec<i64>,
    rest: Vec<i64>,
    inner: Vec<i64>,
}

/// Up to three candidates and their gain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Best {
    pub(crate) gain: f64,
    pub(crate) chosen: [u32; 3],
    pub(crate) count: usize,
}

impl Closer {
    /// Takes the candidates in; `weight` tells a kind's weight here.
    pub(crate) fn load<'w>(
        &mut self,
        dimensions: usize,
        candidates: &mut Vec<Candidate>,
        weight: impl Fn(u32) -> &'w [i64],
    ) {
        candidates
            .sort_unstable_by(|a, b| b.gain.total_cmp(&a.gain).then_with(|| a.kind.cmp(&b.kind)));
        self.dimensions = dimensions;
        self.words = candidates.len().div_ceil(64);
        self.weights.clear();
        self.surplus = 0.0;
        for candidate in candidates.iter() {
            self.weights.extend_from_slice(weight(candidate.kind));
            self.surplus = self.surplus.max(candidate.gain - candidate.cost);
        }
        std::mem::swap(&mut self.candidates, candidates);
        self.thresholds.clear();
        self.masks.clear();
        self.masks.resize(dimensions * THRESHOLDS * self.words, 0);
        let count = self.candidates.len();
        for d in 0..dimensions {
            self.sorted.clear();
            self.sorted
                .extend((0..count).map(|i| self.weights[i * dimensions + d]));
            self.sorted.sort_unstable();
            for t in 1..=THRESHOLDS {
                let at = (count * t / THRESHOLDS).saturating_sub(1);
                self.thresholds
                    .push(self.sorted.get(at).copied().unwrap_or(0));
            }
            let thresholds = &self.thresholds[d * THRESHOLDS..];
            for i in 0..count {
                let weight = self.weights[i * dimensions + d];
                let first = thresholds[..THRESHOLDS].partition_point(|t| *t < weight);
                if first < THRESHOLDS {
                    self.masks[(d * THRESHOLDS + first) * self.words + i / 64] |= 1 << (i % 64);
                }
            }
            // What weighs no more than a threshold weighs no more than the next.
            let row = d * THRESHOLDS * self.words;
            for at in row + self.words..row + THRESHOLDS * self.words {
                self.masks[at] |= self.masks[at - self.words];
            }
        }
    }

    /// The first candidate from `from` on that fits and gains more than `floor`.
    fn first(&self, rest: &[i64], from: usize, floor: f64) -> Option<usize> {
        let mut rows = [usize::MAX; 8];
        let mut narrow = 0;
        for (d, left) in rest.iter().enumerate() {
            let thresholds = &self.thresholds[d * THRESHOLDS..(d + 1) * THRESHOLDS];
            // All weigh at most the last threshold.
            if *left < thresholds[THRESHOLDS - 1] && narrow < rows.len() {
                let at = thresholds.partition_point(|t| t < left);
                rows[narrow] = (d * THRESHOLDS + at) * self.words;
                narrow += 1;
            }
        }
        let mut tries = 0;
        for word in from / 64..self.words {
            if self.candidates[word * 64].gain <= floor && word * 64 >= from {
                return None;
            }
            let mut bits = rows[..narrow]
                .iter()
                .fold(u64::MAX, |bits, row| bits & self.masks[row + word]);
            if word == from / 64 {
                bits &= u64::MAX << (from % 64);
            }
            while bits != 0 {
                let i = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let candidate = self.candidates.get(i)?;
                if candidate.gain <= floor {
                    return None;
                }
                if self.fits(i, rest) {
                    return Some(i);
                }
                tries += 1;
                if tries > TRIES {
                    return None;
                }
            }
        }
        None
    }

    fn fits(&self, i: usize, rest: &[i64]) -> bool {
        let weight = &self.weights[i * self.dimensions..(i + 1) * self.dimensions];
        weight.iter().zip(rest).all(|(w, r)| *w <= 0 || w <= r)
    }

    /// The best set of at most three that fits into `rest` and gains more than `floor`; triples are tried with `triples` first members only.
    pub(crate) fn best(
        &mut self,
        rest: &[i64],
        price: &[f64],
        floor: f64,
        triples: usize,
        work: &mut Work,
    ) -> Best {
        let mut best = Best {
            gain: floor,
            ..Best::default()
        };
        if self.candidates.is_empty() {
            return best;
        }
        if let Some(i) = self.first(rest, 0, best.gain) {
            best = Best {
                gain: self.candidates[i].gain,
                chosen: [i as u32, 0, 0],
                count: 1,
            };
        }
        self.pairs(rest, price, 0.0, None, 0, &mut best, work);
        let count = self.candidates.len();
        let stride = (count / triples.max(1)).max(1);
        let room = worth(rest, price);
        for t in 0..triples.min(count) {
            let i = t * stride;
            // Nothing can beat what fills everything.
            if best.gain >= room * (1.0 - 1e-6) && self.surplus <= 0.0 || work.exhausted() {
                break;
            }
            if !self.fits(i, rest) {
                continue;
            }
            let mut inner = std::mem::take(&mut self.inner);
            self.subtract(i, rest, &mut inner);
            self.pairs(
                &inner,
                price,
                self.candidates[i].gain,
                Some(i),
                0,
                &mut best,
                work,
            );
            self.inner = inner;
        }
        best
    }

    fn subtract(&self, i: usize, rest: &[i64], into: &mut Vec<i64>) {
        into.clear();
        let weight = &self.weights[i * self.dimensions..(i + 1) * self.dimensions];
        into.extend(rest.iter().zip(weight).map(|(r, w)| r - w));
    }

    /// Improves `best` by pairs that fit into `rest`, on top of what a third one (`with`) gained.
    fn pairs(
        &mut self,
        rest: &[i64],
        price: &[f64],
        gained: f64,
        with: Option<usize>,
        from: usize,
        best: &mut Best,
        work: &mut Work,
    ) {
        let mut inner = std::mem::take(&mut self.rest);
        let room = worth(rest, price);
        let mut looked = 0u64;
        for i in from..self.candidates.len() {
            let candidate = self.candidates[i];
            // Partners come later in the order, so they gain no more.
            if gained + 2.0 * candidate.gain <= best.gain {
                break;
            }
            let left = (room - candidate.cost + self.surplus).max(0.0);
            if gained + candidate.gain + left <= best.gain
                || Some(i) == with && candidate.copies < 2
                || !self.fits(i, rest)
            {
                continue;
            }
            looked += 1;
            self.subtract(i, rest, &mut inner);
            let taken = 1 + u32::from(Some(i) == with);
            let mut next = if candidate.copies > taken { i } else { i + 1 };
            let floor = best.gain - gained - candidate.gain;
            let mut partner = self.first(&inner, next, floor);
            if partner.is_some() && partner == with {
                let at = partner.unwrap_or(0);
                if self.candidates[at].copies < 2 {
                    next = at + 1;
                    partner = self.first(&inner, next, floor);
                }
            }
            if let Some(other) = partner {
                best.gain = gained + candidate.gain + self.candidates[other].gain;
                best.chosen = [i as u32, other as u32, with.unwrap_or(0) as u32];
                best.count = 2 + usize::from(with.is_some());
            }
        }
        work.spend(looked / 2 + 1);
        self.rest = inner;
    }
}

/// What the room costs at the prices.
pub(crate) fn worth(rest: &[i64], price: &[f64]) -> f64 {
    rest.iter()
        .zip(price)
        .map(|(r, y)| (*r).max(0) as f64 * y)
        .sum()
}
