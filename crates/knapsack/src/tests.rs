//! Properties over seeded random problems, brute force as the oracle, and the odd inputs.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use super::*;

fn random_problem(random: &mut Random, small: bool) -> Problem {
    let mut pick = |limit: u64| (random.next() >> 16) % limit;
    let dimension_count = 1 + pick(3) as usize;
    let knapsack_count = if small { 1 + pick(3) } else { 1 + pick(12) } as usize;
    let item_count = if small { 1 + pick(4) } else { 1 + pick(20) } as usize;
    let knapsacks: Vec<Knapsack> = (0..knapsack_count)
        .map(|_| Knapsack {
            capacity: (0..dimension_count).map(|_| pick(20) as i64 - 1).collect(),
        })
        .collect();
    let items = (0..item_count)
        .map(|_| {
            let mut vector = || {
                (0..dimension_count)
                    .map(|_| pick(9) as i64)
                    .collect::<Vec<_>>()
            };
            let weight = if vector()[0] == 0 {
                Weight::PerKnapsack((0..knapsack_count).map(|_| vector()).collect())
            } else {
                Weight::Same(vector())
            };
            let profit = match pick(3) {
                0 => {
                    Profit::PerKnapsack((0..knapsack_count).map(|_| pick(12) as i64 - 1).collect())
                }
                _ => Profit::Same(pick(12) as i64),
            };
            let allowed = (pick(3) == 0).then(|| {
                Arc::new(
                    (0..knapsack_count)
                        .filter(|_| pick(2) == 0)
                        .collect::<KnapsackSet>(),
                )
            });
            Item {
                weight,
                profit,
                multiplicity: 1 + pick(if small { 2 } else { 9 }) as u32,
                allowed,
            }
        })
        .collect();
    let conflicts = (0..pick(3))
        .map(|_| Conflict {
            members: (0..item_count as u32).filter(|_| pick(2) == 0).collect(),
            domains: (pick(2) == 0).then(|| {
                Arc::new(
                    (0..knapsack_count)
                        .map(|_| {
                            if pick(4) == 0 {
                                UNCONSTRAINED
                            } else {
                                pick(2) as u32
                            }
                        })
                        .collect(),
                )
            }),
            limit: pick(3) as u32,
        })
        .collect();
    let gangs = if pick(3) == 0 && item_count > 1 {
        vec![Gang {
            members: vec![0, 1],
        }]
    } else {
        Vec::new()
    };
    Problem {
        dimension_count,
        knapsacks,
        items,
        conflicts,
        gangs,
    }
}

/// The best value over all assignments that the independent checker accepts.
fn brute_force(problem: &Problem) -> i64 {
    fn walk(problem: &Problem, pair: usize, placed: &mut Vec<Placed>, best: &mut i64) {
        let knapsack_count = problem.knapsacks.len();
        if pair == problem.items.len() * knapsack_count {
            let mut value: i64 = 0;
            for p in placed.iter() {
                value += problem.profit(p.item as usize, p.knapsack as usize) * i64::from(p.count);
            }
            let solution = Solution {
                placed: placed.clone(),
                value,
                upper_bound: i64::MAX,
                optimal: false,
            };
            if value > *best && check::check(problem, &solution).is_ok() {
                *best = value;
            }
            return;
        }
        let (item, knapsack) = (pair / knapsack_count, pair % knapsack_count);
        for count in 0..=problem.items[item].multiplicity {
            if count > 0 {
                placed.push(Placed {
                    item: item as u32,
                    knapsack: knapsack as u32,
                    count,
                });
            }
            walk(problem, pair + 1, placed, best);
            if count > 0 {
                placed.pop();
            }
        }
    }
    let mut best = 0;
    walk(problem, 0, &mut Vec::new(), &mut best);
    best
}

#[test]
fn safety_every_solution_is_feasible_and_below_its_bound() {
    let mut random = Random::new(7);
    for round in 0..300 {
        let problem = random_problem(&mut random, false);
        for secondary in [Secondary::Pack, Secondary::Spread] {
            let solution = solve(
                &problem,
                &Options {
                    work_max: 5_000,
                    seed: round,
                    secondary,
                    ..Options::default()
                },
            )
            .unwrap();
            check::check(&problem, &solution).unwrap_or_else(|broken| {
                panic!("round {round}: {broken}: {problem:?} {solution:?}")
            });
            assert!((0.0..=1.0).contains(&solution.gap()));
        }
    }
}

#[test]
fn safety_bound_is_never_below_brute_force() {
    let mut random = Random::new(11);
    let (mut rounds, mut met) = (0, 0);
    while rounds < 400 {
        let problem = random_problem(&mut random, true);
        let pairs: u32 = problem
            .items
            .iter()
            .map(|item| (item.multiplicity + 1).pow(problem.knapsacks.len() as u32))
            .product();
        if pairs > 3000 {
            continue;
        }
        rounds += 1;
        let best = brute_force(&problem);
        let solution = solve(&problem, &Options::default()).unwrap();
        assert!(
            solution.upper_bound >= best,
            "bound {} below optimum {best}: {problem:?}",
            solution.upper_bound
        );
        assert!(solution.value <= best);
        assert!(!solution.optimal || solution.value == best);
        met += u32::from(solution.value == best);
    }
    assert!(
        met * 100 >= rounds * 90,
        "only {met} of {rounds} small problems were solved to optimality"
    );
}

#[test]
fn safety_same_seed_same_solution() {
    let mut random = Random::new(13);
    for seed in 0..50 {
        let problem = random_problem(&mut random, false);
        let options = Options {
            work_max: 5000,
            seed,
            ..Options::default()
        };
        assert_eq!(
            solve(&problem, &options).unwrap(),
            solve(&problem, &options).unwrap()
        );
    }
}

#[test]
fn enormous_and_vanishing_numbers_neither_panic_nor_overcommit() {
    let values = [0, 1, i64::MAX / 2, i64::MAX];
    for capacity in [-1, 0, 1, i64::MAX] {
        for weight in values {
            for profit in [-1, 0, i64::MAX] {
                let problem = Problem {
                    dimension_count: 2,
                    knapsacks: vec![
                        Knapsack {
                            capacity: vec![capacity, i64::MAX]
                        };
                        3
                    ],
                    items: vec![
                        Item {
                            weight: Weight::Same(vec![weight, i64::MAX]),
                            profit: Profit::Same(profit),
                            multiplicity: u32::MAX,
                            allowed: None
                        };
                        2
                    ],
                    ..Problem::default()
                };
                let solution = solve(
                    &problem,
                    &Options {
                        work_max: 1000,
                        ..Options::default()
                    },
                )
                .unwrap();
                check::check(&problem, &solution).unwrap();
            }
        }
    }
}

#[test]
fn a_problem_that_contradicts_itself_is_refused() {
    let item = |weight| Item {
        weight: Weight::Same(weight),
        profit: Profit::Same(1),
        multiplicity: 1,
        allowed: None,
    };
    let base = Problem {
        dimension_count: 1,
        knapsacks: vec![Knapsack { capacity: vec![1] }],
        items: vec![item(vec![1])],
        ..Problem::default()
    };
    let check = |problem: Problem, expect: ProblemError| {
        assert_eq!(solve(&problem, &Options::default()), Err(expect))
    };
    check(
        Problem {
            items: vec![item(vec![])],
            ..base.clone()
        },
        ProblemError::Length {
            what: "item",
            index: 0,
        },
    );
    check(
        Problem {
            items: vec![item(vec![-1])],
            ..base.clone()
        },
        ProblemError::NegativeWeight { item: 0 },
    );
    check(
        Problem {
            knapsacks: vec![Knapsack { capacity: vec![] }],
            ..base.clone()
        },
        ProblemError::Length {
            what: "knapsack",
            index: 0,
        },
    );
    check(
        Problem {
            gangs: vec![Gang { members: vec![3] }],
            ..base.clone()
        },
        ProblemError::NoSuchItem {
            what: "gang",
            index: 0,
            item: 3,
        },
    );
    check(
        Problem {
            gangs: vec![Gang { members: vec![0] }, Gang { members: vec![0] }],
            ..base
        },
        ProblemError::TwoGangs { item: 0 },
    );
}

#[test]
fn nothing_to_place_and_nowhere_to_place_it() {
    let empty = solve(&Problem::default(), &Options::default()).unwrap();
    assert!(empty.optimal && empty.value == 0 && empty.gap() == 0.0);
    let nowhere = Problem {
        items: vec![Item {
            weight: Weight::Same(vec![]),
            profit: Profit::Same(5),
            multiplicity: 2,
            allowed: None,
        }],
        ..Problem::default()
    };
    let nowhere = solve(&nowhere, &Options::default()).unwrap();
    assert!(nowhere.optimal && nowhere.placed.is_empty());
}

#[test]
fn zero_profit_items_are_placed_too() {
    let problem = Problem {
        dimension_count: 1,
        knapsacks: vec![Knapsack { capacity: vec![4] }],
        items: vec![Item {
            weight: Weight::Same(vec![1]),
            profit: Profit::Same(0),
            multiplicity: 9,
            allowed: None,
        }],
        ..Problem::default()
    };
    assert_eq!(
        solve(&problem, &Options::default()).unwrap().placed,
        vec![Placed {
            item: 0,
            knapsack: 0,
            count: 4
        }]
    );
}

#[test]
fn the_caller_can_stop_the_search() {
    let mut random = Random::new(17);
    let problem = random_problem(&mut random, false);
    let stop = || true;
    let solution = solve(
        &problem,
        &Options {
            stop: Some(&stop),
            work_max: u64::MAX,
            ..Options::default()
        },
    )
    .unwrap();
    check::check(&problem, &solution).unwrap();
}
