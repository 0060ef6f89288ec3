//! One endpoint's HTTP: requests with authentication, redirects, time limits, and errors in words.
//!
//! Enter at [`RegistryClient::get`]. Credentials go to the endpoint and to the token server that it
//! names, and to nobody that they are redirected to. A body is only ever read with a stall limit.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RANGE, RETRY_AFTER, USER_AGENT,
    WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde::Deserialize;

use super::Timeouts;
use super::auth::{Challenge, TokenAnswer, parse_challenges, percent_encode};
use super::config::{Endpoint, Registries};
use crate::image::store::Failure;

pub(super) type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

const REDIRECT_COUNT_MAX: usize = 5;
/// Of an error's or token's body.
const SMALL_BODY_BYTES_MAX: usize = 256 << 10;
const ERROR_MESSAGE_LENGTH_MAX: usize = 300;
const AGENT: &str = concat!("llmagentos/", env!("CARGO_PKG_VERSION"));
/// A registry that asks for more patience than this is not waited for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(20);

/// Why an endpoint did not give what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// 404.
    #[error("not found{0}")]
    NotFound(String),
    /// 401 and 403 after all credentials were tried.
    #[error("pull access denied, repository does not exist or may require authorization: {0}")]
    Denied(String),
    /// No connection: refused, unresolvable, an untrusted certificate.
    #[error("{0}")]
    Connect(String),
    /// Worth another try.
    #[error("{message}")]
    Transient {
        message: String,
        retry_after: Option<Duration>,
    },
    #[error("unexpected status {0}")]
    Status(String),
    /// What came is not what was asked for: a wrong digest or size, a malformed document.
    #[error("{0}")]
    Corrupt(String),
    /// The place where it was to be kept is at fault.
    #[error("{0}")]
    Storage(Storage),
}

/// A failure on this side.
#[derive(Clone, Debug)]
pub struct Storage(pub(in crate::image) Failure);

impl std::fmt::Display for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Failure::Corrupt(reason) | Failure::Internal(reason) => f.write_str(reason),
            Failure::DiskFull => f.write_str("no space left on device"),
            Failure::Stale => f.write_str("content was removed meanwhile"),
        }
    }
}

/// Scheme, host and port, and the path before `/v2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub is_https: bool,
    /// `host` or `host:port`.
    pub authority: String,
    /// Empty or `/something`.
    pub path: String,
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Address, String> {
        let wanted = || {
            format!(
                "{text:?} is not an address such as http://127.0.0.1:5000 or https://mirror.example"
            )
        };
        let uri: Uri = text.parse().map_err(|_| wanted())?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wanted()),
        };
        let authority = uri
            .authority()
            .map(|a| a.as_str())
            .filter(|a| !a.is_empty())
            .ok_or_else(wanted)?;
        if authority.contains('@') {
            return Err(format!(
                "{text:?} has a user in it; credentials belong below configs"
            ));
        }
        if uri.query().is_some() {
            return Err(wanted());
        }
        let path = uri.path().trim_end_matches('/');
        Ok(Address {
            is_https,
            authority: authority.to_owned(),
            path: path.strip_suffix("/v2").unwrap_or(path).to_owned(),
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

/// What to get.
#[derive(Clone, Debug, Default)]
pub(in crate::image) struct Get<'a> {
    /// Below the repository: `manifests/latest`, `blobs/sha256:…`.
    pub path: &'a str,
    pub accept: &'a str,
    /// Of the first byte wanted.
    pub offset: u64,
}

/// One endpoint, for the length of one pull.
pub(in crate::image) struct RegistryClient {
    endpoint: Endpoint,
    registries: Arc<Registries>,
    timeouts: Timeouts,
    /// The header that worked last.
    authorization: Mutex<Option<HeaderValue>>,
}

impl RegistryClient {
    pub fn new(
        endpoint: Endpoint,
        registries: Arc<Registries>,
        timeouts: Timeouts,
    ) -> RegistryClient {
        RegistryClient {
            endpoint,
            registries,
            timeouts,
            authorization: Mutex::new(None),
        }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// As users know it: `mirror http://127.0.0.1:5000` or `https://gcr.io`.
    pub fn name(&self) -> String {
        match self.endpoint.mirror_of {
            Some(_) => format!("mirror {}", self.endpoint.address),
            None => self.endpoint.address.to_string(),
        }
    }

    /// A successful answer (200, or 206 for an offset), its body unread.
    pub async fn get(&self, get: Get<'_>) -> Result<Response<Incoming>, FetchError> {
        let mut url = format!(
            "{}/v2/{}/{}",
            self.endpoint.address, self.endpoint.repository, get.path
        );
        if let Some(registry) = &self.endpoint.mirror_of {
            // Tells a mirror of several registries which one is meant, as containerd does.
            url.push_str(&format!("?ns={}", percent_encode(registry)));
        }
        let mut has_authenticated = false;
        loop {
            let authorization = self
                .authorization
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let response = self.follow(&url, &get, authorization).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && !has_authenticated {
                has_authenticated = true;
                let challenges: Vec<Challenge> = response
                    .headers()
                    .get_all(WWW_AUTHENTICATE)
                    .iter()
                    .filter_map(|value| value.to_str().ok())
                    .flat_map(parse_challenges)
                    .collect();
                let refused = self.error_of(response).await;
                let authorization = self.authenticate(&challenges, refused).await?;
                *self
                    .authorization
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(authorization);
                continue;
            }
            if status.is_success() {
                return Ok(response);
            }
            return Err(self.error_of(response).await);
        }
    }

    /// The whole body, refused beyond `bytes_max`.
    pub async fn read_body(
        &self,
        response: Response<Incoming>,
        bytes_max: usize,
    ) -> Result<Vec<u8>, FetchError> {
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(chunk) = next_chunk(&mut body, self.timeouts.stall).await? {
            if bytes.len() + chunk.len() > bytes_max {
                return Err(FetchError::Corrupt(format!(
                    "answer is larger than {bytes_max} bytes"
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    async fn follow(
        &self,
        url: &str,
        get: &Get<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, FetchError> {
        let mut url = url.to_owned();
        let mut redirects_left = REDIRECT_COUNT_MAX;
        loop {
            let uri: Uri = url.parse().map_err(|_| {
                FetchError::Status(format!("redirect to a malformed address {url:?}"))
            })?;
            let mut request = Request::builder()
                .method(Method::GET)
                .header(USER_AGENT, AGENT);
            if !get.accept.is_empty() {
                request = request.header(ACCEPT, get.accept);
            }
            if get.offset > 0 {
                request = request.header(RANGE, format!("bytes={}-", get.offset));
            }
            // What a redirect leads to is somebody else's.
            let is_own = uri
                .authority()
                .is_some_and(|a| a.as_str() == self.endpoint.address.authority)
                && (uri.scheme_str() == Some("https")) == self.endpoint.address.is_https;
            if let Some(authorization) = authorization.as_ref().filter(|_| is_own) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = self.send(uri.clone(), request, Bytes::new()).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|l| l.to_str().ok());
            let location = location.ok_or_else(|| {
                FetchError::Status(format!("{} without a location", response.status()))
            })?;
            url = resolve_location(&uri, location);
            if redirects_left == 0 {
                return Err(FetchError::Status(
                    "more redirects than are followed".into(),
                ));
            }
            redirects_left -= 1;
        }
    }

    async fn send(
        &self,
        uri: Uri,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, FetchError> {
        let authority = uri.authority().map_or("", |a| a.as_str());
        let client = self
            .registries
            .client(authority)
            .map_err(FetchError::Connect)?;
        let request = request
            .uri(uri)
            .body(Full::new(body))
            .map_err(|e| FetchError::Status(format!("request cannot be made: {e}")))?;
        match tokio::time::timeout(self.timeouts.response, client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(FetchError::Connect(in_words(&error))),
            Ok(Err(error)) => Err(transient(in_words(&error))),
            Err(_) => Err(FetchError::Connect(format!(
                "no answer within {} s",
                self.timeouts.response.as_secs_f32()
            ))),
        }
    }

    async fn authenticate(
        &self,
        challenges: &[Challenge],
        refused: FetchError,
    ) -> Result<HeaderValue, FetchError> {
        let credentials = self.endpoint.credentials.as_ref();
        let mut last_error = refused;
        for challenge in challenges {
            let value = match (challenge, credentials) {
                (Challenge::Basic, Some(credentials)) if credentials.identity_token.is_empty() => {
                    credentials.basic_header()
                }
                (Challenge::Basic, _) => continue,
                (
                    Challenge::Bearer {
                        realm,
                        service,
                        scope,
                    },
                    _,
                ) => match self.token(realm, service, scope).await {
                    Ok(token) => format!("Bearer {token}"),
                    Err(error) => {
                        last_error = error;
                        continue;
                    }
                },
            };
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| FetchError::Denied("token server gave a malformed token".into()))?;
            value.set_sensitive(true);
            return Ok(value);
        }
        Err(last_error)
    }

    async fn token(&self, realm: &str, service: &str, scope: &str) -> Result<String, FetchError> {
        let scope = if scope.is_empty() {
            format!("repository:{}:pull", self.endpoint.repository)
        } else {
            scope.to_owned()
        };
        let uri: Uri = realm.parse().map_err(|_| {
            FetchError::Denied(format!("token server has a malformed address {realm:?}"))
        })?;
        let credentials = self.endpoint.credentials.as_ref();
        if credentials.is_some()
            && self.endpoint.address.is_https
            && uri.scheme_str() != Some("https")
        {
            return Err(FetchError::Denied(format!(
                "token server {realm} would get the credentials without TLS"
            )));
        }
        let query = format!(
            "service={}&scope={}",
            percent_encode(service),
            percent_encode(&scope)
        );
        let request = Request::builder().header(USER_AGENT, AGENT);
        let refresh = credentials.filter(|c| !c.identity_token.is_empty());
        let response = if let Some(credentials) = refresh {
            let form = format!(
                "grant_type=refresh_token&client_id=llmagentos&{query}&refresh_token={}",
                percent_encode(&credentials.identity_token)
            );
            let request = request
                .method(Method::POST)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
            self.send(uri, request, form.into()).await?
        } else {
            let separator = if uri.query().is_some() { '&' } else { '?' };
            let uri = format!("{realm}{separator}{query}");
            let uri = uri.parse().map_err(|_| {
                FetchError::Denied(format!("token server has a malformed address {realm:?}"))
            })?;
            let mut request = request.method(Method::GET);
            if let Some(credentials) = credentials {
                request = request.header(AUTHORIZATION, credentials.basic_header());
            }
            self.send(uri, request, Bytes::new()).await?
        };
        if !response.status().is_success() {
            return Err(match self.error_of(response).await {
                error @ FetchError::Transient { .. } => error,
                error => FetchError::Denied(format!("token server {realm}: {error}")),
            });
        }
        let body = self.read_body(response, SMALL_BODY_BYTES_MAX).await?;
        let answer: Option<TokenAnswer> = serde_json::from_slice(&body).ok();
        answer
            .and_then(TokenAnswer::into_token)
            .ok_or_else(|| FetchError::Denied(format!("token server {realm} gave no token")))
    }

    async fn error_of(&self, response: Response<Incoming>) -> FetchError {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let body = self
            .read_body(response, SMALL_BODY_BYTES_MAX)
            .await
            .unwrap_or_default();
        let message = error_message(&body);
        let explained = |with: &str| {
            if message.is_empty() {
                String::new()
            } else {
                format!("{with}{message}")
            }
        };
        match status.as_u16() {
            404 => FetchError::NotFound(explained(": ")),
            401 | 403 => FetchError::Denied(format!("{status}{}", explained(": "))),
            408 | 429 | 500..=599 if retry_after.is_none_or(|d| d <= RETRY_AFTER_MAX) => {
                FetchError::Transient {
                    message: format!("unexpected status {status}{}", explained(": ")),
                    retry_after,
                }
            }
            _ => FetchError::Status(format!("{status}{}", explained(": "))),
        }
    }
}

/// The next piece of a body, or `None` at its end.
pub(in crate::image) async fn next_chunk(
    body: &mut Incoming,
    stall: Duration,
) -> Result<Option<Bytes>, FetchError> {
    loop {
        match tokio::time::timeout(stall, body.frame()).await {
            Err(_) => {
                return Err(transient(format!(
                    "no data within {} s",
                    stall.as_secs_f32()
                )));
            }
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(transient(in_words(&error))),
            Ok(Some(Ok(frame))) => {
                // Trailers are of no interest.
                if let Ok(chunk) = frame.into_data() {
                    return Ok(Some(chunk));
                }
            }
        }
    }
}

pub(in crate::image) fn transient(message: String) -> FetchError {
    FetchError::Transient {
        message,
        retry_after: None,
    }
}

/// An error with its causes, without repeating itself.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = match cause.downcast_ref::<std::io::Error>() {
            Some(error) => of_system(error),
            None => cause.to_string(),
        };
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    // hyper-util's own layer says nothing that a user can use.
    let words = words
        .trim_start_matches("client error (Connect): ")
        .trim_start_matches("client error (SendRequest): ");
    words.replace("tcp connect error: ", "").replace(
        "invalid peer certificate: UnknownIssuer",
        "certificate is signed by an unknown authority (give its ca_file in registries.yaml)",
    )
}

/// An error of the operating system as Go's programs word it: `connection refused`, without its number.
fn of_system(error: &std::io::Error) -> String {
    let words = error.to_string();
    match words.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => words,
    }
}

fn error_message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Vec<Problem>,
    }
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let answer: Option<Answer> = serde_json::from_slice(body).ok();
    let problems = answer.map(|a| a.errors).unwrap_or_default();
    let words: Vec<String> = problems
        .iter()
        .map(|p| {
            if p.message.is_empty() {
                p.code.clone()
            } else {
                p.message.clone()
            }
        })
        .collect();
    words
        .join("; ")
        .chars()
        .filter(|c| !c.is_control())
        .take(ERROR_MESSAGE_LENGTH_MAX)
        .collect()
}

fn resolve_location(base: &Uri, location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    let scheme = base.scheme_str().unwrap_or("https");
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}");
    }
    let authority = base.authority().map_or("", |a| a.as_str());
    if location.starts_with('/') {
        return format!("{scheme}://{authority}{location}");
    }
    let directory = base
        .path()
        .rsplit_once('/')
        .map_or("", |(directory, _)| directory);
    format!("{scheme}://{authority}{directory}/{location}")
}

pub(super) fn http_client(tls: ClientConfig, connect_timeout: Duration) -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(Duration::from_secs(15))
        .pool_timer(hyper_util::rt::TokioTimer::new())
        .build(connector)
}

/// TLS with the system's authorities and those in `ca` (PEM), a client certificate and key (PEM)
/// where given, and no verification at all where asked.
pub(super) fn tls_config(
    ca: Option<&[u8]>,
    identity: Option<(&[u8], &[u8])>,
    insecure: bool,
) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = if insecure {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NoVerification(provider)))
    } else {
        let mut roots = rustls::RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if let Some(ca) = ca {
            let mut added_count = 0;
            for certificate in CertificateDer::pem_slice_iter(ca) {
                let certificate = certificate.map_err(|e| format!("not a PEM certificate: {e}"))?;
                roots
                    .add(certificate)
                    .map_err(|e| format!("not a certificate: {e}"))?;
                added_count += 1;
            }
            if added_count == 0 {
                return Err("it has no PEM certificate in it".into());
            }
        }
        builder.with_root_certificates(roots)
    };
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificates, key)) => {
            let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificates)
                .collect::<Result<_, _>>()
                .map_err(|e| format!("not a PEM certificate: {e}"))?;
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|e| format!("key_file has no PEM key: {e}"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| format!("certificate and key do not fit: {e}"))
        }
    }
}

/// For `insecure_skip_verify`: takes any certificate. Digests still hold for what is named by one.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_resolve_against_the_request() {
        #[track_caller]
        fn check(location: &str, expect: &str) {
            let base: Uri = "https://r.example:5000/v2/a/blobs/x"
                .parse()
                .expect("valid");
            assert_eq!(resolve_location(&base, location), expect);
        }
        check("https://cdn.example/x?y", "https://cdn.example/x?y");
        check("//cdn.example/x", "https://cdn.example/x");
        check("/x", "https://r.example:5000/x");
        check("x", "https://r.example:5000/v2/a/blobs/x");
    }

    #[test]
    fn messages_of_registries_are_short_and_clean() {
        assert_eq!(
            error_message(
                br#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known"}]}"#
            ),
            "repository name not known"
        );
        assert_eq!(
            error_message(br#"{"errors":[{"code":"DENIED"},{"message":"a\nb"}]}"#),
            "DENIED; ab"
        );
        assert_eq!(error_message(b"<html>"), "");
    }
}
