//! The Kubernetes API over HTTP: storage, watch, authentication, authorization, admission.
//!
//! Enter at [`Server::start`]. A request goes `server` (TLS, connection) -> `handler` (who asks,
//! may they, which path) -> the verb's module. In-process callers enter at `handler` with a
//! trusted identity and use the same code from there.
//!
//! Deliberately absent: knowledge of any particular kind (that is `api`'s registry), custom
//! resources, webhooks, aggregated API servers.

mod admission;
mod authn;
mod authz;
mod body;
mod bootstrap;
mod cache;
mod codec;
mod config;
mod core;
mod discovery;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handler;
mod health;
mod leases;
mod metrics;
mod openapi;
mod pki;
mod proxy;
mod request;
mod rest;
mod reviews;
mod server;
mod status;
mod subresource;
mod tls;

pub use authn::Identity;
pub use config::{BadCidr, Config, FurtherMetrics, Ipv4Cidr};
pub use pki::{KeyPairPem, Kubeconfig, Pki, PkiError};
pub use server::{Server, StartError};
pub use status::{ApiError, ApiResult};
pub use tls::{TlsError, crypto_provider};
