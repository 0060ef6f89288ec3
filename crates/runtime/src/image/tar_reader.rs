//! A streaming tar reader for untrusted input: ustar, pax and GNU formats.
//!
//! Enter at [`TarReader::next_entry`]; then read the entry's data from the [`TarReader`] itself.
//! Invariants: memory is bounded whatever the input says (the `tar` crate reads long names and pax
//! records of any length into memory, which is why this exists), and what an entry's header
//! announces is never taken further than the bytes that are there.
//! Deliberately absent: writing, and any judgement of the paths; [`super::unpack`] judges them.

use std::io::{self, Read};

const BLOCK_BYTES: usize = 512;
/// Long names, pax records and sparse maps of one entry may be this long together; Go's reader,
/// which Docker uses, has the same limit.
const METADATA_BYTES_MAX: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Directory,
    Fifo,
}

/// One member of the archive, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As written in the archive; may hold anything but is not empty.
    pub path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_seconds: i64,
    pub mtime_nanos: u32,
    /// Length of the file once unpacked, holes included.
    pub size_bytes: u64,
    /// Where the data go, in order, if the file has holes.
    pub sparse: Option<Vec<Extent>>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A run of data within a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
}

/// Reads one archive from its start to its end.
pub struct TarReader<R> {
    inner: R,
    /// Bytes consumed from `inner`.
    position: u64,
    /// Of the current entry's stored data.
    data_left: u64,
    padding_left: u64,
    finished: bool,
}

#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_major: Option<u64>,
    sparse_minor: Option<u64>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_map: Vec<u64>,
}

impl<R: Read> TarReader<R> {
    pub fn new(inner: R) -> Self {
        TarReader {
            inner,
            position: 0,
            data_left: 0,
            padding_left: 0,
            finished: false,
        }
    }

    /// The stream behind the archive, wherever reading stands.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Offset of the current entry's data within the archive.
    pub fn data_position(&self) -> u64 {
        self.position
    }

    /// Skips what is left of the current entry and answers the next; `None` at the archive's end.
    ///
    /// Errors: `InvalidData` for a malformed archive, `UnexpectedEof` for one cut short.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        self.skip_data()?;
        let mut extensions = Extensions::default();
        let mut metadata_bytes = 0;
        loop {
            let Some(header) = self.read_header()? else {
                if extensions.path.is_some() || extensions.link.is_some() {
                    return Err(malformed("archive ends after an extended header"));
                }
                return Ok(None);
            };
            let size = number(&header[124..136], "size")?;
            match header[156] {
                b'L' | b'K' | b'x' | b'g' => {
                    metadata_bytes += size;
                    if metadata_bytes > METADATA_BYTES_MAX {
                        return Err(malformed("an entry's extended header is longer than 1 MiB"));
                    }
                    self.start_data(size);
                    let mut bytes = Vec::with_capacity(size as usize);
                    self.read_to_end(&mut bytes)?;
                    self.skip_data()?;
                    match header[156] {
                        b'L' => extensions.path = Some(until_nul(&bytes).to_vec()),
                        b'K' => extensions.link = Some(until_nul(&bytes).to_vec()),
                        b'x' => extensions.read_pax(&bytes)?,
                        // Global records hold comments in practice; Docker ignores them too.
                        _ => {}
                    }
                }
                _ => {
                    return self
                        .build_entry(&header, size, extensions, metadata_bytes)
                        .map(Some);
                }
            }
        }
    }

    fn build_entry(
        &mut self,
        header: &[u8; BLOCK_BYTES],
        header_size: u64,
        extensions: Extensions,
        metadata_bytes: u64,
    ) -> io::Result<Entry> {
        let device = || -> io::Result<(u32, u32)> {
            Ok((
                id_number(number(&header[329..337], "device")?, "device")?,
                id_number(number(&header[337..345], "device")?, "device")?,
            ))
        };
        let header_path = header_path(header);
        let path = extensions
            .sparse_name
            .clone()
            .or(extensions.path.clone())
            .unwrap_or(header_path);
        let kind = match header[156] {
            0 | b'0' if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => device().map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                return Err(malformed(&format!(
                    "entry has the unknown type {:?}",
                    char::from(other)
                )));
            }
        };
        if path.is_empty() || path.contains(&0) {
            return Err(malformed("an entry's name is empty or holds a NUL"));
        }
        // Only files carry data, whatever else the header of a link or directory says (as in Go).
        let stored = match kind {
            EntryKind::File => extensions.size.unwrap_or(header_size),
            _ => 0,
        };
        let mut size_bytes = stored;
        let mut sparse = None;
        let mut old_gnu_map = None;
        if header[156] == b'S' {
            let real = number(&header[483..495], "size")?;
            old_gnu_map = Some((self.read_gnu_sparse_map(header, metadata_bytes)?, real));
        }
        self.start_data(stored);
        if let Some((map, real)) = old_gnu_map {
            sparse = Some(map);
            size_bytes = real;
        } else if kind == EntryKind::File
            && extensions.sparse_major == Some(1)
            && extensions.sparse_minor == Some(0)
        {
            sparse = Some(self.read_pax_sparse_map(metadata_bytes)?);
            size_bytes = extensions.sparse_size.unwrap_or(stored);
        } else if kind == EntryKind::File && !extensions.sparse_map.is_empty() {
            sparse = Some(pairs(&extensions.sparse_map)?);
            size_bytes = extensions.sparse_size.unwrap_or(stored);
        }
        if let Some(map) = &sparse {
            check_sparse(map, size_bytes, self.data_left)?;
        }
        let (mtime_seconds, mtime_nanos) = match extensions.mtime {
            Some(time) => time,
            None => (signed_number(&header[136..148])?, 0),
        };
        let uid = match extensions.uid {
            Some(uid) => uid,
            None => number(&header[108..116], "uid")?,
        };
        let gid = match extensions.gid {
            Some(gid) => gid,
            None => number(&header[116..124], "gid")?,
        };
        Ok(Entry {
            link: extensions
                .link
                .unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
            path,
            kind,
            mode: (number(&header[100..108], "mode")? & 0o7777) as u32,
            uid: id_number(uid, "uid")?,
            gid: id_number(gid, "gid")?,
            mtime_seconds,
            mtime_nanos,
            size_bytes,
            sparse,
            xattrs: extensions.xattrs,
        })
    }

    /// `None` at the end: zero blocks, or nothing more.
    fn read_header(&mut self) -> io::Result<Option<[u8; BLOCK_BYTES]>> {
        let mut block = [0; BLOCK_BYTES];
        if self.finished || !self.read_block(&mut block)? {
            self.finished = true;
            return Ok(None);
        }
        if block.iter().all(|b| *b == 0) {
            self.finished = true;
            return Ok(None);
        }
        let expected = number(&block[148..156], "checksum")?;
        let sum_of = |as_number: fn(u8) -> i64| -> i64 {
            let bytes = block.iter().enumerate();
            bytes
                .map(|(i, b)| {
                    if (148..156).contains(&i) {
                        32
                    } else {
                        as_number(*b)
                    }
                })
                .sum()
        };
        let unsigned = sum_of(i64::from);
        // Some old writers summed signed bytes.
        let signed = sum_of(|b| i64::from(b as i8));
        if expected as i64 != unsigned && expected as i64 != signed {
            return Err(malformed("header checksum does not match"));
        }
        Ok(Some(block))
    }

    /// `false` at a clean end of the stream.
    fn read_block(&mut self, block: &mut [u8; BLOCK_BYTES]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(cut_short()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.position += BLOCK_BYTES as u64;
        Ok(true)
    }

    fn start_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding_left =
            size.next_multiple_of(BLOCK_BYTES as u64).wrapping_sub(size) % BLOCK_BYTES as u64;
    }

    fn skip_data(&mut self) -> io::Result<()> {
        let expect = self.data_left;
        let skipped = io::copy(&mut self.by_ref().take(expect), &mut io::sink())?;
        if skipped != expect {
            return Err(cut_short());
        }
        let mut padding = [0; BLOCK_BYTES];
        let padding = &mut padding[..self.padding_left as usize];
        self.inner
            .read_exact(padding)
            .or_else(|error| match error.kind() {
                // The last entry's padding is missing from some archives.
                io::ErrorKind::UnexpectedEof => Ok(()),
                _ => Err(error),
            })?;
        self.position += self.padding_left;
        self.padding_left = 0;
        Ok(())
    }

    fn read_gnu_sparse_map(
        &mut self,
        header: &[u8; BLOCK_BYTES],
        mut metadata_bytes: u64,
    ) -> io::Result<Vec<Extent>> {
        fn read(fields: &[u8], map: &mut Vec<Extent>) -> io::Result<()> {
            for field in fields.chunks_exact(24) {
                if field[0] == 0 {
                    break;
                }
                map.push(Extent {
                    offset: number(&field[..12], "sparse map")?,
                    length: number(&field[12..], "sparse map")?,
                });
            }
            Ok(())
        }
        let mut map = Vec::new();
        read(&header[386..482], &mut map)?;
        let mut more = header[482] != 0;
        while more {
            metadata_bytes += BLOCK_BYTES as u64;
            if metadata_bytes > METADATA_BYTES_MAX {
                return Err(malformed("sparse map is longer than 1 MiB"));
            }
            let mut block = [0; BLOCK_BYTES];
            if !self.read_block(&mut block)? {
                return Err(cut_short());
            }
            read(&block[..504], &mut map)?;
            more = block[504] != 0;
        }
        Ok(map)
    }

    /// Format 1.0: decimal numbers, a line each, before the data, padded to a block.
    fn read_pax_sparse_map(&mut self, metadata_bytes: u64) -> io::Result<Vec<Extent>> {
        let stored = self.data_left;
        let mut numbers = Vec::new();
        let mut line = Vec::new();
        let mut expect = None;
        loop {
            let mut byte = [0];
            if self.read(&mut byte)? == 0 {
                return Err(cut_short());
            }
            if stored - self.data_left + metadata_bytes > METADATA_BYTES_MAX {
                return Err(malformed("sparse map is longer than 1 MiB"));
            }
            if byte[0] != b'\n' {
                line.push(byte[0]);
                continue;
            }
            let value = decimal(&line, "sparse map")?;
            line.clear();
            match expect {
                None => {
                    expect = Some(
                        value
                            .checked_mul(2)
                            .ok_or_else(|| malformed("sparse map is malformed"))?,
                    )
                }
                Some(_) => numbers.push(value),
            }
            if Some(numbers.len() as u64) == expect {
                break;
            }
        }
        let used = stored - self.data_left;
        let padding = used.next_multiple_of(BLOCK_BYTES as u64) - used;
        if io::copy(&mut self.by_ref().take(padding), &mut io::sink())? != padding {
            return Err(cut_short());
        }
        pairs(&numbers)
    }
}

/// The data of the current entry, as stored (a sparse file's runs one after the other).
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let limit = buf
            .len()
            .min(usize::try_from(self.data_left).unwrap_or(usize::MAX));
        if limit == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buf[..limit])?;
        if count == 0 {
            return Err(cut_short());
        }
        self.data_left -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

impl Extensions {
    /// Records of the form `<length> <key>=<value>\n`.
    fn read_pax(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let bad = || malformed("pax record is malformed");
        while !bytes.is_empty() {
            let space = bytes.iter().position(|b| *b == b' ').ok_or_else(bad)?;
            let length = decimal(&bytes[..space], "pax record")?;
            let length = usize::try_from(length).map_err(|_| bad())?;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &bytes[space + 1..length - 1];
            bytes = &bytes[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            self.set(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        // An empty value takes the record back.
        let text = || (!value.is_empty()).then(|| value.to_vec());
        let number = || -> io::Result<Option<u64>> {
            if value.is_empty() {
                Ok(None)
            } else {
                decimal(value, "pax record").map(Some)
            }
        };
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => {
                self.mtime = if value.is_empty() {
                    None
                } else {
                    Some(pax_time(value)?)
                }
            }
            b"GNU.sparse.major" => self.sparse_major = number()?,
            b"GNU.sparse.minor" => self.sparse_minor = number()?,
            b"GNU.sparse.name" => self.sparse_name = text(),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse_size = number()?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.sparse_map.push(decimal(value, "sparse map")?);
            }
            b"GNU.sparse.map" => {
                self.sparse_map = value
                    .split(|b| *b == b',')
                    .map(|field| decimal(field, "sparse map"))
                    .collect::<io::Result<_>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn header_path(header: &[u8; BLOCK_BYTES]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    // GNU's magic is "ustar  \0" and keeps other things where ustar has the prefix.
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        return [prefix, b"/", name].concat();
    }
    name.to_vec()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs, or GNU's base 256.
fn signed_number(field: &[u8]) -> io::Result<i64> {
    let bad = || malformed("a number in a header is malformed");
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let fill: u8 = if negative { 0xff } else { 0 };
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let (head, tail) = field.split_at(field.len() - 8);
        let head_is_fill = head
            .iter()
            .enumerate()
            .all(|(i, b)| if i == 0 { first == fill } else { *b == fill });
        // An eight-byte field has its marker within the number itself.
        let mut bytes: [u8; 8] = tail.try_into().map_err(|_| bad())?;
        if head.is_empty() {
            bytes[0] = first;
        } else if !head_is_fill {
            return Err(bad());
        }
        return Ok(i64::from_be_bytes(bytes));
    }
    let text: &[u8] = until_nul(field.trim_ascii_start()).trim_ascii();
    let mut value: i64 = 0;
    for digit in text {
        if !matches!(digit, b'0'..=b'7') {
            return Err(bad());
        }
        value = value
            .checked_mul(8)
            .and_then(|v| v.checked_add(i64::from(digit - b'0')))
            .ok_or_else(bad)?;
    }
    Ok(value)
}

fn number(field: &[u8], what: &str) -> io::Result<u64> {
    u64::try_from(signed_number(field)?).map_err(|_| malformed(&format!("{what} is negative")))
}

fn decimal(text: &[u8], what: &str) -> io::Result<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let value = is_number
        .then(|| std::str::from_utf8(text).ok()?.parse().ok())
        .flatten();
    value
        .filter(|v| *v <= i64::MAX as u64)
        .ok_or_else(|| malformed(&format!("a number in a {what} is malformed")))
}

fn id_number(value: u64, what: &str) -> io::Result<u32> {
    // All ones means "no such user" to the kernel.
    u32::try_from(value)
        .ok()
        .filter(|v| *v != u32::MAX)
        .ok_or_else(|| malformed(&format!("{what} {value} is out of range")))
}

/// `-12.345` seconds, with nanoseconds rounded down.
fn pax_time(text: &[u8]) -> io::Result<(i64, u32)> {
    let bad = || malformed("a time in a pax record is malformed");
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| bad())?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().map_err(|_| bad())?;
    if whole.starts_with('-') && nanos > 0 {
        return Ok((
            seconds.checked_sub(1).ok_or_else(bad)?,
            1_000_000_000 - nanos,
        ));
    }
    Ok((seconds, nanos))
}

fn pairs(numbers: &[u64]) -> io::Result<Vec<Extent>> {
    if !numbers.len().is_multiple_of(2) {
        return Err(malformed("sparse map has an odd number of fields"));
    }
    Ok(numbers
        .chunks_exact(2)
        .map(|p| Extent {
            offset: p[0],
            length: p[1],
        })
        .collect())
}

fn check_sparse(map: &[Extent], size_bytes: u64, stored: u64) -> io::Result<()> {
    let mut end = 0;
    let mut sum = 0u64;
    for extent in map {
        let extent_end = extent.offset.checked_add(extent.length);
        match extent_end {
            Some(extent_end) if extent.offset >= end && extent_end <= size_bytes => {
                end = extent_end
            }
            _ => {
                return Err(malformed(
                    "sparse map is out of order or beyond the file's size",
                ));
            }
        }
        sum += extent.length;
    }
    if sum != stored {
        return Err(malformed("sparse map does not match the stored data"));
    }
    Ok(())
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed tar: {what}"))
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "tar is cut short")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(bytes: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
        let mut reader = TarReader::new(bytes);
        let mut all = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut data = Vec::new();
            let position = reader.data_position();
            reader.read_to_end(&mut data)?;
            if entry.sparse.is_none() {
                assert_eq!(&bytes[position as usize..][..data.len()], data);
            }
            all.push((entry, data));
        }
        Ok(all)
    }

    /// What GNU tar writes of a directory with a long name, links, a sparse file and devices.
    fn gnu_tar(arguments: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let script = format!(
            "set -e; umask 022; long=$(printf 'n%.0s' $(seq 150)); mkdir $long; echo data > $long/$long; \
             ln -s $long sym; ln $long/$long hard; truncate -s 1M sparse; echo x >> sparse; touch -d @-1.5 sparse; \
             mkfifo fifo; mknod null c 1 3; tar {arguments} -cf - $long sym hard sparse fifo null"
        );
        let output = std::process::Command::new("bash")
            .args(["-c", &script])
            .current_dir(dir.path())
            .output()
            .expect("bash runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    #[test]
    fn reads_what_gnu_tar_writes() {
        for arguments in [
            "--format=gnu --sparse",
            "--format=gnu",
            "--format=posix --sparse --sparse-version=1.0",
            "--format=posix --sparse --sparse-version=0.1",
            "--format=posix --sparse --sparse-version=0.0",
            "--format=posix",
        ] {
            let all = entries(&gnu_tar(arguments)).unwrap_or_else(|e| panic!("{arguments}: {e}"));
            let long = [b'n'; 150];
            let find = |path: &[u8]| all.iter().find(|(e, _)| e.path == path).expect("entry");
            let (file, data) = find(&[&long[..], b"/", &long].concat());
            assert_eq!(
                (file.kind, data.as_slice()),
                (EntryKind::File, &b"data\n"[..])
            );
            assert_eq!(find(b"sym").0.link, long, "{arguments}");
            assert_eq!(find(b"hard").0.kind, EntryKind::HardLink);
            assert_eq!(find(b"fifo").0.kind, EntryKind::Fifo);
            assert_eq!(
                find(b"null").0.kind,
                EntryKind::CharDevice { major: 1, minor: 3 }
            );
            let (sparse, data) = find(b"sparse");
            assert_eq!(sparse.size_bytes, (1 << 20) + 2, "{arguments}");
            assert_eq!(sparse.mtime_seconds, -2, "{arguments}");
            if arguments.contains("--sparse") {
                let last = *sparse
                    .sparse
                    .as_ref()
                    .and_then(|m| m.iter().rfind(|e| e.length > 0))
                    .expect("map");
                assert_eq!(last.offset + last.length, (1 << 20) + 2);
                assert!(data.len() < 8192 && data.ends_with(b"x\n"), "{arguments}");
            }
        }
    }

    #[test]
    fn refuses_malformed_archives() {
        let good = gnu_tar("--format=gnu");
        let mut bad_sum = good.clone();
        bad_sum[0] ^= 1;
        assert!(entries(&bad_sum).is_err());
        // The long name's entry cut in its data.
        assert!(entries(&good[..512 + 100]).is_err());
        assert!(entries(&vec![b'x'; 2048]).is_err());
        assert!(entries(&[]).expect("an empty layer").is_empty());
        assert!(entries(&[0; 1024]).expect("an empty archive").is_empty());
    }

    #[test]
    fn safety_long_names_are_bounded() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let error = entries(header.as_bytes()).expect_err("too long");
        assert!(error.to_string().contains("1 MiB"), "{error}");
    }

    proptest! {
        #[test]
        fn safety_any_bytes_end(
            noise in proptest::collection::vec(any::<u8>(), 0..2048),
            edits in proptest::collection::vec((0usize..8192, any::<u8>()), 1..4),
        ) {
            let _ = entries(&noise);
            static GOOD: std::sync::LazyLock<Vec<u8>> =
                std::sync::LazyLock::new(|| gnu_tar("--format=posix --sparse"));
            let mut bytes = GOOD.clone();
            for (at, value) in edits {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            // With checksums made right again, so that the edits reach what lies behind them.
            for header in bytes.as_chunks_mut::<BLOCK_BYTES>().0 {
                let sum: u32 = header.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
                if &header[257..262] == b"ustar" {
                    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            let _ = entries(&bytes);
        }
    }
}
