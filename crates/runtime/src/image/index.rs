//! The store's metadata: which images are here, under which names, made of which layers.
//!
//! One small JSON file, `index.json`, written anew for every change (write, fsync, rename, fsync of
//! the directory) under an exclusive `flock` on `store.lock`, so that several processes (a server
//! and command-line tools) share one store. Readers take no lock: they look whether the file
//! changed since they read it. What the index does not name does not exist: leftovers of a crash
//! are directories without an entry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::store::Failure;

const INDEX_FILE: &str = "index.json";
const LOCK_FILE: &str = "store.lock";
/// Raised when older programs would misread the file.
const INDEX_VERSION: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Index {
    pub version: u32,
    /// By image id: the digest of the configuration.
    pub images: BTreeMap<Digest, ImageRecord>,
    /// By chain id: a layer together with all that lie below it.
    pub layers: BTreeMap<Digest, LayerRecord>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// `domain/path:tag`.
    pub tags: BTreeSet<String>,
    /// `domain/path@digest`.
    pub digests: BTreeSet<String>,
    /// Chain ids, lowest layer first.
    pub chain: Vec<Digest>,
    /// The configuration's `User`.
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub pinned: bool,
    /// Removed while containers use it: unseen, and gone with the last of them.
    #[serde(default)]
    pub removed: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// Name below `layers/`. Short, since overlayfs takes 4096 bytes of options on older kernels.
    pub directory: String,
    pub diff_id: Digest,
    pub disk_bytes: u64,
    pub inode_count: u64,
}

impl Default for Index {
    fn default() -> Self {
        Index {
            version: INDEX_VERSION,
            images: BTreeMap::new(),
            layers: BTreeMap::new(),
        }
    }
}

impl Index {
    /// By id (`sha256:…` or its hex part), tag or digest reference, as normalised.
    pub fn find(&self, wanted: &Wanted) -> Option<(&Digest, &ImageRecord)> {
        let mut visible = self.images.iter().filter(|(_, record)| !record.removed);
        match wanted {
            Wanted::Id(id) => visible.find(|(key, _)| *key == id),
            Wanted::Tag(tag) => visible.find(|(_, record)| record.tags.contains(tag)),
            Wanted::Digest(digest) => visible.find(|(_, record)| record.digests.contains(digest)),
        }
    }

    /// Takes out the layers that no image needs, and answers them.
    pub fn take_unreferenced_layers(&mut self) -> Vec<LayerRecord> {
        let used: BTreeSet<&Digest> = self
            .images
            .values()
            .flat_map(|record| &record.chain)
            .collect();
        let unused: Vec<Digest> = self
            .layers
            .keys()
            .filter(|id| !used.contains(id))
            .cloned()
            .collect();
        unused
            .iter()
            .filter_map(|id| self.layers.remove(id))
            .collect()
    }

    pub fn image_disk_bytes(&self, record: &ImageRecord) -> u64 {
        record
            .chain
            .iter()
            .filter_map(|id| self.layers.get(id))
            .map(|l| l.disk_bytes)
            .sum()
    }
}

/// What a caller's image string asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Id(Digest),
    Tag(String),
    Digest(String),
}

/// The index file with what was last read of it.
pub(super) struct IndexFile {
    root: PathBuf,
    cached: Mutex<Option<(FileIdentity, Arc<Index>)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity {
    inode: u64,
    mtime_seconds: i64,
    mtime_nanos: i64,
    size_bytes: u64,
}

/// Held while the index is read, changed and written.
pub(super) struct IndexLock<'a> {
    file: &'a IndexFile,
    /// Closing it gives the lock back.
    _lock: File,
}

impl IndexFile {
    pub fn new(root: &Path) -> IndexFile {
        IndexFile {
            root: root.to_owned(),
            cached: Mutex::new(None),
        }
    }

    /// Waits for other processes and threads to finish their change.
    pub fn lock(&self) -> Result<IndexLock<'_>, Failure> {
        let path = self.root.join(LOCK_FILE);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Failure::io("opening", &path, e))?;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Failure::io("locking", &path, e.into())),
            }
        }
        Ok(IndexLock {
            file: self,
            _lock: lock,
        })
    }

    /// The index as it is now.
    pub fn read(&self) -> Result<Arc<Index>, Failure> {
        let path = self.root.join(INDEX_FILE);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Arc::default()),
            Err(e) => return Err(Failure::io("reading", &path, e)),
        };
        let identity = FileIdentity::of(&metadata);
        if let Some((known, index)) = cached.as_ref()
            && *known == identity
        {
            return Ok(Arc::clone(index));
        }
        let bytes = std::fs::read(&path).map_err(|e| Failure::io("reading", &path, e))?;
        let index = Arc::new(parse(&bytes, &path)?);
        // If it was replaced in between, the identity is older than the content: read again next time.
        *cached = Some((identity, Arc::clone(&index)));
        Ok(index)
    }
}

impl IndexLock<'_> {
    /// A copy to change.
    pub fn read(&self) -> Result<Index, Failure> {
        Ok(self.file.read()?.as_ref().clone())
    }

    /// On disk when this returns.
    pub fn write(&self, index: &Index) -> Result<(), Failure> {
        let path = self.file.root.join(INDEX_FILE);
        let bytes = serde_json::to_vec(index)
            .map_err(|e| Failure::Internal(format!("encoding {}: {e}", path.display())))?;
        write_durably(&path, &bytes)
    }
}

impl FileIdentity {
    fn of(metadata: &std::fs::Metadata) -> FileIdentity {
        FileIdentity {
            inode: metadata.ino(),
            mtime_seconds: metadata.mtime(),
            mtime_nanos: metadata.mtime_nsec(),
            size_bytes: metadata.len(),
        }
    }
}

fn parse(bytes: &[u8], path: &Path) -> Result<Index, Failure> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let damaged = |e: serde_json::Error| {
        Failure::Internal(format!(
            "image store index {} is damaged: {e}; remove the directory {} to start with an empty store",
            path.display(),
            path.parent().unwrap_or(path).display()
        ))
    };
    let Version { version } = serde_json::from_slice(bytes).map_err(damaged)?;
    if version > INDEX_VERSION {
        return Err(Failure::Internal(format!(
            "image store index {} has version {version}, and this program knows up to {INDEX_VERSION}: it was written by a newer llmagentos, use that",
            path.display()
        )));
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

/// Replaces a file so that a crash leaves the old or the new content, never less.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let staged = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&staged)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&staged, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(&staged);
        Failure::io("writing", path, e)
    })
}
