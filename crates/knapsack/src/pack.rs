//! Knapsack by knapsack: fill, close, and fill anew what was filled badly.
//!
//! Enter at [`Packer::fill_all`] for a first packing and at [`Packer::improve`] for the search after it.
//! Everything is measured as *loss* against the relaxation's prices y: what a knapsack leaves free costs
//! y * free, and a copy that the relaxation would not take (reduced profit below zero), or would
//! rather put elsewhere, costs the difference. A knapsack is filled with large kinds that match its free
//! vector (least squares, as in Panigrahy and others, Heuristics for Vector Bin Packing, 2011), until room
//! for two or three average ones is left; then [`crate::close`] finds the set that fills it best. The search
//! is ruin and recreate (Schrimpf and others, Journal of Computational Physics 159, 2000; Shaw's large
//! neighbourhoods, 1998): some copies, or all, of a few badly filled knapsacks are taken out and put back
//! in another way together with what had no place; what is not worse is kept.
//!
//! Members of gangs are never moved here; conflicts are honoured by asking the state.

use crate::close::{Candidate, Closer, worth};
use crate::model::ordered;
use crate::state::State;
use crate::{Random, Work};

/// Kinds looked at for one choice of the greedy part.
const WINDOW: usize = 48;

/// Kinds up to which a knapsack is emptied as a whole; half of that is taken out of a larger one.
const RUIN_MAX: usize = 96;
/// Copies of a knapsack that one polishing tries to replace.
const POLISH_MAX: usize = 24;
/// Share of all capacity that kinds for closing make up.
const CLOSING_SHARE: f64 = 0.25;

/// How hard one filling tries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Candidates for the closing set.
    pub(crate) candidates: usize,
    /// First members with which sets of three are tried.
    pub(crate) triples: usize,
    /// Attempts, each with another greedy part; the best is kept.
    pub(crate) attempts: u32,
}

pub(crate) struct Packer<'m> {
    model: &'m crate::model::Model<'m>,
    /// Prices, one a class and dimension.
    price: Vec<f64>,
    /// Best reduced profit of each kind over the classes.
    reduced: Vec<f64>,
    /// Kinds that the packer may move, large ones that should be in first.
    order: Vec<u32>,
    /// Kinds about which the relaxation does not care much, shuffled.
    near: Vec<u32>,
    closer: Closer,
    candidates: Vec<Candidate>,
    random: Random,
}

/// Kinds in the order in which they should be placed; what lies before `start` is placed already.
struct Base {
    kinds: Vec<u32>,
    start: usize,
}

impl Base {
    /// Moves the start past kinds that have no copy left; what is left of the front closes up behind them.
    fn skip_placed(&mut self, unplaced: &[u32]) {
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
type Picks = Vec<(u32, u32)>;

impl<'m> Packer<'m> {
    pub(crate) fn new(model: &'m crate::model::Model<'m>, price: Vec<f64>, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let dimensions = model.dimensions;
        let mut reduced = Vec::with_capacity(model.kinds.len());
        let mut size = Vec::with_capacity(model.kinds.len());
        for kind in 0..model.kinds.len() {
            let mut best = (f64::NEG_INFINITY, 0.0);
            for class in 0..model.class_count {
                if model.class_fit(kind, class) == 0 {
                    continue;
                }
                let cost = model.class_cost(kind, class, &price);
                let rest = model.class_profit(kind, class) as f64 - cost;
                if rest > best.0 {
                    best = (rest, cost);
                }
            }
            reduced.push(best.0);
            size.push(best.1);
        }
        let free = |kind: &u32| {
            model.kinds[*kind as usize].gang.is_none()
                && reduced[*kind as usize] > f64::NEG_INFINITY
                && model.kinds[*kind as usize].count > 0
        };
        let mut order: Vec<u32> = (0..model.kinds.len() as u32).filter(free).collect();
        let mut near = order.clone();
        // What the relaxation only just takes, a quarter of it all and small ones first, is kept for closing.
        let ratio = |kind: u32| reduced[kind as usize] / (size[kind as usize] + 1e-30);
        near.sort_by_cached_key(|kind| {
            (
                (ratio(*kind) * 50.0).max(-1.0).floor() as i64,
                ordered(size[*kind as usize]),
                *kind,
            )
        });
        let taken_from = near.partition_point(|kind| ratio(*kind) < 0.0);
        let priced =
            |kind: &u32| size[*kind as usize] * f64::from(model.kinds[*kind as usize].count);
        let whole: f64 = (0..model.class_count * dimensions)
            .map(|at| price[at] * model.class_capacity[at] as f64)
            .sum();
        let mut sum = 0.0;
        let just = near[taken_from..]
            .iter()
            .take_while(|kind| {
                sum += priced(kind);
                sum < CLOSING_SHARE * whole
            })
            .count();
        let mut rank = vec![2u8; model.kinds.len()];
        for (at, kind) in near.iter().enumerate() {
            rank[*kind as usize] = match at {
                _ if at < taken_from => 2,
                _ if at < taken_from + just => 1,
                _ => 0,
            };
        }
        order.sort_by_cached_key(|kind| {
            let key = match rank[*kind as usize] {
                2 => ordered(-ratio(*kind)),
                _ => ordered(-size[*kind as usize]),
            };
            (rank[*kind as usize], key, *kind)
        });
        let mut rejected: Vec<u32> = near[..taken_from].to_vec();
        rejected.sort_by_cached_key(|kind| (ordered(-ratio(*kind)), *kind));
        rejected.truncate(just / 2 + 128);
        near.truncate(taken_from + just.max(256).min(near.len() - taken_from));
        near.drain(..taken_from);
        near.extend(rejected);
        for at in (1..near.len()).rev() {
            near.swap(at, random.below(at + 1));
        }
        Packer {
            model,
            price,
            reduced,
            order,
            near,
            closer: Closer::default(),
            candidates: Vec::new(),
            random,
        }
    }

    fn price_at(&self, knapsack: usize) -> &[f64] {
        let class = self.model.class_of[knapsack] as usize;
        &self.price[class * self.model.dimensions..(class + 1) * self.model.dimensions]
    }

    fn cost(&self, kind: u32, knapsack: usize) -> f64 {
        let weight = self.model.weight(kind as usize, knapsack);
        weight
            .iter()
            .zip(self.price_at(knapsack))
            .map(|(w, y)| *w as f64 * y)
            .sum()
    }

    /// What a copy brings here, less (by `share`) what the relaxation gets out of it anyway.
    fn gain(&self, kind: u32, knapsack: usize, share: f64) -> f64 {
        let profit = self.model.profit(kind as usize, knapsack) as f64;
        profit - self.reduced[kind as usize].max(0.0) * share
    }

    /// What a knapsack leaves free, in parts of all of it, at the prices.
    fn loss(&self, state: &State, knapsack: usize) -> f64 {
        worth(state.free(knapsack), self.price_at(knapsack))
    }

    /// Fills every knapsack from what has no place, roomiest first.
    pub(crate) fn fill_all(&mut self, state: &mut State, effort: Effort, work: &mut Work) {
        let mut knapsacks: Vec<usize> = (0..self.model.knapsack_count).collect();
        // Odd proportions first, while there is much to choose from; then the roomiest.
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

    /// Fills one knapsack: the best of some attempts.
    fn fill(
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
    fn greedy(
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
    fn close(
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
    fn gather(
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

    /// Ruins and recreates until the work is done. What is worse is taken back, so the state only gets better.
    pub(crate) fn improve(
        &mut self,
        state: &mut State,
        bound: i64,
        idle_max: u64,
        work: &mut Work,
    ) {
        let count = self.model.knapsack_count;
        if count == 0 {
            return;
        }
        let mut arms = Arms::new();
        let mut saved: Vec<(usize, Vec<(u32, u32)>)> = Vec::new();
        let mut best = state.value;
        let mut last_gain = work.done();
        while !work.exhausted() && state.value() < bound {
            if work.done() - last_gain > idle_max {
                return;
            }
            let arm = arms.pick(&mut self.random);
            let before = (state.value, work.done());
            saved.clear();
            let width = ARMS[arm].width.min(count);
            let mut knapsacks: Vec<usize> = Vec::with_capacity(width);
            for _ in 0..width {
                let mut pick = self.random.below(count);
                for _ in 0..ARMS[arm].pressure {
                    let other = self.random.below(count);
                    if self.loss(state, other) > self.loss(state, pick) {
                        pick = other;
                    }
                }
                if !knapsacks.contains(&pick) {
                    knapsacks.push(pick);
                }
            }
            if ARMS[arm].share < 0.0 {
                self.polish(state, knapsacks[0], ARMS[arm].effort, work);
                let rise = (state.value - before.0) as f64;
                arms.learn(arm, rise, (work.done() - before.1) as f64);
                if state.value > best {
                    best = state.value;
                    last_gain = work.done();
                }
                continue;
            }
            for knapsack in &knapsacks {
                saved.push((*knapsack, state.held[*knapsack].clone()));
                self.ruin(state, *knapsack, ARMS[arm].share);
            }
            self.recreate(state, &knapsacks, ARMS[arm], work);
            work.spend(8 * width as u64);
            if state.value < before.0 {
                for (knapsack, _) in &saved {
                    self.empty(state, *knapsack);
                }
                for (knapsack, held) in &saved {
                    for (kind, copies) in held {
                        let now = held_copies(state, *kind, *knapsack);
                        if now < *copies {
                            state.put(*kind as usize, *knapsack, copies - now);
                        }
                    }
                }
            }
            let rise = (state.value - before.0) as f64;
            arms.learn(arm, rise, (work.done() - before.1) as f64);
            if state.value > best {
                best = state.value;
                last_gain = work.done();
            }
        }
    }

    /// For one and for two copies that a knapsack holds: is there a better set in their place? Takes the first that is.
    fn polish(&mut self, state: &mut State, knapsack: usize, effort: Effort, work: &mut Work) {
        let mut held: Vec<u32> = state.held[knapsack]
            .iter()
            .filter(|(kind, _)| {
                let kind = &self.model.kinds[*kind as usize];
                kind.gang.is_none() && kind.conflicts.is_empty()
            })
            .map(|(kind, _)| *kind)
            .collect();
        for at in (1..held.len()).rev() {
            held.swap(at, self.random.below(at + 1));
        }
        held.truncate(POLISH_MAX);
        let dimensions = self.model.dimensions;
        // What would be free without the two largest in each dimension.
        let mut rest = state.free(knapsack).to_vec();
        for (d, rest) in rest.iter_mut().enumerate() {
            let mut largest = [0i64; 2];
            for kind in &held {
                let weight = self.model.weight(*kind as usize, knapsack)[d];
                if weight > largest[0] {
                    largest = [weight, largest[0]];
                } else {
                    largest[1] = largest[1].max(weight);
                }
            }
            *rest = rest.saturating_add(largest[0]).saturating_add(largest[1]);
        }
        self.gather(state, knapsack, &rest, effort.candidates, 0.0, work);
        let mut candidates = std::mem::take(&mut self.candidates);
        self.closer.load(dimensions, &mut candidates, |kind| {
            self.model.weight(kind as usize, knapsack)
        });
        self.candidates = candidates;
        work.spend(effort.candidates as u64 / 8);
        let price = self.price_at(knapsack).to_vec();
        let pairs = held.len().saturating_sub(1).min(POLISH_MAX);
        for at in 0..held.len() + pairs {
            let (first, second) = match at.checked_sub(held.len()) {
                None => (held[at], None),
                Some(at) => (held[at], Some(held[at + 1])),
            };
            rest.copy_from_slice(state.free(knapsack));
            let mut lost = 0.0;
            for kind in std::iter::once(first).chain(second) {
                let weight = self.model.weight(kind as usize, knapsack);
                for (rest, w) in rest.iter_mut().zip(weight) {
                    *rest += w;
                }
                lost += self.model.profit(kind as usize, knapsack) as f64;
            }
            let best = self
                .closer
                .best(&rest, &price, lost * (1.0 + 1e-12), effort.triples, work);
            if best.count == 0 {
                continue;
            }
            for kind in std::iter::once(first).chain(second) {
                state.take(kind as usize, knapsack, 1);
            }
            for at in &best.chosen[..best.count] {
                let kind = self.closer.candidates[*at as usize].kind;
                state.put(kind as usize, knapsack, 1);
            }
            return;
        }
    }

    /// Takes a share of the copies out of a knapsack, at random: none but up to three for a share of 0, all for 1.
    fn ruin(&mut self, state: &mut State, knapsack: usize, share: f64) {
        if share >= 1.0 && state.held[knapsack].len() <= RUIN_MAX {
            self.empty(state, knapsack);
            return;
        }
        let held: Vec<(u32, u32)> = state.held[knapsack]
            .iter()
            .filter(|(kind, _)| self.model.kinds[*kind as usize].gang.is_none())
            .copied()
            .collect();
        if held.is_empty() {
            return;
        }
        let wanted =
            1 + self.random.below(3) + ((held.len() as f64 * share) as usize).min(RUIN_MAX / 2);
        for _ in 0..wanted {
            // Of two, the one that the relaxation values less.
            let mut kind = held[self.random.below(held.len())].0;
            let other = held[self.random.below(held.len())].0;
            if self.reduced[other as usize] < self.reduced[kind as usize] {
                kind = other;
            }
            if held_copies(state, kind, knapsack) > 0 {
                state.take(kind as usize, knapsack, 1);
            }
        }
    }

    fn empty(&self, state: &mut State, knapsack: usize) {
        for (kind, copies) in state.held[knapsack].clone() {
            if self.model.kinds[kind as usize].gang.is_none() {
                state.take(kind as usize, knapsack, copies);
            }
        }
    }

    fn recreate(&mut self, state: &mut State, knapsacks: &[usize], arm: Arm, work: &mut Work) {
        let share = if knapsacks.len() == 1 || self.random.below(2) == 0 {
            0.0
        } else {
            1.0
        };
        if arm.share <= 0.0 {
            for knapsack in knapsacks {
                let mut picks = Vec::new();
                self.close(state, *knapsack, arm.effort, share, &mut picks, work);
            }
            return;
        }
        let mut kinds: Vec<u32> = if state.open.len() <= 4096 {
            state.open.clone()
        } else {
            let start = self.random.below(self.near.len().max(1));
            (0..self.near.len().min(2048))
                .map(|step| self.near[(start + step) % self.near.len()])
                .filter(|kind| state.unplaced[*kind as usize] > 0)
                .collect()
        };
        kinds.retain(|kind| self.model.kinds[*kind as usize].gang.is_none());
        kinds.sort_by_cached_key(|kind| {
            let cost = self.cost(*kind, knapsacks[0]);
            let rejected = self.reduced[*kind as usize] < -0.02 * cost;
            (rejected, ordered(-cost), *kind)
        });
        let mut base = Base { kinds, start: 0 };
        for knapsack in knapsacks {
            self.fill(state, *knapsack, &mut base, arm.effort, share, work);
        }
    }
}

fn held_copies(state: &State, kind: u32, knapsack: usize) -> u32 {
    state.held[knapsack]
        .iter()
        .find(|(held, _)| *held == kind)
        .map_or(0, |(_, copies)| *copies)
}

/// One way to ruin and recreate.
#[derive(Clone, Copy, Debug)]
struct Arm {
    /// Knapsacks at once.
    width: usize,
    /// How strongly badly filled ones are preferred: the worst of so many more drawn.
    pressure: usize,
    /// Below zero: polish, see [`Packer::polish`]. Else the share of the kinds held of which a copy is taken out, beside up to three.
    share: f64,
    effort: Effort,
}

const fn arm(
    width: usize,
    pressure: usize,
    share: f64,
    candidates: usize,
    triples: usize,
    attempts: u32,
) -> Arm {
    Arm {
        width,
        pressure,
        share,
        effort: Effort {
            candidates,
            triples,
            attempts,
        },
    }
}

const ARMS: [Arm; 17] = [
    arm(1, 1, -1.0, 128, 0, 1),
    arm(1, 2, -1.0, 512, 0, 1),
    arm(1, 2, -1.0, 192, 12, 1),
    arm(1, 1, 0.0, 128, 0, 1),
    arm(1, 2, 0.0, 512, 0, 1),
    arm(1, 1, 0.0, 128, 8, 1),
    arm(2, 2, 0.0, 128, 4, 1),
    arm(4, 2, 0.0, 256, 4, 1),
    arm(1, 1, 0.2, 256, 2, 1),
    arm(2, 2, 0.2, 256, 2, 1),
    arm(4, 2, 0.3, 256, 2, 1),
    arm(1, 2, 1.0, 256, 2, 3),
    arm(2, 2, 1.0, 256, 4, 3),
    arm(4, 2, 1.0, 256, 4, 4),
    arm(12, 3, 1.0, 512, 8, 6),
    arm(40, 4, 1.0, 512, 16, 8),
    arm(120, 4, 1.0, 512, 16, 8),
];

/// Steps after which the bookkeeping of the arms has forgotten most of what was.
const MEMORY: f64 = 300_000.0;

/// Which arm pays most for its work: gain per step, forgotten slowly, with a share of tries for every arm.
struct Arms {
    gain: [f64; ARMS.len()],
    cost: [f64; ARMS.len()],
}

impl Arms {
    fn new() -> Self {
        Arms {
            gain: [0.0; ARMS.len()],
            cost: [1.0; ARMS.len()],
        }
    }

    /// Nine in ten by what paid so far, one in ten by cheapness alone, so that none starves and none eats the budget.
    fn pick(&self, random: &mut Random) -> usize {
        let explore = random.below(10) == 0;
        let weight = |at: usize| {
            if explore {
                // The less was spent on it, the sooner it is tried again.
                1.0 / self.cost[at]
            } else {
                self.gain[at] / self.cost[at]
            }
        };
        let sum: f64 = (0..ARMS.len()).map(weight).sum();
        if sum <= 0.0 || !sum.is_finite() {
            return random.below(ARMS.len());
        }
        let mut at = random.unit() * sum;
        for index in 0..ARMS.len() {
            at -= weight(index);
            if at <= 0.0 {
                return index;
            }
        }
        ARMS.len() - 1
    }

    /// What an arm gained long ago counts for nothing: all arms forget while any works.
    fn learn(&mut self, arm: usize, gain: f64, cost: f64) {
        let keep = (-cost / MEMORY).exp();
        for at in 0..ARMS.len() {
            self.gain[at] *= keep;
            self.cost[at] = 1.0 + (self.cost[at] - 1.0) * keep;
        }
        self.gain[arm] += gain.max(0.0);
        self.cost[arm] += cost;
    }
}
