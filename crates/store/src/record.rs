//! What lies on disk: the keys and records of the three fjall keyspaces, as bytes.
//!
//! Enter at [`Position`] (the key of one change) and [`Record`] (its fixed-size head plus the
//! user's key). All integers are big-endian, so that the order of bytes is the order of numbers.
//! `docs/store-format.md` describes the same, byte by byte; change both or neither.
//!
//! Deliberately absent: any input or output.

use bytes::Bytes;

use crate::{KeyValue, LeaseId, Revision};

/// Where one change stands in history: the revision, and its place among that revision's changes.
///
/// `Position::NONE` (revision 0) stands for "there is none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Position {
    pub revision: u64,
    pub index: u32,
}

/// Bytes of an encoded [`Position`].
pub(crate) const POSITION_BYTES: usize = 12;

impl Position {
    pub const NONE: Self = Self {
        revision: 0,
        index: 0,
    };

    /// The first position that a revision can have.
    pub fn first_of(revision: u64) -> Self {
        Self { revision, index: 0 }
    }

    pub fn encode(self) -> [u8; POSITION_BYTES] {
        let mut bytes = [0; POSITION_BYTES];
        bytes[..8].copy_from_slice(&self.revision.to_be_bytes());
        bytes[8..].copy_from_slice(&self.index.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != POSITION_BYTES {
            return None;
        }
        Some(Self {
            revision: u64_at(bytes, 0)?,
            index: u32_at(bytes, 8)?,
        })
    }
}

/// The newest known state of a key: all of etcd's metadata of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub at: Position,
    /// 0 in a deletion.
    pub create_revision: u64,
    /// Count of writes since creation; 0 in a deletion.
    pub version: u64,
    /// 0: none.
    pub lease: u64,
}

impl Head {
    pub fn is_deletion(&self) -> bool {
        self.version == 0
    }

    pub fn lease_id(&self) -> Option<LeaseId> {
        (self.lease != 0).then_some(LeaseId(self.lease))
    }

    pub fn key_value(&self, key: Bytes, value: Bytes) -> KeyValue {
        KeyValue {
            key,
            value,
            create_revision: Revision(self.create_revision),
            mod_revision: Revision(self.at.revision),
            version: self.version,
            lease: self.lease_id(),
        }
    }
}

/// One entry of the log: a put or a deletion of one key, without the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub head: Head,
    /// The change of the same key before this one, or [`Position::NONE`].
    pub previous: Position,
    pub key: Bytes,
}

const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;
/// Bytes of a record before the user's key.
const RECORD_HEAD_BYTES: usize = 1 + 8 + 8 + 8 + POSITION_BYTES;

impl Record {
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(RECORD_HEAD_BYTES + self.key.len());
        bytes.push(if self.head.is_deletion() {
            KIND_DELETE
        } else {
            KIND_PUT
        });
        bytes.extend_from_slice(&self.head.create_revision.to_be_bytes());
        bytes.extend_from_slice(&self.head.version.to_be_bytes());
        bytes.extend_from_slice(&self.head.lease.to_be_bytes());
        bytes.extend_from_slice(&self.previous.encode());
        bytes.extend_from_slice(&self.key);
        bytes.into()
    }

    /// `None`: these are not the bytes of a record.
    pub fn decode(at: Position, bytes: &Bytes) -> Option<Self> {
        if bytes.len() < RECORD_HEAD_BYTES {
            return None;
        }
        let head = Head {
            at,
            create_revision: u64_at(bytes, 1)?,
            version: u64_at(bytes, 9)?,
            lease: u64_at(bytes, 17)?,
        };
        let expected = if head.is_deletion() {
            KIND_DELETE
        } else {
            KIND_PUT
        };
        (bytes[0] == expected).then_some(())?;
        Some(Self {
            head,
            previous: Position::decode(&bytes[25..RECORD_HEAD_BYTES])?,
            key: bytes.slice(RECORD_HEAD_BYTES..),
        })
    }
}

/// Key in `meta` of the oldest readable revision.
pub(crate) const META_COMPACTED: &[u8] = b"compacted";
/// Key in `meta` of the compaction whose deletions are all done.
pub(crate) const META_COMPACTION_DONE: &[u8] = b"compaction_done";
/// Prefix in `meta` of leases; the lease's number follows, and the value is its time to live in seconds.
pub(crate) const META_LEASE_PREFIX: &[u8] = b"lease/";

pub(crate) fn lease_meta_key(lease: u64) -> Bytes {
    let mut key = META_LEASE_PREFIX.to_vec();
    key.extend_from_slice(&lease.to_be_bytes());
    key.into()
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_be_bytes(
        bytes.get(offset..offset + 8)?.try_into().ok()?,
    ))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(
        bytes.get(offset..offset + 4)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_bytes_are_those_of_the_format() {
        let record = Record {
            head: Head {
                at: Position {
                    revision: 9,
                    index: 1,
                },
                create_revision: 5,
                version: 2,
                lease: 7,
            },
            previous: Position {
                revision: 5,
                index: 3,
            },
            key: Bytes::from_static(b"/k"),
        };
        let bytes = record.encode();
        let expect = [
            &[1][..],
            &5u64.to_be_bytes(),
            &2u64.to_be_bytes(),
            &7u64.to_be_bytes(),
            &5u64.to_be_bytes(),
            &3u32.to_be_bytes(),
            b"/k",
        ]
        .concat();
        assert_eq!(bytes, expect);
        assert_eq!(Record::decode(record.head.at, &bytes), Some(record));
    }

    #[test]
    fn decode_refuses_what_is_no_record() {
        fn check(bytes: &[u8]) {
            assert_eq!(
                Record::decode(Position::first_of(2), &Bytes::copy_from_slice(bytes)),
                None
            );
        }
        check(b"");
        check(&[1; RECORD_HEAD_BYTES - 1]);
        // A put of version 0, a deletion of version 1, an unknown kind.
        check(&[&[1][..], &[0; RECORD_HEAD_BYTES]].concat());
        check(&[&[2][..], &[1; RECORD_HEAD_BYTES]].concat());
        check(&[&[9][..], &[1; RECORD_HEAD_BYTES]].concat());
    }

    #[test]
    fn positions_sort_as_bytes() {
        let positions = [
            (0, 0),
            (1, 9),
            (2, 0),
            (2, 1),
            (255, 3),
            (256, 0),
            (u64::MAX, 1),
        ]
        .map(|(revision, index)| Position { revision, index });
        for pair in positions.windows(2) {
            assert!(pair[0].encode() < pair[1].encode());
            assert_eq!(Position::decode(&pair[0].encode()), Some(pair[0]));
        }
        assert_eq!(Position::decode(b"short"), None);
    }
}
