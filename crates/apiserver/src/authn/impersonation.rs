//! `kubectl --as`: acting as someone else, where RBAC lets the caller `impersonate` them.

use std::collections::BTreeMap;

use http::HeaderMap;

use super::{GROUP_UNAUTHENTICATED, Identity};
use crate::authz::{Attributes, authorize};
use crate::core::Core;
use crate::status::{ApiError, ApiResult};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA_PREFIX: &str = "impersonate-extra-";
const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";

/// The identity to act as; `None`: the headers ask for none.
pub fn impersonated(
    core: &Core,
    caller: &Identity,
    headers: &HeaderMap,
) -> ApiResult<Option<Identity>> {
    let values = |name: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let user = values(USER).into_iter().next().unwrap_or_default();
    let (uid, groups) = (
        values(UID).into_iter().next().unwrap_or_default(),
        values(GROUP),
    );
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA_PREFIX), value.to_str()) {
            extra
                .entry(crate::request::decode_path(key).into_owned())
                .or_default()
                .push(value.to_owned());
        }
    }
    if user.is_empty() {
        if uid.is_empty() && groups.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        return Err(ApiError::bad_request(
            "requested impersonation without naming a user: set the Impersonate-User header",
        ));
    }
    let check = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        authorize(
            core,
            caller,
            &Attributes {
                verb: "impersonate",
                group,
                resource,
                subresource,
                namespace,
                name,
                path: None,
            },
        )
    };
    let mut identity = Identity::new(&user, []);
    match user
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
    {
        Some((namespace, name)) => {
            check("", "serviceaccounts", "", namespace, name)?;
            if groups.is_empty() {
                identity = Identity::service_account(namespace, name);
            }
        }
        None => check("", "users", "", "", &user)?,
    }
    for group in &groups {
        check("", "groups", "", "", group)?;
    }
    if !uid.is_empty() {
        check(AUTHENTICATION_GROUP, "uids", "", "", &uid)?;
    }
    for (key, values) in &extra {
        for value in values {
            check(AUTHENTICATION_GROUP, "userextras", key, "", value)?;
        }
    }
    identity.uid = uid;
    identity.groups.extend(groups);
    identity.extra = extra;
    if identity.is_anonymous() {
        if !identity.in_group(GROUP_UNAUTHENTICATED) {
            identity.groups.push(GROUP_UNAUTHENTICATED.into());
        }
        return Ok(Some(identity));
    }
    Ok(Some(identity.authenticated()))
}
