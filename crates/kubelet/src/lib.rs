//! The node agent: runs the pods that are bound to this node and tells the API server how they do.
//!
//! Enter at [`Kubelet::start`]. The parts:
//!
//! ```text
//!            pods of this node (watch)      manifests (inotify)
//!                         └───────┬──────────────┘
//!   runtime events ──────────► agent ──────► one worker a pod ──► actions: runtime, images, volumes
//!                                               │   ▲
//!                        pod::machine::next ◄───┘   └── results, probes, changed ConfigMaps
//!                                               └──► status, events ──► API server
//!   node: registration, status, lease      server: logs, pods, stats, streaming      gc, eviction
//! ```
//!
//! Invariants:
//! - Decisions ([`pod::machine`], [`pod::status`], [`pod::admission`], …) are pure functions of what was observed.
//! - Containers outlive the kubelet: it finds them again by their labels and changes nothing that is right.
//! - Nothing polls: watches, runtime events and timers that are due. A list of everything is taken at the
//!   start, when the runtime says that events were lost, and rarely to be safe.
//!
//! Deliberately absent: in-place resize, device plugins, swap, volumes of claims.

mod agent;
pub mod config;
pub mod context;
pub mod events;
mod hooks;
mod images;
pub mod logs;
mod node;
mod objects;
pub mod pod;
mod probe;
mod pull_records;
pub mod server;
mod static_pods;
pub mod stats;
pub mod streaming;
mod upkeep;
mod watch;

pub use agent::{Kubelet, StartError};
pub use config::Config;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
