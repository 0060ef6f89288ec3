//! Carries out what `controllers::root_ca` decides.

use std::sync::Arc;

use client::informer::ObjectKey;
use client::workqueue::{Backoff, WorkQueue};
use controllers::root_ca::{self, Action};
use futures::FutureExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;

use super::{Context, Pending};
use crate::error;
use crate::feed::Feeds;
use crate::worker::{self, Next};

pub fn register(feeds: &mut Feeds, context: Arc<Context>, pem: String) -> Pending {
    let queue: WorkQueue<String> = WorkQueue::new(Backoff::default());
    let add = queue.clone();
    feeds
        .namespaces
        .listen(move |change| add.add(change.key.name.clone()));
    let add = queue.clone();
    feeds
        .root_ca_maps
        .listen(move |change| add.add(change.key.namespace.clone()));
    let pem: Arc<str> = pem.into();
    Box::new(move |caches| {
        let reconcile = move |name: String| {
            let (context, caches, pem) = (context.clone(), caches.clone(), pem.clone());
            async move {
                let Some(namespace) = caches.namespaces.get(&ObjectKey::new("", &name)) else {
                    return Ok(Next::DONE);
                };
                let existing = caches
                    .root_ca_maps
                    .get(&ObjectKey::new(&name, root_ca::NAME));
                let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &name);
                let result = match root_ca::reconcile(&namespace, existing.as_deref(), &pem) {
                    None => return Ok(Next::DONE),
                    Some(Action::Create(map)) => api.create(&PostParams::default(), &map).await,
                    Some(Action::Update(map)) => {
                        api.replace(root_ca::NAME, &PostParams::default(), &map)
                            .await
                    }
                };
                match result {
                    Err(error)
                        if error::already_exists(&error)
                            || error::namespace_is_terminating(&error)
                            || error::is_not_found(&error) => {}
                    Err(error) => return Err(error),
                    Ok(_) => {}
                }
                Ok(Next::DONE)
            }
        };
        worker::run("root-ca", queue, 1, reconcile).boxed()
    })
}
