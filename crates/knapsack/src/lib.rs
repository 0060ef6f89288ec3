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
//! What is here: constructive heuristics over several orders, seeded restarts, local improvement by
//! replacement and relocation, and surrogate (fractional) bounds. Deliberately absent so far: branch
//! and bound, column generation and Lagrangian bounds; they fit behind the same function.

pub mod arrival;
pub mod bins;
mod bound;
pub mod check;
mod construct;
mod improve;
mod problem;
mod solution;

pub use bound::upper_bound;
pub use problem::{
    Conflict, Gang, Item, Knapsack, KnapsackSet, Problem, ProblemError, Profit, UNCONSTRAINED,
    Weight,
};
pub use solution::{Placed, Solution};

use construct::{Order, State};

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

impl Work<'_> {
    /// Steps between two questions to the caller: some tens of microseconds.
    const ASK_EVERY: u64 = 4096;

    pub(crate) fn spend(&mut self, steps: u64) {
        self.done = self.done.saturating_add(steps);
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
}

/// Restarts after which a search without improvement ends, so that easy problems do not use their whole budget.
const IDLE_RESTARTS_MAX: u32 = 24;

/// Solves a problem within the budget.
///
/// The answer is at least as good as best-fit-decreasing, whatever the budget.
///
/// # Errors
/// [`ProblemError`] if the problem contradicts itself (lengths, indexes, negative weights).
pub fn solve(problem: &Problem, options: &Options) -> Result<Solution, ProblemError> {
    problem.validate()?;
    let upper_bound = bound::upper_bound(problem);
    let mut work = Work {
        done: 0,
        limit: options.work_max,
        asked_at: 0,
        stop: options.stop,
        stopped: false,
    };
    let mut best: Option<State> = None;
    for order in Order::ALL {
        let mut state = State::new(problem);
        state.fill(&order.sequence(problem, None), options.secondary, &mut work);
        consider(state, &mut best);
        if best.as_ref().is_some_and(|b| b.value() >= upper_bound) || work.exhausted() {
            break;
        }
    }
    if let Some(mut state) = best.take() {
        if state.value() < upper_bound {
            improve::improve(&mut state, options.secondary, &mut work);
        }
        best = Some(state);
    }
    let mut random = Random(options.seed | 1);
    let mut idle_restarts = 0;
    while best.as_ref().is_some_and(|b| b.value() < upper_bound)
        && idle_restarts < IDLE_RESTARTS_MAX
        && !work.exhausted()
    {
        let order = Order::ALL[(random.next() % Order::ALL.len() as u64) as usize];
        let mut state = State::new(problem);
        state.fill(
            &order.sequence(problem, Some(&mut random)),
            options.secondary,
            &mut work,
        );
        improve::improve(&mut state, options.secondary, &mut work);
        if consider(state, &mut best) {
            idle_restarts = 0;
        } else {
            idle_restarts += 1;
        }
    }
    let state = best.expect("the first order always yields a state");
    Ok(state.into_solution(upper_bound))
}

/// Keeps the better of the two; true if it is the new one.
fn consider<'p>(state: State<'p>, best: &mut Option<State<'p>>) -> bool {
    let better = best
        .as_ref()
        .is_none_or(|best| state.value() > best.value());
    if better {
        *best = Some(state);
    }
    better
}

/// xorshift64*: small, seeded, good enough to shake an order.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

#[cfg(test)]
mod tests;
