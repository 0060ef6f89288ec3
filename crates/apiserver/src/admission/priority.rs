//! Priority: a pod's priority class, as the number that the scheduler reads.
//!
//! The classes are few and rarely change, and every pod asks: they are kept decoded ([`Classes`]).

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1::PriorityClass;

use crate::cache::Caches;
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
    let classes = rest.core.priority_classes.current(&rest.core.caches);
    let class = if name.is_empty() {
        classes
            .default
            .as_deref()
            .and_then(|name| classes.by_name.get(name))
    } else {
        match classes.by_name.get(&name) {
            Some(class) => Some(class),
            None => return forbidden(&format!("no PriorityClass with name {name} was found")),
        }
    };
    let (value, policy) = class.map_or((0, None), |class| {
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
        spec.priority_class_name.clone_from(&class.metadata.name);
    }
    spec.priority = Some(value);
    spec.preemption_policy = Some(policy);
    Ok(())
}

/// One class at most is the default of all pods.
pub fn admit_class(rest: &Rest<'_>, class: &PriorityClass) -> ApiResult<()> {
    if class.global_default != Some(true) {
        return Ok(());
    }
    let classes = rest.core.priority_classes.current(&rest.core.caches);
    match &classes.default {
        Some(name) if Some(name) != class.metadata.name.as_ref() => Err(ApiError::forbidden(
            &rest.kind.group,
            &rest.kind.plural,
            class.metadata.name.as_deref().unwrap_or_default(),
            &format!(
                "PriorityClass {name} is already marked as default. Only one default can exist"
            ),
        )),
        _ => Ok(()),
    }
}

/// All classes, decoded; read afresh when one of them changed.
#[derive(Default)]
pub struct Classes(RwLock<Arc<Known>>);

#[derive(Default)]
struct Known {
    /// The revision of the newest change that is in here.
    version: Option<u64>,
    by_name: HashMap<String, PriorityClass>,
    /// The class with `globalDefault`; of several the one with the lowest value, as upstream.
    default: Option<String>,
}

impl Classes {
    fn current(&self, caches: &Caches) -> Arc<Known> {
        let Some(cache) = caches.by_prefix("priorityclasses") else {
            return Arc::default();
        };
        // Asked for before the list is read: a change in between is seen the next time.
        let version = cache.version();
        let known = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if known.version == Some(version) {
            return known;
        }
        let by_name: HashMap<String, PriorityClass> = cache
            .list(0, "", None, 0, |_| true)
            .items
            .iter()
            .filter_map(|item| serde_json::from_slice(&item.json).ok())
            .filter_map(|class: PriorityClass| Some((class.metadata.name.clone()?, class)))
            .collect();
        let default = by_name
            .iter()
            .filter(|(_, class)| class.global_default == Some(true))
            .min_by_key(|(name, class)| (class.value.unwrap_or(0), (*name).clone()))
            .map(|(name, _)| name.clone());
        let fresh = Arc::new(Known {
            version: Some(version),
            by_name,
            default,
        });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        fresh
    }
}
