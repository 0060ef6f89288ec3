//! The seam between the image store and the native runtime: what a container's root is made of.
//!
//! The image side implements [`ImageRoots`]; the native runtime mounts what it answers. Both sides
//! are plain blocking calls that touch only local metadata: pulling happened before.
//! Deliberately absent: snapshots and mounting, which belong to the runtime.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::service::ImageError;

/// Unpacked layers and configuration of an image that is on this machine.
pub trait ImageRoots: Send + Sync + 'static {
    /// `image_id` as [`crate::service::ImageService`] answers it (`sha256:…`).
    ///
    /// Errors: [`ImageError::NotFound`] when it is not here, [`ImageError::Corrupt`] when a layer is missing.
    fn prepare(&self, image_id: &str) -> Result<ImageRoot, ImageError>;
    /// Keeps the image and its layers from being removed while `holder` (a container id) uses them.
    /// Idempotent. Holds outlive the server.
    fn hold(&self, image_id: &str, holder: &str) -> Result<(), ImageError>;
    /// Gives a hold back. Idempotent.
    fn release(&self, image_id: &str, holder: &str);
    /// Gives back every hold but those of `holders`. The runtime tells it once after a start: a server
    /// that was killed between a container's removal and the end of its hold left that behind.
    fn retain_holders(&self, holders: &[&str]) -> Result<(), ImageError>;
}

/// What one image contributes to a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageRoot {
    /// Absolute directories, topmost layer first, with overlayfs whiteouts; never written to.
    /// At least one; may hold any byte except NUL.
    pub lowerdirs: Vec<PathBuf>,
    pub config: ImageConfig,
}

/// The `config` of an OCI image configuration, as it stands there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group`, `uid:gid` or empty for root.
    pub user: String,
    /// Empty: `/`.
    pub working_dir: String,
    /// `SIGTERM` form or a number.
    pub stop_signal: Option<String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Container paths.
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
}
