//! DefaultTolerationSeconds: a pod stays five minutes on a node that is gone, unless it says else.

use k8s_openapi::api::core::v1::{Pod, Toleration};

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

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
