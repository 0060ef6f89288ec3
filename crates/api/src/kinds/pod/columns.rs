//! What `kubectl get pods` shows.

use std::fmt::Write;

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use crate::columns::{AGE, NAME, age, column, name, since, wide};
use crate::kind::Column;
use crate::pod::is_restartable_init;

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Ready",
        "string",
        "The aggregate readiness state of this pod for accepting traffic.",
    ),
    column(
        "Status",
        "string",
        "The aggregate status of the containers in this pod.",
    ),
    column(
        "Restarts",
        "string",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
    ),
    AGE,
    wide("IP", "string", "Address of the pod."),
    wide("Node", "string", "Node on which the pod runs."),
    wide(
        "Nominated Node",
        "string",
        "Node for which the pod preempts others.",
    ),
    wide(
        "Readiness Gates",
        "string",
        "How many of the pod's readiness gates are open.",
    ),
];

pub(super) fn cells(pod: &Pod, now_seconds: i64) -> Vec<Value> {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let summary = summarize(pod, status);
    let restarts = match &summary.last_restart {
        Some(time) if summary.restart_count != 0 => format!(
            "{} ({} ago)",
            summary.restart_count,
            since(Some(time), now_seconds)
        ),
        _ => summary.restart_count.to_string(),
    };
    let or_none = |text: Option<&String>| {
        Value::from(
            text.filter(|text| !text.is_empty())
                .map_or("<none>", String::as_str),
        )
    };
    let gates = pod
        .spec
        .iter()
        .flat_map(|spec| spec.readiness_gates.iter().flatten());
    let (mut gate_count, mut open_count) = (0, 0);
    for gate in gates {
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == gate.condition_type);
        gate_count += 1;
        open_count += u32::from(condition.is_some_and(|condition| condition.status == "True"));
    }
    vec![
        name(&pod.metadata),
        Value::from(format!(
            "{}/{}",
            summary.ready_count, summary.container_count
        )),
        Value::from(summary.reason),
        Value::from(restarts),
        age(&pod.metadata, now_seconds),
        or_none(status.pod_ips.iter().flatten().next().map(|ip| &ip.ip)),
        or_none(pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref())),
        or_none(status.nominated_node_name.as_ref()),
        Value::from(if gate_count == 0 {
            "<none>".to_string()
        } else {
            format!("{open_count}/{gate_count}")
        }),
    ]
}

struct Summary {
    reason: String,
    ready_count: usize,
    container_count: usize,
    restart_count: i32,
    last_restart: Option<Time>,
}

fn summarize(pod: &Pod, status: &PodStatus) -> Summary {
    let phase = status.phase.as_deref().unwrap_or("");
    let reason_given = status.reason.as_deref().unwrap_or("");
    let gated = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("SchedulingGated")
    });
    let mut reason = match () {
        () if gated => "SchedulingGated",
        () if !reason_given.is_empty() => reason_given,
        () => phase,
    }
    .to_string();

    let init_containers = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or(&[]);
    let is_sidecar = |name: &str| {
        init_containers
            .iter()
            .any(|container| container.name == name && is_restartable_init(container))
    };
    let sidecar_count = init_containers
        .iter()
        .filter(|container| is_restartable_init(container))
        .count();
    let container_count = pod.spec.as_ref().map_or(0, |spec| spec.containers.len()) + sidecar_count;

    let mut all = Restarts::default();
    let mut sidecars = Restarts::default();
    let (mut ready_count, mut initializing) = (0, false);
    for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
        all.count_in(container);
        let sidecar = is_sidecar(&container.name);
        if sidecar {
            sidecars.count_in(container);
        }
        let state = container.state.as_ref();
        let terminated = state.and_then(|state| state.terminated.as_ref());
        if terminated.is_some_and(|terminated| terminated.exit_code == 0) {
            continue;
        }
        if sidecar && container.started == Some(true) {
            ready_count += usize::from(container.ready);
            continue;
        }
        let waiting_reason = waiting_reason(state).filter(|reason| *reason != "PodInitializing");
        reason = match (terminated, waiting_reason) {
            (Some(terminated), _) => format!("Init:{}", termination_reason(terminated)),
            (None, Some(reason)) => format!("Init:{reason}"),
            (None, None) => format!("Init:{index}/{}", init_containers.len()),
        };
        initializing = true;
        break;
    }

    let is_true = |type_: &str| {
        status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == type_ && condition.status == "True")
    };
    if !initializing || is_true("Initialized") {
        all = sidecars;
        let (mut has_running, mut error_reason) = (false, String::new());
        for container in status.container_statuses.iter().flatten().rev() {
            all.count_in(container);
            let state = container.state.as_ref();
            if let Some(waiting) = waiting_reason(state) {
                reason = waiting.to_string();
            } else if let Some(terminated) = state.and_then(|state| state.terminated.as_ref()) {
                reason = termination_reason(terminated);
                if terminated.exit_code != 0 {
                    error_reason.clone_from(&reason);
                }
            } else if container.ready && state.is_some_and(|state| state.running.is_some()) {
                has_running = true;
                ready_count += 1;
            }
        }
        if reason == "Completed" {
            if has_running && is_true("Ready") {
                reason = "Running".to_string();
            } else if !error_reason.is_empty() {
                reason = error_reason;
            } else if has_running {
                reason = "NotReady".to_string();
            }
        }
    }
    if pod.metadata.deletion_timestamp.is_some() {
        if reason_given == "NodeLost" {
            reason = "Unknown".to_string();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            reason = "Terminating".to_string();
        }
    }
    Summary {
        reason,
        ready_count,
        container_count,
        restart_count: all.count,
        last_restart: all.last,
    }
}

#[derive(Default)]
struct Restarts {
    count: i32,
    last: Option<Time>,
}

impl Restarts {
    fn count_in(&mut self, container: &ContainerStatus) {
        self.count = self.count.saturating_add(container.restart_count);
        let last = container
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        let finished = last.and_then(|terminated| terminated.finished_at.as_ref());
        if finished > self.last.as_ref() {
            self.last = finished.cloned();
        }
    }
}

fn waiting_reason(state: Option<&ContainerState>) -> Option<&str> {
    let reason = state?.waiting.as_ref()?.reason.as_deref()?;
    (!reason.is_empty()).then_some(reason)
}

fn termination_reason(terminated: &ContainerStateTerminated) -> String {
    match terminated.reason.as_deref().unwrap_or("") {
        "" => {
            let mut text = String::new();
            let signal = terminated.signal.unwrap_or(0);
            let (word, number) = if signal == 0 {
                ("ExitCode", terminated.exit_code)
            } else {
                ("Signal", signal)
            };
            write!(text, "{word}:{number}").expect("writing to a string does not fail");
            text
        }
        reason => reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    /// READY, STATUS, RESTARTS of a pod with two containers, one init container and one sidecar at 1,000,000 s.
    fn row(status: Value, deleted: bool) -> String {
        let mut value = json!({
            "metadata": {"name": "p", "creationTimestamp": "1970-01-12T13:46:30Z"},
            "spec": {
                "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
                "containers": [{"name": "a"}, {"name": "b"}],
            },
            "status": status,
        });
        if deleted {
            value["metadata"]["deletionTimestamp"] = json!("1970-01-12T13:46:30Z");
        }
        let pod: Pod = serde_json::from_value(value).unwrap();
        let cells = cells(&pod, 1_000_000);
        assert_eq!(cells[4], "10s");
        cells[1..4]
            .iter()
            .map(|cell| cell.as_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn statuses() {
        let running = json!({"name": "a", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}});
        let sidecar = json!({"name": "s", "ready": true, "started": true, "restartCount": 1, "image": "", "imageID": "", "state": {"running": {}}});
        let crashed = json!({"name": "b", "ready": false, "restartCount": 3, "image": "", "imageID": "",
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "finishedAt": "1970-01-12T13:41:40Z"}}});
        let completed = json!({"name": "b", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let failed = json!({"name": "b", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"terminated": {"exitCode": 2}}});
        let init_done = json!({"name": "i", "ready": true, "restartCount": 0, "image": "", "imageID": "",
            "state": {"terminated": {"exitCode": 0}}});
        let init_waits = json!({"name": "i", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"waiting": {"reason": "PodInitializing"}}});
        let init_fails = json!({"name": "i", "ready": false, "restartCount": 2, "image": "", "imageID": "",
            "state": {"terminated": {"exitCode": 3, "signal": 9}}});

        let check = |status: Value, expect: &str| assert_eq!(row(status, false), expect);
        check(json!({"phase": "Pending"}), "0/3 Pending 0");
        check(
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            "0/3 SchedulingGated 0",
        );
        check(
            json!({"phase": "Failed", "reason": "Evicted"}),
            "0/3 Evicted 0",
        );
        check(
            json!({"phase": "Pending", "initContainerStatuses": [init_waits]}),
            "0/3 Init:0/2 0",
        );
        check(
            json!({"phase": "Pending", "initContainerStatuses": [init_fails]}),
            "0/3 Init:Signal:9 2",
        );
        check(
            json!({"phase": "Running", "initContainerStatuses": [init_done, sidecar], "containerStatuses": [running]}),
            "2/3 Running 1",
        );
        check(
            json!({"phase": "Running", "containerStatuses": [running, crashed]}),
            "1/3 CrashLoopBackOff 3 (5m ago)",
        );
        check(
            json!({"phase": "Running", "containerStatuses": [running, completed]}),
            "1/3 NotReady 0",
        );
        check(
            json!({"phase": "Running", "containerStatuses": [running, failed]}),
            "1/3 ExitCode:2 0",
        );
        check(
            json!({"phase": "Succeeded", "containerStatuses": [completed]}),
            "0/3 Completed 0",
        );
        assert_eq!(row(json!({"phase": "Running"}), true), "0/3 Terminating 0");
        assert_eq!(
            row(json!({"phase": "Running", "reason": "NodeLost"}), true),
            "0/3 Unknown 0"
        );
    }
}
