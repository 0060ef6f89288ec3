//! Role, ClusterRole, RoleBinding, ClusterRoleBinding.

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::label_selector;
use super::pod::defaults::fill_metadata;
use crate::columns::{self, AGE, NAME, column, wide};
use crate::empty::drop_empty;
use crate::error::{ErrorList, invalid, invalid_each, not_supported, print_go_struct, required};
use crate::kind::{Column, Part};
use crate::name::{self, NameRule};
use crate::path::{Path, root};
use crate::typed::ApiType;

const GROUP: &str = "rbac.authorization.k8s.io";

impl ApiType for Role {
    const NAMESPACED: bool = true;
    const NAME_RULE: NameRule = NameRule::PathSegment;
    const CREATE_ON_UPDATE: bool = true;

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        fill_rules(self.rules.get_or_insert_default());
    }

    fn validate(&self, errors: &mut ErrorList) {
        validate_rules(self.rules.as_deref().unwrap_or(&[]), true, errors);
    }

    fn validate_update(&self, _old: &Self, _part: &Part, errors: &mut ErrorList) {
        self.validate(errors);
    }
}

impl ApiType for ClusterRole {
    const NAMESPACED: bool = false;
    const NAME_RULE: NameRule = NameRule::PathSegment;
    const CREATE_ON_UPDATE: bool = true;

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        fill_rules(self.rules.get_or_insert_default());
    }

    fn validate(&self, errors: &mut ErrorList) {
        validate_rules(self.rules.as_deref().unwrap_or(&[]), false, errors);
        if let Some(aggregation) = &self.aggregation_rule {
            let rule_path = root("aggregationRule");
            let path = rule_path.child("clusterRoleSelectors");
            let selectors = aggregation.cluster_role_selectors.as_deref().unwrap_or(&[]);
            if selectors.is_empty() {
                errors.push(required(
                    &path,
                    "at least one clusterRoleSelector required if aggregationRule is non-nil",
                ));
            }
            for (index, selector) in selectors.iter().enumerate() {
                label_selector::validate(Some(selector), &path.index(index), errors);
            }
        }
    }

    fn validate_update(&self, _old: &Self, _part: &Part, errors: &mut ErrorList) {
        self.validate(errors);
    }
}

/// Binding kinds differ only in what they may refer to.
macro_rules! binding {
    ($kind:ty, $namespaced:expr, $role_kinds:expr) => {
        impl ApiType for $kind {
            const NAMESPACED: bool = $namespaced;
            const NAME_RULE: NameRule = NameRule::PathSegment;
            const CREATE_ON_UPDATE: bool = true;
            const COLUMNS: &'static [Column] = BINDING_COLUMNS;

            fn fill_defaults(&mut self) {
                fill_metadata(&mut self.metadata);
                drop_empty!(self.subjects);
                fill_binding(
                    &mut self.role_ref,
                    self.subjects.as_deref_mut().unwrap_or(&mut []),
                );
            }

            fn validate(&self, errors: &mut ErrorList) {
                validate_binding(
                    &self.role_ref,
                    $role_kinds,
                    self.subjects.as_deref().unwrap_or(&[]),
                    $namespaced,
                    errors,
                );
            }

            fn validate_update(&self, old: &Self, _part: &Part, errors: &mut ErrorList) {
                self.validate(errors);
                if self.role_ref != old.role_ref {
                    let mut error = invalid(&root("roleRef"), "", "cannot change roleRef");
                    let role = &self.role_ref;
                    error.bad_value = print_go_struct(&[
                        ("APIGroup", &role.api_group.as_deref().unwrap_or_default()),
                        ("Kind", &role.kind),
                        ("Name", &role.name),
                    ]);
                    errors.push(error);
                }
            }

            fn cells(&self, now_seconds: i64) -> Vec<Value> {
                binding_cells(
                    &self.metadata,
                    &self.role_ref,
                    self.subjects.as_deref().unwrap_or(&[]),
                    now_seconds,
                )
            }
        }
    };
}

binding!(RoleBinding, true, &["Role", "ClusterRole"]);
binding!(ClusterRoleBinding, false, &["ClusterRole"]);

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    column("Role", "string", "Role that the binding refers to."),
    AGE,
    wide("Users", "string", "Users in the binding"),
    wide("Groups", "string", "Groups in the binding"),
    wide(
        "ServiceAccounts",
        "string",
        "ServiceAccounts in the binding",
    ),
];

fn fill_rules(rules: &mut [PolicyRule]) {
    for rule in rules {
        drop_empty!(
            rule.api_groups,
            rule.non_resource_urls,
            rule.resource_names,
            rule.resources
        );
    }
}

fn fill_binding(role: &mut RoleRef, subjects: &mut [Subject]) {
    drop_empty!(role.api_group);
    role.api_group.get_or_insert_with(|| GROUP.to_string());
    for subject in subjects {
        drop_empty!(subject.api_group, subject.namespace);
        if subject.api_group.is_none() && matches!(subject.kind.as_str(), "User" | "Group") {
            subject.api_group = Some(GROUP.to_string());
        }
    }
}

fn validate_rules(rules: &[PolicyRule], namespaced: bool, errors: &mut ErrorList) {
    let path = root("rules");
    for (index, rule) in rules.iter().enumerate() {
        validate_rule(rule, namespaced, &path.index(index), errors);
    }
}

fn validate_rule(rule: &PolicyRule, namespaced: bool, path: &Path<'_>, errors: &mut ErrorList) {
    let is_set = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    if rule.verbs.is_empty() {
        errors.push(required(
            &path.child("verbs"),
            "verbs must contain at least one value",
        ));
    }
    if is_set(&rule.non_resource_urls) {
        let urls_path = path.child("nonResourceURLs");
        if namespaced {
            let detail = "namespaced rules cannot apply to non-resource URLs";
            errors.push(invalid(&urls_path, &rule.non_resource_urls, detail));
        }
        if is_set(&rule.api_groups) || is_set(&rule.resources) || is_set(&rule.resource_names) {
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(invalid(&urls_path, &rule.non_resource_urls, detail));
        }
        return;
    }
    if !is_set(&rule.api_groups) {
        errors.push(required(
            &path.child("apiGroups"),
            "resource rules must supply at least one api group",
        ));
    }
    if !is_set(&rule.resources) {
        errors.push(required(
            &path.child("resources"),
            "resource rules must supply at least one resource",
        ));
    }
}

fn validate_binding(
    role: &RoleRef,
    kinds: &[&str],
    subjects: &[Subject],
    namespaced: bool,
    errors: &mut ErrorList,
) {
    let path = root("roleRef");
    let group = role.api_group.as_deref().unwrap_or("");
    if group != GROUP {
        errors.push(not_supported(&path.child("apiGroup"), group, &[GROUP]));
    }
    if !kinds.contains(&role.kind.as_str()) {
        errors.push(not_supported(&path.child("kind"), &role.kind, kinds));
    }
    if role.name.is_empty() {
        errors.push(required(&path.child("name"), ""));
    } else {
        invalid_each(
            errors,
            &path.child("name"),
            &role.name,
            name::path_segment(&role.name, false),
        );
    }
    let subjects_path = root("subjects");
    for (index, subject) in subjects.iter().enumerate() {
        validate_subject(subject, namespaced, &subjects_path.index(index), errors);
    }
}

fn validate_subject(subject: &Subject, namespaced: bool, path: &Path<'_>, errors: &mut ErrorList) {
    if subject.name.is_empty() {
        errors.push(required(&path.child("name"), ""));
    }
    let group = subject.api_group.as_deref().unwrap_or("");
    match subject.kind.as_str() {
        "ServiceAccount" => {
            if !subject.name.is_empty() {
                invalid_each(
                    errors,
                    &path.child("name"),
                    &subject.name,
                    name::dns1123_subdomain(&subject.name),
                );
            }
            if !group.is_empty() {
                errors.push(not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if !namespaced && subject.namespace.as_deref().unwrap_or("").is_empty() {
                errors.push(required(&path.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(not_supported(&path.child("apiGroup"), group, &[GROUP]));
            }
        }
        other => errors.push(not_supported(
            &path.child("kind"),
            other,
            &["ServiceAccount", "User", "Group"],
        )),
    }
}

fn binding_cells(
    meta: &ObjectMeta,
    role: &RoleRef,
    subjects: &[Subject],
    now_seconds: i64,
) -> Vec<Value> {
    let names = |kind: &str| {
        let of_kind = subjects.iter().filter(|subject| subject.kind == kind);
        let shown =
            of_kind.map(
                |subject| match (kind, subject.namespace.as_deref().unwrap_or("")) {
                    ("ServiceAccount", namespace) if !namespace.is_empty() => {
                        format!("{namespace}/{}", subject.name)
                    }
                    _ => subject.name.clone(),
                },
            );
        Value::from(shown.collect::<Vec<_>>().join(", "))
    };
    vec![
        columns::name(meta),
        Value::from(format!("{}/{}", role.kind, role.name)),
        columns::age(meta, now_seconds),
        names("User"),
        names("Group"),
        names("ServiceAccount"),
    ]
}
