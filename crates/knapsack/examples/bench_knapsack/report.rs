//! The table, and the JSON lines in the form of the other benchmarks: name, unit, p10, median, p90, peer, ratio; and mean, target.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// One line of the report.
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    pub samples: Vec<f64>,
    /// What the peer (published best, or a simple scheduler) reaches on the same instances.
    pub peer: Vec<f64>,
    pub target: Option<f64>,
    pub smaller_is_better: bool,
}

impl Row {
    /// A gap in percent, where less is better.
    pub fn gap(name: impl Into<String>, samples: Vec<f64>, peer: Vec<f64>, target: f64) -> Row {
        Row {
            name: name.into(),
            unit: "% gap",
            samples,
            peer,
            target: Some(target),
            smaller_is_better: true,
        }
    }
}

pub fn print(rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    println!(
        "{:<58} {:>8} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9} {:>7}",
        "name", "unit", "p10", "median", "p90", "mean", "target", "peer", "ratio"
    );
    for row in rows.iter().filter(|row| !row.samples.is_empty()) {
        let [p10, median, p90] = spread(&row.samples);
        let show = |number: Option<f64>| number.map_or("-".to_owned(), |n| format!("{n:.3}"));
        let (peer, ratio) = peer(row);
        println!(
            "{:<58} {:>8} {p10:>9.3} {median:>9.3} {p90:>9.3} {:>9.4} {:>8} {:>9} {:>7}",
            row.name,
            row.unit,
            mean(&row.samples),
            show(row.target),
            show(peer),
            show(ratio)
        );
    }
    println!();
}

pub fn write_json(rows: &[Row], path: &Path) {
    let mut lines = String::new();
    for row in rows.iter().filter(|row| !row.samples.is_empty()) {
        let [p10, median, p90] = spread(&row.samples);
        let show = |number: Option<f64>| number.map_or("null".to_owned(), |n| n.to_string());
        let (peer, ratio) = peer(row);
        writeln!(
            lines,
            r#"{{"name":"{}","unit":"{}","p10":{p10},"median":{median},"p90":{p90},"peer":{},"ratio":{},"mean":{},"target":{}}}"#,
            row.name,
            row.unit,
            show(peer),
            show(ratio),
            mean(&row.samples),
            show(row.target)
        )
        .unwrap();
    }
    let mut options = std::fs::File::options();
    let mut file = options.create(true).append(true).open(path).unwrap();
    file.write_all(lines.as_bytes()).unwrap();
}

/// The peer's mean, and how many times better ours is.
fn peer(row: &Row) -> (Option<f64>, Option<f64>) {
    let peer = (!row.peer.is_empty()).then(|| mean(&row.peer));
    let ours = mean(&row.samples);
    let ratio = peer.map(|peer| {
        if row.smaller_is_better {
            peer / ours
        } else {
            ours / peer
        }
    });
    (peer, ratio.filter(|ratio| ratio.is_finite()))
}

fn spread(samples: &[f64]) -> [f64; 3] {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    [0.1, 0.5, 0.9].map(|share| sorted[((sorted.len() - 1) as f64 * share).round() as usize])
}

pub fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len().max(1) as f64
}
