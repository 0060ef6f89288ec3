//! Leader election by a Lease, for control planes with several instances.
//!
//! The holder renews; another takes over when it has seen no renewal for the lease's duration by its own
//! clock, so that clocks need not agree. A holder that cannot renew in time stops acting before another
//! can start.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::error;

/// Upstream's durations are the defaults.
#[derive(Clone, Debug)]
pub struct LeaderElection {
    pub namespace: String,
    pub name: String,
    /// Unique for this instance.
    pub identity: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl LeaderElection {
    pub fn new(name: impl Into<String>, identity: impl Into<String>) -> Self {
        LeaderElection {
            namespace: "kube-system".into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Runs `work` while this instance leads; starts it anew each time it comes to lead again. Never returns unless `work` does.
pub async fn lead<W: Future<Output = ()>>(
    client: Client,
    election: LeaderElection,
    work: impl Fn() -> W,
) {
    let mut candidate = Candidate {
        api: Api::namespaced(client, &election.namespace),
        election,
        seen: None,
    };
    loop {
        while !candidate.try_hold().await.unwrap_or(false) {
            tokio::time::sleep(candidate.election.retry_period).await;
        }
        tracing::info!(lease = %candidate.election.name, identity = %candidate.election.identity, "leading");
        tokio::select! {
            () = work() => return,
            () = candidate.hold() => tracing::warn!(lease = %candidate.election.name, "no longer leading"),
        }
    }
}

struct Candidate {
    api: Api<Lease>,
    election: LeaderElection,
    /// The lease's version as last seen, and when it was first seen like that.
    seen: Option<(String, Instant)>,
}

impl Candidate {
    /// Renews until it has failed for the renew deadline.
    async fn hold(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < self.election.renew_deadline {
            tokio::time::sleep(self.election.retry_period).await;
            match tokio::time::timeout(self.election.renew_deadline, self.try_hold()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => {
                    tracing::warn!(lease = %self.election.name, error = %error::message(&error), "lease not renewed")
                }
                Err(_) => return,
            }
        }
    }

    /// Takes or renews the lease if it may be. True: this instance holds it now.
    async fn try_hold(&mut self) -> Result<bool, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = self.api.get_opt(&self.election.name).await? else {
            let metadata = ObjectMeta {
                name: Some(self.election.name.clone()),
                namespace: Some(self.election.namespace.clone()),
                ..ObjectMeta::default()
            };
            let spec = LeaseSpec {
                holder_identity: Some(self.election.identity.clone()),
                lease_duration_seconds: i32::try_from(self.election.lease_duration.as_secs()).ok(),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            };
            return settle(
                self.api
                    .create(
                        &PostParams::default(),
                        &Lease {
                            metadata,
                            spec: Some(spec),
                        },
                    )
                    .await,
            );
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, Instant::now()));
        }
        let spec = lease.spec.get_or_insert_default();
        let holder = spec
            .holder_identity
            .clone()
            .filter(|holder| !holder.is_empty());
        let own = holder.as_deref() == Some(&self.election.identity);
        let duration = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.election.lease_duration, Duration::from_secs);
        let expired = self
            .seen
            .as_ref()
            .is_some_and(|(_, since)| since.elapsed() > duration);
        if !own && holder.is_some() && !expired {
            return Ok(false);
        }
        if !own {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.holder_identity = Some(self.election.identity.clone());
        spec.lease_duration_seconds = i32::try_from(self.election.lease_duration.as_secs()).ok();
        spec.renew_time = Some(now);
        settle(
            self.api
                .replace(&self.election.name, &PostParams::default(), &lease)
                .await,
        )
    }
}

/// Losing a race is no error.
fn settle(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error::is_conflict(&error) || error::already_exists(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
