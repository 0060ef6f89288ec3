//! `/containerLogs/{namespace}/{pod}/{container}`: what `kubectl logs` reads.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use runtime::service::{ContainerState, ContainerStatus};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::agent::Agent;
use crate::logs::line::Stream;
use crate::logs::read::{self, Options};
use crate::pod::worker::Snapshot;

/// Chunks between the reading thread and the connection.
const CHUNK_COUNT_MAX: usize = 16;

pub async fn container_logs(
    State(agent): State<Arc<Agent>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message).into_response();
    let Some(snapshot) = agent.snapshot(&namespace, &pod) else {
        return (StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist")).into_response();
    };
    let options = match parse(&query, Timestamp::now()) {
        Ok(options) => options,
        Err(message) => return bad(message),
    };
    let previous = query.get("previous").is_some_and(|value| value == "true");
    let status = match choose(&snapshot, &pod, &container, previous) {
        Ok(status) => status,
        Err(message) => return bad(message),
    };
    let (sender, receiver) = mpsc::channel::<Bytes>(CHUNK_COUNT_MAX);
    let (id, log_path) = (status.id, status.log_path);
    let key = (namespace, pod);
    std::thread::Builder::new()
        .name("logs".into())
        .spawn(move || {
            let ended = || {
                let snapshot = agent.snapshot(&key.0, &key.1);
                let status = snapshot.and_then(|snapshot| {
                    snapshot
                        .containers
                        .into_iter()
                        .find(|status| status.id == id)
                });
                status.is_none_or(|status| status.state == ContainerState::Exited)
            };
            if let Err(error) = read::stream(&log_path, &options, &sender, &ended) {
                let message = if error.kind() == std::io::ErrorKind::NotFound {
                    String::new()
                } else {
                    format!("failed to read log: {error}\n")
                };
                let _ = sender.blocking_send(Bytes::from(message));
            }
        })
        .map_or_else(
            |error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            |_| {
                let stream = ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>);
                (
                    [(header::CONTENT_TYPE, "text/plain")],
                    Body::from_stream(stream),
                )
                    .into_response()
            },
        )
}

fn parse(query: &HashMap<String, String>, now: Timestamp) -> Result<Options, String> {
    let number = |name: &str| match query.get(name).filter(|value| !value.is_empty()) {
        None => Ok(None),
        Some(value) => value
            .parse::<i64>()
            .map(Some)
            .map_err(|_| format!("Unable to decode query: invalid {name} {value:?}")),
    };
    let flag = |name: &str| query.get(name).is_some_and(|value| value == "true");
    let since = match (
        number("sinceSeconds")?,
        query.get("sinceTime").filter(|value| !value.is_empty()),
    ) {
        (Some(seconds), _) => Some(now - SignedDuration::from_secs(seconds.clamp(0, 1 << 40))),
        (None, Some(time)) => Some(
            time.parse()
                .map_err(|_| format!("Unable to decode query: invalid sinceTime {time:?}"))?,
        ),
        (None, None) => None,
    };
    Ok(Options {
        follow: flag("follow"),
        tail_lines: number("tailLines")?.map(|count| usize::try_from(count).unwrap_or(0)),
        since,
        timestamps: flag("timestamps"),
        limit_bytes: number("limitBytes")?.map(|count| u64::try_from(count).unwrap_or(0)),
        stream: match query.get("stream").map(String::as_str) {
            Some("Stdout") => Some(Stream::Stdout),
            Some("Stderr") => Some(Stream::Stderr),
            _ => None,
        },
    })
}

/// Whose log is meant; the errors are upstream's.
fn choose(
    snapshot: &Snapshot,
    pod: &str,
    container: &str,
    previous: bool,
) -> Result<ContainerStatus, String> {
    let mut mine = snapshot
        .containers
        .iter()
        .filter(|status| status.metadata.name == container);
    let latest = mine.next();
    if previous {
        // While the container waits for its next start, the last one that ran is the previous one.
        let waits = all_statuses(snapshot).any(|status| {
            status.name == container
                && status
                    .state
                    .as_ref()
                    .is_some_and(|state| state.waiting.is_some())
        });
        let chosen = match latest {
            Some(latest) if waits && latest.state == ContainerState::Exited => Some(latest),
            _ => mine.next(),
        };
        return chosen.cloned().ok_or_else(|| {
            format!("previous terminated container {container:?} in pod {pod:?} not found")
        });
    }
    match latest {
        Some(latest) if latest.state != ContainerState::Created => Ok(latest.clone()),
        _ => {
            let status = all_statuses(snapshot).find(|status| status.name == container);
            let Some(status) = status else {
                return Err(format!(
                    "container {container:?} in pod {pod:?} is not available"
                ));
            };
            let reason = status
                .state
                .as_ref()
                .and_then(|state| state.waiting.as_ref())
                .and_then(|waiting| waiting.reason.clone())
                .unwrap_or_default();
            Err(match reason.as_str() {
                "ErrImagePull" => format!(
                    "container {container:?} in pod {pod:?} is waiting to start: image can't be pulled"
                ),
                "ImagePullBackOff" => format!(
                    "container {container:?} in pod {pod:?} is waiting to start: trying and failing to pull image"
                ),
                "" => format!("container {container:?} in pod {pod:?} is not available"),
                reason => {
                    format!("container {container:?} in pod {pod:?} is waiting to start: {reason}")
                }
            })
        }
    }
}

fn all_statuses(
    snapshot: &Snapshot,
) -> impl Iterator<Item = &k8s_openapi::api::core::v1::ContainerStatus> {
    let status = &snapshot.status;
    status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .chain(&status.ephemeral_container_statuses)
        .flatten()
}
