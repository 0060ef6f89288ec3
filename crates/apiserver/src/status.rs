//! Errors as clients see them: the one file that turns a failure into a Kubernetes `Status`.
//!
//! Enter at [`ApiError`]. Codes, reasons and messages are those of upstream's
//! `k8s.io/apimachinery/pkg/api/errors`; clients match on them.

use api::error::{DecodeError, ErrorList, FieldErrorReason, aggregate};
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde_json::{Value, json};
use store::StoreError;

use crate::body::ResponseBody;

pub type ApiResult<T> = Result<T, ApiError>;

/// A failed request, ready to be answered.
#[derive(Clone, Debug)]
pub struct ApiError(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    code: StatusCode,
    reason: &'static str,
    message: String,
    /// `name`, `group`, `kind`, `uid`, `causes`, `retryAfterSeconds`.
    details: serde_json::Map<String, Value>,
    /// Upstream's answers of this sort have details, if only empty ones.
    has_details: bool,
}

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            code,
            reason,
            message: message.into(),
            details: serde_json::Map::new(),
            has_details: false,
        }))
    }

    fn with_details(mut self) -> Self {
        self.0.has_details = true;
        self
    }

    /// Names the object that the error is about.
    fn about(mut self, group: &str, resource: &str, name: &str) -> Self {
        for (key, value) in [("name", name), ("group", group), ("kind", resource)] {
            if !value.is_empty() {
                self.0.details.insert(key.into(), value.into());
            }
        }
        self
    }

    fn cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        let mut cause = json!({"reason": reason, "message": message});
        if !field.is_empty() {
            cause["field"] = field.into();
        }
        match self.0.details.get_mut("causes") {
            Some(Value::Array(causes)) => causes.push(cause),
            _ => {
                self.0.details.insert("causes".into(), json!([cause]));
            }
        }
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    /// `message` is the part after `<resource> "<name>" is forbidden: `.
    pub fn forbidden(group: &str, resource: &str, name: &str, message: &str) -> Self {
        let qualified = qualified(group, resource);
        let text = match (name, resource) {
            (_, "") => format!("forbidden: {message}"),
            ("", _) => format!("{qualified} is forbidden: {message}"),
            _ => format!("{qualified} {name:?} is forbidden: {message}"),
        };
        Self::new(StatusCode::FORBIDDEN, "Forbidden", text)
            .about(group, resource, name)
            .with_details()
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("{} {name:?} not found", qualified(group, resource)),
        )
        .about(group, resource, name)
    }

    /// What someone else says is not there.
    pub fn not_found_text(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// No such path.
    pub fn no_such_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        )
        .with_details()
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "AlreadyExists",
            format!("{} {name:?} already exists", qualified(group, resource)),
        )
        .about(group, resource, name)
    }

    /// A generated name was taken, several times over.
    pub fn generated_name_taken(group: &str, resource: &str, name: &str) -> Self {
        let mut error = Self::already_exists(group, resource, name);
        error.0.message += ", the server was not able to generate a unique name for the object";
        error
    }

    pub fn conflict(group: &str, resource: &str, name: &str, detail: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {detail}",
            qualified(group, resource)
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(group, resource, name)
    }

    /// The object is not what the writer had read.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        Self::conflict(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// A conflict of server-side apply; `causes` are (field, message).
    pub fn apply_conflict(message: &str, causes: &[(String, String)]) -> Self {
        let error = Self::new(StatusCode::CONFLICT, "Conflict", message);
        causes.iter().fold(error, |error, (field, message)| {
            error.cause("FieldManagerConflict", message, field)
        })
    }

    /// What validation found, with a cause each; `kind` is the kind's name, not the resource's.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &ErrorList) -> Self {
        let message = format!(
            "{} {name:?} is invalid: {}",
            qualified(group, kind),
            aggregate(errors)
        );
        let error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
            .about(group, kind, name);
        errors.iter().fold(error, |error, cause| {
            let text = cause.to_string();
            let message = text
                .strip_prefix(&format!("{}: ", cause.field))
                .unwrap_or(&text);
            error.cause(cause_reason(cause.reason), message, &cause.field)
        })
    }

    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .with_details()
    }

    /// `accepted` are the media types that would do.
    pub fn not_acceptable(accepted: &str) -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            format!("406: Not Acceptable\n\nAvailable representations: {accepted}"),
        )
        .with_details()
    }

    pub fn unsupported_media_type(accepted: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {accepted}"
            ),
        )
    }

    pub fn unsupported_patch_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "415: Unsupported Media Type",
        )
        .with_details()
    }

    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit_bytes}"),
        )
    }

    /// A JSON patch that does not fit the object. Upstream does not say why, and neither do we to clients: kubectl
    /// prints this very message.
    pub fn patch_does_not_apply() -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            "the server rejected our request due to an error in our request",
        )
        .with_details()
    }

    /// A patched object that cannot be decoded; `shown` is the object, or the patch, as upstream prints it.
    pub fn undecodable_patch(shown: &str, problem: &impl std::fmt::Display) -> Self {
        let error = api::error::FieldError {
            reason: FieldErrorReason::Invalid,
            field: "patch".into(),
            bad_value: api::error::go_quoted(shown),
            detail: problem.to_string(),
        };
        Self::invalid("", "", "", &vec![error])
    }

    /// An error that upstream's handlers pass on as it is: 500, without a reason.
    pub fn unexplained(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
    }

    pub fn too_large_patch(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            message,
        )
    }

    /// A revision that is no longer kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// The revision asked for has not been reached.
    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            format!("Timeout: Too large resource version: {requested}, current: {current}"),
        )
        .cause("ResourceVersionTooLarge", "Too large resource version", "")
        .retry_after(1)
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
            .retry_after(retry_after_seconds)
    }

    /// Adds a cause; `field` may be empty.
    pub fn with_cause(self, reason: &str, message: &str, field: &str) -> Self {
        self.cause(reason, message, field)
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            message,
        )
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {message}"),
        )
        .cause("", &message.to_string(), "")
    }

    /// Zero is not said, as upstream leaves it out.
    fn retry_after(mut self, seconds: u64) -> Self {
        if seconds > 0 {
            self.0
                .details
                .insert("retryAfterSeconds".into(), seconds.into());
        }
        self
    }

    /// A body that cannot be decoded.
    pub fn undecodable(kind: &str, version: &str, error: &DecodeError) -> Self {
        Self::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
        ))
    }

    /// Unknown or duplicate fields under `fieldValidation=Strict`.
    pub fn strict(kind: &str, version: &str, messages: &[String]) -> Self {
        let list = messages.join(", ");
        Self::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {list}"
        ))
    }

    pub fn code(&self) -> StatusCode {
        self.0.code
    }

    pub fn reason(&self) -> &'static str {
        self.0.reason
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn is_conflict(&self) -> bool {
        self.0.reason == "Conflict"
    }

    pub fn is_not_found(&self) -> bool {
        self.0.reason == "NotFound"
    }

    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.0.message,
        });
        if !self.0.reason.is_empty() {
            status["reason"] = self.0.reason.into();
        }
        if self.0.has_details || !self.0.details.is_empty() {
            status["details"] = Value::Object(self.0.details.clone());
        }
        status["code"] = self.0.code.as_u16().into();
        status
    }

    pub fn to_response(&self) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::from(self.to_status().to_string() + "\n"));
        *response.status_mut() = self.0.code;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self
            .0
            .details
            .get("retryAfterSeconds")
            .and_then(Value::as_u64)
        {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for ApiError {}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted { requested, oldest } => {
                Self::expired(format!("too old resource version: {requested} ({oldest})"))
            }
            StoreError::FutureRevision { requested, current } => {
                Self::too_large_resource_version(requested.0, current.0)
            }
            StoreError::TooLarge { limit_bytes, .. } => Self::too_large(limit_bytes),
            StoreError::DiskFull { .. } => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "InternalError",
                format!("{error}; free some space, nothing was written"),
            ),
            StoreError::Closed => Self::service_unavailable("the server is shutting down"),
            other => Self::internal(other),
        }
    }
}

/// `deployments.apps`, `pods`.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

fn cause_reason(reason: FieldErrorReason) -> &'static str {
    match reason {
        FieldErrorReason::NotFound => "FieldValueNotFound",
        FieldErrorReason::Required => "FieldValueRequired",
        FieldErrorReason::Duplicate => "FieldValueDuplicate",
        FieldErrorReason::Invalid => "FieldValueInvalid",
        FieldErrorReason::NotSupported => "FieldValueNotSupported",
        FieldErrorReason::Forbidden => "FieldValueForbidden",
        FieldErrorReason::TooLong => "FieldValueTooLong",
        FieldErrorReason::TooShort => "FieldValueTooShort",
        FieldErrorReason::TooFew => "FieldValueTooFew",
        FieldErrorReason::TooMany => "FieldValueTooMany",
        FieldErrorReason::TypeInvalid => "FieldValueTypeInvalid",
        FieldErrorReason::Internal => "InternalError",
    }
}
