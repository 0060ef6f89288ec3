//! OpenAPI v2 in gnostic's protobuf (`openapi.v2.Document`), as far as our documents use it.

use serde_json::{Map, Value};

/// Encodes a v2 document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 * 1024);
    text(&mut out, 1, &document["swagger"]);
    nested(&mut out, 2, |out| {
        text(out, 1, &document["info"]["title"]);
        text(out, 2, &document["info"]["version"]);
    });
    nested(&mut out, 8, |out| {
        named(out, 2, &document["paths"], path_item)
    });
    nested(&mut out, 9, |out| {
        named(out, 1, &document["definitions"], schema)
    });
    for requirement in document["security"].as_array().into_iter().flatten() {
        nested(&mut out, 12, |out| {
            named(out, 1, requirement, |out, scopes| texts(out, 1, scopes))
        });
    }
    nested(&mut out, 13, |out| {
        named(
            out,
            1,
            &document["securityDefinitions"],
            |out, definition| {
                // The second choice of a security definition: an API key.
                nested(out, 2, |out| {
                    text(out, 1, &definition["type"]);
                    text(out, 2, &definition["name"]);
                    text(out, 3, &definition["in"]);
                    text(out, 4, &definition["description"]);
                });
            },
        );
    });
    out
}

fn path_item(out: &mut Vec<u8>, item: &Value) {
    for (number, method) in [
        (2, "get"),
        (3, "put"),
        (4, "post"),
        (5, "delete"),
        (8, "patch"),
    ] {
        if let Some(value) = item.get(method) {
            nested(out, number, |out| operation(out, value));
        }
    }
    parameters(out, 9, &item["parameters"]);
    extensions(out, 10, item);
}

fn operation(out: &mut Vec<u8>, operation: &Value) {
    texts(out, 1, &operation["tags"]);
    text(out, 3, &operation["description"]);
    text(out, 5, &operation["operationId"]);
    texts(out, 6, &operation["produces"]);
    texts(out, 7, &operation["consumes"]);
    parameters(out, 8, &operation["parameters"]);
    nested(out, 9, |out| {
        named(out, 1, &operation["responses"], |out, response| {
            nested(out, 1, |out| {
                text(out, 1, &response["description"]);
                if let Some(value) = response.get("schema") {
                    nested(out, 2, |out| nested(out, 1, |out| schema(out, value)));
                }
            });
        });
    });
    texts(out, 10, &operation["schemes"]);
    extensions(out, 13, operation);
}

fn parameters(out: &mut Vec<u8>, number: u32, parameters: &Value) {
    for parameter in parameters.as_array().into_iter().flatten() {
        nested(out, number, |out| {
            nested(out, 1, |out| one_parameter(out, parameter))
        });
    }
}

fn one_parameter(out: &mut Vec<u8>, parameter: &Value) {
    if parameter["in"] == "body" {
        nested(out, 1, |out| {
            text(out, 1, &parameter["description"]);
            text(out, 2, &parameter["name"]);
            text(out, 3, &parameter["in"]);
            flag(out, 4, &parameter["required"]);
            nested(out, 5, |out| schema(out, &parameter["schema"]));
        });
        return;
    }
    let is_path = parameter["in"] == "path";
    // Query parameters have one field more before their type.
    let (choice, type_number, unique_number) = if is_path { (4, 5, 19) } else { (3, 6, 20) };
    nested(out, 2, |out| {
        nested(out, choice, |out| {
            flag(out, 1, &parameter["required"]);
            text(out, 2, &parameter["in"]);
            text(out, 3, &parameter["description"]);
            text(out, 4, &parameter["name"]);
            text(out, type_number, &parameter["type"]);
            flag(out, unique_number, &parameter["uniqueItems"]);
        });
    });
}

fn schema(out: &mut Vec<u8>, value: &Value) {
    text(out, 1, &value["$ref"]);
    text(out, 2, &value["format"]);
    text(out, 4, &value["description"]);
    if let Some(default) = value.get("default") {
        nested(out, 5, |out| any(out, default));
    }
    for (number, name) in [(7_u32, "maximum"), (9, "minimum")] {
        if let Some(limit) = value.get(name).and_then(Value::as_f64) {
            varint(out, u64::from(number) << 3 | 1);
            out.extend_from_slice(&limit.to_le_bytes());
        }
    }
    for (number, name) in [(11, "maxLength"), (12, "minLength")] {
        integer(out, number, &value[name]);
    }
    text(out, 13, &value["pattern"]);
    for (number, name) in [(14, "maxItems"), (15, "minItems")] {
        integer(out, number, &value[name]);
    }
    flag(out, 16, &value["uniqueItems"]);
    for (number, name) in [(17, "maxProperties"), (18, "minProperties")] {
        integer(out, number, &value[name]);
    }
    texts(out, 19, &value["required"]);
    for choice in value["enum"].as_array().into_iter().flatten() {
        nested(out, 20, |out| any(out, choice));
    }
    match value.get("additionalProperties") {
        Some(Value::Bool(allowed)) => nested(out, 21, |out| flag(out, 2, &Value::Bool(*allowed))),
        Some(inner) => nested(out, 21, |out| nested(out, 1, |out| schema(out, inner))),
        None => {}
    }
    if let Some(Value::String(_)) = value.get("type") {
        nested(out, 22, |out| text(out, 1, &value["type"]));
    }
    if let Some(items) = value.get("items") {
        nested(out, 23, |out| nested(out, 1, |out| schema(out, items)));
    }
    for part in value["allOf"].as_array().into_iter().flatten() {
        nested(out, 24, |out| schema(out, part));
    }
    if value["properties"].is_object() {
        nested(out, 25, |out| named(out, 1, &value["properties"], schema));
    }
    extensions(out, 31, value);
}

/// `x-…` fields.
fn extensions(out: &mut Vec<u8>, number: u32, value: &Value) {
    let fields = value.as_object().into_iter().flatten();
    for (name, value) in fields.filter(|(name, _)| name.starts_with("x-")) {
        nested(out, number, |out| {
            bytes(out, 1, name.as_bytes());
            nested(out, 2, |out| any(out, value));
        });
    }
}

/// `Any` carries YAML, and JSON is YAML.
fn any(out: &mut Vec<u8>, value: &Value) {
    bytes(out, 2, value.to_string().as_bytes());
}

/// A map as a list of named values.
fn named(out: &mut Vec<u8>, number: u32, map: &Value, write: impl Fn(&mut Vec<u8>, &Value)) {
    let empty = Map::new();
    for (name, value) in map.as_object().unwrap_or(&empty) {
        nested(out, number, |out| {
            bytes(out, 1, name.as_bytes());
            nested(out, 2, |out| write(out, value));
        });
    }
}

fn text(out: &mut Vec<u8>, number: u32, value: &Value) {
    if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
        bytes(out, number, text.as_bytes());
    }
}

fn texts(out: &mut Vec<u8>, number: u32, values: &Value) {
    for value in values.as_array().into_iter().flatten() {
        bytes(out, number, value.as_str().unwrap_or_default().as_bytes());
    }
}

fn flag(out: &mut Vec<u8>, number: u32, value: &Value) {
    if value.as_bool() == Some(true) {
        varint(out, u64::from(number) << 3);
        varint(out, 1);
    }
}

fn integer(out: &mut Vec<u8>, number: u32, value: &Value) {
    if let Some(value) = value.as_i64() {
        varint(out, u64::from(number) << 3);
        varint(out, value as u64);
    }
}

fn bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    varint(out, u64::from(number) << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn nested(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    bytes(out, number, &inner);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
