//! Column generation (Gilmore and Gomory 1961): the linear relaxation over all contents of a bin, and diving into it.
//!
//! The bound: at prices `y` (integers) with no content worth more than `V`, every packing uses at least
//! `sum(y * copies) / V` bins (Farley 1990). [`ColumnGeneration::solve_root`] raises it until it meets
//! the linear program's value or the budget ends. [`ColumnGeneration::dive`] fixes columns one after
//! the other, generates more for what is left (Sadykov et al. 2019), and hands back whole bins.

use std::collections::HashSet;

use super::Budget;
use super::greedy;
use super::instance::{Instance, Pattern};
use super::lp::Master;
use super::pricing::Pricer;
use crate::Random;

/// Search nodes for one start of the quick pricing.
const NODES_QUICK: u64 = 200;
/// The most that it is raised to when nothing is found.
const NODES_QUICK_MAX: u64 = 10_000;
/// Search nodes of one exact pricing: about 50 ms.
const NODES_EXACT: u64 = 1_000_000;

pub(super) struct ColumnGeneration<'i, const W: usize> {
    instance: &'i Instance<W>,
    master: Master,
    patterns: Vec<Pattern>,
    known: HashSet<Pattern>,
    pricer: Pricer<W>,
    pub(super) lower_bound: u64,
    /// Whether the linear program was solved to the end.
    pub(super) converged: bool,
    random: Random,
    /// Prices that follow those of the linear program with a delay.
    prices_smooth: Vec<f64>,
    /// How much of the smooth prices stays now.
    smoothing: f64,
}

impl<'i, const W: usize> ColumnGeneration<'i, W> {
    pub(super) fn new(instance: &'i Instance<W>, lower_bound: u64, seed: u64) -> Self {
        let mut random = Random(seed | 1);
        // A little more than the copies, differently for each type: without it many bases describe one
        // point, and the simplex method goes in circles through them.
        let right = instance
            .counts
            .iter()
            .map(|&count| count as f64 + 1e-3 * greedy::unit(&mut random))
            .collect();
        let copies: Vec<u64> = instance
            .copies_max
            .iter()
            .map(|&copies| u64::from(copies))
            .collect();
        let patterns: Vec<Pattern> = copies
            .iter()
            .enumerate()
            .map(|(kind, &copies)| vec![(kind as u32, copies)])
            .collect();
        ColumnGeneration {
            instance,
            master: Master::new(right, &copies),
            known: patterns.iter().cloned().collect(),
            patterns,
            pricer: Pricer::new(
                instance,
                greedy::dimension_weights(instance, &instance.counts),
            ),
            lower_bound,
            converged: false,
            random,
            prices_smooth: Vec::new(),
            smoothing: SMOOTHING,
        }
    }

    /// Adds a column that is not there yet.
    pub(super) fn add(&mut self, pattern: &Pattern) -> bool {
        if !self.known.insert(pattern.clone()) {
            return false;
        }
        self.master.add(pattern);
        self.patterns.push(pattern.clone());
        true
    }

    /// Packings by sequential value correction (Belov and Scheithauer 2007), all of whose bins become columns.
    ///
    /// Prices start as weighted sizes; items of bins that came out with much waste become dearer, and the
    /// next packing seeks better company for them.
    pub(super) fn correct_values(
        &mut self,
        rounds: u32,
        budget: &mut Budget,
    ) -> Option<Vec<(Pattern, u64)>> {
        let instance = self.instance;
        let weights = greedy::dimension_weights(instance, &instance.counts);
        let weight_sum: f64 = weights.iter().sum();
        let size: Vec<f64> = (0..instance.types())
            .map(|kind| {
                instance
                    .share(kind)
                    .iter()
                    .zip(&weights)
                    .map(|(share, weight)| share * weight)
                    .sum::<f64>()
                    / weight_sum
            })
            .collect();
        let mut prices = size.clone();
        let mut best: Option<(u64, Vec<(Pattern, u64)>)> = None;
        for _ in 0..rounds {
            self.pricer
                .prepare(instance, &prices, |kind| instance.counts[kind], budget);
            let mut left = instance.counts.clone();
            let bins = self.pricer.sequence(&mut left, NODES_SEQUENCE, budget);
            if budget.exhausted() || left.iter().any(|&left| left > 0) {
                break;
            }
            for (pattern, _) in &bins {
                let filled: f64 = pattern
                    .iter()
                    .map(|&(kind, copies)| size[kind as usize] * copies as f64)
                    .sum();
                for &(kind, _) in pattern {
                    let kind = kind as usize;
                    prices[kind] += CORRECTION * (size[kind] / filled.max(1e-3) - prices[kind]);
                }
                self.add(pattern);
            }
            let count = bins.iter().map(|(_, times)| times).sum();
            if best.as_ref().is_none_or(|(best, _)| count < *best) {
                best = Some((count, bins));
            }
        }
        self.prices_smooth = prices;
        best.map(|(_, bins)| bins)
    }

    /// Solves the linear program over all contents; stops early once the bound reaches `target`.
    ///
    /// With `patience` it also stops where the program's value hardly falls any more: what follows
    /// serves the proof only. Another call goes on from there.
    pub(super) fn solve_root(&mut self, target: u64, patience: bool, budget: &mut Budget) {
        let instance = self.instance;
        let mut smoothing = self.smoothing;
        let mut nodes = NODES_QUICK;
        let mut values: Vec<f64> = Vec::new();
        // A dive may have left values below zero.
        if !self.master.repair(budget) {
            return;
        }
        loop {
            if !self.master.optimise(budget) {
                return;
            }
            self.smoothing = smoothing;
            values.push(self.worth(&instance.counts));
            if patience && values.len() > PATIENCE_ROUNDS {
                let (now, then) = (
                    values[values.len() - 1],
                    values[values.len() - 1 - PATIENCE_ROUNDS],
                );
                if then - now < PATIENCE_BINS && (then - 1e-4).ceil() == (now - 1e-4).ceil() {
                    return;
                }
            }
            let prices = self.master.prices().to_vec();
            if self.prices_smooth.is_empty() {
                self.prices_smooth.clone_from(&prices);
            }
            for (smooth, price) in self.prices_smooth.iter_mut().zip(&prices) {
                *smooth = smoothing * *smooth + (1.0 - smoothing) * price;
            }
            let prices_used = std::mem::take(&mut self.prices_smooth);
            self.pricer
                .prepare(instance, &prices_used, |kind| instance.counts[kind], budget);
            let found =
                self.pricer
                    .spread(&prices, smoothing > 0.0, nodes, instance.types(), budget);
            self.prices_smooth = prices_used;
            let mut added = 0;
            for pattern in &found {
                added += usize::from(self.add(pattern));
            }
            if added > 0 {
                continue;
            }
            if budget.exhausted() {
                return;
            }
            if nodes < NODES_QUICK_MAX && smoothing == 0.0 {
                nodes *= 8;
                continue;
            }
            // Any prices give a bound; the smoothed ones often the better.
            let proof =
                self.pricer
                    .exact(instance, |kind| instance.counts[kind], NODES_EXACT, budget);
            let bound = proof.total.div_ceil(u128::from(proof.value_max));
            self.lower_bound = self
                .lower_bound
                .max(u64::try_from(bound).expect("no more bins than items"));
            let reached = self.lower_bound as f64 >= self.worth(&instance.counts) - 1e-4;
            if reached || self.lower_bound >= target {
                self.converged = reached;
                return;
            }
            let mut added = 0;
            for pattern in &proof.patterns {
                added += usize::from(self.add(pattern));
            }
            if smoothing > 0.0 {
                smoothing = if smoothing > 0.5 { 0.5 } else { 0.0 };
            } else if added == 0 {
                self.converged = true;
                return;
            }
        }
    }

    /// Dives: a packing of at most `bins_max` bins if it ends, the whole bins fixed so far if not.
    ///
    /// Leaves the linear program as it found it, save for new columns.
    pub(super) fn dive(
        &mut self,
        bins_max: u64,
        shake: f64,
        budget: &mut Budget,
    ) -> Vec<(Pattern, u64)> {
        let root = self.master.right().to_vec();
        let mut left = self.instance.counts.clone();
        let mut fixed: Vec<(Pattern, u64)> = Vec::new();
        let mut fixed_count = 0;
        while left.iter().any(|&left| left > 0) && fixed_count < bins_max {
            if !self.settle(&left, budget)
                || fixed_count as f64 + self.worth(&left) > bins_max as f64 + 1e-4
            {
                break;
            }
            let choice = self.choose(&left, shake);
            if choice.is_empty() {
                break;
            }
            for (pattern, times) in choice {
                let times = times.min(bins_max - fixed_count);
                if times == 0 {
                    continue;
                }
                for &(kind, copies) in &pattern {
                    left[kind as usize] -= copies * times;
                }
                fixed_count += times;
                fixed.push((pattern, times));
            }
            let right = left
                .iter()
                .zip(&root)
                .map(|(&left, root)| {
                    if left == 0 {
                        -1.0
                    } else {
                        left as f64 + root.fract()
                    }
                })
                .collect();
            self.master.change_right(right);
        }
        self.master.change_right(root);
        fixed
    }

    /// What copies are worth at the program's prices: its value without the little more of [`Self::new`].
    fn worth(&self, copies: &[u64]) -> f64 {
        self.master
            .prices()
            .iter()
            .zip(copies)
            .map(|(price, &copies)| price * copies as f64)
            .sum()
    }

    /// The linear program of what is left, optimal over the columns that quick pricing finds.
    fn settle(&mut self, left: &[u64], budget: &mut Budget) -> bool {
        for _ in 0..SETTLE_ROUNDS_MAX {
            if !self.master.repair(budget) || !self.master.optimise(budget) {
                return false;
            }
            let instance = self.instance;
            let prices = self.master.prices().to_vec();
            self.pricer
                .prepare(instance, &prices, |kind| left[kind], budget);
            let found = self
                .pricer
                .spread(&prices, false, NODES_QUICK, instance.types(), budget);
            let mut added = 0;
            for pattern in &found {
                added += usize::from(self.add(pattern));
            }
            if added == 0 {
                break;
            }
        }
        !budget.exhausted()
    }

    /// The bins to fix next: whole parts of the solution, or else the columns with the largest fractions.
    fn choose(&mut self, left: &[u64], shake: f64) -> Vec<(Pattern, u64)> {
        let mut chosen: Vec<(Pattern, u64)> = Vec::new();
        let mut rest = left.to_vec();
        let mut fractions: Vec<(f64, u32)> = Vec::new();
        let solution: Vec<(u32, f64)> = self.master.solution().collect();
        for &(column, value) in &solution {
            let times = (value + 1e-4).floor() as u64;
            if times >= 1 {
                take(
                    &self.patterns[column as usize],
                    times,
                    &mut rest,
                    &mut chosen,
                );
            } else {
                fractions.push((value + shake * greedy::unit(&mut self.random), column));
            }
        }
        if !chosen.is_empty() {
            return chosen;
        }
        fractions.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let most = (self.master.value() * FIX_SHARE) as usize;
        for (score, column) in fractions {
            let pattern = &self.patterns[column as usize];
            // Only the first may lose members to what was chosen before it.
            let whole = pattern
                .iter()
                .all(|&(kind, copies)| rest[kind as usize] >= copies);
            if chosen.is_empty() || (whole && score >= FIX_FROM && chosen.len() < most) {
                take(pattern, 1, &mut rest, &mut chosen);
            }
        }
        chosen
    }
}

/// Takes what is left of a content, as often as it goes, out of the copies.
fn take(pattern: &Pattern, times: u64, rest: &mut [u64], chosen: &mut Vec<(Pattern, u64)>) {
    let pattern: Pattern = pattern
        .iter()
        .map(|&(kind, copies)| (kind, copies.min(rest[kind as usize])))
        .filter(|&(_, copies)| copies > 0)
        .collect();
    let Some(most) = pattern
        .iter()
        .map(|&(kind, copies)| rest[kind as usize] / copies)
        .min()
    else {
        return;
    };
    let times = times.min(most);
    for &(kind, copies) in &pattern {
        rest[kind as usize] -= copies * times;
    }
    chosen.push((pattern, times));
}

/// Over so many rounds the value must fall by this part of a bin, or patience ends.
const PATIENCE_ROUNDS: usize = 4;
const PATIENCE_BINS: f64 = 0.15;
/// From this value on a column is fixed together with the largest, and at most this share of all bins at once.
const FIX_FROM: f64 = 0.5;
const FIX_SHARE: f64 = 0.08;
/// Rounds of pricing after one fixing.
const SETTLE_ROUNDS_MAX: u32 = 3;
/// Search nodes of one bin of a packing by value correction.
const NODES_SEQUENCE: u64 = 100;
/// How far a price moves towards what its bin says, each round.
const CORRECTION: f64 = 0.5;
/// How much of the former prices stays (Neame 1999): the linear program's own jump about before it settles.
const SMOOTHING: f64 = 0.8;
