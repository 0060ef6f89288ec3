//! Kinds that are asked and answered, never stored: reviews of tokens and access, and the bodies of subresources.

use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenRequest, TokenReview};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview,
    SelfSubjectRulesReview, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::Binding;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::label_selector::validate_reviewed;
use crate::columns::{self, AGE, NAME, column};
use crate::error::{ErrorList, forbidden, invalid, not_supported, required};
use crate::kind::{Column, Part};
use crate::metadata::not_negative;
use crate::name::NameRule;
use crate::path::{Path, root};
use crate::typed::ApiType;

/// What all kinds of this module share.
macro_rules! unstored {
    ($namespaced:expr) => {
        const NAMESPACED: bool = $namespaced;
        const STORED: bool = false;
        const NAME_RULE: NameRule = NameRule::Any;

        fn validate_update(&self, _old: &Self, _part: &Part, errors: &mut ErrorList) {
            self.validate(errors);
        }
    };
}

impl ApiType for TokenRequest {
    unstored!(true);

    fn fill_defaults(&mut self) {
        self.spec
            .get_or_insert_default()
            .expiration_seconds
            .get_or_insert(3600);
        self.status.get_or_insert_default();
    }

    fn prepare_create(&mut self) {
        self.status = None;
    }

    fn validate(&self, errors: &mut ErrorList) {
        let seconds = self
            .spec
            .as_ref()
            .and_then(|spec| spec.expiration_seconds)
            .unwrap_or(0);
        let path = root("spec");
        let path = path.child("expirationSeconds");
        if seconds < 600 {
            errors.push(invalid(
                &path,
                &seconds,
                "may not specify a duration less than 10 minutes",
            ));
        }
        if seconds > 1 << 32 {
            errors.push(invalid(
                &path,
                &seconds,
                "may not specify a duration larger than 2^32 seconds",
            ));
        }
    }
}

impl ApiType for TokenReview {
    unstored!(false);

    fn fill_defaults(&mut self) {
        self.status.get_or_insert_default();
    }

    fn validate(&self, errors: &mut ErrorList) {
        if self.spec.token.is_empty() {
            let path = root("spec");
            errors.push(required(
                &path.child("token"),
                "token is required for TokenReview in authentication",
            ));
        }
    }
}

impl ApiType for SelfSubjectReview {
    unstored!(false);

    fn fill_defaults(&mut self) {
        self.status.get_or_insert_default();
    }

    fn validate(&self, _errors: &mut ErrorList) {}
}

impl ApiType for SelfSubjectRulesReview {
    unstored!(false);

    fn validate(&self, _errors: &mut ErrorList) {}
}

impl ApiType for SelfSubjectAccessReview {
    unstored!(false);

    fn fill_defaults(&mut self) {
        self.status.get_or_insert_default();
    }

    fn validate(&self, errors: &mut ErrorList) {
        let spec = &self.spec;
        validate_attributes(
            spec.resource_attributes.as_ref(),
            spec.non_resource_attributes.as_ref(),
            errors,
        );
        validate_no_metadata(&self.metadata, "must be empty", errors);
    }
}

impl ApiType for SubjectAccessReview {
    unstored!(false);

    fn fill_defaults(&mut self) {
        self.status.get_or_insert_default();
    }

    fn validate(&self, errors: &mut ErrorList) {
        validate_access_spec(&self.spec, errors);
        validate_no_metadata(&self.metadata, "must be empty", errors);
    }
}

impl ApiType for LocalSubjectAccessReview {
    unstored!(true);

    fn fill_defaults(&mut self) {
        self.status.get_or_insert_default();
    }

    fn validate(&self, errors: &mut ErrorList) {
        validate_access_spec(&self.spec, errors);
        let without_namespace = ObjectMeta {
            namespace: None,
            ..self.metadata.clone()
        };
        validate_no_metadata(
            &without_namespace,
            "must be empty except for namespace",
            errors,
        );
        let namespace = self.metadata.namespace.as_deref().unwrap_or("");
        if let Some(attributes) = &self.spec.resource_attributes {
            let asked = attributes.namespace.as_deref().unwrap_or("");
            if asked != namespace {
                errors.push(invalid(
                    &root("spec.resourceAttributes.namespace"),
                    asked,
                    "must match metadata.namespace",
                ));
            }
        }
        if let Some(attributes) = &self.spec.non_resource_attributes {
            errors.push(invalid(
                &root("spec.nonResourceAttributes"),
                attributes,
                "disallowed on this kind of request",
            ));
        }
    }
}

fn validate_access_spec(spec: &SubjectAccessReviewSpec, errors: &mut ErrorList) {
    validate_attributes(
        spec.resource_attributes.as_ref(),
        spec.non_resource_attributes.as_ref(),
        errors,
    );
    let user = spec.user.as_deref().unwrap_or("");
    if user.is_empty() && spec.groups.as_ref().is_none_or(Vec::is_empty) {
        let path = root("spec");
        errors.push(invalid(
            &path.child("user"),
            user,
            "at least one of user or group must be specified",
        ));
    }
}

fn validate_attributes(
    resource: Option<&ResourceAttributes>,
    non_resource: Option<&NonResourceAttributes>,
    errors: &mut ErrorList,
) {
    let path = root("spec");
    match (resource, non_resource) {
        (Some(_), Some(_)) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            errors.push(invalid(
                &path.child("nonResourceAttributes"),
                &non_resource,
                detail,
            ));
        }
        (None, None) => {
            let detail =
                "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.push(invalid(
                &path.child("resourceAttributes"),
                &Value::Null,
                detail,
            ));
        }
        _ => {}
    }
    let Some(attributes) = resource else { return };
    let path = path.child("resourceAttributes");
    if let Some(selector) = &attributes.field_selector {
        let path = path.child("fieldSelector");
        let requirements = selector.requirements.as_deref().unwrap_or(&[]);
        validate_one_of_two(
            selector.raw_selector.as_deref(),
            requirements.len(),
            &path,
            errors,
        );
        let requirements_path = path.child("requirements");
        for (index, requirement) in requirements.iter().enumerate() {
            let path = requirements_path.index(index);
            if requirement.key.is_empty() {
                errors.push(required(&path.child("key"), "must be specified"));
            }
            let count = requirement.values.as_ref().map_or(0, Vec::len);
            validate_value_count(&requirement.operator, count, &path.child("values"), errors);
        }
    }
    if let Some(selector) = &attributes.label_selector {
        let path = path.child("labelSelector");
        let requirements = selector.requirements.as_deref().unwrap_or(&[]);
        validate_one_of_two(
            selector.raw_selector.as_deref(),
            requirements.len(),
            &path,
            errors,
        );
        let requirements_path = path.child("requirements");
        for (index, requirement) in requirements.iter().enumerate() {
            validate_reviewed(requirement, &requirements_path.index(index), errors);
        }
    }
}

fn validate_one_of_two(
    raw: Option<&str>,
    requirement_count: usize,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let raw = raw.unwrap_or("");
    if !raw.is_empty() && requirement_count > 0 {
        errors.push(invalid(
            &path.child("rawSelector"),
            raw,
            "may not specified at the same time as requirements",
        ));
    }
    if raw.is_empty() && requirement_count == 0 {
        let detail = format!("when {path} is specified, requirements or rawSelector is required");
        errors.push(required(&path.child("requirements"), detail));
    }
}

fn validate_value_count(operator: &str, count: usize, path: &Path<'_>, errors: &mut ErrorList) {
    match operator {
        "In" | "NotIn" if count == 0 => {
            errors.push(required(
                path,
                "must be specified when `operator` is 'In' or 'NotIn'",
            ));
        }
        "Exists" | "DoesNotExist" if count > 0 => {
            errors.push(forbidden(
                path,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ));
        }
        // Operators of newer clients are left to the authorizer.
        _ => {}
    }
}

fn validate_no_metadata(meta: &ObjectMeta, detail: &str, errors: &mut ErrorList) {
    let without_managers = ObjectMeta {
        managed_fields: None,
        ..meta.clone()
    };
    if without_managers != ObjectMeta::default() {
        errors.push(invalid(&root("metadata"), meta, detail));
    }
}

impl ApiType for Binding {
    unstored!(true);

    fn validate(&self, errors: &mut ErrorList) {
        let path = root("target");
        let kind = self.target.kind.as_deref().unwrap_or("");
        if !kind.is_empty() && kind != "Node" {
            errors.push(not_supported(
                &path.child("kind"),
                kind,
                &["Node", "<empty>"],
            ));
        }
        if self.target.name.as_deref().unwrap_or("").is_empty() {
            errors.push(required(&path.child("name"), ""));
        }
    }
}

impl ApiType for Eviction {
    unstored!(true);

    fn validate(&self, _errors: &mut ErrorList) {}
}

impl ApiType for Scale {
    unstored!(true);
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("Desired", "integer", "Desired number of instances."),
        column("Available", "integer", "Observed number of instances."),
        AGE,
    ];

    fn fill_defaults(&mut self) {
        self.spec.get_or_insert_default();
        self.status.get_or_insert_default();
    }

    fn validate(&self, errors: &mut ErrorList) {
        let replicas = self
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(0);
        let path = root("spec");
        not_negative(i64::from(replicas), &path.child("replicas"), errors);
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        vec![
            columns::name(&self.metadata),
            Value::from(
                self.spec
                    .as_ref()
                    .and_then(|spec| spec.replicas)
                    .unwrap_or(0),
            ),
            Value::from(self.status.as_ref().map_or(0, |status| status.replicas)),
            columns::age(&self.metadata, now_seconds),
        ]
    }
}
