//! The linear program of column generation: minimise the number of bins that cover every type's copies.
//!
//! A revised simplex method over a growing set of columns (a column is a bin's content and costs one
//! bin), with a dense inverse of the basis, column by column. [`Master::optimise`] is the primal
//! method after columns were added; [`Master::repair`] the dual method after right sides changed.
//! Floating point throughout: nothing that is proven rests on it (see `colgen`).

use super::Budget;
use super::instance::Pattern;

/// A number smaller than this is zero to the simplex method.
const ZERO: f64 = 1e-9;
/// Pivots between two fresh inverses, against accumulated error.
const PIVOTS_MAX: u32 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    Column(u32),
    /// What a row is covered by more than it must be.
    Surplus(u32),
}

#[derive(Clone)]
pub(super) struct Master {
    rows: usize,
    right: Vec<f64>,
    starts: Vec<u32>,
    entries: Vec<(u32, f64)>,
    basis: Vec<Variable>,
    column_in_basis: Vec<bool>,
    surplus_in_basis: Vec<bool>,
    /// Column-major inverse of the basis matrix: `[row of the problem][position in the basis]`.
    inverse: Vec<f64>,
    /// Values of the basic variables.
    values: Vec<f64>,
    prices: Vec<f64>,
    pivots: u32,
    pub(super) total: u64,
    blocked: Vec<bool>,
}

impl Master {
    /// A program with one column a row: as many copies of that type as one bin holds.
    pub(super) fn new(right: Vec<f64>, copies: &[u64]) -> Master {
        let rows = right.len();
        let mut master = Master {
            rows,
            starts: vec![0],
            entries: Vec::new(),
            basis: Vec::with_capacity(rows),
            column_in_basis: Vec::new(),
            surplus_in_basis: vec![false; rows],
            inverse: vec![0.0; rows * rows],
            values: Vec::with_capacity(rows),
            prices: Vec::with_capacity(rows),
            pivots: 0,
            total: 0,
            right,
            blocked: Vec::new(),
        };
        for (row, &copies) in copies.iter().enumerate() {
            let column = master.add(&vec![(row as u32, copies)]);
            master.basis.push(Variable::Column(column));
            master.column_in_basis[column as usize] = true;
            master.inverse[row * rows + row] = 1.0 / copies as f64;
            master.values.push(master.right[row] / copies as f64);
            master.prices.push(1.0 / copies as f64);
        }
        master
    }

    /// Adds a column and says its number.
    pub(super) fn add(&mut self, pattern: &Pattern) -> u32 {
        self.entries
            .extend(pattern.iter().map(|&(row, copies)| (row, copies as f64)));
        self.starts.push(self.entries.len() as u32);
        self.column_in_basis.push(false);
        self.blocked.push(false);
        (self.starts.len() - 2) as u32
    }

    pub(super) fn columns(&self) -> usize {
        self.starts.len() - 1
    }

    pub(super) fn column(&self, column: u32) -> &[(u32, f64)] {
        &self.entries
            [self.starts[column as usize] as usize..self.starts[column as usize + 1] as usize]
    }

    /// The price of one copy of each type: the dual solution.
    pub(super) fn prices(&self) -> &[f64] {
        &self.prices
    }

    /// The number of bins, fractions counted.
    pub(super) fn value(&self) -> f64 {
        self.basis
            .iter()
            .zip(&self.values)
            .filter(|(variable, _)| matches!(variable, Variable::Column(_)))
            .map(|(_, value)| value)
            .sum()
    }

    /// Columns in use and how many bins of each.
    pub(super) fn solution(&self) -> impl Iterator<Item = (u32, f64)> + '_ {
        self.basis
            .iter()
            .zip(&self.values)
            .filter_map(|(variable, &value)| match variable {
                Variable::Column(column) if value > 1e-7 => Some((*column, value)),
                _ => None,
            })
    }

    pub(super) fn right(&self) -> &[f64] {
        &self.right
    }

    /// Changes what must be covered; [`Master::repair`] makes the solution right again.
    pub(super) fn change_right(&mut self, right: Vec<f64>) {
        self.right = right;
        self.recompute();
    }

    fn price_of(&self, column: usize) -> f64 {
        self.entries[self.starts[column] as usize..self.starts[column + 1] as usize]
            .iter()
            .map(|&(row, copies)| self.prices[row as usize] * copies)
            .sum()
    }

    /// Primal simplex to the optimum over the columns at hand. False if the budget ended first.
    pub(super) fn optimise(&mut self, budget: &mut Budget) -> bool {
        for _ in 0..PIVOT_ROUNDS_MAX {
            budget.spend(((self.entries.len() + self.rows * self.rows / 2) / 4) as u64);
            if budget.exhausted() {
                return false;
            }
            let mut entering: Option<(Variable, f64)> = None;
            let mut best = 1e-7;
            for column in 0..self.columns() {
                if self.column_in_basis[column] || self.blocked[column] {
                    continue;
                }
                let gain = self.price_of(column) - 1.0;
                if gain > best {
                    best = gain;
                    entering = Some((Variable::Column(column as u32), -gain));
                }
            }
            for row in 0..self.rows {
                if !self.surplus_in_basis[row] && -self.prices[row] > best {
                    best = -self.prices[row];
                    entering = Some((Variable::Surplus(row as u32), self.prices[row]));
                }
            }
            let Some((entering, reduced_cost)) = entering else {
                return true;
            };
            let direction = self.direction(entering);
            let mut leaving: Option<(usize, f64)> = None;
            for (position, &step) in direction.iter().enumerate() {
                if step > 1e-7 {
                    let ratio = self.values[position].max(0.0) / step;
                    let better = leaving.is_none_or(|(best_position, best)| {
                        ratio < best - 1e-12
                            || (ratio < best + 1e-12 && step > direction[best_position])
                    });
                    if better {
                        leaving = Some((position, ratio));
                    }
                }
            }
            let Some((position, _)) = leaving else {
                // Costs are positive, so an unbounded direction is a numerical accident: start from a fresh inverse.
                self.refresh();
                return true;
            };
            self.pivot(position, entering, &direction, reduced_cost);
        }
        true
    }

    /// Dual simplex until every value is positive again. False if it could not be done.
    pub(super) fn repair(&mut self, budget: &mut Budget) -> bool {
        for _ in 0..PIVOT_ROUNDS_MAX {
            budget.spend(((self.entries.len() + self.rows * self.rows / 2) / 4) as u64);
            if budget.exhausted() {
                return false;
            }
            let Some(position) = (0..self.rows)
                .filter(|&position| self.values[position] < -1e-7)
                .min_by(|&a, &b| self.values[a].total_cmp(&self.values[b]))
            else {
                return true;
            };
            let row: Vec<f64> = (0..self.rows)
                .map(|column| self.inverse[column * self.rows + position])
                .collect();
            let mut entering: Option<(Variable, f64, f64)> = None;
            let mut consider = |variable, step: f64, reduced_cost: f64| {
                if step < -1e-7 {
                    let ratio = reduced_cost.max(0.0) / -step;
                    if entering.is_none_or(|(_, best, best_step)| {
                        ratio < best - 1e-12 || (ratio < best + 1e-12 && step < best_step)
                    }) {
                        entering = Some((variable, ratio, step));
                    }
                }
            };
            for column in 0..self.columns() {
                if !self.column_in_basis[column] && !self.blocked[column] {
                    let step: f64 = self
                        .column(column as u32)
                        .iter()
                        .map(|&(index, copies)| row[index as usize] * copies)
                        .sum();
                    if step < -1e-7 {
                        consider(
                            Variable::Column(column as u32),
                            step,
                            1.0 - self.price_of(column),
                        );
                    }
                }
            }
            for (index, &step) in row.iter().enumerate() {
                if !self.surplus_in_basis[index] {
                    consider(Variable::Surplus(index as u32), -step, self.prices[index]);
                }
            }
            let Some((entering, _, _)) = entering else {
                return false;
            };
            let reduced_cost = match entering {
                Variable::Column(column) => 1.0 - self.price_of(column as usize),
                Variable::Surplus(row) => self.prices[row as usize],
            };
            let direction = self.direction(entering);
            if direction[position].abs() < ZERO {
                self.refresh();
                return false;
            }
            self.pivot(position, entering, &direction, reduced_cost);
        }
        false
    }

    fn direction(&self, entering: Variable) -> Vec<f64> {
        let mut direction = vec![0.0; self.rows];
        let mut add = |row: u32, factor: f64| {
            let start = row as usize * self.rows;
            for (sum, inverse) in direction
                .iter_mut()
                .zip(&self.inverse[start..start + self.rows])
            {
                *sum += inverse * factor;
            }
        };
        match entering {
            Variable::Column(column) => self
                .column(column)
                .iter()
                .for_each(|&(row, copies)| add(row, copies)),
            Variable::Surplus(row) => add(row, -1.0),
        }
        direction
    }

    fn pivot(&mut self, position: usize, entering: Variable, direction: &[f64], reduced_cost: f64) {
        let rows = self.rows;
        let step = self.values[position] / direction[position];
        for (value, along) in self.values.iter_mut().zip(direction) {
            *value -= step * along;
        }
        self.values[position] = step;
        let price_step = reduced_cost / direction[position];
        for row in 0..rows {
            self.prices[row] += price_step * self.inverse[row * rows + position];
        }
        self.pivot_inverse(position, direction);
        match self.basis[position] {
            Variable::Column(column) => self.column_in_basis[column as usize] = false,
            Variable::Surplus(row) => self.surplus_in_basis[row as usize] = false,
        }
        self.basis[position] = entering;
        match entering {
            Variable::Column(column) => self.column_in_basis[column as usize] = true,
            Variable::Surplus(row) => self.surplus_in_basis[row as usize] = true,
        }
        self.pivots += 1;
        self.total += 1;
        if self.pivots >= PIVOTS_MAX {
            self.refresh();
        } else if self.pivots.is_multiple_of(50) {
            self.recompute();
        }
    }

    fn pivot_inverse(&mut self, position: usize, direction: &[f64]) {
        let rows = self.rows;
        for column in self.inverse.chunks_exact_mut(rows) {
            let factor = column[position] / direction[position];
            if factor.abs() < 1e-13 {
                column[position] = 0.0;
                continue;
            }
            for (inverse, along) in column.iter_mut().zip(direction) {
                *inverse -= factor * along;
            }
            column[position] = factor;
        }
    }

    /// Values and prices from the inverse.
    fn recompute(&mut self) {
        let rows = self.rows;
        self.values.iter_mut().for_each(|value| *value = 0.0);
        for (column, &right) in self.inverse.chunks_exact(rows).zip(&self.right) {
            for (value, inverse) in self.values.iter_mut().zip(column) {
                *value += inverse * right;
            }
        }
        for (price, column) in self.prices.iter_mut().zip(self.inverse.chunks_exact(rows)) {
            *price = self
                .basis
                .iter()
                .zip(column)
                .filter(|(variable, _)| matches!(variable, Variable::Column(_)))
                .map(|(_, inverse)| inverse)
                .sum();
        }
    }

    /// The inverse from the basis, by elimination; a dependent column is replaced by a surplus.
    fn refresh(&mut self) {
        let rows = self.rows;
        self.pivots = 0;
        let old = std::mem::take(&mut self.basis);
        self.inverse.iter_mut().for_each(|number| *number = 0.0);
        for row in 0..rows {
            self.inverse[row * rows + row] = -1.0;
        }
        self.basis = (0..rows).map(|row| Variable::Surplus(row as u32)).collect();
        let mut taken = vec![false; rows];
        let mut columns: Vec<u32> = Vec::new();
        for variable in old {
            match variable {
                Variable::Surplus(row) => taken[row as usize] = true,
                Variable::Column(column) => columns.push(column),
            }
        }
        columns.sort_by_key(|&column| (self.column(column).len(), column));
        self.column_in_basis
            .iter_mut()
            .for_each(|flag| *flag = false);
        self.surplus_in_basis
            .iter_mut()
            .for_each(|flag| *flag = true);
        for column in columns {
            let direction = self.direction(Variable::Column(column));
            let position = (0..rows)
                .filter(|&position| !taken[position])
                .max_by(|&a, &b| direction[a].abs().total_cmp(&direction[b].abs()));
            let Some(position) = position.filter(|&position| direction[position].abs() > 1e-8)
            else {
                continue;
            };
            taken[position] = true;
            self.pivot_inverse(position, &direction);
            self.basis[position] = Variable::Column(column);
            self.surplus_in_basis[position] = false;
            self.column_in_basis[column as usize] = true;
        }
        self.recompute();
    }

    /// Forbids a column to enter, or allows it again.
    pub(super) fn block(&mut self, column: u32, blocked: bool) {
        self.blocked[column as usize] = blocked;
    }
}

/// A bound on pivots of one call: far more than any seen, so that cycling ends.
const PIVOT_ROUNDS_MAX: u32 = 50_000;
