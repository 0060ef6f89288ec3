//! Pricing: the content of one bin whose items are together worth most at given prices.
//!
//! A depth-first search over types in order of price per weight. The weight is a surrogate: one number
//! a type, the average over dimensions of its share of the capacity, by how scarce each dimension is.
//! What prunes: a table of the exact one-dimensional knapsack on rounded-down surrogate weights (an
//! upper bound for every suffix of the order and every rest of room), and the fractional knapsack over
//! the types that still fit. Prices are integers, so that "no content is worth more than V" is exact.

use super::Budget;
use super::instance::{Instance, Pattern};
use super::packed::Packed;

/// Steps of the surrogate weight that an empty bin has room for.
const ROOM: usize = 240;
/// Largest integer that stands for a price of one bin.
const SCALE_MAX: f64 = (1u64 << 26) as f64;
/// What all prices of one search may sum up to, so that every bound fits into 32 bits.
const PRICE_SUM_MAX: f64 = (1u64 << 31) as f64;

#[derive(Clone, Copy)]
struct Candidate<const W: usize> {
    size: Packed<W>,
    price: u32,
    weight: u32,
    copies_max: u32,
    kind: u32,
    weight_exact: f64,
}

/// The search, with the memory it reuses.
pub(super) struct Pricer<const W: usize> {
    candidates: Vec<Candidate<W>>,
    /// `position * (ROOM + 1) + room`: the most that the suffix from `position` is worth in this room.
    table: Vec<u32>,
    /// Price of one bin in integers.
    scale: f64,
    /// The open path: positions, repeated by copies.
    path: Vec<u32>,
    best: u64,
    best_path: Vec<u32>,
    /// Every content that was the best for a while.
    bettered: Vec<Pattern>,
    keep_bettered: bool,
    nodes: u64,
    nodes_max: u64,
    /// For every open node the positions that still fit, end to end.
    lists: Vec<u32>,
    capacity: Packed<W>,
    guard: Packed<W>,
    weights: Vec<f64>,
}

/// What an exact search proved.
pub(super) struct Proof {
    /// No content is worth more than this many integer units.
    pub(super) value_max: u64,
    /// What all copies are worth in the same units.
    pub(super) total: u128,
    /// Contents worth more than one bin, the best last.
    pub(super) patterns: Vec<Pattern>,
}

impl<const W: usize> Pricer<W> {
    pub(super) fn new(instance: &Instance<W>, weights: Vec<f64>) -> Self {
        Pricer {
            candidates: Vec::new(),
            table: Vec::new(),
            scale: SCALE_MAX,
            path: Vec::new(),
            best: 0,
            best_path: Vec::new(),
            bettered: Vec::new(),
            keep_bettered: false,
            nodes: 0,
            nodes_max: 0,
            lists: Vec::new(),
            capacity: instance.capacity,
            guard: instance.guard,
            weights,
        }
    }

    /// Takes over prices, and how many copies of each type may be used.
    pub(super) fn prepare(
        &mut self,
        instance: &Instance<W>,
        prices: &[f64],
        copies: impl Fn(usize) -> u64,
        budget: &mut Budget,
    ) {
        let weight_sum: f64 = self.weights.iter().sum();
        let limit = |kind: usize| copies(kind).min(u64::from(instance.copies_max[kind]));
        let sum: f64 = prices
            .iter()
            .enumerate()
            .map(|(kind, price)| price.max(0.0) * limit(kind) as f64)
            .sum();
        self.scale = SCALE_MAX.min(PRICE_SUM_MAX / sum.max(1.0)).floor();
        self.candidates.clear();
        for (kind, &price) in prices.iter().enumerate() {
            let price = (price * self.scale).floor();
            let copies_max = limit(kind);
            if price < 1.0 || copies_max == 0 {
                continue;
            }
            let exact: f64 = instance
                .share(kind)
                .iter()
                .zip(&self.weights)
                .map(|(share, weight)| share * weight)
                .sum::<f64>()
                / weight_sum;
            self.candidates.push(Candidate {
                size: instance.sizes[kind],
                price: price as u32,
                // Rounded down, and a hair more, so that the float is on the safe side.
                weight: (exact * ROOM as f64 * (1.0 - 1e-9)).floor() as u32,
                copies_max: copies_max as u32,
                kind: kind as u32,
                weight_exact: exact * (1.0 - 1e-9),
            });
        }
        let ratio = |candidate: &Candidate<W>| {
            f64::from(candidate.price) / candidate.weight_exact.max(1e-9)
        };
        self.candidates
            .sort_by(|a, b| ratio(b).total_cmp(&ratio(a)).then(a.kind.cmp(&b.kind)));
        self.fill_table();
        budget.spend((self.candidates.len() * ROOM / 8) as u64);
    }

    fn fill_table(&mut self) {
        let count = self.candidates.len();
        let width = ROOM + 1;
        self.table.clear();
        self.table.resize((count + 1) * width, 0);
        for position in (0..count).rev() {
            let candidate = &self.candidates[position];
            let (head, tail) = self.table.split_at_mut((position + 1) * width);
            let row = &mut head[position * width..];
            row.copy_from_slice(&tail[..width]);
            let weight = candidate.weight as usize;
            let useful = match ROOM.checked_div(weight) {
                None => candidate.copies_max,
                Some(fitting) => candidate.copies_max.min(fitting as u32),
            };
            if weight == 0 {
                let gain = candidate.price.saturating_mul(useful);
                row.iter_mut()
                    .for_each(|value| *value = value.saturating_add(gain));
                continue;
            }
            for copies in 1..=useful.min(TABLE_COPIES_MAX) {
                let gain = candidate.price * copies;
                let offset = weight * copies as usize;
                for (value, below) in row[offset..].iter_mut().zip(&tail[..width - offset]) {
                    *value = (*value).max(below + gain);
                }
            }
            if useful > TABLE_COPIES_MAX {
                // As many copies as there is room for: an upper bound that needs one pass.
                for room in weight..width {
                    row[room] = row[room].max(row[room - weight].saturating_add(candidate.price));
                }
            }
        }
    }

    /// One bin in integer units.
    fn unit(&self) -> u64 {
        self.scale as u64
    }

    /// Contents worth more than one bin at `true_prices`, each the best found from another first item at the prepared ones.
    pub(super) fn spread(
        &mut self,
        true_prices: &[f64],
        smooth: bool,
        nodes_each: u64,
        patterns_max: usize,
        budget: &mut Budget,
    ) -> Vec<Pattern> {
        let mut patterns: Vec<Pattern> = Vec::new();
        let mut covered = vec![false; self.candidates.len()];
        // A ten-thousandth of a bin: anything less would not move the linear program.
        // Smoothed prices are compared only after the search, by the true ones.
        let threshold = if smooth {
            self.unit() / 2
        } else {
            self.unit() + self.unit() / 10_000
        };
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        order.sort_by_key(|&position| std::cmp::Reverse(self.candidates[position].price));
        for start in order {
            if covered[start] || patterns.len() >= patterns_max {
                continue;
            }
            if self.from(start, threshold, nodes_each, budget) {
                let pattern = self.best_pattern();
                let worth: f64 = pattern
                    .iter()
                    .map(|&(kind, copies)| true_prices[kind as usize] * copies as f64)
                    .sum();
                if worth > 1.0 + 1e-6 {
                    for &position in &self.best_path {
                        covered[position as usize] = true;
                    }
                    patterns.push(pattern);
                }
            }
            if budget.exhausted() {
                break;
            }
        }
        patterns
    }

    /// A whole packing, bin after bin: each the best content found around the dearest item that is left.
    pub(super) fn sequence(
        &mut self,
        left: &mut [u64],
        nodes_each: u64,
        budget: &mut Budget,
    ) -> Vec<(Pattern, u64)> {
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        order.sort_by_key(|&position| std::cmp::Reverse(self.candidates[position].price));
        let mut bins = Vec::new();
        for start in order {
            while self.candidates[start].copies_max > 0 && !budget.exhausted() {
                self.from(start, 0, nodes_each, budget);
                let pattern = self.best_pattern();
                let times = pattern
                    .iter()
                    .map(|&(kind, copies)| left[kind as usize] / copies)
                    .min()
                    .expect("it holds the start");
                for &(kind, copies) in &pattern {
                    left[kind as usize] -= copies * times;
                }
                for index in 0..self.best_path.len() {
                    let candidate = &mut self.candidates[self.best_path[index] as usize];
                    candidate.copies_max = candidate
                        .copies_max
                        .min(u32::try_from(left[candidate.kind as usize]).unwrap_or(u32::MAX));
                }
                bins.push((pattern, times));
            }
        }
        bins
    }

    /// The best content of all, if the search ends within `nodes_max` nodes; a bound on its worth otherwise.
    pub(super) fn exact(
        &mut self,
        instance: &Instance<W>,
        copies: impl Fn(usize) -> u64,
        nodes_max: u64,
        budget: &mut Budget,
    ) -> Proof {
        let mut total: u128 = 0;
        for candidate in &self.candidates {
            total += u128::from(candidate.price) * u128::from(copies(candidate.kind as usize));
        }
        debug_assert!(self.candidates.len() <= instance.types());
        self.best = self.unit();
        self.best_path.clear();
        self.nodes = 0;
        self.nodes_max = nodes_max;
        self.path.clear();
        self.lists.clear();
        self.lists.extend(0..self.candidates.len() as u32);
        self.bettered.clear();
        self.keep_bettered = true;
        self.descend(
            0,
            self.candidates.len(),
            self.capacity,
            ROOM,
            1.0,
            0,
            budget,
        );
        self.keep_bettered = false;
        let complete = self.nodes <= self.nodes_max;
        Proof {
            value_max: if complete {
                self.best
            } else {
                u64::from(self.table[ROOM]).max(self.unit())
            },
            total,
            patterns: std::mem::take(&mut self.bettered),
        }
    }

    /// Searches contents that hold the candidate at `start`; true if one is worth more than `threshold`.
    fn from(&mut self, start: usize, threshold: u64, nodes_max: u64, budget: &mut Budget) -> bool {
        let candidate = self.candidates[start];
        let room = ROOM - candidate.weight as usize;
        if u64::from(candidate.price) + u64::from(self.table[room]) <= threshold {
            return false;
        }
        self.best = threshold;
        self.nodes = 0;
        self.nodes_max = nodes_max;
        self.path.clear();
        self.path.push(start as u32);
        self.best_path.clear();
        if u64::from(candidate.price) > threshold {
            self.best = u64::from(candidate.price);
            self.best_path.clone_from(&self.path);
        }
        let rest = self
            .capacity
            .minus(&candidate.size, &self.guard)
            .expect("every type fits into an empty bin");
        let count = self.candidates.len();
        self.lists.clear();
        self.lists.extend(0..count as u32);
        self.descend(
            0,
            count,
            rest,
            room,
            1.0 - candidate.weight_exact,
            u64::from(candidate.price),
            budget,
        );
        budget.spend(count as u64);
        self.best > threshold
    }

    fn descend(
        &mut self,
        from: usize,
        to: usize,
        rest: Packed<W>,
        room: usize,
        room_exact: f64,
        value: u64,
        budget: &mut Budget,
    ) {
        self.nodes = self.nodes.saturating_add(1);
        budget.spend(4 + (to - from) as u64 / 4);
        if budget.exhausted() {
            self.nodes = u64::MAX;
        }
        if self.nodes > self.nodes_max {
            return;
        }
        let begin = self.lists.len();
        let mut left = room_exact;
        let mut bound = 0.0;
        for index in from..to {
            let position = self.lists[index];
            let candidate = &self.candidates[position as usize];
            if !rest.fits(&candidate.size, &self.guard) {
                continue;
            }
            let used = self.path.iter().filter(|&&taken| taken == position).count() as u32;
            if used >= candidate.copies_max {
                continue;
            }
            self.lists.push(position);
            if left > 0.0 {
                let copies = f64::from(candidate.copies_max - used);
                let weight = candidate.weight_exact * copies;
                let worth = f64::from(candidate.price) * copies;
                if weight <= left {
                    bound += worth;
                    left -= weight;
                } else {
                    bound += worth * left / weight;
                    left = 0.0;
                }
            }
        }
        let end = self.lists.len();
        if value as f64 + bound + 1.0 > self.best as f64 {
            for index in begin..end {
                let position = self.lists[index];
                if value + u64::from(self.table[position as usize * (ROOM + 1) + room]) <= self.best
                {
                    break;
                }
                let candidate = self.candidates[position as usize];
                let value = value + u64::from(candidate.price);
                self.path.push(position);
                if value > self.best {
                    self.best = value;
                    self.best_path.clone_from(&self.path);
                    if self.keep_bettered {
                        let pattern = self.best_pattern();
                        self.bettered.push(pattern);
                    }
                }
                let rest = rest
                    .minus(&candidate.size, &self.guard)
                    .expect("it was seen to fit");
                self.descend(
                    index,
                    end,
                    rest,
                    room - candidate.weight as usize,
                    room_exact - candidate.weight_exact,
                    value,
                    budget,
                );
                self.path.pop();
                if self.nodes > self.nodes_max {
                    break;
                }
            }
        }
        self.lists.truncate(begin);
    }

    fn best_pattern(&self) -> Pattern {
        let mut pattern: Pattern = Vec::with_capacity(self.best_path.len());
        for &position in &self.best_path {
            let kind = self.candidates[position as usize].kind;
            match pattern.iter_mut().find(|(taken, _)| *taken == kind) {
                Some((_, copies)) => *copies += 1,
                None => pattern.push((kind, 1)),
            }
        }
        pattern.sort_unstable();
        pattern
    }
}

/// Copies of one type that the table counts one by one.
const TABLE_COPIES_MAX: u32 = 8;
