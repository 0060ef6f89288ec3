//! Volumes: claims, zones, local volumes, attach limits, capacity.

use serde_json::{Value, json};

use super::*;

fn claiming(name: &str, claim: &str) -> Value {
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
    with(pod(name, "1", "1Mi"), "spec/volumes", volumes)
}

fn claim(view: &mut Snapshot, name: &str, class: &str, size: &str, volume: Option<&str>) {
    let annotations = volume.map(|_| json!({"pv.kubernetes.io/bind-completed": "yes"}));
    let object = json!({"metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "spec": {"storageClassName": class, "volumeName": volume, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
    view.storage_mut()
        .observe_claim(&serde_json::from_value(object).unwrap());
}

fn volume(view: &mut Snapshot, name: &str, class: &str, size: &str, more: Value) {
    let mut object = json!({"metadata": {"name": name}, "spec": {"storageClassName": class, "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]},
        "status": {"phase": "Available"}});
    for (key, value) in more.as_object().unwrap() {
        if key == "labels" {
            object["metadata"]["labels"] = value.clone();
        } else {
            object["spec"][key] = value.clone();
        }
    }
    view.storage_mut()
        .observe_volume(&serde_json::from_value(object).unwrap());
}

fn class(view: &mut Snapshot, name: &str, provisioner: &str, mode: &str, more: Value) {
    let mut object =
        json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
    for (key, value) in more.as_object().unwrap() {
        object[key] = value.clone();
    }
    view.storage_mut()
        .observe_class(&serde_json::from_value(object).unwrap());
}

fn on_host(host: &str) -> Value {
    json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}}})
}

const NOT_HELPFUL: &str = "no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";

#[test]
fn claims_that_say_nothing_yet_refuse_the_pod() {
    let mut view = snapshot(&[node("a", "8", "8Gi"), node("b", "8", "8Gi")]);
    let refused = |view: &mut Snapshot| outcome(view, &[claiming("p", "data")])["p"].clone();
    assert_eq!(
        refused(&mut view),
        format!("0/2 nodes are available: persistentvolumeclaim \"data\" not found. {NOT_HELPFUL}")
    );
    claim(&mut view, "data", "fast", "1Gi", None);
    assert_eq!(
        refused(&mut view),
        format!(
            "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims. {NOT_HELPFUL}"
        )
    );
    class(
        &mut view,
        "fast",
        "kubernetes.io/no-provisioner",
        "WaitForFirstConsumer",
        json!({}),
    );
    assert_eq!(
        refused(&mut view),
        format!(
            "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind. {NOT_HELPFUL}"
        )
    );
}

#[test]
fn bound_volumes_draw_the_pod_to_where_they_are() {
    let zone = |name: &str, zone: &str| {
        with(
            node(name, "8", "8Gi"),
            "metadata/labels/topology.kubernetes.io~1zone",
            json!(zone),
        )
    };
    let fix = |mut node: Value, zone: &str| {
        node["metadata"]["labels"] = json!({"kubernetes.io/hostname": node["metadata"]["name"], "topology.kubernetes.io/zone": zone});
        node
    };
    let mut view = snapshot(&[fix(zone("a", "x"), "x"), fix(zone("b", "y"), "y")]);
    claim(&mut view, "local", "fast", "1Gi", Some("pv-b"));
    volume(&mut view, "pv-b", "fast", "1Gi", on_host("b"));
    assert_eq!(outcome(&mut view, &[claiming("p", "local")])["p"], "b");
    claim(&mut view, "zonal", "fast", "1Gi", Some("pv-x"));
    volume(
        &mut view,
        "pv-x",
        "fast",
        "1Gi",
        json!({"labels": {"topology.kubernetes.io/zone": "w__x"}}),
    );
    assert_eq!(outcome(&mut view, &[claiming("p", "zonal")])["p"], "a");
    let both = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "local"}}, {"name": "w", "persistentVolumeClaim": {"claimName": "zonal"}}]);
    assert_eq!(
        outcome(
            &mut view,
            &[with(pod("p", "1", "1Mi"), "spec/volumes", both)]
        )["p"],
        format!(
            "0/2 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity, 1 node(s) had no available volume zone. {NOT_HELPFUL}"
        )
    );
    claim(&mut view, "lost", "fast", "1Gi", Some("nowhere"));
    assert!(
        outcome(&mut view, &[claiming("p", "lost")])["p"].contains(
            "2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
        )
    );
}

#[test]
fn a_waiting_claim_takes_the_smallest_volume_and_nobody_takes_it_again() {
    let mut view = snapshot(&[node("a", "8", "8Gi"), node("b", "8", "8Gi")]);
    class(
        &mut view,
        "local",
        "kubernetes.io/no-provisioner",
        "WaitForFirstConsumer",
        json!({}),
    );
    volume(&mut view, "large", "local", "100Gi", on_host("a"));
    volume(&mut view, "small", "local", "10Gi", on_host("b"));
    claim(&mut view, "one", "local", "5Gi", None);
    claim(&mut view, "two", "local", "5Gi", None);
    claim(&mut view, "three", "local", "5Gi", None);
    let pods = pending(
        &mut view,
        &[
            claiming("p", "one"),
            claiming("q", "two"),
            claiming("r", "three"),
        ],
    );
    let made = plan(&mut view, &pods, &Policy::default());
    let mut taken: Vec<(String, String)> = Vec::new();
    for (_, decision) in &made.decisions {
        if let Decision::Place { node, volumes } = decision {
            let [VolumeAction::Bind { volume, .. }] = volumes.as_slice() else {
                panic!("{volumes:?}")
            };
            taken.push((volume.clone(), node.to_string()));
        }
    }
    taken.sort();
    assert_eq!(
        taken,
        [("large".into(), "a".into()), ("small".into(), "b".into())]
    );
    // Planning has taken nothing; reserving does.
    reserve(&mut view, &made);
    assert!(
        outcome(&mut view, &[claiming("r", "three")])["r"]
            .contains("didn't find available persistent volumes to bind")
    );
    view.unassume("uid-p");
    let again = outcome(&mut view, &[claiming("r", "three")]);
    assert!(["a", "b"].contains(&again["r"].as_str()), "{again:?}");
}

#[test]
fn provisioning_heeds_topology_and_capacity() {
    let mut view = snapshot(&[node("a", "8", "8Gi"), node("b", "8", "8Gi")]);
    let only_b = json!({"allowedTopologies": [{"matchLabelExpressions": [{"key": "kubernetes.io/hostname", "values": ["b"]}]}]});
    class(
        &mut view,
        "lvm",
        "lvm.example.com",
        "WaitForFirstConsumer",
        only_b,
    );
    for name in ["one", "two"] {
        claim(&mut view, name, "lvm", "6Gi", None);
    }
    assert_eq!(outcome(&mut view, &[claiming("p", "one")])["p"], "b");
    let driver =
        json!({"metadata": {"name": "lvm.example.com"}, "spec": {"storageCapacity": true}});
    view.storage_mut()
        .observe_csi_driver(&serde_json::from_value(driver).unwrap());
    assert!(
        outcome(&mut view, &[claiming("p", "one")])["p"]
            .contains("1 node(s) did not have enough free storage")
    );
    let capacity = json!({"metadata": {"name": "c", "namespace": "kube-system"}, "storageClassName": "lvm", "capacity": "10Gi",
        "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": "b"}}});
    view.storage_mut()
        .observe_capacity(&serde_json::from_value(capacity).unwrap());
    // 10 GiB are enough for one of 6, and not promised twice.
    let pods = pending(&mut view, &[claiming("p", "one"), claiming("q", "two")]);
    let made = plan(&mut view, &pods, &Policy::default());
    assert_eq!(made.placements().count(), 1);
    reserve(&mut view, &made);
    let waiting = outcome(&mut view, &[claiming("q", "two")]);
    assert!(
        waiting["q"].contains("1 node(s) did not have enough free storage"),
        "{waiting:?}"
    );
}

#[test]
fn attach_limits_and_exclusive_claims() {
    let mut view = snapshot(&[node("a", "8", "8Gi"), node("b", "8", "8Gi")]);
    let limits = json!({"metadata": {"name": "a"}, "spec": {"drivers": [{"name": "ebs.csi.aws.com", "nodeID": "i", "allocatable": {"count": 1}}]}});
    view.storage_mut()
        .observe_csi_node(&serde_json::from_value(limits).unwrap());
    let only_a = |name: &str, claim: &str| {
        with(
            claiming(name, claim),
            "spec/nodeSelector",
            json!({"kubernetes.io/hostname": "a"}),
        )
    };
    for name in ["one", "two"] {
        claim(&mut view, name, "fast", "1Gi", Some(&format!("pv-{name}")));
        volume(
            &mut view,
            &format!("pv-{name}"),
            "fast",
            "1Gi",
            json!({"csi": {"driver": "ebs.csi.aws.com", "volumeHandle": name}}),
        );
    }
    let placed = outcome(
        &mut view,
        &[only_a("p", "one"), only_a("q", "two"), only_a("r", "one")],
    );
    assert_eq!(
        (placed["p"].as_str(), placed["r"].as_str()),
        ("a", "a"),
        "the same volume counts once: {placed:?}"
    );
    assert!(
        placed["q"].contains("1 node(s) exceed max volume count"),
        "{placed:?}"
    );
    let exclusive = json!({"metadata": {"name": "own", "namespace": "default", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"storageClassName": "fast", "volumeName": "pv-own", "accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Gi"}}}});
    view.storage_mut()
        .observe_claim(&serde_json::from_value(exclusive).unwrap());
    volume(&mut view, "pv-own", "fast", "1Gi", json!({}));
    let placed = outcome(&mut view, &[claiming("p", "own"), claiming("q", "own")]);
    let waiting: Vec<&String> = placed
        .values()
        .filter(|why| why.contains("ReadWriteOncePod"))
        .collect();
    assert_eq!(waiting.len(), 1, "{placed:?}");
    let disk = |name: &str| {
        with(
            pod(name, "1", "1Mi"),
            "spec/volumes",
            json!([{"name": "v", "awsElasticBlockStore": {"volumeID": "vol-1"}}]),
        )
    };
    let placed = outcome(
        &mut view,
        &[
            with(
                disk("p"),
                "spec/nodeSelector",
                json!({"kubernetes.io/hostname": "a"}),
            ),
            with(
                disk("q"),
                "spec/nodeSelector",
                json!({"kubernetes.io/hostname": "a"}),
            ),
        ],
    );
    assert!(
        placed
            .values()
            .any(|why| why.contains("1 node(s) had no available disk")),
        "{placed:?}"
    );
}
