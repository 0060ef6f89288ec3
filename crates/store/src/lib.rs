//! Revisioned, watchable key-value store with etcd's semantics.
//!
//! Enter at [`Store`], and at [`Embedded`] for the engine of one machine. The store knows no kinds: keys and values are bytes. Every successful
//! write transaction gets the next [`Revision`]; revisions are dense (no number is skipped or
//! used twice, not even across a crash). What a write acknowledged is on disk.
//!
//! Deliberately absent: any knowledge of Kubernetes, authentication, a network protocol.

mod committer;
mod compaction;
mod disk;
mod embedded;
mod index;
mod lease;
mod record;
mod transaction;
mod types;
mod watch;

pub use embedded::Embedded;
pub use types::*;

use async_trait::async_trait;

/// A revisioned key-value store: etcd's KV, Watch and Lease services as one trait.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads a range of keys in key order, at the newest revision or at one that is asked for.
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError>;

    /// Compares, then runs one of two lists of operations as one atomic revision.
    /// Returns after the write is durable.
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError>;

    /// Streams every change to a range, in revision order, without a gap, from the revision asked for.
    async fn watch(&self, request: WatchRequest) -> Result<Watcher, StoreError>;

    /// Forgets every revision below `revision` that is not the newest of its key.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// Makes a lease; keys put with it are deleted when it runs out.
    async fn lease_grant(&self, ttl_seconds: u64) -> Result<LeaseId, StoreError>;

    /// Starts the lease's time to live afresh.
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease now and deletes its keys.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// The newest revision and the oldest one that can still be read or watched from.
    async fn revisions(&self) -> Result<Revisions, StoreError>;
}
