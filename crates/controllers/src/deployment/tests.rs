//! A small world of replica sets that obey at once or never, and deployments rolled through it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DeploymentCondition, ReplicaSetStatus};
use serde_json::json;

use super::*;

const START: Timestamp = Timestamp::constant(1_800_000_000, 0);

struct World {
    deployment: Deployment,
    replica_sets: BTreeMap<String, ReplicaSet>,
    events: Vec<String>,
    now: Timestamp,
    /// Images whose pods never become available.
    broken: Vec<String>,
    next_uid: u32,
}

impl World {
    fn new(replicas: i32, strategy: serde_json::Value) -> World {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1, "annotations": {"note": "x"}},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
                "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "one"}]}}}
        }))
        .unwrap();
        World {
            deployment,
            replica_sets: BTreeMap::new(),
            events: Vec::new(),
            now: START,
            broken: Vec::new(),
            next_uid: 0,
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut DeploymentSpec)) {
        change(self.deployment.spec.as_mut().unwrap());
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    fn set_image(&mut self, image: &str) {
        self.change(|spec| {
            spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into())
        });
    }

    fn reconcile(&mut self) -> Outcome {
        let replica_sets = self.replica_sets.values().collect();
        reconcile(
            &Observed {
                deployment: &self.deployment,
                replica_sets,
                pods: Vec::new(),
            },
            self.now,
        )
    }

    /// One reconcile, carried out. False if it asked for nothing.
    fn step(&mut self) -> bool {
        let outcome = self.reconcile();
        let quiet = outcome.actions.is_empty() && outcome.status.is_none();
        for action in outcome.actions {
            match action {
                Action::Create(object) => {
                    self.next_uid += 1;
                    let mut object = *object;
                    object.metadata.uid = Some(format!("rs{}", self.next_uid));
                    object.metadata.creation_timestamp = Some(
                        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now),
                    );
                    object.metadata.generation = Some(1);
                    assert!(
                        self.replica_sets
                            .insert(object.metadata.name.clone().unwrap(), object)
                            .is_none()
                    );
                }
                Action::Update(object) => {
                    self.replica_sets
                        .insert(object.metadata.name.clone().unwrap(), *object)
                        .unwrap();
                }
                Action::Delete { name, .. } => {
                    self.replica_sets.remove(&name).unwrap();
                }
                Action::SetRevision(revision) => {
                    self.deployment
                        .metadata
                        .annotations
                        .get_or_insert_default()
                        .insert(REVISION.into(), revision);
                }
                Action::Event(event) => self.events.push(event.message),
                Action::Adopt { .. } | Action::Release { .. } => {}
            }
        }
        if let Some(status) = outcome.status {
            self.deployment.status = Some(status);
        }
        !quiet
    }

    /// The replica sets get their pods.
    fn obey(&mut self) {
        for object in self.replica_sets.values_mut() {
            let spec = object.spec.as_ref().unwrap();
            let image = spec
                .template
                .as_ref()
                .unwrap()
                .spec
                .as_ref()
                .unwrap()
                .containers[0]
                .image
                .clone()
                .unwrap();
            let replicas = spec.replicas.unwrap();
            let available = if self.broken.contains(&image) {
                0
            } else {
                replicas
            };
            object.status = Some(ReplicaSetStatus {
                replicas,
                ready_replicas: Some(available),
                available_replicas: Some(available),
                terminating_replicas: Some(0),
                observed_generation: object.metadata.generation,
                ..ReplicaSetStatus::default()
            });
        }
    }

    /// Steps until nothing changes; checks surge and availability at every step.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.now += SignedDuration::from_secs(1);
            let before: Vec<_> = self.replica_sets.values().cloned().collect();
            let stepped = self.step();
            self.obey();
            if !stepped && before == self.replica_sets.values().cloned().collect::<Vec<_>>() {
                return;
            }
        }
        panic!("the deployment never settles");
    }

    fn sizes(&self) -> BTreeMap<String, i32> {
        let image = |object: &ReplicaSet| {
            object
                .spec
                .as_ref()
                .unwrap()
                .template
                .as_ref()
                .unwrap()
                .spec
                .as_ref()
                .unwrap()
                .containers[0]
                .image
                .clone()
                .unwrap()
        };
        self.replica_sets
            .values()
            .map(|object| {
                (
                    image(object),
                    object.spec.as_ref().unwrap().replicas.unwrap(),
                )
            })
            .collect()
    }

    fn condition(&self, type_: &str) -> &DeploymentCondition {
        let status = self.deployment.status.as_ref().unwrap();
        status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == type_)
            .unwrap()
    }

    fn of_image(&self, image: &str) -> &ReplicaSet {
        let named = |object: &&ReplicaSet| {
            object
                .spec
                .as_ref()
                .unwrap()
                .template
                .as_ref()
                .unwrap()
                .spec
                .as_ref()
                .unwrap()
                .containers[0]
                .image
                .as_deref()
                == Some(image)
        };
        self.replica_sets.values().find(named).unwrap()
    }

    fn revision(&self, image: &str) -> String {
        self.of_image(image).metadata.annotations.as_ref().unwrap()[REVISION].clone()
    }
}

fn rolling(surge: serde_json::Value, unavailable: serde_json::Value) -> serde_json::Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

fn sizes(pairs: &[(&str, i32)]) -> BTreeMap<String, i32> {
    pairs
        .iter()
        .map(|(image, count)| ((*image).to_string(), *count))
        .collect()
}

#[test]
fn a_new_deployment_gets_its_replica_set_and_completes() {
    let mut world = World::new(3, rolling(json!("25%"), json!("25%")));
    world.step();
    assert_eq!(world.sizes(), sizes(&[("one", 3)]));
    assert_eq!(
        world.condition("Progressing").reason.as_deref(),
        Some("NewReplicaSetCreated")
    );
    assert_eq!(
        world.condition("Available").reason.as_deref(),
        Some("MinimumReplicasUnavailable")
    );
    let object = world.of_image("one").clone();
    let name = object.metadata.name.clone().unwrap();
    assert_eq!(
        world.events,
        [format!("Scaled up replica set {name} from 0 to 3")]
    );
    let annotations = object.metadata.annotations.as_ref().unwrap();
    assert_eq!(
        (
            annotations[revision::DESIRED_REPLICAS].as_str(),
            annotations[revision::MAX_REPLICAS].as_str(),
            annotations["note"].as_str()
        ),
        ("3", "4", "x")
    );
    let hash = name.strip_prefix("web-").unwrap();
    assert_eq!(
        object.metadata.labels.as_ref().unwrap()["pod-template-hash"],
        hash
    );
    assert_eq!(
        object
            .spec
            .as_ref()
            .unwrap()
            .selector
            .match_labels
            .as_ref()
            .unwrap()["pod-template-hash"],
        hash
    );
    world.settle();
    assert_eq!(
        world.condition("Progressing").message.as_deref(),
        Some(&*format!(
            "ReplicaSet \"{name}\" has successfully progressed."
        ))
    );
    assert_eq!(world.condition("Available").status, "True");
    let status = world.deployment.status.clone().unwrap();
    assert_eq!(
        (
            status.available_replicas,
            status.observed_generation,
            status.terminating_replicas
        ),
        (Some(3), Some(1), Some(0))
    );
    assert_eq!(
        world.deployment.metadata.annotations.as_ref().unwrap()[REVISION],
        "1"
    );
    assert!(!world.step(), "a settled deployment asks for nothing");
}

#[test]
fn safety_a_rollout_keeps_within_surge_and_availability() {
    for (replicas, surge, unavailable) in [
        (10, json!("25%"), json!("25%")),
        (1, json!(1), json!(0)),
        (4, json!(0), json!(1)),
        (7, json!("100%"), json!("50%")),
        (3, json!("1%"), json!("1%")),
    ] {
        let mut world = World::new(replicas, rolling(surge.clone(), unavailable.clone()));
        world.settle();
        world.set_image("two");
        let (max_surge, max_unavailable) = {
            let as_value = |value: &serde_json::Value| {
                serde_json::from_value::<IntOrString>(value.clone()).unwrap()
            };
            (
                scaled(&as_value(&surge), replicas, true),
                scaled(&as_value(&unavailable), replicas, false),
            )
        };
        let max_unavailable = if max_surge == 0 && max_unavailable == 0 {
            1
        } else {
            max_unavailable
        };
        for _ in 0..100 {
            world.now += SignedDuration::from_secs(1);
            world.step();
            let total: i32 = world.sizes().values().sum();
            let available: i32 = world
                .replica_sets
                .values()
                .map(|o| {
                    o.spec.as_ref().unwrap().replicas.unwrap().min(
                        o.status
                            .as_ref()
                            .and_then(|s| s.available_replicas)
                            .unwrap_or(0),
                    )
                })
                .sum();
            assert!(total <= replicas + max_surge, "{total} pods asked for");
            assert!(
                available >= replicas - max_unavailable,
                "{available} available"
            );
            world.obey();
        }
        assert_eq!(
            world.sizes(),
            sizes(&[("one", 0), ("two", replicas)]),
            "{surge} {unavailable}"
        );
        assert_eq!(
            world.condition("Progressing").reason.as_deref(),
            Some("NewReplicaSetAvailable")
        );
        assert_eq!(
            (world.revision("one"), world.revision("two")),
            ("1".into(), "2".into())
        );
    }
}

#[test]
fn rolling_back_takes_up_the_old_replica_set_under_a_new_revision() {
    let mut world = World::new(2, rolling(json!(1), json!(0)));
    world.settle();
    world.set_image("two");
    world.settle();
    world.set_image("one");
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("one", 2), ("two", 0)]));
    assert_eq!(
        (world.revision("one"), world.revision("two")),
        ("3".into(), "2".into())
    );
    assert_eq!(
        world.of_image("one").metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision-history"],
        "1"
    );
    assert_eq!(
        world.deployment.metadata.annotations.as_ref().unwrap()[REVISION],
        "3"
    );
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut world = World::new(1, rolling(json!(1), json!(0)));
    world.change(|spec| spec.revision_history_limit = Some(1));
    for image in ["two", "three", "four"] {
        world.settle();
        world.set_image(image);
    }
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("three", 0), ("four", 1)]));
}

#[test]
fn a_stuck_rollout_reports_its_deadline_and_keeps_the_old_pods() {
    let mut world = World::new(4, rolling(json!(1), json!(1)));
    world.settle();
    world.broken.push("two".into());
    world.set_image("two");
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("one", 3), ("two", 2)]));
    let waits = world.reconcile().requeue_after.unwrap();
    assert!(
        waits > SignedDuration::from_secs(500) && waits < SignedDuration::from_secs(602),
        "{waits:?}"
    );
    world.now += SignedDuration::from_secs(700);
    world.step();
    let condition = world.condition("Progressing");
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_deref()),
        ("False", Some("ProgressDeadlineExceeded"))
    );
    assert!(
        condition
            .message
            .as_ref()
            .unwrap()
            .ends_with("has timed out progressing.")
    );
    // A third template supersedes the stuck one.
    world.set_image("three");
    world.settle();
    assert_eq!(
        world.sizes(),
        sizes(&[("one", 0), ("two", 0), ("three", 4)])
    );
    assert_eq!(world.condition("Progressing").status, "True");
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new(2, rolling(json!(1), json!(0)));
    world.settle();
    world.change(|spec| spec.paused = Some(true));
    world.set_image("two");
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("one", 2)]));
    assert_eq!(
        world.condition("Progressing").reason.as_deref(),
        Some("DeploymentPaused")
    );
    world.change(|spec| spec.replicas = Some(5));
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("one", 5)]));
    world.change(|spec| spec.paused = None);
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("one", 0), ("two", 5)]));
}

#[test]
fn scaling_during_a_rollout_is_in_proportion() {
    let mut world = World::new(10, rolling(json!(3), json!(2)));
    world.settle();
    world.broken.push("two".into());
    world.set_image("two");
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("one", 8), ("two", 5)]));
    world.change(|spec| spec.replicas = Some(15));
    world.step();
    // Upstream's documented example: 18 in all, 11 and 7.
    assert_eq!(world.sizes(), sizes(&[("one", 11), ("two", 7)]));
    world.change(|spec| spec.replicas = Some(0));
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("one", 0), ("two", 0)]));
}

#[test]
fn recreate_takes_the_old_down_first() {
    let mut world = World::new(2, json!({"type": "Recreate"}));
    world.settle();
    world.set_image("two");
    world.step();
    assert_eq!(world.sizes(), sizes(&[("one", 0)]));
    // While a pod of the old one still runs, the new one waits.
    let old = world.of_image("one").metadata.clone();
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": old.name, "uid": old.uid, "controller": true}]}, "status": {"phase": "Running"}}))
    .unwrap();
    let observed = Observed {
        deployment: &world.deployment,
        replica_sets: world.replica_sets.values().collect(),
        pods: vec![&pod],
    };
    assert!(
        !reconcile(&observed, world.now)
            .actions
            .iter()
            .any(|action| matches!(action, Action::Create(_)))
    );
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("one", 0), ("two", 2)]));
}

#[test]
fn a_hash_collision_gives_another_name() {
    let world = World::new(1, rolling(json!(1), json!(0)));
    let template = &world.deployment.spec.as_ref().unwrap().template;
    let foreign = ReplicaSet::default();
    let status = creation_conflict(&world.deployment, &foreign).unwrap();
    assert_eq!(status.collision_count, Some(1));
    assert_ne!(
        template_hash(template, None),
        template_hash(template, Some(1))
    );
    let mut own = World::new(1, rolling(json!(1), json!(0)));
    own.step();
    assert_eq!(
        creation_conflict(&own.deployment, own.of_image("one")),
        None
    );
    let failed = creation_failed(&world.deployment, "web-x", "quota", START);
    assert_eq!(
        failed.status.unwrap().conditions.unwrap()[0]
            .reason
            .as_deref(),
        Some("ReplicaSetCreateError")
    );
}

#[test]
fn a_selector_of_everything_is_refused() {
    let mut world = World::new(1, rolling(json!(1), json!(0)));
    world.change(|spec| spec.selector.match_labels = None);
    world.step();
    assert!(
        world.replica_sets.is_empty()
            && world.events[0].starts_with("This deployment is selecting all pods.")
    );
}
