//! Namespace: a finalizer of its own (`spec.finalizers`) holds it until it is emptied.

use k8s_openapi::api::core::v1::{Namespace, NamespaceSpec, NamespaceStatus};
use serde_json::Value;

use super::pod::defaults::fill_metadata;
use crate::columns;
use crate::error::{ErrorList, invalid};
use crate::kind::{Column, Part};
use crate::metadata;
use crate::name::NameRule;
use crate::path::root;
use crate::typed::ApiType;

const KUBERNETES_FINALIZER: &str = "kubernetes";
/// Set to the namespace's own name, so that selectors can name a namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl ApiType for Namespace {
    const NAMESPACED: bool = false;
    const NAME_RULE: NameRule = NameRule::Dns1123Label;
    const SELECTABLE: &'static [&'static str] = &["status.phase"];
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        columns::column("Status", "string", "The status of the namespace"),
        columns::AGE,
    ];

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        self.spec.get_or_insert_default();
        let status = self.status.get_or_insert_default();
        if status.phase.as_deref().unwrap_or("").is_empty() {
            status.phase = Some("Active".to_string());
        }
        if let Some(name) = self.metadata.name.as_ref().filter(|name| !name.is_empty()) {
            let labels = self.metadata.labels.get_or_insert_default();
            if labels.get(NAME_LABEL) != Some(name) {
                labels.insert(NAME_LABEL.to_string(), name.clone());
            }
        }
    }

    fn prepare_create(&mut self) {
        self.status = Some(NamespaceStatus {
            phase: Some("Active".to_string()),
            ..Default::default()
        });
        let finalizers = self
            .spec
            .get_or_insert_with(NamespaceSpec::default)
            .finalizers
            .get_or_insert_default();
        if !finalizers
            .iter()
            .any(|finalizer| finalizer == KUBERNETES_FINALIZER)
        {
            finalizers.push(KUBERNETES_FINALIZER.to_string());
        }
    }

    /// Only the finalize endpoint looks at `spec.finalizers`: other writes cannot change them.
    fn validate(&self, errors: &mut ErrorList) {
        self.validate_finalizers(errors);
    }

    fn prepare_update(&mut self, old: &Self, part: &Part) {
        match part {
            Part::Main => {
                self.spec.clone_from(&old.spec);
                self.status.clone_from(&old.status);
            }
            Part::Status => self.spec.clone_from(&old.spec),
            Part::Other(_) => self.status.clone_from(&old.status),
        }
    }

    fn validate_update(&self, _old: &Self, part: &Part, errors: &mut ErrorList) {
        match part {
            Part::Main => {}
            Part::Status => {
                let phase = self
                    .status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref())
                    .unwrap_or("");
                let deleted = self.metadata.deletion_timestamp.is_some();
                let path = root("status");
                if deleted && phase != "Terminating" {
                    errors.push(invalid(
                        &path.child("Phase"),
                        phase,
                        "may only be 'Terminating' if `deletionTimestamp` is not empty",
                    ));
                } else if !deleted && phase != "Active" {
                    errors.push(invalid(
                        &path.child("Phase"),
                        phase,
                        "may only be 'Active' if `deletionTimestamp` is empty",
                    ));
                }
            }
            Part::Other(_) => self.validate_finalizers(errors),
        }
    }

    fn selectable_values(&self) -> Vec<String> {
        vec![self.phase().to_string()]
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        vec![
            columns::name(&self.metadata),
            Value::from(self.phase()),
            columns::age(&self.metadata, now_seconds),
        ]
    }
}

trait NamespaceParts {
    fn phase(&self) -> &str;
    fn validate_finalizers(&self, errors: &mut ErrorList);
}

impl NamespaceParts for Namespace {
    fn phase(&self) -> &str {
        self.status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            .unwrap_or("")
    }

    fn validate_finalizers(&self, errors: &mut ErrorList) {
        let finalizers = self
            .spec
            .as_ref()
            .and_then(|spec| spec.finalizers.as_deref())
            .unwrap_or(&[]);
        let spec = root("spec");
        // Upstream names the list here, not its elements.
        let path = spec.child("finalizers");
        for finalizer in finalizers {
            metadata::validate_label_name(finalizer, &path, errors);
            metadata::validate_standard_finalizer(finalizer, &path, errors);
        }
    }
}
