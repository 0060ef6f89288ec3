//! The container runtime's view of the pod network: the only place that knows both.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use network::pod_network::PodNetwork;
use runtime::service::{
    PodSandbox, RuntimeError, SandboxNetwork, SandboxNetworkRequest, SandboxState,
};

pub struct PodNetworkAdapter {
    network: Arc<PodNetwork>,
}

impl PodNetworkAdapter {
    pub fn new(network: PodNetwork) -> Self {
        Self {
            network: Arc::new(network),
        }
    }

    /// After a start: gives back what belongs to sandboxes that are gone.
    pub fn recover(&self, sandboxes: &[PodSandbox]) -> anyhow::Result<()> {
        let live: HashSet<String> = sandboxes
            .iter()
            .filter(|sandbox| sandbox.state == SandboxState::Ready)
            .map(|sandbox| sandbox.id.clone())
            .collect();
        self.network
            .retain(&live)
            .context("recover the pod network")
    }
}

#[async_trait]
impl SandboxNetwork for PodNetworkAdapter {
    async fn set_up(&self, request: SandboxNetworkRequest) -> Result<Vec<IpAddr>, RuntimeError> {
        let network = Arc::clone(&self.network);
        let address = tokio::task::spawn_blocking(move || {
            network.set_up(&request.sandbox_id, &request.netns_path)
        })
        .await
        .map_err(|error| RuntimeError::Internal(error.to_string()))?
        .map_err(|error| RuntimeError::Internal(format!("set up the pod's network: {error}")))?;
        Ok(vec![IpAddr::V4(address)])
    }

    async fn tear_down(&self, sandbox_id: &str) -> Result<(), RuntimeError> {
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
