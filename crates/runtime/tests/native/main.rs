//! The native runtime on this machine's kernel: real namespaces, cgroups and processes. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

mod confinement;
mod escape;
mod harness;
mod lifecycle;
mod recovery;
mod streams;
