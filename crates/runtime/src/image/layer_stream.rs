//! The bytes of a layer on their way to the tar reader: decompressed, counted, bounded.
//!
//! Enter at [`decompress`] and [`bounded`]. The errors that these readers raise carry whose fault they are;
//! [`read_error`] turns them into [`UnpackError`].

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::unpack::{UnpackError, io_error};

const BUFFER_BYTES: usize = 128 << 10;
/// 128 MiB: what zstd's own tool takes without `--long`.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How much a layer may unpack to.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Of the tar stream and of all files together, holes included.
    pub unpacked_bytes_max: u64,
    /// Unpacked to compressed bytes, once [`Limits::ratio_floor_bytes`] are unpacked.
    pub ratio_max: u64,
    pub ratio_floor_bytes: u64,
    pub entry_count_max: u64,
}

impl Default for Limits {
    /// Far above real images (the largest machine-learning layers reach 20 GB), far below a full disk by surprise.
    fn default() -> Self {
        Limits {
            unpacked_bytes_max: 64 << 30,
            ratio_max: 200,
            ratio_floor_bytes: 1 << 30,
            entry_count_max: 4_000_000,
        }
    }
}

/// The decompressed layer, ending in an error when it goes beyond `limits` or is `cancelled`.
pub(super) fn bounded<'a>(
    compressed: impl Read + 'a,
    limits: &'a Limits,
    cancelled: &'a AtomicBool,
) -> Result<impl Read + 'a, UnpackError> {
    let compressed_bytes = Rc::new(Cell::new(0));
    let counted = CountingReader {
        inner: compressed,
        byte_count: Rc::clone(&compressed_bytes),
    };
    let bounded = BoundedReader {
        inner: decompress(counted)?,
        unpacked_bytes: 0,
        compressed_bytes,
        limits,
        cancelled,
    };
    Ok(BufReader::with_capacity(BUFFER_BYTES, bounded))
}

/// A decompressing reader over a layer or archive of any supported compression.
pub fn decompress<'a>(compressed: impl Read + 'a) -> Result<Box<dyn Read + 'a>, UnpackError> {
    let mut buffered = BufReader::with_capacity(BUFFER_BYTES, compressed);
    // One read of a file or of a socket gives at least the magic bytes, or all there is.
    let magic = buffered.fill_buf().map_err(read_error)?;
    match magic {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(buffered))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(buffered).map_err(read_error)?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG_MAX)
                .map_err(read_error)?;
            Ok(Box::new(decoder))
        }
        [b'B', b'Z', b'h', ..] => Err(UnpackError::Corrupt(
            "compression bzip2 is not supported".into(),
        )),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(UnpackError::Corrupt(
            "compression xz is not supported".into(),
        )),
        _ => Ok(Box::new(buffered)),
    }
}

/// An error of reading the layer: its own fault, unless the kernel said so.
pub(super) fn read_error(error: io::Error) -> UnpackError {
    if error.raw_os_error().is_some() {
        return io_error("reading a layer".into(), error);
    }
    if error.get_ref().is_some_and(|inner| inner.is::<Stopped>()) {
        return UnpackError::Cancelled;
    }
    UnpackError::Corrupt(match error.kind() {
        io::ErrorKind::UnexpectedEof => format!("layer is cut short: {error}"),
        _ => error.to_string(),
    })
}

struct CountingReader<R> {
    inner: R,
    byte_count: Rc<Cell<u64>>,
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.byte_count.set(self.byte_count.get() + count as u64);
        Ok(count)
    }
}

/// Marks the error that [`BoundedReader`] raises when the caller has cancelled.
#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
struct Stopped;

struct BoundedReader<'a, R> {
    inner: R,
    unpacked_bytes: u64,
    compressed_bytes: Rc<Cell<u64>>,
    limits: &'a Limits,
    cancelled: &'a AtomicBool,
}

impl<R: Read> Read for BoundedReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other(Stopped));
        }
        let count = self.inner.read(buf)?;
        self.unpacked_bytes += count as u64;
        if self.unpacked_bytes > self.limits.unpacked_bytes_max {
            return Err(io::Error::other(too_large(self.limits).to_string()));
        }
        let ratio_bytes_max = self
            .compressed_bytes
            .get()
            .saturating_mul(self.limits.ratio_max);
        if self.unpacked_bytes > self.limits.ratio_floor_bytes
            && self.unpacked_bytes > ratio_bytes_max
        {
            return Err(io::Error::other(format!(
                "layer unpacks to more than {} times its size, like a decompression bomb",
                self.limits.ratio_max
            )));
        }
        Ok(count)
    }
}

pub(super) fn too_large(limits: &Limits) -> UnpackError {
    UnpackError::Corrupt(format!(
        "layer unpacks to more than {} bytes",
        limits.unpacked_bytes_max
    ))
}
