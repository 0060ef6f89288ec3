//! The linear relaxation of a knapsack whose items are in or out, re-solved after every branching decision.
//!
//! maximise p x subject to A x <= b, 0 <= x <= 1, by the dual simplex with bound flipping (I. Maros, EJOR
//! 149, 2003). A [`Node`] is a tableau of the columns that are neither basic nor decided; it is copied where
//! the search may come back to it. Deciding a basic column ([`decide`]) drives it out of the basis at that
//! bound and its column out of the tableau, so that tableaus shrink along a path. The level (the relaxation's value) only falls on the
//! way, and solving ends where it falls below the cut.
//!
//! Floating point throughout, and no inversion from scratch: a path is some hundreds of pivots. This guides
//! a search, which checks in integers what it finds. Unlike in [`crate::linear`] a solve starts from a tableau.

/// Values this far outside their bounds are inside.
const TOLERANCE: f64 = 1e-9;
/// Entries below this are zero.
const PIVOT_MIN: f64 = 1e-7;

/// Where a column is. `Out` and `In` are decided: they do not move below this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Lower,
    Upper,
    Basic,
    Out,
    In,
}

/// How a solve ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Optimal,
    /// Nothing here reaches the cut.
    Hopeless,
    /// Numbers no longer allow a step, or there were too many.
    Stuck,
}

/// Memory for a pivot.
#[derive(Default)]
pub(super) struct Scratch {
    row: Vec<f64>,
    flipped: Vec<u32>,
    breakpoints: Vec<(f64, u32)>,
    /// Multiplications since the last question.
    pub(super) operations: u64,
}

/// A tableau. Identities are columns first, then one slack a row.
#[derive(Default)]
pub(super) struct Node {
    /// Columns of the problem.
    count: usize,
    pub(super) place: Vec<Place>,
    /// Who is in each row and in each column of the tableau.
    pub(super) basis: Vec<u32>,
    others: Vec<u32>,
    /// Row by row, each of `stride`, of which the length of `others` counts.
    tableau: Vec<f64>,
    stride: usize,
    /// Profit less price of each column of the tableau.
    reduced: Vec<f64>,
    /// Of the basic columns.
    pub(super) value: Vec<f64>,
    pub(super) level: f64,
}

impl Node {
    pub(super) fn copy(&mut self, other: &Node) {
        let width = other.others.len();
        self.count = other.count;
        self.place.clone_from(&other.place);
        self.basis.clone_from(&other.basis);
        self.others.clone_from(&other.others);
        self.tableau.clear();
        for row in other.tableau.chunks_exact(other.stride.max(1)) {
            self.tableau.extend_from_slice(&row[..width]);
        }
        self.stride = width;
        self.reduced.clone_from(&other.reduced);
        self.value.clone_from(&other.value);
        self.level = other.level;
    }

    /// The basis of slacks: everything that pays is in. `weight` item by item.
    pub(super) fn start(&mut self, weight: &[i64], profit: &[f64], free: &[i64], scale: &[f64]) {
        let (rows, count) = (free.len(), profit.len());
        self.count = count;
        self.place.clear();
        self.place.resize(count, Place::Upper);
        self.place.resize(count + rows, Place::Basic);
        self.basis.clear();
        self.basis
            .extend((count..count + rows).map(|slack| slack as u32));
        self.others.clear();
        self.others.extend(0..count as u32);
        self.tableau.clear();
        self.stride = count;
        self.value.clear();
        for r in 0..rows {
            let column = |j: usize| weight[j * rows + r] as f64 / scale[r];
            let row = self.tableau.len();
            self.tableau.extend((0..count).map(column));
            let used: f64 = self.tableau[row..].iter().sum();
            self.value.push(free[r] as f64 / scale[r] - used);
        }
        self.reduced.clear();
        self.reduced.extend_from_slice(profit);
        self.level = profit.iter().sum();
    }

    /// Solves on from here; below `cut` nothing is of interest.
    pub(super) fn solve(&mut self, cut: f64, scratch: &mut Scratch) -> Outcome {
        if self.level < cut {
            return Outcome::Hopeless;
        }
        for _ in 0..60 + 20 * self.value.len() {
            let mut leaving = (TOLERANCE, 0, Place::Lower);
            for (r, value) in self.value.iter().enumerate() {
                if -*value > leaving.0 {
                    leaving = (-*value, r, Place::Lower);
                } else if *value - 1.0 > leaving.0 && (self.basis[r] as usize) < self.count {
                    leaving = (*value - 1.0, r, Place::Upper);
                }
            }
            if leaving.0 <= TOLERANCE {
                return Outcome::Optimal;
            }
            let outcome = self.pivot(leaving.1, leaving.2, cut, scratch);
            if outcome != Outcome::Optimal {
                return outcome;
            }
        }
        Outcome::Stuck
    }

    /// Decides the column that is basic in row `r` and solves on.
    pub(super) fn decide(
        &mut self,
        r: usize,
        inside: bool,
        cut: f64,
        scratch: &mut Scratch,
    ) -> Outcome {
        let place = if inside { Place::In } else { Place::Out };
        match self.pivot(r, place, cut, scratch) {
            Outcome::Optimal => self.solve(cut, scratch),
            outcome => outcome,
        }
    }

    /// Decides every column whose reduced profit leaves no other way to reach the cut.
    pub(super) fn settle(&mut self, cut: f64) {
        let room = self.level - cut;
        for c in (0..self.others.len()).rev() {
            let id = self.others[c] as usize;
            if id < self.count && self.reduced[c].abs() > room {
                self.place[id] = match self.place[id] {
                    Place::Lower => Place::Out,
                    _ => Place::In,
                };
                self.remove(c);
            }
        }
    }

    /// What the level loses at least if the column basic in row `r` becomes 0, and if it becomes 1.
    pub(super) fn penalties(&self, r: usize) -> (f64, f64) {
        let row = &self.tableau[r * self.stride..][..self.others.len()];
        // The nearest breakpoint either way, as a fraction.
        let (mut falls, mut rises) = ((f64::MAX, 1.0), (f64::MAX, 1.0));
        for ((entry, reduced), id) in row.iter().zip(&self.reduced).zip(&self.others) {
            let upper = self.place[*id as usize] == Place::Upper;
            let moves = if upper { -*entry } else { *entry };
            let reduced = reduced.abs();
            if moves > PIVOT_MIN {
                if reduced * falls.1 < falls.0 * moves {
                    falls = (reduced, moves);
                }
            } else if moves < -PIVOT_MIN && reduced * rises.1 < rises.0 * -moves {
                rises = (reduced, -moves);
            }
        }
        let value = self.value[r];
        (falls.0 / falls.1 * value, rises.0 / rises.1 * (1.0 - value))
    }

    /// Takes a column out of the tableau.
    fn remove(&mut self, c: usize) {
        let last = self.others.len() - 1;
        for row in self.tableau.chunks_exact_mut(self.stride) {
            row[c] = row[last];
        }
        self.others.swap_remove(c);
        self.reduced.swap_remove(c);
    }

    /// One iteration: what is basic in row `r` leaves to the bound that `place` says.
    fn pivot(&mut self, r: usize, place: Place, cut: f64, scratch: &mut Scratch) -> Outcome {
        let width = self.others.len();
        scratch.operations += ((self.value.len() + 4) * (width + 4)) as u64;
        let target = match place {
            Place::Upper | Place::In => 1.0,
            _ => 0.0,
        };
        let row = &self.tableau[r * self.stride..][..width];
        let sign = if self.value[r] > target { 1.0 } else { -1.0 };
        scratch.breakpoints.clear();
        for (c, entry) in row.iter().enumerate() {
            let entry = entry * sign;
            let upper = self.place[self.others[c] as usize] == Place::Upper;
            let moves = if upper { -entry } else { entry };
            if moves > PIVOT_MIN {
                let ratio = self.reduced[c].abs() / moves;
                scratch.breakpoints.push((ratio, c as u32));
            }
        }
        let mut slope = (self.value[r] - target).abs();
        let mut passed = 0.0;
        scratch.flipped.clear();
        let entering = loop {
            let mut nearest = (f64::INFINITY, usize::MAX);
            for (at, (ratio, _)) in scratch.breakpoints.iter().enumerate() {
                if *ratio < nearest.0 {
                    nearest = (*ratio, at);
                }
            }
            if nearest.1 == usize::MAX {
                return Outcome::Hopeless;
            }
            let (ratio, c) = scratch.breakpoints.swap_remove(nearest.1);
            self.level -= (ratio - passed) * slope;
            passed = ratio;
            if self.level < cut {
                return Outcome::Hopeless;
            }
            if (self.others[c as usize] as usize) < self.count {
                let after = slope - row[c as usize].abs();
                // What is left within the tolerance is no violation: then this column enters.
                if after > TOLERANCE {
                    slope = after;
                    scratch.flipped.push(c);
                    continue;
                }
            }
            break c as usize;
        };
        for c in &scratch.flipped {
            let place = &mut self.place[self.others[*c as usize] as usize];
            let up = *place == Place::Lower;
            *place = if up { Place::Upper } else { Place::Lower };
            let amount = if up { 1.0 } else { -1.0 };
            let column = self.tableau.iter().skip(*c as usize).step_by(self.stride);
            for (value, entry) in self.value.iter_mut().zip(column) {
                *value -= amount * entry;
            }
        }
        self.enter(r, entering, place, target, &mut scratch.row);
        Outcome::Optimal
    }

    fn enter(&mut self, r: usize, c: usize, place: Place, target: f64, row: &mut Vec<f64>) {
        let (width, stride) = (self.others.len(), self.stride);
        let pivot = self.tableau[r * stride + c];
        let step = (self.value[r] - target) / pivot;
        row.clear();
        row.extend_from_slice(&self.tableau[r * stride..][..width]);
        row[c] = 1.0;
        let scale = 1.0 / pivot;
        for entry in row.iter_mut() {
            *entry *= scale;
        }
        for (value, other) in self
            .value
            .iter_mut()
            .zip(self.tableau.chunks_exact_mut(stride))
        {
            let factor = std::mem::take(&mut other[c]);
            if factor != 0.0 {
                *value -= step * factor;
                for (entry, own) in other[..width].iter_mut().zip(&row[..]) {
                    *entry -= factor * own;
                }
            }
        }
        self.tableau[r * stride..][..width].copy_from_slice(row);
        let factor = std::mem::take(&mut self.reduced[c]);
        for (reduced, own) in self.reduced.iter_mut().zip(&row[..]) {
            *reduced -= factor * own;
        }
        let (entering, leaving) = (self.others[c] as usize, self.basis[r] as usize);
        let from = f64::from(u8::from(self.place[entering] == Place::Upper));
        self.value[r] = from + step;
        self.place[leaving] = place;
        self.place[entering] = Place::Basic;
        self.basis[r] = entering as u32;
        self.others[c] = leaving as u32;
        if matches!(place, Place::Out | Place::In) {
            self.remove(c);
        }
    }
}
