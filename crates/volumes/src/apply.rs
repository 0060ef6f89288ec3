//! Makes planned volumes so on disk, and takes them away again.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::host_path::{self, HostPathError};
use crate::plan::{Content, PlannedVolume};
use crate::{atomic, ownership};

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    HostPath(#[from] HostPathError),
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

fn context(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ApplyError + use<> {
    let path = path.to_owned();
    move |source| ApplyError::Io { what, path, source }
}

/// Where the volume's content is on the host; containers mount this.
pub fn volume_path(pod_directory: &Path, volume: &PlannedVolume) -> PathBuf {
    match &volume.content {
        Content::HostPath { path, .. } => path.clone(),
        _ => pod_directory
            .join("volumes")
            .join(volume.plugin)
            .join(&volume.name),
    }
}

/// Makes the volume as planned. Idempotent; called again with new content it updates in place.
///
/// Answers whether something changed. Blocking: call it where that is allowed.
pub fn set_up(
    pod_directory: &Path,
    volume: &PlannedVolume,
    on_root_mismatch_only: bool,
) -> Result<bool, ApplyError> {
    let path = volume_path(pod_directory, volume);
    match &volume.content {
        Content::HostPath { path, kind } => {
            host_path::check(path, kind)?;
            Ok(false)
        }
        Content::Directory {
            memory,
            size_limit_bytes,
        } => {
            let new = !path.exists();
            make_directory(&path, 0o777)?;
            if *memory {
                mount_memory(&path, size_limit_bytes.unwrap_or(0))?;
            }
            if let Some(group) = volume.fs_group
                && !(on_root_mismatch_only && ownership::root_matches(&path, group))
            {
                ownership::give_to_group(&path, group, false)
                    .map_err(context("change the group of", &path))?;
            }
            Ok(new)
        }
        Content::Files { memory, files } => {
            make_directory(&path, 0o777)?;
            if *memory {
                mount_memory(&path, 0)?;
            }
            if let Some(group) = volume.fs_group {
                // The directory itself; its versions get theirs before they are shown.
                let group = u32::try_from(group).ok();
                std::os::unix::fs::chown(&path, None, group)
                    .map_err(context("change the group of", &path))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o2777))
                    .map_err(context("change the mode of", &path))?;
            }
            let finish = |version: &Path| match volume.fs_group {
                Some(group) => ownership::give_to_group(version, group, true),
                None => Ok(()),
            };
            atomic::write(&path, files, &finish).map_err(context("write", &path))
        }
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), ApplyError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(context("create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(context("change the mode of", path))
}

/// Is `path` the root of a mount?
pub fn is_mount_point(path: &Path) -> bool {
    let (Ok(own), Some(parent)) = (fs::symlink_metadata(path), path.parent()) else {
        return false;
    };
    fs::symlink_metadata(parent).is_ok_and(|parent| parent.dev() != own.dev())
}

fn mount_memory(path: &Path, size_bytes: u64) -> Result<(), ApplyError> {
    if is_mount_point(path) {
        return Ok(());
    }
    let options = if size_bytes > 0 {
        format!("mode=0777,size={size_bytes}")
    } else {
        "mode=0777".to_owned()
    };
    let options = CString::new(options).expect("digits hold no NUL");
    mount(
        "tmpfs",
        path,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        options.as_c_str(),
    )
    .map_err(|error| context("mount a tmpfs on", path)(error.into()))
}

/// Unmounts and removes everything below the pod's directory. Never touches what is mounted from elsewhere
/// (hostPath), collects all errors, and is idempotent.
pub fn tear_down(pod_directory: &Path) -> Result<(), Vec<ApplyError>> {
    let mut errors = Vec::new();
    for below in ["volume-subpaths", "volumes"] {
        unmount_below(&pod_directory.join(below), &mut errors);
    }
    if errors.is_empty() {
        for below in ["volume-subpaths", "volumes"] {
            let path = pod_directory.join(below);
            match fs::remove_dir_all(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => errors.push(context("remove", &path)(error)),
            }
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

/// Mounts sit at a fixed depth (kind/volume, or volume/container/index): look there and no deeper.
fn unmount_below(directory: &Path, errors: &mut Vec<ApplyError>) {
    let mut level = vec![directory.to_owned()];
    for _ in 0..3 {
        let mut next = Vec::new();
        for path in level {
            let Ok(entries) = fs::read_dir(&path) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = entry.path();
                let Ok(metadata) = fs::symlink_metadata(&path) else {
                    continue;
                };
                if metadata.is_symlink() {
                    continue;
                }
                unmount_all(&path, errors);
                if metadata.is_dir() {
                    next.push(path);
                }
            }
        }
        level = next;
    }
}

/// Undoes every mount on `path`; a path that is none answers EINVAL, which ends it.
fn unmount_all(path: &Path, errors: &mut Vec<ApplyError>) {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return,
            Err(error) => {
                errors.push(context("unmount", path)(error.into()));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::plan::File;
    use std::collections::BTreeMap;

    fn volume(content: Content, fs_group: Option<i64>) -> PlannedVolume {
        PlannedVolume {
            name: "v".into(),
            plugin: "kubernetes.io~test",
            content,
            fs_group,
        }
    }

    #[test]
    fn memory_volumes_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let pod = directory.path();
        let planned = volume(
            Content::Directory {
                memory: true,
                size_limit_bytes: Some(1 << 20),
            },
            Some(77),
        );
        assert!(set_up(pod, &planned, false).unwrap());
        assert!(!set_up(pod, &planned, false).unwrap());
        let path = volume_path(pod, &planned);
        assert!(is_mount_point(&path));
        assert!(ownership::root_matches(&path, 77));
        assert!(
            fs::write(path.join("big"), vec![0u8; 2 << 20]).is_err(),
            "the size limit holds"
        );
        tear_down(pod).unwrap();
        tear_down(pod).unwrap();
        assert_eq!(fs::read_dir(pod).unwrap().count(), 0);
    }

    #[test]
    fn files_are_updated_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let pod = directory.path();
        let with = |text: &str| {
            let files = BTreeMap::from([(
                "k".to_owned(),
                File {
                    data: text.into(),
                    mode: 0o600,
                    uid: Some(9),
                },
            )]);
            volume(
                Content::Files {
                    memory: true,
                    files,
                },
                Some(77),
            )
        };
        assert!(set_up(pod, &with("1"), false).unwrap());
        assert!(!set_up(pod, &with("1"), false).unwrap());
        assert!(set_up(pod, &with("2"), false).unwrap());
        let file = volume_path(pod, &with("")).join("k");
        assert_eq!(fs::read_to_string(&file).unwrap(), "2");
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!(
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o777),
            (9, 77, 0o640)
        );
        tear_down(pod).unwrap();
    }
}
