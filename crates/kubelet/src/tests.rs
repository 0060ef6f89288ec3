//! Whole pods against a fake API server and a fake runtime.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use serde_json::{Value, json};

use crate::Kubelet;
use crate::config::Config;
use crate::fake::api::FakeApi;
use crate::fake::runtime::FakeRuntime;
use crate::fake::wait_for;

struct Node {
    api: FakeApi,
    runtime: FakeRuntime,
    kubelet: Option<Kubelet>,
    directory: tempfile::TempDir,
}

impl Node {
    async fn start() -> Node {
        let mut node = Node {
            api: FakeApi::new(),
            runtime: FakeRuntime::default(),
            kubelet: None,
            directory: tempfile::tempdir().unwrap(),
        };
        node.start_kubelet().await;
        node
    }

    fn config(&self) -> Config {
        let root = self.directory.path();
        let mut config = Config::new("node", root.join("kubelet"), root.join("logs"));
        config.node_ips = vec!["192.0.2.1".parse().unwrap()];
        config
    }

    /// What the runtime was asked for, without images.
    fn steps(&self) -> Vec<String> {
        let log = self.runtime.log();
        log.into_iter()
            .filter(|step| !step.starts_with("pull "))
            .collect()
    }

    async fn start_kubelet(&mut self) {
        let runtime = Arc::new(self.runtime.clone());
        let kubelet = Kubelet::start(self.config(), self.api.client(), runtime.clone(), runtime)
            .await
            .unwrap();
        self.kubelet = Some(kubelet);
    }

    async fn wait_pod(&self, name: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let last = std::cell::RefCell::new(Value::Null);
        let found = tokio::time::timeout(std::time::Duration::from_secs(15), async {
            loop {
                if let Some(pod) = self.api.pod(name) {
                    if condition(&pod) {
                        return pod;
                    }
                    *last.borrow_mut() = pod;
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        });
        match found.await {
            Ok(pod) => pod,
            Err(_) => panic!(
                "{name} is not {what}: {:#}\n{:?}\n{:?}",
                last.borrow()["status"],
                self.runtime.log(),
                self.api.events(name)
            ),
        }
    }

    async fn wait_phase(&self, name: &str, phase: &str) -> Value {
        self.wait_pod(name, phase, |pod| pod["status"]["phase"] == phase)
            .await
    }
}

fn container(name: &str, image: &str) -> Value {
    json!({"name": name, "image": image})
}

fn condition<'a>(pod: &'a Value, type_: &str) -> &'a Value {
    pod["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|condition| condition["type"] == type_)
        .unwrap()
}

#[tokio::test]
async fn a_pod_runs_is_deleted_and_leaves_nothing() {
    let node = Node::start().await;
    node.api
        .put_pod("web", json!({"containers": [container("c", "img:1")]}));
    let pod = node.wait_phase("web", "Running").await;
    let status = &pod["status"];
    assert_eq!(status["containerStatuses"][0]["ready"], true);
    assert_eq!(status["containerStatuses"][0]["started"], true);
    assert_eq!(status["containerStatuses"][0]["imageID"], "sha256:img:1");
    assert!(
        status["containerStatuses"][0]["containerID"]
            .as_str()
            .unwrap()
            .starts_with("fake://c")
    );
    assert!(status["podIP"].as_str().unwrap().starts_with("10.42.0."));
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["qosClass"], "BestEffort");
    for type_ in [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ] {
        assert_eq!(condition(&pod, type_)["status"], "True", "{type_}");
    }
    let expect = [
        (
            "Pulled",
            "Container image \"img:1\" already present on machine and can be accessed by the pod",
        ),
        ("Created", "Container created"),
        ("Started", "Container started"),
    ];
    wait_for("events", || {
        let mut events = node.api.events("web");
        // This node has no cluster DNS, and says so.
        events.retain(|(reason, _)| reason != "MissingClusterDNS");
        (events == expect.map(|(a, b)| (a.to_owned(), b.to_owned()))).then_some(())
    })
    .await;

    let status_writes = node
        .api
        .writes()
        .iter()
        .filter(|write| write.ends_with("/pods/web/status"))
        .count();
    assert!(
        status_writes <= 2,
        "{status_writes} status writes until it ran"
    );

    node.api.delete_pod("web", 7);
    wait_for("the pod to go", || {
        node.api.pod("web").is_none().then_some(())
    })
    .await;
    assert!(node.runtime.log().contains(&"stop c 7".to_owned()));
    wait_for("its remains to go", || {
        let empty = |path: &str| {
            std::fs::read_dir(node.directory.path().join(path))
                .unwrap()
                .count()
                == 0
        };
        (node.runtime.state().sandboxes.is_empty() && empty("kubelet/pods") && empty("logs"))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_node_registers_with_a_lease() {
    let node = Node::start().await;
    let object = wait_for("the node", || {
        node.api
            .get("/api/v1/nodes", "", "node")
            .filter(|node| node["status"]["conditions"].is_array())
    })
    .await;
    assert_eq!(object["status"]["capacity"]["pods"], "110");
    assert_eq!(
        object["status"]["nodeInfo"]["containerRuntimeVersion"],
        "fake://1"
    );
    assert_eq!(
        object["status"]["addresses"][0],
        json!({"address": "192.0.2.1", "type": "InternalIP"})
    );
    let ready = object["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|condition| condition["type"] == "Ready")
        .unwrap();
    assert_eq!(ready["status"], "True");
    let lease = wait_for("the lease", || {
        node.api.get(
            "/apis/coordination.k8s.io/v1/leases",
            "kube-node-lease",
            "node",
        )
    })
    .await;
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
}

#[tokio::test]
async fn a_crashing_container_backs_off() {
    let node = Node::start().await;
    node.api
        .put_pod("crash", json!({"containers": [container("c", "exit-3")]}));
    let pod = node
        .wait_pod("crash", "in CrashLoopBackOff", |pod| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
                == "CrashLoopBackOff"
        })
        .await;
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 1, "the first restart is immediate");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(
        status["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=c pod=crash_default(uid-crash)"
    );
    wait_for("the event", || {
        node.api
            .events("crash")
            .into_iter()
            .find(|(reason, message)| {
                reason == "BackOff"
                    && message
                        == "Back-off restarting failed container c in pod crash_default(uid-crash)"
            })
    })
    .await;
}

#[tokio::test]
async fn jobs_succeed_and_fail() {
    let node = Node::start().await;
    let job =
        |image: &str| json!({"restartPolicy": "Never", "containers": [container("c", image)]});
    node.api.put_pod("good", job("exit-0"));
    node.api.put_pod("bad", job("exit-1"));
    let pod = node.wait_phase("good", "Succeeded").await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    assert_eq!(condition(&pod, "Ready")["reason"], "PodCompleted");
    node.wait_phase("bad", "Failed").await;
    wait_for("the sandbox to stop", || {
        node.runtime
            .log()
            .contains(&"stop-sandbox good".to_owned())
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn init_containers_sidecars_and_hooks_in_order() {
    let node = Node::start().await;
    let hook = |command: &str| json!({"exec": {"command": [command]}});
    node.api.put_pod(
        "order",
        json!({
            "terminationGracePeriodSeconds": 9,
            "initContainers": [container("i", "exit-0"), {"name": "s", "image": "img", "restartPolicy": "Always"}],
            "containers": [
                {"name": "a", "image": "img", "lifecycle": {"postStart": hook("post"), "preStop": hook("pre")}},
                container("b", "img")]
        }),
    );
    node.wait_phase("order", "Running").await;
    assert_eq!(
        node.steps(),
        [
            "sandbox order 0",
            "start i",
            "start s",
            "start a",
            "exec a post",
            "start b"
        ]
    );
    node.api.delete_pod("order", 9);
    wait_for("the pod to go", || {
        node.api.pod("order").is_none().then_some(())
    })
    .await;
    let log = node.steps()[6..].to_vec();
    let position = |entry: &str| {
        log.iter()
            .position(|own| own == entry)
            .unwrap_or_else(|| panic!("{entry} in {log:?}"))
    };
    assert!(position("exec a pre") < position("stop a 9"));
    assert!(
        position("stop s 9") > position("stop a 9") && position("stop s 9") > position("stop b 9")
    );
    assert!(position("stop-sandbox order") > position("stop s 9"));
}

#[tokio::test]
async fn images_that_cannot_be_had() {
    let node = Node::start().await;
    node.api.put_pod(
        "missing",
        json!({"containers": [container("c", "missing:1")]}),
    );
    node.api.put_pod(
        "never",
        json!({"containers": [{"name": "c", "image": "missing:2", "imagePullPolicy": "Never"}]}),
    );
    node.api
        .put_pod("bad", json!({"containers": [container("c", "not a name")]}));
    node.api.put_pod(
        "absent",
        json!({"containers": [container("c", "absent:1")]}),
    );
    let reason = |reason: &'static str| {
        move |pod: &Value| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
        }
    };
    node.wait_pod("missing", "ErrImagePull", reason("ErrImagePull"))
        .await;
    node.wait_pod("never", "ErrImageNeverPull", reason("ErrImageNeverPull"))
        .await;
    node.wait_pod("bad", "InvalidImageName", reason("InvalidImageName"))
        .await;
    node.wait_phase("absent", "Running").await;
    let pod = node
        .wait_pod("missing", "ImagePullBackOff", reason("ImagePullBackOff"))
        .await;
    let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
        .as_str()
        .unwrap();
    assert!(
        message.starts_with("Back-off pulling image \"missing:1\": ErrImagePull: "),
        "{message}"
    );
    assert_eq!(pod["status"]["phase"], "Pending");
    let events = wait_for("events", || {
        let mut events = node.api.events("absent");
        events.retain(|(reason, _)| reason != "MissingClusterDNS");
        (events.len() >= 4).then_some(events)
    })
    .await;
    assert_eq!(events[0].1, "Pulling image \"absent:1\"");
    assert!(
        events[1]
            .1
            .starts_with("Successfully pulled image \"absent:1\" in "),
        "{events:?}"
    );
    assert!(
        events[1]
            .1
            .ends_with(" including waiting). Image size: 10 bytes."),
        "{events:?}"
    );
}

#[tokio::test]
async fn configuration_comes_when_it_comes() {
    let node = Node::start().await;
    node.api.put_pod(
        "conf",
        json!({
            "volumes": [{"name": "v", "configMap": {"name": "files"}}, {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}}],
            "containers": [{"name": "c", "image": "img", "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "token", "mountPath": "/t"}],
                "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "vars", "key": "a"}}}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}]
        }),
    );
    wait_for("FailedMount", || node.api.events("conf").into_iter().find(|(reason, message)| reason == "FailedMount" && message == "MountVolume.SetUp failed for volume \"v\" : configmap \"files\" not found")).await;
    let config_map = |name: &str, value: &str| json!({"metadata": {"name": name, "namespace": "default"}, "data": {"a": value}});
    node.api.put("/api/v1/configmaps", config_map("files", "1"));
    let pod = node
        .wait_pod("conf", "CreateContainerConfigError", |pod| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
                == "CreateContainerConfigError"
        })
        .await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"],
        "configmap \"vars\" not found"
    );
    node.api.put("/api/v1/configmaps", config_map("vars", "x"));
    node.wait_phase("conf", "Running").await;
    let container = node.runtime.running("c").unwrap();
    let config = node.runtime.config(&container.id);
    assert!(
        config.env.contains(&("A".into(), "x".into())),
        "{:?}",
        config.env
    );
    assert!(
        config
            .env
            .iter()
            .any(|(name, value)| name == "IP" && value.starts_with("10.42.0.")),
        "{:?}",
        config.env
    );
    let host_path = |path: &str| {
        config
            .mounts
            .iter()
            .find(|mount| mount.container_path == std::path::Path::new(path))
            .unwrap()
            .host_path
            .clone()
    };
    assert_eq!(
        std::fs::read_to_string(host_path("/v").join("a")).unwrap(),
        "1"
    );
    assert!(
        std::fs::read_to_string(host_path("/t").join("token"))
            .unwrap()
            .starts_with("token-")
    );
    assert!(
        std::fs::read_to_string(host_path("/etc/hosts"))
            .unwrap()
            .ends_with("\tconf\n")
    );
    node.api.put("/api/v1/configmaps", config_map("files", "2"));
    let path = host_path("/v").join("a");
    wait_for("the update", || {
        (std::fs::read_to_string(&path).unwrap() == "2").then_some(())
    })
    .await;
    node.api.delete_pod("conf", 0);
    wait_for("the pod to go", || {
        node.api.pod("conf").is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn probes_decide() {
    let node = Node::start().await;
    node.runtime.state().exec_codes.insert("ready".into(), 1);
    node.runtime.state().exec_codes.insert("alive".into(), 0);
    let probe = |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1});
    node.api.put_pod("probed", json!({"containers": [{"name": "c", "image": "img", "readinessProbe": probe("ready"), "livenessProbe": probe("alive"), "startupProbe": probe("started")}]}));
    let pod = node
        .wait_pod("probed", "started", |pod| {
            pod["status"]["containerStatuses"][0]["started"] == true
        })
        .await;
    assert_eq!(pod["status"]["containerStatuses"][0]["ready"], false);
    wait_for("Unhealthy", || {
        node.api
            .events("probed")
            .into_iter()
            .find(|(reason, message)| {
                reason == "Unhealthy" && message == "Readiness probe failed: output"
            })
    })
    .await;
    node.runtime.state().exec_codes.insert("ready".into(), 0);
    node.wait_pod("probed", "ready", |pod| {
        pod["status"]["containerStatuses"][0]["ready"] == true
    })
    .await;
    node.runtime.state().exec_codes.insert("alive".into(), 1);
    let pod = node
        .wait_pod("probed", "restarted", |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 1
        })
        .await;
    assert_eq!(pod["status"]["phase"], "Running");
    let killing = (
        "Killing".to_owned(),
        "Container c failed liveness probe, will be restarted".to_owned(),
    );
    wait_for("Killing", || {
        node.api.events("probed").contains(&killing).then_some(())
    })
    .await;
}

#[tokio::test]
async fn http_probes_of_real_servers() {
    use axum::response::Redirect;
    use axum::routing::get;
    let router = axum::Router::new()
        .route(
            "/ok",
            get(|headers: axum::http::HeaderMap| async move {
                if headers.get("x-probe").is_some_and(|value| value == "yes") {
                    (axum::http::StatusCode::OK, "fine")
                } else {
                    (axum::http::StatusCode::BAD_REQUEST, "header")
                }
            }),
        )
        .route("/away", get(|| async { Redirect::temporary("/ok") }))
        .route(
            "/else",
            get(|| async { Redirect::temporary("http://elsewhere.example/") }),
        )
        .route(
            "/bad",
            get(|| async { (axum::http::StatusCode::INTERNAL_SERVER_ERROR, "no") }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                    .await
            });
        }
    });
    let tls = Arc::new(crate::probe::http::trusting_tls());
    use crate::probe::Outcome;
    let try_path = async |path: &str| {
        let request = crate::probe::http::Request {
            secure: false,
            host: "127.0.0.1".into(),
            port,
            path: path.into(),
            headers: vec![("X-Probe".into(), "yes".into())],
        };
        crate::probe::http::get(&tls, &request, crate::probe::http::AGENT_PROBE).await
    };
    assert_eq!(try_path("/ok").await, Outcome::Success);
    assert_eq!(try_path("/away").await, Outcome::Success);
    assert!(matches!(try_path("/else").await, Outcome::Warning(_)));
    assert_eq!(
        try_path("/bad").await,
        Outcome::Failure("HTTP probe failed with statuscode: 500".into())
    );
}

#[tokio::test]
async fn a_restarted_kubelet_finds_its_pods() {
    let mut node = Node::start().await;
    node.api
        .put_pod("stays", json!({"containers": [container("c", "img")]}));
    node.api
        .put_pod("goes", json!({"containers": [container("d", "img")]}));
    node.wait_phase("stays", "Running").await;
    node.wait_phase("goes", "Running").await;
    let before = node.runtime.running("c").unwrap().id;
    node.kubelet.take().unwrap().shutdown().await;
    assert!(
        node.runtime.running("c").is_some(),
        "containers outlive the kubelet"
    );
    node.api.remove("/api/v1/pods", "default", "goes");
    node.start_kubelet().await;
    wait_for("the gone pod's sandbox to go", || {
        (node.runtime.state().sandboxes.len() == 1).then_some(())
    })
    .await;
    assert_eq!(node.runtime.running("c").unwrap().id, before);
    // It goes on: an exit is seen and answered.
    node.runtime.exit("c", 1);
    let pod = node
        .wait_pod("stays", "restarted", |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 1
        })
        .await;
    assert_eq!(pod["status"]["phase"], "Running");
}

#[tokio::test]
async fn refusals_deadlines_and_failed_starts() {
    let node = Node::start().await;
    node.api.put_pod("big", json!({"containers": [{"name": "c", "image": "img", "resources": {"requests": {"cpu": "100000"}}}]}));
    node.api.put_pod(
        "late",
        json!({"activeDeadlineSeconds": 1, "containers": [container("c", "img")]}),
    );
    node.api.put_pod(
        "nostart",
        json!({"containers": [container("c", "nostart")]}),
    );
    let pod = node.wait_phase("big", "Failed").await;
    assert_eq!(pod["status"]["reason"], "OutOfcpu");
    assert!(pod["status"]["message"].as_str().unwrap().starts_with(
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 100000000"
    ));
    // Nothing ran: kubectl shows the reason, and no container that is being created.
    assert!(pod["status"]["containerStatuses"].is_null());
    let pod = node.wait_phase("late", "Failed").await;
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
    let pod = node
        .wait_pod("nostart", "RunContainerError", |pod| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
                == "RunContainerError"
        })
        .await;
    let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
        .as_str()
        .unwrap();
    assert!(
        message.contains("executable file not found in $PATH"),
        "{message}"
    );
}

#[tokio::test]
async fn a_shorter_grace_period_kills_sooner() {
    let node = Node::start().await;
    node.api
        .put_pod("slow", json!({"containers": [container("c", "stubborn")]}));
    node.wait_phase("slow", "Running").await;
    node.api.delete_pod("slow", 3600);
    wait_for("the stop", || {
        node.runtime
            .log()
            .contains(&"stop c 3600".to_owned())
            .then_some(())
    })
    .await;
    node.api.delete_pod("slow", 0);
    wait_for("the pod to go", || {
        node.api.pod("slow").is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn static_pods_have_mirrors() {
    let mut node = Node {
        api: FakeApi::new(),
        runtime: FakeRuntime::default(),
        kubelet: None,
        directory: tempfile::tempdir().unwrap(),
    };
    let manifests = node.directory.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let mut config = node.config();
    config.manifests_dir = Some(manifests.clone());
    let manifest = |image: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: st\nspec:\n  containers:\n  - name: c\n    image: {image}\n"
        )
    };
    std::fs::write(manifests.join("st.yaml"), manifest("one")).unwrap();
    let runtime = Arc::new(node.runtime.clone());
    node.kubelet = Some(
        Kubelet::start(config, node.api.client(), runtime.clone(), runtime)
            .await
            .unwrap(),
    );
    let pod = node.wait_phase("st-node", "Running").await;
    assert_eq!(
        pod["metadata"]["annotations"]["kubernetes.io/config.source"],
        "file"
    );
    node.api.remove("/api/v1/pods", "default", "st-node");
    node.wait_phase("st-node", "Running").await;
    std::fs::write(manifests.join("st.yaml"), manifest("two")).unwrap();
    node.wait_pod("st-node", "replaced", |pod| {
        pod["status"]["phase"] == "Running"
            && pod["status"]["containerStatuses"][0]["image"] == "two"
    })
    .await;
    std::fs::remove_file(manifests.join("st.yaml")).unwrap();
    wait_for("the mirror to go", || {
        node.api.pod("st-node").is_none().then_some(())
    })
    .await;
    wait_for("the sandbox to go", || {
        node.runtime.state().sandboxes.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn draining_stops_everything_and_tells_nothing() {
    let mut node = Node::start().await;
    node.api
        .put_pod("web", json!({"containers": [container("c", "img")]}));
    node.wait_phase("web", "Running").await;
    node.kubelet.take().unwrap().drain(5).await;
    assert!(node.runtime.state().sandboxes.is_empty());
    assert_eq!(node.api.pod("web").unwrap()["status"]["phase"], "Running");
    node.start_kubelet().await;
    wait_for("it to run again", || node.runtime.running("c")).await;
}

#[tokio::test]
async fn an_image_pulled_with_a_secret_is_not_for_pods_without_one() {
    let mut node = Node::start().await;
    node.api.put(
        "/api/v1/secrets",
        json!({"metadata": {"name": "registry", "namespace": "default", "uid": "1"}, "type": "kubernetes.io/dockerconfigjson",
            // {"auths":{"absent.example":{"username":"user","password":"right"}}}
            "data": {".dockerconfigjson": "eyJhdXRocyI6eyJhYnNlbnQuZXhhbXBsZSI6eyJ1c2VybmFtZSI6InVzZXIiLCJwYXNzd29yZCI6InJpZ2h0In19fQ=="}}),
    );
    let spec = |policy: &str, secrets: Value| {
        let mut container = container("c", "absent.example/private:1");
        container["imagePullPolicy"] = json!(policy);
        json!({"containers": [container], "imagePullSecrets": secrets})
    };
    let with_secret = json!([{"name": "registry"}]);
    node.api
        .put_pod("owner", spec("IfNotPresent", with_secret.clone()));
    node.wait_phase("owner", "Running").await;
    let pulls = |node: &Node| {
        let log = node.runtime.log();
        log.iter().filter(|step| step.starts_with("pull ")).count()
    };
    assert_eq!(pulls(&node), 1);
    for run in 0..2 {
        node.api
            .put_pod(&format!("guest-{run}"), spec("Never", with_secret.clone()));
        node.wait_phase(&format!("guest-{run}"), "Running").await;
        for (policy, reason) in [
            ("IfNotPresent", "ErrImagePull"),
            ("Never", "ErrImageNeverPull"),
        ] {
            let name = format!("thief-{policy}-{run}").to_lowercase();
            node.api.put_pod(&name, spec(policy, json!([])));
            node.wait_pod(&name, "refused", |pod| {
                let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
                waiting["reason"] == reason
            })
            .await;
        }
        node.kubelet = None;
        node.start_kubelet().await;
    }
}

#[tokio::test]
async fn cordoning_is_told() {
    let node = Node::start().await;
    let read = || node.api.get("/api/v1/nodes", "", "node");
    wait_for("the node", &read).await;
    for (cordoned, reason) in [(true, "NodeNotSchedulable"), (false, "NodeSchedulable")] {
        let mut object = read().unwrap();
        object["spec"]["unschedulable"] = json!(cordoned);
        node.api.put("/api/v1/nodes", object);
        let expect = (
            reason.to_owned(),
            format!("Node node status is now: {reason}"),
        );
        wait_for(reason, || {
            node.api.events("node").contains(&expect).then_some(())
        })
        .await;
    }
}
