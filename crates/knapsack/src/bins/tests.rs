#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use super::*;
use crate::Random;

fn problem(capacity: &[i64], items: &[(&[i64], u64)]) -> BinProblem {
    BinProblem {
        capacity: capacity.to_vec(),
        items: items
            .iter()
            .map(|(size, count)| BinItem {
                size: size.to_vec(),
                count: *count,
            })
            .collect(),
    }
}

fn solved(problem: &BinProblem) -> BinPacking {
    let packing = solve(problem, &BinOptions::default()).unwrap();
    check(problem, &packing).unwrap_or_else(|broken| panic!("{broken}: {problem:?} {packing:?}"));
    packing
}

/// The fewest bins by trying every bin for every copy, bins opened in order.
fn brute_force(problem: &BinProblem) -> u64 {
    let copies: Vec<&BinItem> = problem
        .items
        .iter()
        .flat_map(|item| (0..item.count).map(move |_| item))
        .collect();
    fn place(copies: &[&BinItem], capacity: &[i64], bins: &mut Vec<Vec<i64>>, best: &mut u64) {
        if bins.len() as u64 >= *best {
            return;
        }
        let Some((first, rest)) = copies.split_first() else {
            *best = bins.len() as u64;
            return;
        };
        bins.push(capacity.to_vec());
        for bin in 0..bins.len() {
            if bins[bin]
                .iter()
                .zip(&first.size)
                .all(|(room, size)| room >= size)
            {
                bins[bin]
                    .iter_mut()
                    .zip(&first.size)
                    .for_each(|(room, size)| *room -= size);
                // The bin just opened counts only where it is used.
                let unused = (bin + 1 < bins.len()).then(|| bins.pop().expect("pushed above"));
                place(rest, capacity, bins, best);
                bins.extend(unused);
                bins[bin]
                    .iter_mut()
                    .zip(&first.size)
                    .for_each(|(room, size)| *room += size);
            }
        }
        bins.pop();
    }
    let mut best = copies.len() as u64 + 1;
    place(&copies, &problem.capacity, &mut Vec::new(), &mut best);
    best.min(copies.len() as u64)
}

fn random_problem(random: &mut Random) -> BinProblem {
    let mut below = |limit: u64| random.next() % limit;
    let dimensions = 1 + below(3) as usize;
    let capacity: Vec<i64> = (0..dimensions).map(|_| 5 + below(12) as i64).collect();
    let kinds = 1 + below(5);
    let items = (0..kinds)
        .map(|_| BinItem {
            size: capacity
                .iter()
                .map(|&capacity| below(capacity as u64 + 1) as i64)
                .collect(),
            count: below(3),
        })
        .collect();
    BinProblem { capacity, items }
}

#[test]
fn small_instances_agree_with_brute_force() {
    let mut random = Random(7);
    let mut proven = 0;
    for _ in 0..1_500 {
        let problem = random_problem(&mut random);
        let packing = solved(&problem);
        let optimum = brute_force(&problem);
        assert!(
            packing.lower_bound <= optimum,
            "bound {} of {optimum}: {problem:?}",
            packing.lower_bound
        );
        assert_eq!(packing.bin_count, optimum, "{problem:?}");
        proven += u32::from(packing.is_optimal());
    }
    assert!(proven >= 1_490, "only {proven} proven");
}

#[test]
fn a_packing_is_the_same_for_the_same_seed_and_work() {
    let mut random = Random(11);
    let items = (0..60)
        .map(|_| BinItem {
            size: (0..3).map(|_| 10 + (random.next() % 60) as i64).collect(),
            count: 1,
        })
        .collect();
    let problem = BinProblem {
        capacity: vec![100; 3],
        items,
    };
    for work_max in [0, 100_000, 3_000_000] {
        let options = BinOptions {
            work_max,
            seed: 5,
            stop: None,
        };
        let first = solve(&problem, &options).unwrap();
        check(&problem, &first).unwrap();
        assert_eq!(first, solve(&problem, &options).unwrap(), "work {work_max}");
    }
}

#[test]
fn a_stop_at_once_still_packs_everything() {
    let problem = problem(&[10, 10], &[(&[4, 5], 7), (&[6, 1], 5), (&[3, 3], 11)]);
    let stop = || true;
    let packing = solve(
        &problem,
        &BinOptions {
            stop: Some(&stop),
            ..BinOptions::default()
        },
    )
    .unwrap();
    check(&problem, &packing).unwrap();
}

#[test]
fn bins_without_waste_are_found() {
    // 60 items in planted threes that fill bins exactly in three dimensions.
    let mut random = Random(3);
    let mut items = Vec::new();
    for _ in 0..20 {
        let first: Vec<i64> = (0..3).map(|_| 20 + (random.next() % 30) as i64).collect();
        let second: Vec<i64> = (0..3).map(|_| 20 + (random.next() % 30) as i64).collect();
        let third = (0..3).map(|d| 100 - first[d] - second[d]).collect();
        items.extend([first, second, third].map(|size| BinItem { size, count: 1 }));
    }
    let packing = solved(&BinProblem {
        capacity: vec![100; 3],
        items,
    });
    assert_eq!((packing.bin_count, packing.lower_bound), (20, 20));
}

#[test]
fn the_linear_program_proves_what_volume_cannot() {
    // Volume says 4 bins; no two of these fit together.
    let packing = solved(&problem(&[10, 10], &[(&[6, 1], 3), (&[5, 6], 4)]));
    assert_eq!((packing.bin_count, packing.lower_bound), (7, 7));
}

#[test]
fn odd_problems_are_packed() {
    let huge = i64::MAX;
    let table: &[(&str, BinProblem, u64)] = &[
        ("nothing", problem(&[10], &[]), 0),
        ("nothing of something", problem(&[10], &[(&[3], 0)]), 0),
        ("no dimension", problem(&[], &[(&[], 5)]), 1),
        ("no weight", problem(&[10, 0], &[(&[0, 0], 5)]), 1),
        (
            "no weight beside some",
            problem(&[10], &[(&[0], 5), (&[10], 3)]),
            3,
        ),
        ("an item as large as a bin", problem(&[7], &[(&[7], 2)]), 2),
        (
            "an item too large of which there is none",
            problem(&[7], &[(&[8], 0), (&[1], 1)]),
            1,
        ),
        (
            "the largest numbers",
            problem(&[huge, huge], &[(&[huge, 1], 3), (&[1, huge], 2)]),
            5,
        ),
        (
            "halves of the largest number",
            problem(&[huge], &[(&[huge / 2], 4)]),
            2,
        ),
        (
            "very many copies",
            problem(&[10], &[(&[5], 1 << 62)]),
            1 << 61,
        ),
        (
            "very many copies a bin",
            problem(&[huge], &[(&[1], 1 << 62)]),
            1,
        ),
        (
            "very many copies in a few bins",
            problem(&[1 << 40], &[(&[1], 1 << 42), (&[3], 1)]),
            5,
        ),
        (
            "an idle dimension",
            problem(&[10, 1_000], &[(&[5, 1], 4)]),
            2,
        ),
    ];
    for (name, problem, bins) in table {
        let packing = solved(problem);
        assert_eq!(packing.bin_count, *bins, "{name}");
        assert_eq!(packing.lower_bound, *bins, "{name}");
    }
}

#[test]
fn contradictions_are_errors() {
    let table: &[(BinProblem, BinError)] = &[
        (
            problem(&[10], &[(&[1, 2], 1)]),
            BinError::DimensionCount {
                item: 0,
                expected: 1,
                actual: 2,
            },
        ),
        (
            problem(&[-1], &[]),
            BinError::NegativeCapacity {
                dimension: 0,
                value: -1,
            },
        ),
        (
            problem(&[10], &[(&[-2], 1)]),
            BinError::NegativeSize {
                item: 0,
                dimension: 0,
                value: -2,
            },
        ),
        (
            problem(&[10, 5], &[(&[1, 1], 1), (&[1, 6], 1)]),
            BinError::LargerThanBin {
                item: 1,
                dimension: 1,
                size: 6,
                capacity: 5,
            },
        ),
        (problem(&[1; 33], &[]), BinError::TooManyDimensions(33)),
        (
            problem(&[10], &[(&[1], u64::MAX), (&[1], 2)]),
            BinError::TooManyItems,
        ),
    ];
    for (problem, error) in table {
        assert_eq!(solve(problem, &BinOptions::default()).as_ref(), Err(error));
    }
}

#[test]
fn safety_any_magnitude_packs_without_panic() {
    let mut random = Random(23);
    for round in 0..300 {
        let mut below = |limit: u64| random.next() % limit;
        let dimensions = 1 + below(12) as usize;
        let bits = 1 + below(63) as u32;
        let capacity: Vec<i64> = (0..dimensions)
            .map(|_| (below(u64::MAX) >> (64 - bits)) as i64 & i64::MAX)
            .collect();
        let items = (0..1 + below(12))
            .map(|_| BinItem {
                size: capacity
                    .iter()
                    .map(|&capacity| {
                        if below(4) == 0 {
                            0
                        } else {
                            below(capacity as u64 + 1) as i64
                        }
                    })
                    .collect(),
                count: if below(8) == 0 {
                    below(1 << 40)
                } else {
                    below(4)
                },
            })
            .collect();
        let problem = BinProblem { capacity, items };
        let packing = solve(
            &problem,
            &BinOptions {
                work_max: 200_000,
                ..BinOptions::default()
            },
        )
        .unwrap();
        check(&problem, &packing).unwrap_or_else(|broken| panic!("round {round}: {broken}"));
    }
}
