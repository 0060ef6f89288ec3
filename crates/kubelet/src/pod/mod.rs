//! One pod: what must happen next and what its status says (pure), and the task that carries it out.
//!
//! Enter at [`machine::next`] (decisions), [`status::generate`] (what the API shows) and
//! [`worker`] (the shell). Everything else here turns parts of a pod spec into the runtime's terms
//! and is pure, except [`start`] and [`fetch`], which talk to the API server and the runtime.

pub mod admission;
pub mod backoff;
pub mod container_config;
pub mod dns;
pub mod env;
pub mod fetch;
pub mod hosts;
pub mod labels;
pub mod machine;
pub mod resources;
pub mod sandbox;
pub mod security;
pub mod spec;
pub mod start;
pub mod status;
pub mod status_patch;
pub mod worker;
