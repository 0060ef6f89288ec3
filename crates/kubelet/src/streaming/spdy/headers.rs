//! Header blocks: names and values, compressed with zlib and a dictionary that both sides know.
//!
//! A block is a number of pairs; each name and each value is a length and its bytes (32 bits, big-endian).
//! All blocks of one direction are one zlib stream, flushed after every block: each must be read, also that of
//! a stream that is refused.

use std::sync::LazyLock;

use bytes::{Buf, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// Most that a block may have when unpacked.
const BLOCK_BYTES_MAX: usize = 64 << 10;
const STEP_BYTES: usize = 4 << 10;

/// The dictionary of SPDY/3 (section 2.6.10.1): words with their lengths before them, then values as they are.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in DICTIONARY_WORDS {
        let length = u32::try_from(word.len()).unwrap_or(u32::MAX);
        dictionary.extend_from_slice(&length.to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(DICTIONARY_VALUES.as_bytes());
    dictionary
});

const DICTIONARY_WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

const DICTIONARY_VALUES: &str = concat!(
    "10010120120220520630030230330430530630740240540640740840941041141241341441541641",
    "7502504505203 Non-Authoritative Information204 No Content301 Moved Permanently40",
    "0 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error",
    "501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept O",
    "ct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,imag",
    "e/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/",
    "javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1",
    ",utf-,*,enq=0.",
);

/// Names in lower case, with their values, in the order of the block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of that name, whatever its case.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadersError {
    #[error("SPDY header block is not compressed as agreed")]
    Compression,
    #[error("SPDY header block is too long")]
    TooLong,
    #[error("SPDY header block ends too early")]
    TooShort,
}

/// Unpacks the blocks of one direction, in their order.
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, HeadersError> {
        parse(self.inflate(block)?.into())
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, HeadersError> {
        let start = self.0.total_in();
        let mut plain = Vec::new();
        loop {
            let used_bytes = usize::try_from(self.0.total_in() - start).unwrap_or(usize::MAX);
            let input = block.get(used_bytes..).ok_or(HeadersError::Compression)?;
            if plain.len() > BLOCK_BYTES_MAX {
                return Err(HeadersError::TooLong);
            }
            plain.reserve(STEP_BYTES);
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            match self
                .0
                .decompress_vec(input, &mut plain, FlushDecompress::Sync)
            {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| HeadersError::Compression)?;
                    continue;
                }
                Err(_) => return Err(HeadersError::Compression),
            }
            if (before_in, before_out) == (self.0.total_in(), self.0.total_out()) {
                return if input.is_empty() {
                    Ok(plain)
                } else {
                    Err(HeadersError::Compression)
                };
            }
        }
    }
}

/// Packs the blocks of one direction, in their order.
pub struct Deflater(Compress);

impl Default for Deflater {
    fn default() -> Self {
        let mut compress = Compress::new(Compression::default(), true);
        compress
            .set_dictionary(&DICTIONARY)
            .expect("a new stream takes a dictionary");
        Self(compress)
    }
}

impl Deflater {
    pub fn write(&mut self, headers: &Headers) -> Bytes {
        let mut plain = Vec::new();
        let mut put = |bytes: &[u8]| {
            plain.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            plain.extend_from_slice(bytes);
        };
        for (name, value) in &headers.0 {
            put(name.as_bytes());
            put(value.as_bytes());
        }
        let count = u32::try_from(headers.0.len()).unwrap_or(u32::MAX);
        plain.splice(..0, count.to_be_bytes());
        self.deflate(&plain)
    }

    fn deflate(&mut self, plain: &[u8]) -> Bytes {
        let start = self.0.total_in();
        let mut block = Vec::new();
        loop {
            let used_bytes = usize::try_from(self.0.total_in() - start).unwrap_or(usize::MAX);
            block.reserve(STEP_BYTES);
            let room = block.capacity() - block.len();
            let before = block.len();
            self.0
                .compress_vec(
                    plain.get(used_bytes..).unwrap_or_default(),
                    &mut block,
                    FlushCompress::Sync,
                )
                .expect("compressing to memory does not fail");
            // Room that is left over says that the flush is complete.
            if block.len() - before < room {
                return block.into();
            }
        }
    }
}

fn parse(mut plain: Bytes) -> Result<Headers, HeadersError> {
    let number = |plain: &mut Bytes| plain.try_get_u32().map_err(|_| HeadersError::TooShort);
    let count = number(&mut plain)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let mut text = || {
            let length_bytes = number(&mut plain)? as usize;
            if length_bytes > plain.len() {
                return Err(HeadersError::TooShort);
            }
            Ok(String::from_utf8_lossy(&plain.split_to(length_bytes)).into_owned())
        };
        headers.push((text()?.to_ascii_lowercase(), text()?));
    }
    Ok(Headers(headers))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn the_dictionary_is_the_one_everybody_has() {
        assert_eq!(DICTIONARY.len(), 1423);
        // Its Adler-32 stands in every first block, see section 2.6.10.1.
        let block = Deflater::default().write(&Headers::default());
        assert_eq!(block[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    #[test]
    fn blocks_share_their_past() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        let stream = headers(&[("streamtype", "stdin"), ("port", "8080")]);
        let first = deflater.write(&stream);
        let second = deflater.write(&stream);
        assert!(second.len() < first.len());
        assert_eq!(inflater.read(&first), Ok(stream.clone()));
        assert_eq!(inflater.read(&second), Ok(stream.clone()));
        assert_eq!(stream.value("streamType"), Some("stdin"));
        assert_eq!(stream.value("requestID"), None);
    }

    #[test]
    fn broken_blocks_are_errors() {
        let check = |plain: &'static [u8], expect| {
            assert_eq!(parse(Bytes::from_static(plain)), expect, "{plain:?}");
        };
        check(b"\0\0\0\0", Ok(Headers::default()));
        check(b"\0\0\0", Err(HeadersError::TooShort));
        check(b"\0\0\0\x01\0\0\0\x09a", Err(HeadersError::TooShort));
        check(b"\xff\xff\xff\xff", Err(HeadersError::TooShort));
        assert_eq!(
            Inflater::default().read(b"nonsense"),
            Err(HeadersError::Compression)
        );
        let bomb = Deflater::default().deflate(&vec![0; 1 << 20]);
        assert_eq!(Inflater::default().read(&bomb), Err(HeadersError::TooLong));
    }

    proptest! {
        #[test]
        fn safety_any_block_is_survived(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Inflater::default().read(&block);
            let _ = parse(block.into());
        }
    }
}
