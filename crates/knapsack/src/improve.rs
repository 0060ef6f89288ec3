//! Local improvement: an unplaced copy takes the place of a cheaper one, or of one that can move elsewhere.

use crate::construct::State;
use crate::{Secondary, Work};

/// Repeats improving moves until none is found or the work is used up. Members of gangs stay where they are.
pub(crate) fn improve(state: &mut State, secondary: Secondary, work: &mut Work) {
    let mut in_gang = vec![false; state.problem.items.len()];
    for item in state.problem.gangs.iter().flat_map(|gang| &gang.members) {
        in_gang[*item as usize] = true;
    }
    loop {
        let mut improved = false;
        for item in 0..state.problem.items.len() {
            if in_gang[item] {
                continue;
            }
            while state.unplaced[item] > 0
                && !work.exhausted()
                && admit(state, item, &in_gang, secondary, work)
            {
                improved = true;
            }
        }
        if !improved || work.exhausted() {
            return;
        }
    }
}

/// Tries to place one more copy of the item by moving or replacing one other copy.
fn admit(
    state: &mut State,
    item: usize,
    in_gang: &[bool],
    secondary: Secondary,
    work: &mut Work,
) -> bool {
    for knapsack in 0..state.problem.knapsacks.len() {
        if !state.problem.pair_allowed(item, knapsack) {
            continue;
        }
        work.spend(1);
        let gain = state.problem.profit(item, knapsack);
        if state.room(item, knapsack, 1) > 0 {
            state.put(item, knapsack, 1);
            return true;
        }
        let others: Vec<u32> = state.held[knapsack]
            .keys()
            .copied()
            .filter(|other| *other as usize != item && !in_gang[*other as usize])
            .collect();
        for other in others {
            let other = other as usize;
            work.spend(1);
            if work.exhausted() {
                return false;
            }
            let loss = state.problem.profit(other, knapsack);
            state.take(other, knapsack, 1);
            if state.room(item, knapsack, 1) > 0 {
                state.put(item, knapsack, 1);
                let moved = place_elsewhere(state, other, knapsack, gain - loss, secondary, work);
                if moved || gain > loss {
                    return true;
                }
                state.take(item, knapsack, 1);
            }
            state.put(other, knapsack, 1);
        }
    }
    false
}

/// Places one copy outside `not_here` if the whole exchange then gains; `gain_so_far` is without that copy.
fn place_elsewhere(
    state: &mut State,
    item: usize,
    not_here: usize,
    gain_so_far: i64,
    secondary: Secondary,
    work: &mut Work,
) -> bool {
    work.spend(state.problem.knapsacks.len() as u64 / 8 + 1);
    let mut best: Option<(i64, i128, usize)> = None;
    for knapsack in 0..state.problem.knapsacks.len() {
        if knapsack == not_here || state.room(item, knapsack, 1) == 0 {
            continue;
        }
        let profit = state.problem.profit(item, knapsack);
        if gain_so_far.saturating_add(profit) <= 0 {
            continue;
        }
        let free: i128 = state
            .free(knapsack)
            .iter()
            .map(|free| i128::from(*free))
            .sum();
        let fitness = if secondary == Secondary::Pack {
            -free
        } else {
            free
        };
        if best.is_none_or(|(p, f, _)| (profit, fitness) > (p, f)) {
            best = Some((profit, fitness, knapsack));
        }
    }
    match best {
        Some((_, _, knapsack)) => {
            state.put(item, knapsack, 1);
            true
        }
        None => false,
    }
}
