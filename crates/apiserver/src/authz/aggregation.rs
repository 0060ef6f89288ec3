//! Cluster roles that are the sum of others: `admin`, `edit`, `view`.
//!
//! Enter at [`aggregate`], which says what rules a cluster role should have; a task of the server
//! writes them whenever a cluster role changes.

use api::selector::Labels;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};

/// The rules that `role` should have, if it is an aggregated one: those of all roles that it selects.
pub fn aggregate(role: &ClusterRole, all: &[ClusterRole]) -> Option<Vec<PolicyRule>> {
    let selectors: Vec<Labels> = role
        .aggregation_rule
        .as_ref()?
        .cluster_role_selectors
        .iter()
        .flatten()
        .filter_map(|selector| Labels::from_object(Some(selector)).ok())
        .collect();
    let mut selected: Vec<&ClusterRole> = all
        .iter()
        .filter(|other| other.metadata.name != role.metadata.name)
        .filter(|other| {
            selectors
                .iter()
                .any(|selector| selector.matches(other.metadata.labels.as_ref()))
        })
        .collect();
    selected.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in selected
        .into_iter()
        .flat_map(|other| other.rules.iter().flatten())
    {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    Some(rules)
}

/// The rules of someone who may do everything.
pub fn everything() -> Vec<PolicyRule> {
    let all = || vec!["*".to_owned()];
    vec![
        PolicyRule {
            verbs: all(),
            api_groups: Some(all()),
            resources: Some(all()),
            ..PolicyRule::default()
        },
        PolicyRule {
            verbs: all(),
            non_resource_urls: Some(all()),
            ..PolicyRule::default()
        },
    ]
}
