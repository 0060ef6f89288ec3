//! Validation of `metav1.Condition` lists, as kinds share them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::error::{ErrorList, duplicate, invalid, not_supported, required, too_long};
use crate::metadata::validate_label_name;
use crate::name::pattern_complaint;
use crate::path::Path;

const REASON_BYTES_MAX: usize = 1024;
const MESSAGE_BYTES_MAX: usize = 32 * 1024;
const STATUSES: &[&str] = &["False", "True", "Unknown"];

pub(super) fn validate(conditions: &[Condition], path: &Path<'_>, errors: &mut ErrorList) {
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        if conditions[..index]
            .iter()
            .any(|earlier| earlier.type_ == condition.type_)
        {
            errors.push(duplicate(&path.child("type"), &condition.type_));
        }
        validate_label_name(&condition.type_, &path.child("type"), errors);
        if !STATUSES.contains(&condition.status.as_str()) {
            errors.push(not_supported(
                &path.child("status"),
                &condition.status,
                STATUSES,
            ));
        }
        if let Some(generation) = condition.observed_generation.filter(|value| *value < 0) {
            errors.push(invalid(
                &path.child("observedGeneration"),
                &generation,
                "must be greater than or equal to zero",
            ));
        }
        validate_reason(&condition.reason, &path.child("reason"), errors);
        if condition.message.len() > MESSAGE_BYTES_MAX {
            errors.push(too_long(&path.child("message"), MESSAGE_BYTES_MAX));
        }
    }
}

fn validate_reason(reason: &str, path: &Path<'_>, errors: &mut ErrorList) {
    if reason.is_empty() {
        errors.push(required(path, "must be set"));
        return;
    }
    if !is_reason(reason) {
        let complaint = pattern_complaint(
            "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
            "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
            &[
                "my_name",
                "MY_NAME",
                "MyName",
                "ReasonA,ReasonB",
                "ReasonA:ReasonB",
            ],
        );
        errors.push(invalid(path, reason, complaint));
    }
    if reason.len() > REASON_BYTES_MAX {
        errors.push(too_long(path, REASON_BYTES_MAX));
    }
}

fn is_reason(reason: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = reason.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(|last| is_word(*last))
        && bytes
            .iter()
            .all(|byte| is_word(*byte) || matches!(byte, b',' | b':'))
}
