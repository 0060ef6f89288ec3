#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::registry::Registry;

fn with_builtin<T>(call: impl FnOnce(&[Resource<'_>]) -> T) -> T {
    let registry = Registry::builtin();
    let resources: Vec<Resource<'_>> = registry
        .iter()
        .map(|kind| Resource::from(kind.as_ref()))
        .collect();
    call(&resources)
}

fn document(group: &str, version: &str) -> Value {
    with_builtin(|resources| {
        serde_json::from_slice(&v3_document(resources, group, version).unwrap()).unwrap()
    })
}

/// Every `$ref` leads somewhere.
fn check_references(value: &Value, definitions: &Value, prefix: &str) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get("$ref") {
                let name = reference.strip_prefix(prefix).unwrap();
                assert!(definitions.get(name).is_some(), "{reference}");
            }
            object
                .values()
                .for_each(|value| check_references(value, definitions, prefix));
        }
        Value::Array(items) => items
            .iter()
            .for_each(|value| check_references(value, definitions, prefix)),
        _ => {}
    }
}

#[test]
fn references_lead_somewhere() {
    for (group, version) in [("", "v1"), ("apps", "v1")] {
        let document = document(group, version);
        check_references(
            &document,
            &document["components"]["schemas"],
            "#/components/schemas/",
        );
    }
    let v2: Value = with_builtin(|resources| serde_json::from_slice(&v2_json(resources)).unwrap());
    check_references(&v2, &v2["definitions"], "#/definitions/");
}

#[test]
fn the_index_names_every_group_version() {
    let index: Value =
        with_builtin(|resources| serde_json::from_slice(&v3_index(resources)).unwrap());
    let address = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap();
    let hash = with_builtin(|resources| v3_hash(resources, "apps", "v1").unwrap());
    assert_eq!(address, format!("/openapi/v3/apis/apps/v1?hash={hash}"));
    assert!(index["paths"]["api/v1"].is_object());
    assert!(with_builtin(|resources| v3_document(resources, "apps", "v9")).is_none());
}

#[test]
fn facts_and_descriptions_meet() {
    let document = document("apps", "v1");
    let schemas = &document["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert!(
        containers["description"]
            .as_str()
            .unwrap()
            .contains("containers")
    );
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    let patch =
        &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let names: Vec<&str> = patch["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|parameter| parameter["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["dryRun", "fieldManager", "fieldValidation", "force"]
    );
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert_eq!(patch["tags"], json!(["apps_v1"]));
}

#[test]
fn custom_resources_bring_their_schema() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}});
    let thing = Resource {
        group: "example.com",
        version: "v1",
        kind: "Thing",
        plural: "things",
        namespaced: true,
        verbs: crate::registry::ALL_VERBS,
        subresources: &[],
        schema: Some(&schema),
    };
    let document: Value =
        serde_json::from_slice(&v3_document(&[thing], "example.com", "v1").unwrap()).unwrap();
    let definition = &document["components"]["schemas"]["com.example.v1.Thing"];
    assert_eq!(
        definition["properties"]["spec"]["properties"]["size"],
        json!({"type": "integer"})
    );
    assert!(
        document["paths"]["/apis/example.com/v1/namespaces/{namespace}/things/{name}"]["patch"]
            .is_object()
    );
    check_references(
        &document,
        &document["components"]["schemas"],
        "#/components/schemas/",
    );
}

/// Compares definitions with upstream's own documents: `KUBERNETES_DIR=… cargo test -p api upstream_documents`.
#[test]
fn upstream_documents() {
    let Some(kubernetes) = std::env::var_os("KUBERNETES_DIR").map(PathBuf::from) else {
        return;
    };
    let mut differences = Vec::new();
    for (group, version, file) in [
        ("", "v1", "api__v1_openapi.json"),
        ("apps", "v1", "apis__apps__v1_openapi.json"),
    ] {
        let theirs: Value = serde_json::from_slice(
            &std::fs::read(kubernetes.join("api/openapi-spec/v3").join(file)).unwrap(),
        )
        .unwrap();
        let ours = document(group, version);
        compare_definitions(
            &ours["components"]["schemas"],
            &theirs["components"]["schemas"],
            &mut differences,
        );
        for (path, item) in ours["paths"].as_object().unwrap() {
            for (method, operation) in item
                .as_object()
                .unwrap()
                .iter()
                .filter(|(method, _)| *method != "parameters")
            {
                let upstream = &theirs["paths"][path][method];
                for name in [
                    "operationId",
                    "x-kubernetes-action",
                    "x-kubernetes-group-version-kind",
                    "tags",
                ] {
                    if operation[name] != upstream[name] {
                        differences.push(format!(
                            "{method} {path}: {name} {} {}",
                            operation[name], upstream[name]
                        ));
                    }
                }
            }
        }
    }
    let v2: Value = with_builtin(|resources| serde_json::from_slice(&v2_json(resources)).unwrap());
    let theirs: Value = serde_json::from_slice(
        &std::fs::read(kubernetes.join("api/openapi-spec/swagger.json")).unwrap(),
    )
    .unwrap();
    compare_definitions(&v2["definitions"], &theirs["definitions"], &mut differences);
    assert!(
        differences.is_empty(),
        "{}:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

fn compare_definitions(ours: &Value, theirs: &Value, differences: &mut Vec<String>) {
    for (name, definition) in ours.as_object().unwrap() {
        if name.ends_with(".Patch") {
            continue;
        }
        let Some(upstream) = theirs.get(name) else {
            differences.push(format!("{name} is not upstream"));
            continue;
        };
        let required = |definition: &Value| {
            definition["required"]
                .as_array()
                .map(|names| names.iter().map(Value::to_string).collect::<BTreeSet<_>>())
        };
        if required(definition) != required(upstream) {
            differences.push(format!(
                "{name}: required {} {}",
                definition["required"], upstream["required"]
            ));
        }
        for key in ["type", "x-kubernetes-map-type", "format"] {
            if definition[key] != upstream[key] {
                differences.push(format!(
                    "{name}: {key} {} {}",
                    definition[key], upstream[key]
                ));
            }
        }
        let (properties, upstream) = (
            definition["properties"].as_object(),
            upstream["properties"].as_object(),
        );
        let names = |properties: Option<&Map<String, Value>>| {
            properties
                .map(|properties| properties.keys().cloned().collect::<BTreeSet<_>>())
                .unwrap_or_default()
        };
        if names(properties) != names(upstream) {
            differences.push(format!("{name}: properties differ"));
        }
        for (field, property) in properties.into_iter().flatten() {
            let (mut property, Some(mut upstream)) = (
                property.clone(),
                upstream.and_then(|upstream| upstream.get(field)).cloned(),
            ) else {
                continue;
            };
            for property in [&mut property, &mut upstream] {
                let property = property.as_object_mut().unwrap();
                // Words differ by release, and upstream's files are written without enums.
                property.remove("description");
                property.remove("enum");
                property
                    .get_mut("items")
                    .and_then(Value::as_object_mut)
                    .map(|items| items.remove("enum"));
            }
            if property != upstream {
                differences.push(format!("{name}.{field}: {property} {upstream}"));
            }
        }
    }
}
