//! The built-in kinds, one module each: `impl ApiType` with defaults, validation and columns.

mod apps;
mod config_map;
pub(crate) mod label_selector;
mod namespace;
mod node;
pub(crate) mod pod;
pub(crate) mod resources;
mod secret;
mod service;
