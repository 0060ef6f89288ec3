//! Ports of the node that lead to pods, by sandbox. The service proxy puts them into the kernel.
//!
//! Each sandbox's are kept in a file, so that they outlive a restart of the program.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::NetworkError;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub host_port: u16,
    /// The node's address that it is on; `None` for all.
    pub host_ip: Option<IpAddr>,
    pub pod_ip: Ipv4Addr,
    pub container_port: u16,
}

/// What sandboxes asked for, and how much of it is in the kernel.
pub struct HostPorts {
    directory: PathBuf,
    by_sandbox: Mutex<BTreeMap<String, Vec<HostPort>>>,
    /// Counts changes; the proxy follows it.
    wanted: watch::Sender<u64>,
    /// The last change that is in the kernel.
    applied: watch::Sender<u64>,
}

impl HostPorts {
    /// Reads what is kept in `directory`, which is made if it is not there.
    pub fn open(directory: PathBuf) -> Result<Self, NetworkError> {
        let read = |error| NetworkError::file("read", &directory, error);
        std::fs::create_dir_all(&directory).map_err(read)?;
        let mut by_sandbox = BTreeMap::new();
        for entry in std::fs::read_dir(&directory).map_err(read)? {
            let path = entry.map_err(read)?.path();
            match (name_of(&path), read_ports(&path)) {
                (Some(name), Some(ports)) => {
                    by_sandbox.insert(name, ports);
                }
                _ => tracing::warn!(path = %path.display(), "no list of host ports; passed over"),
            }
        }
        Ok(Self {
            directory,
            by_sandbox: Mutex::new(by_sandbox),
            wanted: watch::Sender::new(0),
            applied: watch::Sender::new(0),
        })
    }

    /// After a start: forgets the sandboxes that are no more.
    pub fn retain(&self, live_sandbox_ids: &HashSet<String>) {
        let gone: Vec<String> = self
            .lock()
            .keys()
            .filter(|id| !live_sandbox_ids.contains(*id))
            .cloned()
            .collect();
        gone.iter().for_each(|id| self.remove(id));
    }

    pub fn set(&self, sandbox_id: &str, ports: Vec<HostPort>) {
        if ports.is_empty() {
            return self.remove(sandbox_id);
        }
        let mut by_sandbox = self.lock();
        if by_sandbox.get(sandbox_id) != Some(&ports) {
            if let Err(error) = self.keep(sandbox_id, &ports) {
                tracing::warn!(%sandbox_id, %error, "host ports will be forgotten by a restart");
            }
            by_sandbox.insert(sandbox_id.to_owned(), ports);
            self.wanted.send_modify(|count| *count += 1);
        }
    }

    pub fn remove(&self, sandbox_id: &str) {
        let mut by_sandbox = self.lock();
        if by_sandbox.remove(sandbox_id).is_some() {
            // If it stays, the next start removes it.
            let _ = std::fs::remove_file(self.directory.join(sandbox_id));
            self.wanted.send_modify(|count| *count += 1);
        }
    }

    /// Waits until what was set before the call is in the kernel; `false` if that took longer than `timeout`.
    pub async fn applied(&self, timeout: Duration) -> bool {
        let wanted = *self.wanted.borrow();
        let mut applied = self.applied.subscribe();
        let reached = applied.wait_for(|count| *count >= wanted);
        matches!(tokio::time::timeout(timeout, reached).await, Ok(Ok(_)))
    }

    /// Every port, with the count of changes that this includes.
    pub(crate) fn snapshot(&self) -> (u64, Vec<HostPort>) {
        let by_sandbox = self.lock();
        (
            *self.wanted.borrow(),
            by_sandbox.values().flatten().cloned().collect(),
        )
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }

    pub(crate) fn mark_applied(&self, count: u64) {
        self.applied.send_replace(count);
    }

    fn keep(&self, sandbox_id: &str, ports: &[HostPort]) -> std::io::Result<()> {
        std::fs::write(self.directory.join(sandbox_id), serde_json::to_vec(ports)?)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<HostPort>>> {
        self.by_sandbox
            .lock()
            .expect("no holder of the lock panics")
    }
}

fn name_of(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

fn read_ports(path: &Path) -> Option<Vec<HostPort>> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_outlive_a_restart() {
        let directory = tempfile::tempdir().expect("make a directory");
        let open = || HostPorts::open(directory.path().join("ports")).expect("open");
        let port = HostPort {
            protocol: "UDP".to_owned(),
            host_port: 53,
            host_ip: None,
            pod_ip: Ipv4Addr::new(10, 99, 0, 2),
            container_port: 5353,
        };
        let ports = open();
        ports.set("kept", vec![port.clone()]);
        ports.set("gone", vec![port.clone()]);
        ports.set("removed", vec![port.clone()]);
        ports.remove("removed");
        let ports = open();
        assert_eq!(ports.snapshot().1.len(), 2);
        ports.retain(&HashSet::from(["kept".to_owned()]));
        assert_eq!(open().snapshot().1, [port]);
    }
}
