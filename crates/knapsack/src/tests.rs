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

/// The best value over all assignments, by trying every count of every item in every knapsack. Shares nothing with the solver.
fn brute_force(problem: &Problem) -> i64 {
    struct Walk<'a> {
        problem: &'a Problem,
        left: Vec<Vec<i64>>,
        counts: Vec<Vec<u32>>,
        best: i64,
    }
    impl Walk<'_> {
        fn allowed(&self) -> bool {
            let total = |item: &u32| self.counts[*item as usize].iter().sum::<u32>();
            let conflicts = self.problem.conflicts.iter().all(|conflict| {
                let mut domains = std::collections::HashMap::new();
                for (knapsack, _) in self.left.iter().enumerate() {
                    let domain = match &conflict.domains {
                        Some(domains) => domains[knapsack],
                        None => knapsack as u32,
                    };
                    for item in &conflict.members {
                        *domains.entry(domain).or_insert(0) +=
                            self.counts[*item as usize][knapsack];
                    }
                }
                domains.remove(&UNCONSTRAINED);
                domains.values().all(|count| *count <= conflict.limit)
            });
            let gangs = self.problem.gangs.iter().all(|gang| {
                let full =
                    |item: &u32| total(item) == self.problem.items[*item as usize].multiplicity;
                gang.members.iter().all(full) || gang.members.iter().all(|item| total(item) == 0)
            });
            conflicts && gangs
        }

        fn walk(&mut self, item: usize, knapsack: usize, left: u32, value: i64) {
            if item == self.problem.items.len() {
                if value > self.best && self.allowed() {
                    self.best = value;
                }
                return;
            }
            if knapsack == self.left.len() {
                let next = self.problem.items.get(item + 1);
                return self.walk(item + 1, 0, next.map_or(0, |item| item.multiplicity), value);
            }
            self.walk(item, knapsack + 1, left, value);
            let source = &self.problem.items[item];
            let profit = match &source.profit {
                Profit::Same(profit) => *profit,
                Profit::PerKnapsack(profits) => profits[knapsack],
            };
            let weight = match &source.weight {
                Weight::Same(weight) => weight,
                Weight::PerKnapsack(weights) => &weights[knapsack],
            };
            let closed = source
                .allowed
                .as_ref()
                .is_some_and(|set| !set.contains(knapsack));
            if profit < 0 || closed {
                return;
            }
            let before = self.left[knapsack].clone();
            for count in 1..=left {
                for (left, weight) in self.left[knapsack].iter_mut().zip(weight) {
                    *left -= weight;
                }
                let full = self.left[knapsack].iter().zip(weight);
                if full
                    .into_iter()
                    .any(|(left, weight)| *weight > 0 && *left < 0)
                {
                    break;
                }
                self.counts[item][knapsack] = count;
                self.walk(
                    item,
                    knapsack + 1,
                    left - count,
                    value + profit * i64::from(count),
                );
            }
            self.counts[item][knapsack] = 0;
            self.left[knapsack] = before;
        }
    }
    let mut walk = Walk {
        problem,
        left: problem
            .knapsacks
            .iter()
            .map(|k| k.capacity.clone())
            .collect(),
        counts: vec![vec![0; problem.knapsacks.len()]; problem.items.len()],
        best: 0,
    };
    let first = problem.items.first().map_or(0, |item| item.multiplicity);
    walk.walk(0, 0, first, 0);
    walk.best
}

/// Families beside the general one: what each search was made for, small enough for brute force.
fn family(random: &mut Random, which: u64) -> Problem {
    let mut problem = random_problem(random, true);
    let mut pick = |limit: u64| (random.next() >> 16) % limit;
    match which {
        // One knapsack, more items.
        1 => {
            let capacity = (0..problem.dimension_count)
                .map(|_| 5 + pick(20) as i64)
                .collect();
            problem = Problem {
                dimension_count: problem.dimension_count,
                knapsacks: vec![Knapsack { capacity }],
                items: (0..9)
                    .map(|_| Item {
                        weight: Weight::Same(
                            (0..problem.dimension_count)
                                .map(|_| pick(12) as i64)
                                .collect(),
                        ),
                        profit: Profit::Same(1 + pick(15) as i64),
                        multiplicity: 1,
                        allowed: None,
                    })
                    .collect(),
                ..Problem::default()
            };
        }
        // Generalised assignment: weight and worth by knapsack, one copy each.
        2 => {
            let knapsacks = 2 + pick(2) as usize;
            problem = Problem {
                dimension_count: 1,
                knapsacks: (0..knapsacks)
                    .map(|_| Knapsack {
                        capacity: vec![4 + pick(10) as i64],
                    })
                    .collect(),
                items: (0..5)
                    .map(|_| Item {
                        weight: Weight::PerKnapsack(
                            (0..knapsacks).map(|_| vec![1 + pick(8) as i64]).collect(),
                        ),
                        profit: Profit::PerKnapsack(
                            (0..knapsacks).map(|_| 100 - pick(30) as i64).collect(),
                        ),
                        multiplicity: 1,
                        allowed: None,
                    })
                    .collect(),
                ..Problem::default()
            };
        }
        // Alike knapsacks.
        3 => {
            let first = problem.knapsacks[0].clone();
            problem
                .knapsacks
                .iter_mut()
                .for_each(|knapsack| *knapsack = first.clone());
        }
        // Worth what it weighs: nothing but the fit counts.
        4 => {
            for item in &mut problem.items {
                if let Weight::Same(weight) = &item.weight {
                    item.profit = Profit::Same(weight.iter().sum());
                }
            }
        }
        _ => {}
    }
    problem
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
fn safety_claims_agree_with_brute_force() {
    let mut random = Random::new(11);
    let (mut rounds, mut met, mut proven) = (0u32, 0u32, 0u32);
    while rounds < 4000 {
        let problem = family(&mut random, u64::from(rounds % 6));
        let ways: u64 = problem
            .items
            .iter()
            .map(|item| u64::from(item.multiplicity + 1).pow(problem.knapsacks.len() as u32))
            .product();
        if ways > 20_000 {
            continue;
        }
        rounds += 1;
        let best = brute_force(&problem);
        let solution = solve(&problem, &Options::default()).unwrap();
        check::check(&problem, &solution).unwrap();
        assert!(
            upper_bound(&problem) >= best && solution.upper_bound >= best,
            "bound {} below optimum {best}: {problem:?}",
            solution.upper_bound
        );
        assert!(solution.value <= best);
        assert!(
            !solution.optimal || solution.value == best,
            "{} called optimal, {best} is: {problem:?}",
            solution.value
        );
        met += u32::from(solution.value == best);
        proven += u32::from(solution.optimal);
    }
    assert!(
        met * 1000 >= rounds * 995 && proven * 1000 >= rounds * 990,
        "of {rounds} small problems {met} were solved to optimality, {proven} of them provably"
    );
}

#[test]
fn safety_searches_without_branch_and_bound_claim_nothing_false() {
    // Little work: the heuristics' answers and the relaxation's bound.
    let mut random = Random::new(23);
    for round in 0..600 {
        let problem = family(&mut random, round % 6);
        let ways: u64 = problem
            .items
            .iter()
            .map(|item| u64::from(item.multiplicity + 1).pow(problem.knapsacks.len() as u32))
            .product();
        if ways > 20_000 {
            continue;
        }
        let options = Options {
            work_max: 1 + round * 7,
            seed: round,
            ..Options::default()
        };
        let solution = solve(&problem, &options).unwrap();
        check::check(&problem, &solution).unwrap();
        let best = brute_force(&problem);
        assert!(solution.value <= best && best <= solution.upper_bound);
        assert!(!solution.optimal || solution.value == best);
    }
}

#[test]
fn safety_more_capacity_never_hurts_a_proven_optimum() {
    let mut random = Random::new(31);
    let mut compared = 0;
    for _ in 0..400 {
        let mut problem = random_problem(&mut random, true);
        let before = solve(&problem, &Options::default()).unwrap();
        for knapsack in &mut problem.knapsacks {
            for capacity in &mut knapsack.capacity {
                *capacity += (random.next() % 4) as i64;
            }
        }
        let after = solve(&problem, &Options::default()).unwrap();
        if before.optimal && after.optimal {
            compared += 1;
            assert!(after.value >= before.value, "{problem:?}");
        }
    }
    assert!(compared > 300, "only {compared} pairs were proven");
}

#[test]
fn safety_large_problems_of_every_family_are_feasible() {
    let mut random = Random::new(37);
    for round in 0..12u64 {
        let (n, m) = (300usize, 1 + 20 * (round as usize % 3));
        let mut pick = |limit: u64| ((random.next() >> 16) % limit) as i64;
        let varied = round % 4 == 3;
        let problem = Problem {
            dimension_count: 3,
            knapsacks: (0..m)
                .map(|_| Knapsack {
                    capacity: (0..3).map(|_| 100 + pick(100)).collect(),
                })
                .collect(),
            items: (0..n)
                .map(|_| Item {
                    weight: if varied {
                        Weight::PerKnapsack(
                            (0..m)
                                .map(|_| (0..3).map(|_| 1 + pick(40)).collect())
                                .collect(),
                        )
                    } else {
                        Weight::Same((0..3).map(|_| 1 + pick(40)).collect())
                    },
                    profit: Profit::Same(1 + pick(100)),
                    multiplicity: 1 + pick(2) as u32,
                    allowed: None,
                })
                .collect(),
            conflicts: if round % 2 == 0 {
                vec![Conflict {
                    members: (0..40).collect(),
                    domains: None,
                    limit: 2,
                }]
            } else {
                Vec::new()
            },
            gangs: if round % 5 == 0 {
                vec![Gang {
                    members: vec![100, 101, 102],
                }]
            } else {
                Vec::new()
            },
        };
        let options = Options {
            work_max: 300_000,
            seed: round,
            ..Options::default()
        };
        let solution = solve(&problem, &options).unwrap();
        check::check(&problem, &solution).unwrap();
        assert!(
            solution.gap() < 0.3,
            "round {round}: gap {}",
            solution.gap()
        );
        assert_eq!(
            solution,
            solve(&problem, &options).unwrap(),
            "round {round}"
        );
    }
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
fn wild_magnitudes_neither_panic_nor_overflow() {
    let mut random = Random::new(41);
    for round in 0..300 {
        let mut wild = || {
            let raw = (random.next() >> 1) as i64;
            raw >> (random.next() % 63)
        };
        let knapsacks: Vec<Knapsack> = (0..1 + round % 4)
            .map(|_| Knapsack {
                capacity: vec![wild(), wild() - 2],
            })
            .collect();
        let problem = Problem {
            dimension_count: 2,
            items: (0..8)
                .map(|at| Item {
                    weight: if at % 3 == 0 && round % 2 == 0 {
                        Weight::PerKnapsack(
                            knapsacks.iter().map(|_| vec![wild(), wild()]).collect(),
                        )
                    } else {
                        Weight::Same(vec![wild(), wild()])
                    },
                    profit: Profit::Same(wild()),
                    multiplicity: (wild() as u32 >> (round % 32)).max(1),
                    allowed: None,
                })
                .collect(),
            knapsacks,
            ..Problem::default()
        };
        let options = Options {
            work_max: 20_000,
            ..Options::default()
        };
        let solution = solve(&problem, &options).unwrap();
        check::check(&problem, &solution).unwrap();
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

/// Many knapsacks of some twenty kinds each: the first packing and little search come close to the bound, in every family.
#[test]
fn many_knapsacks_are_closed_almost_exactly() {
    // Number, knapsacks, is profit tied to weight, gap allowed in percent.
    let cases = [
        (4_000, 200, false, 1.0),
        (4_000, 200, true, 1.0),
        (4_000, 40, false, 0.3),
        (4_000, 40, true, 0.3),
    ];
    for (n, m, tied, gap_max) in cases {
        let mut random = Random::new(n + m);
        let mut pick =
            |from: i64, to: i64| from + ((random.next() >> 16) % (to - from) as u64) as i64;
        let items: Vec<Item> = (0..n)
            .map(|_| {
                let weight: Vec<i64> = (0..4).map(|_| pick(10, 100)).collect();
                let profit = match tied {
                    true => weight.iter().sum::<i64>() / 4 + 10,
                    false => pick(10, 100),
                };
                Item {
                    weight: Weight::Same(weight),
                    profit: Profit::Same(profit),
                    multiplicity: 1,
                    allowed: None,
                }
            })
            .collect();
        let capacity = n as i64 * 55 / 2 / m as i64;
        let problem = Problem {
            dimension_count: 4,
            knapsacks: (0..m)
                .map(|_| {
                    let around = pick(capacity * 4 / 5, capacity * 6 / 5);
                    Knapsack {
                        capacity: vec![around; 4],
                    }
                })
                .collect(),
            items,
            ..Problem::default()
        };
        let options = Options {
            work_max: 3_000_000,
            ..Options::default()
        };
        let solution = solve(&problem, &options).unwrap();
        check::check(&problem, &solution).unwrap();
        let gap = solution.gap() * 100.0;
        assert!(gap < gap_max, "{n} x {m}, tied {tied}: gap {gap:.3}%");
    }
}
