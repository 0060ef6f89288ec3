//! Validation of projected volumes and the downward API's files.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, DownwardAPIVolumeFile, PodCertificateProjection,
    ProjectedVolumeSource, VolumeProjection,
};

use super::containers::slice;
use super::env::{validate_field_ref, validate_resource_field};
use super::volumes::{validate_item, validate_local_path, validate_mode};
use crate::error::{
    ErrorList, forbidden, invalid, invalid_each, not_supported, required, too_long,
};
use crate::kinds::label_selector;
use crate::metadata::ANNOTATIONS_BYTES_MAX;
use crate::name;
use crate::path::Path;

/// Fields that a downward API volume can show.
const VOLUME_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

pub(super) fn validate_downward_file(
    file: &DownwardAPIVolumeFile,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if file.path.is_empty() {
        errors.push(required(&path.child("path"), ""));
    }
    validate_local_path(&file.path, &path.child("path"), errors);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(reference), other) => {
            validate_field_ref(reference, VOLUME_FIELDS, &path.child("fieldRef"), errors);
            if other.is_some() {
                errors.push(invalid(
                    path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                ));
            }
        }
        (None, Some(reference)) => {
            validate_resource_field(reference, true, &path.child("resourceFieldRef"), errors)
        }
        (None, None) => errors.push(required(
            path,
            "one of fieldRef and resourceFieldRef is required",
        )),
    }
    validate_mode(file.mode, &path.child("mode"), errors);
}

pub(super) fn validate_projected(
    source: &ProjectedVolumeSource,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    validate_mode(source.default_mode, &path.child("defaultMode"), errors);
    let mut taken = BTreeSet::new();
    for (index, projection) in source.sources.iter().flatten().enumerate() {
        let sources_path = path.child("sources");
        validate_projection(
            projection,
            &mut taken,
            path,
            &sources_path.index(index),
            errors,
        );
    }
}

/// `whole` is the path of the projected volume, where upstream reports clashes.
fn validate_projection<'a>(
    projection: &'a VolumeProjection,
    taken: &mut BTreeSet<&'a str>,
    whole: &Path<'_>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let mut source_count = 0;
    let mut take = |file: &'a str, shown: &str, errors: &mut ErrorList| {
        if !file.is_empty() && !taken.insert(file) {
            errors.push(invalid(whole, shown, "conflicting duplicate paths"));
        }
    };
    let secret = projection
        .secret
        .as_ref()
        .map(|source| ("secret", &source.name, slice(&source.items)));
    let config_map = projection
        .config_map
        .as_ref()
        .map(|source| ("configMap", &source.name, slice(&source.items)));
    for (field, object, items) in secret.into_iter().chain(config_map) {
        source_count += 1;
        let path = path.child(field);
        if object.is_empty() {
            errors.push(required(&path.child("name"), ""));
        }
        let items_path = path.child("items");
        for (index, item) in items.iter().enumerate() {
            validate_item(item, &items_path.index(index), errors);
            take(&item.path, object, errors);
        }
    }
    if let Some(source) = &projection.downward_api {
        source_count += 1;
        for file in source.items.iter().flatten() {
            validate_downward_file(file, &path.child("downwardAPI"), errors);
            take(&file.path, &file.path, errors);
        }
    }
    if let Some(token) = &projection.service_account_token {
        source_count += 1;
        let token_path = path.child("serviceAccountToken");
        let seconds = token.expiration_seconds.unwrap_or(0);
        if seconds < 600 {
            let detail = "may not specify a duration less than 10 minutes";
            errors.push(invalid(
                &token_path.child("expirationSeconds"),
                &seconds,
                detail,
            ));
        }
        if seconds > 1 << 32 {
            let detail = "may not specify a duration larger than 2^32 seconds";
            errors.push(invalid(
                &token_path.child("expirationSeconds"),
                &seconds,
                detail,
            ));
        }
        if token.path.is_empty() {
            errors.push(required(&whole.child("path"), ""));
        } else {
            validate_local_path(&token.path, &whole.child("path"), errors);
        }
    }
    if let Some(bundle) = &projection.cluster_trust_bundle {
        source_count += 1;
        validate_trust_bundle(bundle, &path.child("clusterTrustBundle"), errors);
        take(&bundle.path, &bundle.path, errors);
    }
    if let Some(certificate) = &projection.pod_certificate {
        source_count += 1;
        let certificate_path = path.child("podCertificate");
        validate_pod_certificate(certificate, &certificate_path, errors);
        let mut path_count = 0;
        for (field, file) in [
            ("credentialBundlePath", &certificate.credential_bundle_path),
            ("keyPath", &certificate.key_path),
            ("certificateChainPath", &certificate.certificate_chain_path),
        ] {
            if let Some(file) = file.as_deref().filter(|file| !file.is_empty()) {
                path_count += 1;
                validate_local_path(file, &certificate_path.child(field), errors);
                take(file, file, errors);
            }
        }
        if path_count == 0 {
            let detail =
                "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
            errors.push(required(&certificate_path, detail));
        }
    }
    if source_count > 1 {
        errors.push(forbidden(
            path,
            "may not specify more than 1 volume type per source",
        ));
    }
}

fn validate_trust_bundle(
    bundle: &ClusterTrustBundleProjection,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    match (bundle.name.as_deref(), bundle.signer_name.as_deref()) {
        (Some(_), Some(_)) => errors.push(invalid(
            path,
            bundle,
            "only one of name and signerName may be used",
        )),
        (Some(bundle_name), None) => {
            if bundle_name.is_empty() {
                errors.push(required(&path.child("name"), "must be a valid object name"));
            }
            let own = bundle_name
                .rsplit_once(':')
                .map_or(bundle_name, |(_, own)| own);
            for complaint in name::dns1123_subdomain(own) {
                errors.push(invalid(
                    &path.child("name"),
                    bundle_name,
                    format!("not a valid clustertrustbundlename: {complaint}"),
                ));
            }
            if let Some(selector) = &bundle.label_selector {
                errors.push(invalid(
                    &path.child("labelSelector"),
                    selector,
                    "labelSelector must be unset if name is specified",
                ));
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                errors.push(required(
                    &path.child("signerName"),
                    "must be a valid signer name",
                ));
            }
            validate_signer_name(signer, &path.child("signerName"), errors);
            label_selector::validate(
                bundle.label_selector.as_ref(),
                &path.child("labelSelector"),
                errors,
            );
        }
        (None, None) => errors.push(required(
            path,
            "either name or signerName must be specified",
        )),
    }
    if bundle.path.is_empty() {
        errors.push(required(&path.child("path"), ""));
    }
    validate_local_path(&bundle.path, &path.child("path"), errors);
}

fn validate_pod_certificate(
    certificate: &PodCertificateProjection,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    validate_signer_name(&certificate.signer_name, &path.child("signerName"), errors);
    let annotations_path = path.child("userAnnotations");
    let mut bytes = 0;
    for (key, value) in certificate.user_annotations.iter().flatten() {
        bytes += key.len() + value.len();
        let key = key.to_lowercase();
        let complaints = name::qualified_name(&key);
        if key.is_empty() {
            errors.push(required(&annotations_path, ""));
        } else if complaints.is_empty() && !key.contains('/') {
            errors.push(invalid(
                &annotations_path,
                &key,
                "must be a domain-prefixed key (such as \"acme.io/foo\")",
            ));
        } else {
            invalid_each(errors, &annotations_path, &key, complaints);
        }
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(too_long(&annotations_path, ANNOTATIONS_BYTES_MAX));
    }
    const KEY_TYPES: &[&str] = &[
        "RSA3072",
        "RSA4096",
        "ECDSAP256",
        "ECDSAP384",
        "ECDSAP521",
        "ED25519",
    ];
    if !KEY_TYPES.contains(&certificate.key_type.as_str()) {
        errors.push(not_supported(
            &path.child("keyType"),
            &certificate.key_type,
            KEY_TYPES,
        ));
    }
    if let Some(seconds) = certificate.max_expiration_seconds {
        let seconds_path = path.child("maxExpirationSeconds");
        if seconds < 3600 {
            errors.push(invalid(
                &seconds_path,
                &seconds,
                "if provided, maxExpirationSeconds must be >= 3600",
            ));
        }
        let host = certificate.signer_name.split('/').next().unwrap_or("");
        let kubernetes = host == "kubernetes.io" || host.ends_with(".kubernetes.io");
        // One day for the project's own signers, 91 days for others.
        let max = if kubernetes { 86_400 } else { 7_862_400 };
        if seconds > max {
            errors.push(invalid(
                &seconds_path,
                &seconds,
                format!("if provided, maxExpirationSeconds must be <= {max}"),
            ));
        }
    }
}

/// `example.com/signer-name`.
fn validate_signer_name(signer: &str, path: &Path<'_>, errors: &mut ErrorList) {
    if signer.is_empty() {
        errors.push(required(path, ""));
        return;
    }
    let parts: Vec<&str> = signer.split('/').collect();
    let [domain, own] = parts[..] else {
        let detail =
            "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(invalid(path, signer, detail));
        return;
    };
    if domain.len() > name::DNS1123_SUBDOMAIN_MAX {
        errors.push(too_long(path, name::DNS1123_SUBDOMAIN_MAX));
    }
    let first_bad = |text: &'_ str, rule: fn(&str) -> Vec<String>| {
        text.split('.')
            .map(|label| (label.to_string(), rule(label)))
            .find(|(_, complaints)| !complaints.is_empty())
    };
    if let Some((label, complaints)) = first_bad(domain, name::dns1123_label) {
        errors.extend(
            complaints
                .iter()
                .map(|text| invalid(path, domain, format!("validating label {label:?}: {text}"))),
        );
    }
    if !domain.contains('.') {
        errors.push(invalid(
            path,
            domain,
            "should be a domain with at least two segments separated by dots",
        ));
    }
    if let Some((label, complaints)) = first_bad(own, name::dns1123_subdomain) {
        errors.extend(
            complaints
                .iter()
                .map(|text| invalid(path, own, format!("validating label {label:?}: {text}"))),
        );
    }
    const SIGNER_MAX: usize = 253 + 1 + 253 + 63 + 1;
    if signer.len() > SIGNER_MAX {
        errors.push(too_long(path, SIGNER_MAX));
    }
}
