//! Node lifecycle: nodes that fall silent become Unknown, conditions become taints, taints evict pods.
//!
//! [`health`] judges a node by when it was last heard of (a renewed lease or a posted status, by the
//! watcher's own clock); [`taints`] says what taints its conditions call for; [`eviction`] says when a pod
//! must leave a tainted node.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::time::whole_seconds;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// How long a node may be silent, as upstream's --node-monitor-grace-period.
pub const MONITOR_GRACE_PERIOD: SignedDuration = SignedDuration::from_secs(50);
/// How long a new node may take for its first word, as upstream's --node-startup-grace-period.
pub const STARTUP_GRACE_PERIOD: SignedDuration = SignedDuration::from_secs(60);
/// Conditions that only the kubelet can know.
const KUBELET_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Condition, its value, and the NoSchedule taint that it calls for.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    (
        "MemoryPressure",
        "True",
        "node.kubernetes.io/memory-pressure",
    ),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// A node's state as far as its silence tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Health {
    /// Heard of lately; it is to be looked at again then unless it is heard of before.
    Fine { look_again: SignedDuration },
    /// Silent for too long: the conditions to write, `None` if they are written already.
    Silent {
        conditions: Option<Vec<NodeCondition>>,
    },
}

pub fn ready_status(node: &Node) -> &str {
    condition(node, "Ready").map_or("", |condition| condition.status.as_str())
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

/// `heard`: when the watcher last saw the node renew its lease or post its status.
pub fn health(node: &Node, heard: Timestamp, now: Timestamp) -> Health {
    let posted = condition(node, "Ready").is_some();
    let grace = if posted {
        MONITOR_GRACE_PERIOD
    } else {
        STARTUP_GRACE_PERIOD
    };
    let silence = now.duration_since(heard);
    if silence <= grace {
        return Health::Fine {
            look_again: grace - silence + SignedDuration::from_millis(100),
        };
    }
    let now = Time(whole_seconds(now));
    let mut conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let mut changed = false;
    for type_ in KUBELET_CONDITIONS {
        match conditions
            .iter_mut()
            .find(|condition| condition.type_ == type_)
        {
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(now.clone());
                changed = true;
            }
            Some(_) => {}
            None => {
                changed = true;
                conditions.push(NodeCondition {
                    type_: type_.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(now.clone()),
                });
            }
        }
    }
    Health::Silent {
        conditions: changed.then_some(conditions),
    }
}

/// The node's taints as its conditions call for, if they differ from what it has. Taints that are not ours stay.
pub fn taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let spec = node.spec.as_ref();
    let current = spec
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let holds = |type_: &str, status: &str| {
        condition(node, type_).is_some_and(|condition| condition.status == status)
    };
    let mut wanted: BTreeSet<(&str, &str)> = CONDITION_TAINTS
        .iter()
        .filter(|(type_, status, _)| holds(type_, status))
        .map(|(_, _, key)| (*key, "NoSchedule"))
        .collect();
    if spec.and_then(|spec| spec.unschedulable).unwrap_or(false) {
        wanted.insert((UNSCHEDULABLE, "NoSchedule"));
    }
    match ready_status(node) {
        "False" => wanted.insert((NOT_READY, "NoExecute")),
        "Unknown" => wanted.insert((UNREACHABLE, "NoExecute")),
        _ => false,
    };
    let ours = |taint: &Taint| match taint.effect.as_str() {
        "NoSchedule" => {
            taint.key == UNSCHEDULABLE
                || CONDITION_TAINTS.iter().any(|(_, _, key)| *key == taint.key)
        }
        "NoExecute" => taint.key == NOT_READY || taint.key == UNREACHABLE,
        _ => false,
    };
    let mut next: Vec<Taint> = current
        .iter()
        .filter(|taint| {
            !ours(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str()))
        })
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !next
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            next.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(Time(whole_seconds(now))),
            });
        }
    }
    (next != current).then_some(next)
}

/// When a pod must leave its node because of the node's NoExecute taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    Never,
    /// After this long from when the taints were seen; zero: now.
    After(SignedDuration),
}

pub fn eviction(pod: &Pod, taints: &[Taint]) -> Eviction {
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default();
    let mut shortest: Option<i64> = None;
    let mut tainted = false;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        tainted = true;
        let mut tolerating = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .peekable();
        if tolerating.peek().is_none() {
            return Eviction::After(SignedDuration::ZERO);
        }
        for seconds in tolerating.filter_map(|toleration| toleration.toleration_seconds) {
            shortest = Some(
                shortest
                    .map_or(seconds, |shortest| shortest.min(seconds))
                    .max(0),
            );
        }
    }
    match shortest {
        Some(seconds) if tainted => Eviction::After(SignedDuration::from_secs(seconds)),
        _ => Eviction::Never,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    let value = |value: &Option<String>| value.clone().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && if key.is_empty() {
            exists
        } else {
            key == taint.key && (exists || value(&toleration.value) == value(&taint.value))
        }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn node(ready: Option<&str>, taints: Value) -> Node {
        let conditions: Vec<Value> = ready
            .iter()
            .map(|status| json!({"type": "Ready", "status": status}))
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": conditions}})).unwrap()
    }

    #[test]
    fn silence_becomes_unknown_once() {
        let quiet = NOW - SignedDuration::from_secs(51);
        assert!(
            matches!(health(&node(Some("True"), json!([])), NOW - SignedDuration::from_secs(10), NOW), Health::Fine { look_again } if look_again.as_secs() == 40)
        );
        let Health::Silent {
            conditions: Some(conditions),
        } = health(&node(Some("True"), json!([])), quiet, NOW)
        else {
            panic!()
        };
        let ready = conditions
            .iter()
            .find(|condition| condition.type_ == "Ready")
            .unwrap();
        assert_eq!(
            (ready.status.as_str(), ready.message.as_deref()),
            ("Unknown", Some("Kubelet stopped posting node status."))
        );
        assert_eq!(conditions.len(), 4);
        let mut silent = node(None, json!([]));
        silent.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(
            health(&silent, quiet, NOW),
            Health::Silent { conditions: None }
        );
        // A node that never said a word gets longer.
        assert!(matches!(
            health(&node(None, json!([])), quiet, NOW),
            Health::Fine { .. }
        ));
    }

    #[test]
    fn conditions_become_taints_and_others_stay() {
        let keys = |taints: &[Taint]| {
            taints
                .iter()
                .map(|taint| format!("{}:{}", taint.key, taint.effect))
                .collect::<Vec<_>>()
        };
        let mine = json!([{"key": "mine", "effect": "NoExecute"}]);
        let taints_of = |node: &Node| taints(node, NOW);
        assert_eq!(taints_of(&node(Some("True"), mine.clone())), None);
        let unready = taints_of(&node(Some("False"), mine.clone())).unwrap();
        assert_eq!(
            keys(&unready),
            [
                "mine:NoExecute",
                "node.kubernetes.io/not-ready:NoExecute",
                "node.kubernetes.io/not-ready:NoSchedule"
            ]
        );
        // From unready to unreachable, and back to ready.
        let unreachable = taints_of(&node(
            Some("Unknown"),
            serde_json::to_value(&unready).unwrap(),
        ))
        .unwrap();
        assert_eq!(
            keys(&unreachable),
            [
                "mine:NoExecute",
                "node.kubernetes.io/unreachable:NoExecute",
                "node.kubernetes.io/unreachable:NoSchedule"
            ]
        );
        let ready = taints_of(&node(
            Some("True"),
            serde_json::to_value(&unreachable).unwrap(),
        ))
        .unwrap();
        assert_eq!(keys(&ready), ["mine:NoExecute"]);
        let mut cordoned = node(Some("True"), json!([]));
        cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
        assert_eq!(
            keys(&taints_of(&cordoned).unwrap()),
            ["node.kubernetes.io/unschedulable:NoSchedule"]
        );
    }

    #[test]
    fn evictions() {
        let check = |tolerations: Value, taints: Value, expect: Eviction| {
            let pod: Pod = serde_json::from_value(
                json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}}),
            )
            .unwrap();
            let taints: Vec<Taint> = serde_json::from_value(taints).unwrap();
            assert_eq!(eviction(&pod, &taints), expect);
        };
        let unreachable = json!([{"key": UNREACHABLE, "effect": "NoExecute"}]);
        let after = |seconds| Eviction::After(SignedDuration::from_secs(seconds));
        check(json!([]), unreachable.clone(), after(0));
        check(
            json!([]),
            json!([{"key": UNREACHABLE, "effect": "NoSchedule"}]),
            Eviction::Never,
        );
        check(
            json!([{"operator": "Exists"}]),
            unreachable.clone(),
            Eviction::Never,
        );
        check(
            json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]),
            unreachable.clone(),
            after(300),
        );
        check(
            json!([{"key": NOT_READY, "operator": "Exists", "tolerationSeconds": 300}]),
            unreachable,
            after(0),
        );
    }
}
