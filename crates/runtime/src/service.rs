//! The two services that every container runtime offers, in CRI's own terms.
//!
//! The kubelet speaks only these traits. Behind them stand the native runtime and (later) CRI
//! sockets and Docker. Field names follow `runtime.v1` of the CRI API.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

pub type Labels = BTreeMap<String, String>;
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSandboxMetadata {
    pub name: String,
    pub uid: String,
    pub namespace: String,
    pub attempt: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub container_port: u16,
    pub host_port: u16,
    pub host_ip: Option<IpAddr>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// Whose namespace to join.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    #[default]
    Pod,
    Container,
    Node,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PodSandboxConfig {
    pub metadata: PodSandboxMetadata,
    pub hostname: String,
    /// Directory of the pod's container logs.
    pub log_directory: PathBuf,
    /// `None`: the containers keep what the kubelet mounts, or the image's own resolv.conf.
    pub dns: Option<DnsConfig>,
    pub port_mappings: Vec<PortMapping>,
    pub labels: Labels,
    pub annotations: Labels,
    /// Cgroup of the pod, relative to the runtime's cgroup root, for example `burstable/pod<uid>`.
    pub cgroup_parent: String,
    /// Limits of the pod's cgroup.
    pub resources: LinuxResources,
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    pub sysctls: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    Ready,
    NotReady,
}

#[derive(Clone, Debug)]
pub struct PodSandbox {
    pub id: String,
    pub metadata: PodSandboxMetadata,
    pub state: SandboxState,
    pub created_at_nanos: i64,
    pub labels: Labels,
    pub annotations: Labels,
    /// Empty for the node's network.
    pub ips: Vec<IpAddr>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinuxResources {
    pub cpu_shares: Option<u64>,
    pub cpu_quota_micros: Option<i64>,
    pub cpu_period_micros: Option<u64>,
    pub cpuset_cpus: Option<String>,
    pub memory_limit_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    pub oom_score_adj: Option<i64>,
    pub hugepage_limits_bytes: BTreeMap<String, u64>,
    /// cgroup v2 files verbatim, for example `memory.min`.
    pub unified: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Mount {
    pub container_path: PathBuf,
    pub host_path: PathBuf,
    pub readonly: bool,
    pub propagation: MountPropagation,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Device {
    pub container_path: PathBuf,
    pub host_path: PathBuf,
    /// Any of `r`, `w`, `m`.
    pub permissions: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompProfile {
    #[default]
    RuntimeDefault,
    Unconfined,
    /// Path of a profile in Docker's JSON format.
    Localhost(PathBuf),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SecurityContext {
    pub privileged: bool,
    /// Capabilities without the `CAP_` prefix; `ALL` is allowed.
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub pid: NamespaceMode,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub supplemental_groups: Vec<i64>,
    pub readonly_rootfs: bool,
    pub no_new_privs: bool,
    pub seccomp: SeccompProfile,
    /// `/proc` unmasked (procMount: Unmasked).
    pub unmasked_proc: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerMetadata {
    pub name: String,
    pub attempt: u32,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerConfig {
    pub metadata: ContainerMetadata,
    /// Image id as [`ImageService::pull`] and [`ImageService::status`] answer it.
    pub image_id: String,
    /// What the pod spec says, for status.
    pub user_image: String,
    /// Overrides the image's entrypoint; empty: the image's.
    pub command: Vec<String>,
    /// Overrides the image's cmd.
    pub args: Vec<String>,
    pub working_dir: String,
    /// In order; added over the image's environment.
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub labels: Labels,
    pub annotations: Labels,
    /// Relative to the sandbox's log directory, for example `web/0.log`; CRI log format.
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: LinuxResources,
    pub security: SecurityContext,
    /// Signal that asks it to stop (`SIGTERM` form); `None`: the image's, else SIGTERM.
    pub stop_signal: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Clone, Debug)]
pub struct ContainerStatus {
    pub id: String,
    pub sandbox_id: String,
    pub metadata: ContainerMetadata,
    pub state: ContainerState,
    pub created_at_nanos: i64,
    /// 0 before the event.
    pub started_at_nanos: i64,
    pub finished_at_nanos: i64,
    pub exit_code: i32,
    /// Signal that ended it, 0 if none.
    pub signal: i32,
    pub image_id: String,
    pub user_image: String,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun`, …
    pub reason: String,
    pub message: String,
    pub labels: Labels,
    pub annotations: Labels,
    /// Absolute.
    pub log_path: PathBuf,
    pub pid: Option<u32>,
    /// What the machine could not give (clamped limits, missing capabilities), for a warning event.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct ContainerStats {
    pub id: String,
    pub name: String,
    pub labels: Labels,
    pub timestamp_nanos: i64,
    /// Cumulative.
    pub cpu_usage_core_nanos: u64,
    pub memory_usage_bytes: u64,
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub process_count: u64,
    pub writable_layer_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// Open streams of an exec or attach. Dropping `stdin` closes it.
pub struct Session {
    pub stdin: Option<Writer>,
    pub stdout: Option<Reader>,
    /// `None` with a terminal.
    pub stderr: Option<Reader>,
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// The exit code, once. Attach: that of the container.
    pub exit: oneshot::Receiver<Result<i32, RuntimeError>>,
    /// Ends the exec'ed process (SIGKILL) when dropped, so that a lost client leaves nothing behind. Attach: does nothing.
    pub kill_on_drop: Box<dyn Send>,
}

#[derive(Clone, Debug, Default)]
pub struct StreamRequest {
    pub container_id: String,
    /// Empty for attach.
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

#[derive(Clone, Debug)]
pub struct ExecResult {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// What changed, so that nobody polls.
#[derive(Clone, Debug)]
pub enum RuntimeEvent {
    ContainerStarted {
        sandbox_id: String,
        container_id: String,
    },
    ContainerStopped {
        sandbox_id: String,
        container_id: String,
    },
    ContainerRemoved {
        sandbox_id: String,
        container_id: String,
    },
    SandboxStopped {
        sandbox_id: String,
    },
    /// Events were lost (slow reader, restart): list again.
    Resync,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("{kind} {id} not found")]
    NotFound { kind: &'static str, id: String },
    #[error("{kind} {id} already exists")]
    AlreadyExists { kind: &'static str, id: String },
    #[error("{0}")]
    InvalidArgument(String),
    /// The container's command could not be started; the message as users know it, for example
    /// `exec: "foo": executable file not found in $PATH`.
    #[error("failed to start container {id}: {message}")]
    StartFailed { id: String, message: String },
    /// A further command could not be started in a running container; the message as with `StartFailed`.
    #[error("failed to exec in container: {0}")]
    ExecFailed(String),
    #[error("{operation} timed out after {seconds} s")]
    Timeout { operation: String, seconds: u64 },
    #[error("no space left on device while {0}")]
    DiskFull(String),
    #[error("runtime is not reachable: {0}")]
    Unavailable(String),
    #[error("{0}")]
    Internal(String),
}

#[async_trait]
pub trait RuntimeService: Send + Sync + 'static {
    /// Name and version, for `node.status.nodeInfo.containerRuntimeVersion` (`llmagentos://0.1.0`).
    fn version(&self) -> String;
    /// `Ok` when containers can be run; else why not.
    async fn ready(&self) -> Result<(), RuntimeError>;
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<PodSandbox, RuntimeError>;
    /// Kills what runs in it and gives its network back. Idempotent.
    async fn stop_pod_sandbox(&self, id: &str) -> Result<(), RuntimeError>;
    /// Also removes its containers. Idempotent.
    async fn remove_pod_sandbox(&self, id: &str) -> Result<(), RuntimeError>;
    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>, RuntimeError>;
    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
    ) -> Result<String, RuntimeError>;
    async fn start_container(&self, id: &str) -> Result<(), RuntimeError>;
    /// The stop signal, then SIGKILL after `grace_period_seconds`. Returns when it has ended. Idempotent.
    async fn stop_container(&self, id: &str, grace_period_seconds: u64)
    -> Result<(), RuntimeError>;
    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError>;
    async fn container_status(&self, id: &str) -> Result<ContainerStatus, RuntimeError>;
    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError>;
    async fn update_container_resources(
        &self,
        id: &str,
        resources: LinuxResources,
    ) -> Result<(), RuntimeError>;
    /// Closes the log file and opens it again by its path, after a rotation.
    async fn reopen_container_log(&self, id: &str) -> Result<(), RuntimeError>;
    async fn container_stats(&self) -> Result<Vec<ContainerStats>, RuntimeError>;
    async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout_seconds: u64,
    ) -> Result<ExecResult, RuntimeError>;
    async fn exec(&self, request: StreamRequest) -> Result<Session, RuntimeError>;
    async fn attach(&self, request: StreamRequest) -> Result<Session, RuntimeError>;
    /// A connection to `127.0.0.1:port` inside the sandbox's network.
    async fn port_forward(
        &self,
        sandbox_id: &str,
        port: u16,
    ) -> Result<Box<dyn Connection>, RuntimeError>;
    /// A new receiver of everything that happens from now on.
    fn events(&self) -> mpsc::Receiver<RuntimeEvent>;
}

/// Both directions of a byte stream.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

#[derive(Clone, Debug, Default)]
pub struct Image {
    /// `sha256:…` of the image's configuration.
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub size_bytes: u64,
    /// From the image's `USER`: a uid, or a name where it has one.
    pub uid: Option<i64>,
    pub username: String,
    /// Never collected.
    pub pinned: bool,
}

#[derive(Clone, Debug, Default)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    pub identity_token: String,
}

#[derive(Clone, Debug)]
pub struct PullResult {
    pub image_id: String,
    pub size_bytes: u64,
    /// What went wrong on the way without failing the pull: mirrors that did not answer, by name.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct FilesystemUsage {
    pub mountpoint: PathBuf,
    pub used_bytes: u64,
    pub inodes_used: u64,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ImageError {
    /// Kubelet's `InvalidImageName`.
    #[error("couldn't parse image name \"{image}\": {reason}")]
    InvalidName { image: String, reason: String },
    #[error("image {0} not found in local storage")]
    NotFound(String),
    /// Kubelet's `ErrImagePull`: every endpoint that was tried, and what each said.
    #[error("failed to pull image \"{image}\": {reason}")]
    Pull { image: String, reason: String },
    #[error("image {image} is damaged: {reason}")]
    Corrupt { image: String, reason: String },
    #[error("no space left on device while pulling {0}")]
    DiskFull(String),
    #[error("{0}")]
    Internal(String),
}

#[async_trait]
pub trait ImageService: Send + Sync + 'static {
    async fn list(&self) -> Result<Vec<Image>, ImageError>;
    /// By id, tag or digest; `None` if it is not here.
    async fn status(&self, image: &str) -> Result<Option<Image>, ImageError>;
    async fn pull(&self, image: &str, auth: Option<RegistryAuth>)
    -> Result<PullResult, ImageError>;
    /// By id or reference. Idempotent.
    async fn remove(&self, image: &str) -> Result<(), ImageError>;
    async fn filesystem_usage(&self) -> Result<FilesystemUsage, ImageError>;
}

/// Who connects sandboxes to the pod network; the network crate stands behind it.
#[async_trait]
pub trait SandboxNetwork: Send + Sync + 'static {
    /// Gives the network namespace at `netns_path` its interfaces, addresses and host ports. Idempotent for one sandbox id.
    async fn set_up(&self, request: SandboxNetworkRequest) -> Result<Vec<IpAddr>, RuntimeError>;
    /// Idempotent; works when the namespace is gone already.
    async fn tear_down(&self, sandbox_id: &str) -> Result<(), RuntimeError>;
}

#[derive(Clone, Debug)]
pub struct SandboxNetworkRequest {
    pub sandbox_id: String,
    pub metadata: PodSandboxMetadata,
    /// A bind mount or `/proc/<pid>/fd/<n>` of the namespace.
    pub netns_path: PathBuf,
    pub port_mappings: Vec<PortMapping>,
    pub annotations: Labels,
}
