//! ServiceAccount: every pod runs as one, and gets its token, the cluster's CA and its namespace
//! in a projected volume.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, Container, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath,
    ObjectFieldSelector, Pod, ProjectedVolumeSource, ServiceAccount, ServiceAccountTokenProjection,
    Volume, VolumeMount, VolumeProjection,
};

use crate::rest::{Rest, meta};
use crate::status::{ApiError, ApiResult};

const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
const TOKEN_MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// An hour, and some seconds that tell these tokens from asked-for ones, as upstream.
const TOKEN_EXPIRATION_SECONDS: i64 = 3607;
const FILE_MODE: i32 = 0o644;
/// The default account of a namespace is made right after it; a pod made at once waits this long.
const ACCOUNT_WAIT: Duration = Duration::from_millis(1500);

pub async fn admit(rest: &Rest<'_>, pod: &mut Pod) -> ApiResult<()> {
    let forbidden = |pod: &Pod, detail: &str| {
        Err(ApiError::forbidden(
            "",
            "pods",
            pod.metadata.name.as_deref().unwrap_or_default(),
            detail,
        ))
    };
    if pod
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(MIRROR_ANNOTATION))
    {
        let named = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.as_deref())
            .is_some_and(|name| !name.is_empty());
        return if named {
            forbidden(pod, "a mirror pod may not reference service accounts")
        } else {
            Ok(())
        };
    }
    let spec = pod.spec.get_or_insert_default();
    let name = spec
        .service_account_name
        .clone()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "default".into());
    spec.service_account_name = Some(name.clone());
    spec.service_account = Some(name.clone());
    let Some(account) = find(rest, &name).await else {
        let namespace = rest.namespace;
        return forbidden(
            pod,
            &format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            ),
        );
    };
    let spec = pod.spec.get_or_insert_default();
    if spec
        .automount_service_account_token
        .or(account.automount_service_account_token)
        .unwrap_or(true)
    {
        mount_token(pod);
    }
    let spec = pod.spec.get_or_insert_default();
    if spec.image_pull_secrets.as_ref().is_none_or(Vec::is_empty) {
        spec.image_pull_secrets = account
            .image_pull_secrets
            .filter(|secrets| !secrets.is_empty());
    }
    Ok(())
}

async fn find(rest: &Rest<'_>, name: &str) -> Option<ServiceAccount> {
    let cache = rest.core.caches.by_prefix("serviceaccounts")?;
    let key = format!("{}/{name}", rest.namespace);
    let mut changed = cache.subscribe();
    let found = async {
        loop {
            changed.borrow_and_update();
            if let Some(item) = cache.get(&key) {
                return Some(item);
            }
            changed.changed().await.ok()?;
        }
    };
    let item = match cache.get(&key) {
        Some(item) => item,
        None => tokio::time::timeout(ACCOUNT_WAIT, found).await.ok()??,
    };
    serde_json::from_slice(&item.json).ok()
}

fn mount_token(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    let existing = spec
        .volumes
        .iter()
        .flatten()
        .find(|volume| volume.name.starts_with(VOLUME_PREFIX))
        .map(|volume| volume.name.clone());
    let volume_name = existing
        .clone()
        .unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", meta::random_suffix()));
    let mut used = false;
    for container in spec
        .init_containers
        .iter_mut()
        .flatten()
        .chain(&mut spec.containers)
    {
        used |= mount(container, &volume_name);
    }
    if used && existing.is_none() {
        spec.volumes
            .get_or_insert_default()
            .push(token_volume(volume_name));
    }
}

/// Mounts the volume unless the container has something there; answers whether it did.
fn mount(container: &mut Container, volume_name: &str) -> bool {
    let mounts = container.volume_mounts.get_or_insert_default();
    if mounts
        .iter()
        .any(|mount| mount.mount_path == TOKEN_MOUNT_PATH)
    {
        return false;
    }
    mounts.push(VolumeMount {
        name: volume_name.into(),
        read_only: Some(true),
        mount_path: TOKEN_MOUNT_PATH.into(),
        ..VolumeMount::default()
    });
    true
}

fn token_volume(name: String) -> Volume {
    let token = VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            path: "token".into(),
            expiration_seconds: Some(TOKEN_EXPIRATION_SECONDS),
            audience: None,
        }),
        ..VolumeProjection::default()
    };
    let ca = VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: ROOT_CA_CONFIG_MAP.into(),
            items: Some(vec![KeyToPath {
                key: "ca.crt".into(),
                path: "ca.crt".into(),
                mode: None,
            }]),
            optional: None,
        }),
        ..VolumeProjection::default()
    };
    let namespace = VolumeProjection {
        downward_api: Some(DownwardAPIProjection {
            items: Some(vec![DownwardAPIVolumeFile {
                path: "namespace".into(),
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".into()),
                    field_path: "metadata.namespace".into(),
                }),
                ..DownwardAPIVolumeFile::default()
            }]),
        }),
        ..VolumeProjection::default()
    };
    Volume {
        name,
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![token, ca, namespace]),
            default_mode: Some(FILE_MODE),
        }),
        ..Volume::default()
    }
}
