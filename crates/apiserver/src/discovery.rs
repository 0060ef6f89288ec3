//! What is served: `/api`, `/apis` and below, in the legacy and the aggregated form, and `/version`.

use std::sync::Arc;

use api::kind::{Kind, Subresource, Verb};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::body::ResponseBody;
use crate::codec::object::{api_version, respond_value};
use crate::core::Core;
use crate::handler::Context;
use crate::rest::ApiResponse;
use crate::status::ApiError;

/// The API level that we speak. What comes after the `+` is ours.
const MAJOR: &str = "1";
const MINOR: &str = "36";
const GIT_VERSION: &str = concat!("v1.36.0+llmagentos-", env!("CARGO_PKG_VERSION"));

pub fn version() -> Response<ResponseBody> {
    let platform = match std::env::consts::ARCH {
        "x86_64" => "linux/amd64",
        "aarch64" => "linux/arm64",
        other => other,
    };
    json_response(&json!({
        "major": MAJOR,
        "minor": MINOR,
        "emulationMajor": MAJOR,
        "emulationMinor": MINOR,
        "minCompatibilityMajor": MAJOR,
        "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": platform,
    }))
}

pub fn json_response(value: &Value) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::from(value.to_string()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `/`: the paths there are.
pub fn root(core: &Core) -> Response<ResponseBody> {
    let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into()];
    for (group, versions) in groups_of(core) {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
            paths.extend(
                versions
                    .iter()
                    .map(|version| format!("/apis/{group}/{version}")),
            );
        }
    }
    paths.extend(
        [
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/openid/v1/jwks",
            "/readyz",
            "/version",
            "/.well-known/openid-configuration",
        ]
        .map(str::to_owned),
    );
    paths.sort();
    json_response(&json!({"paths": paths}))
}

/// Where the keys are that verify our service-account tokens.
pub fn openid_configuration(core: &Core) -> Response<ResponseBody> {
    json_response(&json!({
        "issuer": core.tokens.issuer(),
        "jwks_uri": format!("https://{}/openid/v1/jwks", core.advertised_addr()),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }))
}

/// Groups in the order of the registry, each with its versions, the preferred one first.
fn groups_of(core: &Core) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for resource in &core.resources {
        let (group, version) = (resource.kind.group.as_ref(), resource.kind.version.as_ref());
        match groups.iter_mut().find(|(own, _)| *own == group) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => groups.push((group, vec![version])),
        }
    }
    groups
}

/// Whether there is anything below `/apis/<group>/<version>`.
pub fn serves(core: &Core, group: &str, version: &str) -> bool {
    core.resources
        .iter()
        .any(|resource| resource.kind.group == group && resource.kind.version == version)
}

/// The aggregated form, where the client wants it.
fn aggregated_version(context: &Context) -> Option<&'static str> {
    for header in context.headers.get_all(ACCEPT) {
        for clause in header.to_str().unwrap_or_default().split(',') {
            let mut parameters = clause.split(';').map(str::trim);
            let media_type = parameters.next().unwrap_or_default();
            let parameters: Vec<&str> = parameters.collect();
            if media_type == "application/json"
                && parameters.contains(&"g=apidiscovery.k8s.io")
                && parameters.contains(&"as=APIGroupDiscoveryList")
            {
                for version in ["v2", "v2beta1"] {
                    if parameters.contains(&format!("v={version}").as_str()) {
                        return Some(version);
                    }
                }
            }
            if media_type == "application/json"
                && parameters
                    .iter()
                    .all(|parameter| !parameter.starts_with("as="))
            {
                return None;
            }
        }
    }
    None
}

pub fn core_versions(core: &Arc<Core>, context: &Context) -> ApiResponse {
    if let Some(version) = aggregated_version(context) {
        return Ok(aggregated(core, version, |group| group.is_empty()));
    }
    let value = json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": core.advertised_addr().to_string()}],
    });
    Ok(respond_value(&context.accept()?, StatusCode::OK, &value))
}

pub fn groups(core: &Arc<Core>, context: &Context) -> ApiResponse {
    if let Some(version) = aggregated_version(context) {
        return Ok(aggregated(core, version, |group| !group.is_empty()));
    }
    let groups: Vec<Value> = groups_of(core)
        .into_iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_value(group, &versions))
        .collect();
    Ok(respond_value(
        &context.accept()?,
        StatusCode::OK,
        &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}),
    ))
}

pub fn group(core: &Arc<Core>, context: &Context, name: &str) -> ApiResponse {
    let groups = groups_of(core);
    let found = groups
        .iter()
        .find(|(group, _)| *group == name && !name.is_empty());
    let Some((group, versions)) = found else {
        return Ok(crate::handler::page_not_found());
    };
    let mut value = group_value(group, versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Ok(respond_value(&context.accept()?, StatusCode::OK, &value))
}

fn group_value(group: &str, versions: &[&str]) -> Value {
    let version_value =
        |version: &str| json!({"groupVersion": api_version(group, version), "version": version});
    json!({
        "name": group,
        "versions": versions.iter().map(|version| version_value(version)).collect::<Vec<_>>(),
        "preferredVersion": version_value(versions.first().copied().unwrap_or_default()),
    })
}

/// `/api/v1`, `/apis/<group>/<version>`: an `APIResourceList`.
pub fn resources(core: &Arc<Core>, context: &Context, group: &str, version: &str) -> ApiResponse {
    let kinds: Vec<&Kind> = core
        .resources
        .iter()
        .map(|resource| &*resource.kind)
        .filter(|kind| kind.group == group && kind.version == version)
        .collect();
    if kinds.is_empty() {
        let known = groups_of(core).iter().any(|(own, _)| *own == group);
        return if known {
            Err(ApiError::no_such_path())
        } else {
            Ok(crate::handler::page_not_found())
        };
    }
    let mut entries = Vec::new();
    for kind in sorted(kinds) {
        let mut entry = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": verbs(kind.verbs),
        });
        if !kind.short_names.is_empty() {
            entry["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        if kind.verbs.contains(&Verb::List) {
            entry["storageVersionHash"] = storage_version_hash(kind).into();
        }
        entries.push(entry);
        for subresource in &kind.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, subresource.name),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": subresource.kind,
                "verbs": verbs(subresource.verbs),
            });
            if subresource.group != kind.group || subresource.version != kind.version {
                entry["group"] = subresource.group.into();
                entry["version"] = subresource.version.into();
            }
            entries.push(entry);
        }
    }
    let mut list = json!({"kind": "APIResourceList", "groupVersion": api_version(group, version), "resources": entries});
    // Upstream's list of the core group has no version; that of every other group has.
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    Ok(respond_value(&context.accept()?, StatusCode::OK, &list))
}

fn sorted(mut kinds: Vec<&Kind>) -> Vec<&Kind> {
    kinds.sort_by(|a, b| a.plural.cmp(&b.plural));
    kinds
}

/// What tells clients that two versions are stored alike.
fn storage_version_hash(kind: &Kind) -> String {
    use base64::Engine;
    use sha2::Digest;
    // Events of both groups are stored as those of core.
    let group = match kind.group.as_ref() {
        "events.k8s.io" => "",
        group => group,
    };
    let digest = sha2::Sha256::digest(format!("{group}/{}/{}", kind.version, kind.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

fn verbs(verbs: &[Verb]) -> Vec<&'static str> {
    verbs
        .iter()
        .map(|verb| match verb {
            Verb::Create => "create",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Patch => "patch",
            Verb::Update => "update",
            Verb::Watch => "watch",
        })
        .collect()
}

fn aggregated(
    core: &Core,
    version: &'static str,
    wanted: impl Fn(&str) -> bool,
) -> Response<ResponseBody> {
    let items: Vec<Value> = groups_of(core)
        .into_iter()
        .filter(|(group, _)| wanted(group))
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| {
                    let kinds = core
                        .resources
                        .iter()
                        .map(|resource| &*resource.kind)
                        .filter(|kind| kind.group == group && kind.version == version);
                    let resources: Vec<Value> = sorted(kinds.collect())
                        .into_iter()
                        .map(aggregated_resource)
                        .collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            let mut metadata = json!({});
            if !group.is_empty() {
                metadata["name"] = group.into();
            }
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let mut response = json_response(&list);
    let content_type = if version == "v2" {
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    } else {
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
    };
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn aggregated_resource(kind: &Kind) -> Value {
    // An empty group and version: those of the resource, as upstream says it.
    let subresource = |own: &Subresource| {
        let is_same = own.group == kind.group && own.version == kind.version;
        let (group, version) = if is_same {
            ("", "")
        } else {
            (own.group, own.version)
        };
        json!({
            "subresource": own.name,
            "responseKind": {"group": group, "version": version, "kind": own.kind},
            "verbs": verbs(own.verbs),
        })
    };
    let mut entry = json!({
        "resource": kind.plural,
        "responseKind": {"group": "", "version": "", "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": verbs(kind.verbs),
    });
    if !kind.short_names.is_empty() {
        entry["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        entry["categories"] = json!(kind.categories);
    }
    if !kind.subresources.is_empty() {
        entry["subresources"] = kind.subresources.iter().map(subresource).collect();
    }
    entry
}
