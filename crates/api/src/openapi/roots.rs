//! The kinds whose descriptions are taken from k8s-openapi. A kind that is not here is published without them.

use k8s_openapi::api::{
    apps, authentication, authorization, autoscaling, coordination, core, discovery, events,
    policy, rbac, scheduling,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta;
use k8s_openapi::schemars::{JsonSchema, SchemaGenerator};

type Describe = fn(&mut SchemaGenerator);

fn plain<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

const ROOTS: &[(&str, &str, Describe)] = &[
    ("v1", "Binding", plain::<core::v1::Binding>),
    ("v1", "ConfigMap", plain::<core::v1::ConfigMap>),
    ("v1", "Endpoints", plain::<core::v1::Endpoints>),
    ("v1", "Event", plain::<core::v1::Event>),
    ("v1", "Namespace", plain::<core::v1::Namespace>),
    ("v1", "Node", plain::<core::v1::Node>),
    ("v1", "Pod", plain::<core::v1::Pod>),
    ("v1", "Secret", plain::<core::v1::Secret>),
    ("v1", "Service", plain::<core::v1::Service>),
    ("v1", "ServiceAccount", plain::<core::v1::ServiceAccount>),
    (
        "apps/v1",
        "ControllerRevision",
        plain::<apps::v1::ControllerRevision>,
    ),
    ("apps/v1", "Deployment", plain::<apps::v1::Deployment>),
    ("apps/v1", "ReplicaSet", plain::<apps::v1::ReplicaSet>),
    (
        "authentication.k8s.io/v1",
        "SelfSubjectReview",
        plain::<authentication::v1::SelfSubjectReview>,
    ),
    (
        "authentication.k8s.io/v1",
        "TokenRequest",
        plain::<authentication::v1::TokenRequest>,
    ),
    (
        "authentication.k8s.io/v1",
        "TokenReview",
        plain::<authentication::v1::TokenReview>,
    ),
    (
        "authorization.k8s.io/v1",
        "LocalSubjectAccessReview",
        plain::<authorization::v1::LocalSubjectAccessReview>,
    ),
    (
        "authorization.k8s.io/v1",
        "SelfSubjectAccessReview",
        plain::<authorization::v1::SelfSubjectAccessReview>,
    ),
    (
        "authorization.k8s.io/v1",
        "SelfSubjectRulesReview",
        plain::<authorization::v1::SelfSubjectRulesReview>,
    ),
    (
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        plain::<authorization::v1::SubjectAccessReview>,
    ),
    ("autoscaling/v1", "Scale", plain::<autoscaling::v1::Scale>),
    (
        "coordination.k8s.io/v1",
        "Lease",
        plain::<coordination::v1::Lease>,
    ),
    (
        "discovery.k8s.io/v1",
        "EndpointSlice",
        plain::<discovery::v1::EndpointSlice>,
    ),
    ("events.k8s.io/v1", "Event", plain::<events::v1::Event>),
    ("policy/v1", "Eviction", plain::<policy::v1::Eviction>),
    (
        "policy/v1",
        "PodDisruptionBudget",
        plain::<policy::v1::PodDisruptionBudget>,
    ),
    (
        "rbac.authorization.k8s.io/v1",
        "ClusterRole",
        plain::<rbac::v1::ClusterRole>,
    ),
    (
        "rbac.authorization.k8s.io/v1",
        "ClusterRoleBinding",
        plain::<rbac::v1::ClusterRoleBinding>,
    ),
    (
        "rbac.authorization.k8s.io/v1",
        "Role",
        plain::<rbac::v1::Role>,
    ),
    (
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        plain::<rbac::v1::RoleBinding>,
    ),
    (
        "scheduling.k8s.io/v1",
        "PriorityClass",
        plain::<scheduling::v1::PriorityClass>,
    ),
    (
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        plain::<apiextensions::v1::CustomResourceDefinition>,
    ),
];

/// Adds the descriptions of a kind and of what it refers to.
pub(super) fn describe(api_version: &str, kind: &str, generator: &mut SchemaGenerator) {
    if let Some((_, _, describe)) = ROOTS
        .iter()
        .find(|(version, name, _)| *version == api_version && *name == kind)
    {
        describe(generator);
    }
}

/// Adds the descriptions of what every group refers to.
pub(super) fn describe_meta(generator: &mut SchemaGenerator) {
    plain::<meta::v1::DeleteOptions>(generator);
    plain::<meta::v1::ObjectMeta>(generator);
    plain::<meta::v1::Status>(generator);
}
