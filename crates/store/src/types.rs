//! Requests, responses and errors of the store, in etcd's terms.

use std::fmt;

use bytes::Bytes;

/// The store's logical clock: one per successful write transaction, starting at 1 for an empty store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// The revision that created the key (since it was last deleted).
    pub create_revision: Revision,
    /// The revision that wrote this version.
    pub mod_revision: Revision,
    /// Count of writes since creation, from 1.
    pub version: u64,
    pub lease: Option<LeaseId>,
}

/// A half-open range of keys, `start <= key < end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Bytes,
    /// `None`: no upper end.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Exactly one key.
    pub fn single(key: impl Into<Bytes>) -> Self {
        let start = key.into();
        let mut end = start.to_vec();
        end.push(0);
        Self {
            start,
            end: Some(end.into()),
        }
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Self {
                    start,
                    end: Some(end.into()),
                };
            }
        }
        Self { start, end: None }
    }

    /// Whether the range can hold one key only, as [`KeyRange::single`] makes it.
    pub fn is_single(&self) -> bool {
        let length = self.start.len();
        self.end.as_ref().is_some_and(|end| {
            end.len() == length + 1 && end[length] == 0 && end[..length] == self.start[..]
        })
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }
}

#[derive(Clone, Debug)]
pub struct RangeRequest {
    pub range: KeyRange,
    /// `None`: the newest.
    pub revision: Option<Revision>,
    /// 0: no limit.
    pub limit: usize,
    /// Count only; no key or value is returned.
    pub count_only: bool,
}

#[derive(Clone, Debug)]
pub struct RangeResponse {
    /// The store's revision when it answered (not that of the read).
    pub revision: Revision,
    pub kvs: Vec<KeyValue>,
    /// More keys lie in the range than the limit let through.
    pub more: bool,
    /// Count of all keys in the range at the revision that was read.
    pub count: usize,
}

/// A condition on one key. A key that does not exist has `mod_revision` 0.
#[derive(Clone, Debug)]
pub enum Compare {
    ModRevision { key: Bytes, equals: Revision },
    Exists { key: Bytes, exists: bool },
}

#[derive(Clone, Debug)]
pub enum Op {
    Put {
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
    },
    Delete {
        range: KeyRange,
    },
    Range(RangeRequest),
}

/// If every compare holds run `success`, else `failure`.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

impl Txn {
    /// Bytes of all values that it may put.
    pub(crate) fn value_bytes(&self) -> usize {
        let ops = self.success.iter().chain(&self.failure);
        ops.map(|op| {
            if let Op::Put { value, .. } = op {
                value.len()
            } else {
                0
            }
        })
        .sum()
    }
}

#[derive(Clone, Debug)]
pub struct TxnResponse {
    /// The store's revision after the transaction: a new one if it changed anything.
    pub revision: Revision,
    /// Whether the compares held.
    pub succeeded: bool,
    /// One for each operation that ran.
    pub responses: Vec<OpResponse>,
}

#[derive(Clone, Debug)]
pub enum OpResponse {
    Put,
    Delete { deleted: Vec<KeyValue> },
    Range(RangeResponse),
}

#[derive(Clone, Debug)]
pub struct WatchRequest {
    pub range: KeyRange,
    /// First revision wanted; `None`: from now on.
    pub from: Option<Revision>,
    /// Ask for empty responses that carry the newest revision while nothing changes.
    pub progress: bool,
}

#[derive(Clone, Debug)]
pub enum Event {
    Put {
        kv: KeyValue,
        prev: Option<KeyValue>,
    },
    /// `mod_revision` is the revision of the deletion.
    Delete {
        key: Bytes,
        mod_revision: Revision,
        prev: Option<KeyValue>,
    },
}

/// Changes in revision order; all events of one revision are in one response.
#[derive(Clone, Debug)]
pub struct WatchResponse {
    /// Everything up to this revision has been delivered.
    pub revision: Revision,
    /// Empty: progress only.
    pub events: Vec<Event>,
}

/// The receiving end of a watch. Dropping it ends the watch.
pub struct Watcher {
    pub responses: tokio::sync::mpsc::Receiver<Result<WatchResponse, StoreError>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revisions {
    pub current: Revision,
    /// Reads and watches below this answer [`StoreError::Compacted`].
    pub compacted: Revision,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("revision {requested} has been compacted; the oldest readable one is {oldest}")]
    Compacted {
        requested: Revision,
        oldest: Revision,
    },
    #[error("revision {requested} is in the future; the newest is {current}")]
    FutureRevision {
        requested: Revision,
        current: Revision,
    },
    #[error("key {key:?} is written twice in one transaction")]
    DuplicateKey { key: Bytes },
    #[error("lease {} not found", .0.0)]
    LeaseNotFound(LeaseId),
    #[error("value of {bytes} bytes is over the limit of {limit_bytes}")]
    TooLarge { bytes: usize, limit_bytes: usize },
    #[error("data directory {path} is in use by another process")]
    InUse { path: String },
    #[error(
        "data directory {path} has format {found}, newer than {supported}, the newest this program knows; run the newer program"
    )]
    NewerFormat {
        path: String,
        found: u32,
        supported: u32,
    },
    #[error("data directory {path} is damaged: {detail}")]
    Damaged { path: String, detail: String },
    #[error("no space left on the disk of {path}")]
    DiskFull { path: String },
    #[error("input or output on {path}: {detail}")]
    Io { path: String, detail: String },
    #[error("the store is closed")]
    Closed,
}
