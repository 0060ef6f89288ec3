//! Removes a directory tree of any depth, in constant memory and descriptors.
//!
//! Images can hold trees deeper than a stack or the descriptor limit allows (`std::fs::remove_dir_all`
//! gives up on them). Directories that are not empty are moved up to the top before they are looked
//! into, so nothing is ever more than one level down. Symlinks are removed, never followed.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Removes `path`, whatever it is. Absent is fine.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    remove_tree_at(CWD, path.as_os_str())
}

/// Removes `name` below the directory `parent`. Absent is fine.
pub fn remove_tree_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    let top = match open(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let mut moved_count = 0;
    loop {
        let names = read(&top)?;
        if names.is_empty() {
            break;
        }
        for entry in names {
            let Some(child) = remove_or_open(top.as_fd(), &entry)? else {
                continue;
            };
            loop {
                let grandchildren = read(&child)?;
                if grandchildren.is_empty() {
                    break;
                }
                for grandchild in grandchildren {
                    if remove_or_open(child.as_fd(), &grandchild)?.is_some() {
                        move_up(&child, &grandchild, &top, &mut moved_count)?;
                    }
                }
            }
            rustix::fs::unlinkat(&top, &entry, AtFlags::REMOVEDIR)?;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// Removes a file or an empty directory; opens a directory that is not empty.
fn remove_or_open(parent: BorrowedFd<'_>, name: &CString) -> rustix::io::Result<Option<OwnedFd>> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(None),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(None),
        Err(Errno::NOTEMPTY | Errno::EXIST) => open(parent, name).map(Some),
        Err(e) => Err(e),
    }
}

fn move_up(
    from: &OwnedFd,
    name: &CString,
    top: &OwnedFd,
    moved_count: &mut u64,
) -> rustix::io::Result<()> {
    loop {
        *moved_count += 1;
        match rustix::fs::renameat(from, name, top, format!(".removing-{moved_count}")) {
            // Taken by something of the tree's own.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            result => return result,
        }
    }
}

fn open(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Some of a directory's entries: enough to go on with, few enough to hold.
fn read(directory: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    const NAME_COUNT_MAX: usize = 4096;
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
        if names.len() == NAME_COUNT_MAX {
            break;
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_deep_and_wide_trees() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(outside.join("kept")).expect("made");
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).expect("made");
        std::os::unix::fs::symlink(&outside, tree.join("link")).expect("made");
        std::fs::create_dir_all(tree.join(".removing-1/x/y")).expect("made");
        for i in 0..5000 {
            std::fs::write(tree.join(format!("f{i}")), "").expect("made");
        }
        let mut current =
            rustix::fs::open(&tree, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
                .expect("opened");
        for _ in 0..3000 {
            rustix::fs::mkdirat(&current, "deep", Mode::RWXU).expect("made");
            rustix::fs::mkdirat(&current, "side", Mode::RWXU).expect("made");
            current = open(current.as_fd(), "deep").expect("opened");
        }
        remove_tree(&tree).expect("removed");
        assert!(!tree.exists());
        assert!(outside.join("kept").exists());
        remove_tree(&tree).expect("absent is fine");
    }
}
