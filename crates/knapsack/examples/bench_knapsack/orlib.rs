//! OR-Library's multi-dimensional knapsacks, mknapcb (Chu and Beasley, Journal of Heuristics 4, 1998).
//!
//! The measure is the mean gap to the published value of the LP relaxation, one second an instance.

use std::collections::HashMap;
use std::path::Path;

use knapsack::{Item, Knapsack, Problem, Profit, Weight};

use crate::report::Row;
use crate::{Context, files};

const SECONDS: f64 = 1.0;
const TARGET: f64 = 0.65;

pub fn run(context: &Context) -> Vec<Row> {
    let Some(folder) = context.folder("orlib_mkp") else {
        return Vec::new();
    };
    let (best, linear) = published(&folder);
    let mut rows = Vec::new();
    let (mut all, mut all_best, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for path in files(&folder) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("mknapcb") {
            continue;
        }
        let (mut gaps, mut best_gaps) = (Vec::new(), Vec::new());
        for (index, problem) in read(&path).into_iter().enumerate().take(context.limit) {
            let key = format!(
                "{}.{}-{index:02}",
                problem.dimension_count,
                problem.items.len()
            );
            let answer = context.solve(&problem, SECONDS);
            let solution = &answer.solution;
            own.push(solution.gap() * 100.0);
            let Some(lp) = linear.get(&key) else { continue };
            let gap = |value: f64| (lp - value) / lp * 100.0;
            gaps.push(gap(solution.value as f64));
            best_gaps.extend(best.get(&key).map(|value| gap(*value)));
            if context.verbose {
                println!(
                    "{key}: {} of best {:?}, gap {:.3}%, bound {} (LP {lp:.1}), {:.2} s",
                    solution.value,
                    best.get(&key),
                    gaps.last().unwrap(),
                    solution.upper_bound,
                    answer.seconds
                );
            }
        }
        all.extend(&gaps);
        all_best.extend(&best_gaps);
        rows.push(Row::gap(
            format!("mknapcb, {name}: gap to LP"),
            gaps,
            best_gaps,
            TARGET,
        ));
    }
    rows.push(Row::gap(
        "mknapcb, every file: gap to LP (peer: published best)",
        all,
        all_best,
        TARGET,
    ));
    let mut own = Row::gap("mknapcb, every file: gap to own bound", own, vec![], 0.0);
    own.target = None;
    rows.push(own);
    rows
}

fn read(path: &Path) -> Vec<Problem> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut numbers = text
        .split_ascii_whitespace()
        .map(|word| word.parse::<f64>().unwrap() as i64);
    let mut next = || numbers.next().unwrap();
    (0..next())
        .map(|_| {
            let (n, m, _best) = (next() as usize, next() as usize, next());
            let profits: Vec<i64> = (0..n).map(|_| next()).collect();
            let rows: Vec<Vec<i64>> = (0..m).map(|_| (0..n).map(|_| next()).collect()).collect();
            let capacity = (0..m).map(|_| next()).collect();
            Problem {
                dimension_count: m,
                knapsacks: vec![Knapsack { capacity }],
                items: (0..n)
                    .map(|j| Item {
                        weight: Weight::Same(rows.iter().map(|row| row[j]).collect()),
                        profit: Profit::Same(profits[j]),
                        multiplicity: 1,
                        allowed: None,
                    })
                    .collect(),
                ..Problem::default()
            }
        })
        .collect()
}

/// Two tables in one file, both keyed `m.n-index`: best values, then (after the words "LP optimal") LP values.
fn published(folder: &Path) -> (HashMap<String, f64>, HashMap<String, f64>) {
    let text = std::fs::read_to_string(folder.join("best-feasible-slns.txt")).unwrap_or_default();
    let mut tables = (HashMap::new(), HashMap::new());
    let mut linear = false;
    for line in text.lines() {
        linear |= line.contains("LP optimal");
        let mut words = line.split_ascii_whitespace();
        if let (Some(key), Some(Ok(value))) = (words.next(), words.next().map(str::parse)) {
            let table = if linear { &mut tables.1 } else { &mut tables.0 };
            table.insert(key.to_owned(), value);
        }
    }
    tables
}
