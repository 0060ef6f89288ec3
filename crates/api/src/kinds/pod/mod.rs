//! Pod: defaults in [`defaults`], validation in the modules beside it, what may change after creation in [`update`].

pub(crate) mod defaults;

mod claim;
mod columns;
pub(crate) mod containers;
mod env;
mod probes;
mod projected;
mod resize;
pub(crate) mod scheduling;
mod security;
pub(crate) mod spec;
mod status;
mod update;
mod volumes;
pub(crate) mod warnings;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Pod, PodAffinityTerm, PodCondition, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde_json::Value;

use crate::error::{DecodeError, ErrorList};
use crate::kind::{Column, Part};
use crate::typed::ApiType;

impl ApiType for Pod {
    const NAMESPACED: bool = true;
    const COLUMNS: &'static [Column] = columns::COLUMNS;
    const SELECTABLE: &'static [&'static str] = &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ];

    fn finish_decode(&mut self) -> Result<(), DecodeError> {
        self.spec.as_mut().map_or(Ok(()), defaults::finish_spec)?;
        self.status.as_mut().map_or(Ok(()), defaults::finish_status)
    }

    fn fill_defaults(&mut self) {
        defaults::fill_metadata(&mut self.metadata);
        defaults::fill_pod(self);
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        let mut status = PodStatus {
            phase: Some("Pending".to_string()),
            ..Default::default()
        };
        let spec = self.spec.get_or_insert_default();
        if spec
            .scheduling_gates
            .as_ref()
            .is_some_and(|gates| !gates.is_empty())
        {
            status.conditions = Some(vec![PodCondition {
                type_: "PodScheduled".to_string(),
                status: "False".to_string(),
                reason: Some("SchedulingGated".to_string()),
                message: Some(
                    "Scheduling is blocked due to non-empty scheduling gates".to_string(),
                ),
                ..Default::default()
            }]);
        }
        self.status = Some(status);
        merge_label_keys(spec, self.metadata.labels.as_ref());
    }

    fn validate(&self, errors: &mut ErrorList) {
        spec::validate_create(self, errors);
    }

    fn prepare_update(&mut self, old: &Self, part: &Part) {
        update::prepare(self, old, part);
    }

    fn validate_update(&self, old: &Self, part: &Part, errors: &mut ErrorList) {
        update::validate(self, old, part, errors);
    }

    fn warnings(&self) -> Vec<String> {
        warnings::of_pod(self)
    }

    /// The spec's grace period; a pod on no node, or one that has ended, goes at once.
    fn default_grace_period_seconds(&self) -> Option<i64> {
        let spec = self.spec.as_ref();
        let bound = spec
            .and_then(|spec| spec.node_name.as_deref())
            .is_some_and(|node| !node.is_empty());
        if !bound || crate::pod::is_terminal(self) {
            return Some(0);
        }
        let period = spec
            .and_then(|spec| spec.termination_grace_period_seconds)
            .unwrap_or(0);
        Some(if period < 0 { 1 } else { period })
    }

    fn selectable_values(&self) -> Vec<String> {
        let text = |text: Option<&String>| text.cloned().unwrap_or_default();
        let (spec, status) = (self.spec.as_ref(), self.status.as_ref());
        vec![
            text(spec.and_then(|spec| spec.node_name.as_ref())),
            text(spec.and_then(|spec| spec.restart_policy.as_ref())),
            text(spec.and_then(|spec| spec.scheduler_name.as_ref())),
            text(spec.and_then(|spec| spec.service_account_name.as_ref())),
            spec.and_then(|spec| spec.host_network)
                .unwrap_or(false)
                .to_string(),
            text(status.and_then(|status| status.phase.as_ref())),
            text(
                status
                    .and_then(|status| status.pod_ips.as_ref()?.first())
                    .map(|ip| &ip.ip),
            ),
            text(status.and_then(|status| status.nominated_node_name.as_ref())),
        ]
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        columns::cells(self, now_seconds)
    }
}

/// Turns `matchLabelKeys` and `mismatchLabelKeys` into requirements with the pod's own values, once, at creation.
fn merge_label_keys(spec: &mut PodSpec, labels: Option<&BTreeMap<String, String>>) {
    let Some(labels) = labels else { return };
    if let Some(affinity) = &mut spec.affinity {
        for term in affinity_terms(affinity) {
            if let Some(selector) = &mut term.label_selector {
                add_requirements(selector, term.match_label_keys.as_deref(), "In", labels);
                add_requirements(
                    selector,
                    term.mismatch_label_keys.as_deref(),
                    "NotIn",
                    labels,
                );
            }
        }
    }
    for constraint in spec.topology_spread_constraints.iter_mut().flatten() {
        if let Some(selector) = &mut constraint.label_selector {
            add_requirements(
                selector,
                constraint.match_label_keys.as_deref(),
                "In",
                labels,
            );
        }
    }
}

fn affinity_terms(affinity: &mut Affinity) -> impl Iterator<Item = &mut PodAffinityTerm> {
    let attract = affinity.pod_affinity.iter_mut().flat_map(|affinity| {
        let preferred = affinity
            .preferred_during_scheduling_ignored_during_execution
            .iter_mut()
            .flatten();
        let required = affinity
            .required_during_scheduling_ignored_during_execution
            .iter_mut()
            .flatten();
        preferred
            .map(|weighted| &mut weighted.pod_affinity_term)
            .chain(required)
    });
    let repel = affinity.pod_anti_affinity.iter_mut().flat_map(|affinity| {
        let preferred = affinity
            .preferred_during_scheduling_ignored_during_execution
            .iter_mut()
            .flatten();
        let required = affinity
            .required_during_scheduling_ignored_during_execution
            .iter_mut()
            .flatten();
        preferred
            .map(|weighted| &mut weighted.pod_affinity_term)
            .chain(required)
    });
    attract.chain(repel)
}

fn add_requirements(
    selector: &mut LabelSelector,
    keys: Option<&[String]>,
    operator: &str,
    labels: &BTreeMap<String, String>,
) {
    for key in keys.unwrap_or(&[]) {
        if let Some(value) = labels.get(key) {
            selector
                .match_expressions
                .get_or_insert_default()
                .push(LabelSelectorRequirement {
                    key: key.clone(),
                    operator: operator.to_string(),
                    values: Some(vec![value.clone()]),
                });
        }
    }
}
