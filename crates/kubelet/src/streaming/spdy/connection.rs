//! A SPDY session over a socket, or over whatever else carries its bytes.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream as ByteStream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::{BytesCodec, FramedWrite};
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::Headers;
use super::frame::{CANCEL, Frame};
use super::session::{Event, Session};
use crate::streaming::stream::{
    CHUNK_BYTES_MAX, Connection, Inlet, Outgoing, Part, QUEUE_CHUNK_COUNT, StreamWriter,
};

/// The client closes when it has read the end of its streams; only then do we.
const PATIENCE: Duration = Duration::from_secs(2);

/// A stream that the client has opened.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub inlet: Inlet,
    pub writer: StreamWriter,
    /// Ends when the client resets the stream or goes away.
    pub reset: oneshot::Receiver<()>,
}

/// Serves the socket; the receiver has every stream that the client opens. Dropping it refuses further ones.
pub fn over_socket<S>(socket: S) -> (Connection, mpsc::Receiver<Stream>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(socket);
    let sink = FramedWrite::new(write, BytesCodec::new()).with(|outgoing| {
        std::future::ready(Ok::<_, io::Error>(match outgoing {
            Outgoing::Message(bytes) => bytes,
            Outgoing::Finish => Bytes::new(),
        }))
    });
    let chunks = ReaderStream::with_capacity(read, CHUNK_BYTES_MAX)
        .take_while(|chunk| std::future::ready(chunk.is_ok()))
        .filter_map(|chunk| std::future::ready(chunk.ok()));
    start(chunks, sink)
}

/// Serves chunks of bytes; the end of the stream is the end of the connection.
pub fn start<R, S, E>(chunks: R, sink: S) -> (Connection, mpsc::Receiver<Stream>)
where
    R: ByteStream<Item = Bytes> + Send + 'static,
    S: Sink<Outgoing, Error = E> + Send + 'static,
    E: Send,
{
    let mut connection = Connection::new(sink, PATIENCE);
    let (accept, accepted) = mpsc::channel(QUEUE_CHUNK_COUNT);
    let reader = Reader {
        sender: connection.sender.clone(),
        lost: connection.lost.clone(),
        accept,
        streams: HashMap::new(),
    };
    connection.tasks.spawn(reader.run(chunks));
    (connection, accepted)
}

struct Reader {
    sender: mpsc::Sender<Outgoing>,
    lost: CancellationToken,
    accept: mpsc::Sender<Stream>,
    streams: HashMap<u32, Open>,
}

/// What the reader holds of a stream. It stays after the client's end, for a reset.
struct Open {
    inlet: Option<mpsc::Sender<Bytes>>,
    /// Dropped to tell the handler.
    reset: oneshot::Sender<()>,
}

impl Open {
    fn is_wanted(&self) -> bool {
        let inlet_is_read = self.inlet.as_ref().is_some_and(|inlet| !inlet.is_closed());
        inlet_is_read || !self.reset.is_closed()
    }
}

impl Reader {
    async fn run(mut self, chunks: impl ByteStream<Item = Bytes>) {
        let mut chunks = std::pin::pin!(chunks);
        let (mut session, mut input) = (Session::default(), BytesMut::new());
        'connection: while let Some(chunk) = chunks.next().await {
            input.extend_from_slice(&chunk);
            loop {
                let event = session.handle_input(&mut input);
                for frame in session.take_outgoing() {
                    if self.sender.send(Outgoing::Message(frame)).await.is_err() {
                        break 'connection;
                    }
                }
                match event {
                    Ok(Some(Event::GoAway)) => break 'connection,
                    Ok(Some(event)) => self.handle(event).await,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "a client broke the SPDY protocol");
                        break 'connection;
                    }
                }
            }
        }
        self.lost.cancel();
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Opened { stream, headers } => self.open(stream, headers).await,
            Event::Data { stream, data } => {
                if let Some(inlet) = self.inlet(stream) {
                    // Whoever does not read any more does not want it.
                    let _ = inlet.send(data).await;
                }
            }
            Event::Ended { stream } => {
                if let Some(open) = self.streams.get_mut(&stream) {
                    open.inlet = None;
                }
            }
            Event::Reset { stream } => {
                self.streams.remove(&stream);
            }
            Event::GoAway => {}
        }
    }

    fn inlet(&self, stream: u32) -> Option<&mpsc::Sender<Bytes>> {
        self.streams.get(&stream)?.inlet.as_ref()
    }

    async fn open(&mut self, id: u32, headers: Headers) {
        self.streams.retain(|_, open| open.is_wanted());
        let (sender, inlet) = mpsc::channel(QUEUE_CHUNK_COUNT);
        let (reset, reset_receiver) = oneshot::channel();
        let stream = Stream {
            id,
            headers,
            inlet,
            writer: StreamWriter::new(id, encode, self.sender.clone()),
            reset: reset_receiver,
        };
        match self.accept.send(stream).await {
            Ok(()) => {
                let inlet = Some(sender);
                self.streams.insert(id, Open { inlet, reset });
            }
            Err(refused) => {
                let _ = refused.0.writer.reset().await;
            }
        }
    }
}

fn encode(stream: u32, part: Part) -> Option<Bytes> {
    let frame = match part {
        Part::Data(data) => Frame::Data {
            stream,
            fin: false,
            data,
        },
        Part::End => Frame::Data {
            stream,
            fin: true,
            data: Bytes::new(),
        },
        Part::Reset => Frame::RstStream {
            stream,
            status: CANCEL,
        },
    };
    Some(frame.encode())
}
