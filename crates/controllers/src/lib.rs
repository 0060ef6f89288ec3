//! Reconcilers as pure functions: observed objects and the time to actions and status. PURE: no I/O, no clock, no task.
//!
//! One controller, one file (or folder). Each has a `reconcile(observed, now)` that says what is to be
//! written, as data; the shells in `controlplane` watch, call them, and carry the actions out. All of them
//! can be repeated: the same observation gives the same actions, and an action that has been carried out
//! is not asked for again once it is observed.
//!
//! Names, reasons and messages of conditions and events are Kubernetes' own.

pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod event;
pub mod garbage;
pub mod label;
pub mod namespace;
pub mod node_lifecycle;
pub mod owner;
pub mod pod;
pub mod pod_gc;
pub mod replicaset;
pub mod root_ca;
pub mod service_account;
pub mod time;
