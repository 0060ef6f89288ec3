//! The scheduler's loop: watch, plan, reserve, bind, in parallel and without double booking.
//!
//! One task owns the snapshot and the queue ([`queue`]). It takes in changes as they come, plans whenever
//! a pod is due, reserves the plan's room in its own snapshot at once, and leaves the binding to tasks of
//! their own ([`bind`]), which report back; a binding that failed gives the room back. After a restart the
//! first lists tell what is bound; nothing else needs to be remembered.
//!
//! A lone pod is planned the moment it is seen. Only while several wait, a short window gathers more.

mod bind;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use client::informer::Change;
use controllers::event::Event;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use scheduler::{Decision, PendingPod, Plan, Policy, Snapshot};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::feed::{Caches, Feeds};
use crate::loops::Context;
use bind::{Binder, Bound};
use queue::Queue;

#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// Pods with this `spec.schedulerName` are planned.
    pub name: String,
    pub placement: scheduler::Placement,
    /// Longest search of one plan.
    pub plan_time_max: Duration,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        SchedulerOptions {
            name: "default-scheduler".into(),
            placement: scheduler::Placement::Pack,
            plan_time_max: Duration::from_millis(500),
        }
    }
}

/// How long a window waits for the next pod, and how long it stays open at most.
const WINDOW_IDLE: Duration = Duration::from_millis(1);
const WINDOW_MAX: Duration = Duration::from_millis(10);
/// Plans above this many pods times nodes leave the runtime's thread to others.
const INLINE_WORK_MAX: usize = 20_000;
/// Binds and status writes under way at once.
const PARALLEL: usize = 64;

enum Input {
    Pod(Change<Pod>),
    Node(Change<Node>),
    Namespace(Change<Namespace>),
    Bound(Bound),
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
    Scheduling {
        options: options.clone(),
        sender,
        inputs,
    }
}

impl Scheduling {
    pub async fn run(mut self, context: Arc<Context>, caches: Caches) {
        caches.namespaces.synced().await;
        caches.nodes.synced().await;
        caches.pods.synced().await;
        let mut cycle = Cycle {
            binder: Arc::new(Binder {
                client: context.client.clone(),
                recorder: context.recorder.component("default-scheduler"),
                permits: Semaphore::new(PARALLEL),
            }),
            options: self.options.clone(),
            snapshot: Snapshot::new(),
            queue: Queue::default(),
            sender: self.sender.clone(),
        };
        loop {
            self.gather(&mut cycle).await;
            if cycle.queue.has_active() {
                cycle.run().await;
            }
        }
    }

    /// Waits for something to do and takes in all there is.
    async fn gather(&mut self, cycle: &mut Cycle) {
        if !cycle.queue.has_active() {
            let due = cycle.queue.next_due();
            let input = match due {
                Some(due) => tokio::time::timeout_at(due, self.inputs.recv())
                    .await
                    .ok()
                    .flatten(),
                None => self.inputs.recv().await,
            };
            if let Some(input) = input {
                cycle.take_in(input);
            }
        }
        self.drain(cycle);
        cycle.queue.promote(Instant::now());
        let opened = Instant::now();
        while cycle.queue.active_count() > 1 && opened.elapsed() < WINDOW_MAX {
            match tokio::time::timeout(WINDOW_IDLE, self.inputs.recv()).await {
                Ok(Some(input)) => cycle.take_in(input),
                _ => break,
            }
            self.drain(cycle);
        }
    }

    fn drain(&mut self, cycle: &mut Cycle) {
        while let Ok(input) = self.inputs.try_recv() {
            cycle.take_in(input);
        }
    }
}

struct Cycle {
    options: SchedulerOptions,
    snapshot: Snapshot,
    queue: Queue,
    binder: Arc<Binder>,
    sender: mpsc::UnboundedSender<Input>,
}

impl Cycle {
    fn take_in(&mut self, input: Input) {
        match input {
            Input::Pod(change) => self.take_in_pod(&change),
            Input::Node(change) => match &change.after {
                Some(node) => {
                    if self.snapshot.observe_node(node) {
                        self.queue.wake_for_node(&self.snapshot, &change.key.name);
                    }
                }
                None => self.snapshot.forget_node(&change.key.name),
            },
            Input::Namespace(change) => match &change.after {
                Some(namespace) => {
                    self.snapshot.observe_namespace(
                        &change.key.name,
                        namespace.metadata.labels.clone().unwrap_or_default(),
                    );
                    let labels = |namespace: &Option<Arc<Namespace>>| {
                        namespace.as_ref().and_then(|n| n.metadata.labels.clone())
                    };
                    if change.before.is_some() && labels(&change.before) != labels(&change.after) {
                        self.queue.wake_entangled();
                    }
                }
                None => self.snapshot.forget_namespace(&change.key.name),
            },
            Input::Bound(bound) => self.take_in_bound(bound),
        }
    }

    fn take_in_pod(&mut self, change: &Change<Pod>) {
        let uid = |pod: &Option<Arc<Pod>>| pod.as_ref().and_then(|pod| pod.metadata.uid.clone());
        let (before, after) = (uid(&change.before), uid(&change.after));
        if let Some(gone) = before.filter(|before| Some(before) != after.as_ref()) {
            self.queue.remove(&gone);
            self.free(&gone);
        }
        let (Some(pod), Some(uid)) = (&change.after, after) else {
            return;
        };
        let spec = pod.spec.as_ref();
        let bound = spec
            .and_then(|spec| spec.node_name.as_deref())
            .is_some_and(|name| !name.is_empty());
        if controllers::pod::is_terminal(pod) {
            self.queue.remove(&uid);
            self.free(&uid);
        } else if bound {
            let newly = self.queue.remove(&uid) || change.before.is_none();
            self.snapshot.observe_pod(pod);
            if newly {
                self.queue.wake_affine();
            }
        } else if self.snapshot.placed_on(&uid).is_some() {
            // Being bound: an older version of the pod says nothing new.
        } else {
            let name = spec
                .and_then(|spec| spec.scheduler_name.as_deref())
                .unwrap_or("default-scheduler");
            let gated = spec
                .and_then(|spec| spec.scheduling_gates.as_ref())
                .is_some_and(|gates| !gates.is_empty());
            if name != self.options.name || gated || pod.metadata.deletion_timestamp.is_some() {
                self.queue.remove(&uid);
            } else if let Some(pending) = PendingPod::new(&mut self.snapshot, pod) {
                self.queue.add(pending, pod.clone());
            }
        }
    }

    /// Gives back the room of a pod and wakes whom that may help.
    fn free(&mut self, uid: &str) {
        let node = self.snapshot.placed_on(uid).map(ToString::to_string);
        self.snapshot.forget_pod(uid);
        if let Some(node) = node {
            self.queue.wake_for_node(&self.snapshot, &node);
        }
    }

    fn take_in_bound(&mut self, bound: Bound) {
        match bound {
            Bound::Done => {}
            Bound::Gone { uid } => {
                self.queue.remove(&uid);
                self.snapshot.unassume(&uid);
            }
            Bound::Failed {
                pending,
                pod,
                message,
            } => {
                self.snapshot.unassume(&pending.uid);
                self.binder
                    .recorder
                    .record(&*pod, Event::warning("FailedScheduling", message));
                if pod.metadata.deletion_timestamp.is_none() {
                    self.queue.retry(pending, pod);
                }
            }
        }
    }

    async fn run(&mut self) {
        let pending: Vec<PendingPod> = self.queue.active();
        let plan = self.plan(&pending).await;
        tracing::debug!(
            pods = pending.len(),
            value = plan.value,
            upper_bound = plan.upper_bound,
            gap = plan.gap(),
            "plan"
        );
        scheduler::reserve(&mut self.snapshot, &plan);
        for (pending, binding) in scheduler::start(&plan) {
            let Some(pod) = self.queue.take(&pending.uid) else {
                continue;
            };
            let (binder, sender) = (self.binder.clone(), self.sender.clone());
            tokio::spawn(async move {
                let bound = binder.bind(pending, pod, &binding).await;
                let _ = sender.send(Input::Bound(bound));
            });
        }
        let mut messages: std::collections::HashMap<*const scheduler::Diagnosis, String> =
            std::collections::HashMap::new();
        for (pending, decision) in &plan.decisions {
            let Decision::Wait { why } = decision else {
                continue;
            };
            let message = messages
                .entry(Arc::as_ptr(why))
                .or_insert_with(|| why.message(&self.snapshot.space))
                .clone();
            if let Some(pod) = self.queue.park(&pending.uid) {
                let binder = self.binder.clone();
                tokio::spawn(async move { binder.report_unschedulable(&pod, message).await });
            }
        }
    }

    async fn plan(&mut self, pending: &[PendingPod]) -> Plan {
        let until = Instant::now() + self.options.plan_time_max;
        let placement = self.options.placement;
        let compute = move |snapshot: &mut Snapshot, pending: &[PendingPod]| {
            let stop = move || Instant::now() >= until;
            scheduler::plan(
                snapshot,
                pending,
                &Policy {
                    placement,
                    stop: Some(&stop),
                    ..Policy::default()
                },
            )
        };
        if pending.len().saturating_mul(self.snapshot.node_count()) <= INLINE_WORK_MAX {
            return compute(&mut self.snapshot, pending);
        }
        let mut snapshot = std::mem::take(&mut self.snapshot);
        let pending = pending.to_vec();
        let planned = tokio::task::spawn_blocking(move || {
            let plan = compute(&mut snapshot, &pending);
            (snapshot, plan)
        });
        let (snapshot, plan) = planned
            .await
            .expect("planning does not panic, and nobody aborts it");
        self.snapshot = snapshot;
        plan
    }
}
