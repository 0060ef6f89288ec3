//! Multi-dimensional multiple-knapsack solver: items, knapsacks, weights, profits, bounds. PURE: no I/O, no clock, no thread.
//!
//! Enter at [`solve`]: a [`Problem`] and [`Options`] in, a [`Solution`] out, with its value, a
//! proven upper bound on every solution's value, and whether the two meet. [`check::check`] re-checks
//! a solution and shares no code with the solver.
//!
//! Invariants: no knapsack is ever overcommitted in any dimension; all arithmetic is on integers and
//! saturates, so no input yields NaN or a panic; the same problem, seed and work limit yield the same
//! solution (the time budget enters only through [`Options::stop`], a question asked of the caller).
//!
//! What is here, in the order in which it is tried: best-fit-decreasing and other orders ([`construct`]);
//! proven bounds and the prices behind them ([`bound`], [`linear`]); branch and bound on small problems
//! ([`exact`]); a search for one knapsack ([`single`]), one for weights that differ by knapsack ([`assign`]),
//! and one for everything else ([`pack`], [`close`]). `docs/knapsack.md` has the model, the sources and the
//! measurements. Deliberately absent: threads, and bounds sharper than the linear relaxation but for
//! problems that branch and bound finishes.
//!
//! Two further problems have entrances of their own: the fewest knapsacks that hold everything ([`bins`]), and items
//! that arrive one by one and are never moved ([`arrival`]).

pub mod arrival;
mod assign;
pub mod bins;
mod bound;
pub mod check;
mod close;
mod construct;
mod exact;
mod linear;
mod model;
mod pack;
mod problem;
mod select;
mod single;
mod solution;
mod state;

pub use bound::upper_bound;
pub use problem::{
    Conflict, Gang, Item, Knapsack, KnapsackSet, Problem, ProblemError, Profit, UNCONSTRAINED,
    Weight,
};
pub use solution::{Placed, Solution};

use construct::Order;
use model::Model;
use pack::{Effort, Packer};
use state::State;

/// Which knapsack an item prefers among those of equal profit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Secondary {
    /// The fullest one that still fits: fewest knapsacks used, least fragmentation.
    #[default]
    Pack,
    /// The emptiest one.
    Spread,
}

/// How long and how to search.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Upper limit of elementary steps (one try of one item in one knapsack). The first constructive pass always completes.
    pub work_max: u64,
    /// Drives the seeded restarts and nothing else.
    pub seed: u64,
    /// Asked now and then: true ends the search with the best answer so far. The caller's clock lives here.
    pub stop: Option<&'a dyn Fn() -> bool>,
    pub secondary: Secondary,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            work_max: 2_000_000,
            seed: 1,
            stop: None,
            secondary: Secondary::Pack,
        }
    }
}

/// Counts elementary steps against the limit and asks the caller's stop now and then.
pub(crate) struct Work<'a> {
    done: u64,
    limit: u64,
    asked_at: u64,
    stop: Option<&'a dyn Fn() -> bool>,
    stopped: bool,
}

impl<'a> Work<'a> {
    /// Steps between two questions to the caller: some tens of microseconds.
    const ASK_EVERY: u64 = 2048;

    pub(crate) fn new(limit: u64, stop: Option<&'a dyn Fn() -> bool>) -> Self {
        Work {
            done: 0,
            limit,
            asked_at: 0,
            stop,
            stopped: false,
        }
    }

    pub(crate) fn spend(&mut self, steps: u64) {
        self.done = self.done.saturating_add(steps);
    }

    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    pub(crate) fn exhausted(&mut self) -> bool {
        if self.stopped || self.done >= self.limit {
            return true;
        }
        if self.done - self.asked_at >= Self::ASK_EVERY {
            self.asked_at = self.done;
            self.stopped = self.stop.is_some_and(|stop| stop());
        }
        self.stopped
    }

    /// Exhausted, and more was done than a first pass over a problem of a usual size takes.
    pub(crate) fn overrun(&mut self) -> bool {
        self.done > FIRST_PASS_MAX && self.exhausted()
    }
}

/// Steps that a first constructive pass may always take, whatever the budget.
const FIRST_PASS_MAX: u64 = 50_000_000;
/// Operations of the branch and bound on small problems: less than a millisecond.
const EXACT_OPERATIONS_MAX: u64 = 200_000;
/// Pairs of kinds and knapsacks beyond which the knapsack-by-knapsack packing comes first.
const PAIRS_MAX: u64 = 2_000_000;
/// Pairs from which on tables of pairs of kinds pay; smaller problems are closed as well without.
const TABLE_PAIRS_MIN: u64 = 1_000;
/// Pairs up to which every order is tried, not only the first.
const ORDERS_PAIRS_MAX: u64 = 500_000;

/// Solves a problem within the budget.
///
/// The answer is at least as good as best-fit-decreasing (beyond two million pairs of distinct items
/// and knapsacks the packing that needs fewer steps takes its place).
///
/// # Errors
/// [`ProblemError`] if the problem contradicts itself (lengths, indexes, negative weights).
pub fn solve(problem: &Problem, options: &Options) -> Result<Solution, ProblemError> {
    problem.validate()?;
    let model = Model::new(problem);
    let mut work = Work::new(options.work_max, options.stop);
    let mut search = Search {
        bound: bound::uncontended(&model),
        best: State::new(&model),
    };
    search.run(options, &mut work);
    if !search.best.open.is_empty() {
        search.top_up(options, &mut work);
    }
    let Search { bound, best } = search;
    Ok(best.into_solution(bound))
}

/// The best assignment and the best bound so far.
struct Search<'m> {
    bound: i64,
    best: State<'m>,
}

impl Search<'_> {
    fn proven(&self) -> bool {
        self.best.value() >= self.bound
    }

    fn run(&mut self, options: &Options, work: &mut Work) {
        let model = self.best.model;
        let pairs = model.kinds.len() as u64 * model.knapsack_count as u64;
        let vast = pairs > PAIRS_MAX;
        if !vast {
            self.construct(&Order::ALL[..1], None, options, work);
        }
        if self.proven() {
            return;
        }
        let prices = bound::prices(model, self.best.value(), work);
        self.bound = self.bound.min(prices.bound);
        if pairs <= ORDERS_PAIRS_MAX && !self.proven() && !work.exhausted() {
            self.construct(&Order::ALL[1..], Some(&prices.price), options, work);
        }
        if self.proven() || work.exhausted() && !vast {
            return;
        }
        let idle_max = if options.work_max == u64::MAX {
            u64::MAX
        } else {
            5_000 + 50 * pairs
        };
        let nodes_max =
            EXACT_OPERATIONS_MAX / ((model.knapsack_count * model.dimensions) as u64 + 8);
        if exact::solve(&mut self.best, &prices.price, nodes_max, work) {
            self.bound = self.bound.min(self.best.value());
            return;
        }
        if single::applies(model) {
            single::improve(&mut self.best, self.bound, idle_max, options.seed, work);
            return;
        }
        if assign::applies(model) {
            let (price, seed) = (&prices.price, options.seed);
            assign::improve(&mut self.best, price, self.bound, idle_max, seed, work);
            return;
        }
        let guide = guide(model, prices.price, work);
        let mut packer = Packer::new(model, guide, options.seed);
        let mut packed = State::new(model);
        let gangs: Vec<construct::Unit> = (0..model.problem.gangs.len())
            .map(construct::Unit::Gang)
            .collect();
        packed.fill(&gangs, options.secondary, work);
        let effort = Effort {
            candidates: 96,
            triples: 0,
            attempts: 1,
        };
        // Tables of pairs close more tightly, and take longer; what takes longest has the quick answer to fall back on.
        let tables = model.weights_same()
            && (!packer.varied || model.profits_same())
            && pairs >= TABLE_PAIRS_MIN;
        let quick = !tables || !vast || packer.varied;
        if quick {
            packer.fill_all(&mut packed, effort, work);
            self.consider(&packed);
        }
        if tables {
            if quick {
                packed = State::new(model);
                packed.fill(&gangs, options.secondary, work);
            }
            packer.stream(&mut packed, work);
            packer.tighten(&mut packed, self.bound, work);
            self.consider(&packed);
        }
        packer.improve(&mut self.best, tables, self.bound, idle_max, work);
    }

    /// Puts in what still fits; searches leave out what is worth nothing.
    fn top_up(&mut self, options: &Options, work: &mut Work) {
        let open = self.best.open.len() as u64 * self.best.model.knapsack_count as u64;
        if open <= PAIRS_MAX {
            let sequence = Order::Profit.sequence(&self.best, None, None);
            self.best.fill(&sequence, options.secondary, work);
        }
    }

    fn construct(
        &mut self,
        orders: &[Order],
        price: Option<&[f64]>,
        options: &Options,
        work: &mut Work,
    ) {
        for order in orders {
            let mut state = State::new(self.best.model);
            let sequence = order.sequence(&state, price, None);
            state.fill(&sequence, options.secondary, work);
            self.consider(&state);
            if self.proven() || work.exhausted() {
                return;
            }
        }
    }

    fn consider(&mut self, state: &State) {
        if state.value > self.best.value || self.best.held.iter().all(Vec::is_empty) {
            self.best.copy(state);
        }
    }
}

/// Prices that say something even when the relaxation has room for everything: those of a smaller cluster, or every dimension alike.
fn guide(model: &Model, price: Vec<f64>, work: &mut Work) -> Vec<f64> {
    let silent = |price: &[f64]| price.iter().all(|y| *y <= 0.0);
    if !silent(&price) {
        return price;
    }
    let (smaller, _) = bound::merged(model, 0.97, work);
    let mut each = smaller.price;
    if silent(&each) {
        let profit: f64 = (0..model.kinds.len())
            .map(|kind| {
                f64::from(model.kinds[kind].count) * model.class_profit(kind, 0).max(0) as f64
            })
            .sum();
        each = model.scale.iter().map(|s| (profit + 1.0) / s).collect();
    }
    (0..model.class_count).flat_map(|_| each.clone()).collect()
}

/// xorshift64*: small, seeded, good enough to shake an order.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Spread small seeds over the word; the state must not be zero.
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    /// Uniform in 0..1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests;
