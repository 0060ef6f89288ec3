//! Talking to registries: OCI distribution and Docker's v2 API, over HTTPS and HTTP.
//!
//! [`config`] reads which endpoints answer for a registry and how to reach them, [`client`] does one
//! request with its authentication ([`auth`]), redirects and time limits. What to fetch, in which
//! order and from whom is [`super::pull`]'s.
//!
//! The client is hyper with rustls, which the workspace has already. `oci-client` and `reqwest` were
//! left out: both bring their own choice of TLS provider and of redirects, neither resumes a broken
//! blob, and `oci-client` holds blobs and retries on its own terms. Deliberately absent: pushing,
//! HTTP proxies, HTTP/2 (a connection a layer is what mirrors are built for).

pub mod auth;
pub mod client;
pub mod config;

use std::time::Duration;

pub use client::FetchError;
pub use config::{Registries, RegistriesError};

/// How long to wait for what.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// TCP connection.
    pub connect: Duration,
    /// From the request, connection and TLS included, to the head of the answer.
    pub response: Duration,
    /// Between two pieces of a body.
    pub stall: Duration,
    /// Before the first retry; doubles with each.
    pub retry_delay: Duration,
    pub retry_count_max: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(10),
            response: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            retry_delay: Duration::from_millis(250),
            retry_count_max: 4,
        }
    }
}
