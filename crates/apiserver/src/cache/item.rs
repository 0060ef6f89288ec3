//! One version of one object: its JSON encoding, shared by everyone who sends it, and a small
//! parsed head for whoever only has to choose.

use std::io::Write;

use api::encoded::metadata_offset;
use api::kind::{Object, Strategy};
use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What selecting, sorting and routing need of an object.
#[derive(Debug, Default)]
pub struct Head {
    /// Empty for cluster-scoped kinds.
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Selectable fields besides name and namespace.
    pub fields: Box<[(&'static str, Box<str>)]>,
    pub deleting: bool,
}

impl Head {
    pub fn of(strategy: &dyn Strategy, object: &dyn Object) -> Self {
        let meta = object.metadata();
        let text = |value: &Option<String>| value.as_deref().unwrap_or_default().into();
        Self {
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            uid: text(&meta.uid),
            labels: labels(meta),
            fields: strategy
                .selectable_fields(object)
                .into_iter()
                .map(|(name, value)| (name, value.into_boxed_str()))
                .collect(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    /// Adds the selectable fields that another form of the same object has.
    pub fn with_fields_of(mut self, other: Self) -> Self {
        let mut fields = self.fields.into_vec();
        fields.extend(
            other
                .fields
                .into_vec()
                .into_iter()
                .filter(|(name, _)| fields.iter().all(|(own, _)| own != name))
                .collect::<Vec<_>>(),
        );
        self.fields = fields.into();
        self
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(own, _)| **own == *key)
            .map(|(_, value)| &**value)
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(&self.namespace),
            _ => self
                .fields
                .iter()
                .find(|(own, _)| *own == name)
                .map(|(_, value)| &**value),
        }
    }
}

fn labels(meta: &ObjectMeta) -> Box<[(Box<str>, Box<str>)]> {
    meta.labels
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect()
}

/// One version of an object, as the cache holds it.
#[derive(Debug)]
pub struct Item {
    /// Complete, with `metadata.resourceVersion`.
    pub json: Bytes,
    /// The revision of this version, which is its resource version.
    pub revision: u64,
    pub head: std::sync::Arc<Head>,
}

impl Item {
    /// The value in the store: the encoding without its resource version, which is not known before it is written.
    pub fn stored_json(&self) -> Vec<u8> {
        without_resource_version(&self.json, self.revision).unwrap_or_else(|| self.json.to_vec())
    }

    /// The same content at another revision: what a deletion leaves.
    pub fn at_revision(&self, revision: u64) -> Self {
        Self {
            json: with_resource_version(&self.stored_json(), revision),
            revision,
            head: self.head.clone(),
        }
    }
}

/// Splices the resource version in; one copy, no parsing.
pub fn with_resource_version(stored: &[u8], revision: u64) -> Bytes {
    let Some(at) = metadata_offset(stored) else {
        return Bytes::copy_from_slice(stored);
    };
    let mut json = Vec::with_capacity(stored.len() + 42);
    json.extend_from_slice(&stored[..at]);
    let comma = if stored.get(at) == Some(&b'}') {
        ""
    } else {
        ","
    };
    write!(json, "\"resourceVersion\":\"{revision}\"{comma}").expect("a vector takes every write");
    json.extend_from_slice(&stored[at..]);
    json.into()
}

fn without_resource_version(json: &[u8], revision: u64) -> Option<Vec<u8>> {
    let at = metadata_offset(json)?;
    let spliced = format!("\"resourceVersion\":\"{revision}\"");
    let rest = json[at..].strip_prefix(spliced.as_bytes())?;
    let rest = rest.strip_prefix(b",").unwrap_or(rest);
    let mut stored = Vec::with_capacity(json.len());
    stored.extend_from_slice(&json[..at]);
    stored.extend_from_slice(rest);
    Some(stored)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn resource_versions_are_spliced_in_and_out() {
        for (stored, expect) in [
            (
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{}}"#,
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"42","name":"a"},"spec":{}}"#,
            ),
            (
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{}}"#,
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"42"}}"#,
            ),
            (
                r#"{"apiVersion":"v1","kind":"ConfigMap","data":{"metadata":"\"metadata\":{"},"metadata":{"name":"a"}}"#,
                r#"{"apiVersion":"v1","kind":"ConfigMap","data":{"metadata":"\"metadata\":{"},"metadata":{"resourceVersion":"42","name":"a"}}"#,
            ),
        ] {
            let json = with_resource_version(stored.as_bytes(), 42);
            assert_eq!(std::str::from_utf8(&json).unwrap(), expect);
            assert_eq!(
                without_resource_version(&json, 42).unwrap(),
                stored.as_bytes()
            );
        }
    }
}
