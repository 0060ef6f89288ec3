//! Probes of running containers, and the HTTP and TCP actions that hooks share.
//!
//! ```text
//! container runs ─► startup probe ─ passes ─► readiness and liveness probes, side by side
//!                        └ fails ─► (the machine stops the container)
//! ```
//!
//! One task a probe, asleep between its periods. A result is told when it changes, after the threshold of
//! equal ones. A probe of a container that must be stopped tells no more.

pub mod grpc;
pub mod http;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use runtime::service::RuntimeError;
use tokio::time::{Instant, sleep_until, timeout};

use crate::context::Context;
use crate::events::Severity;
use crate::pod::spec::{ContainerSpec, PodSpecView};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

impl ProbeKind {
    fn name(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Liveness => "Liveness",
        }
    }

    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// What one attempt found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// Counts as a success, and is told.
    Warning(String),
    Failure(String),
    /// The probe itself could not be made; counts as a failure.
    Error(String),
}

/// What probing needs that is made once.
pub struct Prober {
    pub tls: Arc<rustls::ClientConfig>,
}

/// What a probe task is about.
pub struct Target {
    pub view: PodSpecView,
    pub spec: ContainerSpec,
    pub container_id: String,
    pub pod_ip: String,
    /// When the container started, in wall-clock terms of this process.
    pub started: Instant,
}

/// Runs one probe until the task is dropped; calls `tell` with every change of its result.
pub async fn run(
    context: Arc<Context>,
    target: Target,
    kind: ProbeKind,
    tell: impl Fn(bool) + Send,
) {
    let Some(probe) = kind.of(&target.spec.container).cloned() else {
        return;
    };
    let seconds = |value: Option<i32>, default: u64| {
        value
            .and_then(|value| u64::try_from(value).ok())
            .filter(|value| *value > 0)
            .unwrap_or(default)
    };
    let period = Duration::from_secs(seconds(probe.period_seconds, 10));
    let limit = Duration::from_secs(seconds(probe.timeout_seconds, 1));
    let failure_threshold = seconds(probe.failure_threshold, 3);
    let success_threshold = seconds(probe.success_threshold, 1);
    let mut at = target.started + Duration::from_secs(seconds(probe.initial_delay_seconds, 0));
    let (mut last_success, mut run_length, mut told) = (None, 0u64, None);
    loop {
        sleep_until(at.max(Instant::now())).await;
        let outcome = attempt(&context, &target, &probe, limit).await;
        let success = matches!(outcome, Outcome::Success | Outcome::Warning(_));
        let event = match &outcome {
            Outcome::Success => None,
            Outcome::Warning(message) => Some((
                "ProbeWarning",
                format!("{} probe warning: {message}", kind.name()),
            )),
            Outcome::Failure(message) => Some((
                "Unhealthy",
                format!("{} probe failed: {message}", kind.name()),
            )),
            Outcome::Error(message) => Some((
                "Unhealthy",
                format!(
                    "{} probe errored and resulted in unknown state: {message}",
                    kind.name()
                ),
            )),
        };
        if let Some((reason, message)) = event {
            context.tell_container(
                &target.view,
                &target.spec,
                Severity::Warning,
                reason,
                message,
            );
        }
        run_length = if last_success == Some(success) {
            run_length + 1
        } else {
            1
        };
        last_success = Some(success);
        let threshold = if success {
            success_threshold
        } else {
            failure_threshold
        };
        if run_length >= threshold && told != Some(success) {
            told = Some(success);
            tell(success);
            // Startup is over with its first result; a failed liveness ends the container.
            if kind == ProbeKind::Startup || kind == ProbeKind::Liveness && !success {
                return;
            }
        }
        at = (at + period).max(Instant::now() + period / 10);
    }
}

async fn attempt(context: &Context, target: &Target, probe: &Probe, limit: Duration) -> Outcome {
    let container = &target.spec.container;
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        let seconds = limit.as_secs().max(1);
        return match context
            .runtime
            .exec_sync(&target.container_id, command, seconds)
            .await
        {
            Ok(result) if result.exit_code == 0 => Outcome::Success,
            Ok(result) => {
                let mut output = result.stdout;
                output.extend_from_slice(&result.stderr);
                output.truncate(10 << 10);
                Outcome::Failure(String::from_utf8_lossy(&output).into_owned())
            }
            Err(RuntimeError::Timeout { .. }) => {
                Outcome::Failure(format!("command timed out after {seconds}s"))
            }
            Err(error) => Outcome::Error(error.to_string()),
        };
    }

    if let Some(get) = &probe.http_get {
        match http_target(get, container, &target.pod_ip) {
            Ok(url) => timeout(limit, http::get(&context.probes.tls, &url, http::AGENT_PROBE)).await.unwrap_or_else(|_| {
                Outcome::Failure(format!("Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)", url.display()))
            }),
            Err(message) => Outcome::Error(message),
        }
    } else if let Some(socket) = &probe.tcp_socket {
        let host = socket
            .host
            .as_deref()
            .filter(|host| !host.is_empty())
            .unwrap_or(&target.pod_ip);
        match port_number(&socket.port, container) {
            Ok(port) => connect(host, port, limit).await,
            Err(message) => Outcome::Error(message),
        }
    } else if let Some(grpc) = &probe.grpc {
        let service = grpc.service.clone().unwrap_or_default();
        match u16::try_from(grpc.port) {
            Ok(port) => grpc::check(&target.pod_ip, port, &service, limit).await,
            Err(_) => Outcome::Error(format!("invalid port {}", grpc.port)),
        }
    } else {
        Outcome::Error("missing probe handler".to_owned())
    }
}

async fn connect(host: &str, port: u16, limit: Duration) -> Outcome {
    let address = join_host_port(host, port);
    match timeout(limit, tokio::net::TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Outcome::Success,
        Ok(Err(error)) => {
            Outcome::Failure(format!("dial tcp {address}: connect: {}", plain(&error)))
        }
        Err(_) => Outcome::Failure(format!("dial tcp {address}: i/o timeout")),
    }
}

/// `10.0.0.1:80`, `[::1]:80`.
pub fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// An operating system's error as Go words it.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    text.to_lowercase()
}

/// A port by number or by the name of one of the container's.
pub fn port_number(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => match name.parse::<i32>() {
            Ok(number) => Some(number),
            Err(_) => container
                .ports
                .iter()
                .flatten()
                .find(|own| own.name.as_deref() == Some(name))
                .map(|own| own.container_port),
        },
    };
    let number = number.ok_or_else(|| {
        format!(
            "couldn't find port: {port:?} in container {}",
            container.name
        )
    })?;
    u16::try_from(number)
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

/// The URL and headers of an HTTP action.
pub fn http_target(
    get: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
) -> Result<http::Request, String> {
    let port = port_number(&get.port, container)?;
    let host = get
        .host
        .as_deref()
        .filter(|host| !host.is_empty())
        .unwrap_or(pod_ip)
        .to_owned();
    let path = get.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let headers: VecDeque<_> = get
        .http_headers
        .iter()
        .flatten()
        .map(|header| (header.name.clone(), header.value.clone()))
        .collect();
    Ok(http::Request {
        secure: get.scheme.as_deref() == Some("HTTPS"),
        host,
        port,
        path,
        headers: headers.into(),
    })
}
