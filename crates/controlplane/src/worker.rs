//! Workers: take keys from a queue, reconcile, retry what fails.

use std::hash::Hash;
use std::time::Duration;

use client::workqueue::WorkQueue;
use futures::StreamExt;

/// What becomes of a key after a reconcile without error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// Look at it again then, whatever happens.
    pub after: Option<Duration>,
}

impl Next {
    pub const DONE: Next = Next { after: None };

    pub fn after(delay: Option<jiff::SignedDuration>) -> Next {
        Next {
            after: delay.map(|delay| Duration::try_from(delay).unwrap_or(Duration::ZERO)),
        }
    }
}

/// Reconciles keys as they come, at most `parallel` at a time, until the queue is closed.
pub async fn run<K, F, R>(name: &'static str, queue: WorkQueue<K>, parallel: usize, reconcile: F)
where
    K: Clone + Eq + Hash + std::fmt::Debug + Send + Sync + 'static,
    F: Fn(K) -> R + Clone,
    R: Future<Output = Result<Next, kube::Error>>,
{
    let worker = |_| {
        let (queue, reconcile) = (queue.clone(), reconcile.clone());
        async move {
            while let Some(work) = queue.next().await {
                let key = work.key().clone();
                match reconcile(key.clone()).await {
                    Ok(next) => {
                        queue.forget(&key);
                        if let Some(delay) = next.after {
                            queue.add_after(key, delay);
                        }
                    }
                    Err(error) => {
                        if crate::error::is_conflict(&error) {
                            tracing::debug!(controller = name, ?key, %error, "reconcile met a newer version");
                        } else {
                            tracing::warn!(controller = name, ?key, error = %crate::error::message(&error), "reconcile failed");
                        }
                        queue.add_rate_limited(key);
                    }
                }
            }
        }
    };
    futures::stream::iter(0..parallel)
        .for_each_concurrent(None, worker)
        .await;
}
