//! The escalation check of roles and bindings.

use api::kind::Object;
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef,
};

use crate::authz::{aggregation, escalation};
use crate::rest::Rest;
use crate::status::ApiResult;

pub fn admit(rest: &Rest<'_>, new: &mut dyn Object, old: Option<&dyn Object>) -> ApiResult<()> {
    let any = new.as_any();
    if let Some(role) = any.downcast_ref::<Role>() {
        let before = old.and_then(|old| old.as_any().downcast_ref::<Role>());
        if before.is_none_or(|before| before.rules != role.rules) {
            check_rules(rest, role.metadata.name.as_deref(), role.rules.as_deref())?;
        }
    } else if let Some(role) = any.downcast_ref::<ClusterRole>() {
        let before = old.and_then(|old| old.as_any().downcast_ref::<ClusterRole>());
        if before.is_none_or(|before| {
            before.rules != role.rules || before.aggregation_rule != role.aggregation_rule
        }) {
            // Who makes an aggregated role gives what it selects, whatever that comes to be.
            if role.aggregation_rule.is_some()
                && before.is_none_or(|before| before.aggregation_rule != role.aggregation_rule)
            {
                let all = aggregation::everything();
                check_rules(rest, role.metadata.name.as_deref(), Some(&all))?;
            }
            check_rules(rest, role.metadata.name.as_deref(), role.rules.as_deref())?;
        }
    } else if let Some(binding) = any.downcast_ref::<RoleBinding>() {
        let before = old.and_then(|old| old.as_any().downcast_ref::<RoleBinding>());
        if before.is_none_or(|before| {
            before.subjects != binding.subjects || before.role_ref != binding.role_ref
        }) {
            check_binding(rest, binding.metadata.name.as_deref(), &binding.role_ref)?;
        }
    } else if let Some(binding) = any.downcast_ref::<ClusterRoleBinding>() {
        let before = old.and_then(|old| old.as_any().downcast_ref::<ClusterRoleBinding>());
        if before.is_none_or(|before| {
            before.subjects != binding.subjects || before.role_ref != binding.role_ref
        }) {
            check_binding(rest, binding.metadata.name.as_deref(), &binding.role_ref)?;
        }
    }
    Ok(())
}

fn check_rules(rest: &Rest<'_>, name: Option<&str>, rules: Option<&[PolicyRule]>) -> ApiResult<()> {
    let (identity, plural, name) = (
        &rest.context.identity,
        &rest.kind.plural,
        name.unwrap_or_default(),
    );
    if escalation::is_exempt(
        rest.core,
        identity,
        "escalate",
        plural,
        rest.namespace,
        name,
    ) {
        return Ok(());
    }
    escalation::check(
        rest.core,
        identity,
        plural,
        rest.namespace,
        name,
        rules.unwrap_or_default(),
    )
}

fn check_binding(rest: &Rest<'_>, name: Option<&str>, reference: &RoleRef) -> ApiResult<()> {
    let identity = &rest.context.identity;
    let role_plural = if reference.kind == "ClusterRole" {
        "clusterroles"
    } else {
        "roles"
    };
    if escalation::is_exempt(
        rest.core,
        identity,
        "bind",
        role_plural,
        rest.namespace,
        &reference.name,
    ) {
        return Ok(());
    }
    let key = if reference.kind == "ClusterRole" {
        reference.name.clone()
    } else {
        format!("{}/{}", rest.namespace, reference.name)
    };
    let item = rest
        .core
        .caches
        .by_prefix(role_plural)
        .and_then(|cache| cache.get(&key));
    let Some(item) = item else {
        // Nobody knows what a role that is not there will allow.
        return escalation::check(
            rest.core,
            identity,
            &rest.kind.plural,
            rest.namespace,
            name.unwrap_or_default(),
            &aggregation::everything(),
        );
    };
    let role: ClusterRole = serde_json::from_slice::<serde_json::Value>(&item.json)
        .map(|value| ClusterRole {
            rules: serde_json::from_value(value["rules"].clone()).unwrap_or_default(),
            ..ClusterRole::default()
        })
        .map_err(crate::status::ApiError::internal)?;
    escalation::check(
        rest.core,
        identity,
        &rest.kind.plural,
        rest.namespace,
        name.unwrap_or_default(),
        role.rules.as_deref().unwrap_or_default(),
    )
}
