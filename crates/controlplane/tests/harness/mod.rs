//! An API server in this process, on a store of its own, and what tests of the loops make on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::{Config, Identity, Server};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

pub struct ApiServer {
    /// Of the administrator.
    pub client: Client,
    server: Server,
    _directory: tempfile::TempDir,
}

impl ApiServer {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn store::Store> =
            Arc::new(store::Embedded::open(directory.path().join("store")).unwrap());
        let config = Config {
            bind_address: ([127, 0, 0, 1], 0).into(),
            ..Config::new(directory.path().join("pki"))
        };
        let server = Server::start(config, store).await.unwrap();
        ApiServer {
            client: server.client(Identity::admin()),
            server,
            _directory: directory,
        }
    }

    pub async fn stop(self) {
        self.server.shutdown().await;
    }
}

pub async fn add_namespace(client: &Client, namespace: Value) {
    Api::<Namespace>::all(client.clone())
        .create(
            &PostParams::default(),
            &serde_json::from_value(namespace).unwrap(),
        )
        .await
        .unwrap();
}

/// Makes a node that is ready, with that capacity; all of it is allocatable.
pub async fn add_node(client: &Client, metadata: Value, capacity: Value) {
    let nodes: Api<Node> = Api::all(client.clone());
    let name = metadata["name"].as_str().unwrap().to_owned();
    let node = serde_json::from_value(json!({"metadata": metadata})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let status = json!({"status": {"capacity": capacity, "allocatable": capacity,
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    nodes
        .patch_status(&name, &PatchParams::default(), &Patch::Strategic(&status))
        .await
        .unwrap();
}

/// An everyday node.
pub async fn add_node_with_cpu(client: &Client, name: &str, cpu: &str) {
    let metadata = json!({"name": name, "labels": {"kubernetes.io/hostname": name}});
    let capacity = json!({"cpu": cpu, "memory": "8Gi", "pods": "110", "ephemeral-storage": "50Gi"});
    add_node(client, metadata, capacity).await;
}

pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
