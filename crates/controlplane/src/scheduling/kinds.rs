//! Kinds that placement heeds and that the API server may not serve: budgets, volumes, pod groups.
//!
//! What is served is asked once ([`watch_served`]); only that is watched, and the rest costs nothing. An
//! API server that cannot be reached is asked again with back-off.

use std::fmt::Debug;
use std::time::Duration;

use client::Informer;
use client::informer::Change;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use scheduler::{GroupApi, GroupKey, Snapshot};
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
            Observed::Budget(_) | Observed::StatefulSet(_) | Observed::Group(_) => {}
        }
    }
}

/// Starts a watch for every one of the kinds that the API server serves. The watches end with the tasks.
pub fn watch_served(
    tasks: &mut JoinSet<()>,
    client: &Client,
    sender: &mpsc::UnboundedSender<Input>,
) {
    watch(tasks, client, sender, Observed::Budget);
    watch(tasks, client, sender, Observed::Claim);
    watch(tasks, client, sender, Observed::Volume);
    watch(tasks, client, sender, Observed::Class);
    watch(tasks, client, sender, Observed::CsiNode);
    watch(tasks, client, sender, Observed::CsiDriver);
    watch(tasks, client, sender, Observed::Capacity);
    watch(tasks, client, sender, Observed::StatefulSet);
    watch(tasks, client, sender, Observed::Group);
}

fn watch<K>(
    tasks: &mut JoinSet<()>,
    client: &Client,
    sender: &mpsc::UnboundedSender<Input>,
    observed: fn(Change<K>) -> Observed,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (client, sender) = (client.clone(), sender.clone());
    tasks.spawn(async move {
        if !is_served::<K>(&client).await {
            tracing::debug!(kind = %K::kind(&()), "not served, not watched");
            return;
        }
        let config = watcher::Config::default().any_semantic();
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
