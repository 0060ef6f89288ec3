//! A deserializer around another that sees every key, every ignored value, and where it is.
//!
//! In fast mode it only compares hashes of keys and notes ignored values; in slow mode it keeps
//! the path and lists what it finds.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, Visitor};

use crate::kind::FieldProblem;

/// What a reading has noted.
pub(super) struct State {
    slow: bool,
    suspicious: bool,
    path: Vec<Segment>,
    /// Structs being decoded, outermost first, as Go names them.
    structs: Vec<&'static str>,
    /// The Go type that was asked for last.
    wanted: String,
    problems: Vec<FieldProblem>,
    failure: Option<String>,
}

enum Segment {
    Key(String),
    Index(usize),
}

impl State {
    fn new(slow: bool) -> Self {
        State {
            slow,
            suspicious: false,
            path: Vec::new(),
            structs: Vec::new(),
            wanted: String::new(),
            problems: Vec::new(),
            failure: None,
        }
    }

    pub(super) fn fast() -> Self {
        State::new(false)
    }

    pub(super) fn slow() -> Self {
        State::new(true)
    }

    pub(super) fn is_suspicious(&self) -> bool {
        self.suspicious
    }

    pub(super) fn into_problems(self) -> Vec<FieldProblem> {
        self.problems
    }

    /// The type error in Go's words, else `fallback` as it is.
    pub(super) fn type_error(self, fallback: &str) -> String {
        self.failure.unwrap_or_else(|| fallback.to_string())
    }

    /// `spec.containers[0].name`
    fn field_path(&self) -> String {
        let mut text = String::new();
        for segment in &self.path {
            match segment {
                Segment::Key(key) => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.push_str(key);
                }
                Segment::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        text
    }

    fn note(&mut self, what: &str) {
        self.suspicious = true;
        if self.slow {
            let message = format!("{what} field \"{}\"", self.field_path());
            self.problems.push(FieldProblem { message });
        }
    }

    fn want(&mut self, type_: &str) {
        if self.slow {
            self.wanted.clear();
            self.wanted.push_str(type_);
        }
    }

    /// Keeps the innermost error, said as Go says it; `in_map`: the last key is one of a map, which Go does not name.
    fn fail(&mut self, error: &dyn fmt::Display, in_map: bool) {
        if !self.slow || self.failure.is_some() {
            return;
        }
        let text = error.to_string();
        let number;
        let value = match text
            .strip_prefix("invalid type: ")
            .or_else(|| text.strip_prefix("invalid value: "))
        {
            Some(rest) if rest.starts_with("string") => "string",
            Some(rest)
                if rest.starts_with("integer")
                    || rest.starts_with("floating")
                    || rest.starts_with("number") =>
            {
                number = number_text(rest);
                number.as_str()
            }
            Some(rest) if rest.starts_with("boolean") => "bool",
            Some(rest) if rest.starts_with("map") => "object",
            Some(rest) if rest.starts_with("sequence") => "array",
            _ => {
                self.failure = Some(base64_error(&text).unwrap_or(text));
                return;
            }
        };
        let mut keys: Vec<&str> = Vec::new();
        for segment in &self.path {
            if let Segment::Key(key) = segment {
                keys.push(key);
            }
        }
        if in_map {
            keys.pop();
        }
        let owner = self.structs.last().copied().unwrap_or("");
        self.failure = Some(format!(
            "json: cannot unmarshal {value} into Go struct field {owner}.{} of type {}",
            keys.join("."),
            self.wanted
        ));
    }
}

type Shared<'s> = &'s RefCell<State>;

pub(super) struct Watch<'s, D> {
    inner: D,
    state: Shared<'s>,
}

impl<'s, D> Watch<'s, D> {
    pub(super) fn new(inner: D, state: Shared<'s>) -> Self {
        Watch { inner, state }
    }
}

/// Forwards a method; a second name is the Go type that the method asks for.
macro_rules! forward {
    ($($method:ident $(=> $go:literal)?),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            $(self.state.borrow_mut().want($go);)?
            self.inner.$method(WatchVisitor { inner: visitor, state: self.state, is_struct: false })
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Watch<'_, D> {
    type Error = D::Error;

    forward!(
        deserialize_any,
        deserialize_bool => "bool",
        deserialize_i8 => "int8",
        deserialize_i16 => "int16",
        deserialize_i32 => "int32",
        deserialize_i64 => "int64",
        deserialize_i128,
        deserialize_u8 => "uint8",
        deserialize_u16 => "uint16",
        deserialize_u32 => "uint32",
        deserialize_u64 => "uint64",
        deserialize_u128,
        deserialize_f32 => "float32",
        deserialize_f64 => "float64",
        deserialize_char,
        deserialize_str => "string",
        deserialize_string => "string",
        deserialize_bytes => "[]uint8",
        deserialize_byte_buf => "[]uint8",
        deserialize_option,
        deserialize_unit,
        deserialize_seq => "[]interface {}",
        deserialize_map => "map[string]string",
        deserialize_identifier,
    );

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(
            name,
            WatchVisitor {
                inner: visitor,
                state: self.state,
                is_struct: false,
            },
        )
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_newtype_struct(
            name,
            WatchVisitor {
                inner: visitor,
                state: self.state,
                is_struct: false,
            },
        )
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_tuple(
            length,
            WatchVisitor {
                inner: visitor,
                state: self.state,
                is_struct: false,
            },
        )
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_tuple_struct(
            name,
            length,
            WatchVisitor {
                inner: visitor,
                state: self.state,
                is_struct: false,
            },
        )
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let state = self.state;
        let slow = state.borrow().slow;
        if slow {
            state.borrow_mut().want(&format!("v1.{name}"));
        }
        let visitor = StructVisitor {
            inner: visitor,
            state,
            name: slow.then_some(name),
        };
        self.inner.deserialize_struct(name, fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.state.borrow_mut().note("unknown");
        self.inner.deserialize_ignored_any(visitor)
    }
}

/// The visitor of a struct: its fields belong to it.
struct StructVisitor<'s, V> {
    inner: V,
    state: Shared<'s>,
    name: Option<&'static str>,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for StructVisitor<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        if let Some(name) = self.name {
            self.state.borrow_mut().structs.push(name);
        }
        let result = self.inner.visit_map(WatchMap::new(map, self.state, true));
        if self.name.is_some() {
            self.state.borrow_mut().structs.pop();
        }
        result
    }
}

struct WatchVisitor<'s, V> {
    inner: V,
    state: Shared<'s>,
    is_struct: bool,
}

macro_rules! forward_visits {
    ($($method:ident($type:ty)),* $(,)?) => {
        $(fn $method<E: serde::de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for WatchVisitor<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    forward_visits!(
        visit_bool(bool),
        visit_i8(i8),
        visit_i16(i16),
        visit_i32(i32),
        visit_i64(i64),
        visit_i128(i128),
        visit_u8(u8),
        visit_u16(u16),
        visit_u32(u32),
        visit_u64(u64),
        visit_u128(u128),
        visit_f32(f32),
        visit_f64(f64),
        visit_char(char),
        visit_str(&str),
        visit_borrowed_str(&'de str),
        visit_string(String),
        visit_bytes(&[u8]),
        visit_borrowed_bytes(&'de [u8]),
        visit_byte_buf(Vec<u8>),
    );

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Watch::new(deserializer, self.state))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<V::Value, D::Error> {
        self.inner
            .visit_newtype_struct(Watch::new(deserializer, self.state))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(WatchSeq {
            inner: sequence,
            state: self.state,
            index: 0,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.inner
            .visit_map(WatchMap::new(map, self.state, self.is_struct))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(data)
    }
}

struct WatchSeq<'s, A> {
    inner: A,
    state: Shared<'s>,
    index: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for WatchSeq<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        let slow = self.state.borrow().slow;
        if slow {
            self.state
                .borrow_mut()
                .path
                .push(Segment::Index(self.index));
        }
        self.index += 1;
        let result = self.inner.next_element_seed(WatchSeed {
            inner: seed,
            state: self.state,
            in_map: false,
        });
        if slow {
            self.state.borrow_mut().path.pop();
        }
        result
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// Keys of one object seen so far: few in place, many in a set.
struct Seen {
    first: [u64; Seen::IN_PLACE],
    count: usize,
    rest: Option<HashSet<u64>>,
}

impl Seen {
    const IN_PLACE: usize = 16;

    /// Whether the key is new.
    fn insert(&mut self, hash: u64) -> bool {
        if self.first[..self.count].contains(&hash)
            || self.rest.as_ref().is_some_and(|rest| rest.contains(&hash))
        {
            return false;
        }
        if self.count < Seen::IN_PLACE {
            self.first[self.count] = hash;
            self.count += 1;
            return true;
        }
        self.rest.get_or_insert_default().insert(hash)
    }
}

struct WatchMap<'s, A> {
    inner: A,
    state: Shared<'s>,
    is_struct: bool,
    seen: Seen,
    key: KeyNote,
}

/// The key read last.
#[derive(Default)]
struct KeyNote {
    hash: u64,
    /// Only in slow mode.
    text: Option<String>,
    slow: bool,
}

impl KeyNote {
    fn take_in(&mut self, key: &str) {
        // FNV-1a: keys are short, and a clash only costs a second reading.
        self.hash = key.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        if self.slow {
            self.text = Some(key.to_string());
        }
    }
}

impl<'s, A> WatchMap<'s, A> {
    fn new(inner: A, state: Shared<'s>, is_struct: bool) -> Self {
        let slow = state.borrow().slow;
        let seen = Seen {
            first: [0; Seen::IN_PLACE],
            count: 0,
            rest: None,
        };
        WatchMap {
            inner,
            state,
            is_struct,
            seen,
            key: KeyNote {
                slow,
                ..KeyNote::default()
            },
        }
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for WatchMap<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let key = self.inner.next_key_seed(KeySeed {
            inner: seed,
            note: &mut self.key,
        })?;
        if key.is_some() && !self.seen.insert(self.key.hash) {
            let mut state = self.state.borrow_mut();
            if let Some(text) = &self.key.text {
                state.path.push(Segment::Key(text.clone()));
                state.note("duplicate");
                state.path.pop();
            } else {
                state.note("duplicate");
            }
        }
        Ok(key)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        let slow = self.key.slow;
        if slow {
            let key = self.key.text.take().unwrap_or_default();
            self.state.borrow_mut().path.push(Segment::Key(key));
        }
        let result = self.inner.next_value_seed(WatchSeed {
            inner: seed,
            state: self.state,
            in_map: !self.is_struct,
        });
        if slow {
            self.state.borrow_mut().path.pop();
        }
        result
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

struct WatchSeed<'s, T> {
    inner: T,
    state: Shared<'s>,
    in_map: bool,
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for WatchSeed<'_, T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T::Value, D::Error> {
        let result = self.inner.deserialize(Watch::new(deserializer, self.state));
        if let Err(error) = &result {
            self.state.borrow_mut().fail(error, self.in_map);
        }
        result
    }
}

struct KeySeed<'n, K> {
    inner: K,
    note: &'n mut KeyNote,
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for KeySeed<'_, K> {
    type Value = K::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<K::Value, D::Error> {
        self.inner.deserialize(KeyDeserializer {
            inner: deserializer,
            note: self.note,
        })
    }
}

/// Keys are strings whatever is asked for.
struct KeyDeserializer<'n, D> {
    inner: D,
    note: &'n mut KeyNote,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for KeyDeserializer<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_str(KeyVisitor {
            inner: visitor,
            note: self.note,
        })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct KeyVisitor<'n, V> {
    inner: V,
    note: &'n mut KeyNote,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for KeyVisitor<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<V::Value, E> {
        self.note.take_in(key);
        self.inner.visit_str(key)
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, key: &'de str) -> Result<V::Value, E> {
        self.note.take_in(key);
        self.inner.visit_borrowed_str(key)
    }

    fn visit_string<E: serde::de::Error>(self, key: String) -> Result<V::Value, E> {
        self.note.take_in(&key);
        self.inner.visit_string(key)
    }
}
/// `number`, with its text where an integer was wanted and it is none that fits, as Go says it.
fn number_text(problem: &str) -> String {
    let wants_integer = ["expected i32", "expected i64"]
        .iter()
        .any(|wanted| problem.contains(wanted));
    match problem.split('`').nth(1) {
        Some(text) if wants_integer => format!("number {text}"),
        _ => "number".into(),
    }
}

/// What Go says of text that is no base64.
fn base64_error(problem: &str) -> Option<String> {
    let offset = problem
        .strip_prefix("Invalid symbol ")?
        .split_once("offset ")?
        .1;
    let offset: String = offset.chars().take_while(char::is_ascii_digit).collect();
    Some(format!("illegal base64 data at input byte {offset}"))
}
