//! Patches of JSON objects: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and strategic merge patch.
//!
//! Enter at [`json_patch`], [`merge_patch`] or [`strategic_merge_patch`]. Each takes the object that is
//! patched by value and gives the patched one; the result is not validated here. Nesting is bounded by
//! what `serde_json` accepts when it parses (128 levels). Server-side apply is in [`crate::managed_fields`].

mod json;
mod strategic;

use serde_json::{Map, Value};

pub use json::json_patch;
pub use strategic::{shown, strategic_merge_patch};

pub const JSON_PATCH_TYPE: &str = "application/json-patch+json";
pub const MERGE_PATCH_TYPE: &str = "application/merge-patch+json";
pub const STRATEGIC_MERGE_PATCH_TYPE: &str = "application/strategic-merge-patch+json";
pub const APPLY_PATCH_TYPE: &str = "application/apply-patch+yaml";

/// A patch that cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is no patch.
    #[error("{0}")]
    BadRequest(String),
    /// The patch does not fit the object.
    #[error("{0}")]
    Unprocessable(String),
    /// The patch has too many operations or copies too much.
    #[error("{0}")]
    TooLarge(String),
    /// The patch names list elements or directives in a way that this kind does not allow.
    #[error("{0}")]
    Internal(String),
}

impl PatchError {
    /// The HTTP status that upstream answers with.
    pub fn status_code(&self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::TooLarge(_) => 413,
            Self::Unprocessable(_) => 422,
            Self::Internal(_) => 500,
        }
    }
}

/// Applies a JSON merge patch: objects are merged, `null` removes, everything else replaces.
pub fn merge_patch(object: Value, patch: Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch;
    };
    let mut merged = match object {
        Value::Object(merged) => merged,
        _ => Map::new(),
    };
    for (name, value) in patch {
        if value.is_null() {
            merged.remove(&name);
            continue;
        }
        let old = merged.remove(&name).unwrap_or(Value::Null);
        merged.insert(name, merge_patch(old, value));
    }
    Value::Object(merged)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::merge_patch;

    #[test]
    fn merge_patches_of_the_rfc() {
        let check = |object, patch, expect| assert_eq!(merge_patch(object, patch), expect);
        check(json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"}));
        check(
            json!({"a": "b"}),
            json!({"b": "c"}),
            json!({"a": "b", "b": "c"}),
        );
        check(json!({"a": "b"}), json!({"a": null}), json!({}));
        check(json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"}));
        check(
            json!({"a": {"b": "c"}}),
            json!({"a": {"b": "d", "c": null}}),
            json!({"a": {"b": "d"}}),
        );
        check(
            json!({"a": [{"b": "c"}]}),
            json!({"a": [1]}),
            json!({"a": [1]}),
        );
        check(
            json!({"e": null}),
            json!({"a": 1}),
            json!({"e": null, "a": 1}),
        );
        check(
            json!({}),
            json!({"a": {"bb": {"ccc": null}}}),
            json!({"a": {"bb": {}}}),
        );
        check(json!({"a": "foo"}), json!("bar"), json!("bar"));
    }
}
