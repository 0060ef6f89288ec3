//! Lifecycle hooks: postStart and preStop.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::context::Context;
use crate::probe::{self, Outcome, http};

/// A command of a hook may take as long as the pod lives; the caller bounds preStop by the grace period.
const EXEC_SECONDS_MAX: u64 = 24 * 3600;
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs one handler to its end; the error says what failed, for the container's status.
pub async fn run(
    context: &Context,
    container_id: &str,
    container: &Container,
    pod_ip: &str,
    handler: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        return match context
            .runtime
            .exec_sync(container_id, command, EXEC_SECONDS_MAX)
            .await
        {
            Ok(result) if result.exit_code == 0 => Ok(()),
            Ok(result) => {
                let mut output = result.stdout;
                output.extend_from_slice(&result.stderr);
                let text = String::from_utf8_lossy(&output[..output.len().min(1024)]).into_owned();
                Err(format!(
                    "Exec lifecycle hook ({shown}) for Container {:?} failed - error: command '{shown}' exited with {}: {text}, message: {text:?}",
                    container.name, result.exit_code
                ))
            }
            Err(error) => Err(format!(
                "Exec lifecycle hook ({shown}) for Container {:?} failed - error: {error}",
                container.name
            )),
        };
    }
    if let Some(get) = &handler.http_get {
        let request = probe::http_target(get, container, pod_ip)?;
        let outcome = tokio::time::timeout(
            HTTP_TIMEOUT,
            http::get(&context.probes.tls, &request, http::AGENT_HOOK),
        )
        .await;
        return match outcome {
            Ok(Outcome::Success | Outcome::Warning(_)) => Ok(()),
            Ok(Outcome::Failure(message) | Outcome::Error(message)) => Err(format!(
                "HTTP lifecycle hook ({}) for Container {:?} failed - error: {message}",
                request.path, container.name
            )),
            Err(_) => Err(format!(
                "HTTP lifecycle hook ({}) for Container {:?} failed - error: no answer in {}s",
                request.path,
                container.name,
                HTTP_TIMEOUT.as_secs()
            )),
        };
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(
            u64::try_from(sleep.seconds).unwrap_or(0),
        ))
        .await;
        return Ok(());
    }
    if let Some(socket) = &handler.tcp_socket {
        let host = socket
            .host
            .as_deref()
            .filter(|host| !host.is_empty())
            .unwrap_or(pod_ip);
        let port = probe::port_number(&socket.port, container)?;
        return match tokio::time::timeout(
            HTTP_TIMEOUT,
            tokio::net::TcpStream::connect((host, port)),
        )
        .await
        {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!(
                "TCP lifecycle hook for Container {:?} failed - error: {error}",
                container.name
            )),
            Err(_) => Err(format!(
                "TCP lifecycle hook for Container {:?} failed - error: no answer",
                container.name
            )),
        };
    }
    Err("Cannot run handler: invalid handler".to_owned())
}
