//! The problem as data: what is to be placed, where, and under which rules.

use std::sync::Arc;

/// A whole problem. Indexes into `knapsacks` and `items` are used everywhere as names.
#[derive(Clone, Debug, Default)]
pub struct Problem {
    /// Length of every weight and capacity vector.
    pub dimension_count: usize,
    pub knapsacks: Vec<Knapsack>,
    pub items: Vec<Item>,
    pub conflicts: Vec<Conflict>,
    pub gangs: Vec<Gang>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knapsack {
    /// One number a dimension. A capacity below zero (an overcommitted knapsack) admits only items that weigh nothing in that dimension.
    pub capacity: Vec<i64>,
}

/// A kind of item and how many identical copies of it there are.
#[derive(Clone, Debug)]
pub struct Item {
    pub weight: Weight,
    pub profit: Profit,
    pub multiplicity: u32,
    /// Knapsacks that may hold it; `None`: all of them. Shared between items with the same rule.
    pub allowed: Option<Arc<KnapsackSet>>,
}

/// What one copy weighs, one number a dimension, not negative.
#[derive(Clone, Debug)]
pub enum Weight {
    Same(Vec<i64>),
    PerKnapsack(Vec<Vec<i64>>),
}

/// What one placed copy is worth. A negative profit forbids the pair.
#[derive(Clone, Debug)]
pub enum Profit {
    Same(i64),
    PerKnapsack(Vec<i64>),
}

/// The domain of a knapsack that a [`Conflict`] does not bind.
pub const UNCONSTRAINED: u32 = u32::MAX;

/// At most `limit` copies of the members (taken together) in every domain.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// Item indexes.
    pub members: Vec<u32>,
    /// The domain of every knapsack; `None`: each knapsack is a domain of its own.
    pub domains: Option<Arc<Vec<u32>>>,
    pub limit: u32,
}

/// All or nothing: every member is placed in full multiplicity or no copy of any member is.
#[derive(Clone, Debug)]
pub struct Gang {
    /// Item indexes; an item belongs to at most one gang.
    pub members: Vec<u32>,
}

/// A set of knapsack indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KnapsackSet {
    words: Vec<u64>,
}

impl KnapsackSet {
    pub fn insert(&mut self, knapsack: usize) {
        let word = knapsack / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (knapsack % 64);
    }

    pub fn contains(&self, knapsack: usize) -> bool {
        self.words
            .get(knapsack / 64)
            .is_some_and(|word| word >> (knapsack % 64) & 1 == 1)
    }
}

impl FromIterator<usize> for KnapsackSet {
    fn from_iter<T: IntoIterator<Item = usize>>(knapsacks: T) -> Self {
        let mut set = KnapsackSet::default();
        for knapsack in knapsacks {
            set.insert(knapsack);
        }
        set
    }
}

/// A problem that contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemError {
    /// A vector has another length than `dimension_count`, or a per-knapsack list another than the number of knapsacks.
    Length { what: &'static str, index: usize },
    /// A weight below zero.
    NegativeWeight { item: usize },
    /// A conflict or a gang names an item that does not exist.
    NoSuchItem {
        what: &'static str,
        index: usize,
        item: u32,
    },
    /// An item is a member of two gangs.
    TwoGangs { item: u32 },
}

impl std::fmt::Display for ProblemError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ProblemError::Length { what, index } => {
                write!(f, "{what} {index} has a vector of the wrong length")
            }
            ProblemError::NegativeWeight { item } => write!(f, "item {item} has a negative weight"),
            ProblemError::NoSuchItem { what, index, item } => {
                write!(f, "{what} {index} names item {item}, which does not exist")
            }
            ProblemError::TwoGangs { item } => write!(f, "item {item} belongs to two gangs"),
        }
    }
}

impl std::error::Error for ProblemError {}

impl Problem {
    /// Checks lengths, indexes and signs.
    pub fn validate(&self) -> Result<(), ProblemError> {
        for (index, knapsack) in self.knapsacks.iter().enumerate() {
            if knapsack.capacity.len() != self.dimension_count {
                return Err(ProblemError::Length {
                    what: "knapsack",
                    index,
                });
            }
        }
        for (index, item) in self.items.iter().enumerate() {
            let vectors = match &item.weight {
                Weight::Same(vector) => std::slice::from_ref(vector),
                Weight::PerKnapsack(vectors) if vectors.len() == self.knapsacks.len() => {
                    vectors.as_slice()
                }
                Weight::PerKnapsack(_) => {
                    return Err(ProblemError::Length {
                        what: "item",
                        index,
                    });
                }
            };
            for vector in vectors {
                if vector.len() != self.dimension_count {
                    return Err(ProblemError::Length {
                        what: "item",
                        index,
                    });
                }
                if vector.iter().any(|weight| *weight < 0) {
                    return Err(ProblemError::NegativeWeight { item: index });
                }
            }
            if matches!(&item.profit, Profit::PerKnapsack(profits) if profits.len() != self.knapsacks.len())
            {
                return Err(ProblemError::Length {
                    what: "item",
                    index,
                });
            }
        }
        let known = |what, index, members: &[u32]| match members
            .iter()
            .find(|item| **item as usize >= self.items.len())
        {
            Some(item) => Err(ProblemError::NoSuchItem {
                what,
                index,
                item: *item,
            }),
            None => Ok(()),
        };
        for (index, conflict) in self.conflicts.iter().enumerate() {
            known("conflict", index, &conflict.members)?;
            if conflict
                .domains
                .as_ref()
                .is_some_and(|domains| domains.len() != self.knapsacks.len())
            {
                return Err(ProblemError::Length {
                    what: "conflict",
                    index,
                });
            }
        }
        let mut in_gang = vec![false; self.items.len()];
        for (index, gang) in self.gangs.iter().enumerate() {
            known("gang", index, &gang.members)?;
            for item in &gang.members {
                if std::mem::replace(&mut in_gang[*item as usize], true) {
                    return Err(ProblemError::TwoGangs { item: *item });
                }
            }
        }
        Ok(())
    }

    pub(crate) fn weight(&self, item: usize, knapsack: usize) -> &[i64] {
        match &self.items[item].weight {
            Weight::Same(vector) => vector,
            Weight::PerKnapsack(vectors) => &vectors[knapsack],
        }
    }

    pub(crate) fn profit(&self, item: usize, knapsack: usize) -> i64 {
        match &self.items[item].profit {
            Profit::Same(profit) => *profit,
            Profit::PerKnapsack(profits) => profits[knapsack],
        }
    }

    pub(crate) fn pair_allowed(&self, item: usize, knapsack: usize) -> bool {
        self.profit(item, knapsack) >= 0
            && self.items[item]
                .allowed
                .as_ref()
                .is_none_or(|set| set.contains(knapsack))
    }
}
