//! The adaptor that makes a [`Strategy`] of a k8s-openapi struct.
//!
//! A built-in kind implements [`ApiType`]; [`Typed`] does what all kinds share: decoding,
//! metadata rules of create and update, encoding. A further kind is one `impl ApiType` and one
//! line in [`crate::registry`].

use std::any::Any;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::columns;
use crate::decode;
use crate::error::{DecodeError, ErrorList};
use crate::kind::{Column, Decoded, Object, Part, Strategy};
use crate::metadata;
use crate::name::NameRule;
use crate::path::root;
use crate::schema::table;

/// What is particular to one built-in kind.
///
/// `part` tells which endpoint a write came through; hooks see objects whose metadata has
/// already been treated by [`Typed`].
pub trait ApiType:
    Resource
    + Metadata<Ty = ObjectMeta>
    + Serialize
    + DeserializeOwned
    + Clone
    + Send
    + Sync
    + Sized
    + 'static
{
    const NAME_RULE: NameRule = NameRule::Dns1123Subdomain;
    const NAMESPACED: bool;
    /// False for review kinds, which are answered and never stored.
    const STORED: bool = true;
    /// May an update come without a resource version (last write wins)?
    const UNCONDITIONAL_UPDATE: bool = true;
    const CREATE_ON_UPDATE: bool = false;
    /// Objects of another form lie in the same storage: [`ApiType::decode_foreign`] takes them.
    const SHARES_STORAGE: bool = false;
    const COLUMNS: &'static [Column] = columns::NAME_AND_CREATED;
    const SELECTABLE: &'static [&'static str] = &[];

    /// Decodes the other form of a kind that shares its storage; `None` if `api_version` is not that form's.
    fn decode_foreign(_api_version: &str, _json: &[u8]) -> Option<Result<Self, DecodeError>> {
        None
    }
    /// Checks what Go's decoder checks in types that k8s-openapi holds as text (quantities), and brings them to canonical form.
    fn finish_decode(&mut self) -> Result<(), DecodeError> {
        Ok(())
    }
    fn fill_defaults(&mut self) {}
    fn prepare_create(&mut self) {}
    fn validate(&self, errors: &mut ErrorList);
    fn prepare_update(&mut self, _old: &Self, _part: &Part) {}
    /// Everything but the metadata, which is checked already.
    fn validate_update(&self, old: &Self, part: &Part, errors: &mut ErrorList);
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    fn default_grace_period_seconds(&self) -> Option<i64> {
        None
    }
    fn selectable_values(&self) -> Vec<String> {
        Vec::new()
    }
    fn cells(&self, _now_seconds: i64) -> Vec<Value> {
        columns::name_and_created(Metadata::metadata(self))
    }
    fn scale(&self) -> Option<Value> {
        None
    }
    fn set_scale_replicas(&mut self, _replicas: i32) {}
}

/// The [`Strategy`] of a built-in kind.
pub struct Typed<K>(PhantomData<fn() -> K>);

impl<K> Typed<K> {
    pub const fn new() -> Self {
        Typed(PhantomData)
    }
}

impl<K> Default for Typed<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: ApiType> Object for K {
    fn metadata(&self) -> &ObjectMeta {
        Metadata::metadata(self)
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        Metadata::metadata_mut(self)
    }
    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("structs with string keys always encode")
    }
    fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("structs with string keys always encode")
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn clone_boxed(&self) -> Box<dyn Object> {
        Box::new(self.clone())
    }
}

fn typed<K: ApiType>(object: &dyn Object) -> &K {
    object
        .as_any()
        .downcast_ref()
        .expect("a strategy is only handed objects that it decoded")
}

fn typed_mut<K: ApiType>(object: &mut dyn Object) -> &mut K {
    object
        .as_any_mut()
        .downcast_mut()
        .expect("a strategy is only handed objects that it decoded")
}

/// A body in which zeros stand for the nulls that our structs refuse; `None` if there are none.
fn without_nulls<K: ApiType>(json: &[u8]) -> Option<Vec<u8>> {
    let mut value = serde_json::from_slice(json).ok()?;
    let type_ = table().kind(K::API_VERSION, K::KIND)?;
    crate::nulls::fill(&mut value, type_).then(|| value.to_string().into_bytes())
}

impl<K: ApiType> Strategy for Typed<K> {
    fn decode(&self, json: &[u8], strict: bool) -> Result<Decoded, DecodeError> {
        if K::SHARES_STORAGE
            && let Some(api_version) = decode::api_version(json)
            && let Some(object) = K::decode_foreign(&api_version, json)
        {
            let mut object = object?;
            object.finish_decode()?;
            return Ok(Decoded {
                object: Box::new(object),
                problems: Vec::new(),
            });
        }
        let (mut object, problems) = match decode::decode::<K>(json, strict) {
            Err(error) => match without_nulls::<K>(json) {
                Some(json) => decode::decode::<K>(&json, strict)?,
                None => return Err(error),
            },
            decoded => decoded?,
        };
        object.finish_decode()?;
        Ok(Decoded {
            object: Box::new(object),
            problems,
        })
    }

    fn from_value(&self, value: Value) -> Result<Box<dyn Object>, DecodeError> {
        if K::SHARES_STORAGE
            && value
                .get("apiVersion")
                .is_some_and(|version| version != K::API_VERSION)
        {
            return Ok(self.decode(value.to_string().as_bytes(), false)?.object);
        }
        let mut value = value;
        if let Some(type_) = table().kind(K::API_VERSION, K::KIND) {
            crate::nulls::fill(&mut value, type_);
        }
        let mut object: K = decode::from_value(value)?;
        object.finish_decode()?;
        Ok(Box::new(object))
    }

    fn default(&self, object: &mut dyn Object) {
        typed_mut::<K>(object).fill_defaults();
    }

    fn prepare_create(&self, object: &mut dyn Object) {
        let object = typed_mut::<K>(object);
        let meta = Metadata::metadata_mut(object);
        meta.deletion_timestamp = None;
        meta.deletion_grace_period_seconds = None;
        meta.self_link = None;
        meta.generation = None;
        object.prepare_create();
    }

    fn validate_create(&self, object: &dyn Object) -> ErrorList {
        let object = typed::<K>(object);
        let mut errors = ErrorList::new();
        if K::STORED {
            metadata::validate(
                Metadata::metadata(object),
                K::NAMESPACED,
                K::NAME_RULE,
                &root("metadata"),
                &mut errors,
            );
        }
        object.validate(&mut errors);
        errors
    }

    fn prepare_update(&self, new: &mut dyn Object, old: &dyn Object, part: &Part) {
        let (new, old) = (typed_mut::<K>(new), typed::<K>(old));
        let (meta, old_meta) = (Metadata::metadata_mut(new), Metadata::metadata(old));
        meta.generation = old_meta.generation;
        meta.self_link = None;
        meta.creation_timestamp
            .clone_from(&old_meta.creation_timestamp);
        if meta.uid.as_deref().unwrap_or("").is_empty() {
            meta.uid.clone_from(&old_meta.uid);
        }
        // An update can neither remove nor shift a deletion.
        if old_meta.deletion_timestamp.is_some() {
            meta.deletion_timestamp
                .clone_from(&old_meta.deletion_timestamp);
        }
        if old_meta.deletion_grace_period_seconds.is_some()
            && meta.deletion_grace_period_seconds.is_none()
        {
            meta.deletion_grace_period_seconds = old_meta.deletion_grace_period_seconds;
        }
        // Clients leave defaults out; without them everything would look changed.
        new.fill_defaults();
        new.prepare_update(old, part);
    }

    fn validate_update(&self, new: &dyn Object, old: &dyn Object, part: &Part) -> ErrorList {
        let (new, old) = (typed::<K>(new), typed::<K>(old));
        let mut errors = ErrorList::new();
        metadata::validate_update(
            Metadata::metadata(new),
            Metadata::metadata(old),
            K::UNCONDITIONAL_UPDATE,
            &root("metadata"),
            &mut errors,
        );
        new.validate_update(old, part, &mut errors);
        errors
    }

    fn warnings(&self, object: &dyn Object) -> Vec<String> {
        typed::<K>(object).warnings()
    }

    fn allows_create_on_update(&self) -> bool {
        K::CREATE_ON_UPDATE
    }

    fn shares_storage(&self) -> bool {
        K::SHARES_STORAGE
    }

    fn allows_unconditional_update(&self) -> bool {
        K::UNCONDITIONAL_UPDATE
    }

    fn default_grace_period_seconds(&self, object: &dyn Object) -> Option<i64> {
        typed::<K>(object).default_grace_period_seconds()
    }

    fn selectable_fields(&self, object: &dyn Object) -> Vec<(&'static str, String)> {
        K::SELECTABLE
            .iter()
            .copied()
            .zip(typed::<K>(object).selectable_values())
            .collect()
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        K::SELECTABLE
    }

    fn columns(&self) -> &'static [Column] {
        K::COLUMNS
    }

    fn cells(&self, object: &dyn Object, now_seconds: i64) -> Vec<Value> {
        typed::<K>(object).cells(now_seconds)
    }

    fn scale(&self, object: &dyn Object) -> Option<Value> {
        typed::<K>(object).scale()
    }

    fn set_scale_replicas(&self, object: &mut dyn Object, replicas: i32) {
        typed_mut::<K>(object).set_scale_replicas(replicas);
    }
}
