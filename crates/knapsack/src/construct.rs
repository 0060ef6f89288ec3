//! A partial assignment and the constructive heuristics that fill it.
//!
//! Each distinct item is placed as a count, knapsack by knapsack, so the cost grows with distinct items
//! times knapsacks and not with the number of copies.

use std::collections::{BTreeMap, BinaryHeap, HashMap};

use crate::problem::{Problem, UNCONSTRAINED};
use crate::solution::{Placed, Solution};
use crate::{Random, Secondary, Work};

/// Scale of normalised sizes: parts in a million of the mean capacity.
const PARTS: i128 = 1_000_000;

/// An order in which items are tried.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Profit for its size, best first: the greedy of the fractional relaxation.
    Density,
    /// Largest in its largest dimension first: best-fit-decreasing.
    Largest,
    /// Largest over all dimensions together first.
    Sum,
    /// Most profit first.
    Profit,
}

impl Order {
    pub(crate) const ALL: [Order; 4] = [Order::Density, Order::Largest, Order::Sum, Order::Profit];

    /// Units (an item or a whole gang) in this order; with `shake`, keys are varied by up to a quarter.
    pub(crate) fn sequence(self, problem: &Problem, mut shake: Option<&mut Random>) -> Vec<Unit> {
        let scale = mean_capacities(problem);
        let mut in_gang = vec![false; problem.items.len()];
        let mut units: Vec<Unit> = Vec::new();
        for (index, gang) in problem.gangs.iter().enumerate() {
            for item in &gang.members {
                in_gang[*item as usize] = true;
            }
            units.push(Unit::Gang(index));
        }
        units.extend(
            (0..problem.items.len())
                .filter(|item| !in_gang[*item])
                .map(Unit::Item),
        );
        let mut keyed: Vec<(i128, Unit)> = units
            .into_iter()
            .map(|unit| {
                let mut key = match unit {
                    Unit::Item(item) => self.key(problem, &scale, item),
                    Unit::Gang(gang) => {
                        let members = &problem.gangs[gang].members;
                        let sum: i128 = members
                            .iter()
                            .map(|item| self.key(problem, &scale, *item as usize))
                            .sum();
                        sum / members.len().max(1) as i128
                    }
                };
                if let Some(random) = shake.as_deref_mut() {
                    key = key.saturating_mul(768 + (random.next() % 512) as i128) / 1024;
                }
                (key, unit)
            })
            .collect();
        keyed.sort_by_key(|(key, _)| std::cmp::Reverse(*key));
        keyed.into_iter().map(|(_, unit)| unit).collect()
    }

    fn key(self, problem: &Problem, scale: &[i128], item: usize) -> i128 {
        let weight: &[i64] = if problem.knapsacks.is_empty() {
            &[]
        } else {
            problem.weight(item, 0)
        };
        let parts = weight
            .iter()
            .zip(scale)
            .map(|(weight, scale)| i128::from(*weight) * PARTS / scale);
        let profit = match &problem.items[item].profit {
            crate::Profit::Same(profit) => *profit,
            crate::Profit::PerKnapsack(profits) => profits.iter().copied().max().unwrap_or(0),
        };
        match self {
            Order::Density => i128::from(profit).saturating_mul(PARTS) / (1 + parts.sum::<i128>()),
            Order::Largest => parts.max().unwrap_or(0),
            Order::Sum => parts.sum(),
            Order::Profit => i128::from(profit),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Item(usize),
    Gang(usize),
}

fn mean_capacities(problem: &Problem) -> Vec<i128> {
    let count = problem.knapsacks.len().max(1) as i128;
    (0..problem.dimension_count)
        .map(|d| {
            (problem
                .knapsacks
                .iter()
                .map(|k| i128::from(k.capacity[d].max(0)))
                .sum::<i128>()
                / count)
                .max(1)
        })
        .collect()
}

/// A feasible partial assignment.
#[derive(Clone)]
pub(crate) struct State<'a> {
    pub(crate) problem: &'a Problem,
    /// Free capacity, knapsack by knapsack.
    free: Vec<i64>,
    /// Copies of each item in each knapsack that holds some.
    pub(crate) held: Vec<BTreeMap<u32, u32>>,
    pub(crate) unplaced: Vec<u32>,
    /// Copies of each conflict's members by domain.
    conflict_counts: Vec<HashMap<u32, u32>>,
    /// Conflicts of each item.
    conflicts_of: Vec<Vec<u32>>,
    value: i128,
    scale: Vec<i128>,
}

impl<'a> State<'a> {
    pub(crate) fn new(problem: &'a Problem) -> Self {
        let mut conflicts_of = vec![Vec::new(); problem.items.len()];
        for (index, conflict) in problem.conflicts.iter().enumerate() {
            for item in &conflict.members {
                let conflicts: &mut Vec<u32> = &mut conflicts_of[*item as usize];
                if !conflicts.contains(&(index as u32)) {
                    conflicts.push(index as u32);
                }
            }
        }
        State {
            problem,
            free: problem
                .knapsacks
                .iter()
                .flat_map(|knapsack| knapsack.capacity.iter().copied())
                .collect(),
            held: vec![BTreeMap::new(); problem.knapsacks.len()],
            unplaced: problem.items.iter().map(|item| item.multiplicity).collect(),
            conflict_counts: vec![HashMap::new(); problem.conflicts.len()],
            conflicts_of,
            value: 0,
            scale: mean_capacities(problem),
        }
    }

    pub(crate) fn value(&self) -> i64 {
        self.value.clamp(0, i128::from(i64::MAX)) as i64
    }

    pub(crate) fn free(&self, knapsack: usize) -> &[i64] {
        let dimensions = self.problem.dimension_count;
        &self.free[knapsack * dimensions..(knapsack + 1) * dimensions]
    }

    fn domain(&self, conflict: u32, knapsack: usize) -> u32 {
        match &self.problem.conflicts[conflict as usize].domains {
            Some(domains) => domains[knapsack],
            None => knapsack as u32,
        }
    }

    /// How many more copies of the item the knapsack could take now, at most `want`.
    pub(crate) fn room(&self, item: usize, knapsack: usize, want: u32) -> u32 {
        if !self.problem.pair_allowed(item, knapsack) {
            return 0;
        }
        let mut room = want;
        for (weight, free) in self
            .problem
            .weight(item, knapsack)
            .iter()
            .zip(self.free(knapsack))
        {
            if *weight > 0 {
                room = room.min(u32::try_from((*free).max(0) / *weight).unwrap_or(u32::MAX));
            }
        }
        if room == 0 {
            return 0;
        }
        for conflict in &self.conflicts_of[item] {
            let domain = self.domain(*conflict, knapsack);
            if domain != UNCONSTRAINED {
                let counted = self.conflict_counts[*conflict as usize]
                    .get(&domain)
                    .copied()
                    .unwrap_or(0);
                room = room.min(
                    self.problem.conflicts[*conflict as usize]
                        .limit
                        .saturating_sub(counted),
                );
            }
        }
        room
    }

    /// Places `count` copies; the caller has asked [`State::room`].
    pub(crate) fn put(&mut self, item: usize, knapsack: usize, count: u32) {
        self.shift(item, knapsack, i64::from(count));
        *self.held[knapsack].entry(item as u32).or_insert(0) += count;
        self.unplaced[item] -= count;
    }

    pub(crate) fn take(&mut self, item: usize, knapsack: usize, count: u32) {
        self.shift(item, knapsack, -i64::from(count));
        let held = self.held[knapsack]
            .get_mut(&(item as u32))
            .expect("only held copies are taken");
        *held -= count;
        if *held == 0 {
            self.held[knapsack].remove(&(item as u32));
        }
        self.unplaced[item] += count;
    }

    fn shift(&mut self, item: usize, knapsack: usize, count: i64) {
        let dimensions = self.problem.dimension_count;
        let free = &mut self.free[knapsack * dimensions..(knapsack + 1) * dimensions];
        for (free, weight) in free.iter_mut().zip(self.problem.weight(item, knapsack)) {
            *free = free.saturating_sub(weight.saturating_mul(count));
        }
        for conflict in &self.conflicts_of[item] {
            let domain = match &self.problem.conflicts[*conflict as usize].domains {
                Some(domains) => domains[knapsack],
                None => knapsack as u32,
            };
            let counted = self.conflict_counts[*conflict as usize]
                .entry(domain)
                .or_insert(0);
            *counted = (i64::from(*counted) + count).max(0) as u32;
        }
        self.value += i128::from(self.problem.profit(item, knapsack)) * i128::from(count);
    }

    /// Places as much as fits, unit by unit.
    pub(crate) fn fill(&mut self, sequence: &[Unit], secondary: Secondary, work: &mut Work) {
        for unit in sequence {
            match *unit {
                Unit::Item(item) => {
                    self.fill_item(item, secondary, work);
                }
                Unit::Gang(gang) => self.fill_gang(gang, secondary, work),
            }
        }
    }

    fn fill_gang(&mut self, gang: usize, secondary: Secondary, work: &mut Work) {
        let members = &self.problem.gangs[gang].members;
        let mut placed: Vec<(usize, usize, u32)> = Vec::new();
        for item in members {
            placed.extend(
                self.fill_item(*item as usize, secondary, work)
                    .into_iter()
                    .map(|(k, count)| (*item as usize, k, count)),
            );
            if self.unplaced[*item as usize] > 0 {
                for (item, knapsack, count) in placed.into_iter().rev() {
                    self.take(item, knapsack, count);
                }
                return;
            }
        }
    }

    /// Places what fits of one item; answers where.
    pub(crate) fn fill_item(
        &mut self,
        item: usize,
        secondary: Secondary,
        work: &mut Work,
    ) -> Vec<(usize, u32)> {
        let mut placed = Vec::new();
        if self.unplaced[item] == 0 {
            return placed;
        }
        work.spend(self.problem.knapsacks.len() as u64);
        let mut heap: BinaryHeap<(i64, i128, std::cmp::Reverse<usize>)> =
            (0..self.problem.knapsacks.len())
                .filter(|knapsack| self.room(item, *knapsack, 1) > 0)
                .map(|knapsack| {
                    (
                        self.problem.profit(item, knapsack),
                        self.fitness(item, knapsack, secondary),
                        std::cmp::Reverse(knapsack),
                    )
                })
                .collect();
        while self.unplaced[item] > 0 {
            let Some((profit, _, std::cmp::Reverse(knapsack))) = heap.pop() else {
                break;
            };
            // Packing fills a knapsack before it opens the next; spreading goes one by one.
            let want = if secondary == Secondary::Pack {
                self.unplaced[item]
            } else {
                1
            };
            let count = self.room(item, knapsack, want);
            if count == 0 {
                continue;
            }
            self.put(item, knapsack, count);
            placed.push((knapsack, count));
            work.spend(1);
            if secondary == Secondary::Spread && self.room(item, knapsack, 1) > 0 {
                heap.push((
                    profit,
                    self.fitness(item, knapsack, secondary),
                    std::cmp::Reverse(knapsack),
                ));
            }
        }
        placed
    }

    /// Higher is better: how well the item fits what is free there.
    fn fitness(&self, item: usize, knapsack: usize, secondary: Secondary) -> i128 {
        let left: i128 = self
            .free(knapsack)
            .iter()
            .zip(self.problem.weight(item, knapsack))
            .zip(&self.scale)
            .map(|((free, weight), scale)| {
                i128::from(free.saturating_sub(*weight).max(0)) * PARTS / scale
            })
            .sum();
        match secondary {
            Secondary::Pack => -left,
            Secondary::Spread => left,
        }
    }

    pub(crate) fn into_solution(self, upper_bound: i64) -> Solution {
        let value = self.value();
        let mut placed: Vec<Placed> = Vec::new();
        for (knapsack, held) in self.held.iter().enumerate() {
            placed.extend(held.iter().map(|(item, count)| Placed {
                item: *item,
                knapsack: knapsack as u32,
                count: *count,
            }));
        }
        placed.sort_unstable();
        Solution {
            placed,
            value,
            upper_bound,
            optimal: value >= upper_bound,
        }
    }
}
