//! What the server and the zygote say to each other, and what the zygote's children report.
//!
//! A request carries a sequence number and is answered once; events come by themselves. The zygote
//! keeps nothing on disk: it is asked with [`Request::Hello`] after every (re)connection.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Raised when a message changes its meaning; an older zygote is replaced when nothing runs in it.
pub const VERSION: u32 = 2;

#[derive(Serialize, Deserialize, Debug)]
pub struct Envelope {
    pub sequence: u64,
    pub request: Request,
}

#[derive(Serialize, Deserialize, Debug)]
pub enum Request {
    Hello,
    CreateSandbox(SandboxSpec),
    /// Closes the sandbox's namespaces. Idempotent.
    RemoveSandbox {
        id: String,
    },
    /// Descriptors: the seccomp filter, if `process.seccomp`; then the root, if `root.mounted`.
    Start(Box<ContainerSpec>),
    /// Descriptors: the seccomp filter, if `process.seccomp`; then stdin, stdout, stderr unless `process.tty`.
    Exec {
        exec_id: String,
        container_id: String,
        process: Box<ProcessSpec>,
    },
    /// To the first process of a container or exec. Idempotent.
    Signal {
        id: String,
        signal: i32,
    },
    /// Descriptors: the stdout and stderr that are wanted, in this order.
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    ReopenLog {
        id: String,
    },
    /// Drops the record of an ended container. Idempotent.
    Forget {
        id: String,
    },
    /// Kills every container and ends the zygote.
    Shutdown,
}

#[derive(Serialize, Deserialize, Debug)]
pub enum FromZygote {
    Reply {
        sequence: u64,
        result: Result<Answer, Failure>,
    },
    ContainerExited {
        id: String,
        exit: Exit,
    },
    ExecExited {
        id: String,
        exit: Exit,
    },
}

#[derive(Serialize, Deserialize, Debug)]
pub enum Answer {
    Done,
    Hello {
        version: u32,
        pid: u32,
        sandboxes: Vec<SandboxRecord>,
        containers: Vec<ContainerRecord>,
    },
    Sandbox(SandboxRecord),
    Started {
        pid: u32,
        started_at_nanos: i64,
        warnings: Vec<String>,
    },
    /// Descriptors: the terminal's master side, if it has one.
    ExecStarted {
        pid: u32,
    },
    /// Descriptors: stdin or the terminal's master side, if wanted and there.
    Attached {
        tty: bool,
        has_input: bool,
    },
}

/// A request that was not done. `start` marks the container's own fault (its command, user, directory).
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Failure {
    pub not_found: bool,
    pub start: bool,
    pub message: String,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct SandboxRecord {
    pub id: String,
    /// Descriptors in the zygote, for `/proc/<zygote>/fd/<n>`.
    pub net_fd: Option<i32>,
    pub pause_pid: Option<u32>,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct ContainerRecord {
    pub id: String,
    pub pid: u32,
    pub started_at_nanos: i64,
    pub exit: Option<Exit>,
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 128 + signal when a signal ended it.
    pub code: i32,
    pub signal: i32,
    pub oom_killed: bool,
    pub finished_at_nanos: i64,
}

#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct SandboxSpec {
    pub id: String,
    pub hostname: String,
    /// `false`: the node's.
    pub own_net: bool,
    pub own_ipc: bool,
    /// A process namespace for all containers, with a first process of ours in it.
    pub shared_pid: bool,
    pub sysctls: Vec<(String, String)>,
    /// Where the first process of a shared process namespace lives.
    pub cgroup: CgroupMembership,
}

/// The directories whose `tasks` (v1) or clone target (v2) a process joins; absolute.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupMembership {
    /// Controller mount name (`cpu`, `memory`, …) and directory.
    pub v1: Vec<(String, PathBuf)>,
    pub unified: Option<PathBuf>,
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidNamespace {
    Own,
    Sandbox,
    Node,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct ContainerSpec {
    pub id: String,
    pub sandbox_id: String,
    pub own_net: bool,
    pub own_ipc: bool,
    pub pid: PidNamespace,
    pub cgroup: CgroupMembership,
    pub root: RootSpec,
    pub process: ProcessSpec,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Absolute path of the CRI log; `None`: output is discarded.
    pub log_path: Option<PathBuf>,
}

/// How the container's file system is put together.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct RootSpec {
    /// Top first.
    pub lowerdirs: Vec<PathBuf>,
    pub upperdir: PathBuf,
    pub workdir: PathBuf,
    /// The overlay comes as a descriptor; else the child mounts it.
    pub mounted: bool,
    /// An empty directory to mount the overlay on where the kernel cannot do without (before Linux 6.5).
    pub mount_point: PathBuf,
    pub readonly: bool,
    pub mounts: Vec<MountSpec>,
    pub devices: Vec<DeviceSpec>,
    /// Every device node of the node.
    pub all_devices: bool,
    /// Host directory that becomes `/dev/shm`; `None`: one of its own.
    pub shm: Option<PathBuf>,
    /// Masked and read-only parts of `/proc` and `/sys`.
    pub masked: bool,
    pub sys_writable: bool,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct MountSpec {
    pub source: PathBuf,
    pub target: PathBuf,
    pub readonly: bool,
    pub propagation: Propagation,
}

#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Private,
    Slave,
    Shared,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct DeviceSpec {
    pub source: PathBuf,
    pub target: PathBuf,
}

#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct ProcessSpec {
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: UserSpec,
    /// Bit set of what the process may hold.
    pub capabilities: u64,
    pub no_new_privs: bool,
    /// A compiled filter comes as a descriptor.
    pub seccomp: bool,
    pub oom_score_adj: Option<i64>,
    pub tty: bool,
}

#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct UserSpec {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// The image's `USER`, used where `uid` is absent.
    pub image_user: String,
}

/// From a child on its way to exec. The end of the stream means that exec has happened.
#[derive(Serialize, Deserialize, Debug)]
pub enum Report {
    /// Something that the machine could not give.
    Warning(String),
    /// It did not work; the child ends. `start` as in [`Failure`].
    Error { start: bool, message: String },
    /// Descriptors: net, ipc (as asked for), uts.
    Namespaces,
    /// Descriptors: the terminal's master side.
    Terminal,
    /// Descriptors: the pidfd of the process that takes over.
    Successor { pid: u32 },
}
