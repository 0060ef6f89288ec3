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

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use scheduler::{Decision, PendingPod, Policy, Snapshot};
use serde_json::{Value, json};

/// Pods of a workload that are also planned one by one.
const ALONE_MAX: usize = 2000;

struct Workload {
    name: &'static str,
    nodes: usize,
    before: usize,
    measured: usize,
    node: fn(usize) -> Value,
    /// Pods that are there already.
    first: fn(usize) -> Value,
    then: fn(usize) -> Value,
    prepare: fn(&mut Snapshot),
    /// Measured pods come this many at a time; `between` happens in between.
    chunk: usize,
    between: fn(&mut Snapshot, usize),
}

fn node(index: usize) -> Value {
    json!({"metadata": {"name": format!("scheduler-perf-{index}"), "labels": {"kubernetes.io/hostname": format!("scheduler-perf-{index}")}},
        "status": {"capacity": {"pods": "110", "cpu": "4", "memory": "32Gi"}}})
}

fn zoned(index: usize, zones: &[&str]) -> Value {
    let mut node = node(index);
    node["metadata"]["labels"]["topology.kubernetes.io/zone"] = zones[index % zones.len()].into();
    node
}

fn one_zone(index: usize) -> Value {
    zoned(index, &["zone1"])
}

fn three_zones(index: usize) -> Value {
    zoned(index, &["moon-1", "moon-2", "moon-3"])
}

fn pod(index: usize, namespace: &str, cpu: &str) -> Value {
    let requests = json!({"cpu": cpu, "memory": "500Mi"});
    json!({"metadata": {"name": format!("pod-{namespace}-{index}"), "namespace": namespace, "uid": format!("{namespace}-{index:08}-0000-4000-8000-000000000000")},
        "spec": {"containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10.1", "resources": {"requests": requests, "limits": requests}}]}})
}

fn plain(index: usize) -> Value {
    pod(index, "sched-0", "100m")
}

fn plain_measured(index: usize) -> Value {
    pod(index, "sched-1", "100m")
}

fn colored(index: usize, namespace: &str, color: &str, affinity: Value) -> Value {
    let mut pod = pod(index, namespace, "100m");
    pod["metadata"]["labels"] = json!({"color": color});
    pod["spec"]["affinity"] = affinity;
    pod
}

/// A term about pods of a colour in both namespaces.
fn term(color: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"color": color}}, "topologyKey": key, "namespaces": ["sched-1", "sched-0"]})
}

fn selected(color: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"color": color}}, "topologyKey": key, "namespaceSelector": {"matchLabels": {"team": "devops"}}})
}

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

fn anti(index: usize, namespace: &str) -> Value {
    let rule = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term("green", HOST)]}});
    colored(index, namespace, "green", rule)
}

fn near(index: usize, namespace: &str) -> Value {
    let rule = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term("blue", ZONE)]}});
    colored(index, namespace, "blue", rule)
}

fn rather_near(index: usize, namespace: &str) -> Value {
    let rule = json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term("red", HOST)}]}});
    colored(index, namespace, "red", rule)
}

fn rather_apart(index: usize, namespace: &str) -> Value {
    let rule = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term("yellow", HOST)}]}});
    colored(index, namespace, "yellow", rule)
}

fn in_zones(index: usize) -> Value {
    let terms = json!([{"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["zone1", "zone2"]}]}]);
    let mut pod = pod(index, "sched-1", "100m");
    pod["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
    pod
}

fn spread(index: usize, when: &str) -> Value {
    let mut pod = pod(index, "sched-1", "100m");
    pod["metadata"]["labels"] = json!({"color": "blue"});
    pod["spec"]["topologySpreadConstraints"] = json!([{"maxSkew": 5, "topologyKey": ZONE, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"color": "blue"}}}]);
    pod
}

fn served(index: usize) -> Value {
    let mut pod = pod(index, "sched-1", "100m");
    pod["metadata"]["labels"] = json!({"app": "scheduler-perf"});
    pod["spec"]["containers"][0]["resources"] = Value::Null;
    pod
}

/// The first pods are in a hundred namespaces, the measured ones in one.
fn namespace_of(index: usize) -> String {
    if index < MEASURED {
        format!("init-ns-{}", index % 100)
    } else {
        "measure-ns-0".into()
    }
}

/// Indexes of measured pods where the two kinds differ.
const MEASURED: usize = 1_000_000;

fn of_namespaces(index: usize, rule: Value, color: &str) -> Value {
    colored(index, &namespace_of(index), color, rule)
}

fn anti_selected(index: usize) -> Value {
    let rule = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [selected("green", HOST)]}});
    of_namespaces(index, rule, "green")
}

fn near_selected(index: usize) -> Value {
    let rule = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [selected("blue", ZONE)]}});
    of_namespaces(index, rule, "blue")
}

fn rather_near_selected(index: usize) -> Value {
    let rule = json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": selected("red", HOST)}]}});
    of_namespaces(index, rule, "red")
}

fn rather_apart_selected(index: usize) -> Value {
    let rule = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": selected("green", HOST)}]}});
    of_namespaces(index, rule, "green")
}

fn hundred_namespaces(snapshot: &mut Snapshot) {
    for index in 0..100 {
        let labels = [("team".to_string(), "devops".to_string())].into();
        snapshot.observe_namespace(&format!("init-ns-{index}"), labels);
    }
    let labels = [("team".to_string(), "devops".to_string())].into();
    snapshot.observe_namespace("measure-ns-0", labels);
}

fn service(snapshot: &mut Snapshot) {
    let service: Service = serde_json::from_value(json!({"metadata": {"name": "perf", "namespace": "sched-1"}, "spec": {"selector": {"app": "scheduler-perf"}}})).unwrap();
    snapshot.owners_mut().observe_service(&service);
}

fn low(index: usize) -> Value {
    pod(index, "sched-0", "900m")
}

fn high(index: usize) -> Value {
    let mut pod = pod(index, "sched-1", "3000m");
    pod["spec"]["priority"] = 10.into();
    pod
}

/// More important than all others, and fits nowhere.
fn too_large(index: usize) -> Value {
    let mut pod = pod(index, "sched-1", "9");
    pod["spec"]["priority"] = 10.into();
    pod
}

/// Every fifth pod fits nowhere.
fn mixed_with_too_large(index: usize) -> Value {
    if index.is_multiple_of(5) {
        too_large(index)
    } else {
        plain_measured(index)
    }
}

fn daemon(index: usize) -> Value {
    let mut pod = pod(index, "sched-1", "10m");
    let terms = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [format!("scheduler-perf-{}", index % 15_000)]}]}]);
    pod["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
    pod
}

/// 35 sizes. Not upstream's: there all pods of a workload are alike.
fn of_many_sizes(index: usize) -> Value {
    let mut pod = pod(index, "sched-1", "100m");
    let requests = json!({"cpu": format!("{}m", 20 + 20 * (index % 7)), "memory": format!("{}Mi", 64 + 64 * (index % 5))});
    pod["spec"]["containers"][0]["resources"]["requests"] = requests;
    pod
}

fn nothing(_: &mut Snapshot) {}

/// A node and a service come or go.
fn churn(snapshot: &mut Snapshot, step: usize) {
    if step.is_multiple_of(2) {
        let churned =
            json!({"metadata": {"name": "node-churn"}, "status": {"capacity": {"pods": "0"}}});
        snapshot.observe_node(&serde_json::from_value(churned).unwrap());
        service(snapshot);
    } else {
        snapshot.forget_node("node-churn");
        snapshot.owners_mut().forget_service("sched-1", "perf");
    }
}

fn workloads() -> Vec<Workload> {
    let with = |name, node, before, measured, first, then| Workload {
        name,
        node,
        before,
        measured,
        first,
        then,
        ..basic_of()
    };
    vec![
        basic_of(),
        with(
            "SchedulingManySizes",
            node,
            5000,
            50_000,
            plain,
            of_many_sizes,
        ),
        with(
            "SchedulingPodAntiAffinity",
            node,
            1000,
            2000,
            |i| anti(i, "sched-0"),
            |i| anti(i, "sched-1"),
        ),
        with(
            "SchedulingPodMatchingAntiAffinity",
            node,
            1000,
            5000,
            |i| anti(i, "sched-0"),
            |i| colored(i, "sched-1", "green", Value::Null),
        ),
        with(
            "SchedulingPodAffinity",
            one_zone,
            5000,
            5000,
            |i| near(i, "sched-0"),
            |i| near(i, "sched-1"),
        ),
        with(
            "SchedulingPreferredPodAffinity",
            node,
            5000,
            5000,
            |i| rather_near(i, "sched-0"),
            |i| rather_near(i, "sched-1"),
        ),
        with(
            "SchedulingPreferredPodAntiAffinity",
            node,
            5000,
            5000,
            |i| rather_apart(i, "sched-0"),
            |i| rather_apart(i, "sched-1"),
        ),
        with(
            "SchedulingNodeAffinity",
            one_zone,
            5000,
            10_000,
            plain,
            in_zones,
        ),
        with("TopologySpreading", three_zones, 5000, 5000, plain, |i| {
            spread(i, "DoNotSchedule")
        }),
        with(
            "PreferredTopologySpreading",
            three_zones,
            5000,
            5000,
            plain,
            |i| spread(i, "ScheduleAnyway"),
        ),
        Workload {
            prepare: service,
            ..with(
                "DefaultTopologySpreading",
                three_zones,
                5000,
                50_000,
                plain,
                served,
            )
        },
        Workload {
            prepare: hundred_namespaces,
            nodes: 6000,
            ..with(
                "SchedulingRequiredPodAntiAffinityWithNSSelector",
                node,
                4000,
                2000,
                anti_selected,
                |i| anti_selected(i + MEASURED),
            )
        },
        Workload {
            prepare: hundred_namespaces,
            ..with(
                "SchedulingPreferredAntiAffinityWithNSSelector",
                node,
                4000,
                2000,
                rather_apart_selected,
                |i| rather_apart_selected(i + MEASURED),
            )
        },
        Workload {
            prepare: hundred_namespaces,
            ..with(
                "SchedulingRequiredPodAffinityWithNSSelector",
                one_zone,
                4000,
                2000,
                near_selected,
                |i| near_selected(i + MEASURED),
            )
        },
        Workload {
            prepare: hundred_namespaces,
            ..with(
                "SchedulingPreferredAffinityWithNSSelector",
                node,
                4000,
                5000,
                rather_near_selected,
                |i| rather_near_selected(i + MEASURED),
            )
        },
        with("PreemptionBasic", node, 20_000, 5000, low, high),
        with(
            "Unschedulable",
            node,
            100,
            10_000,
            too_large,
            mixed_with_too_large,
        ),
        Workload {
            chunk: 100,
            between: churn,
            ..with(
                "SchedulingWithMixedChurn",
                node,
                0,
                10_000,
                plain,
                mixed_with_too_large,
            )
        },
        // Not upstream's: more than fits, so that the solver is asked.
        Workload {
            nodes: 500,
            ..with("Overloaded", node, 0, 40_000, plain, of_many_sizes)
        },
        Workload {
            nodes: 15_000,
            ..with("SchedulingDaemonset", node, 0, 30_000, plain, daemon)
        },
        Workload {
            name: "SchedulingBasic",
            nodes: 1000,
            before: 0,
            measured: 30_000,
            ..basic_of()
        },
        Workload {
            name: "SchedulingBasic",
            nodes: 100_000,
            before: 0,
            measured: 50_000,
            ..basic_of()
        },
    ]
}

fn basic_of() -> Workload {
    Workload {
        name: "SchedulingBasic",
        nodes: 5000,
        before: 5000,
        measured: 50_000,
        node,
        first: plain,
        then: plain_measured,
        prepare: nothing,
        chunk: usize::MAX,
        between: |_, _| {},
    }
}

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
    for workload in workloads() {
        if names.is_empty()
            || names
                .iter()
                .any(|name| workload.name.contains(name.as_str()))
        {
            measure(&workload, &mut json);
        }
    }
}
