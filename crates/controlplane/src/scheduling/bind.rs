//! Binding pods to the nodes that a plan chose, and telling why others wait.

use std::sync::Arc;
use std::time::Duration;

use controllers::event::Event;
use controllers::time::whole_seconds;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PostParams};
use kube::{Api, Client};
use scheduler::{PendingPod, VolumeAction};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::volumes;
use crate::error;
use crate::events::Recorder;

const ASK_AGAIN_MAX: Duration = Duration::from_secs(10);

pub struct Binder {
    pub client: Client,
    pub recorder: Recorder,
    pub binds: Semaphore,
    pub answer_within: Duration,
    pub reports: Semaphore,
}

/// How a binding ended.
pub enum Bound {
    Done,
    /// The pod is no more, or is bound elsewhere: nothing is left to do.
    Gone {
        uid: scheduler::Uid,
    },
    /// Certainly not bound.
    Failed {
        pending: PendingPod,
        pod: Arc<Pod>,
        message: String,
    },
}

impl Binder {
    /// Posts the binding and does not return before it is known whether it holds.
    ///
    /// `volumes`: what has to be bound or provisioned before; waiting for that holds up no other pod.
    pub async fn bind(
        &self,
        pending: PendingPod,
        pod: Arc<Pod>,
        binding: &Binding,
        volumes: &[VolumeAction],
    ) -> Bound {
        let node = binding.target.name.as_deref().unwrap_or_default();
        if let Err(failure) = volumes::prepare(&self.client, volumes, node).await {
            let message = format!("binding volumes: {failure}");
            return Bound::Failed {
                pending,
                pod,
                message,
            };
        }
        let _permit = self.binds.acquire().await;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pending.namespace);
        let parameters = PostParams::default();
        let post = api.create_subresource::<Binding, Value>(
            "binding",
            &pending.name,
            &parameters,
            binding,
        );
        let failure = match tokio::time::timeout(self.answer_within, post).await {
            Ok(Ok(_)) => return self.done(&pending, &pod, node),
            Ok(Err(error)) if error::is_not_found(&error) => {
                return Bound::Gone { uid: pending.uid };
            }
            Ok(Err(error)) => error::message(&error),
            Err(_) => format!("no answer within {:?}", self.answer_within),
        };
        let mut wait = Duration::from_millis(100);
        loop {
            match api.get_opt(&pending.name).await {
                Ok(None) => return Bound::Gone { uid: pending.uid },
                Ok(Some(fresh)) if fresh.metadata.uid.as_deref() != Some(&*pending.uid) => {
                    return Bound::Gone { uid: pending.uid };
                }
                Ok(Some(fresh)) => match controllers::pod::node_name(&fresh) {
                    Some(bound) if bound == node => return self.done(&pending, &pod, node),
                    Some(_) => return Bound::Gone { uid: pending.uid },
                    None => {
                        let message = format!("binding to node {node} failed: {failure}");
                        return Bound::Failed {
                            pending,
                            pod: Arc::new(fresh),
                            message,
                        };
                    }
                },
                Err(error) => {
                    tracing::warn!(pod = %pending.name, namespace = %pending.namespace, error = %error::message(&error), "cannot tell whether the pod is bound");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(ASK_AGAIN_MAX);
                }
            }
        }
    }

    fn done(&self, pending: &PendingPod, pod: &Pod, node: &str) -> Bound {
        let message = format!(
            "Successfully assigned {}/{} to {node}",
            pending.namespace, pending.name
        );
        self.recorder
            .record(pod, Event::normal("Scheduled", message));
        Bound::Done
    }

    /// Records why a pod waits, as event and as its PodScheduled condition.
    ///
    /// `nominated`: the node whose victims it waits for.
    pub async fn report_unschedulable(&self, pod: &Pod, message: String, nominated: Option<&str>) {
        self.recorder
            .record(pod, Event::warning("FailedScheduling", message.clone()));
        let current = controllers::pod::condition(pod, "PodScheduled");
        let stands =
            |condition: &k8s_openapi::api::core::v1::PodCondition| condition.status == "False";
        if current.is_some_and(|c| {
            stands(c)
                && c.reason.as_deref() == Some("Unschedulable")
                && c.message.as_ref() == Some(&message)
        }) && nominated.is_none_or(|node| {
            let status = pod.status.as_ref();
            status.and_then(|status| status.nominated_node_name.as_deref()) == Some(node)
        }) {
            return;
        }
        let since = current
            .filter(|c| stands(c))
            .and_then(|condition| condition.last_transition_time.clone());
        let now = whole_seconds(Timestamp::now());
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": since.unwrap_or(Time(now)), "observedGeneration": pod.metadata.generation,
        });
        let mut patch =
            json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
        if let Some(node) = nominated {
            patch["status"]["nominatedNodeName"] = node.into();
        }
        let _permit = self.reports.acquire().await;
        let api: Api<Pod> = Api::namespaced(
            self.client.clone(),
            pod.metadata.namespace.as_deref().unwrap_or_default(),
        );
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if let Err(error) = api
            .patch_status(
                name,
                &super::written_by_scheduler(),
                &Patch::Strategic(&patch),
            )
            .await
            && !error::is_not_found(&error)
        {
            tracing::debug!(pod = name, error = %error::message(&error), "condition not written");
        }
    }
}
