//! Places in the JSON text of an object, found without decoding it.

/// How an encoding goes on after its kind, in most kinds.
const METADATA: &[u8] = b"\"metadata\":{";

/// The offset behind the brace that opens the object's own `metadata`; `None` if it has none.
///
/// Kinds that have fields which sort before `metadata` (data, messages, endpoints) are looked
/// through: what reads like metadata within them is passed over.
pub fn metadata_offset(json: &[u8]) -> Option<usize> {
    let mut index = value_end(json, b"{\"apiVersion\":")
        .and_then(|end| value_end_from(json, end, b",\"kind\":"))
        .map_or(0, |end| end + 1);
    if json
        .get(index..)
        .is_some_and(|rest| rest.starts_with(METADATA))
    {
        return Some(index + METADATA.len());
    }
    let mut depth = u32::from(index > 0);
    while index < json.len() {
        match json[index] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let start = index + 1;
                index = string_end(json, index)?;
                if depth == 1 && &json[start..index] == b"metadata" {
                    // A value that reads `metadata` is no key.
                    if let Some(colon) = token_end(json, index + 1, b':') {
                        return token_end(json, colon, b'{');
                    }
                }
            }
            _ => {}
        }
        index += 1;
    }
    None
}

/// The offset behind a string value whose key the text begins with.
fn value_end(json: &[u8], begin: &[u8]) -> Option<usize> {
    value_end_from(json, 0, begin)
}

fn value_end_from(json: &[u8], from: usize, begin: &[u8]) -> Option<usize> {
    let value = from + begin.len();
    (json.get(from..value)? == begin && *json.get(value)? == b'"')
        .then(|| string_end(json, value))
        .flatten()
        .map(|end| end + 1)
}

/// The offset of the quotation mark that ends the string which begins at `start`.
fn string_end(json: &[u8], start: usize) -> Option<usize> {
    let mut index = start + 1;
    loop {
        index += json
            .get(index..)?
            .iter()
            .position(|byte| matches!(byte, b'"' | b'\\'))?;
        if json[index] == b'"' {
            return Some(index);
        }
        index += 2;
    }
}

/// The offset behind a token, with space before it allowed.
fn token_end(json: &[u8], from: usize, token: u8) -> Option<usize> {
    let rest = json.get(from..)?;
    let blank = rest
        .iter()
        .take_while(|byte| byte.is_ascii_whitespace())
        .count();
    (rest.get(blank) == Some(&token)).then_some(from + blank + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_own_metadata_is_found() {
        let long = "x".repeat(4000);
        for (json, expect) in [
            (
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}"#.to_string(),
                Some(r#""name":"a"}}"#),
            ),
            (
                format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","data":{{"k":"{long}"}},"metadata":{{"name":"b"}}}}"#),
                Some(r#""name":"b"}}"#),
            ),
            (
                r#"{"apiVersion":"apps/v1","kind":"ControllerRevision","data":{"metadata":{"name":"x"},"a":[{"metadata":{}}]},"metadata":{"name":"c"},"revision":1}"#.to_string(),
                Some(r#""name":"c"},"revision":1}"#),
            ),
            (
                r#"{"kind":"metadata","a":"\"metadata\":{\\","metadata" : { }}"#.to_string(),
                Some(" }}"),
            ),
            (r#"{"apiVersion":"v1","kind":"Binding","target":{"metadata":{}}}"#.to_string(), None),
            (r#"{"apiVersion":"v1","kind":"Pod"#.to_string(), None),
            (r#"{"metadata":null}"#.to_string(), None),
            (String::new(), None),
        ] {
            let found = metadata_offset(json.as_bytes()).map(|offset| &json[offset..]);
            assert_eq!(found, expect, "{json}");
        }
    }
}
