//! Stand-ins for the API server and the runtime in this crate's tests.
#![allow(clippy::unwrap_used, reason = "tests")]

pub mod api;
pub mod runtime;

use std::time::{Duration, Instant};

/// Waits until `condition` answers something; panics after ten seconds.
pub async fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
