//! Having a pod's volumes bound or provisioned on its node before the pod itself is bound.
//!
//! The scheduler only says which volume and which node ([`VolumeAction`]); the PersistentVolume controller
//! and the provisioner do the rest. Repeating an action changes nothing.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::Patch;
use kube::runtime::wait;
use kube::{Api, Client};
use scheduler::VolumeAction;
use serde_json::json;

use crate::error;

/// Longest wait until all claims are bound (upstream's bindTimeoutSeconds).
const BOUND_WITHIN: Duration = Duration::from_secs(600);

/// Does the actions and waits until the claims are bound.
///
/// # Errors
/// Why they are not, in words.
pub async fn prepare(client: &Client, actions: &[VolumeAction], node: &str) -> Result<(), String> {
    for action in actions {
        match action {
            VolumeAction::Bind { volume, claim } => bind(client, volume, claim).await?,
            VolumeAction::Provision { claim, .. } => select_node(client, claim, node).await?,
        }
    }
    let claims = actions.iter().map(|action| match action {
        VolumeAction::Bind { claim, .. } | VolumeAction::Provision { claim, .. } => claim,
    });
    for (namespace, name) in claims {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
        let is_bound = |claim: Option<&PersistentVolumeClaim>| {
            let status = claim.and_then(|claim| claim.status.as_ref());
            status.is_some_and(|status| status.phase.as_deref() == Some("Bound"))
        };
        let waited =
            tokio::time::timeout(BOUND_WITHIN, wait::await_condition(api, name, is_bound)).await;
        match waited {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("persistentvolumeclaim \"{name}\": {error}")),
            Err(_) => {
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" is not bound after {} seconds",
                    BOUND_WITHIN.as_secs()
                ));
            }
        }
    }
    Ok(())
}

async fn bind(
    client: &Client,
    volume: &str,
    (namespace, name): &(String, String),
) -> Result<(), String> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let claim = claims
        .get(name)
        .await
        .map_err(|error| error::message(&error))?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let current = volumes
        .get(volume)
        .await
        .map_err(|error| error::message(&error))?;
    let held = current
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref());
    if let Some(held) = held {
        let same = held.namespace.as_ref() == Some(namespace) && held.name.as_ref() == Some(name);
        return if same {
            Ok(())
        } else {
            Err(format!(
                "persistentvolume \"{volume}\" was taken by another claim"
            ))
        };
    }
    let patch = json!({
        "metadata": {"resourceVersion": current.metadata.resource_version, "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}},
        "spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name,
            "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version}},
    });
    let patched = volumes
        .patch(
            volume,
            &super::written_by_scheduler(),
            &Patch::Merge(&patch),
        )
        .await;
    patched.map(|_| ()).map_err(|error| error::message(&error))
}

async fn select_node(
    client: &Client,
    (namespace, name): &(String, String),
    node: &str,
) -> Result<(), String> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}});
    let patched = claims
        .patch(name, &super::written_by_scheduler(), &Patch::Merge(&patch))
        .await;
    patched.map(|_| ()).map_err(|error| error::message(&error))
}
