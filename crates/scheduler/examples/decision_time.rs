//! The decisions-only table: how many pods a second the pure scheduler decides, workload by workload, by
//! the names and sizes of kubernetes' scheduler_perf; and how long a lone pod waits for its decision.
//!
//! `cargo run --release -p scheduler --example decision_time [-- [--json FILE] [NAME…]]`
//!
//! "batch" hands all measured pods over at once, as a queue does that was filled while the scheduler was
//! busy; "alone" plans each pod by itself, and "new class" one of a kind that was never seen (the best of
//! twenty). All count everything from the typed Pod to the Binding: classifying and the five steps, nothing
//! cached beforehand but what the pods before left.
#![allow(clippy::unwrap_used, reason = "an example")]

use std::io::Write;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use scheduler::{Decision, PendingPod, Policy, Snapshot};
use serde_json::json;

mod workloads;

use workloads::Workload;

/// Pods of a workload that are also planned one by one.
const ALONE_MAX: usize = 2000;

/// Places the pods that are there before; what finds no place waits and is forgotten.
fn cluster(workload: &Workload) -> Snapshot {
    let mut snapshot = Snapshot::new();
    (workload.prepare)(&mut snapshot);
    for index in 0..workload.nodes {
        let node: Node = serde_json::from_value((workload.node)(index)).unwrap();
        snapshot.observe_node(&node);
    }
    let pods: Vec<Pod> = (0..workload.before)
        .map(|index| serde_json::from_value((workload.first)(index)).unwrap())
        .collect();
    // Half a thousand at a time, as they come in.
    for pods in pods.chunks(500) {
        decide(&mut snapshot, pods);
    }
    snapshot
}

#[derive(Default)]
struct Outcome {
    placed: usize,
    preempting: usize,
    waiting: usize,
    /// The largest of all plans.
    gap: f64,
}

impl Outcome {
    fn add(&mut self, other: Outcome) {
        self.placed += other.placed;
        self.preempting += other.preempting;
        self.waiting += other.waiting;
        self.gap = self.gap.max(other.gap);
    }
}

fn decide(snapshot: &mut Snapshot, pods: &[Pod]) -> Outcome {
    let pending: Vec<PendingPod> = pods
        .iter()
        .filter_map(|pod| PendingPod::new(snapshot, pod))
        .collect();
    let policy = Policy::default();
    let demand = scheduler::collect_demand(snapshot, &pending);
    let plan = scheduler::match_pods(snapshot, &demand, &policy);
    scheduler::reserve(snapshot, &plan);
    let placed = scheduler::start(&plan).len();
    let preempting = plan
        .decisions
        .iter()
        .filter(|(_, d)| matches!(d, Decision::Preempt { .. }))
        .count();
    Outcome {
        placed,
        preempting,
        waiting: plan.decisions.len() - placed - preempting,
        gap: plan.gap(),
    }
}

/// Runs of a batch; the best counts, since other work on the machine only ever adds.
const RUNS: usize = 3;
/// Lone pods of classes that were never seen before.
const COLD: usize = 20;

fn measure(workload: &Workload, json: &mut Option<std::fs::File>) {
    let pods: Vec<Pod> = (0..workload.measured)
        .map(|index| serde_json::from_value((workload.then)(index)).unwrap())
        .collect();
    let mut batches: Vec<Duration> = Vec::new();
    let mut all = Outcome::default();
    for _ in 0..RUNS {
        let mut snapshot = cluster(workload);
        all = Outcome::default();
        let began = Instant::now();
        for (step, pods) in pods.chunks(workload.chunk).enumerate() {
            all.add(decide(&mut snapshot, pods));
            (workload.between)(&mut snapshot, step);
        }
        batches.push(began.elapsed());
    }
    batches.sort();
    let mut snapshot = cluster(workload);
    let time_alone = |snapshot: &mut Snapshot, pod: &Pod| {
        let began = Instant::now();
        decide(snapshot, std::slice::from_ref(pod));
        began.elapsed()
    };
    let mut cold: Vec<Duration> = Vec::new();
    for index in 0..COLD {
        let mut pod = (workload.then)(workload.measured + index);
        pod["metadata"]["labels"]["cold"] = index.to_string().into();
        let pod: Pod = serde_json::from_value(pod).unwrap();
        cold.push(time_alone(&mut snapshot, &pod));
    }
    cold.sort();
    let mut lone: Vec<Duration> = Vec::new();
    for (step, pod) in pods.iter().take(ALONE_MAX).enumerate() {
        lone.push(time_alone(&mut snapshot, pod));
        (workload.between)(&mut snapshot, step);
    }
    lone.sort();
    let rate = |took: Duration| workload.measured as f64 / took.as_secs_f64();
    let milliseconds = |took: Duration| took.as_secs_f64() * 1e3;
    let at = |share: usize| lone[(lone.len() * share / 100).min(lone.len() - 1)];
    println!(
        "| {} | {} / {} / {} | {:.0} | {:.0} | {:.3} | {:.3} / {:.3} | {} / {} / {} | {:.4}% |",
        workload.name,
        workload.nodes,
        workload.before,
        workload.measured,
        rate(batches[0]),
        rate(batches[RUNS - 1]),
        milliseconds(cold[0]),
        milliseconds(at(50)),
        milliseconds(at(99)),
        all.placed,
        all.preempting,
        all.waiting,
        all.gap * 100.0
    );
    if let Some(file) = json {
        let line = json!({"workload": workload.name, "nodes": workload.nodes, "before": workload.before, "measured": workload.measured,
            "batch_pods_per_second_best": rate(batches[0]), "batch_pods_per_second_worst": rate(batches[RUNS - 1]),
            "alone_new_class_seconds_best": cold[0].as_secs_f64(),
            "alone_median_seconds": at(50).as_secs_f64(), "alone_p99_seconds": at(99).as_secs_f64(),
            "placed": all.placed, "preempting": all.preempting, "waiting": all.waiting, "gap": all.gap});
        writeln!(file, "{line}").unwrap();
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut names: Vec<String> = Vec::new();
    let mut json = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => {
                let path = arguments.next().expect("--json FILE");
                json = Some(
                    std::fs::File::options()
                        .create(true)
                        .append(true)
                        .open(path)
                        .unwrap(),
                );
            }
            name => names.push(name.to_string()),
        }
    }
    println!(
        "| workload | nodes / before / measured | batch, pods/s, best of 3 | worst of 3 | alone, new class, ms | alone, median / p99, ms | placed / preempting / waiting | gap |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for workload in workloads::all() {
        if names.is_empty()
            || names
                .iter()
                .any(|name| workload.name.contains(name.as_str()))
        {
            measure(&workload, &mut json);
        }
    }
}
