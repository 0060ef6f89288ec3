//! Who asks.
//!
//! Enter at [`authenticate`]. A caller shows a client certificate or a bearer token, or is anonymous.
//! What is shown must be valid: a bad credential is refused, never taken for anonymous.

mod identity;
mod impersonation;
pub mod service_account;
pub mod token;

use std::sync::Arc;

use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};

pub use identity::*;

use crate::core::Core;
use crate::status::{ApiError, ApiResult};

/// Browsers can only say a token in the list of WebSocket protocols.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// What a connection brought, before a request's own headers are looked at.
#[derive(Debug)]
pub enum Credential {
    None,
    Certificate(Arc<Identity>),
    /// A certificate that proves nothing, and why.
    BadCertificate(String),
    /// An in-process caller.
    Trusted(Arc<Identity>),
}

/// Finds out who asks, and whom they act for.
pub fn authenticate(
    core: &Core,
    credential: &Credential,
    headers: &HeaderMap,
) -> ApiResult<Arc<Identity>> {
    let caller = match credential {
        Credential::Trusted(identity) | Credential::Certificate(identity) => identity.clone(),
        Credential::BadCertificate(reason) => {
            return Err(ApiError::unauthorized(format!(
                "Unauthorized: the client certificate is not accepted: {reason}"
            )));
        }
        Credential::None => match bearer_token(headers) {
            Some(token) => match service_account::authenticate(
                core,
                &token,
                &[core.tokens.issuer().to_owned()],
            ) {
                Ok((identity, _)) => Arc::new(identity),
                Err(error) => return Err(ApiError::unauthorized(format!("Unauthorized: {error}"))),
            },
            None if headers.contains_key(AUTHORIZATION) => {
                return Err(ApiError::unauthorized(
                    "Unauthorized: only bearer tokens and client certificates are accepted",
                ));
            }
            None => Arc::new(Identity::anonymous()),
        },
    };
    match impersonation::impersonated(core, &caller, headers)? {
        Some(identity) => Ok(Arc::new(identity)),
        None => Ok(caller),
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
            .then(|| token.to_owned());
    }
    let protocols = headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded = protocols
        .split(',')
        .find_map(|protocol| protocol.trim().strip_prefix(TOKEN_PROTOCOL))?;
    use base64::Engine;
    String::from_utf8(
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(encoded)
            .ok()?,
    )
    .ok()
}
