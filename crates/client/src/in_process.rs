//! A `kube::Client` whose requests go straight into a service of this process.

use std::convert::Infallible;

use http::{Request, Response};
use kube::client::Body;

/// Makes a client out of a service, for example the API server's router under a fixed identity.
///
/// The service answers every request itself; no socket, TLS or HTTP framing is involved. Must be
/// called within a tokio runtime (the client keeps a small buffer task).
pub fn in_process<S, B>(service: S, default_namespace: &str) -> kube::Client
where
    S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    kube::Client::new(service, default_namespace)
}
