//! Ownership after a create, update or patch.

use serde_json::Value;

use super::entries::{self, Entry, Identity, Operation};
use super::set::FieldSet;
use super::walk::{self, Position};
use super::{OLD_UPDATES_MANAGER, UPDATE_MANAGERS_MAX, Write};

/// Sets `metadata.managedFields` of `new`. `live` is the object before the write; `None` for a create.
///
/// An object that is not tracked (created before it had managed fields, or reset by a client that sent a single
/// empty entry) stays so until it is applied.
pub fn update(live: Option<&Value>, new: &mut Value, write: &Write<'_>) {
    let sent = take_managed_fields(new);
    let live_fields = live.and_then(managed_fields);
    let is_reset = sent.as_ref().is_some_and(entries::is_reset);
    let sent = sent.filter(|sent| {
        sent.as_array().is_some_and(|entries| !entries.is_empty()) && entries::parse(sent).is_some()
    });
    // Clients that know nothing of managed fields do not lose them.
    let before = if is_reset {
        None
    } else {
        sent.as_ref().or(live_fields)
    };
    let before_is_empty = before.and_then(Value::as_array).is_none_or(Vec::is_empty);
    if live.is_some() && before_is_empty {
        return;
    }
    let after = updated(live, new, before, write);
    if let Some(after) = after {
        set_managed_fields(new, after);
    } else if let Some(before) = before {
        set_managed_fields(new, before.clone());
    }
}

/// The entries after the write; `None` if they are the same as before.
fn updated(
    live: Option<&Value>,
    new: &Value,
    before: Option<&Value>,
    write: &Write<'_>,
) -> Option<Value> {
    let mut comparison = walk::compare(
        live.unwrap_or(walk::empty_object()),
        new,
        Position::root(write.type_),
    );
    comparison.changed.drop_fields(write.ignored_fields);
    comparison.removed.drop_fields(write.ignored_fields);
    let mut own = comparison.changed.clone();
    own.strip_metadata();
    if own.is_empty() && comparison.removed.is_empty() {
        return None;
    }
    let mut entries = before.and_then(entries::parse).unwrap_or_default();
    give_up(&mut entries, &comparison.changed, &comparison.removed, None);
    if !own.is_empty() {
        let identity = Identity {
            manager: write.manager,
            operation: Operation::Update,
            api_version: write.api_version,
            subresource: write.subresource,
        };
        // Upstream keeps no time of who scaled: its records pass through the Scale.
        let time = (write.subresource != "scale").then_some(write.now);
        take(&mut entries, identity, own, time);
    }
    cap_update_managers(&mut entries);
    Some(entries::to_value(entries))
}

/// Takes from every entry but `except` what was changed or removed.
pub(super) fn give_up<'a>(
    entries: &mut Vec<Entry<'a>>,
    changed: &FieldSet<'a>,
    removed: &FieldSet<'a>,
    except: Option<&Identity<'_>>,
) {
    for entry in entries.iter_mut() {
        if except.is_none_or(|except| !entry.identity.is(except)) {
            entry.fields = entry.fields.difference(changed).difference(removed);
        }
    }
    entries.retain(|entry| {
        !entry.fields.is_empty() || except.is_some_and(|except| entry.identity.is(except))
    });
}

/// Adds fields to the entry of an identity.
pub(super) fn take<'a>(
    entries: &mut Vec<Entry<'a>>,
    identity: Identity<'a>,
    fields: FieldSet<'a>,
    now: Option<&'a str>,
) {
    match entries
        .iter_mut()
        .find(|entry| entry.identity.is(&identity))
    {
        Some(entry) => {
            entry.fields = entry.fields.union(&fields);
            entry.time = now;
        }
        None => entries.push(Entry {
            identity,
            time: now,
            fields,
        }),
    }
}

/// Merges the oldest entries of updates, version by version, until there are few enough.
fn cap_update_managers(entries: &mut Vec<Entry<'_>>) {
    let mut count = entries
        .iter()
        .filter(|entry| entry.identity.operation == Operation::Update)
        .count();
    if count <= UPDATE_MANAGERS_MAX {
        return;
    }
    let mut order: Vec<usize> = (0..entries.len())
        .filter(|index| entries[*index].identity.operation == Operation::Update)
        .collect();
    order.sort_by(|a, b| {
        entries[*a].time.cmp(&entries[*b].time).then_with(|| {
            entries[*a]
                .identity
                .manager
                .cmp(entries[*b].identity.manager)
        })
    });
    // The first entry met of a version becomes its bucket when a second one comes.
    let mut buckets: Vec<usize> = Vec::new();
    let mut merged = vec![false; entries.len()];
    for index in order {
        if count <= UPDATE_MANAGERS_MAX {
            break;
        }
        let version = entries[index].identity.api_version;
        match buckets
            .iter()
            .find(|bucket| entries[**bucket].identity.api_version == version)
        {
            None => buckets.push(index),
            Some(&bucket) => {
                entries[bucket].fields = entries[bucket].fields.union(&entries[index].fields);
                entries[bucket].time = entries[index].time;
                entries[bucket].identity.manager = OLD_UPDATES_MANAGER;
                entries[bucket].identity.subresource = "";
                merged[index] = true;
                count -= 1;
            }
        }
    }
    let mut merged = merged.into_iter();
    entries.retain(|_| !merged.next().unwrap_or(false));
}

pub(super) fn managed_fields(object: &Value) -> Option<&Value> {
    object
        .get("metadata")?
        .get("managedFields")
        .filter(|fields| !fields.is_null())
}

pub(super) fn take_managed_fields(object: &mut Value) -> Option<Value> {
    object
        .get_mut("metadata")?
        .as_object_mut()?
        .remove("managedFields")
        .filter(|fields| !fields.is_null())
}

pub(super) fn set_managed_fields(object: &mut Value, managed_fields: Value) {
    let Some(object) = object.as_object_mut() else {
        return;
    };
    let metadata = object
        .entry("metadata")
        .or_insert_with(|| Value::Object(serde_json::Map::new()));
    if let Some(metadata) = metadata.as_object_mut()
        && managed_fields
            .as_array()
            .is_some_and(|entries| !entries.is_empty())
    {
        metadata.insert("managedFields".to_owned(), managed_fields);
    }
}
