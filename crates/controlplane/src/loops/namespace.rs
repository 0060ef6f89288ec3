//! Empties deleted namespaces; `controllers::namespace` says when one is finished.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::informer::ObjectKey;
use client::workqueue::{Backoff, WorkQueue};
use controllers::namespace::{self, Outcome, Report};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};

use super::garbage::{Resource, discover};
use super::{Context, Pending};
use crate::error;
use crate::feed::{Caches, Feeds};
use crate::worker::{self, Next};

const PARALLEL: usize = 4;
/// Content that takes its time (pods with grace) is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

pub fn register(feeds: &mut Feeds, context: Arc<Context>) -> Pending {
    let queue: WorkQueue<String> = WorkQueue::new(Backoff {
        base: Duration::from_millis(100),
        max: Duration::from_secs(60),
    });
    let add = queue.clone();
    feeds.namespaces.listen(move |change| {
        if change.after.as_deref().is_some_and(namespace::is_due) {
            add.add(change.key.name.clone());
        }
    });
    Box::new(move |caches| {
        let reconcile = move |name| reconcile(context.clone(), caches.clone(), name);
        worker::run("namespace", queue, PARALLEL, reconcile).boxed()
    })
}

async fn reconcile(
    context: Arc<Context>,
    caches: Caches,
    name: String,
) -> Result<Next, kube::Error> {
    if !caches
        .namespaces
        .get(&ObjectKey::new("", &name))
        .is_some_and(|namespace| namespace::is_due(&namespace))
    {
        return Ok(Next::DONE);
    }
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let Some(mut fresh) = namespaces.get_opt(&name).await? else {
        return Ok(Next::DONE);
    };
    if !namespace::is_due(&fresh) {
        return Ok(Next::DONE);
    }
    let report = empty(&context.client, &name).await;
    match namespace::reconcile(&fresh, &report, Timestamp::now()) {
        Outcome::Nothing => Ok(Next::DONE),
        Outcome::Wait(status) => {
            if let Some(status) = status {
                fresh.status = Some(status);
                namespaces
                    .replace_status(&name, &PostParams::default(), &fresh)
                    .await?;
            }
            Ok(Next {
                after: Some(LOOK_AGAIN),
            })
        }
        Outcome::Finalize { finalizers, .. } => {
            fresh.spec.get_or_insert_default().finalizers = Some(finalizers);
            match namespaces
                .replace_subresource("finalize", &name, &PostParams::default(), &fresh)
                .await
            {
                Err(error) if !error::is_not_found(&error) => Err(error),
                _ => Ok(Next::DONE),
            }
        }
    }
}

/// Deletes everything in the namespace and counts what is still there.
async fn empty(client: &Client, name: &str) -> Report {
    let mut report = Report::default();
    let resources = match discover(client).await {
        Ok(resources) => resources,
        Err(error) => {
            report.discovery_error = Some(error::message(&error));
            return report;
        }
    };
    for resource in resources
        .iter()
        .filter(|resource| resource.namespaced && resource.can("delete") && resource.can("list"))
    {
        if let Err(error) = empty_resource(client, name, resource, &mut report).await
            && !error::is_not_found(&error)
        {
            report.deletion_errors.push(format!(
                "{}: {}",
                resource.title(),
                error::message(&error)
            ));
        }
    }
    report
}

async fn empty_resource(
    client: &Client,
    name: &str,
    resource: &Resource,
    report: &mut Report,
) -> Result<(), kube::Error> {
    let all: Api<PartialObjectMeta<DynamicObject>> =
        Api::namespaced_with(client.clone(), name, &resource.api);
    let present = all.list(&ListParams::default()).await?.items;
    if present.is_empty() {
        return Ok(());
    }
    let deletable: Api<DynamicObject> = Api::namespaced_with(client.clone(), name, &resource.api);
    if resource.can("deletecollection") {
        deletable
            .delete_collection(&DeleteParams::background(), &ListParams::default())
            .await?;
    } else {
        for object in present
            .iter()
            .filter(|object| object.metadata.deletion_timestamp.is_none())
        {
            let object = object.metadata.name.as_deref().unwrap_or_default();
            match deletable.delete(object, &DeleteParams::background()).await {
                Err(error) if !error::is_not_found(&error) => return Err(error),
                _ => {}
            }
        }
    }
    let left = all.list(&ListParams::default()).await?.items;
    if left.is_empty() {
        return Ok(());
    }
    report.remaining.insert(resource.title(), left.len());
    let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
    for finalizer in left
        .iter()
        .flat_map(|object| object.metadata.finalizers.iter().flatten())
    {
        *finalizers.entry(finalizer.clone()).or_insert(0) += 1;
    }
    for (finalizer, count) in finalizers {
        *report.finalizers.entry(finalizer).or_insert(0) += count;
    }
    Ok(())
}
