//! Query parameters, with the spelling of numbers and booleans that upstream accepts.

use std::borrow::Cow;

use crate::status::{ApiError, ApiResult};

/// The decoded parameters, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let Some(query) = query.filter(|query| !query.is_empty()) else {
            return Self::default();
        };
        Self(
            query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key).into_owned(), decode(value).into_owned())
                })
                .collect(),
        )
    }

    /// The first value of a parameter; empty values count as absent, as upstream has it.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(own, _)| own == key)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(own, _)| own == key)
            .map(|(_, value)| value.as_str())
    }

    pub fn contains(&self, key: &str) -> bool {
        self.0.iter().any(|(own, _)| own == key)
    }

    /// Go's `strconv.ParseBool`, and an empty value counts as true.
    pub fn is_true(&self, key: &str) -> bool {
        self.0
            .iter()
            .find(|(own, _)| own == key)
            .is_some_and(|(_, value)| {
                !matches!(
                    value.as_str(),
                    "0" | "f" | "F" | "false" | "FALSE" | "False"
                )
            })
    }

    pub fn boolean(&self, key: &str) -> Option<bool> {
        self.contains(key).then(|| self.is_true(key))
    }

    pub fn integer(&self, key: &str) -> ApiResult<Option<i64>> {
        self.value(key)
            .map(|value| {
                value.parse().map_err(|_| {
                    ApiError::bad_request(format!(
                        "strconv.ParseInt: parsing {value:?}: invalid syntax"
                    ))
                })
            })
            .transpose()
    }
}

/// Percent-decodes, `+` being a space.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| byte == b'%' || byte == b'+') {
        return Cow::Borrowed(text);
    }
    percent_decode(text, true)
}

/// Percent-decodes a path segment.
pub fn decode_path(text: &str) -> Cow<'_, str> {
    if text.contains('%') {
        percent_decode(text, false)
    } else {
        Cow::Borrowed(text)
    }
}

fn percent_decode(text: &str, plus_is_space: bool) -> Cow<'_, str> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let input = text.as_bytes();
    let mut output = Vec::with_capacity(input.len());
    let mut index = 0;
    while index < input.len() {
        match input[index] {
            b'+' if plus_is_space => output.push(b' '),
            b'%' => match (digit(input.get(index + 1)), digit(input.get(index + 2))) {
                (Some(high), Some(low)) => {
                    output.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                    index += 2;
                }
                _ => output.push(b'%'),
            },
            byte => output.push(byte),
        }
        index += 1;
    }
    Cow::Owned(String::from_utf8_lossy(&output).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn parameters() {
        let query = Query::parse(Some("a=1&b=x%2Cy+z&watch&c=&d=%zz&a=2&e=false&f=%C3%A9"));
        for (key, expect) in [
            ("a", Some("1")),
            ("b", Some("x,y z")),
            ("c", None),
            ("d", Some("%zz")),
            ("f", Some("é")),
            ("none", None),
        ] {
            assert_eq!(query.value(key), expect, "{key}");
        }
        assert_eq!(query.values("a").collect::<Vec<_>>(), ["1", "2"]);
        assert!(
            query.is_true("watch")
                && query.is_true("a")
                && !query.is_true("e")
                && !query.is_true("none")
        );
        assert_eq!(query.integer("a").unwrap(), Some(1));
        assert!(query.integer("b").is_err());
    }
}
