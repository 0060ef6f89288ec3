//! NamespaceLifecycle: nothing is made in a namespace that does not exist or is going away, and
//! the namespaces that every cluster has stay.

use api::kind::Object;
use k8s_openapi::api::core::v1::Namespace;

use crate::rest::Rest;
use crate::status::{ApiError, ApiResult};

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub async fn check_create(rest: &Rest<'_>) -> ApiResult<()> {
    if !rest.kind.namespaced || rest.namespace.is_empty() {
        return Ok(());
    }
    let Some(namespaces) = rest.core.caches.by_prefix("namespaces") else {
        return Ok(());
    };
    let mut found = namespaces.get(rest.namespace);
    if found.is_none() {
        // It may have been made just now.
        rest.core.caches.fresh().await?;
        found = namespaces.get(rest.namespace);
    }
    let Some(namespace) = found else {
        return Err(ApiError::not_found("", "namespaces", rest.namespace));
    };
    if namespace.head.deleting {
        let detail = format!(
            "unable to create new content in namespace {} because it is being terminated",
            rest.namespace
        );
        return Err(
            ApiError::forbidden(&rest.kind.group, &rest.kind.plural, rest.name, &detail)
                .with_cause(
                    "NamespaceTerminating",
                    &format!("namespace {} is being terminated", rest.namespace),
                    "metadata.namespace",
                ),
        );
    }
    Ok(())
}

pub fn check_delete(rest: &Rest<'_>) -> ApiResult<()> {
    if rest.kind.group.is_empty()
        && rest.kind.plural == "namespaces"
        && IMMORTAL.contains(&rest.name)
    {
        return Err(ApiError::forbidden(
            "",
            "namespaces",
            rest.name,
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}

/// A namespace stays until its content is gone, which its own list of finalizers tells.
pub fn may_be_removed(object: &dyn Object) -> bool {
    let Some(namespace) = object.as_any().downcast_ref::<Namespace>() else {
        return true;
    };
    namespace
        .spec
        .as_ref()
        .and_then(|spec| spec.finalizers.as_ref())
        .is_none_or(Vec::is_empty)
}

pub fn mark_terminating(object: &mut dyn Object) {
    if let Some(namespace) = object.as_any_mut().downcast_mut::<Namespace>() {
        namespace.status.get_or_insert_default().phase = Some("Terminating".into());
        // It goes when it is empty: no period was ever granted.
        namespace.metadata.deletion_grace_period_seconds = None;
    }
}
