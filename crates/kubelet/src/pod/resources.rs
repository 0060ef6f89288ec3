//! QoS class, cgroups and limits of a pod and its containers. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use runtime::service::LinuxResources;
use volumes::amount;

pub use api::pod::{QosClass, qos_class_of as qos_class};

use super::spec::{ContainerSpec, PodSpecView};

/// The kernel's smallest share, upstream's for a container without a CPU request.
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;
const QUOTA_PERIOD_MICROS: i64 = 100_000;
const QUOTA_MIN_MICROS: i64 = 1_000;

fn positive(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> Option<i128> {
    list?
        .get(resource)
        .and_then(amount::millis)
        .filter(|millis| *millis > 0)
}

/// The pod's cgroup below the runtime's root.
pub fn cgroup_parent(pod: &Pod) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    match qos_class(pod) {
        QosClass::Guaranteed => format!("pod{uid}"),
        QosClass::Burstable => format!("burstable/pod{uid}"),
        QosClass::BestEffort => format!("besteffort/pod{uid}"),
    }
}

pub fn cpu_shares(millis: i64) -> u64 {
    (millis * 1024 / 1000).clamp(SHARES_MIN, SHARES_MAX) as u64
}

fn cpu_quota_micros(millis: i64) -> Option<i64> {
    (millis > 0).then(|| (millis * QUOTA_PERIOD_MICROS / 1000).max(QUOTA_MIN_MICROS))
}

fn milli_cpu(list: Option<&BTreeMap<String, Quantity>>) -> i64 {
    positive(list, "cpu")
        .and_then(|millis| i64::try_from(millis).ok())
        .unwrap_or(0)
}

fn bytes(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> i64 {
    list.and_then(|list| list.get(resource))
        .map_or(0, amount::units)
}

/// What of the node counts for a container's limits.
#[derive(Clone, Copy, Debug)]
pub struct NodeFacts<'a> {
    pub memory_bytes: i64,
    /// Its other resources; huge pages are `hugepages-2Mi`.
    pub others: &'a BTreeMap<String, i64>,
    /// Only the unified hierarchy (v2) is there.
    pub unified_cgroups: bool,
}

/// Limits of one container's cgroup.
pub fn of_container(
    view: &PodSpecView,
    spec: &ContainerSpec,
    node: NodeFacts<'_>,
    pod_pids_limit: Option<i64>,
) -> LinuxResources {
    let resources = spec.container.resources.as_ref();
    let (limits, requests) = (
        resources.and_then(|r| r.limits.as_ref()),
        resources.and_then(|r| r.requests.as_ref()),
    );
    let limit_millis = milli_cpu(limits);
    // A limit without a request is a request, also where nothing defaulted it.
    let request_millis = if requests.is_some_and(|requests| requests.contains_key("cpu")) {
        milli_cpu(requests)
    } else {
        limit_millis
    };
    let memory_limit = bytes(limits, "memory");
    LinuxResources {
        cpu_shares: Some(cpu_shares(request_millis)),
        cpu_quota_micros: cpu_quota_micros(limit_millis),
        cpu_period_micros: cpu_quota_micros(limit_millis).map(|_| QUOTA_PERIOD_MICROS as u64),
        memory_limit_bytes: (memory_limit > 0).then_some(memory_limit),
        pids_limit: pod_pids_limit,
        oom_score_adj: Some(oom_score_adj(view, &spec.container, node.memory_bytes)),
        hugepage_limits_bytes: hugepages(limits, node),
        unified: if node.unified_cgroups {
            of_v2()
        } else {
            BTreeMap::new()
        },
        ..LinuxResources::default()
    }
}

/// What upstream's kubelet sets on v2 beyond the limits: out of memory, a container ends as a whole
/// (`singleProcessOOMKill` is off there by default), and it does not swap (`NoSwap`).
fn of_v2() -> BTreeMap<String, String> {
    [("memory.oom.group", "1"), ("memory.swap.max", "0")]
        .map(|(file, value)| (file.to_owned(), value.to_owned()))
        .into()
}

/// By the kernel's name of the size; none of what the node has and the container does not ask for.
fn hugepages(
    limits: Option<&BTreeMap<String, Quantity>>,
    node: NodeFacts<'_>,
) -> BTreeMap<String, u64> {
    let size = |name: &str| Some(name.strip_prefix("hugepages-")?.replace('i', "B"));
    let mut out: BTreeMap<String, u64> = node
        .others
        .keys()
        .filter_map(|name| Some((size(name)?, 0)))
        .collect();
    let asked = limits.into_iter().flatten();
    out.extend(asked.filter_map(|(name, quantity)| {
        let bytes = u64::try_from(amount::units(quantity)).unwrap_or(0);
        Some((size(name)?, bytes))
    }));
    out
}

/// Limits of the pod's cgroup: what its containers sum up to, where every one of them is limited.
pub fn of_pod(pod: &Pod, pod_pids_limit: Option<i64>) -> LinuxResources {
    let Some(spec) = &pod.spec else {
        return LinuxResources::default();
    };
    let requests = requests(pod);
    let limits = limits(pod);
    let limited = |resource: &str| {
        spec.resources
            .as_ref()
            .is_some_and(|r| positive(r.limits.as_ref(), resource).is_some())
            || spec
                .init_containers
                .iter()
                .flatten()
                .chain(&spec.containers)
                .all(|container| {
                    positive(
                        container
                            .resources
                            .as_ref()
                            .and_then(|resources| resources.limits.as_ref()),
                        resource,
                    )
                    .is_some()
                })
    };
    let qos = qos_class(pod);
    let limit_millis = if limited("cpu") { limits.cpu_millis } else { 0 };
    let quota = cpu_quota_micros(limit_millis);
    LinuxResources {
        cpu_shares: Some(if qos == QosClass::BestEffort {
            SHARES_MIN as u64
        } else {
            cpu_shares(requests.cpu_millis.max(if requests.cpu_millis == 0 {
                limits.cpu_millis
            } else {
                0
            }))
        }),
        cpu_quota_micros: quota,
        cpu_period_micros: quota.map(|_| QUOTA_PERIOD_MICROS as u64),
        memory_limit_bytes: limited("memory")
            .then_some(limits.memory_bytes)
            .filter(|bytes| *bytes > 0),
        pids_limit: pod_pids_limit,
        ..LinuxResources::default()
    }
}

/// What a pod takes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    /// Other resources in whole units, by name.
    pub others: BTreeMap<String, i64>,
}

impl Totals {
    fn of(amounts: &api::pod::Amounts) -> Totals {
        let mut totals = Totals::default();
        for (name, amount) in amounts {
            match name.as_str() {
                "cpu" => totals.cpu_millis = amount.milli_value(),
                "memory" => totals.memory_bytes = amount.value(),
                _ => {
                    totals.others.insert(name.clone(), amount.value());
                }
            }
        }
        totals
    }

    pub fn add(&mut self, other: &Totals) {
        self.cpu_millis += other.cpu_millis;
        self.memory_bytes += other.memory_bytes;
        for (name, value) in &other.others {
            *self.others.entry(name.clone()).or_default() += value;
        }
    }
}

/// What the pod asks for as a whole.
pub fn requests(pod: &Pod) -> Totals {
    pod.spec.as_ref().map_or_else(Totals::default, |spec| {
        Totals::of(&api::pod::requests(spec))
    })
}

/// What the pod may use as a whole; what is not limited is 0.
pub fn limits(pod: &Pod) -> Totals {
    pod.spec
        .as_ref()
        .map_or_else(Totals::default, |spec| Totals::of(&api::pod::limits(spec)))
}

/// How willingly the kernel kills the container when memory runs out: less the more it requested.
pub fn oom_score_adj(view: &PodSpecView, container: &Container, node_memory_bytes: i64) -> i64 {
    let critical = view
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.priority)
        .is_some_and(|priority| priority >= 2_000_000_000);
    match qos_class(&view.pod) {
        _ if critical => -997,
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let requested = container
                .resources
                .as_ref()
                .map_or(0, |resources| bytes(resources.requests.as_ref(), "memory"));
            let adjust = 1000 - 1000 * i128::from(requested) / i128::from(node_memory_bytes.max(1));
            i64::try_from(adjust.clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn view(containers: Value, init: Value) -> PodSpecView {
        let pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": containers, "initContainers": init}})).unwrap();
        PodSpecView::new(Arc::new(pod))
    }

    fn container(resources: Value) -> Value {
        json!({"name": "c", "resources": resources})
    }

    #[test]
    fn qos_and_cgroup() {
        for (resources, class, cgroup) in [
            (json!({}), QosClass::BestEffort, "besteffort/podu"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
                QosClass::Guaranteed,
                "podu",
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
                QosClass::Burstable,
                "burstable/podu",
            ),
            (
                json!({"limits": {"cpu": "1"}}),
                QosClass::Burstable,
                "burstable/podu",
            ),
            (
                json!({"requests": {"ephemeral-storage": "1Gi"}}),
                QosClass::BestEffort,
                "besteffort/podu",
            ),
        ] {
            let view = view(json!([container(resources.clone())]), json!([]));
            assert_eq!(qos_class(&view.pod), class, "{resources}");
            assert_eq!(cgroup_parent(&view.pod), cgroup);
        }
    }

    #[test]
    fn container_limits() {
        let view = view(
            json!([container(
                json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"}})
            )]),
            json!([]),
        );
        let others = [("hugepages-2Mi".to_owned(), 64 << 20)].into();
        let mut node = NodeFacts {
            memory_bytes: 1 << 30,
            others: &others,
            unified_cgroups: false,
        };
        let limits = of_container(&view, &view.containers[0], node, Some(100));
        assert!(limits.unified.is_empty());
        assert_eq!(limits.hugepage_limits_bytes["2MB"], 0);
        assert_eq!(limits.cpu_shares, Some(256));
        assert_eq!(limits.cpu_quota_micros, Some(50_000));
        assert_eq!(limits.memory_limit_bytes, Some(64 << 20));
        assert_eq!(limits.oom_score_adj, Some(1000 - 31));
        assert_eq!(limits.pids_limit, Some(100));
        let none = self::view(json!([{"name": "c"}]), json!([]));
        node.unified_cgroups = true;
        let limits = of_container(&none, &none.containers[0], node, None);
        assert_eq!(limits.unified["memory.oom.group"], "1");
        assert_eq!(limits.unified["memory.swap.max"], "0");
        assert_eq!(
            (
                limits.cpu_shares,
                limits.cpu_quota_micros,
                limits.memory_limit_bytes,
                limits.oom_score_adj
            ),
            (Some(2), None, None, Some(1000))
        );
    }

    #[test]
    fn pod_totals() {
        let requests = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "10Mi"}});
        let view = view(
            json!([container(requests("1")), {"name": "d", "resources": requests("500m")}]),
            json!([
                {"name": "s", "restartPolicy": "Always", "resources": requests("200m")},
                {"name": "i", "resources": requests("3")}]),
        );
        let totals = super::requests(&view.pod);
        assert_eq!((totals.cpu_millis, totals.memory_bytes), (3200, 30 << 20));
        assert_eq!(of_pod(&view.pod, None).memory_limit_bytes, None);
    }
}
