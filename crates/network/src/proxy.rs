//! The service proxy: keeps the nftables table as Services, EndpointSlices and host ports want it.
//!
//! Enter at [`ServiceProxy::start`]. The rules stay when the proxy ends, so that connections and
//! services outlive a restart of the program.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::informer::{Cache, Informer};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::Notify;

use crate::NetworkError;
use crate::host_ports::HostPorts;
use crate::ipam::Ipv4Cidr;
use crate::nft::{self, Ruleset};
use crate::plan::{PlanConfig, ruleset};
use crate::sysctl;

/// How long changes are gathered before they are applied: a roll-out changes many objects at once.
const GATHER: Duration = Duration::from_millis(3);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long the first rules may be refused before that is an error.
const FIRST_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Name of the nftables table, family `ip`.
    pub table: String,
    pub bridge: String,
    pub cluster_cidr: Ipv4Cidr,
    pub pod_cidr: Ipv4Cidr,
    pub node_name: String,
    pub node_ip: IpAddr,
}

pub struct ServiceProxy {
    stop: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl ServiceProxy {
    /// Applies the host ports that are known, then follows the cluster. The bridge must be there.
    pub async fn start(
        client: kube::Client,
        config: ProxyConfig,
        host_ports: Arc<HostPorts>,
    ) -> Result<Self, NetworkError> {
        // Local clients of node ports come from 127.0.0.1; the rules keep pods from the node's loopback.
        sysctl::write(&format!("ipv4/conf/{}/route_localnet", config.bridge), "1")?;
        let changed = Arc::new(Notify::new());
        let notify = || {
            let changed = Arc::clone(&changed);
            move || changed.notify_one()
        };
        let (on_service, on_slice) = (notify(), notify());
        let services: Informer<Service> = Informer::start(
            Api::all(client.clone()),
            watcher::Config::default(),
            move |_| on_service(),
        );
        let slices: Informer<EndpointSlice> =
            Informer::start(Api::all(client), watcher::Config::default(), move |_| {
                on_slice()
            });
        services.synced().await;
        slices.synced().await;
        let mut state = State {
            config: PlanConfig {
                bridge: config.bridge,
                cluster_cidr: config.cluster_cidr,
                pod_cidr: config.pod_cidr,
                node_name: config.node_name,
            },
            table: config.table,
            services: services.cache(),
            slices: slices.cache(),
            host_ports: Arc::clone(&host_ports),
            applied: None,
        };
        state.apply_first().await?;
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let _informers = (services, slices);
            tokio::select! {
                () = stopped.notified() => {}
                () = follow(state, changed, host_ports) => {}
            }
        });
        Ok(Self { stop, task })
    }

    /// Stops following; the rules stay.
    pub async fn shutdown(self) {
        self.stop.notify_one();
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the service proxy ended badly");
        }
    }
}

async fn follow(mut state: State, changed: Arc<Notify>, host_ports: Arc<HostPorts>) {
    let mut host_changes = host_ports.changes();
    let mut retry = RETRY_MIN;
    loop {
        let behind = *host_changes.borrow_and_update() > state.host_ports_applied();
        if !behind {
            tokio::select! {
                () = changed.notified() => tokio::time::sleep(GATHER).await,
                // A pod's start waits for this one.
                result = host_changes.changed() => if result.is_err() { return },
            }
        }
        while let Err(error) = state.apply().await {
            tracing::warn!(%error, retry_after = ?retry, "service rules not applied");
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(RETRY_MAX);
        }
        retry = RETRY_MIN;
    }
}

struct State {
    config: PlanConfig,
    table: String,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    host_ports: Arc<HostPorts>,
    /// What is in the kernel, if that is known, and the host ports' change that it includes.
    applied: Option<(Arc<Ruleset>, u64)>,
}

impl State {
    fn host_ports_applied(&self) -> u64 {
        self.applied.as_ref().map_or(0, |(_, count)| *count)
    }

    /// The first rules that the kernel gets may find it loading the modules for them, and be refused meanwhile.
    async fn apply_first(&mut self) -> Result<(), NetworkError> {
        let deadline = Instant::now() + FIRST_WITHIN;
        let mut retry = RETRY_MIN;
        loop {
            match self.apply().await {
                Err(error) if Instant::now() < deadline => {
                    tracing::warn!(%error, retry_after = ?retry, "service rules not applied");
                }
                result => return result,
            }
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    async fn apply(&mut self) -> Result<(), NetworkError> {
        let (count, host_ports) = self.host_ports.snapshot();
        let (services, slices) = (self.services.list(), self.slices.list());
        let config = self.config.clone();
        let table = self.table.clone();
        // After a failure nothing is known, and the table is made anew.
        let previous = self.applied.take().map(|(previous, _)| previous);
        let next = tokio::task::spawn_blocking(move || {
            let next = ruleset(&services, &slices, &host_ports, &config);
            if previous.as_deref() != Some(&next) {
                nft::apply(&table, previous.as_deref(), &next)?;
            }
            Ok::<_, NetworkError>(Arc::new(next))
        })
        .await
        .map_err(|error| {
            NetworkError::kernel("apply service rules", std::io::Error::other(error))
        })??;
        self.applied = Some((next, count));
        self.host_ports.mark_applied(count);
        Ok(())
    }
}
