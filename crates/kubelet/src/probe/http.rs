//! One HTTP GET, as probes and hooks make it: HTTPS without verification, redirects followed on the same host.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{Outcome, join_host_port, plain};

pub const AGENT_PROBE: &str = "kube-probe/1.36";
pub const AGENT_HOOK: &str = "kube-lifecycle/1.36";

/// More of a body is not read.
const BODY_BYTES_MAX: usize = 10 << 10;
const REDIRECT_COUNT_MAX: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub secure: bool,
    pub host: String,
    pub port: u16,
    /// Path and query, starting with `/`.
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn display(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!(
            "{scheme}://{}{}",
            join_host_port(&self.host, self.port),
            self.path
        )
    }
}

/// Gets; any answer is success, as hooks take it. The error names the URL.
pub async fn reach(
    tls: &Arc<rustls::ClientConfig>,
    request: &Request,
    agent: &str,
) -> Result<(), String> {
    match fetch(tls, request, agent).await {
        Ok(_) => Ok(()),
        Err(message) => Err(format!("Get {:?}: {message}", request.display())),
    }
}

/// Gets; 2xx and 3xx are success.
pub async fn get(tls: &Arc<rustls::ClientConfig>, request: &Request, agent: &str) -> Outcome {
    let mut current = request.clone();
    for _ in 0..=REDIRECT_COUNT_MAX {
        let (status, location, body) = match fetch(tls, &current, agent).await {
            Ok(answer) => answer,
            Err(message) => {
                return Outcome::Failure(format!("Get {:?}: {message}", current.display()));
            }
        };
        if !(300..400).contains(&status) || location.is_none() {
            return match status {
                200..400 => Outcome::Success,
                _ => {
                    tracing::debug!(url = current.display(), status, body, "probe refused");
                    Outcome::Failure(format!("HTTP probe failed with statuscode: {status}"))
                }
            };
        }
        match follow(&current, &location.unwrap_or_default()) {
            Some(next) => current = next,
            // Elsewhere is not ours to ask; that it answers is enough.
            None => {
                return Outcome::Warning(format!(
                    "Probe terminated redirects, Response body: {body}"
                ));
            }
        }
    }
    Outcome::Failure(format!(
        "Get {:?}: stopped after {REDIRECT_COUNT_MAX} redirects",
        request.display()
    ))
}

/// Where a redirect leads, if it stays on the host.
fn follow(current: &Request, location: &str) -> Option<Request> {
    let uri: http::Uri = location.parse().ok()?;
    let mut next = current.clone();
    if let Some(host) = uri.host() {
        if host.trim_matches(['[', ']']) != current.host {
            return None;
        }
        if let Some(scheme) = uri.scheme_str() {
            next.secure = scheme == "https";
        }
        next.port = uri.port_u16().unwrap_or(if next.secure { 443 } else { 80 });
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    next.path = if path.starts_with('/') {
        path.to_owned()
    } else {
        let base = current.path.split('?').next().unwrap_or("/");
        format!(
            "{}/{path}",
            base.rsplit_once('/').map_or("", |(directory, _)| directory)
        )
    };
    Some(next)
}

type Answer = (u16, Option<String>, String);

async fn fetch(
    tls: &Arc<rustls::ClientConfig>,
    request: &Request,
    agent: &str,
) -> Result<Answer, String> {
    let stream = TcpStream::connect((request.host.as_str(), request.port))
        .await
        .map_err(|error| {
            format!(
                "dial tcp {}: connect: {}",
                join_host_port(&request.host, request.port),
                plain(&error)
            )
        })?;
    // A probe's answer is worth nothing later.
    let _ = stream.set_nodelay(true);
    if request.secure {
        let name = ServerName::try_from(request.host.clone()).map_err(|error| error.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(tls));
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|error| error.to_string())?;
        exchange(stream, request, agent).await
    } else {
        exchange(stream, request, agent).await
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: &Request,
    agent: &str,
) -> Result<Answer, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let mut builder = http::Request::get(&request.path);
    let named = |name: http::HeaderName| {
        request
            .headers
            .iter()
            .any(|(own, _)| own.eq_ignore_ascii_case(name.as_str()))
    };
    if !named(HOST) {
        builder = builder.header(HOST, join_host_port(&request.host, request.port));
    }
    if !named(USER_AGENT) {
        builder = builder.header(USER_AGENT, agent);
    }
    if !named(ACCEPT) {
        builder = builder.header(ACCEPT, "*/*");
    }
    for (name, value) in request
        .headers
        .iter()
        .filter(|(_, value)| !value.is_empty())
    {
        builder = builder.header(name, value);
    }
    let message = builder
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let mut response = sender
            .send_request(message)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let mut body = Vec::new();
        while body.len() < BODY_BYTES_MAX {
            match response.body_mut().frame().await {
                Some(Ok(frame)) => {
                    body.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data))
                }
                _ => break,
            }
        }
        body.truncate(BODY_BYTES_MAX);
        Ok((
            status,
            location,
            String::from_utf8_lossy(&body).into_owned(),
        ))
    };
    // The connection is driven here, so that nothing is left when the probe is dropped.
    let mut answer = std::pin::pin!(answer);
    let mut connection = std::pin::pin!(connection);
    let mut connected = true;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            _ = &mut connection, if connected => connected = false,
        }
    }
}

/// A TLS client that trusts any certificate, as probes do.
pub fn trusting_tls() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAny(provider)))
        .with_no_client_auth()
}

#[derive(Debug)]
struct TrustAny(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
