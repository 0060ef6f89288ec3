//! A directory or file inside a volume, exposed to a container without following anything out of the volume.
//!
//! Every path element is opened below the one before with `openat2(RESOLVE_BENEATH)`, so a link that a
//! container planted cannot lead out, also while it is being swapped. What was opened is bound to a path of
//! the kubelet's own (`volume-subpaths/<volume>/<container>/<index>`), and only that path is handed on.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    #[error("subPath \"{0}\" must be relative and must not contain \"..\"")]
    Invalid(String),
    #[error("subPath \"{sub_path}\" leads out of the volume {}", volume.display())]
    Escapes { sub_path: String, volume: PathBuf },
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Opens `sub_path` in `volume` (making missing directories), binds it to `target` and answers `target`.
///
/// An older binding on `target` is replaced. Blocking.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, SubPathError> {
    let path = Path::new(sub_path);
    if !path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(SubPathError::Invalid(sub_path.to_owned()));
    }
    let failed = |what: &'static str, path: &Path, source: Errno| SubPathError::Io {
        what,
        path: path.to_owned(),
        source: source.into(),
    };
    let escape = |error: Errno| match error {
        Errno::XDEV | Errno::LOOP => SubPathError::Escapes {
            sub_path: sub_path.to_owned(),
            volume: volume.to_owned(),
        },
        error => failed("open", &volume.join(sub_path), error),
    };
    let root = rustix::fs::open(
        volume,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| failed("open", volume, error))?;
    let opened = match open_beneath(&root, path) {
        Ok(opened) => opened,
        Err(Errno::NOENT) => {
            make_directories(&root, path).map_err(escape)?;
            open_beneath(&root, path).map_err(escape)?
        }
        Err(error) => return Err(escape(error)),
    };
    let is_directory = fstat(&opened)
        .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        .map_err(escape)?;

    let io_failed = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| SubPathError::Io { what, path, source }
    };
    while unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
    let parent = target.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(io_failed("create", parent))?;
    if is_directory {
        let _ = fs::remove_file(target);
        fs::create_dir_all(target).map_err(io_failed("create", target))?;
    } else {
        let _ = fs::remove_dir(target);
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(target)
            .map_err(io_failed("create", target))?;
    }
    let tree = open_tree(
        opened.as_fd(),
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE,
    )
    .map_err(|error| failed("bind", target, error))?;
    move_mount(
        tree.as_fd(),
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|error| failed("bind", target, error))?;
    Ok(target.to_owned())
}

fn open_beneath(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    loop {
        match openat2(
            root,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        ) {
            // The kernel could not exclude a race; it says to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

fn make_directories(root: &OwnedFd, path: &Path) -> Result<(), Errno> {
    let mut built = PathBuf::new();
    for part in path.components() {
        let parent = open_beneath(root, &built)?;
        built.push(part);
        match open_beneath(root, &built) {
            Ok(_) => continue,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        match mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                // New directories take over the volume's mode and group, as users of the volume expect.
                let stat = fstat(root)?;
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::chmodat(&parent, part.as_os_str(), mode, AtFlags::empty())?;
                let group = rustix::fs::Gid::from_raw(stat.st_gid);
                rustix::fs::chownat(
                    &parent,
                    part.as_os_str(),
                    None,
                    Some(group),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_out_of_the_volume() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("volume");
        fs::create_dir_all(volume.join("in/side")).unwrap();
        fs::write(volume.join("file"), "f").unwrap();
        fs::write(directory.path().join("secret"), "s").unwrap();
        symlink("in/side", volume.join("good")).unwrap();
        symlink("/etc", volume.join("absolute")).unwrap();
        symlink("../secret", volume.join("up")).unwrap();
        symlink("..", volume.join("parent")).unwrap();
        for (sub_path, expect) in [
            ("in/side", true),
            ("good", true),
            ("file", true),
            ("new/dir", true),
            ("absolute", false),
            ("absolute/passwd", false),
            ("up", false),
            ("parent/secret", false),
            ("parent/fresh", false),
            ("../secret", false),
            ("/etc", false),
        ] {
            let target = directory.path().join("bound/c/0");
            let result = bind(&volume, sub_path, &target);
            assert_eq!(result.is_ok(), expect, "{sub_path}: {result:?}");
            let _ = unmount(&target, UnmountFlags::DETACH);
            let _ = fs::remove_file(&target);
            let _ = fs::remove_dir(&target);
        }
        assert!(!directory.path().join("fresh").exists());
        assert!(volume.join("new/dir").is_dir());
        let target = directory.path().join("bound/c/1");
        bind(&volume, "file", &target).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "f");
        bind(&volume, "in", &target).unwrap();
        assert!(target.join("side").is_dir());
        unmount(&target, UnmountFlags::DETACH).unwrap();
    }
}
