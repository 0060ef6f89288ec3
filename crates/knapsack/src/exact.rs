//! Branch and bound on a small problem: every kind in turn, every count in every knapsack.
//!
//! Bounds are Lagrangian and integer: with the prices of the relaxation as fixed-point numbers, no
//! completion is worth more than the value so far, the price of what is free, and the positive reduced
//! profits of what is undecided (the same argument as in [`crate::bound`], so a search that ends has
//! proven its best answer optimal, conflicts and gangs included). Of several knapsacks that are alike and
//! still empty only the first is tried.

use crate::Work;
use crate::bound::FixedPrices;
use crate::model::Model;
use crate::state::State;

/// Pairs of kinds and knapsacks up to which this is tried at all.
const PAIRS_MAX: usize = 512;

struct Branching<'s, 'm, 'w, 'c> {
    state: &'s mut State<'m>,
    best: &'s mut State<'m>,
    prices: FixedPrices,
    /// Kinds in the order of branching; members of a gang are neighbours.
    order: Vec<usize>,
    /// Best reduced profit of one copy of each kind in `order`, at least zero.
    reduced: Vec<i128>,
    /// Sum over the kinds from here on of all copies at their best reduced profit.
    suffix: Vec<i128>,
    /// For each knapsack the first one that is alike.
    alike: Vec<usize>,
    nodes: u64,
    nodes_max: u64,
    work: &'w mut Work<'c>,
}

/// Searches with at most `nodes_max` nodes, improving `best`; true if the search ended, so that `best` is optimal.
pub(crate) fn solve(best: &mut State, price: &[f64], nodes_max: u64, work: &mut Work) -> bool {
    let model = best.model;
    if model.kinds.len().saturating_mul(model.knapsack_count) > PAIRS_MAX {
        return false;
    }
    let prices = FixedPrices::new(model, price);
    let mut order: Vec<usize> = (0..model.kinds.len())
        .filter(|kind| model.kinds[*kind].count > 0)
        .collect();
    let unit = |kind: usize| -> i128 {
        let classes = 0..model.class_count;
        let fitting = classes.filter(|class| model.class_fit(kind, *class) > 0);
        fitting
            .map(|class| prices.reduced(model, kind, class))
            .max()
            .unwrap_or(0)
            .max(0)
    };
    order.sort_by_key(|kind| {
        let gang = model.kinds[*kind].gang;
        let worth = (0..model.class_count).map(|class| model.class_profit(*kind, class));
        // Gangs first, each as a block; then what is worth most.
        (gang.is_none(), gang, std::cmp::Reverse(worth.max()), *kind)
    });
    let reduced: Vec<i128> = order.iter().map(|kind| unit(*kind)).collect();
    let mut suffix = vec![0i128; order.len() + 1];
    for at in (0..order.len()).rev() {
        let all = reduced[at].saturating_mul(i128::from(model.kinds[order[at]].count));
        suffix[at] = suffix[at + 1].saturating_add(all);
    }
    let mut state = State::new(model);
    let alike = alike(model);
    let mut branching = Branching {
        state: &mut state,
        best,
        prices,
        order,
        reduced,
        suffix,
        alike,
        nodes: 0,
        nodes_max,
        work,
    };
    branching.branch(0, 0, None)
}

impl Branching<'_, '_, '_, '_> {
    /// Decides the copies of the kind at `at` in the knapsacks from `knapsack` on; `gang` says whether the gang
    /// that the kind belongs to is in. False if the search was cut short.
    fn branch(&mut self, at: usize, knapsack: usize, gang: Option<bool>) -> bool {
        self.nodes += 1;
        self.work.spend(4);
        if self.nodes > self.nodes_max || self.work.exhausted() {
            return false;
        }
        let model = self.state.model;
        let Some(kind) = self.order.get(at).copied() else {
            if self.state.value > self.best.value {
                self.best.copy(self.state);
            }
            return true;
        };
        if self.hopeless(at, kind) {
            return true;
        }
        let left = self.state.unplaced[kind];
        if knapsack == model.knapsack_count || left == 0 {
            let whole = left == 0;
            let next = |at: usize| self.order.get(at + 1).map(|kind| model.kinds[*kind].gang);
            let mine = model.kinds[kind].gang;
            if mine.is_some() {
                let none = left == model.kinds[kind].count;
                if !whole && !none || gang.is_some_and(|is_in| is_in != whole) {
                    return true;
                }
            }
            let stays = mine.is_some() && next(at) == Some(mine);
            return self.branch(at + 1, 0, stays.then_some(whole));
        }
        // A gang that is out stays out.
        let room = if gang == Some(false) || self.twin_is_empty(knapsack) {
            0
        } else {
            self.state.room(kind, knapsack, left)
        };
        for count in (0..=room).rev() {
            if count > 0 {
                self.state.put(kind, knapsack, count);
            }
            let ended = self.branch(at, knapsack + 1, gang);
            if count > 0 {
                self.state.take(kind, knapsack, count);
            }
            if !ended {
                return false;
            }
        }
        true
    }

    /// Can nothing better come of this?
    fn hopeless(&self, at: usize, kind: usize) -> bool {
        let open = self.reduced[at].saturating_mul(i128::from(self.state.unplaced[kind]));
        let rest = self.prices.free_worth(self.state).saturating_add(open);
        let most = self
            .prices
            .value(self.state.value)
            .saturating_add(rest)
            .saturating_add(self.suffix[at + 1]);
        self.prices.whole(most) <= self.best.value
    }

    /// Is a knapsack just like this one, earlier and as empty?
    fn twin_is_empty(&self, knapsack: usize) -> bool {
        let held = &self.state.held;
        held[knapsack].is_empty()
            && (self.alike[knapsack]..knapsack)
                .any(|other| self.alike[other] == self.alike[knapsack] && held[other].is_empty())
    }
}

/// For each knapsack the first that no item and no capacity tells from it; itself if there are conflicts.
fn alike(model: &Model) -> Vec<usize> {
    let same = |a: usize, b: usize| {
        model.problem.knapsacks[a] == model.problem.knapsacks[b]
            && (0..model.kinds.len()).all(|kind| {
                model.profit(kind, a) == model.profit(kind, b)
                    && model.weight(kind, a) == model.weight(kind, b)
            })
    };
    (0..model.knapsack_count)
        .map(|knapsack| {
            if model.problem.conflicts.is_empty() {
                (0..knapsack)
                    .find(|other| same(*other, knapsack))
                    .unwrap_or(knapsack)
            } else {
                knapsack
            }
        })
        .collect()
}
