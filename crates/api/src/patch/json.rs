//! JSON patch, RFC 6902, with the limits and messages of the library that upstream uses.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::PatchError;

/// Operations in one patch.
const OPERATIONS_MAX: usize = 10_000;

/// What the `copy` operations of one patch may add, in bytes of JSON.
const COPY_BYTES_MAX: usize = 3 * 1024 * 1024;

#[derive(Deserialize)]
struct Operation {
    #[serde(default)]
    op: String,
    path: Option<String>,
    from: Option<String>,
    /// `Some(Value::Null)` where the patch says `null`.
    #[serde(default, deserialize_with = "present")]
    value: Option<Value>,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Applies a JSON patch, given as its text.
pub fn json_patch(object: Value, patch: &[u8]) -> Result<Value, PatchError> {
    let operations: Vec<Operation> = serde_json::from_slice(patch).map_err(|error| {
        let problem = match serde_json::from_slice::<Value>(patch) {
            Err(syntax) => crate::decode::syntax_error(patch, &syntax),
            Ok(value) if !value.is_array() => format!(
                "json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
                crate::decode::json_type(&value)
            ),
            Ok(_) => error.to_string(),
        };
        PatchError::BadRequest(format!("error decoding patch: {problem}"))
    })?;
    if operations.len() > OPERATIONS_MAX {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        )));
    }
    let mut document = object;
    let mut copied_bytes = 0;
    for operation in operations {
        apply(&mut document, operation, &mut copied_bytes)?;
    }
    Ok(document)
}

fn apply(
    document: &mut Value,
    operation: Operation,
    copied_bytes: &mut usize,
) -> Result<(), PatchError> {
    let Operation {
        op,
        path,
        from,
        value,
    } = operation;
    let missing_path = || {
        fail(format!(
            "{op} operation failed to decode path: operation missing path field: missing value"
        ))
    };
    let missing_from = || {
        fail(format!(
            "{op} operation failed to decode from: operation, missing from field: missing value"
        ))
    };
    match op.as_str() {
        "add" => {
            let path = path.ok_or_else(missing_path)?;
            // Upstream's library takes an absent value for null.
            add(document, &path, value.unwrap_or(Value::Null), "add")
        }
        "remove" => {
            let path = path.ok_or_else(missing_path)?;
            remove(document, &path, "remove", "path").map(drop)
        }
        "replace" => {
            let path = path.ok_or_else(missing_path)?;
            replace(document, &path, value.unwrap_or(Value::Null))
        }
        "move" => {
            let from = from.ok_or_else(missing_from)?;
            let path = path.ok_or_else(missing_path)?;
            let value = remove(document, &from, "move", "from path")?;
            add(document, &path, value, "move")
        }
        "copy" => {
            let from = from.ok_or_else(missing_from)?;
            let path = path.ok_or_else(missing_path)?;
            let tokens = tokens(&from, &op)?;
            // As upstream's library has it, a member that an object has not reads as null.
            let value = match find(document, &tokens) {
                Some(value) => value.clone(),
                None if is_in_object(document, &tokens) => Value::Null,
                None => {
                    return Err(fail(format!(
                        "copy operation does not apply: doc is missing from path: {from}: missing value"
                    )));
                }
            };
            *copied_bytes += value.to_string().len();
            if *copied_bytes > COPY_BYTES_MAX {
                return Err(PatchError::TooLarge(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied_bytes}, exceeding the limit {COPY_BYTES_MAX}"
                )));
            }
            add(document, &path, value, "copy")
        }
        "test" => {
            let path = path.ok_or_else(missing_path)?;
            let expect = value.unwrap_or(Value::Null);
            let tokens = tokens(&path, &op)?;
            let found = find(document, &tokens).unwrap_or(&Value::Null);
            if *found == expect {
                Ok(())
            } else {
                Err(fail(format!("testing value {path} failed: test failed")))
            }
        }
        other => Err(fail(format!("Unexpected kind: {other}"))),
    }
}

fn fail(message: String) -> PatchError {
    PatchError::Unprocessable(message)
}

/// The parts of a JSON pointer, unescaped.
fn tokens(path: &str, op: &str) -> Result<Vec<String>, PatchError> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err(fail(format!(
            "{op} operation does not apply: doc is missing path: \"{path}\": missing value"
        )));
    };
    Ok(rest
        .split('/')
        .map(|token| token.replace("~1", "/").replace("~0", "~"))
        .collect())
}

fn find<'a>(document: &'a Value, tokens: &[String]) -> Option<&'a Value> {
    tokens
        .iter()
        .try_fold(document, |value, token| match value {
            Value::Object(object) => object.get(token),
            Value::Array(items) => items.get(index(token, items.len()).ok()?),
            _ => None,
        })
}

fn find_mut<'a>(document: &'a mut Value, tokens: &[String]) -> Option<&'a mut Value> {
    tokens
        .iter()
        .try_fold(document, |value, token| match value {
            Value::Object(object) => object.get_mut(token),
            Value::Array(items) => {
                let index = index(token, items.len()).ok()?;
                items.get_mut(index)
            }
            _ => None,
        })
}

/// An array index below `length`; negative ones count from the end.
fn index(token: &str, length: usize) -> Result<usize, String> {
    let number: i64 = token
        .parse()
        .map_err(|_| format!("value was not a proper array index: '{token}'"))?;
    let resolved = if number < 0 {
        number + length as i64
    } else {
        number
    };
    usize::try_from(resolved)
        .ok()
        .filter(|index| *index < length)
        .ok_or_else(|| {
            format!("Unable to access invalid index: {number}: invalid index referenced")
        })
}

enum Parent<'a> {
    Object(&'a mut Map<String, Value>),
    Array(&'a mut Vec<Value>),
}

fn parent<'a>(document: &'a mut Value, tokens: &[String]) -> Option<Parent<'a>> {
    match find_mut(document, tokens)? {
        Value::Object(object) => Some(Parent::Object(object)),
        Value::Array(items) => Some(Parent::Array(items)),
        _ => None,
    }
}

fn add(document: &mut Value, path: &str, value: Value, op: &str) -> Result<(), PatchError> {
    let tokens = tokens(path, op)?;
    let Some((last, parents)) = tokens.split_last() else {
        *document = value;
        return Ok(());
    };
    let destination = if op == "add" {
        format!("path: \"{path}\"")
    } else {
        format!("destination path: {path}")
    };
    match parent(document, parents) {
        Some(Parent::Object(object)) => {
            object.insert(last.clone(), value);
            Ok(())
        }
        Some(Parent::Array(items)) if last == "-" => {
            items.push(value);
            Ok(())
        }
        Some(Parent::Array(items)) => {
            let index = index(last, items.len() + 1)
                .map_err(|problem| fail(format!("error in {op} for path: '{path}': {problem}")))?;
            items.insert(index, value);
            Ok(())
        }
        None => Err(fail(format!(
            "{op} operation does not apply: doc is missing {destination}: missing value"
        ))),
    }
}

fn remove(document: &mut Value, path: &str, op: &str, what: &str) -> Result<Value, PatchError> {
    let tokens = tokens(path, op)?;
    let shown = if op == "remove" {
        format!("\"{path}\"")
    } else {
        path.to_owned()
    };
    let missing = || {
        fail(format!(
            "{op} operation does not apply: doc is missing {what}: {shown}: missing value"
        ))
    };
    let (last, parents) = tokens.split_last().ok_or_else(missing)?;
    match parent(document, parents) {
        Some(Parent::Object(object)) => {
            object.remove(last).ok_or_else(|| fail(format!("error in {op} for path: '{path}': Unable to remove nonexistent key: {last}: missing value")))
        }
        Some(Parent::Array(items)) => {
            let index = index(last, items.len()).map_err(|problem| fail(format!("error in {op} for path: '{path}': {problem}")))?;
            Ok(items.remove(index))
        }
        None => Err(missing()),
    }
}

fn replace(document: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    let tokens = tokens(path, "replace")?;
    let Some((_, parents)) = tokens.split_last() else {
        if !value.is_object() && !value.is_array() {
            return Err(fail(
                "replace operation value must be object or array: unknown object type".to_owned(),
            ));
        }
        *document = value;
        return Ok(());
    };
    if parent(document, parents).is_none() {
        return Err(fail(format!(
            "replace operation does not apply: doc is missing path: {path}: missing value"
        )));
    }
    let (last, parents) = tokens
        .split_last()
        .expect("a path to the root was handled above");
    // Upstream's library replaces what is not there yet, in an object.
    if let Some(Parent::Object(object)) = parent(document, parents) {
        object.insert(last.clone(), value);
        return Ok(());
    }
    let target = find_mut(document, &tokens).ok_or_else(|| {
        fail(format!(
            "replace operation does not apply: doc is missing key: {path}: missing value"
        ))
    })?;
    *target = value;
    Ok(())
}

fn is_in_object(document: &Value, tokens: &[String]) -> bool {
    tokens
        .split_last()
        .and_then(|(_, parents)| find(document, parents))
        .is_some_and(Value::is_object)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(object: Value, patch: Value, expect: Result<Value, &str>) {
        let result = json_patch(object, patch.to_string().as_bytes());
        assert_eq!(
            result.map_err(|error| error.to_string()),
            expect.map_err(str::to_owned),
            "{patch}"
        );
    }

    #[test]
    fn operations() {
        let list = || json!({"a": [1, 2, 3], "m": {"x/y": 1}});
        check(
            list(),
            json!([{"op": "add", "path": "/a/1", "value": 9}]),
            Ok(json!({"a": [1, 9, 2, 3], "m": {"x/y": 1}})),
        );
        check(
            list(),
            json!([{"op": "add", "path": "/a/-", "value": 9}]),
            Ok(json!({"a": [1, 2, 3, 9], "m": {"x/y": 1}})),
        );
        check(
            list(),
            json!([{"op": "add", "path": "/a/3", "value": 9}]),
            Ok(json!({"a": [1, 2, 3, 9], "m": {"x/y": 1}})),
        );
        check(
            list(),
            json!([{"op": "remove", "path": "/m/x~1y"}]),
            Ok(json!({"a": [1, 2, 3], "m": {}})),
        );
        check(
            list(),
            json!([{"op": "replace", "path": "/a/-1", "value": 0}]),
            Ok(json!({"a": [1, 2, 0], "m": {"x/y": 1}})),
        );
        check(
            list(),
            json!([{"op": "move", "from": "/a/0", "path": "/b"}]),
            Ok(json!({"a": [2, 3], "b": 1, "m": {"x/y": 1}})),
        );
        check(
            list(),
            json!([{"op": "copy", "from": "/a", "path": "/m/c"}]),
            Ok(json!({"a": [1, 2, 3], "m": {"x/y": 1, "c": [1, 2, 3]}})),
        );
        check(
            list(),
            json!([{"op": "test", "path": "/a/0", "value": 1}, {"op": "test", "path": "/none", "value": null}]),
            Ok(list()),
        );
        check(
            list(),
            json!([{"op": "add", "path": "/n", "value": null}]),
            Ok(json!({"a": [1, 2, 3], "m": {"x/y": 1}, "n": null})),
        );
        // As upstream, though RFC 6902 wants the target to be there.
        check(
            list(),
            json!([{"op": "replace", "path": "/m/new", "value": 2}, {"op": "copy", "from": "/none", "path": "/n"}]),
            Ok(json!({"a": [1, 2, 3], "m": {"x/y": 1, "new": 2}, "n": null})),
        );
    }

    #[test]
    fn failures_are_worded_as_upstream() {
        let object = || json!({"a": [1], "m": {}});
        check(
            object(),
            json!([{"op": "test", "path": "/a/0", "value": 2}]),
            Err("testing value /a/0 failed: test failed"),
        );
        check(
            object(),
            json!([{"op": "add", "path": "/x/y", "value": 2}]),
            Err("add operation does not apply: doc is missing path: \"/x/y\": missing value"),
        );
        check(
            object(),
            json!([{"op": "add", "path": "/a/5", "value": 2}]),
            Err(
                "error in add for path: '/a/5': Unable to access invalid index: 5: invalid index referenced",
            ),
        );
        check(
            object(),
            json!([{"op": "remove", "path": "/m/x"}]),
            Err(
                "error in remove for path: '/m/x': Unable to remove nonexistent key: x: missing value",
            ),
        );
        check(
            object(),
            json!([{"op": "replace", "path": "/m/x/y", "value": 1}]),
            Err("replace operation does not apply: doc is missing path: /m/x/y: missing value"),
        );
        check(
            object(),
            json!([{"op": "replace", "path": "/a/7", "value": 1}]),
            Err("replace operation does not apply: doc is missing key: /a/7: missing value"),
        );
        check(
            object(),
            json!([{"op": "copy", "from": "/x/z", "path": "/y"}]),
            Err("copy operation does not apply: doc is missing from path: /x/z: missing value"),
        );
        check(
            object(),
            json!([{"op": "frob", "path": "/y"}]),
            Err("Unexpected kind: frob"),
        );
        assert!(matches!(
            json_patch(object(), b"{}"),
            Err(PatchError::BadRequest(_))
        ));
        let many = Value::Array(vec![json!({"op": "test", "path": "/n"}); 10_001]);
        check(
            object(),
            many,
            Err("The allowed maximum operations in a JSON patch is 10000, got 10001"),
        );
    }

    #[test]
    fn copies_may_not_explode() {
        let patch: Vec<Value> = (0..40)
            .map(|_| json!({"op": "copy", "from": "", "path": "/a/-"}))
            .collect();
        let result = json_patch(
            json!({"a": ["x"]}),
            Value::Array(patch).to_string().as_bytes(),
        );
        assert!(matches!(result, Err(PatchError::TooLarge(_))));
    }
}
