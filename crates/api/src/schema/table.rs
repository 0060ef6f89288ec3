//! Parses `facts.txt`.
//!
//! ```text
//! @<OpenAPI prefix> <group-version>
//! <type> [T: has apiVersion and kind][A: atomic]
//!  <protobuf number> <JSON name, - if inlined> [[]|{}]<type> <flags>, then each after a tab: [patch=…] [key=…] [list=…] [keys=a|b] [map=…] [enum=a|b] [default=<JSON>]
//! ```
//! Flags: `*` pointer, `o` omitempty, `z` omitzero, `r` required, `i` inlined, `-` none.
//! The file is part of the program, so a line out of form is a broken invariant and panics (a test parses it).

use std::collections::HashMap;

use super::{Field, ListType, Message, MessageId, Package, PatchStrategy, Shape, Table, Type};

pub(super) fn parse(text: &'static str) -> Table {
    let mut table = Table {
        packages: Vec::with_capacity(64),
        messages: Vec::with_capacity(1024),
        fields: Vec::with_capacity(4096),
        by_name: HashMap::with_capacity(1024),
        packages_by_group_version: HashMap::with_capacity(64),
        packages_by_name: HashMap::with_capacity(64),
    };
    read_names(text, &mut table);
    read_fields(text, &mut table);
    for index in 0..table.messages.len() {
        let mut flat = Vec::new();
        flatten(&table, MessageId(index as u16), &mut flat);
        flat.sort_unstable_by_key(|index: &u16| table.fields[usize::from(*index)].name);
        flat.dedup_by_key(|index| table.fields[usize::from(*index)].name);
        let is_implied = |index: &&u16| table.fields[usize::from(**index)].is_implied();
        table.messages[index].implied_fields = flat.iter().filter(is_implied).copied().collect();
        table.messages[index].json_fields = flat.into();
    }
    table.fields.shrink_to_fit();
    table.messages.shrink_to_fit();
    table
}

/// First pass: packages and types, so that the second can resolve references forward.
fn read_names(text: &'static str, table: &mut Table) {
    for line in text.lines().filter(|line| !line.starts_with([' ', '#'])) {
        if let Some(rest) = line.strip_prefix('@') {
            let (openapi_prefix, group_version) =
                rest.split_once(' ').expect("a package has a group-version");
            let index = u8::try_from(table.packages.len()).expect("fewer than 256 packages");
            table.packages.push(Package {
                openapi_prefix,
                group_version,
            });
            table.packages_by_name.insert(openapi_prefix, index);
            table.packages_by_group_version.insert(group_version, index);
        } else {
            let (name, flags) = line.split_once(' ').expect("a type has flags");
            let package = u8::try_from(table.packages.len() - 1).expect("fewer than 256 packages");
            let id =
                MessageId(u16::try_from(table.messages.len()).expect("fewer than 65536 types"));
            table.by_name.insert((package, name), id);
            table.messages.push(Message {
                name,
                package,
                first_field: 0,
                field_count: 0,
                has_type_meta: flags.contains('T'),
                atomic: flags.contains('A'),
                json_fields: Box::default(),
                implied_fields: Box::default(),
            });
        }
    }
}

fn read_fields(text: &'static str, table: &mut Table) {
    let mut next = 0;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with(['#', '@']) {
            continue;
        }
        let package = table.messages[next].package;
        let mut fields = Vec::new();
        if table.messages[next].has_type_meta {
            fields.push(read_field("0 apiVersion string o", table, package));
            fields.push(read_field("0 kind string o", table, package));
        }
        while let Some(line) = lines.next_if(|line| line.starts_with(' ')) {
            fields.push(read_field(&line[1..], table, package));
        }
        fields.sort_by_key(|field| field.number);
        let message = &mut table.messages[next];
        message.first_field = u16::try_from(table.fields.len()).expect("fewer than 65536 fields");
        message.field_count = u16::try_from(fields.len()).expect("fewer than 65536 fields");
        table.fields.append(&mut fields);
        next += 1;
    }
}

fn read_field(line: &'static str, table: &Table, package: u8) -> Field {
    let mut attributes = line.split('\t');
    let mut words = attributes.next().unwrap_or_default().split(' ');
    let mut word = || words.next().expect("a field has four words");
    let number = word().parse().expect("a field number");
    let (name, type_, flags) = (word(), word(), word());
    let (shape, type_) = if let Some(item) = type_.strip_prefix("[]") {
        (Shape::List, item)
    } else if let Some(item) = type_.strip_prefix("{}") {
        (Shape::Map, item)
    } else {
        (Shape::Single, type_)
    };
    let mut field = Field {
        name,
        number,
        shape,
        type_: read_type(type_, table, package),
        pointer: flags.contains('*'),
        omit_empty: flags.contains('o'),
        omit_zero: flags.contains('z'),
        required: flags.contains('r'),
        inline: flags.contains('i'),
        patch: PatchStrategy::default(),
        patch_merge_key: "",
        list_type: None,
        list_map_keys: Box::default(),
        map_atomic: false,
        enum_values: Box::default(),
        default: None,
    };
    for attribute in attributes {
        let (key, value) = attribute.split_once('=').expect("an attribute has a value");
        match key {
            "patch" => {
                let has = |strategy| value.split(',').any(|one| one == strategy);
                field.patch = PatchStrategy {
                    merge: has("merge"),
                    replace: has("replace"),
                    retain_keys: has("retainKeys"),
                };
            }
            "key" => field.patch_merge_key = value,
            "list" => {
                field.list_type = Some(match value {
                    "atomic" => ListType::Atomic,
                    "set" => ListType::Set,
                    "map" => ListType::Map,
                    other => panic!("list type {other}"),
                });
            }
            "keys" => field.list_map_keys = value.split('|').collect(),
            "map" => field.map_atomic = value == "atomic",
            "default" => field.default = Some(value),
            "enum" => field.enum_values = value.split('|').collect(),
            other => panic!("attribute {other}"),
        }
    }
    field
}

fn read_type(name: &'static str, table: &Table, package: u8) -> Type {
    match name {
        "string" => Type::String,
        "bool" => Type::Bool,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "float64" => Type::Float64,
        "bytes" => Type::Bytes,
        "quantity" => Type::Quantity,
        "intorstring" => Type::IntOrString,
        "time" => Type::Time,
        "microtime" => Type::MicroTime,
        "raw" => Type::Raw,
        "fields" => Type::Fields,
        "strings" => Type::Strings,
        "json" => Type::Json,
        "schemaorarray" => Type::SchemaOrArray,
        "schemaorbool" => Type::SchemaOrBool,
        "schemaorstrings" => Type::SchemaOrStrings,
        "any" => Type::Any,
        name => {
            let id = if name.contains('.') {
                table.openapi_type(name)
            } else {
                table.by_name.get(&(package, name)).copied()
            };
            Type::Message(id.unwrap_or_else(|| panic!("type {name} is not in the table")))
        }
    }
}

fn flatten(table: &Table, id: MessageId, flat: &mut Vec<u16>) {
    let message = table.message(id);
    for index in message.first_field..message.first_field + message.field_count {
        let field = &table.fields[usize::from(index)];
        match field.type_ {
            Type::Message(inner) if field.inline => flatten(table, inner, flat),
            _ => flat.push(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::schema::{ListType, Shape, Type, table};

    #[test]
    fn facts_of_known_fields() {
        let table = table();
        let pod_spec = table
            .openapi_type("io.k8s.api.core.v1.PodSpec")
            .expect("PodSpec is in the table");
        let containers = table
            .json_field(pod_spec, "containers")
            .expect("containers");
        assert_eq!(
            (containers.number, containers.shape, containers.list_type),
            (2, Shape::List, Some(ListType::Map))
        );
        assert_eq!(containers.patch_merge_key, "name");
        let volume = table
            .openapi_type("io.k8s.api.core.v1.Volume")
            .expect("Volume is in the table");
        assert!(
            table.json_field(volume, "emptyDir").is_some(),
            "inlined structs are flattened"
        );
        let Some(port) = table.openapi_type("io.k8s.api.core.v1.ContainerPort") else {
            panic!("ContainerPort")
        };
        assert_eq!(
            table
                .json_field(port, "protocol")
                .and_then(|field| field.default),
            Some("\"TCP\"")
        );
    }

    #[test]
    fn kinds_are_found_by_group_version() {
        let check = |api_version, kind, expect: Option<&str>| {
            assert_eq!(
                table()
                    .kind(api_version, kind)
                    .map(|id| table().openapi_name(id))
                    .as_deref(),
                expect,
                "{api_version} {kind}"
            );
        };
        check("v1", "Pod", Some("io.k8s.api.core.v1.Pod"));
        check(
            "apps/v1",
            "Deployment",
            Some("io.k8s.api.apps.v1.Deployment"),
        );
        check(
            "apps/v1",
            "DeleteOptions",
            Some("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"),
        );
        check(
            "v1",
            "Status",
            Some("io.k8s.apimachinery.pkg.apis.meta.v1.Status"),
        );
        check("v1", "Container", None);
        check("apps/v9", "Deployment", None);
    }

    #[test]
    fn strings_are_message_wrappers_only_where_upstream_has_them() {
        let rule = table()
            .openapi_type("io.k8s.api.rbac.v1.PolicyRule")
            .expect("PolicyRule");
        let verbs = table().json_field(rule, "verbs").expect("verbs");
        assert_eq!((verbs.shape, verbs.type_), (Shape::List, Type::String));
    }
}
