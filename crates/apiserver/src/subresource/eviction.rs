//! `pods/eviction`: a deletion that asks the pod's disruption budget first.
//!
//! A pod that runs and that a PodDisruptionBudget speaks of goes only if the budget allows one more
//! disruption, which is taken from it before the pod is deleted; the disruption controller counts
//! afresh afterwards. Pods that do not run yet or no more, or are on their way out already, go
//! unasked. An evicted pod gets the condition `DisruptionTarget` before its deletion.

use api::disruption;
use api::kind::Part;
use http::StatusCode;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::api::policy::v1::{Eviction, PodDisruptionBudget};
use serde_json::json;

use crate::codec::object::respond_value;
use crate::request::Query;
use crate::rest::managed_fields::Writer;
use crate::rest::{ApiResponse, DeleteOptions, Rest, WriteOptions, meta};
use crate::status::{ApiError, ApiResult};

const GROUP: &str = "policy";
/// More evictions than the controller has confirmed: something is wrong with it.
const DISRUPTED_PODS_MAX: usize = 2000;
/// An eviction of a pod that keeps changing gives up after so many tries.
const CONFLICT_TRIES: usize = 20;
/// How long a client should wait for the controller to have counted.
const COUNT_SECONDS: u64 = 10;
/// The name under which the server's own writes are recorded.
const MANAGER: &str = "kube-apiserver";
const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// What the budgets say to the eviction of a pod.
enum Verdict {
    /// Nothing is in its way.
    Free,
    /// It does not count as healthy, so it may go, as long as it stays the version that was looked at.
    Unhealthy { budget: String },
    /// More than one budget, which is not supported.
    Ambiguous,
}

/// `body` is JSON.
pub async fn create(rest: &Rest<'_>, body: &[u8]) -> ApiResponse {
    let write_options = WriteOptions::parse(&rest.context.query, "CreateOptions")?;
    let eviction: Eviction = serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!(
            "Eviction in version \"v1\" cannot be handled as a Eviction: {error}"
        ))
    })?;
    if eviction.metadata.name.as_deref() != Some(rest.name) {
        return Err(ApiError::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let body = match eviction.delete_options {
        Some(options) => serde_json::to_vec(&options).map_err(ApiError::internal)?,
        None => b"{}".to_vec(),
    };
    let mut options = DeleteOptions::parse(&Query::default(), &body)?;
    options.dry_run |= write_options.dry_run;
    let Some(pod) = evict_unasked(rest, &options).await? else {
        return success(rest);
    };
    match ask(rest, &pod, options.dry_run).await? {
        Verdict::Free => delete(rest, options).await?,
        Verdict::Unhealthy { budget } => {
            let unconditional = options.resource_version.is_none();
            options.resource_version = pod.metadata.resource_version;
            match delete(rest, options).await {
                // It changed meanwhile, and may count as healthy now: the client is to ask again.
                Err(error) if error.is_conflict() && unconditional => {
                    return Err(being_processed(&budget));
                }
                deleted => deleted?,
            }
        }
        Verdict::Ambiguous => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 500,
                "message": "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            });
            return Ok(respond_value(
                &rest.context.accept()?,
                StatusCode::INTERNAL_SERVER_ERROR,
                &status,
            ));
        }
    }
    success(rest)
}

fn success(rest: &Rest<'_>) -> ApiResponse {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond_value(
        &rest.context.accept()?,
        StatusCode::CREATED,
        &status,
    ))
}

/// Deletes a pod that no budget protects by its state; answers the pod if it is not such a one.
async fn evict_unasked(rest: &Rest<'_>, options: &DeleteOptions) -> ApiResult<Option<Pod>> {
    for _ in 0..CONFLICT_TRIES {
        let current = rest.current().await?;
        let pod: Pod = serde_json::from_slice(&current.json).map_err(ApiError::internal)?;
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let is_over = matches!(phase, Some("Succeeded" | "Failed"))
            || pod.metadata.deletion_timestamp.is_some();
        if !is_over && phase != Some("Pending") {
            return Ok(Some(pod));
        }
        let mut own = options.clone();
        if !is_over && own.resource_version.is_none() {
            // It could begin to run, and to be counted, at any moment.
            own.resource_version = Some(current.revision.to_string());
        }
        match delete(rest, own).await {
            Err(error) if error.is_conflict() && options.resource_version.is_none() => {}
            deleted => return deleted.map(|()| None),
        }
    }
    Err(rest.modified())
}

async fn ask(rest: &Rest<'_>, pod: &Pod, dry_run: bool) -> ApiResult<Verdict> {
    let Some(resource) = rest.core.resource(GROUP, "v1", "poddisruptionbudgets") else {
        return Ok(Verdict::Free);
    };
    let Some(cache) = &resource.cache else {
        return Ok(Verdict::Free);
    };
    let mut budgets = Vec::new();
    for item in cache.list(0, &rest.key_prefix(), None, 0, |_| true).items {
        let budget: PodDisruptionBudget =
            serde_json::from_slice(&item.json).map_err(ApiError::internal)?;
        if disruption::selects(&budget, pod.metadata.labels.as_ref()) {
            budgets.push(budget);
        }
    }
    let budget = match budgets.as_slice() {
        [] => return Ok(Verdict::Free),
        [budget] => budget,
        _ => return Ok(Verdict::Ambiguous),
    };
    let name = budget.metadata.name.clone().unwrap_or_default();
    if !is_ready(pod) && may_go_unhealthy(budget) {
        return Ok(Verdict::Unhealthy { budget: name });
    }
    let budget = Rest {
        kind: &resource.kind,
        cache,
        name: &name,
        ..*rest
    };
    take_one(&budget, rest.name, dry_run).await?;
    Ok(Verdict::Free)
}

/// Does the budget let pods go that are not ready, without counting them?
fn may_go_unhealthy(budget: &PodDisruptionBudget) -> bool {
    let policy = budget
        .spec
        .as_ref()
        .and_then(|spec| spec.unhealthy_pod_eviction_policy.as_deref());
    if policy == Some("AlwaysAllow") {
        return true;
    }
    let status = budget.status.as_ref();
    let (healthy, desired) = status.map_or((0, 0), |status| {
        (
            status.current_healthy.unwrap_or(0),
            status.desired_healthy.unwrap_or(0),
        )
    });
    healthy >= desired && desired > 0
}

fn is_ready(pod: &Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Takes one disruption from a budget, or says why there is none.
async fn take_one(budget: &Rest<'_>, pod_name: &str, dry_run: bool) -> ApiResult<()> {
    let options = server_options(dry_run);
    let writer = Writer {
        subresource: "status",
        ..Writer::server(MANAGER)
    };
    let taken = budget
        .modify(&Part::Status, &options, &writer, |old, _| {
            let mut new = old.clone_boxed();
            let object = new
                .as_any_mut()
                .downcast_mut::<PodDisruptionBudget>()
                .ok_or_else(|| ApiError::internal("a budget of another kind"))?;
            decrement(object, pod_name)?;
            Ok(new)
        })
        .await;
    match taken {
        // Others took from it all the while.
        Err(error) if error.is_conflict() => Err(ApiError::timeout(format!(
            "couldn't update PodDisruptionBudget {:?} due to conflicts",
            budget.name
        ))),
        other => other.map(|_| ()),
    }
}

fn decrement(budget: &mut PodDisruptionBudget, pod_name: &str) -> ApiResult<()> {
    let name = budget.metadata.name.clone().unwrap_or_default();
    let forbidden = |detail: &str| {
        Err(ApiError::forbidden(
            GROUP,
            "poddisruptionbudget",
            &name,
            detail,
        ))
    };
    let generation = budget.metadata.generation.unwrap_or(0);
    let status = budget.status.get_or_insert_default();
    if status.observed_generation.unwrap_or(0) < generation {
        return Err(being_processed(&name));
    }
    let allowed = status.disruptions_allowed.unwrap_or(0);
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    let disrupted = status.disrupted_pods.get_or_insert_default();
    if disrupted.len() > DISRUPTED_PODS_MAX {
        return forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        );
    }
    if allowed == 0 {
        let detail = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            status.desired_healthy.unwrap_or(0),
            status.current_healthy.unwrap_or(0)
        );
        return Err(ApiError::too_many_requests(VIOLATES, 0).with_cause(
            "DisruptionBudget",
            &detail,
            "",
        ));
    }
    disrupted.insert(pod_name.to_owned(), meta::now());
    status.disruptions_allowed = Some(allowed - 1);
    if allowed == 1 {
        disruption::set_condition(status, &meta::now());
    }
    Ok(())
}

fn being_processed(budget: &str) -> ApiError {
    ApiError::too_many_requests(VIOLATES, COUNT_SECONDS).with_cause(
        "DisruptionBudget",
        &format!("The disruption budget {budget} is still being processed by the server."),
        "",
    )
}

fn server_options(dry_run: bool) -> WriteOptions {
    WriteOptions {
        dry_run,
        field_manager: MANAGER.into(),
        field_validation: crate::rest::options::FieldValidation::Ignore,
        force: false,
    }
}

/// Marks the pod as the target of a disruption, and deletes it.
async fn delete(rest: &Rest<'_>, mut options: DeleteOptions) -> ApiResult<()> {
    if !options.dry_run {
        let writer = Writer {
            subresource: "status",
            ..Writer::server(MANAGER)
        };
        let marked = rest
            .modify(
                &Part::Status,
                &server_options(false),
                &writer,
                |old, current| {
                    rest.check_delete_preconditions(&options, current)?;
                    let mut new = old.clone_boxed();
                    let pod = new
                        .as_any_mut()
                        .downcast_mut::<Pod>()
                        .ok_or_else(|| ApiError::internal("a pod of another kind"))?;
                    mark(pod);
                    Ok(new)
                },
            )
            .await?;
        if options.resource_version.is_some() {
            options.resource_version = Some(marked.item().revision.to_string());
        }
    }
    rest.delete_quietly(&options).await
}

fn mark(pod: &mut Pod) {
    let generation = pod.metadata.generation;
    let conditions = pod
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    let mut fresh = PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("EvictionByEvictionAPI".into()),
        message: Some("Eviction API: evicting".into()),
        last_transition_time: Some(meta::now()),
        observed_generation: generation,
        ..PodCondition::default()
    };
    match conditions
        .iter_mut()
        .find(|condition| condition.type_ == fresh.type_)
    {
        Some(known) => {
            if known.status == fresh.status {
                fresh.last_transition_time = known.last_transition_time.take();
            }
            *known = fresh;
        }
        None => conditions.push(fresh),
    }
}
