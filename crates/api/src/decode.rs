//! JSON to typed objects, with unknown and duplicate fields reported as upstream words them.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::DecodeError;
use crate::kind::FieldProblem;

/// Decodes `json`; with `strict` also lists the unknown fields.
pub fn decode<K: DeserializeOwned>(json: &[u8], strict: bool) -> Result<(K, Vec<FieldProblem>), DecodeError> {
    let mut problems = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let object = if strict {
        serde_ignored::deserialize(&mut deserializer, |path| {
            problems.push(FieldProblem { message: format!("unknown field \"{path}\"") });
        })
    } else {
        K::deserialize(&mut deserializer)
    };
    let object = object.map_err(|cause| DecodeError::Syntax(cause.to_string()))?;
    deserializer.end().map_err(|cause| DecodeError::Syntax(cause.to_string()))?;
    Ok((object, problems))
}

pub fn from_value<K: DeserializeOwned>(value: Value) -> Result<K, DecodeError> {
    serde_json::from_value(value).map_err(|cause| DecodeError::Type(cause.to_string()))
}
