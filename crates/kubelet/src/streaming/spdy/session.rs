//! The rules of a SPDY connection, without I/O: bytes in, events and frames out.
//!
//! The client opens streams with odd, growing numbers; each is accepted at once with a SYN_REPLY.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};

use super::frame::{Decoder, Frame, FrameError, PROTOCOL_ERROR, REFUSED_STREAM};
use super::headers::{Deflater, Headers, HeadersError, Inflater};

/// Streams whose end the client has not sent; a port-forward has two a connection.
const OPEN_STREAM_COUNT_MAX: usize = 4096;

#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Opened {
        stream: u32,
        headers: Headers,
    },
    Data {
        stream: u32,
        data: Bytes,
    },
    /// The client sends no more on the stream.
    Ended {
        stream: u32,
    },
    /// The client has given the stream up.
    Reset {
        stream: u32,
    },
    /// The client is about to close the connection.
    GoAway,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Headers(#[from] HeadersError),
}

#[derive(Default)]
pub struct Session {
    decoder: Decoder,
    inflater: Inflater,
    deflater: Deflater,
    last_stream: u32,
    /// Streams on which the client may still send.
    open: HashSet<u32>,
    /// The end of a stream that came with something else.
    pending: Option<Event>,
    outgoing: Vec<Bytes>,
}

impl Session {
    /// The next event of the input, which is taken off its front; `None`: more input is needed.
    ///
    /// After every call, [`Session::take_outgoing`] has the answers to the client. An error ends the connection.
    pub fn handle_input(&mut self, input: &mut BytesMut) -> Result<Option<Event>, SessionError> {
        if let Some(event) = self.pending.take() {
            return Ok(Some(event));
        }
        while let Some(frame) = self.decoder.decode(input)? {
            if let Some(event) = self.handle_frame(frame)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Encoded frames to send, in order.
    pub fn take_outgoing(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.outgoing)
    }

    fn handle_frame(&mut self, frame: Frame) -> Result<Option<Event>, SessionError> {
        Ok(match frame {
            Frame::SynStream { stream, fin, block } => {
                let headers = self.inflater.read(&block)?;
                self.open(stream, fin, headers)
            }
            Frame::Data { stream, fin, data } => {
                if !self.open.contains(&stream) {
                    // Still on its way when the stream ended.
                    return Ok(None);
                }
                if fin {
                    self.open.remove(&stream);
                }
                let ended = fin.then_some(Event::Ended { stream });
                if data.is_empty() {
                    ended
                } else {
                    self.pending = ended;
                    Some(Event::Data { stream, data })
                }
            }
            Frame::Headers { stream, fin, block } => {
                self.inflater.read(&block)?;
                (fin && self.open.remove(&stream)).then_some(Event::Ended { stream })
            }
            Frame::SynReply { block, .. } => {
                // We open no streams, but the block belongs to the compression's past.
                self.inflater.read(&block)?;
                None
            }
            Frame::RstStream { stream, .. } => {
                self.open.remove(&stream);
                (stream <= self.last_stream).then_some(Event::Reset { stream })
            }
            Frame::Ping { id } => {
                // Even numbers would be answers to pings of ours.
                if id % 2 == 1 {
                    self.outgoing.push(Frame::Ping { id }.encode());
                }
                None
            }
            Frame::GoAway => Some(Event::GoAway),
            Frame::Settings | Frame::WindowUpdate | Frame::Unknown => None,
        })
    }

    fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> Option<Event> {
        let refused = if stream.is_multiple_of(2) || stream <= self.last_stream {
            Some(PROTOCOL_ERROR)
        } else if self.open.len() >= OPEN_STREAM_COUNT_MAX {
            Some(REFUSED_STREAM)
        } else {
            None
        };
        if let Some(status) = refused {
            self.outgoing
                .push(Frame::RstStream { stream, status }.encode());
            return None;
        }
        self.last_stream = stream;
        let reply = Frame::SynReply {
            stream,
            fin: false,
            block: self.deflater.write(&Headers::default()),
        };
        self.outgoing.push(reply.encode());
        if fin {
            self.pending = Some(Event::Ended { stream });
        } else {
            self.open.insert(stream);
        }
        Some(Event::Opened { stream, headers })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn events(bytes: &[u8]) -> (Vec<Event>, Vec<Frame>, Option<SessionError>) {
        let (mut session, mut input) = (Session::default(), BytesMut::from(bytes));
        let mut events = Vec::new();
        let error = loop {
            match session.handle_input(&mut input) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let mut answers = BytesMut::from(&session.take_outgoing().concat()[..]);
        let mut decoder = Decoder::default();
        let answers = std::iter::from_fn(|| decoder.decode(&mut answers).unwrap()).collect();
        (events, answers, error)
    }

    #[test]
    fn streams_are_opened_used_and_ended() {
        let mut deflater = Deflater::default();
        let headers = Headers(vec![("streamtype".into(), "data".into())]);
        let mut open = |stream, fin| {
            let block = deflater.write(&headers);
            Frame::SynStream { stream, fin, block }.encode()
        };
        let data = |stream, fin, data: &'static [u8]| {
            let data = Bytes::from_static(data);
            Frame::Data { stream, fin, data }.encode()
        };
        let input = [
            open(1, false),
            open(3, true),
            open(3, false),
            open(4, false),
            data(1, false, b"a"),
            data(3, false, b"late"),
            data(1, true, b"b"),
            data(9, true, b""),
            Frame::Ping { id: 1 }.encode(),
            Frame::Ping { id: 2 }.encode(),
            Frame::RstStream {
                stream: 3,
                status: 5,
            }
            .encode(),
            Frame::GoAway.encode(),
        ];
        let (events, answers, error) = events(&input.concat());
        assert_eq!(error, None);
        let bytes = Bytes::from_static;
        let opened = |stream| Event::Opened {
            stream,
            headers: headers.clone(),
        };
        assert_eq!(
            events,
            [
                opened(1),
                opened(3),
                Event::Ended { stream: 3 },
                Event::Data {
                    stream: 1,
                    data: bytes(b"a")
                },
                Event::Data {
                    stream: 1,
                    data: bytes(b"b")
                },
                Event::Ended { stream: 1 },
                Event::Reset { stream: 3 },
                Event::GoAway,
            ]
        );
        let kinds: Vec<_> = answers
            .iter()
            .map(|answer| match answer {
                Frame::SynReply { stream, .. } => ("reply", *stream),
                Frame::RstStream { stream, status } => {
                    assert_eq!(*status, PROTOCOL_ERROR);
                    ("reset", *stream)
                }
                Frame::Ping { id } => ("ping", *id),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            kinds,
            [
                ("reply", 1),
                ("reply", 3),
                ("reset", 3),
                ("reset", 4),
                ("ping", 1)
            ]
        );
    }

    proptest! {
        #[test]
        fn safety_any_input_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = events(&bytes);
        }
    }
}
