//! Keeps logs small: a file that is full is moved aside, and the oldest of those go.

use std::path::Path;

use jiff::Timestamp;
use runtime::service::RuntimeService;

/// A log's file grows to this size.
pub const FILE_BYTES_MAX: u64 = 10 << 20;
/// Files of one container's log, the written one included.
pub const FILE_COUNT_MAX: usize = 5;

/// Rotates the container's log if it is full; has the runtime write to a new file.
pub async fn rotate(
    runtime: &dyn RuntimeService,
    container_id: &str,
    log_path: &Path,
    bytes_max: u64,
    now: Timestamp,
) -> std::io::Result<bool> {
    let size = match std::fs::metadata(log_path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if size < bytes_max {
        return Ok(false);
    }
    let mut old = super::rotated(log_path);
    // Beside the file that is moved now and the one that is written next.
    while old.len() > FILE_COUNT_MAX - 2 {
        std::fs::remove_file(old.remove(0))?;
    }
    let Some(name) = log_path.file_name().and_then(|name| name.to_str()) else {
        return Ok(false);
    };
    let moved = log_path.with_file_name(format!("{name}.{}", now.strftime("%Y%m%d-%H%M%S-%f")));
    std::fs::rename(log_path, &moved)?;
    if let Err(error) = runtime.reopen_container_log(container_id).await {
        // The runtime still writes to the moved file: put it back.
        let _ = std::fs::rename(&moved, log_path);
        return Err(std::io::Error::other(error.to_string()));
    }
    Ok(true)
}
