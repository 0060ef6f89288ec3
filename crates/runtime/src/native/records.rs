//! What the server remembers about sandboxes and containers, in memory and on disk.
//!
//! `sandboxes/<id>.json` is one line of JSON. `containers/<id>/record.json` is a line with what changes
//! in a container's life, room for a longer one, and a line with the container as it was created. A
//! record that cannot be read is left out with a warning; what belongs to no record is cleaned.
//!
//! A new file is written as it is: until it is whole, nobody was told of what it records. A change is
//! one write over the old text within a page, which a `kill -9` cannot divide (the kernel looks for
//! signals between pages); a longer one is written beside and renamed. Renaming onto an old file would
//! make ext4 write the new one to disk at once, in the path of every start.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Write};
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
    /// What the machine could not give; each of its containers repeats it.
    #[serde(default)]
    pub warnings: Vec<String>,
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
    /// The whole record, at its creation and when its configuration has changed.
    pub fn save_container(&self, container: &Container) -> io::Result<()> {
        let mut bytes = line(&Change::of(container))?;
        bytes.resize(bytes.len().next_multiple_of(CHANGE_BYTES) - 1, b' ');
        bytes.push(b'\n');
        bytes.append(&mut line(container)?);
        let path = self.record_file(&container.id);
        if path.exists() {
            replace(&path, &bytes)
        } else {
            fs::write(path, bytes)
        }
    }
    /// What changes in a container's life.
    pub fn save_state(&self, container: &Container) -> io::Result<()> {
        let change = line(&Change::of(container))?;
        if change.len() > CHANGE_BYTES {
            return self.save_container(container);
        }
        // What is left of a longer old text stands between the first line and the last.
        write_over(&self.record_file(&container.id), &change)
    }
    fn record_file(&self, id: &str) -> PathBuf {
        self.container_dir(id).join("record.json")
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
            match load_container(&entry.path()) {
                Ok(container) => containers.push(container),
                Err(_) => broken.push(entry.path()),
            }
        }
        Ok((sandboxes, containers, broken))
    }
}

/// The parts of a [`Container`] that change.
#[derive(Serialize, Deserialize)]
struct Change<'a> {
    state: ContainerState,
    started_at_nanos: i64,
    finished_at_nanos: i64,
    exit_code: i32,
    signal: i32,
    reason: Cow<'a, str>,
    message: Cow<'a, str>,
    pid: Option<u32>,
    warnings: Cow<'a, [String]>,
}

impl<'a> Change<'a> {
    fn of(container: &'a Container) -> Self {
        Self {
            state: container.state,
            started_at_nanos: container.started_at_nanos,
            finished_at_nanos: container.finished_at_nanos,
            exit_code: container.exit_code,
            signal: container.signal,
            reason: Cow::Borrowed(&container.reason),
            message: Cow::Borrowed(&container.message),
            pid: container.pid,
            warnings: Cow::Borrowed(&container.warnings),
        }
    }

    fn apply(self, container: &mut Container) {
        container.state = self.state;
        container.started_at_nanos = self.started_at_nanos;
        container.finished_at_nanos = self.finished_at_nanos;
        container.exit_code = self.exit_code;
        container.signal = self.signal;
        container.reason = self.reason.into_owned();
        container.message = self.message.into_owned();
        container.pid = self.pid;
        container.warnings = self.warnings.into_owned();
    }
}

/// Room for the changes of a container; a start error with a long message takes more.
const CHANGE_BYTES: usize = 1024;
/// Longest text that one write makes whole.
const PAGE_BYTES: usize = 4096;

fn save<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let bytes = line(value)?;
    if bytes.len() > PAGE_BYTES && path.exists() {
        return replace(path, &bytes);
    }
    write_over(path, &bytes)
}

fn line<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}

fn write_over(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?
        .write_all(bytes)
}

fn load<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let bytes = fs::read(path)?;
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
    Ok(serde_json::from_slice(first)?)
}

fn load_container(directory: &Path) -> io::Result<Container> {
    let path = directory.join("record.json");
    let bytes = fs::read(&path)?;
    let mut lines = bytes.trim_ascii_end().rsplit(|byte| *byte == b'\n');
    let mut container: Container = serde_json::from_slice(lines.next().unwrap_or(&[]))?;
    // A record of an earlier version has one line.
    if let Ok(change) = load::<Change<'static>>(&path) {
        change.apply(&mut container);
    }
    Ok(container)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn container(id: &str) -> Container {
        Container {
            id: id.to_owned(),
            sandbox_id: "s".to_owned(),
            config: ContainerConfig::default(),
            state: ContainerState::Created,
            created_at_nanos: 1,
            started_at_nanos: 0,
            finished_at_nanos: 0,
            exit_code: 0,
            signal: 0,
            reason: String::new(),
            message: String::new(),
            log_path: PathBuf::new(),
            pid: None,
            stop_signal: 15,
            cgroup: "a/b".to_owned(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn changes_are_read_back_whatever_their_length() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout {
            data_dir: directory.path().to_owned(),
        };
        layout.create().unwrap();
        let mut record = container("c");
        fs::create_dir(layout.container_dir("c")).unwrap();
        layout.save_container(&record).unwrap();
        for length in [0, 10, 3000, 5, 9000, 20, 4000] {
            record.state = ContainerState::Exited;
            record.message = "m\n".repeat(length);
            record.exit_code = length as i32;
            layout.save_state(&record).unwrap();
            let (_, containers, broken) = layout.load().unwrap();
            assert!(broken.is_empty(), "{length}");
            assert_eq!(containers[0].message, record.message);
            assert_eq!(containers[0].exit_code, record.exit_code);
            assert_eq!(containers[0].state, ContainerState::Exited);
        }
    }

    #[test]
    fn what_was_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout {
            data_dir: directory.path().to_owned(),
        };
        layout.create().unwrap();
        let check = |id: &str, record: &str, expect: bool| {
            let path = layout.container_dir(id);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("record.json"), record).unwrap();
            let (_, containers, broken) = layout.load().unwrap();
            assert_eq!(containers.iter().any(|c| c.id == id), expect, "{id}");
            assert_eq!(broken.contains(&path), !expect, "{id}");
        };
        let text = |id: &str| serde_json::to_string(&container(id)).unwrap();
        check("empty", "", false);
        check("half", &text("half")[..50], false);
        check("one-line", &text("one-line"), true);
        let whole = |id: &str| {
            fs::create_dir(layout.container_dir(id)).unwrap();
            layout.save_container(&container(id)).unwrap();
            let text = fs::read_to_string(layout.record_file(id)).unwrap();
            fs::remove_dir_all(layout.container_dir(id)).unwrap();
            text
        };
        check("whole", &whole("whole"), true);
        let long = whole("cut");
        check("cut", &long[..long.len() - 20], false);
        let first = whole("cut-early");
        check("cut-early", &first[..100], false);
    }
}
