//! Errors of decoding and validation, in the form of Kubernetes' `Status` causes.
//!
//! Validators push [`FieldError`]s built by the functions named as upstream's (`invalid`,
//! `required`, …) onto an [`ErrorList`]; `Display` prints them exactly as `field.Error` does,
//! because users and the conformance suite compare the words.

use std::fmt;

use serde::Serialize;

use crate::path::Path;

/// A body that is no object of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{0}")]
    Syntax(String),
    /// A field of the wrong type; the path and what was expected.
    #[error("{0}")]
    Type(String),
}

/// A cause as `field.Error` upstream: printed `spec.replicas: Invalid value: -1: must be greater than or equal to 0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    pub reason: FieldErrorReason,
    /// Path, for example `spec.containers[0].name`.
    pub field: String,
    /// The offending value as upstream prints it (JSON-like; strings quoted); empty where upstream prints none.
    pub bad_value: String,
    pub detail: String,
}

/// The `reason` of a cause: `FieldValueInvalid`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorReason {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooShort,
    TooMany,
    TooFew,
    TypeInvalid,
    Internal,
}

pub type ErrorList = Vec<FieldError>;

impl FieldErrorReason {
    /// The machine-readable word, as in a `StatusCause`.
    pub fn as_str(self) -> &'static str {
        match self {
            FieldErrorReason::NotFound => "FieldValueNotFound",
            FieldErrorReason::Required => "FieldValueRequired",
            FieldErrorReason::Duplicate => "FieldValueDuplicate",
            FieldErrorReason::Invalid => "FieldValueInvalid",
            FieldErrorReason::NotSupported => "FieldValueNotSupported",
            FieldErrorReason::Forbidden => "FieldValueForbidden",
            FieldErrorReason::TooLong => "FieldValueTooLong",
            FieldErrorReason::TooShort => "FieldValueTooShort",
            FieldErrorReason::TooMany => "FieldValueTooMany",
            FieldErrorReason::TooFew => "FieldValueTooFew",
            FieldErrorReason::TypeInvalid => "FieldValueTypeInvalid",
            FieldErrorReason::Internal => "InternalError",
        }
    }

    /// The words that open the message.
    pub fn words(self) -> &'static str {
        match self {
            FieldErrorReason::NotFound => "Not found",
            FieldErrorReason::Required => "Required value",
            FieldErrorReason::Duplicate => "Duplicate value",
            FieldErrorReason::Invalid | FieldErrorReason::TypeInvalid => "Invalid value",
            FieldErrorReason::NotSupported => "Unsupported value",
            FieldErrorReason::Forbidden => "Forbidden",
            FieldErrorReason::TooLong => "Too long",
            FieldErrorReason::TooShort => "Too short",
            FieldErrorReason::TooMany => "Too many",
            FieldErrorReason::TooFew => "Too few",
            FieldErrorReason::Internal => "Internal error",
        }
    }
}

impl FieldError {
    /// The message without the field: what a `StatusCause` carries as `message`.
    pub fn body(&self) -> String {
        let mut text = String::from(self.reason.words());
        for part in [&self.bad_value, &self.detail] {
            if !part.is_empty() {
                text.push_str(": ");
                text.push_str(part);
            }
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// Prints a list as upstream's `ErrorList.ToAggregate().Error()`: one error bare, several as `[a, b]`, repeats left out.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.len() {
        1 => texts.remove(0),
        _ => format!("[{}]", texts.join(", ")),
    }
}

fn error(
    reason: FieldErrorReason,
    path: &Path<'_>,
    bad_value: String,
    detail: String,
) -> FieldError {
    FieldError {
        reason,
        field: path.to_string(),
        bad_value,
        detail,
    }
}

/// A value as upstream prints it in a message: its JSON encoding.
pub fn print_value<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|cause| format!("<unprintable: {cause}>"))
}

/// A struct as upstream prints one of its internal types, which have no JSON names: fields by their Go names, in Go's
/// order.
pub fn print_go_struct(fields: &[(&str, &dyn erased::Print)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name:?}:{}", value.print()))
        .collect();
    format!("{{{}}}", fields.join(","))
}

mod erased {
    /// What [`super::print_value`] prints, behind a pointer.
    pub trait Print {
        fn print(&self) -> String;
    }

    impl<T: serde::Serialize> Print for T {
        fn print(&self) -> String {
            super::print_value(self)
        }
    }
}

/// Text as Go's `%q` prints it.
pub fn go_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            character if u32::from(character) < 0x20 || u32::from(character) == 0x7f => {
                out.push_str(&format!("\\x{:02x}", u32::from(character)));
            }
            character if character.is_control() => {
                out.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            character => out.push(character),
        }
    }
    out.push('"');
    out
}

pub fn invalid<T: Serialize + ?Sized>(
    path: &Path<'_>,
    value: &T,
    detail: impl Into<String>,
) -> FieldError {
    error(
        FieldErrorReason::Invalid,
        path,
        print_value(value),
        detail.into(),
    )
}

/// One `invalid` error a complaint.
pub fn invalid_each(errors: &mut ErrorList, path: &Path<'_>, value: &str, complaints: Vec<String>) {
    errors.extend(
        complaints
            .into_iter()
            .map(|complaint| invalid(path, value, complaint)),
    );
}

pub fn required(path: &Path<'_>, detail: impl Into<String>) -> FieldError {
    error(
        FieldErrorReason::Required,
        path,
        String::new(),
        detail.into(),
    )
}

pub fn forbidden(path: &Path<'_>, detail: impl Into<String>) -> FieldError {
    error(
        FieldErrorReason::Forbidden,
        path,
        String::new(),
        detail.into(),
    )
}

pub fn duplicate<T: Serialize + ?Sized>(path: &Path<'_>, value: &T) -> FieldError {
    error(
        FieldErrorReason::Duplicate,
        path,
        print_value(value),
        String::new(),
    )
}

pub fn not_found<T: Serialize + ?Sized>(path: &Path<'_>, value: &T) -> FieldError {
    error(
        FieldErrorReason::NotFound,
        path,
        print_value(value),
        String::new(),
    )
}

/// A value outside an enumeration; `supported` in the order in which they are to be printed.
pub fn not_supported<T: Serialize + ?Sized>(
    path: &Path<'_>,
    value: &T,
    supported: &[&str],
) -> FieldError {
    let quoted: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
    let detail = if quoted.is_empty() {
        String::new()
    } else {
        format!("supported values: {}", quoted.join(", "))
    };
    error(
        FieldErrorReason::NotSupported,
        path,
        print_value(value),
        detail,
    )
}

pub fn too_long(path: &Path<'_>, max_bytes: usize) -> FieldError {
    let unit = if max_bytes == 1 { "byte" } else { "bytes" };
    error(
        FieldErrorReason::TooLong,
        path,
        String::new(),
        format!("may not be more than {max_bytes} {unit}"),
    )
}

pub fn too_long_characters(path: &Path<'_>, max_characters: usize) -> FieldError {
    let unit = if max_characters == 1 {
        "character"
    } else {
        "characters"
    };
    error(
        FieldErrorReason::TooLong,
        path,
        String::new(),
        format!("may not be more than {max_characters} {unit}"),
    )
}

pub fn too_many(path: &Path<'_>, actual_count: usize, max_count: usize) -> FieldError {
    let unit = if max_count == 1 { "item" } else { "items" };
    error(
        FieldErrorReason::TooMany,
        path,
        actual_count.to_string(),
        format!("must have at most {max_count} {unit}"),
    )
}

pub fn internal(path: &Path<'_>, detail: impl Into<String>) -> FieldError {
    error(
        FieldErrorReason::Internal,
        path,
        String::new(),
        detail.into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::root;

    #[test]
    fn messages_read_as_upstream() {
        let check = |error: FieldError, expect: &str| assert_eq!(error.to_string(), expect);
        let spec = root("spec");
        check(
            invalid(
                &spec.child("replicas"),
                &-1,
                "must be greater than or equal to 0",
            ),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        );
        check(
            invalid(&spec.child("ports").index(2).child("name"), "a\"b", "bad"),
            r#"spec.ports[2].name: Invalid value: "a\"b": bad"#,
        );
        check(
            required(&spec.child("containers"), ""),
            "spec.containers: Required value",
        );
        check(
            duplicate(&spec.child("data").key("a.b"), "x"),
            r#"spec.data[a.b]: Duplicate value: "x""#,
        );
        check(
            not_supported(&spec.child("type"), "Foo", &["A", "B"]),
            r#"spec.type: Unsupported value: "Foo": supported values: "A", "B""#,
        );
        check(
            too_long(&root("data"), 1),
            "data: Too long: may not be more than 1 byte",
        );
        check(
            too_many(&root("x"), 3, 1),
            "x: Too many: 3: must have at most 1 item",
        );
        check(forbidden(&root("x"), "no"), "x: Forbidden: no");
    }

    #[test]
    fn text_is_quoted_as_by_go() {
        for (text, expect) in [
            ("a\"b\\", r#""a\"b\\""#),
            ("a\0\n\t\u{7}é", r#""a\x00\n\t\aé""#),
            ("\u{85}", r#""\u0085""#),
        ] {
            assert_eq!(go_quoted(text), expect);
        }
    }

    #[test]
    fn several_are_listed_once_each() {
        let one = required(&root("a"), "");
        assert_eq!(aggregate(std::slice::from_ref(&one)), "a: Required value");
        let two = required(&root("b"), "");
        assert_eq!(
            aggregate(&[one.clone(), two, one]),
            "[a: Required value, b: Required value]"
        );
    }
}
