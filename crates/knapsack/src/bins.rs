//! Vector bin packing: the fewest identical knapsacks ("bins") that hold every item.
//!
//! Enter at [`solve`]: a [`BinProblem`] in, a [`BinPacking`] out, with a proven lower bound on the
//! number of bins of every packing and whether the two meet. [`check`] re-checks a packing and shares
//! no code with the solver.
//!
//! In order (`search`): identical items become one type with a count (`instance`); volume and
//! dual-feasible-function bounds (`bound`); greedy packings (`greedy`); an exact cover where every bin
//! must be exactly full (`exact_fit`); column generation, whose dual prices give a bound that is
//! re-proven in integers, and diving into its columns (`colgen`, `lp`, `factor`, `pricing`).
//!
//! Invariants: no bin is overfull in any dimension and no item is left out, whatever the budget; the
//! lower bound is a quotient of integers that an exact search proved; the same problem, seed and work limit
//! yield the same packing. Deliberately absent: bins of several kinds, and assignment limits between
//! items (conflicts); [`crate::solve`] has those.

mod bound;
mod check;
mod colgen;
mod exact_fit;
mod factor;
mod greedy;
mod instance;
mod lp;
mod packed;
mod pricing;
mod search;

pub use check::check;

/// What is to be packed. Sizes and capacities are counted in whatever whole unit the caller likes, one number a dimension.
#[derive(Clone, Debug, Default)]
pub struct BinProblem {
    pub capacity: Vec<i64>,
    pub items: Vec<BinItem>,
}

/// A kind of item and how many identical copies of it there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinItem {
    pub size: Vec<i64>,
    pub count: u64,
}

/// How long and how to search.
#[derive(Clone, Copy)]
pub struct BinOptions<'a> {
    /// Upper limit of elementary steps (about ten nanoseconds each). A greedy packing always completes.
    pub work_max: u64,
    /// Drives the order of dives and nothing else.
    pub seed: u64,
    /// Asked some thousand times a second: true ends the search with the best answer so far. The caller's clock lives here.
    pub stop: Option<&'a dyn Fn() -> bool>,
}

impl Default for BinOptions<'_> {
    fn default() -> Self {
        BinOptions {
            work_max: 20_000_000,
            seed: 1,
            stop: None,
        }
    }
}

/// Bins that all hold the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinGroup {
    /// Item index and how many copies of it one bin holds.
    pub content: Vec<(usize, u64)>,
    /// How many bins hold this.
    pub bins: u64,
}

/// A packing of every item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinPacking {
    pub groups: Vec<BinGroup>,
    pub bin_count: u64,
    /// No packing of this problem has fewer bins.
    pub lower_bound: u64,
}

impl BinPacking {
    /// Whether the packing is proven to have the fewest bins.
    pub fn is_optimal(&self) -> bool {
        self.bin_count == self.lower_bound
    }
}

/// Why a problem is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BinError {
    #[error("item {item} has {actual} sizes, and bins have {expected} dimensions")]
    DimensionCount {
        item: usize,
        expected: usize,
        actual: usize,
    },
    #[error("a bin has {0} dimensions, and {DIMENSION_MAX} is the most")]
    TooManyDimensions(usize),
    #[error("capacity {value} in dimension {dimension} is negative")]
    NegativeCapacity { dimension: usize, value: i64 },
    #[error("size {value} of item {item} in dimension {dimension} is negative")]
    NegativeSize {
        item: usize,
        dimension: usize,
        value: i64,
    },
    #[error("item {item} needs {size} in dimension {dimension}, and a bin has {capacity}")]
    LargerThanBin {
        item: usize,
        dimension: usize,
        size: i64,
        capacity: i64,
    },
    #[error("the items number more than 2^63")]
    TooManyItems,
}

/// Most dimensions of a bin: a fixed number of machine words holds a packed vector.
pub const DIMENSION_MAX: usize = 32;

/// Packs every item into as few bins as the budget finds.
///
/// # Errors
/// [`BinError`] if the problem contradicts itself or an item exceeds an empty bin.
pub fn solve(problem: &BinProblem, options: &BinOptions) -> Result<BinPacking, BinError> {
    instance::validate(problem)?;
    Ok(search::solve(problem, options))
}

/// Counts elementary steps against the limit and asks the caller's stop now and then.
pub(crate) struct Budget<'a> {
    done: u64,
    limit: u64,
    ask_at: u64,
    stop: Option<&'a dyn Fn() -> bool>,
    stopped: bool,
}

impl<'a> Budget<'a> {
    /// Steps between two questions to the caller: about a hundred microseconds.
    const ASK_EVERY: u64 = 16_384;

    pub(crate) fn new(options: &BinOptions<'a>) -> Self {
        Budget {
            done: 0,
            limit: options.work_max,
            ask_at: Self::ASK_EVERY,
            stop: options.stop,
            stopped: false,
        }
    }

    #[inline]
    pub(crate) fn spend(&mut self, steps: u64) {
        self.done = self.done.saturating_add(steps);
    }

    #[inline]
    pub(crate) fn exhausted(&mut self) -> bool {
        if self.stopped {
            return true;
        }
        if self.done >= self.limit {
            self.stopped = true;
        } else if self.done >= self.ask_at {
            self.ask_at = self.done + Self::ASK_EVERY;
            self.stopped = self.stop.is_some_and(|stop| stop());
        }
        self.stopped
    }
}

#[cfg(test)]
mod tests;
