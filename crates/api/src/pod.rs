//! Facts about pods that the scheduler, the kubelet and the controllers share.
//!
//! Resources follow KEP-753 (restartable init containers) and KEP-2837 (pod-level resources):
//! a pod needs what its containers need together, or what the most demanding moment of its
//! initialisation needs, whichever is more, plus its overhead; pod-level numbers replace sums.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::kinds::resources::{amount, is_pod_level};
use crate::quantity::Quantity;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// How a pod is treated when a node runs out of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QosClass {
    BestEffort,
    Burstable,
    Guaranteed,
}

impl QosClass {
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::BestEffort => "BestEffort",
            QosClass::Burstable => "Burstable",
            QosClass::Guaranteed => "Guaranteed",
        }
    }
}

/// What the scheduler has to reserve for a pod.
pub fn requests(spec: &PodSpec) -> Amounts {
    let mut amounts = aggregate_container_requests(spec);
    let pod_level = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref());
    for (resource, text) in pod_level.into_iter().flatten() {
        if is_pod_level(resource) {
            amounts.insert(resource.clone(), amount(text));
        }
    }
    add_texts(&mut amounts, spec.overhead.as_ref());
    amounts
}

/// What a pod may use at most; a resource that is not limited is absent.
pub fn limits(spec: &PodSpec) -> Amounts {
    let mut amounts = aggregate_container_limits(spec);
    let pod_level = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.limits.as_ref());
    for (resource, text) in pod_level.into_iter().flatten() {
        if is_pod_level(resource) {
            amounts.insert(resource.clone(), amount(text));
        }
    }
    for (resource, text) in spec.overhead.iter().flatten() {
        if let Some(limit) = amounts.get_mut(resource).filter(|limit| !limit.is_zero()) {
            *limit = limit.add(&amount(text));
        }
    }
    amounts
}

/// Requests of the containers alone, without pod-level numbers and overhead.
pub fn aggregate_container_requests(spec: &PodSpec) -> Amounts {
    aggregate(spec, |container| {
        container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref())
    })
}

/// Limits of the containers alone, without pod-level numbers and overhead.
pub fn aggregate_container_limits(spec: &PodSpec) -> Amounts {
    aggregate(spec, |container| {
        container
            .resources
            .as_ref()
            .and_then(|resources| resources.limits.as_ref())
    })
}

fn aggregate<'a>(
    spec: &'a PodSpec,
    list: impl Fn(&'a Container) -> Option<&'a BTreeMap<String, Text>>,
) -> Amounts {
    let mut running = Amounts::new();
    for container in &spec.containers {
        add_texts(&mut running, list(container));
    }
    // Init containers start one by one; restartable ones stay and add up.
    let mut restartable = Amounts::new();
    let mut starting = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        if is_restartable_init(container) {
            add_texts(&mut running, list(container));
            add_texts(&mut restartable, list(container));
            raise(&mut starting, &restartable);
        } else {
            let mut moment = restartable.clone();
            add_texts(&mut moment, list(container));
            raise(&mut starting, &moment);
        }
    }
    raise(&mut running, &starting);
    running
}

fn add_texts(amounts: &mut Amounts, list: Option<&BTreeMap<String, Text>>) {
    for (resource, text) in list.into_iter().flatten() {
        match amounts.get_mut(resource) {
            Some(sum) => *sum = sum.add(&amount(text)),
            None => {
                amounts.insert(resource.clone(), amount(text));
            }
        }
    }
}

fn raise(amounts: &mut Amounts, floor: &Amounts) {
    for (resource, floor) in floor {
        match amounts.get_mut(resource) {
            Some(amount) => *amount = (*amount).max(*floor),
            None => {
                amounts.insert(resource.clone(), *floor);
            }
        }
    }
}

/// An init container that runs beside the others (a sidecar).
pub fn is_restartable_init(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The QoS class that the spec implies (CPU and memory only).
pub fn qos_class(spec: &PodSpec) -> QosClass {
    let relevant = |list: Option<&BTreeMap<String, Text>>| -> Amounts {
        let list = list.into_iter().flatten();
        list.filter(|(resource, _)| matches!(resource.as_str(), "cpu" | "memory"))
            .map(|(resource, text)| (resource.clone(), amount(text)))
            .filter(|(_, amount)| amount.is_positive())
            .collect()
    };
    if let Some(resources) = &spec.resources {
        let (requests, limits) = (
            relevant(resources.requests.as_ref()),
            relevant(resources.limits.as_ref()),
        );
        let all_limited =
            limits.len() == 2 || resources.limits.as_ref().is_none_or(BTreeMap::is_empty);
        return class_of(&requests, &limits, all_limited);
    }
    let (mut requests, mut limits, mut all_limited) = (Amounts::new(), Amounts::new(), true);
    for container in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        let resources = container.resources.as_ref();
        let sum = |sums: &mut Amounts, amounts: &Amounts| {
            for (resource, amount) in amounts {
                let sum = sums.entry(resource.clone()).or_insert(Quantity::ZERO);
                *sum = sum.add(amount);
            }
        };
        sum(
            &mut requests,
            &relevant(resources.and_then(|resources| resources.requests.as_ref())),
        );
        let container_limits = relevant(resources.and_then(|resources| resources.limits.as_ref()));
        sum(&mut limits, &container_limits);
        all_limited &= container_limits.len() == 2;
    }
    class_of(&requests, &limits, all_limited)
}

fn class_of(requests: &Amounts, limits: &Amounts, all_limited: bool) -> QosClass {
    if requests.is_empty() && limits.is_empty() {
        return QosClass::BestEffort;
    }
    let equal = requests
        .iter()
        .all(|(resource, request)| limits.get(resource) == Some(request));
    if all_limited && equal && requests.len() == limits.len() {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

/// The QoS class in the status, else the one that the spec implies.
pub fn qos_class_of(pod: &Pod) -> QosClass {
    match pod
        .status
        .as_ref()
        .and_then(|status| status.qos_class.as_deref())
    {
        Some("Guaranteed") => QosClass::Guaranteed,
        Some("Burstable") => QosClass::Burstable,
        Some("BestEffort") => QosClass::BestEffort,
        _ => pod.spec.as_ref().map_or(QosClass::BestEffort, qos_class),
    }
}

pub fn condition<'a>(status: &'a PodStatus, type_: &str) -> Option<&'a PodCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

/// Whether the condition `Ready` is `True`.
pub fn is_ready(pod: &Pod) -> bool {
    let ready = pod
        .status
        .as_ref()
        .and_then(|status| condition(status, "Ready"));
    ready.is_some_and(|condition| condition.status == "True")
}

/// Ready for at least `min_ready_seconds` at `now_seconds` (Unix time).
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now_seconds: i64) -> bool {
    let Some(ready) = pod
        .status
        .as_ref()
        .and_then(|status| condition(status, "Ready"))
        .filter(|ready| ready.status == "True")
    else {
        return false;
    };
    min_ready_seconds == 0
        || ready
            .last_transition_time
            .as_ref()
            .is_some_and(|time| time.0.as_second() + i64::from(min_ready_seconds) <= now_seconds)
}

/// Ended for good: phase `Succeeded` or `Failed`.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(
        pod.status
            .as_ref()
            .and_then(|status| status.phase.as_deref()),
        Some("Succeeded" | "Failed")
    )
}

/// Neither ended nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Sets a condition; the transition time moves only when its status does. Answers whether anything changed.
pub fn set_condition(status: &mut PodStatus, mut new: PodCondition, now: &Time) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    let Some(old) = conditions
        .iter_mut()
        .find(|condition| condition.type_ == new.type_)
    else {
        new.last_transition_time = Some(now.clone());
        conditions.push(new);
        return true;
    };
    new.last_transition_time = if old.status == new.status {
        old.last_transition_time.clone()
    } else {
        Some(now.clone())
    };
    let changed = *old != new;
    *old = new;
    changed
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn texts(amounts: &Amounts) -> Vec<String> {
        amounts
            .iter()
            .map(|(resource, amount)| format!("{resource}={amount}"))
            .collect()
    }

    fn container(cpu: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}})
    }

    fn sidecar(cpu: &str) -> serde_json::Value {
        let mut container = container(cpu);
        container["restartPolicy"] = json!("Always");
        container
    }

    #[test]
    fn requests_by_the_keps() {
        let check = |value: serde_json::Value, expect: &[&str]| {
            assert_eq!(texts(&requests(&spec(value))), expect)
        };
        check(
            json!({"containers": [container("1"), container("500m")]}),
            &["cpu=1500m"],
        );
        check(
            json!({"containers": [container("1")], "initContainers": [container("3"), container("2")]}),
            &["cpu=3"],
        );
        check(
            json!({"containers": [container("1")], "initContainers": [sidecar("1"), container("3")]}),
            &["cpu=4"],
        );
        check(
            json!({"containers": [container("1")], "initContainers": [container("1"), sidecar("2")]}),
            &["cpu=3"],
        );
        check(
            json!({"containers": [container("1")], "overhead": {"cpu": "100m", "memory": "1Mi"}}),
            &["cpu=1100m", "memory=1Mi"],
        );
        check(
            json!({"containers": [container("1")], "resources": {"requests": {"cpu": "5"}}}),
            &["cpu=5"],
        );
    }

    #[test]
    fn limits_take_overhead_only_where_limited() {
        let spec = spec(
            json!({"containers": [container("1")], "overhead": {"cpu": "100m", "memory": "1Mi"}}),
        );
        assert_eq!(texts(&limits(&spec)), ["cpu=1100m"]);
    }

    #[test]
    fn qos() {
        let check = |value: serde_json::Value, expect: QosClass| {
            assert_eq!(qos_class(&spec(value)), expect)
        };
        let full = json!({"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1024Mi"}}});
        check(json!({"containers": [{"name": "c"}]}), QosClass::BestEffort);
        check(
            json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "0"}}}]}),
            QosClass::BestEffort,
        );
        check(json!({"containers": [container("1")]}), QosClass::Burstable);
        check(json!({"containers": [full]}), QosClass::Guaranteed);
        check(
            json!({"containers": [full, {"name": "d"}]}),
            QosClass::Burstable,
        );
        check(
            json!({"containers": [full], "initContainers": [container("1")]}),
            QosClass::Burstable,
        );
        check(
            json!({"containers": [{"name": "c"}], "resources": {"limits": {"cpu": "1", "memory": "1"}, "requests": {"cpu": "1", "memory": "1"}}}),
            QosClass::Guaranteed,
        );
    }
}
