//! Protobuf message -> JSON value.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::wire::{Reader, WireValue};
use super::{DEPTH_MAX, MAGIC, ProtobufError, VALUES_MAX, time, type_of, unwrap_envelope};
use crate::schema::{Field, META_GROUP_VERSION, MessageId, Shape, Table, Type, table};

pub(super) struct Decoder {
    table: &'static Table,
    values_left: usize,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            table: table(),
            values_left: VALUES_MAX,
        }
    }

    pub(super) fn kind(
        &mut self,
        api_version: &str,
        kind: &str,
        raw: &[u8],
        depth: usize,
    ) -> Result<Value, ProtobufError> {
        let id = type_of(api_version, kind)?;
        let mut object = Map::new();
        if self.table.message(id).has_type_meta {
            object.insert("apiVersion".to_owned(), Value::from(api_version));
            object.insert("kind".to_owned(), Value::from(kind));
        }
        self.message(id, raw, &mut object, depth)?;
        Ok(Value::Object(object))
    }

    /// Adds the fields of a message to `object`, then those that Go's JSON would show though they are not on the wire.
    fn message(
        &mut self,
        id: MessageId,
        raw: &[u8],
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        if depth > DEPTH_MAX {
            return Err(ProtobufError::TooDeep);
        }
        let fields = self.table.fields(id);
        // Bits of fields met; the table has no struct of more than 64 fields (a test says so).
        let mut met = 0_u64;
        let mut reader = Reader::new(raw);
        while let Some((number, value)) = reader.next_field()? {
            let Ok(index) = fields.binary_search_by_key(&number, |field| field.number) else {
                continue;
            };
            met |= 1 << index;
            let field = &fields[index];
            self.field(field, value, object, depth)
                .map_err(|error| match error {
                    ProtobufError::Malformed(problem) => self.named(id, field, problem),
                    error => error,
                })?;
        }
        for (index, field) in fields.iter().enumerate() {
            if met & (1 << index) == 0 && !object.contains_key(field.name) {
                self.absent(field, object, depth)?;
            }
        }
        Ok(())
    }

    fn named(&self, id: MessageId, field: &Field, problem: &str) -> ProtobufError {
        // The table is static, so are its names.
        let table: &'static Table = self.table;
        let field = table
            .fields(id)
            .iter()
            .find(|other| other.number == field.number)
            .map_or("", |field| field.name);
        ProtobufError::Field {
            message: table.message(id).name,
            field,
            problem: problem.to_owned(),
        }
    }

    fn field(
        &mut self,
        field: &Field,
        value: WireValue<'_>,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        match (field.shape, field.type_) {
            (Shape::Single, Type::Message(inner)) if field.inline => {
                self.message(inner, value.bytes()?, object, depth + 1)
            }
            (Shape::Single, Type::Message(inner)) => {
                // A message that comes in several pieces is merged.
                let mut nested = match object.remove(field.name) {
                    Some(Value::Object(nested)) => nested,
                    _ => Map::new(),
                };
                self.count()?;
                self.message(inner, value.bytes()?, &mut nested, depth + 1)?;
                object.insert(field.name.to_owned(), Value::Object(nested));
                Ok(())
            }
            (Shape::Single, type_) => {
                let value = self.value(type_, value, depth)?;
                let omitted =
                    (field.omit_empty && !field.pointer && is_empty_scalar(type_, &value))
                        || (field.omit_zero && value.is_null());
                if omitted {
                    object.remove(field.name);
                } else {
                    object.insert(field.name.to_owned(), value);
                }
                Ok(())
            }
            (Shape::List, type_) => {
                let items = entry(object, field.name, || Value::Array(Vec::new()));
                let Value::Array(items) = items else {
                    return Err(ProtobufError::Malformed(
                        "a list is mixed with something else",
                    ));
                };
                if let (WireValue::Bytes(bytes), Type::Int32 | Type::Int64 | Type::Bool) =
                    (value, type_)
                {
                    let mut packed = Reader::new(bytes);
                    while !packed.is_empty() {
                        let item = WireValue::Varint(packed.varint()?);
                        items.push(self.value(type_, item, depth)?);
                    }
                    return Ok(());
                }
                items.push(self.value(type_, value, depth)?);
                Ok(())
            }
            (Shape::Map, type_) => {
                let (mut key, mut content) = ("", None);
                let mut reader = Reader::new(value.bytes()?);
                while let Some((number, value)) = reader.next_field()? {
                    match number {
                        1 => key = value.text()?,
                        2 => content = Some(value),
                        _ => {}
                    }
                }
                let content = match content {
                    Some(content) => self.value(type_, content, depth)?,
                    None => self.zero(type_, depth)?,
                };
                let entries = entry(object, field.name, || Value::Object(Map::new()));
                let Value::Object(entries) = entries else {
                    return Err(ProtobufError::Malformed(
                        "a map is mixed with something else",
                    ));
                };
                entries.insert(key.to_owned(), content);
                Ok(())
            }
        }
    }

    /// A value by its type alone.
    fn value(
        &mut self,
        type_: Type,
        value: WireValue<'_>,
        depth: usize,
    ) -> Result<Value, ProtobufError> {
        self.count()?;
        Ok(match type_ {
            Type::String => Value::from(value.text()?),
            Type::Bool => Value::from(value.integer()? != 0),
            Type::Int32 => Value::from(value.integer()? as u32 as i32),
            Type::Int64 => Value::from(value.integer()? as i64),
            Type::Float64 => Value::from(value.float()?),
            Type::Bytes => Value::from(STANDARD.encode(value.bytes()?)),
            Type::Message(id) => {
                let mut object = Map::new();
                self.message(id, value.bytes()?, &mut object, depth + 1)?;
                Value::Object(object)
            }
            Type::Quantity => match self.single(value)? {
                Some(text) if !text.text()?.is_empty() => Value::from(text.text()?),
                _ => Value::from("0"),
            },
            Type::IntOrString => {
                let (mut is_string, mut integer, mut text) = (false, 0, "");
                let mut reader = Reader::new(value.bytes()?);
                while let Some((number, value)) = reader.next_field()? {
                    match number {
                        1 => is_string = value.integer()? == 1,
                        2 => integer = value.integer()? as u32 as i32,
                        3 => text = value.text()?,
                        _ => {}
                    }
                }
                if is_string {
                    Value::from(text)
                } else {
                    Value::from(integer)
                }
            }
            Type::Time | Type::MicroTime => {
                let (mut seconds, mut nanos) = (0, 0);
                let mut reader = Reader::new(value.bytes()?);
                while let Some((number, value)) = reader.next_field()? {
                    match number {
                        1 => seconds = value.integer()? as i64,
                        2 => nanos = value.integer()? as u32 as i32,
                        _ => {}
                    }
                }
                if seconds == 0 && nanos == 0 {
                    Value::Null
                } else {
                    let text = if type_ == Type::Time {
                        time::seconds_text(seconds)
                    } else {
                        time::micros_text(seconds, nanos)
                    };
                    Value::from(text.ok_or(ProtobufError::Malformed("a time is out of range"))?)
                }
            }
            Type::Raw | Type::Json | Type::Fields => match self.single(value)? {
                Some(raw) => self.embedded(raw.bytes()?, depth)?,
                None => Value::Null,
            },
            Type::Strings => {
                let mut items = Vec::new();
                let mut reader = Reader::new(value.bytes()?);
                while let Some((number, value)) = reader.next_field()? {
                    if number == 1 {
                        self.count()?;
                        items.push(Value::from(value.text()?));
                    }
                }
                Value::Array(items)
            }
            Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings => {
                self.schema_or(type_, value, depth)?
            }
            Type::Any => Value::Null,
        })
    }

    fn schema_or(
        &mut self,
        type_: Type,
        value: WireValue<'_>,
        depth: usize,
    ) -> Result<Value, ProtobufError> {
        let (mut allows, mut schema, mut items) = (false, None, Vec::new());
        let (schema_number, other_number) = if type_ == Type::SchemaOrBool {
            (2, 1)
        } else {
            (1, 2)
        };
        let schema_type = schema_type(self.table)?;
        let mut reader = Reader::new(value.bytes()?);
        while let Some((number, value)) = reader.next_field()? {
            if number == schema_number {
                schema = Some(self.value(schema_type, value, depth)?);
            } else if number == other_number {
                match type_ {
                    Type::SchemaOrBool => allows = value.integer()? != 0,
                    Type::SchemaOrArray => items.push(self.value(schema_type, value, depth)?),
                    _ => items.push(self.value(Type::String, value, depth)?),
                }
            }
        }
        Ok(match (type_, schema) {
            (Type::SchemaOrBool, Some(schema)) => schema,
            (Type::SchemaOrBool, None) => Value::from(allows),
            (_, Some(schema)) if items.is_empty() => schema,
            (_, None) if items.is_empty() => Value::Null,
            _ => Value::Array(items),
        })
    }

    /// Field 1 of a wrapper message.
    fn single<'a>(&self, value: WireValue<'a>) -> Result<Option<WireValue<'a>>, ProtobufError> {
        let mut found = None;
        let mut reader = Reader::new(value.bytes()?);
        while let Some((number, value)) = reader.next_field()? {
            if number == 1 {
                found = Some(value);
            }
        }
        Ok(found)
    }

    /// JSON, or another object in its own envelope.
    fn embedded(&mut self, raw: &[u8], depth: usize) -> Result<Value, ProtobufError> {
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        if raw.starts_with(MAGIC) {
            if depth > DEPTH_MAX {
                return Err(ProtobufError::TooDeep);
            }
            let envelope = unwrap_envelope(raw)?;
            return self.kind(envelope.api_version, envelope.kind, envelope.raw, depth + 1);
        }
        serde_json::from_slice(raw)
            .map_err(|_| ProtobufError::Malformed("embedded JSON is not valid"))
    }

    /// What Go's JSON shows for a field that was not on the wire.
    fn absent(
        &mut self,
        field: &Field,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        if let Type::Message(inner) = field.type_
            && field.inline
            && !field.pointer
        {
            return self.message(inner, &[], object, depth + 1);
        }
        if field.omit_zero || (field.omit_empty && !field.is_struct()) || field.name == "-" {
            return Ok(());
        }
        self.count()?;
        let value = if field.pointer || field.shape != Shape::Single {
            Value::Null
        } else {
            self.zero(field.type_, depth)?
        };
        object.insert(field.name.to_owned(), value);
        Ok(())
    }

    fn zero(&mut self, type_: Type, depth: usize) -> Result<Value, ProtobufError> {
        Ok(match type_ {
            Type::String => Value::from(""),
            Type::Bool | Type::SchemaOrBool => Value::from(false),
            Type::Int32 | Type::Int64 | Type::IntOrString => Value::from(0),
            Type::Float64 => Value::from(0.0),
            Type::Quantity => Value::from("0"),
            Type::Message(id) => {
                let mut object = Map::new();
                self.message(id, &[], &mut object, depth + 1)?;
                Value::Object(object)
            }
            _ => Value::Null,
        })
    }

    fn count(&mut self) -> Result<(), ProtobufError> {
        self.values_left = self
            .values_left
            .checked_sub(1)
            .ok_or(ProtobufError::TooLarge)?;
        Ok(())
    }
}

/// The type of the schemas in [`Type::SchemaOrArray`] and its like.
pub(super) fn schema_type(table: &Table) -> Result<Type, ProtobufError> {
    table
        .type_in("apiextensions.k8s.io/v1", "JSONSchemaProps")
        .or_else(|| table.type_in(META_GROUP_VERSION, "JSONSchemaProps"))
        .map(Type::Message)
        .ok_or(ProtobufError::Malformed("JSONSchemaProps has no encoding"))
}

fn entry<'a>(
    object: &'a mut Map<String, Value>,
    name: &str,
    empty: impl FnOnce() -> Value,
) -> &'a mut Value {
    if !object.contains_key(name) {
        object.insert(name.to_owned(), empty());
    }
    object
        .get_mut(name)
        .expect("it was inserted if it was not there")
}

fn is_empty_scalar(type_: Type, value: &Value) -> bool {
    match type_ {
        Type::String | Type::Bytes => value.as_str() == Some(""),
        Type::Bool => value == &Value::Bool(false),
        Type::Int32 | Type::Int64 => value.as_i64() == Some(0),
        Type::Float64 => value.as_f64() == Some(0.0),
        Type::Strings => value.as_array().is_some_and(Vec::is_empty),
        _ => false,
    }
}
