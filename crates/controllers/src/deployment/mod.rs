//! Deployment: replica sets, one a template, rolled from the old to the new.
//!
//! Enter at [`reconcile`]. It works on copies of the replica sets as if each of its writes had succeeded,
//! as upstream does with the objects that its writes answer, and ends with the writes as [`Action`]s in
//! the order in which they must happen. If creating the new replica set fails, the shell comes back to
//! [`creation_conflict`] or [`creation_failed`].
//!
//! - `revision`: template hash, revision annotations and history;
//! - `rollout`: how many replicas each replica set should have;
//! - `status`: counts and conditions.

mod revision;
mod rollout;
mod status;
#[cfg(test)]
mod tests;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::event::Event;
use crate::owner::{self, Claim};
use crate::{label, pod};

pub use revision::{REVISION, template_hash};
pub use status::{complete, creation_conflict, creation_failed};

pub const API_VERSION: &str = "apps/v1";
pub const KIND: &str = "Deployment";

pub struct Observed<'a> {
    pub deployment: &'a Deployment,
    /// Replica sets of the namespace that it owns or could adopt.
    pub replica_sets: Vec<&'a ReplicaSet>,
    /// Pods of its replica sets; looked at only under the Recreate strategy.
    pub pods: Vec<&'a Pod>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub actions: Vec<Action>,
    /// The status after the actions, if it differs from the one stored.
    pub status: Option<DeploymentStatus>,
    /// When the progress deadline is to be looked at again.
    pub requeue_after: Option<SignedDuration>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Takes over an orphan, after checking on the server that the deployment itself still lives.
    Adopt {
        name: String,
        uid: String,
    },
    Release {
        name: String,
        uid: String,
    },
    /// With a deterministic name: that it exists already is either fine or a hash collision ([`creation_conflict`]).
    Create(Box<ReplicaSet>),
    /// The whole object, with the resourceVersion that it was read at.
    Update(Box<ReplicaSet>),
    Delete {
        name: String,
        uid: String,
        resource_version: String,
    },
    /// The `deployment.kubernetes.io/revision` annotation of the deployment.
    SetRevision(String),
    /// To be recorded if the action before it succeeded.
    Event(Event),
}

/// One step.
pub fn reconcile(observed: &Observed, now: Timestamp) -> Outcome {
    let Some(spec) = observed.deployment.spec.clone() else {
        return Outcome::default();
    };
    let now = crate::time::whole_seconds(now);
    let mut work = Work {
        stored: observed.deployment,
        status: observed.deployment.status.clone().unwrap_or_default(),
        spec,
        replica_sets: Vec::new(),
        new: None,
        actions: Vec::new(),
        now,
    };
    if label::selects_everything(&work.spec.selector) {
        let event = Event::warning(
            "SelectingAll",
            "This deployment is selecting all pods. A non-empty selector is required.",
        );
        work.status.observed_generation = work.stored.metadata.generation;
        let status =
            (observed.deployment.status.as_ref() != Some(&work.status)).then_some(work.status);
        return Outcome {
            actions: vec![Action::Event(event)],
            status,
            requeue_after: None,
        };
    }
    work.claim(&observed.replica_sets);
    let deleting = work.stored.metadata.deletion_timestamp.is_some();
    if deleting {
        work.find_new(false);
        return work.finish_plain();
    }
    work.note_pause();
    if work.spec.paused == Some(true) {
        work.find_new(false);
        work.scale();
        work.clean_up();
        return work.finish_plain();
    }
    work.find_new(false);
    if work.is_scaling_event() {
        work.scale();
        return work.finish_plain();
    }
    match work.strategy() {
        Strategy::RollingUpdate => work.roll(),
        Strategy::Recreate => work.recreate(&observed.pods),
    }
    work.finish_rollout()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    RollingUpdate,
    Recreate,
}

/// A replica set as it will be after the writes so far.
#[derive(Clone, Debug)]
struct Working {
    object: ReplicaSet,
    /// Was the object read from the server, or is it to be created?
    exists: bool,
}

impl Working {
    fn replicas(&self) -> i32 {
        crate::replicaset::desired_replicas(&self.object)
    }

    fn available(&self) -> i32 {
        self.object
            .status
            .as_ref()
            .and_then(|status| status.available_replicas)
            .unwrap_or(0)
    }

    fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.object
            .metadata
            .annotations
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }
}

/// A reconcile under way.
struct Work<'a> {
    stored: &'a Deployment,
    spec: DeploymentSpec,
    status: DeploymentStatus,
    /// Oldest first. A replica set keeps its place.
    replica_sets: Vec<Working>,
    /// Which of them has the deployment's template.
    new: Option<usize>,
    actions: Vec<Action>,
    now: Timestamp,
}

impl Work<'_> {
    fn claim(&mut self, candidates: &[&ReplicaSet]) {
        for candidate in candidates {
            let name = candidate.metadata.name.clone().unwrap_or_default();
            let uid = candidate.metadata.uid.clone().unwrap_or_default();
            match owner::claim(
                &self.stored.metadata,
                &self.spec.selector,
                &candidate.metadata,
            ) {
                Claim::Owned => {}
                Claim::Adopt => self.actions.push(Action::Adopt { name, uid }),
                Claim::Release => {
                    self.actions.push(Action::Release { name, uid });
                    continue;
                }
                Claim::Foreign => continue,
            }
            self.replica_sets.push(Working {
                object: (*candidate).clone(),
                exists: true,
            });
        }
        self.replica_sets.sort_by(|a, b| {
            let age = |working: &Working| {
                working
                    .object
                    .metadata
                    .creation_timestamp
                    .as_ref()
                    .map(|time| time.0)
            };
            age(a).cmp(&age(b)).then_with(|| a.name().cmp(b.name()))
        });
    }

    fn name(&self) -> &str {
        self.stored.metadata.name.as_deref().unwrap_or_default()
    }

    fn strategy(&self) -> Strategy {
        match self
            .spec
            .strategy
            .as_ref()
            .and_then(|strategy| strategy.type_.as_deref())
        {
            Some("Recreate") => Strategy::Recreate,
            _ => Strategy::RollingUpdate,
        }
    }

    fn desired(&self) -> i32 {
        self.spec.replicas.unwrap_or(1).max(0)
    }

    /// maxSurge and maxUnavailable as counts; if both come to nothing, one may be unavailable.
    fn fenceposts(&self) -> (i32, i32) {
        if self.strategy() != Strategy::RollingUpdate {
            return (0, 0);
        }
        let rolling = self
            .spec
            .strategy
            .as_ref()
            .and_then(|strategy| strategy.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let value = |given: Option<&IntOrString>, up: bool| {
            scaled(given.unwrap_or(&quarter), self.desired(), up)
        };
        let surge = value(rolling.and_then(|r| r.max_surge.as_ref()), true);
        let unavailable = value(rolling.and_then(|r| r.max_unavailable.as_ref()), false);
        if surge == 0 && unavailable == 0 {
            (0, 1)
        } else {
            (surge, unavailable)
        }
    }

    fn max_surge(&self) -> i32 {
        self.fenceposts().0
    }

    fn max_unavailable(&self) -> i32 {
        if self.strategy() != Strategy::RollingUpdate || self.desired() == 0 {
            return 0;
        }
        self.fenceposts().1.min(self.desired())
    }

    /// Sum of the replicas asked of all replica sets.
    fn total_replicas(&self) -> i32 {
        self.replica_sets
            .iter()
            .map(Working::replicas)
            .fold(0, i32::saturating_add)
    }

    fn old(&self) -> Vec<usize> {
        (0..self.replica_sets.len())
            .filter(|index| Some(*index) != self.new)
            .collect()
    }

    /// `None`: no deadline (`i32::MAX` stands for that too).
    fn progress_deadline_seconds(&self) -> Option<i32> {
        self.spec
            .progress_deadline_seconds
            .filter(|seconds| *seconds != i32::MAX)
    }

    /// Sets a replica set's size and its size annotations; `force` writes the annotations even if the size stays.
    fn resize(&mut self, index: usize, replicas: i32, force: bool) -> bool {
        let before = self.replica_sets[index].replicas();
        if !force && before == replicas {
            return false;
        }
        let (desired, maximum) = (
            self.desired(),
            self.desired().saturating_add(self.max_surge()),
        );
        let working = &mut self.replica_sets[index];
        let annotated =
            revision::set_size_annotations(&mut working.object.metadata, desired, maximum);
        if before == replicas && !annotated {
            return false;
        }
        working.object.spec.get_or_insert_default().replicas = Some(replicas);
        self.write(index);
        if before != replicas {
            let direction = if before < replicas { "up" } else { "down" };
            let name = self.replica_sets[index].name();
            let event = Event::normal(
                "ScalingReplicaSet",
                format!("Scaled {direction} replica set {name} from {before} to {replicas}"),
            );
            self.actions.push(Action::Event(event));
        }
        before != replicas
    }

    /// Asks for the replica set to be written as it stands now. Several changes of one replica set become one write.
    fn write(&mut self, index: usize) {
        let working = &self.replica_sets[index];
        let same = |action: &&mut Action| match action {
            Action::Update(object) | Action::Create(object) => {
                object.metadata.name == working.object.metadata.name
            }
            _ => false,
        };
        match self.actions.iter_mut().find(same) {
            Some(Action::Update(object) | Action::Create(object)) => {
                **object = working.object.clone()
            }
            _ if working.exists => self
                .actions
                .push(Action::Update(Box::new(working.object.clone()))),
            _ => self
                .actions
                .push(Action::Create(Box::new(working.object.clone()))),
        }
    }

    /// Deletes old replica sets beyond the revision history limit, oldest revision first, only ones that are empty and settled.
    fn clean_up(&mut self) {
        let Some(limit) = self
            .spec
            .revision_history_limit
            .filter(|limit| *limit != i32::MAX)
        else {
            return;
        };
        let mut cleanable: Vec<usize> = self.old();
        cleanable.retain(|index| {
            self.replica_sets[*index]
                .object
                .metadata
                .deletion_timestamp
                .is_none()
        });
        let excess = cleanable.len().saturating_sub(limit.max(0) as usize);
        cleanable
            .sort_by_key(|index| revision::revision_of(&self.replica_sets[*index].object.metadata));
        for index in cleanable.into_iter().take(excess) {
            let working = &self.replica_sets[index];
            let metadata = &working.object.metadata;
            let status = working.object.status.as_ref();
            let settled = metadata.generation.unwrap_or(0)
                <= status
                    .and_then(|status| status.observed_generation)
                    .unwrap_or(0);
            if working.replicas() == 0
                && status.is_none_or(|status| status.replicas == 0)
                && settled
            {
                self.actions.push(Action::Delete {
                    name: working.name().to_string(),
                    uid: metadata.uid.clone().unwrap_or_default(),
                    resource_version: metadata.resource_version.clone().unwrap_or_default(),
                });
            }
        }
    }
}

/// A count or a share of `total`, rounded up or down; what is neither counts as nothing (validation lets none through).
fn scaled(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(count) => (*count).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text
                .strip_suffix('%')
                .and_then(|percent| percent.parse().ok())
                .unwrap_or(0)
                .clamp(0, 1_000_000);
            let product = percent * i64::from(total);
            let count = if up {
                (product + 99) / 100
            } else {
                product / 100
            };
            i32::try_from(count).unwrap_or(i32::MAX)
        }
    }
}

/// Do pods of old replica sets still run? Under Recreate the new ones must wait for them.
fn old_pods_run(old_uids: &[String], pods: &[&Pod]) -> bool {
    pods.iter().any(|candidate| {
        let of_old = owner::controller_of(&candidate.metadata)
            .is_some_and(|owner| old_uids.contains(&owner.uid));
        of_old && !pod::is_terminal(candidate)
    })
}
