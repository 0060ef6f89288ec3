//! Who may: role based access control, as upstream's.
//!
//! Enter at [`authorize_resource`] and [`authorize_path`]. Roles and bindings are looked up in an
//! index from subject to rules, built afresh when one of them changed (which is rare) and shared
//! by all requests. `system:masters` may do everything, whatever the bindings say.

pub mod aggregation;
pub mod escalation;
mod index;
pub mod policy;

use http::Method;

pub use index::{Authorizer, Rules};

use crate::authn::{GROUP_MASTERS, Identity};
use crate::core::Core;
use crate::request::ResourcePath;
use crate::status::{ApiError, ApiResult};

/// One action that someone wants to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// Set for a path that is no resource; the fields above but `verb` are empty then.
    pub path: Option<&'a str>,
}

impl Attributes<'_> {
    /// `pods/log`, as rules name it.
    fn combined_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// May this identity do that?
pub fn is_allowed(core: &Core, identity: &Identity, attributes: &Attributes<'_>) -> bool {
    identity.in_group(GROUP_MASTERS) || core.authorizer.allows(&core.caches, identity, attributes)
}

pub fn authorize_resource(
    core: &Core,
    identity: &Identity,
    verb: &str,
    target: &ResourcePath<'_>,
) -> ApiResult<()> {
    authorize(
        core,
        identity,
        &Attributes {
            verb,
            group: target.group,
            resource: target.resource,
            subresource: target.subresource,
            namespace: target.namespace,
            name: target.name,
            path: None,
        },
    )
}

pub fn authorize_path(
    core: &Core,
    identity: &Identity,
    method: &Method,
    path: &str,
) -> ApiResult<()> {
    let verb = method.as_str().to_ascii_lowercase();
    authorize(
        core,
        identity,
        &Attributes {
            verb: &verb,
            path: Some(path),
            ..Attributes::default()
        },
    )
}

pub fn authorize(core: &Core, identity: &Identity, attributes: &Attributes<'_>) -> ApiResult<()> {
    if is_allowed(core, identity, attributes) {
        return Ok(());
    }
    Err(forbidden(identity, attributes))
}

/// Upstream's words for a refusal.
pub fn forbidden(identity: &Identity, attributes: &Attributes<'_>) -> ApiError {
    let user = &identity.user;
    let verb = attributes.verb;
    if let Some(path) = attributes.path {
        return ApiError::forbidden(
            "",
            "",
            "",
            &format!("User {user:?} cannot {verb} path {path:?}"),
        );
    }
    let scope = if attributes.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", attributes.namespace)
    };
    let message = format!(
        "User {user:?} cannot {verb} resource {:?} in API group {:?} {scope}",
        attributes.combined_resource(),
        attributes.group
    );
    ApiError::forbidden(
        attributes.group,
        attributes.resource,
        attributes.name,
        &message,
    )
}
