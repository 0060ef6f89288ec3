//! What the fuzz targets reach of the streams' decoders; compiled by `make fuzz` alone.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};

use super::remote_command::Options;
use super::spdy::frame::{Decoder, Frame};
use super::spdy::headers::{Deflater, Headers};
use super::spdy::session::{Event, Session};
use super::websocket;

/// A client's bytes in pieces; every answer must be a whole frame, and a stream has events only while it is open.
pub fn spdy(input: &[u8]) {
    let [piece, bytes @ ..] = input else {
        return;
    };
    feed(bytes.chunks(usize::from(*piece).max(1)));
}

/// A client's frames, with header blocks as they are before they are packed: kind, stream, content, each frame
/// of at most 255 bytes.
pub fn spdy_frames(mut input: &[u8]) {
    let mut deflater = Deflater::default();
    let mut frames = Vec::new();
    while let [kind, stream, length, rest @ ..] = input {
        let (content, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        input = rest;
        let (stream, fin) = (u32::from(*stream), kind & 0x80 != 0);
        let mut block = || {
            let texts: Vec<String> = content
                .split(|byte| *byte == 0)
                .map(|text| String::from_utf8_lossy(text).into_owned())
                .collect();
            let pairs = texts.chunks(2).map(|pair| {
                let value = pair.get(1).cloned().unwrap_or_default();
                (pair[0].clone(), value)
            });
            deflater.write(&Headers(pairs.collect()))
        };
        let number = |at: usize| u32::from(content.get(at).copied().unwrap_or_default());
        frames.push(
            match kind % 8 {
                0 => Frame::Data {
                    stream,
                    fin,
                    data: Bytes::copy_from_slice(content),
                },
                1 => Frame::SynStream {
                    stream,
                    fin,
                    block: block(),
                },
                2 => Frame::SynReply {
                    stream,
                    fin,
                    block: block(),
                },
                3 => Frame::RstStream {
                    stream,
                    status: number(0),
                },
                4 => Frame::Ping { id: number(0) },
                5 => Frame::GoAway,
                6 => Frame::Headers {
                    stream,
                    fin,
                    block: block(),
                },
                _ => Frame::Settings,
            }
            .encode(),
        );
    }
    feed(frames.iter().map(|frame| &frame[..]));
}

fn feed<'a>(pieces: impl Iterator<Item = &'a [u8]>) {
    let mut session = Session::default();
    let mut input = BytesMut::new();
    let mut answers = BytesMut::new();
    let mut open = std::collections::HashSet::new();
    'pieces: for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let event = session.handle_input(&mut input);
            for answer in session.take_outgoing() {
                answers.extend_from_slice(&answer);
            }
            match event {
                Ok(None) => break,
                Ok(Some(Event::Opened { stream, .. })) => {
                    assert!(open.insert(stream), "stream {stream} opened twice");
                }
                Ok(Some(Event::Data { stream, .. } | Event::Ended { stream })) => {
                    assert!(open.contains(&stream), "stream {stream} is not open");
                }
                Ok(Some(_)) => {}
                Err(_) => break 'pieces,
            }
        }
    }
    let mut decoder = Decoder::default();
    while let Some(frame) = decoder
        .decode(&mut answers)
        .expect("the server's own frames are sound")
    {
        assert_ne!(frame, Frame::Unknown);
    }
    assert!(answers.is_empty(), "the last answer is cut short");
}

/// A client's bytes after the handshake, by each of the protocols; no message is larger than what was sent.
pub fn websocket(input: &[u8]) {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        Builder::new_current_thread()
            .build()
            .expect("a runtime without drivers")
    });
    let [choice, bytes @ ..] = input else {
        return;
    };
    let protocols = websocket::REMOTE_COMMAND_PROTOCOLS;
    let protocol = protocols[usize::from(*choice) % protocols.len()];
    let options = Options {
        stdin: true,
        stdout: true,
        stderr: true,
        tty: true,
    };
    RUNTIME.block_on(async {
        let (mut client, server) = tokio::io::duplex(bytes.len() + 1024);
        let socket = websocket::socket(server).await;
        let (connection, channels) = websocket::remote_command(socket, protocol, options).await;
        let (mut stdin, mut resize) = (
            channels.stdin.expect("asked for"),
            channels.resize.expect("a terminal has sizes"),
        );
        client.write_all(bytes).await.expect("there is room");
        client.shutdown().await.expect("in memory");
        let mut received_bytes = 0;
        loop {
            tokio::select! {
                Some(data) = stdin.recv() => received_bytes += data.len(),
                Some(data) = resize.recv() => received_bytes += data.len(),
                else => break,
            }
        }
        assert!(received_bytes <= bytes.len());
        drop(connection);
    });
}
