//! Rules about volumes: what a class's claims ask of a node, and what has to be bound or provisioned there.
//!
//! The rules are upstream's plugins VolumeRestrictions, NodeVolumeLimits, VolumeBinding and VolumeZone, in
//! this order. A claim that nothing can be said about yet refuses the pod as a whole ([`Needs::of`]'s
//! error). Unlike upstream, capacity that this scheduler has promised to claims which are not bound yet
//! is counted as gone, so that a node's local storage is not promised twice.

use crate::class::PodClass;
use crate::filter::{Rejection, VolumeRejection};
use crate::profile::{Profile, Rule};
use crate::selector::{Labels, NodeTerm};
use crate::snapshot::{NodeIndex, NodeState, Snapshot};
use crate::storage::{Claim, ClaimKey, VolumeAction};

const ZONE_LABELS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
const READ_WRITE_ONCE_POD: &str = "ReadWriteOncePod";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

#[derive(Debug, Default)]
pub(crate) struct Needs {
    /// Node terms of bound volumes that are not reachable from everywhere.
    terms: Vec<Vec<NodeTerm>>,
    /// Label key and the values that will do.
    zones: Vec<(String, Vec<String>)>,
    /// A claim names a volume that does not exist.
    volume_missing: bool,
    /// A claim of which only one pod may make use is in use.
    in_use: bool,
    /// Claims to find a volume for, smallest first.
    unbound: Vec<(ClaimKey, Claim)>,
    /// CSI driver and handle of bound volumes.
    attachments: Vec<(String, String)>,
}

impl Needs {
    /// What the class's claims ask for; `None` if it has none.
    ///
    /// # Errors
    /// Why the pod cannot go anywhere, in upstream's words.
    pub fn of(snapshot: &Snapshot, class: &PodClass) -> Result<Option<Needs>, String> {
        if class.claims.is_empty() {
            return Ok(None);
        }
        let storage = snapshot.storage();
        let mut needs = Needs::default();
        let mut immediate = false;
        for claimed in &class.claims {
            let key = (class.namespace.clone(), claimed.name.clone());
            let Some(claim) = storage.claims.get(&key) else {
                return Err(if claimed.ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{}\"",
                        claimed.name
                    )
                } else {
                    format!("persistentvolumeclaim \"{}\" not found", claimed.name)
                });
            };
            if claim.lost {
                return Err(format!(
                    "persistentvolumeclaim \"{}\" bound to non-existent persistentvolume \"{}\"",
                    claimed.name, claim.volume
                ));
            }
            if claim.deleting {
                return Err(format!(
                    "persistentvolumeclaim \"{}\" is being deleted",
                    claimed.name
                ));
            }
            if claim
                .access_modes
                .iter()
                .any(|mode| mode == READ_WRITE_ONCE_POD)
            {
                needs.in_use |= snapshot.presence.values().any(|presence| {
                    presence.class.namespace == class.namespace
                        && presence
                            .class
                            .claims
                            .iter()
                            .any(|other| other.name == claimed.name)
                });
            }
            if claim.bound {
                needs.take_bound(snapshot, claim);
                continue;
            }
            let waits = storage
                .classes
                .get(&claim.class)
                .is_some_and(|class| class.waits_for_consumer == Some(true));
            if waits && claim.volume.is_empty() {
                needs.unbound.push((key, claim.clone()));
            } else {
                immediate = true;
            }
        }
        if immediate {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        needs.unbound.sort_by_key(|(_, claim)| claim.size_bytes);
        Ok(Some(needs))
    }

    fn take_bound(&mut self, snapshot: &Snapshot, claim: &Claim) {
        let Some(volume) = snapshot.storage().volumes.get(&claim.volume) else {
            self.volume_missing = true;
            return;
        };
        self.terms.extend(volume.node_terms.clone());
        self.attachments.extend(volume.attachment.clone());
        for key in ZONE_LABELS {
            if let Some(value) = volume.labels.get(key) {
                let values = value
                    .split("__")
                    .map(|zone| zone.trim().to_string())
                    .collect();
                self.zones.push((key.into(), values));
            }
        }
    }

    /// Why the node will not do.
    pub fn rejection(
        &self,
        snapshot: &Snapshot,
        profile: &Profile,
        node: NodeIndex,
    ) -> Option<Rejection> {
        let state = &snapshot.nodes[node];
        if self.in_use && profile.upholds(Rule::VolumeRestrictions) {
            return Some(Rejection::ReadWriteOncePod);
        }
        if profile.upholds(Rule::NodeVolumeLimits) && !self.may_attach(snapshot, state) {
            return Some(Rejection::VolumeCount);
        }
        if profile.upholds(Rule::VolumeBinding) {
            let reachable = |terms: &Vec<NodeTerm>| {
                terms
                    .iter()
                    .any(|term| term.matches(&state.name, &state.labels))
            };
            let mut rejection = VolumeRejection {
                unreachable: !self.terms.iter().all(reachable),
                volume_missing: self.volume_missing,
                ..VolumeRejection::default()
            };
            if let Err(unbound) = self.bind(snapshot, state) {
                rejection.nothing_to_bind = unbound.nothing_to_bind;
                rejection.no_space = unbound.no_space;
            }
            if rejection.any() {
                return Some(Rejection::Volumes(rejection));
            }
        }
        if profile.upholds(Rule::VolumeZone) && !self.zone_matches(&state.labels) {
            return Some(Rejection::VolumeZone);
        }
        None
    }

    fn zone_matches(&self, labels: &Labels) -> bool {
        if !ZONE_LABELS.iter().any(|key| labels.contains_key(*key)) {
            return true;
        }
        self.zones.iter().all(|(key, values)| {
            let current = key.replace(
                "failure-domain.beta.kubernetes.io/",
                "topology.kubernetes.io/",
            );
            let value = labels.get(key).or_else(|| labels.get(&current));
            value.is_some_and(|value| values.contains(value))
        })
    }

    /// Does the node's attach limit allow for the volumes that it does not have yet?
    fn may_attach(&self, snapshot: &Snapshot, node: &NodeState) -> bool {
        let Some(limits) = snapshot.storage().limits.get(&*node.name) else {
            return true;
        };
        limits.iter().all(|(driver, limit)| {
            let mut attached: Vec<&str> = Vec::new();
            if node.claim_count > 0 {
                for pod in node.pods.iter().filter(|pod| !pod.class.claims.is_empty()) {
                    attached.extend(attachments(snapshot, &pod.class, driver));
                }
            }
            attached.sort_unstable();
            attached.dedup();
            let mut added: Vec<&str> = self
                .attachments
                .iter()
                .filter(|(of, handle)| of == driver && !attached.contains(&handle.as_str()))
                .map(|(_, handle)| handle.as_str())
                .collect();
            added.sort_unstable();
            added.dedup();
            // A volume that is still to be provisioned takes a place too.
            let provisioned = self.unbound.iter().filter(|(_, claim)| {
                let class = snapshot.storage().classes.get(&claim.class);
                class.is_some_and(|class| class.provisioner == *driver)
            });
            let added = added.len() + provisioned.count();
            added == 0 || (attached.len() + added) as i64 <= *limit
        })
    }

    /// What would have to be done for the unbound claims on this node.
    fn bind(
        &self,
        snapshot: &Snapshot,
        node: &NodeState,
    ) -> Result<Vec<VolumeAction>, VolumeRejection> {
        let storage = snapshot.storage();
        let nothing = || VolumeRejection {
            nothing_to_bind: true,
            ..VolumeRejection::default()
        };
        let mut actions: Vec<VolumeAction> = Vec::new();
        for (key, claim) in &self.unbound {
            let selected = claim.selected_node.as_deref();
            let promised = selected.or_else(|| storage.provisioned_for(key).map(|node| &**node));
            if promised.is_some_and(|promised| promised != &*node.name) {
                return Err(nothing());
            }
            if promised.is_none()
                && let Some(volume) = self.matching_volume(snapshot, node, key, claim, &actions)
            {
                actions.push(VolumeAction::Bind {
                    volume,
                    claim: key.clone(),
                });
                continue;
            }
            let class = storage.classes.get(&claim.class).ok_or_else(nothing)?;
            let topologies = &class.allowed_topologies;
            let reachable =
                topologies.is_empty() || topologies.iter().any(|t| t.matches(&node.labels));
            if class.provisioner.is_empty() || class.provisioner == NO_PROVISIONER || !reachable {
                return Err(nothing());
            }
            let size_bytes = claim.size_bytes.unwrap_or(0);
            let already: i64 = actions
                .iter()
                .map(|action| match action {
                    VolumeAction::Provision {
                        class, size_bytes, ..
                    } if *class == claim.class => *size_bytes,
                    _ => 0,
                })
                .fold(0, i64::saturating_add);
            if promised.is_none()
                && !has_space(
                    snapshot,
                    node,
                    &class.provisioner,
                    &claim.class,
                    size_bytes,
                    already,
                )
            {
                return Err(VolumeRejection {
                    no_space: true,
                    ..VolumeRejection::default()
                });
            }
            actions.push(VolumeAction::Provision {
                claim: key.clone(),
                class: claim.class.clone(),
                size_bytes,
            });
        }
        Ok(actions)
    }

    pub fn actions(&self, snapshot: &Snapshot, node: NodeIndex) -> Vec<VolumeAction> {
        self.bind(snapshot, &snapshot.nodes[node])
            .unwrap_or_default()
    }

    /// The smallest free volume that will do.
    fn matching_volume(
        &self,
        snapshot: &Snapshot,
        node: &NodeState,
        key: &ClaimKey,
        claim: &Claim,
        chosen: &[VolumeAction],
    ) -> Option<String> {
        let storage = snapshot.storage();
        let fits = storage.volumes.iter().filter(|(name, volume)| {
            let owner = storage.owner(name, volume);
            let free = owner.is_none() && volume.available;
            (free || owner == Some(key))
                && volume.class == claim.class
                && volume.volume_mode == claim.volume_mode
                && volume.capacity_bytes >= claim.size_bytes.unwrap_or(0)
                && claim
                    .access_modes
                    .iter()
                    .all(|mode| volume.access_modes.contains(mode))
                && claim
                    .selector
                    .as_ref()
                    .is_none_or(|selector| selector.matches(&volume.labels))
                && volume
                    .node_terms
                    .as_ref()
                    .is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)))
                && !chosen.iter().any(
                    |action| matches!(action, VolumeAction::Bind { volume, .. } if volume == *name),
                )
        });
        let prebound = |name: &String| storage.volumes[name].claim.as_ref() == Some(key);
        fits.min_by_key(|(name, volume)| (!prebound(name), volume.capacity_bytes))
            .map(|(name, _)| name.clone())
    }
}

/// Handles of the volumes of one driver that a class's claims are bound to.
fn attachments<'s>(
    snapshot: &'s Snapshot,
    class: &'s PodClass,
    driver: &'s str,
) -> impl Iterator<Item = &'s str> {
    let storage = snapshot.storage();
    class.claims.iter().filter_map(move |claimed| {
        let claim = storage
            .claims
            .get(&(class.namespace.clone(), claimed.name.clone()))?;
        let (of, handle) = storage.volumes.get(&claim.volume)?.attachment.as_ref()?;
        (of == driver).then_some(handle.as_str())
    })
}

/// Has some reported capacity that the node can reach enough left?
fn has_space(
    snapshot: &Snapshot,
    node: &NodeState,
    driver: &str,
    class: &str,
    size_bytes: i64,
    already_bytes: i64,
) -> bool {
    let storage = snapshot.storage();
    if storage.capacity_drivers.get(driver) != Some(&true) {
        return true;
    }
    storage.capacities.values().any(|capacity| {
        if capacity.class != class || !capacity.topology.matches(&node.labels) {
            return false;
        }
        let promised = storage.in_provision(class, |name| {
            snapshot
                .node(name)
                .is_some_and(|node| capacity.topology.matches(&node.labels))
        });
        capacity
            .largest_bytes
            .is_none_or(|largest| size_bytes <= largest)
            && size_bytes
                .saturating_add(already_bytes)
                .saturating_add(promised)
                <= capacity.available_bytes
    })
}

/// Is a disk that the class names itself in use on the node in a way that excludes it?
pub(crate) fn disks_conflict(class: &PodClass, node: &NodeState) -> bool {
    !class.disks.is_empty()
        && node.disk_count > 0
        && node
            .pods
            .iter()
            .flat_map(|pod| &pod.class.disks)
            .any(|held| class.disks.iter().any(|disk| disk.conflicts(held)))
}
