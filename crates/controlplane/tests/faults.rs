//! The scheduler's loop when bindings fail, go unanswered or lose their node, and when it is killed at any moment.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use controlplane::{Handle, Options, SchedulerOptions};
use http::{Request, Response, StatusCode};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::client::Body;
use kube::{Api, Client};
use serde_json::{Value, json};

mod harness;

use harness::{ApiServer, add_namespace, add_node_with_cpu, eventually};

/// What happens to the first binding of every pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Answered by a conflict and not carried out.
    Conflict,
    /// Answered by a failure of the server that says nothing of what was done; it was carried out.
    FailureAfterwards,
    /// Neither carried out nor answered.
    Lost,
    /// Carried out, never answered.
    AnswerLost,
    /// The node is deleted just before.
    NodeGone,
}

/// A client that meets `fault` once a pod.
fn faulty(client: &Client, fault: Fault) -> Client {
    let met: Arc<Mutex<HashSet<String>>> = Arc::default();
    let client = client.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, path) = (client.clone(), request.uri().path().to_owned());
        let is_first = path.ends_with("/binding") && met.lock().unwrap().insert(path);
        async move {
            let fault = is_first.then_some(fault);
            match fault {
                Some(Fault::Conflict) => return Ok(refusal(StatusCode::CONFLICT, "Conflict")),
                Some(Fault::Lost) => return std::future::pending().await,
                Some(Fault::NodeGone) => {
                    let nodes: Api<Node> = Api::all(client.clone());
                    nodes.delete("n1", &DeleteParams::default()).await?;
                }
                _ => {}
            }
            let answer = client.send(request).await;
            match fault {
                Some(Fault::AnswerLost) => std::future::pending().await,
                Some(Fault::FailureAfterwards) => {
                    Ok(refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"))
                }
                _ => answer,
            }
        }
    });
    Client::new(service, "default")
}

fn refusal(code: StatusCode, reason: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
        "reason": reason, "message": "made to fail"});
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(Body::from(status.to_string().into_bytes()))
        .unwrap()
}

fn start(client: Client) -> Handle {
    let scheduler = SchedulerOptions {
        bind_answer_within: Duration::from_millis(300),
        ..SchedulerOptions::default()
    };
    let options = Options {
        scheduler: Some(scheduler),
        controllers: false,
        ..Options::default()
    };
    controlplane::start(client, options)
}

async fn add_pod(client: &Client, name: &str, cpu: &str) {
    let pod = json!({"metadata": {"name": name}, "spec": {"automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    pods(client)
        .create(&PostParams::default(), &pod)
        .await
        .unwrap();
}

fn pods(client: &Client) -> Api<Pod> {
    Api::namespaced(client.clone(), "demo")
}

async fn node_of(client: &Client, name: &str) -> Option<String> {
    pods(client)
        .get(name)
        .await
        .unwrap()
        .spec
        .unwrap()
        .node_name
}

/// Messages of all events of a reason.
async fn messages(client: &Client, reason: &str) -> Vec<String> {
    let events: Api<Event> = Api::namespaced(client.clone(), "demo");
    let events = events.list(&ListParams::default()).await.unwrap().items;
    let of_reason = events
        .into_iter()
        .filter(|event| event.reason.as_deref() == Some(reason));
    of_reason.filter_map(|event| event.message).collect()
}

/// A server with a namespace that pods can be made in.
async fn server(nodes: &[(&str, &str)]) -> ApiServer {
    let server = ApiServer::start().await;
    add_namespace(&server.client, json!({"metadata": {"name": "demo"}})).await;
    let account: Value = json!({"metadata": {"name": "default"}});
    Api::namespaced(server.client.clone(), "demo")
        .create(
            &PostParams::default(),
            &serde_json::from_value::<k8s_openapi::api::core::v1::ServiceAccount>(account).unwrap(),
        )
        .await
        .unwrap();
    for (name, cpu) in nodes {
        add_node_with_cpu(&server.client, name, cpu).await;
    }
    server
}

/// Two pods fill the node, whatever happens to their bindings; the third waits. Then it gets a node of its own.
async fn two_of_three(fault: Fault, failures: &[&str]) {
    let server = server(&[("n1", "2")]).await;
    let client = server.client.clone();
    let scheduler = start(faulty(&client, fault));
    for name in ["a", "b"] {
        add_pod(&client, name, "1").await;
        eventually(&format!("{fault:?}: {name} bound"), async || {
            node_of(&client, name).await.as_deref() == Some("n1")
        })
        .await;
    }
    add_pod(&client, "c", "1").await;
    eventually(&format!("{fault:?}: c told why it waits"), async || {
        let told = messages(&client, "FailedScheduling").await;
        told.iter()
            .any(|message| message.contains("1 Insufficient cpu"))
    })
    .await;
    assert_eq!(node_of(&client, "c").await, None, "{fault:?}");
    let told = messages(&client, "FailedScheduling").await;
    for failure in failures {
        assert!(
            told.iter().any(|message| message.contains(failure)),
            "{fault:?}: {failure} is not in {told:?}"
        );
    }
    if failures.is_empty() {
        assert!(
            !told.iter().any(|message| message.contains("binding")),
            "{fault:?}: {told:?}"
        );
    }
    add_node_with_cpu(&client, "n2", "1").await;
    eventually(&format!("{fault:?}: c on n2"), async || {
        node_of(&client, "c").await.as_deref() == Some("n2")
    })
    .await;
    scheduler.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_refused_is_undone_and_tried_again() {
    two_of_three(
        Fault::Conflict,
        &["binding to node n1 failed: made to fail"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_lost_is_undone_and_tried_again() {
    two_of_three(
        Fault::Lost,
        &["binding to node n1 failed: no answer within 300ms"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_whose_answer_is_lost_holds() {
    two_of_three(Fault::AnswerLost, &[]).await;
    two_of_three(Fault::FailureAfterwards, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_deleted_between_plan_and_binding_wedges_nothing() {
    let server = server(&[("n1", "1")]).await;
    let client = server.client.clone();
    let scheduler = start(faulty(&client, Fault::NodeGone));
    add_pod(&client, "a", "1").await;
    // As upstream: the API server takes the binding, and the pod is garbage from then on (see `pod_gc`).
    eventually("a bound", async || node_of(&client, "a").await.is_some()).await;
    add_pod(&client, "b", "1").await;
    eventually("b told that there is no node", async || {
        let told = messages(&client, "FailedScheduling").await;
        told.iter().any(|message| {
            message.starts_with("no nodes available") || message.starts_with("0/0 nodes")
        })
    })
    .await;
    // The node comes back under its name, with the pod that was bound to it.
    add_node_with_cpu(&client, "n1", "1").await;
    add_node_with_cpu(&client, "n2", "1").await;
    eventually("b on the other node", async || {
        node_of(&client, "b").await.as_deref() == Some("n2")
    })
    .await;
    scheduler.stop().await;
    server.stop().await;
}

/// Bindings that the API server has been asked for and has not carried out yet.
type InFlight = Arc<AtomicUsize>;

/// A client whose bindings are carried out in `outer` even if whoever asked is gone: the API server knows nothing of that.
fn outlived(client: &Client, outer: tokio::runtime::Handle, in_flight: &InFlight) -> Client {
    let (client, in_flight) = (client.clone(), in_flight.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, outer, in_flight) = (client.clone(), outer.clone(), in_flight.clone());
        async move {
            if !request.uri().path().ends_with("/binding") {
                return client.send(request).await;
            }
            in_flight.fetch_add(1, Ordering::SeqCst);
            let sent = outer.spawn(async move {
                let answer = client.send(request).await;
                in_flight.fetch_sub(1, Ordering::SeqCst);
                answer
            });
            sent.await.expect("the outer runtime outlives the test")
        }
    });
    Client::new(service, "default")
}

/// Killed after a few milliseconds again and again, the scheduler books no node twice and loses no pod.
///
/// A successor begins once the API server has carried out what the dead one asked for: before that nobody could know of
/// it. The lease sees to that between processes, and inside the program both end together.
#[test]
fn killed_at_any_moment_books_nothing_twice() {
    const NODES: usize = 20;
    const PODS: usize = 200;
    let outer = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let names: Vec<String> = (0..NODES).map(|index| format!("n{index}")).collect();
    let nodes: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "8")).collect();
    let server = outer.block_on(server(&nodes));
    let client = server.client.clone();
    let in_flight = InFlight::default();
    let begin = async || start(outlived(&client, outer.handle().clone(), &in_flight));
    let creator = client.clone();
    // Some more pods than fit: 8 a node.
    let creating = outer.spawn(async move {
        for index in 0..PODS {
            add_pod(&creator, &format!("p{index}"), "1").await;
        }
    });
    let bound = async || {
        let list = pods(&client).list(&ListParams::default()).await.unwrap();
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for pod in list.items {
            if let Some(node) = pod.spec.unwrap().node_name {
                *count.entry(node).or_default() += 1;
            }
        }
        count
    };
    let mut kills = 0;
    loop {
        // What runs in a runtime ends with it, in the middle of whatever it awaits.
        let inner = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let scheduler = inner.block_on(begin());
        std::thread::sleep(Duration::from_millis(20 + 13 * (kills % 7)));
        inner.shutdown_background();
        drop(scheduler);
        kills += 1;
        let count = outer.block_on(async {
            eventually("bindings under way to end", async || {
                in_flight.load(Ordering::SeqCst) == 0
            })
            .await;
            bound().await
        });
        assert!(
            count.values().all(|count| *count <= 8),
            "after {kills} kills: {count:?}"
        );
        if count.values().sum::<usize>() == NODES * 8 && creating.is_finished() || kills == 300 {
            break;
        }
    }
    // Whatever the kills left undone, one that lives finishes.
    let inner = tokio::runtime::Runtime::new().unwrap();
    let _scheduler = inner.block_on(begin());
    outer.block_on(async {
        creating.await.unwrap();
        eventually("all nodes full", async || {
            bound().await.values().sum::<usize>() == NODES * 8
        })
        .await;
        let count = bound().await;
        assert!(count.values().all(|count| *count == 8), "{count:?}");
    });
    inner.shutdown_background();
    outer.block_on(server.stop());
    assert!(kills > 3, "it was hardly ever killed");
}
