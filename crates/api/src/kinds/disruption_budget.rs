//! PodDisruptionBudget: how many of an application's pods may be away at once by someone's choice.

use k8s_openapi::api::policy::v1::{
    PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::apps::{percent_of, raise_generation, validate_count_or_percent};
use super::pod::defaults::fill_metadata;
use super::{condition, label_selector};
use crate::columns::{self, AGE, NAME, column};
use crate::empty::drop_empty;
use crate::error::{ErrorList, invalid, not_supported, print_go_struct};
use crate::kind::{Column, Part};
use crate::metadata::not_negative;
use crate::path::{Path, root};
use crate::typed::ApiType;

const UNHEALTHY_POLICIES: &[&str] = &["AlwaysAllow", "IfHealthyBudget"];

impl ApiType for PodDisruptionBudget {
    const NAMESPACED: bool = true;
    const UNCONDITIONAL_UPDATE: bool = false;
    const COLUMNS: &'static [Column] = &[
        NAME,
        column(
            "Min Available",
            "string",
            "The minimum number of pods that must be available.",
        ),
        column(
            "Max Unavailable",
            "string",
            "The maximum number of pods that may be unavailable.",
        ),
        column(
            "Allowed Disruptions",
            "integer",
            "Calculated number of pods that may be disrupted at this time.",
        ),
        AGE,
    ];

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        self.spec.get_or_insert_default();
        let status = self.status.get_or_insert_default();
        drop_empty!(
            status.conditions,
            status.disrupted_pods,
            status.observed_generation,
        );
        // Go writes these even when they are 0.
        for count in [
            &mut status.disruptions_allowed,
            &mut status.current_healthy,
            &mut status.desired_healthy,
            &mut status.expected_pods,
        ] {
            count.get_or_insert(0);
        }
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(PodDisruptionBudgetStatus::default());
    }

    fn validate(&self, errors: &mut ErrorList) {
        if let Some(spec) = &self.spec {
            validate_spec(spec, &root("spec"), errors);
        }
    }

    fn prepare_update(&mut self, old: &Self, part: &Part) {
        if *part == Part::Status {
            self.spec.clone_from(&old.spec);
            return;
        }
        self.status.clone_from(&old.status);
        if self.spec != old.spec {
            raise_generation(&mut self.metadata, &old.metadata);
        }
    }

    fn validate_update(&self, _old: &Self, part: &Part, errors: &mut ErrorList) {
        if *part != Part::Status {
            self.validate(errors);
            return;
        }
        let Some(status) = &self.status else { return };
        let path = root("status");
        condition::validate(
            status.conditions.as_deref().unwrap_or_default(),
            &path.child("conditions"),
            errors,
        );
        for (field, count) in [
            ("disruptionsAllowed", status.disruptions_allowed),
            ("currentHealthy", status.current_healthy),
            ("desiredHealthy", status.desired_healthy),
            ("expectedPods", status.expected_pods),
        ] {
            not_negative(i64::from(count.unwrap_or(0)), &path.child(field), errors);
        }
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        let bound = |bound: Option<&IntOrString>| match bound {
            Some(IntOrString::Int(count)) => Value::from(count.to_string()),
            Some(IntOrString::String(text)) => Value::from(text.as_str()),
            None => Value::from("N/A"),
        };
        let spec = self.spec.as_ref();
        vec![
            columns::name(&self.metadata),
            bound(spec.and_then(|spec| spec.min_available.as_ref())),
            bound(spec.and_then(|spec| spec.max_unavailable.as_ref())),
            Value::from(
                self.status
                    .as_ref()
                    .and_then(|status| status.disruptions_allowed)
                    .unwrap_or(0),
            ),
            columns::age(&self.metadata, now_seconds),
        ]
    }
}

fn validate_spec(spec: &PodDisruptionBudgetSpec, path: &Path<'_>, errors: &mut ErrorList) {
    if spec.min_available.is_some() && spec.max_unavailable.is_some() {
        let mut error = invalid(
            path,
            "",
            "minAvailable and maxUnavailable cannot be both set",
        );
        error.bad_value = print_go_struct(&[
            ("MinAvailable", &spec.min_available),
            ("Selector", &spec.selector),
            ("MaxUnavailable", &spec.max_unavailable),
            (
                "UnhealthyPodEvictionPolicy",
                &spec.unhealthy_pod_eviction_policy,
            ),
        ]);
        errors.push(error);
    }
    for (field, bound) in [
        ("minAvailable", &spec.min_available),
        ("maxUnavailable", &spec.max_unavailable),
    ] {
        let Some(bound) = bound else { continue };
        let path = path.child(field);
        validate_count_or_percent(bound, &path, errors);
        if percent_of(bound).is_some_and(|percent| percent > 100) {
            errors.push(invalid(&path, bound, "must not be greater than 100%"));
        }
    }
    label_selector::validate(spec.selector.as_ref(), &path.child("selector"), errors);
    if let Some(policy) = spec
        .unhealthy_pod_eviction_policy
        .as_deref()
        .filter(|policy| !UNHEALTHY_POLICIES.contains(policy))
    {
        errors.push(not_supported(
            &path.child("unhealthyPodEvictionPolicy"),
            policy,
            UNHEALTHY_POLICIES,
        ));
    }
}
