//! Watches: every change to a range, in order, without a gap, to readers of any speed.
//!
//! Enter at [`Watch::start`] and [`Hub::dispatch`].
//!
//! ```text
//!            next <= dispatched                    queue full
//!   start ──────────────────────> catch-up <──────────────────── synced
//!     │                        (reads the log,                     ^
//!     │                         waits for the reader)              │
//!     │                              │ next > dispatched           │
//!     └──────────────────────────────┴─────────────────────────────┘
//! ```
//!
//! A synced watch is handed each group of changes by the committer, which never waits: when a
//! watcher's queue is full, the watch leaves the hub, and a task reads on from the log, at the
//! watcher's pace, until it has caught up. So memory is bounded, and no event is lost.
//!
//! Invariant: a watch is in the hub only if everything up to `Hub::dispatched` has been put in its queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::disk::Reader;
use crate::embedded::Shared;
use crate::record::{Head, Position, Record};
use crate::transaction::Change;
use crate::{Event, KeyRange, KeyValue, Revision, StoreError, WatchResponse};

/// After a change that does not concern a watch, it is told of the new revision within this time.
const PROGRESS_DELAY: Duration = Duration::from_millis(250);
/// Bounds of one response read from the log.
const RESPONSE_EVENTS_MAX: usize = 256;
const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// The synced watches.
pub(crate) struct Hub {
    /// Watches of the same range match together: there are many watches, but few ranges.
    ranges: Vec<RangeWatches>,
    /// The newest revision handed out.
    dispatched: u64,
    progress_deadline: Option<Instant>,
    closed: bool,
}

struct RangeWatches {
    range: KeyRange,
    watches: Vec<Watch>,
}

/// The sending end of one watch.
pub(crate) struct Watch {
    /// The first revision that is still to be delivered.
    next: u64,
    /// The newest revision that the watcher was told of.
    told: u64,
    progress: bool,
    responses: mpsc::Sender<Result<WatchResponse, StoreError>>,
    runtime: Handle,
}

impl Watch {
    /// Must be called within a tokio runtime.
    pub fn new(
        next: u64,
        progress: bool,
        responses: mpsc::Sender<Result<WatchResponse, StoreError>>,
    ) -> Self {
        Self {
            next,
            told: 0,
            progress,
            responses,
            runtime: Handle::current(),
        }
    }

    /// Begins delivery.
    pub fn start(self, shared: &Arc<Shared>, range: KeyRange) {
        if let Some(watch) = shared.hub().register(&range, self) {
            watch.catch_up_in_background(shared, range);
        }
    }

    fn catch_up_in_background(self, shared: &Arc<Shared>, range: KeyRange) {
        let runtime = self.runtime.clone();
        runtime.spawn(self.catch_up(shared.clone(), range));
    }

    async fn catch_up(mut self, shared: Arc<Shared>, range: KeyRange) {
        let mut watch = Some(self.next);
        while let Some(next) = watch {
            let history = {
                let (shared, range) = (shared.clone(), range.clone());
                tokio::task::spawn_blocking(move || shared.history(&range, next)).await
            };
            let response = match history {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => {
                    let _ = self.responses.send(Err(error)).await;
                    return;
                }
                // The runtime is shutting down.
                Err(_) => return,
            };
            self.next = response.revision.0 + 1;
            if !response.events.is_empty() {
                self.told = response.revision.0;
                if self.responses.send(Ok(response)).await.is_err() {
                    return;
                }
            }
            match shared.hub().register(&range, self) {
                Some(unready) => {
                    watch = Some(unready.next);
                    self = unready;
                }
                None => return,
            }
        }
    }

    /// Hands over without waiting; gives the watch back if its queue is full, `Err` if nobody listens.
    fn offer(&mut self, response: WatchResponse) -> Result<bool, ()> {
        let revision = response.revision.0;
        match self.responses.try_send(Ok(response)) {
            Ok(()) => {
                self.told = revision;
                Ok(true)
            }
            Err(TrySendError::Full(_)) => Ok(false),
            Err(TrySendError::Closed(_)) => Err(()),
        }
    }
}

impl Hub {
    pub fn new(current: u64) -> Self {
        Self {
            ranges: Vec::new(),
            dispatched: current,
            progress_deadline: None,
            closed: false,
        }
    }

    /// Takes a watch in; gives it back if it must catch up first.
    fn register(&mut self, range: &KeyRange, mut watch: Watch) -> Option<Watch> {
        if self.closed {
            return None;
        }
        if watch.next <= self.dispatched {
            return Some(watch);
        }
        if watch.progress && watch.next == self.dispatched + 1 && watch.told < self.dispatched {
            // A full queue says as much already.
            let _ = watch.offer(WatchResponse {
                revision: Revision(self.dispatched),
                events: Vec::new(),
            });
        }
        match self
            .ranges
            .iter_mut()
            .find(|watches| watches.range == *range)
        {
            Some(same) => {
                same.watches.retain(|watch| !watch.responses.is_closed());
                same.watches.push(watch);
            }
            None => {
                self.ranges.retain(|other| {
                    other
                        .watches
                        .iter()
                        .any(|watch| !watch.responses.is_closed())
                });
                self.ranges.push(RangeWatches {
                    range: range.clone(),
                    watches: vec![watch],
                });
            }
        }
        None
    }

    /// Hands the changes of a group, durable by now, to the watches that they concern.
    pub fn dispatch(&mut self, shared: &Arc<Shared>, changes: &[Change], current: u64) {
        let Some(first) = changes.first() else { return };
        if current <= self.dispatched {
            return;
        }
        for RangeWatches { range, watches } in &mut self.ranges {
            let mut events = match events_in(shared, range, changes) {
                Ok(events) => events,
                Err(error) => {
                    for watch in watches.drain(..) {
                        let _ = watch.responses.try_send(Err(error.clone()));
                    }
                    continue;
                }
            };
            if events.is_empty() {
                continue;
            }
            let mut index = 0;
            while let Some(watch) = watches.get_mut(index) {
                // All but those that asked for a later revision get the same.
                let skipped = events.partition_point(|(revision, _)| *revision < watch.next);
                let is_last = index + 1 == watches.len();
                let watch = &mut watches[index];
                let events: Vec<Event> = if is_last && skipped == 0 {
                    std::mem::take(&mut events)
                        .into_iter()
                        .map(|(_, event)| event)
                        .collect()
                } else {
                    events[skipped..]
                        .iter()
                        .map(|(_, event)| event.clone())
                        .collect()
                };
                if events.is_empty() {
                    index += 1;
                    continue;
                }
                match watch.offer(WatchResponse {
                    revision: Revision(current),
                    events,
                }) {
                    Ok(true) => index += 1,
                    Ok(false) => {
                        let mut watch = watches.remove(index);
                        watch.next = watch.next.max(first.record.head.at.revision);
                        watch.catch_up_in_background(shared, range.clone());
                    }
                    Err(()) => {
                        watches.remove(index);
                    }
                }
            }
        }
        self.ranges.retain(|range| !range.watches.is_empty());
        self.dispatched = current;
        if self.progress_deadline.is_none() && self.watches().any(|watch| watch.progress) {
            self.progress_deadline = Some(Instant::now() + PROGRESS_DELAY);
        }
    }

    /// When [`Hub::announce_progress`] has something to do; `None` while nothing changes.
    pub fn progress_deadline(&self) -> Option<Instant> {
        self.progress_deadline
    }

    /// Tells watches that asked for it of revisions that did not concern them.
    pub fn announce_progress(&mut self, now: Instant) {
        if self.progress_deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.progress_deadline = None;
        let dispatched = self.dispatched;
        for watch in self.ranges.iter_mut().flat_map(|range| &mut range.watches) {
            if watch.progress && watch.told < dispatched && watch.next <= dispatched + 1 {
                // A full queue or a watcher that has gone is seen at the next event.
                let _ = watch.offer(WatchResponse {
                    revision: Revision(dispatched),
                    events: Vec::new(),
                });
            }
        }
    }

    /// Ends all watches.
    pub fn close(&mut self) {
        self.closed = true;
        self.ranges.clear();
    }

    fn watches(&self) -> impl Iterator<Item = &Watch> {
        self.ranges.iter().flat_map(|range| &range.watches)
    }
}

/// The changes to a range as events, with their revisions.
fn events_in(
    shared: &Shared,
    range: &KeyRange,
    changes: &[Change],
) -> Result<Vec<(u64, Event)>, StoreError> {
    let mut events = Vec::new();
    for Change {
        record,
        value,
        previous,
    } in changes
        .iter()
        .filter(|change| range.contains(&change.record.key))
    {
        let previous = match previous {
            Some(head) if !head.is_deletion() => {
                shared.disk.read()?.previous(&record.key, *head)?
            }
            _ => None,
        };
        events.push((
            record.head.at.revision,
            event(record, value.clone(), previous),
        ));
    }
    Ok(events)
}

fn event(record: &Record, value: Option<Bytes>, prev: Option<KeyValue>) -> Event {
    match value {
        Some(value) => Event::Put {
            kv: record.head.key_value(record.key.clone(), value),
            prev,
        },
        None => Event::Delete {
            key: record.key.clone(),
            mod_revision: Revision(record.head.at.revision),
            prev,
        },
    }
}

impl Reader<'_> {
    /// A replaced state, unless a compaction took it away.
    fn previous(&self, key: &Bytes, head: Head) -> Result<Option<KeyValue>, StoreError> {
        Ok(self
            .value(head.at)?
            .map(|value| head.key_value(key.clone(), value)))
    }
}

impl Shared {
    /// The next response for a watch that reads from the log: events from revision `from` on.
    fn history(&self, range: &KeyRange, from: u64) -> Result<WatchResponse, StoreError> {
        let current = self.index().current;
        let mut events = Vec::new();
        let mut bytes = 0;
        let mut through = current;
        let reader = self.disk.read()?;
        for record in reader.records(Position::first_of(from)) {
            let record = record?;
            let revision = record.head.at.revision;
            if revision > current {
                break;
            }
            // Only between two revisions: all events of one are in one response.
            let is_first = record.head.at.index == 0;
            if is_first && (events.len() >= RESPONSE_EVENTS_MAX || bytes >= RESPONSE_BYTES_MAX) {
                through = revision - 1;
                break;
            }
            if !range.contains(&record.key) {
                continue;
            }
            let value = if record.head.is_deletion() {
                None
            } else {
                reader.value(record.head.at)?
            };
            if value.is_none() && !record.head.is_deletion() {
                self.check_readable(from)?;
                return Err(self
                    .disk
                    .damaged(format!("revision {revision} has no value")));
            }
            let previous = match record.previous {
                Position::NONE => None,
                at => reader.record(at)?.map(|previous| previous.head),
            };
            let previous = match previous {
                Some(head) if !head.is_deletion() => reader.previous(&record.key, head)?,
                _ => None,
            };
            bytes += record.key.len() + value.as_ref().map_or(0, Bytes::len);
            events.push(event(&record, value, previous));
        }
        // Had a compaction come meanwhile, records may have been missing.
        self.check_readable(from)?;
        Ok(WatchResponse {
            revision: Revision(through),
            events,
        })
    }

    fn check_readable(&self, from: u64) -> Result<(), StoreError> {
        let oldest = self.index().compacted;
        if from < oldest {
            return Err(StoreError::Compacted {
                requested: Revision(from),
                oldest: Revision(oldest),
            });
        }
        Ok(())
    }
}
