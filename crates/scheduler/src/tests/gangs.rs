//! Gangs: all or nothing, by either convention.

use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use serde_json::{Value, json};

use super::*;

fn member(name: &str, cpu: &str) -> Value {
    with(
        pod(name, cpu, "1Mi"),
        "spec/schedulingGroup",
        json!({"podGroupName": "train"}),
    )
}

fn group(spec: Value) -> PodGroup {
    serde_json::from_value(
        json!({"metadata": {"name": "train", "namespace": "default"}, "spec": spec}),
    )
    .unwrap()
}

fn gang(min_count: i32) -> PodGroup {
    group(json!({"schedulingPolicy": {"gang": {"minCount": min_count}}}))
}

#[test]
fn all_or_none() {
    let mut view = snapshot(&[node("a", "2", "8Gi"), node("b", "1", "8Gi")]);
    let members = ["m1", "m2", "m3", "m4"].map(|name| member(name, "1"));
    let waits = outcome(&mut view, &members);
    assert!(
        waits["m1"].contains("waiting for pods's pod group \"train\" to appear"),
        "{waits:?}"
    );
    view.groups_mut().observe(&gang(4));
    let waits = outcome(&mut view, &members[..3]);
    assert_eq!(
        waits["m2"],
        "waiting for minCount pods from a gang to appear in scheduling queue"
    );
    // Four do not fit, so that nobody goes, and the room is there for others.
    let mut all = members.to_vec();
    all.push(pod("other", "3", "1Mi"));
    all.push(pod("small", "1", "1Mi"));
    let waits = outcome(&mut view, &all);
    assert!(
        members
            .iter()
            .all(|m| waits[m["metadata"]["name"].as_str().unwrap()]
                .starts_with("0/2 nodes are available")),
        "{waits:?}"
    );
    assert_eq!(waits["small"], "b");
    // Three are enough: the fourth waits.
    view.groups_mut().observe(&gang(3));
    let placed = outcome(&mut view, &members);
    assert_eq!(
        placed
            .values()
            .filter(|node| matches!(node.as_str(), "a" | "b"))
            .count(),
        3,
        "{placed:?}"
    );
}

#[test]
fn members_that_run_already_count() {
    let mut view = snapshot(&[node("a", "2", "8Gi")]);
    view.groups_mut().observe(&gang(2));
    let bound = with(member("m1", "1"), "spec/nodeName", json!("a"));
    view.observe_pod(&serde_json::from_value(bound).unwrap());
    assert_eq!(outcome(&mut view, &[member("m2", "1")])["m2"], "a");
}

#[test]
fn best_fit_may_fail_where_the_solver_does_not() {
    // Decreasing best-fit puts 3 and 3 together and fails; 3+2+2 twice fits.
    let mut view = snapshot(&[node("a", "7", "8Gi"), node("b", "7", "8Gi")]);
    view.groups_mut().observe(&gang(6));
    let members: Vec<Value> = [3, 3, 2, 2, 2, 2]
        .iter()
        .enumerate()
        .map(|(i, cpu)| member(&format!("m{i}"), &cpu.to_string()))
        .collect();
    let placed = outcome(&mut view, &members);
    assert!(
        placed.values().all(|node| node == "a" || node == "b"),
        "{placed:?}"
    );
}

#[test]
fn a_label_names_a_gang_too_and_a_basic_policy_names_none() {
    let mut view = snapshot(&[node("a", "1", "8Gi")]);
    let labelled = |name: &str| {
        with(
            pod(name, "1", "1Mi"),
            "metadata/labels",
            json!({POD_GROUP_LABEL: "g"}),
        )
    };
    let key = GroupKey {
        api: GroupApi::Label,
        namespace: "default".into(),
        name: "g".into(),
    };
    // Nobody has said how many: pods go one by one.
    assert_eq!(outcome(&mut view, &[labelled("p")])["p"], "a");
    let spec = GroupSpec {
        min_count: Some(2),
        ..GroupSpec::default()
    };
    view.groups_mut().observe_spec(key, spec);
    let waits = outcome(&mut view, &[labelled("p"), labelled("q")]);
    assert!(
        waits.values().all(|why| why.contains("Insufficient cpu")),
        "{waits:?}"
    );
    view.groups_mut()
        .observe(&group(json!({"schedulingPolicy": {"basic": {}}})));
    assert_eq!(outcome(&mut view, &[member("m", "1")])["m"], "a");
}

#[test]
fn one_domain_for_all_where_the_group_asks_for_it() {
    let rack = |name: &str, rack: &str, cpu: &str| {
        with(node(name, cpu, "8Gi"), "metadata/labels/rack", json!(rack))
    };
    let mut view = snapshot(&[
        rack("a", "r1", "2"),
        rack("b", "r2", "1"),
        rack("c", "r2", "2"),
    ]);
    let constraints = json!({"topology": [{"key": "rack"}]});
    view.groups_mut().observe(&group(json!({"schedulingPolicy": {"gang": {"minCount": 3}}, "schedulingConstraints": constraints})));
    let members = ["m1", "m2", "m3"].map(|name| member(name, "1"));
    let placed = outcome(&mut view, &members);
    assert!(
        placed.values().all(|node| node == "b" || node == "c"),
        "{placed:?}"
    );
}

#[test]
fn a_gang_preempts_for_all_of_its_members_or_for_none() {
    let mut view = snapshot(&[node("a", "1", "8Gi"), node("b", "1", "8Gi")]);
    for (name, at) in [("x", "a"), ("y", "b")] {
        let bound = with(pod(name, "1", "1Mi"), "spec/nodeName", json!(at));
        view.observe_pod(&serde_json::from_value(bound).unwrap());
    }
    view.groups_mut().observe(&gang(2));
    let important = |name: &str| with(member(name, "1"), "spec/priority", json!(5));
    let placed = outcome(&mut view, &[important("m1"), important("m2")]);
    assert_eq!(
        (placed["m1"].as_str(), placed["m2"].as_str()),
        ("a after x", "b after y")
    );
    view.groups_mut().observe(&gang(3));
    let waits = outcome(
        &mut view,
        &[important("m1"), important("m2"), important("m3")],
    );
    assert!(
        waits.values().all(|why| why.contains("Insufficient cpu")),
        "{waits:?}"
    );
}
