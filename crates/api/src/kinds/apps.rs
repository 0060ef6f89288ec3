//! Deployment, ReplicaSet and ControllerRevision.

use k8s_openapi::api::apps::v1::{
    ControllerRevision, Deployment, DeploymentSpec, DeploymentStatus, DeploymentStrategy,
    ReplicaSet, ReplicaSetSpec, ReplicaSetStatus, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::label_selector;
use super::pod::defaults::{fill_metadata, fill_template, finish_template};
use super::pod::{spec, warnings};
use crate::columns::{self, AGE, NAME, column, wide};
use crate::empty::drop_empty;
use crate::error::{
    DecodeError, ErrorList, forbidden, invalid, not_supported, print_go_struct, required,
};
use crate::kind::{Column, Part};
use crate::metadata::{IMMUTABLE, not_negative};
use crate::name;
use crate::path::{Path, root};
use crate::selector::Labels;
use crate::typed::ApiType;

impl ApiType for Deployment {
    const NAMESPACED: bool = true;
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("Ready", "string", "Number of the pod with ready state"),
        column(
            "Up-to-date",
            "string",
            "Pods that have the desired template.",
        ),
        column(
            "Available",
            "string",
            "Pods ready for at least minReadySeconds.",
        ),
        AGE,
        wide(
            "Containers",
            "string",
            "Names of each container in the template.",
        ),
        wide(
            "Images",
            "string",
            "Images referenced by each container in the template.",
        ),
        wide("Selector", "string", "Label selector for pods."),
    ];

    fn finish_decode(&mut self) -> Result<(), DecodeError> {
        self.spec
            .as_mut()
            .map_or(Ok(()), |spec| finish_template(&mut spec.template))
    }

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        let spec = self.spec.get_or_insert_default();
        drop_empty!(spec.min_ready_seconds, spec.paused);
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        let strategy = spec.strategy.get_or_insert_default();
        drop_empty!(strategy.type_);
        if strategy
            .type_
            .get_or_insert_with(|| "RollingUpdate".to_string())
            == "RollingUpdate"
        {
            let quarter = || IntOrString::String("25%".to_string());
            let rolling = strategy.rolling_update.get_or_insert_default();
            rolling.max_unavailable.get_or_insert_with(quarter);
            rolling.max_surge.get_or_insert_with(quarter);
        }
        fill_template(&mut spec.template);
        let status = self.status.get_or_insert_default();
        drop_empty!(
            status.available_replicas,
            status.conditions,
            status.observed_generation,
            status.ready_replicas,
            status.replicas,
            status.unavailable_replicas,
            status.updated_replicas,
        );
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(DeploymentStatus::default());
    }

    fn validate(&self, errors: &mut ErrorList) {
        if let Some(spec) = &self.spec {
            validate_deployment_spec(spec, errors);
        }
    }

    fn prepare_update(&mut self, old: &Self, part: &Part) {
        if *part == Part::Status {
            self.spec.clone_from(&old.spec);
            self.metadata.labels.clone_from(&old.metadata.labels);
            return;
        }
        self.status.clone_from(&old.status);
        // Annotations count too: a rollout is told by them.
        if self.spec != old.spec || self.metadata.annotations != old.metadata.annotations {
            raise_generation(&mut self.metadata, &old.metadata);
        }
    }

    fn validate_update(&self, old: &Self, part: &Part, errors: &mut ErrorList) {
        if *part == Part::Status {
            let empty = DeploymentStatus::default();
            let status = self.status.as_ref().unwrap_or(&empty);
            validate_deployment_status(status, errors);
            let before = old
                .status
                .as_ref()
                .and_then(|status| status.collision_count);
            if before.is_some_and(|before| status.collision_count.unwrap_or(0) < before) {
                let path = root("status");
                errors.push(invalid(
                    &path.child("collisionCount"),
                    &status.collision_count.unwrap_or(0),
                    "cannot be decremented",
                ));
            }
            return;
        }
        self.validate(errors);
        let selector =
            |deployment: &Self| deployment.spec.as_ref().map(|spec| spec.selector.clone());
        validate_same_selector(selector(self), selector(old), errors);
    }

    fn warnings(&self) -> Vec<String> {
        let path = root("spec");
        self.spec.as_ref().map_or(Vec::new(), |spec| {
            warnings::of_template(&spec.template, &path.child("template"))
        })
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        let (empty_spec, empty_status) = (DeploymentSpec::default(), DeploymentStatus::default());
        let (spec, status) = (
            self.spec.as_ref().unwrap_or(&empty_spec),
            self.status.as_ref().unwrap_or(&empty_status),
        );
        let (names, images) = container_cells(Some(&spec.template));
        vec![
            columns::name(&self.metadata),
            Value::from(format!(
                "{}/{}",
                status.ready_replicas.unwrap_or(0),
                spec.replicas.unwrap_or(0)
            )),
            Value::from(status.updated_replicas.unwrap_or(0)),
            Value::from(status.available_replicas.unwrap_or(0)),
            columns::age(&self.metadata, now_seconds),
            names,
            images,
            selector_cell(&spec.selector),
        ]
    }

    fn scale(&self) -> Option<Value> {
        let spec = self.spec.as_ref()?;
        let observed = self
            .status
            .as_ref()
            .and_then(|status| status.replicas)
            .unwrap_or(0);
        Some(scale_of(
            &self.metadata,
            spec.replicas.unwrap_or(0),
            observed,
            &spec.selector,
        ))
    }

    fn set_scale_replicas(&mut self, replicas: i32) {
        self.spec.get_or_insert_default().replicas = Some(replicas);
    }
}

impl ApiType for ReplicaSet {
    const NAMESPACED: bool = true;
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("Desired", "integer", "Number of desired pods."),
        column(
            "Current",
            "integer",
            "Most recently observed number of pods.",
        ),
        column("Ready", "integer", "Number of ready pods."),
        AGE,
        wide(
            "Containers",
            "string",
            "Names of each container in the template.",
        ),
        wide(
            "Images",
            "string",
            "Images referenced by each container in the template.",
        ),
        wide("Selector", "string", "Label selector for pods."),
    ];

    fn finish_decode(&mut self) -> Result<(), DecodeError> {
        let template = self.spec.as_mut().and_then(|spec| spec.template.as_mut());
        template.map_or(Ok(()), finish_template)
    }

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        let spec = self.spec.get_or_insert_default();
        drop_empty!(spec.min_ready_seconds);
        spec.replicas.get_or_insert(1);
        fill_template(spec.template.get_or_insert_default());
        let status = self.status.get_or_insert_default();
        drop_empty!(
            status.available_replicas,
            status.conditions,
            status.fully_labeled_replicas,
            status.observed_generation,
            status.ready_replicas,
        );
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(ReplicaSetStatus::default());
    }

    fn validate(&self, errors: &mut ErrorList) {
        let empty = ReplicaSetSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&empty);
        let path = root("spec");
        not_negative(
            i64::from(spec.replicas.unwrap_or(0)),
            &path.child("replicas"),
            errors,
        );
        not_negative(
            i64::from(spec.min_ready_seconds.unwrap_or(0)),
            &path.child("minReadySeconds"),
            errors,
        );
        validate_selector_and_template(&spec.selector, spec.template.as_ref(), &path, errors);
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

    fn validate_update(&self, old: &Self, part: &Part, errors: &mut ErrorList) {
        if *part == Part::Status {
            let empty = ReplicaSetStatus::default();
            validate_replica_set_status(self.status.as_ref().unwrap_or(&empty), errors);
            return;
        }
        self.validate(errors);
        let selector = |set: &Self| set.spec.as_ref().map(|spec| spec.selector.clone());
        validate_same_selector(selector(self), selector(old), errors);
    }

    fn warnings(&self) -> Vec<String> {
        let path = root("spec");
        let template = self.spec.as_ref().and_then(|spec| spec.template.as_ref());
        template.map_or(Vec::new(), |template| {
            warnings::of_template(template, &path.child("template"))
        })
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        let (empty_spec, empty_status) = (ReplicaSetSpec::default(), ReplicaSetStatus::default());
        let (spec, status) = (
            self.spec.as_ref().unwrap_or(&empty_spec),
            self.status.as_ref().unwrap_or(&empty_status),
        );
        let (names, images) = container_cells(spec.template.as_ref());
        vec![
            columns::name(&self.metadata),
            Value::from(spec.replicas.unwrap_or(0)),
            Value::from(status.replicas),
            Value::from(status.ready_replicas.unwrap_or(0)),
            columns::age(&self.metadata, now_seconds),
            names,
            images,
            selector_cell(&spec.selector),
        ]
    }

    fn scale(&self) -> Option<Value> {
        let spec = self.spec.as_ref()?;
        let observed = self.status.as_ref().map_or(0, |status| status.replicas);
        Some(scale_of(
            &self.metadata,
            spec.replicas.unwrap_or(0),
            observed,
            &spec.selector,
        ))
    }

    fn set_scale_replicas(&mut self, replicas: i32) {
        self.spec.get_or_insert_default().replicas = Some(replicas);
    }
}

impl ApiType for ControllerRevision {
    const NAMESPACED: bool = true;
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("Controller", "string", "Controller of the object"),
        column(
            "Revision",
            "string",
            "Revision indicates the revision of the state represented by Data.",
        ),
        AGE,
    ];

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
    }

    fn validate(&self, errors: &mut ErrorList) {
        if self.data.as_ref().is_none_or(|data| data.0.is_null()) {
            errors.push(required(&root("data"), "data is mandatory"));
        }
        not_negative(self.revision, &root("revision"), errors);
    }

    fn validate_update(&self, old: &Self, _part: &Part, errors: &mut ErrorList) {
        self.validate(errors);
        if self.data != old.data {
            errors.push(invalid(&root("data"), &self.data, IMMUTABLE));
        }
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        let owner = self
            .metadata
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.controller == Some(true));
        let controller = owner.map_or("<none>".to_string(), |owner| {
            let group = owner
                .api_version
                .split_once('/')
                .map_or("", |(group, _)| group);
            let kind = owner.kind.to_lowercase();
            if group.is_empty() {
                format!("{kind}/{}", owner.name)
            } else {
                format!("{kind}.{group}/{}", owner.name)
            }
        });
        vec![
            columns::name(&self.metadata),
            Value::from(controller),
            Value::from(self.revision),
            columns::age(&self.metadata, now_seconds),
        ]
    }
}

pub(super) fn raise_generation(new: &mut ObjectMeta, old: &ObjectMeta) {
    new.generation = Some(old.generation.unwrap_or(0) + 1);
}

fn validate_deployment_spec(spec: &DeploymentSpec, errors: &mut ErrorList) {
    let path = root("spec");
    not_negative(
        i64::from(spec.replicas.unwrap_or(0)),
        &path.child("replicas"),
        errors,
    );
    validate_selector_and_template(&spec.selector, Some(&spec.template), &path, errors);
    if let Some(strategy) = &spec.strategy {
        validate_strategy(strategy, &path.child("strategy"), errors);
    }
    let min_ready_seconds = spec.min_ready_seconds.unwrap_or(0);
    not_negative(
        i64::from(min_ready_seconds),
        &path.child("minReadySeconds"),
        errors,
    );
    not_negative(
        i64::from(spec.revision_history_limit.unwrap_or(0)),
        &path.child("revisionHistoryLimit"),
        errors,
    );
    if let Some(seconds) = spec.progress_deadline_seconds {
        let path = path.child("progressDeadlineSeconds");
        not_negative(i64::from(seconds), &path, errors);
        if seconds <= min_ready_seconds {
            errors.push(invalid(
                &path,
                &seconds,
                "must be greater than minReadySeconds",
            ));
        }
    }
}

/// A selector that is there, not empty, and matches the labels of the template, which is one of pods that run forever.
fn validate_selector_and_template(
    selector: &LabelSelector,
    template: Option<&PodTemplateSpec>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let selector_path = path.child("selector");
    let is_empty = selector
        .match_labels
        .as_ref()
        .is_none_or(|labels| labels.is_empty())
        && selector
            .match_expressions
            .as_ref()
            .is_none_or(Vec::is_empty);
    // An empty selector and none at all decode alike; none at all is the usual mistake.
    if is_empty {
        errors.push(required(&selector_path, ""));
    }
    label_selector::validate(Some(selector), &selector_path, errors);
    let template_path = path.child("template");
    let Some(template) = template else {
        errors.push(required(&template_path, ""));
        return;
    };
    let labels = template
        .metadata
        .as_ref()
        .and_then(|meta| meta.labels.as_ref());
    match Labels::from_object((!is_empty).then_some(selector)) {
        Err(_) => {
            errors.push(invalid(&selector_path, selector, "invalid label selector"));
            return;
        }
        Ok(parsed) if !parsed.matches(labels) => {
            let detail = "`selector` does not match template `labels`";
            errors.push(invalid(
                &template_path.child("metadata").child("labels"),
                &labels,
                detail,
            ));
        }
        Ok(_) => {}
    }
    spec::validate_template(template, &template_path, errors);
    let spec_path = template_path.child("spec");
    let policy = template
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref())
        .unwrap_or("");
    if policy != "Always" {
        errors.push(not_supported(
            &spec_path.child("restartPolicy"),
            policy,
            &["Always"],
        ));
    }
    if template
        .spec
        .as_ref()
        .is_some_and(|spec| spec.active_deadline_seconds.is_some())
    {
        let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(forbidden(&spec_path.child("activeDeadlineSeconds"), detail));
    }
}

fn validate_same_selector(
    new: Option<LabelSelector>,
    old: Option<LabelSelector>,
    errors: &mut ErrorList,
) {
    if new != old {
        let path = root("spec");
        errors.push(invalid(&path.child("selector"), &new, IMMUTABLE));
    }
}

fn validate_strategy(strategy: &DeploymentStrategy, path: &Path<'_>, errors: &mut ErrorList) {
    let rolling_path = path.child("rollingUpdate");
    match (
        strategy.type_.as_deref().unwrap_or(""),
        &strategy.rolling_update,
    ) {
        ("Recreate", Some(_)) => {
            errors.push(forbidden(
                &rolling_path,
                "may not be specified when strategy `type` is 'Recreate'",
            ));
        }
        ("Recreate", None) => {}
        ("RollingUpdate", Some(rolling)) => validate_rolling_update(rolling, &rolling_path, errors),
        ("RollingUpdate", None) => errors.push(required(
            &rolling_path,
            "this should be defaulted and never be nil",
        )),
        (type_, rolling) => {
            let mut error = not_supported(path, "", &["Recreate", "RollingUpdate"]);
            let rolling = rolling.as_ref().map(|rolling| {
                serde_json::json!({"MaxSurge": rolling.max_surge, "MaxUnavailable": rolling.max_unavailable})
            });
            error.bad_value = print_go_struct(&[("Type", &type_), ("RollingUpdate", &rolling)]);
            errors.push(error);
        }
    }
}

fn validate_rolling_update(
    rolling: &RollingUpdateDeployment,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let zero = IntOrString::Int(0);
    let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&zero);
    let surge = rolling.max_surge.as_ref().unwrap_or(&zero);
    let unavailable_path = path.child("maxUnavailable");
    validate_count_or_percent(unavailable, &unavailable_path, errors);
    validate_count_or_percent(surge, &path.child("maxSurge"), errors);
    let number = |value: &IntOrString| match value {
        IntOrString::Int(count) => i64::from(*count),
        IntOrString::String(_) => percent_of(value).unwrap_or(0),
    };
    if number(unavailable) == 0 && number(surge) == 0 {
        errors.push(invalid(
            &unavailable_path,
            unavailable,
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    if percent_of(unavailable).is_some_and(|percent| percent > 100) {
        errors.push(invalid(
            &unavailable_path,
            unavailable,
            "must not be greater than 100%",
        ));
    }
}

pub(super) fn validate_count_or_percent(
    value: &IntOrString,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    match value {
        IntOrString::Int(count) => not_negative(i64::from(*count), path, errors),
        IntOrString::String(text) => errors.extend(
            name::percent(text)
                .into_iter()
                .map(|complaint| invalid(path, text, complaint)),
        ),
    }
}

pub(super) fn percent_of(value: &IntOrString) -> Option<i64> {
    match value {
        IntOrString::String(text) if name::percent(text).is_empty() => {
            text.strip_suffix('%')?.parse().ok()
        }
        _ => None,
    }
}

fn validate_deployment_status(status: &DeploymentStatus, errors: &mut ErrorList) {
    let path = root("status");
    let replicas = status.replicas.unwrap_or(0);
    not_negative(
        status.observed_generation.unwrap_or(0),
        &path.child("observedGeneration"),
        errors,
    );
    for (field, value) in [
        ("replicas", status.replicas),
        ("updatedReplicas", status.updated_replicas),
        ("readyReplicas", status.ready_replicas),
        ("availableReplicas", status.available_replicas),
        ("unavailableReplicas", status.unavailable_replicas),
        ("terminatingReplicas", status.terminating_replicas),
        ("collisionCount", status.collision_count),
    ] {
        not_negative(i64::from(value.unwrap_or(0)), &path.child(field), errors);
    }
    for (field, value) in [
        ("updatedReplicas", status.updated_replicas),
        ("readyReplicas", status.ready_replicas),
        ("availableReplicas", status.available_replicas),
    ] {
        validate_at_most_replicas(value, replicas, &path.child(field), errors);
    }
    validate_available(
        status.available_replicas,
        status.ready_replicas,
        &path,
        errors,
    );
}

fn validate_replica_set_status(status: &ReplicaSetStatus, errors: &mut ErrorList) {
    let path = root("status");
    for (field, value) in [
        ("replicas", Some(status.replicas)),
        ("fullyLabeledReplicas", status.fully_labeled_replicas),
        ("readyReplicas", status.ready_replicas),
        ("availableReplicas", status.available_replicas),
        ("terminatingReplicas", status.terminating_replicas),
    ] {
        not_negative(i64::from(value.unwrap_or(0)), &path.child(field), errors);
    }
    not_negative(
        status.observed_generation.unwrap_or(0),
        &path.child("observedGeneration"),
        errors,
    );
    for (field, value) in [
        ("fullyLabeledReplicas", status.fully_labeled_replicas),
        ("readyReplicas", status.ready_replicas),
        ("availableReplicas", status.available_replicas),
    ] {
        validate_at_most_replicas(value, status.replicas, &path.child(field), errors);
    }
    validate_available(
        status.available_replicas,
        status.ready_replicas,
        &path,
        errors,
    );
}

fn validate_at_most_replicas(
    value: Option<i32>,
    replicas: i32,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if let Some(value) = value.filter(|value| *value > replicas) {
        errors.push(invalid(
            path,
            &value,
            "cannot be greater than status.replicas",
        ));
    }
}

fn validate_available(
    available: Option<i32>,
    ready: Option<i32>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    if let Some(available) = available.filter(|available| *available > ready.unwrap_or(0)) {
        errors.push(invalid(
            &path.child("availableReplicas"),
            &available,
            "cannot be greater than readyReplicas",
        ));
    }
}

/// Names and images of a template's containers, each in one cell.
fn container_cells(template: Option<&PodTemplateSpec>) -> (Value, Value) {
    let containers = template
        .and_then(|template| template.spec.as_ref())
        .map_or(&[][..], |spec| &spec.containers);
    let names: Vec<&str> = containers
        .iter()
        .map(|container| container.name.as_str())
        .collect();
    let images: Vec<&str> = containers
        .iter()
        .map(|container| container.image.as_deref().unwrap_or(""))
        .collect();
    (Value::from(names.join(",")), Value::from(images.join(",")))
}

fn selector_cell(selector: &LabelSelector) -> Value {
    let text = Labels::from_object(Some(selector)).map(|labels| labels.to_string());
    Value::from(text.unwrap_or_else(|_| "<error>".to_string()))
}

fn scale_of(meta: &ObjectMeta, desired: i32, observed: i32, selector: &LabelSelector) -> Value {
    let scale_meta = ObjectMeta {
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        creation_timestamp: meta.creation_timestamp.clone(),
        ..Default::default()
    };
    let selector = Labels::from_object(Some(selector))
        .map(|labels| labels.to_string())
        .unwrap_or_default();
    let mut status = json!({ "replicas": observed });
    if !selector.is_empty() {
        status["selector"] = Value::from(selector);
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": scale_meta,
        "spec": if desired == 0 { json!({}) } else { json!({ "replicas": desired }) },
        "status": status,
    })
}
