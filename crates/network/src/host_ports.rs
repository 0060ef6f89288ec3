//! Ports of the node that lead to pods, by sandbox. The service proxy puts them into the kernel.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;

#[derive(Clone, Debug, PartialEq, Eq)]
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
    by_sandbox: Mutex<BTreeMap<String, Vec<HostPort>>>,
    /// Counts changes; the proxy follows it.
    wanted: watch::Sender<u64>,
    /// The last change that is in the kernel.
    applied: watch::Sender<u64>,
}

impl Default for HostPorts {
    fn default() -> Self {
        Self {
            by_sandbox: Mutex::default(),
            wanted: watch::Sender::new(0),
            applied: watch::Sender::new(0),
        }
    }
}

impl HostPorts {
    pub fn set(&self, sandbox_id: &str, ports: Vec<HostPort>) {
        if ports.is_empty() {
            return self.remove(sandbox_id);
        }
        let mut by_sandbox = self.lock();
        if by_sandbox.get(sandbox_id) != Some(&ports) {
            by_sandbox.insert(sandbox_id.to_owned(), ports);
            self.wanted.send_modify(|count| *count += 1);
        }
    }

    pub fn remove(&self, sandbox_id: &str) {
        let mut by_sandbox = self.lock();
        if by_sandbox.remove(sandbox_id).is_some() {
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<HostPort>>> {
        self.by_sandbox
            .lock()
            .expect("no holder of the lock panics")
    }
}
