//! The table of every kind that the server serves.
//!
//! A further built-in kind is one line in [`Registry::builtin`] and one `impl ApiType`.
//! Short names, categories, verbs and subresources are those of upstream's discovery.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet};
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenRequest, TokenReview};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    self as core, Binding, ConfigMap, Endpoints, Namespace, Node, Pod, Secret, Service,
    ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::api::policy::v1::{Eviction, PodDisruptionBudget};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

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
const NO_COLLECTION_DELETE: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];
const READ: &[Verb] = &[Verb::Get, Verb::List, Verb::Watch];
const READ_WRITE: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];
const CREATE: &[Verb] = &[Verb::Create];
const UPDATE: &[Verb] = &[Verb::Update];
const GET: &[Verb] = &[Verb::Get];
const CONNECT: &[Verb] = &[Verb::Create, Verb::Get];
const PROXY: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::Get,
    Verb::Patch,
    Verb::Update,
];

type Key = (String, String, String);

/// Kinds by group, version and plural, and by group, version and kind.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: Vec<Arc<Kind>>,
    /// Bodies of subresources: not in discovery, only found by kind.
    bodies: HashMap<Key, Arc<Kind>>,
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
        // core
        registry.add(
            kind::<Binding>("binding", &[], &[], vec![])
                .verbs(CREATE)
                .unstored(),
        );
        registry.add(kind::<ConfigMap>("configmap", &["cm"], &[], vec![]));
        registry.add(
            kind::<Endpoints>("endpoints", &["ep"], &[], vec![]).deprecated(
                "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
            ),
        );
        registry.add(kind::<core::Event>("event", &["ev"], &[], vec![]));
        registry.add(
            kind::<Namespace>(
                "namespace",
                &["ns"],
                &[],
                vec![
                    sub("finalize", "", "v1", "Namespace", UPDATE),
                    status::<Namespace>(),
                ],
            )
            .verbs(NO_COLLECTION_DELETE),
        );
        registry.add(kind::<Node>(
            "node",
            &["no"],
            &[],
            vec![
                sub("proxy", "", "v1", "NodeProxyOptions", PROXY),
                status::<Node>(),
            ],
        ));
        registry.add(kind::<Pod>(
            "pod",
            &["po"],
            &["all"],
            vec![
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
            ],
        ));
        registry.add(kind::<Secret>("secret", &[], &[], vec![]));
        let token = sub(
            "token",
            "authentication.k8s.io",
            "v1",
            "TokenRequest",
            CREATE,
        );
        registry.add(kind::<ServiceAccount>(
            "serviceaccount",
            &["sa"],
            &[],
            vec![token],
        ));
        registry.add(kind::<Service>(
            "service",
            &["svc"],
            &["all"],
            vec![
                sub("proxy", "", "v1", "ServiceProxyOptions", PROXY),
                status::<Service>(),
            ],
        ));
        // apps
        registry.add(kind::<ControllerRevision>(
            "controllerrevision",
            &[],
            &[],
            vec![],
        ));
        registry.add(kind::<Deployment>(
            "deployment",
            &["deploy"],
            &["all"],
            vec![scale(), status::<Deployment>()],
        ));
        registry.add(kind::<ReplicaSet>(
            "replicaset",
            &["rs"],
            &["all"],
            vec![scale(), status::<ReplicaSet>()],
        ));
        // events.k8s.io
        registry.add(kind::<events::Event>("event", &["ev"], &[], vec![]));
        // authentication.k8s.io
        registry.add(
            kind::<SelfSubjectReview>("selfsubjectreview", &[], &[], vec![])
                .verbs(CREATE)
                .unstored(),
        );
        registry.add(
            kind::<TokenReview>("tokenreview", &[], &[], vec![])
                .verbs(CREATE)
                .unstored(),
        );
        // authorization.k8s.io
        registry.add(
            kind::<LocalSubjectAccessReview>("localsubjectaccessreview", &[], &[], vec![])
                .verbs(CREATE)
                .unstored(),
        );
        registry.add(
            kind::<SelfSubjectAccessReview>("selfsubjectaccessreview", &[], &[], vec![])
                .verbs(CREATE)
                .unstored(),
        );
        registry.add(
            kind::<SelfSubjectRulesReview>("selfsubjectrulesreview", &[], &[], vec![])
                .verbs(CREATE)
                .unstored(),
        );
        registry.add(
            kind::<SubjectAccessReview>("subjectaccessreview", &[], &[], vec![])
                .verbs(CREATE)
                .unstored(),
        );
        // coordination.k8s.io
        registry.add(kind::<Lease>("lease", &[], &[], vec![]));
        // discovery.k8s.io
        registry.add(kind::<EndpointSlice>("endpointslice", &[], &[], vec![]));
        // policy
        registry.add(kind::<PodDisruptionBudget>(
            "poddisruptionbudget",
            &["pdb"],
            &[],
            vec![status::<PodDisruptionBudget>()],
        ));
        // rbac.authorization.k8s.io
        registry.add(kind::<ClusterRoleBinding>(
            "clusterrolebinding",
            &[],
            &[],
            vec![],
        ));
        registry.add(kind::<ClusterRole>("clusterrole", &[], &[], vec![]));
        registry.add(kind::<RoleBinding>("rolebinding", &[], &[], vec![]));
        registry.add(kind::<Role>("role", &[], &[], vec![]));
        // scheduling.k8s.io
        registry.add(kind::<PriorityClass>("priorityclass", &["pc"], &[], vec![]));
        // apiextensions.k8s.io
        registry.add(
            kind::<CustomResourceDefinition>(
                "customresourcedefinition",
                &["crd", "crds"],
                &["api-extensions"],
                vec![],
            )
            .verbs(READ),
        );
        // Bodies of subresources: found by kind, served at no path of their own.
        registry.add_body(
            kind::<Eviction>("eviction", &[], &[], vec![])
                .verbs(&[])
                .unstored(),
        );
        registry.add_body(
            kind::<Scale>("scale", &[], &[], vec![])
                .verbs(&[])
                .unstored(),
        );
        registry.add_body(
            kind::<TokenRequest>("tokenrequest", &[], &[], vec![])
                .verbs(&[])
                .unstored(),
        );

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

    /// Adds the body of a subresource: found by [`Registry::by_kind`], served at no path of its own.
    pub fn add_body(&mut self, kind: Kind) {
        self.bodies
            .insert(key(&kind.group, &kind.version, &kind.kind), Arc::new(kind));
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
                self.by_resource.insert(
                    key(&kind.group, &kind.version, &kind.plural),
                    self.kinds.len(),
                );
                self.by_kind.insert(
                    key(&kind.group, &kind.version, &kind.kind),
                    self.kinds.len(),
                );
                self.kinds.push(kind);
            }
        }
        true
    }

    /// The kind served at `/apis/<group>/<version>/…/<plural>` (`group` empty: core).
    pub fn by_resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_resource
            .get(&key(group, version, plural))
            .map(|&index| &self.kinds[index])
    }

    /// A served kind, or the body of a subresource (Scale, Eviction, TokenRequest).
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let key = key(group, version, kind);
        self.by_kind
            .get(&key)
            .map(|&index| &self.kinds[index])
            .or_else(|| self.bodies.get(&key))
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
        short_names: short_names
            .iter()
            .map(|name| Cow::Borrowed(*name))
            .collect(),
        categories: categories.iter().map(|name| Cow::Borrowed(*name)).collect(),
        namespaced: K::NAMESPACED,
        verbs: ALL_VERBS,
        subresources,
        storage_prefix: Cow::Borrowed(K::URL_PATH_SEGMENT),
        strategy: Arc::new(Typed::<K>::new()),
        deprecation: None,
    }
}

impl Kind {
    /// Answered and never stored: no storage prefix.
    fn unstored(mut self) -> Kind {
        self.storage_prefix = Cow::Borrowed("");
        self
    }

    fn deprecated(mut self, warning: &'static str) -> Kind {
        self.deprecation = Some(warning);
        self
    }

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
    Subresource {
        name,
        group,
        version,
        kind,
        verbs,
    }
}

fn status<K: ApiType>() -> Subresource {
    sub("status", K::GROUP, K::VERSION, K::KIND, READ_WRITE)
}

fn scale() -> Subresource {
    sub("scale", "autoscaling", "v1", "Scale", READ_WRITE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_both_ways() {
        let registry = Registry::builtin();
        for kind in registry.iter() {
            let found = registry
                .by_resource(&kind.group, &kind.version, &kind.plural)
                .expect("found by resource");
            assert!(Arc::ptr_eq(found, kind), "{}", kind.plural);
            let found = registry
                .by_kind(&kind.group, &kind.version, &kind.kind)
                .expect("found by kind");
            assert!(Arc::ptr_eq(found, kind), "{}", kind.kind);
        }
        assert!(registry.by_kind("policy", "v1", "Eviction").is_some());
        assert!(registry.by_kind("", "v1", "Nothing").is_none());
        let both = ["", "events.k8s.io"].map(|group| {
            registry
                .by_resource(group, "v1", "events")
                .map(|kind| kind.storage_prefix.clone())
        });
        assert_eq!(both[0], both[1]);
    }

    #[test]
    fn kinds_come_and_go() {
        let mut registry = Registry::builtin();
        let count = registry.iter().count();
        assert!(registry.remove("apps", "v1", "deployments"));
        assert!(!registry.remove("apps", "v1", "deployments"));
        assert_eq!(registry.iter().count(), count - 1);
        assert!(registry.by_kind("apps", "v1", "Deployment").is_none());
        assert!(
            registry
                .by_kind("apps", "v1", "ReplicaSet")
                .is_some_and(|kind| kind.plural == "replicasets")
        );
    }

    #[test]
    fn cells_match_columns_and_fields_match_names() {
        for kind in Registry::builtin().iter() {
            let strategy = &kind.strategy;
            let mut object = strategy
                .from_value(serde_json::json!({}))
                .expect("an empty object decodes");
            strategy.prepare_create(object.as_mut());
            strategy.default(object.as_mut());
            assert_eq!(
                strategy.cells(object.as_ref(), 0).len(),
                strategy.columns().len(),
                "{}",
                kind.kind
            );
            let names: Vec<&str> = strategy
                .selectable_fields(object.as_ref())
                .iter()
                .map(|(name, _)| *name)
                .collect();
            assert_eq!(names, strategy.selectable_field_names(), "{}", kind.kind);
            // Defaulting is idempotent, and what is written decodes to the same.
            let json = object.to_json();
            let mut again = strategy
                .decode(&json, true)
                .expect("what is written decodes");
            assert_eq!(again.problems, [], "{}", kind.kind);
            strategy.default(again.object.as_mut());
            assert_eq!(
                String::from_utf8(again.object.to_json()),
                String::from_utf8(json),
                "{}",
                kind.kind
            );
            let _ = strategy.validate_create(object.as_ref());
        }
    }
}
