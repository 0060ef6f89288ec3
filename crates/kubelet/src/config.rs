//! What a node agent must be told at its start.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Taint;

/// Everything that [`crate::Kubelet::start`] needs besides the API server and the runtime.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// The node's own addresses, the first one first; pods in the node's network have these.
    pub node_ips: Vec<IpAddr>,
    /// State of pods, for example `/var/lib/llmagentos/kubelet`.
    pub root_dir: PathBuf,
    /// Containers' logs, for example `/var/log/pods`.
    pub log_dir: PathBuf,
    /// Directory of static pods' manifests; `None`: no static pods.
    pub manifests_dir: Option<PathBuf>,
    /// Profiles of seccomp type Localhost.
    pub seccomp_dir: PathBuf,
    /// The resolv.conf that pods of policy Default get.
    pub resolv_conf: PathBuf,
    /// Empty: pods of policy ClusterFirst fall back to Default, with an event.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// `spec.podCIDR` is the node controller's to set; this is only for a cluster of one node. `None`: leave it.
    pub pod_cidr: Option<String>,
    pub pod_count_max: u32,
    /// Processes a pod may have; `None`: no limit of the kubelet's own.
    pub pod_pids_limit: Option<i64>,
    /// Whether containers that name no seccomp profile get the runtime's default one.
    pub seccomp_default: bool,
    /// Shown as the node's version.
    pub kubelet_version: String,
    pub node_labels: BTreeMap<String, String>,
    /// Taints that the node registers with.
    pub taints: Vec<Taint>,
    pub reserved: Reserved,
    /// `None`: no HTTPS server (tests).
    pub server: Option<ServerConfig>,
    pub image_gc: ImageGc,
    pub eviction: Eviction,
}

impl Config {
    /// A configuration with upstream's defaults.
    pub fn new(
        node_name: &str,
        root_dir: impl Into<PathBuf>,
        log_dir: impl Into<PathBuf>,
    ) -> Config {
        let root_dir = root_dir.into();
        Config {
            node_name: node_name.to_owned(),
            node_ips: Vec::new(),
            seccomp_dir: root_dir.join("seccomp"),
            root_dir,
            log_dir: log_dir.into(),
            manifests_dir: None,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            pod_cidr: None,
            pod_count_max: 110,
            pod_pids_limit: None,
            seccomp_default: true,
            kubelet_version: "v1.36.0".to_owned(),
            node_labels: BTreeMap::new(),
            taints: Vec::new(),
            reserved: Reserved::default(),
            server: None,
            image_gc: ImageGc::default(),
            eviction: Eviction::default(),
        }
    }

    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    pub fn host_ips(&self) -> Vec<String> {
        self.node_ips.iter().map(ToString::to_string).collect()
    }
}

/// What pods may not use of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reserved {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub ephemeral_storage_bytes: i64,
}

/// The kubelet's own HTTPS endpoint.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Port 0: any; see [`crate::Kubelet::server_address`].
    pub address: SocketAddr,
    pub certificate_pem: Vec<u8>,
    pub key_pem: Vec<u8>,
    /// Who signs the certificates of those who may ask.
    pub client_ca_pem: Vec<u8>,
    /// Common names that may ask besides members of `system:masters`: the API server's.
    pub allowed_users: Vec<String>,
}

/// When unused images go.
#[derive(Clone, Copy, Debug)]
pub struct ImageGc {
    pub high_threshold_percent: u8,
    pub low_threshold_percent: u8,
    pub min_age_seconds: i64,
    pub interval_seconds: u64,
}

impl Default for ImageGc {
    /// Upstream's: 85 and 80 percent, two minutes, every five minutes.
    fn default() -> ImageGc {
        ImageGc {
            high_threshold_percent: 85,
            low_threshold_percent: 80,
            min_age_seconds: 120,
            interval_seconds: 300,
        }
    }
}

/// When pods are evicted for the node's sake.
#[derive(Clone, Copy, Debug)]
pub struct Eviction {
    pub memory_available_bytes_min: u64,
    pub disk_available_percent_min: u8,
    pub inodes_free_percent_min: u8,
    pub interval_seconds: u64,
    /// How long a pressure condition stays after the signal is gone.
    pub transition_seconds: i64,
}

impl Default for Eviction {
    /// Upstream's hard thresholds: 100 MiB memory, 10 percent disk, 5 percent inodes.
    fn default() -> Eviction {
        Eviction {
            memory_available_bytes_min: 100 << 20,
            disk_available_percent_min: 10,
            inodes_free_percent_min: 5,
            interval_seconds: 10,
            transition_seconds: 300,
        }
    }
}
