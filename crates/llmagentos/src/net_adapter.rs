//! The container runtime's view of the pod network: the only place that knows both.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use network::host_ports::{HostPort, HostPorts};
use network::pod_network::PodNetwork;
use runtime::service::{
    PodSandbox, RuntimeError, SandboxNetwork, SandboxNetworkRequest, SandboxState,
};

/// How long a pod's start waits for its host ports; they come later in any case.
const HOST_PORTS_TIMEOUT: Duration = Duration::from_secs(5);

pub struct PodNetworkAdapter {
    network: Arc<PodNetwork>,
    host_ports: Arc<HostPorts>,
}

impl PodNetworkAdapter {
    pub fn new(network: PodNetwork, host_ports: Arc<HostPorts>) -> Self {
        Self {
            network: Arc::new(network),
            host_ports,
        }
    }

    /// After a start: gives back what belongs to sandboxes that are gone.
    pub fn recover(&self, sandboxes: &[PodSandbox]) -> anyhow::Result<()> {
        let live: HashSet<String> = sandboxes
            .iter()
            .filter(|sandbox| sandbox.state == SandboxState::Ready)
            .map(|sandbox| sandbox.id.clone())
            .collect();
        self.host_ports.retain(&live);
        self.network
            .retain(&live)
            .context("recover the pod network")
    }
}

#[async_trait]
impl SandboxNetwork for PodNetworkAdapter {
    async fn set_up(&self, request: SandboxNetworkRequest) -> Result<Vec<IpAddr>, RuntimeError> {
        let network = Arc::clone(&self.network);
        let (sandbox_id, mappings) = (request.sandbox_id.clone(), request.port_mappings.clone());
        let address = tokio::task::spawn_blocking(move || {
            network.set_up(&request.sandbox_id, &request.netns_path)
        })
        .await
        .map_err(|error| RuntimeError::Internal(error.to_string()))?
        .map_err(|error| RuntimeError::Internal(format!("set up the pod's network: {error}")))?;
        let ports: Vec<HostPort> = mappings
            .into_iter()
            .filter(|mapping| mapping.host_port != 0)
            .map(|mapping| HostPort {
                protocol: mapping.protocol,
                host_port: mapping.host_port,
                host_ip: mapping.host_ip,
                pod_ip: address,
                container_port: mapping.container_port,
            })
            .collect();
        if !ports.is_empty() {
            self.host_ports.set(&sandbox_id, ports);
            if !self.host_ports.applied(HOST_PORTS_TIMEOUT).await {
                tracing::warn!(%sandbox_id, "host ports are not in the kernel yet");
            }
        }
        Ok(vec![IpAddr::V4(address)])
    }

    async fn tear_down(&self, sandbox_id: &str) -> Result<(), RuntimeError> {
        self.host_ports.remove(sandbox_id);
        let network = Arc::clone(&self.network);
        let sandbox_id = sandbox_id.to_owned();
        tokio::task::spawn_blocking(move || network.tear_down(&sandbox_id))
            .await
            .map_err(|error| RuntimeError::Internal(error.to_string()))?
            .map_err(|error| {
                RuntimeError::Internal(format!("take the pod's network down: {error}"))
            })?;
        Ok(())
    }
}
