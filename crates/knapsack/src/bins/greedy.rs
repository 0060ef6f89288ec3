//! Greedy packings, a bin at a time: quick, always complete, and the first columns of column generation.
//!
//! The item that goes next into the open bin is the one of the highest score (Panigrahy, Talwar, Uyeda
//! and Wieder, "Heuristics for Vector Bin Packing", 2011: weighted size, dot product with what is
//! left, least norm of what remains). A filled bin is repeated while there are copies for it.

use super::instance::{Instance, Pattern};
use crate::Random;

/// How the next item of a bin is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Score {
    /// The largest by weighted size.
    Size,
    /// The largest by its largest dimension.
    Largest,
    /// The one most like what is left.
    Dot,
    /// The one that leaves the least.
    Norm,
}

impl Score {
    pub(super) const ALL: [Score; 4] = [Score::Size, Score::Largest, Score::Dot, Score::Norm];
}

/// Packs all copies.
pub(super) fn pack<const W: usize>(
    instance: &Instance<W>,
    score: Score,
    shake: Option<&mut Random>,
) -> Vec<(Pattern, u64)> {
    let mut left = instance.counts.clone();
    pack_rest(instance, score, shake, &mut left)
}

/// Packs the copies in `left`, and takes them out of it.
pub(super) fn pack_rest<const W: usize>(
    instance: &Instance<W>,
    score: Score,
    mut shake: Option<&mut Random>,
    left: &mut [u64],
) -> Vec<(Pattern, u64)> {
    let weights = dimension_weights(instance, left);
    let mut order: Vec<(f64, usize)> = (0..instance.types())
        .filter(|&kind| left[kind] > 0)
        .map(|kind| {
            let share = instance.share(kind);
            let size = match score {
                Score::Largest => {
                    share.iter().copied().fold(0.0, f64::max) + 1e-3 * share.iter().sum::<f64>()
                }
                _ => share
                    .iter()
                    .zip(&weights)
                    .map(|(share, weight)| share * weight)
                    .sum(),
            };
            let noise = shake
                .as_mut()
                .map_or(1.0, |random| 0.9 + 0.2 * unit(random));
            (size * noise, kind)
        })
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut kinds: Vec<usize> = order.into_iter().map(|(_, kind)| kind).collect();
    let mut bins = Vec::new();
    while !kinds.is_empty() {
        let pattern = fill(instance, score, &weights, &kinds, left);
        let times = pattern
            .iter()
            .map(|&(kind, copies)| left[kind as usize] / copies)
            .min()
            .expect("an empty bin holds any item");
        for &(kind, copies) in &pattern {
            left[kind as usize] -= copies * times;
        }
        bins.push((pattern, times));
        kinds.retain(|&kind| left[kind] > 0);
    }
    bins
}

/// Fills one bin from the kinds, which come in order of size.
fn fill<const W: usize>(
    instance: &Instance<W>,
    score: Score,
    weights: &[f64],
    kinds: &[usize],
    left: &[u64],
) -> Pattern {
    let mut rest_raw = instance.capacity_raw.clone();
    let mut rest = instance.capacity;
    let mut pattern: Pattern = Vec::new();
    let scored = matches!(score, Score::Dot | Score::Norm);
    let mut remaining: Vec<f64> = vec![1.0; instance.dimensions()];
    let mut first = true;
    loop {
        let mut chosen: Option<(f64, usize)> = None;
        for &kind in kinds {
            let taken = pattern
                .iter()
                .find(|(taken, _)| *taken as usize == kind)
                .map_or(0, |(_, copies)| *copies);
            if taken >= left[kind] || !rest.fits(&instance.sizes[kind], &instance.guard) {
                continue;
            }
            if first || !scored {
                chosen = Some((0.0, kind));
                break;
            }
            let share = instance.share(kind);
            let value: f64 = match score {
                Score::Dot => share
                    .iter()
                    .zip(&remaining)
                    .zip(weights)
                    .map(|((share, rest), weight)| share * rest * weight)
                    .sum(),
                _ => -share
                    .iter()
                    .zip(&remaining)
                    .zip(weights)
                    .map(|((share, rest), weight)| (rest - share) * (rest - share) * weight)
                    .sum::<f64>(),
            };
            if chosen.is_none_or(|(best, _)| value > best) {
                chosen = Some((value, kind));
            }
        }
        first = false;
        let Some((_, kind)) = chosen else { break };
        let taken = pattern
            .iter()
            .find(|(taken, _)| *taken as usize == kind)
            .map_or(0, |(_, copies)| *copies);
        // Whole runs of one kind at once where the order is by size: a bin may hold billions of them.
        let copies = if scored && instance.copies_max[kind] <= 1_000 {
            1
        } else {
            let by_size = instance.sizes_raw[kind]
                .iter()
                .zip(&rest_raw)
                .filter(|(size, _)| **size > 0)
                .map(|(size, rest)| rest / size)
                .min();
            by_size
                .expect("every type has weight")
                .unsigned_abs()
                .min(left[kind] - taken)
        };
        for (dimension, size) in instance.sizes_raw[kind].iter().enumerate() {
            rest_raw[dimension] -=
                size * i64::try_from(copies).expect("no more than the capacity holds");
            remaining[dimension] =
                rest_raw[dimension] as f64 / instance.capacity_raw[dimension] as f64;
        }
        rest = repack(instance, &rest_raw, rest, kind, copies);
        match pattern
            .iter_mut()
            .find(|(taken, _)| *taken as usize == kind)
        {
            Some((_, taken)) => *taken += copies,
            None => pattern.push((kind as u32, copies)),
        }
    }
    pattern.sort_unstable();
    pattern
}

/// The rest after some copies of a kind: by subtraction where they are few.
fn repack<const W: usize>(
    instance: &Instance<W>,
    rest_raw: &[i64],
    rest: super::packed::Packed<W>,
    kind: usize,
    copies: u64,
) -> super::packed::Packed<W> {
    if copies == 1 {
        return rest
            .minus(&instance.sizes[kind], &instance.guard)
            .expect("it was seen to fit");
    }
    instance.pack(rest_raw)
}

/// How scarce each dimension is: the share of a bin that all items need in it, relative to the scarcest.
pub(super) fn dimension_weights<const W: usize>(instance: &Instance<W>, left: &[u64]) -> Vec<f64> {
    let mut weights = vec![0.0; instance.dimensions()];
    for (kind, &left) in left.iter().enumerate() {
        for (weight, share) in weights.iter_mut().zip(instance.share(kind)) {
            *weight += share * left as f64;
        }
    }
    let largest = weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    weights.iter_mut().for_each(|weight| *weight /= largest);
    weights
}

/// A number from 0 up to 1.
pub(super) fn unit(random: &mut Random) -> f64 {
    (random.next() >> 11) as f64 / (1u64 << 53) as f64
}
