//! The built-in kinds, one module each: `impl ApiType` with defaults, validation and columns.

mod apps;
mod config_map;
mod namespace;
mod node;
mod pod;
mod secret;
mod service;
