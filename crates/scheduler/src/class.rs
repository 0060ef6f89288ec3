//! What scheduling needs to know of a pod. Pods of the same class are interchangeable: one item with a multiplicity.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, Taint as ApiTaint};

use crate::resources::{self, Amounts, ResourceSpace};
use crate::selector::{Labels, NodeTerm, Operator, Selector};

/// Everything of a pod that a placement depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodClass {
    pub namespace: String,
    pub labels: Labels,
    pub priority: i32,
    pub never_preempts: bool,
    pub request: Amounts,
    pub demands_reported_bandwidth: bool,
    /// `spec.nodeName` of a pending pod, which names the only node that will do.
    pub node_name: Option<String>,
    pub node_selector: Labels,
    /// `None`: no required node affinity.
    pub required_terms: Option<Vec<NodeTerm>>,
    pub preferred_terms: Vec<(i32, NodeTerm)>,
    pub tolerations: Vec<Toleration>,
    pub host_ports: Vec<HostPort>,
    pub affinity: Vec<PodTerm>,
    pub anti_affinity: Vec<PodTerm>,
    /// Weight and term; anti-affinity has negative weights.
    pub preferred_affinity: Vec<(i32, PodTerm)>,
    pub spread: Vec<Spread>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Toleration {
    pub key: String,
    pub value: String,
    pub exists: bool,
    /// Empty: every effect.
    pub effect: String,
    /// `Gt` and `Lt` compare numbers (KEP-5471).
    pub comparison: Option<Operator>,
}

impl Toleration {
    pub fn tolerates(&self, taint: &Taint) -> bool {
        if !self.effect.is_empty() && self.effect != taint.effect {
            return false;
        }
        if self.key.is_empty() {
            return self.exists;
        }
        if self.key != taint.key {
            return false;
        }
        match &self.comparison {
            Some(Operator::Gt(bound)) => {
                taint.value.parse::<i64>().is_ok_and(|value| value > *bound)
            }
            Some(Operator::Lt(bound)) => {
                taint.value.parse::<i64>().is_ok_and(|value| value < *bound)
            }
            Some(_) => false,
            None => self.exists || self.value == taint.value,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

impl Taint {
    pub fn new(taint: &ApiTaint) -> Self {
        Taint {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
            effect: taint.effect.clone(),
        }
    }

    /// Does it keep pods out, rather than only making the node less welcome?
    pub fn forbids(&self) -> bool {
        self.effect == "NoSchedule" || self.effect == "NoExecute"
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// `0.0.0.0` stands for every address.
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == "0.0.0.0" || other.ip == "0.0.0.0")
    }
}

/// A pod affinity term.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodTerm {
    pub selector: Selector,
    pub namespaces: Vec<String>,
    pub namespace_selector: Selector,
    pub topology_key: String,
}

impl PodTerm {
    fn new(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> Self {
        let mut selector = Selector::new(term.label_selector.as_ref());
        for key in term.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                selector.require(key, Operator::In(vec![value.clone()]));
            }
        }
        for key in term.mismatch_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                selector.require(key, Operator::NotIn(vec![value.clone()]));
            }
        }
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        // Neither names nor a selector: the pod's own namespace.
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_string());
        }
        PodTerm {
            selector,
            namespaces,
            namespace_selector: Selector::new(term.namespace_selector.as_ref()),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Does the term speak of this pod? `namespace_labels` are those of the pod's namespace.
    pub fn matches(&self, pod: &PodClass, namespace_labels: &Labels) -> bool {
        (self.namespaces.contains(&pod.namespace)
            || self.namespace_selector.matches(namespace_labels))
            && self.selector.matches(&pod.labels)
    }
}

/// A topology spread constraint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spread {
    pub max_skew: i64,
    pub min_domains: i64,
    pub topology_key: String,
    pub selector: Selector,
    /// `DoNotSchedule`; else it only scores.
    pub hard: bool,
    pub honors_affinity: bool,
    pub honors_taints: bool,
}

impl PodClass {
    pub fn new(space: &mut ResourceSpace, pod: &Pod) -> Self {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let mut class = PodClass {
            request: resources::pod_request(space, pod),
            demands_reported_bandwidth: resources::demands_reported_bandwidth(pod),
            ..PodClass::default()
        };
        let Some(spec) = &pod.spec else {
            return PodClass {
                namespace,
                labels,
                ..class
            };
        };
        class.priority = spec.priority.unwrap_or(0);
        class.never_preempts = spec.preemption_policy.as_deref() == Some("Never");
        class.node_selector = spec.node_selector.clone().unwrap_or_default();
        class.tolerations = spec.tolerations.iter().flatten().map(toleration).collect();
        class.host_ports = host_ports(pod);
        if let Some(affinity) = &spec.affinity {
            if let Some(node) = &affinity.node_affinity {
                class.required_terms = node
                    .required_during_scheduling_ignored_during_execution
                    .as_ref()
                    .map(|s| s.node_selector_terms.iter().map(NodeTerm::new).collect());
                let preferred = node
                    .preferred_during_scheduling_ignored_during_execution
                    .iter()
                    .flatten();
                class.preferred_terms = preferred
                    .map(|p| (p.weight, NodeTerm::new(&p.preference)))
                    .collect();
            }
            let compile = |term: &PodAffinityTerm| PodTerm::new(term, &namespace, &labels);
            if let Some(pods) = &affinity.pod_affinity {
                class.affinity = pods
                    .required_during_scheduling_ignored_during_execution
                    .iter()
                    .flatten()
                    .map(compile)
                    .collect();
                let preferred = pods
                    .preferred_during_scheduling_ignored_during_execution
                    .iter()
                    .flatten();
                class
                    .preferred_affinity
                    .extend(preferred.map(|p| (p.weight, compile(&p.pod_affinity_term))));
            }
            if let Some(pods) = &affinity.pod_anti_affinity {
                class.anti_affinity = pods
                    .required_during_scheduling_ignored_during_execution
                    .iter()
                    .flatten()
                    .map(compile)
                    .collect();
                let preferred = pods
                    .preferred_during_scheduling_ignored_during_execution
                    .iter()
                    .flatten();
                class.preferred_affinity.extend(
                    preferred.map(|p| (p.weight.saturating_neg(), compile(&p.pod_affinity_term))),
                );
            }
        }
        for constraint in spec.topology_spread_constraints.iter().flatten() {
            let mut selector = Selector::new(constraint.label_selector.as_ref());
            for key in constraint.match_label_keys.iter().flatten() {
                if let Some(value) = labels.get(key) {
                    selector.require(key, Operator::In(vec![value.clone()]));
                }
            }
            class.spread.push(Spread {
                max_skew: i64::from(constraint.max_skew),
                min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
                topology_key: constraint.topology_key.clone(),
                selector,
                hard: constraint.when_unsatisfiable == "DoNotSchedule",
                honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
                honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            });
        }
        PodClass {
            namespace,
            labels,
            ..class
        }
    }

    /// May its place depend on where other pods of the same batch go (other than by resources)?
    pub fn is_entangled(&self) -> bool {
        !self.host_ports.is_empty()
            || !self.affinity.is_empty()
            || !self.anti_affinity.is_empty()
            || !self.preferred_affinity.is_empty()
            || !self.spread.is_empty()
    }
}

fn toleration(toleration: &k8s_openapi::api::core::v1::Toleration) -> Toleration {
    let value = toleration.value.clone().unwrap_or_default();
    let operator = toleration.operator.as_deref().unwrap_or("Equal");
    let number = || value.parse::<i64>().ok();
    Toleration {
        key: toleration.key.clone().unwrap_or_default(),
        exists: operator == "Exists",
        effect: toleration.effect.clone().unwrap_or_default(),
        comparison: match operator {
            "Gt" => Some(number().map_or(Operator::Never, Operator::Gt)),
            "Lt" => Some(number().map_or(Operator::Never, Operator::Lt)),
            _ => None,
        },
        value,
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    // Init containers hold their ports only while they run, unless they are restartable.
    let restartable = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(restartable)
        .flat_map(|container| container.ports.iter().flatten());
    let mut host_ports: Vec<HostPort> = ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            Some(HostPort {
                ip: port
                    .host_ip
                    .clone()
                    .filter(|ip| !ip.is_empty() && ip != "::")
                    .unwrap_or_else(|| "0.0.0.0".into()),
                protocol: port
                    .protocol
                    .clone()
                    .filter(|protocol| !protocol.is_empty())
                    .unwrap_or_else(|| "TCP".into()),
                port: number,
            })
        })
        .collect();
    host_ports.dedup();
    host_ports
}

/// Interns classes, so that equal pods share one allocation and are recognised by its address.
#[derive(Debug, Default)]
pub struct Classes {
    by_hash: std::collections::HashMap<u64, Vec<std::sync::Weak<PodClass>>>,
    interned_since_sweep: usize,
}

impl Classes {
    pub fn intern(&mut self, class: PodClass) -> Arc<PodClass> {
        let mut hasher = DefaultHasher::new();
        class.hash(&mut hasher);
        self.interned_since_sweep += 1;
        if self.interned_since_sweep > 4096 {
            // Classes that no pod has any more are let go.
            self.interned_since_sweep = 0;
            self.by_hash.retain(|_, known| {
                known.retain(|class| class.strong_count() > 0);
                !known.is_empty()
            });
        }
        let known = self.by_hash.entry(hasher.finish()).or_default();
        if let Some(same) = known
            .iter()
            .filter_map(std::sync::Weak::upgrade)
            .find(|known| **known == class)
        {
            return same;
        }
        let class = Arc::new(class);
        known.push(Arc::downgrade(&class));
        class
    }
}
