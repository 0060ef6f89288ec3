//! `pods/binding` and POST to `bindings`: the scheduler's decision, written into the pod.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::error::{ErrorList, FieldError, FieldErrorReason};
use api::kind::{Object, Part};
use http::StatusCode;
use k8s_openapi::api::core::v1::{Binding, Pod, PodCondition};
use serde_json::json;

use crate::codec::object::respond_value;
use crate::core::Core;
use crate::handler::Context;
use crate::rest::managed_fields::Writer;
use crate::rest::{ApiResponse, Rest, WriteOptions, meta};
use crate::status::{ApiError, ApiResult};

/// `name` is empty for a POST to the collection; `body` is JSON.
pub async fn create(
    core: &Arc<Core>,
    context: &Context,
    namespace: &str,
    name: &str,
    body: &[u8],
) -> ApiResponse {
    let options = WriteOptions::parse(&context.query, "CreateOptions")?;
    let binding: Binding = serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!(
            "Binding in version \"v1\" cannot be handled as a Binding: {error}"
        ))
    })?;
    let own_name = binding.metadata.name.as_deref().unwrap_or_default();
    let name = if name.is_empty() { own_name } else { name };
    if !own_name.is_empty() && own_name != name {
        return Err(ApiError::bad_request(format!(
            "name in URL does not match name in Binding object: {name} is not {own_name}"
        )));
    }
    if binding
        .metadata
        .namespace
        .as_deref()
        .is_some_and(|own| !own.is_empty() && own != namespace)
    {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    check(&binding, name)?;
    let resource = core
        .resource("", "v1", "pods")
        .ok_or_else(ApiError::no_such_path)?;
    let cache = resource.cache.as_ref().ok_or_else(ApiError::no_such_path)?;
    let rest = Rest {
        core,
        context,
        kind: &resource.kind,
        cache,
        namespace,
        name,
    };
    let writer = Writer::update(&rest, &options, "");
    rest.modify(&Part::Other("binding"), &options, &writer, |old, _| {
        bound(&rest, old, &binding)
    })
    .await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond_value(
        &context.accept()?,
        StatusCode::CREATED,
        &status,
    ))
}

fn check(binding: &Binding, name: &str) -> ApiResult<()> {
    let mut errors = ErrorList::new();
    let kind = binding.target.kind.as_deref().unwrap_or_default();
    if !kind.is_empty() && kind != "Node" {
        errors.push(FieldError {
            reason: FieldErrorReason::NotSupported,
            field: "target.kind".into(),
            bad_value: format!("{kind:?}"),
            detail: "supported values: \"Node\", \"<empty>\"".into(),
        });
    }
    if binding
        .target
        .name
        .as_deref()
        .unwrap_or_default()
        .is_empty()
    {
        errors.push(FieldError {
            reason: FieldErrorReason::Required,
            field: "target.name".into(),
            bad_value: String::new(),
            detail: String::new(),
        });
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid("", "Binding", name, &errors))
    }
}

fn bound(rest: &Rest<'_>, old: &dyn Object, binding: &Binding) -> ApiResult<Box<dyn Object>> {
    let conflict = |detail: String| ApiError::conflict("", "pods/binding", rest.name, &detail);
    let mut new = old.clone_boxed();
    let pod = new
        .as_any_mut()
        .downcast_mut::<Pod>()
        .ok_or_else(|| ApiError::internal("pods are stored as pods"))?;
    if let Some(uid) = binding
        .metadata
        .uid
        .as_deref()
        .filter(|uid| !uid.is_empty())
        && pod.metadata.uid.as_deref() != Some(uid)
    {
        let found = pod.metadata.uid.as_deref().unwrap_or_default();
        return Err(conflict(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {found}"
        )));
    }
    if let Some(version) = binding
        .metadata
        .resource_version
        .as_deref()
        .filter(|version| !version.is_empty())
        && pod.metadata.resource_version.as_deref() != Some(version)
    {
        return Err(rest.modified());
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Err(conflict(format!(
            "pod {} is being deleted, cannot be assigned to a host",
            rest.name
        )));
    }
    let spec = pod.spec.get_or_insert_default();
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        return Err(conflict(format!(
            "pod {} is already assigned to node {node:?}",
            rest.name
        )));
    }
    if spec
        .scheduling_gates
        .as_ref()
        .is_some_and(|gates| !gates.is_empty())
    {
        return Err(conflict(format!(
            "pod {} has non-empty .spec.schedulingGates",
            rest.name
        )));
    }
    spec.node_name.clone_from(&binding.target.name);
    merge(
        &mut pod.metadata.annotations,
        binding.metadata.annotations.as_ref(),
    );
    merge(&mut pod.metadata.labels, binding.metadata.labels.as_ref());
    let conditions = pod
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    let scheduled = PodCondition {
        type_: "PodScheduled".into(),
        status: "True".into(),
        last_transition_time: Some(meta::now()),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    };
    match conditions
        .iter_mut()
        .find(|condition| condition.type_ == scheduled.type_)
    {
        Some(condition) if condition.status == "True" => {}
        Some(condition) => *condition = scheduled,
        None => conditions.push(scheduled),
    }
    Ok(new)
}

fn merge(own: &mut Option<BTreeMap<String, String>>, more: Option<&BTreeMap<String, String>>) {
    if let Some(more) = more.filter(|more| !more.is_empty()) {
        own.get_or_insert_default()
            .extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
}
