//! JSON to typed objects, with unknown and duplicate fields reported as upstream words them.
//!
//! A body is decoded once, through a deserializer that only notes whether anything was ignored or
//! a key came twice (in `watch`). Only if so, or if decoding failed, is it read a second time,
//! slowly, to say what and where.

mod watch;

use std::cell::RefCell;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use crate::error::DecodeError;
use crate::kind::FieldProblem;
use watch::{State, Watch};

/// Decodes `json`; with `strict` also lists unknown and duplicate fields.
pub fn decode<K: DeserializeOwned>(
    json: &[u8],
    strict: bool,
) -> Result<(K, Vec<FieldProblem>), DecodeError> {
    if !strict {
        return match serde_json::from_slice(json) {
            Ok(object) => Ok((object, Vec::new())),
            Err(cause) => Err(explain::<K>(json, &cause)),
        };
    }
    let state = RefCell::new(State::fast());
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let object = K::deserialize(Watch::new(&mut deserializer, &state))
        .and_then(|object| deserializer.end().map(|()| object));
    match object {
        Err(cause) => Err(explain::<K>(json, &cause)),
        Ok(object) if !state.into_inner().is_suspicious() => Ok((object, Vec::new())),
        Ok(object) => Ok((object, problems_of::<K>(json))),
    }
}

pub fn from_value<K: DeserializeOwned>(value: Value) -> Result<K, DecodeError> {
    // Going by text keeps one path for errors; values come from patches, off the hot path.
    K::deserialize(&value).map_err(|cause| match serde_json::to_vec(&value) {
        Ok(json) => explain::<K>(&json, &cause),
        Err(_) => DecodeError::Type(cause.to_string()),
    })
}

/// The `apiVersion` of an encoded object, nothing else looked at.
pub(crate) fn api_version(json: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Head {
        #[serde(rename = "apiVersion")]
        api_version: Option<String>,
    }
    serde_json::from_slice::<Head>(json).ok()?.api_version
}

/// The second, slow reading of a body in which something was ignored or came twice.
fn problems_of<K: DeserializeOwned>(json: &[u8]) -> Vec<FieldProblem> {
    let state = RefCell::new(State::slow());
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    // It decoded before, so it decodes now; only what the reading noted is of interest.
    let _ = K::deserialize(Watch::new(&mut deserializer, &state));
    state.into_inner().into_problems()
}

/// Why a body does not decode: bad JSON, or a field of the wrong type in Go's words.
fn explain<K: DeserializeOwned>(json: &[u8], cause: &serde_json::Error) -> DecodeError {
    if let Err(syntax) = serde_json::from_slice::<IgnoredAny>(json) {
        return DecodeError::Syntax(syntax_error(json, &syntax));
    }
    let state = RefCell::new(State::slow());
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let _ = K::deserialize(Watch::new(&mut deserializer, &state));
    DecodeError::Type(state.into_inner().type_error(&cause.to_string()))
}

/// Bad JSON in the words of Go's decoder, which clients know.
pub fn syntax_error(json: &[u8], error: &serde_json::Error) -> String {
    let text = error.to_string();
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let context = [
        ("expected value", "looking for beginning of value"),
        ("expected ident", "in literal"),
        (
            "key must be a string",
            "looking for beginning of object key string",
        ),
        ("trailing comma", "looking for beginning of value"),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("trailing characters", "after top-level value"),
    ]
    .into_iter()
    .find(|(own, _)| text.starts_with(own));
    let line = json
        .split(|byte| *byte == b'\n')
        .nth(error.line().saturating_sub(1));
    let found = line
        .and_then(|line| line.get(error.column().checked_sub(1)?..))
        .and_then(|rest| String::from_utf8_lossy(rest).chars().next());
    match (context, found) {
        (Some((_, context)), Some(character)) => {
            format!("invalid character {character:?} {context}")
        }
        _ => text,
    }
}

/// What Go's decoder calls a JSON value.
pub fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};

    fn problems<K: DeserializeOwned>(json: &str) -> Vec<String> {
        decode::<K>(json.as_bytes(), true)
            .unwrap()
            .1
            .into_iter()
            .map(|problem| problem.message)
            .collect()
    }

    #[test]
    fn unknown_and_duplicate_fields() {
        assert_eq!(
            problems::<Pod>(r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"b"}]}}"#),
            Vec::<String>::new()
        );
        assert_eq!(
            problems::<Pod>(
                r#"{"metadata":{"nam":"a"},"spec":{"foo":1,"containers":[{"name":"b"},{"Name":"b"}]},"x":{}}"#
            ),
            [
                r#"unknown field "metadata.nam""#,
                r#"unknown field "spec.foo""#,
                r#"unknown field "spec.containers[1].Name""#,
                r#"unknown field "x""#,
            ]
        );
        assert_eq!(
            problems::<Deployment>(
                r#"{"spec":{"replicas":1,"replicas":2},"spec":{},"metadata":{"labels":{"a":"1","a":"2"}}}"#
            ),
            [
                r#"duplicate field "spec.replicas""#,
                r#"duplicate field "spec""#,
                r#"duplicate field "metadata.labels.a""#,
            ]
        );
        let many: Vec<String> = (0..100)
            .map(|number| format!("\"k{number}\":\"\""))
            .collect();
        let json = format!("{{\"data\":{{{},\"k7\":\"\"}}}}", many.join(","));
        assert_eq!(
            problems::<ConfigMap>(&json),
            [r#"duplicate field "data.k7""#]
        );
    }

    #[test]
    fn type_errors_read_as_gos() {
        let check = |json: &str, expect: &str| {
            for strict in [false, true] {
                let error = decode::<Deployment>(json.as_bytes(), strict)
                    .map(|_| ())
                    .unwrap_err();
                assert_eq!(error.to_string(), expect);
            }
            let value = serde_json::from_str(json).unwrap();
            assert_eq!(
                from_value::<Deployment>(value)
                    .map(|_| ())
                    .unwrap_err()
                    .to_string(),
                expect
            );
        };
        check(
            r#"{"spec":{"replicas":"x"}}"#,
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        );
        check(
            r#"{"spec":{"template":{"spec":{"containers":[{"name":1}]}}}}"#,
            "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.name of type string",
        );
        check(
            r#"{"spec":{"paused":"yes"}}"#,
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.paused of type bool",
        );
        check(
            r#"{"metadata":{"labels":{"a":1}}}"#,
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        );
        check(
            r#"{"spec":{"replicas":3.5}}"#,
            "json: cannot unmarshal number 3.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        );
        check(
            r#"{"spec":[]}"#,
            "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec",
        );
    }

    #[test]
    fn syntax_errors_read_as_gos() {
        for (json, expect) in [
            ("", "unexpected end of JSON input"),
            ("{\"a\":", "unexpected end of JSON input"),
            ("x", "invalid character 'x' looking for beginning of value"),
            (
                "{a:1}",
                "invalid character 'a' looking for beginning of object key string",
            ),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            (
                "{\"a\":1 \"b\"}",
                "invalid character '\"' after object key:value pair",
            ),
            ("[1 2]", "invalid character '2' after array element"),
            ("{}\n x", "invalid character 'x' after top-level value"),
        ] {
            let error = serde_json::from_str::<Value>(json).unwrap_err();
            assert_eq!(syntax_error(json.as_bytes(), &error), expect, "{json}");
        }
    }

    #[test]
    fn syntax_errors() {
        for json in ["", "{", "{\"a\":}", "{} x", "[1,", "nul"] {
            for strict in [false, true] {
                let error = decode::<Pod>(json.as_bytes(), strict)
                    .map(|_| ())
                    .unwrap_err();
                assert!(matches!(error, DecodeError::Syntax(_)), "{json}: {error}");
            }
        }
    }
}
