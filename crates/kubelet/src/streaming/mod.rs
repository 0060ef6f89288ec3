//! Exec, attach and port-forward over SPDY/3.1 and WebSocket.
//!
//! [`router`] is merged into the kubelet's server behind its authentication and authorization; its handlers
//! find the pod with [`Agent::snapshot`] and reach the runtime through `agent.context.runtime`.
//! A handler checks everything that can be answered as plain HTTP, answers 101, and leaves a task behind that
//! serves the connection: [`remote_command`] or [`port_forward`], which know nothing of the protocol.
//!
//! Deliberately absent: limits of idle time; a session stays as long as its two sides do.

#[cfg(fuzzing)]
pub mod fuzzing;
mod port_forward;
mod remote_command;
mod spdy;
mod stream;
#[cfg(test)]
mod tests;
mod websocket;

use std::sync::Arc;

use axum::Router;
use axum::extract::{self, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use runtime::service::{ContainerState, SandboxState, StreamRequest};

use crate::agent::Agent;
use crate::pod::worker::Snapshot;
use remote_command::{InputEnd, Options, Verb};
use websocket::HandshakeError;

const SPDY: &str = "SPDY/3.1";
const STREAM_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// The routes of streams, below `/exec`, `/attach` and `/portForward`.
pub fn router() -> Router<Arc<Agent>> {
    Router::new()
        .route("/exec/{*target}", get(exec).post(exec))
        .route("/attach/{*target}", get(attach).post(attach))
        .route("/portForward/{*target}", get(forward).post(forward))
}

type Refusal = (StatusCode, String);

async fn exec(
    State(agent): State<Arc<Agent>>,
    Path(target): Path<String>,
    request: Request,
) -> Response {
    command(&agent, Verb::Exec, &target, request).unwrap_or_else(|refusal| refusal.into_response())
}

async fn attach(
    State(agent): State<Arc<Agent>>,
    Path(target): Path<String>,
    request: Request,
) -> Response {
    command(&agent, Verb::Attach, &target, request)
        .unwrap_or_else(|refusal| refusal.into_response())
}

fn command(
    agent: &Arc<Agent>,
    verb: Verb,
    target: &str,
    mut request: Request,
) -> Result<Response, Refusal> {
    let query = Query::parse(request.uri())?;
    let options = query.options()?;
    let segments: Vec<&str> = target.split('/').collect();
    let (snapshot, container) = match segments[..] {
        [namespace, pod, container] => (find_pod(agent, namespace, pod, None)?, container),
        [namespace, pod, uid, container] => {
            (find_pod(agent, namespace, pod, Some(uid))?, container)
        }
        _ => return Err(not_a_page()),
    };
    let stream_request = StreamRequest {
        container_id: running_container(&snapshot, container)?,
        command: match verb {
            Verb::Exec => query.command,
            Verb::Attach => Vec::new(),
        },
        stdin: options.stdin,
        stdout: options.stdout,
        stderr: options.stderr,
        tty: options.tty,
    };
    let input_end = match verb {
        Verb::Attach if options.stdin && outlives_input(&snapshot, container) => InputEnd::Leaves,
        _ => InputEnd::Waits,
    };
    let runtime = Arc::clone(&agent.context.runtime);
    let session = async move {
        match verb {
            Verb::Exec => runtime.exec(stream_request).await,
            Verb::Attach => runtime.attach(stream_request).await,
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    match upgrade_protocol(request.headers())? {
        UpgradeProtocol::WebSocket => {
            let mut answer = websocket::handshake(request.headers()).map_err(refuse_websocket)?;
            let protocol = websocket::choose_remote_command(&websocket::offered(request.headers()))
                .map_err(refuse_websocket)?;
            if !protocol.name.is_empty() {
                answer.insert(
                    header::SEC_WEBSOCKET_PROTOCOL,
                    HeaderValue::from_static(protocol.name),
                );
            }
            spawn(upgrade, move |upgraded| async move {
                let socket = websocket::socket(TokioIo::new(upgraded)).await;
                let (connection, channels) =
                    websocket::remote_command(socket, protocol, options).await;
                remote_command::serve(verb, session, connection, channels, input_end).await;
            });
            Ok(switching("websocket", answer))
        }
        UpgradeProtocol::Spdy => {
            let offered = stream_versions(request.headers());
            let protocol = spdy::command::choose(&offered).ok_or_else(|| {
                refuse_versions(&offered, &spdy::command::PROTOCOLS.map(|known| known.name))
            })?;
            spawn(upgrade, move |upgraded| async move {
                let (connection, accepted) = spdy::connection::over_socket(TokioIo::new(upgraded));
                if let Some(channels) = spdy::command::channels(accepted, protocol, options).await {
                    remote_command::serve(verb, session, connection, channels, input_end).await;
                }
            });
            Ok(switching_spdy(protocol.name))
        }
    }
}

/// Does the container go on reading after the client that is attached to it has ended its input?
fn outlives_input(snapshot: &Snapshot, container: &str) -> bool {
    let Some(spec) = snapshot.pod.as_ref().and_then(|pod| pod.spec.as_ref()) else {
        return false;
    };
    spec.containers
        .iter()
        .find(|own| own.name == container)
        .is_some_and(|own| {
            own.stdin == Some(true) && (own.stdin_once != Some(true) || own.tty == Some(true))
        })
}

async fn forward(
    State(agent): State<Arc<Agent>>,
    Path(target): Path<String>,
    request: Request,
) -> Response {
    port_forward(&agent, &target, request).unwrap_or_else(|refusal| refusal.into_response())
}

fn port_forward(
    agent: &Arc<Agent>,
    target: &str,
    mut request: Request,
) -> Result<Response, Refusal> {
    let segments: Vec<&str> = target.split('/').collect();
    let (snapshot, name) = match segments[..] {
        [namespace, pod] => (find_pod(agent, namespace, pod, None)?, pod),
        [namespace, pod, uid] => (find_pod(agent, namespace, pod, Some(uid))?, pod),
        _ => return Err(not_a_page()),
    };
    let sandbox_id = snapshot
        .sandboxes
        .first()
        .filter(|sandbox| sandbox.state == SandboxState::Ready)
        .map(|sandbox| sandbox.id.clone())
        .ok_or_else(|| {
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("pod not found ({name:?})"),
            )
        })?;
    let uid = snapshot.pod.and_then(|pod| pod.metadata.uid.clone());
    let target = port_forward::Target {
        pod: name.to_owned(),
        uid: uid.unwrap_or_default(),
    };
    let runtime = Arc::clone(&agent.context.runtime);
    let connect = move |port| {
        let (runtime, sandbox_id) = (Arc::clone(&runtime), sandbox_id.clone());
        async move { runtime.port_forward(&sandbox_id, port).await }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    match upgrade_protocol(request.headers())? {
        UpgradeProtocol::WebSocket => {
            let mut answer = websocket::handshake(request.headers()).map_err(refuse_websocket)?;
            let offered = websocket::offered(request.headers());
            if !offered
                .iter()
                .any(|name| name == port_forward::TUNNEL_PROTOCOL)
            {
                let protocol =
                    websocket::choose_port_forward(&offered).map_err(refuse_websocket)?;
                let ports = Query::parse(request.uri())?.ports;
                let ports =
                    websocket::ports(ports.iter().map(String::as_str)).map_err(refuse_websocket)?;
                if !protocol.name.is_empty() {
                    answer.insert(
                        header::SEC_WEBSOCKET_PROTOCOL,
                        HeaderValue::from_static(protocol.name),
                    );
                }
                spawn(upgrade, move |upgraded| async move {
                    let socket = websocket::socket(TokioIo::new(upgraded)).await;
                    let (connection, channels) = websocket::port_channels(socket, protocol, &ports);
                    port_forward::serve_channels(connection, channels, target, connect).await;
                });
                return Ok(switching("websocket", answer));
            }
            answer.insert(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(port_forward::TUNNEL_PROTOCOL),
            );
            spawn(upgrade, move |upgraded| async move {
                let socket = websocket::socket(TokioIo::new(upgraded)).await;
                let (chunks, sink) = websocket::tunnel(socket);
                let (connection, accepted) = spdy::connection::start(chunks, sink);
                port_forward::serve(connection, accepted, target, connect).await;
            });
            Ok(switching("websocket", answer))
        }
        UpgradeProtocol::Spdy => {
            let offered = stream_versions(request.headers());
            if !offered.is_empty() && !offered.iter().any(|name| name == port_forward::PROTOCOL) {
                return Err(refuse_versions(&offered, &[port_forward::PROTOCOL]));
            }
            spawn(upgrade, move |upgraded| async move {
                let (connection, accepted) = spdy::connection::over_socket(TokioIo::new(upgraded));
                port_forward::serve(connection, accepted, target, connect).await;
            });
            Ok(switching_spdy(port_forward::PROTOCOL))
        }
    }
}

fn not_a_page() -> Refusal {
    (StatusCode::NOT_FOUND, "404 page not found\n".into())
}

enum UpgradeProtocol {
    WebSocket,
    Spdy,
}

fn upgrade_protocol(headers: &HeaderMap) -> Result<UpgradeProtocol, Refusal> {
    let contains = |name: HeaderName, word: &str| {
        values(headers, name)
            .iter()
            .any(|value| value.eq_ignore_ascii_case(word))
    };
    if contains(header::CONNECTION, "upgrade") {
        if contains(header::UPGRADE, "websocket") {
            return Ok(UpgradeProtocol::WebSocket);
        }
        if contains(header::UPGRADE, SPDY) {
            return Ok(UpgradeProtocol::Spdy);
        }
    }
    Err((
        StatusCode::BAD_REQUEST,
        "unable to upgrade: missing upgrade headers in request: websocket or SPDY/3.1 is needed\n"
            .into(),
    ))
}

/// The words of a header that is a list, in as many lines as the client likes.
fn values(headers: &HeaderMap, name: HeaderName) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|word| word.trim().to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

/// The versions of streams that a SPDY client offers.
fn stream_versions(headers: &HeaderMap) -> Vec<String> {
    values(headers, STREAM_VERSION)
}

fn refuse_websocket(error: HandshakeError) -> Refusal {
    (error.code(), format!("{error}\n"))
}

fn refuse_versions(offered: &[String], accepted: &[&str]) -> Refusal {
    (
        StatusCode::FORBIDDEN,
        format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {accepted:?}\n"
        ),
    )
}

fn switching_spdy(version: &'static str) -> Response {
    let mut answer = HeaderMap::new();
    answer.insert(STREAM_VERSION, HeaderValue::from_static(version));
    switching(SPDY, answer)
}

fn switching(protocol: &'static str, headers: HeaderMap) -> Response {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().extend(headers);
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response
        .headers_mut()
        .insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// Serves the connection once the answer has gone out.
fn spawn<F>(upgrade: OnUpgrade, serve: impl FnOnce(Upgraded) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send,
{
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => serve(upgraded).await,
            Err(error) => tracing::debug!(%error, "a stream's connection was not upgraded"),
        }
    });
}

fn find_pod(
    agent: &Agent,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
) -> Result<Snapshot, Refusal> {
    agent
        .snapshot(namespace, name)
        .filter(|snapshot| {
            let pod_uid = snapshot
                .pod
                .as_ref()
                .and_then(|pod| pod.metadata.uid.as_deref());
            uid.is_none() || uid == pod_uid
        })
        .ok_or_else(|| (StatusCode::NOT_FOUND, "pod does not exist".into()))
}

/// The id of the newest container of that name, if it runs.
fn running_container(snapshot: &Snapshot, name: &str) -> Result<String, Refusal> {
    snapshot
        .containers
        .iter()
        .find(|status| status.metadata.name == name)
        .filter(|status| status.state == ContainerState::Running)
        .map(|status| status.id.clone())
        .ok_or_else(|| {
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("container not found ({name:?})"),
            )
        })
}

/// A request's parameters, under the kubelet's names or under the API server's.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    command: Vec<String>,
    ports: Vec<String>,
    options: Options,
}

impl Query {
    fn parse(uri: &Uri) -> Result<Self, Refusal> {
        let pairs =
            extract::Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| {
                (
                    StatusCode::BAD_REQUEST,
                    format!("Unable to decode query: {error}"),
                )
            })?;
        let mut query = Self::default();
        for (key, value) in pairs.0 {
            let yes = matches!(value.as_str(), "1" | "true");
            match key.as_str() {
                "command" => query.command.push(value),
                "port" | "ports" => query.ports.push(value),
                "input" | "stdin" => query.options.stdin = yes,
                "output" | "stdout" => query.options.stdout = yes,
                "error" | "stderr" => query.options.stderr = yes,
                "tty" => query.options.tty = yes,
                _ => {}
            }
        }
        Ok(query)
    }

    fn options(&self) -> Result<Options, Refusal> {
        let mut options = self.options;
        // A terminal has one output.
        options.stderr &= !options.tty;
        if options.stdin || options.stdout || options.stderr {
            Ok(options)
        } else {
            Err((
                StatusCode::BAD_REQUEST,
                "you must specify at least 1 of stdin, stdout, stderr".into(),
            ))
        }
    }
}
