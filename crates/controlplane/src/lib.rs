//! The loops that feed the scheduler and the controllers and carry out what they decide.
//!
//! Enter at [`start`]. All loops share one watch a kind ([`feed`]) and one event writer ([`events`]).
//! A loop is thin: a listener puts keys into a work queue, a worker reads the caches, calls the pure
//! reconciler of the same name in `controllers` (or `scheduler::plan`), and carries the actions out, each
//! write with a precondition (resourceVersion or UID). Whatever fails is tried again later; whatever was
//! done is not asked for again.
//!
//! Nothing here polls: work is caused by a change, a deadline that a reconciler named, or a retry.

mod error;
mod events;
mod feed;
mod leader;
mod loops;
mod scheduling;
mod worker;

use std::sync::Arc;

use kube::Client;
use tokio::task::JoinSet;

pub use leader::LeaderElection;
pub use scheduler::Configuration as SchedulerConfiguration;
pub use scheduling::{ExplainError, SchedulerMetrics, SchedulerOptions, explain_pod};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// PEM of the CA that signs the API server's certificate, for `kube-root-ca.crt`; `None`: no such ConfigMaps.
    pub root_ca_pem: Option<String>,
    /// `None`: no scheduler.
    pub scheduler: Option<SchedulerOptions>,
    pub controllers: bool,
    /// `None`: act at once, as the only instance.
    pub leader_election: Option<LeaderElection>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            root_ca_pem: None,
            scheduler: Some(SchedulerOptions::default()),
            controllers: true,
            leader_election: None,
        }
    }
}

/// The running control plane. Dropping it stops everything at once.
pub struct Handle {
    tasks: JoinSet<()>,
}

impl Handle {
    /// Stops all loops and waits until they are gone. A write under way may or may not happen.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Starts the loops. They wait for the API server by themselves, for as long as it takes.
pub fn start(client: Client, options: Options) -> Handle {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        match options.leader_election.clone() {
            None => run(client, options).await,
            Some(election) => {
                leader::lead(client.clone(), election, || {
                    run(client.clone(), options.clone())
                })
                .await;
            }
        }
    });
    Handle { tasks }
}

/// Runs until dropped.
async fn run(client: Client, options: Options) {
    let mut feeds = feed::Feeds::default();
    let recorder = events::Recorder::new(client.clone());
    let context = Arc::new(loops::Context {
        client: client.clone(),
        recorder,
    });
    let mut pending = Vec::new();
    if options.controllers {
        pending = loops::register(&mut feeds, &context, &options);
    }
    let scheduler = options
        .scheduler
        .as_ref()
        .map(|scheduler| scheduling::register(&mut feeds, scheduler));
    let watches = feeds.start(&client);
    let caches = watches.caches.clone();
    let mut tasks = JoinSet::new();
    if let Some(scheduler) = scheduler {
        tasks.spawn(scheduler.run(context.clone(), caches.clone()));
    }
    caches.synced().await;
    for pending in pending {
        tasks.spawn(pending(caches.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a loop of the control plane ended");
        }
    }
    drop(watches);
}
