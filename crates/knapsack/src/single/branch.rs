//! Branch and bound on some of the items of one knapsack, the others being as they are.
//!
//! Depth first, the relaxation re-solved at every node ([`super::relaxation`]); columns whose reduced profit
//! decides them are decided on the way. The search keeps its place: [`Branch::run`] goes on where it stopped.
//! Floating point decides what is looked at; what is found is checked in integers.

use super::relaxation::{Node, Outcome, Place, Scratch};

/// What is to be decided.
pub(super) struct Subproblem<'a> {
    /// Weights, item by item.
    pub(super) weight: &'a [i64],
    pub(super) profit: &'a [f64],
    /// Capacity that all of them may share.
    pub(super) free: &'a [i64],
    /// Size of a weight of each dimension.
    pub(super) scale: &'a [f64],
    /// Only sums of profits above this are of interest.
    pub(super) least: f64,
}

/// A column this near to 0 or 1 is there.
const WHOLE: f64 = 1e-7;

const CANDIDATES: usize = 5;

#[derive(Default)]
pub(super) struct Branch {
    scratch: Scratch,
    nodes: Vec<Node>,
    /// Open nodes: the row of the column to branch on, and the side to look at next.
    open: Vec<(usize, bool, bool)>,
    weight: Vec<i64>,
    free: Vec<i64>,
    profit: Vec<f64>,
    least: f64,
    found: Option<Vec<bool>>,
    node_count: u64,
}

impl Branch {
    /// Starts on a new problem.
    pub(super) fn load(&mut self, sub: &Subproblem) {
        self.weight.clear();
        self.weight.extend_from_slice(sub.weight);
        self.free.clear();
        self.free.extend_from_slice(sub.free);
        self.profit.clear();
        self.profit.extend_from_slice(sub.profit);
        self.least = sub.least;
        self.found = None;
        self.node_count = 0;
        self.open.clear();
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let cut = self.cut();
        let root = &mut self.nodes[0];
        root.start(sub.weight, sub.profit, sub.free, sub.scale);
        let outcome = root.solve(cut, &mut self.scratch);
        self.arrive(outcome, 0);
    }

    /// Levels below this do not lead to a better sum: sums are whole.
    fn cut(&self) -> f64 {
        self.least + 1.0 - 1e-6 - self.least.abs() * 1e-12
    }

    /// Has everything been looked at?
    fn ended(&self) -> bool {
        self.open.is_empty()
    }

    /// The best set so far, if there is one above the least.
    pub(super) fn found(&self) -> Option<&Vec<bool>> {
        self.found.as_ref()
    }

    pub(super) fn node_count(&self) -> u64 {
        self.node_count
    }

    /// Multiplications since this was asked last.
    pub(super) fn operations(&mut self) -> u64 {
        std::mem::take(&mut self.scratch.operations)
    }

    /// Looks at up to `nodes_max` more nodes; true if everything has been looked at.
    pub(super) fn run(&mut self, nodes_max: u64) -> bool {
        let until = self.node_count + nodes_max;
        while self.node_count < until {
            let Some((row, side, second)) = self.open.pop() else {
                return true;
            };
            let depth = self.open.len();
            let cut = self.cut();
            if self.nodes[depth].level < cut {
                continue;
            }
            self.node_count += 1;
            if second {
                let outcome = self.nodes[depth].decide(row, side, cut, &mut self.scratch);
                self.arrive(outcome, depth);
            } else {
                self.open.push((row, !side, true));
                if self.nodes.len() < depth + 2 {
                    self.nodes.push(Node::default());
                }
                let (parents, children) = self.nodes.split_at_mut(depth + 1);
                children[0].copy(&parents[depth]);
                let outcome = children[0].decide(row, side, cut, &mut self.scratch);
                self.arrive(outcome, depth + 1);
            }
        }
        self.ended()
    }

    /// What to do with the node at `depth` now that it is solved.
    fn arrive(&mut self, outcome: Outcome, depth: usize) {
        if outcome != Outcome::Optimal {
            return;
        }
        let cut = self.cut();
        let node = &mut self.nodes[depth];
        node.settle(cut);
        // Branch on a column far from whole that is worth, and so weighs, much; the nearer side first.
        let mut most = [(0.0, 0); CANDIDATES];
        for (r, value) in node.value.iter().enumerate() {
            if let Some(profit) = self.profit.get(node.basis[r] as usize) {
                let away = value.min(1.0 - value);
                let score = away * (1.0 + profit * profit);
                if away > WHOLE && score > most[CANDIDATES - 1].0 {
                    let mut at = CANDIDATES - 1;
                    while at > 0 && score > most[at - 1].0 {
                        most[at] = most[at - 1];
                        at -= 1;
                    }
                    most[at] = (score, r);
                }
            }
        }
        let mut chosen = (-1.0, most[0].1);
        if most[1].0 > 0.0 {
            for (_, r) in most.iter().take_while(|(score, _)| *score > 0.0) {
                let (down, up) = node.penalties(*r);
                let score = (down + 1e-3) * (up + 1e-3);
                if score > chosen.0 {
                    chosen = (score, *r);
                }
            }
        }
        let most = (most[0].0, chosen.1, node.value[chosen.1] >= 0.5);
        if most.0 > 0.0 {
            self.open.push((most.1, most.2, false));
        } else {
            self.record(depth);
        }
    }

    fn record(&mut self, depth: usize) {
        let node = &self.nodes[depth];
        let mut inside: Vec<bool> = node.place[..self.profit.len()]
            .iter()
            .map(|place| matches!(place, Place::Upper | Place::In))
            .collect();
        for (j, value) in node.basis.iter().zip(&node.value) {
            if let Some(inside) = inside.get_mut(*j as usize) {
                *inside = *value >= 0.5;
            }
        }
        let rows = self.free.len();
        let mut rest = self.free.clone();
        let mut sum = 0.0;
        for (j, _) in inside.iter().enumerate().filter(|(_, inside)| **inside) {
            sum += self.profit[j];
            let weight = &self.weight[j * rows..(j + 1) * rows];
            for (rest, w) in rest.iter_mut().zip(weight) {
                if *w > *rest {
                    return;
                }
                *rest -= w;
            }
        }
        if sum > self.least {
            self.least = sum;
            self.found = Some(inside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    /// The best sum over all subsets that fit.
    fn brute_force(weight: &[i64], profit: &[f64], free: &[i64]) -> f64 {
        let rows = free.len();
        (0..1u32 << profit.len())
            .filter(|set| {
                (0..rows).all(|r| {
                    let inside = (0..profit.len()).filter(|j| set >> j & 1 == 1);
                    inside.map(|j| weight[j * rows + r]).sum::<i64>() <= free[r]
                })
            })
            .map(|set| {
                let inside = (0..profit.len()).filter(|j| set >> j & 1 == 1);
                inside.map(|j| profit[j]).sum()
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn a_search_that_ends_has_found_the_best_set_above_the_least() {
        let mut random = Random::new(3);
        let mut branch = Branch::default();
        let mut stopped = 0;
        for round in 0..3_000usize {
            let (rows, count) = (1 + round % 6, 1 + round % 13);
            let weight: Vec<i64> = (0..rows * count)
                .map(|_| random.below(40) as i64 - 3)
                .map(|weight| weight.max(0))
                .collect();
            let free: Vec<i64> = (0..rows)
                .map(|_| random.below(10 * count + 1) as i64)
                .collect();
            let profit: Vec<f64> = (0..count).map(|_| random.below(30) as f64).collect();
            let best = brute_force(&weight, &profit, &free);
            for (least, expect) in [
                (-1.0, Some(best)),
                (best - 1.0, Some(best)),
                (best, None),
                (best / 2.0 - 1.0, Some(best)),
            ] {
                branch.load(&Subproblem {
                    weight: &weight,
                    profit: &profit,
                    free: &free,
                    scale: &vec![20.0; rows],
                    least,
                });
                // In pieces: it goes on where it stopped.
                while !branch.run(3) {
                    stopped += 1;
                }
                let sum = branch.found().map(|inside| {
                    let inside = inside.iter().zip(&profit).filter(|(inside, _)| **inside);
                    inside.map(|(_, profit)| profit).sum::<f64>()
                });
                assert_eq!(sum, expect, "{weight:?} {profit:?} {free:?} above {least}");
            }
        }
        assert!(stopped > 100, "only {stopped} searches took several pieces");
    }
}
