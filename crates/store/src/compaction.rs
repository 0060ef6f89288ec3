//! Forgetting of old revisions.
//!
//! Enter at [`Shared::compact`]. First the new oldest revision is made durable and known, so that
//! nobody reads below it; then what lies below and was replaced is deleted, in small batches that
//! writes can pass between. A crash in between leaves a little more than needed, and the next
//! compaction takes that away: it begins where the last one ended that is known to be done.
//!
//! The work is proportional to the changes since the last compaction, not to what exists, and reads
//! no value: called every few minutes it costs little each time.

use std::sync::PoisonError;

use crate::disk::Batch;
use crate::embedded::{FIRST_REVISION, Shared};
use crate::record::{META_COMPACTED, META_COMPACTION_DONE, Position};
use crate::{Revision, StoreError};

/// Records looked at in one step, between which others may write.
const STEP_RECORDS: usize = 4096;

impl Shared {
    /// [`Store::compact`](crate::Store::compact); reads and writes the disk.
    pub fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let _one_at_a_time = self
            .compaction
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (current, compacted) = {
            let index = self.index();
            (index.current, index.compacted)
        };
        if revision.0 > current {
            return Err(StoreError::FutureRevision {
                requested: revision,
                current: Revision(current),
            });
        }
        if revision.0 < compacted {
            return Err(StoreError::Compacted {
                requested: revision,
                oldest: Revision(compacted),
            });
        }
        if revision.0 <= FIRST_REVISION {
            return Ok(());
        }
        if revision.0 > compacted {
            self.write_meta(META_COMPACTED, revision)?;
            self.index_mut().compacted = revision.0;
        }
        let done = self.disk.read()?.meta(META_COMPACTION_DONE)?.unwrap_or(0);
        if done >= revision.0 {
            return Ok(());
        }
        // From `done` itself: its deletions were kept then, and are below the oldest revision now.
        let mut next = Position::first_of(done);
        while let Some(position) = self.compact_step(next, revision.0)? {
            next = position;
        }
        self.write_meta(META_COMPACTION_DONE, revision)
    }

    /// Deletes what the next records replace; gives the position to go on from, or `None` at the end.
    fn compact_step(&self, from: Position, oldest: u64) -> Result<Option<Position>, StoreError> {
        let mut batch = Batch::default();
        let mut deletions = Vec::new();
        let mut next = None;
        {
            let reader = self.disk.read()?;
            for (count, record) in reader.records(from).enumerate() {
                let record = record?;
                if record.head.at.revision > oldest {
                    break;
                }
                if count == STEP_RECORDS {
                    next = Some(record.head.at);
                    break;
                }
                if record.previous != Position::NONE {
                    batch.remove.push(record.previous);
                }
                if record.head.is_deletion() && record.head.at.revision < oldest {
                    batch.remove.push(record.head.at);
                    deletions.push(record);
                }
            }
        }
        if !batch.is_empty() {
            self.disk
                .write(&batch)
                .map_err(|error| self.disk.cause_of(error))?;
        }
        let mut index = self.index_mut();
        for record in deletions {
            index.forget_deletion(&record.key, record.head);
        }
        Ok(next)
    }

    fn write_meta(&self, key: &'static [u8], revision: Revision) -> Result<(), StoreError> {
        let batch = Batch {
            put_meta: vec![(bytes::Bytes::from_static(key), revision.0)],
            ..Batch::default()
        };
        self.disk
            .write(&batch)
            .map_err(|error| self.disk.cause_of(error))
    }
}
