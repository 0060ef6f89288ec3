//! Garbage collection: objects whose owners are gone go too.
//!
//! [`Graph`] holds, for every object, who owns it and whom it owns; feeding it observations yields what
//! is [`Due`]. For a due object the shell reads the live object and the state of its owners and asks
//! [`judge`]; for a due owner it asks [`Graph::finish_foreground`] or orphans its dependents.
//!
//! Owners named by objects but not (yet) observed are in the graph as absent until the server has
//! confirmed it: only a live read may condemn a dependent, never a cache that lags behind.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub const FOREGROUND_FINALIZER: &str = "foregroundDeletion";
pub const ORPHAN_FINALIZER: &str = "orphan";

pub type Uid = Arc<str>;

/// Where an object is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// What the shell is to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Due {
    /// Should it still exist? Also: has a foreground deletion come to its end?
    Examine(Uid),
    /// Its dependents are to be set free, then its `orphan` finalizer removed.
    Orphan(Uid),
}

#[derive(Debug)]
struct Node {
    identity: Identity,
    owners: Vec<OwnerReference>,
    dependents: HashSet<Uid>,
    /// Named by an object, not observed.
    absent: bool,
    being_deleted: bool,
    /// In foreground deletion: waits for its blocking dependents.
    deleting_dependents: bool,
}

#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
}

impl Graph {
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn identity(&self, uid: &str) -> Option<&Identity> {
        self.nodes.get(uid).map(|node| &node.identity)
    }

    /// Was the object observed (rather than only named as an owner)?
    pub fn is_observed(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|node| !node.absent)
    }

    /// The object waits for its dependents to go.
    pub fn is_deleting_dependents(&self, uid: &str) -> bool {
        self.nodes
            .get(uid)
            .is_some_and(|node| node.deleting_dependents)
    }

    pub fn has_dependents(&self, uid: &str) -> bool {
        self.nodes
            .get(uid)
            .is_some_and(|node| !node.dependents.is_empty())
    }

    pub fn dependents(&self, uid: &str) -> Vec<(Uid, Identity)> {
        let dependents = self
            .nodes
            .get(uid)
            .into_iter()
            .flat_map(|node| &node.dependents);
        dependents
            .filter_map(|uid| Some((uid.clone(), self.nodes.get(uid)?.identity.clone())))
            .collect()
    }

    /// Takes over an object as observed.
    pub fn observe(&mut self, identity: Identity, metadata: &ObjectMeta) -> Vec<Due> {
        let Some(uid) = metadata.uid.as_deref() else {
            return Vec::new();
        };
        let uid: Uid = self
            .nodes
            .get_key_value(uid)
            .map_or_else(|| uid.into(), |(known, _)| known.clone());
        let mut due = Vec::new();
        let owners = metadata.owner_references.clone().unwrap_or_default();
        let has = |finalizer: &str| {
            metadata
                .finalizers
                .iter()
                .flatten()
                .any(|held| held == finalizer)
        };
        let being_deleted = metadata.deletion_timestamp.is_some();
        let foreground = being_deleted && has(FOREGROUND_FINALIZER);
        let (first_seen, owners_before, was_foreground) = match self.nodes.get_mut(&uid) {
            Some(node) => {
                let first_seen = std::mem::replace(&mut node.absent, false);
                node.identity = identity;
                node.being_deleted = being_deleted;
                let was_foreground = std::mem::replace(&mut node.deleting_dependents, foreground);
                (
                    first_seen,
                    std::mem::replace(&mut node.owners, owners.clone()),
                    was_foreground,
                )
            }
            None => {
                let node = Node {
                    identity,
                    owners: owners.clone(),
                    dependents: HashSet::new(),
                    absent: false,
                    being_deleted,
                    deleting_dependents: foreground,
                };
                self.nodes.insert(uid.clone(), node);
                (true, Vec::new(), false)
            }
        };
        self.relink(&uid, &owners_before, &owners, &mut due);
        if being_deleted && has(ORPHAN_FINALIZER) {
            due.push(Due::Orphan(uid.clone()));
        } else if foreground && (!was_foreground || first_seen) {
            due.extend(
                self.dependents(&uid)
                    .into_iter()
                    .map(|(dependent, _)| Due::Examine(dependent)),
            );
            due.push(Due::Examine(uid.clone()));
        }
        due
    }

    /// Brings the owners' lists of dependents up to date; names what a change of owners makes due.
    fn relink(
        &mut self,
        uid: &Uid,
        before: &[OwnerReference],
        after: &[OwnerReference],
        due: &mut Vec<Due>,
    ) {
        let namespace = self.nodes[uid].identity.namespace.clone();
        for gone in before
            .iter()
            .filter(|old| !after.iter().any(|new| new.uid == old.uid))
        {
            if let Some(owner) = self.nodes.get_mut(gone.uid.as_str()) {
                owner.dependents.remove(uid);
                if owner.deleting_dependents {
                    due.push(Due::Examine(gone.uid.as_str().into()));
                }
                if owner.absent && owner.dependents.is_empty() {
                    self.nodes.remove(gone.uid.as_str());
                }
            }
        }
        for reference in after {
            let known = before.iter().find(|old| old.uid == reference.uid);
            let unblocked = known.is_some_and(|old| {
                old.block_owner_deletion == Some(true)
                    && reference.block_owner_deletion != Some(true)
            });
            match self.nodes.get_mut(reference.uid.as_str()) {
                Some(owner) => {
                    owner.dependents.insert(uid.clone());
                    if owner.deleting_dependents && (known.is_none() || unblocked) {
                        due.push(Due::Examine(reference.uid.as_str().into()));
                        due.push(Due::Examine(uid.clone()));
                    }
                }
                None => {
                    let identity = Identity {
                        api_version: reference.api_version.as_str().into(),
                        kind: reference.kind.as_str().into(),
                        namespace: namespace.clone(),
                        name: reference.name.as_str().into(),
                    };
                    let absent = Node {
                        identity,
                        owners: Vec::new(),
                        dependents: HashSet::from([uid.clone()]),
                        absent: true,
                        being_deleted: false,
                        deleting_dependents: false,
                    };
                    self.nodes.insert(reference.uid.as_str().into(), absent);
                    due.push(Due::Examine(uid.clone()));
                }
            }
        }
    }

    /// The object is gone.
    pub fn forget(&mut self, uid: &str) -> Vec<Due> {
        let Some((uid, node)) = self.nodes.remove_entry(uid) else {
            return Vec::new();
        };
        let mut due: Vec<Due> = node.dependents.iter().cloned().map(Due::Examine).collect();
        for reference in &node.owners {
            if let Some(owner) = self.nodes.get_mut(reference.uid.as_str()) {
                owner.dependents.remove(&uid);
                if owner.deleting_dependents {
                    due.push(Due::Examine(reference.uid.as_str().into()));
                }
                if owner.absent && owner.dependents.is_empty() {
                    self.nodes.remove(reference.uid.as_str());
                }
            }
        }
        if !node.dependents.is_empty() {
            // Its dependents still name it: it stays as absent until the last of them is gone or freed.
            let absent = Node {
                owners: Vec::new(),
                absent: true,
                being_deleted: false,
                deleting_dependents: false,
                ..node
            };
            self.nodes.insert(uid, absent);
        }
        due
    }

    /// Of an object in foreground deletion: `Ok` if nothing blocks it any more and its finalizer may go, else what must be looked at first.
    pub fn finish_foreground(&self, uid: &str) -> Result<(), Vec<Due>> {
        let Some(node) = self.nodes.get(uid) else {
            return Ok(());
        };
        let blocking = |dependent: &&Uid| {
            let owners = self
                .nodes
                .get(*dependent)
                .map(|node| node.owners.as_slice())
                .unwrap_or_default();
            owners
                .iter()
                .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
        };
        let blockers: Vec<&Uid> = node.dependents.iter().filter(blocking).collect();
        if blockers.is_empty() {
            return Ok(());
        }
        let idle = |uid: &&&Uid| {
            self.nodes
                .get(**uid)
                .is_some_and(|node| !node.deleting_dependents)
        };
        Err(blockers
            .iter()
            .filter(idle)
            .map(|uid| Due::Examine((*uid).clone()))
            .collect())
    }
}

/// What the server says of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    Present,
    /// In foreground deletion: it waits for this object.
    Waiting,
    /// Not there, or there under another UID.
    Absent,
    /// It could not be read: nothing may be concluded.
    Unknown,
}

/// What is to be done with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Some owners live on: only the references to the others go.
    DropOwners(Vec<String>),
    /// `policy`: how its own dependents fare.
    Delete {
        policy: Policy,
    },
    /// An owner's state is unknown: ask again later.
    Retry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Background,
    Foreground,
    Orphan,
}

impl Policy {
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::Background => "Background",
            Policy::Foreground => "Foreground",
            Policy::Orphan => "Orphan",
        }
    }
}

/// Judges a live object by the state of each of its owners (in the order of its references).
pub fn judge(metadata: &ObjectMeta, owners: &[OwnerState], has_dependents: bool) -> Verdict {
    let references = metadata.owner_references.as_deref().unwrap_or_default();
    if references.is_empty() || metadata.deletion_timestamp.is_some() {
        return Verdict::Keep;
    }
    if owners.contains(&OwnerState::Unknown) {
        return Verdict::Retry;
    }
    let in_state = |state: OwnerState| {
        references
            .iter()
            .zip(owners)
            .filter(move |(_, owner)| **owner == state)
            .map(|(reference, _)| reference.uid.clone())
    };
    if owners.contains(&OwnerState::Present) {
        let dropped: Vec<String> = in_state(OwnerState::Absent)
            .chain(in_state(OwnerState::Waiting))
            .collect();
        return if dropped.is_empty() {
            Verdict::Keep
        } else {
            Verdict::DropOwners(dropped)
        };
    }
    if owners.contains(&OwnerState::Waiting) && has_dependents {
        return Verdict::Delete {
            policy: Policy::Foreground,
        };
    }
    let has = |finalizer: &str| {
        metadata
            .finalizers
            .iter()
            .flatten()
            .any(|held| held == finalizer)
    };
    let policy = match () {
        () if has(ORPHAN_FINALIZER) => Policy::Orphan,
        () if has(FOREGROUND_FINALIZER) => Policy::Foreground,
        () => Policy::Background,
    };
    Verdict::Delete { policy }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn identity(name: &str) -> Identity {
        Identity {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            namespace: "a".into(),
            name: name.into(),
        }
    }

    fn metadata(
        uid: &str,
        owners: &[(&str, bool)],
        finalizers: &[&str],
        deleting: bool,
    ) -> ObjectMeta {
        let owners: Vec<_> = owners
            .iter()
            .map(|(uid, block)| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": uid, "uid": uid, "blockOwnerDeletion": block}))
            .collect();
        serde_json::from_value(
            json!({"name": uid, "uid": uid, "ownerReferences": owners, "finalizers": finalizers,
            "deletionTimestamp": deleting.then_some("2027-01-15T07:00:00Z")}),
        )
        .unwrap()
    }

    fn examine(uids: &[&str]) -> HashSet<Due> {
        uids.iter().map(|uid| Due::Examine((*uid).into())).collect()
    }

    fn set(due: Vec<Due>) -> HashSet<Due> {
        due.into_iter().collect()
    }

    #[test]
    fn dependents_are_due_when_their_owner_goes() {
        let mut graph = Graph::default();
        assert!(
            graph
                .observe(identity("o"), &metadata("o", &[], &[], false))
                .is_empty()
        );
        assert!(
            graph
                .observe(identity("d"), &metadata("d", &[("o", true)], &[], false))
                .is_empty()
        );
        assert_eq!(set(graph.forget("o")), examine(&["d"]));
        assert!(!graph.is_observed("o") && graph.len() == 2);
        graph.forget("d");
        assert!(graph.is_empty());
    }

    #[test]
    fn a_dependent_seen_before_its_owner_is_looked_at() {
        let mut graph = Graph::default();
        assert_eq!(
            set(graph.observe(identity("d"), &metadata("d", &[("o", false)], &[], false))),
            examine(&["d"])
        );
        assert!(
            graph
                .observe(identity("o"), &metadata("o", &[], &[], false))
                .is_empty()
        );
        assert!(graph.is_observed("o") && graph.has_dependents("o"));
    }

    #[test]
    fn foreground_deletion_waits_for_blocking_dependents_only() {
        let mut graph = Graph::default();
        graph.observe(identity("o"), &metadata("o", &[], &[], false));
        graph.observe(
            identity("blocks"),
            &metadata("blocks", &[("o", true)], &[], false),
        );
        graph.observe(
            identity("lax"),
            &metadata("lax", &[("o", false)], &[], false),
        );
        let due = graph.observe(
            identity("o"),
            &metadata("o", &[], &[FOREGROUND_FINALIZER], true),
        );
        assert_eq!(set(due), examine(&["o", "blocks", "lax"]));
        assert_eq!(
            graph.finish_foreground("o"),
            Err(vec![Due::Examine("blocks".into())])
        );
        assert_eq!(set(graph.forget("blocks")), examine(&["o"]));
        assert_eq!(graph.finish_foreground("o"), Ok(()));
    }

    #[test]
    fn an_orphaning_owner_is_due_for_orphaning() {
        let mut graph = Graph::default();
        let due = graph.observe(
            identity("o"),
            &metadata("o", &[], &[ORPHAN_FINALIZER], true),
        );
        assert_eq!(due, [Due::Orphan("o".into())]);
    }

    #[test]
    fn verdicts() {
        use OwnerState::{Absent, Present, Unknown, Waiting};
        let check =
            |owners: &[OwnerState], finalizers: &[&str], has_dependents: bool, expect: Verdict| {
                let references: Vec<(String, bool)> = (0..owners.len())
                    .map(|index| (format!("o{index}"), true))
                    .collect();
                let references: Vec<(&str, bool)> = references
                    .iter()
                    .map(|(uid, block)| (uid.as_str(), *block))
                    .collect();
                let metadata = metadata("d", &references, finalizers, false);
                assert_eq!(
                    judge(&metadata, owners, has_dependents),
                    expect,
                    "{owners:?}"
                );
            };
        check(&[], &[], false, Verdict::Keep);
        check(&[Present], &[], false, Verdict::Keep);
        check(
            &[Absent],
            &[],
            false,
            Verdict::Delete {
                policy: Policy::Background,
            },
        );
        check(
            &[Absent],
            &[ORPHAN_FINALIZER],
            false,
            Verdict::Delete {
                policy: Policy::Orphan,
            },
        );
        check(
            &[Absent],
            &[FOREGROUND_FINALIZER],
            false,
            Verdict::Delete {
                policy: Policy::Foreground,
            },
        );
        check(
            &[Waiting],
            &[],
            true,
            Verdict::Delete {
                policy: Policy::Foreground,
            },
        );
        check(
            &[Waiting],
            &[],
            false,
            Verdict::Delete {
                policy: Policy::Background,
            },
        );
        check(
            &[Present, Absent, Waiting],
            &[],
            false,
            Verdict::DropOwners(vec!["o1".into(), "o2".into()]),
        );
        check(&[Absent, Unknown], &[], false, Verdict::Retry);
        assert_eq!(
            judge(&metadata("d", &[("o", true)], &[], true), &[Absent], false),
            Verdict::Keep
        );
    }
}
