//! `ListOptions`, `DeleteOptions` and the options of writes, from queries and bodies.

use api::error::{ErrorList, FieldError, FieldErrorReason, go_quoted};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions as DeleteOptionsBody;

use crate::request::Query;
use crate::status::{ApiError, ApiResult};

/// How unknown and duplicate fields are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// Options of create, update and patch.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    pub dry_run: bool,
    /// Empty: derived from the user agent.
    pub field_manager: String,
    pub field_validation: FieldValidation,
    pub force: bool,
}

/// What [`WriteOptions::parse`] is given for the options of a server-side apply.
pub const APPLY: &str = "PatchOptions of an apply";

impl WriteOptions {
    pub fn parse(query: &Query, kind: &'static str) -> ApiResult<Self> {
        let mut errors = ErrorList::new();
        let dry_run = dry_run(query.values("dryRun"), &mut errors);
        let field_validation = match query.value("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                errors.push(not_supported(
                    "fieldValidation",
                    other,
                    r#""", "Ignore", "Strict", "Warn""#,
                ));
                FieldValidation::Warn
            }
        };
        let field_manager = query.value("fieldManager").unwrap_or_default().to_owned();
        if field_manager.len() > 128 {
            errors.push(problem(
                FieldErrorReason::TooLong,
                "fieldManager",
                "",
                "may not be more than 128 bytes",
            ));
        }
        if let Some((index, character)) = field_manager
            .char_indices()
            .find(|(_, character)| character.is_control())
        {
            let detail = format!(
                "invalid character U+{:04X} (at position {index})",
                u32::from(character)
            );
            errors.push(problem(
                FieldErrorReason::Invalid,
                "fieldManager",
                &go_quoted(&field_manager),
                &detail,
            ));
        }
        let force = query.boolean("force");
        if kind == APPLY {
            if field_manager.is_empty() {
                errors.push(problem(
                    FieldErrorReason::Required,
                    "fieldManager",
                    "",
                    "is required for apply patch",
                ));
            }
        } else if force.is_some() && kind == "PatchOptions" {
            errors.push(problem(
                FieldErrorReason::Forbidden,
                "force",
                "",
                "may not be specified for non-apply patch",
            ));
        }
        if errors.is_empty() {
            Ok(Self {
                dry_run,
                field_manager,
                field_validation,
                force: force.unwrap_or(false),
            })
        } else {
            let kind = if kind == APPLY { "PatchOptions" } else { kind };
            Err(ApiError::invalid("meta.k8s.io", kind, "", &errors))
        }
    }
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut ErrorList) -> bool {
    let values: Vec<&str> = values.filter(|value| !value.is_empty()).collect();
    if values.iter().any(|value| *value != "All") {
        // The whole list is the value that is refused.
        let shown = format!("{values:?}").replace("\", \"", "\",\"");
        errors.push(problem(
            FieldErrorReason::NotSupported,
            "dryRun",
            &shown,
            "supported values: \"All\"",
        ));
    }
    !values.is_empty()
}

fn not_supported(field: &str, value: &str, supported: &str) -> FieldError {
    problem(
        FieldErrorReason::NotSupported,
        field,
        &format!("{value:?}"),
        &format!("supported values: {supported}"),
    )
}

fn problem(reason: FieldErrorReason, field: &str, bad_value: &str, detail: &str) -> FieldError {
    FieldError {
        reason,
        field: field.into(),
        bad_value: bad_value.into(),
        detail: detail.into(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub dry_run: bool,
    pub grace_period_seconds: Option<i64>,
    /// `None`: the kind's default, background.
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// The body wins over the query, as upstream has it; `body` is JSON or empty.
    pub fn parse(query: &Query, body: &[u8]) -> ApiResult<Self> {
        let mut errors = ErrorList::new();
        let options: DeleteOptionsBody = if body.is_empty() {
            DeleteOptionsBody {
                dry_run: Some(query.values("dryRun").map(str::to_owned).collect()),
                grace_period_seconds: query.integer("gracePeriodSeconds")?,
                orphan_dependents: query.boolean("orphanDependents"),
                propagation_policy: query.value("propagationPolicy").map(str::to_owned),
                ..DeleteOptionsBody::default()
            }
        } else {
            check_is_delete_options(body)?;
            serde_json::from_slice(body).map_err(|error| {
                ApiError::bad_request(format!("the body is no DeleteOptions: {error}"))
            })?
        };
        let dry_run = dry_run(
            options.dry_run.iter().flatten().map(String::as_str),
            &mut errors,
        );
        let propagation = match options.propagation_policy.as_deref() {
            None | Some("") => options.orphan_dependents.map(|orphan| {
                if orphan {
                    Propagation::Orphan
                } else {
                    Propagation::Background
                }
            }),
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                errors.push(not_supported(
                    "propagationPolicy",
                    other,
                    r#""Foreground", "Background", "Orphan", "nil""#,
                ));
                None
            }
        };
        if options
            .propagation_policy
            .as_deref()
            .is_some_and(|policy| !policy.is_empty())
            && options.orphan_dependents.is_some()
        {
            errors.push(problem(
                FieldErrorReason::Invalid,
                "propagationPolicy",
                &format!(
                    "{:?}",
                    options.propagation_policy.as_deref().unwrap_or_default()
                ),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(
                "meta.k8s.io",
                "DeleteOptions",
                "",
                &errors,
            ));
        }
        let preconditions = options.preconditions.unwrap_or_default();
        Ok(Self {
            dry_run,
            grace_period_seconds: options.grace_period_seconds,
            propagation,
            uid: preconditions.uid.filter(|uid| !uid.is_empty()),
            resource_version: preconditions
                .resource_version
                .filter(|version| !version.is_empty()),
        })
    }
}

/// The body of a deletion may leave out what it is, but be nothing else.
fn check_is_delete_options(body: &[u8]) -> ApiResult<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct TypeMeta {
        #[serde(default)]
        api_version: String,
        #[serde(default)]
        kind: String,
    }
    match serde_json::from_slice::<TypeMeta>(body) {
        Ok(found) if !found.kind.is_empty() && found.kind != "DeleteOptions" => {
            Err(ApiError::bad_request(format!(
                "no kind {:?} is registered for version {:?}",
                found.kind, found.api_version
            )))
        }
        // What is no object at all is refused when it is decoded.
        _ => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    Exact,
    NotOlderThan,
}

/// Options of list and watch.
#[derive(Clone, Debug)]
pub struct ListOptions {
    /// 0: no limit.
    pub limit: usize,
    pub continue_token: Option<String>,
    /// `None`: the newest; 0: any.
    pub resource_version: Option<u64>,
    pub version_match: Option<VersionMatch>,
    pub allow_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
}

impl ListOptions {
    pub fn parse(query: &Query, watch: bool) -> ApiResult<Self> {
        let mut errors = ErrorList::new();
        let forbid = |field: &str, detail: &str, errors: &mut ErrorList| {
            errors.push(problem(FieldErrorReason::Forbidden, field, "", detail));
        };
        let resource_version = query
            .value("resourceVersion")
            .map(parse_resource_version)
            .transpose()?;
        let version_match = match query.value("resourceVersionMatch") {
            None => None,
            Some("Exact") => Some(VersionMatch::Exact),
            Some("NotOlderThan") => Some(VersionMatch::NotOlderThan),
            Some(other) => {
                errors.push(not_supported(
                    "resourceVersionMatch",
                    other,
                    r#""Exact", "NotOlderThan", """#,
                ));
                None
            }
        };
        let send_initial_events = query.boolean("sendInitialEvents");
        let continue_token = query.value("continue").map(str::to_owned);
        if watch {
            match (send_initial_events, version_match) {
                (None, Some(_)) => forbid(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    &mut errors,
                ),
                (Some(_), None) => forbid(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                    &mut errors,
                ),
                (Some(_), Some(VersionMatch::Exact)) => {
                    errors.push(not_supported(
                        "resourceVersionMatch",
                        "Exact",
                        r#""NotOlderThan""#,
                    ));
                }
                _ => {}
            }
        } else {
            if send_initial_events.is_some() {
                forbid(
                    "sendInitialEvents",
                    "sendInitialEvents is forbidden for list",
                    &mut errors,
                );
            }
            if version_match.is_some() {
                if resource_version.is_none() {
                    forbid(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden unless resourceVersion is provided",
                        &mut errors,
                    );
                }
                if continue_token.is_some() {
                    forbid(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden when continue is provided",
                        &mut errors,
                    );
                }
                if version_match == Some(VersionMatch::Exact) && resource_version == Some(0) {
                    forbid(
                        "resourceVersionMatch",
                        "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                        &mut errors,
                    );
                }
            }
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", &errors));
        }
        let limit = query.integer("limit")?.unwrap_or(0);
        Ok(Self {
            limit: usize::try_from(limit).unwrap_or(0),
            continue_token,
            resource_version,
            version_match,
            allow_bookmarks: query.is_true("allowWatchBookmarks"),
            send_initial_events,
            timeout_seconds: query
                .integer("timeoutSeconds")?
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|seconds| *seconds > 0),
        })
    }
}

pub fn parse_resource_version(text: &str) -> ApiResult<u64> {
    text.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}
