//! Connections to backends: one a request, with TLS to kubelets under our own client certificate.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;
use tower::BoxError;

use super::Backend;
use crate::body::RequestBody;
use crate::pki::{Pki, PkiError};
use crate::server::StartError;
use crate::tls::{TlsError, crypto_provider};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens connections to kubelets, pods and services.
pub struct Dialer {
    tls: TlsConnector,
}

impl Dialer {
    pub fn new(pki: &Pki) -> Result<Self, StartError> {
        let mut roots = RootCertStore::empty();
        roots
            .add(pki.ca_certificate().clone())
            .map_err(TlsError::Tls)?;
        let credentials = pki.api_server_kubelet_client()?;
        let (chain, key) = credentials.to_rustls().map_err(|error| PkiError::Damaged {
            path: pki.directory().join("apiserver-kubelet-client.crt"),
            detail: error.to_string(),
        })?;
        let config = ClientConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Tls)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(TlsError::Tls)?;
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Connects, sends one request, and answers with the response's head; its body follows as it is read.
    pub async fn request(
        &self,
        tasks: &TaskTracker,
        backend: &Backend,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, BoxError> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&backend.address))
            .await
            .map_err(|_| format!("dial tcp {}: i/o timeout", backend.address))?
            .map_err(|error| {
                // Without the number that Rust adds: "connection refused".
                let text = error.to_string().to_lowercase();
                let text = text.split(" (os error").next().unwrap_or(&text);
                format!("dial tcp {}: connect: {text}", backend.address)
            })?;
        let _ = stream.set_nodelay(true);
        if backend.tls {
            let (host, _) = backend
                .address
                .rsplit_once(':')
                .unwrap_or((&backend.address, ""));
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
            let stream =
                tokio::time::timeout(CONNECT_TIMEOUT, self.tls.connect(name, stream)).await??;
            exchange(tasks, TokioIo::new(stream), request).await
        } else {
            exchange(tasks, TokioIo::new(stream), request).await
        }
    }
}

async fn exchange<I>(
    tasks: &TaskTracker,
    io: I,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, BoxError>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tasks.spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a backend ended");
        }
    });
    Ok(sender.send_request(request).await?)
}
