//! Knapsack by knapsack: fill, close, and fill anew what was filled badly.
//!
//! Enter at [`Packer::fill_all`] and [`Packer::stream`] for first packings and at [`Packer::improve`] for the search after
//! them. Everything is measured as *loss* against the relaxation's prices y: what a knapsack leaves free costs
//! y * free, and a copy that the relaxation would not take (reduced profit below zero), or would
//! rather put elsewhere, costs the difference. `fill_all` is quick: a knapsack is filled with large kinds that match its
//! free vector (least squares, as in Panigrahy and others, Heuristics for Vector Bin Packing, 2011), until room
//! for two or three average ones is left; then [`crate::close`] finds the set that fills it best. `stream` takes longer
//! and loses a hundredth of that. The search
//! is ruin and recreate (Schrimpf and others, Journal of Computational Physics 159, 2000; Shaw's large
//! neighbourhoods, 1998): some copies, or all, of a few badly filled knapsacks are taken out and put back
//! in another way together with what had no place; what is not worse is kept.
//!
//! Members of gangs are never moved here; conflicts are honoured by asking the state.

mod arms;
mod balance;
mod drain;
mod fill;
mod improve;
mod pairs;
mod reclose;
mod stream;
mod supply;

use crate::Random;
use crate::close::{Candidate, Closer, worth};
use crate::model::ordered;
use crate::state::State;

/// Sizes differ much if their standard deviation is more than this part of their mean.
const VARIED: f64 = 0.5;
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

/// How hard tables of pairs try to close a knapsack.
#[derive(Clone, Copy, Debug)]
struct Closing {
    /// Kinds of a pool.
    pool: usize,
    /// A knapsack is closed well enough when no more than this share of it is lost.
    goal: f64,
    /// Pairs of heads tried for one knapsack, and to close it anew.
    tries: u32,
    retries: u32,
}

/// Kinds much alike are many to a knapsack, and closely filled by few tries.
const ALIKE: Closing = Closing {
    pool: 511,
    goal: 5e-4,
    tries: 3_000,
    retries: 4_000,
};
/// Sets of kinds that vary lie far apart: a larger pool and more tries pay.
const VARIOUS: Closing = Closing {
    pool: pairs::PairTable::SLOTS_MAX - 1,
    goal: 2e-4,
    tries: 20_000,
    retries: 10_000,
};

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
    /// What each kind costs at the place of its best reduced profit.
    size: Vec<f64>,
    /// The mean of the classes' prices.
    mean_price: Vec<f64>,
    /// What first packings sort by: the largest part at these prices where sizes differ much, for that is where a kind
    /// does not fit, and the size where they do not.
    extent: Vec<f64>,
    /// Is every kind worth the same in all knapsacks that it may go to, which are all?
    uniform: bool,
    table: pairs::PairTable,
    /// Do the sizes of what the relaxation takes differ much?
    pub(crate) varied: bool,
    closing: Closing,
    /// Are all profits the same in all knapsacks?
    profits_same: bool,
    /// The table of what a sink holds, and which knapsack was the last sink.
    drained: pairs::PairTable,
    sink: Option<usize>,
    /// Has something been moved that the table does not know?
    table_stale: bool,
    /// When it was last made for [`Packer::reclose`], in steps of work.
    paired_at: u64,
    /// Kinds in the table while a first packing is made, and how often it was filled up since they came.
    pool: Vec<(u32, u32)>,
    /// What bulk leaves free for closing: a few times the mean of the pool.
    rest: Vec<f64>,
    closer: Closer,
    candidates: Vec<Candidate>,
    random: Random,
}

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
        let (mut copies, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for kind in 0..model.kinds.len() {
            if reduced[kind] > -1e-9 * size[kind] {
                let count = f64::from(model.kinds[kind].count);
                copies += count;
                sum += size[kind] * count;
                squares += size[kind] * size[kind] * count;
            }
        }
        let varied = squares * copies > (1.0 + VARIED * VARIED) * sum * sum;
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
        let mut mean_price = vec![0.0; dimensions];
        for (at, y) in price.iter().enumerate() {
            mean_price[at % dimensions] += y / model.class_count as f64;
        }
        let largest = |kind| balance::extent(model.class_weight(kind, 0), &mean_price);
        let extent = match varied {
            true => (0..model.kinds.len()).map(largest).collect(),
            false => size.clone(),
        };
        Packer {
            extent,
            mean_price,
            model,
            price,
            reduced,
            size,
            uniform: model.class_count == 1 && model.profits_same(),
            table: pairs::PairTable::default(),
            varied,
            closing: if varied { VARIOUS } else { ALIKE },
            profits_same: model.profits_same(),
            drained: pairs::PairTable::default(),
            sink: None,
            table_stale: true,
            paired_at: 0,
            pool: Vec::new(),
            rest: Vec::new(),
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
}

fn held_copies(state: &State, kind: u32, knapsack: usize) -> u32 {
    state.held[knapsack]
        .iter()
        .find(|(held, _)| *held == kind)
        .map_or(0, |(_, copies)| *copies)
}
