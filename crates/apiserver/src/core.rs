//! The state that every request shares.

use std::net::SocketAddr;
use std::sync::Arc;

use api::kind::Kind;
use api::registry::Registry;
use store::{Revision, Store};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::priority::Classes;
use crate::admission::service::Allocations;
use crate::authn::token::TokenKey;
use crate::authz::Authorizer;
use crate::bootstrap;
use crate::cache::{self, Cache, Caches};
use crate::config::Config;
use crate::leases::Leases;
use crate::metrics::Metrics;
use crate::pki::{Pki, PkiError};
use crate::proxy::Dialer;
use crate::server::StartError;

/// A kind that is served, with its objects.
pub struct Resource {
    pub kind: Arc<Kind>,
    /// `None`: virtual, nothing of it is stored.
    pub cache: Option<Arc<Cache>>,
}

pub struct Core {
    pub config: Config,
    pub pki: Pki,
    pub local_addr: SocketAddr,
    pub store: Arc<dyn Store>,
    pub caches: Arc<Caches>,
    pub resources: Vec<Resource>,
    pub leases: Leases,
    pub metrics: Metrics,
    pub authorizer: Authorizer,
    pub tokens: TokenKey,
    pub allocations: Arc<Allocations>,
    pub priority_classes: Classes,
    pub dialer: Dialer,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Core {
    pub async fn start(
        config: Config,
        pki: Pki,
        local_addr: SocketAddr,
        store: Arc<dyn Store>,
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Arc<Self>, StartError> {
        let registry = Registry::builtin();
        let caches = cache::start(&registry, store.clone(), stop.clone(), tasks).await?;
        let resources = registry
            .iter()
            .map(|kind| Resource {
                kind: kind.clone(),
                cache: caches.by_prefix(&kind.storage_prefix).cloned(),
            })
            .collect();
        let tokens = TokenKey::new(
            pki.service_account_key_pkcs8(),
            &config.service_account_issuer,
        )
        .map_err(|error| PkiError::Damaged {
            path: pki.directory().join("sa.key"),
            detail: error.to_string(),
        })?;
        let dialer = Dialer::new(&pki)?;
        let allocations = Allocations::new(config.service_cidr, config.node_port_range.clone());
        if let Some(services) = caches.by_prefix("services") {
            for item in services.list(0, "", None, 0, |_| true).items {
                if let Ok(service) = serde_json::from_slice(&item.json) {
                    allocations.adopt(&service);
                }
            }
        }
        let leases = Leases::new(store.clone(), config.event_ttl);
        let core = Arc::new(Self {
            config,
            pki,
            local_addr,
            store,
            caches,
            resources,
            leases,
            metrics: Metrics::default(),
            authorizer: Authorizer::default(),
            tokens,
            allocations,
            priority_classes: Classes::default(),
            dialer,
            tasks: tasks.clone(),
            stop,
        });
        bootstrap::run(&core)
            .await
            .map_err(|error| StartError::Bootstrap(error.message().to_owned()))?;
        tasks.spawn(compact(core.clone()));
        tasks.spawn(bootstrap::aggregate_cluster_roles(core.clone()));
        Ok(core)
    }

    /// Where clients reach us, as far as we know.
    pub fn advertised_addr(&self) -> SocketAddr {
        match self.config.advertise_address {
            Some(address) => SocketAddr::new(address, self.local_addr.port()),
            None => self.local_addr,
        }
    }

    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| {
            resource.kind.plural == plural
                && resource.kind.group == group
                && resource.kind.version == version
        })
    }

    /// The stored resource of a group, in whatever version.
    pub fn resource_of_group(&self, group: &str, plural: &str) -> Option<&Resource> {
        self.resources
            .iter()
            .find(|resource| resource.kind.plural == plural && resource.kind.group == group)
    }
}

/// Forgets revisions that were superseded more than one interval ago.
async fn compact(core: Arc<Core>) {
    let mut previous: Option<Revision> = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(core.config.compaction_interval) => {}
            () = core.stop.cancelled() => return,
        }
        let current = core
            .store
            .revisions()
            .await
            .map(|revisions| revisions.current);
        if let Some(revision) = previous
            && let Err(error) = core.store.compact(revision).await
        {
            tracing::warn!(%error, %revision, "cannot compact the store");
        }
        previous = current.ok();
    }
}
