//! Counts and conditions of a deployment.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::revision::same_template;
use super::{Action, Outcome, Work};
use crate::event::Event;
use crate::owner;

impl Work<'_> {
    pub(super) fn condition(&self, type_: &str) -> Option<&DeploymentCondition> {
        self.status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == type_)
    }

    /// Sets a condition. One with the same status and reason stays as it is; the transition time moves only with the status.
    pub(super) fn set_condition(
        &mut self,
        type_: &str,
        status: &str,
        reason: &str,
        message: impl Into<String>,
    ) {
        set_condition(
            &mut self.status,
            type_,
            status,
            reason,
            message.into(),
            self.now,
        );
    }

    fn remove_condition(&mut self, type_: &str) {
        if let Some(conditions) = &mut self.status.conditions {
            conditions.retain(|condition| condition.type_ != type_);
        }
    }

    /// Pausing and resuming stop the clock of the progress deadline.
    pub(super) fn note_pause(&mut self) {
        let reason = self
            .condition("Progressing")
            .and_then(|condition| condition.reason.clone());
        if self.progress_deadline_seconds().is_none()
            || reason.as_deref() == Some("ProgressDeadlineExceeded")
        {
            return;
        }
        let noted = reason.as_deref() == Some("DeploymentPaused");
        match self.spec.paused == Some(true) {
            true if !noted => self.set_condition(
                "Progressing",
                "Unknown",
                "DeploymentPaused",
                "Deployment is paused",
            ),
            false if noted => self.set_condition(
                "Progressing",
                "Unknown",
                "DeploymentResumed",
                "Deployment is resumed",
            ),
            _ => {}
        }
    }

    /// Ends a step that is no rollout: counts, and nothing said of progress.
    pub(super) fn finish_plain(mut self) -> Outcome {
        self.status = self.counted();
        self.into_outcome(None)
    }

    /// Ends a step of a rollout: counts, progress, deadline.
    pub(super) fn finish_rollout(mut self) -> Outcome {
        let before = self.status.clone();
        self.status = self.counted();
        if self.progress_deadline_seconds().is_none() {
            self.remove_condition("Progressing");
        }
        let progressing = before
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "Progressing")
            .cloned();
        let settled = self.status.replicas.unwrap_or(0)
            == self.status.updated_replicas.unwrap_or(0)
            && progressing.as_ref().is_some_and(|condition| {
                condition.reason.as_deref() == Some("NewReplicaSetAvailable")
            });
        if self.progress_deadline_seconds().is_some() && !settled {
            self.judge_progress(progressing.as_ref());
        }
        self.carry_failure();
        let requeue_after = self.deadline_in();
        self.into_outcome(requeue_after)
    }

    fn judge_progress(&mut self, current: Option<&DeploymentCondition>) {
        let subject = match self.new {
            Some(new) => format!("ReplicaSet \"{}\"", self.replica_sets[new].name()),
            None => format!("Deployment \"{}\"", self.name()),
        };
        let stored = self.stored.status.clone().unwrap_or_default();
        if complete(
            self.desired(),
            &self.status,
            self.stored.metadata.generation,
        ) {
            self.set_condition(
                "Progressing",
                "True",
                "NewReplicaSetAvailable",
                format!("{subject} has successfully progressed."),
            );
        } else if progressed(&stored, &self.status) {
            let since = current
                .filter(|condition| condition.status == "True")
                .and_then(|condition| condition.last_transition_time.clone());
            // Progress is noted anew even under the same reason: that is what the deadline counts from.
            self.remove_condition("Progressing");
            self.set_condition(
                "Progressing",
                "True",
                "ReplicaSetUpdated",
                format!("{subject} is progressing."),
            );
            let noted = self
                .status
                .conditions
                .iter_mut()
                .flatten()
                .find(|condition| condition.type_ == "Progressing");
            if let (Some(noted), Some(since)) = (noted, since) {
                noted.last_transition_time = Some(since);
            }
        } else if self.timed_out() {
            self.set_condition(
                "Progressing",
                "False",
                "ProgressDeadlineExceeded",
                format!("{subject} has timed out progressing."),
            );
        }
    }

    fn timed_out(&self) -> bool {
        let (Some(seconds), Some(condition)) = (
            self.progress_deadline_seconds(),
            self.condition("Progressing"),
        ) else {
            return false;
        };
        match condition.reason.as_deref() {
            Some("NewReplicaSetAvailable") => false,
            Some("ProgressDeadlineExceeded") => true,
            _ => condition.last_update_time.as_ref().is_some_and(|from| {
                self.now.duration_since(from.0) > SignedDuration::from_secs(seconds.into())
            }),
        }
    }

    /// Time until the deadline is to be looked at, a second late so that it has then surely passed.
    fn deadline_in(&self) -> Option<SignedDuration> {
        let seconds = self.progress_deadline_seconds()?;
        let condition = self.condition("Progressing")?;
        if complete(
            self.desired(),
            &self.status,
            self.stored.metadata.generation,
        ) || condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
        {
            return None;
        }
        let from = condition.last_update_time.as_ref()?.0;
        let left = SignedDuration::from_secs(seconds.into()) - self.now.duration_since(from);
        Some(left.max(SignedDuration::ZERO) + SignedDuration::from_secs(1))
    }

    /// A replica set's failure is the deployment's; the new one's before any other.
    fn carry_failure(&mut self) {
        let failure_of = |index: usize| {
            let status = self.replica_sets[index].object.status.as_ref()?;
            status
                .conditions
                .iter()
                .flatten()
                .find(|condition| condition.type_ == "ReplicaFailure")
                .cloned()
        };
        let failure = self
            .new
            .and_then(failure_of)
            .or_else(|| (0..self.replica_sets.len()).find_map(failure_of));
        match failure {
            None => self.remove_condition("ReplicaFailure"),
            Some(failure) => {
                let unchanged = self
                    .condition("ReplicaFailure")
                    .is_some_and(|c| c.status == failure.status && c.reason == failure.reason);
                if !unchanged {
                    self.remove_condition("ReplicaFailure");
                    self.status
                        .conditions
                        .get_or_insert_default()
                        .push(DeploymentCondition {
                            type_: failure.type_,
                            status: failure.status,
                            reason: failure.reason,
                            message: failure.message,
                            last_update_time: failure.last_transition_time.clone(),
                            last_transition_time: failure.last_transition_time,
                        });
                }
            }
        }
    }

    fn counted(&self) -> DeploymentStatus {
        let count = |of: &dyn Fn(&ReplicaSetStatus) -> i32| -> i32 {
            self.replica_sets
                .iter()
                .filter_map(|working| working.object.status.as_ref())
                .map(of)
                .sum()
        };
        let available = count(&|status| status.available_replicas.unwrap_or(0));
        let updated = self
            .new
            .and_then(|new| self.replica_sets[new].object.status.as_ref())
            .map_or(0, |status| status.replicas);
        let mut counted = DeploymentStatus {
            observed_generation: self.stored.metadata.generation,
            replicas: Some(count(&|status| status.replicas)),
            updated_replicas: Some(updated),
            ready_replicas: Some(count(&|status| status.ready_replicas.unwrap_or(0))),
            available_replicas: Some(available),
            unavailable_replicas: Some((self.total_replicas() - available).max(0)),
            terminating_replicas: self.terminating(),
            collision_count: self.status.collision_count,
            conditions: self.status.conditions.clone(),
        };
        let (status, reason, message) = if available >= self.desired() - self.max_unavailable() {
            (
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.",
            )
        } else {
            (
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
            )
        };
        set_condition(
            &mut counted,
            "Available",
            status,
            reason,
            message.into(),
            self.now,
        );
        counted
    }

    /// `None` while a replica set has not yet said.
    fn terminating(&self) -> Option<i32> {
        let mut sum = 0;
        for status in self
            .replica_sets
            .iter()
            .filter_map(|working| working.object.status.as_ref())
        {
            match status.terminating_replicas {
                Some(count) => sum += count,
                None if status.observed_generation.unwrap_or(0) == 0 => {}
                None => return None,
            }
        }
        Some(sum)
    }

    fn into_outcome(self, requeue_after: Option<SignedDuration>) -> Outcome {
        let changed = self.stored.status.as_ref().map(canonical) != Some(canonical(&self.status));
        Outcome {
            actions: self.actions,
            status: changed.then_some(self.status),
            requeue_after,
        }
    }
}

/// Zero and absent are the same on the wire for these counts.
fn canonical(status: &DeploymentStatus) -> DeploymentStatus {
    let mut status = status.clone();
    for count in [
        &mut status.replicas,
        &mut status.updated_replicas,
        &mut status.ready_replicas,
        &mut status.available_replicas,
        &mut status.unavailable_replicas,
    ] {
        *count = count.filter(|count| *count != 0);
    }
    status.conditions = status
        .conditions
        .filter(|conditions| !conditions.is_empty());
    status
}

fn set_condition(
    status: &mut DeploymentStatus,
    type_: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let current = conditions
        .iter()
        .position(|condition| condition.type_ == type_);
    let mut since = now;
    if let Some(index) = current {
        let current = &conditions[index];
        if current.status == value && current.reason.as_deref() == Some(reason) {
            return;
        }
        if current.status == value
            && let Some(time) = &current.last_transition_time
        {
            since = time.0;
        }
        conditions.remove(index);
    }
    conditions.push(DeploymentCondition {
        type_: type_.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(since)),
    });
}

/// All desired replicas are updated and available, no others exist, and the controller has seen the newest spec.
pub fn complete(desired: i32, status: &DeploymentStatus, generation: Option<i64>) -> bool {
    let is = |count: Option<i32>| count.unwrap_or(0) == desired;
    is(status.updated_replicas)
        && is(status.replicas)
        && is(status.available_replicas)
        && status.observed_generation.unwrap_or(0) >= generation.unwrap_or(0)
}

/// More updated, ready or available, or fewer old ones, than the stored status says.
fn progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let old = |status: &DeploymentStatus| {
        status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0)
    };
    after.updated_replicas.unwrap_or(0) > before.updated_replicas.unwrap_or(0)
        || old(after) < old(before)
        || after.ready_replicas.unwrap_or(0) > before.ready_replicas.unwrap_or(0)
        || after.available_replicas.unwrap_or(0) > before.available_replicas.unwrap_or(0)
}

/// The new replica set's name is taken. `None`: by this deployment's own, of the same template, and all is well.
/// Else the status with one more collision, which gives the next try another name.
pub fn creation_conflict(
    deployment: &Deployment,
    existing: &ReplicaSet,
) -> Option<DeploymentStatus> {
    let owned = deployment
        .metadata
        .uid
        .as_deref()
        .is_some_and(|uid| owner::is_controlled_by(&existing.metadata, uid));
    let template = existing
        .spec
        .as_ref()
        .and_then(|spec| spec.template.as_ref());
    let same = deployment
        .spec
        .as_ref()
        .zip(template)
        .is_some_and(|(spec, template)| same_template(&spec.template, template));
    if owned && same {
        return None;
    }
    let mut status = deployment.status.clone().unwrap_or_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
    Some(status)
}

/// The new replica set could not be created: what to record.
pub fn creation_failed(
    deployment: &Deployment,
    name: &str,
    error: &str,
    now: Timestamp,
) -> Outcome {
    let message = format!("Failed to create new replica set \"{name}\": {error}");
    let mut status = deployment.status.clone().unwrap_or_default();
    let deadline = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.progress_deadline_seconds)
        .filter(|seconds| *seconds != i32::MAX);
    let before = status.clone();
    if deadline.is_some() {
        set_condition(
            &mut status,
            "Progressing",
            "False",
            "ReplicaSetCreateError",
            message.clone(),
            crate::time::whole_seconds(now),
        );
    }
    Outcome {
        actions: vec![Action::Event(Event::warning(
            "ReplicaSetCreateError",
            message,
        ))],
        status: (status != before).then_some(status),
        requeue_after: None,
    }
}
