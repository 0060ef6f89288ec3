//! The newest state of every key, in memory, in key order.
//!
//! Rebuilt from the log at start. Holds no values and no history: a read at an older revision
//! follows [`Record::previous`](crate::record::Record) on disk. Deleted keys stay (as deletions)
//! until a compaction passes them, for those reads.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::KeyRange;
use crate::record::Head;

#[derive(Debug, Default)]
pub(crate) struct Index {
    heads: BTreeMap<Bytes, Head>,
    /// The newest durable revision.
    pub current: u64,
    /// The oldest readable revision.
    pub compacted: u64,
}

impl Index {
    pub fn new(current: u64, compacted: u64) -> Self {
        Self {
            heads: BTreeMap::new(),
            current,
            compacted,
        }
    }

    pub fn head(&self, key: &[u8]) -> Option<&Head> {
        self.heads.get(key)
    }

    pub fn insert(&mut self, key: Bytes, head: Head) {
        if let Some(known) = self.heads.get_mut(&key) {
            *known = head;
        } else {
            // A copy of just the key: `key` may be a slice that keeps a larger buffer alive.
            self.heads.insert(Bytes::copy_from_slice(&key), head);
        }
    }

    /// Forgets a deleted key, if it has not been written again since.
    pub fn forget_deletion(&mut self, key: &[u8], deletion: Head) {
        if self.heads.get(key) == Some(&deletion) {
            self.heads.remove(key);
        }
    }

    /// Live and deleted keys of a range.
    pub fn range<'a>(
        &'a self,
        range: &KeyRange,
    ) -> impl Iterator<Item = (&'a Bytes, &'a Head)> + use<'a> {
        self.heads.range::<[u8], _>(bounds(range))
    }
}

/// The bounds of a range for a sorted map; an inverted range becomes an empty one.
pub(crate) fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    match &range.end {
        Some(end) if end[..] < range.start[..] => {
            (Bound::Included(&range.start), Bound::Excluded(&range.start))
        }
        Some(end) => (Bound::Included(&range.start), Bound::Excluded(end)),
        None => (Bound::Included(&range.start), Bound::Unbounded),
    }
}
