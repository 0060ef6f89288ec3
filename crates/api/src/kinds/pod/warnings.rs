//! What a client is warned of though the pod is accepted.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec};

use super::containers::slice;
use crate::kinds::resources::amount;
use crate::name;
use crate::path::{Path, root};

pub(super) fn of_pod(pod: &Pod) -> Vec<String> {
    let mut warnings = Vec::new();
    let complaints = name::dns1123_label(pod.metadata.name.as_deref().unwrap_or(""));
    if !complaints.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
            complaints.join(" ")
        ));
    }
    if let Some(spec) = &pod.spec {
        of_spec(spec, &root("spec"), &mut warnings);
    }
    warnings
}

pub(crate) fn of_template(template: &PodTemplateSpec, path: &Path<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(spec) = &template.spec {
        of_spec(spec, &path.child("spec"), &mut warnings);
    }
    warnings
}

/// Labels of nodes that have a successor, and what to say of them.
const DEPRECATED_NODE_LABELS: [(&str, &str); 8] = [
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "beta.kubernetes.io/arch",
        "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    (
        "beta.kubernetes.io/os",
        "deprecated since v1.14; use \"kubernetes.io/os\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "node-role.kubernetes.io/master",
        "use \"node-role.kubernetes.io/control-plane\" instead",
    ),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
];

fn deprecated_node_label(key: &str) -> Option<&'static str> {
    DEPRECATED_NODE_LABELS
        .iter()
        .find(|(label, _)| *label == key)
        .map(|(_, message)| *message)
}

/// What a pod asks of the labels of its node.
fn of_node_labels(spec: &PodSpec, path: &Path<'_>, warnings: &mut Vec<String>) {
    let selector_path = path.child("nodeSelector");
    for key in spec.node_selector.iter().flatten().map(|(key, _)| key) {
        if let Some(message) = deprecated_node_label(key) {
            warnings.push(format!("{}: {message}", selector_path.key(key)));
        }
    }
    let Some(affinity) = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
    else {
        return;
    };
    let path = path.child("affinity");
    let path = path.child("nodeAffinity");
    let mut of_term = |term: &NodeSelectorTerm, path: &Path<'_>| {
        let path = path.child("matchExpressions");
        for (index, expression) in slice(&term.match_expressions).iter().enumerate() {
            if let Some(message) = deprecated_node_label(&expression.key) {
                warnings.push(format!(
                    "{}: {} is {message}",
                    path.index(index).child("key"),
                    expression.key
                ));
            }
        }
    };
    if let Some(required) = &affinity.required_during_scheduling_ignored_during_execution {
        let path = path.child("requiredDuringSchedulingIgnoredDuringExecution");
        let path = path.child("nodeSelectorTerms");
        for (index, term) in required.node_selector_terms.iter().enumerate() {
            of_term(term, &path.index(index));
        }
    }
    let preferred = slice(&affinity.preferred_during_scheduling_ignored_during_execution);
    let path = path.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (index, term) in preferred.iter().enumerate() {
        of_term(&term.preference, &path.index(index).child("preference"));
    }
}

fn of_spec(spec: &PodSpec, path: &Path<'_>, warnings: &mut Vec<String>) {
    of_node_labels(spec, path, warnings);
    let spread_path = path.child("topologySpreadConstraints");
    for (index, constraint) in slice(&spec.topology_spread_constraints).iter().enumerate() {
        if constraint.label_selector.is_none() {
            let path = spread_path.index(index);
            warnings.push(format!(
                "{}: a null labelSelector results in matching no pod",
                path.child("labelSelector")
            ));
        }
    }
    let volumes_path = path.child("volumes");
    for (index, volume) in slice(&spec.volumes).iter().enumerate() {
        let path = volumes_path.index(index);
        for (field, is_set, text) in [
            (
                "photonPersistentDisk",
                volume.photon_persistent_disk.is_some(),
                "deprecated in v1.11, non-functional in v1.16+",
            ),
            (
                "gitRepo",
                volume.git_repo.is_some(),
                "deprecated in v1.11, and disabled by default in v1.33+",
            ),
            (
                "scaleIO",
                volume.scale_io.is_some(),
                "deprecated in v1.16, non-functional in v1.22+",
            ),
            (
                "flocker",
                volume.flocker.is_some(),
                "deprecated in v1.22, non-functional in v1.25+",
            ),
            (
                "storageOS",
                volume.storageos.is_some(),
                "deprecated in v1.22, non-functional in v1.25+",
            ),
            (
                "quobyte",
                volume.quobyte.is_some(),
                "deprecated in v1.22, non-functional in v1.25+",
            ),
            (
                "glusterfs",
                volume.glusterfs.is_some(),
                "deprecated in v1.25, non-functional in v1.26+",
            ),
            (
                "cephfs",
                volume.cephfs.is_some(),
                "deprecated in v1.28, non-functional in v1.31+",
            ),
            (
                "rbd",
                volume.rbd.is_some(),
                "deprecated in v1.28, non-functional in v1.31+",
            ),
        ] {
            if is_set {
                warnings.push(format!("{}: {text}", path.child(field)));
            }
        }
    }
    let aliases = slice(&spec.host_aliases);
    let aliases_path = path.child("hostAliases");
    for (index, alias) in aliases.iter().enumerate() {
        if aliases[..index].iter().any(|other| other.ip == alias.ip) {
            warnings.push(format!(
                "{}: duplicate ip {:?}",
                aliases_path.index(index).child("ip"),
                alias.ip
            ));
        }
    }
    let secrets = slice(&spec.image_pull_secrets);
    let secrets_path = path.child("imagePullSecrets");
    for (index, secret) in secrets.iter().enumerate() {
        let path = secrets_path.index(index);
        if secret.name.is_empty() {
            warnings.push(format!("{}: invalid empty name \"\"", path.child("name")));
        } else if secrets[..index].contains(secret) {
            warnings.push(format!(
                "{}: duplicate name {:?}",
                path.child("name"),
                secret.name
            ));
        }
    }
    for (field, list) in [
        ("initContainers", slice(&spec.init_containers)),
        ("containers", spec.containers.as_slice()),
    ] {
        let list_path = path.child(field);
        for (index, container) in list.iter().enumerate() {
            of_container(container, &list_path.index(index), warnings);
        }
    }
}

fn of_container(container: &Container, path: &Path<'_>, warnings: &mut Vec<String>) {
    let resources_path = path.child("resources");
    if let Some(resources) = &container.resources {
        for (field, list) in [
            ("limits", &resources.limits),
            ("requests", &resources.requests),
        ] {
            for resource in ["memory", "ephemeral-storage"] {
                let text = list.as_ref().and_then(|list| list.get(resource));
                if let Some(text) = text.filter(|text| !amount(text).is_whole()) {
                    warnings.push(format!(
                        "{}: fractional byte value {:?} is invalid, must be an integer",
                        resources_path.child(field).key(resource),
                        text.0
                    ));
                }
            }
        }
    }
    let mut names = BTreeSet::new();
    let env_path = path.child("env");
    for (index, variable) in slice(&container.env).iter().enumerate() {
        // A later value that refers to the earlier one is on purpose.
        let extends = variable
            .value
            .as_deref()
            .is_some_and(|value| value.contains(&format!("$({})", variable.name)));
        if !names.insert(&variable.name) && !extends {
            warnings.push(format!(
                "{}: hides previous definition of {:?}, which may be dropped when using apply",
                env_path.index(index),
                variable.name
            ));
        }
    }
    let ports = slice(&container.ports);
    let ports_path = path.child("ports");
    for (index, port) in ports.iter().enumerate() {
        let same = |other: &&k8s_openapi::api::core::v1::ContainerPort| {
            (
                other.container_port,
                &other.protocol,
                other.host_port,
                &other.host_ip,
            ) == (
                port.container_port,
                &port.protocol,
                port.host_port,
                &port.host_ip,
            )
        };
        if let Some(first) = ports[..index].iter().position(|other| same(&other)) {
            warnings.push(format!(
                "{}: duplicate port definition with {}",
                ports_path.index(index),
                ports_path.index(first)
            ));
        }
    }
}
