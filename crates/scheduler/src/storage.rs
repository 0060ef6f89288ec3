//! Volumes as placement sees them: claims, persistent volumes, storage classes, what a node can attach.
//!
//! Enter at the `observe_*` functions of [`Storage`]. [`crate::volumes`] holds the rules. A binding that a
//! plan has decided on ([`VolumeAction`]) is assumed until the claim is observed as bound or the pod goes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};

use crate::resources;
use crate::selector::{Labels, NodeTerm, Operator, Selector};
use crate::snapshot::Uid;

/// Namespace and name.
pub type ClaimKey = (String, String);

/// What has to be done with a pod's volumes before it is bound to its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeAction {
    /// Bind the volume to the claim.
    Bind { volume: String, claim: ClaimKey },
    /// Have the claim's volume provisioned for the node (annotation `volume.kubernetes.io/selected-node`).
    Provision {
        claim: ClaimKey,
        class: String,
        size_bytes: i64,
    },
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Claim {
    pub volume: String,
    pub class: String,
    pub access_modes: Vec<String>,
    pub volume_mode: String,
    pub size_bytes: Option<i64>,
    pub selector: Option<Selector>,
    pub selected_node: Option<String>,
    pub deleting: bool,
    pub lost: bool,
    /// The volume named in the spec has been bound completely.
    pub bound: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Volume {
    pub labels: Labels,
    pub class: String,
    pub access_modes: Vec<String>,
    pub volume_mode: String,
    pub capacity_bytes: i64,
    /// `None`: reachable from everywhere.
    pub node_terms: Option<Vec<NodeTerm>>,
    pub claim: Option<ClaimKey>,
    pub available: bool,
    /// CSI driver and handle.
    pub attachment: Option<(String, String)>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Class {
    pub provisioner: String,
    /// `None`: not set.
    pub waits_for_consumer: Option<bool>,
    /// Empty: no restriction; else one of them has to match the node.
    pub allowed_topologies: Vec<Selector>,
}

#[derive(Clone, Debug)]
pub(crate) struct Capacity {
    pub class: String,
    pub topology: Selector,
    pub available_bytes: i64,
    pub largest_bytes: Option<i64>,
}

#[derive(Debug, Default)]
pub struct Storage {
    pub(crate) claims: HashMap<ClaimKey, Claim>,
    /// Ordered, so that of equal volumes always the same is taken.
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) classes: HashMap<String, Class>,
    /// Attach limits by node and driver.
    pub(crate) limits: HashMap<String, HashMap<String, i64>>,
    /// Drivers that publish their capacity.
    pub(crate) capacity_drivers: HashMap<String, bool>,
    pub(crate) capacities: BTreeMap<(String, String), Capacity>,
    assumed: HashMap<Uid, (Arc<str>, Vec<VolumeAction>)>,
    taken: HashMap<String, ClaimKey>,
}

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

impl Storage {
    pub fn observe_claim(&mut self, claim: &PersistentVolumeClaim) {
        let spec = claim.spec.clone().unwrap_or_default();
        let annotation = |name: &str| {
            let annotations = claim.metadata.annotations.as_ref()?;
            annotations.get(name).cloned()
        };
        let requests = spec.resources.and_then(|resources| resources.requests);
        let phase = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let volume = spec.volume_name.unwrap_or_default();
        let observed = Claim {
            bound: !volume.is_empty() && annotation(BIND_COMPLETED).is_some(),
            volume,
            class: annotation(BETA_CLASS)
                .or(spec.storage_class_name)
                .unwrap_or_default(),
            access_modes: spec.access_modes.unwrap_or_default(),
            volume_mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".into()),
            size_bytes: requests
                .as_ref()
                .and_then(|requests| requests.get("storage"))
                .map(resources::request_bytes),
            selector: spec
                .selector
                .as_ref()
                .map(|selector| Selector::new(Some(selector))),
            selected_node: annotation(SELECTED_NODE),
            deleting: claim.metadata.deletion_timestamp.is_some(),
            lost: phase == Some("Lost"),
        };
        self.claims.insert(key(&claim.metadata), observed);
    }

    pub fn forget_claim(&mut self, namespace: &str, name: &str) {
        self.claims
            .remove(&(namespace.to_string(), name.to_string()));
    }

    pub fn observe_volume(&mut self, volume: &PersistentVolume) {
        let spec = volume.spec.clone().unwrap_or_default();
        let phase = volume
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let required = spec.node_affinity.and_then(|affinity| affinity.required);
        let claim = spec.claim_ref.map(|claim| {
            (
                claim.namespace.unwrap_or_default(),
                claim.name.unwrap_or_default(),
            )
        });
        let annotations = volume.metadata.annotations.as_ref();
        let observed = Volume {
            labels: volume.metadata.labels.clone().unwrap_or_default(),
            class: annotations
                .and_then(|annotations| annotations.get(BETA_CLASS).cloned())
                .or(spec.storage_class_name)
                .unwrap_or_default(),
            access_modes: spec.access_modes.unwrap_or_default(),
            volume_mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".into()),
            capacity_bytes: spec
                .capacity
                .as_ref()
                .and_then(|capacity| capacity.get("storage"))
                .map_or(0, resources::capacity_bytes),
            node_terms: required.map(|selector| {
                selector
                    .node_selector_terms
                    .iter()
                    .map(NodeTerm::new)
                    .collect()
            }),
            available: claim.is_none() && matches!(phase, None | Some("Available" | "Pending")),
            claim,
            attachment: spec.csi.map(|csi| (csi.driver, csi.volume_handle)),
        };
        let name = volume.metadata.name.clone().unwrap_or_default();
        self.volumes.insert(name, observed);
    }

    pub fn forget_volume(&mut self, name: &str) {
        self.volumes.remove(name);
    }

    pub fn observe_class(&mut self, class: &StorageClass) {
        let topologies = class.allowed_topologies.iter().flatten().map(|term| {
            let mut selector = Selector::of_labels(&Labels::new());
            for expression in term.match_label_expressions.iter().flatten() {
                selector.require(&expression.key, Operator::In(expression.values.clone()));
            }
            selector
        });
        let observed = Class {
            provisioner: class.provisioner.clone(),
            waits_for_consumer: class
                .volume_binding_mode
                .as_deref()
                .map(|mode| mode == "WaitForFirstConsumer"),
            allowed_topologies: topologies.collect(),
        };
        self.classes
            .insert(class.metadata.name.clone().unwrap_or_default(), observed);
    }

    pub fn forget_class(&mut self, name: &str) {
        self.classes.remove(name);
    }

    pub fn observe_csi_node(&mut self, node: &CSINode) {
        let limits = node.spec.drivers.iter().filter_map(|driver| {
            let count = driver.allocatable.as_ref()?.count?;
            Some((driver.name.clone(), i64::from(count)))
        });
        self.limits.insert(
            node.metadata.name.clone().unwrap_or_default(),
            limits.collect(),
        );
    }

    pub fn forget_csi_node(&mut self, name: &str) {
        self.limits.remove(name);
    }

    pub fn observe_csi_driver(&mut self, driver: &CSIDriver) {
        self.capacity_drivers.insert(
            driver.metadata.name.clone().unwrap_or_default(),
            driver.spec.storage_capacity.unwrap_or(false),
        );
    }

    pub fn forget_csi_driver(&mut self, name: &str) {
        self.capacity_drivers.remove(name);
    }

    pub fn observe_capacity(&mut self, capacity: &CSIStorageCapacity) {
        let observed = Capacity {
            class: capacity.storage_class_name.clone(),
            topology: Selector::new(capacity.node_topology.as_ref()),
            available_bytes: capacity
                .capacity
                .as_ref()
                .map_or(0, resources::capacity_bytes),
            largest_bytes: capacity
                .maximum_volume_size
                .as_ref()
                .map(resources::capacity_bytes),
        };
        self.capacities.insert(key(&capacity.metadata), observed);
    }

    pub fn forget_capacity(&mut self, namespace: &str, name: &str) {
        self.capacities
            .remove(&(namespace.to_string(), name.to_string()));
    }

    /// Takes the volumes and the capacity that a pod's placement needs.
    pub(crate) fn assume(&mut self, uid: &Uid, node: &Arc<str>, actions: &[VolumeAction]) {
        for action in actions {
            if let VolumeAction::Bind { volume, claim } = action {
                self.taken.insert(volume.clone(), claim.clone());
            }
        }
        self.assumed
            .insert(uid.clone(), (node.clone(), actions.to_vec()));
    }

    /// Gives them back; true if there were any.
    pub(crate) fn release(&mut self, uid: &str) -> bool {
        let Some((_, actions)) = self.assumed.remove(uid) else {
            return false;
        };
        for action in actions {
            if let VolumeAction::Bind { volume, .. } = action {
                self.taken.remove(&volume);
            }
        }
        true
    }

    /// The claim that a volume belongs to, observed or assumed.
    pub(crate) fn owner<'s>(&'s self, name: &str, volume: &'s Volume) -> Option<&'s ClaimKey> {
        volume.claim.as_ref().or_else(|| self.taken.get(name))
    }

    /// The node for which a claim is being provisioned by assumption.
    pub(crate) fn provisioned_for(&self, claim: &ClaimKey) -> Option<&Arc<str>> {
        self.assumed.values().find_map(|(node, actions)| {
            let wanted = actions.iter().any(|action| {
                matches!(action, VolumeAction::Provision { claim: other, .. } if other == claim)
            });
            wanted.then_some(node)
        })
    }

    /// Bytes of a class that are being provisioned on nodes of a topology and are not bound yet.
    pub(crate) fn in_provision(&self, class: &str, is_there: impl Fn(&str) -> bool) -> i64 {
        let mut total = 0i64;
        for (node, actions) in self.assumed.values() {
            for action in actions {
                if let VolumeAction::Provision {
                    claim,
                    class: other,
                    size_bytes,
                } = action
                    && other == class
                    && is_there(node)
                    && self.claims.get(claim).is_some_and(|claim| !claim.bound)
                {
                    total = total.saturating_add(*size_bytes);
                }
            }
        }
        total
    }
}

fn key(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ClaimKey {
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}
