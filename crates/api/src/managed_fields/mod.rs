//! Field ownership: `metadata.managedFields` and server-side apply, in the way of structured-merge-diff.
//!
//! Enter at [`update`] for every create, update and patch (it records who changed what), and at [`apply`] for
//! server-side apply (it merges, detects conflicts, and drops what the applier no longer states).
//! [`created`] is the fast way for a create: from the object's bytes, without building values.
//!
//! Call them on the versioned object after defaulting and before the server fills in what no client wrote
//! (`prepare_create`, status): what is not in the difference is owned by nobody.
//!
//! Invariants: an entry owns at least one field; entries other than the writer's only ever shrink; the writer's
//! time changes only when the write changed what it owns. Deliberately absent: conversion of field sets between
//! versions (all entries are read with the version of the write).

mod apply;
mod create;
mod entries;
mod set;
mod update;
mod walk;

use crate::schema::MessageId;

pub use apply::{Applied, ApplyError, Conflict, Conflicts, apply};
pub use create::{created, fill_managed_fields};
pub use update::update;

#[cfg(test)]
mod tests;

/// Entries of the operation `Update` above which the oldest are merged.
const UPDATE_MANAGERS_MAX: usize = 10;

/// Who owns the entries that were merged for being too many.
const OLD_UPDATES_MANAGER: &str = "ancient-changes";

/// Who owns what was there before the first apply to an object without managed fields.
const BEFORE_FIRST_APPLY_MANAGER: &str = "before-first-apply";

/// A write, as far as ownership is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// The field manager: the request's `fieldManager`, else the first part of its user agent.
    pub manager: &'a str,
    /// Of the request's path, for example `apps/v1`.
    pub api_version: &'a str,
    /// Empty for the main resource.
    pub subresource: &'a str,
    /// RFC 3339 with seconds.
    pub now: &'a str,
    /// The object's type; `None` for a custom resource.
    pub type_: Option<MessageId>,
    /// Top-level fields that this write cannot change, though the body may hold them: `status` on the main
    /// resource of a kind with a status subresource, `spec` on that subresource.
    pub ignored_fields: &'a [&'a str],
}
