//! One turn of the loop: what was observed goes into the snapshot and the queue, and a plan comes out and is carried out.

use std::collections::HashMap;
use std::sync::Arc;

use client::informer::Change;
use controllers::event::Event;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use scheduler::{Decision, Diagnosis, PendingPod, Plan, Policy, Snapshot};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bind::{Binder, Bound};
use super::kinds::Observed;
use super::queue::{Backoff, Queue};
use super::{Input, SchedulerOptions};
use crate::loops::Context;

/// Plans above this many pods times nodes leave the runtime's thread to others.
const INLINE_WORK_MAX: usize = 200_000;
/// How long the solver may look for a better plan where pods do not all fit.
const SEARCH_BASE: std::time::Duration = std::time::Duration::from_millis(5);
const SEARCH_PER_POD: std::time::Duration = std::time::Duration::from_micros(200);
/// How old what is told of the cluster's utilisation may be: it is a sum over all nodes.
const UTILISATION_AGE_MAX: std::time::Duration = std::time::Duration::from_secs(1);
/// Binds under way at once.
const PARALLEL_BINDS: usize = 64;
/// Status writes and evictions under way at once: apart from the binds, so that a crowd that waits does not hold up those that go.
const PARALLEL_REPORTS: usize = 64;

pub struct Turn {
    options: SchedulerOptions,
    snapshot: Snapshot,
    pub queue: Queue,
    binder: Arc<Binder>,
    sender: mpsc::UnboundedSender<Input>,
    utilisation_due: Option<Instant>,
    /// What is being carried out. It ends with this: who leads no longer must not go on binding.
    tasks: JoinSet<()>,
}

impl Turn {
    pub(super) fn new(
        context: &Context,
        options: &SchedulerOptions,
        sender: mpsc::UnboundedSender<Input>,
    ) -> Self {
        let configuration = &options.configuration;
        Turn {
            binder: Arc::new(Binder {
                client: context.client.clone(),
                recorder: context.recorder.component("default-scheduler"),
                binds: Semaphore::new(PARALLEL_BINDS),
                answer_within: options.bind_answer_within,
                reports: Semaphore::new(PARALLEL_REPORTS),
            }),
            options: options.clone(),
            snapshot: Snapshot::new(),
            queue: Queue::new(Backoff {
                initial: std::time::Duration::from_secs(configuration.backoff_initial_seconds),
                max: std::time::Duration::from_secs(configuration.backoff_max_seconds),
            }),
            sender,
            utilisation_due: None,
            tasks: JoinSet::new(),
        }
    }

    fn policy(&self) -> Policy<'static> {
        Policy::with_profiles(self.options.configuration.profiles.clone())
    }

    pub(super) fn take_in(&mut self, input: Input) {
        self.changed();
        match input {
            Input::Pod(change) => self.take_in_pod(&change),
            Input::Node(change) => match &change.after {
                Some(node) => {
                    if self.snapshot.observe_node(node) {
                        self.wake_for_node(&change.key.name);
                    }
                }
                None => self.snapshot.forget_node(&change.key.name),
            },
            Input::Namespace(change) => self.take_in_namespace(&change),
            Input::Service(change) => match &change.after {
                Some(service) => self.snapshot.owners_mut().observe_service(service),
                None => {
                    let key = &change.key;
                    self.snapshot
                        .owners_mut()
                        .forget_service(&key.namespace, &key.name);
                }
            },
            Input::ReplicaSet(change) => self.take_in_replica_set(&change),
            Input::Other(observed) => self.take_in_other(observed),
            Input::Bound(bound) => self.take_in_bound(bound),
            Input::Spared(uid) => {
                self.snapshot.spare(&uid);
                if let Some(node) = self.snapshot.placed_on(&uid).map(ToString::to_string) {
                    self.wake_for_node(&node);
                }
            }
        }
    }

    fn wake_for_node(&mut self, node: &str) {
        let policy = self.policy();
        self.queue.wake_for_node(&self.snapshot, node, &policy);
    }

    fn take_in_namespace(&mut self, change: &Change<Namespace>) {
        let Some(namespace) = &change.after else {
            return self.snapshot.forget_namespace(&change.key.name);
        };
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        self.snapshot.observe_namespace(&change.key.name, labels);
        let labels = |namespace: &Option<Arc<Namespace>>| {
            namespace.as_ref().and_then(|n| n.metadata.labels.clone())
        };
        if change.before.is_some() && labels(&change.before) != labels(&change.after) {
            self.queue.wake_entangled();
        }
    }

    fn take_in_replica_set(&mut self, change: &Change<ReplicaSet>) {
        let uid = |set: &ReplicaSet| set.metadata.uid.clone().unwrap_or_default();
        let owners = self.snapshot.owners_mut();
        match (&change.after, &change.before) {
            (Some(set), _) => {
                if let Some(spec) = &set.spec {
                    owners.observe_controller(&uid(set), &spec.selector);
                }
            }
            (None, Some(set)) => owners.forget_controller(&uid(set)),
            (None, None) => {}
        }
    }

    fn take_in_other(&mut self, observed: Observed) {
        match observed.apply(&mut self.snapshot) {
            super::kinds::Helps::Nobody => {}
            super::kinds::Helps::Claimants => self.queue.wake_claimants(),
            super::kinds::Helps::Group(group) => self.queue.wake_group(&group),
        }
    }

    fn take_in_pod(&mut self, change: &Change<Pod>) {
        let uid = |pod: &Option<Arc<Pod>>| pod.as_ref().and_then(|pod| pod.metadata.uid.clone());
        let (before, after) = (uid(&change.before), uid(&change.after));
        if let Some(gone) = before.filter(|before| Some(before) != after.as_ref()) {
            self.forget(&gone);
        }
        let (Some(pod), Some(uid)) = (&change.after, after) else {
            return;
        };
        let spec = pod.spec.as_ref();
        let bound = spec
            .and_then(|spec| spec.node_name.as_deref())
            .is_some_and(|name| !name.is_empty());
        if controllers::pod::is_terminal(pod) {
            self.forget(&uid);
        } else if bound {
            let newly = self.queue.remove(&uid) || change.before.is_none();
            self.snapshot.withdraw_nomination(&uid);
            self.snapshot.observe_pod(pod);
            if newly {
                self.queue.wake_affine();
            }
        } else if self.snapshot.placed_on(&uid).is_some() {
            // Being bound: an older version of the pod says nothing new.
        } else {
            self.take_in_pending(pod, &uid);
        }
    }

    fn take_in_pending(&mut self, pod: &Arc<Pod>, uid: &str) {
        let spec = pod.spec.as_ref();
        let name = spec
            .and_then(|spec| spec.scheduler_name.as_deref())
            .unwrap_or(scheduler::DEFAULT_SCHEDULER);
        let profiles = &self.options.configuration.profiles;
        let ours = profiles
            .iter()
            .any(|profile| profile.scheduler_name == name);
        let gated = spec
            .and_then(|spec| spec.scheduling_gates.as_ref())
            .is_some_and(|gates| !gates.is_empty());
        if !ours || gated || pod.metadata.deletion_timestamp.is_some() {
            self.forget(uid);
            return;
        }
        let Some(pending) = PendingPod::new(&mut self.snapshot, pod) else {
            return;
        };
        // A nomination of before a restart; a newer one is in the snapshot already.
        let status = pod.status.as_ref();
        let nominated = status.and_then(|status| status.nominated_node_name.as_deref());
        if let Some(node) = nominated.filter(|node| !node.is_empty())
            && self.snapshot.nominated_to(uid).is_none()
            && !self.queue.contains(uid)
        {
            self.snapshot.nominate(&pending.uid, &pending.class, node);
        }
        if let Some(group) = pending.class.group.clone()
            && !self.queue.contains(uid)
        {
            // It may be the one that the gang waits for.
            self.queue.wake_group(&group);
        }
        self.queue.add(pending, pod.clone());
    }

    /// A pod that is gone, finished, or no longer ours to place.
    fn forget(&mut self, uid: &str) {
        self.queue.remove(uid);
        let nominated = self
            .snapshot
            .withdraw_nomination(uid)
            .map(|node| node.to_string());
        let placed = self.snapshot.placed_on(uid).map(ToString::to_string);
        self.snapshot.forget_pod(uid);
        for node in nominated.into_iter().chain(placed) {
            self.wake_for_node(&node);
        }
    }

    fn take_in_bound(&mut self, bound: Bound) {
        match bound {
            Bound::Done => {}
            Bound::Gone { uid } => {
                self.queue.remove(&uid);
                self.give_back(&uid);
            }
            Bound::Failed {
                pending,
                pod,
                message,
            } => {
                self.give_back(&pending.uid);
                self.binder
                    .recorder
                    .record(&*pod, Event::warning("FailedScheduling", message));
                self.options.metrics.count_error();
                if pod.metadata.deletion_timestamp.is_none() {
                    self.queue.retry(pending, pod);
                }
            }
        }
    }

    /// Undoes a reservation and wakes whom that may help.
    fn give_back(&mut self, uid: &str) {
        let node = self.snapshot.placed_on(uid).map(ToString::to_string);
        self.snapshot.unassume(uid);
        if self.snapshot.placed_on(uid).is_none()
            && let Some(node) = node
        {
            self.wake_for_node(&node);
        }
    }

    /// Plans everything that is active, reserves it, and starts carrying it out.
    pub async fn run(&mut self) {
        let pending: Vec<PendingPod> = self.queue.active();
        let began = Instant::now();
        let plan = self.plan(&pending).await;
        self.options.metrics.observe_plan(&plan, began.elapsed());
        tracing::debug!(
            pods = pending.len(),
            value = plan.value,
            upper_bound = plan.upper_bound,
            gap = plan.gap(),
            "plan"
        );
        scheduler::reserve(&mut self.snapshot, &plan);
        self.changed();
        self.start(&plan);
        let mut messages: HashMap<*const Diagnosis, String> = HashMap::new();
        for (pending, decision) in &plan.decisions {
            let why = match decision {
                Decision::Place { .. } => continue,
                Decision::Preempt { why, .. } | Decision::Wait { why } => why,
            };
            let message = messages
                .entry(Arc::as_ptr(why))
                .or_insert_with(|| why.message(&self.snapshot.space))
                .clone();
            let Some(pod) = self.queue.park(&pending.uid) else {
                continue;
            };
            match decision {
                Decision::Preempt { node, victims, .. } => {
                    self.evict(pod, node, victims.clone(), message)
                }
                _ => {
                    let nominated = self
                        .snapshot
                        .nominated_to(&pending.uid)
                        .map(ToString::to_string);
                    let binder = self.binder.clone();
                    self.tasks.spawn(async move {
                        binder
                            .report_unschedulable(&pod, message, nominated.as_deref())
                            .await;
                    });
                }
            }
        }
    }

    /// Step 5: one task a placed pod posts its binding.
    fn start(&mut self, plan: &Plan) {
        let volumes: HashMap<_, _> = plan
            .decisions
            .iter()
            .filter_map(|(pod, decision)| match decision {
                Decision::Place { volumes, .. } if !volumes.is_empty() => {
                    Some((pod.uid.clone(), volumes.clone()))
                }
                _ => None,
            })
            .collect();
        for (pending, binding) in scheduler::start(plan) {
            let Some(pod) = self.queue.take(&pending.uid) else {
                continue;
            };
            let volumes = volumes.get(&pending.uid).cloned().unwrap_or_default();
            let (binder, sender) = (self.binder.clone(), self.sender.clone());
            self.tasks.spawn(async move {
                let bound = binder.bind(pending, pod, &binding, &volumes).await;
                let _ = sender.send(Input::Bound(bound));
            });
        }
    }

    /// Asks the victims to leave; the pod's nomination is written first, so that a restart in between loses nothing.
    fn evict(
        &mut self,
        pod: Arc<Pod>,
        node: &Arc<str>,
        victims: Vec<scheduler::Victim>,
        message: String,
    ) {
        let (binder, sender, node) = (self.binder.clone(), self.sender.clone(), node.clone());
        self.tasks.spawn(async move {
            binder
                .report_unschedulable(&pod, message, Some(&node))
                .await;
            // All at once: the pod waits for the last of them.
            let evictions = victims.into_iter().map(|victim| async {
                if !binder.evict(&victim, &pod, &node).await {
                    let _ = sender.send(Input::Spared(victim.uid));
                }
            });
            futures::future::join_all(evictions).await;
        });
    }

    fn changed(&mut self) {
        if self.utilisation_due.is_none() {
            self.utilisation_due = Some(Instant::now() + UTILISATION_AGE_MAX);
        }
    }

    /// When there is something to do even if nothing happens.
    pub fn next_due(&self) -> Option<Instant> {
        let due = [self.queue.next_due(), self.utilisation_due];
        due.into_iter().flatten().min()
    }

    pub fn report(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.options.metrics.set_queue(self.queue.counts());
        if self
            .utilisation_due
            .is_some_and(|due| due <= Instant::now())
        {
            self.utilisation_due = None;
            self.options.metrics.set_utilisation(&self.snapshot);
        }
    }

    async fn plan(&mut self, pending: &[PendingPod]) -> Plan {
        // A small batch is not searched for longer than it is worth: others wait meanwhile.
        let worth = SEARCH_BASE
            + SEARCH_PER_POD.saturating_mul(u32::try_from(pending.len()).unwrap_or(u32::MAX));
        let until = Instant::now() + self.options.plan_time_max.min(worth);
        let profiles = self.options.configuration.profiles.clone();
        let compute = move |snapshot: &mut Snapshot, pending: &[PendingPod]| {
            let stop = move || Instant::now() >= until;
            let policy = Policy {
                stop: Some(&stop),
                ..Policy::with_profiles(profiles)
            };
            let demand = scheduler::collect_demand(snapshot, pending);
            scheduler::match_pods(snapshot, &demand, &policy)
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
