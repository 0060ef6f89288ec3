//! Validation of environment variables and of the references to fields, resources and keys that they hold.

use k8s_openapi::api::core::v1::{
    ConfigMapKeySelector, EnvFromSource, EnvVar, FileKeySelector, ObjectFieldSelector,
    ResourceFieldSelector, SecretKeySelector,
};

use super::volumes::has_backsteps;
use crate::error::{ErrorList, invalid, invalid_each, not_supported, required};
use crate::kinds::resources::amount;
use crate::name;
use crate::path::Path;

pub(super) fn validate_env(variables: &[EnvVar], path: &Path<'_>, errors: &mut ErrorList) {
    for (index, variable) in variables.iter().enumerate() {
        let path = path.index(index);
        if variable.name.is_empty() {
            errors.push(required(&path.child("name"), ""));
        } else {
            invalid_each(
                errors,
                &path.child("name"),
                &variable.name,
                name::env_var_name(&variable.name),
            );
        }
        validate_value_from(variable, &path.child("valueFrom"), errors);
    }
}

/// Fields of a pod that an environment variable can show.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn validate_value_from(variable: &EnvVar, path: &Path<'_>, errors: &mut ErrorList) {
    let Some(source) = &variable.value_from else {
        return;
    };
    let mut source_count = 0;
    if let Some(reference) = &source.field_ref {
        source_count += 1;
        validate_field_ref(reference, ENV_FIELDS, &path.child("fieldRef"), errors);
    }
    if let Some(reference) = &source.resource_field_ref {
        source_count += 1;
        validate_resource_field(reference, false, &path.child("resourceFieldRef"), errors);
    }
    if let Some(ConfigMapKeySelector { name, key, .. }) = &source.config_map_key_ref {
        source_count += 1;
        validate_key_ref(name, key, &path.child("configMapKeyRef"), errors);
    }
    if let Some(SecretKeySelector { name, key, .. }) = &source.secret_key_ref {
        source_count += 1;
        validate_key_ref(name, key, &path.child("secretKeyRef"), errors);
    }
    if let Some(reference) = &source.file_key_ref {
        source_count += 1;
        validate_file_key(reference, &path.child("fileKeyRef"), errors);
    }
    if source_count == 0 {
        errors.push(invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ));
    } else if variable
        .value
        .as_deref()
        .is_some_and(|value| !value.is_empty())
    {
        errors.push(invalid(
            path,
            "",
            "may not be specified when `value` is not empty",
        ));
    } else if source_count > 1 {
        errors.push(invalid(
            path,
            "",
            "may not have more than one field specified at a time",
        ));
    }
}

fn validate_key_ref(object: &str, key: &str, path: &Path<'_>, errors: &mut ErrorList) {
    invalid_each(
        errors,
        &path.child("name"),
        object,
        name::dns1123_subdomain(object),
    );
    if key.is_empty() {
        errors.push(required(&path.child("key"), ""));
    } else {
        invalid_each(errors, &path.child("key"), key, name::config_map_key(key));
    }
}

fn validate_file_key(reference: &FileKeySelector, path: &Path<'_>, errors: &mut ErrorList) {
    if reference.key.is_empty() {
        errors.push(required(&path.child("key"), ""));
    } else {
        invalid_each(
            errors,
            &path.child("key"),
            &reference.key,
            name::env_var_name(&reference.key),
        );
    }
    if reference.volume_name.is_empty() {
        errors.push(required(&path.child("volumeName"), ""));
    } else {
        invalid_each(
            errors,
            &path.child("volumeName"),
            &reference.volume_name,
            name::dns1123_label(&reference.volume_name),
        );
    }
    if reference.path.is_empty() {
        errors.push(required(&path.child("path"), ""));
    } else if has_backsteps(&reference.path) {
        errors.push(invalid(
            &path.child("path"),
            &reference.path,
            "must not contain '..'",
        ));
    }
}

/// `metadata.annotations['key']` as path and key.
fn split_subscript(field_path: &str) -> Option<(&str, &str)> {
    let (path, rest) = field_path.strip_suffix("']")?.split_once("['")?;
    (!path.is_empty()).then_some((path, rest))
}

pub(super) fn validate_field_ref(
    reference: &ObjectFieldSelector,
    supported: &[&str],
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let version = reference.api_version.as_deref().unwrap_or("");
    let field = reference.field_path.as_str();
    if version.is_empty() {
        errors.push(required(&path.child("apiVersion"), ""));
        return;
    }
    if field.is_empty() {
        errors.push(required(&path.child("fieldPath"), ""));
        return;
    }
    const CONVERTIBLE: &[&str] = &[
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
        "spec.host",
    ];
    let conversion_error = match split_subscript(field) {
        _ if version != "v1" => Some(format!("unsupported pod version: {version}")),
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            invalid_each(errors, path, &key, name::qualified_name(&key));
            return;
        }
        Some(("metadata.labels", key)) => {
            invalid_each(errors, path, key, name::qualified_name(key));
            return;
        }
        Some(_) => Some(format!("field label does not support subscript: {field}")),
        None if !CONVERTIBLE.contains(&field) => {
            Some(format!("field label not supported: {field}"))
        }
        None => None,
    };
    if let Some(cause) = conversion_error {
        errors.push(invalid(
            &path.child("fieldPath"),
            field,
            format!("error converting fieldPath: {cause}"),
        ));
        return;
    }
    let field = if field == "spec.host" {
        "spec.nodeName"
    } else {
        field
    };
    if !supported.contains(&field) {
        let mut sorted = supported.to_vec();
        sorted.sort_unstable();
        errors.push(not_supported(&path.child("fieldPath"), field, &sorted));
    }
}

/// Resources of a container that the downward API can show.
const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

pub(super) fn validate_resource_field(
    reference: &ResourceFieldSelector,
    in_volume: bool,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let resource = reference.resource.as_str();
    let huge_pages =
        resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if in_volume && reference.container_name.as_deref().unwrap_or("").is_empty() {
        errors.push(required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(required(&path.child("resource"), ""));
    } else if !RESOURCE_FIELDS.contains(&resource) && !huge_pages {
        errors.push(not_supported(
            &path.child("resource"),
            resource,
            RESOURCE_FIELDS,
        ));
    }
    let Some(divisor) = reference
        .divisor
        .as_ref()
        .filter(|divisor| !amount(divisor).is_zero())
    else {
        return;
    };
    const BYTES: &[&str] = &[
        "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
    ];
    let (allowed, what): (&[&str], &str) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "1m and 1 are supported with the cpu"),
        "limits.memory" | "requests.memory" => (
            BYTES,
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory",
        ),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (
            BYTES,
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage",
        ),
        _ if huge_pages => (
            BYTES,
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the hugepages",
        ),
        _ => return,
    };
    if !allowed.contains(&divisor.0.as_str()) {
        errors.push(invalid(
            &path.child("divisor"),
            resource,
            format!("only divisor's values {what} resource"),
        ));
    }
}

pub(super) fn validate_env_from(
    sources: &[EnvFromSource],
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (index, source) in sources.iter().enumerate() {
        let list_path = path;
        let path = path.index(index);
        if let Some(prefix) = source.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            invalid_each(
                errors,
                &path.child("prefix"),
                prefix,
                name::env_var_name(prefix),
            );
        }
        let mut source_count = 0;
        let config_map = source
            .config_map_ref
            .as_ref()
            .map(|reference| ("configMapRef", &reference.name));
        let secret = source
            .secret_ref
            .as_ref()
            .map(|reference| ("secretRef", &reference.name));
        for (field, object) in config_map.into_iter().chain(secret) {
            source_count += 1;
            let path = path.child(field);
            if object.is_empty() {
                errors.push(required(&path.child("name"), ""));
            } else {
                let complaints = name::NameRule::Dns1123Subdomain.check(object, true);
                invalid_each(errors, &path.child("name"), object, complaints);
            }
        }
        if source_count == 0 {
            errors.push(invalid(
                list_path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ));
        } else if source_count > 1 {
            errors.push(invalid(
                list_path,
                "",
                "may not have more than one field specified at a time",
            ));
        }
    }
}
