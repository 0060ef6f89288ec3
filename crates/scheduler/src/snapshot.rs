//! The scheduler's view of the cluster: nodes, what is placed on them, and namespaces.
//!
//! Enter at the `observe_*` and `forget_*` functions: each costs work in proportion to its own change,
//! never to the size of the cluster. Invariant: a node's `used` is always the sum of the requests of the
//! pods it holds, observed or assumed, whatever the order of events; pods may be observed before their
//! node and stay after it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::class::{Classes, HostPort, PodClass, Taint};
use crate::resources::{self, Amounts, ResourceSpace};
use crate::selector::Labels;

/// A pod's UID.
pub type Uid = Arc<str>;

/// Index of a node in the snapshot; stable while the node exists.
pub type NodeIndex = usize;

/// A pod that takes room on a node.
#[derive(Clone, Debug)]
pub struct PlacedPod {
    pub class: Arc<PodClass>,
    /// Placed by a plan, not yet observed as bound.
    pub assumed: bool,
    pub terminating: bool,
}

#[derive(Clone, Debug, Default)]
pub struct NodeState {
    pub name: Arc<str>,
    /// False while only pods name it.
    pub present: bool,
    pub labels: Labels,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Amounts,
    pub reports_bandwidth: bool,
    pub used: Amounts,
    pub pods: BTreeMap<Uid, PlacedPod>,
    pub(crate) host_ports: Vec<HostPort>,
    pub(crate) anti_affine_count: usize,
}

impl NodeState {
    pub fn free(&self, resource: resources::ResourceIndex) -> i64 {
        self.allocatable
            .amount(resource)
            .saturating_sub(self.used.amount(resource))
    }

    fn is_vacant(&self) -> bool {
        !self.present && self.pods.is_empty()
    }
}

#[derive(Debug, Default)]
pub struct Snapshot {
    pub space: ResourceSpace,
    classes: Classes,
    pub(crate) nodes: Vec<NodeState>,
    by_name: HashMap<Arc<str>, NodeIndex>,
    vacant: Vec<NodeIndex>,
    /// Where each pod is.
    pods: HashMap<Uid, NodeIndex>,
    pub(crate) namespaces: HashMap<String, Labels>,
    /// Pods with required anti-affinity in the whole cluster.
    pub(crate) anti_affine_count: usize,
    present_count: usize,
    totals: Amounts,
}

impl Snapshot {
    pub fn new() -> Self {
        Snapshot::default()
    }

    /// Nodes that exist.
    pub fn node_count(&self) -> usize {
        self.present_count
    }

    /// Allocatable of all nodes together.
    pub fn totals(&self) -> &Amounts {
        &self.totals
    }

    pub fn node(&self, name: &str) -> Option<&NodeState> {
        self.by_name
            .get(name)
            .map(|index| &self.nodes[*index])
            .filter(|node| node.present)
    }

    /// All existing nodes with their indexes.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeIndex, &NodeState)> {
        self.nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.present)
    }

    /// The node that a pod is placed on.
    pub fn placed_on(&self, pod: &str) -> Option<&str> {
        self.pods.get(pod).map(|index| &*self.nodes[*index].name)
    }

    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    pub(crate) fn namespace_labels(&self, namespace: &str) -> &Labels {
        static NONE: Labels = Labels::new();
        self.namespaces.get(namespace).unwrap_or(&NONE)
    }

    /// The class of a pod, shared with all pods like it.
    pub fn classify(&mut self, pod: &Pod) -> Arc<PodClass> {
        let class = PodClass::new(&mut self.space, pod);
        self.classes.intern(class)
    }

    pub fn observe_namespace(&mut self, name: &str, labels: Labels) {
        self.namespaces.insert(name.to_string(), labels);
    }

    pub fn forget_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Takes over a node as observed.
    ///
    /// Answers whether anything changed that could make room or lift a rule for waiting pods.
    pub fn observe_node(&mut self, observed: &Node) -> bool {
        let Some(name) = observed.metadata.name.as_deref() else {
            return false;
        };
        let allocatable = observed
            .status
            .as_ref()
            .and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        let (allocatable, reports_bandwidth) =
            resources::node_allocatable(&mut self.space, allocatable);
        let labels = observed.metadata.labels.clone().unwrap_or_default();
        let spec = observed.spec.as_ref();
        let taints: Vec<Taint> = spec
            .and_then(|s| s.taints.as_ref())
            .into_iter()
            .flatten()
            .map(Taint::new)
            .collect();
        let unschedulable = spec.and_then(|s| s.unschedulable).unwrap_or(false);
        let index = self.index_of(name);
        let node = &mut self.nodes[index];
        if node.present
            && node.labels == labels
            && node.taints == taints
            && node.unschedulable == unschedulable
            && node.allocatable == allocatable
            && node.reports_bandwidth == reports_bandwidth
        {
            return false;
        }
        if node.present {
            let before = std::mem::take(&mut node.allocatable);
            self.totals.subtract(&finite(&before));
        } else {
            self.present_count += 1;
        }
        node.present = true;
        node.labels = labels;
        node.taints = taints;
        node.unschedulable = unschedulable;
        node.reports_bandwidth = reports_bandwidth;
        self.totals.add(&finite(&allocatable));
        node.allocatable = allocatable;
        true
    }

    pub fn forget_node(&mut self, name: &str) {
        let Some(index) = self.by_name.get(name).copied() else {
            return;
        };
        let node = &mut self.nodes[index];
        if !node.present {
            return;
        }
        node.present = false;
        self.present_count -= 1;
        let allocatable = std::mem::take(&mut node.allocatable);
        self.totals.subtract(&finite(&allocatable));
        self.release_if_vacant(index);
    }

    /// Takes over a pod as observed: bound and not finished, it takes room on its node (and confirms an
    /// assumption); finished, it takes none. A pod without a node changes nothing here.
    pub fn observe_pod(&mut self, observed: &Pod) {
        let (Some(uid), Some(spec)) = (observed.metadata.uid.as_deref(), observed.spec.as_ref())
        else {
            return;
        };
        let phase = observed
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            self.forget_pod(uid);
            return;
        }
        let Some(node_name) = spec.node_name.as_deref().filter(|name| !name.is_empty()) else {
            return;
        };
        let terminating = observed.metadata.deletion_timestamp.is_some();
        let class = self.classify(observed);
        let known = self.pods.get(uid).map(|index| &self.nodes[*index]);
        if known.is_some_and(|node| {
            let same = node.pods.get(uid).is_some_and(|p| {
                Arc::ptr_eq(&p.class, &class) && p.terminating == terminating && !p.assumed
            });
            same && *node.name == *node_name
        }) {
            return;
        }
        self.forget_pod(uid);
        self.place(
            uid.into(),
            node_name,
            PlacedPod {
                class,
                assumed: false,
                terminating,
            },
        );
    }

    /// Reserves room for a pod that is about to be bound. A pod that is placed already stays where it is, and the answer is false.
    pub fn assume(&mut self, uid: &Uid, class: &Arc<PodClass>, node_name: &str) -> bool {
        if self.pods.contains_key(uid) {
            return false;
        }
        self.place(
            uid.clone(),
            node_name,
            PlacedPod {
                class: class.clone(),
                assumed: true,
                terminating: false,
            },
        );
        true
    }

    /// Gives back the room of a pod that is only assumed.
    pub fn unassume(&mut self, uid: &str) {
        let assumed = self
            .pods
            .get(uid)
            .and_then(|index| self.nodes[*index].pods.get(uid))
            .is_some_and(|pod| pod.assumed);
        if assumed {
            self.forget_pod(uid);
        }
    }

    /// Gives back the room of a pod. Answers whether it had any.
    pub fn forget_pod(&mut self, uid: &str) -> bool {
        let Some(index) = self.pods.remove(uid) else {
            return false;
        };
        let node = &mut self.nodes[index];
        let pod = node
            .pods
            .remove(uid)
            .expect("the pod index names the node that holds the pod");
        node.used.subtract(&pod.class.request);
        for port in &pod.class.host_ports {
            if let Some(position) = node.host_ports.iter().position(|held| held == port) {
                node.host_ports.swap_remove(position);
            }
        }
        if !pod.class.anti_affinity.is_empty() {
            node.anti_affine_count -= 1;
            self.anti_affine_count -= 1;
        }
        self.release_if_vacant(index);
        true
    }

    fn place(&mut self, uid: Uid, node_name: &str, pod: PlacedPod) {
        let index = self.index_of(node_name);
        let node = &mut self.nodes[index];
        node.used.add(&pod.class.request);
        node.host_ports.extend(pod.class.host_ports.iter().cloned());
        if !pod.class.anti_affinity.is_empty() {
            node.anti_affine_count += 1;
            self.anti_affine_count += 1;
        }
        node.pods.insert(uid.clone(), pod);
        self.pods.insert(uid, index);
    }

    fn index_of(&mut self, name: &str) -> NodeIndex {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let name: Arc<str> = name.into();
        let node = NodeState {
            name: name.clone(),
            ..NodeState::default()
        };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.nodes[index] = node;
                index
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.by_name.insert(name, index);
        index
    }

    fn release_if_vacant(&mut self, index: NodeIndex) {
        if self.nodes[index].is_vacant() {
            self.by_name.remove(&self.nodes[index].name);
            self.nodes[index] = NodeState::default();
            self.vacant.push(index);
        }
    }
}

/// Without the "unlimited" of bandwidth that a node does not report, which has no place in a sum.
fn finite(amounts: &Amounts) -> Amounts {
    let mut finite = amounts.clone();
    for index in [resources::INGRESS, resources::EGRESS] {
        if finite.amount(index) == i64::MAX {
            finite.set(index, 0);
        }
    }
    finite
}
