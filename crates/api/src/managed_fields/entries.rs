//! `metadata.managedFields` as entries: who owns what, by which operation.

use serde_json::{Map, Value};

use super::set::FieldSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// What tells one manager's entry from another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity<'a> {
    pub(super) manager: &'a str,
    pub(super) operation: Operation,
    /// Not part of the identity of an applier.
    pub(super) api_version: &'a str,
    pub(super) subresource: &'a str,
}

#[derive(Clone, Debug)]
pub(super) struct Entry<'a> {
    pub(super) identity: Identity<'a>,
    pub(super) time: Option<&'a str>,
    pub(super) fields: FieldSet<'a>,
}

impl Identity<'_> {
    pub(super) fn is(&self, other: &Identity<'_>) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// As conflict messages name it: `"kubectl" with subresource "status" using apps/v1`.
    pub(super) fn print(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// Reads the entries; `None` if one of them is malformed.
pub(super) fn parse(managed_fields: &Value) -> Option<Vec<Entry<'_>>> {
    managed_fields
        .as_array()?
        .iter()
        .map(|entry| {
            let text = |name| entry.get(name).and_then(Value::as_str).unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            let fields = match entry.get("fieldsV1") {
                Some(Value::Null) | None => FieldSet::default(),
                Some(fields) => FieldSet::parse(fields)?,
            };
            let identity = Identity {
                manager: text("manager"),
                operation,
                api_version: text("apiVersion"),
                subresource: text("subresource"),
            };
            Some(Entry {
                identity,
                time: entry.get("time").and_then(Value::as_str),
                fields,
            })
        })
        .collect()
}

/// The one form in which a client asks to drop all ownership: a single empty entry.
pub(super) fn is_reset(managed_fields: &Value) -> bool {
    matches!(managed_fields.as_array().map(Vec::as_slice), Some([Value::Object(entry)]) if entry.values().all(|value| value.is_null() || value.as_str() == Some("")))
}

/// Writes the entries in upstream's order, without those that own nothing.
pub(super) fn to_value(mut entries: Vec<Entry<'_>>) -> Value {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| {
        let key = |entry: &Entry<'_>| (entry.identity.operation, entry.time.map(str::to_owned));
        key(a)
            .cmp(&key(b))
            .then_with(|| a.identity.manager.cmp(b.identity.manager))
            .then_with(|| a.identity.api_version.cmp(b.identity.api_version))
            .then_with(|| a.identity.subresource.cmp(b.identity.subresource))
    });
    let value = |entry: &Entry<'_>| {
        let mut object = Map::new();
        let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
        put("manager", Value::from(entry.identity.manager));
        put(
            "operation",
            Value::from(if entry.identity.operation == Operation::Apply {
                "Apply"
            } else {
                "Update"
            }),
        );
        put("apiVersion", Value::from(entry.identity.api_version));
        if let Some(time) = entry.time {
            put("time", Value::from(time));
        }
        put("fieldsType", Value::from("FieldsV1"));
        put("fieldsV1", entry.fields.to_value());
        if !entry.identity.subresource.is_empty() {
            put("subresource", Value::from(entry.identity.subresource));
        }
        Value::Object(object)
    };
    Value::Array(entries.iter().map(value).collect())
}
