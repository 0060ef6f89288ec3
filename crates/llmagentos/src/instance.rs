//! A running server as other commands see it: its status file, its process, how to start and end it.
//!
//! The server writes `<run-dir>/status.json` at every step of its start; `init` and `status` read
//! it. No command trusts the file alone: a process counts as the server only while it holds the
//! lock on `<run-dir>/server.lock`, which the kernel drops with the process.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::config::{Config, write_atomically};

/// What the server says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub pid: u32,
    /// Unix time.
    pub started_at_seconds: i64,
    pub version: String,
    /// The phase that runs, or ran last.
    pub phase: String,
    /// Set once the API answers.
    pub api_url: Option<String>,
    pub node_ready: bool,
    /// Why the start failed.
    pub error: Option<String>,
}

pub fn status_path(config: &Config) -> PathBuf {
    config.cluster.run_dir.join("status.json")
}

fn lock_path(config: &Config) -> PathBuf {
    config.cluster.run_dir.join("server.lock")
}

/// Holds the instance: a second server on it is refused.
pub struct ServerLock {
    _file: File,
}

/// Takes the instance for this process.
pub fn lock(config: &Config) -> anyhow::Result<ServerLock> {
    std::fs::create_dir_all(&config.cluster.run_dir)
        .with_context(|| format!("make {}", config.cluster.run_dir.display()))?;
    let path = lock_path(config);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(ServerLock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "a server already runs on {}; see it with 'llmagentos status', end it with 'llmagentos stop'",
            config.cluster.run_dir.display()
        ),
        Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// Is there a live server, whatever its status file says?
pub fn is_running(config: &Config) -> bool {
    let Ok(file) = File::open(lock_path(config)) else {
        return false;
    };
    // A shared lock is refused exactly while a server holds its exclusive one.
    matches!(
        flock(&file, FlockOperation::NonBlockingLockShared),
        Err(rustix::io::Errno::WOULDBLOCK)
    )
}

/// How long a process that is being killed may take to let go of its lock.
const ENDING_TIMEOUT: Duration = Duration::from_secs(10);

/// Like [`is_running`], but a server that is being killed is waited for: it holds its lock until the kernel
/// has taken it apart, and whoever starts the next one must not take it for alive.
pub fn is_running_and_stays(config: &Config) -> bool {
    let Some(process) = server_process(config) else {
        return is_running(config);
    };
    if is_ending(process.pid) {
        process.wait(ENDING_TIMEOUT);
    }
    is_running(config)
}

/// Has the kernel begun to end this process, or been told to (proc_pid_status(5))?
fn is_ending(pid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
        return true;
    };
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let kill_bit = 1 << (Signal::KILL.as_raw() - 1);
    let kill_pending = ["SigPnd:", "ShdPnd:"].iter().any(|name| {
        field(name)
            .and_then(|mask| u64::from_str_radix(mask, 16).ok())
            .is_some_and(|mask| mask & kill_bit != 0)
    });
    // A process that has given back its memory has none to report.
    kill_pending || field("VmSize:").is_none()
}

pub fn read_status(config: &Config) -> Option<Status> {
    serde_json::from_slice(&std::fs::read(status_path(config)).ok()?).ok()
}

pub fn write_status(config: &Config, status: &Status) -> anyhow::Result<()> {
    write_atomically(
        &status_path(config),
        &serde_json::to_vec_pretty(status).expect("a status is JSON"),
        0o644,
    )
}

/// The server's process, held so that its number cannot come to mean another process.
pub struct ServerProcess {
    pub pid: u32,
    pidfd: OwnedFd,
}

/// The live server of this instance.
pub fn server_process(config: &Config) -> Option<ServerProcess> {
    if !is_running(config) {
        return None;
    }
    let pid = read_status(config)?.pid;
    let pidfd = pidfd_open(
        Pid::from_raw(i32::try_from(pid).ok()?)?,
        PidfdFlags::empty(),
    )
    .ok()?;
    // Asked again with the process in hand: the lock proves that it is still the server.
    is_running(config).then_some(ServerProcess { pid, pidfd })
}

impl ServerProcess {
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        pidfd_send_signal(&self.pidfd, signal)
            .with_context(|| format!("signal the server (process {})", self.pid))
    }

    /// Waits for its end; false when it still runs after `timeout`.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = [rustix::event::PollFd::new(
                &self.pidfd,
                rustix::event::PollFlags::IN,
            )];
            let spec = rustix::event::Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match rustix::event::poll(&mut poll, Some(&spec)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(_) if left.is_zero() => return false,
                Err(_) => {}
            }
        }
    }
}

/// Does systemd run this machine?
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Name of the systemd unit: one for the default instance, one more for each other config directory.
pub fn unit_name(config: &Config) -> String {
    if config.config_dir == Path::new("/etc/llmagentos") {
        return "llmagentos.service".to_owned();
    }
    let escaped: String = config
        .config_dir
        .to_string_lossy()
        .trim_matches('/')
        .chars()
        .map(|character| {
            if character.is_ascii_alphanumeric() {
                character
            } else {
                '-'
            }
        })
        .collect();
    format!("llmagentos-{escaped}.service")
}

pub fn unit_path(config: &Config) -> PathBuf {
    Path::new("/etc/systemd/system").join(unit_name(config))
}
