//! Port-forward: every connection of the client's is a pair of streams, one for data and one for an error.
//!
//! Over SPDY ([`serve`]) the client opens pairs as it likes. Over plain WebSocket channels ([`serve_channels`]) the
//! request names the ports, each has its pair of channels and serves one connection.
//!
//! Each direction of a connection ends by itself. When the pod's side has ended, the error stream ends too:
//! clients wait for it before they give up the data stream.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use runtime::service::{Connection as PodConnection, RuntimeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::spdy::Headers;
use super::spdy::command::STREAM_CREATION_TIMEOUT;
use super::spdy::connection::Stream;
use super::stream::{CHUNK_BYTES_MAX, ClientGone, Connection, Inlet, StreamWriter};

pub const PROTOCOL: &str = "portforward.k8s.io";
/// WebSocket subprotocol that carries SPDY's bytes in binary messages.
pub const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";

const EXPIRY_INTERVAL: Duration = Duration::from_secs(5);

/// Whose ports are forwarded, for messages.
#[derive(Clone, Debug)]
pub struct Target {
    pub pod: String,
    pub uid: String,
}

/// Serves pairs until the client goes away.
pub async fn serve<C, F>(
    connection: Connection,
    mut accepted: mpsc::Receiver<Stream>,
    target: Target,
    connect: C,
) where
    C: Fn(u16) -> F,
    F: Future<Output = Result<Box<dyn PodConnection>, RuntimeError>> + Send + 'static,
{
    let mut pairs = Pairs::default();
    let mut tasks = JoinSet::new();
    let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
    loop {
        tokio::select! {
            stream = accepted.recv() => {
                let Some(stream) = stream else { break };
                match pairs.add(stream) {
                    Added::Waits => {}
                    Added::Complete(pair) => {
                        let port = pair.port;
                        tasks.spawn(forward(port, pair.into(), target.clone(), connect(port)));
                    }
                    Added::Refused(stream, reason) => {
                        tracing::debug!(stream = stream.id, reason, "stream of a port-forward refused");
                        let _ = stream.writer.reset().await;
                    }
                }
            }
            Some(_) = tasks.join_next() => {}
            now = expiry.tick() => {
                for stream in pairs.expire(now) {
                    let text = Bytes::from_static(b"timed out waiting for streams");
                    let _ = stream.writer.send(text).await;
                    let _ = stream.writer.end().await;
                }
            }
            () = connection.lost.cancelled() => break,
        }
    }
}

/// The pair of channels of a port that the request named.
pub struct Channels {
    pub port: u16,
    pub inlet: Inlet,
    pub data: StreamWriter,
    pub error: StreamWriter,
}

/// Serves one connection a port, and closes when all of them are over.
pub async fn serve_channels<C, F>(
    connection: Connection,
    channels: Vec<Channels>,
    target: Target,
    connect: C,
) where
    C: Fn(u16) -> F,
    F: Future<Output = Result<Box<dyn PodConnection>, RuntimeError>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    // A channel cannot be reset; the handlers see the client go by the ends of their queues.
    let mut never_reset = Vec::new();
    for Channels {
        port,
        inlet,
        data,
        error,
    } in channels
    {
        // The protocol begins with the port on both channels, so that the client can tell them apart.
        let name = Bytes::copy_from_slice(&port.to_le_bytes());
        if data.send(name.clone()).await.is_err() || error.send(name).await.is_err() {
            return;
        }
        let (keep, reset) = oneshot::channel();
        never_reset.push(keep);
        let ends = Ends {
            inlet,
            data,
            error,
            reset,
            client_ends: false,
        };
        tasks.spawn(forward(port, ends, target.clone(), connect(port)));
    }
    loop {
        tokio::select! {
            ended = tasks.join_next() => if ended.is_none() { break },
            () = connection.lost.cancelled() => return,
        }
    }
    connection.finish().await;
}

struct Pair {
    port: u16,
    data: Stream,
    error: Stream,
}

/// One connection's streams, whatever carries them.
struct Ends {
    inlet: Inlet,
    data: StreamWriter,
    error: StreamWriter,
    reset: oneshot::Receiver<()>,
    /// Whether the client can end its direction; if not, the pod's end ends both.
    client_ends: bool,
}

impl From<Pair> for Ends {
    fn from(pair: Pair) -> Self {
        Self {
            inlet: pair.data.inlet,
            data: pair.data.writer,
            error: pair.error.writer,
            reset: pair.data.reset,
            client_ends: true,
        }
    }
}

enum Added {
    Waits,
    Complete(Pair),
    Refused(Stream, &'static str),
}

/// Streams whose other half has not come yet, by request.
#[derive(Default)]
struct Pairs(HashMap<String, (Instant, Kind, Stream)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

impl Pairs {
    fn add(&mut self, stream: Stream) -> Added {
        let (kind, port, request) = match describe(stream.id, &stream.headers) {
            Ok(description) => description,
            Err(reason) => return Added::Refused(stream, reason),
        };
        match self.0.remove(&request) {
            None => {
                self.0.insert(request, (Instant::now(), kind, stream));
                Added::Waits
            }
            Some((since, other_kind, other)) if other_kind == kind => {
                self.0.insert(request, (since, other_kind, other));
                Added::Refused(stream, "a stream of that type is already assigned")
            }
            Some((_, _, other)) => {
                let (data, error) = match kind {
                    Kind::Data => (stream, other),
                    Kind::Error => (other, stream),
                };
                Added::Complete(Pair { port, data, error })
            }
        }
    }

    fn expire(&mut self, now: Instant) -> Vec<Stream> {
        self.0
            .extract_if(|_, (since, ..)| now.duration_since(*since) >= STREAM_CREATION_TIMEOUT)
            .map(|(_, (_, _, stream))| stream)
            .collect()
    }
}

/// What a stream's headers say: its kind, port and request. Clients without request ids open the error stream
/// right before the data stream.
fn describe(id: u32, headers: &Headers) -> Result<(Kind, u16, String), &'static str> {
    let port = headers.value("port").ok_or("\"port\" header is required")?;
    let port = port
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or("\"port\" header is not a port")?;
    let kind = match headers.value("streamType") {
        Some("data") => Kind::Data,
        Some("error") => Kind::Error,
        Some(_) => return Err("invalid stream type"),
        None => return Err("\"streamType\" header is required"),
    };
    let request = match (headers.value("requestID"), kind) {
        (Some(request), _) if !request.is_empty() => request.to_owned(),
        (_, Kind::Error) => id.to_string(),
        (_, Kind::Data) => id.wrapping_sub(2).to_string(),
    };
    Ok((kind, port, request))
}

async fn forward<F>(port: u16, ends: Ends, target: Target, connecting: F)
where
    F: Future<Output = Result<Box<dyn PodConnection>, RuntimeError>>,
{
    let Ends {
        inlet,
        data,
        error,
        mut reset,
        client_ends,
    } = ends;
    let work = async {
        match connecting.await {
            Ok(connection) => copy(connection, inlet, &data, &error, client_ends).await,
            Err(cause) => {
                let Target { pod, uid } = &target;
                let text = format!("error forwarding port {port} to pod {pod}, uid {uid}: {cause}");
                tracing::debug!(port, pod, %cause, "port was not forwarded");
                error.send(Bytes::from(text)).await?;
                error.end().await?;
                data.reset().await
            }
        }
    };
    let given_up = tokio::select! {
        done = work => done.is_err(),
        _ = &mut reset => true,
    };
    if given_up {
        let _ = error.end().await;
    }
}

async fn copy(
    connection: Box<dyn PodConnection>,
    mut inlet: Inlet,
    writer: &StreamWriter,
    error: &StreamWriter,
    client_ends: bool,
) -> Result<(), ClientGone> {
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let upload = async {
        while let Some(chunk) = inlet.recv().await {
            if to_pod.write_all(&chunk).await.is_err() {
                // The pod does not read any more; what it still sends is worth having.
                inlet.close();
            }
        }
        let _ = to_pod.shutdown().await;
        Ok(())
    };
    let download = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES_MAX);
            match (&mut from_pod)
                .take(CHUNK_BYTES_MAX as u64)
                .read_buf(&mut buffer)
                .await
            {
                Ok(0) | Err(_) => break,
                Ok(_) => writer.send(buffer.split().freeze()).await?,
            }
        }
        writer.end().await?;
        error.end().await
    };
    if client_ends {
        return tokio::try_join!(upload, download).map(|((), ())| ());
    }
    let mut download = std::pin::pin!(download);
    tokio::select! {
        done = &mut download => done,
        // The client is leaving: what the pod still sends finds out.
        _ = upload => download.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_a_stream_is_for() {
        let check = |headers: &[(&str, &str)], expect: Result<(Kind, u16, &str), &str>| {
            let owned = headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let found = describe(7, &Headers(owned.collect()));
            let expect = expect.map(|(kind, port, request)| (kind, port, request.to_owned()));
            assert_eq!(found, expect, "{headers:?}");
        };
        check(
            &[("port", "80"), ("streamtype", "data"), ("requestid", "3")],
            Ok((Kind::Data, 80, "3")),
        );
        check(
            &[("port", "80"), ("streamtype", "data")],
            Ok((Kind::Data, 80, "5")),
        );
        check(
            &[("port", "80"), ("streamtype", "error")],
            Ok((Kind::Error, 80, "7")),
        );
        check(
            &[("streamtype", "data")],
            Err("\"port\" header is required"),
        );
        check(
            &[("port", "0"), ("streamtype", "data")],
            Err("\"port\" header is not a port"),
        );
        check(
            &[("port", "80"), ("streamtype", "x")],
            Err("invalid stream type"),
        );
        check(&[("port", "80")], Err("\"streamType\" header is required"));
    }
}
