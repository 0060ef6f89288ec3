//! The scheduler's loop: watch, plan, reserve, bind, in parallel and without double booking.
//!
//! One task owns the snapshot and the queue ([`turn`], [`queue`]). It takes in changes as they come, plans
//! whenever a pod is due, reserves the plan's room in its own snapshot at once, and leaves the writing to
//! tasks of their own ([`bind`], [`evict`]), which report back; a binding that failed gives the room back.
//! After a restart the first lists tell what is bound and what is nominated; nothing else needs to be
//! remembered. Kinds that the API server may not serve are watched if it does ([`kinds`]).
//!
//! A lone pod is planned the moment it is seen. Only while several wait, a short window gathers more.

mod bind;
mod evict;
mod explain;
mod kinds;
mod metrics;
mod queue;
mod turn;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use client::informer::Change;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::feed::{Caches, Feeds};
use crate::loops::Context;
use bind::Bound;
pub use explain::{ExplainError, Explained, explain};
pub use metrics::SchedulerMetrics;
use turn::Turn;

#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// Profiles and back-off. Pods are planned whose `spec.schedulerName` a profile has.
    pub configuration: scheduler::Configuration,
    /// Longest search of one plan.
    pub plan_time_max: Duration,
    /// After so long without an answer to a binding, the pod itself is asked whether it was bound.
    pub bind_answer_within: Duration,
    /// Where the loop counts what it does.
    pub metrics: Arc<SchedulerMetrics>,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        SchedulerOptions {
            configuration: scheduler::Configuration::default(),
            plan_time_max: Duration::from_millis(500),
            bind_answer_within: Duration::from_secs(15),
            metrics: Arc::default(),
        }
    }
}

/// How long a window waits for the next pod, and how long it stays open at most.
const WINDOW_IDLE: Duration = Duration::from_millis(1);
const WINDOW_MAX: Duration = Duration::from_millis(10);

enum Input {
    Pod(Change<Pod>),
    Node(Change<Node>),
    Namespace(Change<Namespace>),
    Service(Change<Service>),
    ReplicaSet(Change<ReplicaSet>),
    Other(kinds::Observed),
    Bound(Bound),
    /// A victim that could not be asked to leave.
    Spared(scheduler::Uid),
}

/// Patches of the scheduler are its own in managed fields, whatever process it runs in.
fn written_by_scheduler() -> kube::api::PatchParams {
    kube::api::PatchParams {
        field_manager: Some("kube-scheduler".into()),
        ..kube::api::PatchParams::default()
    }
}

/// The scheduler with its listeners registered.
pub struct Scheduling {
    options: SchedulerOptions,
    sender: mpsc::UnboundedSender<Input>,
    inputs: mpsc::UnboundedReceiver<Input>,
}

pub fn register(feeds: &mut Feeds, options: &SchedulerOptions) -> Scheduling {
    let (sender, inputs) = mpsc::unbounded_channel();
    // A closed channel means that the loop has ended, and with it all interest in changes.
    let to = sender.clone();
    feeds.pods.listen(move |change| {
        let _ = to.send(Input::Pod(change.clone()));
    });
    let to = sender.clone();
    feeds.nodes.listen(move |change| {
        let _ = to.send(Input::Node(change.clone()));
    });
    let to = sender.clone();
    feeds.namespaces.listen(move |change| {
        let _ = to.send(Input::Namespace(change.clone()));
    });
    let to = sender.clone();
    feeds.services.listen(move |change| {
        let _ = to.send(Input::Service(change.clone()));
    });
    let to = sender.clone();
    feeds.replica_sets.listen(move |change| {
        let _ = to.send(Input::ReplicaSet(change.clone()));
    });
    Scheduling {
        options: options.clone(),
        sender,
        inputs,
    }
}

impl Scheduling {
    pub async fn run(mut self, context: Arc<Context>, caches: Caches) {
        caches.namespaces.synced().await;
        caches.services.synced().await;
        caches.replica_sets.synced().await;
        caches.nodes.synced().await;
        caches.pods.synced().await;
        let mut watches = tokio::task::JoinSet::new();
        kinds::watch_served(&mut watches, &context.client, &self.sender);
        let mut turn = Turn::new(&context, &self.options, self.sender.clone());
        loop {
            self.gather(&mut turn).await;
            if turn.queue.has_active() {
                turn.run().await;
            }
            turn.report();
        }
    }

    /// Waits for something to do and takes in all there is.
    async fn gather(&mut self, turn: &mut Turn) {
        if !turn.queue.has_active() {
            let due = turn.next_due();
            let input = match due {
                Some(due) => tokio::time::timeout_at(due, self.inputs.recv())
                    .await
                    .ok()
                    .flatten(),
                None => self.inputs.recv().await,
            };
            if let Some(input) = input {
                turn.take_in(input);
            }
        }
        self.drain(turn);
        turn.queue.promote(Instant::now());
        let opened = Instant::now();
        while turn.queue.active_count() > 1 && opened.elapsed() < WINDOW_MAX {
            match tokio::time::timeout(WINDOW_IDLE, self.inputs.recv()).await {
                Ok(Some(input)) => turn.take_in(input),
                _ => break,
            }
            self.drain(turn);
        }
    }

    fn drain(&mut self, turn: &mut Turn) {
        while let Ok(input) = self.inputs.try_recv() {
            turn.take_in(input);
        }
    }
}
