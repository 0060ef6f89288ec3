//! The definitions of a document: structure from the table of facts, descriptions from k8s-openapi.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::schemars::SchemaGenerator;
use k8s_openapi::schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{Flavour, Resource, roots};
use crate::schema::{Field, ListType, META_GROUP_VERSION, MessageId, Shape, Table, Type, table};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

pub(super) struct Definitions {
    table: &'static Table,
    flavour: Flavour,
    describing: SchemaGenerator,
    wanted: BTreeSet<MessageId>,
    custom: Map<String, Value>,
    /// Kinds as `x-kubernetes-group-version-kind` shows them, by definition.
    group_versions: BTreeSet<(String, String)>,
    specials: BTreeMap<&'static str, Type>,
}

/// Types with an encoding of their own, and what they are called.
const SPECIALS: &[(Type, &str)] = &[
    (
        Type::Quantity,
        "io.k8s.apimachinery.pkg.api.resource.Quantity",
    ),
    (
        Type::IntOrString,
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
    ),
    (Type::Time, "io.k8s.apimachinery.pkg.apis.meta.v1.Time"),
    (
        Type::MicroTime,
        "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
    ),
    (Type::Raw, "io.k8s.apimachinery.pkg.runtime.RawExtension"),
    (
        Type::Fields,
        "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1",
    ),
    (
        Type::Json,
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON",
    ),
    (
        Type::SchemaOrArray,
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray",
    ),
    (
        Type::SchemaOrBool,
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool",
    ),
    (
        Type::SchemaOrStrings,
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray",
    ),
];

impl Definitions {
    pub(super) fn new(flavour: Flavour) -> Self {
        let mut describing = SchemaSettings::draft07()
            .with(|settings| settings.definitions_path = "/definitions".into())
            .into_generator();
        roots::describe_meta(&mut describing);
        let mut definitions = Self {
            table: table(),
            flavour,
            describing,
            wanted: BTreeSet::new(),
            custom: Map::new(),
            group_versions: BTreeSet::new(),
            specials: BTreeMap::new(),
        };
        for name in ["DeleteOptions", "Status"] {
            definitions.want(definitions.table.type_in(META_GROUP_VERSION, name));
        }
        definitions
    }

    pub(super) fn add_resource(&mut self, resource: &Resource<'_>) {
        let group_version = resource.group_version();
        self.group_versions
            .insert((resource.group.to_owned(), resource.version.to_owned()));
        if resource.schema.is_some() || self.table.kind(&group_version, resource.kind).is_none() {
            self.add_custom(resource);
            return;
        }
        self.kind(&group_version, resource.kind);
        self.kind(&group_version, &format!("{}List", resource.kind));
    }

    /// The name of a kind's definition, which is then part of the document; `None` if there is no such type.
    pub(super) fn kind(&mut self, api_version: &str, kind: &str) -> Option<String> {
        let custom = custom_name(api_version, kind);
        if self.custom.contains_key(&custom) {
            return Some(custom);
        }
        roots::describe(api_version, kind, &mut self.describing);
        let id = self.table.kind(api_version, kind)?;
        self.want(Some(id));
        Some(self.table.openapi_name(id))
    }

    fn want(&mut self, id: Option<MessageId>) {
        let Some(id) = id else { return };
        if !self.wanted.insert(id) {
            return;
        }
        for field in self.table.json_fields(id) {
            match field.type_ {
                Type::Message(inner) => self.want(Some(inner)),
                type_ => {
                    if let Some((_, name)) = SPECIALS.iter().find(|(special, _)| *special == type_)
                    {
                        self.specials.insert(name, type_);
                        if matches!(
                            type_,
                            Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings
                        ) {
                            self.want(
                                self.table
                                    .type_in("apiextensions.k8s.io/v1", "JSONSchemaProps"),
                            );
                        }
                    }
                }
            }
        }
    }

    /// A custom resource: its own schema, with the fields that every object has.
    fn add_custom(&mut self, resource: &Resource<'_>) {
        let mut schema = resource.schema.cloned().unwrap_or_else(
            || json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        );
        let metadata = self.flavour.reference(&format!("{META}.ObjectMeta"));
        self.want(self.table.type_in(META_GROUP_VERSION, "ObjectMeta"));
        self.want(self.table.type_in(META_GROUP_VERSION, "ListMeta"));
        if let Some(schema) = schema.as_object_mut() {
            let properties = schema.entry("properties").or_insert_with(|| json!({}));
            if let Some(properties) = properties.as_object_mut() {
                properties.insert("apiVersion".to_owned(), json!({"type": "string"}));
                properties.insert("kind".to_owned(), json!({"type": "string"}));
                properties.insert("metadata".to_owned(), json!({"$ref": metadata}));
            }
            schema.insert(
                "x-kubernetes-group-version-kind".to_owned(),
                group_version_kinds([(resource.group, resource.version)], resource.kind),
            );
        }
        let group_version = resource.group_version();
        let name = custom_name(&group_version, resource.kind);
        let list_kind = format!("{}List", resource.kind);
        let list = json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"$ref": self.flavour.reference(&format!("{META}.ListMeta"))},
                "items": {"type": "array", "items": {"$ref": self.flavour.reference(&name)}},
            },
            "x-kubernetes-group-version-kind": group_version_kinds([(resource.group, resource.version)], &list_kind),
        });
        self.custom.insert(name, schema);
        self.custom
            .insert(custom_name(&group_version, &list_kind), list);
    }

    pub(super) fn finish(mut self) -> Map<String, Value> {
        let described = self.describing.take_definitions(false);
        let mut definitions = std::mem::take(&mut self.custom);
        for id in &self.wanted {
            let name = self.table.openapi_name(*id);
            let definition = self.definition(*id, described.get(&name));
            definitions.insert(name, definition);
        }
        for (name, type_) in &self.specials {
            let mut definition = special(*type_, self.flavour);
            if let Some(description) = described
                .get(*name)
                .and_then(|schema| schema.get("description"))
            {
                definition.insert("description".to_owned(), description.clone());
            }
            definitions.insert((*name).to_owned(), Value::Object(definition));
        }
        let patch = json!({"type": "object", "description": "The body of a PATCH request; its form follows from the content type."});
        definitions.insert(format!("{META}.Patch"), patch);
        definitions
    }

    fn definition(&self, id: MessageId, described: Option<&Value>) -> Value {
        let message = self.table.message(id);
        let mut definition = Map::new();
        if let Some(description) = described.and_then(|schema| schema.get("description")) {
            definition.insert("description".to_owned(), description.clone());
        }
        definition.insert("type".to_owned(), Value::from("object"));
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in self.table.json_fields(id) {
            let mut property = self.property(field);
            let description = described.and_then(|schema| {
                schema
                    .get("properties")?
                    .get(field.name)?
                    .get("description")
            });
            if let Some(description) = description {
                property.insert("description".to_owned(), description.clone());
            }
            properties.insert(field.name.to_owned(), Value::Object(property));
            if field.required {
                required.push(Value::from(field.name));
            }
        }
        if !properties.is_empty() {
            definition.insert("properties".to_owned(), Value::Object(properties));
        }
        if !required.is_empty() {
            definition.insert("required".to_owned(), Value::Array(required));
        }
        if message.atomic {
            definition.insert("x-kubernetes-map-type".to_owned(), Value::from("atomic"));
        }
        if message.has_type_meta {
            let own = self.table.package(message).group_version;
            let kinds = if own == META_GROUP_VERSION {
                // Apimachinery's own kinds are part of every group-version.
                let served = self
                    .group_versions
                    .iter()
                    .map(|(group, version)| (group.as_str(), version.as_str()));
                let core = [("", "v1")].into_iter().filter(|_| {
                    !self
                        .group_versions
                        .contains(&(String::new(), "v1".to_owned()))
                });
                if message.name == "Status" {
                    group_version_kinds([("", "v1")], message.name)
                } else {
                    group_version_kinds(core.chain(served), message.name)
                }
            } else {
                group_version_kinds([own.split_once('/').unwrap_or(("", own))], message.name)
            };
            definition.insert("x-kubernetes-group-version-kind".to_owned(), kinds);
        }
        Value::Object(definition)
    }

    fn property(&self, field: &Field) -> Map<String, Value> {
        let mut element = self.type_schema(field.type_);
        if !field.enum_values.is_empty() {
            element.insert(
                "enum".to_owned(),
                field.enum_values.iter().copied().map(Value::from).collect(),
            );
        }
        let mut property = match field.shape {
            Shape::List => object([
                ("type", Value::from("array")),
                ("items", Value::Object(element)),
            ]),
            Shape::Map => object([
                ("type", Value::from("object")),
                ("additionalProperties", Value::Object(element)),
            ]),
            // Siblings of a reference mean nothing in OpenAPI v3.
            Shape::Single if self.flavour == Flavour::V3 && element.contains_key("$ref") => {
                object([("allOf", Value::Array(vec![Value::Object(element)]))])
            }
            Shape::Single => element,
        };
        let mut put = |name: &str, value: Value| property.insert(name.to_owned(), value);
        if self.flavour == Flavour::V3
            && let Some(default) = default(field)
        {
            put("default", default);
        }
        match field.list_type {
            Some(ListType::Atomic) => drop(put("x-kubernetes-list-type", Value::from("atomic"))),
            Some(ListType::Set) => drop(put("x-kubernetes-list-type", Value::from("set"))),
            Some(ListType::Map) => {
                put("x-kubernetes-list-type", Value::from("map"));
                put(
                    "x-kubernetes-list-map-keys",
                    field
                        .list_map_keys
                        .iter()
                        .copied()
                        .map(Value::from)
                        .collect(),
                );
            }
            None => {}
        }
        if field.map_atomic {
            put("x-kubernetes-map-type", Value::from("atomic"));
        }
        let strategies = [
            (field.patch.merge, "merge"),
            (field.patch.replace, "replace"),
            (field.patch.retain_keys, "retainKeys"),
        ];
        let strategies: Vec<&str> = strategies
            .iter()
            .filter(|(has, _)| *has)
            .map(|(_, name)| *name)
            .collect();
        if !strategies.is_empty() {
            put(
                "x-kubernetes-patch-strategy",
                Value::from(strategies.join(",")),
            );
        }
        if !field.patch_merge_key.is_empty() {
            put(
                "x-kubernetes-patch-merge-key",
                Value::from(field.patch_merge_key),
            );
        }
        property
    }

    fn type_schema(&self, type_: Type) -> Map<String, Value> {
        let formatted = |type_: &str, format: &str| {
            object([
                ("type", Value::from(type_)),
                ("format", Value::from(format)),
            ])
        };
        match type_ {
            Type::String => object([("type", Value::from("string"))]),
            Type::Bool => object([("type", Value::from("boolean"))]),
            Type::Int32 => formatted("integer", "int32"),
            Type::Int64 => formatted("integer", "int64"),
            Type::Float64 => formatted("number", "double"),
            Type::Bytes => formatted("string", "byte"),
            Type::Strings => object([
                ("type", Value::from("array")),
                ("items", json!({"type": "string"})),
            ]),
            Type::Any => Map::new(),
            Type::Message(id) => object([(
                "$ref",
                Value::from(self.flavour.reference(&self.table.openapi_name(id))),
            )]),
            special => {
                let name = SPECIALS
                    .iter()
                    .find(|(type_, _)| *type_ == special)
                    .map(|(_, name)| *name)
                    .unwrap_or_default();
                object([("$ref", Value::from(self.flavour.reference(name)))])
            }
        }
    }
}

fn object<const N: usize>(entries: [(&str, Value); N]) -> Map<String, Value> {
    entries
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// What stands in for a field that is left out: the stated default, else the zero value of what Go holds by value.
fn default(field: &Field) -> Option<Value> {
    if let Some(default) = field.default {
        return serde_json::from_str(default).ok();
    }
    if field.shape != Shape::Single || field.pointer {
        return None;
    }
    match field.type_ {
        Type::Message(_) => Some(json!({})),
        _ if field.omit_empty || field.omit_zero => None,
        Type::String => Some(json!("")),
        Type::Bool => Some(json!(false)),
        Type::Int32 | Type::Int64 => Some(json!(0)),
        Type::Float64 => Some(json!(0.0)),
        _ => None,
    }
}

fn special(type_: Type, flavour: Flavour) -> Map<String, Value> {
    let either = |types: [&str; 2]| {
        object([(
            "oneOf",
            types.iter().map(|type_| json!({"type": type_})).collect(),
        )])
    };
    let formatted = |format: &str| {
        object([
            ("type", Value::from("string")),
            ("format", Value::from(format)),
        ])
    };
    match (type_, flavour) {
        (Type::Quantity, Flavour::V2) => object([("type", Value::from("string"))]),
        (Type::Quantity, Flavour::V3) => either(["string", "number"]),
        (Type::IntOrString, Flavour::V2) => formatted("int-or-string"),
        (Type::IntOrString, Flavour::V3) => {
            let mut schema = either(["integer", "string"]);
            schema.insert("format".to_owned(), Value::from("int-or-string"));
            schema
        }
        (Type::Time | Type::MicroTime, _) => formatted("date-time"),
        (Type::Raw | Type::Fields, _) => object([("type", Value::from("object"))]),
        _ => Map::new(),
    }
}

fn group_version_kinds<'a>(
    group_versions: impl IntoIterator<Item = (&'a str, &'a str)>,
    kind: &str,
) -> Value {
    group_versions
        .into_iter()
        .map(|(group, version)| json!({"group": group, "version": version, "kind": kind}))
        .collect()
}

/// `com.example.v1.Thing` for `example.com/v1` `Thing`.
fn custom_name(api_version: &str, kind: &str) -> String {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let mut parts: Vec<&str> = group
        .split('.')
        .rev()
        .filter(|part| !part.is_empty())
        .collect();
    parts.extend([version, kind]);
    parts.join(".")
}
