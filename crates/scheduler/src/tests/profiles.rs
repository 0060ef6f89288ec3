//! What is preferred, by profile: strategies, weights, images, default spreading, several schedulers.

use serde_json::{Value, json};

use super::*;

fn placed_by(profile: Profile, view: &mut Snapshot, pods: &[Value]) -> Vec<String> {
    let pods = pending(view, pods);
    let made = plan(view, &pods, &Policy::of(profile));
    pods.iter()
        .map(|pod| {
            let found = made.placements().find(|(placed, _)| placed.uid == pod.uid);
            found.map_or("-".into(), |(_, node)| node.to_string())
        })
        .collect()
}

fn weights(names: &[(&str, i64)]) -> Vec<ResourceWeight> {
    names
        .iter()
        .map(|(name, weight)| ResourceWeight {
            name: (*name).into(),
            weight: *weight,
        })
        .collect()
}

#[test]
fn strategies() {
    let mut view = snapshot(&[node("a", "4", "8Gi"), node("b", "8", "8Gi")]);
    let one = [pod("p", "1", "1Gi")];
    let fit = |fit: FitStrategy| Profile {
        fit,
        ..Profile::default()
    };
    assert_eq!(placed_by(Profile::default(), &mut view, &one), ["a"]);
    assert_eq!(placed_by(Profile::spreading(), &mut view, &one), ["b"]);
    let both = weights(&[("cpu", 1), ("memory", 1)]);
    assert_eq!(
        placed_by(
            fit(FitStrategy::LeastAllocated(both.clone())),
            &mut view,
            &one
        ),
        ["b"]
    );
    assert_eq!(
        placed_by(
            fit(FitStrategy::MostAllocated(both.clone())),
            &mut view,
            &one
        ),
        ["a"]
    );
    // Best at one eighth of the CPU, which is node b.
    let shape = vec![(0, 0), (12, 100), (25, 0)];
    let ratio = FitStrategy::RequestedToCapacityRatio {
        resources: weights(&[("cpu", 1)]),
        shape,
    };
    assert_eq!(placed_by(fit(ratio), &mut view, &one), ["b"]);
    // Equal shares of CPU and memory are better than unequal ones.
    let balanced = Profile {
        weights: Weights {
            fit: 0,
            balanced_allocation: 1,
            ..Profile::default().weights
        },
        ..Profile::default()
    };
    assert_eq!(
        placed_by(balanced, &mut view, &[pod("p", "1", "1Gi")]),
        ["b"]
    );
}

#[test]
fn images_that_are_there_draw_pods() {
    let image = |name: &str, size: i64| json!([{"names": [name, "other:1"], "sizeBytes": size}]);
    let mut view = snapshot(&[
        node("a", "8", "8Gi"),
        with(
            node("b", "8", "8Gi"),
            "status/images",
            image("registry.example/app:latest", 900_000_000),
        ),
    ]);
    let app = with(
        pod("p", "1", "1Gi"),
        "spec/containers/0/image",
        json!("registry.example/app"),
    );
    assert_eq!(
        placed_by(Profile::default(), &mut view, std::slice::from_ref(&app)),
        ["b"]
    );
    let blind = Profile {
        weights: Weights {
            image_locality: 0,
            ..Profile::default().weights
        },
        ..Profile::default()
    };
    assert_eq!(placed_by(blind, &mut view, &[app]), ["a"]);
}

#[test]
fn pods_of_a_service_are_spread_by_default() {
    let service = json!({"metadata": {"name": "s", "namespace": "default"}, "spec": {"selector": {"app": "a"}}});
    let mut view = snapshot(&[
        node("a", "8", "8Gi"),
        node("b", "8", "8Gi"),
        node("c", "8", "8Gi"),
    ]);
    let pods: Vec<Value> = (0..3).map(|i| pod(&format!("p{i}"), "1", "1Gi")).collect();
    assert_eq!(
        placed_by(Profile::default(), &mut view, &pods),
        ["a", "a", "a"]
    );
    view.owners_mut()
        .observe_service(&serde_json::from_value(service).unwrap());
    let mut spread = placed_by(Profile::default(), &mut view, &pods);
    spread.sort();
    assert_eq!(spread, ["a", "b", "c"]);
    let list = Profile {
        default_spread: DefaultSpread::List(Vec::new()),
        ..Profile::default()
    };
    assert_eq!(placed_by(list, &mut view, &pods), ["a", "a", "a"]);
}

#[test]
fn each_scheduler_name_has_its_profile() {
    let mut view = snapshot(&[node("a", "4", "8Gi"), node("b", "8", "8Gi")]);
    let spreading = Profile {
        scheduler_name: "spreader".into(),
        ..Profile::spreading()
    };
    let policy = Policy::with_profiles(
        [
            std::sync::Arc::new(Profile::default()),
            std::sync::Arc::new(spreading),
        ]
        .into(),
    );
    let pods = pending(
        &mut view,
        &[
            pod("p", "1", "1Gi"),
            with(
                pod("q", "1", "1Gi"),
                "spec/schedulerName",
                json!("spreader"),
            ),
        ],
    );
    let made = plan(&mut view, &pods, &policy);
    let nodes: std::collections::BTreeMap<String, String> = made
        .placements()
        .map(|(pod, node)| (pod.name.to_string(), node.to_string()))
        .collect();
    assert_eq!((nodes["p"].as_str(), nodes["q"].as_str()), ("a", "b"));
}

#[test]
fn rules_can_be_switched_off_and_added() {
    let tainted = with(
        node("t", "8", "8Gi"),
        "spec",
        json!({"taints": [{"key": "k", "effect": "NoSchedule"}]}),
    );
    let mut view = snapshot(&[tainted, node("u", "1", "1Gi")]);
    let mut lenient = Profile::default();
    lenient.switch_off(Rule::TaintToleration);
    assert_eq!(
        placed_by(lenient, &mut view, &[pod("p", "4", "2Gi")]),
        ["t"]
    );
    assert_eq!(
        placed_by(Profile::default(), &mut view, &[pod("p", "4", "2Gi")]),
        ["-"]
    );
    let added = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration", "profiles": [{"pluginConfig": [
        {"name": "NodeAffinity", "args": {"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]}}}}]}]});
    let read = Configuration::from_value(added).unwrap();
    let pods = pending(&mut view, &[pod("p", "1", "1Mi")]);
    let made = plan(&mut view, &pods, &Policy::with_profiles(read.profiles));
    let Decision::Wait { why } = &made.decisions[0].1 else {
        panic!()
    };
    assert!(
        why.message(&view.space)
            .contains("1 node(s) didn't match scheduler-enforced node affinity"),
        "{}",
        why.message(&view.space)
    );
}

#[test]
fn pinned_pods_are_only_looked_for_where_they_may_be() {
    let mut view = snapshot(&[node("a", "8", "8Gi"), node("b", "1", "8Gi")]);
    let pinned = |name: &str, to: &str| {
        let terms =
            json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [to]}]}]);
        with(
            pod(name, "2", "1Gi"),
            "spec/affinity",
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}),
        )
    };
    let placed = outcome(
        &mut view,
        &[pinned("p", "a"), pinned("q", "b"), pinned("r", "gone")],
    );
    assert_eq!(placed["p"], "a");
    assert_eq!(
        placed["q"],
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't satisfy plugin(s) [NodeAffinity]. \
         no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    );
    assert!(
        placed["r"].contains("2 node(s) didn't satisfy plugin(s) [NodeAffinity]"),
        "{placed:?}"
    );
}

#[test]
fn an_explanation_says_where_and_why_not_elsewhere() {
    let mut view = snapshot(&[
        node("a", "4", "8Gi"),
        node("b", "1", "1Gi"),
        node("c", "8", "8Gi"),
    ]);
    let pods = pending(&mut view, &[pod("p", "2", "2Gi")]);
    let text = explain(&mut view, &pods, "uid-p", &Policy::default())
        .unwrap()
        .to_string();
    for part in [
        "pod default/p goes to node a\n",
        "2 of 3 nodes would do by themselves:\n",
        "  not 1: Insufficient cpu, Insufficient memory\n",
        "gap 0.0000%\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(explain(&mut view, &pods, "nobody", &Policy::default()).is_none());
}
