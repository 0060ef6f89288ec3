//! The `kube-root-ca.crt` ConfigMap of every namespace, by which pods check the API server's certificate.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or \
     kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Create(Box<ConfigMap>),
    Update(Box<ConfigMap>),
}

/// The write that is needed, if any. A namespace on its way out gets none.
pub fn reconcile(
    namespace: &Namespace,
    existing: Option<&ConfigMap>,
    ca_pem: &str,
) -> Option<Action> {
    if namespace.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let data = BTreeMap::from([(KEY.to_string(), ca_pem.to_string())]);
    let annotations = BTreeMap::from([(
        "kubernetes.io/description".to_string(),
        DESCRIPTION.to_string(),
    )]);
    let Some(existing) = existing else {
        let metadata = ObjectMeta {
            name: Some(NAME.into()),
            namespace: namespace.metadata.name.clone(),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        };
        return Some(Action::Create(Box::new(ConfigMap {
            metadata,
            data: Some(data),
            ..ConfigMap::default()
        })));
    };
    let described = existing.metadata.annotations.as_ref().is_some_and(|held| {
        annotations
            .iter()
            .all(|(key, value)| held.get(key) == Some(value))
    });
    if existing.data.as_ref() == Some(&data) && described {
        return None;
    }
    let mut updated = existing.clone();
    updated.data = Some(data);
    updated
        .metadata
        .annotations
        .get_or_insert_default()
        .extend(annotations);
    Some(Action::Update(Box::new(updated)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_repaired_and_then_left_alone() {
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some("a".into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let Some(Action::Create(made)) = reconcile(&namespace, None, "PEM") else {
            panic!("not created")
        };
        assert_eq!(made.metadata.namespace.as_deref(), Some("a"));
        assert_eq!(reconcile(&namespace, Some(&made), "PEM"), None);
        let Some(Action::Update(repaired)) = reconcile(&namespace, Some(&made), "NEW") else {
            panic!("not repaired")
        };
        assert_eq!(
            repaired
                .data
                .as_ref()
                .and_then(|data| data.get(KEY))
                .map(String::as_str),
            Some("NEW")
        );
    }
}
