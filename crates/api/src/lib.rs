//! Kubernetes kinds and what they mean. PURE: no I/O, no clock, no task.
//!
//! Enter at [`registry::Registry`]: the table of every [`kind::Kind`] that the server serves.
//! Everything that is particular to one kind (defaults, validation, columns, selectable fields)
//! is behind [`kind::Strategy`]; the API server knows no kind by name.

pub mod columns;
pub mod decode;
pub mod disruption;
mod empty;
pub mod encoded;
pub mod endpoint_ip;
pub mod error;
pub mod ip;
pub mod kind;
pub(crate) mod kinds;
pub mod managed_fields;
pub mod metadata;
pub mod name;
pub mod nulls;
pub mod openapi;
pub mod patch;
pub mod path;
pub mod pod;
pub mod protobuf;
pub mod quantity;
pub mod registry;
pub mod schema;
pub mod selector;
pub mod service;
pub mod typed;
