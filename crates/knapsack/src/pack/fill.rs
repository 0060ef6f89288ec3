//! Knapsack by knapsack: large kinds that match what is free, then the best small sets for what is left.
//!
//! Enter at [`Packer::fill_all`] for all knapsacks and at [`Packer::fill`] for one. Every choice looks at a window
//! of kinds; nothing here takes anything out but what an attempt itself put in.

use super::{Effort, Packer};
use crate::Work;
use crate::close::{Candidate, worth};
use crate::model::ordered;
use crate::state::State;

/// Kinds looked at for one choice of the greedy part.
const WINDOW: usize = 48;

/// Kinds in the order in which they should be placed; what lies before `start` is placed already.
pub(super) struct Base {
    pub(super) kinds: Vec<u32>,
    pub(super) start: usize,
}

impl Base {
    /// Moves the start past kinds that have no copy left; what is left of the front closes up behind them.
    pub(super) fn skip_placed(&mut self, unplaced: &[u32]) {
        const FRONT: usize = 8 * WINDOW;
        let end = (self.start + FRONT).min(self.kinds.len());
        let mut to = end;
        for at in (self.start..end).rev() {
            if unplaced[self.kinds[at] as usize] > 0 {
                to -= 1;
                self.kinds[to] = self.kinds[at];
            }
        }
        self.start = to;
    }
}

/// What an attempt put into a knapsack.
pub(super) type Picks = Vec<(u32, u32)>;

impl Packer<'_> {
    /// Fills every knapsack from what has no place, roomiest first.
    pub(crate) fn fill_all(&mut self, state: &mut State, effort: Effort, work: &mut Work) {
        let knapsacks = self.roomiest_first(state);
        let mut base = Base {
            kinds: self.order.clone(),
            start: 0,
        };
        for knapsack in knapsacks {
            if work.exhausted() {
                break;
            }
            self.fill(state, knapsack, &mut base, effort, 1.0, work);
        }
    }

    /// Knapsacks of odd proportions first, while there is much to choose from; then the roomiest.
    pub(super) fn roomiest_first(&self, state: &State) -> Vec<usize> {
        let mut knapsacks: Vec<usize> = (0..self.model.knapsack_count).collect();
        let odd = |k: usize| -> i64 {
            let capacity = &self.model.problem.knapsacks[k].capacity;
            let parts = || {
                capacity
                    .iter()
                    .zip(&self.model.scale)
                    .map(|(c, s)| (*c).max(0) as f64 / s)
            };
            let mean = parts().sum::<f64>() / self.model.dimensions.max(1) as f64;
            let widest = parts().fold(0.0, |most: f64, part| most.max((part - mean).abs()));
            (widest / (mean + 1e-30) * 8.0) as i64
        };
        knapsacks.sort_by_cached_key(|k| {
            (
                std::cmp::Reverse(odd(*k)),
                ordered(-self.loss(state, *k)),
                *k,
            )
        });
        knapsacks
    }

    /// Fills one knapsack: the best of some attempts.
    pub(super) fn fill(
        &mut self,
        state: &mut State,
        knapsack: usize,
        base: &mut Base,
        effort: Effort,
        share: f64,
        work: &mut Work,
    ) {
        base.skip_placed(&state.unplaced);
        let whole = worth(state.free(knapsack), self.price_at(knapsack));
        let mut best: Option<(f64, Picks)> = None;
        for attempt in 0..effort.attempts {
            let mut picks: Picks = Vec::new();
            let spread = if attempt == 0 {
                1.8
            } else {
                0.8 + 2.4 * self.random.unit()
            };
            let gain = self.greedy(
                state,
                knapsack,
                base,
                spread,
                attempt > 0,
                share,
                &mut picks,
                work,
            ) + self.close(state, knapsack, effort, share, &mut picks, work);
            let better = best.as_ref().is_none_or(|(most, _)| gain > *most);
            if attempt + 1 == effort.attempts && better {
                return;
            }
            let done = gain >= whole * (1.0 - 1e-5) || work.exhausted();
            if better && done {
                return;
            }
            for (kind, count) in picks.iter().rev() {
                state.take(*kind as usize, knapsack, *count);
            }
            if better {
                best = Some((gain, picks));
            }
            if done {
                break;
            }
        }
        if let Some((_, picks)) = best {
            for (kind, count) in picks {
                state.put(kind as usize, knapsack, count);
            }
        }
    }

    /// Puts in large kinds that match what is free, until about `spread` average ones would still fit. Answers their gain.
    pub(super) fn greedy(
        &mut self,
        state: &mut State,
        knapsack: usize,
        base: &mut Base,
        spread: f64,
        shake: bool,
        share: f64,
        picks: &mut Picks,
        work: &mut Work,
    ) -> f64 {
        let dimensions = self.model.dimensions;
        let capacity = &self.model.problem.knapsacks[knapsack].capacity;
        let price = self.price_at(knapsack).to_vec();
        let whole = worth(capacity, &price).max(1e-30);
        // Importance of each dimension: its share of the knapsack's price, and a little for those that are free of charge.
        let importance: Vec<f64> = (0..dimensions)
            .map(|d| {
                let c = (capacity[d].max(1)) as f64;
                (price[d] * c / whole + 0.02) / (c * c)
            })
            .collect();
        let mut gained = 0.0;
        let (mut sum, mut seen) = (0.0, 0.0);
        let list = &base.kinds[base.start..];
        let mut mean = list
            .iter()
            .rev()
            .take(8)
            .chain(list.iter().take(8))
            .map(|kind| self.cost(*kind, knapsack) / 16.0)
            .sum::<f64>();
        let mut window: Vec<u32> = Vec::with_capacity(WINDOW);
        let mut fruitless = 0;
        loop {
            window.clear();
            let mut stale = 0;
            let mut scanned = 0;
            // Large ones from the front of the order; where a knapsack holds many, others at random.
            let many = worth(state.free(knapsack), &price) > 12.0 * mean && !list.is_empty();
            let from_front = match (many, shake) {
                (true, _) => WINDOW / 4,
                (false, true) => WINDOW / 2,
                (false, false) => WINDOW,
            };
            for kind in list {
                scanned += 1;
                if state.unplaced[*kind as usize] == 0 {
                    stale += 1;
                    continue;
                }
                if state.room(*kind as usize, knapsack, 1) > 0 {
                    if shake && self.random.below(4) == 0 {
                        continue;
                    }
                    window.push(*kind);
                    if window.len() >= from_front {
                        break;
                    }
                }
                if scanned - stale > 40 * WINDOW {
                    break;
                }
            }
            if !list.is_empty() && window.len() >= from_front {
                let mut tries = 0;
                while window.len() < WINDOW && tries < 4 * WINDOW {
                    tries += 1;
                    let kind = list[self.random.below(list.len())];
                    if self.reduced[kind as usize] >= 0.0
                        && state.room(kind as usize, knapsack, state.unplaced[kind as usize]) > 0
                        && !window.contains(&kind)
                    {
                        window.push(kind);
                    }
                }
            }
            work.spend(scanned as u64 / 4 + 1);
            if window.is_empty() {
                return gained;
            }
            for kind in &window {
                sum += self.cost(*kind, knapsack);
                seen += 1.0;
            }
            let reserve = spread * sum / seen;
            mean = sum / seen;
            let mut taken = 0;
            loop {
                let free = state.free(knapsack);
                if worth(free, &price) <= reserve {
                    return gained;
                }
                // Far from full, what matters is the direction for its cost; near to full, what is left.
                let steer = worth(free, &price) > 8.0 * mean;
                // A window that is used up would leave no choice: a new one after an eighth of it.
                if many && (!steer || taken >= WINDOW / 8) {
                    break;
                }
                let mut choice: Option<(f64, usize)> = None;
                for (at, kind) in window.iter().enumerate() {
                    if state.room(
                        *kind as usize,
                        knapsack,
                        state.unplaced[*kind as usize].min(1),
                    ) == 0
                    {
                        continue;
                    }
                    let weight = self.model.weight(*kind as usize, knapsack);
                    let (mut score, mut cost) = (0.0, 1e-30);
                    for d in 0..dimensions {
                        if steer {
                            score -= importance[d] * free[d] as f64 * weight[d] as f64;
                            cost += price[d] * weight[d] as f64;
                        } else {
                            let left = (free[d] - weight[d]) as f64;
                            score += importance[d] * left * left;
                        }
                    }
                    if steer {
                        score /= cost;
                    }
                    if choice.is_none_or(|(least, _)| score < least) {
                        choice = Some((score, at));
                    }
                }
                work.spend(window.len() as u64 / 4 + 1);
                let Some((_, at)) = choice else { break };
                taken += 1;
                let kind = window[at];
                state.put(kind as usize, knapsack, 1);
                gained += self.gain(kind, knapsack, share);
                match picks.last_mut() {
                    Some((last, count)) if *last == kind => *count += 1,
                    _ => picks.push((kind, 1)),
                }
            }
            fruitless = if taken == 0 { fruitless + 1 } else { 0 };
            if taken == 0 && (!many || fruitless > 1) {
                return gained;
            }
        }
    }

    /// Closes a knapsack with the best small sets, one after the other, until nothing fits. Answers their gain.
    pub(super) fn close(
        &mut self,
        state: &mut State,
        knapsack: usize,
        effort: Effort,
        share: f64,
        picks: &mut Picks,
        work: &mut Work,
    ) -> f64 {
        let mut gained = 0.0;
        loop {
            let rest = state.free(knapsack).to_vec();
            self.gather(state, knapsack, &rest, effort.candidates, share, work);
            if self.candidates.is_empty() {
                return gained;
            }
            let price = self.price_at(knapsack).to_vec();
            let mut candidates = std::mem::take(&mut self.candidates);
            self.closer
                .load(self.model.dimensions, &mut candidates, |kind| {
                    self.model.weight(kind as usize, knapsack)
                });
            self.candidates = candidates;
            let best = self
                .closer
                .best(state.free(knapsack), &price, 0.0, effort.triples, work);
            if best.count == 0 {
                return gained;
            }
            gained += best.gain;
            for at in &best.chosen[..best.count] {
                let kind = self.closer.candidates[*at as usize].kind;
                state.put(kind as usize, knapsack, 1);
                picks.push((kind, 1));
            }
        }
    }

    /// Candidates that fit into `rest` and could do some good there.
    pub(super) fn gather(
        &mut self,
        state: &State,
        knapsack: usize,
        rest: &[i64],
        wanted: usize,
        share: f64,
        work: &mut Work,
    ) {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        // A copy that loses more than what is free is worth cannot do any good.
        let limit = worth(rest, self.price_at(knapsack));
        let ruled =
            !self.model.problem.conflicts.is_empty() || !self.model.problem.gangs.is_empty();
        // From what has no place, all of it if that is little, and from the shuffled list of promising kinds.
        let few = state.open.len() <= 4 * wanted.max(WINDOW);
        let lists: [(&[u32], usize); 2] = if few {
            [(&state.open, wanted), (&[], 0)]
        } else {
            [(&self.near, wanted * 3 / 4), (&state.open, wanted / 4)]
        };
        for (list, share_of_wanted) in lists {
            if list.is_empty() {
                continue;
            }
            let start = self.random.below(list.len());
            let scan = list.len().min(16 * share_of_wanted);
            work.spend(scan as u64 / 16 + 1);
            let until = candidates.len() + share_of_wanted;
            for step in 0..scan {
                let at = start + step;
                let kind = list[if at < list.len() { at } else { at - list.len() }];
                let copies = state.unplaced[kind as usize];
                let fits = || {
                    let weight = self.model.weight(kind as usize, knapsack);
                    weight.iter().zip(rest).all(|(w, r)| *w <= 0 || w <= r)
                };
                if copies == 0 || !fits() || self.model.profit(kind as usize, knapsack) < 0 {
                    continue;
                }
                let gain = self.gain(kind, knapsack, share);
                let cost = self.cost(kind, knapsack);
                if gain <= 0.0 || cost - gain > limit {
                    continue;
                }
                let rules = &self.model.kinds[kind as usize];
                // A conflict may forbid a second copy, or another kind beside this one: those come by the greedy part.
                if ruled && (!rules.conflicts.is_empty() || rules.gang.is_some()) {
                    continue;
                }
                candidates.push(Candidate {
                    kind,
                    copies,
                    gain,
                    cost,
                });
                if candidates.len() >= until {
                    break;
                }
            }
        }
        if !few {
            candidates.sort_unstable_by_key(|candidate| candidate.kind);
            candidates.dedup_by_key(|candidate| candidate.kind);
        }
        self.candidates = candidates;
    }
}
