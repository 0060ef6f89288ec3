//! Containers' logs: CRI's line format, reading with options, rotation.
//!
//! ```text
//! <log dir>/<namespace>_<name>_<uid>/<container>/<n>.log               the runtime appends here
//!                                               <n>.log.20260102-150405  rotated, oldest first by name
//!
//! 2026-01-02T15:04:05.000000000Z stdout F a whole line
//! 2026-01-02T15:04:05.000000001Z stderr P the first part of a long line
//! ```
//!
//! Enter at [`read::stream`] for `kubectl logs`, [`rotate::rotate`] for rotation.

pub mod line;
pub mod read;
pub mod rotate;

use std::path::{Path, PathBuf};

/// The log's files, oldest first: rotated ones, then the one that is written.
pub fn files(log_path: &Path) -> Vec<PathBuf> {
    let mut list = rotated(log_path);
    list.push(log_path.to_owned());
    list
}

/// Rotated files of a log, oldest first.
fn rotated(log_path: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (
        log_path.parent(),
        log_path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Vec::new();
    };
    let prefix = format!("{name}.");
    let mut list: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|own| own.starts_with(&prefix))
        })
        .map(|entry| entry.path())
        .collect();
    list.sort();
    list
}

/// Removes a log and what was rotated of it.
pub fn remove(log_path: &Path) {
    for file in files(log_path) {
        if let Err(error) = std::fs::remove_file(&file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %file.display(), "log was not removed");
        }
    }
}

/// The last lines of a log as text, for a termination message.
pub fn tail_text(log_path: &Path, lines_max: usize, bytes_max: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    // CRI's prefix is about 40 bytes a line.
    let window = (bytes_max + lines_max * 48) as u64;
    let mut text = Vec::new();
    let read = std::fs::File::open(log_path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(window)))?;
        file.take(window).read_to_end(&mut text)
    });
    if read.is_err() {
        return String::new();
    }
    let mut content = Vec::new();
    let all: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    for raw in &all[all.len().saturating_sub(lines_max)..] {
        if let Some(line) = line::parse(raw) {
            content.extend_from_slice(line.content);
            if !line.partial {
                content.push(b'\n');
            }
        }
    }
    let start = content.len().saturating_sub(bytes_max);
    String::from_utf8_lossy(&content[start..]).into_owned()
}
