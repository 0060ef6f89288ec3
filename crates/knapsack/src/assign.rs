//! Assignment where weight or worth depend on the knapsack (generalised assignment): annealed shifts, swaps and ejections.
//!
//! The relaxation's prices say which knapsacks an item may sensibly go to: those of highest profit less the
//! price of its weight there. Moves are drawn along these short lists: an item shifts to a knapsack of its
//! list; if there is no room, a member of that knapsack changes places with it, or is ejected to a third
//! knapsack of its own list (Yagiura, Ibaraki and Glover's ejection chains, INFORMS Journal on Computing
//! 16, 2004, cut to length two). Acceptance is by simulated annealing in cycles, each twice as long as the
//! one before, so that the search needs not know its budget. Only feasible assignments are visited.

use crate::Random;
use crate::Work;
use crate::model::{Model, ordered};
use crate::state::State;

/// Copies times knapsacks up to which this search is used.
const PAIRS_MAX: u64 = 4_000_000;
/// Knapsacks on the list of an item.
const LIST: usize = 8;

struct Assign {
    knapsacks: usize,
    dimensions: usize,
    /// Kind of each unit (a copy).
    unit_kind: Vec<u32>,
    /// By kind and knapsack; below zero: forbidden.
    profit: Vec<f64>,
    weight: Vec<i64>,
    /// Sensible knapsacks by kind, best first; `LIST` each, padded with the first.
    list: Vec<u32>,
    free: Vec<i64>,
    /// Where each unit is; `knapsacks` means nowhere.
    place: Vec<u32>,
    members: Vec<Vec<u32>>,
    /// Index of each unit in its knapsack's members.
    slot: Vec<u32>,
}

/// Is this a problem for [`improve`]?
pub(crate) fn applies(model: &Model) -> bool {
    let copies: u64 = model.kinds.iter().map(|kind| u64::from(kind.count)).sum();
    let varied = (0..model.kinds.len()).any(|kind| !model.weighs_same(kind));
    varied
        && model.knapsack_count > 1
        && model.problem.conflicts.is_empty()
        && model.problem.gangs.is_empty()
        && copies.saturating_mul(model.knapsack_count as u64) <= PAIRS_MAX
}

/// Searches until the work is done or the value meets the bound; leaves the best assignment in `state`.
pub(crate) fn improve(
    state: &mut State,
    price: &[f64],
    bound: i64,
    idle_max: u64,
    seed: u64,
    work: &mut Work,
) {
    let mut random = Random::new(seed);
    let mut assign = Assign::new(state, price);
    let greedy = assign.greedy(price, state.model);
    let units = assign.unit_kind.len();
    if units == 0 {
        return;
    }
    // From the better of the packing that there is and the relaxation's own.
    let mut best = state.value as f64;
    let mut best_place = assign.places_in(state);
    if greedy < best {
        assign.become_like(&best_place);
    } else {
        best = greedy;
        best_place.clone_from(&assign.place);
    }
    let mut value = best;
    let spacing = assign.spacing(price, state.model);
    let mut length = 40 * units as u64;
    let mut last_gain = work.done();
    'search: loop {
        let mut moves = 0u64;
        while moves < length {
            // Temperatures fall geometrically from half the usual distance between two choices to a fiftieth of it.
            let share = moves as f64 / length as f64;
            let temperature = spacing * 0.5 * 0.03f64.powf(share);
            for _ in 0..256 {
                value += assign.step(temperature, &mut random);
                if value > best + 0.5 {
                    best = value;
                    best_place.clone_from(&assign.place);
                    last_gain = work.done();
                }
            }
            moves += 256;
            work.spend(64);
            if work.exhausted() || best >= bound as f64 || work.done() - last_gain > idle_max {
                break 'search;
            }
        }
        length = length.saturating_mul(2);
        if value < best {
            assign.become_like(&best_place);
            value = best;
        }
    }
    assign.become_like(&best_place);
    let mut found = State::new(state.model);
    for (unit, place) in assign.place.iter().enumerate() {
        let (kind, place) = (assign.unit_kind[unit] as usize, *place as usize);
        if place < assign.knapsacks && found.room(kind, place, 1) > 0 {
            found.put(kind, place, 1);
        }
    }
    if found.value > state.value {
        state.copy(&found);
    }
}

impl Assign {
    fn new(state: &State, price: &[f64]) -> Self {
        let model = state.model;
        let (knapsacks, dimensions) = (model.knapsack_count, model.dimensions);
        let mut assign = Assign {
            knapsacks,
            dimensions,
            unit_kind: Vec::new(),
            profit: Vec::new(),
            weight: Vec::new(),
            list: Vec::new(),
            free: Vec::new(),
            place: Vec::new(),
            members: vec![Vec::new(); knapsacks],
            slot: Vec::new(),
        };
        for kind in 0..model.kinds.len() {
            let mut offers: Vec<(i64, u32)> = Vec::with_capacity(knapsacks);
            for knapsack in 0..knapsacks {
                let profit = model.profit(kind, knapsack) as f64;
                let weight = model.weight(kind, knapsack);
                assign.profit.push(profit);
                assign.weight.extend_from_slice(weight);
                if profit >= 0.0 {
                    let offer = reduced(model, price, kind, knapsack);
                    offers.push((ordered(-offer), knapsack as u32));
                }
            }
            offers.sort_unstable();
            for at in 0..LIST {
                let offer = offers.get(at).or(offers.first());
                assign.list.push(offer.map_or(0, |offer| offer.1));
            }
            let usable = !offers.is_empty();
            for _ in 0..model.kinds[kind].count {
                if usable {
                    assign.unit_kind.push(kind as u32);
                    assign.place.push(knapsacks as u32);
                    assign.slot.push(0);
                }
            }
        }
        for knapsack in &model.problem.knapsacks {
            assign.free.extend_from_slice(&knapsack.capacity);
        }
        assign
    }

    fn weight(&self, unit: usize, knapsack: usize) -> &[i64] {
        let at = (self.unit_kind[unit] as usize * self.knapsacks + knapsack) * self.dimensions;
        &self.weight[at..at + self.dimensions]
    }

    /// Worth of a unit in a place; nothing nowhere, and less than nothing where it must not be.
    fn profit(&self, unit: usize, place: usize) -> f64 {
        if place == self.knapsacks {
            return 0.0;
        }
        let profit = self.profit[self.unit_kind[unit] as usize * self.knapsacks + place];
        if profit < 0.0 {
            f64::NEG_INFINITY
        } else {
            profit
        }
    }

    /// Would the unit fit once `without` has left?
    fn fits(&self, unit: usize, knapsack: usize, without: Option<usize>) -> bool {
        let weight = self.weight(unit, knapsack);
        let free = &self.free[knapsack * self.dimensions..(knapsack + 1) * self.dimensions];
        let left = without.map(|other| self.weight(other, knapsack));
        (0..self.dimensions).all(|d| {
            let room = free[d].saturating_add(left.map_or(0, |left| left[d]));
            weight[d] == 0 || weight[d] <= room
        })
    }

    fn shift(&mut self, unit: usize, to: usize) {
        let from = self.place[unit] as usize;
        let base = self.unit_kind[unit] as usize * self.knapsacks;
        let dimensions = self.dimensions;
        if from < self.knapsacks {
            for d in 0..dimensions {
                self.free[from * dimensions + d] += self.weight[(base + from) * dimensions + d];
            }
            let slot = self.slot[unit] as usize;
            self.members[from].swap_remove(slot);
            if let Some(moved) = self.members[from].get(slot) {
                self.slot[*moved as usize] = slot as u32;
            }
        }
        if to < self.knapsacks {
            for d in 0..dimensions {
                self.free[to * dimensions + d] -= self.weight[(base + to) * dimensions + d];
            }
            self.slot[unit] = self.members[to].len() as u32;
            self.members[to].push(unit as u32);
        }
        self.place[unit] = to as u32;
    }

    /// Units with most to lose first, each to the best of its list that has room. Answers the value.
    fn greedy(&mut self, price: &[f64], model: &Model) -> f64 {
        let mut order: Vec<(i64, usize)> = (0..self.unit_kind.len())
            .map(|unit| {
                let kind = self.unit_kind[unit] as usize;
                let at =
                    |at: usize| reduced(model, price, kind, self.list[kind * LIST + at] as usize);
                (ordered(at(1) - at(0)), unit)
            })
            .collect();
        order.sort_unstable();
        let mut value = 0.0;
        for (_, unit) in order {
            let kind = self.unit_kind[unit] as usize;
            let near = (0..LIST).map(|at| self.list[kind * LIST + at] as usize);
            let all = near.chain(0..self.knapsacks);
            let mut found = None;
            for knapsack in all {
                if self.profit(unit, knapsack) >= 0.0 && self.fits(unit, knapsack, None) {
                    found = Some(knapsack);
                    break;
                }
            }
            if let Some(knapsack) = found {
                self.shift(unit, knapsack);
                value += self.profit(unit, knapsack);
            }
        }
        value
    }

    /// The places of a state's copies.
    fn places_in(&self, state: &State) -> Vec<u32> {
        let mut left: Vec<Vec<(u32, u32)>> = vec![Vec::new(); state.model.kinds.len()];
        for (knapsack, held) in state.held.iter().enumerate() {
            for (kind, copies) in held {
                left[*kind as usize].push((knapsack as u32, *copies));
            }
        }
        let mut place = Vec::with_capacity(self.unit_kind.len());
        for kind in &self.unit_kind {
            let places = &mut left[*kind as usize];
            place.push(match places.last_mut() {
                Some((knapsack, copies)) => {
                    let knapsack = *knapsack;
                    *copies -= 1;
                    if *copies == 0 {
                        places.pop();
                    }
                    knapsack
                }
                None => self.knapsacks as u32,
            });
        }
        place
    }

    fn become_like(&mut self, place: &[u32]) {
        for (unit, place) in place.iter().enumerate() {
            if self.place[unit] != *place {
                self.shift(unit, self.knapsacks);
            }
        }
        for (unit, place) in place.iter().enumerate() {
            if self.place[unit] != *place {
                self.shift(unit, *place as usize);
            }
        }
    }

    /// The usual distance between the first and the third choice: what a temperature is measured in.
    fn spacing(&self, price: &[f64], model: &Model) -> f64 {
        let mut spaces: Vec<f64> = (0..model.kinds.len())
            .map(|kind| {
                let at =
                    |at: usize| reduced(model, price, kind, self.list[kind * LIST + at] as usize);
                at(0) - at(2.min(LIST - 1))
            })
            .filter(|space| *space > 0.0 && space.is_finite())
            .collect();
        spaces.sort_by(f64::total_cmp);
        spaces.get(spaces.len() / 2).copied().unwrap_or(1.0)
    }

    /// One move, perhaps; answers how the value changed.
    fn step(&mut self, temperature: f64, random: &mut Random) -> f64 {
        let unit = random.below(self.unit_kind.len());
        let from = self.place[unit] as usize;
        let to = self.draw(unit, random);
        if to == from {
            return 0.0;
        }
        let base = self.profit(unit, to) - self.profit(unit, from);
        if self.fits(unit, to, None) {
            return if accept(base, temperature, random) {
                self.shift(unit, to);
                base
            } else {
                0.0
            };
        }
        for _ in 0..3 {
            if self.members[to].is_empty() {
                return 0.0;
            }
            let other = self.members[to][random.below(self.members[to].len())] as usize;
            if !self.fits(unit, to, Some(other)) {
                continue;
            }
            let mut target = self.draw(other, random);
            let swap = target == to || target == from || random.below(2) == 0;
            if swap {
                target = from;
            }
            let room = match (target == self.knapsacks, target == from) {
                (true, _) => false,
                (_, true) => self.fits(other, from, Some(unit)),
                _ => target != to && self.fits(other, target, None),
            };
            if !room {
                continue;
            }
            let change = base + self.profit(other, target) - self.profit(other, to);
            if accept(change, temperature, random) {
                self.shift(other, self.knapsacks);
                self.shift(unit, to);
                self.shift(other, target);
                return change;
            }
            return 0.0;
        }
        0.0
    }

    /// A knapsack of the unit's list, the first ones more often; sometimes any.
    fn draw(&self, unit: usize, random: &mut Random) -> usize {
        if random.below(32) == 0 {
            return random.below(self.knapsacks);
        }
        let at = random.below(LIST).min(random.below(LIST));
        self.list[self.unit_kind[unit] as usize * LIST + at] as usize
    }
}

fn accept(change: f64, temperature: f64, random: &mut Random) -> bool {
    change >= 0.0 || random.unit() < (change / temperature.max(1e-9)).exp()
}

fn reduced(model: &Model, price: &[f64], kind: usize, knapsack: usize) -> f64 {
    let price = &price[model.class_of[knapsack] as usize * model.dimensions..];
    let weight = model.weight(kind, knapsack);
    let cost: f64 = weight.iter().zip(price).map(|(w, y)| *w as f64 * y).sum();
    model.profit(kind, knapsack) as f64 - cost
}
