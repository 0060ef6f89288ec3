//! Leases: times to live, and the keys that end with them.
//!
//! The table lives in memory; a lease's number and time to live are durable, its keys are those
//! whose newest record names it. As in etcd a restart starts every lease's time afresh: a lease may
//! live longer than asked, never shorter.
//!
//! Deliberately absent: a clock (`now` is an argument) and the deletion itself (the committer's).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Longest time to live that is kept; etcd's limit (about 285 years).
const TTL_SECONDS_MAX: u64 = 9_000_000_000;

#[derive(Debug, Default)]
pub(crate) struct Leases {
    leases: HashMap<u64, Lease>,
    /// (deadline, lease), soonest first.
    deadlines: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
    keys: HashSet<Bytes>,
}

impl Leases {
    pub fn contains(&self, lease: u64) -> bool {
        self.leases.contains_key(&lease)
    }

    pub fn grant(&mut self, lease: u64, ttl_seconds: u64, now: Instant) {
        let ttl = Duration::from_secs(ttl_seconds.clamp(1, TTL_SECONDS_MAX));
        let deadline = now + ttl;
        self.leases.insert(
            lease,
            Lease {
                ttl,
                deadline,
                keys: HashSet::new(),
            },
        );
        self.deadlines.insert((deadline, lease));
    }

    /// False: there is no such lease.
    pub fn keep_alive(&mut self, lease: u64, now: Instant) -> bool {
        let Some(entry) = self.leases.get_mut(&lease) else {
            return false;
        };
        self.deadlines.remove(&(entry.deadline, lease));
        entry.deadline = now + entry.ttl;
        self.deadlines.insert((entry.deadline, lease));
        true
    }

    pub fn remove(&mut self, lease: u64) {
        if let Some(entry) = self.leases.remove(&lease) {
            self.deadlines.remove(&(entry.deadline, lease));
        }
    }

    pub fn attach(&mut self, lease: u64, key: &Bytes) {
        if let Some(entry) = self.leases.get_mut(&lease) {
            entry.keys.insert(key.clone());
        }
    }

    pub fn detach(&mut self, lease: u64, key: &Bytes) {
        if let Some(entry) = self.leases.get_mut(&lease) {
            entry.keys.remove(key);
        }
    }

    /// The keys of a lease, sorted.
    pub fn keys(&self, lease: u64) -> Vec<Bytes> {
        let mut keys: Vec<_> = self
            .leases
            .get(&lease)
            .into_iter()
            .flat_map(|entry| entry.keys.iter().cloned())
            .collect();
        keys.sort();
        keys
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Leases that have run out, at most `limit`.
    pub fn expired(&self, now: Instant, limit: usize) -> Vec<u64> {
        self.deadlines
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .take(limit)
            .map(|(_, lease)| *lease)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_follow_grant_keep_alive_and_removal() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut leases = Leases::default();
        leases.grant(1, 10, start);
        leases.grant(2, 5, start);
        assert_eq!(leases.next_deadline(), Some(after(5)));
        assert_eq!(leases.expired(after(4), 9), Vec::<u64>::new());
        assert!(leases.keep_alive(2, after(4)));
        assert_eq!(leases.expired(after(9), 9), [2]);
        assert_eq!(leases.expired(after(10), 9), [2, 1]);
        assert_eq!(leases.expired(after(10), 1), [2]);
        leases.remove(2);
        assert!(!leases.keep_alive(2, after(10)));
        assert_eq!(leases.next_deadline(), Some(after(10)));
    }

    #[test]
    fn keys_are_attached_to_one_lease() {
        let mut leases = Leases::default();
        leases.grant(1, 10, Instant::now());
        for key in ["b", "a", "c"] {
            leases.attach(1, &Bytes::from_static(key.as_bytes()));
        }
        leases.detach(1, &Bytes::from_static(b"c"));
        leases.attach(7, &Bytes::from_static(b"x"));
        assert_eq!(leases.keys(1), ["a", "b"]);
        assert!(leases.keys(7).is_empty());
    }
}
