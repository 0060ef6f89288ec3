//! The controllers' loops, one file each.

mod deployment;
mod disruption;
mod endpoints;
mod garbage;
mod namespace;
mod node_lifecycle;
mod pod_gc;
mod replicaset;
mod root_ca;
mod service_account;

use std::sync::Arc;

use futures::future::BoxFuture;
use kube::Client;

use crate::Options;
use crate::events::Recorder;
use crate::feed::{Caches, Feeds};

/// What every loop needs.
pub struct Context {
    pub client: Client,
    pub recorder: Recorder,
}

/// A loop whose listeners are registered; called once the caches hold their first lists.
pub type Pending = Box<dyn FnOnce(Caches) -> BoxFuture<'static, ()> + Send>;

/// Registers the listeners of all controllers.
pub fn register(feeds: &mut Feeds, context: &Arc<Context>, options: &Options) -> Vec<Pending> {
    let mut pending = vec![
        deployment::register(feeds, context.clone()),
        replicaset::register(feeds, context.clone()),
        service_account::register(feeds, context.clone(), options.root_ca_pem.clone()),
        namespace::register(feeds, context.clone()),
        garbage::register(context.clone()),
        pod_gc::register(feeds, context.clone()),
        disruption::register(feeds, context.clone()),
    ];
    pending.extend(endpoints::register(feeds, context.clone()));
    pending.extend(node_lifecycle::register(feeds, context.clone()));
    if let Some(pem) = &options.root_ca_pem {
        pending.push(root_ca::register(feeds, context.clone(), pem.clone()));
    }
    pending
}
