//! Evaluation of transactions: what a group of them would change, before any of it is durable.
//!
//! Enter at [`Group::evaluate`]. A group sees the durable state (`Shared`) below its own changes, so
//! every transaction sees those before it. Each is all or nothing: one that fails leaves no change.
//!
//! Deliberately absent: writing (the committer's).

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::disk::Batch;
use crate::embedded::Shared;
use crate::index::bounds;
use crate::record::{Head, Position, Record, lease_meta_key};
use crate::{
    Compare, KeyRange, KeyValue, LeaseId, Op, OpResponse, RangeRequest, RangeResponse, Revision,
    StoreError, Txn, TxnResponse,
};

/// One put or deletion.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub record: Record,
    /// `None` in a deletion.
    pub value: Option<Bytes>,
    /// The state that this change replaces, a deletion included.
    pub previous: Option<Head>,
}

/// Transactions that become durable together.
pub(crate) struct Group<'a> {
    shared: &'a Shared,
    pub changes: Vec<Change>,
    /// Newest state of the keys changed.
    overlay: BTreeMap<Bytes, Head>,
    values: HashMap<Position, Bytes>,
    /// The newest revision, with the group's own.
    pub current: u64,
    pub granted: Vec<(u64, u64)>,
    pub revoked: Vec<u64>,
}

impl<'a> Group<'a> {
    pub fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            changes: Vec::new(),
            overlay: BTreeMap::new(),
            values: HashMap::new(),
            current: shared.index().current,
            granted: Vec::new(),
            revoked: Vec::new(),
        }
    }

    pub fn evaluate(&mut self, txn: Txn) -> Result<TxnResponse, StoreError> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { txn.success } else { txn.failure };
        let first_change = self.changes.len();
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            match self.apply(op, first_change) {
                Ok(response) => responses.push(response),
                Err(error) => {
                    self.undo(first_change);
                    return Err(error);
                }
            }
        }
        if self.changes.len() > first_change {
            self.current += 1;
        }
        Ok(TxnResponse {
            revision: Revision(self.current),
            succeeded,
            responses,
        })
    }

    pub fn grant(&mut self, lease: u64, ttl_seconds: u64) {
        self.granted.push((lease, ttl_seconds));
    }

    /// Ends a lease and deletes its keys, as one revision.
    pub fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        if !self.lease_exists(lease.0) {
            return Err(StoreError::LeaseNotFound(lease));
        }
        let mut keys = self.shared.leases().keys(lease.0);
        keys.extend(
            self.overlay
                .iter()
                .filter(|(_, head)| head.lease == lease.0)
                .map(|(key, _)| key.clone()),
        );
        keys.sort();
        keys.dedup();
        let first_change = self.changes.len();
        for key in keys {
            // A key may have gone over to another lease within this group.
            if let Some(head) = self.live(&key).filter(|head| head.lease == lease.0) {
                self.delete(key, head, first_change);
            }
        }
        if self.changes.len() > first_change {
            self.current += 1;
        }
        self.revoked.push(lease.0);
        Ok(())
    }

    /// Everything that is to be written, and about how many bytes it takes.
    pub fn batch(&self) -> (Batch, u64) {
        let mut batch = Batch::default();
        let mut bytes = 0;
        for change in &self.changes {
            let record = change.record.encode();
            bytes += record.len();
            batch.put_log.push((change.record.head.at, record));
            if let Some(value) = &change.value {
                bytes += value.len();
                batch
                    .put_values
                    .push((change.record.head.at, value.clone()));
            }
        }
        batch.put_meta = self
            .granted
            .iter()
            .map(|(lease, ttl_seconds)| (lease_meta_key(*lease), *ttl_seconds))
            .collect();
        batch.remove_meta = self
            .revoked
            .iter()
            .map(|lease| lease_meta_key(*lease))
            .collect();
        (batch, bytes as u64)
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::ModRevision { key, equals } => {
                self.live(key).map_or(0, |head| head.at.revision) == equals.0
            }
            Compare::Exists { key, exists } => self.live(key).is_some() == *exists,
        }
    }

    fn apply(&mut self, op: Op, first_change: usize) -> Result<OpResponse, StoreError> {
        match op {
            Op::Put { key, value, lease } => {
                self.put(key, value, lease, first_change)?;
                Ok(OpResponse::Put)
            }
            Op::Delete { range } => {
                let mut deleted = Vec::new();
                for (key, head) in self.live_in(&range) {
                    self.check_unchanged(&key, head)?;
                    deleted.push(self.key_value(key.clone(), head)?);
                    self.delete(key, head, first_change);
                }
                Ok(OpResponse::Delete { deleted })
            }
            Op::Range(request) => self.range(&request, first_change).map(OpResponse::Range),
        }
    }

    fn put(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
        first_change: usize,
    ) -> Result<(), StoreError> {
        let lease = lease.filter(|lease| lease.0 != 0);
        if let Some(lease) = lease.filter(|lease| !self.lease_exists(lease.0)) {
            return Err(StoreError::LeaseNotFound(lease));
        }
        let previous = self.head(&key);
        if let Some(previous) = previous {
            self.check_unchanged(&key, previous)?;
        }
        let live = previous.filter(|head| !head.is_deletion());
        let at = self.next_position(first_change);
        let head = Head {
            at,
            create_revision: live.map_or(at.revision, |head| head.create_revision),
            version: live.map_or(0, |head| head.version) + 1,
            lease: lease.map_or(0, |lease| lease.0),
        };
        self.values.insert(at, value.clone());
        self.change(key, head, previous, Some(value));
        Ok(())
    }

    fn delete(&mut self, key: Bytes, previous: Head, first_change: usize) {
        let at = self.next_position(first_change);
        self.change(
            key,
            Head {
                at,
                create_revision: 0,
                version: 0,
                lease: 0,
            },
            Some(previous),
            None,
        );
    }

    fn change(&mut self, key: Bytes, head: Head, previous: Option<Head>, value: Option<Bytes>) {
        self.overlay.insert(key.clone(), head);
        let record = Record {
            head,
            previous: previous.map_or(Position::NONE, |head| head.at),
            key,
        };
        self.changes.push(Change {
            record,
            value,
            previous,
        });
    }

    fn undo(&mut self, first_change: usize) {
        for change in self.changes.drain(first_change..).rev() {
            self.values.remove(&change.record.head.at);
            match change.previous {
                Some(head) => self.overlay.insert(change.record.key, head),
                None => self.overlay.remove(&change.record.key),
            };
        }
    }

    fn next_position(&self, first_change: usize) -> Position {
        let index = u32::try_from(self.changes.len() - first_change)
            .expect("a transaction has fewer than 2^32 changes");
        Position {
            revision: self.current + 1,
            index,
        }
    }

    fn check_unchanged(&self, key: &Bytes, head: Head) -> Result<(), StoreError> {
        if head.at.revision == self.current + 1 {
            return Err(StoreError::DuplicateKey { key: key.clone() });
        }
        Ok(())
    }

    fn range(
        &self,
        request: &RangeRequest,
        first_change: usize,
    ) -> Result<RangeResponse, StoreError> {
        if request.revision.is_some_and(|revision| revision.0 > 0) {
            return self.shared.range(request);
        }
        let limit = if request.limit == 0 {
            usize::MAX
        } else {
            request.limit
        };
        let live = self.live_in(&request.range);
        let count = live.len();
        let wanted = if request.count_only { 0 } else { limit };
        let kvs: Vec<_> = live
            .into_iter()
            .take(wanted)
            .map(|(key, head)| self.key_value(key, head))
            .collect::<Result<_, _>>()?;
        let own = u64::from(self.changes.len() > first_change);
        let more = !request.count_only && count > kvs.len();
        Ok(RangeResponse {
            revision: Revision(self.current + own),
            kvs,
            more,
            count,
        })
    }

    fn live_in(&self, range: &KeyRange) -> Vec<(Bytes, Head)> {
        if range.is_single() {
            return self
                .live(&range.start)
                .map(|head| (range.start.clone(), head))
                .into_iter()
                .collect();
        }
        let mut heads: BTreeMap<Bytes, Head> = self
            .shared
            .index()
            .range(range)
            .map(|(key, head)| (key.clone(), *head))
            .collect();
        heads.extend(
            self.overlay
                .range::<[u8], _>(bounds(range))
                .map(|(key, head)| (key.clone(), *head)),
        );
        heads
            .into_iter()
            .filter(|(_, head)| !head.is_deletion())
            .collect()
    }

    fn live(&self, key: &[u8]) -> Option<Head> {
        self.head(key).filter(|head| !head.is_deletion())
    }

    fn head(&self, key: &[u8]) -> Option<Head> {
        self.overlay
            .get(key)
            .copied()
            .or_else(|| self.shared.index().head(key).copied())
    }

    fn key_value(&self, key: Bytes, head: Head) -> Result<KeyValue, StoreError> {
        let value = match self.values.get(&head.at) {
            Some(value) => value.clone(),
            None => self.shared.disk.read()?.value(head.at)?.ok_or_else(|| {
                self.shared
                    .disk
                    .damaged(format!("revision {} has no value", head.at.revision))
            })?,
        };
        Ok(head.key_value(key, value))
    }

    fn lease_exists(&self, lease: u64) -> bool {
        !self.revoked.contains(&lease)
            && (self.shared.leases().contains(lease)
                || self.granted.iter().any(|(granted, _)| *granted == lease))
    }
}
