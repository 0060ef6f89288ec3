//! The scheduler's loop against a real API server in the same process: preemption, gates, profiles, a crowd that waits.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use controlplane::{Handle, Options, SchedulerMetrics, SchedulerOptions};
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

mod harness;

use harness::{ApiServer, eventually};

struct Cluster {
    client: Client,
    server: ApiServer,
    control_plane: Handle,
    metrics: Arc<SchedulerMetrics>,
}

impl Cluster {
    async fn start(nodes: &[(&str, &str)]) -> Cluster {
        let server = ApiServer::start().await;
        let client = server.client.clone();
        let scheduler = SchedulerOptions {
            configuration: scheduler::Configuration::from_value(json!({
                "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
                "profiles": [{"schedulerName": "default-scheduler"}, {"schedulerName": "second"}]}))
            .unwrap(),
            ..SchedulerOptions::default()
        };
        let metrics = scheduler.metrics.clone();
        let options = Options {
            scheduler: Some(scheduler),
            ..Options::default()
        };
        let control_plane = controlplane::start(client.clone(), options);
        let cluster = Cluster {
            client,
            server,
            control_plane,
            metrics,
        };
        harness::add_namespace(&cluster.client, json!({"metadata": {"name": "demo"}})).await;
        for (name, cpu) in nodes {
            cluster.add_node(name, cpu).await;
        }
        cluster
    }

    async fn stop(self) {
        self.control_plane.stop().await;
        self.server.stop().await;
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "demo")
    }

    async fn add_node(&self, name: &str, cpu: &str) {
        harness::add_node_with_cpu(&self.client, name, cpu).await;
    }

    async fn add_priority(&self, name: &str, value: i32) {
        let class = json!({"metadata": {"name": name}, "value": value});
        Api::<PriorityClass>::all(self.client.clone())
            .create(
                &PostParams::default(),
                &serde_json::from_value(class).unwrap(),
            )
            .await
            .unwrap();
    }

    /// Makes a pod; `more` is merged into its spec.
    async fn add_pod(&self, name: &str, cpu: &str, more: Value) {
        let mut spec = json!({"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        let pod = serde_json::from_value(pod).unwrap();
        // The namespace's service account may not be there yet.
        eventually(&format!("pod {name} made"), async || {
            self.pods()
                .create(&PostParams::default(), &pod)
                .await
                .is_ok()
        })
        .await;
    }

    async fn node_of(&self, name: &str) -> Option<String> {
        let pod = self.pods().get_opt(name).await.unwrap()?;
        pod.spec.unwrap().node_name.filter(|node| !node.is_empty())
    }

    async fn bound_to(&self, name: &str, node: &str) {
        eventually(&format!("{name} on {node}"), async || {
            self.node_of(name).await.as_deref() == Some(node)
        })
        .await;
    }

    async fn has_event(&self, reason: &str, of: impl Fn(&str) -> bool) -> bool {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "demo");
        let events = events.list(&ListParams::default()).await.unwrap().items;
        events.iter().any(|event| {
            event.reason.as_deref() == Some(reason) && event.message.as_deref().is_some_and(&of)
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preemption_is_carried_out() {
    let cluster = Cluster::start(&[("n1", "2")]).await;
    cluster.add_priority("high", 1000).await;
    cluster.add_priority("meek", 2000).await;
    for name in ["low1", "low2"] {
        cluster.add_pod(name, "1", json!({})).await;
        cluster.bound_to(name, "n1").await;
    }
    cluster
        .add_pod("high", "1", json!({"priorityClassName": "high"}))
        .await;
    cluster.bound_to("high", "n1").await;
    let left: Vec<bool> = [
        cluster.pods().get_opt("low1").await.unwrap().is_some(),
        cluster.pods().get_opt("low2").await.unwrap().is_some(),
    ]
    .into();
    assert_eq!(
        left.iter().filter(|there| **there).count(),
        1,
        "exactly one victim: {left:?}"
    );
    let uid = cluster
        .pods()
        .get("high")
        .await
        .unwrap()
        .metadata
        .uid
        .unwrap();
    eventually("the events", async || {
        cluster
            .has_event("Preempted", |message| {
                message == format!("Preempted by pod {uid} on node n1")
            })
            .await
            && cluster
                .has_event("FailedScheduling", |message| {
                    message == "0/1 nodes are available: 1 Insufficient cpu."
                })
                .await
    })
    .await;
    let metrics = cluster.metrics.render();
    assert!(
        metrics.contains("scheduler_preemption_attempts_total 1\n"),
        "{metrics}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gates_profiles_and_foreign_pods() {
    let cluster = Cluster::start(&[("n1", "4")]).await;
    cluster
        .add_pod(
            "gated",
            "100m",
            json!({"schedulingGates": [{"name": "example.com/wait"}]}),
        )
        .await;
    cluster
        .add_pod("foreign", "100m", json!({"schedulerName": "somebody-else"}))
        .await;
    cluster
        .add_pod("second", "100m", json!({"schedulerName": "second"}))
        .await;
    cluster.add_pod("first", "100m", json!({})).await;
    cluster.bound_to("second", "n1").await;
    cluster.bound_to("first", "n1").await;
    assert_eq!(
        (
            cluster.node_of("gated").await,
            cluster.node_of("foreign").await
        ),
        (None, None)
    );
    let open = json!([{"op": "remove", "path": "/spec/schedulingGates"}]);
    let patch: Patch<()> = Patch::Json(serde_json::from_value(open).unwrap());
    cluster
        .pods()
        .patch("gated", &PatchParams::default(), &patch)
        .await
        .unwrap();
    cluster.bound_to("gated", "n1").await;
    assert_eq!(cluster.node_of("foreign").await, None);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_waits_starves_nobody_and_is_woken_by_what_helps() {
    let cluster = Cluster::start(&[("n1", "4")]).await;
    for index in 0..60 {
        cluster
            .add_pod(&format!("large{index}"), "9", json!({}))
            .await;
    }
    cluster.add_pod("small", "1", json!({})).await;
    cluster.bound_to("small", "n1").await;
    eventually("the reason", async || {
        let pod = cluster.pods().get("large7").await.unwrap();
        let conditions = pod.status.unwrap_or_default().conditions.unwrap_or_default();
        conditions.iter().any(|condition| {
            condition.type_ == "PodScheduled"
                && condition.reason.as_deref() == Some("Unschedulable")
                && condition.message.as_deref().is_some_and(|message| {
                    message == "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
                })
        })
    })
    .await;
    let configuration = scheduler::Configuration::default();
    let explained = controlplane::explain(&cluster.client, &configuration, "demo", "large7")
        .await
        .unwrap();
    let text = explained.explanation.to_string();
    assert!(
        text.starts_with("pod demo/large7 waits: 0/1 nodes are available: 1 Insufficient cpu."),
        "{text}"
    );
    let explained = controlplane::explain(&cluster.client, &configuration, "demo", "small")
        .await
        .unwrap();
    assert_eq!(explained.bound_to.as_deref(), Some("n1"));
    assert_eq!(explained.explanation.decision, "goes to node n1");
    // A node on which one of them fits.
    cluster.add_node("n2", "10").await;
    eventually("one of the crowd on n2", async || {
        let pods = cluster
            .pods()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items;
        let on_n2 = pods
            .iter()
            .filter(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("n2"));
        on_n2.count() == 1
    })
    .await;
    cluster.stop().await;
}
