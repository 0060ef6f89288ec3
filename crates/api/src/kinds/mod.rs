//! The built-in kinds, one module each: `impl ApiType` with defaults, validation and columns.

mod apps;
mod condition;
mod config_map;
mod custom_resource_definition;
mod disruption_budget;
mod endpoints;
mod event;
pub(crate) mod label_selector;
mod namespace;
mod node;
pub(crate) mod pod;
mod rbac;
pub(crate) mod resources;
mod reviews;
mod secret;
mod service;
pub(crate) mod small;

#[cfg(test)]
mod tests;
