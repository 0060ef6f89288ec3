//! The ends of a client's streams, whatever protocol carries them.
//!
//! A connection has one task that reads and one that writes. What comes in goes to one bounded queue a
//! stream ([`Inlet`]); what goes out is encoded by the [`StreamWriter`] and takes its turn in one bounded
//! queue. A full queue stops whoever fills it, so a slow side slows the other one down.
//!
//! Deliberately absent: flow control windows. The clients (client-go's SPDY and WebSocket) neither send
//! nor heed them; a stream that is not read stops the ones beside it, as it does upstream.

use std::time::Duration;

use bytes::Bytes;
use futures::{Sink, SinkExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Most that is read from a process or a socket at once.
pub const CHUNK_BYTES_MAX: usize = 32 << 10;
/// Chunks between two tasks.
pub const QUEUE_CHUNK_COUNT: usize = 16;
/// How long a client may take to say goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the client sends on a stream; the end of the queue is the end of the stream.
pub type Inlet = mpsc::Receiver<Bytes>;

/// The client cannot be reached any more.
#[derive(Debug, thiserror::Error)]
#[error("the client has gone")]
pub struct ClientGone;

/// What happens on a stream towards the client.
pub enum Part {
    Data(Bytes),
    /// No more data; the other direction stays.
    End,
    /// Both directions are given up.
    Reset,
}

/// Turns a part of a stream into a message of the protocol; `None`: the protocol has no word for it.
pub type Encode = fn(u32, Part) -> Option<Bytes>;

/// An encoded message, or the end of the connection.
pub enum Outgoing {
    Message(Bytes),
    Finish,
}

/// The way to the client on one stream.
#[derive(Clone)]
pub struct StreamWriter {
    stream: u32,
    encode: Encode,
    sender: mpsc::Sender<Outgoing>,
}

impl StreamWriter {
    pub fn new(stream: u32, encode: Encode, sender: mpsc::Sender<Outgoing>) -> Self {
        Self {
            stream,
            encode,
            sender,
        }
    }

    /// Waits for room in the queue.
    pub async fn send(&self, data: Bytes) -> Result<(), ClientGone> {
        self.part(Part::Data(data)).await
    }

    pub async fn end(&self) -> Result<(), ClientGone> {
        self.part(Part::End).await
    }

    pub async fn reset(&self) -> Result<(), ClientGone> {
        self.part(Part::Reset).await
    }

    async fn part(&self, part: Part) -> Result<(), ClientGone> {
        match (self.encode)(self.stream, part) {
            Some(message) => self
                .sender
                .send(Outgoing::Message(message))
                .await
                .map_err(|_| ClientGone),
            None => Ok(()),
        }
    }
}

/// The tasks of one client. Dropping it drops the connection.
pub struct Connection {
    /// Cancelled when the client has gone.
    pub lost: CancellationToken,
    pub sender: mpsc::Sender<Outgoing>,
    pub tasks: JoinSet<()>,
    /// How long the client is given to leave by itself before we close.
    pub patience: Duration,
}

impl Connection {
    /// Starts the writing task; the protocol adds the reading one.
    pub fn new<S, E>(sink: S, patience: Duration) -> Self
    where
        S: Sink<Outgoing, Error = E> + Send + 'static,
        E: Send,
    {
        let (sender, receiver) = mpsc::channel(QUEUE_CHUNK_COUNT);
        let lost = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let writer_lost = lost.clone();
        tasks.spawn(async move {
            if write(receiver, sink).await.is_err() {
                writer_lost.cancel();
            }
        });
        Self {
            lost,
            sender,
            tasks,
            patience,
        }
    }

    /// Sends what is queued and closes, giving the client time to read it.
    pub async fn finish(self) {
        let left = tokio::time::timeout(self.patience, self.lost.cancelled()).await;
        if left.is_ok() {
            return;
        }
        let goodbye = async {
            if self.sender.send(Outgoing::Finish).await.is_ok() {
                self.lost.cancelled().await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
    }
}

/// Writes until `Finish` or until nobody can send any more; flushes whenever the queue is empty.
async fn write<S, E>(mut receiver: mpsc::Receiver<Outgoing>, sink: S) -> Result<(), E>
where
    S: Sink<Outgoing, Error = E>,
{
    let mut sink = std::pin::pin!(sink);
    while let Some(first) = receiver.recv().await {
        let mut next = Some(first);
        while let Some(outgoing) = next {
            let last = matches!(outgoing, Outgoing::Finish);
            sink.feed(outgoing).await?;
            if last {
                return sink.close().await;
            }
            next = receiver.try_recv().ok();
        }
        sink.flush().await?;
    }
    Ok(())
}
