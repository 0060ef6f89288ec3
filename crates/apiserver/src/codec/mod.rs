//! From bytes to objects and back: what clients send and what they want to get.

mod accept;
pub mod object;
mod request_body;
pub mod table;

pub use accept::{Accept, Encoding, IncludeObject, Shape};
pub use request_body::{MediaType, essence, read, yaml_to_json};
