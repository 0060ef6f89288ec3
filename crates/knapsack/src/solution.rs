//! The answer to a problem.

/// `count` copies of an item in a knapsack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placed {
    pub item: u32,
    pub knapsack: u32,
    pub count: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solution {
    /// Sorted by item, then knapsack; at most one entry a pair, counts above zero.
    pub placed: Vec<Placed>,
    /// Sum of the profits of all placed copies (saturating).
    pub value: i64,
    /// No feasible assignment is worth more.
    pub upper_bound: i64,
    /// The value meets the bound.
    pub optimal: bool,
}

impl Solution {
    /// How far the value may be below the optimum, as a share of the bound: 0 when proven optimal, at most 1. Never NaN.
    pub fn gap(&self) -> f64 {
        if self.upper_bound <= 0 || self.value >= self.upper_bound {
            return 0.0;
        }
        (self.upper_bound.saturating_sub(self.value)) as f64 / self.upper_bound as f64
    }
}
