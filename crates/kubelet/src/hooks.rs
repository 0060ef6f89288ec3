//! Lifecycle hooks: postStart and preStop.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::context::Context;
use crate::pod::spec::PodSpecView;
use crate::probe::{self, http};

/// A command of a hook may take as long as the pod lives; the caller bounds preStop by the grace period.
const EXEC_SECONDS_MAX: u64 = 24 * 3600;
/// Of what a failed command wrote, in the status's message.
const OUTPUT_BYTES_MAX: usize = 1024;
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs one handler to its end; the error says what failed, for the container's status, in upstream's words.
pub async fn run(
    context: &Context,
    view: &PodSpecView,
    container_id: &str,
    container: &Container,
    pod_ip: &str,
    handler: &LifecycleHandler,
) -> Result<(), String> {
    let place = format!(
        "for Container {:?} in Pod {:?}",
        container.name,
        view.formatted()
    );
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
                let text = String::from_utf8_lossy(&output[..output.len().min(OUTPUT_BYTES_MAX)])
                    .into_owned();
                Err(format!(
                    "Exec lifecycle hook ([{shown}]) {place} failed - error: command '{shown}' exited with {}: {text}, message: {text:?}",
                    result.exit_code
                ))
            }
            Err(error) => Err(format!(
                "Exec lifecycle hook ([{shown}]) {place} failed - error: {error}, message: \"\""
            )),
        };
    }
    if let Some(get) = &handler.http_get {
        let request = probe::http_target(get, container, pod_ip)?;
        let path = get.path.as_deref().unwrap_or_default();
        let answer = tokio::time::timeout(
            HTTP_TIMEOUT,
            http::reach(&context.probes.tls, &request, http::AGENT_HOOK),
        )
        .await;
        let error = match answer {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(message)) => message,
            Err(_) => format!("no answer in {}s", HTTP_TIMEOUT.as_secs()),
        };
        return Err(format!(
            "HTTP lifecycle hook ({path}) {place} failed - error: {error}"
        ));
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
                "TCP lifecycle hook {place} failed - error: {error}"
            )),
            Err(_) => Err(format!(
                "TCP lifecycle hook {place} failed - error: no answer"
            )),
        };
    }
    Err("Cannot run handler: invalid handler".to_owned())
}
