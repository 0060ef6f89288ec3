//! Node: taints, addresses of its pods, capacity, and what `kubectl get nodes` shows.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use serde_json::Value;

use super::pod::defaults::fill_metadata;
use super::pod::scheduling::validate_taint_effect;
use super::resources::{finish_list, validate_amount};
use crate::columns::{self, AGE, NAME, column, wide};
use crate::empty::drop_empty;
use crate::error::{
    DecodeError, ErrorList, duplicate, forbidden, invalid, print_go_struct, required,
};
use crate::ip;
use crate::kind::{Column, Part};
use crate::metadata::validate_label_name;
use crate::name;
use crate::path::{Path, root};
use crate::typed::ApiType;

impl ApiType for Node {
    const NAMESPACED: bool = false;
    const SELECTABLE: &'static [&'static str] = &["spec.unschedulable"];
    const COLUMNS: &'static [Column] = &[
        NAME,
        column("Status", "string", "The status of the node"),
        column("Roles", "string", "The roles of the node"),
        AGE,
        column("Version", "string", "Version of the kubelet."),
        wide(
            "Internal-IP",
            "string",
            "Address inside the cluster's network.",
        ),
        wide(
            "External-IP",
            "string",
            "Address outside the cluster's network.",
        ),
        wide("OS-Image", "string", "Operating system."),
        wide("Kernel-Version", "string", "Version of the kernel."),
        wide(
            "Container-Runtime",
            "string",
            "Container runtime and its version.",
        ),
    ];

    fn finish_decode(&mut self) -> Result<(), DecodeError> {
        let Some(status) = &mut self.status else {
            return Ok(());
        };
        finish_list(&mut status.capacity)?;
        finish_list(&mut status.allocatable)
    }

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        let spec = self.spec.get_or_insert_default();
        drop_empty!(
            spec.pod_cidr,
            spec.pod_cidrs,
            spec.provider_id,
            spec.external_id,
            spec.taints,
            spec.unschedulable
        );
        for taint in spec.taints.iter_mut().flatten() {
            drop_empty!(taint.value);
        }
        // One subnet in two fields: the list wins nothing, the single one is its first.
        match (&spec.pod_cidr, &spec.pod_cidrs) {
            (Some(cidr), None) => spec.pod_cidrs = Some(vec![cidr.clone()]),
            (Some(cidr), Some(cidrs)) if cidrs.first() != Some(cidr) => {
                spec.pod_cidrs = Some(vec![cidr.clone()])
            }
            (None, Some(cidrs)) => spec.pod_cidr = cidrs.first().cloned(),
            _ => {}
        }
        let status = self.status.get_or_insert_default();
        drop_empty!(
            status.addresses,
            status.conditions,
            status.declared_features,
            status.images,
            status.phase,
            status.runtime_handlers,
            status.volumes_attached,
            status.volumes_in_use,
        );
        if status.allocatable.is_none() && status.capacity.is_some() {
            status.allocatable.clone_from(&status.capacity);
        }
        let endpoints = status.daemon_endpoints.get_or_insert_default();
        endpoints.kubelet_endpoint.get_or_insert_default();
        status.node_info.get_or_insert_default();
    }

    fn prepare_create(&mut self) {
        self.spec.get_or_insert_default().config_source = None;
        self.status.get_or_insert_default().config = None;
    }

    fn validate(&self, errors: &mut ErrorList) {
        let (empty_spec, empty_status) = (NodeSpec::default(), NodeStatus::default());
        let (spec, status) = (
            self.spec.as_ref().unwrap_or(&empty_spec),
            self.status.as_ref().unwrap_or(&empty_status),
        );
        validate_taints(spec.taints.as_deref().unwrap_or(&[]), errors);
        validate_capacity(status, errors);
        let swap = status
            .node_info
            .as_ref()
            .and_then(|info| info.swap.as_ref()?.capacity);
        if let Some(capacity) = swap.filter(|capacity| *capacity <= 0) {
            let path = root("metadata");
            errors.push(invalid(
                &path.child("nodeSwapStatus").child("capacity"),
                &capacity,
                "must be greater than zero",
            ));
        }
        let cidrs = spec.pod_cidrs.as_deref().unwrap_or(&[]);
        let spec_path = root("spec");
        let path = spec_path.child("podCIDRs");
        for (index, text) in cidrs.iter().enumerate() {
            ip::validate_cidr(text, &[], &path.index(index), errors);
        }
        let addresses = cidrs
            .iter()
            .map(|text| text.split('/').next().unwrap_or(""));
        if cidrs.len() > 2 || (cidrs.len() == 2 && !ip::is_dual_stack(addresses)) {
            errors.push(invalid(
                &path,
                cidrs,
                "may specify no more than one CIDR for each IP family",
            ));
        }
    }

    fn prepare_update(&mut self, old: &Self, part: &Part) {
        if *part == Part::Status {
            self.spec.clone_from(&old.spec);
        } else {
            self.status.clone_from(&old.status);
        }
    }

    fn validate_update(&self, old: &Self, part: &Part, errors: &mut ErrorList) {
        let (empty_spec, empty_status) = (NodeSpec::default(), NodeStatus::default());
        let (spec, old_spec) = (
            self.spec.as_ref().unwrap_or(&empty_spec),
            old.spec.as_ref().unwrap_or(&empty_spec),
        );
        let status = self.status.as_ref().unwrap_or(&empty_status);
        if *part == Part::Status {
            validate_capacity(status, errors);
            validate_taints(spec.taints.as_deref().unwrap_or(&[]), errors);
        } else {
            self.validate(errors);
        }
        let status_path = root("status");
        let addresses_path = status_path.child("addresses");
        let addresses = status.addresses.as_deref().unwrap_or(&[]);
        for (index, address) in addresses.iter().enumerate() {
            if addresses[..index].contains(address) {
                errors.push(duplicate(&addresses_path.index(index), address));
            }
        }
        let path = root("spec");
        if old_spec
            .pod_cidrs
            .as_ref()
            .is_some_and(|cidrs| !cidrs.is_empty())
            && spec.pod_cidrs != old_spec.pod_cidrs
        {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(forbidden(&path.child("podCIDRs"), detail));
        }
        if old_spec
            .provider_id
            .as_ref()
            .is_some_and(|id| !id.is_empty())
            && spec.provider_id != old_spec.provider_id
        {
            let detail = "node updates may not change providerID except from \"\" to valid";
            errors.push(forbidden(&path.child("providerID"), detail));
        }
        if spec.external_id.as_deref().unwrap_or("")
            != old_spec.external_id.as_deref().unwrap_or("")
        {
            errors.push(forbidden(&path.child("externalID"), "may not be updated"));
        }
    }

    fn selectable_values(&self) -> Vec<String> {
        vec![
            self.spec
                .as_ref()
                .and_then(|spec| spec.unschedulable)
                .unwrap_or(false)
                .to_string(),
        ]
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        let empty = NodeStatus::default();
        let status = self.status.as_ref().unwrap_or(&empty);
        let ready = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "Ready");
        let mut words = vec![match ready.map(|condition| condition.status == "True") {
            Some(true) => "Ready",
            Some(false) => "NotReady",
            None => "Unknown",
        }];
        if self.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
            words.push("SchedulingDisabled");
        }
        let roles: BTreeSet<&str> = self
            .metadata
            .labels
            .iter()
            .flatten()
            .filter_map(
                |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                    Some(role) => Some(role),
                    None => (key == "kubernetes.io/role").then_some(value.as_str()),
                },
            )
            .filter(|role| !role.is_empty())
            .collect();
        let roles: Vec<&str> = roles.into_iter().collect();
        let info = status.node_info.clone().unwrap_or_default();
        let or_unknown = |text: &str| {
            if text.is_empty() {
                "<unknown>".to_string()
            } else {
                text.to_string()
            }
        };
        let mut kernel = or_unknown(&info.kernel_version);
        if !info.architecture.is_empty() {
            kernel = format!("{kernel} ({})", info.architecture);
        }
        let address = |type_: &str| {
            let address = status
                .addresses
                .iter()
                .flatten()
                .find(|address| address.type_ == type_);
            Value::from(address.map_or("<none>", |address| &address.address))
        };
        vec![
            columns::name(&self.metadata),
            Value::from(words.join(",")),
            Value::from(if roles.is_empty() {
                "<none>".to_string()
            } else {
                roles.join(",")
            }),
            columns::age(&self.metadata, now_seconds),
            Value::from(info.kubelet_version.as_str()),
            address("InternalIP"),
            address("ExternalIP"),
            Value::from(or_unknown(&info.os_image)),
            Value::from(kernel),
            Value::from(or_unknown(&info.container_runtime_version)),
        ]
    }
}

fn validate_taints(taints: &[Taint], errors: &mut ErrorList) {
    // Upstream reports them under the metadata.
    let meta_path = root("metadata");
    let path = meta_path.child("taints");
    for (index, taint) in taints.iter().enumerate() {
        let path = path.index(index);
        validate_label_name(&taint.key, &path.child("key"), errors);
        let value = taint.value.as_deref().unwrap_or("");
        let complaints = name::label_value(value);
        if !complaints.is_empty() {
            errors.push(invalid(&path.child("value"), value, complaints.join(";")));
        }
        if taint.effect.is_empty() {
            errors.push(required(&path.child("effect"), ""));
        } else {
            validate_taint_effect(&taint.effect, &path.child("effect"), errors);
        }
        if taints[..index]
            .iter()
            .any(|other| other.key == taint.key && other.effect == taint.effect)
        {
            let mut error = duplicate(&path, "");
            error.bad_value = print_go_struct(&[
                ("Key", &taint.key),
                ("Value", &taint.value.as_deref().unwrap_or_default()),
                ("Effect", &taint.effect),
                ("TimeAdded", &taint.time_added),
            ]);
            error.detail = "taints must be unique by key and effect pair".to_string();
            errors.push(error);
        }
    }
}

fn validate_capacity(status: &NodeStatus, errors: &mut ErrorList) {
    let path = root("status");
    for (field, list) in [
        ("capacity", &status.capacity),
        ("allocatable", &status.allocatable),
    ] {
        let list_path: Path<'_> = path.child(field);
        for (resource, text) in list.iter().flatten() {
            validate_amount(resource, text, &list_path.child(resource), errors);
        }
    }
}
