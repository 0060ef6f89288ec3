//! What an error of the API means to a loop.

use kube::Error;

fn code(error: &Error) -> Option<u16> {
    match error {
        Error::Api(status) => Some(status.code),
        _ => None,
    }
}

fn has_reason(error: &Error, reason: &str) -> bool {
    matches!(error, Error::Api(status) if status.reason == reason)
}

pub fn is_not_found(error: &Error) -> bool {
    code(error) == Some(404)
}

pub fn is_forbidden(error: &Error) -> bool {
    code(error) == Some(403)
}

pub fn is_conflict(error: &Error) -> bool {
    code(error) == Some(409) && !has_reason(error, "AlreadyExists")
}

pub fn already_exists(error: &Error) -> bool {
    has_reason(error, "AlreadyExists")
}

/// Creation is refused because the namespace is on its way out: there is nothing to retry.
pub fn namespace_is_terminating(error: &Error) -> bool {
    let Error::Api(status) = error else {
        return false;
    };
    let cause = status.details.as_ref().is_some_and(|details| {
        details
            .causes
            .iter()
            .any(|cause| cause.reason == "NamespaceTerminating")
    });
    status.code == 403 && (cause || status.message.contains("because it is being terminated"))
}

/// The server's own words, without the client's wrapping.
pub fn message(error: &Error) -> String {
    match error {
        Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}
