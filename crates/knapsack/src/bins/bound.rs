//! Lower bounds that need no search: volume, dual feasible functions, pairwise conflicts.
//!
//! A dual feasible function maps sizes so that whatever fitted before fits after; the volume of the
//! mapped sizes is then a bound as well. Used: the threshold function of Martello and Toth's L2 and
//! the rounding functions u(k) of Fekete and Schepers (2001), a dimension at a time. All in integers.

use super::instance::Instance;

/// The best of the bounds, at least 1.
pub(super) fn lower_bound<const W: usize>(instance: &Instance<W>) -> u64 {
    let mut best = 1;
    for dimension in 0..instance.dimensions() {
        let capacity = i128::from(instance.capacity_raw[dimension]);
        let sizes: Vec<(i128, i128)> = instance
            .sizes_raw
            .iter()
            .zip(&instance.counts)
            .map(|(size, &count)| (i128::from(size[dimension]), i128::from(count)))
            .collect();
        best = best.max(volume(capacity, &sizes));
        best = best.max(thresholds(capacity, &sizes));
        for steps in 1..=STEPS_MAX {
            best = best.max(rounded(capacity, &sizes, steps));
        }
    }
    best.max(conflicts(instance))
}

/// Largest k of u(k): beyond it the functions approach the identity.
const STEPS_MAX: i128 = 12;

/// Most distinct types for the quadratic bounds.
const TYPES_MAX: usize = 4_000;

fn volume(capacity: i128, sizes: &[(i128, i128)]) -> u64 {
    bins(
        sizes.iter().map(|(size, count)| size * count).sum(),
        capacity,
    )
}

fn bins(volume: i128, capacity: i128) -> u64 {
    u64::try_from((volume + capacity - 1) / capacity).expect("no more bins than items")
}

/// L2: for a threshold t up to half a bin, what exceeds capacity - t takes a whole bin and what is below t nothing.
fn thresholds(capacity: i128, sizes: &[(i128, i128)]) -> u64 {
    let mut sorted: Vec<(i128, i128)> = sizes
        .iter()
        .copied()
        .filter(|(size, _)| *size > 0)
        .collect();
    sorted.sort_unstable();
    if sorted.len() > TYPES_MAX {
        return 0;
    }
    let mut best = 0;
    for threshold in sorted
        .iter()
        .map(|(size, _)| *size)
        .filter(|size| size * 2 <= capacity)
    {
        let mapped = sorted
            .iter()
            .map(|&(size, count)| {
                count
                    * if size > capacity - threshold {
                        capacity
                    } else if size < threshold {
                        0
                    } else {
                        size
                    }
            })
            .sum();
        best = best.max(bins(mapped, capacity));
    }
    best
}

/// u(k): a size that is a multiple of capacity/(k+1) stays, every other is rounded down to a multiple of capacity/k.
fn rounded(capacity: i128, sizes: &[(i128, i128)], steps: i128) -> u64 {
    // In units of capacity / (k * (k + 1)), so that both cases are whole numbers of 1/(k(k+1)) of a bin.
    let unit = steps * (steps + 1);
    let mapped = sizes
        .iter()
        .map(|&(size, count)| {
            let scaled = size * (steps + 1);
            count
                * if scaled % capacity == 0 {
                    scaled / capacity * steps
                } else {
                    scaled / capacity * (steps + 1)
                }
        })
        .sum();
    bins(mapped, unit)
}

/// Items no two of which fit into one bin need a bin each: a greedy clique of such items.
fn conflicts<const W: usize>(instance: &Instance<W>) -> u64 {
    if instance.types() > TYPES_MAX {
        return 0;
    }
    let apart = |a: usize, b: usize| {
        let rest = instance
            .capacity
            .minus(&instance.sizes[a], &instance.guard)
            .expect("every item fits into an empty bin");
        !rest.fits(&instance.sizes[b], &instance.guard)
    };
    let largest = |kind: usize| instance.share(kind).iter().copied().fold(0.0, f64::max);
    let mut order: Vec<usize> = (0..instance.types()).collect();
    order.sort_by(|&a, &b| largest(b).total_cmp(&largest(a)).then(a.cmp(&b)));
    let mut clique: Vec<usize> = Vec::new();
    let mut bins = 0;
    for kind in order {
        if clique.iter().all(|&member| apart(member, kind)) {
            clique.push(kind);
            bins += if apart(kind, kind) {
                instance.counts[kind]
            } else {
                1
            };
        }
    }
    bins
}
