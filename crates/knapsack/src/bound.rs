//! Upper bounds that hold for every feasible assignment.
//!
//! All knapsacks are merged into one (a relaxation: whatever fits apart fits together), and the items
//! are taken fractionally by density, once for each dimension and once for a surrogate dimension, the
//! sum of all dimensions each scaled to its total capacity (Martello and Toth, Knapsack Problems, 1990,
//! sections 6.2 and 2.2). The smallest of these is the bound. Conflicts and gangs are relaxed away.

use crate::problem::Problem;

/// Scale of the surrogate weights: large enough that rounding costs nothing, small enough that sums stay in u128.
const SURROGATE_SCALE: u128 = 1 << 62;

struct Relaxed {
    /// Copies that could be placed if each knapsack were empty for this item alone.
    count: u128,
    /// Best profit over the allowed knapsacks.
    profit: u128,
    /// Smallest weight over the allowed knapsacks, one a dimension.
    weight: Vec<u128>,
}

/// A proven upper bound on the value of every solution of a problem that [`Problem::validate`] accepts.
pub fn upper_bound(problem: &Problem) -> i64 {
    let relaxed: Vec<Relaxed> = (0..problem.items.len())
        .filter_map(|item| relax(problem, item))
        .collect();
    let mut bound = relaxed.iter().fold(0u128, |sum, item| {
        sum.saturating_add(item.profit.saturating_mul(item.count))
    });
    let totals: Vec<u128> = (0..problem.dimension_count)
        .map(|dimension| {
            problem
                .knapsacks
                .iter()
                .map(|knapsack| knapsack.capacity[dimension].max(0) as u128)
                .sum()
        })
        .collect();
    for (dimension, total) in totals.iter().enumerate() {
        bound = bound.min(fractional(&relaxed, |item| item.weight[dimension], *total));
    }
    // Surrogate: each weight scaled down to its share of the total, rounded down; dimensions without capacity take no part.
    let used: Vec<usize> = (0..problem.dimension_count)
        .filter(|dimension| totals[*dimension] > 0)
        .collect();
    if used.len() > 1 {
        let share = |item: &Relaxed| {
            used.iter()
                .map(|d| item.weight[*d].saturating_mul(SURROGATE_SCALE) / totals[*d])
                .sum::<u128>()
        };
        bound = bound.min(fractional(
            &relaxed,
            share,
            SURROGATE_SCALE * used.len() as u128,
        ));
    }
    bound.min(i64::MAX as u128) as i64
}

fn relax(problem: &Problem, item: usize) -> Option<Relaxed> {
    let multiplicity = u128::from(problem.items[item].multiplicity);
    let mut relaxed: Option<Relaxed> = None;
    for (index, knapsack) in problem.knapsacks.iter().enumerate() {
        if !problem.pair_allowed(item, index) {
            continue;
        }
        let weight = problem.weight(item, index);
        let copies = weight
            .iter()
            .zip(&knapsack.capacity)
            .filter(|(weight, _)| **weight > 0)
            .map(|(weight, capacity)| (*capacity).max(0) as u128 / *weight as u128)
            .min()
            .unwrap_or(multiplicity)
            .min(multiplicity);
        if copies == 0 {
            continue;
        }
        let profit = problem.profit(item, index) as u128;
        match &mut relaxed {
            None => {
                relaxed = Some(Relaxed {
                    count: copies,
                    profit,
                    weight: weight.iter().map(|w| *w as u128).collect(),
                })
            }
            Some(relaxed) => {
                relaxed.count = (relaxed.count + copies).min(multiplicity);
                relaxed.profit = relaxed.profit.max(profit);
                for (smallest, weight) in relaxed.weight.iter_mut().zip(weight) {
                    *smallest = (*smallest).min(*weight as u128);
                }
            }
        }
    }
    relaxed
}

/// The value of the fractional knapsack of one dimension, rounded up.
fn fractional(items: &[Relaxed], weight: impl Fn(&Relaxed) -> u128, capacity: u128) -> u128 {
    let mut order: Vec<(u128, u128, u128)> = Vec::with_capacity(items.len());
    let mut value = 0u128;
    for item in items {
        match weight(item) {
            0 => value = value.saturating_add(item.profit.saturating_mul(item.count)),
            weight => order.push((item.profit, weight, item.count)),
        }
    }
    // Densest first: profit_a / weight_a > profit_b / weight_b, compared without division.
    order.sort_by(|a, b| b.0.saturating_mul(a.1).cmp(&a.0.saturating_mul(b.1)));
    let mut left = capacity;
    for (profit, weight, count) in order {
        let whole = (left / weight).min(count);
        value = value.saturating_add(profit.saturating_mul(whole));
        left -= whole * weight;
        if whole < count {
            // Part of one copy, rounded up so that the bound holds.
            return value.saturating_add(profit.saturating_mul(left).div_ceil(weight));
        }
    }
    value
}
