//! Carries out what `controllers::{endpointslice, endpoints}` decide: three loops that share one notion of change.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::informer::{Change, ObjectKey};
use client::workqueue::{Backoff, WorkQueue};
use controllers::{endpoints, endpointslice, label, pod};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use super::{Context, Pending};
use crate::error;
use crate::feed::{Caches, Feeds, Index};
use crate::worker::{self, Next};

const PARALLEL: usize = 5;

#[derive(Clone)]
struct Loop {
    context: Arc<Context>,
    pods: Index<Pod>,
    /// By managing controller, namespace and Service.
    slices: Index<EndpointSlice>,
}

pub fn register(feeds: &mut Feeds, context: Arc<Context>) -> Vec<Pending> {
    let this = Loop {
        context,
        pods: feeds.pods.index(|pod| pod.metadata.namespace.clone()),
        slices: feeds.endpoint_slices.index(|slice| {
            let labels = slice.metadata.labels.as_ref()?;
            let (by, service) = (
                labels.get(endpointslice::MANAGED_BY)?,
                labels.get(endpointslice::SERVICE_NAME)?,
            );
            Some(slice_bucket(
                by,
                slice.metadata.namespace.as_deref()?,
                service,
            ))
        }),
    };
    let services = feeds
        .services
        .index(|service| service.metadata.namespace.clone());
    let of_slices: WorkQueue<ObjectKey> = WorkQueue::new(Backoff::default());
    let of_endpoints: WorkQueue<ObjectKey> = WorkQueue::new(Backoff::default());
    let of_mirrors: WorkQueue<ObjectKey> = WorkQueue::new(Backoff::default());
    let queues = [of_slices.clone(), of_endpoints.clone(), of_mirrors.clone()];
    feeds.services.listen(move |change| {
        queues
            .iter()
            .for_each(|queue| queue.add(change.key.clone()))
    });
    let queues = [of_slices.clone(), of_endpoints.clone()];
    feeds.pods.listen(move |change| {
        if !matters(change) {
            return;
        }
        let namespace = services.of(&change.key.namespace);
        for labels in [&change.before, &change.after]
            .into_iter()
            .flatten()
            .map(|pod| pod.metadata.labels.as_ref())
        {
            for service in namespace.iter().filter(|service| {
                selector_of(service).is_some_and(|wanted| label::contains_all(labels, wanted))
            }) {
                queues
                    .iter()
                    .for_each(|queue| queue.add(ObjectKey::of(&**service)));
            }
        }
    });
    let add = of_slices.clone();
    let mirror = of_mirrors.clone();
    feeds.endpoint_slices.listen(move |change| {
        for labels in [&change.before, &change.after]
            .into_iter()
            .flatten()
            .filter_map(|slice| slice.metadata.labels.as_ref())
        {
            let Some(service) = labels.get(endpointslice::SERVICE_NAME) else {
                continue;
            };
            let key = ObjectKey::new(change.key.namespace.clone(), service.clone());
            match labels.get(endpointslice::MANAGED_BY).map(String::as_str) {
                Some(endpointslice::CONTROLLER) => add.add(key),
                Some(endpointslice::MIRRORING_CONTROLLER) => mirror.add(key),
                _ => {}
            }
        }
    });
    let queues = [of_endpoints.clone(), of_mirrors.clone()];
    feeds.endpoints.listen(move |change| {
        queues
            .iter()
            .for_each(|queue| queue.add(change.key.clone()))
    });
    let (slices, legacy, mirrors) = (this.clone(), this.clone(), this);
    vec![
        Box::new(move |caches| {
            let reconcile = move |key| slices.clone().slices(caches.clone(), key);
            worker::run("endpointslice", of_slices, PARALLEL, reconcile).boxed()
        }),
        Box::new(move |caches| {
            let reconcile = move |key| legacy.clone().endpoints(caches.clone(), key);
            worker::run("endpoints", of_endpoints, PARALLEL, reconcile).boxed()
        }),
        Box::new(move |caches| {
            let reconcile = move |key| mirrors.clone().mirror(caches.clone(), key);
            worker::run("endpointslicemirroring", of_mirrors, PARALLEL, reconcile).boxed()
        }),
    ]
}

fn slice_bucket(managed_by: &str, namespace: &str, service: &str) -> String {
    format!("{managed_by} {namespace}/{service}")
}

fn selector_of(service: &Service) -> Option<&BTreeMap<String, String>> {
    service
        .spec
        .as_ref()?
        .selector
        .as_ref()
        .filter(|selector| !selector.is_empty())
}

/// Can the change of a pod change an endpoint?
fn matters(change: &Change<Pod>) -> bool {
    let facts = |pod: &Pod| {
        let status = pod.status.as_ref();
        (
            pod.metadata.uid.clone(),
            pod.metadata.labels.clone(),
            pod.metadata.deletion_timestamp.is_some(),
            status.and_then(|status| status.pod_ip.clone()),
            status.and_then(|status| status.pod_ips.clone()),
            pod::is_ready(pod),
            pod::is_terminal(pod),
            pod::node_name(pod).map(ToString::to_string),
        )
    };
    change.before.as_deref().map(facts) != change.after.as_deref().map(facts)
}

impl Loop {
    fn selected_pods(&self, service: &Service) -> Vec<Arc<Pod>> {
        let Some(wanted) = selector_of(service) else {
            return Vec::new();
        };
        let selector = LabelSelector {
            match_labels: Some(wanted.clone()),
            ..LabelSelector::default()
        };
        let mut pods = self
            .pods
            .of(service.metadata.namespace.as_deref().unwrap_or_default());
        pods.retain(|pod| label::selects(&selector, pod.metadata.labels.as_ref()));
        pods
    }

    async fn slices(self, caches: Caches, key: ObjectKey) -> Result<Next, kube::Error> {
        // Slices of a Service that is gone are garbage by their owner.
        let Some(service) = caches.services.get(&key) else {
            return Ok(Next::DONE);
        };
        let pods = self.selected_pods(&service);
        let nodes: BTreeMap<String, Arc<Node>> = pods
            .iter()
            .filter_map(|pod| pod::node_name(pod))
            .filter_map(|name| {
                Some((
                    name.to_string(),
                    caches.nodes.get(&ObjectKey::new("", name))?,
                ))
            })
            .collect();
        let nodes = nodes
            .iter()
            .map(|(name, node)| (name.clone(), &**node))
            .collect();
        let slices = self.slices.of(&slice_bucket(
            endpointslice::CONTROLLER,
            &key.namespace,
            &key.name,
        ));
        let pods: Vec<&Pod> = pods.iter().map(Arc::as_ref).collect();
        let slices: Vec<&EndpointSlice> = slices.iter().map(Arc::as_ref).collect();
        self.write_slices(
            &key.namespace,
            endpointslice::reconcile(&service, &pods, &nodes, &slices),
        )
        .await
    }

    async fn mirror(self, caches: Caches, key: ObjectKey) -> Result<Next, kube::Error> {
        let slices = self.slices.of(&slice_bucket(
            endpointslice::MIRRORING_CONTROLLER,
            &key.namespace,
            &key.name,
        ));
        let slices: Vec<&EndpointSlice> = slices.iter().map(Arc::as_ref).collect();
        let (endpoints, service) = (caches.endpoints.get(&key), caches.services.get(&key));
        self.write_slices(
            &key.namespace,
            endpointslice::mirror(endpoints.as_deref(), service.as_deref(), &slices),
        )
        .await
    }

    async fn write_slices(
        &self,
        namespace: &str,
        actions: Vec<endpointslice::Action>,
    ) -> Result<Next, kube::Error> {
        use endpointslice::Action;
        let api: Api<EndpointSlice> = Api::namespaced(self.context.client.clone(), namespace);
        for action in actions {
            let result = match action {
                Action::Create(slice) => {
                    api.create(&PostParams::default(), &slice).await.map(|_| ())
                }
                Action::Update(slice) => {
                    let name = slice.metadata.name.clone().unwrap_or_default();
                    api.replace(&name, &PostParams::default(), &slice)
                        .await
                        .map(|_| ())
                }
                Action::Delete { name, uid } => api.delete(&name, &with_uid(uid)).await.map(|_| ()),
            };
            settle(result)?;
        }
        Ok(Next::DONE)
    }

    async fn endpoints(self, caches: Caches, key: ObjectKey) -> Result<Next, kube::Error> {
        use endpoints::Action;
        let service = caches.services.get(&key);
        let pods = service
            .as_deref()
            .map(|service| self.selected_pods(service))
            .unwrap_or_default();
        let pods: Vec<&Pod> = pods.iter().map(Arc::as_ref).collect();
        let existing = caches.endpoints.get(&key);
        let api: Api<Endpoints> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let result = match endpoints::reconcile(service.as_deref(), &pods, existing.as_deref()) {
            None => return Ok(Next::DONE),
            Some(Action::Create(object)) => api
                .create(&PostParams::default(), &object)
                .await
                .map(|_| ()),
            Some(Action::Update(object)) => api
                .replace(&key.name, &PostParams::default(), &object)
                .await
                .map(|_| ()),
            Some(Action::Delete { uid }) => api.delete(&key.name, &with_uid(uid)).await.map(|_| ()),
        };
        settle(result)?;
        Ok(Next::DONE)
    }
}

fn with_uid(uid: String) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid),
            resource_version: None,
        }),
        ..DeleteParams::background()
    }
}

fn settle(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if error::is_not_found(&error) || error::namespace_is_terminating(&error) => {
            Ok(())
        }
        other => other,
    }
}
