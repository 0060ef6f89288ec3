//! The running server: its listener, its tasks, its in-process clients.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authn::{Credential, Identity};
use crate::body::{incoming_body, request_body};
use crate::config::Config;
use crate::core::Core;
use crate::handler::handle;
use crate::pki::{Pki, PkiError, RENEW_BEFORE};
use crate::tls::{ClientVerifier, ServingCertificate, TlsError, server_config};

/// A client that has not finished its TLS handshake by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open requests may go on after a shutdown began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "cannot listen on {address}: {source}; another program (or another instance) may use the port, choose a different one"
    )]
    Bind {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot read the store")]
    Store(#[from] store::StoreError),
    #[error("the store holds an object that cannot be decoded: {key}: {detail}")]
    Object { key: String, detail: String },
    #[error("cannot make the objects that every cluster has: {0}")]
    Bootstrap(String),
}

/// A running API server. Dropping it stops listening; [`Server::shutdown`] ends it in order.
pub struct Server {
    core: Arc<Core>,
    local_addr: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Reads the store, makes the bootstrap objects, and starts to listen.
    pub async fn start(config: Config, store: Arc<dyn store::Store>) -> Result<Self, StartError> {
        let listener = TcpListener::bind(config.bind_address)
            .await
            .map_err(|source| StartError::Bind {
                address: config.bind_address,
                source,
            })?;
        let local_addr = listener.local_addr().map_err(|source| StartError::Bind {
            address: config.bind_address,
            source,
        })?;
        let pki = Pki::load_or_create(&config.pki_directory)?;
        let names = serving_names(&config, local_addr);
        let certificate = Arc::new(ServingCertificate::new(&pki.api_server(&names)?)?);
        let clients = Arc::new(ClientVerifier::new(pki.ca_certificate())?);
        let tls = TlsAcceptor::from(server_config(certificate.clone(), clients.clone())?);

        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let core = Core::start(config, pki, local_addr, store, stop.clone(), &tasks).await?;

        tasks.spawn(accept(
            listener,
            tls,
            clients,
            core.clone(),
            stop.clone(),
            tasks.clone(),
        ));
        tasks.spawn(renew_certificate(
            core.clone(),
            names,
            certificate,
            stop.clone(),
        ));
        tracing::info!(address = %local_addr, "api server listens");
        Ok(Self {
            core,
            local_addr,
            stop,
            tasks,
        })
    }

    /// A client whose requests go straight into the server as this identity (which is trusted).
    pub fn client(&self, identity: Identity) -> kube::Client {
        self.client_of(identity, "")
    }

    /// As [`Server::client`], for a component with a name (`kubelet`): what it writes is recorded under that
    /// name in managed fields.
    pub fn client_of(&self, identity: Identity, component: &'static str) -> kube::Client {
        let agent = (!component.is_empty()).then(|| http::HeaderValue::from_static(component));
        let core = self.core.clone();
        let credential = Arc::new(Credential::Trusted(Arc::new(identity.authenticated())));
        let service = tower::service_fn(move |mut request: Request<kube::client::Body>| {
            if let Some(agent) = &agent {
                let headers = request.headers_mut();
                headers
                    .entry(http::header::USER_AGENT)
                    .or_insert_with(|| agent.clone());
            }
            let core = core.clone();
            let credential = credential.clone();
            async move { Ok::<_, Infallible>(handle(core, credential, request.map(request_body)).await) }
        });
        client::in_process(service, "default")
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub fn pki(&self) -> &Pki {
        &self.core.pki
    }

    /// Stops listening, ends watches cleanly, lets short requests finish, and stops all tasks.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("requests were still open when the api server stopped");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The names by which the server is called, as upstream's installers choose them.
fn serving_names(config: &Config, local_addr: SocketAddr) -> Vec<String> {
    let domain = &config.cluster_domain;
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "localhost",
    ]
    .iter()
    .map(|name| (*name).to_owned())
    .collect();
    names.push(format!("kubernetes.default.svc.{domain}"));
    names.push(Ipv4Addr::LOCALHOST.to_string());
    names.push("::1".into());
    names.extend(
        config
            .service_cidr
            .nth(1)
            .map(|address| address.to_string()),
    );
    if !local_addr.ip().is_unspecified() {
        names.push(local_addr.ip().to_string());
    }
    names.extend(config.advertise_address.as_ref().map(IpAddr::to_string));
    names.extend(config.extra_names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    clients: Arc<ClientVerifier>,
    core: Arc<Core>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                tasks.spawn(connection(
                    stream,
                    peer,
                    tls.clone(),
                    clients.clone(),
                    core.clone(),
                    stop.clone(),
                ));
            }
            Err(error) => {
                // Out of descriptors, most likely: connections that end will free some.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
    clients: Arc<ClientVerifier>,
    core: Arc<Core>,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "tls handshake failed"),
        Err(_) => return tracing::debug!(%peer, "tls handshake timed out"),
    };
    let (_, session) = stream.get_ref();
    let http2 = session.alpn_protocol() == Some(b"h2");
    let credential = match session.peer_certificates() {
        Some(chain) if !chain.is_empty() => match clients.identity(chain) {
            Ok(identity) => Credential::Certificate(Arc::new(identity)),
            Err(reason) => Credential::BadCertificate(reason),
        },
        _ => Credential::None,
    };
    let credential = Arc::new(credential);
    let service = service_fn(move |request: Request<Incoming>| {
        let core = core.clone();
        let credential = credential.clone();
        async move { Ok::<_, Infallible>(handle(core, credential, request.map(incoming_body)).await) }
    });
    let io = TokioIo::new(stream);
    let result = if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(250)
            .keep_alive_interval(Duration::from_secs(30));
        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
        tokio::select! {
            result = connection.as_mut() => result,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(150));
        let mut connection = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
        tokio::select! {
            result = connection.as_mut() => result,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

async fn renew_certificate(
    core: Arc<Core>,
    names: Vec<String>,
    certificate: Arc<ServingCertificate>,
    stop: CancellationToken,
) {
    // Often enough: a certificate is renewed a month before its end.
    let period = RENEW_BEFORE / 30;
    loop {
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = stop.cancelled() => return,
        }
        let renewed = core
            .pki
            .api_server(&names)
            .map_err(|error| error.to_string());
        if let Err(error) = renewed.and_then(|pair| {
            certificate
                .replace(&pair)
                .map_err(|error| error.to_string())
        }) {
            tracing::warn!(%error, "cannot renew the serving certificate");
        }
    }
}
