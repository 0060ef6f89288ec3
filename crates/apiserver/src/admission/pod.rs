//! DefaultTolerationSeconds: a pod stays five minutes on a node that is gone, unless it says else. RuntimeClass: a
//! pod names none.

use k8s_openapi::api::core::v1::{Pod, Toleration};

use crate::status::{ApiError, ApiResult};

const TOLERATION_SECONDS: i64 = 300;
const TAINTS: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];

pub fn default_tolerations(pod: &mut Pod) {
    let tolerations = pod
        .spec
        .get_or_insert_default()
        .tolerations
        .get_or_insert_default();
    for taint in TAINTS {
        let tolerated = tolerations.iter().any(|toleration| {
            let key = toleration.key.as_deref().unwrap_or_default();
            let effect = toleration.effect.as_deref().unwrap_or_default();
            (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            tolerations.push(Toleration {
                key: Some(taint.into()),
                operator: Some("Exists".into()),
                effect: Some("NoExecute".into()),
                toleration_seconds: Some(TOLERATION_SECONDS),
                value: None,
            });
        }
    }
}

/// No RuntimeClass is served, so that there is none that a pod could name, and none that gives it overhead.
pub fn check_runtime_class(pod: &Pod) -> ApiResult<()> {
    let Some(spec) = &pod.spec else {
        return Ok(());
    };
    let class = spec.runtime_class_name.as_deref().unwrap_or_default();
    let problem = if !class.is_empty() {
        format!("pod rejected: RuntimeClass {class:?} not found")
    } else if spec.overhead.as_ref().is_some_and(|own| !own.is_empty()) {
        "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".into()
    } else {
        return Ok(());
    };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    Err(ApiError::forbidden("", "pods", name, &problem))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn runtime_classes_are_not_there() {
        for (spec, expect) in [
            (r#"{"containers":[]}"#, None),
            (r#"{"containers":[],"overhead":{}}"#, None),
            (
                r#"{"containers":[],"runtimeClassName":"gvisor"}"#,
                Some("pods \"p\" is forbidden: pod rejected: RuntimeClass \"gvisor\" not found"),
            ),
            (
                r#"{"containers":[],"overhead":{"cpu":"1"}}"#,
                Some(
                    "pods \"p\" is forbidden: pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
                ),
            ),
        ] {
            let mut pod = Pod::default();
            pod.metadata.name = Some("p".into());
            pod.spec = Some(serde_json::from_str(spec).unwrap());
            let error = check_runtime_class(&pod).err();
            assert_eq!(error.as_ref().map(ApiError::message), expect, "{spec}");
        }
    }

    #[test]
    fn own_tolerations_win() {
        let count = |tolerations: Vec<Toleration>| {
            let mut pod = Pod::default();
            pod.spec.get_or_insert_default().tolerations = Some(tolerations);
            default_tolerations(&mut pod);
            pod.spec.unwrap().tolerations.unwrap().len()
        };
        let one = |key: &str, effect: &str| Toleration {
            key: Some(key.into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        assert_eq!(count(vec![]), 2);
        assert_eq!(
            count(vec![one("node.kubernetes.io/not-ready", "NoExecute")]),
            2
        );
        assert_eq!(
            count(vec![one("node.kubernetes.io/not-ready", "NoSchedule")]),
            3
        );
        assert_eq!(count(vec![one("", "")]), 1);
    }
}
