//! Replaces all files of a directory in one step for its readers.
//!
//! ```text
//! volume/
//!   ..2026_11_23_18_00_00.123456789/   the files (a directory per version)
//!     key
//!   ..data -> ..2026_11_23_18_00_00.123456789
//!   key -> ..data/key                  one link per first path element
//! ```
//!
//! An update writes a new directory, links it as `..data_tmp` and renames that over `..data`: readers see
//! all old files or all new ones, also after a crash at any point.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::plan::File;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes `directory` show exactly `files`. Answers whether anything changed.
///
/// `finish` runs on the new version's directory before readers can see it (ownership).
pub fn write(
    directory: &Path,
    files: &BTreeMap<String, File>,
    finish: &dyn Fn(&Path) -> io::Result<()>,
) -> io::Result<bool> {
    let data = directory.join(DATA);
    let old = fs::read_link(&data).ok();
    let visible: BTreeSet<&str> = files.keys().map(|path| first_element(path)).collect();
    if let Some(old) = &old
        && same_content(&directory.join(old), files)
        && visible
            .iter()
            .all(|name| fs::symlink_metadata(directory.join(name)).is_ok())
    {
        return Ok(false);
    }
    let version = new_version(directory)?;
    let version_directory = directory.join(&version);
    for (path, file) in files {
        write_file(&version_directory, path, file)?;
    }
    finish(&version_directory)?;
    let data_new = directory.join(DATA_NEW);
    match fs::remove_file(&data_new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(&version, &data_new)?;
    fs::rename(&data_new, &data)?;
    for name in &visible {
        let link = directory.join(name);
        let target = Path::new(DATA).join(name);
        if fs::read_link(&link).ok().as_deref() != Some(&target) {
            remove_any(&link)?;
            symlink(&target, &link)?;
        }
    }
    // Links of files that are gone, and versions that nobody sees any more.
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name == DATA || name == version || visible.contains(name) {
            continue;
        }
        remove_any(&directory.join(name))?;
    }
    Ok(true)
}

fn first_element(path: &str) -> &str {
    path.trim_start_matches("./")
        .split('/')
        .next()
        .unwrap_or(path)
}

fn remove_any(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

fn new_version(directory: &Path) -> io::Result<String> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    loop {
        let name = format!(
            "..{}.{:09}",
            now.as_secs(),
            rand::random_range(0..1_000_000_000u32)
        );
        match fs::DirBuilder::new()
            .mode(0o755)
            .create(directory.join(&name))
        {
            Ok(()) => {
                // The umask must not take the bits that other users of the pod need.
                fs::set_permissions(directory.join(&name), fs::Permissions::from_mode(0o755))?;
                return Ok(name);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

fn write_file(root: &Path, path: &str, file: &File) -> io::Result<()> {
    let full = root.join(path);
    let parent = full.parent().unwrap_or(root);
    if !parent.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    let mut handle = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(file.mode)
        .open(&full)?;
    handle.write_all(&file.data)?;
    handle.set_permissions(fs::Permissions::from_mode(file.mode))?;
    if let Some(uid) = file.uid.and_then(|uid| u32::try_from(uid).ok()) {
        chown(&full, Some(uid), None)?;
    }
    Ok(())
}

/// Does the version hold exactly these files with these bytes?
fn same_content(version: &Path, files: &BTreeMap<String, File>) -> bool {
    let mut count = 0;
    let mut directories = vec![version.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            return false;
        };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                Ok(_) => count += 1,
                Err(_) => return false,
            }
        }
    }
    count == files.len()
        && files
            .iter()
            .all(|(path, file)| fs::read(version.join(path)).is_ok_and(|data| data == file.data))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn files(entries: &[(&str, &str)]) -> BTreeMap<String, File> {
        entries
            .iter()
            .map(|(path, data)| {
                (
                    (*path).to_owned(),
                    File {
                        data: data.as_bytes().to_vec(),
                        mode: 0o640,
                        uid: None,
                    },
                )
            })
            .collect()
    }

    fn shown(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !name.starts_with(".."));
        names.sort();
        names
    }

    #[test]
    fn updates_swap_and_clean_up() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let none = |_: &Path| Ok(());
        assert!(write(root, &files(&[("a", "1"), ("dir/b", "2")]), &none).unwrap());
        assert_eq!(fs::read_to_string(root.join("dir/b")).unwrap(), "2");
        assert_eq!(shown(root), ["a", "dir"]);
        assert_eq!(
            fs::metadata(root.join("a")).unwrap().permissions().mode() & 0o777,
            0o640
        );
        let version = fs::read_link(root.join(DATA)).unwrap();
        assert!(
            !write(root, &files(&[("a", "1"), ("dir/b", "2")]), &none).unwrap(),
            "the same again is no change"
        );
        assert_eq!(fs::read_link(root.join(DATA)).unwrap(), version);

        assert!(write(root, &files(&[("a", "3"), ("c", "4")]), &none).unwrap());
        assert_eq!(shown(root), ["a", "c"]);
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "3");
        assert!(!root.join(version).exists(), "the old version is gone");
        assert!(write(root, &files(&[]), &none).unwrap());
        assert_eq!(shown(root), Vec::<String>::new());
    }

    #[test]
    fn a_failed_write_leaves_the_old_files() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(root, &files(&[("a", "1")]), &|_| Ok(())).unwrap();
        write(root, &files(&[("a", "2")]), &|_| {
            Err(io::Error::other("full"))
        })
        .unwrap_err();
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "1");
        write(root, &files(&[("a", "3")]), &|_| Ok(())).unwrap();
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "3");
        assert_eq!(
            fs::read_dir(root).unwrap().count(),
            3,
            "one version, ..data and the link"
        );
    }
}
