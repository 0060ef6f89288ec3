//! Priority: a pod's priority class, as the number that the scheduler reads.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1::PriorityClass;

use crate::rest::Rest;
use crate::status::{ApiError, ApiResult};

const DEFAULT_POLICY: &str = "PreemptLowerPriority";

pub fn admit(rest: &Rest<'_>, pod: &mut Pod) -> ApiResult<()> {
    let forbidden = |detail: &str| {
        Err(ApiError::forbidden(
            "",
            "pods",
            pod.metadata.name.as_deref().unwrap_or_default(),
            detail,
        ))
    };
    let spec = pod.spec.get_or_insert_default();
    let name = spec.priority_class_name.clone().unwrap_or_default();
    let class = if name.is_empty() {
        default_class(rest)
    } else {
        match class(rest, &name) {
            Some(class) => Some(class),
            None => return forbidden(&format!("no PriorityClass with name {name} was found")),
        }
    };
    let (value, policy) = class.as_ref().map_or((0, None), |class| {
        (class.value.unwrap_or(0), class.preemption_policy.clone())
    });
    let policy = policy.unwrap_or_else(|| DEFAULT_POLICY.into());
    if let Some(given) = spec.priority.filter(|given| *given != value) {
        return forbidden(&format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        ));
    }
    if let Some(given) = spec
        .preemption_policy
        .as_ref()
        .filter(|given| **given != policy)
    {
        return forbidden(&format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        ));
    }
    if let Some(class) = class {
        spec.priority_class_name = class.metadata.name;
    }
    spec.priority = Some(value);
    spec.preemption_policy = Some(policy);
    Ok(())
}

fn class(rest: &Rest<'_>, name: &str) -> Option<PriorityClass> {
    let item = rest.core.caches.by_prefix("priorityclasses")?.get(name)?;
    serde_json::from_slice(&item.json).ok()
}

/// The class with `globalDefault`; of several the one with the lowest value, as upstream.
fn default_class(rest: &Rest<'_>) -> Option<PriorityClass> {
    let cache = rest.core.caches.by_prefix("priorityclasses")?;
    let items = cache.list(0, "", None, 0, |_| true).items;
    items
        .iter()
        .filter_map(|item| serde_json::from_slice::<PriorityClass>(&item.json).ok())
        .filter(|class| class.global_default == Some(true))
        .min_by_key(|class| class.value.unwrap_or(0))
}
