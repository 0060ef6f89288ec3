//! hostPath: the types that the API names, checked and created.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum HostPathError {
    #[error("hostPath type check failed: {} is not {expected}", path.display())]
    WrongType {
        path: PathBuf,
        expected: &'static str,
    },
    #[error("{0} is an invalid volume type")]
    InvalidType(String),
    #[error("cannot create {}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("hostPath must not contain \"..\": {}", .0.display())]
    Backsteps(PathBuf),
}

/// Checks, and for the `…OrCreate` types makes, the path.
pub fn check(path: &Path, kind: &str) -> Result<(), HostPathError> {
    if path
        .components()
        .any(|part| part == std::path::Component::ParentDir)
    {
        return Err(HostPathError::Backsteps(path.to_owned()));
    }
    let found = fs::metadata(path).ok().map(|metadata| metadata.file_type());
    let wrong = |expected| {
        Err(HostPathError::WrongType {
            path: path.to_owned(),
            expected,
        })
    };
    let create = |source| HostPathError::Create {
        path: path.to_owned(),
        source,
    };
    match (kind, found) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", None) => fs::create_dir_all(path)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
            .map_err(create),
        ("FileOrCreate", None) => fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o644)))
            .map_err(create),
        ("Directory" | "DirectoryOrCreate", Some(kind)) if kind.is_dir() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => wrong("a directory"),
        ("File" | "FileOrCreate", Some(kind)) if kind.is_file() => Ok(()),
        ("File" | "FileOrCreate", _) => wrong("a file"),
        ("Socket", Some(kind)) if kind.is_socket() => Ok(()),
        ("Socket", _) => wrong("a socket file"),
        ("CharDevice", Some(kind)) if kind.is_char_device() => Ok(()),
        ("CharDevice", _) => wrong("a character device"),
        ("BlockDevice", Some(kind)) if kind.is_block_device() => Ok(()),
        ("BlockDevice", _) => wrong("a block device"),
        (other, _) => Err(HostPathError::InvalidType(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn types() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::write(root.join("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        for (path, kind, expect) in [
            ("file", "", true),
            ("absent", "", true),
            ("file", "File", true),
            ("file", "Directory", false),
            ("absent", "File", false),
            ("new", "FileOrCreate", true),
            ("a/b", "DirectoryOrCreate", true),
            ("a/b", "Directory", true),
            ("file", "DirectoryOrCreate", false),
            ("socket", "Socket", true),
            ("file", "Socket", false),
            ("file", "BlockDevice", false),
            ("file", "Nonsense", false),
            ("../x", "", false),
        ] {
            assert_eq!(
                check(&root.join(path), kind).is_ok(),
                expect,
                "{path} {kind}"
            );
        }
        assert!(check(Path::new("/dev/null"), "CharDevice").is_ok());
    }
}
