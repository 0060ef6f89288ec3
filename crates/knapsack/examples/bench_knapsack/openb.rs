//! Alibaba's openb cluster (clusterdata, cluster-trace-gpu-v2023): a whole batch at 130% demand.
//!
//! Pods are drawn at random from the list (with replacement, as in FGD's arrival experiment, USENIX
//! ATC 2023) until they ask for 130% of the cluster's CPU or memory, whichever comes first.
//! A pod is worth its share of the cluster's CPU plus its share of its memory. GPUs are left
//! to another experiment: here the two dimensions are CPU and memory, on all nodes.
//! The measure is the gap to the solver's own proven bound; the peers (best-fit and LeastAllocated,
//! pod by pod in order of arrival) are measured against the same bound.

use std::collections::BTreeMap;
use std::path::Path;

use knapsack::{Item, Knapsack, Problem, Profit, Weight};

use crate::report::Row;
use crate::{Context, Stream};

const SECONDS: f64 = 60.0;
const TARGET: f64 = 1.0;
const SEEDS: u64 = 3;
/// A share of 1 in units of worth.
const WORTH: i128 = 1_000_000_000;

pub fn run(context: &Context) -> Vec<Row> {
    let Some(folder) = context.folder("openb") else {
        return Vec::new();
    };
    let nodes = table(&folder.join("openb_node_list_all_node.csv"));
    let pods = table(&folder.join("openb_pod_list_default.csv"));
    let mut row: [Vec<f64>; 3] = Default::default();
    for seed in 0..SEEDS.min(context.limit as u64) {
        let drawn = draw(&nodes, &pods, seed);
        let problem = problem(&nodes, &drawn);
        let answer = context.solve(&problem, SECONDS);
        let bound = answer.solution.upper_bound as f64;
        let gap = |value: f64| (bound - value) / bound * 100.0;
        let [best_fit, least] =
            [true, false].map(|pack| gap(arrivals(&nodes, &drawn, pack) as f64));
        row[0].push(answer.solution.gap() * 100.0);
        row[1].push(best_fit);
        row[2].push(least);
        if context.verbose {
            println!(
                "openb {seed}: {} pods of {} kinds, gap {:.3}%, best-fit {best_fit:.3}%, LeastAllocated {least:.3}%, {:.2} s",
                drawn.len(),
                problem.items.len(),
                answer.solution.gap() * 100.0,
                answer.seconds
            );
        }
    }
    let [ours, best_fit, least] = row;
    vec![
        Row::gap(
            "openb default, 130% (peer: best-fit)",
            ours.clone(),
            best_fit,
            TARGET,
        ),
        Row::gap(
            "openb default, 130% (peer: LeastAllocated)",
            ours,
            least,
            TARGET,
        ),
    ]
}

/// CPU millis and memory MiB of every line.
fn table(path: &Path) -> Vec<[i64; 2]> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .skip(1)
        .map(|line| {
            let mut fields = line.split(',').skip(1).map(|field| field.parse().unwrap());
            [fields.next().unwrap(), fields.next().unwrap()]
        })
        .collect()
}

fn totals(nodes: &[[i64; 2]]) -> [i64; 2] {
    [0, 1].map(|d| nodes.iter().map(|node| node[d]).sum())
}

fn draw(nodes: &[[i64; 2]], pods: &[[i64; 2]], seed: u64) -> Vec<[i64; 2]> {
    let totals = totals(nodes);
    let mut stream = Stream(seed);
    let mut asked = [0i64; 2];
    let mut drawn = Vec::new();
    while (0..2).all(|d| asked[d] * 100 < totals[d] * 130) {
        let pod = pods[stream.range(0, pods.len() as i64 - 1) as usize];
        for d in 0..2 {
            asked[d] += pod[d];
        }
        drawn.push(pod);
    }
    drawn
}

fn worth(totals: &[i64; 2], pod: &[i64; 2]) -> i64 {
    (0..2)
        .map(|d| (i128::from(pod[d]) * WORTH / i128::from(totals[d])) as i64)
        .sum()
}

fn problem(nodes: &[[i64; 2]], drawn: &[[i64; 2]]) -> Problem {
    let totals = totals(nodes);
    let mut kinds: BTreeMap<[i64; 2], u32> = BTreeMap::new();
    for pod in drawn {
        *kinds.entry(*pod).or_default() += 1;
    }
    Problem {
        dimension_count: 2,
        knapsacks: nodes
            .iter()
            .map(|node| Knapsack {
                capacity: node.to_vec(),
            })
            .collect(),
        items: kinds
            .into_iter()
            .map(|(pod, multiplicity)| Item {
                weight: Weight::Same(pod.to_vec()),
                profit: Profit::Same(worth(&totals, &pod)),
                multiplicity,
                allowed: None,
            })
            .collect(),
        ..Problem::default()
    }
}

/// What a scheduler reaches that takes pods as they come: the fullest node that fits, or the emptiest.
fn arrivals(nodes: &[[i64; 2]], drawn: &[[i64; 2]], pack: bool) -> i64 {
    let totals = totals(nodes);
    let mut free = nodes.to_vec();
    let mut value = 0;
    for pod in drawn {
        let left = |k: usize| -> f64 {
            (0..2)
                .map(|d| (free[k][d] - pod[d]) as f64 / nodes[k][d] as f64)
                .sum()
        };
        let fitting = (0..nodes.len()).filter(|k| (0..2).all(|d| pod[d] <= free[*k][d]));
        let best = if pack {
            fitting.min_by(|a, b| left(*a).total_cmp(&left(*b)))
        } else {
            fitting.max_by(|a, b| left(*a).total_cmp(&left(*b)))
        };
        if let Some(best) = best {
            for d in 0..2 {
                free[best][d] -= pod[d];
            }
            value += worth(&totals, pod);
        }
    }
    value
}
