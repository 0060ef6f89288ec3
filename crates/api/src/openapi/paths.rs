//! The paths of a document: an operation for each verb of each resource and subresource.

use serde_json::{Map, Value, json};

use super::{Definitions, Flavour, Resource};
use crate::kind::Verb;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const MEDIA_TYPES: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
const WATCH_MEDIA_TYPES: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
const PATCH_MEDIA_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// A query parameter: name, type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "Print the answer indented.");
const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "With \"All\", go through every stage of the request and store nothing.",
);
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name under which the changed fields are recorded in metadata.managedFields; needed for apply.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: Strict refuses the request, Warn answers with warnings (the default), Ignore drops them.",
);
const FORCE: Parameter = (
    "force",
    "boolean",
    "Only for apply: take fields over that other managers own.",
);

const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETE: &[Parameter] = &[
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "Seconds until the object is removed; 0 removes it at once.",
    ),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Delete an object that cannot be decoded, without finalizers and preconditions.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Deprecated: use propagationPolicy.",
    ),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents: Orphan, Background or Foreground.",
    ),
];
const LIST: &[Parameter] = &[
    (
        "allowWatchBookmarks",
        "boolean",
        "Ask for bookmark events in a watch.",
    ),
    ("continue", "string", "The token of the list page before."),
    (
        "fieldSelector",
        "string",
        "Only objects whose fields have these values.",
    ),
    (
        "labelSelector",
        "string",
        "Only objects whose labels match.",
    ),
    (
        "limit",
        "integer",
        "The most objects that one answer may hold.",
    ),
    (
        "resourceVersion",
        "string",
        "The version from which to read or watch.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion limits a list: Exact or NotOlderThan.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Begin a watch with the objects that exist.",
    ),
    (
        "timeoutSeconds",
        "integer",
        "Seconds after which the request ends.",
    ),
    ("watch", "boolean", "Send changes as they happen."),
];

pub(super) fn build(
    resources: &[Resource<'_>],
    flavour: Flavour,
    definitions: &mut Definitions,
) -> Map<String, Value> {
    let mut paths = Map::new();
    for resource in resources {
        let mut builder = Builder {
            resource,
            flavour,
            definitions,
            paths: &mut paths,
        };
        builder.resource();
    }
    paths
}

struct Builder<'a> {
    resource: &'a Resource<'a>,
    flavour: Flavour,
    definitions: &'a mut Definitions,
    paths: &'a mut Map<String, Value>,
}

struct Operation<'a> {
    method: &'static str,
    id: String,
    action: &'static str,
    description: String,
    parameters: Vec<Parameter>,
    /// Definition of the request body, and whether it must be there.
    body: Option<(String, bool)>,
    consumes: &'a [&'a str],
    produces: &'a [&'a str],
    /// Status codes, with the definition of the answer; none for a stream.
    answers: &'a [(&'a str, &'a str)],
    answer: Option<String>,
    /// The kind that the operation is about: group, version, kind.
    kind: (&'a str, &'a str, &'a str),
}

impl Builder<'_> {
    fn resource(&mut self) {
        let resource = *self.resource;
        let api_version = resource.group_version();
        let Some(object) = self.definitions.kind(&api_version, resource.kind) else {
            return;
        };
        let list = self
            .definitions
            .kind(&api_version, &format!("{}List", resource.kind));
        let scope = if resource.namespaced {
            "Namespaced"
        } else {
            ""
        };
        let prefix = self.prefix();
        let id = |verb: &str, what: &str| format!("{verb}{prefix}{scope}{what}");
        let connect_id = |verb: &str, what: &str| format!("connect{prefix}{verb}{scope}{what}");
        let kind = (resource.group, resource.version, resource.kind);
        let base = if resource.namespaced {
            format!(
                "{}/namespaces/{{namespace}}/{}",
                resource.root(),
                resource.plural
            )
        } else {
            format!("{}/{}", resource.root(), resource.plural)
        };
        let has = |verb: Verb| resource.verbs.contains(&verb);
        let mut collection = Vec::new();
        let list_operation = |id: String, list: &str| Operation {
            method: "get",
            id,
            action: "list",
            description: format!("list or watch objects of kind {}", resource.kind),
            parameters: LIST.to_vec(),
            body: None,
            consumes: &["*/*"],
            produces: WATCH_MEDIA_TYPES,
            answers: &[("200", "OK")],
            answer: Some(list.to_owned()),
            kind,
        };
        if let (true, Some(list)) = (has(Verb::List), &list) {
            collection.push(list_operation(id("list", resource.kind), list));
        }
        if has(Verb::Create) {
            let parameters = WRITE.to_vec();
            collection.push(Operation {
                method: "post",
                id: id("create", resource.kind),
                action: "post",
                description: format!("create {}", article(resource.kind)),
                parameters,
                body: Some((object.clone(), true)),
                consumes: &["*/*"],
                produces: MEDIA_TYPES,
                answers: &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
                answer: Some(object.clone()),
                kind,
            });
        }
        if has(Verb::DeleteCollection) {
            collection.push(Operation {
                method: "delete",
                id: format!("delete{prefix}Collection{scope}{}", resource.kind),
                action: "deletecollection",
                description: format!("delete a collection of {}", resource.kind),
                parameters: DELETE
                    .iter()
                    .chain(
                        LIST.iter()
                            .filter(|(name, ..)| !matches!(*name, "watch" | "allowWatchBookmarks")),
                    )
                    .copied()
                    .collect(),
                body: Some((format!("{META}.DeleteOptions"), false)),
                consumes: &["*/*"],
                produces: MEDIA_TYPES,
                answers: &[("200", "OK")],
                answer: Some(format!("{META}.Status")),
                kind,
            });
        }
        self.path(&base, false, collection);
        if let (true, true, Some(list)) = (resource.namespaced, has(Verb::List), &list) {
            let operation = list_operation(
                format!("list{prefix}{}ForAllNamespaces", resource.kind),
                list,
            );
            self.path(
                &format!("{}/{}", resource.root(), resource.plural),
                false,
                vec![operation],
            );
        }
        let named = format!("{base}/{{name}}");
        let mut single: Vec<Operation<'_>> = resource
            .verbs
            .iter()
            .filter_map(|verb| on_object(*verb, &id, resource.kind, "", &object, kind))
            .collect();
        if has(Verb::Delete) {
            single.push(delete(id("delete", resource.kind), resource.kind, kind));
        }
        self.path(&named, true, single);
        for subresource in resource.subresources {
            let sub_version = if subresource.group.is_empty() {
                subresource.version.to_owned()
            } else {
                format!("{}/{}", subresource.group, subresource.version)
            };
            let suffix = format!("{}{}", resource.kind, camel(subresource.name));
            let kind = (subresource.group, subresource.version, subresource.kind);
            let connects = subresource.kind.ends_with("Options") || subresource.name == "log";
            let operations = if connects {
                let verbs = subresource.verbs.iter();
                if subresource.name == "log" {
                    connect(Verb::Get, &|_, what| id("read", what), &suffix, "log", kind)
                        .into_iter()
                        .collect()
                } else {
                    verbs
                        .filter_map(|verb| {
                            connect(*verb, &connect_id, &suffix, subresource.name, kind)
                        })
                        .collect()
                }
            } else {
                let Some(object) = self.definitions.kind(&sub_version, subresource.kind) else {
                    continue;
                };
                let verbs = subresource.verbs.iter();
                verbs
                    .filter_map(|verb| {
                        on_object(*verb, &id, &suffix, subresource.name, &object, kind)
                    })
                    .collect()
            };
            self.path(&format!("{named}/{}", subresource.name), true, operations);
        }
    }

    /// `AppsV1`, `CoreV1`, `RbacAuthorizationV1`: part of operation ids.
    fn prefix(&self) -> String {
        let group = if self.resource.group.is_empty() {
            "core"
        } else {
            self.resource.group.trim_end_matches(".k8s.io")
        };
        let group: String = group.split(['.', '-']).map(camel).collect();
        format!("{group}{}", camel(self.resource.version))
    }

    fn path(&mut self, path: &str, named: bool, operations: Vec<Operation<'_>>) {
        if operations.is_empty() {
            return;
        }
        let mut parameters = Vec::new();
        if named {
            parameters.push(self.parameter("path", ("name", "string", "The name of the object.")));
        }
        if path.contains("{namespace}") {
            parameters.push(self.parameter(
                "path",
                ("namespace", "string", "The namespace of the object."),
            ));
        }
        parameters.push(self.parameter("query", PRETTY));
        let mut item = Map::new();
        item.insert("parameters".to_owned(), Value::Array(parameters));
        for operation in operations {
            item.insert(operation.method.to_owned(), self.operation(operation));
        }
        self.paths.insert(path.to_owned(), Value::Object(item));
    }

    fn parameter(&self, place: &str, (name, type_, description): Parameter) -> Value {
        let mut parameter = json!({"name": name, "in": place, "description": description});
        if place == "path" {
            parameter["required"] = Value::Bool(true);
        }
        match self.flavour {
            Flavour::V2 => {
                parameter["type"] = Value::from(type_);
                parameter["uniqueItems"] = Value::Bool(true);
            }
            Flavour::V3 => parameter["schema"] = json!({"type": type_, "uniqueItems": true}),
        }
        parameter
    }

    fn operation(&self, operation: Operation<'_>) -> Value {
        let (group, version, kind) = operation.kind;
        let mut parameters: Vec<Value> = operation
            .parameters
            .iter()
            .map(|parameter| self.parameter("query", *parameter))
            .collect();
        let schema = |name: &str| json!({"$ref": self.flavour.reference(name)});
        let content = |types: &[&str], name: &str| -> Value {
            types
                .iter()
                .map(|type_| ((*type_).to_owned(), json!({"schema": schema(name)})))
                .collect::<Map<_, _>>()
                .into()
        };
        let answer = |description: &str| match (self.flavour, &operation.answer) {
            (_, None) => json!({"description": description}),
            (Flavour::V2, Some(name)) => {
                json!({"description": description, "schema": schema(name)})
            }
            (Flavour::V3, Some(name)) => {
                json!({"description": description, "content": content(operation.produces, name)})
            }
        };
        let mut responses: Map<String, Value> = operation
            .answers
            .iter()
            .map(|(code, description)| ((*code).to_owned(), answer(description)))
            .collect();
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        let tag_group = if self.resource.group.is_empty() {
            "core".to_owned()
        } else {
            lower_first(&self.prefix()[..self.prefix().len() - self.resource.version.len()])
        };
        let mut value = json!({
            "description": operation.description,
            "operationId": operation.id,
            "responses": responses,
            "tags": [format!("{tag_group}_{}", self.resource.version)],
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        match (self.flavour, &operation.body) {
            (Flavour::V2, body) => {
                if let Some((name, required)) = body {
                    let mut parameter =
                        json!({"name": "body", "in": "body", "schema": schema(name)});
                    if *required {
                        parameter["required"] = Value::Bool(true);
                    }
                    parameters.insert(0, parameter);
                }
                value["consumes"] = operation
                    .consumes
                    .iter()
                    .copied()
                    .map(Value::from)
                    .collect();
                value["produces"] = operation
                    .produces
                    .iter()
                    .copied()
                    .map(Value::from)
                    .collect();
                value["schemes"] = json!(["https"]);
            }
            (Flavour::V3, Some((name, required))) => {
                let mut body = json!({"content": content(operation.consumes, name)});
                if *required {
                    body["required"] = Value::Bool(true);
                }
                value["requestBody"] = body;
            }
            (Flavour::V3, None) => {}
        }
        if !parameters.is_empty() {
            value["parameters"] = Value::Array(parameters);
        }
        value
    }
}

/// Get, update, patch and create on an object or on a subresource that has one.
fn on_object<'a>(
    verb: Verb,
    id: &dyn Fn(&str, &str) -> String,
    what: &str,
    subresource: &str,
    object: &str,
    kind: (&'a str, &'a str, &'a str),
) -> Option<Operation<'a>> {
    let of = if subresource.is_empty() {
        format!("the specified {}", kind.2)
    } else {
        format!(
            "{subresource} of the specified {}",
            what.trim_end_matches(&camel(subresource))
        )
    };
    let operation = |method,
                     verb: &str,
                     action,
                     description: &str,
                     parameters: &[Parameter],
                     body,
                     consumes,
                     answers| Operation {
        method,
        id: id(verb, what),
        action,
        description: format!("{description} {of}"),
        parameters: parameters.to_vec(),
        body,
        consumes,
        produces: MEDIA_TYPES,
        answers,
        answer: Some(object.to_owned()),
        kind,
    };
    const ANY: &[&str] = &["*/*"];
    const OK: &[(&str, &str)] = &[("200", "OK")];
    const CREATED: &[(&str, &str)] = &[("200", "OK"), ("201", "Created")];
    const ACCEPTED: &[(&str, &str)] = &[("200", "OK"), ("201", "Created"), ("202", "Accepted")];
    match verb {
        Verb::Get => Some(operation("get", "read", "get", "read", &[], None, ANY, OK)),
        Verb::Update => Some(operation(
            "put",
            "replace",
            "put",
            "replace",
            WRITE,
            Some((object.to_owned(), true)),
            ANY,
            CREATED,
        )),
        Verb::Patch => Some(operation(
            "patch",
            "patch",
            "patch",
            "partially update",
            PATCH,
            Some((format!("{META}.Patch"), true)),
            PATCH_MEDIA_TYPES,
            CREATED,
        )),
        Verb::Create if !subresource.is_empty() => Some(operation(
            "post",
            "create",
            "post",
            "create",
            WRITE,
            Some((object.to_owned(), true)),
            ANY,
            ACCEPTED,
        )),
        _ => None,
    }
}

fn delete<'a>(id: String, what: &str, kind: (&'a str, &'a str, &'a str)) -> Operation<'a> {
    Operation {
        method: "delete",
        id,
        action: "delete",
        description: format!("delete {}", article(what)),
        parameters: DELETE.to_vec(),
        body: Some((format!("{META}.DeleteOptions"), false)),
        consumes: &["*/*"],
        produces: MEDIA_TYPES,
        answers: &[("200", "OK"), ("202", "Accepted")],
        answer: Some(format!("{META}.Status")),
        kind,
    }
}

/// Exec, attach, port-forward, proxy and log answer with streams or text.
fn connect<'a>(
    verb: Verb,
    id: &dyn Fn(&str, &str) -> String,
    what: &str,
    subresource: &str,
    kind: (&'a str, &'a str, &'a str),
) -> Option<Operation<'a>> {
    let (method, name) = match verb {
        Verb::Create => ("post", "Post"),
        Verb::Get => ("get", "Get"),
        Verb::Delete => ("delete", "Delete"),
        Verb::Patch => ("patch", "Patch"),
        Verb::Update => ("put", "Put"),
        Verb::DeleteCollection | Verb::List | Verb::Watch => return None,
    };
    let is_log = subresource == "log";
    Some(Operation {
        method,
        id: id(name, what),
        action: if is_log { "get" } else { "connect" },
        description: format!("{} requests to {subresource}", name.to_uppercase()),
        parameters: Vec::new(),
        body: None,
        consumes: &["*/*"],
        produces: &["*/*"],
        answers: &[("200", "OK")],
        answer: None,
        kind,
    })
}

fn camel(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

fn lower_first(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {kind}")
}
