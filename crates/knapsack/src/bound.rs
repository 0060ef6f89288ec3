//! Upper bounds that hold for every feasible assignment, and the prices behind them.
//!
//! The capacities are relaxed with multipliers (prices) y >= 0, one a class of knapsacks and dimension:
//!
//! L(y) = sum of y * capacity + sum over kinds of the best way to give its copies to classes at profit - y * weight
//!
//! which is at least the value of every assignment, for any y (Lagrangian duality; Martello and Toth,
//! Knapsack Problems, 1990, section 6.2; Fisher, Management Science 27, 1981). Its least value is that of
//! the linear relaxation. Prices are found in floating point: by the dual simplex when all knapsacks are
//! of one class (exact), by subgradient steps from there otherwise. They are then turned into integers
//! (a fixed-point number of [`fraction_bits`] bits), and [`prove`] evaluates L in integers only, saturating
//! upwards. So the bound holds however wrong the floating point was; only its sharpness depends on it.
//! Conflicts and gangs are relaxed away; a kind's copies are limited to what fits into empty knapsacks.

use crate::Work;
use crate::linear::{Linear, LinearSolution};
use crate::model::Model;
use crate::problem::Problem;
use crate::state::State;

/// Subgradient steps at most, and elementary operations of all of them together.
const STEPS_MAX: u64 = 1_500;
const OPERATIONS_MAX: u64 = 150_000_000;

/// Steps of a bound that is asked for alone: some tens of milliseconds at most.
const BOUND_WORK_MAX: u64 = 2_000_000;

/// Prices, one a class and dimension, and what they prove.
pub(crate) struct Prices {
    pub(crate) price: Vec<f64>,
    pub(crate) bound: i64,
}

/// A proven upper bound on the value of every solution of a problem that [`Problem::validate`] accepts.
pub fn upper_bound(problem: &Problem) -> i64 {
    let model = Model::new(problem);
    let mut work = Work::new(BOUND_WORK_MAX, None);
    prices(&model, 0, &mut work).bound
}

/// The bound when nothing competes for capacity: every copy at its best place.
pub(crate) fn uncontended(model: &Model) -> i64 {
    let mut sum = 0i128;
    let mut offers: Vec<(i128, u32)> = Vec::with_capacity(model.class_count);
    for kind in 0..model.kinds.len() {
        offers.clear();
        let classes = 0..model.class_count;
        offers.extend(classes.map(|class| {
            let profit = model.class_profit(kind, class).max(0);
            (i128::from(profit), model.class_fit(kind, class))
        }));
        sum = sum.saturating_add(dearest(&mut offers, model.kinds[kind].count));
    }
    clamp(sum)
}

/// Finds prices; `value` is that of a known assignment and steers the steps.
pub(crate) fn prices(model: &Model, value: i64, work: &mut Work) -> Prices {
    let zero = vec![0.0; model.class_count * model.dimensions];
    let mut best = Prices {
        bound: uncontended(model),
        price: zero,
    };
    let (solution, _) = merged(model, 1.0, work);
    let merged: Vec<f64> = (0..model.class_count)
        .flat_map(|_| solution.price.iter().copied())
        .collect();
    let bound = clamp(prove(model, &merged));
    if bound <= best.bound {
        best = Prices {
            price: merged,
            bound,
        };
    }
    if model.class_count > 1 && best.bound > value {
        descend(model, value, work, &mut best);
    }
    best
}

/// The relaxation of all knapsacks merged into one whose capacities are `share` of the sum; and the kinds of its columns.
pub(crate) fn merged(model: &Model, share: f64, work: &mut Work) -> (LinearSolution, Vec<u32>) {
    let dimensions = model.dimensions;
    let totals: Vec<f64> = (0..dimensions)
        .map(|d| {
            (0..model.class_count)
                .map(|c| model.class_capacity[c * dimensions + d] as f64)
                .sum::<f64>()
                * share
        })
        .collect();
    let rows: Vec<usize> = (0..dimensions).filter(|d| totals[*d] > 0.0).collect();
    let mut columns = Vec::with_capacity(model.kinds.len() * rows.len());
    let (mut profit, mut upper, mut of_kind) = (Vec::new(), Vec::new(), Vec::new());
    for kind in 0..model.kinds.len() {
        let classes = || (0..model.class_count).filter(|c| model.class_fit(kind, *c) > 0);
        let Some(best) = classes().map(|c| model.class_profit(kind, c)).max() else {
            continue;
        };
        let fit: u64 = classes().map(|c| u64::from(model.class_fit(kind, c))).sum();
        profit.push(best as f64);
        upper.push(fit.min(u64::from(model.kinds[kind].count)) as f64);
        of_kind.push(kind as u32);
        for d in &rows {
            let least = if model.weighs_same(kind) {
                model.class_weight(kind, 0)[*d]
            } else {
                classes()
                    .map(|c| model.class_weight(kind, c)[*d])
                    .min()
                    .unwrap_or(0)
            };
            columns.push(least as f64 / totals[*d]);
        }
    }
    let largest = profit.iter().copied().fold(1.0, f64::max);
    for p in &mut profit {
        *p /= largest;
    }
    let linear = Linear {
        rows: rows.len(),
        columns: &columns,
        profit: &profit,
        upper: &upper,
        limit: &vec![1.0; rows.len()],
    };
    work.spend((profit.len() * rows.len() / 4) as u64);
    let mut solution = crate::linear::solve(&linear, 200 + 60 * rows.len());
    let mut price = vec![0.0; dimensions];
    for (row, d) in rows.iter().enumerate() {
        price[*d] = solution.price[row] * largest / totals[*d];
    }
    solution.price = price;
    (solution, of_kind)
}

/// Subgradient steps along a deflected direction (Camerini, Fratta, Maffioli 1975) towards a target level that
/// lies `drop` below the lowest so far; the drop is halved when steps no longer help.
fn descend(model: &Model, value: i64, work: &mut Work, best: &mut Prices) {
    let length = model.class_count * model.dimensions;
    let mut price = best.price.clone();
    let mut centre = price.clone();
    let mut direction = vec![0.0; length];
    let mut gradient = vec![0.0; length];
    let mut lowest = f64::INFINITY;
    let mut drop = 0.0f64;
    let mut idle = 0;
    let cost = (model.kinds.len() * length) as u64 + 1;
    let steps = STEPS_MAX.min(OPERATIONS_MAX / cost + 1);
    // Steps in units of capacity, so that no dimension's unit of measure dominates.
    let scale: Vec<f64> = (0..length)
        .map(|at| (model.class_capacity[at] as f64).max(1.0))
        .collect();
    for step in 0..steps {
        if work.exhausted() {
            break;
        }
        work.spend(cost / 8 + 1);
        let level = lagrangian(model, &price, &mut gradient);
        if step == 0 {
            // What the slopes could give at most if prices changed by as much again as they are.
            let reach: f64 = (0..length).map(|at| gradient[at].abs() * price[at]).sum();
            drop = (level - value as f64).min(reach.max(level.abs() * 1e-5)) / 4.0;
        }
        if level < lowest - drop * 0.05 {
            // Steps that help may grow.
            if lowest.is_finite() {
                drop *= 1.3;
            }
            lowest = level;
            centre.clone_from(&price);
            idle = 0;
        } else {
            if level < lowest {
                lowest = level;
                centre.clone_from(&price);
            }
            idle += 1;
            if idle >= 8 {
                drop /= 2.0;
                idle = 0;
                price.clone_from(&centre);
                direction.fill(0.0);
                if drop < 0.25 || drop < lowest.abs() * 1e-9 {
                    break;
                }
                continue;
            }
        }
        let mut norm = 0.0;
        for at in 0..length {
            // In scaled prices (price times capacity) the slope is the used share less one.
            direction[at] = gradient[at] / scale[at] + 0.5 * direction[at];
            norm += direction[at] * direction[at];
        }
        if norm <= 1e-18 {
            break;
        }
        let stride = (level - lowest + drop).max(0.0) / norm;
        for at in 0..length {
            price[at] = (price[at] - stride * direction[at] / scale[at]).max(0.0);
        }
    }
    let bound = clamp(prove(model, &centre));
    if bound < best.bound {
        best.bound = bound;
        best.price = centre;
    }
}

/// L at these prices in floating point, and its slope in each price: capacity less use.
fn lagrangian(model: &Model, price: &[f64], gradient: &mut [f64]) -> f64 {
    let dimensions = model.dimensions;
    let mut level = 0.0;
    for (at, slope) in gradient.iter_mut().enumerate() {
        *slope = model.class_capacity[at] as f64;
        level += price[at] * *slope;
    }
    let mut offers: Vec<(f64, u32)> = Vec::with_capacity(model.class_count);
    for kind in 0..model.kinds.len() {
        offers.clear();
        for class in 0..model.class_count {
            if model.class_fit(kind, class) == 0 {
                continue;
            }
            let cost = model.class_cost(kind, class, price);
            let reduced = model.class_profit(kind, class) as f64 - cost;
            if reduced > 0.0 {
                offers.push((reduced, class as u32));
            }
        }
        let mut left = model.kinds[kind].count;
        while left > 0
            && let Some(at) = (0..offers.len()).max_by(|a, b| offers[*a].0.total_cmp(&offers[*b].0))
        {
            let (reduced, class) = offers.swap_remove(at);
            let class = class as usize;
            let taken = left.min(model.class_fit(kind, class));
            left -= taken;
            level += reduced * f64::from(taken);
            let weight = model.class_weight(kind, class);
            for (slope, w) in gradient[class * dimensions..].iter_mut().zip(weight) {
                *slope -= *w as f64 * f64::from(taken);
            }
        }
    }
    level
}

/// Bits after the binary point of integer prices: as many as the sums leave room for.
fn fraction_bits(model: &Model) -> u32 {
    let mut sum: i128 = 1;
    for kind in 0..model.kinds.len() {
        let best = (0..model.class_count)
            .map(|class| model.class_profit(kind, class))
            .max();
        sum += i128::from(best.unwrap_or(0).max(0)) * i128::from(model.kinds[kind].count);
    }
    (sum.leading_zeros().saturating_sub(8)).min(50)
}

/// Prices as fixed-point integers.
pub(crate) struct FixedPrices {
    bits: u32,
    dimensions: usize,
    price: Vec<i128>,
}

impl FixedPrices {
    /// Negative, infinite or absent prices become prices that are merely bad.
    pub(crate) fn new(model: &Model, price: &[f64]) -> Self {
        let bits = fraction_bits(model);
        FixedPrices {
            bits,
            dimensions: model.dimensions,
            price: price
                .iter()
                .map(|y| (y.clamp(0.0, 1e20) * (1u128 << bits) as f64) as i128)
                .collect(),
        }
    }

    /// Profit less price of one copy in a class. Saturation makes the cost smaller than it is, and a bound larger: the safe side.
    pub(crate) fn reduced(&self, model: &Model, kind: usize, class: usize) -> i128 {
        let cost = model
            .class_weight(kind, class)
            .iter()
            .zip(&self.price[class * self.dimensions..])
            .fold(0i128, |cost, (w, y)| {
                cost.saturating_add(y.saturating_mul(i128::from(*w)))
            });
        (i128::from(model.class_profit(kind, class)) << self.bits) - cost
    }

    /// What all that is free costs.
    pub(crate) fn free_worth(&self, state: &State) -> i128 {
        let mut sum = 0i128;
        for (knapsack, class) in state.model.class_of.iter().enumerate() {
            let price = &self.price[*class as usize * self.dimensions..];
            for (free, y) in state.free(knapsack).iter().zip(price) {
                sum = sum.saturating_add(y.saturating_mul(i128::from((*free).max(0))));
            }
        }
        sum
    }

    /// A value in the same fixed point.
    pub(crate) fn value(&self, value: i128) -> i128 {
        value.saturating_mul(1 << self.bits)
    }

    /// Values are integers, so the fraction of a bound can go.
    pub(crate) fn whole(&self, bound: i128) -> i128 {
        bound >> self.bits
    }
}

/// L at these prices, in integers: at least the value of every assignment, whatever the prices.
pub(crate) fn prove(model: &Model, price: &[f64]) -> i128 {
    let prices = FixedPrices::new(model, price);
    let mut sum = prices
        .price
        .iter()
        .zip(&model.class_capacity)
        .fold(0i128, |sum, (y, capacity)| {
            sum.saturating_add(y.saturating_mul(*capacity))
        });
    let mut offers: Vec<(i128, u32)> = Vec::with_capacity(model.class_count);
    for kind in 0..model.kinds.len() {
        offers.clear();
        for class in 0..model.class_count {
            let fit = model.class_fit(kind, class);
            if fit == 0 {
                continue;
            }
            let reduced = prices.reduced(model, kind, class);
            if reduced > 0 {
                offers.push((reduced, fit));
            }
        }
        sum = sum.saturating_add(dearest(&mut offers, model.kinds[kind].count));
    }
    prices.whole(sum)
}

/// The most that `count` copies bring, each offer for so many of them.
fn dearest(offers: &mut [(i128, u32)], count: u32) -> i128 {
    if offers.len() > 1 {
        offers.sort_unstable_by_key(|offer| std::cmp::Reverse(offer.0));
    }
    let (mut left, mut sum) = (count, 0i128);
    for (worth, fit) in offers {
        let taken = left.min(*fit);
        left -= taken;
        sum = sum.saturating_add(worth.saturating_mul(i128::from(taken)));
    }
    sum
}

fn clamp(bound: i128) -> i64 {
    bound.clamp(0, i128::from(i64::MAX)) as i64
}
