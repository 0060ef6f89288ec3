//! The breakpoint at which a piecewise linear function stops falling, in linear time (a weighted quickselect).

/// (key, slope factor, column).
pub(crate) type Breakpoint = (f64, f64, usize);

/// Reduces `slope` by the step of each breakpoint, smallest key first, until the next would take it to
/// zero or below. Answers the column of that one and leaves in `breakpoints` those that were passed;
/// `None` if all were passed.
pub(crate) fn weighted(
    breakpoints: &mut Vec<Breakpoint>,
    slope: &mut f64,
    step: impl Fn(usize, f64) -> f64,
) -> Option<usize> {
    // Everything before `low` was passed; the answer is before `high`, if it is anywhere.
    let (mut low, mut high) = (0, breakpoints.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let pivot = median(breakpoints[low], breakpoints[middle], breakpoints[high - 1]);
        let mut split = low;
        for at in low..high {
            if before(&breakpoints[at], &pivot) {
                breakpoints.swap(at, split);
                split += 1;
            }
        }
        let sum: f64 = breakpoints[low..split]
            .iter()
            .map(|(_, alpha, j)| step(*j, *alpha))
            .sum();
        if split > low && *slope - sum <= 0.0 || sum.is_nan() {
            high = split;
            continue;
        }
        *slope -= sum;
        low = split;
        // The pivot itself is the next.
        let at = (low..high).find(|at| breakpoints[*at].2 == pivot.2)?;
        breakpoints.swap(low, at);
        let after = *slope - step(pivot.2, pivot.1);
        if after <= 0.0 || !after.is_finite() {
            breakpoints.truncate(low);
            return Some(pivot.2);
        }
        *slope = after;
        low += 1;
    }
    None
}

fn median(a: Breakpoint, b: Breakpoint, c: Breakpoint) -> Breakpoint {
    let (a, b) = if before(&b, &a) { (b, a) } else { (a, b) };
    if before(&c, &a) {
        a
    } else if before(&b, &c) {
        b
    } else {
        c
    }
}

/// Smaller key first; equal keys by larger factor, then by column, so that the order is total.
fn before(a: &Breakpoint, b: &Breakpoint) -> bool {
    a.0.total_cmp(&b.0)
        .then_with(|| b.1.abs().total_cmp(&a.1.abs()))
        .then_with(|| a.2.cmp(&b.2))
        .is_lt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_as_sorting() {
        let mut random = crate::Random::new(3);
        for round in 0..500 {
            let count = 1 + random.below(40);
            let points: Vec<Breakpoint> = (0..count)
                .map(|j| (random.below(8) as f64, 1.0 + random.below(3) as f64, j))
                .collect();
            let start = random.below(60) as f64 + 0.5;
            let mut sorted = points.clone();
            sorted.sort_by(|a, b| {
                if before(a, b) {
                    std::cmp::Ordering::Less
                } else {
                    std::cmp::Ordering::Greater
                }
            });
            let (mut left, mut expect, mut passed) = (start, None, Vec::new());
            for (_, alpha, j) in &sorted {
                if left - alpha <= 0.0 {
                    expect = Some(*j);
                    break;
                }
                left -= alpha;
                passed.push(*j);
            }
            let (mut slope, mut points) = (start, points);
            let found = weighted(&mut points, &mut slope, |_, alpha| alpha);
            assert_eq!(found, expect, "round {round}");
            if found.is_some() {
                let mut kept: Vec<usize> = points.iter().map(|p| p.2).collect();
                kept.sort_unstable();
                passed.sort_unstable();
                assert_eq!(kept, passed, "round {round}");
            }
        }
    }
}
