//! gRPC's health check: one unary call over plain HTTP/2, written by hand since it is two small messages.

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use tokio::time::{Duration, Instant, sleep, timeout_at};

use super::{Outcome, join_host_port};

/// `grpc.health.v1.HealthCheckResponse.SERVING`
const SERVING: u64 = 1;
/// Between two attempts to connect: what gRPC's clients wait at first.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Asks `grpc.health.v1.Health/Check` for `service` (empty: the server as a whole) within `limit`.
pub async fn check(host: &str, port: u16, service: &str, limit: Duration) -> Outcome {
    let address = join_host_port(host, port);
    let deadline = Instant::now() + limit;
    let seconds = limit.as_secs();
    // As gRPC's clients do, it connects until the time is over: a refusal is not the last word.
    let connect = async {
        loop {
            match TcpStream::connect((host, port)).await {
                Ok(stream) => return stream,
                Err(_) => sleep(CONNECT_PAUSE).await,
            }
        }
    };
    let Ok(stream) = timeout_at(deadline, connect).await else {
        return Outcome::Failure(format!(
            "timeout: failed to connect service {address:?} within {seconds}s: context deadline exceeded"
        ));
    };
    timeout_at(deadline, ask(stream, &address, service))
        .await
        .unwrap_or_else(|_| {
            Outcome::Failure(format!(
                "timeout: health rpc did not complete within {seconds}s"
            ))
        })
}

async fn ask(stream: TcpStream, address: &str, service: &str) -> Outcome {
    let (mut sender, connection) =
        match hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
        {
            Ok(pair) => pair,
            Err(error) => {
                return Outcome::Failure(format!(
                    "error: failed to connect service at {address:?}: {error}"
                ));
            }
        };
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", super::http::AGENT_PROBE)
        .body(Full::new(encode(service)));
    let request = match request {
        Ok(request) => request,
        Err(error) => return Outcome::Error(error.to_string()),
    };
    let answer = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| format!("error: health rpc probe failed: {error}"))?;
        let (head, body) = response.into_parts();
        let collected = body
            .collect()
            .await
            .map_err(|error| format!("error: health rpc probe failed: {error}"))?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let text = |name: &str| {
            trailers
                .get(name)
                .or_else(|| head.headers.get(name))
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        let code = text("grpc-status");
        match code.as_str() {
            "0" => decode(&collected.to_bytes())
                .ok_or_else(|| "error: health rpc probe answered something else".to_owned()),
            "12" => Err(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                text("grpc-message")
            )),
            _ => Err(format!(
                "error: health rpc probe failed: rpc error: code = {code} desc = {}",
                text("grpc-message")
            )),
        }
    };
    let mut answer = std::pin::pin!(answer);
    let mut connection = std::pin::pin!(connection);
    let mut connected = true;
    let status = loop {
        tokio::select! {
            status = &mut answer => break status,
            _ = &mut connection, if connected => connected = false,
        }
    };
    match status {
        Ok(SERVING) => Outcome::Success,
        Ok(status) => {
            let name = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]
                .get(usize::try_from(status).unwrap_or(usize::MAX))
                .unwrap_or(&"UNKNOWN");
            Outcome::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Err(message) => Outcome::Failure(message),
    }
}

/// A gRPC frame with `HealthCheckRequest { service }`.
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

/// The status out of a frame with `HealthCheckResponse { status }`; a zero is not written.
fn decode(frame: &[u8]) -> Option<u64> {
    let (&compressed, rest) = frame.split_first()?;
    let (length, message) = rest.split_at_checked(4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    if compressed != 0 || message.len() < length {
        return None;
    }
    match &message[..length] {
        [] => Some(0),
        [0x08, status, ..] if *status < 0x80 => Some(u64::from(*status)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(encode("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(encode("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        for (frame, expect) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 9, 8, 1], None),
            (&[0, 0], None),
            (&[], None),
        ] {
            assert_eq!(decode(frame), expect, "{frame:?}");
        }
    }
}
