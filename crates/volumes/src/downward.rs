//! The downward API: values of a pod's own fields and of its containers' resources. Pure.

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::amount;

/// What is known of the pod's place when a value is asked for.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub host_ips: Vec<String>,
    pub pod_ips: Vec<String>,
    /// What a container without limits may use, from the node's allocatable.
    pub allocatable_cpu_millis: i64,
    pub allocatable_memory_bytes: i64,
    pub allocatable_ephemeral_storage_bytes: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("unsupported fieldPath: {0}")]
    UnsupportedField(String),
    #[error("unsupported container resource : {0}")]
    UnsupportedResource(String),
    #[error("container {0} not found")]
    NoContainer(String),
    #[error("invalid divisor: {0}")]
    InvalidDivisor(String),
}

/// The value of a `fieldRef`; empty for a label or annotation that is not there.
pub fn pod_field(pod: &Pod, field_path: &str, facts: &Facts) -> Result<String, FieldError> {
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Ok(match field_path {
        "metadata.name" => text(&metadata.name),
        "metadata.namespace" => text(&metadata.namespace),
        "metadata.uid" => text(&metadata.uid),
        "metadata.labels" => format_map(metadata.labels.iter().flatten()),
        "metadata.annotations" => format_map(metadata.annotations.iter().flatten()),
        "spec.nodeName" => spec.map(|spec| text(&spec.node_name)).unwrap_or_default(),
        "spec.serviceAccountName" => spec
            .map(|spec| text(&spec.service_account_name))
            .unwrap_or_default(),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        other => {
            let subscript = |prefix: &str| {
                other
                    .strip_prefix(prefix)
                    .and_then(|rest| rest.strip_prefix("['"))
                    .and_then(|rest| rest.strip_suffix("']"))
            };
            let map = if let Some(key) = subscript("metadata.labels") {
                metadata.labels.as_ref().and_then(|labels| labels.get(key))
            } else if let Some(key) = subscript("metadata.annotations") {
                metadata
                    .annotations
                    .as_ref()
                    .and_then(|annotations| annotations.get(key))
            } else {
                return Err(FieldError::UnsupportedField(other.to_owned()));
            };
            map.cloned().unwrap_or_default()
        }
    })
}

/// `key="value"` lines, sorted, with Go's quoting.
fn format_map<'a>(entries: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    entries
        .map(|(key, value)| format!("{key}={}", quote(value)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A Go string literal.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                quoted.push_str(&format!("\\x{:02x}", c as u32))
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The value of a `resourceFieldRef`: the quantity over the divisor, rounded up.
///
/// Without `containerName` the selector means `container`. Where no limit is set, the node's allocatable counts.
pub fn resource_field(
    pod: &Pod,
    container: Option<&Container>,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, FieldError> {
    let container = match selector
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        Some(name) => {
            let spec = pod.spec.as_ref();
            spec.into_iter()
                .flat_map(|spec| {
                    spec.containers
                        .iter()
                        .chain(spec.init_containers.iter().flatten())
                })
                .find(|container| container.name == name)
                .ok_or_else(|| FieldError::NoContainer(name.to_owned()))?
        }
        None => container.ok_or_else(|| FieldError::NoContainer(String::new()))?,
    };
    let (section, resource) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| FieldError::UnsupportedResource(selector.resource.clone()))?;
    let resources = container.resources.as_ref();
    let listed = match section {
        "limits" => resources.and_then(|resources| resources.limits.as_ref()),
        "requests" => resources.and_then(|resources| resources.requests.as_ref()),
        _ => return Err(FieldError::UnsupportedResource(selector.resource.clone())),
    };
    let mut value_millis = listed
        .and_then(|list| list.get(resource))
        .and_then(amount::millis)
        .unwrap_or(0);
    if value_millis == 0 && section == "limits" {
        value_millis = match resource {
            "cpu" => i128::from(facts.allocatable_cpu_millis),
            "memory" => i128::from(facts.allocatable_memory_bytes) * 1000,
            "ephemeral-storage" => i128::from(facts.allocatable_ephemeral_storage_bytes) * 1000,
            _ => 0,
        };
    }
    if !matches!(resource, "cpu" | "memory" | "ephemeral-storage")
        && !resource.starts_with("hugepages-")
    {
        return Err(FieldError::UnsupportedResource(selector.resource.clone()));
    }
    let divisor_millis = match &selector.divisor {
        None => 1000,
        Some(divisor) => match amount::millis(divisor) {
            Some(0) => 1000,
            Some(millis) if millis > 0 => millis,
            _ => return Err(FieldError::InvalidDivisor(divisor.0.clone())),
        },
    };
    Ok(((value_millis + divisor_millis - 1) / divisor_millis).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"a": "1", "b": "x\"y"}, "annotations": {"n": "two\nlines"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}}, {"name": "free"}]}
        }))
        .unwrap()
    }

    #[test]
    fn fields_of_a_pod() {
        let facts = Facts {
            host_ips: vec!["10.0.0.1".into()],
            pod_ips: vec!["10.42.0.5".into(), "fd00::5".into()],
            ..Facts::default()
        };
        for (path, expect) in [
            ("metadata.name", Ok("web")),
            ("metadata.labels", Ok("a=\"1\"\nb=\"x\\\"y\"")),
            ("metadata.labels['a']", Ok("1")),
            ("metadata.labels['none']", Ok("")),
            ("metadata.annotations['n']", Ok("two\nlines")),
            ("spec.nodeName", Ok("n1")),
            ("status.podIPs", Ok("10.42.0.5,fd00::5")),
            ("status.hostIP", Ok("10.0.0.1")),
            ("spec.containers", Err(())),
        ] {
            assert_eq!(
                pod_field(&pod(), path, &facts).map_err(|_| ()),
                expect.map(str::to_owned),
                "{path}"
            );
        }
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let pod = pod();
        let containers = &pod.spec.as_ref().unwrap().containers;
        let facts = Facts {
            allocatable_cpu_millis: 2000,
            allocatable_memory_bytes: 1 << 30,
            ..Facts::default()
        };
        for (container, selector, expect) in [
            (0, json!({"resource": "limits.cpu"}), "2"),
            (
                0,
                json!({"resource": "limits.cpu", "divisor": "1m"}),
                "1500",
            ),
            (
                0,
                json!({"resource": "requests.cpu", "divisor": "1m"}),
                "250",
            ),
            (
                0,
                json!({"resource": "limits.memory", "divisor": "1Mi"}),
                "64",
            ),
            (0, json!({"resource": "requests.memory"}), "0"),
            (1, json!({"resource": "limits.cpu"}), "2"),
            (1, json!({"resource": "limits.memory"}), "1073741824"),
            (
                1,
                json!({"resource": "limits.cpu", "containerName": "c", "divisor": "0"}),
                "2",
            ),
        ] {
            let selector: ResourceFieldSelector = serde_json::from_value(selector).unwrap();
            assert_eq!(
                resource_field(&pod, Some(&containers[container]), &selector, &facts).unwrap(),
                expect,
                "{selector:?}"
            );
        }
    }
}
