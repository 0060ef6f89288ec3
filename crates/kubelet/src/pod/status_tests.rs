#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use runtime::service::{ContainerMetadata, PodSandboxMetadata, SandboxState};
use serde_json::{Value, json};

use super::super::machine::Failure;
use super::*;

struct Case {
    view: PodSpecView,
    sandboxes: Vec<PodSandbox>,
    containers: Vec<ContainerStatus>,
    work: Work,
    probes: BTreeMap<String, ProbeResults>,
    ending: Option<Ending>,
    finished: bool,
    previous: PodStatus,
}

fn case(spec: Value) -> Case {
    let pod = serde_json::from_value(
        json!({"metadata": {"name": "p", "uid": "u", "generation": 3}, "spec": spec}),
    )
    .unwrap();
    let sandbox = PodSandbox {
        id: "s".into(),
        metadata: PodSandboxMetadata::default(),
        state: SandboxState::Ready,
        created_at_nanos: 1,
        labels: Default::default(),
        annotations: Default::default(),
        ips: vec!["10.0.0.1".parse().unwrap()],
    };
    Case {
        view: PodSpecView::new(Arc::new(pod)),
        sandboxes: vec![sandbox],
        containers: Vec::new(),
        work: Work::default(),
        probes: BTreeMap::new(),
        ending: None,
        finished: false,
        previous: PodStatus::default(),
    }
}

impl Case {
    fn container(mut self, name: &str, state: ContainerState, exit_code: i32) -> Case {
        let index = self.containers.len() as i64;
        self.containers.insert(
            0,
            ContainerStatus {
                id: format!("{name}{index}"),
                sandbox_id: "s".into(),
                metadata: ContainerMetadata {
                    name: name.into(),
                    attempt: index as u32,
                },
                state,
                created_at_nanos: index,
                started_at_nanos: 1_000_000_000,
                finished_at_nanos: 2_000_000_000,
                exit_code,
                signal: 0,
                image_id: "sha256:i".into(),
                user_image: "i".into(),
                reason: if exit_code == 137 {
                    "OOMKilled".into()
                } else {
                    String::new()
                },
                message: String::new(),
                labels: Default::default(),
                annotations: Default::default(),
                log_path: Default::default(),
                pid: None,
                warnings: Vec::new(),
            },
        );
        self
    }

    fn running(self, name: &str) -> Case {
        self.container(name, ContainerState::Running, 0)
    }

    fn exited(self, name: &str, exit_code: i32) -> Case {
        self.container(name, ContainerState::Exited, exit_code)
    }

    fn waits(mut self, name: &str, reason: &str) -> Case {
        let failure = Failure {
            reason: reason.into(),
            message: "m".into(),
            retry_at: Timestamp::UNIX_EPOCH,
        };
        self.work.containers.entry(name.into()).or_default().failure = Some(failure);
        self
    }

    fn ended(mut self) -> Case {
        self.finished = true;
        self.ending = Some(Ending {
            cause: EndCause::Completed,
            since: Timestamp::UNIX_EPOCH,
            grace_period_seconds: 0,
        });
        self
    }

    fn generate(&self) -> Value {
        let status = generate(&StatusInput {
            view: &self.view,
            sandboxes: &self.sandboxes,
            containers: &self.containers,
            work: &self.work,
            probes: &self.probes,
            ending: self.ending.as_ref(),
            finished: self.finished,
            refused: false,
            previous: &self.previous,
            host_ips: &["192.0.2.1".into()],
            runtime_name: "rt",
            now: Timestamp::from_second(100).unwrap(),
        });
        serde_json::to_value(status).unwrap()
    }
}

fn pod(policy: &str, init: Value) -> Case {
    case(
        json!({"restartPolicy": policy, "initContainers": init, "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}),
    )
}

#[test]
fn phases() {
    let init = json!([{"name": "i", "image": "i"}]);
    let side = json!([{"name": "s", "image": "i", "restartPolicy": "Always"}]);
    let none = json!([]);
    for (case, expect) in [
        (pod("Always", none.clone()), "Pending"),
        (pod("Always", none.clone()).running("a"), "Pending"),
        (
            pod("Always", none.clone()).running("a").running("b"),
            "Running",
        ),
        (
            pod("Always", none.clone()).exited("a", 1).running("b"),
            "Running",
        ),
        (
            pod("Always", none.clone()).exited("a", 1).exited("b", 0),
            "Running",
        ),
        (
            pod("Never", none.clone()).exited("a", 0).exited("b", 0),
            "Succeeded",
        ),
        (
            pod("Never", none.clone()).exited("a", 1).exited("b", 0),
            "Failed",
        ),
        (
            pod("OnFailure", none.clone()).exited("a", 1).exited("b", 0),
            "Running",
        ),
        (
            pod("OnFailure", none.clone()).exited("a", 0).exited("b", 0),
            "Succeeded",
        ),
        (
            pod("Always", none.clone())
                .exited("a", 0)
                .exited("b", 0)
                .ended(),
            "Succeeded",
        ),
        (
            pod("Always", none.clone())
                .exited("a", 0)
                .exited("b", 137)
                .ended(),
            "Failed",
        ),
        (
            pod("Always", none.clone())
                .exited("a", 1)
                .waits("a", "CrashLoopBackOff")
                .running("b"),
            "Running",
        ),
        (pod("Always", init.clone()).running("i"), "Pending"),
        (pod("Always", init.clone()).exited("i", 1), "Pending"),
        (pod("Never", init.clone()).exited("i", 1), "Failed"),
        (
            pod("Never", init.clone())
                .exited("i", 0)
                .running("a")
                .running("b"),
            "Running",
        ),
        (pod("Always", side.clone()).running("s"), "Pending"),
        (
            pod("Never", side.clone())
                .running("s")
                .exited("a", 0)
                .exited("b", 0),
            "Running",
        ),
        (
            pod("Never", side.clone())
                .exited("s", 137)
                .exited("a", 0)
                .exited("b", 0),
            "Succeeded",
        ),
    ] {
        assert_eq!(
            case.generate()["phase"],
            expect,
            "{:?} {:?}",
            case.view.pod.spec,
            case.containers
        );
    }
}

#[test]
fn waiting_reasons_and_history() {
    let status = pod("Always", json!([]))
        .waits("a", "CreateContainerConfigError")
        .generate();
    assert_eq!(
        status["containerStatuses"][0]["state"],
        json!({"waiting": {"reason": "CreateContainerConfigError", "message": "m"}})
    );
    assert_eq!(
        status["containerStatuses"][1]["state"],
        json!({"waiting": {"reason": "ContainerCreating"}})
    );
    let status = pod("Always", json!([{"name": "i", "image": "i"}]))
        .running("i")
        .generate();
    assert_eq!(
        status["containerStatuses"][0]["state"],
        json!({"waiting": {"reason": "PodInitializing"}})
    );
    let status = pod("Always", json!([]))
        .exited("a", 137)
        .waits("a", "CrashLoopBackOff")
        .running("b")
        .generate();
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "CrashLoopBackOff"
    );
    assert_eq!(
        status["containerStatuses"][0]["lastState"]["terminated"]["reason"],
        "OOMKilled"
    );
    let status = pod("Always", json!([]))
        .exited("a", 3)
        .running("a")
        .running("b")
        .generate();
    assert_eq!(status["containerStatuses"][0]["restartCount"], 1);
    assert_eq!(
        status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"],
        3
    );
    assert_eq!(
        status["containerStatuses"][0]["lastState"]["terminated"]["reason"],
        "Error"
    );
    assert_eq!(status["containerStatuses"][0]["containerID"], "rt://a1");
}

#[test]
fn conditions_and_readiness() {
    let condition = |status: &Value, type_: &str| -> (String, String, String) {
        let list = status["conditions"].as_array().unwrap();
        let found = list
            .iter()
            .find(|condition| condition["type"] == type_)
            .unwrap();
        let text = |key: &str| found[key].as_str().unwrap_or("").to_owned();
        (text("status"), text("reason"), text("message"))
    };
    let triple = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    let status = pod("Always", json!([])).running("a").generate();
    assert_eq!(
        condition(&status, "Ready"),
        triple(
            "False",
            "ContainersNotReady",
            "containers with unready status: [b]"
        )
    );
    assert_eq!(condition(&status, "PodReadyToStartContainers").0, "True");
    assert_eq!(status["observedGeneration"], 3);
    let status = pod("Always", json!([{"name": "i", "image": "i"}]))
        .running("i")
        .generate();
    assert_eq!(
        condition(&status, "Initialized"),
        triple(
            "False",
            "ContainersNotInitialized",
            "containers with incomplete status: [i]"
        )
    );
    let status = pod("Never", json!([]))
        .exited("a", 0)
        .exited("b", 0)
        .ended()
        .generate();
    assert_eq!(
        condition(&status, "Ready"),
        triple("False", "PodCompleted", "")
    );
    assert_eq!(condition(&status, "Initialized").1, "PodCompleted");

    let probed = |results: ProbeResults| {
        let mut case = case(json!({"containers": [{"name": "a", "image": "i", "readinessProbe": {}, "startupProbe": {}}], "readinessGates": [{"conditionType": "x/gate"}]})).running("a");
        case.probes.insert("a0".into(), results);
        case
    };
    let check = |results: ProbeResults, started: bool, ready: bool| {
        let status = probed(results).generate();
        assert_eq!(
            (
                &status["containerStatuses"][0]["started"],
                &status["containerStatuses"][0]["ready"]
            ),
            (&json!(started), &json!(ready)),
            "{results:?}"
        );
    };
    check(ProbeResults::default(), false, false);
    check(
        ProbeResults {
            readiness: Some(true),
            ..Default::default()
        },
        false,
        false,
    );
    check(
        ProbeResults {
            startup: Some(true),
            ..Default::default()
        },
        true,
        false,
    );
    check(
        ProbeResults {
            startup: Some(true),
            readiness: Some(true),
            ..Default::default()
        },
        true,
        true,
    );
    let status = probed(ProbeResults {
        startup: Some(true),
        readiness: Some(true),
        ..Default::default()
    })
    .generate();
    assert_eq!(
        condition(&status, "Ready"),
        triple(
            "False",
            "ReadinessGatesNotReady",
            "corresponding condition of pod readiness gate \"x/gate\" does not exist."
        )
    );
    assert_eq!(condition(&status, "ContainersReady").0, "True");
}

#[test]
fn transitions_keep_their_time_and_ends_stay() {
    let mut case = pod("Never", json!([])).exited("a", 0).exited("b", 1);
    case.previous = serde_json::from_value(
        json!({"phase": "Running", "startTime": "1970-01-01T00:00:07Z", "conditions": [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:05Z"},
        {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:05Z"}]}),
    )
    .unwrap();
    let status = case.generate();
    let times: Vec<_> = status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|condition| {
            (
                condition["type"].clone(),
                condition["lastTransitionTime"].clone(),
            )
        })
        .collect();
    assert!(times.contains(&(json!("PodScheduled"), json!("1970-01-01T00:00:05Z"))));
    assert!(times.contains(&(json!("Ready"), json!("1970-01-01T00:01:40Z"))));
    assert_eq!(status["startTime"], "1970-01-01T00:00:07Z");
    let mut case = pod("Always", json!([])).running("a").running("b");
    case.previous.phase = Some("Failed".into());
    case.previous.reason = Some("Evicted".into());
    assert_eq!(
        (
            case.generate()["phase"].clone(),
            case.generate()["reason"].clone()
        ),
        (json!("Failed"), json!("Evicted"))
    );
    let mut case = pod("Always", json!([])).running("a").running("b");
    case.ending = Some(Ending {
        cause: EndCause::Failed {
            reason: "DeadlineExceeded".into(),
            message: "late".into(),
        },
        since: Timestamp::UNIX_EPOCH,
        grace_period_seconds: 1,
    });
    assert_eq!(
        (
            case.generate()["phase"].clone(),
            case.generate()["message"].clone()
        ),
        (json!("Failed"), json!("late"))
    );
}

#[test]
fn a_container_without_a_trace_is_not_forgotten() {
    let mut case = pod("Always", json!([])).running("b");
    case.previous = serde_json::from_value(json!({"phase": "Running", "containerStatuses": [
        {"name": "a", "image": "i", "imageID": "x", "ready": true, "restartCount": 2, "state": {"running": {}}}]}))
    .unwrap();
    let status = case.generate();
    assert_eq!(status["containerStatuses"][0]["restartCount"], 3);
    assert_eq!(
        status["containerStatuses"][0]["lastState"]["terminated"]["reason"],
        "ContainerStatusUnknown"
    );
    assert_eq!(status["phase"], "Running");
}
