//! A deduplicating, rate limited queue of keys: what client-go calls a work queue.
//!
//! Enter at [`WorkQueue::next`]. Invariants:
//! - A key waits at most once, however often it is added.
//! - A key is handed to one worker at a time: added while it is being worked on, it waits until
//!   the worker drops its [`Work`], and is then due again.
//! - A key added with a delay is due at the earliest of its delays.
//!
//! Deliberately absent: priorities between keys, metrics, persistence.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a key waits after each failure in a row: `base * 2^n`, at most `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    /// client-go's: 5 ms, doubled up to 1000 s.
    fn default() -> Self {
        Self {
            base: Duration::from_millis(5),
            max: Duration::from_secs(1000),
        }
    }
}

impl Backoff {
    /// The wait after `failure_count` earlier failures.
    pub fn delay(&self, failure_count: u32) -> Duration {
        self.base
            .checked_mul(1u32.checked_shl(failure_count).unwrap_or(u32::MAX))
            .map_or(self.max, |delay| delay.min(self.max))
    }
}

/// The queue; clones share it.
pub struct WorkQueue<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    backoff: Backoff,
}

struct State<K> {
    /// Due, in order of arrival; every key here is in `dirty` too.
    ready: VecDeque<K>,
    /// Keys that must be worked on: waiting in `ready`, or in `active` and added again.
    dirty: HashSet<K>,
    active: HashSet<K>,
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Key and due time of each entry of `delayed`, by its sequence number.
    delayed_keys: HashMap<u64, K>,
    /// The earliest pending due time of a key and its sequence number; later ones are dropped.
    delayed_by_key: HashMap<K, (Instant, u64)>,
    sequence: u64,
    failures: HashMap<K, u32>,
    closed: bool,
}

impl<K: Clone + Eq + Hash> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new(Backoff::default())
    }
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    pub fn new(backoff: Backoff) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    ready: VecDeque::new(),
                    dirty: HashSet::new(),
                    active: HashSet::new(),
                    delayed: BinaryHeap::new(),
                    delayed_keys: HashMap::new(),
                    delayed_by_key: HashMap::new(),
                    sequence: 0,
                    failures: HashMap::new(),
                    closed: false,
                }),
                changed: Notify::new(),
                backoff,
            }),
        }
    }

    /// Makes the key due now.
    pub fn add(&self, key: K) {
        self.shared.lock().add(key);
        self.shared.changed.notify_one();
    }

    /// Makes the key due after a delay, unless it is due earlier anyway.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.shared.lock().add_at(key, Instant::now() + delay);
        self.shared.changed.notify_one();
    }

    /// Makes the key due after its back-off, which grows with every call until [`WorkQueue::forget`].
    pub fn add_rate_limited(&self, key: K) {
        let mut state = self.shared.lock();
        let failure_count = state.failures.entry(key.clone()).or_default();
        let delay = self.shared.backoff.delay(*failure_count);
        *failure_count = failure_count.saturating_add(1);
        state.add_at(key, Instant::now() + delay);
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Resets the key's back-off; call it after a success.
    pub fn forget(&self, key: &K) {
        self.shared.lock().failures.remove(key);
    }

    /// Failures in a row so far.
    pub fn failure_count(&self, key: &K) -> u32 {
        self.shared.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Waits for a key that is due. `None` once the queue is closed.
    pub async fn next(&self) -> Option<Work<K>> {
        loop {
            let changed = self.shared.changed.notified();
            let due = {
                let mut state = self.shared.lock();
                if state.closed {
                    drop(state);
                    // Wake the next waiter too.
                    self.shared.changed.notify_one();
                    return None;
                }
                let due = state.promote(Instant::now());
                if let Some(key) = state.take() {
                    let more = !state.ready.is_empty();
                    drop(state);
                    if more {
                        self.shared.changed.notify_one();
                    }
                    return Some(Work {
                        key,
                        queue: self.shared.clone(),
                    });
                }
                due
            };
            match due {
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// Keys due now (not those delayed or being worked on).
    pub fn len(&self) -> usize {
        self.shared.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends every present and later [`WorkQueue::next`].
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_waiters();
        self.shared.changed.notify_one();
    }
}

/// A key in a worker's hands; dropping it says that the work is over.
pub struct Work<K: Clone + Eq + Hash> {
    key: K,
    queue: Arc<Shared<K>>,
}

impl<K: Clone + Eq + Hash> Work<K> {
    pub fn key(&self) -> &K {
        &self.key
    }
}

impl<K: Clone + Eq + Hash> std::ops::Deref for Work<K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.key
    }
}

impl<K: Clone + Eq + Hash> Drop for Work<K> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.active.remove(&self.key);
        if state.dirty.contains(&self.key) {
            state.ready.push_back(self.key.clone());
            drop(state);
            self.queue.changed.notify_one();
        }
    }
}

impl<K> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) {
        if !self.dirty.insert(key.clone()) || self.active.contains(&key) {
            return;
        }
        self.ready.push_back(key);
    }

    fn add_at(&mut self, key: K, due: Instant) {
        if let Some((earlier, sequence)) = self.delayed_by_key.get(&key) {
            if *earlier <= due {
                return;
            }
            self.delayed_keys.remove(sequence);
        }
        self.sequence += 1;
        self.delayed.push(Reverse((due, self.sequence)));
        self.delayed_keys.insert(self.sequence, key.clone());
        self.delayed_by_key.insert(key, (due, self.sequence));
    }

    /// Moves what is due to `ready`; answers when the next delayed key is due.
    fn promote(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((due, sequence))) = self.delayed.peek().copied() {
            if self.delayed_keys.contains_key(&sequence) && due > now {
                return Some(due);
            }
            self.delayed.pop();
            if let Some(key) = self.delayed_keys.remove(&sequence) {
                self.delayed_by_key.remove(&key);
                self.add(key);
            }
        }
        None
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.active.insert(key.clone());
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deduplicates_and_keeps_order() {
        let queue = WorkQueue::default();
        for key in ["a", "b", "a", "c", "b"] {
            queue.add(key);
        }
        let mut seen = Vec::new();
        while !queue.is_empty() {
            seen.push(*queue.next().await.unwrap().key());
        }
        assert_eq!(seen, ["a", "b", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_active_key_is_never_handed_out_twice() {
        let queue = WorkQueue::default();
        queue.add(1);
        let work = queue.next().await.unwrap();
        queue.add(1);
        assert!(
            tokio::time::timeout(Duration::from_secs(1), queue.next())
                .await
                .is_err()
        );
        drop(work);
        assert_eq!(*queue.next().await.unwrap().key(), 1);
        assert!(
            tokio::time::timeout(Duration::from_secs(1), queue.next())
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_wins() {
        let queue = WorkQueue::default();
        let start = Instant::now();
        queue.add_after("x", Duration::from_secs(10));
        queue.add_after("x", Duration::from_secs(2));
        queue.add_after("x", Duration::from_secs(5));
        drop(queue.next().await.unwrap());
        assert_eq!(start.elapsed().as_secs(), 2);
        assert!(
            tokio::time::timeout(Duration::from_secs(60), queue.next())
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn back_off_grows_until_forgotten() {
        let queue = WorkQueue::new(Backoff {
            base: Duration::from_secs(1),
            max: Duration::from_secs(3),
        });
        for (failure_count, expect) in [(0, 1), (1, 2), (2, 3), (3, 3)] {
            assert_eq!(queue.failure_count(&"x"), failure_count);
            let start = Instant::now();
            queue.add_rate_limited("x");
            drop(queue.next().await.unwrap());
            assert_eq!(start.elapsed().as_secs(), expect);
        }
        queue.forget(&"x");
        assert_eq!(queue.failure_count(&"x"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn close_ends_all_waiters() {
        let queue = WorkQueue::<u8>::default();
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await.is_none() })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.close();
        for waiter in waiters {
            assert!(waiter.await.unwrap());
        }
    }

    #[test]
    fn delays_are_capped() {
        let backoff = Backoff::default();
        for (failure_count, expect) in [
            (0, 5),
            (1, 10),
            (10, 5120),
            (40, 1_000_000),
            (u32::MAX, 1_000_000),
        ] {
            assert_eq!(
                backoff.delay(failure_count),
                Duration::from_millis(expect),
                "{failure_count}"
            );
        }
    }
}
