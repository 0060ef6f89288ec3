//! How long the problems of everyday take: a lone pod, tens of pods that compete, a flood of identical pods.
//!
//! With the options that a scheduler uses by default (a limit of work, no clock); the measure is time until
//! the answer.

use knapsack::{Item, Knapsack, Options, Problem, Profit, Weight};

use crate::report::Row;
use crate::{Clock, Context, Stream, verify};

/// Repetitions of each problem.
const ROUNDS: usize = 15;

pub fn run(context: &Context) -> Vec<Row> {
    let mut stream = Stream(5);
    let mut nodes = |count: usize| -> Vec<Knapsack> {
        (0..count)
            .map(|_| Knapsack {
                capacity: vec![32_000, 65_536, 110 - stream.range(0, 3)],
            })
            .collect()
    };
    let item = |cpu: i64, memory: i64, multiplicity: u32, profit: Profit| Item {
        weight: Weight::Same(vec![cpu, memory, 1]),
        profit,
        multiplicity,
        allowed: None,
    };
    let problem = |knapsacks: Vec<Knapsack>, items: Vec<Item>| Problem {
        dimension_count: 3,
        knapsacks,
        items,
        ..Problem::default()
    };
    let preferences = Profit::PerKnapsack((0..5_000).map(|node| 1_000 + node % 7).collect());
    let problems = [
        (
            "1 pod, 5,000 nodes with preferences",
            problem(nodes(5_000), vec![item(500, 1_024, 1, preferences)]),
        ),
        (
            "40 pods of 8 kinds, 20 nodes with room",
            problem(
                nodes(20),
                (1..=8)
                    .map(|kind| item(kind * 500, kind * 900, 5, Profit::Same(kind * 100)))
                    .collect(),
            ),
        ),
        (
            "40 pods of 8 kinds, 4 nodes without room",
            problem(
                nodes(4),
                (1..=8)
                    .map(|kind| item(kind * 1_700, kind * 2_900, 5, Profit::Same(kind * 100 + 7)))
                    .collect(),
            ),
        ),
        (
            "50,000 identical pods, 5,000 nodes",
            problem(
                nodes(5_000),
                vec![item(2_500, 4_096, 50_000, Profit::Same(100))],
            ),
        ),
    ];
    problems
        .into_iter()
        .take(context.limit)
        .map(|(name, problem)| {
            let samples = (0..ROUNDS)
                .map(|_| {
                    let started = Clock::start(context.cpu_time);
                    let solution = knapsack::solve(&problem, &Options::default()).unwrap();
                    let seconds = started.seconds();
                    if let Err(broken) = verify::verify(&problem, &solution) {
                        panic!("the solver's answer is wrong: {broken}");
                    }
                    seconds * 1e3
                })
                .collect();
            Row {
                name: format!("latency, {name}"),
                unit: "ms",
                samples,
                peer: vec![],
                target: None,
                smaller_is_better: true,
            }
        })
        .collect()
}
