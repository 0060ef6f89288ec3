//! The linear program of column generation: minimise the number of bins that cover every type's copies.
//!
//! A revised simplex method over a growing set of columns (a column is a bin's content and costs one
//! bin), with the basis in sparse factors (see `factor`). [`Master::optimise`] is the primal
//! method after columns were added; [`Master::repair`] the dual method after right sides changed.
//! Floating point throughout: nothing that is proven rests on it (see `colgen`).

use super::Budget;
use super::factor::Factors;
use super::instance::Pattern;

/// A number smaller than this is zero to the simplex method.
const ZERO: f64 = 1e-9;
/// Exchanges between two factorisations: more would make every solution slower than factoring anew.
const EXCHANGES_MAX: usize = 64;

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
    factors: Factors,
    /// Values of the basic variables.
    values: Vec<f64>,
    prices: Vec<f64>,
    /// By row; zero between uses.
    by_row: Vec<f64>,
    by_position: Vec<f64>,
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
            factors: Factors::default(),
            values: Vec::with_capacity(rows),
            prices: Vec::with_capacity(rows),
            by_row: vec![0.0; rows],
            by_position: vec![0.0; rows],
            right,
        };
        for (row, &copies) in copies.iter().enumerate() {
            let column = master.add(&vec![(row as u32, copies)]);
            master.basis.push(Variable::Column(column));
            master.column_in_basis[column as usize] = true;
            master.values.push(0.0);
            master.prices.push(0.0);
        }
        master.refresh();
        master
    }

    /// Adds a column and says its number.
    pub(super) fn add(&mut self, pattern: &Pattern) -> u32 {
        self.entries
            .extend(pattern.iter().map(|&(row, copies)| (row, copies as f64)));
        self.starts.push(self.entries.len() as u32);
        self.column_in_basis.push(false);
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
            budget.spend(((self.entries.len() + 3 * self.factors.entry_count()) / 8) as u64);
            if budget.exhausted() {
                return false;
            }
            let mut entering: Option<(Variable, f64)> = None;
            let mut best = 1e-7;
            for column in 0..self.columns() {
                if self.column_in_basis[column] {
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
                // Costs are positive, so an unbounded direction is a numerical accident: start from fresh factors.
                self.refresh();
                return true;
            };
            let row = self.row(position);
            self.pivot(position, entering, &direction, &row, reduced_cost);
        }
        true
    }

    /// Dual simplex until every value is positive again. False if it could not be done.
    pub(super) fn repair(&mut self, budget: &mut Budget) -> bool {
        for _ in 0..PIVOT_ROUNDS_MAX {
            budget.spend(((self.entries.len() + 3 * self.factors.entry_count()) / 8) as u64);
            if budget.exhausted() {
                return false;
            }
            let Some(position) = (0..self.rows)
                .filter(|&position| self.values[position] < -1e-7)
                .min_by(|&a, &b| self.values[a].total_cmp(&self.values[b]))
            else {
                return true;
            };
            let row = self.row(position);
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
                if !self.column_in_basis[column] {
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
            self.pivot(position, entering, &direction, &row, reduced_cost);
        }
        false
    }

    /// How the basic variables change as this one enters: `B^-1 a`.
    fn direction(&mut self, entering: Variable) -> Vec<f64> {
        let mut by_row = std::mem::take(&mut self.by_row);
        by_row.iter_mut().for_each(|value| *value = 0.0);
        match entering {
            Variable::Column(column) => self
                .column(column)
                .iter()
                .for_each(|&(row, copies)| by_row[row as usize] = copies),
            Variable::Surplus(row) => by_row[row as usize] = -1.0,
        }
        let mut direction = vec![0.0; self.rows];
        self.factors.forward(&mut by_row, &mut direction);
        self.by_row = by_row;
        direction
    }

    /// A row of the inverse of the basis.
    fn row(&mut self, position: usize) -> Vec<f64> {
        self.by_position.iter_mut().for_each(|value| *value = 0.0);
        self.by_position[position] = 1.0;
        let mut row = vec![0.0; self.rows];
        self.factors.backward(&mut self.by_position, &mut row);
        row
    }

    fn pivot(
        &mut self,
        position: usize,
        entering: Variable,
        direction: &[f64],
        row: &[f64],
        reduced_cost: f64,
    ) {
        let step = self.values[position] / direction[position];
        for (value, along) in self.values.iter_mut().zip(direction) {
            *value -= step * along;
        }
        self.values[position] = step;
        let price_step = reduced_cost / direction[position];
        for (price, inverse) in self.prices.iter_mut().zip(row) {
            *price += price_step * inverse;
        }
        self.factors.exchange(position, direction);
        self.mark(self.basis[position], false);
        self.basis[position] = entering;
        self.mark(entering, true);
        if self.factors.exchange_count() >= EXCHANGES_MAX {
            self.refresh();
        }
    }

    fn mark(&mut self, variable: Variable, in_basis: bool) {
        match variable {
            Variable::Column(column) => self.column_in_basis[column as usize] = in_basis,
            Variable::Surplus(row) => self.surplus_in_basis[row as usize] = in_basis,
        }
    }

    /// Values and prices from the factors.
    fn recompute(&mut self) {
        self.by_row.copy_from_slice(&self.right);
        let (mut by_row, mut values) = (
            std::mem::take(&mut self.by_row),
            std::mem::take(&mut self.values),
        );
        self.factors.forward(&mut by_row, &mut values);
        (self.by_row, self.values) = (by_row, values);
        for (cost, variable) in self.by_position.iter_mut().zip(&self.basis) {
            *cost = if matches!(variable, Variable::Column(_)) {
                1.0
            } else {
                0.0
            };
        }
        self.factors
            .backward(&mut self.by_position, &mut self.prices);
    }

    /// Factors anew; columns that depend on others give way to surpluses.
    fn refresh(&mut self) {
        loop {
            let columns: Vec<Vec<(u32, f64)>> = self
                .basis
                .iter()
                .map(|variable| match *variable {
                    Variable::Column(column) => self.column(column).to_vec(),
                    Variable::Surplus(row) => vec![(row, -1.0)],
                })
                .collect();
            match self.factors.make(self.rows, &columns) {
                Ok(()) => break,
                Err((positions, rows)) => {
                    for (position, row) in positions.into_iter().zip(rows) {
                        self.mark(self.basis[position], false);
                        self.basis[position] = Variable::Surplus(row as u32);
                        self.mark(self.basis[position], true);
                    }
                }
            }
        }
        self.recompute();
    }
}

/// A bound on pivots of one call: far more than any seen, so that cycling ends.
const PIVOT_ROUNDS_MAX: u32 = 50_000;
