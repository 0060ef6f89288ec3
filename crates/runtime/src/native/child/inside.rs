//! Paths inside a container's root, resolved by the kernel with `RESOLVE_IN_ROOT`.
//!
//! Invariant: no function here follows a link out of `root`, whatever the image holds, and no path
//! is looked up twice: what was resolved is used by descriptor.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

/// Resolves `path` below `root`, following links inside it.
pub fn resolve(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(crate::confined::openat2(
        root,
        relative(path).as_path(),
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// As [`resolve`], and makes the directories (and the empty file, unless `directory`) that are missing.
pub fn resolve_or_create(
    root: BorrowedFd<'_>,
    path: &Path,
    directory: bool,
) -> io::Result<OwnedFd> {
    match resolve(root, path, OFlags::PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let names: Vec<&OsStr> = normal_components(path);
    let mut prefix = std::path::PathBuf::new();
    let mut here = resolve(root, Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
    for (index, name) in names.iter().enumerate() {
        let last = index + 1 == names.len();
        prefix.push(name);
        let wanted = if last {
            OFlags::PATH
        } else {
            OFlags::PATH | OFlags::DIRECTORY
        };
        here = match resolve(root, &prefix, wanted) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A dangling link answers "exists" here and fails: nothing is created through it.
                if last && !directory {
                    let file = rustix::fs::openat(
                        &here,
                        *name,
                        OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                        Mode::from_raw_mode(0o644),
                    )?;
                    drop(file);
                } else {
                    rustix::fs::mkdirat(&here, *name, Mode::from_raw_mode(0o755))?;
                }
                let kind = if last && !directory {
                    OFlags::empty()
                } else {
                    OFlags::DIRECTORY
                };
                rustix::fs::openat(
                    &here,
                    *name,
                    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | kind,
                    Mode::empty(),
                )?
            }
            Err(error) => return Err(error),
        };
    }
    Ok(here)
}

/// A directory directly below `root` that is neither a link nor a mount; made if missing.
pub fn plain_directory(root: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let open = || {
        crate::confined::openat2(
            root,
            name,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
    };
    match open() {
        Err(rustix::io::Errno::NOENT) => {
            rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755))?;
            Ok(open()?)
        }
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR | rustix::io::Errno::XDEV) => Err(
            io::Error::other(format!("/{name} of the image is not an ordinary directory")),
        ),
        other => Ok(other?),
    }
}

/// Whole text of a regular file below `root`; `None` if there is none. Bounded, never blocks on a FIFO.
pub fn read_text(root: BorrowedFd<'_>, path: &str, bytes_max: u64) -> Option<String> {
    use std::io::Read;
    let fd = resolve(
        root,
        Path::new(path),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    )
    .ok()?;
    if !is_type(&fd, FileType::RegularFile) {
        return None;
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd)
        .take(bytes_max)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether the open file is of this type.
pub fn is_type(fd: &OwnedFd, kind: FileType) -> bool {
    rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)
        .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == kind)
}

/// `/a/../b` without its dots, relative to the root; the empty path is `.`.
fn relative(path: &Path) -> std::path::PathBuf {
    let mut out = std::path::PathBuf::new();
    for name in normal_components(path) {
        out.push(name);
    }
    if out.as_os_str().is_empty() {
        out.push(".");
    }
    out
}

fn normal_components(path: &Path) -> Vec<&OsStr> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => {
                names.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_inside_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("abs")).unwrap();
        symlink("../../../../../../../../tmp", root.path().join("up")).unwrap();
        symlink("nowhere", root.path().join("dangling")).unwrap();
        let fd =
            rustix::fs::open(root.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for path in [
            "/abs/new",
            "/up/llmagentos-escaped",
            "/a/../../b/new",
            "/../../x/new",
        ] {
            // Either refused or made inside the root.
            let _ = resolve_or_create(fd.as_fd(), Path::new(path), true);
        }
        assert!(resolve_or_create(fd.as_fd(), Path::new("/dangling/x"), true).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(!Path::new("/tmp/llmagentos-escaped").exists());
        assert!(root.path().join("b/new").is_dir());
        assert!(root.path().join("x/new").is_dir());
        assert!(plain_directory(fd.as_fd(), "abs").is_err());
        assert!(plain_directory(fd.as_fd(), "proc").is_ok());
        resolve_or_create(fd.as_fd(), Path::new("/etc/hosts"), false).unwrap();
        assert!(root.path().join("etc/hosts").is_file());
    }
}
