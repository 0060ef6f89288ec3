//! Kinds that placement heeds and that the API server may not serve: budgets, volumes, pod groups.
//!
//! What is served is asked once ([`watch_served`]); only that is watched, and the rest costs nothing. An
//! API server that cannot be reached is asked again with back-off, and for a custom resource, whose
//! definition may come later, every minute.

use std::borrow::Cow;
use std::fmt::Debug;
use std::time::Duration;

use client::Informer;
use client::informer::Change;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use kube::core::{NamespaceResourceScope, ObjectMeta};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use scheduler::{GroupApi, GroupKey, GroupSpec, Snapshot};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Input;
use crate::error;

const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(60);

pub enum Observed {
    Budget(Change<PodDisruptionBudget>),
    Claim(Change<PersistentVolumeClaim>),
    Volume(Change<PersistentVolume>),
    Class(Change<StorageClass>),
    CsiNode(Change<CSINode>),
    CsiDriver(Change<CSIDriver>),
    Capacity(Change<CSIStorageCapacity>),
    StatefulSet(Change<StatefulSet>),
    Group(Change<PodGroup>),
    CustomGroup(Change<CustomPodGroup>),
}

/// A PodGroup of `scheduling.x-k8s.io/v1alpha1`, the custom resource of the coscheduling plugin: what placement reads of it.
#[derive(Clone, Debug, Deserialize)]
pub struct CustomPodGroup {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: CustomPodGroupSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CustomPodGroupSpec {
    min_member: Option<i32>,
}

impl Resource for CustomPodGroup {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "PodGroup".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "scheduling.x-k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1alpha1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "podgroups".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Whom a change may help.
pub enum Helps {
    Nobody,
    Claimants,
    Group(GroupKey),
}

impl Observed {
    /// Takes the change into the snapshot.
    pub fn apply(&self, snapshot: &mut Snapshot) -> Helps {
        match self {
            Observed::Budget(change) => match &change.after {
                Some(budget) => snapshot.observe_budget(budget),
                None => snapshot.forget_budget(&change.key.namespace, &change.key.name),
            },
            Observed::StatefulSet(change) => {
                let owners = snapshot.owners_mut();
                match (&change.after, &change.before) {
                    (Some(set), _) => {
                        if let Some(spec) = &set.spec {
                            owners.observe_controller(
                                set.metadata.uid.as_deref().unwrap_or_default(),
                                &spec.selector,
                            );
                        }
                    }
                    (None, Some(set)) => {
                        owners.forget_controller(set.metadata.uid.as_deref().unwrap_or_default())
                    }
                    (None, None) => {}
                }
            }
            Observed::Group(change) => {
                let key = GroupKey {
                    api: GroupApi::Kubernetes,
                    namespace: change.key.namespace.clone(),
                    name: change.key.name.clone(),
                };
                match &change.after {
                    Some(group) => snapshot.groups_mut().observe(group),
                    None => snapshot.groups_mut().forget(&key),
                }
                return Helps::Group(key);
            }
            Observed::CustomGroup(change) => {
                let key = GroupKey {
                    api: GroupApi::Label,
                    namespace: change.key.namespace.clone(),
                    name: change.key.name.clone(),
                };
                match &change.after {
                    Some(group) => {
                        let min_count = group.spec.min_member.unwrap_or(1);
                        let spec = GroupSpec {
                            min_count: Some(usize::try_from(min_count).unwrap_or(0)),
                            ..GroupSpec::default()
                        };
                        snapshot.groups_mut().observe_spec(key.clone(), spec);
                    }
                    None => snapshot.groups_mut().forget(&key),
                }
                return Helps::Group(key);
            }
            volumes => {
                volumes.apply_volumes(snapshot);
                return Helps::Claimants;
            }
        }
        Helps::Nobody
    }

    fn apply_volumes(&self, snapshot: &mut Snapshot) {
        let storage = snapshot.storage_mut();
        match self {
            Observed::Claim(change) => match &change.after {
                Some(claim) => storage.observe_claim(claim),
                None => storage.forget_claim(&change.key.namespace, &change.key.name),
            },
            Observed::Volume(change) => match &change.after {
                Some(volume) => storage.observe_volume(volume),
                None => storage.forget_volume(&change.key.name),
            },
            Observed::Class(change) => match &change.after {
                Some(class) => storage.observe_class(class),
                None => storage.forget_class(&change.key.name),
            },
            Observed::CsiNode(change) => match &change.after {
                Some(node) => storage.observe_csi_node(node),
                None => storage.forget_csi_node(&change.key.name),
            },
            Observed::CsiDriver(change) => match &change.after {
                Some(driver) => storage.observe_csi_driver(driver),
                None => storage.forget_csi_driver(&change.key.name),
            },
            Observed::Capacity(change) => match &change.after {
                Some(capacity) => storage.observe_capacity(capacity),
                None => storage.forget_capacity(&change.key.namespace, &change.key.name),
            },
            Observed::Budget(_)
            | Observed::StatefulSet(_)
            | Observed::Group(_)
            | Observed::CustomGroup(_) => {}
        }
    }
}

/// Starts a watch for every one of the kinds that the API server serves. The watches end with the tasks.
pub fn watch_served(
    tasks: &mut JoinSet<()>,
    client: &Client,
    sender: &mpsc::UnboundedSender<Input>,
) {
    watch(tasks, client, sender, Origin::BuiltIn, Observed::Budget);
    watch(tasks, client, sender, Origin::BuiltIn, Observed::Claim);
    watch(tasks, client, sender, Origin::BuiltIn, Observed::Volume);
    watch(tasks, client, sender, Origin::BuiltIn, Observed::Class);
    watch(tasks, client, sender, Origin::BuiltIn, Observed::CsiNode);
    watch(tasks, client, sender, Origin::BuiltIn, Observed::CsiDriver);
    watch(tasks, client, sender, Origin::BuiltIn, Observed::Capacity);
    watch(
        tasks,
        client,
        sender,
        Origin::BuiltIn,
        Observed::StatefulSet,
    );
    watch(tasks, client, sender, Origin::BuiltIn, Observed::Group);
    watch(tasks, client, sender, Origin::Custom, Observed::CustomGroup);
}

/// A built-in kind is served from the start or never.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    BuiltIn,
    Custom,
}

fn watch<K>(
    tasks: &mut JoinSet<()>,
    client: &Client,
    sender: &mpsc::UnboundedSender<Input>,
    origin: Origin,
    observed: fn(Change<K>) -> Observed,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (client, sender) = (client.clone(), sender.clone());
    tasks.spawn(async move {
        while !is_served::<K>(&client).await {
            tracing::debug!(kind = %K::kind(&()), group = %K::group(&()), "not served, not watched");
            if origin == Origin::BuiltIn {
                return;
            }
            tokio::time::sleep(ASK_AGAIN_MAX).await;
        }
        // Most recent: what was bound a moment ago must not be taken for free.
        let config = watcher::Config::default();
        let _watch = Informer::start(Api::<K>::all(client), config, move |change| {
            // A closed channel means that the loop has ended, and with it all interest in changes.
            let _ = sender.send(Input::Other(observed(change)));
        });
        std::future::pending::<()>().await;
    });
}

/// Asks the API server's discovery whether it serves a kind, until it answers.
async fn is_served<K: Resource<DynamicType = ()>>(client: &Client) -> bool {
    let mut wait = ASK_AGAIN;
    loop {
        let (group, version) = (K::group(&()), K::version(&()));
        let listed = if group.is_empty() {
            client.list_core_api_resources(&version).await
        } else {
            client
                .list_api_group_resources(&format!("{group}/{version}"))
                .await
        };
        match listed {
            Ok(list) => {
                let plural = K::plural(&());
                return list
                    .resources
                    .iter()
                    .any(|resource| resource.name == plural);
            }
            Err(error) if error::is_not_found(&error) || error::is_forbidden(&error) => {
                return false;
            }
            Err(error) => {
                tracing::debug!(kind = %K::kind(&()), error = %error::message(&error), "discovery failed");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(ASK_AGAIN_MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use client::informer::ObjectKey;
    use serde_json::json;

    use super::*;

    #[test]
    fn custom_pod_groups_become_gangs_and_go() {
        let key = GroupKey {
            api: GroupApi::Label,
            namespace: "ml".into(),
            name: "ring".into(),
        };
        let change = |after: Option<serde_json::Value>| Change {
            key: ObjectKey::new("ml", "ring"),
            before: None,
            after: after.map(|group| Arc::new(serde_json::from_value(group).unwrap())),
        };
        let metadata = json!({"name": "ring", "namespace": "ml"});
        let full = json!({"metadata": metadata, "spec": {"minMember": 4, "scheduleTimeoutSeconds": 10, "minResources": {"cpu": "4"}}});
        let bare = json!({"metadata": metadata});
        let mut snapshot = Snapshot::new();
        for (group, min_count) in [(Some(full), Some(4)), (Some(bare), Some(1)), (None, None)] {
            Observed::CustomGroup(change(group)).apply(&mut snapshot);
            let known = snapshot.groups_mut().spec(&key).cloned();
            assert_eq!(known.and_then(|spec| spec.min_count), min_count);
        }
    }
}
