//! What must happen next to a pod: [`next`]. Pure; no I/O, no clock.
//!
//! ```text
//!                 set up volumes ─┐
//!   pod bound ──► create sandbox ─┼─► init 1 ─► init 2 … ─► regular containers ◄─┐
//!                 ensure images ──┘   (sidecars stay)        │        │          │ restart, after
//!                                                            │        └ exited ──┘ a back-off
//!                     deleted, evicted, deadline passed,     │
//!                     or all done under the restart policy   ▼
//!                     stop regular containers ► stop sidecars, last first
//!                         ► stop sandbox ► tear down volumes ► finished
//! ```
//!
//! Invariants:
//! - The machine looks at what was observed and at the work under way ([`Work`]), never at the past:
//!   calling it again with the same input gives the same plan, and a restarted kubelet that observes the
//!   same sandboxes and containers goes on where the old one stopped.
//! - At most one container of a pod is being started at a time, in the spec's order, and the one after it
//!   waits until its postStart hook has ended; images are fetched side by side.
//! - Work that is under way is in [`Work`], so it is not asked for twice.
//! - A plan says when it must be made again ([`Plan::wake_at`]) if nothing happens before.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use runtime::service::{ContainerState, ContainerStatus, PodSandbox, SandboxState};

use super::backoff::{Backoff, format_seconds};
use super::labels;
use super::spec::{ContainerSpec, Kind, PodSpecView};

/// Shortest time that a container gets to end after its stop signal, as upstream.
const GRACE_SECONDS_MIN: i64 = 2;
/// How long `ErrImagePull` is shown before `ImagePullBackOff`.
const PULL_ERROR_SHOWN_SECONDS: i64 = 3;

/// A thing that is done once for the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Step {
    #[default]
    Idle,
    InFlight,
    Done,
    Failed {
        retry_at: Timestamp,
    },
}

/// The image of a container that is about to start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageStep {
    #[default]
    Unknown,
    InFlight,
    Ready,
    /// `backing_off`: the pull failed and `ImagePullBackOff` is shown already.
    Failed {
        failure: Failure,
        failed_at: Timestamp,
        backing_off: bool,
    },
}

/// Why a container waits, as its status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `CrashLoopBackOff`, `CreateContainerConfigError`, …
    pub reason: String,
    pub message: String,
    pub retry_at: Timestamp,
}

/// What the worker knows of one container by name beyond what the runtime says.
#[derive(Clone, Debug, Default)]
pub struct ContainerWork {
    pub image: ImageStep,
    pub starting: bool,
    pub failure: Option<Failure>,
    pub backoff: Backoff,
    pub image_backoff: Backoff,
    /// It was stopped to be replaced, whatever its restart policy says.
    pub replace: bool,
}

/// Work under way and its results.
#[derive(Clone, Debug, Default)]
pub struct Work {
    pub volumes: Step,
    pub sandbox: Step,
    pub containers: BTreeMap<String, ContainerWork>,
    /// Containers being stopped, with the time they are killed at.
    pub stopping: BTreeMap<String, Timestamp>,
    /// Sandboxes being stopped.
    pub stopping_sandboxes: Vec<String>,
    pub tear_down: Step,
}

impl Work {
    fn container(&self, name: &str) -> Option<&ContainerWork> {
        self.containers.get(name)
    }

    fn is_starting(&self) -> bool {
        self.containers.values().any(|work| work.starting)
    }
}

/// What probes said last; `None`: nothing yet (or there is no such probe).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeResults {
    pub startup: Option<bool>,
    pub readiness: Option<bool>,
    pub liveness: Option<bool>,
}

/// Why a pod ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// Its deletion was asked for, or it is gone from the API server.
    Deleted,
    /// Ended by the node: phase Failed with this reason and message.
    Failed { reason: String, message: String },
    /// All its containers are done.
    Completed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub cause: EndCause,
    pub since: Timestamp,
    pub grace_period_seconds: i64,
}

pub struct Input<'a> {
    pub view: &'a PodSpecView,
    /// Newest first.
    pub sandboxes: &'a [PodSandbox],
    /// Of all sandboxes, newest first.
    pub containers: &'a [ContainerStatus],
    pub work: &'a Work,
    /// By container id.
    pub probes: &'a BTreeMap<String, ProbeResults>,
    pub ending: Option<&'a Ending>,
    pub start_time: Option<Timestamp>,
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    SetUpVolumes,
    CreateSandbox {
        attempt: u32,
    },
    StopSandbox {
        id: String,
    },
    EnsureImage {
        container: String,
    },
    /// Create, start, postStart hook.
    StartContainer {
        container: String,
        sandbox_id: String,
    },
    StopContainer {
        id: String,
        container: String,
        message: String,
        grace_period_seconds: i64,
        kill_at: Timestamp,
        replace: bool,
    },
    /// Show that the container waits for its next start, and say so in an event.
    BackOff {
        container: String,
        failure: Failure,
    },
    /// Show that the image's next pull waits.
    BackOffImage {
        container: String,
    },
    /// The pod has to end now.
    End(Ending),
    TearDown,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub wake_at: Option<Timestamp>,
    /// Nothing of the pod runs any more and nothing will.
    pub finished: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// What to do now.
pub fn next(input: &Input<'_>) -> Plan {
    let mut plan = Plan::default();
    if let Some(ending) = input.ending {
        end(input, ending, &mut plan);
        return plan;
    }
    if let Some(deadline) = deadline(input) {
        if deadline <= input.now {
            plan.actions.push(Action::End(Ending {
                cause: EndCause::Failed {
                    reason: "DeadlineExceeded".into(),
                    message: "Pod was active on the node longer than the specified deadline".into(),
                },
                since: input.now,
                grace_period_seconds: input.view.grace_period_seconds(),
            }));
            return plan;
        }
        plan.wake(deadline);
    }
    match &input.work.volumes {
        Step::Idle => plan.actions.push(Action::SetUpVolumes),
        Step::Failed { retry_at } if *retry_at <= input.now => {
            plan.actions.push(Action::SetUpVolumes)
        }
        Step::Failed { retry_at } => plan.wake(*retry_at),
        Step::InFlight | Step::Done => {}
    }
    let sandbox = ready_sandbox(input.view, input.sandboxes);
    let wanted = wanted(input, sandbox);
    if wanted.done {
        plan.actions.push(Action::End(Ending {
            cause: EndCause::Completed,
            since: input.now,
            grace_period_seconds: input.view.grace_period_seconds(),
        }));
        return plan;
    }
    if sandbox.is_none() {
        replace_sandbox(input, &mut plan);
    }
    plan.actions.extend(wanted.stops);
    start(input, sandbox, &wanted.starts, &mut plan);
    plan
}

/// The sandbox that containers can run in: the newest, ready, and with an address where it needs one.
pub fn ready_sandbox<'a>(
    view: &PodSpecView,
    sandboxes: &'a [PodSandbox],
) -> Option<&'a PodSandbox> {
    let newest = sandboxes.first()?;
    (newest.state == SandboxState::Ready && (view.host_network() || !newest.ips.is_empty()))
        .then_some(newest)
}

fn deadline(input: &Input<'_>) -> Option<Timestamp> {
    let seconds = input.view.pod.spec.as_ref()?.active_deadline_seconds?;
    Some(input.start_time? + SignedDuration::from_secs(seconds.clamp(0, 1 << 31)))
}

fn replace_sandbox(input: &Input<'_>, plan: &mut Plan) {
    // What is left of an older sandbox gives its network back first.
    for old in input
        .sandboxes
        .iter()
        .filter(|old| old.state == SandboxState::Ready)
    {
        if !input.work.stopping_sandboxes.contains(&old.id) {
            plan.actions
                .push(Action::StopSandbox { id: old.id.clone() });
        }
    }
    if input
        .sandboxes
        .iter()
        .any(|old| old.state == SandboxState::Ready)
    {
        return;
    }
    let attempt = input
        .sandboxes
        .iter()
        .map(|sandbox| sandbox.metadata.attempt + 1)
        .max()
        .unwrap_or(0);
    match &input.work.sandbox {
        Step::InFlight => {}
        Step::Failed { retry_at } if *retry_at > input.now => plan.wake(*retry_at),
        _ => plan.actions.push(Action::CreateSandbox { attempt }),
    }
}

#[derive(Default)]
struct Wanted<'a> {
    /// In the order of start.
    starts: Vec<&'a ContainerSpec>,
    stops: Vec<Action>,
    /// Nothing runs, nothing will.
    done: bool,
}

fn latest<'a>(input: &Input<'a>, name: &str) -> Option<&'a ContainerStatus> {
    input
        .containers
        .iter()
        .find(|status| status.metadata.name == name)
}

fn wanted<'a>(input: &Input<'a>, sandbox: Option<&PodSandbox>) -> Wanted<'a> {
    let mut wanted = Wanted::default();
    let view = input.view;
    let Some(sandbox) = sandbox else {
        // Everything starts over, but for what is done for good.
        let regular = || {
            view.containers
                .iter()
                .filter(|spec| spec.kind == Kind::Regular)
        };
        let ran_before = regular().any(|spec| latest(input, &spec.container.name).is_some());
        let again: Vec<_> = regular().filter(|spec| starts_again(input, spec)).collect();
        let failed_init = view
            .containers
            .iter()
            .filter(|spec| spec.kind == Kind::Init)
            .any(|spec| {
                latest(input, &spec.container.name).is_some_and(|status| {
                    status.state == ContainerState::Exited
                        && status.exit_code != 0
                        && !view.restarts_after(spec, status.exit_code)
                })
            });
        if (ran_before && again.is_empty() || failed_init) && input.work.sandbox != Step::InFlight {
            wanted.done = true;
            return wanted;
        }
        let first_init = view
            .containers
            .iter()
            .find(|spec| matches!(spec.kind, Kind::Init | Kind::Sidecar));
        wanted.starts = match first_init {
            Some(first) => vec![first],
            None => again,
        };
        return wanted;
    };
    for spec in view
        .containers
        .iter()
        .filter(|spec| spec.kind == Kind::Ephemeral)
    {
        if latest(input, &spec.container.name).is_none() {
            wanted.starts.push(spec);
        }
    }
    let here = |spec: &ContainerSpec| {
        latest(input, &spec.container.name).filter(|status| status.sandbox_id == sandbox.id)
    };
    let initialized = view
        .containers
        .iter()
        .any(|spec| spec.kind == Kind::Regular && here(spec).is_some());
    if !want_init(input, &mut wanted, initialized, &here) {
        return wanted;
    }
    let mut kept = 0;
    for spec in view
        .containers
        .iter()
        .filter(|spec| spec.kind == Kind::Regular)
    {
        match here(spec) {
            Some(status) if is_alive(status) => {
                kept += 1;
                check_alive(input, spec, status, &mut wanted);
            }
            _ if input
                .work
                .container(&spec.container.name)
                .is_some_and(|work| work.starting) =>
            {
                kept += 1;
                wanted.starts.push(spec);
            }
            _ if starts_again(input, spec) => wanted.starts.push(spec),
            _ => {}
        }
    }
    let any_regular_start = wanted.starts.iter().any(|spec| spec.kind == Kind::Regular);
    if kept == 0 && !any_regular_start {
        wanted.done = true;
    }
    wanted
}

fn is_alive(status: &ContainerStatus) -> bool {
    matches!(
        status.state,
        ContainerState::Running | ContainerState::Unknown
    )
}

/// Init containers and sidecars. Answers whether the regular containers may run.
fn want_init<'a>(
    input: &Input<'a>,
    wanted: &mut Wanted<'a>,
    initialized: bool,
    here: &dyn Fn(&ContainerSpec) -> Option<&'a ContainerStatus>,
) -> bool {
    let init: Vec<_> = input
        .view
        .containers
        .iter()
        .filter(|spec| matches!(spec.kind, Kind::Init | Kind::Sidecar))
        .collect();
    for (index, spec) in init.iter().enumerate() {
        let passed = initialized || init[index + 1..].iter().any(|later| here(later).is_some());
        let starting = input
            .work
            .container(&spec.container.name)
            .is_some_and(|work| work.starting);
        match (here(spec), spec.kind) {
            // After initialization, or once a later one ran, an init container is over.
            (None, Kind::Init) if passed => {}
            (None, _) => {
                wanted.starts.push(spec);
                if !passed {
                    return false;
                }
            }
            (Some(_), Kind::Init) if initialized => {}
            (Some(status), Kind::Init) => match status.state {
                ContainerState::Running | ContainerState::Unknown => return false,
                ContainerState::Exited if status.exit_code == 0 => {}
                ContainerState::Exited if !input.view.restarts_after(spec, status.exit_code) => {
                    // Initialization has failed for good.
                    wanted.starts.clear();
                    wanted.done = true;
                    return false;
                }
                ContainerState::Exited | ContainerState::Created => {
                    wanted.starts.push(spec);
                    return false;
                }
            },
            (Some(status), _) => {
                if is_alive(status) {
                    check_alive(input, spec, status, wanted);
                    let started = spec.container.startup_probe.is_none()
                        || input
                            .probes
                            .get(&status.id)
                            .is_some_and(|p| p.startup == Some(true));
                    if (!started || starting) && !passed {
                        if starting {
                            wanted.starts.push(spec);
                        }
                        return false;
                    }
                } else {
                    wanted.starts.push(spec);
                    if !passed {
                        return false;
                    }
                }
            }
        }
    }
    true
}

/// Must a container that does not run be started?
fn starts_again(input: &Input<'_>, spec: &ContainerSpec) -> bool {
    let replace = input
        .work
        .container(&spec.container.name)
        .is_some_and(|work| work.replace);
    match latest(input, &spec.container.name) {
        None => true,
        Some(status) => match status.state {
            ContainerState::Exited => replace || input.view.restarts_after(spec, status.exit_code),
            ContainerState::Created | ContainerState::Running | ContainerState::Unknown => true,
        },
    }
}

/// Stops a running container that failed a probe or whose spec changed.
fn check_alive(
    input: &Input<'_>,
    spec: &ContainerSpec,
    status: &ContainerStatus,
    wanted: &mut Wanted<'_>,
) {
    if input.work.stopping.contains_key(&status.id) {
        return;
    }
    let container = &spec.container;
    let probes = input.probes.get(&status.id).copied().unwrap_or_default();
    let label = if spec.kind == Kind::Sidecar {
        "Init container"
    } else {
        "Container"
    };
    let (why, probe) = if labels::hash_of(status) != spec.hash {
        ("definition changed", None)
    } else if probes.liveness == Some(false) {
        ("failed liveness probe", container.liveness_probe.as_ref())
    } else if probes.startup == Some(false) {
        ("failed startup probe", container.startup_probe.as_ref())
    } else {
        return;
    };
    let replace = probe.is_none();
    let policy = container
        .restart_policy
        .as_deref()
        .unwrap_or(input.view.restart_policy());
    let restarts = replace || spec.kind == Kind::Sidecar || policy != "Never";
    let suffix = if restarts { ", will be restarted" } else { "" };
    let grace = probe
        .and_then(|probe| probe.termination_grace_period_seconds)
        .unwrap_or_else(|| input.view.grace_period_seconds());
    wanted.stops.push(Action::StopContainer {
        id: status.id.clone(),
        container: container.name.clone(),
        message: format!("{label} {} {why}{suffix}", container.name),
        grace_period_seconds: grace,
        kill_at: input.now + SignedDuration::from_secs(grace),
        replace,
    });
}

fn start(
    input: &Input<'_>,
    sandbox: Option<&PodSandbox>,
    starts: &[&ContainerSpec],
    plan: &mut Plan,
) {
    let none = ContainerWork::default();
    let ready = input.work.volumes == Step::Done && !input.work.is_starting();
    // Whether the containers before this one have been tried.
    let mut in_turn = true;
    for spec in starts {
        let name = &spec.container.name;
        let work = input.work.container(name).unwrap_or(&none);
        if work.starting {
            in_turn = false;
            continue;
        }
        let alive = latest(input, name).is_some_and(|status| {
            is_alive(status) && sandbox.is_some_and(|sandbox| sandbox.id == status.sandbox_id)
        });
        if alive {
            continue;
        }
        if let Some(failure) = &work.failure
            && failure.retry_at > input.now
        {
            plan.wake(failure.retry_at);
            continue;
        }
        // A pause after the last end.
        if let Some(status) = latest(input, name)
            && status.state == ContainerState::Exited
            && let Some(until) = work.backoff.until(timestamp(status.finished_at_nanos))
            && until > input.now
        {
            let delay = format_seconds(work.backoff.delay_seconds());
            let message = format!(
                "back-off {delay} restarting failed container={name} pod={}",
                input.view.formatted()
            );
            plan.actions.push(Action::BackOff {
                container: name.clone(),
                failure: Failure {
                    reason: "CrashLoopBackOff".into(),
                    message,
                    retry_at: until,
                },
            });
            plan.wake(until);
            continue;
        }
        match &work.image {
            ImageStep::Unknown => {
                plan.actions.push(Action::EnsureImage {
                    container: name.clone(),
                });
                in_turn = false;
            }
            ImageStep::InFlight => in_turn = false,
            ImageStep::Failed { failure, .. } if failure.retry_at <= input.now => {
                plan.actions.push(Action::EnsureImage {
                    container: name.clone(),
                });
                in_turn = false;
            }
            ImageStep::Failed {
                failure,
                failed_at,
                backing_off,
            } => {
                plan.wake(failure.retry_at);
                if !backing_off && failure.reason == "ErrImagePull" {
                    let shown_until =
                        *failed_at + SignedDuration::from_secs(PULL_ERROR_SHOWN_SECONDS);
                    if shown_until <= input.now {
                        plan.actions.push(Action::BackOffImage {
                            container: name.clone(),
                        });
                    } else {
                        plan.wake(shown_until);
                    }
                }
            }
            ImageStep::Ready => {
                if let (true, true, Some(sandbox)) = (in_turn, ready, sandbox) {
                    plan.actions.push(Action::StartContainer {
                        container: name.clone(),
                        sandbox_id: sandbox.id.clone(),
                    });
                }
                in_turn = false;
            }
        }
    }
}

fn end(input: &Input<'_>, ending: &Ending, plan: &mut Plan) {
    let kill_at = ending.since + SignedDuration::from_secs(ending.grace_period_seconds);
    let alive: Vec<_> = input
        .containers
        .iter()
        .filter(|status| is_alive(status))
        .collect();
    let position = |status: &ContainerStatus| {
        input.view.containers.iter().position(|spec| {
            spec.kind == Kind::Sidecar && spec.container.name == status.metadata.name
        })
    };
    let (sidecars, others): (Vec<_>, Vec<_>) = alive
        .into_iter()
        .partition(|status| position(status).is_some());
    // Sidecars outlive what they serve, and go in the reverse order of their start.
    let turn = if !others.is_empty() || input.work.is_starting() {
        others
    } else {
        sidecars
            .into_iter()
            .max_by_key(|status| position(status))
            .into_iter()
            .collect()
    };
    let running = !turn.is_empty() || input.work.is_starting();
    for status in turn {
        // Asked again only to kill sooner.
        if input
            .work
            .stopping
            .get(&status.id)
            .is_some_and(|at| *at <= kill_at + SignedDuration::from_secs(1))
        {
            continue;
        }
        // A started second counts whole.
        let left = i64::try_from((kill_at.duration_since(input.now).as_millis() + 999) / 1000)
            .unwrap_or(0)
            .max(0);
        let grace = if ending.grace_period_seconds == 0 {
            0
        } else {
            left.max(GRACE_SECONDS_MIN)
        };
        plan.actions.push(Action::StopContainer {
            id: status.id.clone(),
            container: status.metadata.name.clone(),
            message: format!("Stopping container {}", status.metadata.name),
            grace_period_seconds: grace,
            kill_at,
            replace: false,
        });
    }
    if running || input.work.sandbox == Step::InFlight || input.work.volumes == Step::InFlight {
        return;
    }
    let ready: Vec<_> = input
        .sandboxes
        .iter()
        .filter(|sandbox| sandbox.state == SandboxState::Ready)
        .collect();
    if !ready.is_empty() {
        for sandbox in ready {
            if !input.work.stopping_sandboxes.contains(&sandbox.id) {
                plan.actions.push(Action::StopSandbox {
                    id: sandbox.id.clone(),
                });
            }
        }
        return;
    }
    match &input.work.tear_down {
        Step::Idle => plan.actions.push(Action::TearDown),
        Step::Failed { retry_at } if *retry_at <= input.now => plan.actions.push(Action::TearDown),
        Step::Failed { retry_at } => plan.wake(*retry_at),
        Step::InFlight => {}
        Step::Done => plan.finished = true,
    }
}

/// Nanoseconds since 1970 as the runtime counts them.
pub fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
