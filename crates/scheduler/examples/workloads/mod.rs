//! The workloads of kubernetes' scheduler_perf, by name and size: nodes, the pods that are there before, the pods that are measured.
//!
//! Shared by the decisions-only benchmark and by the one through the API server.
#![allow(clippy::unwrap_used, reason = "an example")]

use k8s_openapi::api::core::v1::Service;
use scheduler::Snapshot;
use serde_json::{Value, json};

pub struct Workload {
    pub name: &'static str,
    pub nodes: usize,
    pub before: usize,
    pub measured: usize,
    pub node: fn(usize) -> Value,
    /// Pods that are there already.
    pub first: fn(usize) -> Value,
    pub then: fn(usize) -> Value,
    pub prepare: fn(&mut Snapshot),
    /// Measured pods come this many at a time; `between` happens in between.
    pub chunk: usize,
    pub between: fn(&mut Snapshot, usize),
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

pub fn plain_measured(index: usize) -> Value {
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
    let mut pod = pod(index, "sched-0", "900m");
    pod["spec"]["terminationGracePeriodSeconds"] = 0.into();
    pod
}

fn high(index: usize) -> Value {
    let mut pod = pod(index, "sched-1", "3000m");
    pod["spec"]["priority"] = 10.into();
    pod
}

/// More important than all others, and fits nowhere.
pub fn too_large(index: usize) -> Value {
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

/// Asks for nothing.
pub fn light(index: usize, namespace: &str) -> Value {
    let mut pod = pod(index, namespace, "0");
    pod["spec"]["containers"][0]["resources"] = Value::Null;
    pod["spec"]["terminationGracePeriodSeconds"] = 0.into();
    pod
}

/// The only node of its workload.
fn roomy(_: usize) -> Value {
    json!({"metadata": {"name": "scheduler-perf-node", "labels": {"kubernetes.io/hostname": "scheduler-perf-node"}},
        "status": {"capacity": {"pods": "90000", "cpu": "4", "memory": "32Gi"}}})
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

pub fn all() -> Vec<Workload> {
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
            plain,
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
        // The gated pods never come to a decision; the benchmark through the API server has them.
        Workload {
            nodes: 1,
            ..with(
                "SchedulingWhileGated",
                roomy,
                20_000,
                20_000,
                |index| light(index, "sched-0"),
                |index| light(index, "sched-1"),
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
