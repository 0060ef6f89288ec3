//! Benchmark of the solver on public instances and on generated ones.
//!
//! `cargo run --release -p knapsack --example bench_knapsack -- --data FOLDER [--json FILE] [--set NAME]... [--seconds S] [--limit N] [--cpu-time] [--verbose]`
//!
//! FOLDER holds one subfolder a family (`orlib_mkp`, `gap`, `openb`, `vbp`), each in the format of its
//! publisher; a family that is missing is passed over with a note. Every answer goes through
//! [`verify`], which shares no code with the solver. A new set is one module and one line of [`SETS`].
//! `--cpu-time` counts the processor's time of this thread instead of the wall clock's, for a machine that
//! others use as well.
//! The clock is here, behind the closure that the solver asks; the solver has none.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops at the first surprise"
)]

mod gap;
mod generated;
mod gpu;
mod latency;
mod openb;
mod orlib;
mod planted;
mod report;
mod vbp;
mod verify;

use std::path::{Path, PathBuf};
use std::time::Instant;

use knapsack::{Options, Problem, Secondary, Solution};
use report::Row;

/// A family of instances.
struct Set {
    name: &'static str,
    run: fn(&Context) -> Vec<Row>,
}

/// Every set, in the order of the report.
const SETS: &[Set] = &[
    Set {
        name: "latency",
        run: latency::run,
    },
    Set {
        name: "mknapcb",
        run: orlib::run,
    },
    Set {
        name: "generated",
        run: generated::run,
    },
    Set {
        name: "planted",
        run: planted::run,
    },
    Set {
        name: "gap",
        run: gap::run,
    },
    Set {
        name: "openb",
        run: openb::run,
    },
    Set {
        name: "gpu",
        run: gpu::run,
    },
    Set {
        name: "vbp-panigrahy",
        run: vbp::panigrahy,
    },
    Set {
        name: "vbp-new",
        run: vbp::new,
    },
    Set {
        name: "vbp-triplet",
        run: vbp::triplet,
    },
    Set {
        name: "vbp-open",
        run: vbp::open,
    },
];

/// What a set may want to know.
pub struct Context {
    /// The folder of all families, if one was named.
    pub data: Option<PathBuf>,
    /// Overrides the budget of every instance.
    pub seconds: Option<f64>,
    /// At most so many instances a row.
    pub limit: usize,
    /// A line for every instance.
    pub verbose: bool,
    /// Budgets count processor time.
    pub cpu_time: bool,
}

impl Context {
    /// The folder of one family; a note and `None` if it is not there.
    pub fn folder(&self, name: &str) -> Option<PathBuf> {
        let folder = self.data.as_deref().map(|data| data.join(name));
        let found = folder.filter(|folder| folder.is_dir());
        if found.is_none() {
            eprintln!("{name}: no such folder of data, passed over");
        }
        found
    }

    /// Solves within `seconds` of wall-clock time and verifies the answer.
    pub fn solve(&self, problem: &Problem, seconds: f64) -> Answer {
        let budget = self.seconds.unwrap_or(seconds);
        let started = Clock::start(self.cpu_time);
        let stop = || started.seconds() >= budget;
        let options = Options {
            work_max: u64::MAX,
            seed: 1,
            stop: Some(&stop),
            secondary: Secondary::Pack,
        };
        let solution = knapsack::solve(problem, &options).unwrap();
        let seconds = started.seconds();
        if let Err(broken) = verify::verify(problem, &solution) {
            panic!("the solver's answer is wrong: {broken}");
        }
        Answer { solution, seconds }
    }
}

/// Wall-clock time, or what this thread has run.
struct Clock {
    started: Instant,
    ran: Option<f64>,
}

impl Clock {
    fn start(cpu_time: bool) -> Clock {
        Clock {
            started: Instant::now(),
            ran: cpu_time.then(ran),
        }
    }

    fn seconds(&self) -> f64 {
        match self.ran {
            Some(before) => ran() - before,
            None => self.started.elapsed().as_secs_f64(),
        }
    }
}

/// Seconds that this thread has run, from the kernel's scheduler.
fn ran() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// A verified solution and how long it took.
pub struct Answer {
    pub solution: Solution,
    pub seconds: f64,
}

fn main() {
    let mut context = Context {
        data: None,
        seconds: None,
        limit: usize::MAX,
        verbose: false,
        cpu_time: false,
    };
    let (mut json, mut wanted): (Option<PathBuf>, Vec<String>) = (None, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .unwrap_or_else(|| usage(&format!("{argument} needs a value")))
        };
        match argument.as_str() {
            "--data" => context.data = Some(value().into()),
            "--json" => json = Some(value().into()),
            "--set" => wanted.push(value()),
            "--seconds" => context.seconds = value().parse().ok(),
            "--limit" => context.limit = value().parse().unwrap_or(usize::MAX),
            "--cpu-time" => context.cpu_time = true,
            "--verbose" => context.verbose = true,
            _ => usage(&format!("unknown argument {argument}")),
        }
    }
    if let Some(unknown) = wanted.iter().find(|w| SETS.iter().all(|s| s.name != **w)) {
        usage(&format!("unknown set {unknown}"));
    }
    let mut rows = Vec::new();
    for set in SETS {
        if wanted.is_empty() || wanted.iter().any(|name| name == set.name) {
            let of_set = (set.run)(&context);
            report::print(&of_set);
            rows.extend(of_set);
        }
    }
    if let Some(path) = json {
        report::write_json(&rows, &path);
    }
}

fn usage(problem: &str) -> ! {
    let names: Vec<&str> = SETS.iter().map(|set| set.name).collect();
    eprintln!(
        "{problem}\nusage: bench_knapsack [--data FOLDER] [--json FILE] [--set NAME]... [--seconds S] [--limit N] [--cpu-time] [--verbose]\nsets: {}",
        names.join(", ")
    );
    std::process::exit(2)
}

/// The files of a folder by name.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

/// A seeded stream of numbers for the generators (SplitMix64); not the solver's.
pub struct Stream(pub u64);

impl Stream {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `low..=high`.
    pub fn range(&mut self, low: i64, high: i64) -> i64 {
        assert!(low <= high, "an empty range");
        low + (self.draw() % (high - low + 1) as u64) as i64
    }
}
