//! Kinds with little of their own: ServiceAccount, Lease, PriorityClass.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::Value;

use super::pod::defaults::fill_metadata;
use crate::columns::{self, AGE, NAME, column};
use crate::empty::drop_empty;
use crate::error::{ErrorList, forbidden, invalid, invalid_each, not_supported, required};
use crate::kind::{Column, Part};
use crate::metadata::{IMMUTABLE, NOT_NEGATIVE};
use crate::name;
use crate::path::root;
use crate::typed::ApiType;

impl ApiType for ServiceAccount {
    const NAMESPACED: bool = true;
    const COLUMNS: &'static [Column] = columns::NAME_AND_AGE;

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        drop_empty!(self.secrets, self.image_pull_secrets);
    }

    fn validate(&self, _errors: &mut ErrorList) {}

    fn validate_update(&self, _old: &Self, _part: &Part, _errors: &mut ErrorList) {}

    fn warnings(&self) -> Vec<String> {
        const ENFORCED: &str = "kubernetes.io/enforce-mountable-secrets";
        let annotated = self
            .metadata
            .annotations
            .as_ref()
            .is_some_and(|all| all.contains_key(ENFORCED));
        if !annotated {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{ENFORCED}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
        )]
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        vec![
            columns::name(&self.metadata),
            columns::age(&self.metadata, now_seconds),
        ]
    }
}

impl ApiType for Lease {
    const NAMESPACED: bool = true;
    const UNCONDITIONAL_UPDATE: bool = false;
    const CREATE_ON_UPDATE: bool = true;
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("Holder", "string", "Identity of the holder of the lease."),
        AGE,
    ];

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        self.spec.get_or_insert_default();
    }

    fn validate(&self, errors: &mut ErrorList) {
        let Some(spec) = &self.spec else { return };
        let path = root("spec");
        if let Some(seconds) = spec.lease_duration_seconds.filter(|seconds| *seconds <= 0) {
            errors.push(invalid(
                &path.child("leaseDurationSeconds"),
                &seconds,
                "must be greater than 0",
            ));
        }
        if let Some(count) = spec.lease_transitions.filter(|count| *count < 0) {
            errors.push(invalid(
                &path.child("leaseTransitions"),
                &count,
                NOT_NEGATIVE,
            ));
        }
        let strategy = spec.strategy.as_deref().unwrap_or("");
        if spec.strategy.is_some() {
            let strategy_path = path.child("strategy");
            // Upstream names the field twice.
            let strategy_path = strategy_path.child("strategy");
            if strategy.contains('/') {
                invalid_each(
                    errors,
                    &strategy_path,
                    strategy,
                    name::qualified_name(strategy),
                );
            } else if strategy != "OldestEmulationVersion" {
                errors.push(not_supported(
                    &strategy_path,
                    strategy,
                    &["OldestEmulationVersion"],
                ));
            }
        }
        if spec
            .preferred_holder
            .as_deref()
            .is_some_and(|holder| !holder.is_empty())
            && strategy.is_empty()
        {
            errors.push(forbidden(
                &path.child("preferredHolder"),
                "may only be specified if `strategy` is defined",
            ));
        }
    }

    fn validate_update(&self, _old: &Self, _part: &Part, errors: &mut ErrorList) {
        self.validate(errors);
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        let holder = self
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref())
            .unwrap_or("");
        vec![
            columns::name(&self.metadata),
            Value::from(holder),
            columns::age(&self.metadata, now_seconds),
        ]
    }
}

/// Priorities above this are the system's.
const USER_PRIORITY_MAX: i32 = 1_000_000_000;
/// The two classes that every cluster has, with their values.
pub const SYSTEM_PRIORITY_CLASSES: &[(&str, i32)] = &[
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

impl ApiType for PriorityClass {
    const NAMESPACED: bool = false;
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("Value", "integer", "Priority that pods of this class get."),
        column(
            "Global-Default",
            "boolean",
            "Whether pods without a class get this one.",
        ),
        AGE,
        column(
            "PreemptionPolicy",
            "string",
            "Whether pods of this class preempt others.",
        ),
    ];

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        drop_empty!(self.global_default, self.description);
        self.value.get_or_insert(0);
        self.preemption_policy
            .get_or_insert_with(|| "PreemptLowerPriority".to_string());
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
    }

    fn validate(&self, errors: &mut ErrorList) {
        let class = self.metadata.name.as_deref().unwrap_or("");
        let value = self.value.unwrap_or(0);
        if class.starts_with("system-") {
            let known = SYSTEM_PRIORITY_CLASSES
                .iter()
                .find(|(name, _)| *name == class);
            let problem = match known {
                None => Some(format!("{class} is not a known system priority class")),
                Some((_, expect)) if *expect != value => {
                    Some(format!("value of {class} PriorityClass must be {expect}"))
                }
                Some(_) if self.global_default == Some(true) => Some(format!(
                    "globalDefault of {class} PriorityClass must be false"
                )),
                Some(_) => None,
            };
            if let Some(problem) = problem {
                let path = root("metadata");
                let detail = format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {problem}"
                );
                errors.push(forbidden(&path.child("name"), detail));
            }
        } else if value > USER_PRIORITY_MAX {
            let detail =
                format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
            errors.push(forbidden(&root("value"), detail));
        }
        match self.preemption_policy.as_deref() {
            None | Some("PreemptLowerPriority" | "Never") => {}
            Some("") => errors.push(required(&root("preemptionPolicy"), "")),
            Some(other) => {
                errors.push(not_supported(
                    &root("preemptionPolicy"),
                    other,
                    &["PreemptLowerPriority", "Never"],
                ));
            }
        }
    }

    fn validate_update(&self, old: &Self, _part: &Part, errors: &mut ErrorList) {
        if self.value != old.value {
            errors.push(forbidden(
                &root("value"),
                "may not be changed in an update.",
            ));
        }
        if self.preemption_policy != old.preemption_policy {
            errors.push(invalid(
                &root("preemptionPolicy"),
                &self.preemption_policy,
                IMMUTABLE,
            ));
        }
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        vec![
            columns::name(&self.metadata),
            Value::from(self.value.unwrap_or(0)),
            Value::from(self.global_default.unwrap_or(false)),
            columns::age(&self.metadata, now_seconds),
            Value::from(self.preemption_policy.as_deref().unwrap_or("")),
        ]
    }
}
