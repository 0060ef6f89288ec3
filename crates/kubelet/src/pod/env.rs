//! The environment of a container: sources, `$(VAR)` expansion, service variables. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret, Service};
use volumes::downward::{self, Facts, FieldError};

use super::spec::PodSpecView;

/// The objects that containers' environments are made of, by name; `None`: it does not exist.
#[derive(Clone, Debug, Default)]
pub struct EnvSources {
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
}

/// Shown as `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        key: String,
        kind: &'static str,
        namespace: String,
        name: String,
    },
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("environment variable {0}: fileKeyRef is not supported by this node")]
    FileKeyRef(String),
}

/// Names of the ConfigMaps and of the Secrets that the container's environment refers to.
pub fn needs(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for source in container.env_from.iter().flatten() {
        config_maps.extend(
            source
                .config_map_ref
                .iter()
                .map(|reference| reference.name.clone()),
        );
        secrets.extend(
            source
                .secret_ref
                .iter()
                .map(|reference| reference.name.clone()),
        );
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|variable| variable.value_from.as_ref())
    {
        config_maps.extend(
            source
                .config_map_key_ref
                .iter()
                .map(|reference| reference.name.clone()),
        );
        secrets.extend(
            source
                .secret_key_ref
                .iter()
                .map(|reference| reference.name.clone()),
        );
    }
    (config_maps, secrets)
}

/// Variables in order; a later one of the same name has replaced the earlier.
pub fn make(
    view: &PodSpecView,
    container: &Container,
    sources: &EnvSources,
    services: &[(String, String)],
    facts: &Facts,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env = Env {
        order: Vec::new(),
        values: BTreeMap::new(),
    };
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match config_map(sources, &reference.name) {
                Some(config_map) => {
                    for (key, value) in config_map.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoConfigMap(reference.name.clone())),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match secret(sources, &reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        env.set(
                            &format!("{prefix}{key}"),
                            String::from_utf8_lossy(&value.0).into_owned(),
                        );
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoSecret(reference.name.clone())),
            }
        }
    }
    let of_services: BTreeMap<&str, &str> = services
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => expand(value, |name| {
                env.values
                    .get(name)
                    .map(String::as_str)
                    .or_else(|| of_services.get(name).copied())
            }),
            (_, Some(source)) => {
                match from_source(view, container, sources, &variable.name, source, facts)? {
                    Some(value) => value,
                    None => continue,
                }
            }
            _ => String::new(),
        };
        env.set(&variable.name, value);
    }
    let mut list: Vec<(String, String)> = services
        .iter()
        .filter(|(name, _)| !env.values.contains_key(name))
        .cloned()
        .collect();
    for name in env.order {
        if let Some(value) = env.values.remove(&name) {
            list.push((name, value));
        }
    }
    Ok(list)
}

struct Env {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Env {
    fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }
}

fn config_map(sources: &EnvSources, name: &str) -> Option<Arc<ConfigMap>> {
    sources.config_maps.get(name).cloned().flatten()
}

fn secret(sources: &EnvSources, name: &str) -> Option<Arc<Secret>> {
    sources.secrets.get(name).cloned().flatten()
}

fn from_source(
    view: &PodSpecView,
    container: &Container,
    sources: &EnvSources,
    variable: &str,
    source: &k8s_openapi::api::core::v1::EnvVarSource,
    facts: &Facts,
) -> Result<Option<String>, EnvError> {
    let no_key = |key: &str, kind, name: &str| EnvError::NoKey {
        key: key.into(),
        kind,
        namespace: view.namespace().into(),
        name: name.into(),
    };
    if let Some(field) = &source.field_ref {
        return Ok(Some(downward::pod_field(
            &view.pod,
            &field.field_path,
            facts,
        )?));
    }
    if let Some(resource) = &source.resource_field_ref {
        return Ok(Some(downward::resource_field(
            &view.pod,
            Some(container),
            resource,
            facts,
        )?));
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        return match config_map(sources, &reference.name) {
            None if optional => Ok(None),
            None => Err(EnvError::NoConfigMap(reference.name.clone())),
            Some(config_map) => match config_map
                .data
                .as_ref()
                .and_then(|data| data.get(&reference.key))
            {
                Some(value) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => Err(no_key(&reference.key, "ConfigMap", &reference.name)),
            },
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        return match secret(sources, &reference.name) {
            None if optional => Ok(None),
            None => Err(EnvError::NoSecret(reference.name.clone())),
            Some(secret) => match secret
                .data
                .as_ref()
                .and_then(|data| data.get(&reference.key))
            {
                Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
                None if optional => Ok(None),
                None => Err(no_key(&reference.key, "Secret", &reference.name)),
            },
        };
    }
    if source.file_key_ref.is_some() {
        return Err(EnvError::FileKeyRef(variable.to_owned()));
    }
    Ok(Some(String::new()))
}

/// Replaces `$(NAME)` where the name is known; `$$` is a dollar sign; anything else stays.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(index) = rest.find('$') {
        expanded.push_str(&rest[..index]);
        let after = &rest[index + 1..];
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = after
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match lookup(name) {
                Some(value) => expanded.push_str(value),
                None => {
                    expanded.push_str("$(");
                    expanded.push_str(name);
                    expanded.push(')');
                }
            }
            rest = after;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded.push_str(rest);
    expanded
}

/// Variables that tell a pod of `namespace` of the services around it, sorted by service.
///
/// The `kubernetes` service of namespace `default` is always told; the namespace's own if `links`.
pub fn of_services<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> Vec<(String, String)> {
    let mut chosen: BTreeMap<&str, (&Service, bool)> = BTreeMap::new();
    for service in services {
        let (Some(name), own) = (
            service.metadata.name.as_deref(),
            service.metadata.namespace.as_deref(),
        ) else {
            continue;
        };
        let has_ip = service
            .spec
            .as_ref()
            .and_then(|spec| spec.cluster_ip.as_deref())
            .is_some_and(|ip| !ip.is_empty() && ip != "None");
        if !has_ip {
            continue;
        }
        let in_namespace = own == Some(namespace) && links;
        if in_namespace {
            chosen.insert(name, (service, true));
        } else if own == Some("default") && name == "kubernetes" {
            chosen.entry(name).or_insert((service, false));
        }
    }
    let mut variables = Vec::new();
    for (name, (service, _)) in chosen {
        add_service(name, service, &mut variables);
    }
    variables
}

fn add_service(name: &str, service: &Service, variables: &mut Vec<(String, String)>) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let prefix = variable_name(name);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let mut add =
        |suffix: String, value: String| variables.push((format!("{prefix}_{suffix}"), value));
    add("SERVICE_HOST".into(), ip.to_owned());
    if let Some(first) = ports.first() {
        add("SERVICE_PORT".into(), first.port.to_string());
    }
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            add(
                format!("SERVICE_PORT_{}", variable_name(port_name)),
                port.port.to_string(),
            );
        }
    }
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            add("PORT".into(), url.clone());
        }
        let name = format!("PORT_{}_{}", port.port, protocol.to_uppercase());
        add(name.clone(), url);
        add(format!("{name}_PROTO"), protocol.to_lowercase());
        add(format!("{name}_PORT"), port.port.to_string());
        add(format!("{name}_ADDR"), ip.to_owned());
    }
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn expansion() {
        let lookup = |name: &str| match name {
            "A" => Some("1"),
            "B" => Some("$(A)"),
            _ => None,
        };
        for (text, expect) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(NONE)", "$(NONE)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("ü$(A)", "ü1"),
        ] {
            assert_eq!(expand(text, lookup), expect, "{text}");
        }
    }

    fn check(container: Value, expect: Result<&[(&str, &str)], &str>) {
        let mut with_name = container.clone();
        with_name["name"] = json!("c");
        let pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [with_name]}})).unwrap();
        let view = PodSpecView::new(Arc::new(pod));
        let config: ConfigMap = serde_json::from_value(json!({"data": {"a": "1"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"pw": "eA=="}})).unwrap();
        let sources = EnvSources {
            config_maps: BTreeMap::from([("config".into(), Some(Arc::new(config)))]),
            secrets: BTreeMap::from([("secret".into(), Some(Arc::new(secret)))]),
        };
        let facts = Facts {
            pod_ips: vec!["10.42.0.3".into()],
            ..Facts::default()
        };
        let services = [("SVC".to_owned(), "s".to_owned())];
        let env = make(
            &view,
            &view.containers[0].container,
            &sources,
            &services,
            &facts,
        )
        .map_err(|error| error.to_string());
        let expect = expect
            .map(|list| {
                list.iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect::<Vec<_>>()
            })
            .map_err(str::to_owned);
        assert_eq!(env, expect, "{container}");
    }

    #[test]
    fn environments() {
        check(
            json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(SVC)"}]}),
            Ok(&[("SVC", "s"), ("A", "1"), ("B", "1s")]),
        );
        check(
            json!({"env": [{"name": "SVC", "value": "mine"}]}),
            Ok(&[("SVC", "mine")]),
        );
        check(
            json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "config"}}, {"secretRef": {"name": "secret"}}]}),
            Ok(&[("SVC", "s"), ("P_a", "1"), ("pw", "x")]),
        );
        check(
            json!({"envFrom": [{"configMapRef": {"name": "none", "optional": true}}]}),
            Ok(&[("SVC", "s")]),
        );
        check(
            json!({"envFrom": [{"configMapRef": {"name": "none"}}]}),
            Err("configmap \"none\" not found"),
        );
        check(
            json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "no"}}}]}),
            Err("couldn't find key no in Secret ns/secret"),
        );
        check(
            json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "config", "key": "no"}}}]}),
            Err("couldn't find key no in ConfigMap ns/config"),
        );
        check(
            json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "none", "key": "no"}}}]}),
            Err("secret \"none\" not found"),
        );
        check(
            json!({"env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}),
            Ok(&[("SVC", "s"), ("IP", "10.42.0.3")]),
        );
    }

    #[test]
    fn service_variables() {
        let service = |namespace: &str, name: &str, ip: &str| -> Service {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": ip, "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}})).unwrap()
        };
        let services = [
            service("default", "kubernetes", "10.43.0.1"),
            service("shop", "my-db", "10.43.0.9"),
            service("shop", "headless", "None"),
            service("other", "x", "10.43.0.8"),
        ];
        let names = |links| {
            of_services(services.iter(), "shop", links)
                .into_iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(false),
            [
                "KUBERNETES_SERVICE_HOST=10.43.0.1",
                "KUBERNETES_SERVICE_PORT=443",
                "KUBERNETES_SERVICE_PORT_HTTPS=443",
                "KUBERNETES_PORT=tcp://10.43.0.1:443",
                "KUBERNETES_PORT_443_TCP=tcp://10.43.0.1:443",
                "KUBERNETES_PORT_443_TCP_PROTO=tcp",
                "KUBERNETES_PORT_443_TCP_PORT=443",
                "KUBERNETES_PORT_443_TCP_ADDR=10.43.0.1",
            ]
        );
        assert_eq!(names(true).len(), 16);
        assert!(names(true).contains(&"MY_DB_SERVICE_HOST=10.43.0.9".to_owned()));
    }
}
