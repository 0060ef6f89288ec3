#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::schema::Type;

fn round_trip(object: Value) {
    let encoded = encode(&object).unwrap();
    assert_eq!(decode_body(&encoded, None).unwrap(), object);
}

#[test]
fn objects_survive_a_round_trip() {
    round_trip(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"x": "y", "z": ""}},
        "data": {"key": "value", "": "no key"}, "binaryData": {"b": "AAEC"}, "immutable": false,
    }));
    round_trip(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "creationTimestamp": "2024-02-29T23:59:59Z"},
        "spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 0, "targetPort": 8080, "nodePort": 30000}], "externalTrafficPolicy": "Local"},
        "status": {"loadBalancer": {}},
    }));
    round_trip(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
        "spec": {"holderIdentity": "", "renewTime": "2024-01-01T00:00:00.123456Z", "leaseDurationSeconds": 0},
    }));
}

#[test]
fn zero_values_are_those_of_go() {
    // An empty Deployment on the wire.
    let decoded = decode("apps/v1", "Deployment", &[]).unwrap();
    let expect = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {},
        "spec": {"selector": null, "strategy": {}, "template": {"metadata": {}, "spec": {"containers": null}}},
        "status": {},
    });
    assert_eq!(decoded, expect);
}

#[test]
fn pointers_to_zero_are_kept_and_plain_zeros_dropped() {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "generation": 0},
        "spec": {"replicas": 0, "minReadySeconds": 0, "selector": {}, "template": {}},
    });
    let decoded = decode_body(&encode(&deployment).unwrap(), None).unwrap();
    assert_eq!(decoded["spec"]["replicas"], json!(0));
    assert!(decoded["spec"].get("minReadySeconds").is_none());
    assert!(decoded["metadata"].get("generation").is_none());
}

#[test]
fn malformed_bodies_are_refused() {
    let check = |body: &[u8], expect: ProtobufError| {
        assert_eq!(
            decode_body(body, Some(("v1", "Pod"))),
            Err(expect),
            "{body:?}"
        )
    };
    check(b"{}", ProtobufError::NotProtobuf);
    check(b"k8s\0\x0a\x05", ProtobufError::Truncated);
    check(b"k8s\0\x12\x02\x0a\x05", ProtobufError::Truncated);
    check(
        b"k8s\0\x12\x02\x08\x05",
        ProtobufError::Field {
            message: "Pod",
            field: "metadata",
            problem: "a field that should have a length has none".to_owned(),
        },
    );
    check(
        b"k8s\0\x00",
        ProtobufError::Malformed("a field has number 0"),
    );
    check(
        b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ProtobufError::Malformed("a number is longer than 64 bits"),
    );
    assert_eq!(
        decode_body(b"k8s\0", None),
        Err(ProtobufError::MissingType("an apiVersion"))
    );
    assert!(matches!(
        decode("example.com/v1", "Pod", &[]),
        Err(ProtobufError::UnknownKind { .. })
    ));
}

#[test]
fn nesting_is_bounded() {
    let mut schema = json!({});
    for _ in 0..200 {
        schema = json!({"not": schema});
    }
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}});
    assert_eq!(encode(&definition), Err(ProtobufError::TooDeep));
    let id = table()
        .type_in("apiextensions.k8s.io/v1", "JSONSchemaProps")
        .unwrap();
    let not = table().json_field(id, "not").unwrap();
    assert_eq!(not.type_, Type::Message(id));
    let mut raw = Vec::new();
    for _ in 0..200 {
        let mut outer = Vec::new();
        wire::put_bytes(&mut outer, not.number, &raw);
        raw = outer;
    }
    let mut body = Vec::new();
    wire::put_bytes(&mut body, 1, &raw); // CustomResourceValidation.openAPIV3Schema
    let mut version = Vec::new();
    wire::put_bytes(&mut version, 4, &body);
    let mut spec = Vec::new();
    wire::put_bytes(&mut spec, 7, &version);
    let mut crd = Vec::new();
    wire::put_bytes(&mut crd, 2, &spec);
    assert_eq!(
        decode("apiextensions.k8s.io/v1", "CustomResourceDefinition", &crd),
        Err(ProtobufError::TooDeep)
    );
}

#[test]
fn a_small_body_may_not_unfold_without_bound() {
    let spec: Vec<u8> = [0x12, 0x00].repeat(1_000_000); // PodSpec.containers, each empty
    let mut pod = Vec::new();
    wire::put_bytes(&mut pod, 2, &spec);
    assert_eq!(decode("v1", "Pod", &pod), Err(ProtobufError::TooLarge));
}

#[test]
fn watch_events_are_framed() {
    let event = encode_watch_event(
        "ADDED",
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}),
    )
    .unwrap();
    let length = u32::from_be_bytes(event[..4].try_into().unwrap()) as usize;
    assert_eq!(length, event.len() - 4);
    let decoded = decode("v1", "WatchEvent", &event[4..]).unwrap();
    assert_eq!(decoded["type"], "ADDED");
    assert_eq!(decoded["object"]["metadata"]["name"], "n");
    assert_eq!(decoded["object"]["kind"], "Namespace");
}

#[test]
fn no_struct_has_more_fields_than_the_decoder_has_bits() {
    assert!(
        table()
            .messages()
            .all(|(id, _)| table().fields(id).len() <= 64)
    );
}

/// Compares with the bytes and JSON that upstream keeps of every kind with every field set:
/// `KUBERNETES_DIR=… cargo test -p api upstream_fixtures`.
#[test]
fn upstream_fixtures() {
    let Some(kubernetes) = std::env::var_os("KUBERNETES_DIR").map(PathBuf::from) else {
        return;
    };
    let directory = kubernetes.join("staging/src/k8s.io/api/testdata/HEAD");
    let mut compared = 0;
    let mut failures = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "pb") {
            continue;
        }
        let body = std::fs::read(&path).unwrap();
        let json: Value =
            serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
        let envelope = unwrap_envelope(&body).unwrap();
        if !knows(envelope.api_version, envelope.kind) {
            continue;
        }
        compared += 1;
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        match decode_body(&body, None) {
            Ok(decoded) if decoded == json => {}
            Ok(decoded) => failures.push(format!("{name}: JSON differs\n  {decoded}\n  {json}")),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
        if encode(&json).as_deref() != Ok(body.as_slice()) {
            failures.push(format!("{name}: bytes differ"));
        }
    }
    assert!(compared > 100, "only {compared} fixtures");
    assert!(
        failures.is_empty(),
        "{} of {compared}:\n{}",
        failures.len(),
        failures.join("\n")
    );
}
