//! Store leases for kinds whose objects end by themselves: Events.

use std::time::Duration;

use api::kind::Kind;
use std::sync::Arc;
use store::{LeaseId, Store, StoreError};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Objects written within this time share a lease, which lives that much longer than they need.
const REUSE: Duration = Duration::from_secs(60);

/// Hands out leases of the events' time to live.
pub struct Leases {
    store: Arc<dyn Store>,
    event_ttl: Duration,
    current: Mutex<Option<(LeaseId, Instant)>>,
}

impl Leases {
    pub fn new(store: Arc<dyn Store>, event_ttl: Duration) -> Self {
        Self {
            store,
            event_ttl,
            current: Mutex::default(),
        }
    }

    /// The lease to write an object of this kind with; `None` for all kinds that stay.
    pub async fn lease_for(&self, kind: &Kind) -> Result<Option<LeaseId>, StoreError> {
        if kind.storage_prefix != "events" {
            return Ok(None);
        }
        let mut current = self.current.lock().await;
        if let Some((lease, made)) = *current
            && made.elapsed() < REUSE
        {
            return Ok(Some(lease));
        }
        let lease = self
            .store
            .lease_grant((self.event_ttl + REUSE).as_secs())
            .await?;
        *current = Some((lease, Instant::now()));
        Ok(Some(lease))
    }
}
