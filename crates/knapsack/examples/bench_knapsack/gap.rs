//! Generalised assignment (Yagiura, Ibaraki and Glover 2004; Cattrysse 1994): every item in one agent, at least cost.
//!
//! A file holds m, n, costs (m x n), weights (m x n), capacities. As a knapsack problem an item is
//! worth a premium less its cost; the premium exceeds the sum of the largest costs, so that placing one
//! more item always beats saving cost. The measure is the gap to the published optimum or bound.

use std::collections::HashMap;
use std::path::Path;

use knapsack::{Item, Knapsack, Problem, Profit, Weight};

use crate::report::Row;
use crate::{Context, files};

const SECONDS: f64 = 10.0;
const TARGET: f64 = 0.5;

pub fn run(context: &Context) -> Vec<Row> {
    let Some(folder) = context.folder("gap") else {
        return Vec::new();
    };
    let published = published(&folder.join("best_known.csv"));
    let (mut gaps, mut peers) = (Vec::new(), Vec::new());
    for path in files(&folder).iter().take(context.limit) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let Some((bound, best)) = published.get(&name) else {
            continue;
        };
        let Some((problem, premium)) = read(path) else {
            continue;
        };
        let answer = context.solve(&problem, SECONDS);
        let placed: i64 = answer
            .solution
            .placed
            .iter()
            .map(|p| i64::from(p.count))
            .sum();
        let missing = problem.items.len() as i64 - placed;
        // An item left out counts as dear as everything, so that nobody takes it for a good answer.
        let cost = placed * premium - answer.solution.value + missing * premium;
        let gap = (cost as f64 - bound) / bound * 100.0;
        if context.verbose {
            let own = problem.items.len() as i64 * premium - answer.solution.upper_bound;
            println!(
                "gap {name}: cost {cost}, {missing} left out, own bound {own}, published {bound}, gap {gap:.3}%, {:.2} s",
                answer.seconds
            );
        }
        gaps.push(gap);
        peers.push((best - bound) / bound * 100.0);
    }
    vec![Row::gap(
        "gap: cost over the published bound (peer: published best)",
        gaps,
        peers,
        TARGET,
    )]
}

fn read(path: &Path) -> Option<(Problem, i64)> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut numbers = text
        .split_ascii_whitespace()
        .map(|word| word.parse::<i64>());
    let mut next = || numbers.next()?.ok();
    let (m, n) = (next()? as usize, next()? as usize);
    let mut matrix =
        || -> Option<Vec<Vec<i64>>> { (0..m).map(|_| (0..n).map(|_| next()).collect()).collect() };
    let (costs, weights) = (matrix()?, matrix()?);
    let capacities: Vec<i64> = (0..m).map(|_| next()).collect::<Option<_>>()?;
    let dearest = |j: usize| costs.iter().map(|row| row[j]).max().unwrap_or(0);
    let premium = 1 + (0..n).map(dearest).sum::<i64>();
    let items = (0..n)
        .map(|j| Item {
            weight: Weight::PerKnapsack(weights.iter().map(|row| vec![row[j]]).collect()),
            profit: Profit::PerKnapsack(costs.iter().map(|row| premium - row[j]).collect()),
            multiplicity: 1,
            allowed: None,
        })
        .collect();
    let problem = Problem {
        dimension_count: 1,
        knapsacks: capacities
            .into_iter()
            .map(|capacity| Knapsack {
                capacity: vec![capacity],
            })
            .collect(),
        items,
        ..Problem::default()
    };
    Some((problem, premium))
}

/// Name to (optimum or best bound, best value known).
fn published(path: &Path) -> HashMap<String, (f64, f64)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut table = HashMap::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let name = fields[0].rsplit('/').next().unwrap_or_default();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
        if let (Some(bound), Some(best)) = (number(6).or(number(5)), number(7).or(number(6))) {
            table.insert(name.to_owned(), (bound, best));
        }
    }
    table
}
