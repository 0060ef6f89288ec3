//! Preemption: who has to leave, for whom, and what is said when nobody can.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use super::*;

fn of_priority(name: &str, priority: i32, cpu: &str) -> Value {
    with(pod(name, cpu, "1Mi"), "spec/priority", json!(priority))
}

fn bound(pod: Value, node: &str) -> Value {
    with(pod, "spec/nodeName", json!(node))
}

fn observe(view: &mut Snapshot, pods: &[Value]) {
    for pod in pods {
        view.observe_pod(&serde_json::from_value(pod.clone()).unwrap());
    }
}

fn budget(name: &str, allowed: i32, app: &str) -> PodDisruptionBudget {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": app}}},
        "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}}))
    .unwrap()
}

#[test]
fn the_least_important_leave_and_no_more_than_needed() {
    let mut view = snapshot(&[node("a", "4", "8Gi"), node("b", "4", "8Gi")]);
    observe(
        &mut view,
        &[
            bound(of_priority("a1", 1, "1"), "a"),
            bound(of_priority("a2", 2, "2"), "a"),
            bound(of_priority("a3", 1, "1"), "a"),
            bound(of_priority("b1", 5, "4"), "b"),
        ],
    );
    // Two of priority 1 on node a make room for 2 CPUs; b would cost a pod of priority 5.
    let placed = outcome(&mut view, &[of_priority("p", 10, "2")]);
    assert_eq!(placed["p"], "a after a1, a3");
    let placed = outcome(&mut view, &[of_priority("p", 10, "1")]);
    assert_eq!(placed["p"], "a after a3");
    // Only the other node would do, and its pod is not lower.
    let placed = outcome(
        &mut view,
        &[with(
            of_priority("p", 5, "2"),
            "spec/nodeSelector",
            json!({"kubernetes.io/hostname": "b"}),
        )],
    );
    assert_eq!(
        placed["p"],
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector. \
         no new claims to deallocate, preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."
    );
    let never = with(
        of_priority("p", 10, "2"),
        "spec/preemptionPolicy",
        json!("Never"),
    );
    assert_eq!(
        outcome(&mut view, &[never])["p"],
        "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never."
    );
}

#[test]
fn budgets_are_spared_where_possible_and_spent_once() {
    let mut view = snapshot(&[
        node("a", "1", "8Gi"),
        node("b", "1", "8Gi"),
        node("c", "1", "8Gi"),
    ]);
    let app =
        |name: &str, app: &str| with(of_priority(name, 0, "1"), "metadata/labels/app", json!(app));
    observe(
        &mut view,
        &[
            bound(app("guarded1", "g"), "a"),
            bound(app("guarded2", "g"), "b"),
            bound(app("free", "f"), "c"),
        ],
    );
    view.observe_budget(&budget("g", 0, "g"));
    assert_eq!(
        outcome(&mut view, &[of_priority("p", 9, "1")])["p"],
        "c after free"
    );
    // One disruption is allowed: the second guarded pod is only taken because nobody else is left.
    view.observe_budget(&budget("g", 1, "g"));
    let pods = pending(
        &mut view,
        &[
            of_priority("p", 9, "1"),
            of_priority("q", 9, "1"),
            of_priority("r", 9, "1"),
        ],
    );
    let made = plan(&mut view, &pods, &Policy::default());
    let victims: Vec<(String, bool)> = made
        .decisions
        .iter()
        .filter_map(|(_, decision)| match decision {
            Decision::Preempt { victims, .. } => {
                Some((victims[0].name.to_string(), victims[0].violates_budget))
            }
            _ => None,
        })
        .collect();
    assert_eq!(
        victims,
        [
            ("guarded1".into(), false),
            ("free".into(), false),
            ("guarded2".into(), true)
        ]
    );
}

#[test]
fn room_is_kept_for_whom_it_was_made() {
    let mut view = snapshot(&[node("a", "2", "8Gi")]);
    observe(&mut view, &[bound(of_priority("low", 0, "2"), "a")]);
    let high = pending(&mut view, &[of_priority("high", 10, "2")]);
    let made = plan(&mut view, &high, &Policy::default());
    assert!(
        matches!(&made.decisions[0].1, Decision::Preempt { node, victims, .. } if &**node == "a" && victims.len() == 1)
    );
    assert_eq!(
        view.nominated_to("uid-high"),
        None,
        "planning changes nothing"
    );
    reserve(&mut view, &made);
    assert_eq!(view.nominated_to("uid-high"), Some("a"));
    // While the victim is on its way out, nobody else is chosen.
    let leaving = with(
        bound(of_priority("low", 0, "2"), "a"),
        "metadata/deletionTimestamp",
        json!("2026-01-01T00:00:00Z"),
    );
    observe(&mut view, &[leaving]);
    let again = plan(&mut view, &high, &Policy::default());
    let Decision::Wait { why } = &again.decisions[0].1 else {
        panic!("{:?}", again.decisions)
    };
    assert!(
        why.message(&view.space)
            .ends_with("preemption: not eligible due to a terminating pod on the nominated node.")
    );
    assert_eq!(view.nominated_to("uid-high"), Some("a"));
    // Gone: a pod of lower priority does not get the room, the nominated one does.
    view.forget_pod("uid-low");
    let placed = outcome(&mut view, &[of_priority("thief", 9, "1")]);
    assert!(placed["thief"].contains("Insufficient cpu"), "{placed:?}");
    let pods = pending(
        &mut view,
        &[of_priority("thief", 10, "2"), of_priority("high", 10, "2")],
    );
    let made = plan(&mut view, &pods, &Policy::default());
    let first: Vec<&str> = made.placements().map(|(pod, _)| &*pod.name).collect();
    assert_eq!(first, ["high"]);
    reserve(&mut view, &made);
    assert_eq!(
        (view.nominated_to("uid-high"), view.placed_on("uid-high")),
        (None, Some("a"))
    );
}

#[test]
fn several_preempt_at_once_without_sharing_victims() {
    let nodes: Vec<Value> = (0..6).map(|i| node(&format!("n{i}"), "4", "8Gi")).collect();
    let mut view = snapshot(&nodes);
    for i in 0..24 {
        observe(
            &mut view,
            &[bound(
                of_priority(&format!("low{i}"), 0, "900m"),
                &format!("n{}", i % 6),
            )],
        );
    }
    let highs: Vec<Value> = (0..8)
        .map(|i| of_priority(&format!("high{i}"), 10, "3"))
        .collect();
    let pods = pending(&mut view, &highs);
    let made = plan(&mut view, &pods, &Policy::default());
    let mut nodes = std::collections::BTreeSet::new();
    let mut victims_seen = std::collections::BTreeSet::new();
    let mut waiting = 0;
    for (_, decision) in &made.decisions {
        match decision {
            Decision::Preempt { node, victims, .. } => {
                assert!(nodes.insert(node.to_string()), "{node} twice");
                assert_eq!(victims.len(), 3);
                assert!(
                    victims
                        .iter()
                        .all(|victim| victims_seen.insert(victim.uid.clone()))
                );
            }
            Decision::Wait { why } => {
                waiting += 1;
                assert_eq!(
                    why.message(&view.space),
                    "0/6 nodes are available: 6 Insufficient cpu. no new claims to deallocate, preemption: 0/6 nodes are available: 6 Insufficient cpu."
                );
            }
            Decision::Place { .. } => panic!("nobody fits"),
        }
    }
    assert_eq!((nodes.len(), waiting), (6, 2));
}

#[test]
fn rules_about_others_can_be_met_by_preemption() {
    let mut view = snapshot(&[node("a", "4", "8Gi")]);
    let term = json!([{"labelSelector": {"matchLabels": {"app": "a"}}, "topologyKey": "kubernetes.io/hostname"}]);
    let apart =
        json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}});
    observe(
        &mut view,
        &[
            bound(of_priority("disliked", 0, "1"), "a"),
            bound(
                with(
                    of_priority("other", 0, "1"),
                    "metadata/labels/app",
                    json!("b"),
                ),
                "a",
            ),
        ],
    );
    let picky = with(of_priority("picky", 10, "1"), "spec/affinity", apart);
    assert_eq!(outcome(&mut view, &[picky])["picky"], "a after disliked");
    let port = |name: &str, priority: i32| {
        with(
            of_priority(name, priority, "1"),
            "spec/containers/0/ports",
            json!([{"containerPort": 1, "hostPort": 1}]),
        )
    };
    observe(&mut view, &[bound(port("holder", 1), "a")]);
    assert_eq!(
        outcome(&mut view, &[port("wants", 2)])["wants"],
        "a after holder"
    );
}

#[test]
fn a_profile_may_forbid_preemption() {
    let mut view = snapshot(&[node("a", "1", "8Gi")]);
    observe(&mut view, &[bound(of_priority("low", 0, "1"), "a")]);
    let pods = pending(&mut view, &[of_priority("high", 10, "1")]);
    let policy = Policy::of(Profile {
        preempts: false,
        ..Profile::default()
    });
    let made = plan(&mut view, &pods, &policy);
    let Decision::Wait { why } = &made.decisions[0].1 else {
        panic!()
    };
    assert_eq!(
        why.message(&view.space),
        "0/1 nodes are available: 1 Insufficient cpu."
    );
}
