//! Service accounts: `default` in every namespace, a token in every token secret, and no token secret
//! without its account.
//!
//! A secret's token is bound to the secret, so deleting the secret revokes it; unlike upstream's it has
//! an end ([`TOKEN_SECONDS`]), as the server signs no tokens without one.

use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub const DEFAULT: &str = "default";
/// The type of secrets that hold a token of an account.
pub const TOKEN_SECRET_TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// The account to create, if the namespace lacks it.
pub fn reconcile(namespace: &Namespace, default_exists: bool) -> Option<ServiceAccount> {
    if default_exists || namespace.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let metadata = ObjectMeta {
        name: Some(DEFAULT.into()),
        namespace: namespace.metadata.name.clone(),
        ..ObjectMeta::default()
    };
    Some(ServiceAccount {
        metadata,
        ..ServiceAccount::default()
    })
}

/// The name of the account whose token the secret holds.
pub fn account_of(secret: &Secret) -> Option<&str> {
    (secret.type_.as_deref() == Some(TOKEN_SECRET_TYPE)).then_some(())?;
    secret
        .metadata
        .annotations
        .as_ref()?
        .get(ACCOUNT_NAME)
        .map(String::as_str)
}

/// How long the token of a secret is valid: ten years.
pub const TOKEN_SECONDS: i64 = 315_360_000;

/// The token to ask for, if the secret holds none yet.
pub fn token_request(secret: &Secret) -> Option<TokenRequest> {
    let filled = secret
        .data
        .as_ref()
        .is_some_and(|data| data.contains_key("token"));
    if filled || secret.metadata.deletion_timestamp.is_some() || account_of(secret).is_none() {
        return None;
    }
    let reference = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Secret".into()),
        name: secret.metadata.name.clone(),
        uid: secret.metadata.uid.clone(),
    };
    Some(TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: None,
            bound_object_ref: Some(reference),
            expiration_seconds: Some(TOKEN_SECONDS),
        }),
        ..TokenRequest::default()
    })
}

/// The secret with its token, the authority's certificate and its namespace, as pods expect them.
pub fn filled(
    secret: &Secret,
    account: &ServiceAccount,
    token: &str,
    ca_pem: Option<&str>,
) -> Secret {
    let mut secret = secret.clone();
    if let Some(uid) = &account.metadata.uid {
        secret
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(ACCOUNT_UID.into(), uid.clone());
    }
    let namespace = secret.metadata.namespace.clone().unwrap_or_default();
    let data = secret.data.get_or_insert_default();
    data.insert("token".into(), ByteString(token.into()));
    data.insert("namespace".into(), ByteString(namespace.into()));
    if let Some(pem) = ca_pem {
        data.insert("ca.crt".into(), ByteString(pem.into()));
    }
    secret
}

/// Must the secret go? It must if its account, as the server has it now, is gone or is another one of the same name.
pub fn is_stray(secret: &Secret, account: Option<&ServiceAccount>) -> bool {
    if account_of(secret).is_none() {
        return false;
    }
    let wanted = secret
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(ACCOUNT_UID));
    match account {
        None => true,
        Some(account) => wanted.is_some_and(|wanted| account.metadata.uid.as_ref() != Some(wanted)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn default_account() {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some("a".into());
        assert_eq!(
            reconcile(&namespace, false)
                .unwrap()
                .metadata
                .namespace
                .as_deref(),
            Some("a")
        );
        assert_eq!(reconcile(&namespace, true), None);
    }

    #[test]
    fn stray_tokens() {
        let secret = |type_: &str, uid: Option<&str>| -> Secret {
            serde_json::from_value(json!({"type": type_, "metadata": {"annotations": {ACCOUNT_NAME: "x", ACCOUNT_UID: uid.unwrap_or("u")}}})).unwrap()
        };
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "x", "uid": "u"}})).unwrap();
        assert!(is_stray(&secret(TOKEN_SECRET_TYPE, None), None));
        assert!(!is_stray(&secret(TOKEN_SECRET_TYPE, None), Some(&account)));
        assert!(is_stray(
            &secret(TOKEN_SECRET_TYPE, Some("other")),
            Some(&account)
        ));
        assert!(!is_stray(&secret("Opaque", None), None));
        let request = token_request(&secret(TOKEN_SECRET_TYPE, None)).unwrap();
        assert_eq!(
            request
                .spec
                .unwrap()
                .bound_object_ref
                .unwrap()
                .kind
                .as_deref(),
            Some("Secret")
        );
        let full = filled(&secret(TOKEN_SECRET_TYPE, None), &account, "t", Some("PEM"));
        assert_eq!(full.data.as_ref().unwrap()["ca.crt"].0, b"PEM");
        assert_eq!(token_request(&full), None);
        assert_eq!(token_request(&secret("Opaque", None)), None);
    }
}
