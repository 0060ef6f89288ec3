//! The kubelet's HTTPS endpoint, for the API server: logs, pods, stats, streams.
//!
//! Who may ask: holders of a client certificate that the cluster's CA signed, in `system:masters` or with
//! one of the names that the configuration allows (the API server's). Everybody else gets 401 or 403.

mod identity;
mod logs;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::Pod;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

pub use identity::Identity;

use crate::agent::Agent;
use crate::config::ServerConfig;
use crate::streaming;

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("serving certificate or client CA is not usable: {0}")]
    Certificate(String),
}

/// All routes, without authentication.
pub fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/healthz/{*check}", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route("/pods/", get(pods))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(logs::container_logs),
        )
        .route("/stats/summary", get(stats))
        .route("/metrics", get(metrics))
        .merge(streaming::router())
        .with_state(agent)
}

/// Binds the address; the future serves until it is dropped.
pub async fn bind(
    agent: Arc<Agent>,
    config: &ServerConfig,
) -> Result<(SocketAddr, impl Future<Output = ()> + Send + use<>), ServerError> {
    let listen = |source| ServerError::Listen {
        address: config.address,
        source,
    };
    let listener = TcpListener::bind(config.address).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let acceptor = TlsAcceptor::from(Arc::new(tls_config(config)?));
    let allowed: Arc<[String]> = config.allowed_users.clone().into();
    let router = router(agent).layer(middleware::from_fn_with_state(allowed, authorize));
    Ok((address, serve(listener, acceptor, router)))
}

fn tls_config(config: &ServerConfig) -> Result<rustls::ServerConfig, ServerError> {
    let wrong = |error: &dyn std::fmt::Display| ServerError::Certificate(error.to_string());
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&config.certificate_pem)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&config.key_pem).map_err(|error| wrong(&error))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&config.client_ca_pem) {
        roots
            .add(certificate.map_err(|error| wrong(&error))?)
            .map_err(|error| wrong(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Anonymous clients get as far as an answer that says what is missing.
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    )
    .allow_unauthenticated()
    .build()
    .map_err(|error| wrong(&error))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&error))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, router: Router) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "connection was not accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            let handshake = tokio::time::timeout(std::time::Duration::from_secs(10), acceptor.accept(stream)).await;
            let Ok(Ok(stream)) = handshake else { return };
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let identity = certificate.and_then(|certificate| Identity::of_certificate(certificate));
            let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let mut request = request.map(axum::body::Body::new);
                if let Some(identity) = identity.clone() {
                    request.extensions_mut().insert(identity);
                }
                let router = router.clone();
                async move { Ok::<_, Infallible>(router.oneshot(request).await.into_response()) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

async fn authorize(State(allowed): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    match request.extensions().get::<Identity>() {
        None => (StatusCode::UNAUTHORIZED, "Unauthorized\n").into_response(),
        Some(identity) if identity.may_ask(&allowed) => next.run(request).await,
        Some(identity) => {
            let message = format!(
                "Forbidden (user={}, path={})\n",
                identity.user,
                request.uri().path()
            );
            (StatusCode::FORBIDDEN, message).into_response()
        }
    }
}

async fn pods(State(agent): State<Arc<Agent>>) -> Response {
    let items: Vec<Pod> = agent
        .snapshots()
        .into_iter()
        .filter_map(|snapshot| {
            let mut pod = snapshot.pod?.as_ref().clone();
            pod.status = Some(snapshot.status);
            Some(pod)
        })
        .collect();
    axum_json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn stats(State(agent): State<Arc<Agent>>) -> Response {
    match crate::stats::summary(&agent).await {
        Ok(summary) => axum_json(&summary),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn metrics(State(agent): State<Arc<Agent>>) -> Response {
    let snapshots = agent.snapshots();
    let running = snapshots
        .iter()
        .flat_map(|snapshot| &snapshot.containers)
        .filter(|status| status.state == runtime::service::ContainerState::Running);
    let text = format!(
        "# HELP kubelet_running_pods Number of pods that have a running pod sandbox\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods {}\n# HELP kubelet_running_containers Number of containers currently running\n# TYPE kubelet_running_containers gauge\nkubelet_running_containers{{container_state=\"running\"}} {}\n",
        snapshots
            .iter()
            .filter(|snapshot| !snapshot.finished && !snapshot.sandboxes.is_empty())
            .count(),
        running.count()
    );
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}

fn axum_json(value: &serde_json::Value) -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        value.to_string(),
    )
        .into_response()
}
