//! Nodes cut exactly into pods, so that the optimum is known: everything placed, every node full.
//!
//! 5,000 nodes of four shapes and four dimensions (CPU in steps of 50 millis, memory of 64 MiB,
//! ephemeral storage of 1 GiB, bandwidth of 10 Mbit/s) are cut into 2 to 16 pods each, every
//! dimension by cuts drawn for itself. A pod is worth its share of each dimension's total, so no
//! assignment can be worth more than all of them. Two sets: every node cut for itself (nearly all
//! pods differ), and cuts drawn from a catalogue of 100 for each shape (pods come in deployments).
//! The measure is the share of the known optimum.

use knapsack::{Item, Knapsack, Problem, Profit, Weight};

use crate::report::Row;
use crate::{Context, Stream};

const SECONDS: f64 = 10.0;
const TARGET: f64 = 99.9;
const NODES: usize = 5_000;
const DIMENSIONS: usize = 4;
/// Capacities in steps.
const SHAPES: [[i64; DIMENSIONS]; 4] = [
    [320, 1024, 400, 1000],
    [640, 2048, 800, 1000],
    [960, 6144, 1000, 2500],
    [1280, 4096, 2000, 2500],
];
/// Cuts of one shape in the catalogue.
const CATALOGUE: usize = 100;

pub fn run(context: &Context) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, catalogue) in [("deployments", true), ("every node for itself", false)] {
        let mut shares = Vec::new();
        for seed in 0..3u64.min(context.limit as u64) {
            let (problem, optimum) = generate(seed, catalogue);
            let answer = context.solve(&problem, SECONDS);
            let share = answer.solution.value as f64 / optimum as f64 * 100.0;
            if context.verbose {
                println!(
                    "planted {name} {seed}: {} distinct pods, {share:.3}%, gap {:.3}%, {:.2} s",
                    problem.items.len(),
                    answer.solution.gap() * 100.0,
                    answer.seconds
                );
            }
            shares.push(share);
        }
        rows.push(Row {
            name: format!("planted, {name}: share of the optimum"),
            unit: "%",
            samples: shares,
            peer: vec![],
            target: Some(TARGET),
            smaller_is_better: false,
        });
    }
    rows
}

fn generate(seed: u64, from_catalogue: bool) -> (Problem, i64) {
    let mut stream = Stream(seed);
    let mut catalogue: Vec<Vec<Vec<[i64; DIMENSIONS]>>> = Vec::new();
    for shape in &SHAPES {
        catalogue.push((0..CATALOGUE).map(|_| cut(&mut stream, shape)).collect());
    }
    let mut knapsacks = Vec::new();
    let mut pods: Vec<[i64; DIMENSIONS]> = Vec::new();
    for _ in 0..NODES {
        let shape = stream.range(0, SHAPES.len() as i64 - 1) as usize;
        knapsacks.push(Knapsack {
            capacity: SHAPES[shape].to_vec(),
        });
        if from_catalogue {
            pods.extend(&catalogue[shape][stream.range(0, CATALOGUE as i64 - 1) as usize]);
        } else {
            pods.extend(cut(&mut stream, &SHAPES[shape]));
        }
    }
    pods.sort_unstable();
    let mut totals = [0i64; DIMENSIONS];
    for pod in &pods {
        for (total, weight) in totals.iter_mut().zip(pod) {
            *total += weight;
        }
    }
    // Parts in 10^12 of each total, the same integer weight for every step of a dimension, so that worth is exactly linear.
    let price = totals.map(|total| 1_000_000_000_000 / total);
    let mut items: Vec<Item> = Vec::new();
    let mut optimum = 0;
    for pod in pods {
        let profit: i64 = pod
            .iter()
            .zip(price)
            .map(|(weight, price)| weight * price)
            .sum();
        optimum += profit;
        if let Some(last) = items.last_mut()
            && matches!(&last.weight, Weight::Same(weight) if weight[..] == pod)
        {
            last.multiplicity += 1;
            continue;
        }
        items.push(Item {
            weight: Weight::Same(pod.to_vec()),
            profit: Profit::Same(profit),
            multiplicity: 1,
            allowed: None,
        });
    }
    let problem = Problem {
        dimension_count: DIMENSIONS,
        knapsacks,
        items,
        ..Problem::default()
    };
    (problem, optimum)
}

/// Cuts a node: each dimension at points drawn for itself, every pod at least one step of each.
fn cut(stream: &mut Stream, shape: &[i64; DIMENSIONS]) -> Vec<[i64; DIMENSIONS]> {
    let count = stream.range(2, 16) as usize;
    let mut pods = vec![[0; DIMENSIONS]; count];
    for (d, capacity) in shape.iter().enumerate() {
        let mut points: Vec<i64> = Vec::new();
        while points.len() < count - 1 {
            let point = stream.range(1, capacity - 1);
            if !points.contains(&point) {
                points.push(point);
            }
        }
        points.sort_unstable();
        points.push(*capacity);
        let mut from = 0;
        for (pod, point) in pods.iter_mut().zip(points) {
            pod[d] = point - from;
            from = point;
        }
    }
    pods
}
