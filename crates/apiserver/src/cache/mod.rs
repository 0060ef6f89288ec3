//! The watch cache: every object in memory, fed by one watch of the store.
//!
//! Enter at [`Caches::start`]; read with [`Cache::list`] and [`Cache::changes_after`].
//!
//! ```text
//! store watch (all keys) --> feeder --> Cache per storage prefix: items + ring of changes
//!                                   \-> revision: all caches have applied everything up to here
//! ```
//! Invariants:
//! - The feeder applies revisions in order, to the caches first and then to `revision`.
//! - The ring of a cache holds every change after `ring_floor`; older ones are read from the store.
//! - Nobody holds a cache's lock across an await.
//!
//! Deliberately absent: decoded objects (items are bytes and a head).

mod feeder;
mod item;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use api::kind::Strategy;
use bytes::Bytes;
use store::Store;
use tokio::sync::watch;

pub use feeder::start;
pub use item::{Head, Item, with_resource_version};

use crate::status::{ApiError, ApiResult};

/// Everything is stored below this, as upstream does.
pub const ROOT: &str = "/registry/";

/// Changes kept a cache for watches that start late or read slowly; past this they are read from the store.
const RING_CHANGES_MAX: usize = 4096;
const RING_BYTES_MAX: usize = 4 << 20;

/// How long a read waits for the cache to reach a revision.
const FRESH_TIMEOUT: Duration = Duration::from_secs(3);

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    pub revision: u64,
    pub deleted: bool,
    /// The new version; for a deletion the last one, at the deletion's revision.
    pub item: Arc<Item>,
    pub previous: Option<Arc<Item>>,
}

/// The objects of one storage prefix.
pub struct Cache {
    /// `/registry/<prefix>/`.
    pub store_prefix: String,
    /// Of every kind that is stored here: Event has two.
    strategies: Vec<Arc<dyn Strategy>>,
    state: RwLock<State>,
    /// The revision of the newest change here.
    changed: watch::Sender<u64>,
    /// Heads of objects whose write is under way, so that the feeder need not decode them again.
    pending: Mutex<HashMap<Box<str>, Vec<(Bytes, Arc<Head>)>>>,
}

#[derive(Default)]
struct State {
    /// By `namespace/name` or `name`.
    items: BTreeMap<Box<str>, Arc<Item>>,
    /// The newest revision applied here.
    revision: u64,
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    /// Changes up to this revision are no longer in the ring.
    ring_floor: u64,
}

/// What a list answers.
pub struct Snapshot {
    /// The items are those of this revision.
    pub revision: u64,
    pub items: Vec<Arc<Item>>,
}

/// Changes after a revision.
pub enum Changes {
    /// In order; the newest may be older than what the caches have reached together.
    Ready(Vec<Arc<Change>>),
    /// The ring no longer reaches back so far.
    Behind,
}

impl Cache {
    fn new(prefix: &str, strategies: Vec<Arc<dyn Strategy>>) -> Self {
        Self {
            store_prefix: format!("{ROOT}{prefix}/"),
            strategies,
            state: RwLock::default(),
            changed: watch::Sender::new(0),
            pending: Mutex::default(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn store_key(&self, key: &str) -> Bytes {
        let mut full = String::with_capacity(self.store_prefix.len() + key.len());
        full.push_str(&self.store_prefix);
        full.push_str(key);
        full.into()
    }

    pub fn get(&self, key: &str) -> Option<Arc<Item>> {
        self.read().items.get(key).cloned()
    }

    /// The revision of the newest change here since the start; 0: none yet.
    pub fn version(&self) -> u64 {
        *self.changed.borrow()
    }

    pub fn len(&self) -> usize {
        self.read().items.len()
    }

    /// Items whose key begins with `prefix` (`""`: all, `"ns/"`: one namespace), after `after`, that
    /// `keep` wants; at most `limit` of them (0: all) and one more, which tells that there are more.
    pub fn list(
        &self,
        reached: u64,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        keep: impl Fn(&Head) -> bool,
    ) -> Snapshot {
        let state = self.read();
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let items = state
            .items
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, item)| item)
            .filter(|item| keep(&item.head))
            .take(if limit == 0 { usize::MAX } else { limit + 1 })
            .cloned()
            .collect();
        Snapshot {
            revision: reached.max(state.revision),
            items,
        }
    }

    pub fn count(&self, prefix: &str) -> usize {
        let state = self.read();
        if prefix.is_empty() {
            return state.items.len();
        }
        state
            .items
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .count()
    }

    pub fn changes_after(&self, revision: u64) -> Changes {
        let state = self.read();
        if revision < state.ring_floor {
            return Changes::Behind;
        }
        let first = state
            .ring
            .partition_point(|change| change.revision <= revision);
        Changes::Ready(state.ring.range(first..).cloned().collect())
    }

    /// Wakes whenever something changed here.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Announces a write: the feeder will meet this value and need not decode it.
    pub fn announce(&self, key: &str, value: Bytes, head: Arc<Head>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        // Entries whose writes were superseded unseen are not worth tracking one by one.
        if pending.len() > 10_000 {
            pending.clear();
        }
        pending.entry(key.into()).or_default().push((value, head));
    }

    /// Takes an announcement back: the write did not happen.
    pub fn retract(&self, key: &str, value: &Bytes) {
        self.take_pending(key, value);
    }

    fn take_pending(&self, key: &str, value: &Bytes) -> Option<Arc<Head>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = pending.get_mut(key)?;
        let index = entries.iter().position(|(own, _)| own == value)?;
        let (_, head) = entries.swap_remove(index);
        if entries.is_empty() {
            pending.remove(key);
        }
        Some(head)
    }

    /// Makes an item of a stored value.
    pub fn item(&self, key: &str, value: &Bytes, revision: u64) -> Result<Item, String> {
        let head = match self.take_pending(key, value) {
            Some(head) => head,
            None => Arc::new(self.head(value)?),
        };
        Ok(Item {
            json: with_resource_version(value, revision),
            revision,
            head,
        })
    }

    /// The head of a stored value, with the selectable fields of every kind that is stored here.
    pub fn head(&self, value: &[u8]) -> Result<Head, String> {
        let mut head: Option<Head> = None;
        for strategy in &self.strategies {
            let decoded = strategy
                .decode(value, false)
                .map_err(|error| error.to_string())?;
            let own = Head::of(&**strategy, &*decoded.object);
            head = Some(match head {
                None => own,
                Some(first) => first.with_fields_of(own),
            });
        }
        head.ok_or_else(|| "no kind is stored here".into())
    }

    fn apply_put(&self, key: &str, item: Item) {
        let item = Arc::new(item);
        let mut state = self.write();
        let previous = state.items.insert(key.into(), item.clone());
        state.push(Change {
            revision: item.revision,
            deleted: false,
            item,
            previous,
        });
    }

    fn apply_delete(&self, key: &str, revision: u64) {
        let mut state = self.write();
        if let Some(previous) = state.items.remove(key) {
            let item = Arc::new(previous.at_revision(revision));
            state.push(Change {
                revision,
                deleted: true,
                item,
                previous: Some(previous),
            });
        }
    }
}

impl State {
    fn push(&mut self, change: Change) {
        self.revision = change.revision;
        self.ring_bytes += change.item.json.len();
        self.ring.push_back(Arc::new(change));
        while self.ring.len() > RING_CHANGES_MAX
            || (self.ring_bytes > RING_BYTES_MAX && self.ring.len() > 1)
        {
            if let Some(oldest) = self.ring.pop_front() {
                self.ring_bytes -= oldest.item.json.len();
                self.ring_floor = oldest.revision;
            }
        }
    }
}

/// All caches, and how far they are.
pub struct Caches {
    by_prefix: HashMap<String, Arc<Cache>>,
    store: Arc<dyn Store>,
    /// Every cache has applied everything up to this revision.
    reached: watch::Sender<u64>,
}

impl Caches {
    pub fn by_prefix(&self, prefix: &str) -> Option<&Arc<Cache>> {
        self.by_prefix.get(prefix)
    }

    pub fn reached(&self) -> u64 {
        *self.reached.borrow()
    }

    /// Waits until what was committed before this call is in the caches; answers that revision.
    pub async fn fresh(&self) -> ApiResult<u64> {
        let current = self.store.revisions().await?.current.0;
        self.wait_for(current).await
    }

    /// Waits until the caches have reached a revision; answers how far they are then.
    pub async fn wait_for(&self, revision: u64) -> ApiResult<u64> {
        let reached = self.reached();
        if reached >= revision {
            return Ok(reached);
        }
        let mut receiver = self.reached.subscribe();
        match tokio::time::timeout(
            FRESH_TIMEOUT,
            receiver.wait_for(|reached| *reached >= revision),
        )
        .await
        {
            Ok(Ok(reached)) => Ok(*reached),
            Ok(Err(_)) => Err(ApiError::service_unavailable("the server is shutting down")),
            Err(_) => Err(ApiError::too_large_resource_version(
                revision,
                self.reached(),
            )),
        }
    }
}
