//! Kernel settings of the network namespace, and putting back what was there before.

use std::path::{Path, PathBuf};

use crate::NetworkError;

const FORWARDING: &str = "ipv4/ip_forward";
/// Holds the value that `ip_forward` had before it was changed.
const RECORD: &str = "ip_forward.before";

fn path(name: &str) -> PathBuf {
    // Of the calling thread's network namespace, which /proc/sys of the process need not be.
    Path::new("/proc/sys/net").join(name)
}

pub(crate) fn write(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = path(name);
    std::fs::write(&path, value).map_err(|error| NetworkError::file("write", &path, error))
}

/// Lets the node forward between pods and the world; what it was is recorded in `state_dir`.
pub(crate) fn enable_forwarding(state_dir: &Path) -> Result<(), NetworkError> {
    let path = path(FORWARDING);
    let value =
        std::fs::read_to_string(&path).map_err(|error| NetworkError::file("read", &path, error))?;
    if value.trim() != "0" {
        return Ok(());
    }
    let record = state_dir.join(RECORD);
    std::fs::create_dir_all(state_dir)
        .map_err(|error| NetworkError::file("make", state_dir, error))?;
    std::fs::write(&record, value).map_err(|error| NetworkError::file("write", &record, error))?;
    write(FORWARDING, "1")
}

/// Puts forwarding back if it was changed; answers what was (or would be) done.
pub(crate) fn restore_forwarding(
    state_dir: &Path,
    dry_run: bool,
) -> Result<Option<String>, NetworkError> {
    let record = state_dir.join(RECORD);
    let value = match std::fs::read_to_string(&record) {
        Ok(value) => value,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(NetworkError::file("read", &record, error)),
    };
    if !dry_run {
        write(FORWARDING, value.trim())?;
        std::fs::remove_file(&record)
            .map_err(|error| NetworkError::file("remove", &record, error))?;
    }
    Ok(Some(format!(
        "setting net.ipv4.ip_forward=1 (back to {})",
        value.trim()
    )))
}
