//! securityContext of pod and container in the runtime's terms. Pure.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    Container, PodSecurityContext, SeccompProfile as ApiSeccompProfile,
    SecurityContext as ApiSecurityContext,
};
use runtime::service::{Image, NamespaceMode, SeccompProfile, SecurityContext};

use super::spec::PodSpecView;

/// Shown as `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    #[error(
        "container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})"
    )]
    ImageRunsAsRoot { pod: String, container: String },
    #[error(
        "container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})"
    )]
    RunAsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    NonNumericUser {
        user: String,
        pod: String,
        container: String,
    },
}

/// How the container runs. `seccomp_root` holds the profiles of type Localhost.
pub fn of_container(
    view: &PodSpecView,
    container: &Container,
    image: &Image,
    seccomp_root: &Path,
    seccomp_default: bool,
) -> Result<SecurityContext, SecurityError> {
    let spec = view.pod.spec.as_ref();
    let of_pod = spec
        .and_then(|spec| spec.security_context.clone())
        .unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let run_as_user = own.run_as_user.or(of_pod.run_as_user);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        verify_non_root(view, container, image, run_as_user)?;
    }
    let privileged = own.privileged.unwrap_or(false);
    let (add, drop) = own
        .capabilities
        .as_ref()
        .map(|capabilities| {
            (
                capabilities.add.clone().unwrap_or_default(),
                capabilities.drop.clone().unwrap_or_default(),
            )
        })
        .unwrap_or_default();
    let plain = |list: Vec<String>| -> Vec<String> {
        list.into_iter()
            .map(|name| name.trim_start_matches("CAP_").to_uppercase())
            .collect()
    };
    let mut groups = of_pod.supplemental_groups.clone().unwrap_or_default();
    groups.extend(of_pod.fs_group);
    Ok(SecurityContext {
        privileged,
        add_capabilities: plain(add),
        drop_capabilities: plain(drop),
        pid: pid_mode(view),
        run_as_user,
        run_as_group: own.run_as_group.or(of_pod.run_as_group),
        supplemental_groups: groups,
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privs: own.allow_privilege_escalation == Some(false) && !privileged,
        seccomp: seccomp(&own, &of_pod, privileged, seccomp_root, seccomp_default),
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

/// Which process namespace the pod's containers live in.
pub fn pid_mode(view: &PodSpecView) -> NamespaceMode {
    let spec = view.pod.spec.as_ref();
    if spec.and_then(|spec| spec.host_pid) == Some(true) {
        NamespaceMode::Node
    } else if spec.and_then(|spec| spec.share_process_namespace) == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    }
}

fn verify_non_root(
    view: &PodSpecView,
    container: &Container,
    image: &Image,
    run_as_user: Option<i64>,
) -> Result<(), SecurityError> {
    let (pod, container) = (view.formatted(), container.name.clone());
    match run_as_user {
        Some(0) => Err(SecurityError::RunAsRoot { pod, container }),
        Some(_) => Ok(()),
        None => match image.uid {
            Some(0) => Err(SecurityError::ImageRunsAsRoot { pod, container }),
            Some(_) => Ok(()),
            None if image.username.is_empty() => {
                Err(SecurityError::ImageRunsAsRoot { pod, container })
            }
            None => Err(SecurityError::NonNumericUser {
                user: image.username.clone(),
                pod,
                container,
            }),
        },
    }
}

fn seccomp(
    own: &ApiSecurityContext,
    of_pod: &PodSecurityContext,
    privileged: bool,
    root: &Path,
    default: bool,
) -> SeccompProfile {
    if privileged {
        return SeccompProfile::Unconfined;
    }
    let named = |profile: &ApiSeccompProfile| match profile.type_.as_str() {
        "Unconfined" => SeccompProfile::Unconfined,
        "Localhost" => SeccompProfile::Localhost(localhost(
            root,
            profile.localhost_profile.as_deref().unwrap_or_default(),
        )),
        _ => SeccompProfile::RuntimeDefault,
    };
    match own
        .seccomp_profile
        .as_ref()
        .or(of_pod.seccomp_profile.as_ref())
    {
        Some(profile) => named(profile),
        None if default => SeccompProfile::RuntimeDefault,
        None => SeccompProfile::Unconfined,
    }
}

/// Profiles stay below their directory; validation has refused `..` already.
fn localhost(root: &Path, profile: &str) -> PathBuf {
    let parts = Path::new(profile)
        .components()
        .filter(|part| matches!(part, std::path::Component::Normal(_)));
    root.join(parts.collect::<PathBuf>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn make(pod: Value, container: Value, image: Image) -> Result<SecurityContext, SecurityError> {
        let pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"securityContext": pod, "containers": [{"name": "c", "securityContext": container}]}})).unwrap();
        let view = PodSpecView::new(Arc::new(pod));
        of_container(
            &view,
            &view.containers[0].container,
            &image,
            Path::new("/seccomp"),
            true,
        )
    }

    #[test]
    fn the_container_overrides_the_pod() {
        let context = make(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4], "seccompProfile": {"type": "Unconfined"}}),
            json!({"runAsUser": 5, "capabilities": {"add": ["NET_ADMIN", "CAP_SYS_TIME"], "drop": ["ALL"]}, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true}),
            Image::default(),
        )
        .unwrap();
        assert_eq!(
            (context.run_as_user, context.run_as_group),
            (Some(5), Some(2))
        );
        assert_eq!(context.supplemental_groups, [4, 3]);
        assert_eq!(context.add_capabilities, ["NET_ADMIN", "SYS_TIME"]);
        assert!(context.no_new_privs && context.readonly_rootfs);
        assert_eq!(context.seccomp, SeccompProfile::Unconfined);
        assert_eq!(
            make(json!({}), json!({}), Image::default())
                .unwrap()
                .seccomp,
            SeccompProfile::RuntimeDefault
        );
        assert_eq!(
            make(
                json!({}),
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "../a/b.json"}}),
                Image::default()
            )
            .unwrap()
            .seccomp,
            SeccompProfile::Localhost("/seccomp/a/b.json".into())
        );
    }

    #[test]
    fn non_root_is_verified() {
        let image = |uid: Option<i64>, username: &str| Image {
            uid,
            username: username.into(),
            ..Image::default()
        };
        for (pod, image, expect) in [
            (json!({"runAsNonRoot": true}), image(Some(7), ""), None),
            (
                json!({"runAsNonRoot": true, "runAsUser": 3}),
                image(Some(0), ""),
                None,
            ),
            (
                json!({"runAsNonRoot": true, "runAsUser": 0}),
                image(Some(7), ""),
                Some("runAsUser breaks non-root policy"),
            ),
            (
                json!({"runAsNonRoot": true}),
                image(Some(0), ""),
                Some("image will run as root"),
            ),
            (
                json!({"runAsNonRoot": true}),
                image(None, ""),
                Some("image will run as root"),
            ),
            (
                json!({"runAsNonRoot": true}),
                image(None, "nginx"),
                Some("non-numeric user (nginx)"),
            ),
            (json!({}), image(Some(0), ""), None),
        ] {
            let result = make(pod.clone(), json!({}), image);
            match expect {
                None => assert!(result.is_ok(), "{pod}"),
                Some(part) => assert!(result.unwrap_err().to_string().contains(part), "{pod}"),
            }
        }
    }
}
