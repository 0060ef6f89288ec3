//! Kinds to choose from while knapsacks are filled, and what all their copies that are left weigh.

use crate::Random;
use crate::state::State;

/// Kinds to choose from.
pub(super) struct Supply {
    /// Those without copies left are dropped now and then.
    pub(super) kinds: Vec<u32>,
    pub(super) front: usize,
    dead: usize,
    /// Sum of the weights of all copies left.
    pub(super) sum: Vec<f64>,
    pub(super) copies: f64,
    /// Largest first.
    pub(super) sorted: bool,
}

impl Supply {
    pub(super) fn new(kinds: Vec<u32>, sorted: bool, state: &State) -> Self {
        let mut supply = Supply {
            kinds,
            sorted,
            front: 0,
            dead: 0,
            sum: vec![0.0; state.model.dimensions],
            copies: 0.0,
        };
        for kind in &supply.kinds {
            let copies = f64::from(state.unplaced[*kind as usize]);
            supply.copies += copies;
            let weight = state.model.class_weight(*kind as usize, 0);
            for (sum, w) in supply.sum.iter_mut().zip(weight) {
                *sum += *w as f64 * copies;
            }
        }
        supply
    }

    pub(super) fn compact(&mut self, state: &State) {
        if self.dead * 2 > self.kinds.len() - self.front {
            self.kinds.drain(..self.front);
            self.kinds.retain(|kind| state.unplaced[*kind as usize] > 0);
            (self.front, self.dead) = (0, 0);
        }
        while let Some(kind) = self.kinds.get(self.front)
            && state.unplaced[*kind as usize] == 0
        {
            self.front += 1;
            self.dead = self.dead.saturating_sub(1);
        }
    }

    pub(super) fn add(&mut self, kind: u32, state: &State) {
        let copies = f64::from(state.unplaced[kind as usize]);
        self.kinds.push(kind);
        self.copies += copies;
        let weight = state.model.class_weight(kind as usize, 0);
        for (sum, w) in self.sum.iter_mut().zip(weight) {
            *sum += *w as f64 * copies;
        }
    }

    pub(super) fn used(&mut self, kind: u32, state: &State) {
        self.copies -= 1.0;
        let weight = state.model.class_weight(kind as usize, 0);
        for (sum, w) in self.sum.iter_mut().zip(weight) {
            *sum -= *w as f64;
        }
        self.dead += usize::from(state.unplaced[kind as usize] == 0);
    }

    /// Takes a kind out, for the pool: the smallest, or any where they are in no order.
    pub(super) fn draw(&mut self, random: &mut Random) -> Option<u32> {
        if self.front >= self.kinds.len() {
            return None;
        }
        if self.sorted {
            return self.kinds.pop();
        }
        let at = self.front + random.below(self.kinds.len() - self.front);
        Some(self.kinds.swap_remove(at))
    }
}
