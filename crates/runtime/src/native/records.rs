//! What the server remembers about sandboxes and containers, in memory and on disk.
//!
//! One JSON file each, replaced by rename: `sandboxes/<id>.json`, `containers/<id>/record.json`.
//! A record that cannot be read is left out with a warning; what belongs to no record is cleaned.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::protocol::Exit;
use crate::service::{
    ContainerConfig, ContainerState, ContainerStatus, PodSandbox, PodSandboxConfig, SandboxState,
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sandbox {
    pub id: String,
    pub config: PodSandboxConfig,
    pub state: SandboxState,
    pub created_at_nanos: i64,
    pub ips: Vec<IpAddr>,
    /// The network was set up and must be given back.
    pub networked: bool,
    /// Directory of the sandbox's own `/dev/shm`, if it has one.
    pub shm: Option<PathBuf>,
    /// Descriptor of the network namespace in the zygote; asked for again after every start.
    #[serde(skip)]
    pub net_fd: Option<i32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    pub sandbox_id: String,
    pub config: ContainerConfig,
    pub state: ContainerState,
    pub created_at_nanos: i64,
    pub started_at_nanos: i64,
    pub finished_at_nanos: i64,
    pub exit_code: i32,
    pub signal: i32,
    pub reason: String,
    pub message: String,
    pub log_path: PathBuf,
    pub pid: Option<u32>,
    /// Number of the signal that asks it to stop.
    pub stop_signal: i32,
    /// Relative to our cgroup root.
    pub cgroup: String,
    pub warnings: Vec<String>,
}

impl Sandbox {
    pub fn status(&self) -> PodSandbox {
        PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state,
            created_at_nanos: self.created_at_nanos,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            ips: self.ips.clone(),
        }
    }
}

impl Container {
    pub fn status(&self) -> ContainerStatus {
        ContainerStatus {
            id: self.id.clone(),
            sandbox_id: self.sandbox_id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state,
            created_at_nanos: self.created_at_nanos,
            started_at_nanos: self.started_at_nanos,
            finished_at_nanos: self.finished_at_nanos,
            exit_code: self.exit_code,
            signal: self.signal,
            image_id: self.config.image_id.clone(),
            user_image: self.config.user_image.clone(),
            reason: self.reason.clone(),
            message: self.message.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            log_path: self.log_path.clone(),
            pid: self.pid,
            warnings: self.warnings.clone(),
        }
    }

    /// Takes over how it ended.
    pub fn ended(&mut self, exit: Exit) {
        self.state = ContainerState::Exited;
        self.exit_code = exit.code;
        self.signal = exit.signal;
        self.finished_at_nanos = exit.finished_at_nanos;
        self.pid = None;
        self.reason = if exit.oom_killed && exit.code != 0 {
            "OOMKilled"
        } else if exit.code == 0 {
            "Completed"
        } else {
            "Error"
        }
        .to_owned();
    }

    /// It never ran: what containerd reports for that.
    pub fn not_started(&mut self, message: String, now_nanos: i64) {
        self.state = ContainerState::Exited;
        self.exit_code = 128;
        self.finished_at_nanos = now_nanos;
        self.reason = "StartError".to_owned();
        self.message = message;
    }

    /// It ran, and nobody saw how it ended (the zygote or the machine went down).
    pub fn lost(&mut self, now_nanos: i64) {
        self.state = ContainerState::Exited;
        self.exit_code = 255;
        self.finished_at_nanos = now_nanos;
        self.pid = None;
        self.reason = "Unknown".to_owned();
        self.message =
            "the container's end was not seen: its supervisor or the machine went down".to_owned();
    }
}

/// Files and directories below the data directory.
#[derive(Clone, Debug)]
pub struct Layout {
    pub data_dir: PathBuf,
}

impl Layout {
    pub fn create(&self) -> io::Result<()> {
        for name in ["sandboxes", "containers", "trash"] {
            fs::create_dir_all(self.data_dir.join(name))?;
        }
        Ok(())
    }
    pub fn sandbox_file(&self, id: &str) -> PathBuf {
        self.data_dir.join("sandboxes").join(format!("{id}.json"))
    }
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.data_dir.join("containers").join(id)
    }
    pub fn trash(&self) -> PathBuf {
        self.data_dir.join("trash")
    }

    pub fn save_sandbox(&self, sandbox: &Sandbox) -> io::Result<()> {
        save(&self.sandbox_file(&sandbox.id), sandbox)
    }
    pub fn save_container(&self, container: &Container) -> io::Result<()> {
        save(
            &self.container_dir(&container.id).join("record.json"),
            container,
        )
    }

    /// Everything that was saved; broken or half-made entries are named in the second list.
    pub fn load(&self) -> io::Result<(Vec<Sandbox>, Vec<Container>, Vec<PathBuf>)> {
        let (mut sandboxes, mut containers, mut broken) = (Vec::new(), Vec::new(), Vec::new());
        for entry in fs::read_dir(self.data_dir.join("sandboxes"))?.flatten() {
            match load(&entry.path()) {
                Ok(sandbox) => sandboxes.push(sandbox),
                Err(_) => broken.push(entry.path()),
            }
        }
        for entry in fs::read_dir(self.data_dir.join("containers"))?.flatten() {
            match load(&entry.path().join("record.json")) {
                Ok(container) => containers.push(container),
                Err(_) => broken.push(entry.path()),
            }
        }
        Ok((sandboxes, containers, broken))
    }
}

fn save<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(new, path)
}

fn load<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}
