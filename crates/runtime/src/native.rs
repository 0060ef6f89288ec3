//! Our own runtime: zygote, namespaces, cgroups, seccomp, overlayfs.
//!
//! Enter at [`NativeRuntime::new`]; it implements [`crate::service::RuntimeService`]. The program's
//! `main` calls [`zygote_main`] for the zygote's command line before anything else.
//!
//! ```text
//! server: NativeRuntime -- SOCK_SEQPACKET --> zygote --fork--> child (child.rs) --exec--> container
//!         records on disk                     logs, exits, attach
//! ```
//!
//! Invariants: the server may die at any point; what runs goes on in the zygote, and a new server
//! finds all of it again. Only the server writes records and cgroups; only children touch mounts of
//! containers. Deliberately absent: pulling and unpacking images ([`crate::image_roots`] is the seam),
//! AppArmor and SELinux.

mod capabilities;
pub(crate) mod cgroup;
mod child;
mod cleaner;
mod connection;
mod devices;
mod protocol;
mod records;
mod reset;
mod runtime;
mod seccomp;
mod spec;
mod streams;
mod sys;
mod wire;
mod zygote;

pub use reset::{end_zygote, planned_reset, reset};
pub use runtime::NativeRuntime;
pub use seccomp::oci_profile as oci_seccomp_profile;
pub use zygote::zygote_main;

use std::path::PathBuf;

/// Where the native runtime keeps its things, and how it starts its zygote.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sockets and mounts; emptied by a reboot. Mode 0700.
    pub run_dir: PathBuf,
    /// Records and writable layers.
    pub data_dir: PathBuf,
    /// Directory below every cgroup hierarchy, for example `/kubepods`.
    pub cgroup_root: PathBuf,
    /// Program and arguments that end in [`zygote_main`], for example `[/usr/bin/llmagentos, zygote]`.
    pub zygote_command: Vec<String>,
}
