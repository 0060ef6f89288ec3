//! Large kinds into knapsacks such that what remains free can be filled by what is still to come.
//!
//! Enter at [`Packer::place_large`] for all knapsacks, and at [`Packer::place_bulk`] for one. What is free is measured in
//! means of what is to come, u in each dimension. Sums of many kinds lie around multiples of the mean, with as much
//! spread as they are long; how much rarer than there they are at u is, where weights are distributed exponentially,
//! the logarithm of the arithmetic over the geometric mean of u (the distance of Itakura and Saito, 6th International
//! Congress on Acoustics, 1968) for each kind still to come. It is mild where a dimension is in abundance
//! and rises without limit where one runs out, which is what no later choice mends. Large first and each to where
//! the measure rises least is the item-centric greedy of Panigrahy and others (Heuristics for Vector Bin Packing,
//! 2011) with this measure.

use super::Packer;
use super::stream::CLOSERS;
use super::supply::Supply;
use crate::Work;
use crate::close::worth;
use crate::state::State;

/// Share of what is to come, at the prices, that is large.
const LARGE_SHARE: f64 = 0.5;
/// Placed so many, the measure is taken anew.
const REFRESH: usize = 200;
/// What it costs to leave too little for a set of closers and too much to lose.
const TOO_LITTLE: f64 = 1e3;
/// Kinds that fit looked at for one choice of bulk; and at most, where none of them leaves good proportions.
const WINDOW: usize = 48;
const WINDOW_MAX: usize = 1_000;
/// Proportions are good if sets in them are at least a third as frequent as at the mean.
const GOOD: f64 = 1.0;
/// Bulk is put in until less is free than this many times the common rest, and never leaves less than that many.
const ENOUGH: f64 = 1.4;
const LEAST: f64 = 0.7;
/// Kinds to come that count; what is left out of proportion by the first of many can be mended by the others.
const COUNTED: f64 = 8.0;

/// What is to come, by dimension.
struct Proportion {
    /// Dimensions that cost something, and one over the mean in each.
    priced: Vec<(usize, f64)>,
}

impl Proportion {
    fn new(price: &[f64], mean: &[f64]) -> Self {
        let dearest = price
            .iter()
            .zip(mean)
            .map(|(y, m)| y * m)
            .fold(0.0, f64::max);
        let dimensions = 0..price.len();
        let priced = dimensions.filter(|d| price[*d] * mean[*d] > 0.02 * dearest);
        Proportion {
            priced: priced.map(|d| (d, 1.0 / mean[d])).collect(),
        }
    }

    /// A vector in means, one number for each dimension that counts.
    fn scaled<'v>(&'v self, vector: &'v [i64]) -> impl Iterator<Item = f64> + 'v {
        self.priced.iter().map(|(d, per)| vector[*d] as f64 * per)
    }

    /// What is free without a weight, in means, and how much rarer such sums are than those of the mean's proportions.
    fn after(&self, free: &[i64], weight: &[i64]) -> (f64, f64) {
        let left = |(d, per): &(usize, f64)| (free[*d] - weight[*d]) as f64 * per;
        measure(self.priced.iter().map(left))
    }
}

/// The mean of some numbers, and the logarithm of it over their geometric mean for each of them.
fn measure(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut count, mut sum, mut product) = (0u32, 0.0, 1.0);
    for number in numbers {
        count += 1;
        sum += number;
        product *= number.max(1e-9);
    }
    let mean = sum / f64::from(count.max(1));
    let powers = (0..count).fold(1.0, |power, _| power * mean);
    (mean, (powers / product).ln().max(0.0))
}

impl Packer<'_> {
    /// Places large kinds, largest first, each into the knapsack where the measure rises least.
    pub(super) fn place_large(
        &self,
        state: &mut State,
        bulk: &mut Supply,
        closers: &Supply,
        work: &mut Work,
    ) {
        let model = self.model;
        let price = &self.mean_price;
        let count = model.knapsack_count;
        let sum = |bulk: &Supply| -> Vec<f64> {
            bulk.sum
                .iter()
                .zip(&closers.sum)
                .map(|(a, b)| a + b)
                .collect()
        };
        let cost = |sum: &[f64]| worth_of(sum, price);
        let until = cost(&sum(bulk)) * (1.0 - LARGE_SHARE);
        // What a set of closers takes.
        let set = CLOSERS * cost(&closers.sum) / closers.copies.max(1.0);
        let lost = self.closing.goal * cost(&model.scale);
        let mut measures = vec![0.0; count];
        // Free and to be placed, scaled by the proportion.
        let (mut frees, mut scaled) = (Vec::new(), Vec::new());
        let (mut proportion, mut placed) = (Proportion::new(price, &closers.sum), 0);
        let mut gap = (0.0, 0.0);
        for at in 0..bulk.kinds.len() {
            let kind = bulk.kinds[at];
            while state.unplaced[kind as usize] > 0 {
                if placed % REFRESH == 0 {
                    let sum = sum(bulk);
                    if cost(&sum) <= until || work.exhausted() {
                        return;
                    }
                    let mean: Vec<f64> = sum.iter().map(|s| s / count as f64).collect();
                    proportion = Proportion::new(price, &mean);
                    gap = (lost / cost(&mean), set / cost(&mean));
                    frees.clear();
                    for (knapsack, before) in measures.iter_mut().enumerate() {
                        frees.extend(proportion.scaled(state.free(knapsack)));
                        let (length, nats) = measure(proportion.scaled(state.free(knapsack)));
                        *before = length * nats;
                    }
                }
                scaled.clear();
                scaled.extend(proportion.scaled(model.class_weight(kind as usize, 0)));
                let width = scaled.len().max(1);
                let mut best = (f64::INFINITY, 0, 0.0);
                for (knapsack, free) in frees.chunks_exact(width).enumerate() {
                    let before = measures[knapsack];
                    let left = || free.iter().zip(&scaled).map(|(f, w)| f - w);
                    if left().any(|left| left < -1e-9) {
                        continue;
                    }
                    let (length, nats) = measure(left());
                    let after = match length {
                        _ if length <= gap.0 => 0.0,
                        _ if length < gap.1 => TOO_LITTLE,
                        _ => length * nats,
                    };
                    if after - before < best.0 && state.room(kind as usize, knapsack, 1) > 0 {
                        best = (after - before, knapsack, after);
                    }
                }
                work.spend(count as u64 / 4 + 1);
                let (rise, knapsack, after) = best;
                if rise == f64::INFINITY {
                    break;
                }
                state.put(kind as usize, knapsack, 1);
                bulk.used(kind, state);
                measures[knapsack] = after;
                let free = &mut frees[knapsack * width..(knapsack + 1) * width];
                for (free, w) in free.iter_mut().zip(&scaled) {
                    *free -= w;
                }
                placed += 1;
            }
        }
    }

    /// Puts in bulk until what is free is like the common rest: of the largest kinds that fit, whichever leaves the best proportions.
    pub(super) fn place_bulk(
        &mut self,
        state: &mut State,
        knapsack: usize,
        bulk: &mut Supply,
        work: &mut Work,
    ) {
        let dimensions = self.model.dimensions;
        let class = self.model.class_of[knapsack] as usize * dimensions;
        let price = &self.price[class..class + dimensions];
        let proportion = Proportion::new(price, &self.rest);
        let none = vec![0; dimensions];
        let whole = worth(&self.model.problem.knapsacks[knapsack].capacity, price);
        let lost = self.closing.goal * whole / worth_of(&self.rest, price).max(1e-30);
        loop {
            bulk.compact(state);
            let free = state.free(knapsack);
            let list = &bulk.kinds[bulk.front..];
            if list.is_empty() || proportion.after(free, &none).0 < ENOUGH {
                return;
            }
            let most = extent(free, &self.mean_price);
            let start = match bulk.sorted {
                true => list.partition_point(|kind| self.extent[*kind as usize] > most),
                false => self.random.below(list.len()),
            };
            let mut best: Option<(f64, u32)> = None;
            let (mut seen, mut looked) = (0, 0);
            for step in start..start + list.len() {
                let at = match step < list.len() {
                    true => step,
                    false if bulk.sorted => break,
                    false => step - list.len(),
                };
                let kind = list[at];
                looked += 1;
                if state.unplaced[kind as usize] == 0 {
                    continue;
                }
                let weight = self.model.class_weight(kind as usize, 0);
                if weight.iter().zip(free).any(|(w, f)| w > f) {
                    continue;
                }
                let (length, nats) = proportion.after(free, weight);
                if length < LEAST && length > lost || state.room(kind as usize, knapsack, 1) == 0 {
                    continue;
                }
                let off = match length > lost {
                    true => nats * (4.0 * length).clamp(1.0, COUNTED),
                    false => -1.0,
                };
                if best.is_none_or(|(least, _)| off < least) {
                    best = Some((off, kind));
                }
                seen += 1;
                if off < 0.0
                    || seen >= WINDOW && best.is_some_and(|(least, _)| least < GOOD)
                    || seen >= WINDOW_MAX
                {
                    break;
                }
            }
            work.spend(looked / 2 + 1);
            let Some((_, kind)) = best else { return };
            state.put(kind as usize, knapsack, 1);
            bulk.used(kind, state);
        }
    }
}

/// The largest part of a vector at the prices.
pub(super) fn extent(vector: &[i64], price: &[f64]) -> f64 {
    let parts = vector.iter().zip(price).map(|(w, y)| *w as f64 * y);
    parts.fold(0.0, f64::max)
}

fn worth_of(vector: &[f64], price: &[f64]) -> f64 {
    vector.iter().zip(price).map(|(v, y)| v * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use crate::pack::Effort;
    use crate::{Item, Knapsack, Problem, Profit, Random, Weight};

    #[test]
    fn the_measure_is_none_in_proportion_and_without_limit_where_nothing_is_left() {
        let of = |numbers: [f64; 3]| measure(numbers.into_iter());
        assert_eq!(of([2.0; 3]), (2.0, 0.0));
        let (mean, mild) = of([1.0, 1.0, 4.0]);
        assert!((mean - 2.0).abs() < 1e-12);
        assert!((mild - (8.0f64 / 4.0).ln()).abs() < 1e-12);
        let (_, harsh) = of([0.01, 2.0, 3.99]);
        assert!(harsh > mild);
        assert!(of([0.0, 3.0, 3.0]).1 > 15.0);
    }

    /// Knapsacks cut at points drawn for each dimension; a piece is worth what it weighs, so the best is to place all.
    fn cut(random: &mut Random, knapsacks: usize) -> (Problem, i64) {
        let mut items = Vec::new();
        let (side, mut total) = (1_000, 0);
        for _ in 0..knapsacks {
            let pieces = 2 + random.below(11);
            let mut weights = vec![vec![0; 3]; pieces];
            for d in 0..3 {
                let mut points: Vec<i64> = (1..pieces)
                    .map(|_| random.below(side as usize + 1) as i64)
                    .chain([0, side])
                    .collect();
                points.sort_unstable();
                for (weight, ends) in weights.iter_mut().zip(points.windows(2)) {
                    weight[d] = ends[1] - ends[0];
                }
            }
            for weight in weights {
                let profit: i64 = weight.iter().sum();
                total += profit;
                items.push(Item {
                    weight: Weight::Same(weight),
                    profit: Profit::Same(profit),
                    multiplicity: 1,
                    allowed: None,
                });
            }
        }
        let problem = Problem {
            dimension_count: 3,
            knapsacks: vec![
                Knapsack {
                    capacity: vec![side; 3]
                };
                knapsacks
            ],
            items,
            ..Problem::default()
        };
        (problem, total)
    }

    #[test]
    fn kinds_of_very_different_size_fill_knapsacks_all_but_exactly() {
        let (problem, total) = cut(&mut Random::new(7), 400);
        let model = Model::new(&problem);
        let mut work = Work::new(u64::MAX, None);
        let price = vec![1.0; 3];
        let mut packer = Packer::new(&model, price, 1);
        assert!(packer.varied);
        let mut greedy = State::new(&model);
        let effort = Effort {
            candidates: 96,
            triples: 0,
            attempts: 1,
        };
        packer.fill_all(&mut greedy, effort, &mut work);
        let mut state = State::new(&model);
        packer.stream(&mut state, &mut work);
        for knapsack in 0..model.knapsack_count {
            assert!(state.free(knapsack).iter().all(|free| *free >= 0));
        }
        let lost = |state: &State| (total - state.value()) as f64 / total as f64;
        assert!(lost(&state) < 0.02, "{} lost", lost(&state));
        assert!(lost(&state) < 0.2 * lost(&greedy), "{} lost", lost(&greedy));
    }

    #[test]
    fn large_kinds_leave_a_set_of_closers_or_nothing() {
        let (problem, _) = cut(&mut Random::new(3), 300);
        let model = Model::new(&problem);
        let mut work = Work::new(u64::MAX, None);
        let mut packer = Packer::new(&model, vec![1.0; 3], 1);
        let mut state = State::new(&model);
        let (mut bulk, closers, _) = packer.divide(&state);
        packer.place_large(&mut state, &mut bulk, &closers, &mut work);
        let free = |knapsack| state.free(knapsack).iter().sum::<i64>() as f64;
        let all: f64 = (0..300).map(free).sum();
        let share = all / (300.0 * 3_000.0);
        assert!((0.3..0.6).contains(&share), "{share} is still free");
        let set = CLOSERS * closers.sum.iter().sum::<f64>() / closers.copies;
        let between = (0..300).filter(|k| free(*k) > 3.0 && free(*k) < 0.9 * set);
        assert!(between.count() < 15);
    }
}
