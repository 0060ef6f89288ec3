//! A container in the runtime's terms, once everything it is made of is at hand. Pure.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::VolumeMount;
use runtime::service::{
    ContainerConfig, ContainerMetadata, LinuxResources, Mount, MountPropagation, SecurityContext,
};

use super::env::expand;
use super::labels;
use super::spec::{ContainerSpec, PodSpecView};

/// What [`make`] puts together.
pub struct Parts {
    pub restart_count: u32,
    pub image_id: String,
    /// The image by digest, for the container's status; empty: its id.
    pub image_ref: String,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub resources: LinuxResources,
    pub security: SecurityContext,
    /// The kubelet's file behind the termination message path.
    pub termination_message_file: PathBuf,
}

pub fn make(view: &PodSpecView, spec: &ContainerSpec, parts: Parts) -> ContainerConfig {
    let container = &spec.container;
    let lookup = |name: &str| {
        parts
            .env
            .iter()
            .rev()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    };
    let expanded = |list: &Option<Vec<String>>| {
        list.iter()
            .flatten()
            .map(|text| expand(text, lookup))
            .collect::<Vec<_>>()
    };
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    let mut annotations = labels::annotations(
        view,
        container,
        &spec.hash,
        parts.restart_count,
        &parts.termination_message_file.to_string_lossy(),
    );
    if !parts.image_ref.is_empty() {
        annotations.insert(labels::IMAGE_REF.into(), parts.image_ref);
    }
    ContainerConfig {
        metadata: ContainerMetadata {
            name: container.name.clone(),
            attempt: parts.restart_count,
        },
        image_id: parts.image_id,
        user_image: container.image.clone().unwrap_or_default(),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: parts.mounts,
        devices: Vec::new(),
        labels: labels::of_container(view, container),
        annotations,
        log_path: log_path(&container.name, parts.restart_count),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        resources: parts.resources,
        security: parts.security,
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone()),
        env: parts.env,
    }
}

/// Below the sandbox's log directory.
pub fn log_path(container: &str, restart_count: u32) -> PathBuf {
    Path::new(container).join(format!("{restart_count}.log"))
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    #[error("cannot find volume \"{volume}\" to mount into container \"{container}\"")]
    NoVolume { volume: String, container: String },
    #[error("subPathExpr \"{0}\" refers to a variable that is not set")]
    UnsetVariable(String),
    #[error("subPathExpr \"{0}\" must be relative and must not contain \"..\"")]
    InvalidSubPath(String),
}

/// The subPath of a mount, with variables filled in; empty for none.
pub fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<String, MountError> {
    if let Some(expression) = mount
        .sub_path_expr
        .as_deref()
        .filter(|expression| !expression.is_empty())
    {
        let missing = std::cell::Cell::new(false);
        let path = expand(expression, |name| {
            let found = env
                .iter()
                .rev()
                .find(|(own, _)| own == name)
                .map(|(_, value)| value.as_str());
            missing.set(missing.get() || found.is_none());
            found
        });
        if missing.get() {
            return Err(MountError::UnsetVariable(expression.to_owned()));
        }
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(MountError::InvalidSubPath(path));
        }
        return Ok(path);
    }
    Ok(mount.sub_path.clone().unwrap_or_default())
}

/// One volume mount at the host's path.
pub fn mount(mount: &VolumeMount, host_path: PathBuf) -> Mount {
    // A relative path counts from the root, as Docker did.
    let container_path = Path::new("/").join(&mount.mount_path);
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::HostToContainer,
        Some("Bidirectional") => MountPropagation::Bidirectional,
        _ => MountPropagation::Private,
    };
    Mount {
        container_path,
        host_path,
        readonly: mount.read_only.unwrap_or(false),
        propagation,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn commands_are_expanded() {
        let pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [
            {"name": "c", "image": "i", "command": ["sh", "-c", "echo $(A) $(B)"], "args": ["$$(A)"]}]}}))
        .unwrap();
        let view = PodSpecView::new(Arc::new(pod));
        let parts = Parts {
            restart_count: 3,
            image_id: "sha256:1".into(),
            image_ref: String::new(),
            env: vec![("A".into(), "x".into())],
            mounts: Vec::new(),
            resources: LinuxResources::default(),
            security: SecurityContext::default(),
            termination_message_file: "/f".into(),
        };
        let config = make(&view, &view.containers[0], parts);
        assert_eq!(config.command, ["sh", "-c", "echo x $(B)"]);
        assert_eq!(config.args, ["$(A)"]);
        assert_eq!(config.log_path, Path::new("c/3.log"));
        assert_eq!(config.metadata.attempt, 3);
    }

    #[test]
    fn sub_paths() {
        let env = [
            ("POD".to_owned(), "web".to_owned()),
            ("BAD".to_owned(), "../x".to_owned()),
        ];
        for (mount, expect) in [
            (json!({"subPath": "a/b"}), Ok("a/b".to_owned())),
            (
                json!({"subPathExpr": "logs/$(POD)"}),
                Ok("logs/web".to_owned()),
            ),
            (
                json!({"subPathExpr": "$(NONE)"}),
                Err(MountError::UnsetVariable("$(NONE)".into())),
            ),
            (
                json!({"subPathExpr": "$(BAD)"}),
                Err(MountError::InvalidSubPath("../x".into())),
            ),
            (json!({}), Ok(String::new())),
        ] {
            let mut mount = mount;
            mount["name"] = json!("v");
            mount["mountPath"] = json!("/m");
            assert_eq!(
                sub_path(&serde_json::from_value(mount).unwrap(), &env),
                expect
            );
        }
    }
}
