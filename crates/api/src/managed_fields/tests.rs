#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use super::*;
use crate::schema::table;

const NOW: &str = "2024-01-01T00:00:00Z";
const LATER: &str = "2024-01-02T00:00:00Z";

fn write<'a>(api_version: &'a str, kind: &str, manager: &'a str, now: &'a str) -> Write<'a> {
    Write {
        manager,
        api_version,
        subresource: "",
        now,
        type_: table().kind(api_version, kind),
        ignored_fields: &["status"],
    }
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "default", "labels": {"app": "d"}, "uid": "u", "creationTimestamp": NOW, "generation": 1},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "d"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
            "template": {
                "metadata": {"labels": {"app": "d"}},
                "spec": {"restartPolicy": "Always", "containers": [{"name": "c", "image": "i:1", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]},
            },
        },
        "status": {"replicas": 1},
    })
}

fn deployment_fields() -> Value {
    json!({
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
        "f:spec": {
            "f:replicas": {}, "f:selector": {},
            "f:strategy": {"f:type": {}, "f:rollingUpdate": {".": {}, "f:maxSurge": {}}},
            "f:template": {
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {"f:restartPolicy": {}, "f:containers": {"k:{\"name\":\"c\"}": {
                    ".": {}, "f:name": {}, "f:image": {}, "f:resources": {},
                    "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}},
                }}},
            },
        },
    })
}

#[test]
fn a_create_owns_what_it_states() {
    let mut object = deployment();
    update(
        None,
        &mut object,
        &write("apps/v1", "Deployment", "kubectl-create", NOW),
    );
    let expect = json!([{"manager": "kubectl-create", "operation": "Update", "apiVersion": "apps/v1", "time": NOW, "fieldsType": "FieldsV1", "fieldsV1": deployment_fields()}]);
    assert_eq!(object["metadata"]["managedFields"], expect);
}

#[test]
fn the_fast_way_agrees_with_the_full_one() {
    let check = |object: Value| {
        let (api_version, kind) = (
            object["apiVersion"].as_str().unwrap(),
            object["kind"].as_str().unwrap(),
        );
        let write = write(api_version, kind, "m", NOW);
        let fast = created(object.to_string().as_bytes(), &write).unwrap();
        let mut slow = object.clone();
        update(None, &mut slow, &write);
        let mut with_place = object.clone();
        with_place["metadata"]["managedFields"] = json!([]);
        let mut bytes = with_place.to_string().into_bytes();
        assert!(fill_managed_fields(&mut bytes, &fast));
        // To the byte, or an update that changes nothing would be taken for a change.
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            slow.to_string(),
            "{object}"
        );
    };
    check(deployment());
    check(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "annotations": {"a\"b/c": "metadata"}, "finalizers": ["x", "y"]}, "data": {"k": "", "null": null}, "binaryData": {}}),
    );
    check(
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"}, "source": {}, "reason": "r", "count": 1}),
    );
    check(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"annotations": {"managedFields": "\"managedFields\":[]"}},
        "spec": {"containers": [
            {"name": "webA", "env": [{"name": "Z"}, {"name": "A\"b"}, {"name": "A"}], "ports": [{"containerPort": 9}, {"containerPort": 80}]},
            {"name": "web", "resources": {"limits": {"cpu": "1"}}},
        ]}}),
    );
    check(
        json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"labels": {"a": "b"}}, "spec": {"a": {"b": [1, 2], "c": {}}}}),
    );
    check(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP", "name": "dns"}], "clusterIPs": []}}),
    );
    check(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {}}, "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "initContainers": [{"name": "i", "env": [{"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "f"}}}]}], "containers": [], "imagePullSecrets": [{"name": "s"}, {"name": "t"}]}}),
    );
}

#[test]
fn the_fast_way_gives_way_on_odd_lists() {
    let pod = |containers: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containers": containers}}).to_string()
    };
    assert_eq!(
        created(
            pod(json!([{"image": "i"}])).as_bytes(),
            &write("v1", "Pod", "m", NOW)
        ),
        None
    );
    assert_eq!(
        created(
            pod(json!([{"name": "a"}, {"name": "a"}])).as_bytes(),
            &write("v1", "Pod", "m", NOW)
        ),
        None
    );
    assert_eq!(created(b"{\"spec\":", &write("v1", "Pod", "m", NOW)), None);
}

#[test]
fn updates_take_what_they_change() {
    let mut live = deployment();
    update(None, &mut live, &write("apps/v1", "Deployment", "a", NOW));
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(3);
    new["metadata"]["labels"]
        .as_object_mut()
        .unwrap()
        .remove("app");
    new["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("managedFields");
    update(
        Some(&live),
        &mut new,
        &write("apps/v1", "Deployment", "b", LATER),
    );
    let entries = new["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(
        (&entries[0]["manager"], &entries[0]["time"]),
        (&json!("a"), &json!(NOW))
    );
    assert!(entries[0]["fieldsV1"]["f:spec"].get("f:replicas").is_none());
    assert_eq!(
        entries[0]["fieldsV1"]["f:metadata"],
        json!({"f:labels": {}})
    );
    assert_eq!(
        (
            &entries[1]["manager"],
            &entries[1]["time"],
            &entries[1]["fieldsV1"]
        ),
        (
            &json!("b"),
            &json!(LATER),
            &json!({"f:spec": {"f:replicas": {}}})
        )
    );
}

#[test]
fn a_write_without_change_leaves_everything() {
    let mut live = deployment();
    update(None, &mut live, &write("apps/v1", "Deployment", "a", NOW));
    let mut new = live.clone();
    new["status"]["replicas"] = json!(7);
    new["metadata"]["resourceVersion"] = json!("8");
    let expect = new.clone();
    update(
        Some(&live),
        &mut new,
        &write("apps/v1", "Deployment", "b", LATER),
    );
    assert_eq!(new, expect);
}

#[test]
fn status_writes_have_entries_of_their_own() {
    let mut live = deployment();
    update(None, &mut live, &write("apps/v1", "Deployment", "a", NOW));
    let mut new = live.clone();
    new["status"]["replicas"] = json!(7);
    let status = Write {
        subresource: "status",
        ignored_fields: &["spec"],
        ..write("apps/v1", "Deployment", "a", LATER)
    };
    update(Some(&live), &mut new, &status);
    let entries = new["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(
        (&entries[1]["subresource"], &entries[1]["fieldsV1"]),
        (&json!("status"), &json!({"f:status": {"f:replicas": {}}}))
    );
}

#[test]
fn untracked_objects_stay_untracked_and_a_single_empty_entry_resets() {
    let mut new = deployment();
    update(
        Some(&deployment()),
        &mut new,
        &write("apps/v1", "Deployment", "a", NOW),
    );
    assert_eq!(new, deployment());
    let mut live = deployment();
    update(None, &mut live, &write("apps/v1", "Deployment", "a", NOW));
    let mut new = live.clone();
    new["metadata"]["managedFields"] = json!([{}]);
    update(
        Some(&live),
        &mut new,
        &write("apps/v1", "Deployment", "a", NOW),
    );
    assert_eq!(new, deployment());
}

#[test]
fn too_many_updaters_are_merged() {
    let config_map = |n: usize| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": (0..n).map(|n| (format!("k{n:02}"), json!("v"))).collect::<serde_json::Map<_, _>>()});
    let mut live = config_map(1);
    update(
        None,
        &mut live,
        &write("v1", "ConfigMap", "m00", "2024-01-01T00:00:00Z"),
    );
    for n in 1..14 {
        let mut new = config_map(n + 1);
        let (manager, now) = (format!("m{n:02}"), format!("2024-01-01T00:00:{n:02}Z"));
        update(
            Some(&live),
            &mut new,
            &write("v1", "ConfigMap", &manager, &now),
        );
        live = new;
    }
    let entries = live["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 10);
    assert_eq!(entries[0]["manager"], "ancient-changes");
    assert_eq!(
        entries[0]["fieldsV1"],
        json!({"f:data": {".": {}, "f:k00": {}, "f:k01": {}, "f:k02": {}, "f:k03": {}, "f:k04": {}}})
    );
    assert_eq!(entries[1]["manager"], "m05");
}

fn config(fields: Value) -> Value {
    let mut config =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}});
    config
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    config
}

fn must_apply(live: Option<&Value>, config: Value, manager: &str, now: &str) -> Value {
    apply(
        live,
        &config,
        &write("apps/v1", "Deployment", manager, now),
        false,
    )
    .unwrap()
    .object
}

fn owned_by(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    entries
        .iter()
        .find(|entry| entry["manager"] == manager)
        .map(|entry| entry["fieldsV1"].clone())
        .unwrap_or_default()
}

#[test]
fn applied_fields_are_owned_and_removed_when_no_longer_stated() {
    let live = must_apply(
        None,
        config(json!({"spec": {"replicas": 2, "paused": true}})),
        "a",
        NOW,
    );
    assert_eq!(live["spec"], json!({"replicas": 2, "paused": true}));
    assert_eq!(
        owned_by(&live, "a"),
        json!({"f:spec": {"f:replicas": {}, "f:paused": {}}})
    );
    assert_eq!(live["metadata"]["managedFields"][0]["operation"], "Apply");
    let live = must_apply(
        Some(&live),
        config(json!({"spec": {"replicas": 2}})),
        "a",
        LATER,
    );
    assert_eq!(live["spec"], json!({"replicas": 2}));
    assert_eq!(live["metadata"]["managedFields"][0]["time"], LATER);
    let again = apply(
        Some(&live),
        &config(json!({"spec": {"replicas": 2}})),
        &write("apps/v1", "Deployment", "a", "2025-01-01T00:00:00Z"),
        false,
    )
    .unwrap();
    assert_eq!((again.object, again.changed), (live, false));
}

#[test]
fn shared_fields_stay_until_the_last_owner_leaves() {
    let one = must_apply(
        None,
        config(json!({"metadata": {"name": "d", "labels": {"x": "1", "y": "1"}}})),
        "a",
        NOW,
    );
    let two = must_apply(
        Some(&one),
        config(json!({"metadata": {"name": "d", "labels": {"x": "1"}}})),
        "b",
        NOW,
    );
    let three = must_apply(
        Some(&two),
        config(json!({"metadata": {"name": "d"}})),
        "a",
        NOW,
    );
    assert_eq!(three["metadata"]["labels"], json!({"x": "1"}));
    let four = must_apply(
        Some(&three),
        config(json!({"metadata": {"name": "d"}})),
        "b",
        NOW,
    );
    assert!(
        four["metadata"]
            .get("labels")
            .is_none_or(|labels| labels == &json!({}))
    );
}

#[test]
fn conflicts_are_told_and_forced() {
    let mut live = deployment();
    update(
        None,
        &mut live,
        &write("apps/v1", "Deployment", "kubectl-client-side-apply", NOW),
    );
    let change = config(json!({"spec": {"replicas": 5}}));
    let refused = apply(
        Some(&live),
        &change,
        &write("apps/v1", "Deployment", "me", LATER),
        false,
    )
    .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let ApplyError::Conflicts(conflicts) = refused else {
        panic!("conflicts")
    };
    assert_eq!(
        conflicts.0[0].message(),
        "conflict with \"kubectl-client-side-apply\" using apps/v1"
    );
    let both = config(
        json!({"spec": {"replicas": 5, "template": {"spec": {"containers": [{"name": "c", "image": "i:2"}]}}}}),
    );
    let refused = apply(
        Some(&live),
        &both,
        &write("apps/v1", "Deployment", "me", LATER),
        false,
    )
    .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n- .spec.replicas\n- .spec.template.spec.containers[name=\"c\"].image"
    );
    let forced = apply(
        Some(&live),
        &change,
        &write("apps/v1", "Deployment", "me", LATER),
        true,
    )
    .unwrap()
    .object;
    assert_eq!(forced["spec"]["replicas"], json!(5));
    assert_eq!(
        owned_by(&forced, "me"),
        json!({"f:spec": {"f:replicas": {}}})
    );
    assert!(
        owned_by(&forced, "kubectl-client-side-apply")["f:spec"]
            .get("f:replicas")
            .is_none()
    );
    // The same value is no conflict: both own it.
    let same = must_apply(
        Some(&live),
        config(json!({"spec": {"replicas": 1}})),
        "me",
        LATER,
    );
    assert_eq!(
        owned_by(&same, "kubectl-client-side-apply")["f:spec"]["f:replicas"],
        json!({})
    );
}

#[test]
fn lists_are_merged_by_key_value_or_not_at_all() {
    let containers = |containers: Value| {
        config(json!({"spec": {"template": {"spec": {"containers": containers}}}}))
    };
    let one = must_apply(
        None,
        containers(
            json!([{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]),
        ),
        "a",
        NOW,
    );
    let two = must_apply(
        Some(&one),
        containers(json!([{"name": "c", "image": "1"}, {"name": "b", "args": ["y"]}])),
        "z",
        NOW,
    );
    let names: Vec<&str> = two["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["c", "a", "b"]);
    assert_eq!(
        two["spec"]["template"]["spec"]["containers"][2],
        json!({"name": "b", "image": "1", "args": ["y"]})
    );
    let three = must_apply(
        Some(&two),
        containers(json!([{"name": "a", "image": "1"}])),
        "a",
        NOW,
    );
    assert_eq!(
        three["spec"]["template"]["spec"]["containers"],
        json!([{"name": "c", "image": "1"}, {"name": "a", "image": "1"}, {"name": "b", "args": ["y"]}])
    );
    let duplicate = apply(
        None,
        &containers(json!([{"name": "a"}, {"name": "a"}])),
        &write("apps/v1", "Deployment", "a", NOW),
        false,
    )
    .unwrap_err();
    assert!(
        duplicate
            .to_string()
            .ends_with("duplicate entries for key [name=\"a\"]"),
        "{duplicate}"
    );
    let finalizers = |items: Value| config(json!({"metadata": {"name": "d", "finalizers": items}}));
    let one = must_apply(None, finalizers(json!(["x/a", "x/b"])), "a", NOW);
    let two = must_apply(Some(&one), finalizers(json!(["x/c"])), "b", NOW);
    assert_eq!(two["metadata"]["finalizers"].as_array().unwrap().len(), 3);
    assert_eq!(
        owned_by(&two, "b"),
        json!({"f:metadata": {"f:finalizers": {"v:\"x/c\"": {}}}})
    );
}

#[test]
fn null_clears_and_versions_must_match() {
    let live = must_apply(None, config(json!({"spec": {"replicas": 2}})), "a", NOW);
    let cleared = must_apply(
        Some(&live),
        config(json!({"spec": {"replicas": null}})),
        "a",
        NOW,
    );
    assert_eq!(cleared["spec"], json!({}));
    let wrong = apply(
        None,
        &json!({"apiVersion": "v1"}),
        &write("apps/v1", "Deployment", "a", NOW),
        false,
    )
    .unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "Incorrect version specified in apply patch. Specified patch version: v1, expected: apps/v1"
    );
    let managed = apply(
        None,
        &config(json!({"metadata": {"managedFields": []}})),
        &write("apps/v1", "Deployment", "a", NOW),
        false,
    )
    .unwrap_err();
    assert_eq!(managed.to_string(), "metadata.managedFields must be nil");
}

#[test]
fn an_untracked_object_belongs_to_before_first_apply() {
    let refused = apply(
        Some(&deployment()),
        &config(json!({"spec": {"replicas": 9}})),
        &write("apps/v1", "Deployment", "a", NOW),
        false,
    )
    .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas"
    );
    let applied = must_apply(
        Some(&deployment()),
        config(json!({"spec": {"replicas": 1}})),
        "a",
        NOW,
    );
    assert_eq!(
        owned_by(&applied, "before-first-apply"),
        deployment_fields()
    );
}

#[test]
fn kubectl_takes_over_from_client_side_apply() {
    let mut live = deployment();
    let last_applied = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 1}});
    live["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": last_applied.to_string()});
    update(
        None,
        &mut live,
        &write("apps/v1", "Deployment", "kubectl-client-side-apply", NOW),
    );
    let applied = must_apply(
        Some(&live),
        config(json!({"spec": {"replicas": 4}})),
        "kubectl",
        LATER,
    );
    assert_eq!(applied["spec"]["replicas"], json!(4));
    let annotation =
        applied["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]
            .as_str()
            .unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(annotation).unwrap()["spec"]["replicas"],
        json!(4)
    );
    let other = apply(
        Some(&live),
        &config(json!({"spec": {"replicas": 4}})),
        &write("apps/v1", "Deployment", "me", LATER),
        false,
    );
    assert!(other.is_err());
}

/// Prints what a create costs: `cargo test --release -p api managed_fields::tests::cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "labels": {"app": "x", "tier": "y"}, "uid": "5f0c3c3a-6b1f-4c55-9b38-3c1f8a8d5c11", "creationTimestamp": NOW},
        "spec": {
            "containers": [{"name": "c", "image": "registry.example/i:1", "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets", "readOnly": true}]}],
            "volumes": [{"name": "token", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "serviceAccountName": "default",
            "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority", "priority": 0,
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        },
        "status": {"phase": "Pending", "qosClass": "Burstable"},
    });
    let bytes = pod.to_string().into_bytes();
    let write = write("v1", "Pod", "kubectl-create", NOW);
    let per_call = |name: &str, call: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        (0..20_000).for_each(|_| call());
        println!(
            "{name}: {:.2} us",
            start.elapsed().as_secs_f64() / 20_000.0 * 1e6
        );
    };
    per_call("created, from bytes", &mut || {
        drop(std::hint::black_box(created(&bytes, &write)))
    });
    per_call("update of a new value", &mut || {
        let mut pod = pod.clone();
        update(None, &mut pod, &write);
        std::hint::black_box(pod);
    });
    let mut live = pod.clone();
    update(None, &mut live, &write);
    let mut new = live.clone();
    new["status"]["phase"] = json!("Running");
    let status = Write {
        subresource: "status",
        ignored_fields: &["spec"],
        manager: "kubelet",
        ..write
    };
    per_call("update of status", &mut || {
        let mut new = new.clone();
        update(Some(&live), &mut new, &status);
        std::hint::black_box(new);
    });
}
