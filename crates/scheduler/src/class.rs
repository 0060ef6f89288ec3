//! What scheduling needs to know of a pod. Pods of the same class are interchangeable: one item with a multiplicity.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Pod, PodAffinityTerm, Taint as ApiTaint, TopologySpreadConstraint,
};

use crate::resources::{self, Amounts, CPU, MEMORY, ResourceSpace};
use crate::selector::{Labels, NodeTerm, Operator, Selector};

/// Everything of a pod that a placement depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodClass {
    /// `spec.schedulerName`, which names the profile.
    pub scheduler_name: String,
    pub namespace: String,
    pub labels: Labels,
    pub priority: i32,
    pub never_preempts: bool,
    pub request: Amounts,
    /// CPU and memory as scores count them: a pod that asks for nothing still uses something.
    pub scored_request: [i64; 2],
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
    /// What default spread constraints count: the pod's services and owner. `None`: they do not apply.
    pub default_selector: Option<Selector>,
    /// Images of all containers, as nodes report them.
    pub images: Vec<String>,
    /// Names of the PersistentVolumeClaims it mounts, in its namespace.
    pub claims: Vec<Claimed>,
    /// Disks named in the pod itself, which may be attached only once.
    pub disks: Vec<Disk>,
    /// The gang it belongs to.
    pub group: Option<GroupKey>,
    /// Asks for devices by ResourceClaim, which this scheduler does not allocate.
    pub claims_devices: bool,
}

/// A claim that a pod mounts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claimed {
    pub name: String,
    /// Made for the pod by the ephemeral volume controller.
    pub ephemeral: bool,
}

/// A disk in a pod's own volume list. Two pods may share it on a node only if both read it, where reading together is possible at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    pub kind: DiskKind,
    pub id: String,
    pub read_only: bool,
    /// Ceph monitors: two RBD volumes are the same if they share one.
    pub monitors: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskKind {
    GcePersistentDisk,
    AwsElasticBlockStore,
    Iscsi,
    Rbd,
}

impl Disk {
    pub fn conflicts(&self, other: &Disk) -> bool {
        let same = self.kind == other.kind
            && self.id == other.id
            && (self.kind != DiskKind::Rbd
                || self.monitors.iter().any(|m| other.monitors.contains(m)));
        let shared =
            self.kind != DiskKind::AwsElasticBlockStore && self.read_only && other.read_only;
        same && !shared
    }
}

/// Which pod-group convention a gang follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupApi {
    /// `spec.schedulingGroup` and `scheduling.k8s.io` PodGroups (KEP-4671).
    Kubernetes,
    /// The label `scheduling.x-k8s.io/pod-group` and `scheduling.x-k8s.io` PodGroups.
    Label,
}

/// Label of the `scheduling.x-k8s.io` convention.
pub const POD_GROUP_LABEL: &str = "scheduling.x-k8s.io/pod-group";

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    pub api: GroupApi,
    pub namespace: String,
    pub name: String,
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

impl Spread {
    /// `labels` are those of the pod, for `matchLabelKeys`.
    pub fn new(constraint: &TopologySpreadConstraint, labels: &Labels) -> Self {
        let mut selector = Selector::new(constraint.label_selector.as_ref());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                selector.require(key, Operator::In(vec![value.clone()]));
            }
        }
        Spread {
            max_skew: i64::from(constraint.max_skew),
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            topology_key: constraint.topology_key.clone(),
            selector,
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
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
        class.scored_request = [
            Some(class.request.amount(CPU))
                .filter(|amount| *amount > 0)
                .unwrap_or(100),
            Some(class.request.amount(MEMORY))
                .filter(|amount| *amount > 0)
                .unwrap_or(200 << 20),
        ];
        class.scheduler_name = spec
            .scheduler_name
            .clone()
            .unwrap_or_else(|| crate::profile::DEFAULT_SCHEDULER.into());
        class.images = images(pod);
        class.claims = claims(pod);
        class.disks = disks(pod);
        class.group = group(pod);
        class.claims_devices = spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty());
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
        let constraints = spec.topology_spread_constraints.iter().flatten();
        class.spread = constraints
            .map(|constraint| Spread::new(constraint, &labels))
            .collect();
        PodClass {
            namespace,
            labels,
            ..class
        }
    }

    /// May other pods of the same batch forbid it a node, other than by taking resources?
    pub fn is_entangled(&self) -> bool {
        !self.host_ports.is_empty()
            || !self.affinity.is_empty()
            || !self.anti_affinity.is_empty()
            || !self.claims.is_empty()
            || !self.disks.is_empty()
            || self.spread.iter().any(|constraint| constraint.hard)
    }

    /// Has it rules or wishes about where other pods are?
    pub fn minds_others(&self) -> bool {
        !self.affinity.is_empty()
            || !self.anti_affinity.is_empty()
            || !self.preferred_affinity.is_empty()
            || !self.spread.is_empty()
    }

    /// The only nodes that it accepts by name, if its required node affinity or `spec.nodeName` names them.
    pub fn pinned(&self) -> Option<Vec<&str>> {
        if let Some(name) = &self.node_name {
            return Some(vec![name]);
        }
        let terms = self
            .required_terms
            .as_ref()
            .filter(|terms| !terms.is_empty())?;
        let mut names = Vec::new();
        for term in terms {
            names.extend(term.names()?);
        }
        names.sort_unstable();
        names.dedup();
        Some(names)
    }
}

/// The name under which a node would report an image: with a tag, `latest` if none is given.
pub fn image_name(image: &str) -> String {
    let tagged = image.rfind(':') > image.rfind('/');
    if tagged {
        image.into()
    } else {
        format!("{image}:latest")
    }
}

fn images(pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let named = containers.filter_map(|container| container.image.as_deref());
    let mounted = spec
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
    let mut images: Vec<String> = named.chain(mounted).map(image_name).collect();
    images.sort_unstable();
    images
}

fn claims(pod: &Pod) -> Vec<Claimed> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let claimed = volumes.filter_map(|volume| {
        if let Some(claim) = &volume.persistent_volume_claim {
            return Some(Claimed {
                name: claim.claim_name.clone(),
                ephemeral: false,
            });
        }
        volume.ephemeral.as_ref().map(|_| Claimed {
            name: format!(
                "{}-{}",
                pod.metadata.name.as_deref().unwrap_or_default(),
                volume.name
            ),
            ephemeral: true,
        })
    });
    claimed.collect()
}

fn disks(pod: &Pod) -> Vec<Disk> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let disk = |kind, id: String, read_only: Option<bool>, monitors| {
        Some(Disk {
            kind,
            id,
            read_only: read_only.unwrap_or(false),
            monitors,
        })
    };
    let named = volumes.filter_map(|volume| {
        if let Some(gce) = &volume.gce_persistent_disk {
            return disk(
                DiskKind::GcePersistentDisk,
                gce.pd_name.clone(),
                gce.read_only,
                Vec::new(),
            );
        }
        if let Some(aws) = &volume.aws_elastic_block_store {
            return disk(
                DiskKind::AwsElasticBlockStore,
                aws.volume_id.clone(),
                aws.read_only,
                Vec::new(),
            );
        }
        if let Some(iscsi) = &volume.iscsi {
            return disk(
                DiskKind::Iscsi,
                iscsi.iqn.clone(),
                iscsi.read_only,
                Vec::new(),
            );
        }
        let rbd = volume.rbd.as_ref()?;
        let pool = rbd.pool.as_deref().unwrap_or("rbd");
        disk(
            DiskKind::Rbd,
            format!("{pool}/{}", rbd.image),
            rbd.read_only,
            rbd.monitors.clone(),
        )
    });
    named.collect()
}

fn group(pod: &Pod) -> Option<GroupKey> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let spec = pod.spec.as_ref()?;
    let named = spec
        .scheduling_group
        .as_ref()
        .and_then(|group| group.pod_group_name.clone());
    if let Some(name) = named {
        return Some(GroupKey {
            api: GroupApi::Kubernetes,
            namespace,
            name,
        });
    }
    let name = pod
        .metadata
        .labels
        .as_ref()?
        .get(POD_GROUP_LABEL)
        .filter(|name| !name.is_empty())?;
    Some(GroupKey {
        api: GroupApi::Label,
        namespace,
        name: name.clone(),
    })
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
