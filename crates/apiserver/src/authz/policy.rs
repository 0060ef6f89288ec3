//! The roles and bindings that every cluster has, as upstream's bootstrap policy.
//!
//! Written as text, one role a paragraph: `name [aggregate-to…] [= selected label…]`, then a rule a
//! line: verbs `|` groups `|` resources `|` names, or verbs `| url |` paths. `-` is the core group,
//! `R` stands for get, list, watch; `W` for create, delete, deletecollection, patch, update.
//! Roles of upstream controllers whose kinds we do not serve are left out.

use k8s_openapi::api::rbac::v1::{
    AggregationRule, ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef,
    Subject,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use std::collections::BTreeMap;

const GROUP: &str = "rbac.authorization.k8s.io";
const AGGREGATE_LABEL: &str = "rbac.authorization.k8s.io/aggregate-to-";
const CONTROLLER_PREFIX: &str = "system:controller:";

const CLUSTER_ROLES: &str = "
cluster-admin
* | * | *
* | url | *

system:discovery
get | url | /livez /readyz /healthz /version /version/ /openapi /openapi/* /api /api/* /apis /apis/*

system:monitoring
get | url | /metrics /metrics/slis /livez /readyz /healthz /livez/* /readyz/* /healthz/*
get | - | nodes/metrics

system:basic-user
create | authorization.k8s.io | selfsubjectaccessreviews selfsubjectrulesreviews
create | authentication.k8s.io | selfsubjectreviews

system:public-info-viewer
get | url | /livez /readyz /healthz /version /version/

admin = admin

edit admin = edit

view edit = view

system:aggregate-to-admin admin
create | authorization.k8s.io | localsubjectaccessreviews
R W | rbac.authorization.k8s.io | roles rolebindings

system:aggregate-to-edit edit
R | - | pods/attach pods/proxy pods/exec pods/portforward secrets services/proxy
impersonate | - | serviceaccounts
W | - | pods pods/attach pods/proxy pods/exec pods/portforward
create | - | pods/eviction
W | - | replicationcontrollers replicationcontrollers/scale serviceaccounts services services/proxy persistentvolumeclaims configmaps secrets
create | - | serviceaccounts/token
W | - events.k8s.io | events
W | apps | statefulsets statefulsets/scale daemonsets deployments deployments/scale deployments/rollback replicasets replicasets/scale
W | autoscaling | horizontalpodautoscalers
W | batch | jobs cronjobs
W | policy | poddisruptionbudgets
W | networking.k8s.io | networkpolicies ingresses
R W | coordination.k8s.io | leases

system:aggregate-to-view view
R | - | pods replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status endpoints persistentvolumeclaims persistentvolumeclaims/status configmaps
R | - | limitranges resourcequotas bindings pods/status resourcequotas/status namespaces/status replicationcontrollers/status pods/log
R | - | namespaces
R | - events.k8s.io | events
R | discovery.k8s.io | endpointslices
R | apps | controllerrevisions statefulsets statefulsets/status statefulsets/scale daemonsets daemonsets/status deployments deployments/status deployments/scale replicasets replicasets/status replicasets/scale
R | autoscaling | horizontalpodautoscalers horizontalpodautoscalers/status
R | batch | jobs cronjobs cronjobs/status jobs/status
R | policy | poddisruptionbudgets poddisruptionbudgets/status
R | networking.k8s.io | networkpolicies ingresses ingresses/status

system:node
create | authentication.k8s.io | tokenreviews
create | authorization.k8s.io | subjectaccessreviews localsubjectaccessreviews
R | - | services
create get list watch | - | nodes
update patch | - | nodes/status
update patch | - | nodes
create update patch | - events.k8s.io | events
R | - | pods
create delete | - | pods
update patch | - | pods/status
create | - | pods/eviction
R | - | secrets configmaps
get | - | persistentvolumeclaims persistentvolumes
get | - | endpoints
create get list watch | certificates.k8s.io | certificatesigningrequests
get create update patch delete | coordination.k8s.io | leases
get | storage.k8s.io | volumeattachments
create | - | serviceaccounts/token
get update patch | - | persistentvolumeclaims/status
R | storage.k8s.io | csidrivers
get create update patch delete | storage.k8s.io | csinodes
R | node.k8s.io | runtimeclasses
get | - | serviceaccounts

system:node-problem-detector
get | - | nodes
patch | - | nodes/status
create update patch | - events.k8s.io | events

system:node-bootstrapper
create get list watch | certificates.k8s.io | certificatesigningrequests

system:auth-delegator
create | authentication.k8s.io | tokenreviews
create | authorization.k8s.io | subjectaccessreviews

system:kube-aggregator
R | - | services endpoints

system:kube-controller-manager
create update patch | - events.k8s.io | events
create | coordination.k8s.io | leases
get update | coordination.k8s.io | leases | kube-controller-manager
create | - | secrets serviceaccounts
delete | - | secrets
get | - | namespaces secrets serviceaccounts configmaps
update | - | secrets serviceaccounts
create | authentication.k8s.io | tokenreviews
create | authorization.k8s.io | subjectaccessreviews
list watch | * | *
create | - | serviceaccounts/token

system:kube-dns
list watch | - | endpoints services
list watch | discovery.k8s.io | endpointslices

system:persistent-volume-provisioner
R create delete | - | persistentvolumes
R update | - | persistentvolumeclaims
R | storage.k8s.io | storageclasses
watch | - | events
create update patch | - events.k8s.io | events

system:service-account-issuer-discovery
get | url | /.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/

system:kubelet-api-admin
R | - | nodes
proxy | - | nodes
* | - | nodes/proxy nodes/metrics nodes/stats nodes/log nodes/pods nodes/healthz nodes/configz

system:node-proxier
list watch | - | services endpoints
R | - | nodes
create update patch | - events.k8s.io | events
list watch | networking.k8s.io | servicecidrs
list watch | discovery.k8s.io | endpointslices

system:kube-scheduler
create update patch | - events.k8s.io | events
create | coordination.k8s.io | leases
get update list watch | coordination.k8s.io | leases | kube-scheduler
R W | coordination.k8s.io | leasecandidates
R | - | nodes
R delete | - | pods
create | - | pods/binding bindings
patch update | - | pods/status
R | - | services replicationcontrollers
R | apps | replicasets
R | apps | statefulsets
R | policy | poddisruptionbudgets
R | - | persistentvolumeclaims persistentvolumes
create | authentication.k8s.io | tokenreviews
create | authorization.k8s.io | subjectaccessreviews
R | storage.k8s.io | csinodes volumeattachments csidrivers csistoragecapacities
R | - | namespaces
R | scheduling.k8s.io | priorityclasses

system:volume-scheduler
R update patch | - | persistentvolumes
R | storage.k8s.io | storageclasses
R update patch | - | persistentvolumeclaims
";

/// Roles of controllers; each is bound to the service account of the same name in kube-system.
const CONTROLLER_ROLES: &str = "
clusterrole-aggregation-controller
escalate R update patch | rbac.authorization.k8s.io | clusterroles

deployment-controller
R update | apps | deployments
update | apps | deployments/status
update | apps | deployments/finalizers
R create update patch delete | apps | replicasets
R update | - | pods
create update patch | - events.k8s.io | events

disruption-controller
R | apps | deployments
R | apps | replicasets
R | - | replicationcontrollers
R | policy | poddisruptionbudgets
R | apps | statefulsets
update | policy | poddisruptionbudgets/status
list watch | - | pods
patch update | - | pods/status
get | * | */scale
create update patch | - events.k8s.io | events

endpoint-controller
R | - | services pods
R create update delete | - | endpoints
create | - | endpoints/restricted
create update patch | - events.k8s.io | events

endpointslice-controller
R | - | services pods nodes
update | - | services/finalizers
R create update delete | discovery.k8s.io | endpointslices
create | discovery.k8s.io | endpointslices/restricted
create update patch | - events.k8s.io | events

endpointslicemirroring-controller
R | - | services endpoints
update | - | services/finalizers
update | - | endpoints/finalizers
R create update delete | discovery.k8s.io | endpointslices
create | discovery.k8s.io | endpointslices/restricted
create update patch | - events.k8s.io | events

generic-garbage-collector
R patch update delete | * | *
create update patch | - events.k8s.io | events

namespace-controller
get list delete deletecollection | * | *
R delete | - | namespaces
update | - | namespaces/finalize namespaces/status

node-controller
R update delete patch | - | nodes
patch update | - | nodes/status
patch update | - | pods/status
list watch delete get | - | pods
create update patch | - events.k8s.io | events
R | coordination.k8s.io | leases

pod-garbage-collector
list watch delete | - | pods
get list watch | - | nodes
patch update | - | pods/status

replicaset-controller
R update | apps | replicasets
update | apps | replicasets/status
update | apps | replicasets/finalizers
list watch patch create delete | - | pods
create update patch | - events.k8s.io | events

root-ca-cert-publisher
create update get list watch | - | configmaps
list watch get | - | namespaces
create update patch | - events.k8s.io | events

service-account-controller
create get list watch | - | serviceaccounts
R | - | namespaces
create update patch | - events.k8s.io | events

ttl-controller
update patch list watch | - | nodes
create update patch | - events.k8s.io | events
";

/// Role, then subjects: `g:` group, `u:` user, `s:` service account.
const CLUSTER_BINDINGS: &[(&str, &[&str])] = &[
    ("cluster-admin", &["g:system:masters"]),
    ("system:monitoring", &["g:system:monitoring"]),
    ("system:discovery", &["g:system:authenticated"]),
    ("system:basic-user", &["g:system:authenticated"]),
    (
        "system:public-info-viewer",
        &["g:system:authenticated", "g:system:unauthenticated"],
    ),
    ("system:node-proxier", &["u:system:kube-proxy"]),
    (
        "system:kube-controller-manager",
        &["u:system:kube-controller-manager"],
    ),
    ("system:kube-dns", &["s:kube-system/kube-dns"]),
    ("system:kube-scheduler", &["u:system:kube-scheduler"]),
    ("system:volume-scheduler", &["u:system:kube-scheduler"]),
    // Upstream leaves this to the node authorizer, which we do not have yet.
    ("system:node", &["g:system:nodes"]),
    (
        "system:service-account-issuer-discovery",
        &["g:system:serviceaccounts"],
    ),
];

/// Namespaced roles: namespace and name, rules, subjects.
const NAMESPACE_ROLES: &[(&str, &str, &str, &[&str])] = &[
    (
        "kube-system",
        "extension-apiserver-authentication-reader",
        "R | - | configmaps | extension-apiserver-authentication",
        &[
            "u:system:kube-controller-manager",
            "u:system:kube-scheduler",
        ],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        "R create update | coordination.k8s.io | leases leasecandidates",
        &[
            "u:system:kube-controller-manager",
            "s:kube-system/kube-controller-manager",
        ],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-scheduler",
        "R create update | coordination.k8s.io | leases leasecandidates",
        &["u:system:kube-scheduler", "s:kube-system/kube-scheduler"],
    ),
];

/// Everything that a new cluster gets.
pub struct Policy {
    pub cluster_roles: Vec<ClusterRole>,
    pub cluster_bindings: Vec<ClusterRoleBinding>,
    pub roles: Vec<Role>,
    pub bindings: Vec<RoleBinding>,
}

pub fn policy() -> Policy {
    let mut cluster_roles: Vec<ClusterRole> = paragraphs(CLUSTER_ROLES)
        .map(|paragraph| cluster_role(paragraph, ""))
        .collect();
    let controllers: Vec<ClusterRole> = paragraphs(CONTROLLER_ROLES)
        .map(|paragraph| cluster_role(paragraph, CONTROLLER_PREFIX))
        .collect();
    let mut cluster_bindings: Vec<ClusterRoleBinding> = CLUSTER_BINDINGS
        .iter()
        .map(|(role, subjects)| cluster_binding(role, subjects.iter().copied()))
        .collect();
    for role in &controllers {
        let name = role.metadata.name.as_deref().unwrap_or_default();
        let account = format!(
            "s:kube-system/{}",
            name.trim_start_matches(CONTROLLER_PREFIX)
        );
        cluster_bindings.push(cluster_binding(name, [account.as_str()]));
    }
    cluster_roles.extend(controllers);
    let roles = NAMESPACE_ROLES
        .iter()
        .map(|(namespace, name, rules, _)| Role {
            metadata: meta(name, Some(namespace), BTreeMap::new()),
            rules: Some(parse_rules(rules.lines())),
        })
        .collect();
    let bindings = NAMESPACE_ROLES
        .iter()
        .map(|(namespace, name, _, subjects)| RoleBinding {
            metadata: meta(
                if name.starts_with("extension") {
                    "system::extension-apiserver-authentication-reader"
                } else {
                    name
                },
                Some(namespace),
                BTreeMap::new(),
            ),
            role_ref: role_ref("Role", name),
            subjects: Some(
                subjects
                    .iter()
                    .map(|subject| parse_subject(subject))
                    .collect(),
            ),
        })
        .collect();
    Policy {
        cluster_roles,
        cluster_bindings,
        roles,
        bindings,
    }
}

fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n")
        .map(str::trim)
        .filter(|paragraph| !paragraph.is_empty())
}

fn cluster_role(paragraph: &str, prefix: &str) -> ClusterRole {
    let mut lines = paragraph.lines();
    let head = lines.next().unwrap_or_default();
    let (head, selected) = head.split_once('=').unwrap_or((head, ""));
    let mut words = head.split_whitespace();
    let name = format!("{prefix}{}", words.next().unwrap_or_default());
    let labels = words
        .map(|role| (format!("{AGGREGATE_LABEL}{role}"), "true".to_owned()))
        .collect();
    let selectors: Vec<LabelSelector> = selected
        .split_whitespace()
        .map(|role| LabelSelector {
            match_labels: Some([(format!("{AGGREGATE_LABEL}{role}"), "true".to_owned())].into()),
            ..LabelSelector::default()
        })
        .collect();
    ClusterRole {
        metadata: meta(&name, None, labels),
        aggregation_rule: (!selectors.is_empty()).then_some(AggregationRule {
            cluster_role_selectors: Some(selectors),
        }),
        rules: Some(parse_rules(lines)),
    }
}

fn parse_rules<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<PolicyRule> {
    lines
        .map(|line| {
            let mut columns = line.split('|').map(str::trim);
            let verbs = columns.next().unwrap_or_default();
            let groups = columns.next().unwrap_or_default();
            let targets = columns.next().unwrap_or_default();
            let names = columns.next().unwrap_or_default();
            let words = |text: &str| {
                text.split_whitespace()
                    .map(|word| {
                        if word == "-" {
                            String::new()
                        } else {
                            word.to_owned()
                        }
                    })
                    .collect::<Vec<_>>()
            };
            let mut rule = PolicyRule {
                verbs: Vec::new(),
                ..PolicyRule::default()
            };
            for verb in verbs.split_whitespace() {
                let expanded: &[&str] = match verb {
                    "R" => &["get", "list", "watch"],
                    "W" => &["create", "delete", "deletecollection", "patch", "update"],
                    _ => &[],
                };
                if expanded.is_empty() {
                    rule.verbs.push(verb.to_owned());
                } else {
                    rule.verbs
                        .extend(expanded.iter().map(|verb| (*verb).to_owned()));
                }
            }
            if groups == "url" {
                rule.non_resource_urls = Some(words(targets));
            } else {
                rule.api_groups = Some(words(groups));
                rule.resources = Some(words(targets));
                rule.resource_names = Some(words(names)).filter(|names| !names.is_empty());
            }
            rule
        })
        .collect()
}

fn meta(name: &str, namespace: Option<&str>, mut labels: BTreeMap<String, String>) -> ObjectMeta {
    labels.insert("kubernetes.io/bootstrapping".into(), "rbac-defaults".into());
    ObjectMeta {
        name: Some(name.into()),
        namespace: namespace.map(str::to_owned),
        labels: Some(labels),
        annotations: Some(
            [(
                "rbac.authorization.kubernetes.io/autoupdate".to_owned(),
                "true".to_owned(),
            )]
            .into(),
        ),
        ..ObjectMeta::default()
    }
}

fn cluster_binding<'a>(
    role: &str,
    subjects: impl IntoIterator<Item = &'a str>,
) -> ClusterRoleBinding {
    ClusterRoleBinding {
        metadata: meta(role, None, BTreeMap::new()),
        role_ref: role_ref("ClusterRole", role),
        subjects: Some(subjects.into_iter().map(parse_subject).collect()),
    }
}

fn role_ref(kind: &str, name: &str) -> RoleRef {
    RoleRef {
        api_group: Some(GROUP.into()),
        kind: kind.into(),
        name: name.into(),
    }
}

fn parse_subject(text: &str) -> Subject {
    let (kind, name) = text.split_once(':').unwrap_or_default();
    match kind {
        "s" => {
            let (namespace, name) = name.split_once('/').unwrap_or_default();
            Subject {
                kind: "ServiceAccount".into(),
                name: name.into(),
                namespace: Some(namespace.into()),
                api_group: None,
            }
        }
        "g" => Subject {
            kind: "Group".into(),
            name: name.into(),
            namespace: None,
            api_group: Some(GROUP.into()),
        },
        _ => Subject {
            kind: "User".into(),
            name: name.into(),
            namespace: None,
            api_group: Some(GROUP.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_policy_is_whole() {
        let policy = policy();
        let role = |name: &str| {
            policy
                .cluster_roles
                .iter()
                .find(|role| role.metadata.name.as_deref() == Some(name))
                .unwrap()
        };
        assert_eq!(role("cluster-admin").rules.as_ref().unwrap().len(), 2);
        assert!(role("admin").aggregation_rule.is_some());
        assert!(
            role("view")
                .metadata
                .labels
                .as_ref()
                .unwrap()
                .contains_key("rbac.authorization.k8s.io/aggregate-to-edit")
        );
        assert!(
            role("system:controller:deployment-controller")
                .rules
                .as_ref()
                .unwrap()
                .iter()
                .any(|rule| rule.verbs.contains(&"watch".to_owned()))
        );
        for binding in &policy.cluster_bindings {
            let name = &binding.role_ref.name;
            assert!(
                policy
                    .cluster_roles
                    .iter()
                    .any(|role| role.metadata.name.as_ref() == Some(name)),
                "{name}"
            );
        }
        for role in &policy.cluster_roles {
            for rule in role.rules.iter().flatten() {
                assert!(!rule.verbs.is_empty(), "{:?}", role.metadata.name);
                assert!(
                    rule.resources.as_ref().is_some_and(|list| !list.is_empty())
                        || rule
                            .non_resource_urls
                            .as_ref()
                            .is_some_and(|list| !list.is_empty())
                );
            }
        }
    }
}
