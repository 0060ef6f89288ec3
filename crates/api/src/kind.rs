//! What the API server must know of a kind, without knowing which kind it is.
//!
//! A [`Kind`] is a table entry: names, scope, subresources, and a [`Strategy`] that holds its
//! behaviour. Built-in kinds implement their strategy over the typed structs of k8s-openapi;
//! custom resources implement it over JSON values.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::error::{DecodeError, ErrorList};

/// One kind at one version, as discovery shows it.
#[derive(Clone)]
pub struct Kind {
    /// Empty for the core group.
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    pub kind: Cow<'static, str>,
    pub plural: Cow<'static, str>,
    pub singular: Cow<'static, str>,
    pub short_names: Vec<Cow<'static, str>>,
    pub categories: Vec<Cow<'static, str>>,
    pub namespaced: bool,
    /// What the main resource answers to; a virtual kind (TokenReview, …) has only `create`.
    pub verbs: &'static [Verb],
    pub subresources: Vec<Subresource>,
    /// The server's storage is shared by all versions (or groups: Event) with the same prefix, for example `pods`, `events`.
    pub storage_prefix: Cow<'static, str>,
    pub strategy: Arc<dyn Strategy>,
    /// What every request on the kind is warned of.
    pub deprecation: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

/// A path below an object. `kind` is the kind of its bodies (`Scale`, `Eviction`, `Binding`, `TokenRequest`, or the object's own for `status`).
#[derive(Clone, Debug)]
pub struct Subresource {
    pub name: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [Verb],
}

/// Which part of an object a write may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but status (for kinds with a status subresource).
    Main,
    /// Only status (and managed fields).
    Status,
    /// Another subresource that writes the object itself, for example `ephemeralcontainers`, `resize`, `finalize`.
    Other(&'static str),
}

/// One decoded object of some kind.
pub trait Object: Any + Send + Sync {
    fn metadata(&self) -> &ObjectMeta;
    fn metadata_mut(&mut self) -> &mut ObjectMeta;
    /// The JSON encoding with `apiVersion` and `kind`, null and empty fields left out as Go's `omitempty` does.
    fn to_json(&self) -> Vec<u8>;
    fn to_value(&self) -> Value;
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn clone_boxed(&self) -> Box<dyn Object>;
}

/// An unknown or duplicate field met while decoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    /// `unknown field "spec.foo"` or `duplicate field "spec.foo"`, as upstream words it.
    pub message: String,
}

pub struct Decoded {
    pub object: Box<dyn Object>,
    pub problems: Vec<FieldProblem>,
}

/// A column of `kubectl get`.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, …
    pub type_: &'static str,
    /// `name` for the name column, else empty.
    pub format: &'static str,
    pub description: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: i32,
}

/// The behaviour of a kind. All of it is pure; `now` and random values come in as arguments.
pub trait Strategy: Send + Sync {
    /// Decodes a JSON body, with the unknown and duplicate fields found (only if `strict`: finding them costs time).
    fn decode(&self, json: &[u8], strict: bool) -> Result<Decoded, DecodeError>;
    #[allow(
        clippy::wrong_self_convention,
        reason = "a strategy makes objects of its kind; it is no object itself"
    )]
    fn from_value(&self, value: Value) -> Result<Box<dyn Object>, DecodeError>;
    /// Fills in the defaults that upstream's defaulting of this version fills in. Idempotent.
    fn default(&self, object: &mut dyn Object);
    /// Before create: clears what the client may not set (status), sets `generation` where the kind has one. Runs before `default`.
    fn prepare_create(&self, object: &mut dyn Object);
    fn validate_create(&self, object: &dyn Object) -> ErrorList;
    /// Before update: carries over what this part may not change, and raises `generation` where the spec changed.
    fn prepare_update(&self, new: &mut dyn Object, old: &dyn Object, part: &Part);
    fn validate_update(&self, new: &dyn Object, old: &dyn Object, part: &Part) -> ErrorList;
    /// Warnings for the `Warning` response header (deprecated fields and the like).
    fn warnings(&self, _object: &dyn Object) -> Vec<String> {
        Vec::new()
    }
    /// May a PUT or an apply to a name that does not exist create the object?
    fn allows_create_on_update(&self) -> bool {
        false
    }
    /// Is the storage shared with a kind of another form (Event in its two groups)?
    ///
    /// Then a stored object may be in the other form: `decode` and `from_value` take both, and
    /// what they give encodes in this kind's own.
    fn shares_storage(&self) -> bool {
        false
    }
    /// May an update come without a resource version (the last write wins)?
    fn allows_unconditional_update(&self) -> bool {
        true
    }
    /// Grace period that a delete of this object gets when the request names none; `None`: deleted at once.
    fn default_grace_period_seconds(&self, _object: &dyn Object) -> Option<i64> {
        None
    }
    /// Fields that a field selector can name besides `metadata.name` and `metadata.namespace`, with their values.
    fn selectable_fields(&self, _object: &dyn Object) -> Vec<(&'static str, String)> {
        Vec::new()
    }
    /// Names accepted in a field selector, same order and length as [`Strategy::selectable_fields`] answers.
    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[]
    }
    fn columns(&self) -> &'static [Column];
    /// One cell a column. `now_seconds` is Unix time, for ages.
    fn cells(&self, object: &dyn Object, now_seconds: i64) -> Vec<Value>;
    /// `scale` as Kubernetes' autoscaling/v1 Scale, where the kind has that subresource.
    fn scale(&self, _object: &dyn Object) -> Option<Value> {
        None
    }
    fn set_scale_replicas(&self, _object: &mut dyn Object, _replicas: i32) {}
}
