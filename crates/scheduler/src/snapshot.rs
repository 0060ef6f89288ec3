//! The scheduler's view of the cluster: nodes, what is placed on them or nominated to them, namespaces,
//! volumes, budgets, groups.
//!
//! Enter at the `observe_*` and `forget_*` functions: each costs work in proportion to its own change,
//! never to the size of the cluster. Invariants: a node's `used` is always the sum of the requests of the
//! pods it holds, observed or assumed, whatever the order of events; pods may be observed before their
//! node and stay after it; whatever a plan does ([`Snapshot::assume`], [`Snapshot::nominate`],
//! [`Snapshot::doom`]) can be undone in reverse ([`crate::undo`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::budget::Budgets;
use crate::class::{Classes, GroupKey, HostPort, PodClass, Taint, image_name};
use crate::cycle::PendingPod;
use crate::domains::{Domains, KeyIndex};
use crate::gang::Groups;
use crate::log::{Change, Log};
use crate::owners::Owners;
use crate::resources::{self, Amounts, ResourceSpace};
use crate::selector::Labels;
use crate::storage::Storage;
use crate::undo::{Journal, Undo};
use crate::view::Views;

/// A pod's UID.
pub type Uid = Arc<str>;

/// Index of a node in the snapshot; stable while the node exists.
pub type NodeIndex = usize;

/// A pod that takes room on a node.
#[derive(Clone, Debug)]
pub struct PlacedPod {
    pub uid: Uid,
    pub name: Arc<str>,
    pub class: Arc<PodClass>,
    /// Placed by a plan, not yet observed as bound.
    pub assumed: bool,
    pub terminating: bool,
    /// Chosen as a victim, or ending because it was.
    pub doomed: bool,
    /// `status.startTime`, in seconds since 1970; a pod that has not started is the youngest.
    pub started_seconds: i64,
}

impl PlacedPod {
    /// On its way out: its room will be free without anybody else being disturbed.
    pub fn is_leaving(&self) -> bool {
        self.terminating || self.doomed
    }
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
    /// CPU and memory as scores count them.
    pub(crate) scored: [i64; 2],
    pub pods: Vec<PlacedPod>,
    /// Pods that wait for victims to leave this node.
    pub nominated: Vec<(Uid, Arc<PodClass>)>,
    pub(crate) host_ports: Vec<HostPort>,
    pub(crate) disk_count: usize,
    pub(crate) claim_count: usize,
    images: Vec<String>,
}

impl NodeState {
    pub fn free(&self, resource: resources::ResourceIndex) -> i64 {
        self.allocatable
            .amount(resource)
            .saturating_sub(self.used.amount(resource))
    }

    /// What a pod of this priority may use: what is nominated to pods that matter as much is not for it.
    pub fn free_for(&self, priority: i32, resource: resources::ResourceIndex) -> i64 {
        let mut free = self.free(resource);
        for (_, class) in &self.nominated {
            if class.priority >= priority {
                free = free.saturating_sub(class.request.amount(resource));
            }
        }
        free
    }

    /// Is a pod still here that was asked to leave for one of this priority?
    pub fn has_victims_of(&self, priority: i32) -> bool {
        self.pods
            .iter()
            .any(|pod| pod.doomed && pod.class.priority < priority)
    }

    fn is_vacant(&self) -> bool {
        !self.present && self.pods.is_empty() && self.nominated.is_empty()
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    node: NodeIndex,
    /// Position in the node's list.
    position: usize,
}

/// The pods of one class in the whole cluster.
#[derive(Debug)]
pub(crate) struct Presence {
    pub class: Arc<PodClass>,
    /// All of them, and those of them that are terminating.
    pub by_node: HashMap<NodeIndex, (u32, u32)>,
}

#[derive(Debug, Default)]
pub(crate) struct Image {
    pub size_bytes: i64,
    pub nodes: Vec<NodeIndex>,
}

#[derive(Debug, Default)]
pub struct Snapshot {
    pub space: ResourceSpace,
    pub(crate) classes: Classes,
    pub(crate) nodes: Vec<NodeState>,
    by_name: HashMap<Arc<str>, NodeIndex>,
    vacant: Vec<NodeIndex>,
    /// Where each pod is.
    pods: HashMap<Uid, Slot>,
    nominations: HashMap<Uid, NodeIndex>,
    pub(crate) namespaces: HashMap<String, Labels>,
    /// By the address of the class, which the entry keeps alive.
    pub(crate) presence: HashMap<usize, Presence>,
    /// Placed pods whose rules speak of other pods.
    pub(crate) minding_count: usize,
    /// Pods by priority.
    pub(crate) priorities: BTreeMap<i32, usize>,
    present_count: usize,
    totals: Amounts,
    pub(crate) domains: Domains,
    pub(crate) log: Log,
    /// Changes whenever nodes, their labels or taints, or namespaces do.
    pub(crate) shape_epoch: u64,
    /// Changes whenever anything about volumes does.
    pub(crate) storage_epoch: u64,
    storage: Storage,
    pub(crate) budgets: Budgets,
    pub(crate) groups: Groups,
    pub(crate) owners: Owners,
    pub(crate) images: HashMap<String, Image>,
    pub(crate) views: Views,
    pub(crate) journal: Journal,
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

    /// What pods take of all existing nodes together, reservations included. Looks at every node.
    pub fn used_totals(&self) -> Amounts {
        let mut used = Amounts::default();
        for (_, node) in self.nodes() {
            used.add(&node.used);
        }
        used
    }

    pub fn node(&self, name: &str) -> Option<&NodeState> {
        self.index(name).map(|index| &self.nodes[index])
    }

    pub(crate) fn index(&self, name: &str) -> Option<NodeIndex> {
        let index = *self.by_name.get(name)?;
        self.nodes[index].present.then_some(index)
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
        self.pods.get(pod).map(|slot| &*self.nodes[slot.node].name)
    }

    /// The node that a pod is nominated to.
    pub fn nominated_to(&self, pod: &str) -> Option<&str> {
        self.nominations
            .get(pod)
            .map(|index| &*self.nodes[*index].name)
    }

    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Write access to what is known of volumes; whoever asks is about to change it.
    pub fn storage_mut(&mut self) -> &mut Storage {
        self.storage_epoch += 1;
        &mut self.storage
    }

    pub(crate) fn namespace_labels(&self, namespace: &str) -> &Labels {
        static NONE: Labels = Labels::new();
        self.namespaces.get(namespace).unwrap_or(&NONE)
    }

    /// The number of a topology key, indexed from now on.
    pub(crate) fn topology_key(&mut self, name: &str) -> KeyIndex {
        let nodes = self.nodes.iter().enumerate();
        let present = nodes.filter(|(_, node)| node.present);
        self.domains
            .intern(name, present.map(|(index, node)| (index, &node.labels)))
    }

    /// The class of a pod, shared with all pods like it.
    pub fn classify(&mut self, pod: &Pod) -> Arc<PodClass> {
        let mut class = PodClass::new(&mut self.space, pod);
        if class.spread.is_empty() {
            class.default_selector = self.owners.selector_of(pod, &class);
        }
        self.classes.intern(class)
    }

    pub fn observe_namespace(&mut self, name: &str, labels: Labels) {
        if self.namespaces.get(name) != Some(&labels) {
            self.namespaces.insert(name.to_string(), labels);
            self.shape_epoch += 1;
        }
    }

    pub fn forget_namespace(&mut self, name: &str) {
        if self
            .namespaces
            .remove(name)
            .is_some_and(|labels| !labels.is_empty())
        {
            self.shape_epoch += 1;
        }
    }

    pub fn observe_budget(&mut self, budget: &PodDisruptionBudget) {
        self.budgets.observe(budget);
    }

    pub fn forget_budget(&mut self, namespace: &str, name: &str) {
        self.budgets.forget(namespace, name);
    }

    pub fn groups_mut(&mut self) -> &mut Groups {
        &mut self.groups
    }

    pub fn owners_mut(&mut self) -> &mut Owners {
        &mut self.owners
    }

    /// Pods of a gang that have a node.
    pub fn placed_in_group(&self, group: &GroupKey) -> usize {
        self.groups.placed_count(group)
    }

    /// Takes over a node as observed.
    ///
    /// Answers whether anything changed that could make room or lift a rule for waiting pods.
    pub fn observe_node(&mut self, observed: &Node) -> bool {
        let Some(name) = observed.metadata.name.as_deref() else {
            return false;
        };
        let status = observed.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
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
        self.observe_images(index, observed);
        let node = &mut self.nodes[index];
        let same_shape = node.present
            && node.labels == labels
            && node.taints == taints
            && node.unschedulable == unschedulable;
        if same_shape
            && node.allocatable == allocatable
            && node.reports_bandwidth == reports_bandwidth
        {
            return false;
        }
        if !same_shape {
            self.shape_epoch += 1;
            if node.present {
                self.domains.leave(index, &node.labels);
            }
            self.domains.enter(index, &labels);
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
        node.allocatable = allocatable;
        self.add_to_totals(index);
        self.log.push(Change::Node(index));
        true
    }

    pub fn forget_node(&mut self, name: &str) {
        let Some(index) = self.index(name) else {
            return;
        };
        self.shape_epoch += 1;
        self.drop_images(index);
        let node = &mut self.nodes[index];
        self.domains.leave(index, &node.labels);
        node.present = false;
        self.present_count -= 1;
        let allocatable = std::mem::take(&mut node.allocatable);
        self.totals.subtract(&finite(&allocatable));
        let nominated = std::mem::take(&mut node.nominated);
        for (uid, _) in nominated {
            self.nominations.remove(&uid);
        }
        self.log.push(Change::Node(index));
        self.release_if_vacant(index);
    }

    fn add_to_totals(&mut self, index: NodeIndex) {
        if self.totals.is_saturated() {
            // Absurd capacities came and went: what is left is summed up anew.
            let mut totals = Amounts::default();
            for (_, node) in self.nodes() {
                totals.add(&finite(&node.allocatable));
            }
            self.totals = totals;
        } else {
            self.totals.add(&finite(&self.nodes[index].allocatable));
        }
    }

    fn observe_images(&mut self, index: NodeIndex, observed: &Node) {
        let listed = observed
            .status
            .iter()
            .flat_map(|s| s.images.iter().flatten());
        let mut images: Vec<(String, i64)> = listed
            .flat_map(|image| {
                let size = image.size_bytes.unwrap_or(0).max(0);
                image
                    .names
                    .iter()
                    .flatten()
                    .map(move |name| (image_name(name), size))
            })
            .collect();
        images.sort_unstable();
        images.dedup_by(|a, b| a.0 == b.0);
        if images
            .iter()
            .map(|(name, _)| name)
            .eq(&self.nodes[index].images)
        {
            return;
        }
        self.drop_images(index);
        for (name, size) in &images {
            let image = self.images.entry(name.clone()).or_default();
            image.size_bytes = *size;
            image.nodes.push(index);
        }
        self.nodes[index].images = images.into_iter().map(|(name, _)| name).collect();
        self.log.push(Change::Node(index));
    }

    fn drop_images(&mut self, index: NodeIndex) {
        for name in std::mem::take(&mut self.nodes[index].images) {
            if let Some(image) = self.images.get_mut(&name) {
                image.nodes.retain(|node| *node != index);
                if image.nodes.is_empty() {
                    self.images.remove(&name);
                }
            }
        }
    }

    /// Takes over a pod as observed: bound and not finished, it takes room on its node (and confirms an
    /// assumption); finished, it takes none. A pod without a node changes nothing here.
    pub fn observe_pod(&mut self, observed: &Pod) {
        let (Some(uid), Some(spec)) = (observed.metadata.uid.as_deref(), observed.spec.as_ref())
        else {
            return;
        };
        let status = observed.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            self.forget_pod(uid);
            return;
        }
        let Some(node_name) = spec.node_name.as_deref().filter(|name| !name.is_empty()) else {
            return;
        };
        let terminating = observed.metadata.deletion_timestamp.is_some();
        let started_seconds = status
            .and_then(|status| status.start_time.as_ref())
            .map_or(i64::MAX, |time| time.0.as_second());
        let class = self.classify(observed);
        let mut doomed = false;
        if let Some(slot) = self.pods.get(uid).copied() {
            let node = &mut self.nodes[slot.node];
            let known = &mut node.pods[slot.position];
            doomed = known.doomed;
            if Arc::ptr_eq(&known.class, &class)
                && known.terminating == terminating
                && *node.name == *node_name
            {
                known.assumed = false;
                known.started_seconds = started_seconds;
                return;
            }
        }
        self.take_away(uid);
        let pod = PlacedPod {
            uid: uid.into(),
            name: observed.metadata.name.as_deref().unwrap_or_default().into(),
            class,
            assumed: false,
            terminating,
            doomed,
            started_seconds,
        };
        let index = self.index_of(node_name);
        self.place(index, pod);
    }

    /// Reserves room for a pod that is about to be bound. A pod that is placed already stays where it is, and the answer is false.
    pub fn assume(&mut self, pod: &PendingPod, node_name: &str) -> bool {
        let index = self.index_of(node_name);
        self.assume_at(pod, index)
    }

    pub(crate) fn assume_at(&mut self, pod: &PendingPod, index: NodeIndex) -> bool {
        if self.pods.contains_key(&pod.uid) {
            return false;
        }
        self.withdraw_nomination(&pod.uid);
        let placed = PlacedPod {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            class: pod.class.clone(),
            assumed: true,
            terminating: false,
            doomed: false,
            started_seconds: i64::MAX,
        };
        self.place(index, placed);
        self.journal.note(|| Undo::Placed(pod.uid.clone()));
        true
    }

    /// Gives back the room of a pod that is only assumed.
    pub fn unassume(&mut self, uid: &str) {
        let assumed = self
            .pods
            .get(uid)
            .is_some_and(|slot| self.nodes[slot.node].pods[slot.position].assumed);
        if assumed {
            self.forget_pod(uid);
        }
    }

    /// Gives back the room of a pod. Answers whether it had any.
    pub fn forget_pod(&mut self, uid: &str) -> bool {
        if self.storage.release(uid) {
            self.storage_epoch += 1;
        }
        self.take_away(uid)
    }

    fn take_away(&mut self, uid: &str) -> bool {
        let Some(slot) = self.pods.remove(uid) else {
            return false;
        };
        let node = &mut self.nodes[slot.node];
        let pod = node.pods.swap_remove(slot.position);
        if let Some(moved) = node.pods.get(slot.position) {
            let moved = self.pods.get_mut(&moved.uid);
            moved.expect("every pod of a node is in the index").position = slot.position;
        }
        if node.used.is_saturated() {
            node.used = Amounts::default();
            for left in &node.pods {
                node.used.add(&left.class.request);
            }
        } else {
            node.used.subtract(&pod.class.request);
        }
        for (scored, request) in node.scored.iter_mut().zip(pod.class.scored_request) {
            *scored = scored.saturating_sub(request);
        }
        node.disk_count -= pod.class.disks.len();
        node.claim_count -= pod.class.claims.len();
        for port in &pod.class.host_ports {
            if let Some(position) = node.host_ports.iter().position(|held| held == port) {
                node.host_ports.swap_remove(position);
            }
        }
        self.count(slot.node, &pod, -1);
        self.release_if_vacant(slot.node);
        true
    }

    fn place(&mut self, index: NodeIndex, pod: PlacedPod) {
        let node = &mut self.nodes[index];
        node.used.add(&pod.class.request);
        for (scored, request) in node.scored.iter_mut().zip(pod.class.scored_request) {
            *scored = scored.saturating_add(request);
        }
        node.disk_count += pod.class.disks.len();
        node.claim_count += pod.class.claims.len();
        node.host_ports.extend(pod.class.host_ports.iter().cloned());
        let slot = Slot {
            node: index,
            position: node.pods.len(),
        };
        self.pods.insert(pod.uid.clone(), slot);
        self.count(index, &pod, 1);
        self.nodes[index].pods.push(pod);
    }

    /// Keeps the cluster-wide counts when a pod comes (1) or goes (-1).
    fn count(&mut self, node: NodeIndex, pod: &PlacedPod, delta: i32) {
        let class = &pod.class;
        let presence = self
            .presence
            .entry(address(class))
            .or_insert_with(|| Presence {
                class: class.clone(),
                by_node: HashMap::new(),
            });
        let (all, terminating) = presence.by_node.entry(node).or_default();
        *all = all.wrapping_add_signed(delta);
        if pod.terminating {
            *terminating = terminating.wrapping_add_signed(delta);
        }
        if *all == 0 {
            presence.by_node.remove(&node);
            if presence.by_node.is_empty() {
                self.presence.remove(&address(class));
            }
        }
        if !class.affinity.is_empty()
            || !class.anti_affinity.is_empty()
            || !class.preferred_affinity.is_empty()
        {
            self.minding_count = self.minding_count.wrapping_add_signed(delta as isize);
        }
        let count = self.priorities.entry(class.priority).or_default();
        *count = count.wrapping_add_signed(delta as isize);
        if *count == 0 {
            self.priorities.remove(&class.priority);
        }
        if let Some(group) = &class.group {
            self.groups.count_placed(group, delta);
        }
        self.log.push(Change::Pod {
            node,
            class: class.clone(),
            delta,
            terminating: pod.terminating,
        });
    }

    /// Keeps room on a node for a pod whose victims have yet to leave it.
    pub fn nominate(&mut self, uid: &Uid, class: &Arc<PodClass>, node_name: &str) {
        self.withdraw_nomination(uid);
        if self.pods.contains_key(uid) {
            return;
        }
        let Some(index) = self.index(node_name) else {
            return;
        };
        self.nodes[index]
            .nominated
            .push((uid.clone(), class.clone()));
        self.nominations.insert(uid.clone(), index);
        self.log.push(Change::Node(index));
        self.journal.note(|| Undo::Nominated(uid.clone()));
    }

    /// Takes a nomination back; answers the node.
    pub fn withdraw_nomination(&mut self, uid: &str) -> Option<Arc<str>> {
        let index = self.nominations.remove(uid)?;
        let node = &mut self.nodes[index];
        let position = node
            .nominated
            .iter()
            .position(|(nominated, _)| **nominated == *uid);
        let (uid, class) = node.nominated.swap_remove(
            position.expect("the nomination index names the node that keeps the room"),
        );
        let name = node.name.clone();
        self.log.push(Change::Node(index));
        self.journal.note(|| Undo::Withdrawn {
            uid,
            class,
            node: name.clone(),
        });
        self.release_if_vacant(index);
        Some(name)
    }

    /// Marks a pod as a victim: whoever plans next counts on its room, and nobody chooses it again.
    pub fn doom(&mut self, uid: &str) {
        self.set_doomed(uid, true);
    }

    /// A victim that could not be deleted is a pod like any other again.
    pub fn spare(&mut self, uid: &str) {
        self.set_doomed(uid, false);
    }

    fn set_doomed(&mut self, uid: &str, doomed: bool) {
        let Some(slot) = self.pods.get(uid).copied() else {
            return;
        };
        let pod = &mut self.nodes[slot.node].pods[slot.position];
        if pod.doomed == doomed {
            return;
        }
        pod.doomed = doomed;
        let uid = pod.uid.clone();
        self.log.push(Change::Node(slot.node));
        self.journal.note(|| Undo::Doomed { uid, doomed });
    }

    pub(crate) fn storage_assume(
        &mut self,
        uid: &Uid,
        node: &Arc<str>,
        actions: &[crate::storage::VolumeAction],
    ) {
        if actions.is_empty() {
            return;
        }
        self.storage.assume(uid, node, actions);
        self.storage_epoch += 1;
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

/// What a class is recognised by while somebody holds it.
pub(crate) fn address(class: &Arc<PodClass>) -> usize {
    Arc::as_ptr(class) as usize
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
