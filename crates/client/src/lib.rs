//! kube::Client over HTTPS or in-process over the API router; caches and work queues.
//!
//! Enter at [`workqueue::WorkQueue`] (which keys are due), [`informer::Informer`] (what is
//! observed) and [`in_process`] (a `kube::Client` that calls a service instead of a socket).
//! Loops are written against `kube::Client` and never know which of the two they hold.
//!
//! Deliberately absent: what to do with a key. That is the loop's own.

pub mod in_process;
pub mod informer;
pub mod workqueue;

pub use in_process::in_process;
pub use informer::{Change, Informer, ObjectKey};
pub use workqueue::{Backoff, WorkQueue};
