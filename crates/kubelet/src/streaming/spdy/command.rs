//! The streams of a remote command, by their `streamType`.

use std::time::Duration;

use tokio::sync::mpsc;

use super::connection::Stream;
use crate::streaming::remote_command::{Channels, Options, StatusForm};

/// How long a client may take to open all its streams.
pub const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);

/// A version of `X-Stream-Protocol-Version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    pub name: &'static str,
    version: u8,
}

/// Best first.
pub const PROTOCOLS: [Protocol; 4] = [
    Protocol {
        name: "v4.channel.k8s.io",
        version: 4,
    },
    Protocol {
        name: "v3.channel.k8s.io",
        version: 3,
    },
    Protocol {
        name: "v2.channel.k8s.io",
        version: 2,
    },
    Protocol {
        name: "channel.k8s.io",
        version: 1,
    },
];

/// A client that names no version speaks the first one.
pub fn choose(offered: &[String]) -> Option<Protocol> {
    if offered.is_empty() {
        return PROTOCOLS.last().copied();
    }
    PROTOCOLS
        .into_iter()
        .find(|protocol| offered.iter().any(|name| name == protocol.name))
}

/// Waits until the client has opened all streams that it asked for; `None`: it did not.
pub async fn channels(
    mut accepted: mpsc::Receiver<Stream>,
    protocol: Protocol,
    options: Options,
) -> Option<Channels> {
    let wanted: Vec<&str> = [
        ("error", true),
        ("stdin", options.stdin),
        ("stdout", options.stdout),
        ("stderr", options.stderr),
        ("resize", options.tty && protocol.version >= 3),
    ]
    .into_iter()
    .filter_map(|(kind, wanted)| wanted.then_some(kind))
    .collect();
    let mut found: Vec<Option<Stream>> = wanted.iter().map(|_| None).collect();
    let gather = async {
        while found.iter().any(Option::is_none) {
            let stream = accepted.recv().await?;
            let kind = stream.headers.value("streamType").unwrap_or_default();
            match wanted.iter().position(|wanted| *wanted == kind) {
                Some(place) => found[place] = Some(stream),
                None => {
                    tracing::debug!(kind, "a stream of a type that was not asked for");
                    stream.writer.reset().await.ok()?;
                }
            }
        }
        Some(())
    };
    match tokio::time::timeout(STREAM_CREATION_TIMEOUT, gather).await {
        Ok(complete) => complete?,
        Err(_) => {
            tracing::debug!("timed out waiting for client to create streams");
            return None;
        }
    }
    let mut take = |kind: &str| {
        let place = wanted.iter().position(|wanted| *wanted == kind)?;
        found[place].take()
    };
    Some(Channels {
        stdin: take("stdin").map(|stream| stream.inlet),
        stdout: take("stdout").map(|stream| stream.writer),
        stderr: take("stderr").map(|stream| stream.writer),
        resize: take("resize").map(|stream| stream.inlet),
        error: take("error")?.writer,
        status_form: if protocol.version >= 4 {
            StatusForm::Json
        } else {
            StatusForm::Text
        },
    })
}
