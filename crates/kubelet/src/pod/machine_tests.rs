#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use runtime::service::{ContainerMetadata, PodSandboxMetadata};
use serde_json::{Value, json};

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
}

/// A pod under observation, built step by step; its clock stands at 1000 s.
struct Case {
    view: PodSpecView,
    sandboxes: Vec<PodSandbox>,
    containers: Vec<ContainerStatus>,
    work: Work,
    probes: BTreeMap<String, ProbeResults>,
    ending: Option<Ending>,
    start_time: Option<Timestamp>,
    now: Timestamp,
}

fn case(spec: Value) -> Case {
    let pod = serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}),
    )
    .unwrap();
    Case {
        view: PodSpecView::new(Arc::new(pod)),
        sandboxes: Vec::new(),
        containers: Vec::new(),
        work: Work::default(),
        probes: BTreeMap::new(),
        ending: None,
        start_time: None,
        now: at(1000),
    }
}

impl Case {
    /// Volumes done, a ready sandbox `s`, all images there.
    fn prepared(mut self) -> Case {
        self.work.volumes = Step::Done;
        self.sandboxes.push(PodSandbox {
            id: "s".into(),
            metadata: PodSandboxMetadata::default(),
            state: SandboxState::Ready,
            created_at_nanos: 1,
            labels: Default::default(),
            annotations: Default::default(),
            ips: vec!["10.0.0.1".parse().unwrap()],
        });
        for spec in &self.view.containers {
            self.work
                .containers
                .entry(spec.container.name.clone())
                .or_default()
                .image = ImageStep::Ready;
        }
        self
    }

    fn container(mut self, name: &str, state: ContainerState, exit_code: i32) -> Case {
        let hash = self
            .view
            .container(name)
            .map(|spec| spec.hash.clone())
            .unwrap_or_default();
        let created = 900 + self.containers.len() as i64;
        self.containers.insert(
            0,
            ContainerStatus {
                id: format!("{name}-{}", self.containers.len()),
                sandbox_id: "s".into(),
                metadata: ContainerMetadata {
                    name: name.into(),
                    attempt: 0,
                },
                state,
                created_at_nanos: created * 1_000_000_000,
                started_at_nanos: created * 1_000_000_000,
                finished_at_nanos: 995 * 1_000_000_000,
                exit_code,
                signal: 0,
                image_id: String::new(),
                user_image: String::new(),
                reason: String::new(),
                message: String::new(),
                labels: Default::default(),
                annotations: [(labels::CONTAINER_HASH.to_owned(), hash)].into(),
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

    fn with(mut self, change: impl FnOnce(&mut Case)) -> Case {
        change(&mut self);
        self
    }

    fn plan(&self) -> Plan {
        next(&Input {
            view: &self.view,
            sandboxes: &self.sandboxes,
            containers: &self.containers,
            work: &self.work,
            probes: &self.probes,
            ending: self.ending.as_ref(),
            start_time: self.start_time,
            now: self.now,
        })
    }

    /// The plan's actions in short form.
    fn check(&self, expect: &[&str]) {
        let short: Vec<String> = self
            .plan()
            .actions
            .iter()
            .map(|action| match action {
                Action::SetUpVolumes => "volumes".into(),
                Action::CreateSandbox { attempt } => format!("sandbox {attempt}"),
                Action::StopSandbox { id } => format!("stop-sandbox {id}"),
                Action::EnsureImage { container } => format!("image {container}"),
                Action::StartContainer { container, .. } => format!("start {container}"),
                Action::StopContainer {
                    container,
                    grace_period_seconds,
                    ..
                } => format!("stop {container} {grace_period_seconds}"),
                Action::BackOff { container, failure } => {
                    format!("back-off {container} {}", failure.retry_at.as_second())
                }
                Action::BackOffImage { container } => format!("back-off-image {container}"),
                Action::End(ending) => match &ending.cause {
                    EndCause::Deleted => "end deleted".into(),
                    EndCause::Completed => "end completed".into(),
                    EndCause::Failed { reason, .. } => format!("end {reason}"),
                },
                Action::TearDown => "tear-down".into(),
            })
            .collect();
        assert_eq!(short, expect);
    }
}

fn pod(policy: &str, init: Value, containers: Value) -> Case {
    case(json!({"restartPolicy": policy, "initContainers": init, "containers": containers}))
}

fn one(policy: &str) -> Case {
    pod(policy, json!([]), json!([{"name": "a", "image": "i"}]))
}

fn two(policy: &str) -> Case {
    pod(
        policy,
        json!([]),
        json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]),
    )
}

fn sidecar() -> Case {
    pod(
        "Always",
        json!([{"name": "i", "image": "i"}, {"name": "s1", "image": "i", "restartPolicy": "Always", "startupProbe": {"periodSeconds": 1}}, {"name": "s2", "image": "i", "restartPolicy": "Always"}]),
        json!([{"name": "a", "image": "i"}]),
    )
}

#[test]
fn everything_that_can_begins_at_once() {
    two("Always").check(&["volumes", "sandbox 0", "image a", "image b"]);
    two("Always")
        .with(|case| case.work.sandbox = Step::InFlight)
        .check(&["volumes", "image a", "image b"]);
    pod(
        "Always",
        json!([{"name": "i", "image": "i"}]),
        json!([{"name": "a"}]),
    )
    .check(&["volumes", "sandbox 0", "image i"]);
    let failed = one("Always").with(|case| case.work.volumes = Step::Failed { retry_at: at(1005) });
    failed.check(&["sandbox 0", "image a"]);
    assert_eq!(failed.plan().wake_at, Some(at(1005)));
}

#[test]
fn containers_start_one_after_another() {
    two("Always").prepared().check(&["start a"]);
    two("Always").prepared().running("a").check(&["start b"]);
    two("Always")
        .prepared()
        .running("a")
        .running("b")
        .check(&[]);
    // The first one's hook still runs.
    two("Always")
        .prepared()
        .running("a")
        .with(|case| case.work.containers.get_mut("a").unwrap().starting = true)
        .check(&[]);
    // The first one's image is still being pulled.
    two("Always")
        .prepared()
        .with(|case| case.work.containers.get_mut("a").unwrap().image = ImageStep::InFlight)
        .check(&[]);
    // The first one cannot start now; that holds nobody up.
    let failure = Failure {
        reason: "CreateContainerConfigError".into(),
        message: String::new(),
        retry_at: at(1010),
    };
    let blocked = two("Always")
        .prepared()
        .with(|case| case.work.containers.get_mut("a").unwrap().failure = Some(failure));
    blocked.check(&["start b"]);
    assert_eq!(blocked.plan().wake_at, Some(at(1010)));
    two("Always")
        .prepared()
        .with(|case| case.work.volumes = Step::InFlight)
        .check(&[]);
}

#[test]
fn restart_policies_and_back_off() {
    one("Always").prepared().exited("a", 0).check(&["start a"]);
    one("OnFailure")
        .prepared()
        .exited("a", 1)
        .check(&["start a"]);
    one("OnFailure")
        .prepared()
        .exited("a", 0)
        .check(&["end completed"]);
    one("Never")
        .prepared()
        .exited("a", 1)
        .check(&["end completed"]);
    two("Never")
        .prepared()
        .exited("a", 1)
        .running("b")
        .check(&[]);
    let waits = one("Always").prepared().exited("a", 1).with(|case| {
        case.work
            .containers
            .get_mut("a")
            .unwrap()
            .backoff
            .advance(at(990), at(990))
    });
    waits.check(&["back-off a 1005"]);
    let failure = Failure {
        reason: "CrashLoopBackOff".into(),
        message: String::new(),
        retry_at: at(1005),
    };
    let told =
        waits.with(|case| case.work.containers.get_mut("a").unwrap().failure = Some(failure));
    told.check(&[]);
    assert_eq!(told.plan().wake_at, Some(at(1005)));
    told.with(|case| case.now = at(1005)).check(&["start a"]);
    // Ten minutes of life forget the past.
    one("Always")
        .prepared()
        .exited("a", 1)
        .with(|case| {
            case.work
                .containers
                .get_mut("a")
                .unwrap()
                .backoff
                .advance(at(1), at(1))
        })
        .check(&["start a"]);
}

#[test]
fn init_containers_run_in_order() {
    let init = || {
        pod(
            "Always",
            json!([{"name": "i", "image": "i"}, {"name": "j", "image": "i"}]),
            json!([{"name": "a", "image": "i"}]),
        )
        .prepared()
    };
    init().check(&["start i"]);
    init().running("i").check(&[]);
    init().exited("i", 0).check(&["start j"]);
    init().exited("i", 1).check(&["start i"]);
    init().exited("i", 0).exited("j", 0).check(&["start a"]);
    init().exited("i", 0).exited("j", 0).running("a").check(&[]);
    // The runtime forgot one that must have run.
    init().exited("j", 0).check(&["start a"]);
    let never = || {
        pod(
            "Never",
            json!([{"name": "i", "image": "i"}]),
            json!([{"name": "a", "image": "i"}]),
        )
        .prepared()
    };
    never().exited("i", 1).check(&["end completed"]);
    never().exited("i", 0).check(&["start a"]);
}

#[test]
fn sidecars_start_in_order_and_stay() {
    sidecar().prepared().exited("i", 0).check(&["start s1"]);
    sidecar().prepared().exited("i", 0).running("s1").check(&[]);
    let passed = |case: &mut Case| {
        let id = case
            .containers
            .iter()
            .find(|status| status.metadata.name == "s1")
            .unwrap()
            .id
            .clone();
        case.probes.insert(
            id,
            ProbeResults {
                startup: Some(true),
                ..Default::default()
            },
        );
    };
    sidecar()
        .prepared()
        .exited("i", 0)
        .running("s1")
        .with(passed)
        .check(&["start s2"]);
    sidecar()
        .prepared()
        .exited("i", 0)
        .running("s1")
        .with(passed)
        .running("s2")
        .check(&["start a"]);
    sidecar()
        .prepared()
        .exited("i", 0)
        .running("s1")
        .with(passed)
        .running("s2")
        .running("a")
        .check(&[]);
    sidecar()
        .prepared()
        .exited("i", 0)
        .exited("s1", 0)
        .running("s2")
        .running("a")
        .check(&["start s1"]);
    let job = pod(
        "Never",
        json!([{"name": "s", "image": "i", "restartPolicy": "Always"}]),
        json!([{"name": "a", "image": "i"}]),
    );
    job.prepared()
        .running("s")
        .exited("a", 0)
        .check(&["end completed"]);
}

#[test]
fn failed_probes_and_changed_specs_stop_containers() {
    let probed = |results: ProbeResults| {
        one("Always").prepared().running("a").with(|case| {
            case.probes.insert("a-0".into(), results);
        })
    };
    probed(ProbeResults {
        liveness: Some(false),
        ..Default::default()
    })
    .check(&["stop a 30"]);
    probed(ProbeResults {
        startup: Some(false),
        ..Default::default()
    })
    .check(&["stop a 30"]);
    probed(ProbeResults {
        readiness: Some(false),
        ..Default::default()
    })
    .check(&[]);
    let stopping = probed(ProbeResults {
        liveness: Some(false),
        ..Default::default()
    })
    .with(|case| {
        case.work.stopping.insert("a-0".into(), at(1030));
    });
    stopping.check(&[]);
    let changed = one("Never").prepared().running("a").with(|case| {
        drop(
            case.containers[0]
                .annotations
                .insert(labels::CONTAINER_HASH.into(), "old".into()),
        )
    });
    changed.check(&["stop a 30"]);
    let Action::StopContainer { message, .. } = &changed.plan().actions[0] else {
        panic!()
    };
    assert_eq!(message, "Container a definition changed, will be restarted");
    one("Never")
        .prepared()
        .exited("a", 137)
        .with(|case| case.work.containers.get_mut("a").unwrap().replace = true)
        .check(&["start a"]);
}

#[test]
fn a_lost_sandbox_is_replaced() {
    let lost = |case: Case| case.with(|case| case.sandboxes[0].state = SandboxState::NotReady);
    lost(one("Always").prepared().exited("a", 137)).check(&["sandbox 1"]);
    lost(one("Never").prepared().exited("a", 0)).check(&["end completed"]);
    lost(one("OnFailure").prepared().exited("a", 1)).check(&["sandbox 1"]);
    one("Always")
        .prepared()
        .with(|case| case.sandboxes[0].ips.clear())
        .check(&["stop-sandbox s"]);
}

#[test]
fn images_that_cannot_be_pulled_wait() {
    let failed = |failed_at: i64, retry_at: i64, backing_off: bool| {
        one("Always").prepared().with(|case| {
            let failure = Failure {
                reason: "ErrImagePull".into(),
                message: String::new(),
                retry_at: at(retry_at),
            };
            case.work.containers.get_mut("a").unwrap().image = ImageStep::Failed {
                failure,
                failed_at: at(failed_at),
                backing_off,
            };
        })
    };
    failed(999, 1009, false).check(&[]);
    assert_eq!(failed(999, 1009, false).plan().wake_at, Some(at(1002)));
    failed(997, 1007, false).check(&["back-off-image a"]);
    failed(997, 1007, true).check(&[]);
    failed(990, 1000, true).check(&["image a"]);
}

#[test]
fn ephemeral_containers_start_once() {
    let debug = || {
        case(json!({"containers": [{"name": "a", "image": "i"}], "ephemeralContainers": [{"name": "d", "image": "i"}]})).prepared().running("a")
    };
    debug().check(&["start d"]);
    debug().exited("d", 1).check(&[]);
}

#[test]
fn ending_is_ordered() {
    let end = |case: Case| {
        case.with(|case| {
            case.ending = Some(Ending {
                cause: EndCause::Deleted,
                since: at(1000),
                grace_period_seconds: 30,
            });
            case.now = at(1004);
        })
    };
    end(two("Always").prepared().running("a").running("b")).check(&["stop b 26", "stop a 26"]);
    end(sidecar()
        .prepared()
        .running("s1")
        .running("s2")
        .running("a"))
    .check(&["stop a 26"]);
    end(sidecar()
        .prepared()
        .running("s1")
        .running("s2")
        .exited("a", 0))
    .check(&["stop s2 26"]);
    end(sidecar()
        .prepared()
        .running("s1")
        .exited("s2", 0)
        .exited("a", 0))
    .check(&["stop s1 26"]);
    // Time is up: everyone still gets a moment.
    end(one("Always").prepared().running("a"))
        .with(|case| case.now = at(1100))
        .check(&["stop a 2"]);
    end(one("Always").prepared().running("a"))
        .with(|case| case.ending.as_mut().unwrap().grace_period_seconds = 0)
        .check(&["stop a 0"]);
    // Asked before, and asked again only to be sooner.
    let asked = |kill_at: i64| {
        end(one("Always").prepared().running("a")).with(|case| {
            case.work.stopping.insert("a-0".into(), at(kill_at));
        })
    };
    asked(1030).check(&[]);
    asked(1300).check(&["stop a 26"]);
    end(one("Always").prepared().exited("a", 0)).check(&["stop-sandbox s"]);
    let stopped = || {
        end(one("Always").prepared().exited("a", 0))
            .with(|case| case.sandboxes[0].state = SandboxState::NotReady)
    };
    stopped().check(&["tear-down"]);
    assert!(!stopped().plan().finished);
    assert!(
        stopped()
            .with(|case| case.work.tear_down = Step::Done)
            .plan()
            .finished
    );
    // Work under way comes to its end first.
    end(one("Always"))
        .with(|case| case.work.sandbox = Step::InFlight)
        .check(&[]);
    end(one("Always")).check(&["tear-down"]);
}

#[test]
fn a_deadline_ends_the_pod() {
    let timed = |start: i64| {
        case(json!({"activeDeadlineSeconds": 100, "containers": [{"name": "a", "image": "i"}]}))
            .prepared()
            .running("a")
            .with(|case| case.start_time = Some(at(start)))
    };
    timed(950).check(&[]);
    assert_eq!(timed(950).plan().wake_at, Some(at(1050)));
    timed(900).check(&["end DeadlineExceeded"]);
}
