//! Reads a container's log as `kubectl logs` asks for it.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::line::{self, Stream};

/// What of a log is wanted, in the API's terms.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub follow: bool,
    pub tail_lines: Option<usize>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    /// `None`: both.
    pub stream: Option<Stream>,
}

/// Longest line that is read at once; the runtime writes longer ones in parts.
const LINE_BYTES_MAX: u64 = 256 << 10;
/// How often a followed file is looked at where nothing tells of a change.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// Sends the log's text to `output` until its end; with `follow` until `ended` says that no more comes.
///
/// Runs on a thread that may block. `ended` is asked between reads: true once the container has ended.
pub fn stream(
    log_path: &Path,
    options: &Options,
    output: &mpsc::Sender<Bytes>,
    ended: &dyn Fn() -> bool,
) -> std::io::Result<()> {
    let mut sink = Sink {
        output,
        left: options.limit_bytes,
        options,
        at_line_start: true,
    };
    let files = super::files(log_path);
    let (first, offset) = match options.tail_lines {
        Some(count) => tail_start(&files, count, options.stream)?,
        None => (0, 0),
    };
    for (index, path) in files.iter().enumerate().skip(first) {
        let start = if index == first { offset } else { 0 };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            // Rotated away just now.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut reader = Reader::new(file, start)?;
        if !sink.drain(&mut reader)? {
            return Ok(());
        }
        if index + 1 == files.len() && options.follow {
            return follow(log_path, reader, &mut sink, ended);
        }
    }
    Ok(())
}

fn follow(
    log_path: &Path,
    mut reader: Reader,
    sink: &mut Sink<'_>,
    ended: &dyn Fn() -> bool,
) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let watcher = Watcher::new(log_path);
    loop {
        // Asked before reading, so that what was written before the end is read.
        let is_over = ended();
        if !sink.drain(&mut reader)? {
            return Ok(());
        }
        let own = reader.file.get_ref().metadata()?;
        match std::fs::metadata(log_path) {
            Ok(current) if current.ino() != own.ino() => {
                // Rotated: the rest of the old file was read above.
                if !sink.drain(&mut reader)? {
                    return Ok(());
                }
                reader = Reader::new(std::fs::File::open(log_path)?, 0)?;
                continue;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && is_over => return Ok(()),
            _ => {}
        }
        if is_over {
            return Ok(());
        }
        if sink.output.is_closed() {
            return Ok(());
        }
        watcher.wait();
    }
}

/// Waits for writes to a log's directory.
struct Watcher(Option<rustix::fd::OwnedFd>);

impl Watcher {
    fn new(log_path: &Path) -> Watcher {
        use rustix::fs::inotify;
        let open = || {
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let directory = log_path.parent().unwrap_or(Path::new("/"));
            inotify::add_watch(
                &fd,
                directory,
                inotify::WatchFlags::MODIFY
                    | inotify::WatchFlags::CREATE
                    | inotify::WatchFlags::MOVED_TO,
            )?;
            Ok::<_, rustix::io::Errno>(fd)
        };
        Watcher(open().ok())
    }

    /// Returns after a change, or after a while to look whether the container or the reader is gone.
    fn wait(&self) {
        let Some(fd) = &self.0 else {
            std::thread::sleep(FOLLOW_INTERVAL);
            return;
        };
        let mut poll = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 500_000_000,
        };
        if rustix::event::poll(&mut poll, Some(&patience)).is_ok_and(|ready| ready > 0) {
            let mut buffer = [0u8; 4096];
            while rustix::io::read(fd, &mut buffer).is_ok_and(|count| count > 0) {}
        }
    }
}

/// Reads whole lines; a line that is not whole yet is kept for later.
struct Reader {
    file: BufReader<std::fs::File>,
    pending: Vec<u8>,
}

impl Reader {
    fn new(mut file: std::fs::File, offset: u64) -> std::io::Result<Reader> {
        file.seek(SeekFrom::Start(offset))?;
        Ok(Reader {
            file: BufReader::with_capacity(16 << 10, file),
            pending: Vec::new(),
        })
    }

    /// The next whole line, or `None` if there is none yet.
    fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let room = LINE_BYTES_MAX.saturating_sub(self.pending.len() as u64);
        (&mut self.file)
            .take(room)
            .read_until(b'\n', &mut self.pending)?;
        let whole = self.pending.ends_with(b"\n") || self.pending.len() as u64 >= LINE_BYTES_MAX;
        Ok(whole.then(|| std::mem::take(&mut self.pending)))
    }
}

struct Sink<'a> {
    output: &'a mpsc::Sender<Bytes>,
    left: Option<u64>,
    options: &'a Options,
    at_line_start: bool,
}

impl Sink<'_> {
    /// Sends all whole lines; answers false when no more is wanted.
    fn drain(&mut self, reader: &mut Reader) -> std::io::Result<bool> {
        let mut batch = Vec::new();
        while let Some(raw) = reader.next()? {
            self.add(&raw, &mut batch);
            if batch.len() >= 32 << 10 && !self.send(&mut batch) {
                return Ok(false);
            }
        }
        Ok(self.send(&mut batch))
    }

    fn add(&mut self, raw: &[u8], batch: &mut Vec<u8>) {
        let Some(line) = line::parse(raw) else { return };
        if self
            .options
            .stream
            .is_some_and(|wanted| wanted != line.stream)
        {
            return;
        }
        if let Some(since) = self.options.since
            && line
                .timestamp
                .parse::<Timestamp>()
                .is_ok_and(|at| at < since)
        {
            return;
        }
        if self.options.timestamps && self.at_line_start {
            batch.extend_from_slice(line.timestamp.as_bytes());
            batch.push(b' ');
        }
        batch.extend_from_slice(line.content);
        if !line.partial {
            batch.push(b'\n');
        }
        self.at_line_start = !line.partial;
    }

    fn send(&mut self, batch: &mut Vec<u8>) -> bool {
        if let Some(left) = &mut self.left {
            batch.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= batch.len() as u64;
        }
        if !batch.is_empty()
            && self
                .output
                .blocking_send(Bytes::from(std::mem::take(batch)))
                .is_err()
        {
            return false;
        }
        self.left != Some(0)
    }
}

/// Where the last `count` lines begin: index of the file, offset in it.
fn tail_start(
    files: &[PathBuf],
    count: usize,
    stream: Option<Stream>,
) -> std::io::Result<(usize, u64)> {
    let mut wanted = count;
    for (index, path) in files.iter().enumerate().rev() {
        let mut file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        if count == 0 {
            return Ok((index, length));
        }
        // Whole lines are counted from the end, a chunk at a time, up to the end of the one before them.
        let mut end = length;
        let mut carry: Vec<u8> = Vec::new();
        while end > 0 {
            let start = end.saturating_sub(64 << 10);
            let mut chunk = vec![0; usize::try_from(end - start).unwrap_or(0)];
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut chunk)?;
            chunk.extend_from_slice(&carry);
            let mut line_end = chunk.len();
            let mut search_end = line_end.saturating_sub(1);
            while let Some(newline) = chunk[..search_end].iter().rposition(|byte| *byte == b'\n') {
                if counts(&chunk[newline + 1..line_end], stream) {
                    if wanted == 0 {
                        return Ok((index, start + line_end as u64));
                    }
                    wanted -= 1;
                }
                line_end = newline + 1;
                search_end = newline;
            }
            carry = chunk[..line_end].to_vec();
            end = start;
        }
        if !carry.is_empty() && counts(&carry, stream) {
            if wanted == 0 {
                return Ok((index, carry.len() as u64));
            }
            wanted -= 1;
        }
    }
    Ok((0, 0))
}

/// Does this raw line end a line of the wanted stream?
fn counts(raw: &[u8], stream: Option<Stream>) -> bool {
    line::parse(raw)
        .is_some_and(|line| !line.partial && stream.is_none_or(|wanted| wanted == line.stream))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(path: &Path, options: &Options) -> String {
        let (sender, mut receiver) = mpsc::channel(1000);
        stream(path, options, &sender, &|| true).unwrap();
        drop(sender);
        let mut text = Vec::new();
        while let Ok(bytes) = receiver.try_recv() {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).unwrap()
    }

    fn log() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(
            directory.path().join("0.log.20260101-000000"),
            "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two\n",
        )
        .unwrap();
        std::fs::write(&path, "2026-01-01T00:00:02Z stdout P thr\n2026-01-01T00:00:02Z stdout F ee\n2026-01-01T00:00:03Z stdout F four\n").unwrap();
        (directory, path)
    }

    #[test]
    fn options() {
        let (_directory, path) = log();
        let base = Options::default();
        for (options, expect) in [
            (base.clone(), "one\ntwo\nthree\nfour\n"),
            (
                Options {
                    tail_lines: Some(1),
                    ..base.clone()
                },
                "four\n",
            ),
            (
                Options {
                    tail_lines: Some(2),
                    ..base.clone()
                },
                "three\nfour\n",
            ),
            (
                Options {
                    tail_lines: Some(3),
                    ..base.clone()
                },
                "two\nthree\nfour\n",
            ),
            (
                Options {
                    tail_lines: Some(99),
                    ..base.clone()
                },
                "one\ntwo\nthree\nfour\n",
            ),
            (
                Options {
                    tail_lines: Some(0),
                    ..base.clone()
                },
                "",
            ),
            (
                Options {
                    limit_bytes: Some(6),
                    ..base.clone()
                },
                "one\ntw",
            ),
            (
                Options {
                    since: Some("2026-01-01T00:00:02Z".parse().unwrap()),
                    ..base.clone()
                },
                "three\nfour\n",
            ),
            (
                Options {
                    stream: Some(Stream::Stderr),
                    ..base.clone()
                },
                "two\n",
            ),
            (
                Options {
                    timestamps: true,
                    tail_lines: Some(2),
                    ..base.clone()
                },
                "2026-01-01T00:00:02Z three\n2026-01-01T00:00:03Z four\n",
            ),
        ] {
            assert_eq!(read(&path, &options), expect, "{options:?}");
        }
        assert_eq!(crate::logs::tail_text(&path, 2, 100), "ee\nfour\n");
    }

    #[test]
    fn following_goes_on_through_a_rotation() {
        let (_directory, path) = log();
        let (sender, mut receiver) = mpsc::channel(1000);
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (thread_path, thread_over) = (path.clone(), std::sync::Arc::clone(&over));
        let reader = std::thread::spawn(move || {
            let options = Options {
                follow: true,
                tail_lines: Some(1),
                ..Options::default()
            };
            stream(&thread_path, &options, &sender, &|| {
                thread_over.load(std::sync::atomic::Ordering::SeqCst)
            })
            .unwrap();
        });
        assert_eq!(receiver.blocking_recv().unwrap(), "four\n");
        std::fs::rename(&path, path.with_file_name("0.log.20260102-000000")).unwrap();
        std::fs::write(&path, "2026-01-01T00:00:04Z stdout F five\n").unwrap();
        assert_eq!(receiver.blocking_recv().unwrap(), "five\n");
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        reader.join().unwrap();
    }
}
