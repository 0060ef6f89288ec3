//! Validation of the claim that an ephemeral volume makes.

use k8s_openapi::api::core::v1::{PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate};

use super::containers::slice;
use crate::error::{ErrorList, forbidden, invalid, invalid_each, not_supported, required};
use crate::kinds::label_selector;
use crate::kinds::resources::{amount, validate_amount};
use crate::metadata::{validate_annotations, validate_labels};
use crate::name;
use crate::path::Path;

pub(super) fn validate_claim_template(
    template: &PersistentVolumeClaimTemplate,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if let Some(meta) = &template.metadata {
        let meta_path = path.child("metadata");
        validate_annotations(
            meta.annotations.as_ref(),
            &meta_path.child("annotations"),
            errors,
        );
        validate_labels(meta.labels.as_ref(), &meta_path.child("labels"), errors);
        for (field, is_set) in [
            ("name", meta.name.is_some()),
            ("generateName", meta.generate_name.is_some()),
            ("namespace", meta.namespace.is_some()),
            ("selfLink", meta.self_link.is_some()),
            ("uID", meta.uid.is_some()),
            ("resourceVersion", meta.resource_version.is_some()),
            ("generation", meta.generation.is_some()),
            ("creationTimestamp", meta.creation_timestamp.is_some()),
            ("deletionTimestamp", meta.deletion_timestamp.is_some()),
            (
                "deletionGracePeriodSeconds",
                meta.deletion_grace_period_seconds.is_some(),
            ),
            ("ownerReferences", meta.owner_references.is_some()),
            ("finalizers", meta.finalizers.is_some()),
            ("managedFields", meta.managed_fields.is_some()),
        ] {
            if is_set {
                errors.push(forbidden(&meta_path.child(field), "cannot be set"));
            }
        }
    }
    validate_claim_spec(&template.spec, &path.child("spec"), errors);
}

fn validate_claim_spec(spec: &PersistentVolumeClaimSpec, path: &Path<'_>, errors: &mut ErrorList) {
    const MODES: &[&str] = &[
        "ReadOnlyMany",
        "ReadWriteMany",
        "ReadWriteOnce",
        "ReadWriteOncePod",
    ];
    let modes_path = path.child("accessModes");
    let modes = slice(&spec.access_modes);
    if modes.is_empty() {
        errors.push(required(&modes_path, "at least 1 access mode is required"));
    }
    label_selector::validate(spec.selector.as_ref(), &path.child("selector"), errors);
    for mode in modes.iter().filter(|mode| !MODES.contains(&mode.as_str())) {
        errors.push(not_supported(&modes_path, mode, MODES));
    }
    let once_pod = |mode: &String| mode == "ReadWriteOncePod";
    if modes.iter().any(once_pod)
        && modes
            .iter()
            .any(|mode| !once_pod(mode) && MODES.contains(&mode.as_str()))
    {
        errors.push(forbidden(
            &modes_path,
            "may not use ReadWriteOncePod with other access modes",
        ));
    }
    let storage = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref()?.get("storage"));
    let resources_path = path.child("resources");
    let storage_path = resources_path.key("storage");
    match storage {
        None => errors.push(required(&storage_path, "")),
        Some(storage) if !amount(storage).is_positive() => {
            errors.push(invalid(
                &storage_path,
                &storage.0,
                "must be greater than zero",
            ));
        }
        Some(storage) => validate_amount("storage", storage, &storage_path, errors),
    }
    for (field, class) in [
        ("storageClassName", &spec.storage_class_name),
        (
            "volumeAttributesClassName",
            &spec.volume_attributes_class_name,
        ),
    ] {
        if let Some(class) = class.as_deref().filter(|class| !class.is_empty()) {
            invalid_each(
                errors,
                &path.child(field),
                class,
                name::dns1123_subdomain(class),
            );
        }
    }
    if let Some(mode) = spec
        .volume_mode
        .as_deref()
        .filter(|mode| !matches!(*mode, "Block" | "Filesystem"))
    {
        errors.push(not_supported(
            &path.child("volumeMode"),
            mode,
            &["Block", "Filesystem"],
        ));
    }
    let own = spec
        .data_source
        .as_ref()
        .map(|source| ("dataSource", &source.api_group, &source.kind, &source.name));
    let any = spec.data_source_ref.as_ref().map(|source| {
        (
            "dataSourceRef",
            &source.api_group,
            &source.kind,
            &source.name,
        )
    });
    for (field, group, kind, object) in own.into_iter().chain(any) {
        let path = path.child(field);
        for (field, text) in [("name", object), ("kind", kind)] {
            if text.is_empty() {
                errors.push(required(&path.child(field), ""));
            }
        }
        match group.as_deref().unwrap_or("") {
            "" if kind != "PersistentVolumeClaim" => {
                errors.push(invalid(
                    &path,
                    kind,
                    "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
                ));
            }
            "" => {}
            group => invalid_each(
                errors,
                &path.child("apiGroup"),
                group,
                name::dns1123_subdomain(group),
            ),
        }
    }
    let namespace = spec
        .data_source_ref
        .as_ref()
        .and_then(|source| source.namespace.as_deref())
        .unwrap_or("");
    if !namespace.is_empty() {
        invalid_each(
            errors,
            &path.child("dataSourceRef").child("namespace"),
            namespace,
            name::dns1123_label(namespace),
        );
        if spec.data_source.is_some() {
            errors.push(invalid(
                path,
                &path.child("dataSource").to_string(),
                "may not be specified when dataSourceRef.namespace is specified",
            ));
        }
    } else if let (Some(source), Some(reference)) = (&spec.data_source, &spec.data_source_ref)
        && (&source.api_group, &source.kind, &source.name)
            != (&reference.api_group, &reference.kind, &reference.name)
    {
        errors.push(invalid(
            path,
            &path.child("dataSource").to_string(),
            "must match dataSourceRef",
        ));
    }
}
