//! The image store on disk.
//!
//! Enter at [`ImageStore::open`]; one store may be open in several processes at once. Layout:
//! ```text
//! index.json     what exists (see `index`)         store.lock   flock around its changes
//! layers/ID/     unpacked layers, for overlayfs    configs/HEX  image configurations, verbatim
//! blobs/         downloads until their image is complete, and parts of interrupted ones
//! holds/HEX/NAME a container NAME uses image HEX   empty/       lower directory of an image without layers
//! tmp/SESSION/   a process's unfinished work, its own while it holds the flock on tmp/SESSION.lock
//! ```
//! Invariants: a layer or configuration is complete and on disk before the index names it, and the
//! index stops naming it before it is deleted. Layers are shared by chain id (a layer and all below
//! it); one is deleted when no image in the index needs it. `layers` and above are mode 0700: images
//! hold setuid programs and device nodes that are nobody's business outside containers.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::digest::Digest;
use super::index::{ImageRecord, Index, IndexFile, LayerRecord, Wanted, write_durably};
use super::reference::Reference;
use super::remove_tree::remove_tree;
use super::spec::ImageConfig;
use super::unpack::{self, Limits, UnpackError, Usage};
use crate::image_roots::{self, ImageRoot, ImageRoots};
use crate::service::{FilesystemUsage, Image, ImageError};

/// Interrupted downloads are kept this long for the next attempt.
const BLOB_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// How a store behaves; [`StoreOptions::new`] gives the usual values.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Where everything is kept; made if absent.
    pub root: PathBuf,
    /// Mirrors, credentials and TLS of registries; may be absent.
    pub registries_file: PathBuf,
    pub limits: Limits,
    /// Layers fetched at the same time, over all pulls of this store.
    pub parallel_downloads_max: usize,
    pub timeouts: super::registry::Timeouts,
}

impl StoreOptions {
    pub fn new(root: impl Into<PathBuf>) -> StoreOptions {
        StoreOptions {
            root: root.into(),
            registries_file: PathBuf::from("/etc/llmagentos/registries.yaml"),
            limits: Limits::default(),
            parallel_downloads_max: 3,
            timeouts: super::registry::Timeouts::default(),
        }
    }
}

/// The images of this machine. Cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub options: StoreOptions,
    index: IndexFile,
    session: Session,
    configs: Mutex<HashMap<Digest, Arc<image_roots::ImageConfig>>>,
    pub pulls: super::pull::Pulls,
}

/// What went wrong, before it is known for which image.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Corrupt(String),
    DiskFull,
    /// Something that was there is gone: another process removed it. Trying again helps.
    Stale,
    Internal(String),
}

impl Failure {
    pub fn io(action: &str, path: &Path, error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::DiskFull,
            _ => Failure::Internal(format!("{action} {}: {error}", path.display())),
        }
    }

    pub fn of_image(self, image: &str) -> ImageError {
        let image = image.to_owned();
        match self {
            Failure::Corrupt(reason) => ImageError::Corrupt { image, reason },
            Failure::DiskFull => ImageError::DiskFull(image),
            Failure::Stale => ImageError::Internal(format!(
                "image {image} was removed while it was being used; try again"
            )),
            Failure::Internal(reason) => ImageError::Internal(reason),
        }
    }
}

impl From<UnpackError> for Failure {
    fn from(error: UnpackError) -> Failure {
        match error {
            UnpackError::Corrupt(reason) => Failure::Corrupt(reason),
            UnpackError::DiskFull => Failure::DiskFull,
            error @ (UnpackError::Io { .. } | UnpackError::Cancelled) => {
                Failure::Internal(error.to_string())
            }
        }
    }
}

/// A process's own directory for unfinished work.
struct Session {
    directory: PathBuf,
    next_name: AtomicU64,
    /// Locked as long as this process lives.
    _lock: File,
}

/// A layer unpacked and verified; in the store only once its image is committed.
pub(super) struct StagedLayer {
    /// `None` once the store took it.
    directory: Mutex<Option<PathBuf>>,
    diff_id: Digest,
    usage: Usage,
}

impl Drop for StagedLayer {
    fn drop(&mut self) {
        let directory = self
            .directory
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = directory.take() {
            discard(&directory);
        }
    }
}

/// A layer on its way into an image.
#[derive(Clone)]
pub(super) enum LayerSource {
    InStore(Digest),
    Staged(Arc<StagedLayer>),
}

/// A complete image, ready to be named by the index.
pub(super) struct NewImage {
    pub config_bytes: Vec<u8>,
    pub config: ImageConfig,
    /// Lowest first, with their chain ids.
    pub layers: Vec<(Digest, LayerSource)>,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
}

impl ImageStore {
    /// Opens or makes a store, and clears away what a crash left behind.
    pub fn open(options: StoreOptions) -> Result<ImageStore, ImageError> {
        open(options).map_err(|e| e.of_image("store"))
    }

    /// Every image, sorted by id.
    pub fn images(&self) -> Result<Vec<Image>, ImageError> {
        let index = self.read_index()?;
        let visible = index.images.iter().filter(|(_, record)| !record.removed);
        Ok(visible
            .map(|(id, record)| describe(&index, id, record))
            .collect())
    }

    /// By id, tag or digest.
    pub fn image(&self, image: &str) -> Result<Option<Image>, ImageError> {
        let wanted = parse_wanted(image)?;
        let index = self.read_index()?;
        Ok(index
            .find(&wanted)
            .map(|(id, record)| describe(&index, id, record)))
    }

    /// Gives an image a further name; the name leaves the image that had it.
    pub fn tag(&self, image: &str, new_reference: &str) -> Result<(), ImageError> {
        let wanted = parse_wanted(image)?;
        let reference = Reference::parse(new_reference)?;
        let Some(tag) = reference.tagged().filter(|_| reference.digest().is_none()) else {
            return Err(ImageError::InvalidName {
                image: new_reference.to_owned(),
                reason: "a new name must have a tag and no digest".into(),
            });
        };
        self.change(image, |index| {
            let Some(id) = index.find(&wanted).map(|(id, _)| id.clone()) else {
                return Ok(Err(ImageError::NotFound(image.to_owned())));
            };
            set_names(index, &id, &[tag], &[]);
            Ok(Ok(()))
        })?
    }

    /// By id: the image with all its names. By reference: that name, and the image with its last one.
    ///
    /// An image that containers use disappears from sight at once and from disk with the last of
    /// them. Absent is fine.
    pub fn remove_image(&self, image: &str) -> Result<(), ImageError> {
        let wanted = parse_wanted(image)?;
        self.change(image, |index| {
            let Some(id) = index.find(&wanted).map(|(id, _)| id.clone()) else {
                return Ok(());
            };
            if let Some(record) = index.images.get_mut(&id) {
                match &wanted {
                    Wanted::Id(_) => record.tags.clear(),
                    Wanted::Tag(tag) => {
                        record.tags.remove(tag);
                        // A digest of the repository keeps no image alive that its last tag has left.
                    }
                    Wanted::Digest(digest) => {
                        record.digests.remove(digest);
                    }
                }
                let named = !record.tags.is_empty()
                    || (matches!(wanted, Wanted::Digest(_)) && !record.digests.is_empty());
                if !named {
                    record.tags.clear();
                    record.digests.clear();
                    record.removed = true;
                }
            }
            Ok(())
        })
    }

    /// Whether a container holds the image.
    pub fn in_use(&self, image_id: &str) -> Result<bool, ImageError> {
        let id = parse_id(image_id)?;
        Ok(self.is_held(&id))
    }

    /// Forgets the holds of all containers but these; for the runtime once it knows, after a start,
    /// which containers there are.
    pub fn retain_holders<'a>(
        &self,
        holders: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), ImageError> {
        let keep: std::collections::HashSet<String> =
            holders.into_iter().map(holder_file_name).collect();
        for id in read_names(&self.holds_directory()) {
            let directory = self.holds_directory().join(&id);
            for holder in read_names(&directory) {
                if !keep.contains(&holder) {
                    let _ = fs::remove_file(directory.join(holder));
                }
            }
            let _ = fs::remove_dir(&directory);
        }
        self.change("store", |_| Ok(()))
    }

    /// What images and downloads take, for the kubelet's image garbage collection.
    pub fn usage(&self) -> Result<FilesystemUsage, ImageError> {
        let index = self.read_index()?;
        let (mut used_bytes, mut inodes_used) = (0, 0);
        for layer in index.layers.values() {
            used_bytes += layer.disk_bytes;
            inodes_used += layer.inode_count;
        }
        for name in ["blobs", "configs"] {
            for entry in fs::read_dir(self.inner.options.root.join(name))
                .into_iter()
                .flatten()
                .flatten()
            {
                used_bytes += entry.metadata().map_or(0, |m| m.len());
                inodes_used += 1;
            }
        }
        Ok(FilesystemUsage {
            mountpoint: self.inner.options.root.clone(),
            used_bytes,
            inodes_used,
        })
    }

    fn read_index(&self) -> Result<Arc<Index>, ImageError> {
        self.inner.index.read().map_err(|e| e.of_image("store"))
    }

    /// Changes the index under the lock, then deletes what it no longer names.
    fn change<T>(
        &self,
        image: &str,
        change: impl FnOnce(&mut Index) -> Result<T, Failure>,
    ) -> Result<T, ImageError> {
        self.try_change(change).map_err(|e| e.of_image(image))
    }

    fn try_change<T>(
        &self,
        change: impl FnOnce(&mut Index) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut trash = Vec::new();
        let result = {
            let lock = self.inner.index.lock()?;
            let mut index = lock.read()?;
            let result = change(&mut index)?;
            let gone: Vec<Digest> = index
                .images
                .iter()
                .filter(|(id, record)| record.removed && !self.is_held(id))
                .map(|(id, _)| id.clone())
                .collect();
            for id in &gone {
                index.images.remove(id);
            }
            let layers = index.take_unreferenced_layers();
            lock.write(&index)?;
            for id in &gone {
                let _ = fs::remove_file(self.config_path(id));
                self.inner
                    .configs
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(id);
            }
            for layer in &layers {
                let doomed = self.inner.session.fresh_path();
                // If this fails it is a leftover, which the next start removes.
                if fs::rename(self.layer_path(layer), &doomed).is_ok() {
                    trash.push(doomed);
                }
            }
            result
        };
        for directory in trash {
            discard(&directory);
        }
        Ok(result)
    }

    /// The chain's layers that are here already, lowest first.
    pub(super) fn has_layer(&self, chain_id: &Digest) -> Result<bool, Failure> {
        Ok(self.inner.index.read()?.layers.contains_key(chain_id))
    }

    /// Unpacks one layer over those in `below` (lowest first). Blocking, for as long as that takes.
    pub(super) fn stage_layer(
        &self,
        compressed: impl Read,
        below: &[(Digest, LayerSource)],
        diff_id: &Digest,
        cancelled: &AtomicBool,
    ) -> Result<StagedLayer, Failure> {
        let parents = self.open_layers(below)?;
        let directory = self.inner.session.fresh_path();
        make_directory(&directory, 0o755)?;
        let mut staged = StagedLayer {
            directory: Mutex::new(Some(directory.clone())),
            diff_id: diff_id.clone(),
            usage: Usage::default(),
        };
        staged.usage = unpack::unpack_layer(
            compressed,
            &directory,
            &parents,
            diff_id,
            &self.inner.options.limits,
            cancelled,
        )?;
        Ok(staged)
    }

    /// Topmost first.
    fn open_layers(&self, below: &[(Digest, LayerSource)]) -> Result<Vec<OwnedFd>, Failure> {
        let index = self.inner.index.read()?;
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(|e| match e {
                rustix::io::Errno::NOENT => Failure::Stale,
                e => Failure::io("opening", path, e.into()),
            })
        };
        let in_store = |chain_id: &Digest| {
            let record = index.layers.get(chain_id).ok_or(Failure::Stale)?;
            open(&self.layer_path(record))
        };
        below
            .iter()
            .rev()
            .map(|(chain_id, source)| match source {
                LayerSource::InStore(chain_id) => in_store(chain_id),
                LayerSource::Staged(staged) => {
                    // Opened under the lock, since a commit moves it away.
                    let directory = staged
                        .directory
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    match directory.as_deref() {
                        Some(directory) => open(directory),
                        None => {
                            drop(directory);
                            let index = self.inner.index.read()?;
                            let record = index.layers.get(chain_id).ok_or(Failure::Stale)?;
                            open(&self.layer_path(record))
                        }
                    }
                }
            })
            .collect()
    }

    /// Makes the image part of the store; everything of it is on disk when this returns.
    pub(super) fn commit(&self, image: &NewImage) -> Result<Digest, Failure> {
        let id = Digest::of(&image.config_bytes);
        let config_path = self.config_path(&id);
        // One sync for all files of all layers; the rename and the index come after it.
        let root = &self.inner.options.root;
        let root_directory = File::open(root).map_err(|e| Failure::io("opening", root, e))?;
        rustix::fs::syncfs(root_directory.as_fd())
            .map_err(|e| Failure::io("syncing", root, e.into()))?;
        let layers_directory = root.join("layers");
        self.try_change(|index| {
            write_durably(&config_path, &image.config_bytes)?;
            for (chain_id, source) in &image.layers {
                if index.layers.contains_key(chain_id) {
                    continue;
                }
                let LayerSource::Staged(staged) = source else {
                    return Err(Failure::Stale);
                };
                let mut directory = staged
                    .directory
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let from = directory.take().ok_or(Failure::Stale)?;
                let (name, to) = self.fresh_layer_directory(&layers_directory);
                if let Err(error) = fs::rename(&from, &to) {
                    *directory = Some(from);
                    return Err(Failure::io("moving a layer to", &to, error));
                }
                index.layers.insert(
                    chain_id.clone(),
                    LayerRecord {
                        directory: name,
                        diff_id: staged.diff_id.clone(),
                        disk_bytes: staged.usage.disk_bytes,
                        inode_count: staged.usage.inode_count,
                    },
                );
            }
            File::open(&layers_directory)
                .and_then(|d| d.sync_all())
                .map_err(|e| Failure::io("syncing", &layers_directory, e))?;
            let record = index.images.entry(id.clone()).or_default();
            record.chain = image
                .layers
                .iter()
                .map(|(chain_id, _)| chain_id.clone())
                .collect();
            record.user = image.config.config.user.clone();
            record.removed = false;
            set_names(index, &id, &image.tags, &image.digests);
            Ok(())
        })?;
        Ok(id)
    }

    fn fresh_layer_directory(&self, layers: &Path) -> (String, PathBuf) {
        loop {
            let name = format!("{:012x}", rand::random::<u64>() >> 16);
            let path = layers.join(&name);
            if !path.exists() {
                return (name, path);
            }
        }
    }

    pub(super) fn size_bytes(&self, id: &Digest) -> Result<u64, Failure> {
        let index = self.inner.index.read()?;
        Ok(index
            .images
            .get(id)
            .map_or(0, |record| index.image_disk_bytes(record)))
    }

    /// A name in this process's temporary directory that nothing has yet.
    pub(super) fn fresh_temporary_path(&self) -> PathBuf {
        self.inner.session.fresh_path()
    }

    pub(super) fn blobs_directory(&self) -> PathBuf {
        self.inner.options.root.join("blobs")
    }

    fn layer_path(&self, layer: &LayerRecord) -> PathBuf {
        self.inner
            .options
            .root
            .join("layers")
            .join(&layer.directory)
    }

    fn config_path(&self, id: &Digest) -> PathBuf {
        self.inner.options.root.join("configs").join(id.hex())
    }

    fn holds_directory(&self) -> PathBuf {
        self.inner.options.root.join("holds")
    }

    fn is_held(&self, id: &Digest) -> bool {
        !read_names(&self.holds_directory().join(id.hex())).is_empty()
    }

    fn read_config(&self, id: &Digest) -> Result<Arc<image_roots::ImageConfig>, Failure> {
        let mut configs = self
            .inner
            .configs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(id) {
            return Ok(Arc::clone(config));
        }
        let path = self.config_path(id);
        let bytes = fs::read(&path).map_err(|e| Failure::io("reading", &path, e))?;
        if Digest::of(&bytes) != *id {
            return Err(Failure::Corrupt(format!(
                "its configuration {} has changed on disk",
                path.display()
            )));
        }
        let config: ImageConfig = serde_json::from_slice(&bytes)
            .map_err(|e| Failure::Corrupt(format!("its configuration is malformed: {e}")))?;
        let config = Arc::new(config.config.into_root_config());
        configs.insert(id.clone(), Arc::clone(&config));
        Ok(config)
    }
}

impl ImageRoots for ImageStore {
    fn prepare(&self, image_id: &str) -> Result<ImageRoot, ImageError> {
        let id = parse_id(image_id)?;
        let index = self.read_index()?;
        let record = index
            .images
            .get(&id)
            .ok_or_else(|| ImageError::NotFound(image_id.to_owned()))?;
        let mut lowerdirs = Vec::with_capacity(record.chain.len().max(1));
        for chain_id in record.chain.iter().rev() {
            let path = index
                .layers
                .get(chain_id)
                .map(|layer| self.layer_path(layer));
            match path {
                Some(path) if path.is_dir() => lowerdirs.push(path),
                _ => {
                    return Err(ImageError::Corrupt {
                        image: image_id.to_owned(),
                        reason: format!(
                            "its layer {chain_id} is missing on disk; remove the image and pull it again"
                        ),
                    });
                }
            }
        }
        if lowerdirs.is_empty() {
            lowerdirs.push(self.inner.options.root.join("empty"));
        }
        let config = self.read_config(&id).map_err(|e| e.of_image(image_id))?;
        Ok(ImageRoot {
            lowerdirs,
            config: config.as_ref().clone(),
        })
    }

    /// Kept on disk, so that other processes see it and a restart forgets nothing.
    fn hold(&self, image_id: &str, holder: &str) -> Result<(), ImageError> {
        let id = parse_id(image_id)?;
        let hold = || -> Result<bool, Failure> {
            // Under the lock: a removal looks for holds under it too.
            let lock = self.inner.index.lock()?;
            if !lock.read()?.images.contains_key(&id) {
                return Ok(false);
            }
            let directory = self.holds_directory().join(id.hex());
            let path = directory.join(holder_file_name(holder));
            fs::create_dir_all(&directory).map_err(|e| Failure::io("making", &directory, e))?;
            File::create(&path).map_err(|e| Failure::io("making", &path, e))?;
            Ok(true)
        };
        match hold() {
            Ok(true) => Ok(()),
            Ok(false) => Err(ImageError::NotFound(image_id.to_owned())),
            Err(error) => Err(error.of_image(image_id)),
        }
    }

    fn release(&self, image_id: &str, holder: &str) {
        let Ok(id) = parse_id(image_id) else {
            return;
        };
        let directory = self.holds_directory().join(id.hex());
        let _ = fs::remove_file(directory.join(holder_file_name(holder)));
        let removed = self
            .inner
            .index
            .read()
            .is_ok_and(|index| index.images.get(&id).is_some_and(|r| r.removed));
        if removed {
            if let Err(error) = self.change(image_id, |_| Ok(())) {
                tracing::warn!(image = image_id, %error, "removed image stays on disk");
            }
            let _ = fs::remove_dir(&directory);
        }
    }

    fn retain_holders(&self, holders: &[&str]) -> Result<(), ImageError> {
        ImageStore::retain_holders(self, holders.iter().copied())
    }
}

fn open(options: StoreOptions) -> Result<ImageStore, Failure> {
    let root = options.root.clone();
    let parent = root.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|e| Failure::io("making", parent, e))?;
    make_directory(&root, 0o700)?;
    for name in ["layers", "configs", "blobs", "holds", "tmp"] {
        make_directory(&root.join(name), 0o700)?;
    }
    make_directory(&root.join("empty"), 0o755)?;
    let index = IndexFile::new(&root);
    let (session, leftovers) = {
        let lock = index.lock()?;
        let session = Session::start(&root.join("tmp"))?;
        let leftovers = collect_leftovers(&root, &lock.read()?, &session);
        (session, leftovers)
    };
    if !leftovers.is_empty() {
        tracing::info!(count = leftovers.len(), root = %root.display(), "removing leftovers of an earlier run");
        // Large trees take seconds; nothing waits for them.
        std::thread::spawn(move || {
            for leftover in leftovers {
                discard(&leftover.path);
                if let Some(lock_path) = leftover.lock_path {
                    let _ = fs::remove_file(lock_path);
                }
            }
        });
    }
    Ok(ImageStore {
        inner: Arc::new(Inner {
            pulls: super::pull::Pulls::new(&options),
            options,
            index,
            session,
            configs: Mutex::default(),
        }),
    })
}

struct Leftover {
    path: PathBuf,
    lock_path: Option<PathBuf>,
    /// Keeps other processes from removing the same.
    _lock: Option<File>,
}

/// Under the index lock: sessions of dead processes, layers without an entry, downloads too old.
fn collect_leftovers(root: &Path, index: &Index, session: &Session) -> Vec<Leftover> {
    let mut leftovers = Vec::new();
    let tmp = root.join("tmp");
    for name in read_names(&tmp) {
        let path = tmp.join(&name);
        let directory = path.with_extension("");
        if directory == session.directory {
            continue;
        }
        let is_lock = path.extension().is_some_and(|e| e == "lock");
        if !is_lock && path.with_extension("lock").exists() {
            continue;
        }
        let lock = is_lock.then(|| File::open(&path).ok()).flatten();
        let is_alive = lock.as_ref().is_some_and(|lock| {
            rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_err()
        });
        if !is_alive {
            leftovers.push(Leftover {
                lock_path: is_lock.then_some(path),
                path: directory,
                _lock: lock,
            });
        }
    }
    let known: std::collections::HashSet<&str> = index
        .layers
        .values()
        .map(|l| l.directory.as_str())
        .collect();
    let layers = root.join("layers");
    for name in read_names(&layers)
        .into_iter()
        .filter(|name| !known.contains(name.as_str()))
    {
        let doomed = session.fresh_path();
        if fs::rename(layers.join(name), &doomed).is_ok() {
            leftovers.push(Leftover {
                path: doomed,
                lock_path: None,
                _lock: None,
            });
        }
    }
    let configs = root.join("configs");
    let known: std::collections::HashSet<&str> = index.images.keys().map(Digest::hex).collect();
    for name in read_names(&configs)
        .into_iter()
        .filter(|name| !known.contains(name.as_str()))
    {
        let _ = fs::remove_file(configs.join(name));
    }
    let blobs = root.join("blobs");
    for name in read_names(&blobs) {
        let path = blobs.join(name);
        let age = fs::metadata(&path)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| SystemTime::now().duration_since(t).ok());
        if age.is_some_and(|age| age > BLOB_AGE_MAX) {
            let _ = fs::remove_file(path);
        }
    }
    leftovers
}

impl Session {
    fn start(tmp: &Path) -> Result<Session, Failure> {
        let name = format!("{}-{:08x}", std::process::id(), rand::random::<u32>());
        let lock_path = tmp.join(format!("{name}.lock"));
        let lock = File::create(&lock_path).map_err(|e| Failure::io("making", &lock_path, e))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| Failure::io("locking", &lock_path, e.into()))?;
        let directory = tmp.join(name);
        make_directory(&directory, 0o700)?;
        Ok(Session {
            directory,
            next_name: AtomicU64::new(0),
            _lock: lock,
        })
    }

    fn fresh_path(&self) -> PathBuf {
        self.directory
            .join(self.next_name.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        discard(&self.directory);
        let _ = fs::remove_file(self.directory.with_extension("lock"));
    }
}

/// The name takes the place of an older image's, as `docker pull` does; that image stays, nameless.
fn set_names(index: &mut Index, id: &Digest, tags: &[String], digests: &[String]) {
    for tag in tags {
        for record in index.images.values_mut() {
            record.tags.remove(tag);
        }
    }
    if let Some(record) = index.images.get_mut(id) {
        record.tags.extend(tags.iter().cloned());
        record.digests.extend(digests.iter().cloned());
    }
}

fn describe(index: &Index, id: &Digest, record: &ImageRecord) -> Image {
    let user = record.user.split(':').next().unwrap_or_default();
    let uid = user.parse().ok();
    Image {
        id: id.to_string(),
        repo_tags: record.tags.iter().cloned().collect(),
        repo_digests: record.digests.iter().cloned().collect(),
        size_bytes: index.image_disk_bytes(record),
        uid,
        username: if uid.is_some() {
            String::new()
        } else {
            user.to_owned()
        },
        pinned: record.pinned,
    }
}

fn parse_id(id: &str) -> Result<Digest, ImageError> {
    id.parse().map_err(|_| ImageError::NotFound(id.to_owned()))
}

/// An id, with or without its algorithm, or a reference.
pub(super) fn parse_wanted(image: &str) -> Result<Wanted, ImageError> {
    if let Ok(id) = image.parse() {
        return Ok(Wanted::Id(id));
    }
    if let Ok(id) = format!("sha256:{image}").parse() {
        return Ok(Wanted::Id(id));
    }
    let reference = Reference::parse(image)?;
    Ok(match (reference.digest(), reference.tagged()) {
        (Some(digest), _) => Wanted::Digest(reference.with_digest(digest)),
        (None, Some(tag)) => Wanted::Tag(tag),
        (None, None) => Wanted::Tag(reference.to_string()),
    })
}

/// Container ids are plain words; anything else is stored by its hash.
fn holder_file_name(holder: &str) -> String {
    let is_plain = !holder.is_empty()
        && holder.len() <= 200
        && holder
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if is_plain {
        holder.to_owned()
    } else {
        format!("hash.{}", Digest::of(holder.as_bytes()).hex())
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Failure> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Failure::io("making", path, e)),
    }
}

fn read_names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn discard(path: &Path) {
    if let Err(error) = remove_tree(path) {
        tracing::warn!(path = %path.display(), %error, "leftover cannot be removed; the next start tries again");
    }
}

/// The chain ids of a list of layers, lowest first (image-spec, "Layer ChainID").
pub(super) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(id);
    }
    chain
}

impl super::spec::ProcessConfig {
    fn into_root_config(self) -> image_roots::ImageConfig {
        image_roots::ImageConfig {
            env: self.env,
            entrypoint: self.entrypoint,
            cmd: self.cmd,
            user: self.user,
            working_dir: self.working_dir,
            stop_signal: Some(self.stop_signal).filter(|s| !s.is_empty()),
            exposed_ports: self.exposed_ports.into_keys().collect(),
            volumes: self.volumes.into_keys().collect(),
            labels: BTreeMap::from_iter(self.labels),
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
pub(super) mod tests;
