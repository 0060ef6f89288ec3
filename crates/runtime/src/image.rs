//! Images: references, registries, archives, layers, and the store that keeps them.
//!
//! Enter at [`ImageStore`]: it pulls ([`crate::service::ImageService`]), loads archives, and answers what a
//! container's root is made of ([`crate::image_roots::ImageRoots`]). Content is addressed by digest and verified before anything uses it.
//!
//! Deliberately absent: mounting (the native runtime's), policy on which images to collect (the kubelet's).

pub mod archive;
pub mod build;
pub mod digest;
pub mod download;
#[cfg(fuzzing)]
pub mod fuzzing;
mod index;
mod layer_stream;
mod pull;
pub mod reference;
pub mod registry;
mod remove_tree;
mod spec;
pub mod store;
pub mod tar_reader;
pub mod unpack;

pub use archive::{ArchiveSource, LoadedImage};
pub use build::{SingleBinaryImage, build_single_binary_image};
pub use download::PullProgress;
pub use reference::Reference;
pub use store::{ImageStore, StoreOptions};
