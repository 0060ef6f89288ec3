//! Validation of `metadata` and of the maps and lists of names that other places share with it.
//!
//! Absent on purpose: `uid`, `creationTimestamp` and `resourceVersion` are set by the server,
//! which owns the clock and the store.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    ManagedFieldsEntry, ObjectMeta, OwnerReference,
};

use crate::error::{ErrorList, forbidden, internal, invalid, required, too_long};
use crate::name::{self, NameRule};
use crate::path::Path;

/// All annotations of an object together, keys and values (upstream's TotalAnnotationSizeLimitB).
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

pub const IMMUTABLE: &str = "field is immutable";
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// Validates the metadata of an object to be created, its name already generated.
pub fn validate(
    meta: &ObjectMeta,
    namespaced: bool,
    rule: NameRule,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if let Some(base) = meta
        .generate_name
        .as_deref()
        .filter(|base| !base.is_empty())
    {
        errors.extend(
            rule.check(base, true)
                .into_iter()
                .map(|text| invalid(&path.child("generateName"), base, text)),
        );
    }
    match meta.name.as_deref().unwrap_or("") {
        "" => errors.push(required(
            &path.child("name"),
            "name or generateName is required",
        )),
        name => errors.extend(
            rule.check(name, false)
                .into_iter()
                .map(|text| invalid(&path.child("name"), name, text)),
        ),
    }
    let namespace = meta.namespace.as_deref().unwrap_or("");
    let namespace_path = path.child("namespace");
    match (namespaced, namespace) {
        (true, "") => errors.push(required(&namespace_path, "")),
        (true, _) => {
            errors.extend(
                name::dns1123_label(namespace)
                    .into_iter()
                    .map(|text| invalid(&namespace_path, namespace, text)),
            );
        }
        (false, "") => {}
        (false, _) => errors.push(forbidden(&namespace_path, "not allowed on this type")),
    }
    not_negative(
        meta.generation.unwrap_or(0),
        &path.child("generation"),
        errors,
    );
    validate_labels(meta.labels.as_ref(), &path.child("labels"), errors);
    validate_annotations(
        meta.annotations.as_ref(),
        &path.child("annotations"),
        errors,
    );
    validate_owner_references(
        meta.owner_references.as_deref().unwrap_or(&[]),
        &path.child("ownerReferences"),
        errors,
    );
    validate_finalizers(
        meta.finalizers.as_deref().unwrap_or(&[]),
        &path.child("finalizers"),
        errors,
    );
    validate_managed_fields(
        meta.managed_fields.as_deref().unwrap_or(&[]),
        &path.child("managedFields"),
        errors,
    );
}

/// Validates new metadata against old. `unconditional`: an update may come without a resource version.
pub fn validate_update(
    new: &ObjectMeta,
    old: &ObjectMeta,
    unconditional: bool,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if old.deletion_timestamp.is_some() {
        let old: BTreeSet<&String> = old.finalizers.iter().flatten().collect();
        let added: BTreeSet<&String> = new
            .finalizers
            .iter()
            .flatten()
            .filter(|name| !old.contains(name))
            .collect();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|name| format!("{name:?}")).collect();
            errors.push(forbidden(
                &path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    list.join(", ")
                ),
            ));
        }
    }
    if !unconditional && new.resource_version.as_deref().unwrap_or("").is_empty() {
        errors.push(invalid(
            &path.child("resourceVersion"),
            "",
            "must be specified for an update",
        ));
    }
    if new.generation.unwrap_or(0) < old.generation.unwrap_or(0) {
        errors.push(invalid(
            &path.child("generation"),
            &new.generation.unwrap_or(0),
            "must not be decremented",
        ));
    }
    let same_text = |field: &'static str,
                     new: &Option<String>,
                     old: &Option<String>,
                     errors: &mut ErrorList| {
        let new = new.as_deref().unwrap_or("");
        if new != old.as_deref().unwrap_or("") {
            errors.push(invalid(&path.child(field), new, IMMUTABLE));
        }
    };
    same_text("name", &new.name, &old.name, errors);
    same_text("namespace", &new.namespace, &old.namespace, errors);
    same_text("uid", &new.uid, &old.uid, errors);
    if new.creation_timestamp != old.creation_timestamp {
        errors.push(invalid(
            &path.child("creationTimestamp"),
            &new.creation_timestamp,
            IMMUTABLE,
        ));
    }
    if new.deletion_timestamp != old.deletion_timestamp {
        errors.push(invalid(
            &path.child("deletionTimestamp"),
            &new.deletion_timestamp,
            IMMUTABLE,
        ));
    }
    if new.deletion_grace_period_seconds != old.deletion_grace_period_seconds {
        errors.push(invalid(
            &path.child("deletionGracePeriodSeconds"),
            &new.deletion_grace_period_seconds,
            IMMUTABLE,
        ));
    }
    validate_labels(new.labels.as_ref(), &path.child("labels"), errors);
    validate_annotations(new.annotations.as_ref(), &path.child("annotations"), errors);
    validate_owner_references(
        new.owner_references.as_deref().unwrap_or(&[]),
        &path.child("ownerReferences"),
        errors,
    );
    let finalizers_path = path.child("finalizers");
    for (index, finalizer) in new.finalizers.iter().flatten().enumerate() {
        validate_standard_finalizer(finalizer, &finalizers_path.index(index), errors);
    }
    validate_managed_fields(
        new.managed_fields.as_deref().unwrap_or(&[]),
        &path.child("managedFields"),
        errors,
    );
}

pub fn validate_label_name(key: &str, path: &Path<'_>, errors: &mut ErrorList) {
    errors.extend(
        name::qualified_name(key)
            .into_iter()
            .map(|text| invalid(path, key, text)),
    );
}

pub fn validate_labels(
    labels: Option<&BTreeMap<String, String>>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (key, value) in labels.into_iter().flatten() {
        validate_label_name(key, path, errors);
        errors.extend(
            name::label_value(value)
                .into_iter()
                .map(|text| invalid(path, value, text)),
        );
    }
}

pub fn validate_annotations(
    annotations: Option<&BTreeMap<String, String>>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let mut bytes = 0;
    for (key, value) in annotations.into_iter().flatten() {
        // Case does not matter in an annotation's prefix.
        let complaints = if key.bytes().any(|byte| byte.is_ascii_uppercase()) {
            name::qualified_name(&key.to_lowercase())
        } else {
            name::qualified_name(key)
        };
        errors.extend(complaints.into_iter().map(|text| invalid(path, key, text)));
        bytes += key.len() + value.len();
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(too_long(path, ANNOTATIONS_BYTES_MAX));
    }
}

fn validate_owner_references(
    references: &[OwnerReference],
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let mut controller: Option<&OwnerReference> = None;
    for reference in references {
        let (group, version) = match reference.api_version.split_once('/') {
            Some(("", _)) => ("", ""),
            Some((group, version)) if !version.contains('/') => (group, version),
            Some(_) => ("", ""),
            None => ("", reference.api_version.as_str()),
        };
        if version.is_empty() {
            errors.push(invalid(
                &path.child("apiVersion"),
                &reference.api_version,
                "version must not be empty",
            ));
        }
        for (field, value) in [
            ("kind", &reference.kind),
            ("name", &reference.name),
            ("uid", &reference.uid),
        ] {
            if value.is_empty() {
                errors.push(invalid(&path.child(field), value, "must not be empty"));
            }
        }
        if group.is_empty() && version == "v1" && reference.kind == "Event" {
            errors.push(invalid(
                path,
                reference,
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if reference.controller == Some(true) {
            match controller {
                None => controller = Some(reference),
                Some(first) => errors.push(invalid(
                    path,
                    references,
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} and {}/{}",
                        first.kind, first.name, reference.kind, reference.name
                    ),
                )),
            }
        }
    }
}

fn validate_finalizers(finalizers: &[String], path: &Path<'_>, errors: &mut ErrorList) {
    for (index, finalizer) in finalizers.iter().enumerate() {
        validate_label_name(finalizer, path, errors);
        validate_standard_finalizer(finalizer, &path.index(index), errors);
    }
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        errors.push(invalid(
            path,
            finalizers,
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
}

/// A finalizer without a domain has to be one of Kubernetes' own.
pub fn validate_standard_finalizer(finalizer: &str, path: &Path<'_>, errors: &mut ErrorList) {
    if !finalizer.contains('/')
        && !matches!(finalizer, "kubernetes" | "orphan" | "foregroundDeletion")
    {
        errors.push(invalid(
            path,
            finalizer,
            "name is neither a standard finalizer name nor is it fully qualified",
        ));
    }
}

/// A manager's or a request's `fieldManager`: at most 128 bytes, all printable.
pub fn validate_field_manager(manager: &str, path: &Path<'_>, errors: &mut ErrorList) {
    if manager.len() > 128 {
        errors.push(too_long(path, 128));
    }
    for (position, character) in manager.char_indices() {
        if character.is_control() {
            errors.push(invalid(
                path,
                manager,
                format!(
                    "invalid character U+{:04X} (at position {position})",
                    u32::from(character)
                ),
            ));
        }
    }
}

fn validate_managed_fields(
    entries: &[ManagedFieldsEntry],
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (index, entry) in entries.iter().enumerate() {
        let path = path.index(index);
        match entry.operation.as_deref().unwrap_or("") {
            "Apply" | "Update" => {}
            other => errors.push(invalid(
                &path.child("operation"),
                other,
                "must be `Apply` or `Update`",
            )),
        }
        let fields_type = entry.fields_type.as_deref().unwrap_or("");
        if !fields_type.is_empty() && fields_type != "FieldsV1" {
            errors.push(invalid(
                &path.child("fieldsType"),
                fields_type,
                "must be `FieldsV1`",
            ));
        }
        validate_field_manager(
            entry.manager.as_deref().unwrap_or(""),
            &path.child("manager"),
            errors,
        );
        if entry.subresource.as_deref().unwrap_or("").len() > 256 {
            errors.push(too_long(&path.child("subresource"), 256));
        }
    }
}

pub fn not_negative(value: i64, path: &Path<'_>, errors: &mut ErrorList) {
    if value < 0 {
        errors.push(invalid(path, &value, NOT_NEGATIVE));
    }
}

/// A create that reached validation with a base but no name: the server forgot to generate it.
pub fn validate_generated(meta: &ObjectMeta, path: &Path<'_>, errors: &mut ErrorList) {
    let base = meta.generate_name.as_deref().unwrap_or("");
    if !base.is_empty() && meta.name.as_deref().unwrap_or("").is_empty() {
        errors.push(internal(
            &path.child("name"),
            format!("generateName was specified ({base:?}), but no name was generated"),
        ));
    }
}
