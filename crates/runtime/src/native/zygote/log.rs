//! Container logs in CRI's format: `<time> <stream> <F|P> <text>`.
//!
//! A line longer than 16 KiB is written in parts tagged `P`; its last part is tagged `F`.
//! What the disk does not take is dropped: a full disk never stops a container or the zygote.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Longest text in one log line, as containerd and CRI-O split.
const LINE_BYTES_MAX: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// The log file of one container and the unfinished line of each stream.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    pending: [Vec<u8>; 2],
    out: Vec<u8>,
}

impl Log {
    /// Opens (appends to) the file and makes its directory.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut log = Self {
            path,
            file: None,
            pending: [Vec::new(), Vec::new()],
            out: Vec::new(),
        };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file by its path again, after a rotation.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = Some(
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o640)
                .open(&self.path)?,
        );
        Ok(())
    }

    /// Takes a piece of output; complete lines go to the file with one write.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8], now_nanos: i64) {
        let time = rfc3339_nanos(now_nanos);
        self.out.clear();
        while !bytes.is_empty() {
            let pending = &mut self.pending[stream as usize];
            let room = LINE_BYTES_MAX - pending.len();
            let window = &bytes[..bytes.len().min(room)];
            let taken = match window.iter().position(|b| *b == b'\n') {
                Some(end) => {
                    entry(&mut self.out, &time, stream, b"F", pending, &window[..end]);
                    pending.clear();
                    end + 1
                }
                None if window.len() == room => {
                    entry(&mut self.out, &time, stream, b"P", pending, window);
                    pending.clear();
                    room
                }
                None => {
                    pending.extend_from_slice(window);
                    window.len()
                }
            };
            bytes = &bytes[taken..];
        }
        self.flush();
    }

    /// Writes the unfinished lines: the container has ended.
    pub fn finish(&mut self, now_nanos: i64) {
        let time = rfc3339_nanos(now_nanos);
        self.out.clear();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let pending = &mut self.pending[stream as usize];
            if !pending.is_empty() {
                entry(&mut self.out, &time, stream, b"F", pending, b"");
                pending.clear();
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        if let (Some(file), false) = (&mut self.file, self.out.is_empty()) {
            // ENOSPC and EIO lose these lines, nothing else.
            let _ = file.write_all(&self.out);
        }
        if self.out.capacity() > 8 * LINE_BYTES_MAX {
            self.out = Vec::new();
        }
    }
}

fn entry(out: &mut Vec<u8>, time: &str, stream: Stream, tag: &[u8], first: &[u8], second: &[u8]) {
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(match stream {
        Stream::Stdout => b" stdout ",
        Stream::Stderr => b" stderr ",
    });
    out.extend_from_slice(tag);
    out.push(b' ');
    out.extend_from_slice(first);
    out.extend_from_slice(second);
    out.push(b'\n');
}

/// Nanoseconds since 1970 as `2006-01-02T15:04:05.999999999Z`.
pub fn rfc3339_nanos(nanos: i64) -> String {
    let seconds = nanos.div_euclid(1_000_000_000);
    let fraction = nanos.rem_euclid(1_000_000_000);
    let days = seconds.div_euclid(86_400);
    let of_day = seconds.rem_euclid(86_400);
    // Civil date from days (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:09}Z",
        of_day / 3600,
        of_day % 3600 / 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn lines_and_parts() {
        let check = |pieces: &[&[u8]], expect: &[(&str, usize)]| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("a/0.log");
            let mut log = Log::open(path.clone()).unwrap();
            for piece in pieces {
                log.write(Stream::Stdout, piece, 0);
            }
            log.finish(0);
            let text = std::fs::read_to_string(path).unwrap();
            let got: Vec<(String, usize)> = text
                .lines()
                .map(|line| {
                    let rest = line
                        .strip_prefix("1970-01-01T00:00:00.000000000Z stdout ")
                        .unwrap();
                    let (tag, text) = rest.split_once(' ').unwrap();
                    (tag.to_owned(), text.len())
                })
                .collect();
            let expect: Vec<(String, usize)> =
                expect.iter().map(|(t, n)| ((*t).to_owned(), *n)).collect();
            assert_eq!(got, expect);
        };
        check(&[b"one\ntwo\n"], &[("F", 3), ("F", 3)]);
        check(&[b"on", b"e\n", b"rest"], &[("F", 3), ("F", 4)]);
        check(&[b"\n\n"], &[("F", 0), ("F", 0)]);
        check(&[&[b'x'; 20_000]], &[("P", 16_384), ("F", 3616)]);
        let long = vec![b'x'; 40_000];
        check(
            &[&long, b"\n"],
            &[("P", 16_384), ("P", 16_384), ("F", 7232)],
        );
        check(&[], &[]);
    }

    #[test]
    fn times() {
        let check = |nanos, expect| assert_eq!(rfc3339_nanos(nanos), expect);
        check(0, "1970-01-01T00:00:00.000000000Z");
        check(1_709_210_096_000_000_007, "2024-02-29T12:34:56.000000007Z");
        check(4_102_444_799_999_999_999, "2099-12-31T23:59:59.999999999Z");
    }
}
