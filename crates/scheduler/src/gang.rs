//! Gangs: pods that start all or not at all.
//!
//! Two conventions name a gang: `spec.schedulingGroup` with a `scheduling.k8s.io` PodGroup (KEP-4671), and
//! the label `scheduling.x-k8s.io/pod-group` with a PodGroup of that group. Both come down to a number of
//! pods that must have a node at the same time.

use std::collections::HashMap;

use k8s_openapi::api::scheduling::v1alpha2::PodGroup;

use crate::class::{GroupApi, GroupKey};

/// What is known of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSpec {
    /// Pods that must be placed together; `None`: the group's pods do not depend on each other.
    pub min_count: Option<usize>,
    /// All pods within one domain of this label.
    pub topology_key: Option<String>,
    /// `None`: the lowest of its pods'.
    pub priority: Option<i32>,
}

#[derive(Debug, Default)]
pub struct Groups {
    known: HashMap<GroupKey, GroupSpec>,
    placed: HashMap<GroupKey, usize>,
}

impl Groups {
    /// Takes over a PodGroup of Kubernetes' own API.
    pub fn observe(&mut self, group: &PodGroup) {
        let key = GroupKey {
            api: GroupApi::Kubernetes,
            namespace: group.metadata.namespace.clone().unwrap_or_default(),
            name: group.metadata.name.clone().unwrap_or_default(),
        };
        let constraints = group.spec.scheduling_constraints.as_ref();
        let topology = constraints.and_then(|constraints| constraints.topology.as_ref());
        let gang = group.spec.scheduling_policy.gang.as_ref();
        let spec = GroupSpec {
            min_count: gang.map(|gang| usize::try_from(gang.min_count).unwrap_or(0)),
            topology_key: topology
                .and_then(|list| list.first())
                .map(|constraint| constraint.key.clone()),
            priority: group.spec.priority,
        };
        self.known.insert(key, spec);
    }

    /// Takes over what another API says of a group.
    pub fn observe_spec(&mut self, key: GroupKey, spec: GroupSpec) {
        self.known.insert(key, spec);
    }

    pub fn forget(&mut self, key: &GroupKey) {
        self.known.remove(key);
    }

    pub fn spec(&self, key: &GroupKey) -> Option<&GroupSpec> {
        self.known.get(key)
    }

    pub fn placed_count(&self, key: &GroupKey) -> usize {
        self.placed.get(key).copied().unwrap_or(0)
    }

    pub(crate) fn count_placed(&mut self, key: &GroupKey, delta: i32) {
        let count = self.placed.entry(key.clone()).or_default();
        *count = count.wrapping_add_signed(delta as isize);
        if *count == 0 {
            self.placed.remove(key);
        }
    }
}
