//! Properties of plans over seeded random clusters, judged by an independent checker.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::checker::State;
use super::*;

pub(super) struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(88_172_645_463_325_252 ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

fn disk_kind(dice: &mut Dice) -> &'static str {
    ["ssd", "hdd"][dice.roll(2) as usize]
}

fn random_node(dice: &mut Dice, index: u64) -> Value {
    let made = node(
        &format!("n{index}"),
        &format!("{}m", 250 * dice.roll(40)),
        &format!("{}Mi", 256 * dice.roll(40)),
    );
    let mut made = with(made, "metadata/labels/disk", json!(disk_kind(dice)));
    if !dice.one_in(6) {
        made["metadata"]["labels"]["zone"] = json!(format!("z{}", dice.roll(3)));
    }
    if dice.one_in(6) {
        let effect = ["NoSchedule", "PreferNoSchedule", "NoExecute"][dice.roll(3) as usize];
        made["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": effect}]);
    }
    if dice.one_in(12) {
        made["spec"]["unschedulable"] = json!(true);
    }
    made
}

fn random_pod(dice: &mut Dice, index: u64) -> Value {
    let made = pod(
        &format!("p{index}"),
        &format!("{}m", 250 * dice.roll(8)),
        &format!("{}Mi", 256 * dice.roll(8)),
    );
    let app = ["a", "b", "c"][dice.roll(3) as usize];
    let made = with(made, "metadata/labels/app", json!(app));
    let mut made = with(made, "spec/priority", json!(dice.roll(3)));
    if dice.one_in(5) {
        made["spec"]["nodeSelector"] = json!({"disk": disk_kind(dice)});
    }
    if dice.one_in(4) {
        made["spec"]["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
    }
    if dice.one_in(6) {
        made["spec"]["containers"][0]["ports"] =
            json!([{"containerPort": 80, "hostPort": 80 + dice.roll(2)}]);
    }
    if dice.one_in(3) {
        let key = ["zone", "kubernetes.io/hostname"][dice.roll(2) as usize];
        let other = ["a", "b", "c"][dice.roll(3) as usize];
        let kind = ["podAffinity", "podAntiAffinity"][dice.roll(2) as usize];
        let term = json!({"labelSelector": {"matchLabels": {"app": other}}, "topologyKey": key});
        let rule = if dice.one_in(2) {
            json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]})
        } else {
            json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1 + dice.roll(100), "podAffinityTerm": term}]})
        };
        made["spec"]["affinity"] = json!({});
        made["spec"]["affinity"][kind] = rule;
    }
    // Everybody with this label has the constraint: only then is it a property of the final state.
    if app == "c" {
        let constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "c"}}});
        made["spec"]["topologySpreadConstraints"] = json!([constraint]);
        // Nodes that a selector leaves out do not count, differently for each pod.
        made["spec"].as_object_mut().unwrap().remove("nodeSelector");
    }
    made
}

/// Plans, reserves, and judges; answers where each pod is.
fn run_and_judge(
    view: &mut Snapshot,
    nodes: &[Value],
    held: &[(Value, String)],
    pods: &[Value],
    seed: u64,
) -> BTreeMap<String, String> {
    let waiting = pending(view, pods);
    let made = plan(view, &waiting, &Policy::default());
    assert_eq!(made.decisions.len(), pods.len(), "seed {seed}");
    assert!(made.value <= made.upper_bound, "seed {seed}");
    let again = plan(view, &waiting, &Policy::default());
    assert_eq!(
        made.decisions, again.decisions,
        "seed {seed}: planning twice differs"
    );
    reserve(view, &made);
    let places: BTreeMap<String, String> = made
        .placements()
        .map(|(pod, node)| (pod.uid.to_string(), node.to_string()))
        .collect();
    let fresh = pods.iter().filter_map(|pod| {
        let node = places.get(pod["metadata"]["uid"].as_str()?)?;
        Some((pod, node.clone()))
    });
    let state = State {
        nodes,
        earlier: held
            .iter()
            .filter_map(|(pod, _)| Some(pod["metadata"]["uid"].as_str()?.to_string()))
            .collect(),
        placed: held
            .iter()
            .map(|(pod, node)| (pod, node.clone()))
            .chain(fresh)
            .collect(),
    };
    assert_eq!(state.complaints(), Vec::<String>::new(), "seed {seed}");
    let own: BTreeSet<String> = places.keys().cloned().collect();
    for (pod, decision) in &made.decisions {
        let Decision::Wait { .. } = decision else {
            continue;
        };
        let object = pods
            .iter()
            .find(|object| object["metadata"]["uid"] == *pod.uid)
            .unwrap();
        let plain = !pod.class.is_entangled() && pod.class.affinity.is_empty();
        // Others may forbid it a node too; the checker only counts resources.
        let forbidden = pods
            .iter()
            .chain(held.iter().map(|(pod, _)| pod))
            .any(|other| !other["spec"]["affinity"]["podAntiAffinity"].is_null());
        if plain && !forbidden {
            assert_eq!(
                state.would_fit_instead(object, &own),
                None,
                "seed {seed}: {} waits in vain",
                pod.name
            );
        }
        // And nobody waits whom some node would have as things are now.
        if !pod.class.minds_others() || !pod.class.is_entangled() {
            let verdicts = collect_availability(view, &pod.class, &Policy::default());
            let open = verdicts
                .iter()
                .find(|(_, verdict)| matches!(verdict, Verdict::Feasible { .. }));
            assert!(
                open.is_none(),
                "seed {seed}: {} waits while {open:?} would do",
                pod.name
            );
        }
    }
    places
}

#[test]
fn safety_every_required_rule_holds_and_no_node_is_overcommitted() {
    for seed in 0..150 {
        let mut dice = Dice::new(seed);
        let nodes: Vec<Value> = (0..1 + dice.roll(8))
            .map(|i| random_node(&mut dice, i))
            .collect();
        let pods: Vec<Value> = (0..1 + dice.roll(40))
            .map(|i| random_pod(&mut dice, i))
            .collect();
        let mut view = snapshot(&nodes);
        // In two batches, so that the second meets what the first has left.
        let (first, second) = pods.split_at(pods.len() / 2);
        let places = run_and_judge(&mut view, &nodes, &[], first, seed);
        let held: Vec<(Value, String)> = first
            .iter()
            .filter_map(|pod| {
                Some((
                    pod.clone(),
                    places.get(pod["metadata"]["uid"].as_str()?)?.clone(),
                ))
            })
            .collect();
        run_and_judge(&mut view, &nodes, &held, second, seed);
    }
}

/// The index that is kept up to date agrees with one that is built anew.
#[test]
fn safety_a_kept_view_is_what_a_new_one_would_be() {
    for seed in 0..25 {
        let mut dice = Dice::new(1000 + seed);
        let nodes: Vec<Value> = (0..2 + dice.roll(8))
            .map(|i| random_node(&mut dice, i))
            .collect();
        let mut view = snapshot(&nodes);
        let kinds: Vec<Value> = (0..6).map(|i| random_pod(&mut dice, i)).collect();
        for step in 0..40u64 {
            let mut object = kinds[dice.roll(6) as usize].clone();
            object["metadata"]["uid"] = json!(format!("step-{step}"));
            let waiting = pending(&mut view, &[object]);
            let demand = collect_demand(&view, &waiting);
            let made = match_pods(&mut view, &demand, &Policy::default());
            reserve(&mut view, &made);
            match dice.roll(8) {
                0 => {
                    view.forget_pod(&format!("step-{}", dice.roll(step + 1)));
                }
                1 => {
                    let index = dice.roll(nodes.len() as u64);
                    let changed: Node =
                        serde_json::from_value(random_node(&mut dice, index)).unwrap();
                    view.observe_node(&changed);
                }
                2 => view.forget_node(&format!("n{}", dice.roll(nodes.len() as u64))),
                _ => {}
            }
            for kind in &kinds {
                let class = view.classify(&serde_json::from_value(kind.clone()).unwrap());
                let kept = collect_availability(&mut view, &class, &Policy::default());
                view.views = crate::view::Views::default();
                let fresh = collect_availability(&mut view, &class, &Policy::default());
                assert_eq!(kept, fresh, "seed {seed}, step {step}");
            }
            // All of them again from what is kept, in another order.
            for kind in kinds.iter().rev() {
                let class = view.classify(&serde_json::from_value(kind.clone()).unwrap());
                collect_availability(&mut view, &class, &Policy::default());
            }
        }
    }
}

#[test]
fn safety_more_capacity_never_places_fewer() {
    for seed in 0..60 {
        let mut dice = Dice::new(2000 + seed);
        let mut nodes: Vec<Value> = (0..1 + dice.roll(6))
            .map(|i| random_node(&mut dice, i))
            .collect();
        let kind = pod(
            "p",
            &format!("{}m", 250 + 250 * dice.roll(8)),
            &format!("{}Mi", 256 * dice.roll(8)),
        );
        let pods: Vec<Value> = (0..1 + dice.roll(60))
            .map(|i| {
                let named = with(kind.clone(), "metadata/name", json!(format!("p{i}")));
                with(named, "metadata/uid", json!(format!("uid-{i}")))
            })
            .collect();
        let placed = |nodes: &[Value]| {
            let mut view = snapshot(nodes);
            let waiting = pending(&mut view, &pods);
            let made = plan(&mut view, &waiting, &Policy::default());
            // Only wishes may be left open, and they weigh next to nothing.
            assert!(made.gap() < 1e-3, "seed {seed}: {}", made.gap());
            made.placements().count()
        };
        let before = placed(&nodes);
        let index = dice.roll(nodes.len() as u64) as usize;
        nodes[index]["status"]["allocatable"]["cpu"] = json!("20");
        nodes[index]["status"]["allocatable"]["memory"] = json!("64Gi");
        assert!(placed(&nodes) >= before, "seed {seed}");
    }
}

#[test]
fn safety_planning_changes_nothing() {
    for seed in 0..40 {
        let mut dice = Dice::new(3000 + seed);
        let nodes: Vec<Value> = (0..1 + dice.roll(6))
            .map(|i| random_node(&mut dice, i))
            .collect();
        let mut view = snapshot(&nodes);
        let held: Vec<Value> = (0..dice.roll(12))
            .map(|i| random_pod(&mut dice, i))
            .collect();
        let first = pending(&mut view, &held);
        let made = plan(&mut view, &first, &Policy::default());
        reserve(&mut view, &made);
        let state = |view: &Snapshot| {
            let nodes: Vec<_> = view
                .nodes()
                .map(|(_, node)| {
                    let mut pods: Vec<_> = node
                        .pods
                        .iter()
                        .map(|pod| (pod.uid.clone(), pod.doomed))
                        .collect();
                    pods.sort();
                    let mut nominated: Vec<_> =
                        node.nominated.iter().map(|(uid, _)| uid.clone()).collect();
                    nominated.sort();
                    (
                        node.name.clone(),
                        node.used.iter().collect::<Vec<_>>(),
                        pods,
                        nominated,
                    )
                })
                .collect();
            nodes
        };
        let before = state(&view);
        let pods: Vec<Value> = (100..110 + dice.roll(20))
            .map(|i| {
                with(
                    random_pod(&mut dice, i),
                    "spec/priority",
                    json!(dice.roll(9)),
                )
            })
            .collect();
        let waiting = pending(&mut view, &pods);
        plan(&mut view, &waiting, &Policy::default());
        assert_eq!(before, state(&view), "seed {seed}");
    }
}

#[test]
fn bad_input_neither_panics_nor_overcommits() {
    let mut nodes: Vec<Value> = [
        "0",
        "-5",
        "99999999999999999999Ei",
        "1n",
        "",
        "9223372036854775807",
    ]
    .iter()
    .enumerate()
    .map(|(i, capacity)| node(&format!("n{i}"), capacity, capacity))
    .collect();
    // A thousand distinct resources.
    let mut many = node("many", "8", "8Gi");
    for index in 0..1000 {
        many["status"]["allocatable"][format!("example.com/r{index}")] = json!("2");
    }
    nodes.push(many);
    let mut view = snapshot(&nodes);
    let mut pods: Vec<Value> = [
        "9223372036854775807",
        "99999999999999999999Ei",
        "-1",
        "1e999",
        "x",
    ]
    .iter()
    .enumerate()
    .map(|(i, request)| pod(&format!("odd{i}"), request, request))
    .collect();
    for index in 0..1000 {
        let mut pod = pod(&format!("r{index}"), "1m", "1Mi");
        pod["spec"]["containers"][0]["resources"]["requests"][format!("example.com/r{index}")] =
            json!("2");
        pods.push(pod);
    }
    // Wants to be where it must not be.
    let term = json!([{"labelSelector": {"matchLabels": {"app": "torn"}}, "topologyKey": "kubernetes.io/hostname"}]);
    let torn = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}, "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}});
    pods.push(with(
        pod("torn", "1m", "1Mi"),
        "spec/affinity",
        torn.clone(),
    ));
    pods.push(with(pod("torn2", "1m", "1Mi"), "spec/affinity", torn));
    let waiting = pending(&mut view, &pods);
    let made = plan(&mut view, &waiting, &Policy::default());
    reserve(&mut view, &made);
    assert_not_overcommitted(&view);
    // Only some of the thousand: at most ten pods a node.
    assert!(made.placements().count() >= 10);
    // The same pods leave, and the books are even again.
    for pod in &pods {
        view.forget_pod(pod["metadata"]["uid"].as_str().unwrap());
    }
    assert_eq!(view.pod_count(), 0);
    for (_, node) in view.nodes() {
        assert_eq!(node.used.iter().count(), 0, "{}", node.name);
    }
    // A name given twice, and a node that goes while pods are on it.
    let twice = pending(
        &mut view,
        &[pod("twin", "1", "1Gi"), pod("twin", "1", "1Gi")],
    );
    let made = plan(&mut view, &twice, &Policy::default());
    reserve(&mut view, &made);
    assert_eq!(view.pod_count(), 1);
    view.forget_node("many");
    assert_eq!(view.pod_count(), 1);
    view.forget_pod("uid-twin");
    assert!(view.node("many").is_none());
}

/// Victims leave, and whoever they left for goes where it was promised; nobody of equal importance is ever a victim.
#[test]
fn liveness_victims_leave_and_the_nominated_go() {
    let mut preempted = 0;
    for seed in 0..60 {
        let mut dice = Dice::new(4000 + seed);
        let nodes: Vec<Value> = (0..2 + dice.roll(5))
            .map(|i| {
                let cpu = format!("{}", 1 + dice.roll(6));
                node(&format!("n{i}"), &cpu, "8Gi")
            })
            .collect();
        let mut view = snapshot(&nodes);
        let sized = |dice: &mut Dice, name: String, priority: u64| {
            let made = pod(&name, &format!("{}m", 250 + 250 * dice.roll(6)), "64Mi");
            with(made, "spec/priority", json!(priority))
        };
        let mut waiting: Vec<Value> = (0..30)
            .map(|i| sized(&mut dice, format!("low{i}"), i % 2))
            .collect();
        let mut held: BTreeMap<String, (Value, String)> = BTreeMap::new();
        let mut promised: BTreeMap<String, String> = BTreeMap::new();
        for cycle in 0..12 {
            if cycle == 1 {
                waiting.extend((0..8).map(|i| sized(&mut dice, format!("high{i}"), 5 + i % 2)));
            }
            let pods = pending(&mut view, &waiting);
            let made = plan(&mut view, &pods, &Policy::default());
            reserve(&mut view, &made);
            assert_not_overcommitted(&view);
            let placed: BTreeMap<String, String> = made
                .placements()
                .map(|(pod, node)| (pod.uid.to_string(), node.to_string()))
                .collect();
            for (uid, node) in std::mem::take(&mut promised) {
                assert_eq!(
                    placed.get(&uid),
                    Some(&node),
                    "seed {seed}: a promise was not kept"
                );
            }
            for (pod, decision) in &made.decisions {
                let Decision::Preempt { node, victims, .. } = decision else {
                    continue;
                };
                preempted += 1;
                promised.insert(pod.uid.to_string(), node.to_string());
                for victim in victims {
                    assert!(victim.priority < pod.class.priority, "seed {seed}");
                    let (gone, at) = held.remove(&*victim.uid).unwrap();
                    assert_eq!(at, **node, "seed {seed}");
                    assert_eq!(gone["metadata"]["name"], *victim.name);
                    view.forget_pod(&victim.uid);
                }
            }
            waiting.retain(|object| {
                let uid = object["metadata"]["uid"].as_str().unwrap();
                match placed.get(uid) {
                    Some(node) => {
                        held.insert(uid.to_string(), (object.clone(), node.clone()));
                        false
                    }
                    None => true,
                }
            });
        }
        let state = State {
            nodes: &nodes,
            placed: held
                .values()
                .map(|(pod, node)| (pod, node.clone()))
                .collect(),
            earlier: BTreeSet::new(),
        };
        assert_eq!(state.complaints(), Vec::<String>::new(), "seed {seed}");
        // In the end nobody waits for room that somebody less important has.
        let all: BTreeSet<String> = held.keys().cloned().collect();
        for object in &waiting {
            let instead = state.would_fit_instead(object, &all);
            assert_eq!(
                instead, None,
                "seed {seed}: {} waits",
                object["metadata"]["name"]
            );
        }
    }
    assert!(
        preempted > 50,
        "the clusters are too roomy to tell: {preempted}"
    );
}
