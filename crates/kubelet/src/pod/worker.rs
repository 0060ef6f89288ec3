//! The task of one pod: observes, asks [`machine::next`], carries the actions out, writes the status.
//!
//! One task owns everything that is known of its pod. What takes time runs beside it and reports back as an
//! [`Input`]; the worker itself never waits for anything but its next input or the plan's next time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use runtime::service::{
    ContainerState, ContainerStatus, Image, PodSandbox, RuntimeError, SandboxState,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::backoff::INITIAL_SECONDS;
use super::fetch::{self, VolumesReady};
use super::labels;
use super::machine::{
    self, Action, EndCause, Ending, Failure, ImageStep, Plan, ProbeResults, Step, Work,
};
use super::spec::PodSpecView;
use super::start::{self, StartFailure, StartRequest};
use super::status::{self, StatusInput};
use super::{sandbox, status_patch};
use crate::context::Context;
use crate::events::Severity;
use crate::images::{self, ImageFailure};
use crate::probe::{self, ProbeKind};

/// A new pod's first status waits this long for the pod to run, which saves a write; nothing waits for it.
const FIRST_STATUS_HOLD: Duration = Duration::from_millis(60);
const RETRY_FIRST_SECONDS: i64 = 1;
const RETRY_MAX_SECONDS: i64 = 120;
/// How long a container that could not be started waits for the next attempt, as upstream's workers.
const START_RETRY_SECONDS: i64 = 10;

/// What the message of a refused pod begins with.
const REFUSED: &str = "Pod was rejected: ";

/// A listing of the runtime is not older than this when it is taken over.
const LISTING_AGE_MAX: SignedDuration = SignedDuration::from_secs(30);

/// What a worker is told.
pub enum Input {
    /// The pod as the API server (or the manifest) has it now.
    Pod(Arc<Pod>),
    /// The mirror of a static pod, or `None` when it is gone.
    Mirror(Option<Arc<Pod>>),
    /// The pod is gone from the API server.
    Gone,
    /// A container changed in the runtime.
    Container(String),
    /// A sandbox stopped.
    SandboxStopped(String),
    /// Everything the runtime has of this pod.
    Observed {
        sandboxes: Vec<PodSandbox>,
        containers: Vec<ContainerStatus>,
    },
    /// A ConfigMap or Secret that the pod refers to changed.
    Objects,
    /// End the pod for the node's sake.
    Evict {
        reason: String,
        message: String,
        grace_period_seconds: i64,
    },
    /// Stop everything and stay; for stopping the whole node. Nothing is written to the API server.
    Drain {
        grace_period_seconds: i64,
    },
    Probe {
        container_id: String,
        kind: ProbeKind,
        success: bool,
    },
    Done(Done),
}

/// What work beside the worker came to.
pub enum Done {
    Volumes(Result<VolumesReady, String>),
    Sandbox(Result<PodSandbox, RuntimeError>),
    SandboxStopped {
        id: String,
        result: Result<(), RuntimeError>,
    },
    Image {
        container: String,
        result: Result<Image, ImageFailure>,
    },
    Started {
        container: String,
        result: Result<ContainerStatus, StartFailure>,
    },
    Stopped {
        id: String,
        result: Result<(), RuntimeError>,
        status: Option<ContainerStatus>,
    },
    Seen {
        id: String,
        status: Result<ContainerStatus, RuntimeError>,
    },
    TornDown(Result<(), String>),
    StatusWritten {
        sent: Box<PodStatus>,
        result: Result<(), kube::Error>,
    },
    Deleted(Result<(), kube::Error>),
}

/// What others may see of a pod without asking its worker.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub pod: Option<Arc<Pod>>,
    pub status: PodStatus,
    /// Newest first.
    pub sandboxes: Vec<PodSandbox>,
    /// Newest first.
    pub containers: Vec<ContainerStatus>,
    /// Nothing of it runs any more.
    pub finished: bool,
}

pub type SharedSnapshot = Arc<std::sync::Mutex<Snapshot>>;

/// What a worker begins with.
pub struct Begin {
    pub pod: Arc<Pod>,
    pub mirror: Option<Arc<Pod>>,
    /// It comes from a manifest; its status goes to its mirror.
    pub is_static: bool,
    pub sandboxes: Vec<PodSandbox>,
    pub containers: Vec<ContainerStatus>,
    /// The node does not take it.
    pub refusal: Option<super::admission::Refusal>,
    pub snapshot: SharedSnapshot,
}

/// Starts the worker; it ends when the pod is gone or `inputs`' other end is dropped.
pub fn spawn(
    context: Arc<Context>,
    begin: Begin,
    sender: mpsc::UnboundedSender<Input>,
    inputs: mpsc::UnboundedReceiver<Input>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(Worker::new(context, begin, sender).run(inputs))
}

struct Worker {
    context: Arc<Context>,
    sender: mpsc::WeakUnboundedSender<Input>,
    view: PodSpecView,
    mirror: Option<Arc<Pod>>,
    is_static: bool,
    gone: bool,
    draining: bool,
    sandboxes: Vec<PodSandbox>,
    containers: Vec<ContainerStatus>,
    work: Work,
    volume_failures: u32,
    volumes: VolumesReady,
    volumes_refresh: bool,
    images: BTreeMap<String, Image>,
    probes: BTreeMap<String, ProbeResults>,
    probe_tasks: BTreeMap<(String, &'static str), tokio::task::AbortHandle>,
    stop_tasks: BTreeMap<String, tokio::task::AbortHandle>,
    ending: Option<Ending>,
    /// The node did not take it: its status says this and nothing of containers.
    refused: bool,
    finished: bool,
    /// As last written or found.
    written: PodStatus,
    desired: PodStatus,
    status_in_flight: bool,
    status_retry_at: Option<Timestamp>,
    status_failures: u32,
    hold_status_until: Timestamp,
    delete: Step,
    tasks: JoinSet<()>,
    snapshot: SharedSnapshot,
}

impl Worker {
    fn new(context: Arc<Context>, begin: Begin, sender: mpsc::UnboundedSender<Input>) -> Worker {
        let view = PodSpecView::new(begin.pod);
        let of_api = if begin.is_static {
            begin.mirror.as_ref()
        } else {
            Some(&view.pod)
        };
        let written = of_api
            .and_then(|pod| pod.status.clone())
            .unwrap_or_default();
        let now = Timestamp::now();
        // One that an earlier run of the kubelet refused has only this in its status.
        let refused = begin.refusal.is_some()
            || written.phase.as_deref() == Some("Failed")
                && written
                    .message
                    .as_ref()
                    .is_some_and(|message| message.starts_with(REFUSED));
        let ending = begin.refusal.map(|refusal| {
            context.tell_pod(
                &view,
                Severity::Warning,
                refusal.reason.clone(),
                refusal.message.clone(),
            );
            Ending {
                cause: EndCause::Failed {
                    reason: refusal.reason,
                    message: format!("{REFUSED}{}", refusal.message),
                },
                since: now,
                grace_period_seconds: 0,
            }
        });
        let is_new = written.start_time.is_none() && begin.containers.is_empty();
        let mut worker = Worker {
            context,
            sender: sender.downgrade(),
            mirror: begin.mirror,
            is_static: begin.is_static,
            gone: false,
            draining: false,
            sandboxes: begin.sandboxes,
            containers: begin.containers,
            work: Work::default(),
            volume_failures: 0,
            volumes: VolumesReady::default(),
            volumes_refresh: false,
            images: BTreeMap::new(),
            probes: BTreeMap::new(),
            probe_tasks: BTreeMap::new(),
            stop_tasks: BTreeMap::new(),
            ending,
            refused,
            finished: false,
            desired: written.clone(),
            written,
            status_in_flight: false,
            status_retry_at: None,
            status_failures: 0,
            hold_status_until: if is_new {
                now + SignedDuration::try_from(FIRST_STATUS_HOLD).unwrap_or_default()
            } else {
                now
            },
            delete: Step::Idle,
            tasks: JoinSet::new(),
            snapshot: begin.snapshot,
            view,
        };
        worker.recover();
        fetch::refer(&worker.context, &worker.view);
        worker
    }

    /// Takes over what an earlier run of the kubelet left.
    fn recover(&mut self) {
        self.sort();
        for status in &mut self.containers {
            start::add_message(status);
        }
        // What was ready stays so until its probes say otherwise.
        let known = self
            .written
            .container_statuses
            .iter()
            .chain(&self.written.init_container_statuses)
            .flatten();
        for old in known {
            let Some((_, id)) = old
                .container_id
                .as_deref()
                .and_then(|id| id.split_once("://"))
            else {
                continue;
            };
            if self
                .containers
                .iter()
                .any(|status| status.id == id && status.state == ContainerState::Running)
            {
                let passed = |yes: bool| yes.then_some(true);
                let results = ProbeResults {
                    startup: passed(old.started == Some(true)),
                    readiness: passed(old.ready),
                    liveness: None,
                };
                self.probes.insert(id.to_owned(), results);
            }
        }
        let ended = matches!(self.written.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended && self.ending.is_none() {
            self.ending = Some(Ending {
                cause: EndCause::Completed,
                since: Timestamp::now(),
                grace_period_seconds: self.view.grace_period_seconds(),
            });
        }
        self.note_deletion();
    }

    async fn run(mut self, mut inputs: mpsc::UnboundedReceiver<Input>) {
        loop {
            let wake_at = self.step();
            if self.gone && self.finished {
                self.clean_up().await;
                return;
            }
            let sleep = wake_at.map(|at| {
                let wait = at.duration_since(Timestamp::now());
                Instant::now()
                    + Duration::try_from(wait).unwrap_or_default()
                    + Duration::from_millis(1)
            });
            let input = tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => Some(input),
                    None => return,
                },
                () = async { match sleep { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => None,
            };
            if let Some(input) = input {
                self.handle(input);
            }
            while let Ok(input) = inputs.try_recv() {
                self.handle(input);
            }
            while self.tasks.try_join_next().is_some() {}
        }
    }

    /// Plans, acts and writes until nothing more can be done now; answers when to look again.
    fn step(&mut self) -> Option<Timestamp> {
        let now = Timestamp::now();
        let mut plan = Plan::default();
        // An action that ends the pod or shows a pause changes the plan at once.
        for _ in 0..8 {
            plan = machine::next(&machine::Input {
                view: &self.view,
                sandboxes: &self.sandboxes,
                containers: &self.containers,
                work: &self.work,
                probes: &self.probes,
                ending: self.ending.as_ref(),
                start_time: self
                    .written
                    .start_time
                    .as_ref()
                    .or(self.desired.start_time.as_ref())
                    .map(|time| time.0),
                now,
            });
            if plan.actions.is_empty() {
                break;
            }
            for action in std::mem::take(&mut plan.actions) {
                self.carry_out(action, now);
            }
        }
        self.finished = plan.finished;
        let mut wake_at = plan.wake_at;
        let mut wake =
            |at: Timestamp| wake_at = Some(wake_at.map_or(at, |earlier| earlier.min(at)));
        self.sync_probes(now);
        if let Some(at) = self.refresh_volumes(now) {
            wake(at);
        }
        self.make_status(now);
        if let Some(at) = self.write_status(now) {
            wake(at);
        }
        self.delete_pod(now);
        if let Step::Failed { retry_at } = self.delete {
            wake(retry_at);
        }
        self.publish();
        // What was due by now has been done, or waits for a result.
        wake_at.filter(|at| *at > now)
    }

    fn publish(&self) {
        let mut snapshot = self
            .snapshot
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        snapshot.pod = Some(Arc::clone(&self.view.pod));
        snapshot.status.clone_from(&self.desired);
        snapshot.sandboxes.clone_from(&self.sandboxes);
        snapshot.containers.clone_from(&self.containers);
        snapshot.finished = self.finished;
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Pod(pod) => self.update_pod(pod),
            Input::Mirror(mirror) => {
                if let Some(status) = mirror.as_ref().and_then(|mirror| mirror.status.clone()) {
                    self.written = status;
                } else {
                    self.written = PodStatus::default();
                }
                self.mirror = mirror;
            }
            Input::Gone => {
                self.gone = true;
                self.end(EndCause::Deleted, self.view.grace_period_seconds());
            }
            Input::Container(id) => self.look_at(id),
            Input::SandboxStopped(id) => {
                for sandbox in self.sandboxes.iter_mut().filter(|sandbox| sandbox.id == id) {
                    sandbox.state = SandboxState::NotReady;
                }
                let alive: Vec<_> = self
                    .containers
                    .iter()
                    .filter(|status| {
                        status.sandbox_id == id && status.state != ContainerState::Exited
                    })
                    .map(|status| status.id.clone())
                    .collect();
                for id in alive {
                    self.look_at(id);
                }
            }
            Input::Observed {
                sandboxes,
                mut containers,
            } => {
                containers.iter_mut().for_each(start::add_message);
                self.merge_listing(sandboxes, containers);
            }
            Input::Objects => {
                self.volumes_refresh = true;
                let now = Timestamp::now();
                if let Step::Failed { retry_at } = &mut self.work.volumes {
                    *retry_at = now;
                }
                for work in self.work.containers.values_mut() {
                    if let Some(failure) = &mut work.failure
                        && failure.reason == "CreateContainerConfigError"
                    {
                        failure.retry_at = now;
                    }
                }
            }
            Input::Evict {
                reason,
                message,
                grace_period_seconds,
            } => {
                if self.ending.is_none() {
                    self.context.tell_pod(
                        &self.view,
                        Severity::Warning,
                        "Evicted",
                        message.clone(),
                    );
                    self.mark_disrupted(&message);
                }
                self.end(EndCause::Failed { reason, message }, grace_period_seconds);
            }
            Input::Drain {
                grace_period_seconds,
            } => {
                self.draining = true;
                self.end(EndCause::Completed, grace_period_seconds);
            }
            Input::Probe {
                container_id,
                kind,
                success,
            } => {
                let results = self.probes.entry(container_id).or_default();
                match kind {
                    ProbeKind::Startup => results.startup = Some(success),
                    ProbeKind::Readiness => results.readiness = Some(success),
                    ProbeKind::Liveness => results.liveness = Some(success),
                }
            }
            Input::Done(done) => self.handle_done(done),
        }
    }

    fn update_pod(&mut self, pod: Arc<Pod>) {
        let old = std::mem::replace(&mut self.view, PodSpecView::new(pod));
        let metadata = |view: &PodSpecView| {
            (
                view.pod.metadata.labels.clone(),
                view.pod.metadata.annotations.clone(),
            )
        };
        if metadata(&old) != metadata(&self.view) {
            self.volumes_refresh = true;
        }
        if old.containers.len() != self.view.containers.len() {
            fetch::refer(&self.context, &self.view);
        }
        self.note_deletion();
    }

    fn note_deletion(&mut self) {
        if self.view.pod.metadata.deletion_timestamp.is_some() {
            self.end(EndCause::Deleted, self.view.grace_period_seconds());
        }
    }

    /// Begins to end the pod, or ends it sooner.
    fn end(&mut self, cause: EndCause, grace_period_seconds: i64) {
        let now = Timestamp::now();
        match &mut self.ending {
            None => {
                self.ending = Some(Ending {
                    cause,
                    since: now,
                    grace_period_seconds,
                });
                // What is fetched for a start is not wanted any more.
                self.volumes_refresh = false;
            }
            Some(ending) => {
                let kill_at =
                    |since: Timestamp, grace: i64| since + SignedDuration::from_secs(grace);
                if kill_at(now, grace_period_seconds)
                    < kill_at(ending.since, ending.grace_period_seconds)
                {
                    ending.since = now;
                    ending.grace_period_seconds = grace_period_seconds;
                }
            }
        }
    }

    fn mark_disrupted(&mut self, message: &str) {
        let condition = PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("TerminationByKubelet".into()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(Timestamp::now())),
            observed_generation: self.view.pod.metadata.generation,
            ..PodCondition::default()
        };
        let conditions = self.desired.conditions.get_or_insert_default();
        conditions.retain(|old| old.type_ != condition.type_);
        conditions.push(condition);
    }

    // --- actions ---

    /// Runs work beside the worker; its result comes back as an input.
    fn beside(
        &mut self,
        work: impl Future<Output = Done> + Send + 'static,
    ) -> tokio::task::AbortHandle {
        let sender = self.sender.clone();
        self.tasks.spawn(async move {
            let done = work.await;
            if let Some(sender) = sender.upgrade() {
                let _ = sender.send(Input::Done(done));
            }
        })
    }

    fn carry_out(&mut self, action: Action, now: Timestamp) {
        tracing::debug!(pod = self.view.name(), ?action, "action");
        let (context, view) = (Arc::clone(&self.context), self.view.clone());
        match action {
            Action::SetUpVolumes => {
                self.work.volumes = Step::InFlight;
                let old = self.volumes.clone();
                self.beside(async move {
                    Done::Volumes(fetch::set_up_volumes(&context, &view, &old).await)
                });
            }
            Action::CreateSandbox { attempt } => {
                if attempt > 0 {
                    self.context.tell_pod(
                        &self.view,
                        Severity::Normal,
                        "SandboxChanged",
                        "Pod sandbox changed, it will be killed and re-created.".into(),
                    );
                }
                self.work.sandbox = Step::InFlight;
                self.beside(async move {
                    Done::Sandbox(start::create_sandbox(&context, &view, attempt).await)
                });
            }
            Action::StopSandbox { id } => {
                self.work.stopping_sandboxes.push(id.clone());
                self.beside(async move {
                    let result = context.runtime.stop_pod_sandbox(&id).await;
                    Done::SandboxStopped { id, result }
                });
            }
            Action::EnsureImage { container } => {
                let Some(spec) = self.view.container(&container).cloned() else {
                    return;
                };
                self.work
                    .containers
                    .entry(container.clone())
                    .or_default()
                    .image = ImageStep::InFlight;
                self.beside(async move {
                    Done::Image {
                        container,
                        result: images::ensure(&context, &view, &spec).await,
                    }
                });
            }
            Action::StartContainer {
                container,
                sandbox_id,
            } => self.start(container, &sandbox_id, now),
            Action::StopContainer {
                id,
                container,
                message,
                grace_period_seconds,
                kill_at,
                replace,
            } => {
                if let Some(spec) = self.view.container(&container) {
                    self.work
                        .containers
                        .entry(container.clone())
                        .or_default()
                        .replace |= replace;
                    self.context.tell_container(
                        &self.view,
                        spec,
                        Severity::Normal,
                        "Killing",
                        message,
                    );
                }
                self.work.stopping.insert(id.clone(), kill_at);
                let pod_ip = self.pod_ips().into_iter().next().unwrap_or_default();
                let stop_id = id.clone();
                let task = self.beside(async move {
                    let spec = view.container(&container).map(|spec| &spec.container);
                    let result = start::stop(
                        &context,
                        &view,
                        spec,
                        &stop_id,
                        &pod_ip,
                        grace_period_seconds,
                    )
                    .await;
                    let status = start::observe(&context, &stop_id).await.ok();
                    Done::Stopped {
                        id: stop_id,
                        result,
                        status,
                    }
                });
                // A sooner kill replaces a patient one.
                if let Some(older) = self.stop_tasks.insert(id, task) {
                    older.abort();
                }
            }
            Action::BackOff { container, failure } => {
                if let Some(spec) = self.view.container(&container) {
                    let message = format!(
                        "Back-off restarting failed container {container} in pod {}",
                        self.view.formatted()
                    );
                    self.context.tell_container(
                        &self.view,
                        spec,
                        Severity::Warning,
                        "BackOff",
                        message,
                    );
                }
                self.work.containers.entry(container).or_default().failure = Some(failure);
            }
            Action::BackOffImage { container } => {
                let Some(spec) = self.view.container(&container) else {
                    return;
                };
                let image = spec.container.image.clone().unwrap_or_default();
                let tell = |severity, reason, message| {
                    self.context
                        .tell_container(&self.view, spec, severity, reason, message)
                };
                tell(
                    Severity::Normal,
                    "BackOff",
                    format!("Back-off pulling image {image:?}"),
                );
                tell(
                    Severity::Warning,
                    "Failed",
                    "Error: ImagePullBackOff".to_owned(),
                );
                if let ImageStep::Failed {
                    failure,
                    backing_off,
                    ..
                } = &mut self.work.containers.entry(container).or_default().image
                {
                    *backing_off = true;
                    failure.message = format!(
                        "Back-off pulling image {image:?}: {}: {}",
                        failure.reason, failure.message
                    );
                    failure.reason = "ImagePullBackOff".to_owned();
                }
            }
            Action::End(ending) => {
                if let EndCause::Failed { reason, message } = &ending.cause
                    && reason == "DeadlineExceeded"
                {
                    self.context.tell_pod(
                        &self.view,
                        Severity::Normal,
                        "DeadlineExceeded",
                        message.clone(),
                    );
                }
                self.ending = Some(ending);
            }
            Action::TearDown => {
                self.work.tear_down = Step::InFlight;
                let directory = self.context.config.pod_dir(self.view.uid());
                self.beside(async move {
                    let result =
                        tokio::task::spawn_blocking(move || volumes::tear_down(&directory)).await;
                    Done::TornDown(match result {
                        Ok(Ok(())) => Ok(()),
                        Ok(Err(errors)) => Err(errors
                            .iter()
                            .map(ToString::to_string)
                            .collect::<Vec<_>>()
                            .join("; ")),
                        Err(error) => Err(error.to_string()),
                    })
                });
            }
        }
    }

    fn start(&mut self, container: String, sandbox_id: &str, now: Timestamp) {
        let spec = self.view.container(&container).cloned();
        let sandbox = self
            .sandboxes
            .iter()
            .find(|sandbox| sandbox.id == sandbox_id)
            .cloned();
        let (Some(spec), Some(sandbox), Some(image)) =
            (spec, sandbox, self.images.get(&container).cloned())
        else {
            return;
        };
        let last = self
            .containers
            .iter()
            .find(|status| status.metadata.name == container);
        let work = self.work.containers.entry(container.clone()).or_default();
        work.starting = true;
        if let Some(last) = last.filter(|last| last.state == ContainerState::Exited) {
            work.backoff
                .advance(machine::timestamp(last.finished_at_nanos), now);
        }
        let request = StartRequest {
            view: self.view.clone(),
            spec,
            sandbox,
            pod_ips: self.pod_ips(),
            image,
            volumes: self.volumes.paths.clone(),
            restart_count: last.map(|last| labels::restart_count(last) + 1),
        };
        let context = Arc::clone(&self.context);
        self.beside(async move {
            Done::Started {
                container,
                result: start::start_container(&context, &request).await,
            }
        });
    }

    fn pod_ips(&self) -> Vec<String> {
        if self.view.host_network() {
            return self.context.config.host_ips();
        }
        self.sandboxes
            .first()
            .map(|sandbox| sandbox.ips.iter().map(ToString::to_string).collect())
            .unwrap_or_default()
    }

    fn look_at(&mut self, id: String) {
        let context = Arc::clone(&self.context);
        self.beside(async move {
            let status = start::observe(&context, &id).await;
            Done::Seen { id, status }
        });
    }

    // --- results ---

    fn handle_done(&mut self, done: Done) {
        let now = Timestamp::now();
        let after = |seconds: i64| now + SignedDuration::from_secs(seconds);
        match done {
            Done::Volumes(Ok(ready)) => {
                self.volumes = ready;
                self.volume_failures = 0;
                self.work.volumes = Step::Done;
            }
            Done::Volumes(Err(error)) => {
                tracing::info!(pod = self.view.name(), error, "volumes are not ready");
                let retry = RETRY_FIRST_SECONDS
                    .checked_shl(self.volume_failures)
                    .unwrap_or(RETRY_MAX_SECONDS)
                    .min(RETRY_MAX_SECONDS);
                self.volume_failures = (self.volume_failures + 1).min(16);
                self.work.volumes = Step::Failed {
                    retry_at: after(retry),
                };
            }
            Done::Sandbox(Ok(sandbox)) => {
                self.work.sandbox = Step::Done;
                self.sandboxes.insert(0, sandbox);
                self.sort();
            }
            Done::Sandbox(Err(error)) => {
                tracing::warn!(pod = self.view.name(), %error, "sandbox was not created");
                self.work.sandbox = Step::Failed {
                    retry_at: after(START_RETRY_SECONDS),
                };
            }
            Done::SandboxStopped { id, result } => {
                self.work
                    .stopping_sandboxes
                    .retain(|stopping| *stopping != id);
                match result {
                    Ok(()) | Err(RuntimeError::NotFound { .. }) => {
                        self.handle(Input::SandboxStopped(id))
                    }
                    Err(error) => {
                        self.context.tell_pod(
                            &self.view,
                            Severity::Warning,
                            "FailedKillPod",
                            format!("error killing pod: {error}"),
                        );
                        // Asked again with the next step; wait a moment first.
                        self.work.stopping_sandboxes.push(id.clone());
                        let context = Arc::clone(&self.context);
                        self.beside(async move {
                            tokio::time::sleep(Duration::from_secs(5)).await;
                            let result = context.runtime.stop_pod_sandbox(&id).await;
                            Done::SandboxStopped { id, result }
                        });
                    }
                }
            }
            Done::Image { container, result } => self.handle_image(container, result, now),
            Done::Started { container, result } => self.handle_started(&container, result, now),
            Done::Stopped { id, result, status } => {
                self.work.stopping.remove(&id);
                self.stop_tasks.remove(&id);
                if let Err(error) = result {
                    tracing::warn!(pod = self.view.name(), container = id, %error, "container was not stopped");
                    self.context.tell_pod(
                        &self.view,
                        Severity::Warning,
                        "FailedKillPod",
                        format!("error killing pod: {error}"),
                    );
                    self.work.stopping.insert(id.clone(), Timestamp::UNIX_EPOCH);
                    let context = Arc::clone(&self.context);
                    self.beside(async move {
                        tokio::time::sleep(Duration::from_secs(5)).await;
                        let result = context.runtime.stop_container(&id, 0).await;
                        let status = start::observe(&context, &id).await.ok();
                        Done::Stopped { id, result, status }
                    });
                    return;
                }
                match status {
                    Some(status) => self.note(status),
                    None => self.lost(&id),
                }
            }
            Done::Seen { id, status } => match status {
                Ok(status) => self.note(status),
                Err(RuntimeError::NotFound { .. }) => self.lost(&id),
                Err(error) => {
                    tracing::warn!(pod = self.view.name(), %error, "container's status could not be read")
                }
            },
            Done::TornDown(Ok(())) => self.work.tear_down = Step::Done,
            Done::TornDown(Err(error)) => {
                tracing::warn!(pod = self.view.name(), error, "volumes were not removed");
                self.work.tear_down = Step::Failed { retry_at: after(5) };
            }
            Done::StatusWritten { sent, result } => {
                self.status_in_flight = false;
                match result {
                    Ok(()) => {
                        self.written = *sent;
                        self.status_failures = 0;
                        self.status_retry_at = None;
                    }
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                        // Another pod, or none, has the name now; the watch will say.
                        self.written = *sent;
                    }
                    Err(error) => {
                        tracing::warn!(pod = self.view.name(), %error, "status was not written");
                        let retry = RETRY_FIRST_SECONDS
                            .checked_shl(self.status_failures)
                            .unwrap_or(RETRY_MAX_SECONDS)
                            .min(10);
                        self.status_failures = (self.status_failures + 1).min(8);
                        self.status_retry_at = Some(after(retry));
                    }
                }
            }
            Done::Deleted(Ok(())) => self.delete = Step::Done,
            Done::Deleted(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                self.delete = Step::Done
            }
            Done::Deleted(Err(error)) => {
                tracing::warn!(pod = self.view.name(), %error, "pod was not deleted");
                self.delete = Step::Failed { retry_at: after(2) };
            }
        }
    }

    fn handle_image(
        &mut self,
        container: String,
        result: Result<Image, ImageFailure>,
        now: Timestamp,
    ) {
        let work = self.work.containers.entry(container.clone()).or_default();
        match result {
            Ok(image) => {
                work.image = ImageStep::Ready;
                work.image_backoff = super::backoff::Backoff::default();
                self.images.insert(container, image);
            }
            Err(failure) => {
                work.image_backoff.advance(now, now);
                let seconds = if failure.reason == "ErrImagePull" {
                    work.image_backoff.delay_seconds()
                } else {
                    INITIAL_SECONDS
                };
                let retry_at = now + SignedDuration::from_secs(seconds);
                let failure = Failure {
                    reason: failure.reason.to_owned(),
                    message: failure.message,
                    retry_at,
                };
                work.image = ImageStep::Failed {
                    failure,
                    failed_at: now,
                    backing_off: false,
                };
            }
        }
    }

    fn handle_started(
        &mut self,
        container: &str,
        result: Result<ContainerStatus, StartFailure>,
        now: Timestamp,
    ) {
        let work = self
            .work
            .containers
            .entry(container.to_owned())
            .or_default();
        work.starting = false;
        work.replace = false;
        work.image = ImageStep::Unknown;
        let status = match result {
            Ok(status) => {
                work.failure = None;
                Some(status)
            }
            Err(failure) => {
                tracing::info!(
                    pod = self.view.name(),
                    container,
                    reason = failure.reason,
                    message = failure.message,
                    "container did not start"
                );
                let retry_at = now + SignedDuration::from_secs(START_RETRY_SECONDS);
                work.failure = Some(Failure {
                    reason: failure.reason.to_owned(),
                    message: failure.message,
                    retry_at,
                });
                // The image is here; the next attempt need not ask again.
                if failure.reason == "CreateContainerConfigError" {
                    work.image = ImageStep::Ready;
                }
                failure.status
            }
        };
        if let Some(status) = status {
            self.note(status);
        }
        self.remove_dead(container);
    }

    /// Only the last ended container of each name is kept, for its log and status.
    fn remove_dead(&mut self, container: &str) {
        let dead: Vec<ContainerStatus> = self
            .containers
            .iter()
            .filter(|status| {
                status.metadata.name == container && status.state == ContainerState::Exited
            })
            .skip(1)
            .cloned()
            .collect();
        for status in dead {
            self.containers.retain(|kept| kept.id != status.id);
            let context = Arc::clone(&self.context);
            self.tasks.spawn(async move {
                match context.runtime.remove_container(&status.id).await {
                    Ok(()) | Err(RuntimeError::NotFound { .. }) => {
                        crate::logs::remove(&status.log_path);
                        if let Some(file) = status.annotations.get(labels::TERMINATION_MESSAGE_FILE) {
                            let _ = std::fs::remove_file(file);
                        }
                    }
                    Err(error) => tracing::warn!(container = status.id, %error, "dead container was not removed"),
                }
            });
        }
    }

    fn note(&mut self, status: ContainerStatus) {
        match self.containers.iter_mut().find(|old| old.id == status.id) {
            // A late look must not bring an ended container back.
            Some(old)
                if old.state == ContainerState::Exited
                    && status.state != ContainerState::Exited => {}
            Some(old) => *old = status,
            None => self.containers.push(status),
        }
        self.sort();
    }

    /// Takes over a listing that may be a moment old: what is newer than it stays.
    fn merge_listing(&mut self, sandboxes: Vec<PodSandbox>, containers: Vec<ContainerStatus>) {
        let settled = Timestamp::now() - LISTING_AGE_MAX;
        let settled = i64::try_from(settled.as_nanosecond()).unwrap_or(i64::MAX);
        self.sandboxes.retain(|own| {
            own.created_at_nanos > settled || sandboxes.iter().any(|listed| listed.id == own.id)
        });
        for sandbox in sandboxes {
            match self.sandboxes.iter_mut().find(|own| own.id == sandbox.id) {
                Some(own) => *own = sandbox,
                // One that is being made reports itself.
                None if self.work.sandbox == Step::InFlight => {}
                None => self.sandboxes.push(sandbox),
            }
        }
        self.containers.retain(|own| {
            own.created_at_nanos > settled || containers.iter().any(|listed| listed.id == own.id)
        });
        let starting = self.work.containers.values().any(|work| work.starting);
        for status in containers {
            let known = self.containers.iter().any(|own| own.id == status.id);
            // One that is being started reports itself; an ended one may be on its way out.
            if known || !starting && status.state != ContainerState::Exited {
                self.note(status);
            }
        }
        self.sort();
    }

    /// The runtime does not know the container any more.
    fn lost(&mut self, id: &str) {
        self.containers.retain(|status| status.id != id);
    }

    fn sort(&mut self) {
        self.sandboxes.sort_by_key(|sandbox| {
            std::cmp::Reverse((sandbox.metadata.attempt, sandbox.created_at_nanos))
        });
        self.containers.sort_by_key(|status| {
            std::cmp::Reverse((status.created_at_nanos, status.metadata.attempt))
        });
    }

    // --- probes ---

    fn sync_probes(&mut self, now: Timestamp) {
        let running: BTreeMap<String, ContainerStatus> = self
            .containers
            .iter()
            .filter(|status| status.state == ContainerState::Running && !self.finished)
            .map(|status| (status.id.clone(), status.clone()))
            .collect();
        let ending = self.ending.is_some();
        self.probes.retain(|id, _| running.contains_key(id));
        self.probe_tasks.retain(|(id, kind), task| {
            // A pod that ends is still asked whether it is ready, and no more whether it lives.
            let keep = running.contains_key(id) && (!ending || *kind == "readiness");
            if !keep {
                task.abort();
            }
            keep
        });
        let pod_ip = self.pod_ips().into_iter().next().unwrap_or_default();
        for (id, status) in running {
            let Some(spec) = self.view.container(&status.metadata.name).cloned() else {
                continue;
            };
            let results = self.probes.get(&id).copied().unwrap_or_default();
            let started = spec.container.startup_probe.is_none() || results.startup == Some(true);
            for (kind, name, wanted) in [
                (
                    ProbeKind::Startup,
                    "startup",
                    results.startup.is_none() && !ending,
                ),
                (ProbeKind::Readiness, "readiness", started && !ending),
                (
                    ProbeKind::Liveness,
                    "liveness",
                    started && !ending && results.liveness != Some(false),
                ),
            ] {
                let key = (id.clone(), name);
                if !wanted
                    || kind.of(&spec.container).is_none()
                    || self.probe_tasks.contains_key(&key)
                {
                    continue;
                }
                let age = start::age(&status, now);
                let target = probe::Target {
                    view: self.view.clone(),
                    spec: spec.clone(),
                    container_id: id.clone(),
                    pod_ip: pod_ip.clone(),
                    started: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
                };
                let (sender, context, container_id) =
                    (self.sender.clone(), Arc::clone(&self.context), id.clone());
                let task = self
                    .tasks
                    .spawn(probe::run(context, target, kind, move |success| {
                        if let Some(sender) = sender.upgrade() {
                            let _ = sender.send(Input::Probe {
                                container_id: container_id.clone(),
                                kind,
                                success,
                            });
                        }
                    }));
                self.probe_tasks.insert(key, task);
            }
        }
    }

    fn refresh_volumes(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.ending.is_some() || self.work.volumes != Step::Done {
            return None;
        }
        let due = self.volumes.refresh_at.is_some_and(|at| at <= now);
        if due || self.volumes_refresh && fetch::has_files(&self.view) {
            self.volumes_refresh = false;
            let (context, view, old) = (
                Arc::clone(&self.context),
                self.view.clone(),
                self.volumes.clone(),
            );
            // Asked again in a while if it fails; what is mounted stays.
            self.volumes.refresh_at = Some(now + SignedDuration::from_secs(60));
            let fallback = self.volumes.clone();
            self.beside(async move {
                Done::Volumes(Ok(fetch::set_up_volumes(&context, &view, &old)
                    .await
                    .unwrap_or(fallback)))
            });
        }
        self.volumes.refresh_at
    }

    // --- status ---

    fn make_status(&mut self, now: Timestamp) {
        let host_ips = self.context.config.host_ips();
        self.desired = status::generate(&StatusInput {
            view: &self.view,
            sandboxes: &self.sandboxes,
            containers: &self.containers,
            work: &self.work,
            probes: &self.probes,
            ending: self.ending.as_ref(),
            finished: self.finished,
            refused: self.refused,
            previous: &self.desired,
            host_ips: &host_ips,
            runtime_name: &self.context.runtime_name,
            now,
        });
    }

    /// Writes the status if it changed; one write at a time. Answers when to try again.
    fn write_status(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.status_in_flight || self.gone || self.draining || self.desired == self.written {
            return None;
        }
        if let Some(retry_at) = self.status_retry_at.filter(|at| *at > now) {
            return Some(retry_at);
        }
        let plain_start = self.desired.phase.as_deref() == Some("Pending")
            && self.ending.is_none()
            && !status::is_troubled(&self.desired);
        if plain_start && self.hold_status_until > now {
            return Some(self.hold_status_until);
        }
        let target = if self.is_static {
            self.mirror.as_ref()?
        } else {
            &self.view.pod
        };
        let (Some(name), Some(uid)) = (target.metadata.name.clone(), target.metadata.uid.clone())
        else {
            return None;
        };
        let namespace = target.metadata.namespace.clone().unwrap_or_default();
        let patch = status_patch::make(&uid, &self.written, &self.desired);
        let sent = Box::new(self.desired.clone());
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        self.status_in_flight = true;
        self.beside(async move {
            let result = api
                .patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch))
                .await;
            Done::StatusWritten {
                sent,
                result: result.map(|_| ()),
            }
        });
        None
    }

    /// The last step of a deletion: the object goes once everything else is gone and told.
    fn delete_pod(&mut self, now: Timestamp) {
        let deleted = self.view.pod.metadata.deletion_timestamp.is_some();
        let due = match self.delete {
            Step::Idle => true,
            Step::Failed { retry_at } => retry_at <= now,
            Step::InFlight | Step::Done => false,
        };
        if !deleted
            || self.gone
            || self.is_static
            || self.draining
            || !self.finished
            || self.status_in_flight
            || self.desired != self.written
            || !due
        {
            return;
        }
        self.delete = Step::InFlight;
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), self.view.namespace());
        let name = self.view.name().to_owned();
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.view.uid().to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        self.beside(async move { Done::Deleted(api.delete(&name, &params).await.map(|_| ())) });
    }

    /// Removes what is left on the node of a pod that is gone.
    async fn clean_up(mut self) {
        self.tasks.shutdown().await;
        self.context.objects.refer(
            self.view.uid(),
            self.view.namespace(),
            &Default::default(),
            &Default::default(),
        );
        let log_directory = self
            .context
            .config
            .log_dir
            .join(sandbox::log_directory_name(
                self.view.namespace(),
                self.view.name(),
                self.view.uid(),
            ));
        remove_remains(
            &self.context,
            self.view.uid(),
            &self.sandboxes,
            Some(log_directory),
        )
        .await;
    }
}

/// Removes sandboxes, logs and the directory of a pod that nothing runs of.
pub async fn remove_remains(
    context: &Context,
    uid: &str,
    sandboxes: &[PodSandbox],
    log_directory: Option<std::path::PathBuf>,
) {
    for sandbox in sandboxes {
        if let Err(error) = context.runtime.remove_pod_sandbox(&sandbox.id).await
            && !matches!(error, RuntimeError::NotFound { .. })
        {
            tracing::warn!(sandbox = sandbox.id, %error, "sandbox was not removed");
        }
    }
    let pod_dir = context.config.pod_dir(uid);
    let removed = tokio::task::spawn_blocking(move || {
        if let Err(errors) = volumes::tear_down(&pod_dir) {
            // With a mount left inside, nothing is deleted: it could be somebody's data.
            return Err(errors
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; "));
        }
        for directory in log_directory.iter().chain([&pod_dir]) {
            match std::fs::remove_dir_all(directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("cannot remove {}: {error}", directory.display()));
                }
                _ => {}
            }
        }
        Ok(())
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(uid, error, "pod's files were not removed");
    }
}
