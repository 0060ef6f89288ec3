//! Factors of the basis matrix of the linear program: sparse LU, and an eta vector for every later exchange.
//!
//! The pivot of each step is sought in the column with the fewest entries, in its row with the fewest
//! among those that are not too small (a cheap form of Markowitz 1957). [`Factors::forward`] solves
//! `B x = a`, [`Factors::backward`] solves `y B = c`; exchanged columns are kept in product form until
//! the caller factors anew.

/// An entry this small beside the largest of its column is not pivoted on.
const THRESHOLD: f64 = 0.05;
/// Smaller than this is zero.
const ZERO: f64 = 1e-11;

#[derive(Clone, Default)]
pub(super) struct Factors {
    size: usize,
    /// Pivot row and pivot column (position in the basis) of each step, and the pivot.
    steps: Vec<(u32, u32, f64)>,
    lower: Runs,
    upper: Runs,
    /// Position and pivot of every exchange since the factors were made.
    exchanges: Vec<(u32, f64)>,
    etas: Runs,
}

/// Lists of (index, value), end to end.
#[derive(Clone, Default)]
struct Runs {
    ends: Vec<u32>,
    entries: Vec<(u32, f64)>,
}

impl Runs {
    fn clear(&mut self) {
        self.ends.clear();
        self.entries.clear();
    }

    fn close(&mut self) {
        self.ends.push(self.entries.len() as u32);
    }

    fn run(&self, index: usize) -> &[(u32, f64)] {
        let start = if index == 0 {
            0
        } else {
            self.ends[index - 1] as usize
        };
        &self.entries[start..self.ends[index] as usize]
    }
}

impl Factors {
    /// Factors the matrix whose columns these are. Says which columns and rows were left over if some columns depend on others.
    pub(super) fn make(
        &mut self,
        size: usize,
        columns: &[Vec<(u32, f64)>],
    ) -> Result<(), (Vec<usize>, Vec<usize>)> {
        self.size = size;
        self.steps.clear();
        self.lower.clear();
        self.upper.clear();
        self.exchanges.clear();
        self.etas.clear();
        let mut rows: Vec<Vec<(u32, f64)>> = vec![Vec::new(); size];
        let mut column_rows: Vec<Vec<u32>> = vec![Vec::new(); size];
        for (position, column) in columns.iter().enumerate() {
            for &(row, value) in column {
                rows[row as usize].push((position as u32, value));
                column_rows[position].push(row);
            }
        }
        let mut counts: Vec<u32> = column_rows.iter().map(|rows| rows.len() as u32).collect();
        let mut row_open = vec![true; size];
        let mut open: Vec<u32> = (0..size as u32).collect();
        let mut scattered = vec![0.0; size];
        let mut stamp = vec![0u32; size];
        let mut stamp_now = 0;
        let mut dependent: Vec<usize> = Vec::new();
        while !open.is_empty() {
            let mut at = 0;
            for (index, &column) in open.iter().enumerate() {
                if counts[column as usize] < counts[open[at] as usize] {
                    at = index;
                    if counts[column as usize] <= 1 {
                        break;
                    }
                }
            }
            let column = open.swap_remove(at);
            let entries: Vec<(u32, f64)> = column_rows[column as usize]
                .iter()
                .filter(|&&row| row_open[row as usize])
                .filter_map(|&row| {
                    rows[row as usize]
                        .iter()
                        .find(|(other, _)| *other == column)
                        .map(|&(_, value)| (row, value))
                })
                .collect();
            let largest = entries
                .iter()
                .map(|(_, value)| value.abs())
                .fold(0.0, f64::max);
            if largest < 1e-9 {
                dependent.push(column as usize);
                // Its entries are noise; nobody may pivot on them later.
                for (row, _) in entries {
                    rows[row as usize].retain(|(other, _)| *other != column);
                }
                continue;
            }
            let &(pivot_row, pivot) = entries
                .iter()
                .filter(|(_, value)| value.abs() >= THRESHOLD * largest)
                .min_by_key(|(row, _)| (rows[*row as usize].len(), *row))
                .expect("the largest passes");
            row_open[pivot_row as usize] = false;
            let row = std::mem::take(&mut rows[pivot_row as usize]);
            for &(other, _) in &row {
                counts[other as usize] -= 1;
            }
            for &(below, value) in entries.iter().filter(|(row, _)| *row != pivot_row) {
                let factor = value / pivot;
                self.lower.entries.push((below, factor));
                stamp_now += 1;
                for &(other, value) in &row {
                    scattered[other as usize] = value;
                    stamp[other as usize] = stamp_now;
                }
                let target = &mut rows[below as usize];
                target.retain_mut(|(other, value)| {
                    if *other == column {
                        return false;
                    }
                    if stamp[*other as usize] == stamp_now {
                        stamp[*other as usize] = 0;
                        *value -= factor * scattered[*other as usize];
                    }
                    true
                });
                for &(other, value) in row.iter().filter(|(other, _)| *other != column) {
                    if stamp[other as usize] == stamp_now {
                        target.push((other, -factor * value));
                        column_rows[other as usize].push(below);
                        counts[other as usize] += 1;
                    }
                }
            }
            self.lower.close();
            self.upper
                .entries
                .extend(row.into_iter().filter(|(other, _)| *other != column));
            self.upper.close();
            self.steps.push((pivot_row, column, pivot));
        }
        if dependent.is_empty() {
            return Ok(());
        }
        Err((dependent, (0..size).filter(|&row| row_open[row]).collect()))
    }

    /// Solves `B x = a`; `a` comes by row and goes by position.
    pub(super) fn forward(&self, a: &mut [f64], x: &mut [f64]) {
        for (step, &(row, _, _)) in self.steps.iter().enumerate() {
            let value = a[row as usize];
            if value != 0.0 {
                for &(below, factor) in self.lower.run(step) {
                    a[below as usize] -= factor * value;
                }
            }
        }
        for (step, &(row, position, pivot)) in self.steps.iter().enumerate().rev() {
            let mut sum = a[row as usize];
            for &(other, value) in self.upper.run(step) {
                sum -= value * x[other as usize];
            }
            x[position as usize] = sum / pivot;
        }
        for (index, &(position, pivot)) in self.exchanges.iter().enumerate() {
            let value = x[position as usize] / pivot;
            x[position as usize] = value;
            if value != 0.0 {
                for &(other, along) in self.etas.run(index) {
                    x[other as usize] -= along * value;
                }
            }
        }
    }

    /// Solves `y B = c`; `c` comes by position and `y` goes by row.
    pub(super) fn backward(&self, c: &mut [f64], y: &mut [f64]) {
        for (index, &(position, pivot)) in self.exchanges.iter().enumerate().rev() {
            let mut sum = c[position as usize];
            for &(other, along) in self.etas.run(index) {
                sum -= along * c[other as usize];
            }
            c[position as usize] = sum / pivot;
        }
        for (step, &(row, position, pivot)) in self.steps.iter().enumerate() {
            let value = c[position as usize] / pivot;
            y[row as usize] = value;
            if value != 0.0 {
                for &(other, entry) in self.upper.run(step) {
                    c[other as usize] -= entry * value;
                }
            }
        }
        for (step, &(row, _, _)) in self.steps.iter().enumerate().rev() {
            let mut sum = y[row as usize];
            for &(below, factor) in self.lower.run(step) {
                sum -= factor * y[below as usize];
            }
            y[row as usize] = sum;
        }
    }

    /// Replaces the column at a position by the one whose solution of [`Self::forward`] this is.
    pub(super) fn exchange(&mut self, position: usize, direction: &[f64]) {
        self.exchanges.push((position as u32, direction[position]));
        self.etas.entries.extend(
            direction
                .iter()
                .enumerate()
                .filter(|&(other, along)| other != position && along.abs() > ZERO)
                .map(|(other, &along)| (other as u32, along)),
        );
        self.etas.close();
    }

    /// Exchanges since the factors were made.
    pub(super) fn exchange_count(&self) -> usize {
        self.exchanges.len()
    }

    /// Numbers to go through in one solution.
    pub(super) fn entry_count(&self) -> usize {
        self.lower.entries.len()
            + self.upper.entries.len()
            + self.etas.entries.len()
            + 2 * self.size
    }
}
