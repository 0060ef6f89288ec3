//! Vector bin packing, fewest bins: the families Panigrahy, New and Triplet of Vectorpack/experiments_vector_paper.
//!
//! An instance is `d`, the capacities, the number of lines, and a line an item: sizes and a count. The
//! summaries (tab-separated) hold the known optimum (-1: unknown) and the best of the published
//! heuristics, which is the peer. The archives are unpacked into a folder of this run's own.
//! Instances with negative sizes (some triplets) are refused by the solver, and count as missed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use knapsack::bins::{BinItem, BinOptions, BinPacking, BinProblem};

use crate::report::Row;
use crate::{Clock, Context};

const SECONDS: f64 = 1.0;
/// A family, and what share of the instances with a known optimum is wanted.
struct Family {
    name: &'static str,
    wanted: f64,
}

const PANIGRAHY: Family = Family {
    name: "Panigrahy",
    wanted: 900.0 / 1200.0,
};
const NEW: Family = Family {
    name: "New",
    wanted: 400.0 / 726.0,
};
const TRIPLET: Family = Family {
    name: "Triplet",
    wanted: 120.0 / 240.0,
};

pub fn panigrahy(context: &Context) -> Vec<Row> {
    of_family(context, &PANIGRAHY, true)
}

pub fn new(context: &Context) -> Vec<Row> {
    of_family(context, &NEW, true)
}

pub fn triplet(context: &Context) -> Vec<Row> {
    of_family(context, &TRIPLET, true)
}

/// The instances whose optimum nobody published.
pub fn open(context: &Context) -> Vec<Row> {
    let mut rows = of_family(context, &PANIGRAHY, false);
    rows.extend(of_family(context, &NEW, false));
    rows
}

/// Sums over one group of instances.
#[derive(Default)]
struct Tally {
    instances: usize,
    known: usize,
    at_optimum: usize,
    peer_at_optimum: usize,
    proven: usize,
    fewer_than_peer: usize,
    more_than_peer: usize,
    refused: usize,
}

/// The instances with a known optimum, or the others.
fn of_family(context: &Context, family: &Family, known: bool) -> Vec<Row> {
    let Some(folder) = context.folder("vbp") else {
        return Vec::new();
    };
    let Family {
        name: family,
        wanted,
    } = *family;
    let unpacked = std::env::temp_dir().join(format!("bench-knapsack-{}", std::process::id()));
    std::fs::create_dir_all(&unpacked).unwrap();
    let archive = folder.join(format!("{family}_instances.tar.gz"));
    let status = std::process::Command::new("tar")
        .arg("xzf")
        .arg(&archive)
        .arg("-C")
        .arg(&unpacked)
        .status()
        .unwrap();
    assert!(status.success(), "{} does not unpack", archive.display());
    let mut files = BTreeMap::new();
    find(&unpacked, &mut files);
    let summary =
        std::fs::read_to_string(folder.join(format!("{family}_summary_known.csv"))).unwrap();
    let lines: Vec<Vec<&str>> = summary
        .lines()
        .skip(1)
        .map(|line| line.split('\t').map(str::trim).collect::<Vec<&str>>())
        .filter(|line| (line[2].parse::<i64>().unwrap() >= 0) == known)
        .collect();

    let problems: BTreeMap<&str, BinProblem> = lines
        .iter()
        .map(|line| (line[0], read(&files[line[0]])))
        .collect();
    std::fs::remove_dir_all(&unpacked).unwrap();
    let every = lines.len().div_ceil(context.limit.min(lines.len()).max(1));
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    let (mut seconds, mut excess, mut peer_excess) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines.iter().step_by(every) {
        let (name, optimum, peer): (&str, i64, u64) =
            (line[0], line[2].parse().unwrap(), line[3].parse().unwrap());
        let problem = &problems[name];
        let clock = Clock::start(context.cpu_time);
        let budget = context.seconds.unwrap_or(SECONDS);
        let stop = || clock.seconds() >= budget;
        let answer = knapsack::bins::solve(
            problem,
            &BinOptions {
                work_max: u64::MAX,
                seed: 1,
                stop: Some(&stop),
            },
        );
        let taken = clock.seconds();
        let class = name.split('_').next().unwrap();
        for tally in [class, "all"].map(String::from) {
            let tally = tallies.entry(tally).or_default();
            tally.instances += 1;
            tally.known += usize::from(optimum >= 0);
            tally.peer_at_optimum += usize::from(optimum == peer as i64);
            let Ok(packing) = &answer else {
                tally.refused += 1;
                continue;
            };
            tally.at_optimum += usize::from(optimum == packing.bin_count as i64);
            tally.proven += usize::from(packing.is_optimal());
            tally.fewer_than_peer += usize::from(packing.bin_count < peer);
            tally.more_than_peer += usize::from(packing.bin_count > peer);
        }
        let Ok(packing) = answer else { continue };
        verify(problem, &packing);
        assert!(
            optimum < 0
                || (packing.bin_count as i64 >= optimum && packing.lower_bound as i64 <= optimum),
            "{name}: {} bins, bound {}, known optimum {optimum}",
            packing.bin_count,
            packing.lower_bound
        );
        seconds.push(taken);
        excess.push((packing.bin_count as f64 / packing.lower_bound as f64 - 1.0) * 100.0);
        peer_excess.push((peer as f64 / packing.lower_bound as f64 - 1.0) * 100.0);
        if context.verbose {
            println!(
                "{family} {name}: {} bins, bound {}, known optimum {optimum}, published {peer}, {taken:.3} s",
                packing.bin_count, packing.lower_bound
            );
        }
    }
    println!(
        "{family}: class, instances, of these with known optimum, at it (published heuristics), proven optimal, fewer bins than published, more, refused"
    );
    for (class, tally) in &tallies {
        println!(
            "  {class:<8} {:>5} {:>5} {:>5} ({:>4}) {:>5} {:>5} {:>5} {:>5}",
            tally.instances,
            tally.known,
            tally.at_optimum,
            tally.peer_at_optimum,
            tally.proven,
            tally.fewer_than_peer,
            tally.more_than_peer,
            tally.refused
        );
    }
    let all = &tallies["all"];
    let count = |name: String, ours: usize, peer: usize, wanted: f64| Row {
        name,
        unit: "count",
        samples: vec![ours as f64],
        peer: vec![peer as f64],
        target: Some(wanted.round()),
        smaller_is_better: false,
    };
    let name = if known { "vbp" } else { "vbp-open" };
    let measured = |what: &str, unit, samples, peer| Row {
        name: format!("{name} {family}: {what}"),
        unit,
        samples,
        peer,
        target: None,
        smaller_is_better: true,
    };
    let mut rows = Vec::new();
    if known {
        rows.push(count(
            format!("vbp {family}: at the known optimum, of {}", all.known),
            all.at_optimum,
            all.peer_at_optimum,
            wanted * all.known as f64,
        ));
    }
    rows.push(measured(
        "bins over our proven bound",
        "%",
        excess,
        peer_excess,
    ));
    rows.push(measured(
        "time, less than 1 s if proven",
        "s",
        seconds,
        Vec::new(),
    ));
    rows
}

fn find(folder: &Path, files: &mut BTreeMap<String, PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "vbp") {
            files.insert(
                path.file_stem().unwrap().to_string_lossy().into_owned(),
                path,
            );
        }
    }
}

fn read(path: &Path) -> BinProblem {
    let text = std::fs::read_to_string(path).unwrap();
    let mut numbers = text
        .split_whitespace()
        .map(|number| number.parse::<i64>().unwrap());
    let mut next = || numbers.next().unwrap();
    let dimensions = next();
    let capacity = (0..dimensions).map(|_| next()).collect();
    let lines = next();
    let items = (0..lines)
        .map(|_| BinItem {
            size: (0..dimensions).map(|_| next()).collect(),
            count: next().unsigned_abs(),
        })
        .collect();
    BinProblem { capacity, items }
}

/// Unfolds the packing bin by bin and weighs each; shares no code with the solver.
fn verify(problem: &BinProblem, packing: &BinPacking) {
    let mut left: Vec<u64> = problem.items.iter().map(|item| item.count).collect();
    let mut bins = 0;
    for group in &packing.groups {
        for _ in 0..group.bins {
            bins += 1;
            let mut room = problem.capacity.clone();
            for &(item, count) in &group.content {
                for _ in 0..count {
                    left[item] = left[item]
                        .checked_sub(1)
                        .expect("an item is packed more often than it exists");
                    for (room, size) in room.iter_mut().zip(&problem.items[item].size) {
                        *room -= size;
                    }
                }
            }
            assert!(room.iter().all(|&room| room >= 0), "a bin is overfull");
        }
    }
    assert!(left.iter().all(|&left| left == 0), "an item is left out");
    assert_eq!(bins, packing.bin_count);
}
