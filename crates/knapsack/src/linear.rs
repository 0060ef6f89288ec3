//! The linear relaxation of one (merged) knapsack with bounded variables, solved by the dual simplex method.
//!
//! maximise p x subject to A x <= b, 0 <= x <= u, with few rows and any number of columns. The basis is
//! kept as an explicit inverse (rows x rows). The ratio test flips bounds on the way (the "long step";
//! I. Maros, A generalized dual phase-2 simplex algorithm, EJOR 149, 2003), so that one iteration may move
//! thousands of columns from one bound to the other, and the number of iterations stays near the number
//! of rows. Everything here is floating point and serves as guidance: what is proven is proven elsewhere,
//! from the multipliers, in integers (see [`crate::bound`]).

/// A relaxation to solve. Columns are dense, one after the other.
pub(crate) struct Linear<'a> {
    pub(crate) rows: usize,
    pub(crate) columns: &'a [f64],
    pub(crate) profit: &'a [f64],
    /// Upper bounds of the columns.
    pub(crate) upper: &'a [f64],
    pub(crate) limit: &'a [f64],
}

/// What the relaxation says.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinearSolution {
    /// The price of a unit of each row, never negative.
    pub(crate) price: Vec<f64>,
    /// The value of each column; at most `rows` of them strictly between their bounds.
    #[cfg(test)]
    x: Vec<f64>,
}

/// Where a column is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Lower,
    Upper,
    Basic,
}

const TOLERANCE: f64 = 1e-9;
/// Columns beyond which a sample of half as many tells where to start.
const SAMPLED_MIN: usize = 8_192;
/// Iterations between two inversions from scratch.
const REFACTOR_EVERY: usize = 40;

struct Tableau<'a> {
    linear: &'a Linear<'a>,
    /// Structural columns first, then one slack a row.
    place: Vec<Place>,
    basis: Vec<usize>,
    /// Inverse of the basis, row-major.
    inverse: Vec<f64>,
    /// Limits less what the columns at their upper bounds use.
    residual: Vec<f64>,
    /// Memory for the ratio test.
    breakpoints: Vec<crate::select::Breakpoint>,
}

pub(crate) fn solve(linear: &Linear, iterations_max: usize) -> LinearSolution {
    let mut tableau = Tableau::cold(linear);
    // Where nearly everything has room a cold start is near, and a sample may be short of room by chance.
    let mut rows = tableau.residual.iter().zip(linear.limit);
    let short = rows.any(|(left, limit)| *left < -0.05 * limit);
    if short
        && linear.profit.len() > SAMPLED_MIN
        && let Some(basis) = sampled_basis(linear, iterations_max)
        && !tableau.restart(basis)
    {
        tableau = Tableau::cold(linear);
    }
    tableau.run(iterations_max);
    tableau.answer()
}

/// The optimal basis of every so many columns and as much less room: nearly that of all of them.
fn sampled_basis(linear: &Linear, iterations_max: usize) -> Option<Vec<usize>> {
    let count = linear.profit.len();
    let stride = count / (SAMPLED_MIN / 2);
    let sample = || (0..count).step_by(stride);
    let columns: Vec<f64> = sample().flat_map(|j| linear.column(j)).copied().collect();
    let profit: Vec<f64> = sample().map(|j| linear.profit[j]).collect();
    let upper: Vec<f64> = sample().map(|j| linear.upper[j]).collect();
    // Of each row, the share of the room that is the sample's share of all that would use it.
    let limit: Vec<f64> = (0..linear.rows)
        .map(|r| {
            let used = |j: usize| linear.column(j)[r] * linear.upper[j];
            let all: f64 = (0..count).map(used).sum();
            let share = sample().map(used).sum::<f64>() / all;
            linear.limit[r] * if share.is_finite() { share } else { 1.0 }
        })
        .collect();
    let small = Linear {
        rows: linear.rows,
        columns: &columns,
        profit: &profit,
        upper: &upper,
        limit: &limit,
    };
    let mut tableau = Tableau::cold(&small);
    tableau.run(iterations_max);
    let of_all = |j: usize| match j.checked_sub(profit.len()) {
        Some(slack) => count + slack,
        None => j * stride,
    };
    Some(tableau.basis.iter().map(|j| of_all(*j)).collect())
}

impl Linear<'_> {
    fn column(&self, j: usize) -> &[f64] {
        &self.columns[j * self.rows..(j + 1) * self.rows]
    }
}

impl<'a> Tableau<'a> {
    /// Every column that brings something at its upper bound, the slacks in the basis.
    fn cold(linear: &'a Linear<'a>) -> Self {
        let (rows, count) = (linear.rows, linear.profit.len());
        let mut place = vec![Place::Lower; count + rows];
        let mut residual = linear.limit.to_vec();
        for (j, place) in place.iter_mut().enumerate().take(count) {
            if linear.profit[j] > 0.0 && linear.upper[j] > 0.0 {
                *place = Place::Upper;
                for (r, a) in residual.iter_mut().zip(linear.column(j)) {
                    *r -= a * linear.upper[j];
                }
            }
        }
        let mut inverse = vec![0.0; rows * rows];
        for r in 0..rows {
            place[count + r] = Place::Basic;
            inverse[r * rows + r] = 1.0;
        }
        Tableau {
            linear,
            place,
            basis: (count..count + rows).collect(),
            inverse,
            residual,
            breakpoints: Vec::new(),
        }
    }

    /// Starts anew from a basis, every other column where its reduced profit says; false if that is no start.
    fn restart(&mut self, basis: Vec<usize>) -> bool {
        let count = self.linear.profit.len();
        self.basis = basis;
        if !self.refactor() {
            return false;
        }
        let prices = self.prices();
        if prices.iter().any(|y| *y < -TOLERANCE) {
            return false;
        }
        self.place.fill(Place::Lower);
        for j in &self.basis {
            self.place[*j] = Place::Basic;
        }
        self.residual.copy_from_slice(self.linear.limit);
        for j in 0..count {
            let reduced = self.linear.profit[j] - self.dot(&prices, j);
            let upper = self.linear.upper[j];
            if self.place[j] == Place::Lower && reduced > 0.0 && upper > 0.0 {
                self.place[j] = Place::Upper;
                self.shift_residual(j, upper);
            }
        }
        true
    }

    fn run(&mut self, iterations_max: usize) {
        for iteration in 0..iterations_max {
            if iteration % REFACTOR_EVERY == REFACTOR_EVERY - 1 && !self.refactor() {
                break;
            }
            if !self.step() {
                break;
            }
        }
    }

    fn upper(&self, j: usize) -> f64 {
        self.linear.upper.get(j).copied().unwrap_or(f64::INFINITY)
    }

    fn profit(&self, j: usize) -> f64 {
        self.linear.profit.get(j).copied().unwrap_or(0.0)
    }

    /// `row` times column `j`.
    fn dot(&self, row: &[f64], j: usize) -> f64 {
        let count = self.linear.profit.len();
        if j < count {
            row.iter()
                .zip(self.linear.column(j))
                .map(|(a, b)| a * b)
                .sum()
        } else {
            row[j - count]
        }
    }

    fn basic_values(&self) -> Vec<f64> {
        let rows = self.linear.rows;
        (0..rows)
            .map(|r| {
                let row = &self.inverse[r * rows..(r + 1) * rows];
                row.iter().zip(&self.residual).map(|(a, b)| a * b).sum()
            })
            .collect()
    }

    fn prices(&self) -> Vec<f64> {
        let rows = self.linear.rows;
        let mut prices = vec![0.0; rows];
        for (r, j) in self.basis.iter().enumerate() {
            let profit = self.profit(*j);
            if profit != 0.0 {
                for (price, a) in prices
                    .iter_mut()
                    .zip(&self.inverse[r * rows..(r + 1) * rows])
                {
                    *price += profit * a;
                }
            }
        }
        prices
    }

    fn shift_residual(&mut self, j: usize, amount: f64) {
        let count = self.linear.profit.len();
        if j < count {
            let column = &self.linear.columns[j * self.linear.rows..(j + 1) * self.linear.rows];
            for (r, a) in self.residual.iter_mut().zip(column) {
                *r -= a * amount;
            }
        } else {
            self.residual[j - count] -= amount;
        }
    }

    /// One iteration; false when nothing is infeasible any more (or numbers no longer allow a step).
    fn step(&mut self) -> bool {
        let rows = self.linear.rows;
        let values = self.basic_values();
        // The basic variable farthest outside its bounds leaves.
        let mut leaving: Option<(usize, f64, f64)> = None;
        for (r, value) in values.iter().enumerate() {
            let (outside, sign) = if *value < -TOLERANCE {
                (-value, 1.0)
            } else if *value > self.upper(self.basis[r]) + TOLERANCE {
                (value - self.upper(self.basis[r]), -1.0)
            } else {
                continue;
            };
            if leaving.is_none_or(|(_, most, _)| outside > most) {
                leaving = Some((r, outside, sign));
            }
        }
        let Some((r, mut slope, sign)) = leaving else {
            return false;
        };
        let row: Vec<f64> = self.inverse[r * rows..(r + 1) * rows]
            .iter()
            .map(|a| a * sign)
            .collect();
        let prices = self.prices();
        let mut breakpoints = std::mem::take(&mut self.breakpoints);
        breakpoints.clear();
        for j in 0..self.place.len() {
            let place = self.place[j];
            if place == Place::Basic || self.upper(j) <= 0.0 {
                continue;
            }
            let alpha = self.dot(&row, j);
            if (place == Place::Upper && alpha > TOLERANCE)
                || (place == Place::Lower && alpha < -TOLERANCE)
            {
                let reduced = self.profit(j) - self.dot(&prices, j);
                breakpoints.push(((reduced / alpha).max(0.0), alpha, j));
            }
        }
        // Pass breakpoints, nearest first, for as long as the dual objective still falls.
        let step = |j: usize, alpha: f64| alpha.abs() * self.upper(j);
        let Some(entering) = crate::select::weighted(&mut breakpoints, &mut slope, step) else {
            return false;
        };
        for (_, _, j) in &breakpoints {
            let j = *j;
            let upper = self.upper(j);
            if self.place[j] == Place::Upper {
                self.place[j] = Place::Lower;
                self.shift_residual(j, -upper);
            } else {
                self.place[j] = Place::Upper;
                self.shift_residual(j, upper);
            }
        }
        self.breakpoints = breakpoints;
        let out = self.basis[r];
        if sign < 0.0 {
            self.place[out] = Place::Upper;
            let upper = self.upper(out);
            self.shift_residual(out, upper);
        } else {
            self.place[out] = Place::Lower;
        }
        if self.place[entering] == Place::Upper {
            let upper = self.upper(entering);
            self.shift_residual(entering, -upper);
        }
        self.place[entering] = Place::Basic;
        self.basis[r] = entering;
        self.pivot(r, entering)
    }

    fn pivot(&mut self, r: usize, entering: usize) -> bool {
        let rows = self.linear.rows;
        let direction: Vec<f64> = (0..rows)
            .map(|s| self.dot(&self.inverse[s * rows..(s + 1) * rows], entering))
            .collect();
        if direction[r].abs() < 1e-12 {
            return self.refactor();
        }
        for c in 0..rows {
            let scaled = self.inverse[r * rows + c] / direction[r];
            self.inverse[r * rows + c] = scaled;
            if scaled != 0.0 {
                for (s, factor) in direction.iter().enumerate() {
                    if s != r {
                        self.inverse[s * rows + c] -= factor * scaled;
                    }
                }
            }
        }
        true
    }

    /// Inverts the basis anew (Gauss and Jordan, partial pivoting); false if it is singular.
    fn refactor(&mut self) -> bool {
        let rows = self.linear.rows;
        let count = self.linear.profit.len();
        let mut matrix = vec![0.0; rows * rows];
        for (c, j) in self.basis.iter().enumerate() {
            if *j < count {
                for (r, a) in self.linear.column(*j).iter().enumerate() {
                    matrix[r * rows + c] = *a;
                }
            } else {
                matrix[(j - count) * rows + c] = 1.0;
            }
        }
        let mut inverse = vec![0.0; rows * rows];
        for r in 0..rows {
            inverse[r * rows + r] = 1.0;
        }
        for c in 0..rows {
            let at = |m: &[f64], r: usize| m[r * rows + c].abs();
            let best = (c..rows)
                .max_by(|a, b| at(&matrix, *a).total_cmp(&at(&matrix, *b)))
                .unwrap_or(c);
            if at(&matrix, best) < 1e-13 {
                return false;
            }
            for k in 0..rows {
                matrix.swap(c * rows + k, best * rows + k);
                inverse.swap(c * rows + k, best * rows + k);
            }
            let pivot = matrix[c * rows + c];
            for k in 0..rows {
                matrix[c * rows + k] /= pivot;
                inverse[c * rows + k] /= pivot;
            }
            for r in 0..rows {
                let factor = matrix[r * rows + c];
                if r != c && factor != 0.0 {
                    for k in 0..rows {
                        matrix[r * rows + k] -= factor * matrix[c * rows + k];
                        inverse[r * rows + k] -= factor * inverse[c * rows + k];
                    }
                }
            }
        }
        self.inverse = inverse;
        true
    }

    fn answer(&self) -> LinearSolution {
        let price = self.prices();
        LinearSolution {
            price: price
                .iter()
                .map(|p| if p.is_finite() { p.max(0.0) } else { 0.0 })
                .collect(),
            #[cfg(test)]
            x: self.primal(),
        }
    }

    #[cfg(test)]
    fn primal(&self) -> Vec<f64> {
        let count = self.linear.profit.len();
        let mut x: Vec<f64> = (0..count)
            .map(|j| match self.place[j] {
                Place::Upper => self.linear.upper[j],
                Place::Lower | Place::Basic => 0.0,
            })
            .collect();
        for (value, j) in self.basic_values().iter().zip(&self.basis) {
            if *j < count {
                x[*j] = value.clamp(0.0, self.linear.upper[*j]);
            }
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(columns: &[f64], profit: &[f64], upper: &[f64], limit: &[f64], expect: f64) {
        let solution = solve(
            &Linear {
                rows: limit.len(),
                columns,
                profit,
                upper,
                limit,
            },
            1000,
        );
        let primal: f64 = solution.x.iter().zip(profit).map(|(x, p)| x * p).sum();
        assert!((primal - expect).abs() < 1e-6, "{primal} is not {expect}");
        let mut dual: f64 = solution.price.iter().zip(limit).map(|(y, b)| y * b).sum();
        for (j, p) in profit.iter().enumerate() {
            let rows = limit.len();
            let used: f64 = columns[j * rows..(j + 1) * rows]
                .iter()
                .zip(&solution.price)
                .map(|(a, y)| a * y)
                .sum();
            dual += upper[j] * (p - used).max(0.0);
        }
        assert!((dual - expect).abs() < 1e-6, "dual {dual} is not {expect}");
    }

    #[test]
    fn small_relaxations_meet_their_known_optimum() {
        // One row: the fractional knapsack.
        check(&[2.0, 3.0, 4.0], &[6.0, 6.0, 4.0], &[1.0; 3], &[4.0], 10.0);
        // Everything fits.
        check(&[1.0, 1.0], &[3.0, 4.0], &[1.0, 2.0], &[10.0], 11.0);
        // Two rows, both bind.
        check(
            &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0],
            &[2.0, 2.0, 3.0],
            &[1.0; 3],
            &[1.0, 1.0],
            4.0,
        );
        // Nothing fits.
        check(&[1.0], &[1.0], &[1.0], &[0.0], 0.0);
    }
}
