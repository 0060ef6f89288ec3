//! Which rules a subject has, in which namespace.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use serde::de::DeserializeOwned;

use super::Attributes;
use crate::authn::Identity;
use crate::cache::Caches;

/// The rules of one role, shared by all its bindings.
pub type Rules = Arc<[PolicyRule]>;

/// The storage prefixes that the index is made from.
const SOURCES: [&str; 4] = [
    "roles",
    "clusterroles",
    "rolebindings",
    "clusterrolebindings",
];

/// Answers from the index, and keeps it up to date.
#[derive(Default)]
pub struct Authorizer {
    index: RwLock<Arc<Index>>,
}

#[derive(Default)]
struct Index {
    /// Revisions of the newest change of each source.
    versions: Option<[u64; 4]>,
    cluster: Bindings,
    by_namespace: HashMap<String, Bindings>,
}

#[derive(Default)]
struct Bindings {
    /// By user name; a service account is one, `system:serviceaccount:<namespace>:<name>`.
    users: HashMap<String, Vec<Rules>>,
    groups: HashMap<String, Vec<Rules>>,
}

impl Authorizer {
    pub fn allows(
        &self,
        caches: &Caches,
        identity: &Identity,
        attributes: &Attributes<'_>,
    ) -> bool {
        let index = self.current(caches);
        index
            .rules_of(identity, attributes.namespace)
            .any(|rules| rules.iter().any(|rule| rule_allows(rule, attributes)))
    }

    /// Every rule that holds for the identity in a namespace (empty: at the cluster scope only).
    pub fn rules_of(&self, caches: &Caches, identity: &Identity, namespace: &str) -> Vec<Rules> {
        self.current(caches)
            .rules_of(identity, namespace)
            .cloned()
            .collect()
    }

    fn current(&self, caches: &Caches) -> Arc<Index> {
        let versions =
            SOURCES.map(|prefix| caches.by_prefix(prefix).map_or(0, |cache| cache.version()));
        let index = self
            .index
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if index.versions == Some(versions) {
            return index;
        }
        let index = Arc::new(Index::build(caches, versions));
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index.clone();
        index
    }
}

impl Index {
    fn build(caches: &Caches, versions: [u64; 4]) -> Self {
        let roles: HashMap<(String, String), Rules> = objects::<Role>(caches, "roles")
            .into_iter()
            .map(|role| {
                let key = (
                    role.metadata.namespace.unwrap_or_default(),
                    role.metadata.name.unwrap_or_default(),
                );
                (key, role.rules.unwrap_or_default().into())
            })
            .collect();
        let cluster_roles: HashMap<String, Rules> = objects::<ClusterRole>(caches, "clusterroles")
            .into_iter()
            .map(|role| {
                (
                    role.metadata.name.unwrap_or_default(),
                    role.rules.unwrap_or_default().into(),
                )
            })
            .collect();
        let rules_of = |reference: &RoleRef, namespace: &str| match reference.kind.as_str() {
            "ClusterRole" => cluster_roles.get(&reference.name).cloned(),
            "Role" => roles
                .get(&(namespace.to_owned(), reference.name.clone()))
                .cloned(),
            _ => None,
        };
        let mut index = Self {
            versions: Some(versions),
            ..Self::default()
        };
        for binding in objects::<ClusterRoleBinding>(caches, "clusterrolebindings") {
            if let Some(rules) = rules_of(&binding.role_ref, "") {
                index
                    .cluster
                    .add(binding.subjects.unwrap_or_default(), "", &rules);
            }
        }
        for binding in objects::<RoleBinding>(caches, "rolebindings") {
            let namespace = binding.metadata.namespace.unwrap_or_default();
            if let Some(rules) = rules_of(&binding.role_ref, &namespace) {
                index
                    .by_namespace
                    .entry(namespace.clone())
                    .or_default()
                    .add(binding.subjects.unwrap_or_default(), &namespace, &rules);
            }
        }
        index
    }

    fn rules_of<'a>(
        &'a self,
        identity: &'a Identity,
        namespace: &str,
    ) -> impl Iterator<Item = &'a Rules> {
        let namespaced = if namespace.is_empty() {
            None
        } else {
            self.by_namespace.get(namespace)
        };
        std::iter::once(&self.cluster)
            .chain(namespaced)
            .flat_map(|bindings| {
                let users = bindings.users.get(&identity.user).into_iter();
                let groups = identity
                    .groups
                    .iter()
                    .filter_map(|group| bindings.groups.get(group));
                users.chain(groups).flatten()
            })
    }
}

impl Bindings {
    fn add(&mut self, subjects: Vec<Subject>, namespace: &str, rules: &Rules) {
        for subject in subjects {
            let entries = match subject.kind.as_str() {
                "User" => self.users.entry(subject.name),
                "Group" => self.groups.entry(subject.name),
                "ServiceAccount" => {
                    let namespace = subject
                        .namespace
                        .as_deref()
                        .filter(|own| !own.is_empty())
                        .unwrap_or(namespace);
                    self.users.entry(format!(
                        "system:serviceaccount:{namespace}:{}",
                        subject.name
                    ))
                }
                _ => continue,
            };
            entries.or_default().push(rules.clone());
        }
    }
}

fn objects<K: DeserializeOwned>(caches: &Caches, prefix: &str) -> Vec<K> {
    let Some(cache) = caches.by_prefix(prefix) else {
        return Vec::new();
    };
    cache
        .list(0, "", None, 0, |_| true)
        .items
        .iter()
        .filter_map(|item| serde_json::from_slice(&item.json).ok())
        .collect()
}

pub fn rule_allows(rule: &PolicyRule, attributes: &Attributes<'_>) -> bool {
    if !rule
        .verbs
        .iter()
        .any(|verb| verb == "*" || verb == attributes.verb)
    {
        return false;
    }
    if let Some(path) = attributes.path {
        return rule
            .non_resource_urls
            .iter()
            .flatten()
            .any(|url| url_matches(url, path));
    }
    let group = rule
        .api_groups
        .iter()
        .flatten()
        .any(|group| group == "*" || group == attributes.group);
    let name = rule
        .resource_names
        .as_ref()
        .is_none_or(|names| names.is_empty() || names.iter().any(|name| name == attributes.name));
    group
        && name
        && rule
            .resources
            .iter()
            .flatten()
            .any(|resource| resource_matches(resource, attributes.resource, attributes.subresource))
}

/// `*`, `pods`, `pods/log`, `*/scale`.
pub fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((own, own_subresource)) => {
            (own == "*" || own == resource)
                && !subresource.is_empty()
                && own_subresource == subresource
        }
    }
}

pub fn url_matches(rule: &str, path: &str) -> bool {
    rule == "*"
        || rule == path
        || rule
            .strip_suffix('*')
            .is_some_and(|prefix| path.starts_with(prefix.trim_end_matches('*')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> PolicyRule {
        let list = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        PolicyRule {
            verbs: list(verbs),
            api_groups: Some(list(groups)),
            resources: Some(list(resources)),
            resource_names: Some(list(names)),
            non_resource_urls: None,
        }
    }

    #[test]
    fn rules_match_as_upstream() {
        let pods = rule(&["get", "list"], &[""], &["pods", "pods/log"], &[]);
        let scale = rule(&["update"], &["*"], &["*/scale"], &[]);
        let named = rule(&["get"], &[""], &["configmaps"], &["a"]);
        let all = rule(&["*"], &["*"], &["*"], &[]);
        let check = |rule: &PolicyRule, verb, group, resource, subresource, name, expect| {
            let attributes = Attributes {
                verb,
                group,
                resource,
                subresource,
                name,
                ..Attributes::default()
            };
            assert_eq!(rule_allows(rule, &attributes), expect, "{attributes:?}");
        };
        check(&pods, "get", "", "pods", "", "x", true);
        check(&pods, "get", "", "pods", "log", "x", true);
        check(&pods, "get", "", "pods", "exec", "x", false);
        check(&pods, "delete", "", "pods", "", "x", false);
        check(&pods, "get", "apps", "pods", "", "x", false);
        check(&scale, "update", "apps", "deployments", "scale", "x", true);
        check(&scale, "update", "apps", "deployments", "", "x", false);
        check(&named, "get", "", "configmaps", "", "a", true);
        check(&named, "get", "", "configmaps", "", "b", false);
        check(&named, "list", "", "configmaps", "", "", false);
        check(&all, "delete", "x", "y", "z", "n", true);
    }

    #[test]
    fn urls() {
        for (rule, path, expect) in [
            ("/healthz", "/healthz", true),
            ("/healthz", "/healthz/ping", false),
            ("/healthz/*", "/healthz/ping", true),
            ("/api/*", "/api", false),
            ("*", "/anything", true),
        ] {
            assert_eq!(url_matches(rule, path), expect, "{rule} {path}");
        }
    }
}
