//! The data directory: lock, format number, and the fjall database in it.
//!
//! Enter at [`Disk::open`]. `docs/store-format.md` says what lies where.
//!
//! Invariants:
//! - one process at a time has a directory open (`lock`, flock);
//! - a database that was never completely made is made anew; one that was is never deleted;
//! - fjall refuses every write after one that failed. [`Disk::reopen`] gives it a fresh start, and
//!   the committer then looks which of the two it was: written, or not.
//!
//! Deliberately absent: what the records mean (`record`), and any decision about transactions.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};

use rustix::fs::FallocateFlags;

use crate::StoreError;
use crate::record::{Position, Record};

/// The format that this program writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;
const FORMAT_PREFIX: &str = "llmagentos store format ";

/// Blocks of tables kept in memory. Values of objects are cached above us, in the API server.
const CACHE_BYTES: u64 = 4 << 20;
/// fjall's least. The sum of journals that may wait for their memtables to be flushed.
const JOURNALS_BYTES: u64 = 64 << 20;
/// Memtables are what an idle store keeps in memory, so they are small.
const LOG_MEMTABLE_BYTES: u64 = 4 << 20;
const VALUES_MEMTABLE_BYTES: u64 = 16 << 20;
const META_MEMTABLE_BYTES: u64 = 1 << 20;
/// An idle store writes its memtables out when they hold this much together.
const WRITE_OUT_BYTES: u64 = 2 << 20;
/// Values from here on lie in blob files, and are not rewritten when tables are merged.
const SEPARATION_BYTES: u32 = 512;
const BLOB_FILE_BYTES: u64 = 32 << 20;
/// With more than one, fjall's first worker spins while another merges tables: it puts the order to
/// merge back into its own queue, over and over.
const WORKER_THREADS: usize = 1;
const OPEN_FILES_MAX: usize = 128;
/// Size at which fjall goes on to the next journal.
const JOURNAL_BYTES: u64 = 64 << 20;

/// Space that is left alone, so that fjall can always finish what it began: 1% of the file
/// system, within these bounds.
const RESERVE_BYTES: std::ops::RangeInclusive<u64> = (1 << 20)..=(64 << 20);

/// An open database. Handles are cheap to clone, but the directory stays open while one lives.
pub(crate) struct Tables {
    database: Database,
    /// [`Position`] -> [`Record`].
    log: Keyspace,
    /// [`Position`] of a put -> value; large values in blob files.
    values: Keyspace,
    /// A few named numbers, and leases.
    meta: Keyspace,
    journal: Journal,
}

/// The number of the journal that fjall writes to, to notice the next one.
struct Journal {
    directory: PathBuf,
    number: AtomicU64,
}

/// One atomic set of changes to the tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    pub put_log: Vec<(Position, Bytes)>,
    pub put_values: Vec<(Position, Bytes)>,
    pub remove: Vec<Position>,
    pub put_meta: Vec<(Bytes, u64)>,
    pub remove_meta: Vec<Bytes>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.put_log.is_empty()
            && self.remove.is_empty()
            && self.put_meta.is_empty()
            && self.remove_meta.is_empty()
    }
}

pub(crate) struct Disk {
    directory: PathBuf,
    /// `None` after [`Disk::close`], and while a reopening has failed.
    tables: RwLock<Option<Tables>>,
    lock: RwLock<Option<File>>,
}

/// Read access; holds off a reopening, so keep it for one operation only.
pub(crate) struct Reader<'a> {
    disk: &'a Disk,
    guard: RwLockReadGuard<'a, Option<Tables>>,
}

impl Disk {
    /// Opens or makes a data directory.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let io = |error: io::Error| io_error(directory, &error);
        fs::create_dir_all(directory).map_err(io)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("lock"))
            .map_err(io)?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => StoreError::InUse {
                path: directory.display().to_string(),
            },
            fs::TryLockError::Error(error) => io(error),
        })?;
        let format_known = check_format(directory)?;
        let tables = if format_known {
            let database = directory.join("db");
            if !database.try_exists().map_err(io)? {
                return Err(damaged(directory, "the directory db is missing".into()));
            }
            remove_if_there(&directory.join("creating")).map_err(io)?;
            Tables::open(&database)
        } else {
            create(directory)
        };
        let tables = tables.map_err(|error| fjall_error(directory, error))?;
        Ok(Self {
            directory: directory.to_owned(),
            tables: RwLock::new(Some(tables)),
            lock: RwLock::new(Some(lock)),
        })
    }

    pub fn read(&self) -> Result<Reader<'_>, StoreError> {
        let guard = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            drop(guard);
            return Err(self.not_open());
        }
        Ok(Reader { disk: self, guard })
    }

    /// Writes a batch as a whole, and returns when it is durable.
    ///
    /// After an error it is unknown whether the batch was written: call [`Disk::reopen`] and look.
    pub fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let reader = self.read()?;
        let tables = reader.tables();
        tables.journal.allocate_next();
        let mut writes = tables
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        for (position, record) in &batch.put_log {
            writes.insert(&tables.log, position.encode(), record.clone());
        }
        for (position, value) in &batch.put_values {
            writes.insert(&tables.values, position.encode(), value.clone());
        }
        for position in &batch.remove {
            writes.remove(&tables.log, position.encode());
            writes.remove(&tables.values, position.encode());
        }
        for (key, number) in &batch.put_meta {
            writes.insert(&tables.meta, key.clone(), number.to_be_bytes());
        }
        for key in &batch.remove_meta {
            writes.remove(&tables.meta, key.clone());
        }
        writes
            .commit()
            .map_err(|error| fjall_error(&self.directory, error))
    }

    /// Has fjall write its memtables out in the background, if there is much in them. Whatever keeps
    /// it from that is no failure: they are written when they are full.
    pub fn write_out(&self) {
        let Ok(reader) = self.read() else { return };
        let tables = reader.tables();
        let bytes = tables.database.write_buffer_size();
        if bytes < WRITE_OUT_BYTES || self.check_space(2 * bytes).is_err() {
            return;
        }
        for keyspace in [&tables.log, &tables.values, &tables.meta] {
            if let Err(error) = keyspace.rotate_memtable() {
                tracing::debug!(%error, "a memtable was not written out");
            }
        }
    }

    /// The cause to report for a write that failed: a full disk, if it is full now.
    pub fn cause_of(&self, error: StoreError) -> StoreError {
        match (error, self.check_space(0)) {
            (StoreError::Io { .. }, Err(full @ StoreError::DiskFull { .. })) => full,
            (error, _) => error,
        }
    }

    /// Whether `bytes` more may be written; [`StoreError::DiskFull`] before anything is.
    pub fn check_space(&self, bytes: u64) -> Result<(), StoreError> {
        let stat = rustix::fs::statvfs(&self.directory)
            .map_err(|error| io_error(&self.directory, &error.into()))?;
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let reserve = (total / 100).clamp(*RESERVE_BYTES.start(), *RESERVE_BYTES.end());
        if free < reserve.saturating_add(bytes) {
            return Err(self.disk_full());
        }
        Ok(())
    }

    /// Opens the database afresh after a failed write.
    pub fn reopen(&self) -> Result<(), StoreError> {
        let mut guard = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if self
            .lock
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
        {
            return Err(StoreError::Closed);
        }
        // Dropped first: fjall locks its directory too.
        drop(guard.take());
        *guard = Some(
            Tables::open(&self.directory.join("db"))
                .map_err(|error| fjall_error(&self.directory, error))?,
        );
        Ok(())
    }

    /// Whether a write can be tried, or a [`Disk::reopen`] must come first.
    pub fn is_open(&self) -> bool {
        self.tables
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// Lets go of the directory; everything afterwards answers [`StoreError::Closed`].
    pub fn close(&self) {
        let mut guard = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        drop(guard.take());
        drop(
            self.lock
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    pub fn damaged(&self, detail: String) -> StoreError {
        damaged(&self.directory, detail)
    }

    fn disk_full(&self) -> StoreError {
        StoreError::DiskFull {
            path: self.directory.display().to_string(),
        }
    }

    fn not_open(&self) -> StoreError {
        if self
            .lock
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
        {
            return StoreError::Closed;
        }
        match self.check_space(0) {
            Err(error) => error,
            Ok(()) => StoreError::Io {
                path: self.directory.display().to_string(),
                detail: "the database could not be opened again after a failed write".into(),
            },
        }
    }
}

impl Reader<'_> {
    /// One record of the log.
    pub fn record(&self, at: Position) -> Result<Option<Record>, StoreError> {
        let found = self
            .tables()
            .log
            .get(at.encode())
            .map_err(|error| self.error(error))?;
        found
            .map(|bytes| self.decode(at, &bytes.into()))
            .transpose()
    }

    /// The value that a put wrote.
    pub fn value(&self, at: Position) -> Result<Option<Bytes>, StoreError> {
        let found = self
            .tables()
            .values
            .get(at.encode())
            .map_err(|error| self.error(error))?;
        Ok(found.map(Bytes::from))
    }

    /// Records from a position on, in order.
    pub fn records(&self, from: Position) -> impl Iterator<Item = Result<Record, StoreError>> {
        self.tables().log.range(from.encode()..).map(|guard| {
            let (key, bytes) = guard.into_inner().map_err(|error| self.error(error))?;
            let at = Position::decode(&key).ok_or_else(|| {
                self.disk
                    .damaged(format!("log entry with a key of {} bytes", key.len()))
            })?;
            self.decode(at, &bytes.into())
        })
    }

    /// Where values lie, without reading them.
    pub fn value_positions(&self) -> impl Iterator<Item = Result<Position, StoreError>> {
        self.tables().values.iter().map(|guard| {
            let key = guard.key().map_err(|error| self.error(error))?;
            Position::decode(&key).ok_or_else(|| {
                self.disk
                    .damaged(format!("value with a key of {} bytes", key.len()))
            })
        })
    }

    /// The newest position in the log.
    pub fn last_position(&self) -> Result<Position, StoreError> {
        let Some(guard) = self.tables().log.last_key_value() else {
            return Ok(Position::NONE);
        };
        let key = guard.key().map_err(|error| self.error(error))?;
        Position::decode(&key).ok_or_else(|| {
            self.disk
                .damaged(format!("log entry with a key of {} bytes", key.len()))
        })
    }

    pub fn meta(&self, key: &[u8]) -> Result<Option<u64>, StoreError> {
        let found = self
            .tables()
            .meta
            .get(key)
            .map_err(|error| self.error(error))?;
        found.map(|bytes| self.number(key, &bytes)).transpose()
    }

    /// Numbers whose keys have a prefix, with what follows the prefix.
    pub fn meta_with_prefix(&self, prefix: &[u8]) -> Result<Vec<(Bytes, u64)>, StoreError> {
        let entries = self.tables().meta.prefix(prefix).map(|guard| {
            let (key, bytes) = guard.into_inner().map_err(|error| self.error(error))?;
            let number = self.number(&key, &bytes)?;
            Ok((Bytes::from(key).slice(prefix.len()..), number))
        });
        entries.collect()
    }

    fn number(&self, key: &[u8], bytes: &[u8]) -> Result<u64, StoreError> {
        let bytes = bytes.try_into().map_err(|_| {
            self.disk.damaged(format!(
                "meta entry {} has {} bytes",
                key.escape_ascii(),
                bytes.len()
            ))
        })?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn decode(&self, at: Position, bytes: &Bytes) -> Result<Record, StoreError> {
        Record::decode(at, bytes).ok_or_else(|| {
            self.disk
                .damaged(format!("revision {} holds no valid record", at.revision))
        })
    }

    fn tables(&self) -> &Tables {
        self.guard
            .as_ref()
            .expect("a reader is only made of an open database")
    }

    fn error(&self, error: fjall::Error) -> StoreError {
        fjall_error(&self.disk.directory, error)
    }
}

impl Tables {
    fn open(path: &Path) -> Result<Self, fjall::Error> {
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNALS_BYTES)
            .max_cached_files(Some(OPEN_FILES_MAX))
            .worker_threads(WORKER_THREADS)
            .journal_compression(fjall::CompressionType::None)
            .manual_journal_persist(true)
            .open()?;
        let options = |memtable_bytes| {
            KeyspaceCreateOptions::default()
                .max_memtable_size(memtable_bytes)
                .manual_journal_persist(true)
        };
        let log = database.keyspace("log", || options(LOG_MEMTABLE_BYTES))?;
        let values = database.keyspace("values", || {
            options(VALUES_MEMTABLE_BYTES).with_kv_separation(Some(
                KvSeparationOptions::default()
                    .separation_threshold(SEPARATION_BYTES)
                    .file_target_size(BLOB_FILE_BYTES)
                    .compression(fjall::CompressionType::Lz4),
            ))
        })?;
        let meta = database.keyspace("meta", || options(META_MEMTABLE_BYTES))?;
        let journal = Journal::newest(path)?;
        Ok(Self {
            database,
            log,
            values,
            meta,
            journal,
        })
    }
}

impl Journal {
    fn newest(directory: &Path) -> io::Result<Self> {
        let mut newest = 0;
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_suffix(".jnl")?.parse().ok());
            newest = newest.max(number.unwrap_or(0));
        }
        let journal = Self {
            directory: directory.to_owned(),
            number: AtomicU64::new(newest),
        };
        journal.allocate(newest);
        Ok(journal)
    }

    /// Gives fjall's next journal its blocks, if there is one by now.
    fn allocate_next(&self) {
        let next = self.number.load(Ordering::Relaxed) + 1;
        if self.allocate(next) {
            self.number.store(next, Ordering::Relaxed);
        }
    }

    /// fjall makes journals sparse, and then every fsync must allocate blocks, which on ext4 takes
    /// several times as long. Blocks that are there already keep what they hold.
    fn allocate(&self, number: u64) -> bool {
        let path = self.directory.join(format!("{number}.jnl"));
        let Ok(file) = File::options().write(true).open(path) else {
            return false;
        };
        if let Ok(stat) = rustix::fs::fstatvfs(&file) {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            // On a small disk the blocks may be needed elsewhere first.
            if free / 4 > JOURNAL_BYTES {
                // Not every file system can; then it is slower, and nothing else. The size stays:
                // a journal that was recovered is appended to.
                let _ = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, JOURNAL_BYTES);
            }
        }
        true
    }
}

/// Makes an empty database. `format` is written last: a directory with `creating` and without
/// `format` holds nothing that was acknowledged, and is made anew.
fn create(directory: &Path) -> Result<Tables, fjall::Error> {
    let (creating, database) = (directory.join("creating"), directory.join("db"));
    if creating.try_exists()? {
        match fs::remove_dir_all(&database) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    } else if !database.try_exists()? {
        File::create(&creating)?;
        File::open(directory)?.sync_all()?;
    }
    let tables = Tables::open(&database)?;
    tables.database.persist(PersistMode::SyncAll)?;
    write_format(directory)?;
    remove_if_there(&creating)?;
    Ok(tables)
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether the directory says its format; an error if that is not ours to read.
fn check_format(directory: &Path) -> Result<bool, StoreError> {
    let text = match fs::read_to_string(directory.join("format")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io_error(directory, &error)),
    };
    let number = text
        .strip_prefix(FORMAT_PREFIX)
        .and_then(|rest| rest.trim_end().parse::<u32>().ok());
    match number {
        Some(FORMAT) => Ok(true),
        Some(found) if found > FORMAT => Err(StoreError::NewerFormat {
            path: directory.display().to_string(),
            found,
            supported: FORMAT,
        }),
        _ => Err(damaged(
            directory,
            format!("the file format reads {text:?}"),
        )),
    }
}

fn write_format(directory: &Path) -> io::Result<()> {
    let unfinished = directory.join("format.new");
    let mut file = File::create(&unfinished)?;
    writeln!(file, "{FORMAT_PREFIX}{FORMAT}")?;
    file.sync_all()?;
    fs::rename(&unfinished, directory.join("format"))?;
    File::open(directory)?.sync_all()
}

fn damaged(directory: &Path, detail: String) -> StoreError {
    StoreError::Damaged {
        path: directory.display().to_string(),
        detail,
    }
}

fn io_error(directory: &Path, error: &io::Error) -> StoreError {
    let path = directory.display().to_string();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull { path },
        _ => StoreError::Io {
            path,
            detail: error.to_string(),
        },
    }
}

fn fjall_error(directory: &Path, error: fjall::Error) -> StoreError {
    let path = directory.display().to_string();
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            io_error(directory, &error)
        }
        fjall::Error::Locked => StoreError::InUse { path },
        fjall::Error::Poisoned => StoreError::Io {
            path,
            detail: "the database stopped after a failed write in the background".into(),
        },
        fjall::Error::JournalRecovery(_)
        | fjall::Error::InvalidVersion(_)
        | fjall::Error::Decompress(_)
        | fjall::Error::InvalidTrailer
        | fjall::Error::InvalidTag(_)
        | fjall::Error::Unrecoverable
        | fjall::Error::Storage(_) => StoreError::Damaged {
            path,
            detail: error.to_string(),
        },
        _ => StoreError::Io {
            path,
            detail: error.to_string(),
        },
    }
}
