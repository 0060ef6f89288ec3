//! The table of every kind that the server serves.
//!
//! A further built-in kind is one line in [`Registry::builtin`] and one `impl ApiType`.
//! Short names, categories, verbs and subresources are those of upstream's discovery.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service};

use crate::kind::{Kind, Subresource, Verb};
use crate::typed::{ApiType, Typed};

/// The verbs of an ordinary kind, in discovery's order.
pub const ALL_VERBS: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];
const NO_COLLECTION_DELETE: &[Verb] =
    &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch];
const READ_WRITE: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];
const CREATE: &[Verb] = &[Verb::Create];
const UPDATE: &[Verb] = &[Verb::Update];
const GET: &[Verb] = &[Verb::Get];
const CONNECT: &[Verb] = &[Verb::Create, Verb::Get];
const PROXY: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];

type Key = (String, String, String);

/// Kinds by group, version and plural, and by group, version and kind.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: Vec<Arc<Kind>>,
    by_resource: HashMap<Key, usize>,
    by_kind: HashMap<Key, usize>,
}

impl Registry {
    pub fn new() -> Self {
        Registry::default()
    }

    /// Every built-in kind.
    pub fn builtin() -> Self {
        let mut registry = Registry::new();
        let mut add = |kind: Kind| registry.add(kind);

        add(kind::<Namespace>("namespace", &["ns"], &[], vec![
            sub("finalize", "", "v1", "Namespace", UPDATE),
            status::<Namespace>(),
        ])
        .verbs(NO_COLLECTION_DELETE));
        add(kind::<Node>("node", &["no"], &[], vec![
            sub("proxy", "", "v1", "NodeProxyOptions", PROXY),
            status::<Node>(),
        ]));
        add(kind::<Pod>("pod", &["po"], &["all"], vec![
            sub("attach", "", "v1", "PodAttachOptions", CONNECT),
            sub("binding", "", "v1", "Binding", CREATE),
            sub("ephemeralcontainers", "", "v1", "Pod", READ_WRITE),
            sub("eviction", "policy", "v1", "Eviction", CREATE),
            sub("exec", "", "v1", "PodExecOptions", CONNECT),
            sub("log", "", "v1", "Pod", GET),
            sub("portforward", "", "v1", "PodPortForwardOptions", CONNECT),
            sub("proxy", "", "v1", "PodProxyOptions", PROXY),
            sub("resize", "", "v1", "Pod", READ_WRITE),
            status::<Pod>(),
        ]));
        add(kind::<ConfigMap>("configmap", &["cm"], &[], vec![]));
        add(kind::<Secret>("secret", &[], &[], vec![]));
        add(kind::<Service>("service", &["svc"], &["all"], vec![
            sub("proxy", "", "v1", "ServiceProxyOptions", PROXY),
            status::<Service>(),
        ]));
        add(kind::<Deployment>("deployment", &["deploy"], &["all"], vec![scale(), status::<Deployment>()]));
        add(kind::<ReplicaSet>("replicaset", &["rs"], &["all"], vec![scale(), status::<ReplicaSet>()]));

        registry
    }

    /// Adds a kind, or replaces the one of the same group, version and plural.
    pub fn add(&mut self, kind: Kind) {
        let resource = key(&kind.group, &kind.version, &kind.plural);
        let name = key(&kind.group, &kind.version, &kind.kind);
        match self.by_resource.get(&resource) {
            Some(&index) => {
                self.by_kind.retain(|_, other| *other != index);
                self.by_kind.insert(name, index);
                self.kinds[index] = Arc::new(kind);
            }
            None => {
                self.by_resource.insert(resource, self.kinds.len());
                self.by_kind.insert(name, self.kinds.len());
                self.kinds.push(Arc::new(kind));
            }
        }
    }

    /// Removes a kind; answers whether it was there.
    pub fn remove(&mut self, group: &str, version: &str, plural: &str) -> bool {
        let Some(&index) = self.by_resource.get(&key(group, version, plural)) else {
            return false;
        };
        let kinds = std::mem::take(&mut self.kinds);
        self.by_resource.clear();
        self.by_kind.clear();
        for (position, kind) in kinds.into_iter().enumerate() {
            if position != index {
                self.by_resource.insert(key(&kind.group, &kind.version, &kind.plural), self.kinds.len());
                self.by_kind.insert(key(&kind.group, &kind.version, &kind.kind), self.kinds.len());
                self.kinds.push(kind);
            }
        }
        true
    }

    /// The kind served at `/apis/<group>/<version>/…/<plural>` (`group` empty: core).
    pub fn by_resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_resource.get(&key(group, version, plural)).map(|&index| &self.kinds[index])
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.by_kind.get(&key(group, version, kind)).map(|&index| &self.kinds[index])
    }

    /// All kinds in the order of the table: core first, then group by group.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.iter()
    }
}

fn key(group: &str, version: &str, name: &str) -> Key {
    (group.to_string(), version.to_string(), name.to_string())
}

/// A table entry; names and group come from the type.
fn kind<K: ApiType>(
    singular: &'static str,
    short_names: &[&'static str],
    categories: &[&'static str],
    subresources: Vec<Subresource>,
) -> Kind {
    Kind {
        group: Cow::Borrowed(K::GROUP),
        version: Cow::Borrowed(K::VERSION),
        kind: Cow::Borrowed(K::KIND),
        plural: Cow::Borrowed(K::URL_PATH_SEGMENT),
        singular: Cow::Borrowed(singular),
        short_names: short_names.iter().map(|name| Cow::Borrowed(*name)).collect(),
        categories: categories.iter().map(|name| Cow::Borrowed(*name)).collect(),
        namespaced: K::NAMESPACED,
        verbs: ALL_VERBS,
        subresources,
        storage_prefix: Cow::Borrowed(K::URL_PATH_SEGMENT),
        strategy: Arc::new(Typed::<K>::new()),
    }
}

impl Kind {
    fn verbs(mut self, verbs: &'static [Verb]) -> Kind {
        self.verbs = verbs;
        self
    }
}

fn sub(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [Verb],
) -> Subresource {
    Subresource { name, group, version, kind, verbs }
}

fn status<K: ApiType>() -> Subresource {
    sub("status", K::GROUP, K::VERSION, K::KIND, READ_WRITE)
}

fn scale() -> Subresource {
    sub("scale", "autoscaling", "v1", "Scale", READ_WRITE)
}
