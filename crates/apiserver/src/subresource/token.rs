//! `serviceaccounts/token`: makes a token, bound to an object if the request names one.

use api::error::{ErrorList, FieldError, FieldErrorReason};
use http::StatusCode;
use k8s_openapi::api::authentication::v1::{
    BoundObjectReference, TokenRequest, TokenRequestStatus,
};
use k8s_openapi::api::core::v1::Pod;

use crate::authn::token::{Claims, KubernetesClaims, Reference};
use crate::codec::object::respond_value;
use crate::rest::{ApiResponse, Rest, meta, now_seconds};
use crate::status::{ApiError, ApiResult};

const DEFAULT_EXPIRATION_SECONDS: i64 = 3600;
/// Upstream's bounds: 10 minutes to 2^32 seconds.
const EXPIRATION_SECONDS_MIN: i64 = 600;
const EXPIRATION_SECONDS_MAX: i64 = 1 << 32;

/// `body` is JSON.
pub async fn create(rest: &Rest<'_>, body: &[u8]) -> ApiResponse {
    let mut request: TokenRequest = serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!(
            "TokenRequest in version \"v1\" cannot be handled as a TokenRequest: {error}"
        ))
    })?;
    let account = match rest.current().await {
        Err(error) if error.is_not_found() => {
            // Of a namespace that is not there, that is said.
            crate::admission::namespace::check_create(rest).await?;
            return Err(error);
        }
        account => account?,
    };
    let spec = request.spec.get_or_insert_default();
    let audiences = spec
        .audiences
        .clone()
        .filter(|audiences| !audiences.is_empty());
    let audiences = audiences.unwrap_or_else(|| vec![rest.core.tokens.issuer().to_owned()]);
    spec.audiences = Some(audiences.clone());
    let expiration = *spec
        .expiration_seconds
        .get_or_insert(DEFAULT_EXPIRATION_SECONDS);
    check_expiration(expiration)?;
    let mut kubernetes = KubernetesClaims {
        namespace: rest.namespace.into(),
        serviceaccount: Reference {
            name: rest.name.into(),
            uid: account.head.uid.to_string(),
        },
        ..KubernetesClaims::default()
    };
    if let Some(reference) = &mut spec.bound_object_ref {
        bind(rest, reference, &mut kubernetes)?;
    }
    let now = now_seconds();
    let claims = Claims {
        aud: audiences,
        exp: now + expiration,
        iat: now,
        iss: rest.core.tokens.issuer().to_owned(),
        jti: uuid::Uuid::new_v4().to_string(),
        kubernetes,
        nbf: now,
        sub: format!("system:serviceaccount:{}:{}", rest.namespace, rest.name),
    };
    let token = rest.core.tokens.sign(&claims).map_err(ApiError::internal)?;
    request.metadata.name = Some(rest.name.into());
    request.metadata.namespace = Some(rest.namespace.into());
    request.metadata.uid = Some(account.head.uid.to_string());
    request.metadata.creation_timestamp = Some(meta::at(now));
    request.status = Some(TokenRequestStatus {
        token: Some(token),
        expiration_timestamp: Some(meta::at(claims.exp)),
    });
    let value = serde_json::to_value(&request).map_err(ApiError::internal)?;
    Ok(respond_value(
        &rest.context.accept()?,
        StatusCode::CREATED,
        &value,
    ))
}

fn check_expiration(seconds: i64) -> ApiResult<()> {
    let detail = if seconds < EXPIRATION_SECONDS_MIN {
        "may not specify a duration less than 10 minutes"
    } else if seconds > EXPIRATION_SECONDS_MAX {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let error = FieldError {
        reason: FieldErrorReason::Invalid,
        field: "spec.expirationSeconds".into(),
        bad_value: seconds.to_string(),
        detail: detail.into(),
    };
    Err(ApiError::invalid(
        "authentication.k8s.io",
        "TokenRequest",
        "",
        &ErrorList::from([error]),
    ))
}

fn bind(
    rest: &Rest<'_>,
    reference: &mut BoundObjectReference,
    claims: &mut KubernetesClaims,
) -> ApiResult<()> {
    let kind = reference.kind.as_deref().unwrap_or_default();
    let name = reference.name.clone().unwrap_or_default();
    let caches = &rest.core.caches;
    let (prefix, key) = match kind {
        "Pod" => ("pods", format!("{}/{name}", rest.namespace)),
        "Secret" => ("secrets", format!("{}/{name}", rest.namespace)),
        "Node" => ("nodes", name.clone()),
        _ => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount to object of kind {kind:?}: only Pod, Secret and Node will do"
            )));
        }
    };
    let item = caches
        .by_prefix(prefix)
        .and_then(|cache| cache.get(&key))
        .ok_or_else(|| ApiError::not_found("", prefix, &name))?;
    let wanted = reference.uid.clone().unwrap_or_default();
    if !wanted.is_empty() && *wanted != *item.head.uid {
        let detail = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict("", prefix, &name, &detail));
    }
    reference.uid = Some(item.head.uid.to_string());
    let bound = Some(Reference {
        name: name.clone(),
        uid: item.head.uid.to_string(),
    });
    match kind {
        "Secret" => claims.secret = bound,
        "Node" => claims.node = bound,
        _ => {
            let pod: Pod = serde_json::from_slice(&item.json).map_err(ApiError::internal)?;
            let spec = pod.spec.unwrap_or_default();
            let account = spec.service_account_name.as_deref().unwrap_or_default();
            if account != rest.name {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name",
                    rest.name
                )));
            }
            claims.pod = bound;
            if let Some(node) = spec.node_name.filter(|node| !node.is_empty())
                && let Some(node_item) =
                    caches.by_prefix("nodes").and_then(|cache| cache.get(&node))
            {
                claims.node = Some(Reference {
                    name: node,
                    uid: node_item.head.uid.to_string(),
                });
            }
        }
    }
    Ok(())
}
