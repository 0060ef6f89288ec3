//! Tables over small clusters, and properties over seeded random ones.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::*;

mod checker;
mod gangs;
mod preemption;
mod profiles;
mod properties;
mod volumes;

fn node(name: &str, cpu: &str, memory: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": cpu, "memory": memory, "pods": "10", "ephemeral-storage": "100Gi"}}})
}

fn pod(name: &str, cpu: &str, memory: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}})
}

fn with(mut value: Value, pointer: &str, set: Value) -> Value {
    let mut target = &mut value;
    for key in pointer.split('/').filter(|key| !key.is_empty()) {
        target = match key.parse::<usize>() {
            Ok(index) => &mut target[index],
            Err(_) => &mut target[key],
        };
    }
    *target = set;
    value
}

fn snapshot(nodes: &[Value]) -> Snapshot {
    let mut snapshot = Snapshot::new();
    for node in nodes {
        let node: Node = serde_json::from_value(node.clone()).unwrap();
        snapshot.observe_node(&node);
    }
    snapshot
}

fn pending(snapshot: &mut Snapshot, pods: &[Value]) -> Vec<PendingPod> {
    pods.iter()
        .map(|pod| {
            let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
            PendingPod::new(snapshot, &pod).unwrap()
        })
        .collect()
}

/// Name of each pod to its node, or to the message why it waits.
fn outcome(snapshot: &mut Snapshot, pods: &[Value]) -> BTreeMap<String, String> {
    let pods = pending(snapshot, pods);
    let plan = plan(snapshot, &pods, &Policy::default());
    assert!(
        plan.value <= plan.upper_bound,
        "{} above {}",
        plan.value,
        plan.upper_bound
    );
    let words = |decision: &Decision| match decision {
        Decision::Place { node, .. } => node.to_string(),
        Decision::Wait { why } => why.message(&snapshot.space),
        Decision::Preempt { node, victims, .. } => {
            let names: Vec<&str> = victims.iter().map(|victim| &*victim.name).collect();
            format!("{node} after {}", names.join(", "))
        }
    };
    plan.decisions
        .iter()
        .map(|(pod, decision)| (pod.name.to_string(), words(decision)))
        .collect()
}

fn check(nodes: &[Value], pods: &[Value], expect: &[(&str, &str)]) {
    let expect: BTreeMap<String, String> = expect
        .iter()
        .map(|(pod, node)| ((*pod).to_string(), (*node).to_string()))
        .collect();
    assert_eq!(outcome(&mut snapshot(nodes), pods), expect);
}

#[test]
fn a_lone_pod_goes_to_the_node_it_fits_best() {
    check(
        &[node("a", "4", "8Gi"), node("b", "1", "2Gi")],
        &[pod("p", "500m", "1Gi")],
        &[("p", "b")],
    );
}

#[test]
fn messages_are_kube_schedulers() {
    let tainted = with(
        node("t", "8", "8Gi"),
        "spec",
        json!({"taints": [{"key": "k", "effect": "NoSchedule"}]}),
    );
    let cordoned = with(
        node("u", "8", "8Gi"),
        "spec",
        json!({"unschedulable": true}),
    );
    check(
        &[
            node("a", "1", "8Gi"),
            node("b", "1", "1Gi"),
            tainted,
            cordoned,
        ],
        &[pod("p", "2", "2Gi")],
        &[(
            "p",
            "0/4 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, 2 Insufficient cpu. \
             no new claims to deallocate, preemption: 0/4 nodes are available: 4 Preemption is not helpful for scheduling.",
        )],
    );
    check(
        &[],
        &[pod("p", "1", "1")],
        &[("p", "no nodes available to schedule pods")],
    );
    check(
        &[with(
            node("a", "1", "1Gi"),
            "status/allocatable/pods",
            json!("0"),
        )],
        &[with(
            pod("p", "0", "0"),
            "spec/preemptionPolicy",
            json!("Never"),
        )],
        &[(
            "p",
            "0/1 nodes are available: 1 Too many pods. no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never.",
        )],
    );
}

#[test]
fn hard_rules_of_the_node() {
    let zone =
        |name: &str, zone: &str| with(node(name, "8", "8Gi"), "metadata/labels/zone", json!(zone));
    let nodes = [zone("a", "x"), zone("b", "y")];
    check(
        &nodes,
        &[with(
            pod("p", "1", "1Gi"),
            "spec/nodeSelector",
            json!({"zone": "y"}),
        )],
        &[("p", "b")],
    );
    let affinity = |operator: &str, values: Value| {
        let terms = json!([{"matchExpressions": [{"key": "zone", "operator": operator, "values": values}]}]);
        with(
            pod("p", "1", "1Gi"),
            "spec/affinity",
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}),
        )
    };
    check(&nodes, &[affinity("NotIn", json!(["x"]))], &[("p", "b")]);
    check(
        &nodes,
        &[affinity("DoesNotExist", Value::Null)],
        &[(
            "p",
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector. \
             no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.",
        )],
    );
    let preferred = json!([{"weight": 5, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["y"]}]}}]);
    let preferring = with(
        pod("p", "1", "1Gi"),
        "spec/affinity",
        json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}),
    );
    check(&nodes, std::slice::from_ref(&preferring), &[("p", "b")]);
    // The same preference in a batch.
    check(
        &nodes,
        &[preferring, pod("q", "1", "1Gi")],
        &[("p", "b"), ("q", "b")],
    );
    let tainted = with(
        node("t", "8", "8Gi"),
        "spec",
        json!({"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]}),
    );
    check(
        &[tainted],
        &[with(
            pod("p", "1", "1Gi"),
            "spec/tolerations",
            json!([{"key": "k", "value": "v"}]),
        )],
        &[("p", "t")],
    );
}

#[test]
fn host_ports_keep_pods_apart() {
    let port = |name: &str| {
        with(
            pod(name, "1", "1Gi"),
            "spec/containers/0/ports",
            json!([{"containerPort": 80, "hostPort": 80}]),
        )
    };
    check(
        &[node("a", "8", "8Gi")],
        &[port("p"), port("q")],
        &[
            ("p", "a"),
            (
                "q",
                "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports. \
                 no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
            ),
        ],
    );
}

#[test]
fn bandwidth_is_a_resource_like_cpu() {
    let fast = with(
        node("fast", "8", "8Gi"),
        "status/allocatable/llmagentos.io~1network-bandwidth",
        json!("1G"),
    );
    let fast = {
        let mut fast = fast;
        fast["status"]["allocatable"]
            .as_object_mut()
            .unwrap()
            .remove("llmagentos.io~1network-bandwidth");
        fast["status"]["allocatable"][NETWORK_BANDWIDTH] = json!("1G");
        fast
    };
    let asks = |name: &str, amount: &str| {
        with(
            pod(name, "1", "1Gi"),
            "spec/containers/0/resources/requests/llmagentos.io",
            json!(amount),
        )
    };
    let asks = |name: &str, amount: &str| {
        let mut pod = asks(name, amount);
        let requests = pod["spec"]["containers"][0]["resources"]["requests"]
            .as_object_mut()
            .unwrap();
        requests.remove("llmagentos.io");
        requests.insert(NETWORK_BANDWIDTH.into(), json!(amount));
        pod
    };
    let annotated = |name: &str, amount: &str| {
        with(
            pod(name, "1", "1Gi"),
            "metadata/annotations",
            json!({EGRESS_BANDWIDTH: amount}),
        )
    };
    check(
        &[node("slow", "8", "8Gi"), fast.clone()],
        &[asks("p", "600M")],
        &[("p", "fast")],
    );
    let lacking = "0/1 nodes are available: 1 Insufficient llmagentos.io/network-bandwidth. \
                   no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    check(
        std::slice::from_ref(&fast),
        &[asks("p", "600M"), asks("q", "600M")],
        &[("p", "fast"), ("q", lacking)],
    );
    check(
        std::slice::from_ref(&fast),
        &[
            asks("p", "600M"),
            annotated("q", "500M"),
            annotated("r", "300M"),
        ],
        &[("p", "fast"), ("q", lacking), ("r", "fast")],
    );
    check(
        &[node("slow", "8", "8Gi")],
        &[annotated("q", "500G")],
        &[("q", "slow")],
    );
}

#[test]
fn other_pods_rules() {
    let zone =
        |name: &str, zone: &str| with(node(name, "8", "8Gi"), "metadata/labels/zone", json!(zone));
    let nodes = [zone("a", "x"), zone("b", "x"), zone("c", "y")];
    let term =
        |key: &str| json!([{"labelSelector": {"matchLabels": {"app": "a"}}, "topologyKey": key}]);
    let apart = |name: &str, key: &str| {
        with(
            pod(name, "1", "1Gi"),
            "spec/affinity",
            json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term(key)}}),
        )
    };
    let together = |name: &str| {
        with(
            pod(name, "1", "1Gi"),
            "spec/affinity",
            json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term("zone")}}),
        )
    };
    let placed = outcome(
        &mut snapshot(&nodes),
        &[
            apart("p", "kubernetes.io/hostname"),
            apart("q", "kubernetes.io/hostname"),
            apart("r", "kubernetes.io/hostname"),
        ],
    );
    assert_eq!(
        placed
            .values()
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        3,
        "{placed:?}"
    );
    let placed = outcome(
        &mut snapshot(&nodes),
        &[apart("p", "zone"), apart("q", "zone"), apart("r", "zone")],
    );
    assert!(
        placed["r"].contains("3 node(s) didn't match pod anti-affinity rules"),
        "{placed:?}"
    );
    let placed = outcome(&mut snapshot(&nodes), &[together("p"), together("q")]);
    assert_eq!(placed["p"], placed["q"]);
    // A plain pod is kept away by the anti-affinity of a pod that is there.
    let mut with_apart = snapshot(&[zone("a", "x")]);
    let bound = with(apart("p", "zone"), "spec/nodeName", json!("a"));
    with_apart.observe_pod(&serde_json::from_value(bound).unwrap());
    let placed = outcome(
        &mut with_apart,
        &[pod("q", "1", "1Gi"), pod("r", "1", "1Gi")],
    );
    assert!(
        placed["q"].contains("1 node(s) didn't satisfy existing pods anti-affinity rules"),
        "{placed:?}"
    );
}

#[test]
fn topology_spread_keeps_the_skew() {
    let zone =
        |name: &str, zone: &str| with(node(name, "8", "8Gi"), "metadata/labels/zone", json!(zone));
    let nodes = [zone("a", "x"), zone("b", "y"), node("c", "8", "8Gi")];
    let spread = |name: &str, when: &str| {
        let constraint = json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "a"}}}]);
        with(
            pod(name, "1", "1Gi"),
            "spec/topologySpreadConstraints",
            constraint,
        )
    };
    let placed = outcome(
        &mut snapshot(&nodes),
        &["p", "q", "r", "s"].map(|name| spread(name, "DoNotSchedule")),
    );
    let in_a = placed.values().filter(|node| *node == "a").count();
    let in_b = placed.values().filter(|node| *node == "b").count();
    assert_eq!((in_a, in_b), (2, 2), "{placed:?}");
    let placed = outcome(
        &mut snapshot(&[node("c", "8", "8Gi")]),
        &[spread("p", "DoNotSchedule")],
    );
    assert!(
        placed["p"].contains(
            "1 node(s) didn't match pod topology spread constraints (missing required label)"
        ),
        "{placed:?}"
    );
    let placed = outcome(
        &mut snapshot(&[node("c", "8", "8Gi")]),
        &[spread("p", "ScheduleAnyway")],
    );
    assert_eq!(placed["p"], "c");
}

#[test]
fn a_higher_priority_goes_first_and_an_older_equal_too() {
    let priority =
        |name: &str, priority: i32| with(pod(name, "1", "1Gi"), "spec/priority", json!(priority));
    let placed = outcome(
        &mut snapshot(&[node("a", "1", "8Gi")]),
        &[priority("low", 1), priority("high", 2)],
    );
    assert_eq!(placed["high"], "a");
    let placed = outcome(
        &mut snapshot(&[node("a", "1", "8Gi")]),
        &[pod("old", "1", "1Gi"), pod("new", "1", "1Gi")],
    );
    assert_eq!(placed["old"], "a");
}

#[test]
fn init_containers_and_overhead_count() {
    let init = json!([
        {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
        {"name": "once", "resources": {"requests": {"cpu": "3"}}}
    ]);
    let heavy = with(
        with(pod("p", "1", "1Gi"), "spec/initContainers", init),
        "spec/overhead",
        json!({"cpu": "500m"}),
    );
    let class = snapshot(&[]).classify(&serde_json::from_value(heavy).unwrap());
    assert_eq!(class.request.amount(0), 4500);
}

#[test]
fn planning_leaves_the_snapshot_as_it_was_and_reserving_does_not() {
    let mut view = snapshot(&[node("a", "2", "8Gi")]);
    let pods = pending(&mut view, &[pod("p", "1", "1Gi"), pod("q", "1", "1Gi")]);
    let made = plan(&mut view, &pods, &Policy::default());
    assert_eq!((made.placements().count(), view.pod_count()), (2, 0));
    reserve(&mut view, &made);
    assert_eq!((view.pod_count(), view.node("a").unwrap().free(0)), (2, 0));
    let bindings = start(&made);
    assert_eq!(bindings[0].1.target.name.as_deref(), Some("a"));
    view.unassume("uid-p");
    assert_eq!(view.node("a").unwrap().free(0), 1000);
    // The watch confirms the other one; it is no longer only assumed.
    let bound = with(pod("q", "1", "1Gi"), "spec/nodeName", json!("a"));
    view.observe_pod(&serde_json::from_value(bound.clone()).unwrap());
    view.unassume("uid-q");
    assert_eq!(view.pod_count(), 1);
    view.observe_pod(
        &serde_json::from_value(with(bound, "status", json!({"phase": "Succeeded"}))).unwrap(),
    );
    assert_eq!(
        (view.pod_count(), view.node("a").unwrap().free(0)),
        (0, 2000)
    );
}

#[test]
fn odd_nodes_and_pods_neither_panic_nor_overcommit() {
    let odd = ["0", "-5", "99999999999999999999Ei", "1n", "", "x"];
    for capacity in odd {
        for request in ["0", "1", "9223372036854775807", "99999999999999999999Ei"] {
            let mut view = snapshot(&[node("a", capacity, capacity), node("b", "1", "1Gi")]);
            let pods = pending(
                &mut view,
                &[
                    pod("p", request, request),
                    pod("q", request, "1"),
                    pod("r", "1", request),
                ],
            );
            let made = plan(&mut view, &pods, &Policy::default());
            reserve(&mut view, &made);
            assert_not_overcommitted(&view);
        }
    }
}

fn assert_not_overcommitted(view: &Snapshot) {
    for (_, node) in view.nodes() {
        for (resource, used) in node.used.iter() {
            assert!(
                used <= node.allocatable.amount(resource),
                "node {} holds {used} of {}",
                node.name,
                view.space.name(resource)
            );
        }
    }
}

#[test]
fn safety_no_plan_overcommits_and_the_same_seed_gives_the_same_plan() {
    let mut state = 88_172_645_463_325_252u64;
    let mut pick = |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit
    };
    for round in 0..60 {
        let nodes: Vec<Value> = (0..1 + pick(8))
            .map(|i| {
                node(
                    &format!("n{i}"),
                    &format!("{}m", pick(8000)),
                    &format!("{}Mi", pick(9000)),
                )
            })
            .collect();
        let pods: Vec<Value> = (0..1 + pick(40))
            .map(|i| {
                let made = pod(
                    &format!("p{i}"),
                    &format!("{}m", 250 * pick(8)),
                    &format!("{}Mi", 256 * pick(8)),
                );
                let made = with(made, "spec/priority", json!(pick(3)));
                if pick(4) == 0 {
                    with(
                        made,
                        "spec/containers/0/ports",
                        json!([{"containerPort": 80, "hostPort": 80 + pick(2)}]),
                    )
                } else {
                    made
                }
            })
            .collect();
        assert_eq!(
            outcome(&mut snapshot(&nodes), &pods),
            outcome(&mut snapshot(&nodes), &pods),
            "round {round}"
        );
        let mut view = snapshot(&nodes);
        let waiting = pending(&mut view, &pods);
        let made = plan(&mut view, &waiting, &Policy::default());
        assert_eq!(made.decisions.len(), pods.len());
        reserve(&mut view, &made);
        assert_not_overcommitted(&view);
        // Whoever waits would not fit even now.
        for (pod, decision) in &made.decisions {
            if matches!(decision, Decision::Wait { .. }) {
                let verdicts = collect_availability(&mut view, &pod.class, &Policy::default());
                assert!(
                    verdicts
                        .iter()
                        .all(|(_, verdict)| matches!(verdict, Verdict::Rejected(_))),
                    "round {round}: {} could be placed",
                    pod.name
                );
            }
        }
    }
}
