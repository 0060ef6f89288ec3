//! Asking a victim of preemption to leave: the condition that says why, the deletion, the event.

use controllers::event::Event;
use controllers::time::whole_seconds;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DeleteParams, Patch, Preconditions};
use scheduler::Victim;
use serde_json::json;

use super::bind::Binder;
use crate::error;

impl Binder {
    /// True if the victim leaves or is gone; false if it stays.
    pub async fn evict(&self, victim: &Victim, preemptor: &Pod, node: &str) -> bool {
        let _permit = self.reports.acquire().await;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &victim.namespace);
        let scheduler = preemptor
            .spec
            .as_ref()
            .and_then(|spec| spec.scheduler_name.as_deref());
        let now = whole_seconds(Timestamp::now());
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", scheduler.unwrap_or(scheduler::DEFAULT_SCHEDULER)),
            "lastTransitionTime": Time(now),
        });
        let patch =
            json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [condition]}});
        let patched = api
            .patch_status(
                &victim.name,
                &super::written_by_scheduler(),
                &Patch::Strategic(&patch),
            )
            .await;
        match patched {
            Err(error) if error::is_not_found(&error) => return true,
            // The deletion matters more than its reason.
            Err(error) => {
                tracing::debug!(victim = %victim.name, error = %error::message(&error), "condition not written")
            }
            Ok(_) => {}
        }
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(victim.uid.to_string()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&victim.name, &parameters).await {
            Ok(_) => {
                let uid = preemptor.metadata.uid.as_deref().unwrap_or_default();
                let event = Event::normal(
                    "Preempted",
                    format!("Preempted by pod {uid} on node {node}"),
                );
                self.recorder.record_reference(reference(victim), event);
                true
            }
            // Gone, or another pod of the same name by now.
            Err(error) if error::is_not_found(&error) || error::is_conflict(&error) => true,
            Err(error) => {
                tracing::warn!(victim = %victim.name, namespace = %victim.namespace, error = %error::message(&error), "victim not deleted");
                false
            }
        }
    }
}

fn reference(victim: &Victim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(victim.namespace.clone()),
        name: Some(victim.name.to_string()),
        uid: Some(victim.uid.to_string()),
        ..ObjectReference::default()
    }
}
