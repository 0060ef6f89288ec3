//! Pod volumes: what a pod's volumes must hold (plan, pure) and making it so on disk (apply).
//!
//! Enter at [`plan::needs`] (which objects a pod's volumes are made of) and [`plan::plan`] (what each
//! volume must look like), then [`apply::set_up`] and [`apply::tear_down`]. [`subpath::bind`] exposes a
//! directory or file inside a volume to a container.
//!
//! ```text
//! needs(pod) --fetch by the kubelet--> plan(pod, sources) --> [PlannedVolume] --set_up--> host paths
//! ```
//!
//! Invariants:
//! - A volume of files changes for its readers in one step: all files live below a directory that the
//!   link `..data` names, and an update swaps that link ([`atomic`]).
//! - Nothing below a volume is followed out of it: subPaths are opened with `RESOLVE_BENEATH`.
//! - Everything is idempotent, so a restarted kubelet sets up again what it finds half done.
//!
//! Deliberately absent: fetching objects and tokens (the kubelet does), claims, CSI and network volumes.

pub mod amount;
pub mod apply;
pub mod atomic;
pub mod downward;
pub mod host_path;
pub mod ownership;
pub mod plan;
pub mod subpath;

pub use apply::{ApplyError, set_up, tear_down, volume_path};
pub use plan::{Content, Needs, PlanError, PlannedVolume, Sources, TokenNeed, needs, plan};
