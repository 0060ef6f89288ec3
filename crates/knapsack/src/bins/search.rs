//! The order in which the parts are tried, and the best packing so far.

use super::colgen::ColumnGeneration;
use super::greedy::{self, Score};
use super::instance::{COPIES_MAX, Instance, Merged, Pattern};
use super::{BinOptions, BinPacking, BinProblem, Budget, bound, exact_fit};

pub(super) fn solve(problem: &BinProblem, options: &BinOptions) -> BinPacking {
    let merged = Merged::new(problem);
    let mut budget = Budget::new(options);
    let (bins, lower_bound) = if merged.is_trivial() {
        let any = problem.items.iter().any(|item| item.count > 0);
        (Vec::new(), u64::from(any))
    } else {
        match merged.layout.word_count() {
            1 => pack::<1>(&merged, options, &mut budget),
            2 => pack::<2>(&merged, options, &mut budget),
            3..=4 => pack::<4>(&merged, options, &mut budget),
            5..=8 => pack::<8>(&merged, options, &mut budget),
            _ => pack::<32>(&merged, options, &mut budget),
        }
    };
    let groups = merged.expand(problem, &bins);
    BinPacking {
        bin_count: groups.iter().map(|group| group.bins).sum(),
        groups,
        lower_bound,
    }
}

/// The best packing so far and the best bound.
struct Incumbent {
    bins: Vec<(Pattern, u64)>,
    count: u64,
    lower_bound: u64,
}

impl Incumbent {
    fn offer(&mut self, bins: Vec<(Pattern, u64)>) -> bool {
        let count = bins.iter().map(|(_, times)| times).sum();
        if count < self.count {
            self.bins = bins;
            self.count = count;
            return true;
        }
        false
    }

    fn is_optimal(&self) -> bool {
        self.count <= self.lower_bound
    }
}

fn pack<const W: usize>(
    merged: &Merged,
    options: &BinOptions,
    budget: &mut Budget,
) -> (Vec<(Pattern, u64)>, u64) {
    let instance = Instance::<W>::new(merged);
    let mut best = Incumbent {
        bins: Vec::new(),
        count: u64::MAX,
        lower_bound: bound::lower_bound(&instance),
    };
    for score in Score::ALL {
        let bins = greedy::pack(&instance, score, None);
        budget.spend((bins.len() * instance.types()) as u64 / 4);
        best.offer(bins);
        if best.is_optimal() || budget.exhausted() {
            break;
        }
    }
    if !best.is_optimal()
        && let Some(bins) = exact_fit::pack(&instance, best.lower_bound, budget)
    {
        best.offer(bins);
    }
    if !best.is_optimal()
        && instance
            .copies_max
            .iter()
            .all(|&copies| copies < COPIES_MAX)
    {
        generate(&instance, &mut best, options, budget);
    }
    (best.bins, best.lower_bound)
}

fn generate<const W: usize>(
    instance: &Instance<W>,
    best: &mut Incumbent,
    options: &BinOptions,
    budget: &mut Budget,
) {
    let mut columns = ColumnGeneration::new(instance, best.lower_bound, options.seed);
    for (pattern, _) in &best.bins {
        columns.add(pattern);
    }
    if let Some(bins) = columns.correct_values(CORRECTION_ROUNDS, budget) {
        best.offer(bins);
    }
    let mut shake = 0.0;
    let mut patience = true;
    while !best.is_optimal() && !budget.exhausted() {
        if !columns.converged {
            columns.solve_root(best.count, patience, budget);
            best.lower_bound = best.lower_bound.max(columns.lower_bound);
            if best.is_optimal() {
                break;
            }
        }
        dive(instance, best, &mut columns, shake, budget);
        // From the second time on the proof comes first: the first dive found no packing that needs none.
        patience = false;
        shake = SHAKE;
    }
}

/// One dive; what it leaves over is packed greedily.
fn dive<const W: usize>(
    instance: &Instance<W>,
    best: &mut Incumbent,
    columns: &mut ColumnGeneration<W>,
    shake: f64,
    budget: &mut Budget,
) {
    let bins = columns.dive(best.count - 1, shake, budget);
    let mut left = instance.counts.clone();
    for (pattern, times) in &bins {
        for &(kind, copies) in pattern {
            left[kind as usize] -= copies * times;
        }
    }
    for score in Score::ALL {
        let mut left = left.clone();
        let mut all = bins.clone();
        all.extend(greedy::pack_rest(instance, score, None, &mut left));
        best.offer(all);
    }
}

/// Packings by value correction before the linear program: each adds its bins as columns.
const CORRECTION_ROUNDS: u32 = 12;
/// What is added at random to the fractions in every dive but the first.
const SHAKE: f64 = 0.3;
