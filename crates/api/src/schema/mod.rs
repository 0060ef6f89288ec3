//! Facts of every built-in API type: field numbers, JSON names, list types, merge keys, defaults, enums.
//!
//! One table for everything that must know types without their Rust structs: the protobuf transcoder,
//! strategic merge patches, server-side apply and OpenAPI. Enter at [`table`], then [`Table::kind`].
//! The facts are extracted from Kubernetes v1.36 by `cargo xtask gen-schema` into `facts.txt` and parsed
//! once, at first use (about a millisecond). Types of custom resources are not here: they come with
//! their own schema.

mod table;

use std::collections::HashMap;
use std::sync::LazyLock;

static TABLE: LazyLock<Table> = LazyLock::new(|| table::parse(include_str!("facts.txt")));

/// The facts of all built-in types.
pub fn table() -> &'static Table {
    &TABLE
}

/// The index of a [`Message`] in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(u16);

/// All built-in types.
#[derive(Debug)]
pub struct Table {
    packages: Vec<Package>,
    messages: Vec<Message>,
    fields: Vec<Field>,
    by_name: HashMap<(u8, &'static str), MessageId>,
    packages_by_group_version: HashMap<&'static str, u8>,
    packages_by_name: HashMap<&'static str, u8>,
}

/// A group-version and the prefix of its types' names.
#[derive(Debug)]
pub struct Package {
    /// The prefix of OpenAPI names: `io.k8s.api.core.v1`.
    pub openapi_prefix: &'static str,
    /// As in `apiVersion`: `v1`, `apps/v1`; `meta.k8s.io/v1` for the types of apimachinery.
    pub group_version: &'static str,
}

/// A struct type.
#[derive(Debug)]
pub struct Message {
    /// Without its package: `Pod`.
    pub name: &'static str,
    package: u8,
    first_field: u16,
    field_count: u16,
    /// Has `apiVersion` and `kind`.
    pub has_type_meta: bool,
    /// Always owned and replaced as a whole (`structType=atomic`).
    pub atomic: bool,
    /// Indices into the table's fields of everything seen in JSON (inlined structs flattened), sorted by name.
    json_fields: Box<[u16]>,
    /// Those of them that are there wherever the object is.
    implied_fields: Box<[u16]>,
}

/// A field of a struct.
#[derive(Debug)]
pub struct Field {
    /// The JSON name; `-` for an inlined struct.
    pub name: &'static str,
    /// The protobuf field number; 0 where protobuf leaves the field out.
    pub number: u32,
    pub shape: Shape,
    pub type_: Type,
    /// Go holds a pointer: absent differs from zero.
    pub pointer: bool,
    pub omit_empty: bool,
    pub omit_zero: bool,
    pub required: bool,
    /// Its fields stand in the JSON object of its parent.
    pub inline: bool,
    pub patch: PatchStrategy,
    /// Fields that identify an element under `patch.merge`; empty for lists of scalars.
    pub patch_merge_key: &'static str,
    pub list_type: Option<ListType>,
    /// The field names that identify an element of a [`ListType::Map`].
    pub list_map_keys: Box<[&'static str]>,
    /// A map or struct that is owned and replaced as a whole.
    pub map_atomic: bool,
    pub enum_values: Box<[&'static str]>,
    /// The default as JSON text.
    pub default: Option<&'static str>,
}

/// What the elements of a field are arranged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Single,
    List,
    /// Keys are strings.
    Map,
}

/// The type of a field, or of the elements of a list or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    String,
    Bool,
    Int32,
    Int64,
    Float64,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    IntOrString,
    /// RFC 3339 with seconds in JSON.
    Time,
    /// RFC 3339 with microseconds in JSON.
    MicroTime,
    /// `RawExtension`: any object.
    Raw,
    /// `FieldsV1`: a field set.
    Fields,
    /// A list of strings that is a message of its own in protobuf (`Verbs`, `ExtraValue`).
    Strings,
    /// Any JSON, as bytes in protobuf.
    Json,
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrStrings,
    /// Any JSON, with no protobuf form.
    Any,
    Message(MessageId),
}

/// The `patchStrategy` of a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// Kinds that every group-version has, below `meta.k8s.io/v1` in the table.
const KINDS_OF_EVERY_GROUP: &[&str] = &[
    "APIGroup",
    "APIGroupList",
    "APIResourceList",
    "APIVersions",
    "CreateOptions",
    "DeleteOptions",
    "GetOptions",
    "List",
    "ListOptions",
    "PartialObjectMetadata",
    "PartialObjectMetadataList",
    "PatchOptions",
    "Status",
    "Table",
    "TableOptions",
    "UpdateOptions",
    "WatchEvent",
];

/// The group-version under which apimachinery's own types stand.
pub const META_GROUP_VERSION: &str = "meta.k8s.io/v1";

impl Table {
    /// The type of a kind's bodies; options, `Status` and lists of metadata answer under any group-version.
    pub fn kind(&self, api_version: &str, kind: &str) -> Option<MessageId> {
        if let Some(id) = self.type_in(api_version, kind)
            && self.message(id).has_type_meta
        {
            return Some(id);
        }
        if KINDS_OF_EVERY_GROUP.contains(&kind) {
            self.type_in(META_GROUP_VERSION, kind)
        } else {
            None
        }
    }

    /// Any struct type of a group-version, kind or not.
    pub fn type_in(&self, group_version: &str, name: &str) -> Option<MessageId> {
        let package = *self.packages_by_group_version.get(group_version)?;
        self.by_name.get(&(package, name)).copied()
    }

    /// A type by its OpenAPI name, for example `io.k8s.api.core.v1.Pod`.
    pub fn openapi_type(&self, name: &str) -> Option<MessageId> {
        let (prefix, name) = name.rsplit_once('.')?;
        let package = *self.packages_by_name.get(prefix)?;
        self.by_name.get(&(package, name)).copied()
    }

    pub fn message(&self, id: MessageId) -> &Message {
        &self.messages[usize::from(id.0)]
    }

    pub fn messages(&self) -> impl Iterator<Item = (MessageId, &Message)> {
        (0..).map(MessageId).zip(&self.messages)
    }

    pub fn package(&self, message: &Message) -> &Package {
        &self.packages[usize::from(message.package)]
    }

    /// The name in OpenAPI, for example `io.k8s.api.core.v1.Pod`.
    pub fn openapi_name(&self, id: MessageId) -> String {
        let message = self.message(id);
        format!("{}.{}", self.package(message).openapi_prefix, message.name)
    }

    /// The fields of the struct itself, by ascending protobuf number; inlined structs are one field.
    pub fn fields(&self, id: MessageId) -> &[Field] {
        let message = self.message(id);
        let first = usize::from(message.first_field);
        &self.fields[first..first + usize::from(message.field_count)]
    }

    /// The fields of the JSON object, by name; inlined structs are flattened.
    pub fn json_fields(&self, id: MessageId) -> impl ExactSizeIterator<Item = &Field> {
        self.message(id)
            .json_fields
            .iter()
            .map(|index| &self.fields[usize::from(*index)])
    }

    /// The fields of the JSON object for which [`Field::is_implied`] holds.
    pub fn implied_fields(&self, id: MessageId) -> impl ExactSizeIterator<Item = &Field> {
        self.message(id)
            .implied_fields
            .iter()
            .map(|index| &self.fields[usize::from(*index)])
    }

    /// A field of the JSON object.
    pub fn json_field(&self, id: MessageId, name: &str) -> Option<&Field> {
        let fields = &self.message(id).json_fields;
        let found = fields
            .binary_search_by(|index| self.fields[usize::from(*index)].name.cmp(name))
            .ok()?;
        Some(&self.fields[usize::from(fields[found])])
    }
}

impl Field {
    /// Whether Go's JSON has the field wherever it has the object, if only empty or null: structs held by value, and
    /// lists and maps without `omitempty`.
    pub fn is_implied(&self) -> bool {
        match self.shape {
            Shape::Single => {
                self.is_struct() && !self.omit_zero && matches!(self.type_, Type::Message(_))
            }
            Shape::List | Shape::Map => !self.omit_empty && !self.omit_zero,
        }
    }

    /// Whether the field's Go value is a struct, which `omitempty` never omits.
    pub fn is_struct(&self) -> bool {
        self.shape == Shape::Single
            && !self.pointer
            && matches!(
                self.type_,
                Type::Message(_)
                    | Type::Quantity
                    | Type::IntOrString
                    | Type::Time
                    | Type::MicroTime
                    | Type::Raw
                    | Type::Fields
                    | Type::Json
            )
    }
}
