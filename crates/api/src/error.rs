//! Errors of decoding and validation, in the form of Kubernetes' `Status` causes.

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
    TooMany,
    TypeInvalid,
    Internal,
}

pub type ErrorList = Vec<FieldError>;
