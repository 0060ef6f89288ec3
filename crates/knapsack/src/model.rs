//! The problem compiled for search: identical items merged into kinds, alike knapsacks into classes.
//!
//! Enter at [`Model::new`]. A *kind* is all copies of all items that no rule can tell apart. A *class*
//! is a set of knapsacks in which every item has the same profit, weight and permission; their
//! capacities may differ. Searches and bounds cost by kinds and classes, not by copies.
//! What a class says about profit and weight is the best over its members, so that a bound drawn from
//! it holds whatever was put into one class.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::problem::{Problem, Profit, UNCONSTRAINED, Weight};

/// Knapsack classes beyond this number are put together: a weaker bound, but one that ends.
const CLASSES_MAX: usize = 256;
/// Pairs of items and classes up to which knapsacks of different proportions are told apart.
const SHAPE_PAIRS_MAX: usize = 5_000;
/// Knapsacks up to which their proportions are looked at.
const SHAPED_KNAPSACKS_MAX: usize = 512;

/// A profit that depends on the knapsack.
const ASK: i64 = i64::MIN;

pub(crate) struct Kind {
    /// Items of the problem, each with its multiplicity; together they have `count` copies.
    pub(crate) items: Vec<u32>,
    pub(crate) count: u32,
    pub(crate) conflicts: Vec<u32>,
    pub(crate) gang: Option<u32>,
    /// Best profit by class; -1 where nothing of the kind may go.
    profit: ByClass<i64>,
    /// Least weight by class; empty: the same everywhere, and in the model's flat table.
    weight: Vec<i64>,
    /// How many copies fit into a class if it were empty, at most `count`.
    fit: ByClass<u32>,
}

/// One value for all classes, without memory of its own, or one for each.
enum ByClass<T> {
    One(T),
    Each(Vec<T>),
}

impl<T: Copy + PartialEq> ByClass<T> {
    fn at(&self, class: usize) -> T {
        match self {
            ByClass::One(value) => *value,
            ByClass::Each(values) => values[class],
        }
    }

    fn one_if_alike(values: Vec<T>, may: bool) -> Self {
        if may && values.iter().all(|value| *value == values[0]) {
            ByClass::One(values[0])
        } else {
            ByClass::Each(values)
        }
    }

    fn all(&self, holds: impl Fn(T) -> bool) -> bool {
        match self {
            ByClass::One(value) => holds(*value),
            ByClass::Each(values) => values.iter().all(|value| holds(*value)),
        }
    }
}

pub(crate) struct Model<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) dimensions: usize,
    pub(crate) knapsack_count: usize,
    pub(crate) kinds: Vec<Kind>,
    /// Weights of the kinds that weigh the same everywhere, flat; what the search touches most lies together.
    flat_weight: Vec<i64>,
    /// Profit of the kinds that are worth the same everywhere and may go anywhere; [`ASK`] for the others.
    flat_profit: Vec<i64>,
    /// Does every kind weigh the same everywhere?
    all_same: bool,
    pub(crate) class_of: Vec<u32>,
    pub(crate) class_count: usize,
    /// Sum of the capacities of a class (those below zero count as zero).
    pub(crate) class_capacity: Vec<i128>,
    /// Mean capacity of a knapsack by dimension, at least 1.
    pub(crate) scale: Vec<f64>,
}

impl<'a> Model<'a> {
    /// Compiles a problem that was validated.
    pub(crate) fn new(problem: &'a Problem) -> Self {
        let dimensions = problem.dimension_count;
        let knapsack_count = problem.knapsacks.len();
        let (class_of, class_count) = classes(problem);
        let mut class_capacity = vec![0i128; class_count * dimensions];
        for (knapsack, class) in problem.knapsacks.iter().zip(&class_of) {
            for (d, capacity) in knapsack.capacity.iter().enumerate() {
                class_capacity[*class as usize * dimensions + d] += i128::from((*capacity).max(0));
            }
        }
        let scale: Vec<f64> = (0..dimensions)
            .map(|d| {
                let total: i128 = (0..class_count)
                    .map(|c| class_capacity[c * dimensions + d])
                    .sum();
                (total as f64 / knapsack_count.max(1) as f64).max(1.0)
            })
            .collect();
        let kinds = kinds(problem);
        let mut model = Model {
            problem,
            dimensions,
            knapsack_count,
            kinds,
            flat_weight: Vec::new(),
            flat_profit: Vec::new(),
            all_same: true,
            class_of,
            class_count,
            class_capacity,
            scale,
        };
        for kind in &model.kinds {
            let item = &problem.items[kind.items[0] as usize];
            match &item.weight {
                Weight::Same(weight) => model.flat_weight.extend_from_slice(weight),
                Weight::PerKnapsack(_) => {
                    let zeros = std::iter::repeat_n(0, dimensions);
                    model.flat_weight.extend(zeros);
                    model.all_same = false;
                }
            }
            model.flat_profit.push(match (&item.profit, &item.allowed) {
                (Profit::Same(profit), None) => (*profit).max(-1),
                _ => ASK,
            });
        }
        model.fill_tables();
        model.drop_useless_capacity();
        model
    }

    pub(crate) fn weight(&self, kind: usize, knapsack: usize) -> &[i64] {
        if self.all_same {
            return &self.flat_weight[kind * self.dimensions..(kind + 1) * self.dimensions];
        }
        self.problem
            .weight(self.kinds[kind].items[0] as usize, knapsack)
    }

    /// What a copy is worth there; below zero if it may not go there.
    pub(crate) fn profit(&self, kind: usize, knapsack: usize) -> i64 {
        let profit = self.flat_profit[kind];
        if profit != ASK {
            return profit;
        }
        let item = self.kinds[kind].items[0] as usize;
        if self.problem.pair_allowed(item, knapsack) {
            self.problem.profit(item, knapsack)
        } else {
            -1
        }
    }

    pub(crate) fn class_profit(&self, kind: usize, class: usize) -> i64 {
        self.kinds[kind].profit.at(class)
    }

    /// What a copy of the kind takes of the class, at the prices of all classes' dimensions.
    pub(crate) fn class_cost(&self, kind: usize, class: usize, price: &[f64]) -> f64 {
        self.class_weight(kind, class)
            .iter()
            .zip(&price[class * self.dimensions..])
            .map(|(weight, price)| *weight as f64 * price)
            .sum()
    }

    pub(crate) fn class_weight(&self, kind: usize, class: usize) -> &[i64] {
        let weight = &self.kinds[kind].weight;
        if weight.is_empty() {
            &self.flat_weight[kind * self.dimensions..(kind + 1) * self.dimensions]
        } else {
            &weight[class * self.dimensions..(class + 1) * self.dimensions]
        }
    }

    /// Copies of a kind that fit into an empty class.
    pub(crate) fn class_fit(&self, kind: usize, class: usize) -> u32 {
        self.kinds[kind].fit.at(class)
    }

    /// Is every kind worth the same everywhere, and allowed everywhere?
    pub(crate) fn profits_same(&self) -> bool {
        self.flat_profit.iter().all(|profit| *profit != ASK)
    }

    /// Does every kind weigh the same everywhere?
    pub(crate) fn weights_same(&self) -> bool {
        self.all_same
    }

    /// Does this kind weigh the same everywhere?
    pub(crate) fn weighs_same(&self, kind: usize) -> bool {
        matches!(
            self.problem.items[self.kinds[kind].items[0] as usize].weight,
            Weight::Same(_)
        )
    }

    pub(crate) fn domain(&self, conflict: u32, knapsack: usize) -> u32 {
        match &self.problem.conflicts[conflict as usize].domains {
            Some(domains) => domains[knapsack],
            None => knapsack as u32,
        }
    }

    fn fill_tables(&mut self) {
        let classes = self.class_count;
        let mut roomiest: Vec<Vec<u32>> = vec![Vec::new(); classes];
        for (knapsack, class) in self.class_of.iter().enumerate() {
            roomiest[*class as usize].push(knapsack as u32);
        }
        // Roomiest first, so that counting what fits ends early; worth it where there are many kinds to count.
        let sorted = if self.kinds.len() > 32 {
            &mut roomiest[..]
        } else {
            &mut []
        };
        for members in sorted {
            let share = |k: &u32| -> f64 {
                let capacity = &self.problem.knapsacks[*k as usize].capacity;
                let shares = capacity.iter().zip(&self.scale).map(|(c, s)| *c as f64 / s);
                shares.fold(f64::INFINITY, f64::min)
            };
            members.sort_by_cached_key(|k| (std::cmp::Reverse(ordered(share(k))), *k));
        }
        for kind in 0..self.kinds.len() {
            let item = self.kinds[kind].items[0] as usize;
            let source = &self.problem.items[item];
            if let [members] = &roomiest[..]
                && self.flat_profit[kind] != ASK
                && matches!(source.weight, Weight::Same(_))
            {
                let (profit, fit) = self.in_one_class(kind, members);
                let kind = &mut self.kinds[kind];
                (kind.profit, kind.fit) = (ByClass::One(profit), ByClass::One(fit));
                continue;
            }
            let mut profit = vec![-1i64; classes];
            let mut fit = vec![0u32; classes];
            let mut weight: Vec<i64> = Vec::new();
            let varied = matches!(source.weight, Weight::PerKnapsack(_));
            if varied {
                weight = vec![i64::MAX; classes * self.dimensions];
            }
            let plain =
                !varied && source.allowed.is_none() && matches!(source.profit, Profit::Same(_));
            for (class, members) in roomiest.iter().enumerate() {
                for knapsack in members {
                    let knapsack = *knapsack as usize;
                    let worth = self.profit(kind, knapsack);
                    if worth < 0 {
                        continue;
                    }
                    let room = self.empty_room(kind, knapsack);
                    if room > 0 {
                        fit[class] = fit[class].saturating_add(room).min(self.kinds[kind].count);
                        profit[class] = profit[class].max(worth);
                        if varied {
                            let row = &mut weight[class * self.dimensions..][..self.dimensions];
                            for (least, w) in row.iter_mut().zip(self.weight(kind, knapsack)) {
                                *least = (*least).min(*w);
                            }
                        }
                    }
                    if plain && fit[class] == self.kinds[kind].count {
                        break;
                    }
                }
            }
            let alike = classes == 1
                || plain
                    && profit.iter().all(|p| *p == profit[0])
                    && fit.iter().all(|f| *f == fit[0]);
            let kind = &mut self.kinds[kind];
            kind.weight = weight;
            kind.profit = ByClass::one_if_alike(profit, alike);
            kind.fit = ByClass::one_if_alike(fit, alike);
        }
    }

    /// Profit and fit of a kind that weighs and is worth the same everywhere, where all knapsacks are of one class.
    fn in_one_class(&self, kind: usize, members: &[u32]) -> (i64, u32) {
        let (worth, count) = (self.flat_profit[kind], self.kinds[kind].count);
        let mut fit = 0u32;
        if worth >= 0 {
            for knapsack in members {
                let room = self.empty_room(kind, *knapsack as usize);
                fit = fit.saturating_add(room).min(count);
                if fit == count {
                    break;
                }
            }
        }
        (if fit > 0 { worth } else { -1 }, fit)
    }

    /// Capacity that nothing can use is none: in a knapsack with little of one dimension, what can be used of
    /// another is at most that little times the greatest proportion in which any kind needs the two.
    fn drop_useless_capacity(&mut self) {
        let dimensions = self.dimensions;
        if !self.all_same || dimensions < 2 {
            return;
        }
        // most[d][e]: the greatest weight in d for one unit of e; infinite if some kind needs d and no e.
        let mut most = vec![0.0f64; dimensions * dimensions];
        for (kind, weight) in self.flat_weight.chunks_exact(dimensions).enumerate() {
            if self.kinds[kind].fit.all(|fit| fit == 0) {
                continue;
            }
            for d in 0..dimensions {
                for e in 0..dimensions {
                    if weight[d] > 0 {
                        let proportion = weight[d] as f64 / weight[e] as f64;
                        let entry = &mut most[d * dimensions + e];
                        *entry = entry.max(proportion);
                    }
                }
            }
        }
        let mut total = vec![0i128; self.class_count * dimensions];
        for (knapsack, class) in self.problem.knapsacks.iter().zip(&self.class_of) {
            for d in 0..dimensions {
                let mut usable = i128::from(knapsack.capacity[d].max(0));
                for e in 0..dimensions {
                    let proportion = most[d * dimensions + e];
                    if e != d && proportion.is_finite() {
                        // Rounded outward: half a millionth and one unit are far more than the error of the product.
                        let limit =
                            knapsack.capacity[e].max(0) as f64 * proportion * (1.0 + 5e-7) + 1.0;
                        usable = usable.min(limit as i128);
                    }
                }
                total[*class as usize * dimensions + d] += usable;
            }
        }
        self.class_capacity = total;
    }

    /// Copies of a kind that an empty knapsack takes, by capacity and by the limits of conflicts.
    fn empty_room(&self, kind: usize, knapsack: usize) -> u32 {
        let mut room = self.kinds[kind].count;
        let capacity = &self.problem.knapsacks[knapsack].capacity;
        for (weight, capacity) in self.weight(kind, knapsack).iter().zip(capacity) {
            if *weight > 0 {
                let copies = (*capacity).max(0) / *weight;
                room = room.min(u32::try_from(copies).unwrap_or(u32::MAX));
            }
        }
        for conflict in &self.kinds[kind].conflicts {
            if self.domain(*conflict, knapsack) != UNCONSTRAINED {
                room = room.min(self.problem.conflicts[*conflict as usize].limit);
            }
        }
        room
    }
}

/// A key that sorts floats.
pub(crate) fn ordered(value: f64) -> i64 {
    let bits = value.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

/// Items put together that differ in nothing but their index.
fn kinds(problem: &Problem) -> Vec<Kind> {
    let mut conflicts_of: HashMap<u32, Vec<u32>> = HashMap::new();
    for (index, conflict) in problem.conflicts.iter().enumerate() {
        for item in &conflict.members {
            let conflicts = conflicts_of.entry(*item).or_default();
            if !conflicts.contains(&(index as u32)) {
                conflicts.push(index as u32);
            }
        }
    }
    let mut gang_of: HashMap<u32, u32> = HashMap::new();
    for (index, gang) in problem.gangs.iter().enumerate() {
        gang_of.extend(gang.members.iter().map(|item| (*item, index as u32)));
    }
    let mut kinds: Vec<Kind> = Vec::with_capacity(problem.items.len());
    // The last kind of a fingerprint, and for every kind the one before it of the same fingerprint.
    let mut known: HashMap<u64, u32> = HashMap::with_capacity(problem.items.len());
    let mut before: Vec<u32> = vec![u32::MAX; problem.items.len()];
    let ruled = !conflicts_of.is_empty() || !gang_of.is_empty();
    'items: for (index, item) in problem.items.iter().enumerate() {
        let index = index as u32;
        let (mut conflicts, mut gang) = (Vec::new(), None);
        if ruled {
            conflicts = conflicts_of.remove(&index).unwrap_or_default();
            gang = gang_of.get(&index).copied();
        }
        if conflicts.is_empty() && gang.is_none() {
            let last = known.entry(fingerprint(item)).or_insert(u32::MAX);
            let mut at = *last;
            while let Some(kind) = kinds.get_mut(at as usize) {
                let other = &problem.items[kind.items[0] as usize];
                if same(item, other)
                    && let Some(count) = kind.count.checked_add(item.multiplicity)
                {
                    kind.items.push(index);
                    kind.count = count;
                    continue 'items;
                }
                at = before[at as usize];
            }
            before[kinds.len()] = std::mem::replace(last, kinds.len() as u32);
        }
        kinds.push(Kind {
            items: vec![index],
            count: item.multiplicity,
            conflicts,
            gang,
            profit: ByClass::One(-1),
            weight: Vec::new(),
            fit: ByClass::One(0),
        });
    }
    kinds
}

fn fingerprint(item: &crate::Item) -> u64 {
    let mut hasher = DefaultHasher::new();
    match &item.weight {
        Weight::Same(weight) => weight.hash(&mut hasher),
        Weight::PerKnapsack(weights) => weights.hash(&mut hasher),
    }
    match &item.profit {
        Profit::Same(profit) => profit.hash(&mut hasher),
        Profit::PerKnapsack(profits) => profits.hash(&mut hasher),
    }
    hasher.finish()
}

fn same(a: &crate::Item, b: &crate::Item) -> bool {
    let weight = match (&a.weight, &b.weight) {
        (Weight::Same(a), Weight::Same(b)) => a == b,
        (Weight::PerKnapsack(a), Weight::PerKnapsack(b)) => a == b,
        _ => false,
    };
    let profit = match (&a.profit, &b.profit) {
        (Profit::Same(a), Profit::Same(b)) => a == b,
        (Profit::PerKnapsack(a), Profit::PerKnapsack(b)) => a == b,
        _ => false,
    };
    weight && profit && a.allowed == b.allowed
}

/// The class of every knapsack, and how many there are.
fn classes(problem: &Problem) -> (Vec<u32>, usize) {
    let count = problem.knapsacks.len();
    let mut marks = vec![0u64; count];
    let mix = |mark: u64, word: u64| {
        (mark ^ word)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29)
    };
    for item in &problem.items {
        if let Profit::PerKnapsack(profits) = &item.profit
            && profits.iter().any(|profit| *profit != profits[0])
        {
            for (mark, profit) in marks.iter_mut().zip(profits) {
                *mark = mix(*mark, (*profit).max(-1) as u64);
            }
        }
        if let Weight::PerKnapsack(weights) = &item.weight
            && weights.iter().any(|weight| *weight != weights[0])
        {
            for (mark, weight) in marks.iter_mut().zip(weights) {
                for w in weight {
                    *mark = mix(*mark, *w as u64);
                }
            }
        }
        if let Some(allowed) = &item.allowed {
            for (knapsack, mark) in marks.iter_mut().enumerate() {
                *mark = mix(*mark, u64::from(allowed.contains(knapsack)));
            }
        }
    }
    let number = |marks: &[u64]| {
        let mut known: HashMap<u64, u32> = HashMap::new();
        let class_of: Vec<u32> = marks
            .iter()
            .map(|mark| {
                let next = known.len() as u32;
                *known.entry(*mark).or_insert(next)
            })
            .collect();
        (class_of, known.len().max(1))
    };
    let alike = number(&marks);
    if alike.1 > CLASSES_MAX {
        return (vec![0; count], 1);
    }
    if problem.items.len() < 2 || count > SHAPED_KNAPSACKS_MAX {
        return alike;
    }
    // Knapsacks of different proportions deserve different prices: as many classes as the work allows.
    let most = (SHAPE_PAIRS_MAX / problem.items.len().max(1)).clamp(1, CLASSES_MAX);
    let mut step = 0.02;
    for _ in 0..8 {
        let shaped: Vec<u64> = marks
            .iter()
            .zip(&problem.knapsacks)
            .map(|(mark, knapsack)| shape(&knapsack.capacity, step).into_iter().fold(*mark, mix))
            .collect();
        let split = number(&shaped);
        if split.1 <= most.max(alike.1) {
            return split;
        }
        step *= 1.7;
    }
    alike
}

/// The proportions of a capacity vector, in logarithmic steps of each dimension beside the first that is there.
fn shape(capacity: &[i64], step: f64) -> Vec<u64> {
    let first = capacity.iter().copied().find(|c| *c > 0).unwrap_or(1) as f64;
    capacity
        .iter()
        .map(|c| {
            if *c <= 0 {
                return u64::MAX;
            }
            ((*c as f64 / first).log2() / step).round() as i64 as u64
        })
        .collect()
}
