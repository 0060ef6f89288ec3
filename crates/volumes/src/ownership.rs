//! `fsGroup`: the group that a pod's volumes belong to.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// Gives everything below `path` (and itself) to the group, adds the group's bits, and sets the
/// set-group-id bit on directories. `readonly`: the pod may only read.
pub fn give_to_group(path: &Path, group: i64, readonly: bool) -> io::Result<()> {
    let Ok(group) = u32::try_from(group) else {
        return Ok(());
    };
    let metadata = fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mut mode = metadata.mode() & 0o7777 | if readonly { 0o440 } else { 0o660 };
    if metadata.is_dir() {
        mode |= 0o2110;
        for entry in fs::read_dir(path)? {
            give_to_group(&entry?.path(), group.into(), readonly)?;
        }
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Does `path` itself already belong to the group with all its bits? (`fsGroupChangePolicy: OnRootMismatch`)
pub fn root_matches(path: &Path, group: i64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| {
        i64::from(metadata.gid()) == group && metadata.mode() & 0o2770 == 0o2770
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_group_gets_its_bits() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!root_matches(directory.path(), 4242));
        give_to_group(directory.path(), 4242, false).unwrap();
        assert!(root_matches(directory.path(), 4242));
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!((metadata.gid(), metadata.mode() & 0o777), (4242, 0o660));
    }
}
