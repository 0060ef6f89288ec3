//! Ownership of a new object, straight from its bytes: one pass over the JSON writes the field set, and no value is built.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value;

use super::Write;
use super::walk::Position;
use crate::encoded::metadata_offset;
use crate::schema::{Table, table};

/// The JSON text of `metadata.managedFields` (a list with one entry) of an object that `write` creates.
///
/// `None` where nothing is owned, and where the object is out of the ordinary (list elements without their keys or
/// with the same ones): then [`super::update`] knows what to do. `json` is the object after defaulting; it may be the
/// final one, with what the server sets, if `write.ignored_fields` names `status`.
pub fn created(json: &[u8], write: &Write<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"[{\"apiVersion\":");
    put_string(&mut out, write.api_version);
    out.extend_from_slice(b",\"fieldsType\":\"FieldsV1\",\"fieldsV1\":");
    let emit = Emit {
        table: table(),
        position: Position::root(write.type_),
        place: Place::Root(write.ignored_fields),
        before: Before::Empty,
        keys: &[],
        key_values: None,
        out: &mut out,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    if !emit.deserialize(&mut deserializer).ok()? {
        return None;
    }
    out.extend_from_slice(b",\"manager\":");
    put_string(&mut out, write.manager);
    out.extend_from_slice(b",\"operation\":\"Update\"");
    if !write.subresource.is_empty() {
        out.extend_from_slice(b",\"subresource\":");
        put_string(&mut out, write.subresource);
    }
    out.extend_from_slice(b",\"time\":");
    put_string(&mut out, write.now);
    out.extend_from_slice(b"}]");
    Some(out)
}

/// What an object that is encoded with an empty list of managed fields has in their place.
const PLACE: &[u8] = b"\"managedFields\":[]";

/// Puts managed fields into the JSON text of an object that was encoded with an empty list of them. False (and
/// nothing done) if it has no such list.
///
/// What stands before the list in an object's metadata are strings and lists and maps of them, which cannot read like
/// it: in a string a quotation mark is escaped.
pub fn fill_managed_fields(json: &mut Vec<u8>, managed_fields: &[u8]) -> bool {
    let place = metadata_offset(json).and_then(|from| {
        let at = json[from..]
            .windows(PLACE.len())
            .position(|window| window == PLACE)?;
        Some(from + at + PLACE.len())
    });
    let Some(end) = place else {
        return false;
    };
    json.splice(end - b"[]".len()..end, managed_fields.iter().copied());
    true
}

/// Where in the object a value stands, as far as some of its fields are not owned.
#[derive(Clone, Copy)]
enum Place<'i> {
    Root(&'i [&'i str]),
    Metadata,
    Below,
}

/// What was there before the write, as far as Go's JSON would have shown it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Absent,
    /// A list or map that its parent always shows.
    Null,
    /// A struct that its parent holds by value.
    Empty,
}

/// Writes the field set of the value that it deserializes. Answers whether it wrote anything.
struct Emit<'o, 'i> {
    table: &'static Table,
    position: Position,
    place: Place<'i>,
    before: Before,
    /// Fields of this object whose values are wanted in `key_values`.
    keys: &'static [&'static str],
    key_values: Option<&'o mut [Option<Value>]>,
    out: &'o mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Emit<'_, '_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Emit<'_, '_> {
    fn leaf(self) -> bool {
        self.out.extend_from_slice(b"{}");
        true
    }
}

impl<'de> Visitor<'de> for Emit<'_, '_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_bool<E>(self, _: bool) -> Result<bool, E> {
        Ok(self.leaf())
    }

    fn visit_i64<E>(self, _: i64) -> Result<bool, E> {
        Ok(self.leaf())
    }

    fn visit_u64<E>(self, _: u64) -> Result<bool, E> {
        Ok(self.leaf())
    }

    fn visit_f64<E>(self, _: f64) -> Result<bool, E> {
        Ok(self.leaf())
    }

    fn visit_str<E>(self, _: &str) -> Result<bool, E> {
        Ok(self.leaf())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<bool, A::Error> {
        if matches!(self.position, Position::Leaf | Position::List(..)) {
            let mut is_empty = true;
            while let Some(name) = map.next_key_seed(Name)? {
                is_empty = false;
                let key_index = self.keys.iter().position(|key| *key == name);
                if let (Some(index), Some(values)) = (key_index, self.key_values.as_deref_mut()) {
                    values[index] = map.next_value::<Option<Value>>()?;
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            return Ok(!(self.before == Before::Empty && is_empty) && self.leaf());
        }
        let start = self.open();
        let mut implied_seen = 0_u64;
        let mut order = Order::default();
        while let Some(name) = map.next_key_seed(Name)? {
            let skipped = match self.place {
                Place::Root(ignored) => {
                    matches!(name.as_ref(), "apiVersion" | "kind")
                        || ignored.contains(&name.as_ref())
                }
                Place::Metadata => matches!(
                    name.as_ref(),
                    "name"
                        | "namespace"
                        | "uid"
                        | "creationTimestamp"
                        | "resourceVersion"
                        | "generation"
                        | "selfLink"
                        | "managedFields"
                        | "clusterName"
                ),
                Place::Below => false,
            };
            if skipped {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let child = self.position.child(self.table, &name);
            if let Some(implied) = child.implied {
                implied_seen |= 1 << implied.index;
            }
            let before = self.out.len();
            self.put_name(start, &name);
            let key_index = self.keys.iter().position(|key| *key == name);
            let written =
                if let (Some(index), Some(values)) = (key_index, self.key_values.as_deref_mut()) {
                    let value: Value = map.next_value()?;
                    self.out.extend_from_slice(b"{}");
                    let written = !value.is_null();
                    values[index] = Some(value).filter(|value| !value.is_null());
                    written
                } else {
                    let place = if matches!(self.place, Place::Root(_)) && name == "metadata" {
                        Place::Metadata
                    } else {
                        Place::Below
                    };
                    map.next_value_seed(Emit {
                        table: self.table,
                        position: child.position,
                        place,
                        before: match child.implied {
                            Some(implied) if self.before == Before::Empty => {
                                if implied.is_null {
                                    Before::Null
                                } else {
                                    Before::Empty
                                }
                            }
                            _ => Before::Absent,
                        },
                        keys: &[],
                        key_values: None,
                        out: self.out,
                    })?
                };
            if written {
                order.next(name);
            } else {
                self.out.truncate(before);
            }
        }
        if let Position::Struct(id) = self.position
            && self.before != Before::Empty
        {
            for (bit, field) in self.table.implied_fields(id).enumerate() {
                if implied_seen & (1 << bit) == 0 {
                    self.put_name(start, field.name);
                    self.out.extend_from_slice(b"{}");
                    order.next(Cow::Borrowed(field.name));
                }
            }
        }
        if order.broken {
            sort_entries(self.out, start);
        }
        Ok(self.close(start))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<bool, A::Error> {
        let Position::List(keys, _) = self.position else {
            let mut is_empty = true;
            while seq.next_element::<IgnoredAny>()?.is_some() {
                is_empty = false;
            }
            return Ok(!(self.before == Before::Empty && is_empty) && self.leaf());
        };
        let odd = || A::Error::custom("a list that needs the full comparison");
        let start = self.open();
        let item_position = self.position.item(self.table);
        let mut seen: Vec<Vec<u8>> = Vec::new();
        if keys.is_empty() {
            while let Some(value) = seq.next_element::<Value>()? {
                if value.is_object() || value.is_array() || value.is_null() {
                    return Err(odd());
                }
                let mut text = b"v:".to_vec();
                text.extend_from_slice(value.to_string().as_bytes());
                if seen.contains(&text) {
                    return Err(odd());
                }
                self.separate(start);
                put_string(
                    self.out,
                    std::str::from_utf8(&text).map_err(A::Error::custom)?,
                );
                self.out.extend_from_slice(b":{}");
                seen.push(text);
            }
            if !seen.is_sorted() {
                sort_entries(self.out, start);
            }
            return Ok(self.close(start));
        }
        if keys.len() > KEYS_MAX {
            return Err(odd());
        }
        loop {
            self.separate(start);
            let item_start = self.out.len();
            let mut values: [Option<Value>; KEYS_MAX] = [const { None }; KEYS_MAX];
            let item = Emit {
                table: self.table,
                position: item_position,
                place: Place::Below,
                before: Before::Absent,
                keys,
                key_values: Some(&mut values),
                out: self.out,
            };
            match seq.next_element_seed(item)? {
                None => {
                    // Takes back the comma of the element that did not come.
                    if self.out.last() == Some(&b',') {
                        self.out.pop();
                    }
                    break;
                }
                Some(false) => return Err(odd()),
                Some(true) => {}
            }
            let mut text = b"k:".to_vec();
            self.put_key(&mut text, keys, &values).ok_or_else(odd)?;
            if seen.contains(&text) {
                return Err(odd());
            }
            let mut name = Vec::with_capacity(text.len() + 16);
            put_string(
                &mut name,
                std::str::from_utf8(&text).map_err(A::Error::custom)?,
            );
            name.push(b':');
            self.out.splice(item_start..item_start, name);
            seen.push(text);
        }
        if !seen.is_sorted() {
            sort_entries(self.out, start);
        }
        Ok(self.close(start))
    }
}

/// Whether names came in the order in which an encoded value has them.
#[derive(Default)]
struct Order<'a> {
    last: Cow<'a, str>,
    broken: bool,
}

impl<'a> Order<'a> {
    fn next(&mut self, name: Cow<'a, str>) {
        self.broken |= name < self.last;
        self.last = name;
    }
}

/// Sorts the entries of the object that is open from `start` on by their names.
///
/// So that the text is the same that the entries have when they were decoded and encoded again: an update that
/// changes nothing must not look like one.
fn sort_entries(out: &mut Vec<u8>, start: usize) {
    let mut entries: Vec<(Cow<'_, str>, &[u8])> = Vec::new();
    let body = &out[start..];
    let mut index = 0;
    while index < body.len() {
        let entry = index;
        let name_end = string_end(body, index);
        // Names are written by `put_string` and so are JSON strings.
        let name: Cow<'_, str> = match serde_json::from_slice::<&str>(&body[entry..name_end]) {
            Ok(name) => Cow::Borrowed(name),
            Err(_) => {
                Cow::Owned(serde_json::from_slice(&body[entry..name_end]).unwrap_or_default())
            }
        };
        index = name_end + b":".len();
        let mut depth = 0;
        loop {
            match body[index] {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b'"' => index = string_end(body, index) - 1,
                _ => {}
            }
            index += 1;
            if depth == 0 {
                break;
            }
        }
        entries.push((name, &body[entry..index]));
        index += b",".len();
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let mut sorted = Vec::with_capacity(body.len());
    for (_, text) in entries {
        if !sorted.is_empty() {
            sorted.push(b',');
        }
        sorted.extend_from_slice(text);
    }
    out.truncate(start);
    out.extend_from_slice(&sorted);
}

/// The offset behind the string that begins at `start`.
fn string_end(text: &[u8], start: usize) -> usize {
    let mut index = start + 1;
    while text[index] != b'"' {
        index += if text[index] == b'\\' { 2 } else { 1 };
    }
    index + 1
}

/// More keys than any built-in list has.
const KEYS_MAX: usize = 4;

impl Emit<'_, '_> {
    /// Starts the object of this value; the offset is behind its brace.
    fn open(&mut self) -> usize {
        self.out.push(b'{');
        let start = self.out.len();
        if self.before == Before::Absent {
            self.out.extend_from_slice(b"\".\":{}");
        }
        start
    }

    /// Ends it. A value that has nothing below it is a member as it is, unless it was there before.
    fn close(&mut self, start: usize) -> bool {
        let dot = b"\".\":{}".len();
        if self.before == Before::Absent && self.out.len() == start + dot {
            self.out.truncate(start);
        }
        let written = self.before != Before::Empty || self.out.len() > start;
        self.out.push(b'}');
        written
    }

    fn separate(&mut self, start: usize) {
        if self.out.len() > start {
            self.out.push(b',');
        }
    }

    fn put_name(&mut self, start: usize, name: &str) {
        self.separate(start);
        if is_plain(name) {
            self.out.extend_from_slice(b"\"f:");
            self.out.extend_from_slice(name.as_bytes());
            self.out.push(b'"');
        } else {
            put_string(self.out, &format!("f:{name}"));
        }
        self.out.push(b':');
    }

    /// The keys of a list element as a JSON object, sorted by name; defaults stand in for what is not written.
    fn put_key(
        &self,
        text: &mut Vec<u8>,
        keys: &'static [&'static str],
        values: &[Option<Value>],
    ) -> Option<()> {
        let mut order: smallvec::SmallVec<[usize; KEYS_MAX]> = (0..keys.len()).collect();
        order.sort_unstable_by_key(|index| keys[*index]);
        text.push(b'{');
        let start = text.len();
        for index in order {
            let default = || match self.position {
                Position::List(_, crate::schema::Type::Message(id)) => self
                    .table
                    .json_field(id, keys[index])
                    .and_then(|field| field.default),
                _ => None,
            };
            let value = match &values[index] {
                Some(Value::String(value)) => {
                    let mut quoted = Vec::with_capacity(value.len() + 2);
                    put_string(&mut quoted, value);
                    quoted
                }
                Some(value) => value.to_string().into_bytes(),
                None => match default() {
                    Some(default) => default.as_bytes().to_vec(),
                    None => continue,
                },
            };
            if text.len() > start {
                text.push(b',');
            }
            put_string(text, keys[index]);
            text.push(b':');
            text.extend_from_slice(&value);
        }
        if text.len() == start {
            return None;
        }
        text.push(b'}');
        Some(())
    }
}

/// A key of a JSON object, borrowed where it has no escapes.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Whether JSON writes a string as it is.
fn is_plain(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\')
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    if is_plain(text) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(out, text).expect("writing to memory does not fail");
    }
}
