//! SPDY/3.1, the server's side of it, as far as remote commands and port-forwards use it.
//!
//! [`frame`] reads and writes frames, [`headers`] their compressed blocks, [`session`] holds the rules of a
//! connection; none of them does I/O. [`connection`] runs a session over a socket or a tunnel, and
//! [`command`] finds a remote command's streams among those that the client opens.
//!
//! Deliberately absent: streams that the server opens, priorities, and flow control (see [`super::stream`]).

pub mod command;
pub mod connection;
pub mod frame;
pub mod headers;
pub mod session;

pub use headers::Headers;
