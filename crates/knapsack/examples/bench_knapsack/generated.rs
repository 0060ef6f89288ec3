//! Generated multiple knapsacks, by the recipe of Martello and Toth.
//!
//! Source: S. Martello, P. Toth, Knapsack Problems (Wiley 1990), section 6.5: weights uniform in
//! 10..=100; profits uniform in 10..=100 (uncorrelated), within 10 of the weight (weakly correlated),
//! or the weight plus 10 (strongly correlated); capacities either similar, uniform in 0.4 to 0.6 of
//! the total weight divided by the number of knapsacks, or dissimilar, each uniform in what the
//! ones before it leave of half the total weight. Here items have four dimensions, each drawn for itself;
//! "the weight" that a profit follows is the mean of the four; and a knapsack has the drawn share of every
//! dimension. A third kind, skewed, is similar with the share of each dimension drawn for itself, the
//! last knapsack's too, so that no two knapsacks have the same proportions.
//! The measure is the gap to the solver's own proven bound.

use knapsack::{Item, Knapsack, Problem, Profit, Weight};

use crate::report::Row;
use crate::{Context, Stream};

const SECONDS: f64 = 1.0;
const TARGET: f64 = 0.1;
const DIMENSIONS: usize = 4;
/// Items and knapsacks.
const SIZES: [(usize, usize); 6] = [
    (1_000, 10),
    (10_000, 10),
    (10_000, 100),
    (100_000, 100),
    (100_000, 1_000),
    (100_000, 5_000),
];

#[derive(Clone, Copy, Debug)]
enum Correlation {
    None,
    Weak,
    Strong,
}

pub fn run(context: &Context) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut all = Vec::new();
    for kind in ["similar", "dissimilar", "skewed"] {
        for correlation in [Correlation::None, Correlation::Weak, Correlation::Strong] {
            let mut of_row = Vec::new();
            for (n, m) in SIZES.into_iter().take(context.limit) {
                let problem = generate(n, m, correlation, kind);
                let answer = context.solve(&problem, SECONDS);
                let gap = answer.solution.gap() * 100.0;
                if context.verbose {
                    println!(
                        "generated {kind} {correlation:?} {n} x {m}: gap {gap:.4}%, {:.2} s",
                        answer.seconds
                    );
                }
                of_row.push(gap);
            }
            all.extend(&of_row);
            let name = match correlation {
                Correlation::None => "uncorrelated",
                Correlation::Weak => "weakly correlated",
                Correlation::Strong => "strongly correlated",
            };
            rows.push(Row::gap(
                format!("generated, {name}, {kind}: gap to own bound"),
                of_row,
                vec![],
                TARGET,
            ));
        }
    }
    rows.push(Row::gap(
        "generated, all: gap to own bound",
        all,
        vec![],
        TARGET,
    ));
    rows
}

fn generate(n: usize, m: usize, correlation: Correlation, kind: &str) -> Problem {
    let mut stream = Stream(n as u64 * 31 + m as u64 * 7 + correlation as u64);
    let mut totals = [0i64; DIMENSIONS];
    let items: Vec<Item> = (0..n)
        .map(|_| {
            let weight: Vec<i64> = (0..DIMENSIONS).map(|_| stream.range(10, 100)).collect();
            for (total, weight) in totals.iter_mut().zip(&weight) {
                *total += weight;
            }
            let mean = weight.iter().sum::<i64>() / DIMENSIONS as i64;
            let profit = match correlation {
                Correlation::None => stream.range(10, 100),
                Correlation::Weak => (mean + stream.range(-10, 10)).max(1),
                Correlation::Strong => mean + 10,
            };
            Item {
                weight: Weight::Same(weight),
                profit: Profit::Same(profit),
                multiplicity: 1,
                allowed: None,
            }
        })
        .collect();
    // Shares in millionths of the total weight.
    let mut left = 500_000i64;
    let capacities: Vec<Vec<i64>> = (0..m)
        .map(|index| {
            let mut around = || stream.range(400_000, 600_000) / m as i64;
            let shares: Vec<i64> = match kind {
                "skewed" => (0..DIMENSIONS).map(|_| around()).collect(),
                // The book gives what is left to the last knapsack, so that the sum is half the weight.
                _ if index + 1 == m => vec![left; DIMENSIONS],
                "similar" => vec![around().min(left); DIMENSIONS],
                _ => vec![stream.range(0, left); DIMENSIONS],
            };
            left -= shares[0];
            shares
                .iter()
                .zip(totals)
                .map(|(share, total)| (i128::from(total) * i128::from(*share) / 1_000_000) as i64)
                .collect()
        })
        .collect();
    Problem {
        dimension_count: DIMENSIONS,
        knapsacks: capacities
            .into_iter()
            .map(|capacity| Knapsack { capacity })
            .collect(),
        items,
        ..Problem::default()
    }
}
