//! An independent check of a packing; shares no code with the solver.

use super::{BinPacking, BinProblem};

/// The first rule that a packing breaks, in words; `Ok` if it breaks none.
///
/// # Errors
/// A sentence about an overfull bin, an item packed too often or too seldom, or a wrong count.
pub fn check(problem: &BinProblem, packing: &BinPacking) -> Result<(), String> {
    let mut packed: Vec<u128> = vec![0; problem.items.len()];
    let mut bins: u128 = 0;
    for (number, group) in packing.groups.iter().enumerate() {
        bins += u128::from(group.bins);
        for (dimension, &capacity) in problem.capacity.iter().enumerate() {
            let mut load: i128 = 0;
            for &(item, count) in &group.content {
                let item = problem
                    .items
                    .get(item)
                    .ok_or_else(|| format!("no item {item}"))?;
                load = load.saturating_add(
                    i128::from(item.size[dimension]).saturating_mul(i128::from(count)),
                );
            }
            if load > i128::from(capacity) {
                return Err(format!(
                    "group {number} holds {load} of {capacity} in dimension {dimension}"
                ));
            }
        }
        for &(item, count) in &group.content {
            *packed
                .get_mut(item)
                .ok_or_else(|| format!("no item {item}"))? +=
                u128::from(count) * u128::from(group.bins);
        }
    }
    for (index, (item, packed)) in problem.items.iter().zip(&packed).enumerate() {
        if *packed != u128::from(item.count) {
            return Err(format!(
                "item {index} is packed {packed} times of {}",
                item.count
            ));
        }
    }
    if bins != u128::from(packing.bin_count) {
        return Err(format!(
            "{bins} bins are used, and {} are said to be",
            packing.bin_count
        ));
    }
    if packing.lower_bound > packing.bin_count {
        return Err(format!(
            "the lower bound {} exceeds the {} bins used",
            packing.lower_bound, packing.bin_count
        ));
    }
    Ok(())
}
