//! The container runtime.
//!
//! Enter at [`service`]: the traits that the kubelet speaks. [`native`] implements them on this
//! machine's kernel, [`image`] keeps the images. The only crate with `unsafe`.

mod confined;
pub mod image;
pub mod image_roots;
pub mod native;
pub mod service;
