//! The control plane against a real API server in the same process, with a kubelet that only writes status.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use controlplane::{Handle, Options};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

mod harness;

use harness::{ApiServer, eventually};

struct Cluster {
    client: Client,
    server: Option<ApiServer>,
    control_plane: Option<Handle>,
    kubelet: tokio::task::JoinHandle<()>,
}

impl Cluster {
    async fn start() -> Cluster {
        let server = ApiServer::start().await;
        let client = server.client.clone();
        let control_plane = controlplane::start(client.clone(), options());
        let kubelet = tokio::spawn(kubelet(client.clone()));
        Cluster {
            client,
            server: Some(server),
            control_plane: Some(control_plane),
            kubelet,
        }
    }

    async fn stop(mut self) {
        self.kubelet.abort();
        self.control_plane.take().unwrap().stop().await;
        self.server.take().unwrap().stop().await;
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "demo")
    }

    async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize,
    {
        self.api()
            .create(
                &PostParams::default(),
                &serde_json::from_value(object).unwrap(),
            )
            .await
            .unwrap()
    }

    async fn list<K>(&self) -> Vec<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.api().list(&ListParams::default()).await.unwrap().items
    }

    async fn add_node(&self, name: &str, cpu: &str) {
        harness::add_node_with_cpu(&self.client, name, cpu).await;
    }

    async fn add_namespace(&self) {
        harness::add_namespace(&self.client, json!({"metadata": {"name": "demo"}})).await;
        eventually("the default service account", async || {
            self.api::<ServiceAccount>()
                .get_opt("default")
                .await
                .unwrap()
                .is_some()
        })
        .await;
    }

    async fn messages(&self, reason: &str) -> BTreeSet<String> {
        let events = self.list::<Event>().await;
        events
            .into_iter()
            .filter(|event| event.reason.as_deref() == Some(reason))
            .filter_map(|event| event.message)
            .collect()
    }
}

fn options() -> Options {
    Options {
        root_ca_pem: Some("PEM".into()),
        ..Options::default()
    }
}

/// Runs what is bound, at once, and lets go what is deleted.
async fn kubelet(client: Client) {
    let mut events = std::pin::pin!(watcher(
        Api::<Pod>::all(client.clone()),
        watcher::Config::default()
    ));
    let mut address = 0u16;
    while let Some(event) = events.next().await {
        let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event else {
            continue;
        };
        let api: Api<Pod> =
            Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap());
        let name = pod.metadata.name.as_deref().unwrap();
        let spec = pod.spec.as_ref().unwrap();
        let broken = spec.containers[0].image.as_deref() == Some("broken");
        if spec.node_name.is_none() {
            continue;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            let _ = api
                .delete(
                    name,
                    &DeleteParams {
                        grace_period_seconds: Some(0),
                        ..DeleteParams::default()
                    },
                )
                .await;
        } else if pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            != Some("Running")
        {
            address += 1;
            let ip = format!("10.42.{}.{}", address / 250, address % 250 + 1);
            let ready = if broken { "False" } else { "True" };
            let now = k8s_openapi::jiff::Timestamp::now().to_string();
            let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now}]}});
            let _ = api
                .patch_status(name, &PatchParams::default(), &Patch::Strategic(&status))
                .await;
        }
    }
}

fn deployment(replicas: i32, image: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}],
                "resources": {"requests": {"cpu": cpu}}}]}}}})
}

async fn complete(cluster: &Cluster, image: &str, replicas: i32) {
    eventually(&format!("{replicas} replicas of {image}"), async || {
        let deployment = cluster.api::<Deployment>().get("web").await.unwrap();
        let status = deployment.status.clone().unwrap_or_default();
        let pods = cluster.list::<Pod>().await;
        let of_image = pods
            .iter()
            .filter(|pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(image))
            .count();
        controllers::deployment::complete(replicas, &status, deployment.metadata.generation)
            && pods.len() == replicas as usize
            && of_image == pods.len()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_from_create_to_delete() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "4").await;
    cluster.add_namespace().await;
    eventually("the root CA", async || {
        cluster
            .api::<ConfigMap>()
            .get_opt("kube-root-ca.crt")
            .await
            .unwrap()
            .is_some()
    })
    .await;

    cluster
        .create::<Deployment>(deployment(3, "one", "100m"))
        .await;
    complete(&cluster, "one", 3).await;
    let stored = cluster.api::<Deployment>().get("web").await.unwrap();
    assert_eq!(
        stored.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"],
        "1"
    );
    let replica_set = cluster.list::<ReplicaSet>().await.remove(0);
    let name = replica_set.metadata.name.unwrap();
    eventually("events", async || {
        cluster
            .messages("ScalingReplicaSet")
            .await
            .contains(&format!("Scaled up replica set {name} from 0 to 3"))
            && cluster.messages("SuccessfulCreate").await.len() == 3
            && cluster
                .messages("Scheduled")
                .await
                .iter()
                .all(|message| message.ends_with("to n1"))
            && cluster.messages("Scheduled").await.len() == 3
    })
    .await;

    let secret = json!({"metadata": {"name": "token", "annotations": {"kubernetes.io/service-account.name": "default"}},
        "type": "kubernetes.io/service-account-token"});
    cluster.create::<Secret>(secret).await;
    eventually("a token in the secret", async || {
        let data = cluster
            .api::<Secret>()
            .get("token")
            .await
            .unwrap()
            .data
            .unwrap_or_default();
        ["token", "namespace", "ca.crt"]
            .iter()
            .all(|key| data.contains_key(*key))
    })
    .await;

    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    cluster.create::<Service>(service).await;
    eventually("endpoints", async || {
        let slices = cluster.list::<EndpointSlice>().await;
        let ready = slices
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten())
            .filter(|e| e.conditions.as_ref().unwrap().ready == Some(true))
            .count();
        let legacy = cluster.api::<Endpoints>().get_opt("web").await.unwrap();
        ready == 3
            && legacy.is_some_and(|endpoints| {
                endpoints
                    .subsets
                    .iter()
                    .flatten()
                    .flat_map(|s| s.addresses.iter().flatten())
                    .count()
                    == 3
            })
    })
    .await;

    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    let deployments = cluster.api::<Deployment>();
    deployments
        .patch(
            "web",
            &PatchParams::default(),
            &Patch::Strategic(image("two")),
        )
        .await
        .unwrap();
    complete(&cluster, "two", 3).await;
    deployments
        .patch(
            "web",
            &PatchParams::default(),
            &Patch::Strategic(image("one")),
        )
        .await
        .unwrap();
    complete(&cluster, "one", 3).await;
    assert_eq!(
        deployments
            .get("web")
            .await
            .unwrap()
            .metadata
            .annotations
            .unwrap()["deployment.kubernetes.io/revision"],
        "3"
    );
    deployments
        .patch(
            "web",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"replicas": 5}})),
        )
        .await
        .unwrap();
    complete(&cluster, "one", 5).await;

    deployments
        .delete("web", &DeleteParams::background())
        .await
        .unwrap();
    eventually("garbage collection", async || {
        cluster.list::<ReplicaSet>().await.is_empty() && cluster.list::<Pod>().await.is_empty()
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_in_the_foreground_and_of_orphans() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "4").await;
    cluster.add_namespace().await;
    cluster
        .create::<Deployment>(deployment(2, "one", "100m"))
        .await;
    complete(&cluster, "one", 2).await;
    let deployments = cluster.api::<Deployment>();
    deployments
        .delete("web", &DeleteParams::foreground())
        .await
        .unwrap();
    eventually("foreground deletion", async || {
        deployments.get_opt("web").await.unwrap().is_none()
    })
    .await;
    assert!(
        cluster.list::<ReplicaSet>().await.is_empty() && cluster.list::<Pod>().await.is_empty()
    );

    cluster
        .create::<Deployment>(deployment(2, "one", "100m"))
        .await;
    complete(&cluster, "one", 2).await;
    deployments
        .delete("web", &DeleteParams::orphan())
        .await
        .unwrap();
    eventually("orphans", async || {
        let gone = deployments.get_opt("web").await.unwrap().is_none();
        gone && cluster.list::<ReplicaSet>().await.iter().all(|object| {
            object
                .metadata
                .owner_references
                .as_ref()
                .is_none_or(Vec::is_empty)
        })
    })
    .await;
    assert_eq!(cluster.list::<Pod>().await.len(), 2);
    // The same deployment again adopts what it left.
    cluster
        .create::<Deployment>(deployment(2, "one", "100m"))
        .await;
    complete(&cluster, "one", 2).await;
    assert_eq!(cluster.list::<ReplicaSet>().await.len(), 1);

    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces
        .delete("demo", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the namespace to go", async || {
        namespaces.get_opt("demo").await.unwrap().is_none()
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_wait_for_room_and_take_it() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "1").await;
    cluster.add_namespace().await;
    cluster
        .create::<Deployment>(deployment(3, "one", "500m"))
        .await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. \
                   no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    eventually("the third pod to be told why it waits", async || {
        let pods = cluster.list::<Pod>().await;
        let waiting = pods
            .iter()
            .filter_map(|pod| controllers::pod::condition(pod, "PodScheduled"))
            .filter(|c| c.status == "False")
            .count();
        waiting == 1 && cluster.messages("FailedScheduling").await.contains(message)
    })
    .await;
    cluster.add_node("n2", "1").await;
    complete(&cluster, "one", 3).await;

    // A restart of the control plane neither loses nor doubles anything.
    let mut cluster = cluster;
    cluster.control_plane.take().unwrap().stop().await;
    let scale = Patch::Merge(json!({"spec": {"replicas": 4}}));
    cluster
        .api::<Deployment>()
        .patch("web", &PatchParams::default(), &scale)
        .await
        .unwrap();
    cluster.control_plane = Some(controlplane::start(cluster.client.clone(), options()));
    complete(&cluster, "one", 4).await;
    let mut per_node: Vec<usize> = Vec::new();
    for node in ["n1", "n2"] {
        let pods = cluster.list::<Pod>().await;
        per_node.push(
            pods.iter()
                .filter(|pod| controllers::pod::node_name(pod) == Some(node))
                .count(),
        );
    }
    assert_eq!(per_node, [2, 2]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_holds_evictions_back() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "4").await;
    cluster.add_namespace().await;
    cluster
        .create::<Deployment>(deployment(2, "one", "10m"))
        .await;
    complete(&cluster, "one", 2).await;
    let budget = json!({"metadata": {"name": "web"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    cluster.create::<PodDisruptionBudget>(budget).await;
    // expected, desired, healthy, allowed
    let counts = async |expect: [i32; 4]| {
        eventually(&format!("the counts {expect:?}"), async || {
            let budget = cluster
                .api::<PodDisruptionBudget>()
                .get("web")
                .await
                .unwrap();
            let status = budget.status.unwrap_or_default();
            let found = [
                status.expected_pods,
                status.desired_healthy,
                status.current_healthy,
                status.disruptions_allowed,
            ];
            found == expect.map(Some)
        })
        .await;
    };
    counts([2, 1, 2, 1]).await;

    // Without the kubelet an evicted pod stays on its way out, and what replaces it is never ready.
    cluster.kubelet.abort();
    let names: Vec<String> = cluster
        .list::<Pod>()
        .await
        .into_iter()
        .filter_map(|pod| pod.metadata.name)
        .collect();
    let pods = cluster.api::<Pod>();
    pods.evict(&names[0], &EvictParams::default())
        .await
        .unwrap();
    let evicted = pods.get(&names[0]).await.unwrap();
    assert!(evicted.metadata.deletion_timestamp.is_some());
    let mark = controllers::pod::condition(&evicted, "DisruptionTarget").unwrap();
    assert_eq!(mark.reason.as_deref(), Some("EvictionByEvictionAPI"));
    counts([2, 1, 1, 0]).await;
    let refusal = pods.evict(&names[1], &EvictParams::default()).await;
    let Err(kube::Error::Api(status)) = refusal else {
        panic!("{refusal:?}")
    };
    assert_eq!(
        (status.code, status.reason.as_str(), status.message.as_str()),
        (
            429,
            "TooManyRequests",
            "Cannot evict pod as it would violate the pod's disruption budget."
        )
    );
    let cause = &status.details.as_ref().unwrap().causes[0];
    assert_eq!(
        (cause.reason.as_str(), cause.message.as_str()),
        (
            "DisruptionBudget",
            "The disruption budget web needs 1 healthy pods and has 1 currently"
        )
    );
    assert!(
        pods.get(&names[1])
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_none()
    );
    // A pod that does not run is in nobody's way.
    let waiting = json!({"metadata": {"name": "waiting", "labels": {"app": "web"}}, "spec": {"nodeName": "none", "containers": [{"name": "c", "image": "one"}]}});
    cluster.create::<Pod>(waiting).await;
    pods.evict("waiting", &EvictParams::default())
        .await
        .unwrap();
    // Two budgets for one pod are refused.
    let other = json!({"metadata": {"name": "other"}, "spec": {"minAvailable": 0, "selector": {}}});
    cluster.create::<PodDisruptionBudget>(other).await;
    let refusal = pods.evict(&names[1], &EvictParams::default()).await;
    assert!(
        matches!(&refusal, Err(kube::Error::Api(status)) if status.code == 500),
        "{refusal:?}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_pod_is_bound_within_milliseconds() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1", "4").await;
    cluster.add_namespace().await;
    let pods = cluster.api::<Pod>();
    let mut samples = Vec::new();
    for index in 0..20 {
        let name = format!("p{index}");
        let started = Instant::now();
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "one"}]}});
        cluster.create::<Pod>(pod).await;
        while controllers::pod::node_name(&pods.get(&name).await.unwrap()).is_none() {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{name} is never bound"
            );
            tokio::task::yield_now().await;
        }
        samples.push(started.elapsed());
    }
    samples.sort();
    eprintln!(
        "create to bound: median {:?}, p90 {:?}",
        samples[10], samples[18]
    );
    cluster.stop().await;
}
