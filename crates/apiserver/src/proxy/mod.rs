//! Requests that something else answers: kubelets, pods and services.
//!
//! Enter at [`connect`]. A request with `Upgrade` becomes a pair of byte streams that are copied
//! to each other, whatever is spoken on them (WebSocket, SPDY); any other is passed on with its
//! body as a stream.
//!
//! Deliberately absent: rewriting of links in proxied pages.

mod dial;
mod kubelet;
mod target;

use bytes::Bytes;
use futures::TryStreamExt;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderMap, HeaderName, UPGRADE};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, BodyStream};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

pub use dial::Dialer;

use crate::authz::{Attributes, authorize};
use crate::body::{RequestBody, ResponseBody};
use crate::request::ResourcePath;
use crate::rest::{ApiResponse, Rest};
use crate::status::{ApiError, ApiResult};

/// Where to send a request.
pub struct Backend {
    pub address: String,
    pub tls: bool,
    /// Path and query.
    pub path: String,
}

/// What a client sent, as far as it is passed on.
pub struct Upstream {
    pub method: Method,
    pub headers: HeaderMap,
    /// The query as it came.
    pub query: String,
    /// The path as it came, not decoded.
    pub raw_path: String,
}

/// The client's side of the connection.
pub struct ClientSide {
    pub body: RequestBody,
    /// The bytes after a switch of protocols, where the connection allows one.
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
}

/// Headers of one hop only, which a proxy does not pass on.
const HOP_HEADERS: &[HeaderName] = &[
    http::header::TE,
    http::header::TRAILER,
    http::header::TRANSFER_ENCODING,
    http::header::PROXY_AUTHORIZATION,
];

/// Answers a subresource that connects to a kubelet, a pod or a service; `None`: it is none of these.
pub async fn connect(
    rest: &Rest<'_>,
    subresource: &str,
    target: &ResourcePath<'_>,
    upstream: Upstream,
    client: ClientSide,
) -> Option<ApiResponse> {
    let backend = match (rest.kind.plural.as_ref(), subresource) {
        ("pods", "log") => return Some(kubelet::log(rest, upstream, client.body).await),
        ("pods", "exec" | "attach" | "portforward") => {
            if let Err(error) = check_stream_permission(rest, subresource) {
                return Some(Err(error));
            }
            kubelet::stream(rest, subresource, &upstream).await
        }
        ("nodes", "proxy") => kubelet::node(rest, target, &upstream).await,
        ("pods", "proxy") => target::pod(rest, &upstream).await,
        ("services", "proxy") => target::service(rest, &upstream).await,
        _ => return None,
    };
    Some(match backend {
        Ok(backend) => pass_on(rest, backend, upstream, client).await,
        Err(error) => Err(error),
    })
}

/// A WebSocket begins with a GET, but runs a command as much as a POST does.
fn check_stream_permission(rest: &Rest<'_>, subresource: &str) -> ApiResult<()> {
    let attributes = Attributes {
        verb: "create",
        group: "",
        resource: "pods",
        subresource,
        namespace: rest.namespace,
        name: rest.name,
        path: None,
    };
    authorize(rest.core, &rest.context.identity, &attributes)
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && headers.get_all(CONNECTION).iter().any(|value| {
            value
                .to_str()
                .is_ok_and(|value| value.to_ascii_lowercase().contains("upgrade"))
        })
}

/// Sends the request to the backend, and its answer back.
pub async fn pass_on(
    rest: &Rest<'_>,
    backend: Backend,
    upstream: Upstream,
    client: ClientSide,
) -> ApiResponse {
    let upgrade = is_upgrade(&upstream.headers);
    let Upstream {
        method, headers, ..
    } = upstream;
    let sent = send(rest, &backend, method, headers, client.body).await;
    let mut response = sent.map_err(|error| {
        if upgrade {
            ApiError::internal(format!("error dialing backend: {error}"))
        } else {
            ApiError::service_unavailable(format!("error trying to reach service: {error}"))
        }
    })?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(stream_response(response));
    }
    let Some(client_upgrade) = client.upgrade.filter(|_| upgrade) else {
        return Err(ApiError::bad_request(
            "the connection cannot be upgraded: use HTTP/1.1",
        ));
    };
    let backend_upgrade = hyper::upgrade::on(&mut response);
    let stop = rest.core.stop.clone();
    rest.core.tasks.spawn(async move {
        let (Ok(client), Ok(backend)) = tokio::join!(client_upgrade, backend_upgrade) else {
            return;
        };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut client, &mut backend) => {
                if let Err(error) = copied {
                    tracing::debug!(%error, "an upgraded connection ended");
                }
            }
            () = stop.cancelled() => {}
        }
    });
    let (parts, _) = response.into_parts();
    let mut switched = Response::new(ResponseBody::empty());
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switched.headers_mut() = parts.headers;
    Ok(switched)
}

async fn send(
    rest: &Rest<'_>,
    backend: &Backend,
    method: Method,
    mut headers: HeaderMap,
    body: RequestBody,
) -> Result<Response<Incoming>, tower::BoxError> {
    let keep_upgrade = is_upgrade(&headers);
    headers.remove(AUTHORIZATION);
    HOP_HEADERS.iter().for_each(|name| {
        headers.remove(name);
    });
    if !keep_upgrade {
        headers.remove(CONNECTION);
    }
    headers.remove(HOST);
    let uri: Uri = backend
        .path
        .parse()
        .map_err(|error| format!("the path {:?} cannot be passed on: {error}", backend.path))?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    let host = backend.address.parse()?;
    request.headers_mut().insert(HOST, host);
    rest.core
        .dialer
        .request(&rest.core.tasks, backend, request)
        .await
}

fn stream_response(response: Response<Incoming>) -> Response<ResponseBody> {
    let (parts, body) = response.into_parts();
    let frames = TryStreamExt::map_err(BodyStream::new(body), |error| {
        Box::new(error) as tower::BoxError
    });
    let data = frames.try_filter_map(|frame| async move { Ok(frame.into_data().ok()) });
    let mut streamed = Response::new(ResponseBody::stream(data));
    *streamed.status_mut() = parts.status;
    *streamed.headers_mut() = parts.headers;
    HOP_HEADERS.iter().chain(&[CONNECTION]).for_each(|name| {
        streamed.headers_mut().remove(name);
    });
    streamed
}

/// The beginning of a body, for an error's message.
async fn text(response: Response<Incoming>) -> String {
    let collected = http_body_util::Limited::new(response.into_body(), 64 << 10)
        .collect()
        .await;
    let bytes = collected
        .map(|collected| collected.to_bytes())
        .unwrap_or_else(|_| Bytes::new());
    String::from_utf8_lossy(&bytes).trim().to_owned()
}
