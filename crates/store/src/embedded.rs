//! The embedded engine: history in fjall, newest state in memory, one committer.
//!
//! Enter at [`Embedded::open`].
//!
//! ```text
//!  txn ──> queue ──> committer thread: evaluate a group, one batch, one fsync
//!                        │ publish                  │ dispatch
//!                        v                          v
//!  range <── Index (key -> newest Head)          watch::Hub ──> watchers
//!        <── Disk  (log, values)          <──────── catch-up of slow or late watchers
//! ```
//!
//! Invariants:
//! - what a reader sees is durable: the index is only told of a group after its fsync;
//! - the log holds every revision from the compacted one to the current one, without a gap;
//! - every put in the log has its value, and every value its put. [`Embedded::open`] checks both.
//!
//! Deliberately absent: a cache of values (the API server keeps the objects it serves).

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::committer::{Committer, Message};
use crate::disk::{Disk, Reader};
use crate::index::Index;
use crate::lease::Leases;
use crate::record::{Head, META_COMPACTED, META_LEASE_PREFIX, Position, Record, u64_at};
use crate::watch::{Hub, Watch};
use crate::{
    Compare, KeyRange, LeaseId, Op, RangeRequest, RangeResponse, Revision, Revisions, Store,
    StoreError, Txn, TxnResponse, WatchRequest, Watcher,
};

/// Largest value: well above the API's limit of 3 MiB for a body, with room for what the server adds.
pub const VALUE_BYTES_MAX: usize = 8 << 20;
/// Longest key; a Kubernetes key is under 1 KiB.
pub const KEY_BYTES_MAX: usize = 32 << 10;
/// The revision of a store that was never written to.
pub(crate) const FIRST_REVISION: u64 = 1;
/// Responses that wait for a watcher, before it is served from disk instead.
const WATCH_QUEUE_RESPONSES: usize = 32;

/// A store in one directory, in this process.
///
/// Dropping it ends watches, waits for writes that have begun, and frees the directory.
pub struct Embedded {
    shared: Arc<Shared>,
    queue: std::sync::mpsc::Sender<Message>,
    committer: Option<JoinHandle<()>>,
}

/// What the committer, the readers and the watches share.
pub(crate) struct Shared {
    pub disk: Disk,
    index: RwLock<Index>,
    leases: Mutex<Leases>,
    hub: Mutex<Hub>,
    /// Held by the one compaction that runs.
    pub compaction: Mutex<()>,
}

impl Embedded {
    /// Opens a data directory, or makes one; blocks while it reads the log (150,000 keys: under a second).
    ///
    /// Errors: [`StoreError::InUse`], [`StoreError::NewerFormat`], [`StoreError::Damaged`] (a revision
    /// is missing), [`StoreError::DiskFull`], [`StoreError::Io`].
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, StoreError> {
        let disk = Disk::open(directory.as_ref())?;
        let mut leases = Leases::default();
        let index = load(&disk, &mut leases)?;
        tracing::debug!(directory = %directory.as_ref().display(), revision = index.current, "store opened");
        let shared = Arc::new(Shared {
            disk,
            hub: Mutex::new(Hub::new(index.current)),
            index: RwLock::new(index),
            leases: Mutex::new(leases),
            compaction: Mutex::new(()),
        });
        let (queue, messages) = std::sync::mpsc::channel();
        let committer = Committer::new(shared.clone(), messages);
        let committer = std::thread::Builder::new()
            .name("store-committer".into())
            .spawn(move || committer.run())
            .map_err(|error| StoreError::Io {
                path: directory.as_ref().display().to_string(),
                detail: format!("starting a thread: {error}"),
            })?;
        Ok(Self {
            shared,
            queue,
            committer: Some(committer),
        })
    }

    async fn ask<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Message,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.queue
            .send(message(reply))
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        let _ = self.queue.send(Message::Close);
        if let Some(committer) = self.committer.take() {
            let _ = committer.join();
        }
        self.shared.hub().close();
        self.shared.disk.close();
    }
}

#[async_trait]
impl Store for Embedded {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        if request.range.is_single() {
            // A microsecond: cheaper than a change of threads.
            return self.shared.range(&request);
        }
        let shared = self.shared.clone();
        blocking(move || shared.range(&request)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        check_sizes(&txn)?;
        self.ask(|reply| Message::Txn { txn, reply }).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<Watcher, StoreError> {
        let (sender, responses) = mpsc::channel(WATCH_QUEUE_RESPONSES);
        let (current, compacted) = {
            let index = self.shared.index();
            (index.current, index.compacted)
        };
        let next = match request.from {
            Some(Revision(from)) if from > 0 => from,
            _ => current + 1,
        };
        if next < compacted {
            return Err(StoreError::Compacted {
                requested: Revision(next),
                oldest: Revision(compacted),
            });
        }
        Watch::new(next, request.progress, sender).start(&self.shared, request.range);
        Ok(Watcher { responses })
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        blocking(move || shared.compact(revision)).await
    }

    async fn lease_grant(&self, ttl_seconds: u64) -> Result<LeaseId, StoreError> {
        self.ask(|reply| Message::Grant { ttl_seconds, reply })
            .await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        if self.shared.leases().keep_alive(lease.0, Instant::now()) {
            Ok(())
        } else {
            Err(StoreError::LeaseNotFound(lease))
        }
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Message::Revoke { lease, reply }).await
    }

    async fn revisions(&self) -> Result<Revisions, StoreError> {
        let index = self.shared.index();
        Ok(Revisions {
            current: Revision(index.current),
            compacted: Revision(index.compacted),
        })
    }
}

impl Shared {
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Store::range`]; reads the disk.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
        loop {
            // A compaction may take away what the index named a moment ago: then look again.
            if let Some(response) = self.try_range(request)? {
                return Ok(response);
            }
        }
    }

    fn try_range(&self, request: &RangeRequest) -> Result<Option<RangeResponse>, StoreError> {
        let limit = if request.limit == 0 {
            usize::MAX
        } else {
            request.limit
        };
        let requested = request.revision.filter(|revision| revision.0 > 0);
        let (current, compacted);
        let mut found = Vec::new();
        let mut count = 0;
        {
            let index = self.index();
            (current, compacted) = (index.current, index.compacted);
            if let Some(requested) = requested {
                if requested.0 > current {
                    return Err(StoreError::FutureRevision {
                        requested,
                        current: Revision(current),
                    });
                }
                check_compacted(requested, compacted)?;
            }
            if requested.is_none_or(|revision| revision.0 == current) {
                for (key, head) in index
                    .range(&request.range)
                    .filter(|(_, head)| !head.is_deletion())
                {
                    count += 1;
                    if count <= limit && !request.count_only {
                        found.push((key.clone(), *head));
                    }
                }
            } else {
                found.extend(
                    index
                        .range(&request.range)
                        .map(|(key, head)| (key.clone(), *head)),
                );
            }
        }
        let reader = self.disk.read()?;
        if let Some(revision) = requested.filter(|revision| revision.0 < current) {
            let newest = std::mem::take(&mut found);
            for (key, head) in newest {
                let Some(head) = reader.head_at(head, revision.0)? else {
                    continue;
                };
                count += 1;
                if count <= limit && !request.count_only {
                    found.push((key, head));
                }
            }
            check_compacted(revision, self.index().compacted)?;
        }
        let mut kvs = Vec::with_capacity(found.len());
        for (key, head) in found {
            match reader.value(head.at)? {
                Some(value) => kvs.push(head.key_value(key, value)),
                None if self.index().compacted > compacted => return Ok(None),
                None => {
                    return Err(self
                        .disk
                        .damaged(format!("revision {} has no value", head.at.revision)));
                }
            }
        }
        let more = !request.count_only && count > kvs.len();
        Ok(Some(RangeResponse {
            revision: Revision(current),
            kvs,
            more,
            count,
        }))
    }
}

impl Reader<'_> {
    /// The state of a key at a revision, found by going back from a newer state; `None` where it did not exist.
    fn head_at(&self, newest: Head, revision: u64) -> Result<Option<Head>, StoreError> {
        let mut head = newest;
        while head.at.revision > revision {
            let Some(previous) = self.record(head.at)?.map(|record| record.previous) else {
                return Ok(None);
            };
            if previous == Position::NONE {
                return Ok(None);
            }
            // A missing one was a deletion that a compaction has passed.
            let Some(record) = self.record(previous)? else {
                return Ok(None);
            };
            head = record.head;
        }
        Ok((!head.is_deletion()).then_some(head))
    }
}

/// Reads the whole log: rebuilds the index and the leases, and checks that nothing is missing.
fn load(disk: &Disk, leases: &mut Leases) -> Result<Index, StoreError> {
    let reader = disk.read()?;
    let now = Instant::now();
    for (suffix, ttl_seconds) in reader.meta_with_prefix(META_LEASE_PREFIX)? {
        let lease =
            u64_at(&suffix, 0).ok_or_else(|| disk.damaged("a lease without a number".into()))?;
        leases.grant(lease, ttl_seconds, now);
    }
    let compacted = reader.meta(META_COMPACTED)?.unwrap_or(0);
    let mut index = Index::new(FIRST_REVISION.max(compacted), compacted);
    let mut values = reader.value_positions();
    let mut compacted_seen = compacted <= FIRST_REVISION;
    for record in reader.records(Position::NONE) {
        let Record { head, key, .. } = record?;
        let revision = head.at.revision;
        compacted_seen |= revision == compacted;
        if revision > compacted.max(FIRST_REVISION) {
            check_dense(disk, index.current, head.at)?;
            index.current = revision;
        }
        if !head.is_deletion() {
            match values.next().transpose()? {
                Some(position) if position == head.at => {}
                Some(position) if position < head.at => {
                    return Err(disk.damaged(format!(
                        "revision {} has a value, but no record of its key",
                        position.revision
                    )));
                }
                _ => return Err(disk.damaged(format!("revision {revision} has no value"))),
            }
        }
        index.insert(key, head);
    }
    if let Some(position) = values.next().transpose()? {
        return Err(disk.damaged(format!(
            "revision {} has a value, but no record of its key",
            position.revision
        )));
    }
    if !compacted_seen {
        return Err(disk.damaged(format!(
            "revision {compacted}, the oldest that is kept whole, is missing"
        )));
    }
    for (key, head) in index.range(&KeyRange {
        start: Bytes::new(),
        end: None,
    }) {
        leases.attach(head.lease, key);
    }
    Ok(index)
}

/// Refuses a log in which a revision is missing between `newest` and the one at `next`.
fn check_dense(disk: &Disk, newest: u64, next: Position) -> Result<(), StoreError> {
    let first_missing = newest + 1;
    match next.revision {
        same if same == newest => Ok(()),
        following if following == first_missing && next.index == 0 => Ok(()),
        following if following == first_missing => {
            Err(disk.damaged(format!("revision {following} has lost its first changes")))
        }
        later => Err(disk.damaged(format!(
            "revisions {first_missing} to {} are missing; restore the directory from a backup",
            later - 1
        ))),
    }
}

fn check_compacted(requested: Revision, compacted: u64) -> Result<(), StoreError> {
    if requested.0 < compacted {
        return Err(StoreError::Compacted {
            requested,
            oldest: Revision(compacted),
        });
    }
    Ok(())
}

fn check_sizes(txn: &Txn) -> Result<(), StoreError> {
    let check = |bytes: usize, limit_bytes: usize| {
        if bytes > limit_bytes {
            Err(StoreError::TooLarge { bytes, limit_bytes })
        } else {
            Ok(())
        }
    };
    for op in txn.success.iter().chain(&txn.failure) {
        if let Op::Put { key, value, .. } = op {
            check(key.len(), KEY_BYTES_MAX)?;
            check(value.len(), VALUE_BYTES_MAX)?;
        }
    }
    for compare in &txn.compare {
        let (Compare::ModRevision { key, .. } | Compare::Exists { key, .. }) = compare;
        check(key.len(), KEY_BYTES_MAX)?;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    // The task can only fail when the runtime shuts down, or on a panic that has been reported.
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| StoreError::Closed)?
}
