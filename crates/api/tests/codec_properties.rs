//! Properties of the decoders and patches, over objects drawn from the table of facts and over arbitrary bytes.
#![allow(clippy::unwrap_used, reason = "tests")]

use api::managed_fields::{self, Write};
use api::schema::{Field, MessageId, Shape, Type, table};
use api::{patch, protobuf};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const KINDS: &[(&str, &str)] = &[
    ("v1", "Pod"),
    ("v1", "Service"),
    ("v1", "Node"),
    ("v1", "Secret"),
    ("v1", "Event"),
    ("apps/v1", "Deployment"),
    ("batch/v1", "CronJob"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
    ("coordination.k8s.io/v1", "Lease"),
];

/// Draws values; the seed is what proptest shrinks.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn object(&mut self, (api_version, kind): (&str, &str)) -> Value {
        let id = table().kind(api_version, kind).unwrap();
        let mut object = self.message(id, 0);
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        object
    }

    fn message(&mut self, id: MessageId, depth: u64) -> Value {
        let mut object = Map::new();
        for field in table().json_fields(id) {
            if field.name == "managedFields" || self.below(2 + depth) != 0 {
                continue;
            }
            object.insert(field.name.to_owned(), self.field(field, depth));
        }
        Value::Object(object)
    }

    fn field(&mut self, field: &Field, depth: u64) -> Value {
        let count = self.below(3);
        match field.shape {
            Shape::Single => self.value(field.type_, depth),
            Shape::List => (0..count).map(|_| self.value(field.type_, depth)).collect(),
            Shape::Map => {
                let entries =
                    (0..count).map(|index| (format!("k{index}"), self.value(field.type_, depth)));
                Value::Object(entries.collect())
            }
        }
    }

    fn value(&mut self, type_: Type, depth: u64) -> Value {
        let number = self.below(4);
        match type_ {
            Type::String => json!(["", "a", "b\"c", "d/é"][number as usize]),
            Type::Bool => json!(number > 1),
            Type::Int32 | Type::Int64 => json!([0, 1, -1, 2_147_483_647][number as usize]),
            Type::Float64 => json!([0.0, 0.5, -1.25, 1e300][number as usize]),
            Type::Bytes => json!(["", "AAEC", "/w==", "YWJj"][number as usize]),
            Type::Quantity => json!(["0", "100m", "1Gi", "5"][number as usize]),
            Type::IntOrString => {
                [json!(0), json!(80), json!("http"), json!("25%")][number as usize].clone()
            }
            Type::Time => json!("2024-02-29T23:59:59Z"),
            Type::MicroTime => json!("2024-02-29T23:59:59.000001Z"),
            Type::Raw | Type::Json => json!({"any": [1, null, {"x": "y"}]}),
            Type::Fields => json!({"f:a": {}}),
            Type::Strings => json!(["a", "b"]),
            Type::SchemaOrBool => json!(number > 1),
            Type::SchemaOrArray => json!([{"type": "string"}]),
            Type::SchemaOrStrings => json!(["a"]),
            Type::Any => Value::Null,
            Type::Message(_) if depth > 8 => json!({}),
            Type::Message(id) => self.message(id, depth + 1),
        }
    }
}

fn kind() -> impl Strategy<Value = (&'static str, &'static str)> {
    proptest::sample::select(KINDS)
}

fn write<'a>(api_version: &'a str, kind: &str) -> Write<'a> {
    Write {
        manager: "m",
        api_version,
        subresource: "",
        now: "2024-01-01T00:00:00Z",
        type_: table().kind(api_version, kind),
        ignored_fields: &["status"],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn safety_encoded_objects_decode_to_what_encodes_alike(seed: u64, kind in kind()) {
        let object = Draw(seed).object(kind);
        let encoded = protobuf::encode(&object).unwrap();
        let decoded = protobuf::decode_body(&encoded, None).unwrap();
        prop_assert_eq!(protobuf::encode(&decoded).unwrap(), encoded);
    }

    #[test]
    fn safety_arbitrary_protobuf_never_panics(bytes: Vec<u8>, kind in kind()) {
        let _ = protobuf::decode(kind.0, kind.1, &bytes);
        let mut body = protobuf::MAGIC.to_vec();
        body.extend(bytes);
        let _ = protobuf::decode_body(&body, Some(kind));
    }

    #[test]
    fn safety_damaged_protobuf_never_panics(seed: u64, kind in kind(), at: usize, flip: u8, cut: usize) {
        let mut encoded = protobuf::encode(&Draw(seed).object(kind)).unwrap();
        let at = at % encoded.len();
        encoded[at] ^= flip;
        encoded.truncate(1 + cut % encoded.len());
        let _ = protobuf::decode_body(&encoded, None);
    }

    #[test]
    fn safety_patches_never_panic(seed: u64, patch_seed: u64, kind in kind(), text: String) {
        let (object, change) = (Draw(seed).object(kind), Draw(patch_seed).object(kind));
        let type_ = table().kind(kind.0, kind.1).unwrap();
        let _ = patch::strategic_merge_patch(object.clone(), change.clone(), type_);
        prop_assert_eq!(patch::merge_patch(object.clone(), json!({})), object.clone());
        let operations = json!([{"op": "add", "path": text, "value": change}, {"op": "copy", "from": "", "path": "/x"}]);
        let _ = patch::json_patch(object, operations.to_string().as_bytes());
        let _ = patch::json_patch(json!({}), text.as_bytes());
    }

    #[test]
    fn safety_ownership_of_a_create_is_the_same_both_ways(seed: u64, kind in kind()) {
        let object = Draw(seed).object(kind);
        let write = write(kind.0, kind.1);
        let mut slow = object.clone();
        managed_fields::update(None, &mut slow, &write);
        if let Some(fast) = managed_fields::created(object.to_string().as_bytes(), &write) {
            let fast: Value = serde_json::from_slice(&fast).unwrap();
            prop_assert_eq!(Some(&fast), slow.get("metadata").and_then(|metadata| metadata.get("managedFields")));
        }
    }

    #[test]
    fn safety_an_update_without_change_changes_nothing(seed: u64, kind in kind()) {
        let mut live = Draw(seed).object(kind);
        managed_fields::update(None, &mut live, &write(kind.0, kind.1));
        let mut new = live.clone();
        managed_fields::update(Some(&live), &mut new, &Write { manager: "other", ..write(kind.0, kind.1) });
        prop_assert_eq!(new, live);
    }

    #[test]
    fn safety_applying_twice_is_applying_once(seed: u64, live_seed: u64, kind in kind()) {
        let (config, mut live) = (Draw(seed).object(kind), Draw(live_seed).object(kind));
        managed_fields::update(None, &mut live, &Write { manager: "other", ..write(kind.0, kind.1) });
        let Ok(once) = managed_fields::apply(Some(&live), &config, &write(kind.0, kind.1), true) else { return Ok(()) };
        // Of empty lists nobody is the owner, and an object without owners is not tracked.
        prop_assume!(once.object["metadata"].get("managedFields").is_some());
        let twice = managed_fields::apply(Some(&once.object), &config, &write(kind.0, kind.1), false).unwrap();
        prop_assert_eq!(twice.object, once.object);
        prop_assert!(!twice.changed);
    }
}
