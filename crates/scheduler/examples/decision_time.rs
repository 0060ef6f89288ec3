//! Prints how long decisions take: a lone pod, and a batch, on clusters of several sizes.
//!
//! `cargo run --release -p scheduler --example decision_time`
#![allow(clippy::unwrap_used, reason = "an example")]

use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};
use scheduler::{PendingPod, Policy, Snapshot};
use serde_json::json;

fn main() {
    for node_count in [1usize, 100, 1000, 5000] {
        let mut snapshot = Snapshot::new();
        for index in 0..node_count {
            let resources =
                json!({"cpu": "32", "memory": "64Gi", "pods": "110", "ephemeral-storage": "500Gi"});
            let node: Node = serde_json::from_value(json!({"metadata": {"name": format!("n{index}"), "labels": {"zone": format!("z{}", index % 3)}},
                "status": {"allocatable": resources}}))
            .unwrap();
            snapshot.observe_node(&node);
        }
        let pod = |index: usize| -> Pod {
            let requests = json!({"cpu": format!("{}m", 100 + 100 * (index % 7)), "memory": format!("{}Mi", 128 + 128 * (index % 5))});
            serde_json::from_value(json!({"metadata": {"name": format!("p{index}"), "namespace": "a", "uid": format!("u{index}")},
                "spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}}))
            .unwrap()
        };
        let mut lone = Vec::new();
        for index in 0..50 {
            let pod = pod(index);
            let started = Instant::now();
            let pending = [PendingPod::new(&mut snapshot, &pod).unwrap()];
            let plan = scheduler::plan(&mut snapshot, &pending, &Policy::default());
            scheduler::reserve(&mut snapshot, &plan);
            lone.push(started.elapsed());
        }
        lone.sort();
        let pods: Vec<Pod> = (50..10_050).map(pod).collect();
        let pending: Vec<PendingPod> = pods
            .iter()
            .filter_map(|pod| PendingPod::new(&mut snapshot, pod))
            .collect();
        let started = Instant::now();
        let plan = scheduler::plan(&mut snapshot, &pending, &Policy::default());
        let took = started.elapsed();
        println!(
            "{node_count} nodes: lone pod median {:?} p90 {:?}; 10000 pods at once {took:?}, {} placed, gap {:.4}%",
            lone[25],
            lone[45],
            plan.placements().count(),
            plan.gap() * 100.0
        );
    }
}
