//! Create to bound: pods a second from their creation to a binding that is durable, through the API server,
//! with hollow nodes (API objects only), workload by workload as kubernetes' scheduler_perf has them.
//!
//! `cargo run --release -p controlplane --example bench_scheduling [-- [--json FILE] [--scale PERCENT] [NAME…]]`
//!
//! API server, store (fsync on) and scheduler run in this process, as they do in the product; the pods are
//! created by 64 clients at once. Rates are of windows of a second, as scheduler_perf samples them. There is
//! no peer here: kube-scheduler's own figures come from its own benchmark.
#![allow(clippy::unwrap_used, reason = "an example")]

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use http::Request;
use k8s_openapi::api::core::v1::{Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, Object};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

/// The program's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[path = "../../scheduler/examples/workloads/mod.rs"]
#[expect(
    dead_code,
    reason = "the benchmark of decisions alone needs more of a workload"
)]
mod workloads;

#[path = "../tests/harness/mod.rs"]
#[expect(dead_code, reason = "the tests' part of it")]
mod harness;

use workloads::Workload;

/// Run when no workload is named.
const BY_DEFAULT: &[&str] = &[
    "SchedulingBasic",
    "SchedulingPodAntiAffinity",
    "SchedulingPodAffinity",
    "SchedulingPreferredPodAffinity",
    "SchedulingPreferredPodAntiAffinity",
    "SchedulingNodeAffinity",
    "TopologySpreading",
    "SchedulingRequiredPodAntiAffinityWithNSSelector",
    "PreemptionBasic",
    "Unschedulable",
    "SchedulingWithMixedChurn",
    "SchedulingWhileGated",
];
/// Of the workloads that exist in several sizes, those of so many nodes; the others are about decisions alone.
const NODES_MAX: usize = 6000;
const NODES_OF_BASIC: usize = 5000;
/// Pods that wait at a gate all the time, in the workload about them.
const GATED: usize = 10_000;
const CLIENTS: usize = 64;
const WINDOW: Duration = Duration::from_secs(1);
/// A workload whose pods stop being bound for so long has bound all that it can.
const SETTLED_AFTER: Duration = Duration::from_secs(15);

/// All that the counter reads of a pod.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeName {
    #[serde(default)]
    node_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Nothing {}

type PodHead = Object<NodeName, Nothing>;

fn main() {
    let mut json_path = None;
    let mut scale = 100;
    let mut names = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => json_path = arguments.next(),
            "--scale" => scale = arguments.next().unwrap().parse().unwrap(),
            _ => names.push(argument),
        }
    }
    let mut json_file = json_path.map(|path| {
        std::fs::File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap()
    });
    println!(
        "{:<52} {:>7} {:>7} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9}",
        "workload", "nodes", "before", "measured", "bound", "mean/s", "p10/s", "median/s", "p90/s"
    );
    for workload in workloads::all() {
        let wanted = match names.as_slice() {
            [] => BY_DEFAULT.contains(&workload.name),
            names => names.iter().any(|name| name == workload.name),
        };
        let is_for_decisions = workload.nodes > NODES_MAX
            || workload.name == "SchedulingBasic" && workload.nodes != NODES_OF_BASIC;
        if !wanted || is_for_decisions {
            continue;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let measured = runtime.block_on(run(&workload, scale));
        runtime.shutdown_background();
        println!(
            "{:<52} {:>7} {:>7} {:>8} {:>8} {:>9.0} {:>9.0} {:>9.0} {:>9.0}",
            workload.name,
            measured.nodes,
            measured.before,
            measured.created,
            measured.bound,
            measured.mean,
            measured.percentiles[0],
            measured.percentiles[1],
            measured.percentiles[2]
        );
        if let Some(file) = &mut json_file {
            let line = json!({"name": format!("create to bound, {}, {} nodes", workload.name, measured.nodes), "unit": "pods/s",
                "p10": measured.percentiles[0], "median": measured.percentiles[1], "p90": measured.percentiles[2],
                "mean": measured.mean, "peer": null, "ratio": null});
            writeln!(file, "{line}").unwrap();
        }
    }
}

/// Waits at a gate.
fn gated(index: usize) -> Value {
    let mut pod = workloads::light(index, "sched-2");
    pod["spec"]["schedulingGates"] = json!([{"name": "foo.bar/wait"}]);
    pod
}

/// What goes on while pods are measured, at upstream's intervals.
#[derive(Clone, Copy)]
enum Meanwhile {
    Nothing,
    /// A pod of high priority that fits nowhere, five times a second.
    Create,
    /// A node without room, a pod that fits nowhere and a service, in turn; each replaces its forerunner.
    Recreate,
    /// The pods of before are deleted, 50 a second.
    Delete,
}

impl Meanwhile {
    fn of(workload: &str) -> Self {
        match workload {
            "Unschedulable" => Meanwhile::Create,
            "SchedulingWithMixedChurn" => Meanwhile::Recreate,
            "SchedulingWhileGated" => Meanwhile::Delete,
            _ => Meanwhile::Nothing,
        }
    }

    async fn disturb(self, client: Client, before: usize) {
        let pods: Api<Pod> = Api::namespaced(client.clone(), "sched-2");
        let high = |index: usize| {
            let client = client.clone();
            async move {
                let mut pod = as_created(&client, workloads::too_large(index)).await;
                pod["metadata"]["namespace"] = "sched-2".into();
                serde_json::from_value::<Pod>(pod).unwrap()
            }
        };
        let every = match self {
            Meanwhile::Nothing => return,
            Meanwhile::Create => Duration::from_millis(200),
            Meanwhile::Recreate => Duration::from_secs(1),
            Meanwhile::Delete => Duration::from_millis(20),
        };
        let (parameters, gone) = (
            PostParams::default(),
            DeleteParams::default().grace_period(0),
        );
        let mut ticks = tokio::time::interval(every);
        for index in 0.. {
            ticks.tick().await;
            match self {
                Meanwhile::Nothing => return,
                Meanwhile::Create => {
                    make(&pods, &high(index).await).await;
                }
                Meanwhile::Delete => {
                    let old: Api<Pod> = Api::namespaced(client.clone(), "sched-0");
                    if index == before {
                        return;
                    }
                    old.delete(&format!("pod-sched-0-{index}"), &gone)
                        .await
                        .unwrap();
                }
                Meanwhile::Recreate => {
                    let nodes: Api<Node> = Api::all(client.clone());
                    let services: Api<Service> = Api::namespaced(client.clone(), "sched-2");
                    let (pod, name) = (high(0).await, format!("churn-{}", index % 3));
                    match index % 3 {
                        0 => {
                            nodes.delete(&name, &gone).await.ok();
                            make_nodes(&client, vec![json!({"metadata": {"name": name}, "status": {"capacity": {"pods": "0"}}})]).await;
                        }
                        1 => {
                            pods.delete(&pod.metadata.name.clone().unwrap(), &gone)
                                .await
                                .ok();
                            make(&pods, &pod).await;
                        }
                        _ => {
                            services.delete(&name, &gone).await.ok();
                            let service = json!({"metadata": {"name": name}, "spec": {"selector": {"app": "foo"},
                                "ports": [{"protocol": "TCP", "port": 8080, "targetPort": 8080}]}});
                            services
                                .create(&parameters, &serde_json::from_value(service).unwrap())
                                .await
                                .unwrap();
                        }
                    }
                }
            }
        }
    }
}

/// Creates a pod; its priority class may have been made only just now, and be unknown for a moment.
async fn make(pods: &Api<Pod>, pod: &Pod) {
    let begun = Instant::now();
    while let Err(error) = pods.create(&PostParams::default(), pod).await {
        assert!(begun.elapsed() < WINDOW, "the pod is not taken: {error}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

struct Measured {
    nodes: usize,
    before: usize,
    created: usize,
    bound: usize,
    mean: f64,
    percentiles: [f64; 3],
}

async fn run(workload: &Workload, scale: usize) -> Measured {
    let of = |count: usize| (count * scale).div_ceil(100);
    let (nodes, before, created) = (
        of(workload.nodes),
        of(workload.before),
        of(workload.measured),
    );
    let server = harness::ApiServer::start().await;
    let client = server.client.clone();
    make_namespaces(&client).await;
    make_nodes(&client, (0..nodes).map(workload.node).collect()).await;
    let control_plane = controlplane::start(
        client.clone(),
        controlplane::Options {
            controllers: false,
            ..controlplane::Options::default()
        },
    );
    let bound = count_bound(client.clone());
    if workload.name == "SchedulingWhileGated" {
        create(&client, bodies(&client, of(GATED), gated).await).await;
    }
    create(&client, bodies(&client, before, workload.first).await).await;
    let (first, _) = follow(&bound, 0, before).await;

    let meanwhile = Meanwhile::of(workload.name);
    let then = match meanwhile {
        // What fits nowhere comes in between here, and among the measured pods where decisions alone are measured.
        Meanwhile::Create | Meanwhile::Recreate => workloads::plain_measured,
        _ => workload.then,
    };
    let bodies = bodies(&client, created, then).await;
    let disturbing = tokio::spawn(meanwhile.disturb(client.clone(), before));
    let begun = Instant::now();
    let creator = client.clone();
    let creating = tokio::spawn(async move { create(&creator, bodies).await });
    let (last, counts) = follow(&bound, first, first + created).await;
    let elapsed = counts.last().map_or(begun.elapsed(), |(at, _)| *at - begun);
    creating.await.unwrap();
    disturbing.abort();
    let mut rates = rates(begun, first, &counts);
    rates.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = ((rates.len().max(1) - 1) as f64 * share).round() as usize;
        rates.get(index).copied().unwrap_or(0.0)
    };
    let percentiles = [at(0.1), at(0.5), at(0.9)];
    control_plane.stop().await;
    server.stop().await;
    Measured {
        nodes,
        before,
        created,
        bound: last - first,
        mean: (last - first) as f64 / elapsed.as_secs_f64(),
        percentiles,
    }
}

/// Pods bound in each whole window from `begun` on; the last part of a window counts by its share if it is the only one.
fn rates(begun: Instant, first: usize, counts: &[(Instant, usize)]) -> Vec<f64> {
    let Some((end, last)) = counts.last() else {
        return Vec::new();
    };
    let windows = ((*end - begun).as_secs_f64() / WINDOW.as_secs_f64()).floor() as usize;
    if windows == 0 {
        return vec![(last - first) as f64 / (*end - begun).as_secs_f64()];
    }
    let at = |moment: Instant| {
        counts
            .iter()
            .take_while(|(when, _)| *when <= moment)
            .last()
            .map_or(first, |(_, count)| *count)
    };
    (0..windows)
        .map(|window| {
            let from = begun + WINDOW * window as u32;
            (at(from + WINDOW) - at(from)) as f64 / WINDOW.as_secs_f64()
        })
        .collect()
}

/// Waits until `target` pods are bound, or none more was for a while; answers their count and how it grew.
async fn follow(
    bound: &watch::Receiver<usize>,
    from: usize,
    target: usize,
) -> (usize, Vec<(Instant, usize)>) {
    let mut bound = bound.clone();
    let mut counts = Vec::new();
    let mut count = from;
    while count < target {
        match tokio::time::timeout(SETTLED_AFTER, bound.changed()).await {
            Ok(Ok(())) => {
                count = *bound.borrow_and_update();
                counts.push((Instant::now(), count));
            }
            _ => break,
        }
    }
    (count, counts)
}

/// Counts, by a watch of its own, the pods that were ever bound.
fn count_bound(client: Client) -> watch::Receiver<usize> {
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        let kind = ApiResource {
            group: String::new(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: "Pod".into(),
            plural: "pods".into(),
        };
        let api: Api<PodHead> = Api::all_with(client, &kind);
        let mut from = "0".to_owned();
        let mut seen = std::collections::HashSet::new();
        loop {
            let parameters = WatchParams::default().timeout(280);
            let Ok(stream) = api.watch(&parameters, &from).await else {
                continue;
            };
            let mut stream = std::pin::pin!(stream);
            while let Some(Ok(event)) = stream.next().await {
                let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else {
                    continue;
                };
                from = pod.metadata.resource_version.clone().unwrap();
                if pod.spec.node_name.is_some() && seen.insert(pod.metadata.uid.unwrap()) {
                    sender.send_modify(|count| *count += 1);
                }
            }
        }
    });
    receiver
}

/// The namespaces of all workloads, each with its service account: its controller does not run here.
async fn make_namespaces(client: &Client) {
    let plain = ["sched-0", "sched-1", "sched-2"].map(|name| json!({"metadata": {"name": name}}));
    let selected = ["init", "measure"].into_iter().flat_map(|kind| {
        (0..100).map(move |index| {
            json!({"metadata": {"name": format!("{kind}-ns-{index}"), "labels": {"team": "devops"}}})
        })
    });
    for namespace in plain.into_iter().chain(selected) {
        let name = namespace["metadata"]["name"].as_str().unwrap().to_owned();
        harness::add_namespace(client, namespace).await;
        // Without a token: scheduler_perf runs with the service account admission off.
        let account =
            json!({"metadata": {"name": "default"}, "automountServiceAccountToken": false});
        Api::<ServiceAccount>::namespaced(client.clone(), &name)
            .create(
                &PostParams::default(),
                &serde_json::from_value(account).unwrap(),
            )
            .await
            .unwrap();
    }
}

/// The class of a priority; the API server takes no bare number.
fn priority_class(priority: i64) -> String {
    format!("priority-{priority}")
}

/// A workload's pod as a client creates it.
async fn as_created(client: &Client, mut pod: Value) -> Value {
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"].as_object_mut().unwrap().remove("uid");
    let priority = pod["spec"].as_object_mut().unwrap().remove("priority");
    if let Some(priority) = priority.and_then(|priority| priority.as_i64()) {
        let name = priority_class(priority);
        pod["spec"]["priorityClassName"] = name.clone().into();
        let class = PriorityClass {
            metadata: kube::core::ObjectMeta {
                name: Some(name),
                ..Default::default()
            },
            value: Some(i32::try_from(priority).unwrap()),
            ..PriorityClass::default()
        };
        // There already, after the first pod.
        Api::<PriorityClass>::all(client.clone())
            .create(&PostParams::default(), &class)
            .await
            .ok();
    }
    pod
}

async fn make_nodes(client: &Client, nodes: Vec<Value>) {
    futures::stream::iter(nodes)
        .for_each_concurrent(CLIENTS, |mut node| async move {
            harness::add_node(
                client,
                node["metadata"].take(),
                node["status"]["capacity"].take(),
            )
            .await;
        })
        .await;
}

/// Namespace and encoded pod, made ahead so that only the server's work is measured.
async fn bodies(client: &Client, count: usize, pod: fn(usize) -> Value) -> Vec<(String, Vec<u8>)> {
    let mut bodies = Vec::with_capacity(count);
    for index in 0..count {
        let pod = as_created(client, pod(index)).await;
        let namespace = pod["metadata"]["namespace"].as_str().unwrap().to_owned();
        bodies.push((namespace, serde_json::to_vec(&pod).unwrap()));
    }
    bodies
}

async fn create(client: &Client, pods: Vec<(String, Vec<u8>)>) {
    let next = AtomicUsize::new(0);
    let workers = (0..CLIENTS).map(|_| async {
        loop {
            let Some((namespace, body)) = pods.get(next.fetch_add(1, Ordering::Relaxed)) else {
                return;
            };
            let request = Request::post(format!("/api/v1/namespaces/{namespace}/pods"))
                .header("content-type", "application/json")
                .body(body.clone())
                .unwrap();
            client.request_text(request).await.unwrap();
        }
    });
    futures::future::join_all(workers).await;
}
