//! Lists of resources (`cpu: 500m`): canonical text, validation of names and amounts, requests against limits.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ResourceClaim, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::error::{
    DecodeError, ErrorList, duplicate, forbidden, invalid, not_found, not_supported, required,
};
use crate::metadata::NOT_NEGATIVE;
use crate::name;
use crate::path::Path;
use crate::quantity::{self, Quantity, QuantityError};

pub(crate) type ResourceList = BTreeMap<String, Text>;

const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];
/// Standard resources that are counted, so that a fraction makes no sense.
const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// The number behind a text that decoding has checked already; a text that is none counts as zero.
pub(crate) fn amount(text: &Text) -> Quantity {
    Quantity::parse(&text.0).unwrap_or(Quantity::ZERO)
}

pub(crate) fn decode_error(cause: QuantityError) -> DecodeError {
    DecodeError::Type(cause.to_string())
}

pub(crate) fn finish_list(list: &mut Option<ResourceList>) -> Result<(), DecodeError> {
    for text in list.iter_mut().flat_map(BTreeMap::values_mut) {
        quantity::canonicalize_millis(&mut text.0).map_err(decode_error)?;
    }
    Ok(())
}

pub(crate) fn finish_requirements(
    requirements: Option<&mut ResourceRequirements>,
) -> Result<(), DecodeError> {
    if let Some(requirements) = requirements {
        finish_list(&mut requirements.limits)?;
        finish_list(&mut requirements.requests)?;
    }
    Ok(())
}

/// Checks a list whose values every resource list has to satisfy: not negative, whole where counted.
pub(crate) fn validate_amount(
    resource: &str,
    text: &Text,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let amount = amount(text);
    if amount.is_negative() {
        errors.push(invalid(path, &text.0, NOT_NEGATIVE));
    }
    if is_counted(resource) && !amount.is_whole() {
        errors.push(invalid(path, &text.0, "must be an integer"));
    }
}

fn is_counted(resource: &str) -> bool {
    COUNTED.contains(&resource) || is_extended(resource)
}

pub(crate) fn is_huge_page(resource: &str) -> bool {
    resource.starts_with("hugepages-")
}

/// In the `kubernetes.io` domain, or without one.
fn is_native(resource: &str) -> bool {
    !resource.contains('/') || resource.contains("kubernetes.io/")
}

pub(crate) fn is_extended(resource: &str) -> bool {
    !is_native(resource)
        && !resource.starts_with("requests.")
        && name::qualified_name(&format!("requests.{resource}")).is_empty()
}

/// May requests be lower than limits?
pub(crate) fn allows_overcommit(resource: &str) -> bool {
    is_native(resource) && !is_huge_page(resource)
}

pub(crate) fn validate_resource_name(
    resource: &str,
    path: &Path<'_>,
    errors: &mut ErrorList,
) -> bool {
    let complaints = name::qualified_name(resource);
    if !complaints.is_empty() {
        errors.extend(
            complaints
                .into_iter()
                .map(|text| invalid(path, resource, text)),
        );
        return false;
    }
    if !resource.contains('/') && !STANDARD.contains(&resource) && !is_huge_page(resource) {
        errors.push(invalid(
            path,
            resource,
            "must be a standard resource type or fully qualified",
        ));
        return false;
    }
    true
}

fn validate_container_resource_name(resource: &str, path: &Path<'_>, errors: &mut ErrorList) {
    if matches!(resource, "cpu" | "memory" | "ephemeral-storage") {
        return;
    }
    validate_resource_name(resource, path, errors);
    if !resource.contains('/') {
        if !is_huge_page(resource) {
            errors.push(invalid(
                path,
                resource,
                "must be a standard resource for containers",
            ));
        }
    } else if !is_native(resource) && !is_extended(resource) {
        errors.push(invalid(
            path,
            resource,
            "doesn't follow extended resource name standard",
        ));
    }
}

fn validate_pod_resource_name(resource: &str, path: &Path<'_>, errors: &mut ErrorList) {
    if validate_resource_name(resource, path, errors) && !is_pod_level(resource) {
        errors.push(not_supported(
            path,
            resource,
            &["cpu", "hugepages-", "memory"],
        ));
    }
}

/// May the resource be named in `spec.resources` of a pod?
pub(crate) fn is_pod_level(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory") || is_huge_page(resource)
}

/// Whose requirements are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Container,
    Pod,
}

pub(crate) fn validate_requirements(
    requirements: &ResourceRequirements,
    scope: Scope,
    claim_names: &BTreeSet<&str>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let (mut has_compute, mut has_huge_pages) = (false, false);
    let mut validate_one =
        |resource: &str, text: &Text, path: &Path<'_>, errors: &mut ErrorList| {
            match scope {
                Scope::Container => validate_container_resource_name(resource, path, errors),
                Scope::Pod => validate_pod_resource_name(resource, path, errors),
            }
            validate_amount(resource, text, path, errors);
            has_compute |= matches!(resource, "cpu" | "memory");
            has_huge_pages |= is_huge_page(resource);
        };
    for (resource, text) in requirements.limits.iter().flatten() {
        let path = limits_path.key(resource);
        validate_one(resource, text, &path, errors);
        validate_huge_page_amount(resource, text, &path, errors);
    }
    for (resource, text) in requirements.requests.iter().flatten() {
        let path = requests_path.key(resource);
        validate_one(resource, text, &path, errors);
        match requirements
            .limits
            .as_ref()
            .and_then(|limits| limits.get(resource))
        {
            Some(limit) => {
                let order = if text == limit {
                    std::cmp::Ordering::Equal
                } else {
                    amount(text).cmp(&amount(limit))
                };
                if order.is_ne() && !allows_overcommit(resource) {
                    errors.push(invalid(
                        &requests_path,
                        &text.0,
                        format!("must be equal to {resource} limit of {}", limit.0),
                    ));
                } else if order.is_gt() {
                    errors.push(invalid(
                        &requests_path,
                        &text.0,
                        format!(
                            "must be less than or equal to {resource} limit of {}",
                            limit.0
                        ),
                    ));
                }
            }
            None if !allows_overcommit(resource) => {
                errors.push(required(
                    &limits_path,
                    "Limit must be set for non overcommitable resources",
                ));
            }
            None => {}
        }
        validate_huge_page_amount(resource, text, &path, errors);
    }
    if has_huge_pages && !has_compute {
        errors.push(forbidden(path, "HugePages require cpu or memory"));
    }
    validate_claims(
        requirements.claims.as_deref().unwrap_or(&[]),
        claim_names,
        &path.child("claims"),
        errors,
    );
}

/// Huge pages come in whole pages: the size is in the name.
fn validate_huge_page_amount(resource: &str, text: &Text, path: &Path<'_>, errors: &mut ErrorList) {
    let Some(size) = resource.strip_prefix("hugepages-") else {
        return;
    };
    let bytes = amount(text).value();
    let divisible =
        Quantity::parse(size).is_ok_and(|size| size.value() > 0 && bytes % size.value() == 0);
    if !divisible {
        errors.push(invalid(
            path,
            &text.0,
            format!("{} is not positive integer multiple of {resource}", text.0),
        ));
    }
}

fn validate_claims(
    claims: &[ResourceClaim],
    known: &BTreeSet<&str>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (index, claim) in claims.iter().enumerate() {
        let path = path.index(index);
        if claim.name.is_empty() {
            errors.push(required(&path, ""));
            continue;
        }
        let request = claim.request.as_deref().unwrap_or("");
        if seen.contains(&claim.name) {
            errors.push(duplicate(&path, &claim.name));
        } else {
            let mut key = claim.name.clone();
            if !request.is_empty() {
                let request_path = path.child("request");
                errors.extend(
                    name::dns1123_label(request)
                        .into_iter()
                        .map(|text| invalid(&request_path, request, text)),
                );
                key = format!("{key}/{request}");
            }
            if seen.contains(&key) {
                errors.push(duplicate(&path, &key));
            } else if request.is_empty() {
                let overlaps = seen
                    .iter()
                    .filter(|key| {
                        key.split_once('/')
                            .is_some_and(|(name, _)| name == claim.name)
                    })
                    .count();
                errors.extend((0..overlaps).map(|_| duplicate(&path, &claim.name)));
            }
            seen.insert(key);
        }
        if !known.contains(claim.name.as_str()) {
            let mut error = not_found(&path, &claim.name);
            error.detail = "must be one of the names in pod.spec.resourceClaims".to_string();
            if known.is_empty() {
                error.detail.push_str(" which is empty");
            } else {
                let known: Vec<&str> = known.iter().copied().collect();
                error.detail.push_str(&format!(": {}", known.join(", ")));
            }
            errors.push(error);
        }
    }
}
