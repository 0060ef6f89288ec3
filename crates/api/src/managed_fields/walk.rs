//! Walks over typed values: comparison, field sets, merge and removal.

use std::borrow::Cow;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::set::{Element, ElementKind, FieldSet, Node};
use crate::schema::{Field, ListType, MessageId, Shape, Table, Type, table};

static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
static NULL: Value = Value::Null;

/// An object with nothing in it, which a new object is compared with.
pub(super) fn empty_object() -> &'static Value {
    &EMPTY
}

/// What is known of the type of a value, in the terms of structured merge.
#[derive(Clone, Copy, Debug)]
pub(super) enum Position {
    Struct(MessageId),
    /// A map with free keys, each an item of its own.
    Map(Type),
    /// A list whose elements are items of their own: by these keys, or by value where there are none.
    List(&'static [&'static str], Type),
    /// A scalar, or something that is owned and replaced as a whole.
    Leaf,
    /// Nothing is known: objects are maps, everything else is a leaf.
    Deduced,
    /// The root of an object of unknown type: only its metadata is known.
    DeducedRoot,
}

/// Why an apply configuration cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) String);

impl Position {
    pub(super) fn root(type_: Option<MessageId>) -> Self {
        type_.map_or(Self::DeducedRoot, Self::Struct)
    }

    fn of_type(table: &Table, type_: Type) -> Self {
        match type_ {
            Type::Message(id) if table.message(id).atomic => Self::Leaf,
            Type::Message(id) => Self::Struct(id),
            _ => Self::Leaf,
        }
    }

    fn of_field(table: &Table, field: &'static Field) -> Self {
        match field.shape {
            Shape::Single | Shape::Map if field.map_atomic => Self::Leaf,
            Shape::Single => Self::of_type(table, field.type_),
            Shape::Map => Self::Map(field.type_),
            Shape::List => match field.list_type {
                Some(ListType::Atomic) => Self::Leaf,
                Some(ListType::Set) => Self::List(&[], field.type_),
                Some(ListType::Map) => Self::List(&field.list_map_keys, field.type_),
                None if field.patch.merge && field.patch_merge_key.is_empty() => {
                    Self::List(&[], field.type_)
                }
                None if field.patch.merge => {
                    Self::List(std::slice::from_ref(&field.patch_merge_key), field.type_)
                }
                None => Self::Leaf,
            },
        }
    }

    pub(super) fn child(self, table: &'static Table, name: &str) -> Child {
        let free = |position| Child {
            position,
            named: false,
            implied: None,
        };
        match self {
            Self::Struct(id) => match table.json_field(id, name) {
                Some(field) => Child {
                    position: Self::of_field(table, field),
                    named: true,
                    implied: implied(table, id, field),
                },
                None => free(Self::Deduced),
            },
            Self::Map(type_) => free(Self::of_type(table, type_)),
            Self::DeducedRoot if name == "metadata" => {
                let metadata = table.type_in(crate::schema::META_GROUP_VERSION, "ObjectMeta");
                Child {
                    position: Self::root(metadata),
                    named: true,
                    implied: Some(Implied {
                        index: 0,
                        is_null: false,
                    }),
                }
            }
            Self::DeducedRoot => Child {
                position: Self::Deduced,
                named: matches!(name, "apiVersion" | "kind"),
                implied: None,
            },
            Self::Deduced | Self::List(..) | Self::Leaf => free(Self::Deduced),
        }
    }

    pub(super) fn item(self, table: &'static Table) -> Self {
        match self {
            Self::List(_, type_) => Self::of_type(table, type_),
            _ => Self::Deduced,
        }
    }

    fn is_map(self, value: Option<&Value>, other: Option<&Value>) -> bool {
        match self {
            Self::Struct(_) | Self::Map(_) | Self::DeducedRoot => true,
            Self::Deduced => [value, other].into_iter().flatten().all(Value::is_object),
            Self::List(..) | Self::Leaf => false,
        }
    }
}

pub(super) struct Child {
    pub(super) position: Position,
    /// A field of a struct, not a key of a map.
    pub(super) named: bool,
    /// Part of its parent wherever that is, written or not.
    pub(super) implied: Option<Implied>,
}

/// A field that Go's JSON has wherever it has the object.
#[derive(Clone, Copy)]
pub(super) struct Implied {
    /// The index among the implied fields of the parent.
    pub(super) index: usize,
    /// A list or map, null until it is written; else a struct, empty until it is.
    pub(super) is_null: bool,
}

impl Implied {
    fn value(self) -> &'static Value {
        if self.is_null { &NULL } else { empty_object() }
    }
}

fn implied(table: &'static Table, id: MessageId, field: &Field) -> Option<Implied> {
    if !field.is_implied() {
        return None;
    }
    let index = table
        .implied_fields(id)
        .position(|other| other.name == field.name)?;
    Some(Implied {
        index,
        is_null: field.shape != Shape::Single,
    })
}

/// What a write changed (or added), and what it removed.
#[derive(Debug, Default)]
pub(super) struct Comparison<'a> {
    pub(super) changed: FieldSet<'a>,
    pub(super) removed: FieldSet<'a>,
}

/// Compares two objects of one type.
pub(super) fn compare<'a>(old: &'a Value, new: &'a Value, root: Position) -> Comparison<'a> {
    let walker = Comparer { table: table() };
    let (mut changed, mut removed) = (Node::new(Element::field("")), Node::new(Element::field("")));
    walker.compare(Some(old), Some(new), root, &mut changed, &mut removed, 0);
    Comparison {
        changed: changed.children,
        removed: removed.children,
    }
}

struct Comparer {
    table: &'static Table,
}

impl Comparer {
    fn compare<'a>(
        &self,
        old: Option<&'a Value>,
        new: Option<&'a Value>,
        position: Position,
        changed: &mut Node<'a>,
        removed: &mut Node<'a>,
        depth: usize,
    ) {
        if depth == 1 && old == new {
            // Mostly spec in a write of status, and the other way round.
            return;
        }
        let leaf = if position.is_map(old, new) {
            let empty =
                |value: Option<&Value>| value.and_then(Value::as_object).is_none_or(Map::is_empty);
            let implies = match position {
                Position::Struct(id) => {
                    old.is_some() != new.is_some() && self.table.implied_fields(id).len() > 0
                }
                _ => false,
            };
            empty(old) && empty(new) && !implies
        } else if let Position::List(..) = position {
            let empty =
                |value: Option<&Value>| value.and_then(Value::as_array).is_none_or(Vec::is_empty);
            empty(old) && empty(new)
        } else {
            true
        };
        if leaf {
            match (old, new) {
                (None, Some(_)) => changed.member = true,
                (Some(_), None) => removed.member = true,
                (old, new) if old != new => changed.member = true,
                _ => {}
            }
            return;
        }
        if let Position::List(keys, _) = position {
            self.compare_items(old, new, keys, position, changed, removed, depth);
        } else {
            self.compare_fields(old, new, position, changed, removed, depth);
        }
        changed.member |= old.is_none();
        removed.member |= new.is_none();
    }

    fn compare_fields<'a>(
        &self,
        old: Option<&'a Value>,
        new: Option<&'a Value>,
        position: Position,
        changed: &mut Node<'a>,
        removed: &mut Node<'a>,
        depth: usize,
    ) {
        let (old_map, new_map) = (
            old.and_then(Value::as_object),
            new.and_then(Value::as_object),
        );
        let mut visit =
            |name: &'a str, old_child: Option<&'a Value>, new_child: Option<&'a Value>| {
                let child = position.child(self.table, name);
                let implied = |value: Option<&'a Value>, parent: Option<&Value>| match (
                    value.filter(|value| !value.is_null()),
                    child.implied,
                ) {
                    (None, Some(implied)) if parent.is_some() => Some(implied.value()),
                    (value, _) => value,
                };
                // Null says no more than absence.
                let (old_child, new_child) = (implied(old_child, old), implied(new_child, new));
                if old_child.is_none() && new_child.is_none() {
                    return;
                }
                let (mut changed_child, mut removed_child) = (
                    Node::new(Element::field(name)),
                    Node::new(Element::field(name)),
                );
                self.compare(
                    old_child,
                    new_child,
                    child.position,
                    &mut changed_child,
                    &mut removed_child,
                    depth + 1,
                );
                changed.children.push(changed_child);
                removed.children.push(removed_child);
            };
        for (name, new_child) in new_map.into_iter().flatten() {
            visit(name, old_map.and_then(|map| map.get(name)), Some(new_child));
        }
        for (name, old_child) in old_map.into_iter().flatten() {
            if new_map.is_none_or(|map| !map.contains_key(name)) {
                visit(name, Some(old_child), None);
            }
        }
        if let Position::Struct(id) = position
            && old.is_some() != new.is_some()
        {
            let here = old_map.or(new_map);
            for field in self.table.implied_fields(id) {
                if here.is_none_or(|map| !map.contains_key(field.name)) {
                    visit(field.name, None, None);
                }
            }
        }
        changed.children.sort();
        removed.children.sort();
    }

    #[expect(clippy::too_many_arguments, reason = "the walk's state, as in compare")]
    fn compare_items<'a>(
        &self,
        old: Option<&'a Value>,
        new: Option<&'a Value>,
        keys: &'static [&'static str],
        position: Position,
        changed: &mut Node<'a>,
        removed: &mut Node<'a>,
        depth: usize,
    ) {
        let item_position = position.item(self.table);
        let (old_items, new_items) = (
            self.index(old, keys, position),
            self.index(new, keys, position),
        );
        let mut visit = |element: &Element<'a>, old: &[&'a Value], new: &[&'a Value]| {
            let (mut changed_child, mut removed_child) =
                (Node::new(element.clone()), Node::new(element.clone()));
            match (old, new) {
                // More elements than one with the same key are owned as a whole.
                ([_, _, ..], [_, _, ..]) => changed_child.member = old != new,
                ([_, _, ..], _) => removed_child.member = true,
                (_, [_, _, ..]) => changed_child.member = true,
                (old, new) => {
                    self.compare(
                        old.first().copied(),
                        new.first().copied(),
                        item_position,
                        &mut changed_child,
                        &mut removed_child,
                        depth + 1,
                    );
                }
            }
            changed.children.push(changed_child);
            removed.children.push(removed_child);
        };
        for (element, new) in &new_items {
            visit(element, find(&old_items, element).unwrap_or_default(), new);
        }
        for (element, old) in &old_items {
            if find(&new_items, element).is_none() {
                visit(element, old, &[]);
            }
        }
        changed.children.sort();
        removed.children.sort();
    }

    /// The elements of a list by path element, in the order of the list; elements without keys are left out.
    fn index<'a>(
        &self,
        list: Option<&'a Value>,
        keys: &'static [&'static str],
        position: Position,
    ) -> Vec<(Element<'a>, Vec<&'a Value>)> {
        let mut indexed: Vec<(Element<'a>, Vec<&'a Value>)> = Vec::new();
        for item in list.and_then(Value::as_array).into_iter().flatten() {
            let Ok(element) = item_element(self.table, item, keys, position) else {
                continue;
            };
            match indexed.iter_mut().find(|(other, _)| *other == element) {
                Some((_, items)) => items.push(item),
                None => indexed.push((element, vec![item])),
            }
        }
        indexed
    }
}

fn find<'v, 'a>(
    items: &'v [(Element<'a>, Vec<&'a Value>)],
    element: &Element<'a>,
) -> Option<&'v [&'a Value]> {
    items
        .iter()
        .find(|(other, _)| other == element)
        .map(|(_, items)| items.as_slice())
}

/// The path element of a list element.
fn item_element<'a>(
    table: &'static Table,
    item: &'a Value,
    keys: &[&str],
    position: Position,
) -> Result<Element<'a>, Malformed> {
    if keys.is_empty() {
        return match item {
            Value::Object(_) => Err(Malformed(
                "associative list without keys has an element that's a map type".to_owned(),
            )),
            Value::Array(_) => Err(Malformed(
                "not supported: associative list with lists as elements".to_owned(),
            )),
            Value::Null => Err(Malformed(
                "associative list without keys has an element that's an explicit null".to_owned(),
            )),
            item => Ok(Element {
                kind: ElementKind::Value,
                text: Cow::Owned(item.to_string()),
            }),
        };
    }
    let Some(object) = item.as_object() else {
        let what = if item.is_null() {
            "a null element"
        } else {
            "non-map elements"
        };
        return Err(Malformed(format!(
            "associative list with keys may not have {what}"
        )));
    };
    let mut sorted: smallvec::SmallVec<[&str; 4]> = keys.into();
    sorted.sort_unstable();
    let mut text = String::with_capacity(32);
    text.push('{');
    for key in sorted {
        let written = object.get(key).filter(|value| !value.is_null());
        let default = || match position {
            Position::List(_, Type::Message(id)) => {
                table.json_field(id, key).and_then(|field| field.default)
            }
            _ => None,
        };
        if written.is_none() && default().is_none() {
            continue;
        }
        if text.len() > 1 {
            text.push(',');
        }
        text.push('"');
        text.push_str(key);
        text.push_str("\":");
        match written {
            Some(Value::String(value)) if is_plain(value) => {
                text.push('"');
                text.push_str(value);
                text.push('"');
            }
            Some(value) => text.push_str(&value.to_string()),
            None => text.push_str(default().unwrap_or_default()),
        }
    }
    if text.len() == 1 {
        return Err(Malformed(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
            keys.iter()
                .map(|key| format!("{key:?}"))
                .collect::<Vec<_>>()
                .join(" ")
        )));
    }
    text.push('}');
    Ok(Element {
        kind: ElementKind::Key,
        text: Cow::Owned(text),
    })
}

/// Whether JSON writes a string as it is.
fn is_plain(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\')
}

/// The fields that an apply configuration (or any object) states.
pub(super) fn field_set<'a>(
    value: &'a Value,
    position: Position,
) -> Result<FieldSet<'a>, Malformed> {
    let mut root = Node::new(Element::field(""));
    state_fields(table(), value, position, &mut root)?;
    Ok(root.children)
}

fn state_fields<'a>(
    table: &'static Table,
    value: &'a Value,
    position: Position,
    node: &mut Node<'a>,
) -> Result<(), Malformed> {
    match (position, value) {
        (position, Value::Object(fields)) if position.is_map(Some(value), None) => {
            for (name, value) in fields {
                let child = position.child(table, name);
                let mut child_node = Node::new(Element::field(name));
                state_fields(table, value, child.position, &mut child_node)?;
                let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                child_node.member |= is_empty || !child.named;
                node.children.push(child_node);
            }
        }
        (Position::Struct(_) | Position::Map(_) | Position::DeducedRoot, _) => {}
        (Position::List(keys, _), Value::Array(items)) => {
            let mut seen: Vec<Node<'a>> = Vec::with_capacity(items.len());
            for item in items {
                let element = item_element(table, item, keys, position)?;
                if let Some(duplicate) = seen.iter_mut().find(|node| node.element == element) {
                    duplicate.children = FieldSet::default();
                    continue;
                }
                let mut item_node = Node::new(element);
                item_node.member = true;
                state_fields(table, item, position.item(table), &mut item_node)?;
                seen.push(item_node);
            }
            seen.into_iter().for_each(|item| node.children.push(item));
        }
        (Position::List(..), _) => {}
        (Position::Leaf | Position::Deduced, _) => node.member = true,
    }
    node.children.sort();
    Ok(())
}

/// Refuses a field that its type does not have; free-form values are not looked into.
pub(super) fn check_declared(value: &Value, position: Position) -> Result<(), Malformed> {
    check_declared_below(table(), value, position, &mut String::new())
}

fn check_declared_below(
    table: &'static Table,
    value: &Value,
    position: Position,
    path: &mut String,
) -> Result<(), Malformed> {
    let length = path.len();
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                Element::field(name).print(path);
                if let Position::Struct(id) = position
                    && table.json_field(id, name).is_none()
                    && !(length == 0 && matches!(name.as_str(), "apiVersion" | "kind"))
                {
                    return Err(Malformed(format!("{path}: field not declared in schema")));
                }
                let child = position.child(table, name).position;
                if !matches!(child, Position::Leaf | Position::Deduced) {
                    check_declared_below(table, value, child, path)?;
                }
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            if let Position::List(keys, _) = position {
                for item in items {
                    item_element(table, item, keys, position)?.print(path);
                    check_declared_below(table, item, position.item(table), path)?;
                    path.truncate(length);
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// Merges what `config` states into `live`. Null in `config` clears.
pub(super) fn merge(live: Value, config: &Value, position: Position) -> Result<Value, Malformed> {
    let table = table();
    match (live, config) {
        (live, Value::Object(fields)) if position.is_map(Some(config), None) => {
            let mut live = match live {
                Value::Object(live) => live,
                _ => Map::new(),
            };
            for (name, value) in fields {
                if value.is_null() {
                    live.remove(name);
                    continue;
                }
                let old = live.remove(name).unwrap_or(Value::Null);
                live.insert(
                    name.clone(),
                    merge(old, value, position.child(table, name).position)?,
                );
            }
            Ok(Value::Object(live))
        }
        (Value::Array(live), Value::Array(items)) if matches!(position, Position::List(..)) => {
            merge_items(table, live, items, position).map(Value::Array)
        }
        (_, Value::Array(items)) if matches!(position, Position::List(..)) => {
            merge_items(table, Vec::new(), items, position).map(Value::Array)
        }
        (_, config) => Ok(config.clone()),
    }
}

/// Elements of both lists, each once. The order of `config` holds among its own, that of `live` among the rest,
/// and an element of `live` that `config` does not name stays behind its predecessor.
fn merge_items(
    table: &'static Table,
    live: Vec<Value>,
    config: &[Value],
    position: Position,
) -> Result<Vec<Value>, Malformed> {
    let Position::List(keys, _) = position else {
        return Ok(config.to_vec());
    };
    let owned = |element: Element<'_>| (element.kind, element.text.into_owned());
    let config_keys = config
        .iter()
        .map(|item| item_element(table, item, keys, position).map(owned))
        .collect::<Result<Vec<_>, _>>()?;
    for (index, key) in config_keys.iter().enumerate() {
        if config_keys[..index].contains(key) {
            let mut shown = String::new();
            Element {
                kind: key.0,
                text: Cow::Borrowed(&key.1),
            }
            .print(&mut shown);
            return Err(Malformed(format!("duplicate entries for key {shown}")));
        }
    }
    let live_keys: Vec<_> = live
        .iter()
        .map(|item| item_element(table, item, keys, position).ok().map(owned))
        .collect();
    let mut live: Vec<Option<Value>> = live.into_iter().map(Some).collect();
    // Elements of the live list that config names, and where they stand in it.
    let live_index = |key: &(ElementKind, String)| {
        live_keys
            .iter()
            .position(|other| other.as_ref() == Some(key))
    };
    let item_position = position.item(table);
    let mut merged = Vec::with_capacity(live.len().max(config.len()));
    let mut next_live = 0;
    for (item, key) in config.iter().zip(&config_keys) {
        let shared = live_index(key);
        if let Some(shared) = shared {
            // What stands before it in the live list and is not in config comes first.
            while next_live <= shared {
                let is_named = live_keys[next_live]
                    .as_ref()
                    .is_some_and(|key| config_keys.contains(key));
                if !is_named {
                    merged.extend(live[next_live].take());
                }
                next_live += 1;
            }
        }
        let duplicates = live_keys
            .iter()
            .filter(|other| other.as_ref() == Some(key))
            .count();
        let old = shared
            .and_then(|index| live[index].take())
            .filter(|_| duplicates == 1);
        merged.push(merge(old.unwrap_or(Value::Null), item, item_position)?);
    }
    for (index, slot) in live.into_iter().enumerate() {
        let is_named = live_keys[index]
            .as_ref()
            .is_some_and(|key| config_keys.contains(key));
        merged.extend(slot.filter(|_| !is_named));
    }
    Ok(merged)
}

/// Removes the members of a set from a value; nothing is left of what is emptied but an empty object or list.
pub(super) fn remove(value: &Value, set: &FieldSet<'_>, position: Position) -> Value {
    let table = table();
    match (position, value) {
        (position, Value::Object(fields)) if position.is_map(Some(value), None) => {
            let mut kept = Map::new();
            for (name, value) in fields {
                match set.get(&Element::field(name)) {
                    Some(node) if node.member => {}
                    Some(node) => {
                        kept.insert(
                            name.clone(),
                            remove(value, &node.children, position.child(table, name).position),
                        );
                    }
                    None => {
                        kept.insert(name.clone(), value.clone());
                    }
                }
            }
            Value::Object(kept)
        }
        (Position::List(keys, _), Value::Array(items)) => {
            let mut kept = Vec::with_capacity(items.len());
            for item in items {
                let node = item_element(table, item, keys, position)
                    .ok()
                    .and_then(|element| set.get(&element));
                match node {
                    Some(node) if node.member => {}
                    Some(node) => kept.push(remove(item, &node.children, position.item(table))),
                    None => kept.push(item.clone()),
                }
            }
            Value::Array(kept)
        }
        (_, value) => value.clone(),
    }
}

/// The set with every named struct field on the way to a member as a member too.
pub(super) fn with_named_fields<'a>(set: &FieldSet<'a>, position: Position) -> FieldSet<'a> {
    let table = table();
    let nodes = set.nodes.iter().map(|node| {
        let (child, named) = match node.element.kind {
            ElementKind::Field => {
                let child = position.child(table, &node.element.text);
                (child.position, child.named)
            }
            _ => (position.item(table), false),
        };
        Node {
            element: node.element.clone(),
            member: node.member || (named && !node.children.is_empty()),
            children: with_named_fields(&node.children, child),
        }
    });
    FieldSet {
        nodes: nodes.collect(),
    }
}
