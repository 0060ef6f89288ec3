//! Names that tie sandboxes and containers to their pods, so that a restarted kubelet finds them. Pure.

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use runtime::service::{ContainerStatus, Labels, PodSandbox};

use super::spec::PodSpecView;

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const PRE_STOP_HANDLER: &str = "io.kubernetes.container.preStopHandler";
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Where the kubelet keeps the file that is mounted at the termination message path.
pub const TERMINATION_MESSAGE_FILE: &str = "llmagentos.io/termination-message-file";

/// The image as status shows it: by digest, where it has one.
pub const IMAGE_REF: &str = "llmagentos.io/image-ref";

/// Where a pod came from; `file` for static pods.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// Changes when the container must be replaced: only name and image count, as upstream since 1.31.
pub fn container_hash(container: &Container) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in container
        .name
        .bytes()
        .chain([0])
        .chain(container.image.iter().flat_map(|image| image.bytes()))
    {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:x}")
}

pub fn of_sandbox(view: &PodSpecView) -> Labels {
    let mut labels: Labels = view.pod.metadata.labels.clone().unwrap_or_default();
    labels.insert(POD_NAME.into(), view.name().into());
    labels.insert(POD_NAMESPACE.into(), view.namespace().into());
    labels.insert(POD_UID.into(), view.uid().into());
    labels
}

pub fn of_container(view: &PodSpecView, container: &Container) -> Labels {
    Labels::from([
        (POD_NAME.into(), view.name().into()),
        (POD_NAMESPACE.into(), view.namespace().into()),
        (POD_UID.into(), view.uid().into()),
        (CONTAINER_NAME.into(), container.name.clone()),
    ])
}

pub fn annotations(
    view: &PodSpecView,
    container: &Container,
    hash: &str,
    restart_count: u32,
    message_file: &str,
) -> Labels {
    let mut annotations = Labels::from([
        (CONTAINER_HASH.into(), hash.into()),
        (RESTART_COUNT.into(), restart_count.to_string()),
        (
            TERMINATION_MESSAGE_PATH.into(),
            container
                .termination_message_path
                .clone()
                .unwrap_or_default(),
        ),
        (
            TERMINATION_MESSAGE_POLICY.into(),
            container
                .termination_message_policy
                .clone()
                .unwrap_or_default(),
        ),
        (TERMINATION_MESSAGE_FILE.into(), message_file.into()),
        (GRACE_PERIOD.into(), view.grace_period_seconds().to_string()),
    ]);
    if let Some(pre_stop) = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.pre_stop.as_ref())
        && let Ok(json) = serde_json::to_string(pre_stop)
    {
        annotations.insert(PRE_STOP_HANDLER.into(), json);
    }
    annotations
}

pub fn restart_count(status: &ContainerStatus) -> u32 {
    status
        .annotations
        .get(RESTART_COUNT)
        .and_then(|count| count.parse().ok())
        .unwrap_or(status.metadata.attempt)
}

pub fn hash_of(status: &ContainerStatus) -> &str {
    status
        .annotations
        .get(CONTAINER_HASH)
        .map_or("", String::as_str)
}

pub fn pre_stop_of(status: &ContainerStatus) -> Option<LifecycleHandler> {
    status
        .annotations
        .get(PRE_STOP_HANDLER)
        .and_then(|json| serde_json::from_str(json).ok())
}

pub fn grace_period_of(status: &ContainerStatus) -> Option<i64> {
    status
        .annotations
        .get(GRACE_PERIOD)
        .and_then(|seconds| seconds.parse().ok())
}

/// The uid of the pod that a sandbox belongs to.
pub fn pod_uid(sandbox: &PodSandbox) -> &str {
    sandbox.labels.get(POD_UID).unwrap_or(&sandbox.metadata.uid)
}
