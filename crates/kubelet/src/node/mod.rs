//! The Node object of this machine: registration, status, lease.
//!
//! Enter at [`run`]. The status is written when something in it changed, and every five minutes as a
//! heartbeat; the lease is renewed every ten seconds, which is what says that the node lives.

pub mod machine;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::agent::{Agent, lock};
use crate::config::Config;
use crate::context::{Capacity, Context};
use crate::events::{Severity, node_reference};
use crate::watch::{Change, follow};

pub const LEASE_SECONDS: i32 = 40;
const LEASE_RENEWAL: Duration = Duration::from_secs(10);
/// Without any change the status is written this often.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// Upstream lists no more images.
const IMAGE_COUNT_MAX: usize = 50;
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What the machine has, less what is reserved.
pub fn capacity(config: &Config) -> Capacity {
    let (cpu_millis, memory_bytes) = (machine::cpu_count() * 1000, machine::memory_bytes());
    let ephemeral_storage_bytes =
        machine::filesystem(&config.root_dir).map_or(0, |filesystem| filesystem.capacity_bytes);
    let reserved = config.reserved;
    let eviction_memory = i64::try_from(config.eviction.memory_available_bytes_min).unwrap_or(0);
    let eviction_disk =
        ephemeral_storage_bytes / 100 * i64::from(config.eviction.disk_available_percent_min);
    Capacity {
        cpu_millis,
        memory_bytes,
        ephemeral_storage_bytes,
        allocatable_cpu_millis: (cpu_millis - reserved.cpu_millis).max(0),
        allocatable_memory_bytes: (memory_bytes - reserved.memory_bytes - eviction_memory).max(0),
        allocatable_ephemeral_storage_bytes: (ephemeral_storage_bytes
            - reserved.ephemeral_storage_bytes
            - eviction_disk)
            .max(0),
    }
}

/// Registers the node and keeps its status and lease until dropped.
pub async fn run(agent: Arc<Agent>, server_address: Option<SocketAddr>) {
    let context = Arc::clone(&agent.context);
    context.events.tell(
        node_reference(&context.config.node_name),
        Severity::Normal,
        "Starting",
        "Starting kubelet.".into(),
    );
    let keeper = Keeper {
        agent: Arc::clone(&agent),
        context,
        server_address,
    };
    let name = keeper.context.config.node_name.clone();
    let seen = Arc::clone(&agent);
    let api: Api<Node> = Api::all(keeper.context.client.clone());
    let mut was_cordoned = false;
    let watch = follow(api, Some(format!("metadata.name={name}")), move |change| {
        let node = match change {
            Change::Reset(mut list) => list.pop().map(Arc::new),
            Change::Applied(node) => Some(Arc::new(node)),
            Change::Deleted(_) => None,
        };
        let spec = node.as_ref().and_then(|node| node.spec.as_ref());
        let is_cordoned = spec.is_some_and(|spec| spec.unschedulable == Some(true));
        if is_cordoned != was_cordoned {
            let reason = if is_cordoned {
                "NodeNotSchedulable"
            } else {
                "NodeSchedulable"
            };
            tell_status(&seen.context, reason);
            was_cordoned = is_cordoned;
        }
        *lock(&seen.node) = node;
        true
    });
    futures::join!(watch, keeper.keep_status(), keeper.keep_lease());
}

fn tell_status(context: &Context, reason: &'static str) {
    let name = &context.config.node_name;
    context.events.tell(
        node_reference(name),
        Severity::Normal,
        reason,
        format!("Node {name} status is now: {reason}"),
    );
}

struct Keeper {
    agent: Arc<Agent>,
    context: Arc<Context>,
    server_address: Option<SocketAddr>,
}

impl Keeper {
    async fn keep_status(&self) {
        let mut written: Option<NodeStatus> = None;
        let mut heartbeat_due = Instant::now();
        let mut retry = RETRY;
        loop {
            let status = self.status(written.as_ref()).await;
            let changed = written.as_ref().is_none_or(|old| !same(old, &status));
            if changed || heartbeat_due <= Instant::now() {
                let result = if written.is_none() {
                    self.register(&status).await
                } else {
                    Ok(())
                };
                match futures::future::ready(result).await {
                    Ok(()) => match self.write(written.as_ref(), &status).await {
                        Ok(()) => {
                            self.tell_readiness(written.as_ref(), &status);
                            written = Some(status);
                            heartbeat_due = Instant::now() + HEARTBEAT;
                            retry = RETRY;
                        }
                        Err(kube::Error::Api(status)) if status.code == 404 => written = None,
                        Err(error) => {
                            tracing::warn!(%error, "node status was not written");
                            tokio::time::sleep(retry).await;
                            retry = (retry * 2).min(RETRY_MAX);
                            continue;
                        }
                    },
                    Err(error) => {
                        tracing::warn!(%error, "node was not registered");
                        tokio::time::sleep(retry).await;
                        retry = (retry * 2).min(RETRY_MAX);
                        continue;
                    }
                }
            }
            // Until the runtime is ready, a second counts.
            let ready = written.as_ref().is_some_and(is_ready);
            let wait = if ready { LEASE_RENEWAL } else { RETRY };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.agent.pressure_changed.notified() => {}
            }
        }
    }

    fn tell_readiness(&self, old: Option<&NodeStatus>, new: &NodeStatus) {
        let (was, is) = (old.is_some_and(is_ready), is_ready(new));
        if is && !was {
            tell_status(&self.context, "NodeReady");
        } else if was && !is {
            tell_status(&self.context, "NodeNotReady");
        }
    }

    /// Creates the Node, or brings the labels of the one that is there up to date.
    async fn register(&self, status: &NodeStatus) -> Result<(), kube::Error> {
        let config = &self.context.config;
        let api: Api<Node> = Api::all(self.context.client.clone());
        let mut labels = BTreeMap::from([
            (
                "kubernetes.io/hostname".to_owned(),
                config.node_name.clone(),
            ),
            ("kubernetes.io/os".to_owned(), "linux".to_owned()),
            (
                "kubernetes.io/arch".to_owned(),
                machine::architecture().to_owned(),
            ),
            ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
            (
                "beta.kubernetes.io/arch".to_owned(),
                machine::architecture().to_owned(),
            ),
        ]);
        labels.extend(config.node_labels.clone());
        let node = Node {
            metadata: ObjectMeta {
                name: Some(config.node_name.clone()),
                labels: Some(labels.clone()),
                annotations: Some(
                    [(
                        "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                        "true".to_owned(),
                    )]
                    .into(),
                ),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
                pod_cidr: config.pod_cidr.clone(),
                pod_cidrs: config.pod_cidr.clone().map(|cidr| vec![cidr]),
                ..NodeSpec::default()
            }),
            status: Some(status.clone()),
        };
        match api.create(&PostParams::default(), &node).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(answer)) if answer.code == 409 => {
                let patch = json!({"metadata": {"labels": labels}});
                api.patch(
                    &config.node_name,
                    &PatchParams::default(),
                    &Patch::Merge(&patch),
                )
                .await
                .map(|_| ())
            }
            Err(error) => Err(error),
        }
    }

    async fn write(
        &self,
        old: Option<&NodeStatus>,
        status: &NodeStatus,
    ) -> Result<(), kube::Error> {
        let api: Api<Node> = Api::all(self.context.client.clone());
        let mut patch = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
        // The list of images is long and seldom changes.
        if let (Some(old), Value::Object(map)) = (old, &mut patch)
            && old.images == status.images
        {
            map.remove("images");
        }
        let patch = json!({"status": patch});
        api.patch_status(
            &self.context.config.node_name,
            &PatchParams::default(),
            &Patch::Strategic(&patch),
        )
        .await
        .map(|_| ())
    }

    async fn status(&self, old: Option<&NodeStatus>) -> NodeStatus {
        let (config, capacity) = (&self.context.config, &self.context.capacity);
        let ready = self
            .context
            .runtime
            .ready()
            .await
            .map_err(|error| error.to_string());
        let pressure = *lock(&self.agent.pressure);
        let now = Time(Timestamp::now());
        let condition = |type_: &str, status: bool, reason: &str, message: String| {
            let status = if status { "True" } else { "False" };
            let before = old.and_then(|old| {
                old.conditions
                    .as_ref()?
                    .iter()
                    .find(|condition| condition.type_ == type_)
            });
            let since = before
                .filter(|before| before.status == status)
                .and_then(|before| before.last_transition_time.clone());
            NodeCondition {
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
                message: Some(message),
                reason: Some(reason.to_owned()),
                status: status.to_owned(),
                type_: type_.to_owned(),
            }
        };
        let (memory, disk, pids) = (
            if pressure.memory {
                (
                    "KubeletHasInsufficientMemory",
                    "kubelet has insufficient memory available",
                )
            } else {
                (
                    "KubeletHasSufficientMemory",
                    "kubelet has sufficient memory available",
                )
            },
            if pressure.disk {
                ("KubeletHasDiskPressure", "kubelet has disk pressure")
            } else {
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure")
            },
            if pressure.pids {
                (
                    "KubeletHasInsufficientPID",
                    "kubelet has insufficient PID available",
                )
            } else {
                (
                    "KubeletHasSufficientPID",
                    "kubelet has sufficient PID available",
                )
            },
        );
        let conditions = vec![
            condition(
                "MemoryPressure",
                pressure.memory,
                memory.0,
                memory.1.to_owned(),
            ),
            condition("DiskPressure", pressure.disk, disk.0, disk.1.to_owned()),
            condition("PIDPressure", pressure.pids, pids.0, pids.1.to_owned()),
            match ready {
                Ok(()) => condition(
                    "Ready",
                    true,
                    "KubeletReady",
                    "kubelet is posting ready status".to_owned(),
                ),
                Err(error) => condition(
                    "Ready",
                    false,
                    "KubeletNotReady",
                    format!("container runtime is down: {error}"),
                ),
            },
        ];
        let mut addresses: Vec<NodeAddress> = config
            .host_ips()
            .into_iter()
            .map(|address| NodeAddress {
                address,
                type_: "InternalIP".into(),
            })
            .collect();
        addresses.push(NodeAddress {
            address: config.node_name.clone(),
            type_: "Hostname".into(),
        });
        let list = |cpu_millis: i64, memory_bytes: i64, ephemeral_bytes: i64| {
            let cpu = if cpu_millis % 1000 == 0 {
                (cpu_millis / 1000).to_string()
            } else {
                format!("{cpu_millis}m")
            };
            let mut list = BTreeMap::from([
                ("cpu".to_owned(), Quantity(cpu)),
                (
                    "memory".to_owned(),
                    Quantity(format!("{}Ki", memory_bytes / 1024)),
                ),
                (
                    "ephemeral-storage".to_owned(),
                    Quantity(format!("{}Ki", ephemeral_bytes / 1024)),
                ),
                (
                    "pods".to_owned(),
                    Quantity(config.pod_count_max.to_string()),
                ),
            ]);
            for (name, bytes) in machine::hugepages() {
                list.insert(name, Quantity(bytes.to_string()));
            }
            list
        };
        NodeStatus {
            addresses: Some(addresses),
            capacity: Some(list(
                capacity.cpu_millis,
                capacity.memory_bytes,
                capacity.ephemeral_storage_bytes,
            )),
            allocatable: Some(list(
                capacity.allocatable_cpu_millis,
                capacity.allocatable_memory_bytes,
                capacity.allocatable_ephemeral_storage_bytes,
            )),
            conditions: Some(conditions),
            daemon_endpoints: self.server_address.map(|address| NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint {
                    port: i32::from(address.port()),
                }),
            }),
            images: self.images().await,
            node_info: Some(self.info()),
            ..NodeStatus::default()
        }
    }

    /// The largest images, as the scheduler and people want to know them.
    async fn images(&self) -> Option<Vec<ContainerImage>> {
        let mut images = self.context.images.list().await.ok()?;
        images.sort_by_key(|image| std::cmp::Reverse(image.size_bytes));
        images.truncate(IMAGE_COUNT_MAX);
        let list: Vec<_> = images
            .into_iter()
            .map(|image| {
                let names: Vec<String> = image
                    .repo_digests
                    .into_iter()
                    .chain(image.repo_tags)
                    .take(5)
                    .collect();
                ContainerImage {
                    names: Some(names),
                    size_bytes: i64::try_from(image.size_bytes).ok(),
                }
            })
            .filter(|image| image.names.as_ref().is_some_and(|names| !names.is_empty()))
            .collect();
        Some(list)
    }

    fn info(&self) -> NodeSystemInfo {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        NodeSystemInfo {
            architecture: machine::architecture().to_owned(),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: self.context.runtime.version(),
            kernel_version: read("/proc/sys/kernel/osrelease"),
            kube_proxy_version: String::new(),
            kubelet_version: self.context.config.kubelet_version.clone(),
            machine_id: read("/etc/machine-id"),
            operating_system: "linux".to_owned(),
            os_image: machine::os_image(),
            swap: None,
            system_uuid: read("/sys/class/dmi/id/product_uuid"),
        }
    }

    async fn keep_lease(&self) {
        let name = &self.context.config.node_name;
        let api: Api<Lease> = Api::namespaced(self.context.client.clone(), "kube-node-lease");
        let mut exists = false;
        let mut retry = RETRY;
        loop {
            let renew_time = MicroTime(Timestamp::now());
            let result = if exists {
                let patch = json!({"spec": {"renewTime": renew_time}});
                api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await
                    .map(|_| ())
            } else {
                self.create_lease(&api, renew_time).await
            };
            match result {
                Ok(()) => {
                    exists = true;
                    retry = RETRY;
                    tokio::time::sleep(LEASE_RENEWAL).await;
                }
                Err(error) => {
                    if matches!(&error, kube::Error::Api(status) if status.code == 404) {
                        exists = false;
                    }
                    tracing::debug!(%error, "node lease was not renewed");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    async fn create_lease(
        &self,
        api: &Api<Lease>,
        renew_time: MicroTime,
    ) -> Result<(), kube::Error> {
        let name = &self.context.config.node_name;
        let uid = lock(&self.agent.node)
            .as_ref()
            .and_then(|node| node.metadata.uid.clone());
        let spec = LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(renew_time),
            ..LeaseSpec::default()
        };
        let owner = uid.map(|uid| OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.clone(),
            uid,
            ..OwnerReference::default()
        });
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some("kube-node-lease".into()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(spec.clone()),
        };
        match api.create(&PostParams::default(), &lease).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => api
                .patch(
                    name,
                    &PatchParams::default(),
                    &Patch::Merge(&json!({"spec": spec})),
                )
                .await
                .map(|_| ()),
            Err(error) => Err(error),
        }
    }
}

fn is_ready(status: &NodeStatus) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Equal but for heartbeats.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    still(a) == still(b)
}
