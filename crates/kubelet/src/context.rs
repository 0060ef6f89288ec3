//! What every part of the node agent shares.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Service;
use runtime::service::{DnsConfig, ImageService, RuntimeService};
use volumes::downward::Facts;

use crate::config::Config;
use crate::events::{Recorder, Severity, pod_reference};
use crate::objects::Objects;
use crate::pod::dns::parse_resolv_conf;
use crate::pod::spec::{ContainerSpec, Kind, PodSpecView};
use crate::pull_records::PullRecords;

/// Shared by all tasks of one kubelet.
pub struct Context {
    pub config: Config,
    pub client: kube::Client,
    pub runtime: Arc<dyn RuntimeService>,
    pub images: Arc<dyn ImageService>,
    pub pulls: PullRecords,
    pub events: Recorder,
    pub objects: Objects,
    pub services: Services,
    pub capacity: Capacity,
    /// `llmagentos` of `llmagentos://0.1.0`.
    pub runtime_name: String,
    pub probes: crate::probe::Prober,
}

/// What the machine has and pods may use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Capacity {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub ephemeral_storage_bytes: i64,
    pub allocatable_cpu_millis: i64,
    pub allocatable_memory_bytes: i64,
    pub allocatable_ephemeral_storage_bytes: i64,
}

impl Context {
    pub fn tell_pod(
        &self,
        view: &PodSpecView,
        severity: Severity,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) {
        self.events
            .tell(pod_reference(&view.pod, None), severity, reason, message);
    }

    pub fn tell_container(
        &self,
        view: &PodSpecView,
        spec: &ContainerSpec,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        let list = match spec.kind {
            Kind::Init | Kind::Sidecar => "initContainers",
            Kind::Regular => "containers",
            Kind::Ephemeral => "ephemeralContainers",
        };
        let field_path = format!("spec.{list}{{{}}}", spec.container.name);
        self.events.tell(
            pod_reference(&view.pod, Some(field_path)),
            severity,
            reason,
            message,
        );
    }

    /// The facts of the downward API for a pod with these addresses.
    pub fn facts(&self, pod_ips: Vec<String>) -> Facts {
        Facts {
            host_ips: self.config.host_ips(),
            pod_ips,
            allocatable_cpu_millis: self.capacity.allocatable_cpu_millis,
            allocatable_memory_bytes: self.capacity.allocatable_memory_bytes,
            allocatable_ephemeral_storage_bytes: self.capacity.allocatable_ephemeral_storage_bytes,
        }
    }

    /// The node's own name resolution.
    pub fn node_dns(&self) -> DnsConfig {
        match std::fs::read_to_string(&self.config.resolv_conf) {
            Ok(text) => parse_resolv_conf(&text),
            Err(error) => {
                tracing::warn!(%error, path = %self.config.resolv_conf.display(), "node's resolv.conf could not be read");
                DnsConfig::default()
            }
        }
    }
}

/// The cluster's services, for the variables that tell containers of them.
pub struct Services {
    list: Mutex<Arc<Vec<Service>>>,
    synced: tokio::sync::watch::Sender<bool>,
}

impl Default for Services {
    fn default() -> Services {
        Services {
            list: Mutex::default(),
            synced: tokio::sync::watch::Sender::new(false),
        }
    }
}

impl Services {
    pub fn set(&self, list: Vec<Service>) {
        *self.lock() = Arc::new(list);
        self.synced.send_replace(true);
    }

    pub fn apply(&self, service: Service) {
        let mut list = self.lock();
        let list = Arc::make_mut(&mut list);
        list.retain(|old| old.metadata.uid != service.metadata.uid);
        list.push(service);
    }

    pub fn delete(&self, service: &Service) {
        let mut list = self.lock();
        Arc::make_mut(&mut list).retain(|old| old.metadata.uid != service.metadata.uid);
    }

    /// All services, once they have been listed.
    pub async fn list(&self) -> Arc<Vec<Service>> {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as self.
        let _ = synced.wait_for(|synced| *synced).await;
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Vec<Service>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
