//! Unpacks one layer into a directory that overlayfs can use as a lower layer.
//!
//! Enter at [`unpack_layer`]. The layer is hostile until proven otherwise. Invariants:
//! - Nothing outside the target directory is created, changed or followed: names with `..` or a
//!   leading `/` are refused, and every parent is opened with `openat2(RESOLVE_BENEATH)` from the
//!   target's descriptor, so a symlink in the layer leads nowhere else.
//! - Memory and disk are bounded by [`Limits`], whatever the layer announces.
//! - The bytes unpacked are hashed, and the result is worth nothing unless they match `diff_id`.
//!   The caller owns the directory and throws it away on any error.
//!
//! Whiteouts become overlayfs': `.wh.NAME` a character device 0/0, `.wh..wh..opq` the xattr
//! `trusted.overlay.opaque`. Overlayfs' own xattrs in a layer are dropped: with them a layer could
//! redirect a directory. Directories that a layer uses but does not list get the owner and mode of
//! the same directory in the layers below, as in containerd.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::digest::{Digest, HashingReader};
pub use super::layer_stream::Limits;
use super::layer_stream::{bounded, read_error, too_large};
use super::remove_tree::remove_tree_at;
use super::tar_reader::{Entry, EntryKind, Extent, TarReader};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_METADATA_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const COPY_BUFFER_BYTES: usize = 128 << 10;
/// What a file on disk is rounded up to when its use is estimated.
const DISK_BLOCK_BYTES: u64 = 4096;
/// Paths of directories are remembered until their times can be set; together no more than this.
const REMEMBERED_PATH_BYTES_MAX: usize = 256 << 20;
const IMPLIED_DIRECTORY_MODE: u32 = 0o755;

/// What unpacking a layer came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// On disk, estimated from the files' data.
    pub disk_bytes: u64,
    pub inode_count: u64,
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The layer is at fault.
    #[error("{0}")]
    Corrupt(String),
    #[error("no space left on device")]
    DiskFull,
    /// This machine is at fault.
    #[error("{action}: {source}")]
    Io { action: String, source: io::Error },
    #[error("unpacking was cancelled")]
    Cancelled,
}

/// Unpacks a layer (gzip, zstd or plain tar, told by its first bytes) into the empty directory
/// `target`, and verifies that the tar stream has the digest `diff_id`.
///
/// `parents` are the unpacked layers below, topmost first, as open directories (they may be renamed
/// meanwhile). `cancelled` is looked at now and then.
pub fn unpack_layer(
    compressed: impl Read,
    target: &Path,
    parents: &[OwnedFd],
    diff_id: &Digest,
    limits: &Limits,
    cancelled: &AtomicBool,
) -> Result<Usage, UnpackError> {
    let bounded = bounded(compressed, limits, cancelled)?;
    let hashed = HashingReader::new(bounded, diff_id.algorithm());
    let mut reader = TarReader::new(hashed);
    let mut unpacker = Unpacker::new(target, parents, limits)?;
    while let Some(entry) = reader.next_entry().map_err(read_error)? {
        unpacker.add(&entry, &mut reader)?;
    }
    unpacker.set_directory_times()?;
    let mut hashed = reader.into_inner();
    io::copy(&mut hashed, &mut io::sink()).map_err(read_error)?;
    let (actual, _) = hashed.finish();
    if actual != *diff_id {
        return Err(UnpackError::Corrupt(format!(
            "layer unpacks to {actual}, but the image's configuration says {diff_id}"
        )));
    }
    Ok(unpacker.usage)
}

struct Unpacker<'a> {
    root: OwnedFd,
    parents: &'a [OwnedFd],
    limits: &'a Limits,
    usage: Usage,
    file_bytes: u64,
    entry_count: u64,
    directory_times: Vec<(PathBuf, Timestamps)>,
    remembered_path_bytes: usize,
    /// The parent directory of the last entry: the next is mostly its sibling.
    last_parent: Option<(PathBuf, Rc<OwnedFd>)>,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    fn new(target: &Path, parents: &'a [OwnedFd], limits: &'a Limits) -> Result<Self, UnpackError> {
        let root = rustix::fs::open(
            target,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| io_error(format!("opening {}", target.display()), e))?;
        let mut unpacker = Unpacker {
            root,
            parents,
            limits,
            usage: Usage::default(),
            file_bytes: 0,
            entry_count: 0,
            directory_times: Vec::new(),
            remembered_path_bytes: 0,
            last_parent: None,
            buffer: vec![0; COPY_BUFFER_BYTES],
        };
        unpacker.count_inode(0);
        let root = unpacker
            .root
            .try_clone()
            .map_err(|e| io_error("duplicating a descriptor".into(), e))?;
        unpacker.inherit_directory(Path::new(""), root.as_fd())?;
        Ok(unpacker)
    }

    fn add<R: Read>(&mut self, entry: &Entry, data: &mut TarReader<R>) -> Result<(), UnpackError> {
        self.entry_count += 1;
        if self.entry_count > self.limits.entry_count_max {
            return Err(UnpackError::Corrupt(format!(
                "layer has more than {} entries",
                self.limits.entry_count_max
            )));
        }
        let path = checked_path(&entry.path, "entry")?;
        let is_aufs_metadata = path.iter().any(|c| {
            c.as_bytes().starts_with(WHITEOUT_METADATA_PREFIX) && c.as_bytes() != OPAQUE_MARKER
        });
        if is_aufs_metadata {
            return Ok(());
        }
        let (Some(name), Some(parent_path)) = (path.file_name(), path.parent()) else {
            return self.add_root(entry);
        };
        let parent = self.open_parent(parent_path)?;
        if name.as_bytes() == OPAQUE_MARKER {
            return self.mark_opaque(&parent, None, parent_path);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX) {
            return self.add_whiteout(&parent, OsStr::from_bytes(hidden), &path);
        }
        let result = match entry.kind {
            EntryKind::Directory => self.add_directory(&parent, name, &path, entry),
            EntryKind::File => self.add_file(&parent, name, &path, entry, data),
            EntryKind::HardLink => self.add_hard_link(&parent, name, &path, entry),
            EntryKind::Symlink
            | EntryKind::Fifo
            | EntryKind::CharDevice { .. }
            | EntryKind::BlockDevice { .. } => self.add_special(&parent, name, &path, entry),
        };
        if entry.kind != EntryKind::File {
            self.count_inode(0);
        }
        result
    }

    /// The entry `./`: the layer's own root.
    fn add_root(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if entry.kind != EntryKind::Directory {
            return Err(UnpackError::Corrupt(format!(
                "entry {} replaces the layer's root",
                show(&entry.path)
            )));
        }
        let root = self
            .root
            .try_clone()
            .map_err(|e| io_error("duplicating a descriptor".into(), e))?;
        self.finish_directory(root.as_fd(), Path::new(""), entry)
    }

    fn add_directory(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let hides_lower = match stat_at(parent, name, path)? {
            Some(stat) if is_directory(&stat) => None,
            Some(stat) => {
                unlink(parent, name, path)?;
                Some(is_whiteout(&stat))
            }
            None => Some(false),
        };
        if let Some(hides_lower) = hides_lower {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(IMPLIED_DIRECTORY_MODE))
                .map_err(|e| layer_error(path, e))?;
            if hides_lower {
                self.mark_opaque(parent, Some(name), path)?;
            }
        }
        let directory = open_directory(parent, name).map_err(|e| layer_error(path, e))?;
        self.finish_directory(directory.as_fd(), path, entry)
    }

    fn finish_directory(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &Path,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        rustix::fs::fchown(
            directory,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        )
        .map_err(|e| layer_error(path, e))?;
        rustix::fs::fchmod(directory, Mode::from_raw_mode(entry.mode))
            .map_err(|e| layer_error(path, e))?;
        self.set_xattrs(directory, path, &entry.xattrs)?;
        self.remember_directory_times(path, times_of(entry))
    }

    fn add_file<R: Read>(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        entry: &Entry,
        data: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        // Checked before anything is written: a sparse file announces more than the stream holds.
        self.file_bytes = self.file_bytes.saturating_add(entry.size_bytes);
        if self.file_bytes > self.limits.unpacked_bytes_max {
            return Err(too_large(self.limits));
        }
        self.clear_way(parent, name, path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| layer_error(path, e))?;
        let mut file = File::from(file);
        let whole = [Extent {
            offset: 0,
            length: entry.size_bytes,
        }];
        let extents = entry.sparse.as_deref().unwrap_or(&whole);
        let mut written_bytes = 0;
        for extent in extents {
            file.seek(SeekFrom::Start(extent.offset))
                .map_err(|e| file_error(path, e))?;
            written_bytes += self.copy(data, &mut file, extent.length, path)?;
        }
        if file.stream_position().map_err(|e| file_error(path, e))? != entry.size_bytes
            || written_bytes < entry.size_bytes
        {
            file.set_len(entry.size_bytes)
                .map_err(|e| file_error(path, e))?;
        }
        self.count_inode(written_bytes);
        rustix::fs::fchown(
            &file,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        )
        .map_err(|e| layer_error(path, e))?;
        // After the owner, whose change takes setuid and file capabilities away.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))
            .map_err(|e| layer_error(path, e))?;
        self.set_xattrs(file.as_fd(), path, &entry.xattrs)?;
        rustix::fs::futimens(&file, &times_of(entry)).map_err(|e| layer_error(path, e))
    }

    /// Copies `length` bytes, leaving holes for runs of zeros; answers how many were written.
    fn copy<R: Read>(
        &mut self,
        data: &mut TarReader<R>,
        file: &mut File,
        length: u64,
        path: &Path,
    ) -> Result<u64, UnpackError> {
        let mut left = length;
        let mut written = 0;
        while left > 0 {
            let limit = self
                .buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let chunk = &mut self.buffer[..limit];
            data.read_exact(chunk).map_err(read_error)?;
            if chunk.len() as u64 >= DISK_BLOCK_BYTES && chunk.iter().all(|b| *b == 0) {
                file.seek(SeekFrom::Current(chunk.len() as i64))
                    .map_err(|e| file_error(path, e))?;
            } else {
                file.write_all(chunk).map_err(|e| file_error(path, e))?;
                written += limit as u64;
            }
            left -= limit as u64;
        }
        Ok(written)
    }

    fn add_hard_link(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        // Some builders write the target as an absolute path within the image.
        let target = entry
            .link
            .iter()
            .position(|b| *b != b'/')
            .map_or(&[][..], |start| &entry.link[start..]);
        let target = checked_path(target, "target of a hard link")?;
        if target == path {
            return Err(UnpackError::Corrupt(format!(
                "{} is a hard link to itself",
                path.display()
            )));
        }
        let not_there = || {
            UnpackError::Corrupt(format!(
                "hard link {} leads to {}, which is not in the layer",
                path.display(),
                show(&entry.link)
            ))
        };
        let (Some(target_name), Some(target_parent)) = (target.file_name(), target.parent()) else {
            return Err(not_there());
        };
        let target_parent = match self.resolve(target_parent) {
            Ok(fd) => fd,
            Err(Resolve::Errno(Errno::NOENT | Errno::NOTDIR)) => return Err(not_there()),
            Err(error) => return Err(self.resolve_error(&target, error)),
        };
        match stat_at(&target_parent, target_name, &target)? {
            Some(stat) if !is_directory(&stat) && !is_whiteout(&stat) => {}
            _ => return Err(not_there()),
        }
        self.clear_way(parent, name, path)?;
        rustix::fs::linkat(&target_parent, target_name, parent, name, AtFlags::empty()).map_err(
            |e| match e {
                Errno::NOENT => not_there(),
                e => layer_error(path, e),
            },
        )
    }

    fn add_special(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        self.clear_way(parent, name, path)?;
        let make = |kind, major, minor| {
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(entry.mode), device)
        };
        let made = match entry.kind {
            EntryKind::Symlink => {
                if entry.link.is_empty() || entry.link.contains(&0) {
                    return Err(UnpackError::Corrupt(format!(
                        "symlink {} has no valid target",
                        path.display()
                    )));
                }
                // Kept as it is: the container resolves it within its own root.
                rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), parent, name)
            }
            EntryKind::CharDevice { major, minor } => make(FileType::CharacterDevice, major, minor),
            EntryKind::BlockDevice { major, minor } => make(FileType::BlockDevice, major, minor),
            _ => make(FileType::Fifo, 0, 0),
        };
        made.map_err(|e| layer_error(path, e))?;
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), no_follow)
            .map_err(|e| layer_error(path, e))?;
        if entry.kind != EntryKind::Symlink {
            // Again, past the umask. What was just made is no symlink, and nobody else writes here.
            rustix::fs::chmodat(
                parent,
                name,
                Mode::from_raw_mode(entry.mode),
                AtFlags::empty(),
            )
            .map_err(|e| layer_error(path, e))?;
        }
        rustix::fs::utimensat(parent, name, &times_of(entry), no_follow)
            .map_err(|e| layer_error(path, e))
    }

    /// Whiteouts hide what is below this layer, never what this layer itself brings.
    fn add_whiteout(
        &mut self,
        parent: &OwnedFd,
        hidden: &OsStr,
        path: &Path,
    ) -> Result<(), UnpackError> {
        if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
            return Err(UnpackError::Corrupt(format!(
                "whiteout {} names nothing",
                path.display()
            )));
        }
        match stat_at(parent, hidden, path)? {
            Some(stat) if is_directory(&stat) => self.mark_opaque(parent, Some(hidden), path),
            Some(_) => Ok(()),
            None if self.parents.is_empty() => Ok(()),
            None => {
                let device = rustix::fs::makedev(0, 0);
                self.count_inode(0);
                rustix::fs::mknodat(
                    parent,
                    hidden,
                    FileType::CharacterDevice,
                    Mode::empty(),
                    device,
                )
                .map_err(|e| layer_error(path, e))
            }
        }
    }

    fn mark_opaque(
        &mut self,
        parent: &OwnedFd,
        name: Option<&OsStr>,
        path: &Path,
    ) -> Result<(), UnpackError> {
        if self.parents.is_empty() {
            return Ok(());
        }
        let directory = open_directory(parent, name.unwrap_or(OsStr::new(".")))
            .map_err(|e| layer_error(path, e))?;
        rustix::fs::fsetxattr(&directory, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(|e| {
            io_error(
                format!(
                    "setting {OPAQUE_XATTR} on {} (the file system must support it)",
                    path.display()
                ),
                e,
            )
        })
    }

    /// Removes what stands where a non-directory is to be made.
    fn clear_way(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), UnpackError> {
        match stat_at(parent, name, path)? {
            None => Ok(()),
            Some(stat) if is_directory(&stat) => {
                self.last_parent = None;
                remove_tree_at(parent.as_fd(), name)
                    .map_err(|e| io_error(format!("replacing {}", path.display()), e))
            }
            Some(_) => unlink(parent, name, path),
        }
    }

    /// Opens a directory of the layer, making what is missing on the way.
    fn open_parent(&mut self, path: &Path) -> Result<Rc<OwnedFd>, UnpackError> {
        if let Some((last_path, fd)) = &self.last_parent
            && last_path == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.resolve(path) {
            Ok(fd) => fd,
            Err(Resolve::Errno(Errno::NOENT | Errno::NOTDIR)) => self.make_parents(path)?,
            Err(error) => return Err(self.resolve_error(path, error)),
        };
        let fd = Rc::new(fd);
        self.last_parent = Some((path.to_owned(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn make_parents(&mut self, path: &Path) -> Result<OwnedFd, UnpackError> {
        let mut prefix = PathBuf::new();
        let mut current = self
            .resolve(&prefix)
            .map_err(|e| self.resolve_error(path, e))?;
        for component in path {
            prefix.push(component);
            current = match self.resolve(&prefix) {
                Ok(fd) => fd,
                Err(Resolve::Errno(Errno::NOENT)) => {
                    self.make_implied(&current, component, &prefix, false)?
                }
                Err(Resolve::Errno(Errno::NOTDIR)) => {
                    match stat_at(&current, component, &prefix)? {
                        Some(stat) if is_whiteout(&stat) => {
                            unlink(&current, component, &prefix)?;
                            self.make_implied(&current, component, &prefix, true)?
                        }
                        _ => {
                            return Err(UnpackError::Corrupt(format!(
                                "{} needs {} to be a directory, and it is none",
                                path.display(),
                                prefix.display()
                            )));
                        }
                    }
                }
                Err(error) => return Err(self.resolve_error(&prefix, error)),
            };
        }
        Ok(current)
    }

    fn make_implied(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        opaque: bool,
    ) -> Result<OwnedFd, UnpackError> {
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(IMPLIED_DIRECTORY_MODE)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(UnpackError::Corrupt(format!(
                    "{} is a dangling symlink used as a directory",
                    path.display()
                )));
            }
            Err(e) => return Err(layer_error(path, e)),
        }
        self.count_inode(0);
        if opaque {
            self.mark_opaque(parent, Some(name), path)?;
        }
        let directory = open_directory(parent, name).map_err(|e| layer_error(path, e))?;
        if !opaque {
            self.inherit_directory(path, directory.as_fd())?;
        }
        Ok(directory)
    }

    /// Gives a directory that the layer does not list the owner, mode and times it has below.
    fn inherit_directory(
        &mut self,
        path: &Path,
        directory: BorrowedFd<'_>,
    ) -> Result<(), UnpackError> {
        let lower = self.parents.iter().find_map(|root| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            crate::confined::openat2(root, dot_if_empty(path), flags, Mode::empty(), resolve).ok()
        });
        let Some(lower) = lower else {
            return rustix::fs::fchmod(directory, Mode::from_raw_mode(IMPLIED_DIRECTORY_MODE))
                .map_err(|e| layer_error(path, e));
        };
        let stat = rustix::fs::fstat(&lower)
            .map_err(|e| io_error(format!("reading {}", path.display()), e))?;
        rustix::fs::fchown(
            directory,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
        )
        .map_err(|e| layer_error(path, e))?;
        rustix::fs::fchmod(directory, Mode::from_raw_mode(stat.st_mode))
            .map_err(|e| layer_error(path, e))?;
        let time = Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        };
        self.remember_directory_times(
            path,
            Timestamps {
                last_access: time,
                last_modification: time,
            },
        )
    }

    fn resolve(&self, path: &Path) -> Result<OwnedFd, Resolve> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |resolve| {
            crate::confined::openat2(
                &self.root,
                dot_if_empty(path),
                flags,
                Mode::empty(),
                resolve | ResolveFlags::NO_MAGICLINKS,
            )
        };
        match open(ResolveFlags::BENEATH) {
            Ok(fd) => Ok(fd),
            // An absolute symlink within the image (`/var/run -> /run`) is fine when it leads to a
            // directory of this layer; one that climbs out is not.
            Err(Errno::XDEV) => {
                if self.climbs_out(path) {
                    return Err(Resolve::Escapes);
                }
                open(ResolveFlags::IN_ROOT).map_err(|_| Resolve::Escapes)
            }
            Err(errno) => Err(Resolve::Errno(errno)),
        }
    }

    /// Whether a symlink on the way goes up beyond the layer's root.
    fn climbs_out(&self, path: &Path) -> bool {
        let mut pending: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
        let mut current = PathBuf::new();
        // The kernel follows 40 symlinks at most.
        let mut links_left = 40;
        while let Some(component) = pending.pop() {
            match component.as_bytes() {
                b"" | b"." => continue,
                b".." => {
                    if !current.pop() {
                        return true;
                    }
                    continue;
                }
                _ => current.push(&component),
            }
            let Ok(target) = rustix::fs::readlinkat(&self.root, &current, Vec::new()) else {
                continue;
            };
            links_left -= 1;
            if links_left == 0 {
                return true;
            }
            let target = target.into_bytes();
            if target.starts_with(b"/") {
                current = PathBuf::new();
            } else {
                current.pop();
            }
            pending.extend(
                target
                    .split(|b| *b == b'/')
                    .rev()
                    .map(|c| OsString::from_vec(c.to_vec())),
            );
        }
        false
    }

    fn resolve_error(&self, path: &Path, error: Resolve) -> UnpackError {
        match error {
            Resolve::Escapes => UnpackError::Corrupt(format!("{} goes through a symlink that leads out of the layer's root", path.display())),
            Resolve::Errno(Errno::NOSYS | Errno::PERM) => UnpackError::Io {
                action: "unpacking a layer needs openat2 (Linux 5.6 or later, not forbidden by a seccomp filter)".into(),
                source: Errno::NOSYS.into(),
            },
            Resolve::Errno(errno) => layer_error(path, errno),
        }
    }

    fn set_xattrs(
        &self,
        fd: BorrowedFd<'_>,
        path: &Path,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), UnpackError> {
        for (name, value) in xattrs.iter().filter(|(name, _)| xattr_is_kept(name)) {
            match rustix::fs::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => {
                    tracing::debug!(path = %path.display(), name = show(name), "file system takes no such xattr")
                }
                // Also said of attributes larger than the file system's block.
                Err(Errno::NOSPC) if !disk_is_full(fd) => {
                    return Err(UnpackError::Corrupt(format!(
                        "extended attributes of {} are too large",
                        path.display()
                    )));
                }
                Err(e) => return Err(layer_error(path, e)),
            }
        }
        Ok(())
    }

    fn count_inode(&mut self, data_bytes: u64) {
        self.usage.inode_count += 1;
        self.usage.disk_bytes += data_bytes.next_multiple_of(DISK_BLOCK_BYTES);
    }

    fn remember_directory_times(
        &mut self,
        path: &Path,
        times: Timestamps,
    ) -> Result<(), UnpackError> {
        self.remembered_path_bytes += path.as_os_str().len();
        if self.remembered_path_bytes > REMEMBERED_PATH_BYTES_MAX {
            return Err(UnpackError::Corrupt(
                "layer has too many directories".into(),
            ));
        }
        self.directory_times.push((path.to_owned(), times));
        Ok(())
    }

    /// Last of all, since every file made in a directory changes its times.
    fn set_directory_times(&mut self) -> Result<(), UnpackError> {
        for (path, times) in &self.directory_times {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            // A later entry may have replaced the directory.
            if let Ok(fd) = crate::confined::openat2(
                &self.root,
                dot_if_empty(path),
                flags,
                Mode::empty(),
                resolve,
            ) {
                rustix::fs::futimens(&fd, times).map_err(|e| layer_error(path, e))?;
            }
        }
        Ok(())
    }
}

enum Resolve {
    Escapes,
    Errno(Errno),
}

/// Splits a name of the archive into components; refuses what points out of the layer.
fn checked_path(name: &[u8], what: &str) -> Result<PathBuf, UnpackError> {
    if name.starts_with(b"/") {
        return Err(UnpackError::Corrupt(format!(
            "{what} {} is an absolute path",
            show(name)
        )));
    }
    let mut path = PathBuf::new();
    for component in name.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                return Err(UnpackError::Corrupt(format!(
                    "{what} {} contains \"..\"",
                    show(name)
                )));
            }
            component => path.push(OsStr::from_bytes(component)),
        }
    }
    Ok(path)
}

fn xattr_is_kept(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        || name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
}

fn times_of(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime_seconds,
        tv_nsec: entry.mtime_nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn dot_if_empty(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

fn open_directory(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn stat_at(
    parent: &OwnedFd,
    name: &OsStr,
    path: &Path,
) -> Result<Option<rustix::fs::Stat>, UnpackError> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(layer_error(path, e)),
    }
}

fn is_directory(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn unlink(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), UnpackError> {
    rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(|e| layer_error(path, e))
}

fn disk_is_full(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatvfs(fd)
        .is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) < 1 << 20 || s.f_favail == 0)
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sorts an error of making `path` by whose fault it is.
fn layer_error(path: &Path, errno: Errno) -> UnpackError {
    match errno {
        Errno::NOSPC | Errno::DQUOT => UnpackError::DiskFull,
        Errno::NAMETOOLONG
        | Errno::LOOP
        | Errno::INVAL
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::MLINK
        | Errno::FBIG
        | Errno::NOENT => {
            let mut name = path.display().to_string();
            if name.chars().count() > 200 {
                name = name.chars().take(200).chain("…".chars()).collect();
            }
            UnpackError::Corrupt(format!(
                "entry {name} cannot be made: {}",
                io::Error::from(errno)
            ))
        }
        errno => io_error(format!("unpacking {}", path.display()), errno),
    }
}

fn file_error(path: &Path, error: io::Error) -> UnpackError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(errno) => layer_error(path, errno),
        None => io_error(format!("unpacking {}", path.display()), error),
    }
}

pub(super) fn io_error(action: String, source: impl Into<io::Error>) -> UnpackError {
    UnpackError::Io {
        action,
        source: source.into(),
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
