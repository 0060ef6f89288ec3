//! Nobody gives a permission that they do not have.
//!
//! A write to a role is refused unless the writer holds all its rules (or may `escalate`), and one
//! to a binding unless they hold all rules of the role it names (or may `bind` it).

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::index::{resource_matches, url_matches};
use super::{Attributes, Rules, is_allowed};
use crate::authn::{GROUP_MASTERS, Identity};
use crate::core::Core;
use crate::status::{ApiError, ApiResult};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks that `identity` may give out `rules` by writing the object named.
pub fn check(
    core: &Core,
    identity: &Identity,
    resource: &str,
    namespace: &str,
    name: &str,
    rules: &[PolicyRule],
) -> ApiResult<()> {
    if identity.in_group(GROUP_MASTERS) {
        return Ok(());
    }
    let held = core.authorizer.rules_of(&core.caches, identity, namespace);
    let missing: Vec<PolicyRule> = rules
        .iter()
        .flat_map(atoms)
        .filter(|atom| !covered(&held, atom))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = identity
        .groups
        .iter()
        .map(|group| format!("{group:?}"))
        .collect();
    let mut list: Vec<String> = compact(missing).iter().map(describe).collect();
    list.sort();
    list.dedup();
    let message = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        identity.user,
        groups.join(" "),
        list.join("\n")
    );
    Err(ApiError::forbidden(GROUP, resource, name, &message))
}

/// May the identity write roles or bindings without holding their rules?
pub fn is_exempt(
    core: &Core,
    identity: &Identity,
    verb: &str,
    resource: &str,
    namespace: &str,
    name: &str,
) -> bool {
    is_allowed(
        core,
        identity,
        &Attributes {
            verb,
            group: GROUP,
            resource,
            namespace,
            name,
            ..Attributes::default()
        },
    )
}

/// A rule as rules of one verb, group, resource and name each.
fn atoms(rule: &PolicyRule) -> Vec<PolicyRule> {
    let mut atoms = Vec::new();
    for verb in &rule.verbs {
        for url in rule.non_resource_urls.iter().flatten() {
            atoms.push(PolicyRule {
                verbs: vec![verb.clone()],
                non_resource_urls: Some(vec![url.clone()]),
                ..PolicyRule::default()
            });
        }
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                let atom = PolicyRule {
                    verbs: vec![verb.clone()],
                    api_groups: Some(vec![group.clone()]),
                    resources: Some(vec![resource.clone()]),
                    ..PolicyRule::default()
                };
                match rule
                    .resource_names
                    .as_ref()
                    .filter(|names| !names.is_empty())
                {
                    Some(names) => atoms.extend(names.iter().map(|name| PolicyRule {
                        resource_names: Some(vec![name.clone()]),
                        ..atom.clone()
                    })),
                    None => atoms.push(atom),
                }
            }
        }
    }
    atoms
}

/// One rule for the verbs of each resource, as messages list them.
fn compact(atoms: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    for atom in atoms {
        let same = rules.iter_mut().find(|rule| {
            rule.resources.is_some()
                && (&rule.api_groups, &rule.resources, &rule.resource_names)
                    == (&atom.api_groups, &atom.resources, &atom.resource_names)
        });
        match same {
            Some(rule) => rule.verbs.extend(
                atom.verbs
                    .into_iter()
                    .filter(|verb| !rule.verbs.contains(verb))
                    .collect::<Vec<_>>(),
            ),
            None => rules.push(atom),
        }
    }
    rules
}

fn covered(held: &[Rules], atom: &PolicyRule) -> bool {
    let first = |list: &Option<Vec<String>>| {
        list.as_ref()
            .and_then(|list| list.first())
            .cloned()
            .unwrap_or_default()
    };
    let verb = atom.verbs.first().map(String::as_str).unwrap_or_default();
    let (url, group, resource, name) = (
        first(&atom.non_resource_urls),
        first(&atom.api_groups),
        first(&atom.resources),
        first(&atom.resource_names),
    );
    held.iter().flat_map(|rules| rules.iter()).any(|rule| {
        if !rule.verbs.iter().any(|own| own == "*" || own == verb) {
            return false;
        }
        if !url.is_empty() {
            return rule
                .non_resource_urls
                .iter()
                .flatten()
                .any(|own| url_matches(own, &url));
        }
        let names = rule
            .resource_names
            .as_ref()
            .filter(|names| !names.is_empty());
        let (plain, subresource) = resource.split_once('/').unwrap_or((&resource, ""));
        rule.api_groups
            .iter()
            .flatten()
            .any(|own| own == "*" || *own == group)
            && rule
                .resources
                .iter()
                .flatten()
                .any(|own| *own == resource || resource_matches(own, plain, subresource))
            && names.is_none_or(|names| !name.is_empty() && names.contains(&name))
    })
}

fn describe(rule: &PolicyRule) -> String {
    let mut parts = Vec::new();
    let mut part = |name: &str, list: &[String]| {
        if !list.is_empty() {
            let quoted: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
            parts.push(format!("{name}:[{}]", quoted.join(" ")));
        }
    };
    part("APIGroups", rule.api_groups.as_deref().unwrap_or_default());
    part("Resources", rule.resources.as_deref().unwrap_or_default());
    part(
        "ResourceNames",
        rule.resource_names.as_deref().unwrap_or_default(),
    );
    part(
        "NonResourceURLs",
        rule.non_resource_urls.as_deref().unwrap_or_default(),
    );
    part("Verbs", &rule.verbs);
    format!("{{{}}}", parts.join(", "))
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
            resource_names: (!names.is_empty()).then(|| list(names)),
            non_resource_urls: None,
        }
    }

    #[test]
    fn what_is_given_must_be_held() {
        let check = |held: PolicyRule, given: PolicyRule, expect: bool| {
            let held: Vec<Rules> = vec![vec![held].into()];
            assert_eq!(
                atoms(&given).iter().all(|atom| covered(&held, atom)),
                expect,
                "{given:?}"
            );
        };
        check(
            rule(&["*"], &["*"], &["*"], &[]),
            rule(&["get"], &["apps"], &["deployments/scale"], &[]),
            true,
        );
        check(
            rule(&["get"], &[""], &["pods"], &[]),
            rule(&["get"], &[""], &["pods"], &["a"]),
            true,
        );
        check(
            rule(&["get"], &[""], &["pods"], &["a"]),
            rule(&["get"], &[""], &["pods"], &[]),
            false,
        );
        check(
            rule(&["get"], &[""], &["pods"], &[]),
            rule(&["get", "list"], &[""], &["pods"], &[]),
            false,
        );
        check(
            rule(&["get"], &[""], &["pods"], &[]),
            rule(&["get"], &[""], &["*"], &[]),
            false,
        );
        check(
            rule(&["*"], &[""], &["pods"], &[]),
            rule(&["*"], &[""], &["pods"], &[]),
            true,
        );
    }

    #[test]
    fn verbs_of_a_resource_are_listed_together() {
        let given = [
            rule(&["get", "list"], &[""], &["secrets", "pods"], &[]),
            rule(&["watch", "get"], &[""], &["secrets"], &[]),
            rule(&["get"], &["apps"], &["deployments"], &["a"]),
        ];
        let atoms = given.iter().flat_map(atoms).collect();
        let found: Vec<String> = compact(atoms).iter().map(describe).collect();
        assert_eq!(
            found,
            [
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list" "watch"]}"#,
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}"#,
                r#"{APIGroups:["apps"], Resources:["deployments"], ResourceNames:["a"], Verbs:["get"]}"#,
            ]
        );
    }
}
