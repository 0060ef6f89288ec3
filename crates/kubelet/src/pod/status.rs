//! What the API shows of a pod: phase, conditions, container statuses. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus as ApiContainerStatus, HostIP, PodCondition, PodIP,
    PodStatus, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use runtime::service::{ContainerState, ContainerStatus, PodSandbox};

use super::labels;
use super::machine::{EndCause, Ending, ImageStep, ProbeResults, Work, ready_sandbox, timestamp};
use super::resources;
use super::spec::{ContainerSpec, Kind, PodSpecView};

pub struct StatusInput<'a> {
    pub view: &'a PodSpecView,
    /// Newest first.
    pub sandboxes: &'a [PodSandbox],
    /// Newest first, of all sandboxes; `message` holds the termination message.
    pub containers: &'a [ContainerStatus],
    pub work: &'a Work,
    pub probes: &'a BTreeMap<String, ProbeResults>,
    pub ending: Option<&'a Ending>,
    /// Nothing of the pod runs any more.
    pub finished: bool,
    /// The node did not take the pod.
    pub refused: bool,
    /// What was last written, or found in the API.
    pub previous: &'a PodStatus,
    pub host_ips: &'a [String],
    /// `llmagentos` in `llmagentos://<id>`.
    pub runtime_name: &'a str,
    pub now: Timestamp,
}

/// The whole status that the kubelet would write now.
pub fn generate(input: &StatusInput<'_>) -> PodStatus {
    let view = input.view;
    if input.refused {
        return of_refused(input);
    }
    let of_kind = |kinds: &[Kind]| -> Option<Vec<ApiContainerStatus>> {
        let list: Vec<_> = view
            .containers
            .iter()
            .filter(|spec| kinds.contains(&spec.kind))
            .map(|spec| container_status(input, spec))
            .collect();
        (!list.is_empty()).then_some(list)
    };
    let init = of_kind(&[Kind::Init, Kind::Sidecar]);
    let regular = of_kind(&[Kind::Regular]);
    let ephemeral = of_kind(&[Kind::Ephemeral]);
    let by_name: BTreeMap<&str, &ApiContainerStatus> = init
        .iter()
        .flatten()
        .chain(regular.iter().flatten())
        .map(|status| (status.name.as_str(), status))
        .collect();

    let previous = input.previous;
    let mut phase = phase(view, &by_name, input.finished);
    // A pod that has ended stays as it ended.
    if let Some(old @ ("Succeeded" | "Failed")) = previous.phase.as_deref() {
        phase = old.to_owned();
    }
    let (mut reason, mut message) = (None, None);
    if previous.phase.as_deref() == Some(&phase) {
        reason = previous.reason.clone();
        message = previous.message.clone();
    }
    if let Some(Ending {
        cause: EndCause::Failed {
            reason: why,
            message: text,
        },
        ..
    }) = input.ending
    {
        phase = "Failed".to_owned();
        reason = Some(why.clone());
        message = Some(text.clone());
    }

    let sandbox = ready_sandbox(view, input.sandboxes);
    let mut pod_ips: Vec<String> = match sandbox {
        _ if view.host_network() => input.host_ips.iter().take(2).cloned().collect(),
        Some(sandbox) => sandbox.ips.iter().map(ToString::to_string).collect(),
        // A pod keeps its addresses in its last status; they are history then.
        None => previous
            .pod_ips
            .iter()
            .flatten()
            .map(|ip| ip.ip.clone())
            .collect(),
    };
    pod_ips.dedup();
    let generation = view.pod.metadata.generation;
    let conditions = conditions(input, &by_name, &phase, sandbox.is_some());
    PodStatus {
        conditions: Some(conditions),
        container_statuses: regular,
        ephemeral_container_statuses: ephemeral,
        init_container_statuses: init,
        host_ip: input.host_ips.first().cloned(),
        host_ips: (!input.host_ips.is_empty()).then(|| {
            input
                .host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.clone() })
                .collect()
        }),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: (!pod_ips.is_empty())
            .then(|| pod_ips.into_iter().map(|ip| PodIP { ip }).collect()),
        message,
        reason,
        observed_generation: generation,
        phase: Some(phase),
        qos_class: Some(resources::qos_class(&view.pod).as_str().to_owned()),
        resources: Some(pod_resources(view)),
        allocated_resources: pod_resources(view).requests,
        start_time: Some(
            previous
                .start_time
                .clone()
                .unwrap_or(Time(second(input.now))),
        ),
        ..PodStatus::default()
    }
}

/// A pod that the node did not take: why, and nothing of containers that never were.
fn of_refused(input: &StatusInput<'_>) -> PodStatus {
    let (mut reason, mut message) = (
        input.previous.reason.clone(),
        input.previous.message.clone(),
    );
    if let Some(Ending {
        cause: EndCause::Failed {
            reason: why,
            message: text,
        },
        ..
    }) = input.ending
    {
        reason = Some(why.clone());
        message = Some(text.clone());
    }
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason,
        message,
        qos_class: Some(resources::qos_class(&input.view.pod).as_str().to_owned()),
        start_time: Some(
            input
                .previous
                .start_time
                .clone()
                .unwrap_or(Time(second(input.now))),
        ),
        observed_generation: input.view.pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// What the pod as a whole has: the sums over its containers, or what the pod itself says.
fn pod_resources(view: &PodSpecView) -> ResourceRequirements {
    let Some(spec) = &view.pod.spec else {
        return ResourceRequirements::default();
    };
    let texts = |amounts: api::pod::Amounts| {
        let list: BTreeMap<String, Quantity> = amounts
            .into_iter()
            .map(|(name, amount)| (name, Quantity(amount.to_string())))
            .collect();
        (!list.is_empty()).then_some(list)
    };
    ResourceRequirements {
        requests: texts(api::pod::requests(spec)),
        limits: texts(api::pod::limits(spec)),
        ..ResourceRequirements::default()
    }
}

/// Does some container wait for a reason that a user wants to see at once?
pub fn is_troubled(status: &PodStatus) -> bool {
    let all = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    all.into_iter().flatten().flatten().any(|container| {
        let reason = container
            .state
            .as_ref()
            .and_then(|state| state.waiting.as_ref())
            .and_then(|waiting| waiting.reason.as_deref());
        !matches!(reason, None | Some("ContainerCreating" | "PodInitializing"))
            || container
                .state
                .as_ref()
                .is_some_and(|state| state.running.is_some())
    })
}

/// API times carry whole seconds.
fn second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn time(nanos: i64) -> Option<Time> {
    (nanos > 0).then(|| Time(second(timestamp(nanos))))
}

fn waiting(reason: &str, message: &str) -> ApiState {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: text(reason),
            message: text(message),
        }),
        ..ApiState::default()
    }
}

fn terminated(reason: &str, message: &str, exit_code: i32) -> ApiState {
    let terminated = ContainerStateTerminated {
        reason: Some(reason.into()),
        message: Some(message.into()),
        exit_code,
        ..Default::default()
    };
    ApiState {
        terminated: Some(terminated),
        ..ApiState::default()
    }
}

fn runtime_state(input: &StatusInput<'_>, status: &ContainerStatus) -> ApiState {
    match status.state {
        ContainerState::Running => ApiState {
            running: Some(ContainerStateRunning {
                started_at: time(status.started_at_nanos),
            }),
            ..ApiState::default()
        },
        ContainerState::Exited => ApiState {
            terminated: Some(ContainerStateTerminated {
                container_id: Some(format!("{}://{}", input.runtime_name, status.id)),
                exit_code: status.exit_code,
                finished_at: time(status.finished_at_nanos),
                message: (!status.message.is_empty()).then(|| status.message.clone()),
                reason: Some(match status.reason.as_str() {
                    "" if status.exit_code == 0 => "Completed".to_owned(),
                    "" => "Error".to_owned(),
                    reason => reason.to_owned(),
                }),
                signal: (status.signal != 0).then_some(status.signal),
                // Of one that never started, 1970, as with every CRI runtime; without it clients print the year 1.
                started_at: Some(Time(second(timestamp(status.started_at_nanos.max(0))))),
            }),
            ..ApiState::default()
        },
        ContainerState::Created | ContainerState::Unknown => waiting("", ""),
    }
}

fn container_status(input: &StatusInput<'_>, spec: &ContainerSpec) -> ApiContainerStatus {
    let name = &spec.container.name;
    let mut mine = input
        .containers
        .iter()
        .filter(|status| status.metadata.name == *name);
    let (latest, before) = (mine.next(), mine.next());
    let previous = input
        .previous
        .container_statuses
        .iter()
        .chain(&input.previous.init_container_statuses)
        .chain(&input.previous.ephemeral_container_statuses)
        .flatten()
        .find(|status| status.name == *name);
    let has_init = input
        .view
        .containers
        .iter()
        .any(|spec| matches!(spec.kind, Kind::Init | Kind::Sidecar));
    let default_reason = if has_init {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let mut status = ApiContainerStatus {
        name: name.clone(),
        image: spec.container.image.clone().unwrap_or_default(),
        state: Some(waiting(default_reason, "")),
        volume_mounts: volume_mounts(spec),
        ..ApiContainerStatus::default()
    };
    match latest {
        Some(latest) => {
            status.state = Some(runtime_state(input, latest));
            status.restart_count = labels::restart_count(latest) as i32;
            status.container_id = Some(format!("{}://{}", input.runtime_name, latest.id));
            let by_digest = latest.annotations.get(labels::IMAGE_REF);
            status.image_id = by_digest.unwrap_or(&latest.image_id).clone();
            if !latest.user_image.is_empty() {
                status.image = latest.user_image.clone();
            }
            status.last_state = match before {
                Some(before) => Some(runtime_state(input, before)),
                None => previous.and_then(|previous| previous.last_state.clone()),
            };
            status.resources = Some(spec.container.resources.clone().unwrap_or_default());
            status.allocated_resources = spec
                .container
                .resources
                .as_ref()
                .and_then(|resources| resources.requests.clone());
        }
        None => keep_previous(input, spec, previous, &mut status),
    }
    if let Some((reason, message)) = waits_for(input, spec, latest) {
        if let Some(ApiState {
            terminated: Some(terminated),
            ..
        }) = status.state.take()
        {
            status.last_state = Some(ApiState {
                terminated: Some(terminated),
                ..ApiState::default()
            });
        }
        status.state = Some(waiting(&reason, &message));
    }
    set_readiness(input, spec, latest, &mut status);
    status
}

/// A container that the runtime does not know (any more).
fn keep_previous(
    input: &StatusInput<'_>,
    spec: &ContainerSpec,
    previous: Option<&ApiContainerStatus>,
    status: &mut ApiContainerStatus,
) {
    let Some(previous) = previous else { return };
    status.restart_count = previous.restart_count;
    status.last_state = previous.last_state.clone();
    let Some(state) = &previous.state else { return };
    if state.terminated.is_some() {
        *status = previous.clone();
    } else if state.running.is_some() {
        // It ran and left no trace: it ended somehow, and the pod does not go back to Pending for that.
        let lost = terminated(
            "ContainerStatusUnknown",
            "The container could not be located when the pod was deleted.  The container used to be Running",
            137,
        );
        if input.finished {
            status.state = Some(lost);
        } else if status
            .last_state
            .as_ref()
            .is_none_or(|last| last.terminated.is_none())
        {
            status.last_state = Some(lost);
            if input.view.pod.metadata.deletion_timestamp.is_none() && spec.kind != Kind::Ephemeral
            {
                status.restart_count += 1;
            }
        }
    }
}

/// The reason why a container that should run does not.
fn waits_for(
    input: &StatusInput<'_>,
    spec: &ContainerSpec,
    latest: Option<&ContainerStatus>,
) -> Option<(String, String)> {
    if input.ending.is_some() {
        return None;
    }
    let work = input.work.containers.get(&spec.container.name)?;
    let restarts = match latest {
        None => true,
        Some(status) => match status.state {
            ContainerState::Running | ContainerState::Unknown => false,
            ContainerState::Created => true,
            ContainerState::Exited => {
                work.replace || input.view.restarts_after(spec, status.exit_code)
            }
        },
    };
    if !restarts {
        return None;
    }
    if let ImageStep::Failed { failure, .. } = &work.image {
        return Some((failure.reason.clone(), failure.message.clone()));
    }
    work.failure
        .as_ref()
        .map(|failure| (failure.reason.clone(), failure.message.clone()))
}

fn set_readiness(
    input: &StatusInput<'_>,
    spec: &ContainerSpec,
    latest: Option<&ContainerStatus>,
    status: &mut ApiContainerStatus,
) {
    let running = latest.filter(|latest| latest.state == ContainerState::Running);
    let probes = running
        .and_then(|latest| input.probes.get(&latest.id))
        .copied()
        .unwrap_or_default();
    let started = running.is_some()
        && (spec.container.startup_probe.is_none() || probes.startup == Some(true));
    let ready =
        started && (spec.container.readiness_probe.is_none() || probes.readiness == Some(true));
    match spec.kind {
        Kind::Regular | Kind::Sidecar => {
            status.started = Some(started);
            status.ready = ready;
        }
        Kind::Init => {
            let done = status
                .state
                .as_ref()
                .and_then(|state| state.terminated.as_ref())
                .is_some_and(|terminated| terminated.exit_code == 0);
            status.started = Some(false);
            status.ready = done;
        }
        Kind::Ephemeral => {}
    }
}

fn volume_mounts(spec: &ContainerSpec) -> Option<Vec<VolumeMountStatus>> {
    let mounts = spec.container.volume_mounts.as_ref()?;
    let list: Vec<_> = mounts
        .iter()
        .map(|mount| {
            let read_only = mount.read_only.unwrap_or(false);
            VolumeMountStatus {
                mount_path: mount.mount_path.clone(),
                name: mount.name.clone(),
                read_only: read_only.then_some(true),
                recursive_read_only: read_only.then(|| "Disabled".to_owned()),
                volume_status: None,
            }
        })
        .collect();
    (!list.is_empty()).then_some(list)
}

/// The pod's phase from its containers' statuses, by name. `ended`: nothing will be started any more.
fn phase(
    view: &PodSpecView,
    statuses: &BTreeMap<&str, &ApiContainerStatus>,
    ended: bool,
) -> String {
    let last_exit = |state: &Option<ApiState>| {
        state
            .as_ref()
            .and_then(|state| state.terminated.as_ref())
            .map(|terminated| terminated.exit_code)
    };
    let (mut init_pending, mut sidecar_pending, mut init_failed) = (false, false, false);
    let (mut unknown, mut running, mut waiting, mut stopped, mut stopped_for_good, mut succeeded) =
        (0, 0, 0, 0, 0, 0);
    let started_before = view
        .containers
        .iter()
        .filter(|spec| spec.kind == Kind::Regular)
        .any(|spec| {
            statuses
                .get(spec.container.name.as_str())
                .is_some_and(|status| {
                    let state = status.state.clone().unwrap_or_default();
                    state.running.is_some()
                        || state.terminated.is_some()
                        || last_exit(&status.last_state).is_some()
                })
        });
    for spec in &view.containers {
        let Some(status) = statuses.get(spec.container.name.as_str()) else {
            continue;
        };
        let state = status.state.clone().unwrap_or_default();
        let exit_code = last_exit(&status.state).or_else(|| {
            state
                .waiting
                .as_ref()
                .and_then(|_| last_exit(&status.last_state))
        });
        match (spec.kind, state.running.is_some(), exit_code) {
            (Kind::Ephemeral, ..) => {}
            (Kind::Init, false, Some(0)) if state.terminated.is_some() => {}
            (Kind::Init, false, Some(code)) => {
                init_failed |= code != 0 && !view.restarts_after(spec, code)
            }
            (Kind::Init, ..) => init_pending |= !started_before,
            (Kind::Sidecar, true, _) => {
                sidecar_pending |= status.started != Some(true);
                running += 1;
            }
            (Kind::Sidecar, false, Some(_)) => {}
            (Kind::Sidecar, false, None) => {
                sidecar_pending = true;
                waiting += 1;
            }
            (Kind::Regular, true, _) => running += 1,
            (Kind::Regular, false, Some(code)) => {
                stopped += 1;
                succeeded += usize::from(code == 0);
                stopped_for_good += usize::from(!view.restarts_after(spec, code));
            }
            (Kind::Regular, false, None) if state.waiting.is_some() => waiting += 1,
            (Kind::Regular, false, None) => unknown += 1,
        }
    }
    let phase = if init_failed {
        "Failed"
    } else if init_pending
        || (sidecar_pending && !started_before)
        || (waiting > 0 && !(ended && stopped > 0))
    {
        "Pending"
    } else if running > 0 && unknown == 0 {
        "Running"
    } else if stopped > 0 && unknown == 0 {
        match (ended, stopped == stopped_for_good) {
            (false, false) => "Running",
            _ if stopped == succeeded => "Succeeded",
            _ => "Failed",
        }
    } else {
        "Pending"
    };
    phase.to_owned()
}

fn conditions(
    input: &StatusInput<'_>,
    statuses: &BTreeMap<&str, &ApiContainerStatus>,
    phase: &str,
    has_sandbox: bool,
) -> Vec<PodCondition> {
    const OWN: [&str; 5] = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ];
    let of_api = input
        .view
        .pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let disruption = input
        .previous
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "DisruptionTarget");
    let mut list: Vec<PodCondition> = of_api
        .into_iter()
        .flatten()
        .filter(|condition| {
            let is_replaced = condition.type_ == "DisruptionTarget" && disruption.is_some();
            !is_replaced && !OWN.contains(&condition.type_.as_str())
        })
        .cloned()
        .collect();
    list.extend(disruption.cloned());
    let containers_ready = containers_ready(input.view, statuses, phase);
    let ready = match containers_ready {
        (true, ..) => readiness_gates(input.view, &list),
        ref other => other.clone(),
    };
    let own = [
        (
            "PodReadyToStartContainers",
            (has_sandbox, String::new(), String::new()),
        ),
        ("Initialized", initialized(input.view, statuses, phase)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", (true, String::new(), String::new())),
    ];
    for (type_, (status, reason, message)) in own {
        let status = if status { "True" } else { "False" };
        let old = input
            .previous
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == type_);
        let same = old
            .filter(|old| old.status == status)
            .and_then(|old| old.last_transition_time.clone());
        list.push(PodCondition {
            last_probe_time: None,
            last_transition_time: Some(same.unwrap_or(Time(second(input.now)))),
            message: (!message.is_empty()).then_some(message),
            observed_generation: input.view.pod.metadata.generation,
            reason: (!reason.is_empty()).then_some(reason),
            status: status.to_owned(),
            type_: type_.to_owned(),
        });
    }
    list
}

type Verdict = (bool, String, String);

fn containers_ready(
    view: &PodSpecView,
    statuses: &BTreeMap<&str, &ApiContainerStatus>,
    phase: &str,
) -> Verdict {
    match phase {
        "Succeeded" => return (false, "PodCompleted".into(), String::new()),
        "Failed" => return (false, "PodFailed".into(), String::new()),
        _ => {}
    }
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for spec in view
        .containers
        .iter()
        .filter(|spec| matches!(spec.kind, Kind::Regular | Kind::Sidecar))
    {
        let name = spec.container.name.as_str();
        match statuses.get(name) {
            None => unknown.push(name),
            Some(status) if !status.ready => unready.push(name),
            Some(_) => {}
        }
    }
    let message = join_messages(&[("unknown", &unknown), ("unready", &unready)]);
    if message.is_empty() {
        (true, String::new(), String::new())
    } else {
        (false, "ContainersNotReady".into(), message)
    }
}

fn join_messages(lists: &[(&str, &[&str])]) -> String {
    let parts: Vec<_> = lists
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("containers with {what} status: [{}]", names.join(" ")))
        .collect();
    parts.join(", ")
}

fn initialized(
    view: &PodSpecView,
    statuses: &BTreeMap<&str, &ApiContainerStatus>,
    phase: &str,
) -> Verdict {
    if phase == "Succeeded" {
        return (true, "PodCompleted".into(), String::new());
    }
    let started = |spec: &ContainerSpec| {
        statuses
            .get(spec.container.name.as_str())
            .is_some_and(|status| {
                let (state, last) = (
                    status.state.clone().unwrap_or_default(),
                    status.last_state.clone().unwrap_or_default(),
                );
                state.running.is_some() || state.terminated.is_some() || last.terminated.is_some()
            })
    };
    if view
        .containers
        .iter()
        .any(|spec| spec.kind == Kind::Regular && started(spec))
    {
        return (true, String::new(), String::new());
    }
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for spec in &view.containers {
        let name = spec.container.name.as_str();
        match (spec.kind, statuses.get(name)) {
            (Kind::Init | Kind::Sidecar, None) => unknown.push(name),
            (Kind::Init, Some(status)) if !status.ready => incomplete.push(name),
            (Kind::Sidecar, Some(status)) if status.started != Some(true) => incomplete.push(name),
            _ => {}
        }
    }
    let message = join_messages(&[("unknown", &unknown), ("incomplete", &incomplete)]);
    if message.is_empty() {
        (true, String::new(), String::new())
    } else {
        (false, "ContainersNotInitialized".into(), message)
    }
}

fn readiness_gates(view: &PodSpecView, conditions: &[PodCondition]) -> Verdict {
    let gates = view
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.readiness_gates.as_ref());
    let messages: Vec<_> = gates
        .into_iter()
        .flatten()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match conditions.iter().find(|condition| condition.type_ == *name) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate {name:?} does not exist."
                )),
                Some(condition) if condition.status != "True" => Some(format!(
                    "the status of pod readiness gate {name:?} is not \"True\", but {}",
                    condition.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if messages.is_empty() {
        (true, String::new(), String::new())
    } else {
        (false, "ReadinessGatesNotReady".into(), messages.join(", "))
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
