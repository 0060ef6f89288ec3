//! From a token's claims to an identity, as long as all that it is bound to exists.

use super::Identity;
use super::token::{Claims, Reference, TokenError};
use crate::core::Core;
use crate::rest::now_seconds;

const EXTRA: &str = "authentication.kubernetes.io/";

/// Checks a token; `audiences` empty: any.
pub fn authenticate(
    core: &Core,
    token: &str,
    audiences: &[String],
) -> Result<(Identity, Claims), TokenError> {
    let claims = core.tokens.verify(token, audiences, now_seconds())?;
    let bound = &claims.kubernetes;
    let namespace = &bound.namespace;
    let exists = |prefix: &str, key: String, reference: &Reference| {
        let item = core
            .caches
            .by_prefix(prefix)
            .and_then(|cache| cache.get(&key));
        item.filter(|item| reference.uid.is_empty() || *item.head.uid == *reference.uid)
    };
    let account = &bound.serviceaccount;
    if exists(
        "serviceaccounts",
        format!("{namespace}/{}", account.name),
        account,
    )
    .is_none()
    {
        return Err(TokenError::Unbound(format!(
            "service account {namespace}/{}",
            account.name
        )));
    }
    let mut identity = Identity::service_account(namespace, &account.name);
    identity.uid.clone_from(&account.uid);
    if !claims.jti.is_empty() {
        identity.extra.insert(
            format!("{EXTRA}credential-id"),
            vec![format!("JTI={}", claims.jti)],
        );
    }
    if let Some(secret) = &bound.secret
        && exists("secrets", format!("{namespace}/{}", secret.name), secret).is_none()
    {
        return Err(TokenError::Unbound(format!(
            "secret {namespace}/{}",
            secret.name
        )));
    }
    if let Some(pod) = &bound.pod {
        if exists("pods", format!("{namespace}/{}", pod.name), pod).is_none() {
            return Err(TokenError::Unbound(format!("pod {namespace}/{}", pod.name)));
        }
        identity
            .extra
            .insert(format!("{EXTRA}pod-name"), vec![pod.name.clone()]);
        identity
            .extra
            .insert(format!("{EXTRA}pod-uid"), vec![pod.uid.clone()]);
    }
    if let Some(node) = &bound.node {
        // A token of a pod names its node as a fact; only one bound to the node itself ends with it.
        if bound.pod.is_none() && exists("nodes", node.name.clone(), node).is_none() {
            return Err(TokenError::Unbound(format!("node {}", node.name)));
        }
        identity
            .extra
            .insert(format!("{EXTRA}node-name"), vec![node.name.clone()]);
        identity
            .extra
            .insert(format!("{EXTRA}node-uid"), vec![node.uid.clone()]);
    }
    Ok((identity.authenticated(), claims))
}
