//! The ways in which [`super::improve`] searches, and which of them pays.

use super::Effort;
use crate::Random;

/// What is done with the knapsacks drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Way {
    /// Single copies of one are replaced, see `Packer::polish`.
    Polish,
    /// A few copies of one are replaced by sets of four, see `Packer::reclose`.
    Reclose,
    /// A few copies of each change places, see `Packer::regroup`.
    Regroup,
    /// What is free is moved into one of them, see `Packer::drain`.
    Drain,
    /// A copy is taken out of this share of the kinds held, and of up to three more, and all is filled anew.
    Ruin(f64),
}

/// One way to ruin and recreate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arm {
    /// Knapsacks at once.
    pub(super) width: usize,
    /// How strongly badly filled ones are preferred: the worst of so many more drawn.
    pub(super) pressure: usize,
    pub(super) way: Way,
    pub(super) effort: Effort,
}

const fn arm(
    width: usize,
    pressure: usize,
    way: Way,
    candidates: usize,
    triples: usize,
    attempts: u32,
) -> Arm {
    Arm {
        width,
        pressure,
        way,
        effort: Effort {
            candidates,
            triples,
            attempts,
        },
    }
}

pub(super) const ARMS: [Arm; 25] = [
    arm(1, 1, Way::Polish, 128, 0, 1),
    arm(1, 2, Way::Polish, 512, 0, 1),
    arm(1, 2, Way::Polish, 192, 12, 1),
    arm(1, 1, Way::Ruin(0.0), 128, 0, 1),
    arm(1, 2, Way::Ruin(0.0), 512, 0, 1),
    arm(1, 1, Way::Ruin(0.0), 128, 8, 1),
    arm(2, 2, Way::Ruin(0.0), 128, 4, 1),
    arm(4, 2, Way::Ruin(0.0), 256, 4, 1),
    arm(1, 1, Way::Ruin(0.2), 256, 2, 1),
    arm(2, 2, Way::Ruin(0.2), 256, 2, 1),
    arm(4, 2, Way::Ruin(0.3), 256, 2, 1),
    arm(1, 2, Way::Ruin(1.0), 256, 2, 3),
    arm(2, 2, Way::Ruin(1.0), 256, 4, 3),
    arm(4, 2, Way::Ruin(1.0), 256, 4, 4),
    arm(12, 3, Way::Ruin(1.0), 512, 8, 6),
    arm(40, 4, Way::Ruin(1.0), 512, 16, 8),
    arm(120, 4, Way::Ruin(1.0), 512, 16, 8),
    arm(1, 0, Way::Reclose, 0, 0, 1),
    arm(1, 30, Way::Reclose, 0, 0, 1),
    arm(2, 30, Way::Regroup, 96, 0, 1),
    arm(2, 1, Way::Regroup, 192, 0, 1),
    arm(3, 30, Way::Regroup, 192, 0, 1),
    arm(2, 0, Way::Drain, 0, 0, 1),
    arm(4, 30, Way::Drain, 0, 0, 1),
    arm(8, 1, Way::Drain, 0, 0, 1),
];

/// Steps after which the bookkeeping of the arms has forgotten most of what was.
const MEMORY: f64 = 300_000.0;

/// Which arm pays most for its work: gain per step, forgotten slowly, with a share of tries for every arm.
pub(super) struct Arms {
    /// Arms that may be used; those that need a table of pairs come last.
    count: usize,
    gain: [f64; ARMS.len()],
    cost: [f64; ARMS.len()],
}

impl Arms {
    pub(super) fn new(tables: bool) -> Self {
        let tabled = |arm: &&Arm| !matches!(arm.way, Way::Polish | Way::Ruin(_));
        Arms {
            count: match tables {
                true => ARMS.len(),
                false => ARMS.len() - ARMS.iter().filter(tabled).count(),
            },
            gain: [0.0; ARMS.len()],
            cost: [1.0; ARMS.len()],
        }
    }

    /// Nine in ten by what paid so far, one in ten by cheapness alone, so that none starves and none eats the budget.
    pub(super) fn pick(&self, random: &mut Random) -> usize {
        let explore = random.below(10) == 0;
        let weight = |at: usize| {
            if explore {
                // The less was spent on it, the sooner it is tried again.
                1.0 / self.cost[at]
            } else {
                self.gain[at] / self.cost[at]
            }
        };
        let sum: f64 = (0..self.count).map(weight).sum();
        if sum <= 0.0 || !sum.is_finite() {
            return random.below(self.count);
        }
        let mut at = random.unit() * sum;
        for index in 0..self.count {
            at -= weight(index);
            if at <= 0.0 {
                return index;
            }
        }
        self.count - 1
    }

    /// What an arm gained long ago counts for nothing: all arms forget while any works.
    pub(super) fn learn(&mut self, arm: usize, gain: f64, cost: f64) {
        let keep = (-cost / MEMORY).exp();
        for at in 0..ARMS.len() {
            self.gain[at] *= keep;
            self.cost[at] = 1.0 + (self.cost[at] - 1.0) * keep;
        }
        self.gain[arm] += gain.max(0.0);
        self.cost[arm] += cost;
    }
}
