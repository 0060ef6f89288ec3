//! JSON value -> protobuf message, byte for byte as upstream writes it: fields in ascending order, zero values
//! of fields that Go does not hold by pointer included, map entries sorted by key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::decode::schema_type;
use super::wire::{nested, put_bytes, put_float, put_integer};
use super::{DEPTH_MAX, ProtobufError, time};
use crate::schema::{Field, MessageId, Shape, Type, table};

/// Appends the fields of a message. `object` may be null: the zero value.
pub(super) fn message(
    id: MessageId,
    object: &Value,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::TooDeep);
    }
    for field in table().fields(id) {
        if field.number == 0 {
            continue;
        }
        let value = if field.inline {
            Some(object)
        } else {
            object.get(field.name).filter(|value| !value.is_null())
        };
        write_field(field, value, out, depth).map_err(|error| match error {
            ProtobufError::Malformed(problem) => ProtobufError::Field {
                message: table().message(id).name,
                field: field.name,
                problem: problem.to_owned(),
            },
            error => error,
        })?;
    }
    Ok(())
}

fn write_field(
    field: &'static Field,
    value: Option<&Value>,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), ProtobufError> {
    match field.shape {
        Shape::Single => match value {
            Some(value) => write_value(field.number, field.type_, value, out, depth),
            None if field.pointer => Ok(()),
            None => write_zero(field.number, field.type_, out, depth),
        },
        Shape::List => {
            let Some(value) = value else { return Ok(()) };
            let items = value
                .as_array()
                .ok_or(ProtobufError::Malformed("expected a list"))?;
            items
                .iter()
                .try_for_each(|item| write_value(field.number, field.type_, item, out, depth))
        }
        Shape::Map => {
            let Some(value) = value else { return Ok(()) };
            let entries = value
                .as_object()
                .ok_or(ProtobufError::Malformed("expected a map"))?;
            entries.iter().try_for_each(|(key, value)| {
                nested(out, field.number, |out| {
                    put_bytes(out, 1, key.as_bytes());
                    write_value(2, field.type_, value, out, depth)
                })
            })
        }
    }
}

fn write_value(
    number: u32,
    type_: Type,
    value: &Value,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if value.is_null() && !matches!(type_, Type::Raw | Type::Json | Type::Fields) {
        return write_zero(number, type_, out, depth);
    }
    match type_ {
        Type::String => put_bytes(out, number, text(value)?.as_bytes()),
        Type::Bool => put_integer(
            out,
            number,
            u64::from(
                value
                    .as_bool()
                    .ok_or(ProtobufError::Malformed("expected a boolean"))?,
            ),
        ),
        Type::Int32 | Type::Int64 => {
            let integer = integer(value)?;
            if type_ == Type::Int32 && i32::try_from(integer).is_err() {
                return Err(ProtobufError::Malformed("expected a 32-bit integer"));
            }
            put_integer(out, number, integer as u64);
        }
        Type::Float64 => put_float(
            out,
            number,
            value
                .as_f64()
                .ok_or(ProtobufError::Malformed("expected a number"))?,
        ),
        Type::Bytes => {
            let bytes = STANDARD
                .decode(text(value)?)
                .map_err(|_| ProtobufError::Malformed("expected base64"))?;
            put_bytes(out, number, &bytes);
        }
        Type::Message(id) => {
            if !value.is_object() {
                return Err(ProtobufError::Malformed("expected an object"));
            }
            nested(out, number, |out| message(id, value, out, depth + 1))?;
        }
        Type::Quantity => {
            let number_text;
            let quantity = match value {
                Value::String(text) => text.as_str(),
                Value::Number(value) => {
                    number_text = value.to_string();
                    &number_text
                }
                _ => return Err(ProtobufError::Malformed("expected a quantity")),
            };
            nested(out, number, |out| {
                put_bytes(out, 1, quantity.as_bytes());
                Ok(())
            })?;
        }
        Type::IntOrString => {
            let (is_string, integer, text) = match value {
                Value::String(text) => (1, 0, text.as_str()),
                value => (0, integer(value)?, ""),
            };
            nested(out, number, |out| {
                put_integer(out, 1, is_string);
                put_integer(out, 2, integer as u64);
                put_bytes(out, 3, text.as_bytes());
                Ok(())
            })?;
        }
        Type::Time | Type::MicroTime => {
            let (seconds, nanos) = time::parse(text(value)?)
                .ok_or(ProtobufError::Malformed("expected an RFC 3339 time"))?;
            let nanos = if type_ == Type::Time {
                0
            } else {
                nanos / 1000 * 1000
            };
            nested(out, number, |out| {
                put_integer(out, 1, seconds as u64);
                put_integer(out, 2, nanos as u64);
                Ok(())
            })?;
        }
        Type::Raw | Type::Json | Type::Fields => nested(out, number, |out| {
            if !value.is_null() {
                put_bytes(out, 1, value.to_string().as_bytes());
            }
            Ok(())
        })?,
        Type::Strings => {
            let items = value
                .as_array()
                .ok_or(ProtobufError::Malformed("expected a list"))?;
            nested(out, number, |out| {
                items.iter().try_for_each(|item| {
                    put_bytes(out, 1, text(item)?.as_bytes());
                    Ok(())
                })
            })?;
        }
        Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings => {
            let schema = schema_type(table())?;
            nested(out, number, |out| match (type_, value) {
                (Type::SchemaOrBool, Value::Bool(allows)) => {
                    put_integer(out, 1, u64::from(*allows));
                    Ok(())
                }
                (Type::SchemaOrBool, value) => {
                    put_integer(out, 1, 1);
                    write_value(2, schema, value, out, depth)
                }
                (Type::SchemaOrArray, Value::Array(items)) => items
                    .iter()
                    .try_for_each(|item| write_value(2, schema, item, out, depth)),
                (_, Value::Array(items)) => items
                    .iter()
                    .try_for_each(|item| write_value(2, Type::String, item, out, depth)),
                (_, value) => write_value(1, schema, value, out, depth),
            })?;
        }
        Type::Any => {}
    }
    Ok(())
}

fn write_zero(
    number: u32,
    type_: Type,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), ProtobufError> {
    match type_ {
        Type::String => put_bytes(out, number, b""),
        Type::Bool | Type::Int32 | Type::Int64 => put_integer(out, number, 0),
        Type::Float64 => put_float(out, number, 0.0),
        Type::Message(id) => nested(out, number, |out| message(id, &Value::Null, out, depth + 1))?,
        Type::Quantity => nested(out, number, |out| {
            put_bytes(out, 1, b"0");
            Ok(())
        })?,
        Type::IntOrString => write_value(number, type_, &Value::from(0), out, depth)?,
        Type::Time | Type::MicroTime | Type::Raw | Type::Json | Type::Fields => {
            put_bytes(out, number, b"")
        }
        Type::Bytes
        | Type::Strings
        | Type::SchemaOrArray
        | Type::SchemaOrBool
        | Type::SchemaOrStrings
        | Type::Any => {}
    }
    Ok(())
}

fn text(value: &Value) -> Result<&str, ProtobufError> {
    value
        .as_str()
        .ok_or(ProtobufError::Malformed("expected a string"))
}

fn integer(value: &Value) -> Result<i64, ProtobufError> {
    // Integers may be written as 1.0 or 1e3 in JSON.
    let float = || {
        value
            .as_f64()
            .filter(|float| float.fract() == 0.0 && float.abs() < 9e15)
            .map(|float| float as i64)
    };
    value
        .as_i64()
        .or_else(float)
        .ok_or(ProtobufError::Malformed("expected an integer"))
}
