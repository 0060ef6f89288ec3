//! Strategic merge patch: a merge patch that knows which lists are keyed, by the type of the object.
//!
//! Directives: `$patch: replace|delete` in objects and list elements, `$retainKeys: [names]`,
//! `$deleteFromPrimitiveList/<field>: [values]`, `$setElementOrder/<field>: [keys]`.

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Field, MessageId, Shape, Type, table};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";

/// What is known of the value at hand.
#[derive(Clone, Copy)]
enum Shaped {
    Struct(MessageId),
    /// Keys are free, values have this type.
    MapOf(Type),
    Unknown,
}

/// How a field is merged.
#[derive(Clone, Copy)]
struct FieldMeta {
    merge: bool,
    replace: bool,
    merge_key: &'static str,
    inner: Shaped,
}

impl Shaped {
    fn of(type_: Type) -> Self {
        match type_ {
            Type::Message(id) => Self::Struct(id),
            _ => Self::Unknown,
        }
    }

    fn field(self, name: &str) -> FieldMeta {
        let field: Option<&'static Field> = match self {
            Self::Struct(id) => table().json_field(id, name),
            Self::MapOf(_) | Self::Unknown => None,
        };
        match (self, field) {
            (_, Some(field)) => FieldMeta {
                merge: field.patch.merge,
                replace: field.patch.replace,
                merge_key: field.patch_merge_key,
                inner: if field.shape == Shape::Map {
                    Self::MapOf(field.type_)
                } else {
                    Self::of(field.type_)
                },
            },
            (Self::MapOf(type_), None) => FieldMeta {
                merge: false,
                replace: false,
                merge_key: "",
                inner: Self::of(type_),
            },
            (_, None) => FieldMeta {
                merge: false,
                replace: false,
                merge_key: "",
                inner: Self::Unknown,
            },
        }
    }
}

/// Applies a strategic merge patch to an object of a built-in type.
pub fn strategic_merge_patch(
    object: Value,
    patch: Value,
    type_: MessageId,
) -> Result<Value, PatchError> {
    let (Value::Object(original), Value::Object(patch)) = (object, patch) else {
        return Err(PatchError::BadRequest("invalid JSON document".to_owned()));
    };
    merge_map(original, patch, Shaped::Struct(type_)).map(Value::Object)
}

fn merge_map(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    shaped: Shaped,
) -> Result<Map<String, Value>, PatchError> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Map::new()),
            _ => {
                let directive_text = shown(&directive);
                patch.insert(DIRECTIVE.to_owned(), directive);
                Err(PatchError::Internal(format!(
                    "unknown patch type: {directive_text} in map: {}",
                    shown(&Value::Object(patch))
                )))
            }
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, shaped)?;
    for (key, patch_value) in patch {
        let (name, is_delete_list) = match key.strip_prefix(DELETE_FROM_PRIMITIVES) {
            Some(name) => (name.to_owned(), true),
            None if key.starts_with(DELETE_FROM_PRIMITIVES.trim_end_matches('/')) => {
                return Err(PatchError::BadRequest(
                    "invalid patch format of primitive list".to_owned(),
                ));
            }
            None => (key, false),
        };
        if patch_value.is_null() {
            original.remove(&name);
            continue;
        }
        let old = original.remove(&name);
        let merged = match (old, patch_value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                let meta = shaped.field(&name);
                Some(Value::Object(if meta.replace {
                    new
                } else {
                    merge_map(old, new, meta.inner)?
                }))
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                let meta = shaped.field(&name);
                Some(Value::Array(if meta.merge || is_delete_list {
                    merge_list(old, new, meta, is_delete_list)?
                } else {
                    new
                }))
            }
            (old, _) if is_delete_list => old,
            (_, new) => without_nulls_and_directives(new),
        };
        if let Some(merged) = merged {
            original.insert(name, merged);
        }
    }
    Ok(original)
}

/// `$retainKeys`: clears what the directive does not list; everything else in the patch must be listed.
fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), PatchError> {
    let Some(retained) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || PatchError::BadRequest("invalid patch format of retainKeys".to_owned());
    let retained = retained.as_array().ok_or_else(bad)?;
    let is_retained = |name: &str| retained.iter().any(|key| key.as_str() == Some(name));
    let stray = patch.iter().any(|(name, value)| {
        !value.is_null()
            && !name.starts_with(DELETE_FROM_PRIMITIVES)
            && !name.starts_with(SET_ELEMENT_ORDER)
            && !is_retained(name)
    });
    if stray {
        return Err(bad());
    }
    original.retain(|name, _| is_retained(name));
    Ok(())
}

/// `$setElementOrder/<field>`: merges the field's list here, then orders it by the directive first, by the
/// original second.
fn set_element_orders(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    shaped: Shaped,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|key| key.starts_with(SET_ELEMENT_ORDER.trim_end_matches('/')))
        .cloned()
        .collect();
    for directive in directives {
        let bad =
            || PatchError::BadRequest("invalid patch format of setElementOrder list".to_owned());
        let name = directive.strip_prefix(SET_ELEMENT_ORDER).ok_or_else(bad)?;
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(bad());
        };
        if original.get(name).is_some_and(|list| !list.is_array())
            || patch.get(name).is_some_and(|list| !list.is_array())
        {
            let found = original
                .get(name)
                .filter(|list| !list.is_array())
                .or_else(|| patch.get(name))
                .map(shown)
                .unwrap_or_default();
            // A null in the patch removes the list, order or not.
            if patch.get(name).is_some_and(Value::is_null) {
                continue;
            }
            return Err(PatchError::Internal(format!(
                "expected a list for {name}, but received {found}"
            )));
        }
        let take = |map: &mut Map<String, Value>| match map.remove(name) {
            Some(Value::Array(items)) => Some(items),
            _ => None,
        };
        let meta = shaped.field(name);
        let (old, new) = (take(original), take(patch));
        validate_order(new.as_deref().unwrap_or_default(), &order, meta.merge_key)?;
        let server_order = old.clone().unwrap_or_default();
        let merged = match (old, new) {
            (Some(old), None) => old,
            (None, Some(new)) => match without_directives(Value::Array(new)) {
                Some(Value::Array(new)) => new,
                _ => continue,
            },
            (Some(old), Some(new)) if meta.merge => merge_list(old, new, meta, false)?,
            (Some(_), Some(new)) => new,
            (None, None) => continue,
        };
        let merged = ordered(merged, &order, &server_order, meta.merge_key)?;
        original.insert(name.to_owned(), Value::Array(merged));
    }
    Ok(())
}

/// The elements of the patch must appear in the order list, in the same relative order.
fn validate_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<(), PatchError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut left = order.iter();
    for item in patch.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        let key = key_of(item, merge_key)?;
        let mut found = false;
        for candidate in left.by_ref() {
            if key_of(candidate, merge_key)? == key {
                found = true;
                break;
            }
        }
        if !found {
            return Err(PatchError::Internal(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                shown(&Value::Array(patch.to_vec())),
                shown(&Value::Array(order.to_vec()))
            )));
        }
    }
    Ok(())
}

fn merge_list(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    meta: FieldMeta,
    is_delete_list: bool,
) -> Result<Vec<Value>, PatchError> {
    let Some(first) = original.iter().chain(&patch).next() else {
        return Ok(original);
    };
    if first.is_array() {
        return Err(PatchError::Unprocessable(
            "lists of lists are not supported".to_owned(),
        ));
    }
    let kind = std::mem::discriminant(first);
    let is_scalar = !first.is_object();
    if original
        .iter()
        .chain(&patch)
        .any(|item| std::mem::discriminant(item) != kind)
    {
        let lists = Value::Array(vec![Value::Array(original), Value::Array(patch)]);
        return Err(PatchError::Internal(format!(
            "list element types are not identical: {}",
            shown(&lists)
        )));
    }
    if is_scalar {
        if is_delete_list {
            original.retain(|item| !patch.contains(item));
            return Ok(original);
        }
        let mut merged: Vec<Value> = Vec::with_capacity(original.len() + patch.len());
        for item in original.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return ordered(merged, &patch, &original, "");
    }
    if meta.merge_key.is_empty() {
        return Err(PatchError::Internal(
            "cannot merge lists without merge key".to_owned(),
        ));
    }
    let mut additions = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(DIRECTIVE) {
            None => additions.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    let key = key_of(&item, meta.merge_key)?;
                    original.retain(|other| other.get(meta.merge_key) != Some(key));
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(PatchError::Internal(
                        "merging lists cannot yet be specified in the patch".to_owned(),
                    ));
                }
                _ => {
                    return Err(PatchError::Internal(format!(
                        "unknown patch type: {} in map: {}",
                        shown(directive),
                        shown(&item)
                    )));
                }
            },
        }
    }
    if replace {
        return Ok(additions);
    }
    let keys_only = |items: &[Value]| -> Vec<Value> {
        items
            .iter()
            .map(|item| {
                Value::Object(
                    item.get(meta.merge_key)
                        .map(|key| (meta.merge_key.to_owned(), key.clone()))
                        .into_iter()
                        .collect(),
                )
            })
            .collect()
    };
    let (server_order, patch_order) = (keys_only(&original), keys_only(&additions));
    for item in additions {
        let key = key_of(&item, meta.merge_key)?.clone();
        match original
            .iter_mut()
            .find(|other| other.get(meta.merge_key) == Some(&key))
        {
            Some(slot) => {
                let (Value::Object(old), Value::Object(new)) = (slot.take(), item) else {
                    continue;
                };
                *slot = Value::Object(merge_map(old, new, meta.inner)?);
            }
            None => original.push(item),
        }
    }
    ordered(original, &patch_order, &server_order, meta.merge_key)
}

/// Elements named by `patch_order` in that order, the others in the server's, merged so that the server's
/// relative order holds where both lists know an element.
fn ordered(
    merged: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: &str,
) -> Result<Vec<Value>, PatchError> {
    if !merge_key.is_empty() {
        merged
            .iter()
            .chain(patch_order)
            .chain(server_order)
            .try_for_each(|item| key_of(item, merge_key).map(drop))?;
    }
    let same = |left: &Value, right: &Value| {
        if merge_key.is_empty() {
            left == right
        } else {
            left.get(merge_key) == right.get(merge_key)
        }
    };
    let index = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item));
    let (mut ours, mut servers): (Vec<Value>, Vec<Value>) = merged
        .into_iter()
        .partition(|item| index(patch_order, item).is_some());
    ours.sort_by_key(|item| index(patch_order, item).unwrap_or(usize::MAX));
    servers.sort_by_key(|item| index(server_order, item).unwrap_or(usize::MAX));
    let mut result = Vec::with_capacity(ours.len() + servers.len());
    let (mut ours, mut servers) = (ours.into_iter().peekable(), servers.into_iter().peekable());
    loop {
        let server_first = match (servers.peek(), ours.peek()) {
            (None, None) => return Ok(result),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(server), Some(our)) => {
                match (index(server_order, server), index(server_order, our)) {
                    (Some(server), Some(our)) => server < our,
                    _ => false,
                }
            }
        };
        result.extend(if server_first {
            servers.next()
        } else {
            ours.next()
        });
    }
}

/// The merge key's value; the element itself where there is no key.
fn key_of<'a>(item: &'a Value, merge_key: &str) -> Result<&'a Value, PatchError> {
    if merge_key.is_empty() {
        return Ok(item);
    }
    item.get(merge_key).ok_or_else(|| {
        PatchError::Internal(format!(
            "map: {} does not contain declared merge key: {merge_key}",
            shown(item)
        ))
    })
}

/// A value that is new in the object: nulls in it mean nothing, directives are dropped.
fn without_nulls_and_directives(mut value: Value) -> Option<Value> {
    drop_nulls(&mut value);
    without_directives(value)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(object) if object.contains_key(DIRECTIVE) => None,
        Value::Object(object) => {
            let kept = object
                .into_iter()
                .filter_map(|(name, value)| without_directives(value).map(|value| (name, value)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(Value::Array(
            items.into_iter().filter_map(without_directives).collect(),
        )),
        value => Some(value),
    }
}

/// As Go's `%v` prints it: `map[a:1 b:[x y]]`.
pub fn shown(value: &Value) -> String {
    let joined = |parts: Vec<String>| parts.join(" ");
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", joined(items.iter().map(shown).collect())),
        Value::Object(object) => format!(
            "map[{}]",
            joined(
                object
                    .iter()
                    .map(|(name, value)| format!("{name}:{}", shown(value)))
                    .collect()
            )
        ),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(kind: (&str, &str), object: Value, patch: Value, expect: Result<Value, &str>) {
        let type_ = table().kind(kind.0, kind.1).expect("a known kind");
        let result =
            strategic_merge_patch(object, patch.clone(), type_).map_err(|error| error.to_string());
        assert_eq!(result, expect.map_err(str::to_owned), "{patch}");
    }

    const POD: (&str, &str) = ("v1", "Pod");
    const DEPLOYMENT: (&str, &str) = ("apps/v1", "Deployment");

    fn pod(containers: Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn keyed_lists_are_merged() {
        let two = || {
            pod(
                json!([{"name": "a", "image": "1", "env": [{"name": "x", "value": "1"}]}, {"name": "b", "image": "1"}]),
            )
        };
        check(
            POD,
            two(),
            pod(json!([{"name": "a", "image": "2"}])),
            Ok(pod(
                json!([{"name": "a", "image": "2", "env": [{"name": "x", "value": "1"}]}, {"name": "b", "image": "1"}]),
            )),
        );
        check(
            POD,
            two(),
            pod(json!([{"name": "c", "image": "3"}])),
            Ok(pod(json!([
            {"name": "c", "image": "3"}, {"name": "a", "image": "1", "env": [{"name": "x", "value": "1"}]}, {"name": "b", "image": "1"}]))),
        );
        check(
            POD,
            two(),
            pod(json!([{"name": "b", "$patch": "delete"}])),
            Ok(pod(
                json!([{"name": "a", "image": "1", "env": [{"name": "x", "value": "1"}]}]),
            )),
        );
        check(
            POD,
            two(),
            pod(json!([{"$patch": "replace"}, {"name": "z"}])),
            Ok(pod(json!([{"name": "z"}]))),
        );
        check(
            POD,
            two(),
            pod(
                json!([{"name": "a", "env": [{"name": "x", "value": null, "valueFrom": {"fieldRef": {"fieldPath": "p"}}}]}]),
            ),
            Ok(pod(json!([
            {"name": "a", "image": "1", "env": [{"name": "x", "valueFrom": {"fieldRef": {"fieldPath": "p"}}}]}, {"name": "b", "image": "1"}]))),
        );
    }

    #[test]
    fn elements_need_their_merge_key() {
        check(
            POD,
            pod(json!([{"name": "a"}])),
            pod(json!([{"image": "x"}])),
            Err("map: map[image:x] does not contain declared merge key: name"),
        );
        check(
            POD,
            pod(json!([{"name": "a"}])),
            pod(json!([{"name": "a", "$patch": "frob"}])),
            Err("unknown patch type: frob in map: map[$patch:frob name:a]"),
        );
        check(
            POD,
            pod(json!([{"name": "a"}])),
            pod(json!([[1]])),
            Err("list element types are not identical: [[map[name:a]] [[1]]]"),
        );
    }

    #[test]
    fn other_lists_are_replaced() {
        let args = |args: Value| pod(json!([{"name": "a", "args": args}]));
        check(
            POD,
            args(json!(["1", "2"])),
            args(json!(["3"])),
            Ok(args(json!(["3"]))),
        );
        check(
            POD,
            json!({"spec": {"tolerations": [{"key": "a"}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}]}}),
            Ok(json!({"spec": {"tolerations": [{"key": "b"}]}})),
        );
    }

    #[test]
    fn order_directives_order() {
        let list = |names: &[&str]| {
            names
                .iter()
                .map(|name| json!({"name": name}))
                .collect::<Vec<_>>()
        };
        let patch = json!({"spec": {"$setElementOrder/containers": list(&["b", "a", "c"]), "containers": list(&["c"])}});
        check(
            POD,
            pod(json!(list(&["x", "a", "b"]))),
            patch,
            Ok(pod(json!(list(&["x", "b", "a", "c"])))),
        );
        let patch = json!({"spec": {"$setElementOrder/containers": list(&["b", "a"])}});
        check(
            POD,
            pod(json!(list(&["a", "b"]))),
            patch,
            Ok(pod(json!(list(&["b", "a"])))),
        );
        let patch = json!({"spec": {"$setElementOrder/containers": list(&["a"]), "containers": list(&["b"])}});
        check(
            POD,
            pod(json!(list(&["a"]))),
            patch,
            Err(
                "The order in patch list:\n[map[name:b]]\n doesn't match $setElementOrder list:\n[map[name:a]]\n",
            ),
        );
        let patch = json!({"metadata": {"$setElementOrder/finalizers": 3}});
        check(
            POD,
            json!({"metadata": {}}),
            patch,
            Err("invalid patch format of setElementOrder list"),
        );
    }

    #[test]
    fn primitive_lists() {
        let finalizers = |items: Value| json!({"metadata": {"finalizers": items}});
        check(
            POD,
            finalizers(json!(["a", "b"])),
            finalizers(json!(["c", "a"])),
            Ok(finalizers(json!(["c", "a", "b"]))),
        );
        check(
            POD,
            finalizers(json!(["a", "b"])),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
            Ok(finalizers(json!(["b"]))),
        );
        check(
            POD,
            finalizers(json!(["a", "b"])),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["c", "b"], "finalizers": ["c"]}}),
            Ok(finalizers(json!(["c", "b"]))),
        );
    }

    #[test]
    fn retain_keys_clears_the_rest() {
        let strategy = |strategy: Value| json!({"spec": {"strategy": strategy}});
        check(
            DEPLOYMENT,
            strategy(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}})),
            strategy(json!({"$retainKeys": ["type"], "type": "Recreate"})),
            Ok(strategy(json!({"type": "Recreate"}))),
        );
        check(
            DEPLOYMENT,
            strategy(json!({})),
            strategy(json!({"$retainKeys": ["type"], "rollingUpdate": {}})),
            Err("invalid patch format of retainKeys"),
        );
    }

    #[test]
    fn maps_merge_and_directives_act() {
        let labels = |labels: Value| json!({"metadata": {"labels": labels}});
        check(
            POD,
            labels(json!({"a": "1", "b": "2"})),
            labels(json!({"a": null, "c": "3"})),
            Ok(labels(json!({"b": "2", "c": "3"}))),
        );
        check(
            POD,
            labels(json!({"a": "1"})),
            labels(json!({"$patch": "replace", "c": "3"})),
            Ok(labels(json!({"c": "3"}))),
        );
        check(
            POD,
            labels(json!({"a": "1"})),
            labels(json!({"$patch": "delete"})),
            Ok(labels(json!({}))),
        );
        check(
            POD,
            json!({"metadata": {}}),
            labels(json!({"a": null, "c": "3"})),
            Ok(labels(json!({"c": "3"}))),
        );
        check(
            POD,
            json!({"metadata": {}}),
            labels(json!({"$patch": "delete"})),
            Ok(json!({"metadata": {}})),
        );
        check(
            POD,
            labels(json!({"a": "1"})),
            labels(json!(null)),
            Ok(json!({"metadata": {}})),
        );
    }

    #[test]
    fn volumes_retain_their_source() {
        let volumes = |volumes: Value| json!({"spec": {"volumes": volumes}});
        check(
            POD,
            volumes(json!([{"name": "v", "emptyDir": {}}])),
            volumes(
                json!([{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]),
            ),
            Ok(volumes(json!([{"name": "v", "hostPath": {"path": "/x"}}]))),
        );
    }
}
