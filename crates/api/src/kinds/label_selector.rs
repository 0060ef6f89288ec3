//! Validation of `LabelSelector` objects.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::error::{ErrorList, forbidden, invalid, invalid_each, required};
use crate::metadata::{validate_label_name, validate_labels};
use crate::name;
use crate::path::Path;

pub(crate) fn validate(selector: Option<&LabelSelector>, path: &Path<'_>, errors: &mut ErrorList) {
    let Some(selector) = selector else { return };
    validate_labels(
        selector.match_labels.as_ref(),
        &path.child("matchLabels"),
        errors,
    );
    let expressions_path = path.child("matchExpressions");
    for (index, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        validate_requirement(requirement, &expressions_path.index(index), errors);
    }
}

/// As part of a question about access: operators unknown here are left to the authorizer.
pub(crate) fn validate_reviewed(
    requirement: &LabelSelectorRequirement,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if matches!(
        requirement.operator.as_str(),
        "In" | "NotIn" | "Exists" | "DoesNotExist"
    ) {
        validate_requirement(requirement, path, errors);
        return;
    }
    let known = LabelSelectorRequirement {
        operator: "Exists".to_string(),
        values: None,
        ..requirement.clone()
    };
    validate_requirement(&known, path, errors);
    let values_path = path.child("values");
    for (index, value) in requirement.values.iter().flatten().enumerate() {
        invalid_each(
            errors,
            &values_path.index(index),
            value,
            name::label_value(value),
        );
    }
}

fn validate_requirement(
    requirement: &LabelSelectorRequirement,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let values = requirement.values.as_deref().unwrap_or(&[]);
    let values_path = path.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(required(
                &values_path,
                "must be specified when `operator` is 'In' or 'NotIn'",
            ));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.push(forbidden(
                &values_path,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.push(invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        )),
    }
    validate_label_name(&requirement.key, &path.child("key"), errors);
    for (index, value) in values.iter().enumerate() {
        invalid_each(
            errors,
            &values_path.index(index),
            value,
            name::label_value(value),
        );
    }
}
