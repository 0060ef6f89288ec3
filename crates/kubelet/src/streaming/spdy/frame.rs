//! Frames of SPDY/3.1 (draft-mbelshe-httpbis-spdy-00, section 2).
//!
//! ```text
//! data     0 | stream 31        || flags 8 | length 24 || bytes
//! control  1 | version 15 | type 16 || flags 8 | length 24 || content
//! ```
//!
//! Numbers are big-endian. Header blocks stay compressed here. The data of a frame is handed out as it comes,
//! so a frame of 16 MiB never waits for its end.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// `END` of this side of the stream, on data, SYN_STREAM, SYN_REPLY and HEADERS.
const FLAG_FIN: u8 = 0x01;
const HEADER_BYTES: usize = 8;
const VERSION: u16 = 3;
/// client-go's headers are a few hundred bytes.
const CONTROL_BYTES_MAX: usize = 64 << 10;
const STREAM_MASK: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream was reset.
pub const PROTOCOL_ERROR: u32 = 1;
pub const REFUSED_STREAM: u32 = 3;
pub const CANCEL: u32 = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    SynReply {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    RstStream {
        stream: u32,
        status: u32,
    },
    Settings,
    Ping {
        id: u32,
    },
    GoAway,
    Headers {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    WindowUpdate,
    /// A piece of a data frame; `fin` only with the last one.
    Data {
        stream: u32,
        fin: bool,
        data: Bytes,
    },
    /// A control frame that has no meaning here; to be ignored.
    Unknown,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("SPDY version {0} is not 3")]
    Version(u16),
    #[error("SPDY control frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("SPDY control frame of type {0} is too short")]
    TooShort(u16),
}

/// The rest of a data frame that has not come yet.
struct Rest {
    stream: u32,
    fin: bool,
    length_bytes: usize,
}

/// Reads frames from bytes that come in pieces.
#[derive(Default)]
pub struct Decoder {
    rest: Option<Rest>,
}

impl Decoder {
    /// The next frame, taken off the front of the input; `None`: more input is needed.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if let Some(rest) = self.rest.take() {
            return Ok(self.data(rest, input));
        }
        let Some(mut head) = input.get(..HEADER_BYTES) else {
            return Ok(None);
        };
        let first = head.get_u32();
        let second = head.get_u32();
        let [flags, ..] = second.to_be_bytes();
        let length_bytes = (second & 0x00ff_ffff) as usize;
        let fin = flags & FLAG_FIN != 0;
        if first & !STREAM_MASK == 0 {
            input.advance(HEADER_BYTES);
            let rest = Rest {
                stream: first,
                fin,
                length_bytes,
            };
            return Ok(self.data(rest, input));
        }
        let version = (first >> 16) as u16 & 0x7fff;
        let kind = (first & 0xffff) as u16;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length_bytes > CONTROL_BYTES_MAX {
            return Err(FrameError::TooLong(length_bytes));
        }
        if input.len() < HEADER_BYTES + length_bytes {
            return Ok(None);
        }
        input.advance(HEADER_BYTES);
        let content = input.split_to(length_bytes).freeze();
        control(kind, fin, content)
            .ok_or(FrameError::TooShort(kind))
            .map(Some)
    }

    fn data(&mut self, rest: Rest, input: &mut BytesMut) -> Option<Frame> {
        let here_bytes = rest.length_bytes.min(input.len());
        if here_bytes == 0 && rest.length_bytes > 0 {
            self.rest = Some(rest);
            return None;
        }
        let data = input.split_to(here_bytes).freeze();
        let length_bytes = rest.length_bytes - here_bytes;
        let (stream, fin) = (rest.stream, rest.fin);
        if length_bytes > 0 {
            self.rest = Some(Rest {
                length_bytes,
                ..rest
            });
        }
        Some(Frame::Data {
            stream,
            fin: fin && length_bytes == 0,
            data,
        })
    }
}

/// `None`: the content is too short for its kind.
fn control(kind: u16, fin: bool, mut content: Bytes) -> Option<Frame> {
    let mut number = || content.try_get_u32().ok();
    Some(match kind {
        SYN_STREAM => {
            let stream = number()? & STREAM_MASK;
            let _associated = number()?;
            let _priority_and_slot = content.try_get_u16().ok()?;
            Frame::SynStream {
                stream,
                fin,
                block: content,
            }
        }
        SYN_REPLY => Frame::SynReply {
            stream: number()? & STREAM_MASK,
            fin,
            block: content,
        },
        HEADERS => Frame::Headers {
            stream: number()? & STREAM_MASK,
            fin,
            block: content,
        },
        RST_STREAM => Frame::RstStream {
            stream: number()? & STREAM_MASK,
            status: number()?,
        },
        PING => Frame::Ping { id: number()? },
        SETTINGS => Frame::Settings,
        GOAWAY => Frame::GoAway,
        WINDOW_UPDATE => Frame::WindowUpdate,
        _ => Frame::Unknown,
    })
}

impl Frame {
    /// The frame's bytes. Data and blocks must be shorter than 16 MiB.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Data { stream, fin, data } => {
                let mut bytes = BytesMut::with_capacity(HEADER_BYTES + data.len());
                bytes.put_u32(*stream & STREAM_MASK);
                put_length(&mut bytes, *fin, data.len());
                bytes.extend_from_slice(data);
                bytes.freeze()
            }
            Self::SynStream { stream, fin, block } => {
                let mut content = BytesMut::with_capacity(10 + block.len());
                content.put_u32(*stream);
                content.put_u32(0);
                content.put_u16(0);
                content.extend_from_slice(block);
                put_control(SYN_STREAM, *fin, &content)
            }
            Self::SynReply { stream, fin, block } => with_block(SYN_REPLY, *stream, *fin, block),
            Self::Headers { stream, fin, block } => with_block(HEADERS, *stream, *fin, block),
            Self::RstStream { stream, status } => numbers(RST_STREAM, &[*stream, *status]),
            Self::Ping { id } => numbers(PING, &[*id]),
            Self::GoAway => numbers(GOAWAY, &[0, 0]),
            Self::Settings => numbers(SETTINGS, &[0]),
            Self::WindowUpdate => numbers(WINDOW_UPDATE, &[0, 0]),
            Self::Unknown => Bytes::new(),
        }
    }
}

fn put_length(bytes: &mut BytesMut, fin: bool, length_bytes: usize) {
    let length = u32::try_from(length_bytes).unwrap_or(u32::MAX);
    assert!(length < 1 << 24, "a frame of {length_bytes} bytes");
    bytes.put_u32(u32::from(if fin { FLAG_FIN } else { 0 }) << 24 | length);
}

fn put_control(kind: u16, fin: bool, content: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + content.len());
    bytes.put_u16(0x8000 | VERSION);
    bytes.put_u16(kind);
    put_length(&mut bytes, fin, content.len());
    bytes.extend_from_slice(content);
    bytes.freeze()
}

fn with_block(kind: u16, stream: u32, fin: bool, block: &[u8]) -> Bytes {
    let mut content = BytesMut::with_capacity(4 + block.len());
    content.put_u32(stream);
    content.extend_from_slice(block);
    put_control(kind, fin, &content)
}

fn numbers(kind: u16, numbers: &[u32]) -> Bytes {
    let content: Vec<u8> = numbers
        .iter()
        .flat_map(|number| number.to_be_bytes())
        .collect();
    put_control(kind, false, &content)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn frames(bytes: &[u8]) -> (Vec<Frame>, Option<FrameError>) {
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::from(bytes));
        let mut frames = Vec::new();
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(error) => return (frames, Some(error)),
            }
        }
    }

    #[test]
    fn frames_are_read() {
        let check = |bytes: &[u8], expect: &[Frame], error: Option<FrameError>| {
            assert_eq!(frames(bytes), (expect.to_vec(), error), "{bytes:?}");
        };
        let data = |fin, data: &'static [u8]| Frame::Data {
            stream: 5,
            fin,
            data: Bytes::from_static(data),
        };
        check(b"", &[], None);
        check(b"\0\0\0\x05\x01\0\0", &[], None);
        check(b"\0\0\0\x05\x01\0\0\x02hi", &[data(true, b"hi")], None);
        check(b"\0\0\0\x05\x01\0\0\x03hi", &[data(false, b"hi")], None);
        check(b"\0\0\0\x05\x01\0\0\0", &[data(true, b"")], None);
        check(
            b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x09",
            &[Frame::Ping { id: 9 }],
            None,
        );
        check(
            b"\x80\x03\0\x01\x01\0\0\x0c\0\0\0\x03\0\0\0\0\0\0zz",
            &[Frame::SynStream {
                stream: 3,
                fin: true,
                block: Bytes::from_static(b"zz"),
            }],
            None,
        );
        check(
            b"\x80\x03\0\x09\0\0\0\x08\0\0\0\x01\0\0\0\x01\x80\x03\0\x63\0\0\0\0",
            &[Frame::WindowUpdate, Frame::Unknown],
            None,
        );
        check(
            b"\x80\x02\0\x06\0\0\0\x04",
            &[],
            Some(FrameError::Version(2)),
        );
        check(
            b"\x80\x03\0\x06\0\0\0\x03zzz",
            &[],
            Some(FrameError::TooShort(6)),
        );
        check(
            b"\x80\x03\0\x01\0\xff\xff\xff",
            &[],
            Some(FrameError::TooLong(0xff_ffff)),
        );
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let stream = 0..=STREAM_MASK;
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        prop_oneof![
            (stream.clone(), any::<bool>(), bytes()).prop_map(|(stream, fin, data)| Frame::Data {
                stream,
                fin,
                data
            }),
            (stream.clone(), any::<bool>(), bytes())
                .prop_map(|(stream, fin, block)| Frame::SynStream { stream, fin, block }),
            (stream.clone(), any::<bool>(), bytes())
                .prop_map(|(stream, fin, block)| Frame::SynReply { stream, fin, block }),
            (stream.clone(), any::<bool>(), bytes())
                .prop_map(|(stream, fin, block)| Frame::Headers { stream, fin, block }),
            (stream, any::<u32>()).prop_map(|(stream, status)| Frame::RstStream { stream, status }),
            any::<u32>().prop_map(|id| Frame::Ping { id }),
            Just(Frame::GoAway),
            Just(Frame::Settings),
        ]
    }

    proptest! {
        #[test]
        fn safety_what_is_written_is_read_back(expect in proptest::collection::vec(any_frame(), 0..8)) {
            let bytes: Vec<u8> = expect.iter().flat_map(|frame| frame.encode()).collect();
            prop_assert_eq!(frames(&bytes), (expect, None));
        }

        #[test]
        fn safety_any_bytes_in_any_pieces_are_survived(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            piece in 1_usize..20,
        ) {
            let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
            'pieces: for piece in bytes.chunks(piece) {
                input.extend_from_slice(piece);
                loop {
                    match decoder.decode(&mut input) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'pieces,
                    }
                }
            }
        }
    }
}
