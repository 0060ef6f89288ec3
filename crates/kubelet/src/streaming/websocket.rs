//! WebSocket: `[v4.|v5.]channel.k8s.io`, `[v4.]base64.channel.k8s.io`, and SPDY in a tunnel.
//!
//! A message is one byte that names the channel and the channel's bytes. With v5, byte 255 and a channel's
//! number say that the client has closed that channel. In the base64 protocols the channel is a digit and
//! the bytes are base64, all of it text.

use std::collections::HashMap;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::remote_command::{Channels, Options, StatusForm};
use super::stream::{
    CHUNK_BYTES_MAX, Connection, Encode, Inlet, Outgoing, Part, QUEUE_CHUNK_COUNT, StreamWriter,
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Names, in v5, a message that closes the channel that its second byte names.
const CLOSE: u8 = 255;

/// client-go sends at most 32 KiB a message; other clients send whole files.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A subprotocol of remote commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    pub name: &'static str,
    version: u8,
    base64: bool,
}

/// Best first.
pub const REMOTE_COMMAND_PROTOCOLS: [Protocol; 5] = [
    Protocol {
        name: "v5.channel.k8s.io",
        version: 5,
        base64: false,
    },
    Protocol {
        name: "v4.channel.k8s.io",
        version: 4,
        base64: false,
    },
    Protocol {
        name: "v4.base64.channel.k8s.io",
        version: 4,
        base64: true,
    },
    Protocol {
        name: "channel.k8s.io",
        version: 1,
        base64: false,
    },
    Protocol {
        name: "base64.channel.k8s.io",
        version: 1,
        base64: true,
    },
];

/// Of port-forwards without a tunnel, best first.
pub const PORT_FORWARD_PROTOCOLS: [Protocol; 2] =
    [REMOTE_COMMAND_PROTOCOLS[1], REMOTE_COMMAND_PROTOCOLS[2]];

/// A client that names no subprotocol speaks the first one.
pub const UNNAMED_PROTOCOL: Protocol = Protocol {
    name: "",
    version: 1,
    base64: false,
};

/// Why a request cannot become a WebSocket.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("unable to upgrade: websocket version 13 is required")]
    Version,
    #[error("unable to upgrade: Sec-WebSocket-Key is missing")]
    Key,
    #[error("unable to upgrade: {0}")]
    Ports(String),
    #[error("unable to upgrade: none of the websocket protocols {0:?} is supported")]
    Protocol(Vec<String>),
}

impl HandshakeError {
    pub fn code(&self) -> StatusCode {
        match self {
            Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::Key | Self::Ports(_) | Self::Protocol(_) => StatusCode::BAD_REQUEST,
        }
    }
}

/// Checks the request's headers; answers with those of the response, the chosen protocol's not among them.
pub fn handshake(headers: &HeaderMap) -> Result<HeaderMap, HandshakeError> {
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(HandshakeError::Version);
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or(HandshakeError::Key)?;
    let accept = derive_accept_key(key.as_bytes());
    let mut answer = HeaderMap::new();
    answer.insert(
        header::SEC_WEBSOCKET_ACCEPT,
        accept.parse().map_err(|_| HandshakeError::Key)?,
    );
    Ok(answer)
}

/// The subprotocols that the client offers, in its order.
pub fn offered(headers: &HeaderMap) -> Vec<String> {
    super::values(headers, header::SEC_WEBSOCKET_PROTOCOL)
}

/// The best protocol that both sides know.
pub fn choose_remote_command(offered: &[String]) -> Result<Protocol, HandshakeError> {
    choose(&REMOTE_COMMAND_PROTOCOLS, offered)
}

/// The same for the channels of a port-forward.
pub fn choose_port_forward(offered: &[String]) -> Result<Protocol, HandshakeError> {
    choose(&PORT_FORWARD_PROTOCOLS, offered)
}

fn choose(known: &[Protocol], offered: &[String]) -> Result<Protocol, HandshakeError> {
    if offered.is_empty() {
        return Ok(UNNAMED_PROTOCOL);
    }
    known
        .iter()
        .copied()
        .find(|protocol| offered.iter().any(|name| name == protocol.name))
        .ok_or_else(|| HandshakeError::Protocol(offered.to_vec()))
}

/// Most ports of one request, so that every channel has a number.
const PORT_COUNT_MAX: usize = 100;

/// The ports that the request's `port` parameters name, each one or a list with commas.
pub fn ports<'a>(values: impl Iterator<Item = &'a str>) -> Result<Vec<u16>, HandshakeError> {
    let mut ports = Vec::new();
    for text in values.flat_map(|value| value.split(',')) {
        match text.trim().parse::<u16>() {
            Ok(port) if port > 0 => ports.push(port),
            _ => {
                return Err(HandshakeError::Ports(format!(
                    "unable to parse {text:?} as a port"
                )));
            }
        }
    }
    match ports.len() {
        0 => Err(HandshakeError::Ports(
            "query parameter \"port\" is required".into(),
        )),
        count if count > PORT_COUNT_MAX => Err(HandshakeError::Ports(format!(
            "{count} ports are too many, at most {PORT_COUNT_MAX} can be forwarded at once"
        ))),
        _ => Ok(ports),
    }
}

/// The server's end after the handshake.
pub async fn socket<S>(io: S) -> WebSocketStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(CHUNK_BYTES_MAX)
        .write_buffer_size(CHUNK_BYTES_MAX)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// The channels of a remote command; they are all there from the start.
pub async fn remote_command<S>(
    socket: WebSocketStream<S>,
    protocol: Protocol,
    options: Options,
) -> (Connection, Channels)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sink, stream) = socket.split();
    let mut connection = Connection::new(messages(sink, protocol.base64), Duration::ZERO);
    let encode: Encode = if protocol.base64 {
        encode_base64
    } else {
        encode_binary
    };
    let writer = |channel: u8| StreamWriter::new(channel.into(), encode, connection.sender.clone());
    let mut inlets = HashMap::new();
    let mut inlet = |channel: u8, wanted: bool| -> Option<Inlet> {
        wanted.then(|| {
            let (sender, receiver) = mpsc::channel(QUEUE_CHUNK_COUNT);
            inlets.insert(channel, sender);
            receiver
        })
    };
    let channels = Channels {
        stdin: inlet(STDIN, options.stdin),
        stdout: options.stdout.then(|| writer(STDOUT)),
        stderr: options.stderr.then(|| writer(STDERR)),
        error: writer(ERROR),
        resize: inlet(RESIZE, options.tty),
        status_form: if protocol.version >= 4 {
            StatusForm::Json
        } else {
            StatusForm::Text
        },
    };
    if protocol.version < 5 {
        // Older clients wait for a first message, which says that the streams are there.
        let first = [&channels.stdout, &channels.stderr]
            .into_iter()
            .flatten()
            .next()
            .unwrap_or(&channels.error);
        let _ = first.send(Bytes::new()).await;
    }
    let lost = connection.lost.clone();
    connection.tasks.spawn(async move {
        read(stream, inlets, protocol).await;
        lost.cancel();
    });
    (connection, channels)
}

/// The channels of forwarded ports: for each, in order, one for data and one for an error.
pub fn port_channels<S>(
    socket: WebSocketStream<S>,
    protocol: Protocol,
    ports: &[u16],
) -> (Connection, Vec<super::port_forward::Channels>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sink, stream) = socket.split();
    let mut connection = Connection::new(messages(sink, protocol.base64), Duration::ZERO);
    let encode: Encode = if protocol.base64 {
        encode_base64
    } else {
        encode_binary
    };
    let mut inlets = HashMap::new();
    let channels = (0_u8..)
        .step_by(2)
        .zip(ports)
        .map(|(channel, port)| {
            let (sender, inlet) = mpsc::channel(QUEUE_CHUNK_COUNT);
            inlets.insert(channel, sender);
            let writer =
                |channel: u8| StreamWriter::new(channel.into(), encode, connection.sender.clone());
            super::port_forward::Channels {
                port: *port,
                inlet,
                data: writer(channel),
                error: writer(channel + 1),
            }
        })
        .collect();
    let lost = connection.lost.clone();
    connection.tasks.spawn(async move {
        read(stream, inlets, protocol).await;
        lost.cancel();
    });
    (connection, channels)
}

/// The two directions of SPDY in binary messages.
pub fn tunnel<S>(
    socket: WebSocketStream<S>,
) -> (
    impl Stream<Item = Bytes> + Send,
    impl Sink<Outgoing, Error = Error> + Send,
)
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (sink, stream) = socket.split();
    let chunks = stream
        .take_while(|message| std::future::ready(message.is_ok()))
        .filter_map(|message| {
            std::future::ready(match message {
                Ok(Message::Binary(bytes)) => Some(bytes),
                _ => None,
            })
        });
    (chunks, messages(sink, false))
}

/// A sink of messages over the socket; the last one says that all is well.
fn messages<S>(
    sink: SplitSink<WebSocketStream<S>, Message>,
    text: bool,
) -> impl Sink<Outgoing, Error = Error> + Send
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    sink.with(move |outgoing| {
        std::future::ready(Ok(match outgoing {
            Outgoing::Finish => Message::Close(Some(CloseFrame {
                code: CloseCode::Normal,
                reason: Utf8Bytes::default(),
            })),
            Outgoing::Message(bytes) if text => match Utf8Bytes::try_from(bytes) {
                Ok(text) => Message::Text(text),
                Err(error) => return std::future::ready(Err(Error::Utf8(error.to_string()))),
            },
            Outgoing::Message(bytes) => Message::Binary(bytes),
        }))
    })
}

/// Hands out what comes in, until the client closes the socket or breaks the protocol.
async fn read<S>(
    mut stream: SplitStream<WebSocketStream<S>>,
    mut inlets: HashMap<u8, mpsc::Sender<Bytes>>,
    protocol: Protocol,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            // The answer to it goes out with the next read, which is the last.
            Message::Close(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        match decode(bytes, protocol) {
            Some(Incoming::Data(channel, data)) if !data.is_empty() => {
                if let Some(sender) = inlets.get(&channel) {
                    // Whoever does not read any more does not want it.
                    let _ = sender.send(data).await;
                }
            }
            Some(Incoming::Close(channel)) => {
                inlets.remove(&channel);
            }
            Some(Incoming::Data(..)) | None => {}
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Incoming {
    Data(u8, Bytes),
    Close(u8),
}

/// `None`: nothing that this protocol knows.
fn decode(mut message: Bytes, protocol: Protocol) -> Option<Incoming> {
    let channel = *message.first()?;
    let rest = message.split_off(1);
    if protocol.base64 {
        let channel = channel.checked_sub(b'0')?;
        let data = BASE64.decode(&rest).ok()?;
        return Some(Incoming::Data(channel, data.into()));
    }
    if protocol.version >= 5 && channel == CLOSE {
        return rest.first().copied().map(Incoming::Close);
    }
    Some(Incoming::Data(channel, rest))
}

fn encode_binary(channel: u32, part: Part) -> Option<Bytes> {
    let Part::Data(data) = part else {
        return None;
    };
    let mut message = BytesMut::with_capacity(data.len() + 1);
    message.extend_from_slice(&[u8::try_from(channel).ok()?]);
    message.extend_from_slice(&data);
    Some(message.freeze())
}

fn encode_base64(channel: u32, part: Part) -> Option<Bytes> {
    let Part::Data(data) = part else {
        return None;
    };
    let mut message = channel.to_string();
    BASE64.encode_string(&data, &mut message);
    Some(message.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn protocol(name: &str) -> Protocol {
        choose_remote_command(&[name.to_owned()]).expect("a known protocol")
    }

    #[test]
    fn messages_are_read_by_channel() {
        let check = |name: &str, message: &[u8], expect: Option<Incoming>| {
            let found = decode(Bytes::copy_from_slice(message), protocol(name));
            assert_eq!(found, expect, "{name} {message:?}");
        };
        let data =
            |channel, data: &'static [u8]| Some(Incoming::Data(channel, Bytes::from_static(data)));
        check("v5.channel.k8s.io", b"\x00hi", data(0, b"hi"));
        check("v5.channel.k8s.io", b"\xff\x00", Some(Incoming::Close(0)));
        check("v5.channel.k8s.io", b"\xff", None);
        check("v4.channel.k8s.io", b"\xff\x00", data(255, b"\x00"));
        check("v4.channel.k8s.io", b"\x04", data(4, b""));
        check("v4.channel.k8s.io", b"", None);
        check("base64.channel.k8s.io", b"0aGk=", data(0, b"hi"));
        check("base64.channel.k8s.io", b"0a", None);
        check("base64.channel.k8s.io", b"\x00aGk=", None);
    }

    #[test]
    fn parts_become_messages() {
        let data = || Part::Data(Bytes::from_static(b"hi"));
        assert_eq!(encode_binary(1, data()).as_deref(), Some(&b"\x01hi"[..]));
        assert_eq!(encode_base64(2, data()).as_deref(), Some(&b"2aGk="[..]));
        assert_eq!(encode_binary(1, Part::End), None);
        assert_eq!(encode_base64(1, Part::Reset), None);
    }

    #[test]
    fn ports_are_listed_in_any_way() {
        let check = |values: &[&str], expect: Option<&[u16]>| {
            let found = ports(values.iter().copied()).ok();
            assert_eq!(found.as_deref(), expect, "{values:?}");
        };
        check(&["80"], Some(&[80]));
        check(&["80,81", "9"], Some(&[80, 81, 9]));
        check(&[], None);
        check(&[""], None);
        check(&["0"], None);
        check(&["80,x"], None);
        check(&["65536"], None);
        let many = ["1"; PORT_COUNT_MAX + 1];
        check(&many, None);
    }

    #[test]
    fn the_best_common_protocol_is_chosen() {
        let check = |offered: &[&str], expect: Option<&str>| {
            let offered: Vec<String> = offered.iter().map(|&name| name.to_owned()).collect();
            let chosen = choose_remote_command(&offered).ok();
            assert_eq!(chosen.map(|chosen| chosen.name), expect, "{offered:?}");
        };
        check(
            &["v4.channel.k8s.io", "v5.channel.k8s.io"],
            Some("v5.channel.k8s.io"),
        );
        check(
            &["v3.channel.k8s.io", "channel.k8s.io"],
            Some("channel.k8s.io"),
        );
        check(&[], Some(""));
        check(&["chat"], None);
    }

    proptest! {
        #[test]
        fn safety_any_message_is_survived(choice in 0..REMOTE_COMMAND_PROTOCOLS.len(), message: Vec<u8>) {
            let length_bytes = message.len();
            if let Some(Incoming::Data(_, data)) = decode(message.into(), REMOTE_COMMAND_PROTOCOLS[choice]) {
                prop_assert!(data.len() < length_bytes);
            }
        }
    }
}
