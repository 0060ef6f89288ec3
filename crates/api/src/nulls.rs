//! Null among the values of a map or the elements of a list.
//!
//! Enter at [`fill`]. Go's decoder reads it as the zero of the value's type (`data: {key: }` of a ConfigMap is a key with
//! an empty value), where the typed structs that we decode to refuse it. A null in the place of a struct's field is
//! none of this: the structs take it for a field that is not there, as Go does.

use serde_json::{Map, Value};

use crate::schema::{Field, MessageId, Shape, Table, Type, table};

/// Puts zeros in the place of nulls; answers whether there were any.
pub fn fill(value: &mut Value, type_: MessageId) -> bool {
    fill_struct(table(), value, type_)
}

fn fill_struct(table: &Table, value: &mut Value, id: MessageId) -> bool {
    let Some(fields) = value.as_object_mut() else {
        return false;
    };
    let mut any = false;
    for (name, value) in fields {
        if let Some(field) = table.json_field(id, name) {
            any |= fill_field(table, value, field);
        }
    }
    any
}

fn fill_field(table: &Table, value: &mut Value, field: &Field) -> bool {
    let mut any = false;
    match (field.shape, value) {
        (Shape::Single, value) => any |= fill_below(table, value, field.type_),
        (Shape::Map, Value::Object(entries)) => {
            for value in entries.values_mut() {
                any |= fill_item(table, value, field.type_);
            }
        }
        (Shape::List, Value::Array(items)) => {
            for item in items {
                any |= fill_item(table, item, field.type_);
            }
        }
        _ => {}
    }
    any
}

fn fill_item(table: &Table, value: &mut Value, type_: Type) -> bool {
    if !value.is_null() {
        return fill_below(table, value, type_);
    }
    match zero(type_) {
        Some(zero) => {
            *value = zero;
            true
        }
        None => false,
    }
}

fn fill_below(table: &Table, value: &mut Value, type_: Type) -> bool {
    match type_ {
        Type::Message(id) => fill_struct(table, value, id),
        _ => false,
    }
}

/// `None`: the type has a null of its own, or no values that could stand in a list or map.
fn zero(type_: Type) -> Option<Value> {
    match type_ {
        Type::String | Type::Bytes => Some(Value::from("")),
        Type::Bool => Some(Value::from(false)),
        Type::Int32 | Type::Int64 | Type::Float64 | Type::IntOrString => Some(Value::from(0)),
        Type::Quantity => Some(Value::from("0")),
        Type::Strings => Some(Value::Array(Vec::new())),
        Type::Message(_) => Some(Value::Object(Map::new())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nulls_become_zeros() {
        let check = |kind: (&str, &str), mut value: Value, expect: Value| {
            let type_ = table().kind(kind.0, kind.1).expect("a known kind");
            let changed = value != expect;
            assert_eq!(fill(&mut value, type_), changed, "{value}");
            assert_eq!(value, expect);
        };
        check(
            ("v1", "ConfigMap"),
            json!({"metadata": {"labels": {"a": null}, "name": null}, "data": {"k": null, "l": "x"}}),
            json!({"metadata": {"labels": {"a": ""}, "name": null}, "data": {"k": "", "l": "x"}}),
        );
        check(
            ("v1", "Pod"),
            json!({"spec": {"containers": [null, {"command": [null], "args": null, "resources": {"limits": {"cpu": null}}}]}}),
            json!({"spec": {"containers": [{}, {"command": [""], "args": null, "resources": {"limits": {"cpu": "0"}}}]}}),
        );
        check(
            ("apps/v1", "ControllerRevision"),
            json!({"data": {"a": [null]}, "revision": null}),
            json!({"data": {"a": [null]}, "revision": null}),
        );
    }
}
