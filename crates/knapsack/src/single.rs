//! One knapsack of several dimensions: a pool of packings, crossed and changed by branch and bound on parts.
//!
//! Enter at [`improve`]. The relaxation splits the items: those whose reduced profit is far from zero are as it
//! says, the others are the core (Balas and Zemel, Operations Research 28, 1980; Puchinger, Raidl and
//! Pferschy, INFORMS Journal on Computing 22, 2010). [`pool`] is the search, [`packing`] what it moves,
//! [`branch`] decides some dozens of items at once by branch and bound, and [`relaxation`] is the dual simplex
//! under it: hundreds of thousands of nodes a second, since a tableau holds only what is still undecided.
//!
//! Floating point here decides only what is tried: feasibility is integer, and the state sums the value anew.
//! Deliberately absent: a proof that the best packing is optimal; the bound stays that of the relaxation.

mod branch;
mod packing;
mod pool;
mod relaxation;

use crate::Work;
use crate::bound::merged;
use crate::model::Model;
use crate::state::State;
use packing::Packing;
use pool::Pool;

/// Copies up to which every copy is an item of its own here.
const UNITS_MAX: u64 = 20_000;
/// A step here is a branch and bound of dozens of nodes: it may search longer without gain than others do.
const IDLE_FACTOR: u64 = 4;

/// Is this a problem for [`improve`]?
pub(crate) fn applies(model: &Model) -> bool {
    let copies: u64 = (0..model.kinds.len())
        .map(|kind| u64::from(model.class_fit(kind, 0)))
        .sum();
    model.knapsack_count == 1
        && model.dimensions > 0
        && model.problem.conflicts.is_empty()
        && model.problem.gangs.is_empty()
        && copies <= UNITS_MAX
}

/// Searches until the work is done, the value meets the bound or nothing improves for `idle_max` of work; leaves the best assignment in `state`.
pub(crate) fn improve(state: &mut State, bound: i64, idle_max: u64, seed: u64, work: &mut Work) {
    let (solution, _) = merged(state.model, 1.0, work);
    let mut packing = Packing::new(state, &solution.price);
    Pool::new(&mut packing, bound, seed, work).run(idle_max.saturating_mul(IDLE_FACTOR));
    packing.write(state);
}
