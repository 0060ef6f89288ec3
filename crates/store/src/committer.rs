//! The one thread that writes: takes what waits in the queue as a group, and makes it durable with one fsync.
//!
//! Enter at [`Committer::run`]. A lone writer is never delayed: the group is whatever has come in
//! meanwhile. The thread sleeps until a message comes or the next lease runs out.
//!
//! A write that failed may or may not be on disk. So [`Committer::recover`] opens the database
//! afresh and takes in what it finds; then the group is either whole there, or not at all, and is
//! answered accordingly. The store never stops because of a slow, full or failing disk.
//!
//! Deliberately absent: what transactions mean (`transaction`).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use crate::disk::Batch;
use crate::embedded::Shared;
use crate::record::{Head, Position};
use crate::transaction::{Change, Group};
use crate::{LeaseId, StoreError, Txn, TxnResponse};

/// Most transactions in a group; bounds the answer time of the first.
const GROUP_TXNS_MAX: usize = 512;
/// A group takes no more once its values exceed this.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Most leases ended in one group.
const EXPIRIES_MAX: usize = 128;
/// Space that fjall's framing takes for each change, at most.
const CHANGE_OVERHEAD_BYTES: u64 = 128;
/// Quiet time after a write before what fjall keeps in memory is written out.
const WRITE_OUT_AFTER: Duration = Duration::from_secs(3);
/// Wait before a failed deletion of expired keys is tried again.
const EXPIRY_RETRY: Duration = Duration::from_secs(1);

pub(crate) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(crate) enum Message {
    Txn {
        txn: Txn,
        reply: Reply<TxnResponse>,
    },
    Grant {
        ttl_seconds: u64,
        reply: Reply<LeaseId>,
    },
    Revoke {
        lease: LeaseId,
        reply: Reply<()>,
    },
    /// Finish what came before, and end.
    Close,
}

/// An evaluated message, to be answered when the group is durable.
enum Answer {
    Txn(Reply<TxnResponse>, Result<TxnResponse, StoreError>),
    Grant(Reply<LeaseId>, LeaseId),
    Revoke(Reply<()>, Result<(), StoreError>),
}

pub(crate) struct Committer {
    shared: Arc<Shared>,
    messages: Receiver<Message>,
    /// No lease is ended before this instant.
    expiry_not_before: Option<Instant>,
    /// When to write out what was written since; `None`: nothing was.
    write_out_at: Option<Instant>,
    newest_lease: u64,
}

impl Committer {
    pub fn new(shared: Arc<Shared>, messages: Receiver<Message>) -> Self {
        Self {
            shared,
            messages,
            expiry_not_before: None,
            // What was recovered at the start is in memory too.
            write_out_at: Some(Instant::now() + WRITE_OUT_AFTER),
            newest_lease: 0,
        }
    }

    pub fn run(mut self) {
        loop {
            let mut received = Vec::new();
            let open = self.receive(&mut received);
            let expired = self.expired();
            if received.is_empty() && expired.is_empty() {
                self.write_out(Instant::now());
            } else {
                self.write_out_at = Some(Instant::now() + WRITE_OUT_AFTER);
            }
            self.commit_group(received, &expired);
            self.shared.hub().announce_progress(Instant::now());
            if !open {
                return;
            }
        }
    }

    /// Waits for messages; false when the store closes.
    fn receive(&self, received: &mut Vec<Message>) -> bool {
        let first = match self.next_deadline() {
            Some(deadline) => match self
                .messages
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            },
            None => match self.messages.recv() {
                Ok(message) => message,
                Err(_) => return false,
            },
        };
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(message) = next {
            match &message {
                Message::Close => return false,
                Message::Txn { txn, .. } => bytes += txn.value_bytes(),
                Message::Grant { .. } | Message::Revoke { .. } => {}
            }
            received.push(message);
            if received.len() == GROUP_TXNS_MAX || bytes > GROUP_BYTES_MAX {
                return true;
            }
            next = self.messages.try_recv().ok();
        }
        true
    }

    fn next_deadline(&self) -> Option<Instant> {
        let lease = self.shared.leases().next_deadline();
        let lease = lease.map(|deadline| {
            self.expiry_not_before
                .map_or(deadline, |earliest| earliest.max(deadline))
        });
        let progress = self.shared.hub().progress_deadline();
        [lease, progress, self.write_out_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// In a quiet moment the memtables go to disk, so that an idle store keeps little in memory.
    fn write_out(&mut self, now: Instant) {
        if self.write_out_at.is_some_and(|at| at <= now) {
            self.write_out_at = None;
            self.shared.disk.write_out();
        }
    }

    fn expired(&self) -> Vec<u64> {
        let now = Instant::now();
        if self
            .expiry_not_before
            .is_some_and(|earliest| now < earliest)
        {
            return Vec::new();
        }
        self.shared.leases().expired(now, EXPIRIES_MAX)
    }

    fn commit_group(&mut self, messages: Vec<Message>, expired: &[u64]) {
        if messages.is_empty() && expired.is_empty() {
            return;
        }
        let shared = self.shared.clone();
        let mut group = Group::new(&shared);
        for lease in expired {
            // The lease was in the table a moment ago, and only this thread takes one out.
            let _ = group.revoke(LeaseId(*lease));
        }
        let mut answers = Vec::with_capacity(messages.len());
        for message in messages {
            answers.push(match message {
                Message::Txn { txn, reply } => Answer::Txn(reply, group.evaluate(txn)),
                Message::Grant { ttl_seconds, reply } => {
                    let lease = self.new_lease();
                    group.grant(lease, ttl_seconds);
                    Answer::Grant(reply, LeaseId(lease))
                }
                Message::Revoke { lease, reply } => Answer::Revoke(reply, group.revoke(lease)),
                Message::Close => unreachable!("Close is never handed on"),
            });
        }
        let result = self.make_durable(&group);
        if let Err(error) = &result {
            tracing::warn!(%error, "a group of writes failed");
        }
        if !expired.is_empty() {
            self.expiry_not_before = result.is_err().then(|| Instant::now() + EXPIRY_RETRY);
        }
        for answer in answers {
            answer.send(result.clone());
        }
        if result.is_ok() {
            shared
                .hub()
                .dispatch(&shared, &group.changes, group.current);
        }
    }

    fn make_durable(&self, group: &Group<'_>) -> Result<(), StoreError> {
        let (batch, bytes) = group.batch();
        if !batch.is_empty() {
            self.write(
                &batch,
                bytes + CHANGE_OVERHEAD_BYTES * group.changes.len() as u64,
                group.current,
            )?;
        }
        let mut leases = self.shared.leases();
        for (lease, ttl_seconds) in &group.granted {
            leases.grant(*lease, *ttl_seconds, Instant::now());
        }
        drop(leases);
        self.publish(&group.changes, group.current);
        let mut leases = self.shared.leases();
        for lease in &group.revoked {
            leases.remove(*lease);
        }
        Ok(())
    }

    /// Writes a batch whose newest revision is `newest`.
    fn write(&self, batch: &Batch, bytes: u64, newest: u64) -> Result<(), StoreError> {
        if !self.shared.disk.is_open() {
            self.recover()?;
        }
        if !batch.put_log.is_empty() {
            self.shared.disk.check_space(bytes)?;
        }
        let Err(error) = self.shared.disk.write(batch) else {
            return Ok(());
        };
        let cause = self.shared.disk.cause_of(error);
        tracing::warn!(%cause, "a write failed; opening the database afresh");
        let before = self.shared.index().current;
        self.recover().map_err(|error| {
            if matches!(error, StoreError::Damaged { .. }) {
                error
            } else {
                cause.clone()
            }
        })?;
        let after = self.shared.index().current;
        if after > before {
            // It was written, whole.
            debug_assert_eq!(after, newest);
            return Ok(());
        }
        if matches!(cause, StoreError::DiskFull { .. }) {
            return Err(cause);
        }
        // It was a write in the background that had failed, or a passing fault: once more.
        self.shared.disk.write(batch)
    }

    /// Opens the database afresh, and takes in revisions that a failed write left there.
    fn recover(&self) -> Result<(), StoreError> {
        self.shared.disk.reopen()?;
        let current = self.shared.index().current;
        let reader = self.shared.disk.read()?;
        let last = reader.last_position()?.revision;
        if last < current && last != 0 {
            return Err(self
                .shared
                .disk
                .damaged(format!("revisions {} to {current} are missing", last + 1)));
        }
        let mut changes = Vec::new();
        for record in reader.records(Position::first_of(current + 1)) {
            let record = record?;
            let value = if record.head.is_deletion() {
                None
            } else {
                reader.value(record.head.at)?
            };
            let previous = self.shared.index().head(&record.key).copied();
            changes.push(Change {
                record,
                value,
                previous,
            });
        }
        drop(reader);
        if !changes.is_empty() {
            self.publish(&changes, last);
            self.shared.hub().dispatch(&self.shared, &changes, last);
        }
        Ok(())
    }

    /// Shows readers what has become durable.
    fn publish(&self, changes: &[Change], current: u64) {
        if changes.is_empty() {
            return;
        }
        {
            let mut leases = self.shared.leases();
            for Change {
                record: crate::record::Record { head, key, .. },
                previous,
                ..
            } in changes
            {
                let previous = previous.map_or(0, |head: Head| head.lease);
                if previous != head.lease {
                    leases.detach(previous, key);
                    leases.attach(head.lease, key);
                }
            }
        }
        let mut index = self.shared.index_mut();
        // After a recovery the same changes may have been taken in already.
        if index.current >= current {
            return;
        }
        for change in changes {
            index.insert(change.record.key.clone(), change.record.head);
        }
        index.current = current;
    }

    /// A number that no lease has had: milliseconds since 1970, and a count within each.
    fn new_lease(&mut self) -> u64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let from_clock =
            u64::try_from(now.as_millis()).unwrap_or(u64::MAX >> 20) << 20 & (u64::MAX >> 1);
        let mut lease = from_clock.max(self.newest_lease + 1);
        while self.shared.leases().contains(lease) {
            lease += 1;
        }
        self.newest_lease = lease;
        lease
    }
}

impl Answer {
    /// Answers; a transaction that was refused keeps its own error.
    fn send(self, durable: Result<(), StoreError>) {
        // Who asked may have gone away.
        match self {
            Self::Txn(reply, result) => {
                let _ = reply.send(result.and_then(|response| durable.map(|()| response)));
            }
            Self::Grant(reply, lease) => {
                let _ = reply.send(durable.map(|()| lease));
            }
            Self::Revoke(reply, result) => {
                let _ = reply.send(result.and(durable));
            }
        }
    }
}
