//! What each volume of a pod must look like, from the objects it is made of. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, PodSpec, Secret, Volume, VolumeProjection,
};

use crate::amount;
use crate::downward::{self, Facts, FieldError};

/// A service-account token that a volume asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenNeed {
    /// Empty: the API server's own audience.
    pub audience: String,
    pub expiration_seconds: i64,
}

/// The objects that a pod's volumes are made of, by name in the pod's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
    pub tokens: BTreeSet<TokenNeed>,
}

/// The fetched objects; a name that maps to `None` does not exist.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
    pub tokens: BTreeMap<TokenNeed, String>,
    pub facts: Facts,
}

/// One file of a volume. `mode` holds permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Owner, where all containers run as one user and the file is a credential.
    pub uid: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// An empty directory of the pod's own; `memory`: a tmpfs.
    Directory {
        memory: bool,
        size_limit_bytes: Option<u64>,
    },
    /// `kind` is the API's `type`, empty for no check.
    HostPath { path: PathBuf, kind: String },
    /// Files by path relative to the volume; `memory`: they must not reach a disk.
    Files {
        memory: bool,
        files: BTreeMap<String, File>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedVolume {
    pub name: String,
    /// Directory name of its kind below the pod's `volumes` directory, as upstream names them.
    pub plugin: &'static str,
    pub content: Content,
    pub fs_group: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    #[error("configmap references non-existent config key: {0}")]
    NoConfigMapKey(String),
    #[error("references non-existent secret key: {0}")]
    NoSecretKey(String),
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("service account token for audience \"{0}\" was not issued")]
    NoToken(String),
    #[error("invalid path \"{0}\": it must be relative and must not contain \"..\"")]
    InvalidPath(String),
    #[error("volume kind {0} is not supported by this node")]
    Unsupported(&'static str),
}

/// The objects that `pod`'s volumes are made of.
pub fn needs(pod: &Pod) -> Needs {
    let mut needs = Needs::default();
    for volume in pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
    {
        if let Some(source) = &volume.config_map {
            needs.config_maps.insert(source.name.clone());
        }
        if let Some(source) = &volume.secret {
            needs
                .secrets
                .insert(source.secret_name.clone().unwrap_or_default());
        }
        for source in volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten())
        {
            if let Some(config_map) = &source.config_map {
                needs.config_maps.insert(config_map.name.clone());
            }
            if let Some(secret) = &source.secret {
                needs.secrets.insert(secret.name.clone());
            }
            if let Some(need) = token_need(source) {
                needs.tokens.insert(need);
            }
        }
    }
    needs
}

fn token_need(source: &VolumeProjection) -> Option<TokenNeed> {
    source
        .service_account_token
        .as_ref()
        .map(|token| TokenNeed {
            audience: token.audience.clone().unwrap_or_default(),
            expiration_seconds: token.expiration_seconds.unwrap_or(3600),
        })
}

/// What each volume must look like; one result a volume, in the spec's order.
pub fn plan(pod: &Pod, sources: &Sources) -> Vec<(String, Result<PlannedVolume, PlanError>)> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let volumes = spec.volumes.iter().flatten();
    volumes
        .map(|volume| (volume.name.clone(), plan_volume(pod, spec, volume, sources)))
        .collect()
}

fn plan_volume(
    pod: &Pod,
    spec: &PodSpec,
    volume: &Volume,
    sources: &Sources,
) -> Result<PlannedVolume, PlanError> {
    let fs_group = spec
        .security_context
        .as_ref()
        .and_then(|context| context.fs_group);
    let planned = |plugin, content| PlannedVolume {
        name: volume.name.clone(),
        plugin,
        content,
        fs_group,
    };
    if let Some(empty_dir) = &volume.empty_dir {
        let size_limit = empty_dir
            .size_limit
            .as_ref()
            .map(amount::units)
            .filter(|bytes| *bytes > 0);
        let memory = match empty_dir.medium.as_deref() {
            None | Some("") => false,
            Some("Memory") => true,
            Some(_) => return Err(PlanError::Unsupported("emptyDir with huge pages")),
        };
        let content = Content::Directory {
            memory,
            size_limit_bytes: size_limit.and_then(|bytes| u64::try_from(bytes).ok()),
        };
        return Ok(planned("kubernetes.io~empty-dir", content));
    }
    if let Some(host_path) = &volume.host_path {
        let content = Content::HostPath {
            path: PathBuf::from(&host_path.path),
            kind: host_path.type_.clone().unwrap_or_default(),
        };
        return Ok(PlannedVolume {
            fs_group: None,
            ..planned("kubernetes.io~host-path", content)
        });
    }
    let mut files = Files {
        pod,
        spec,
        sources,
        fs_group,
        files: BTreeMap::new(),
    };
    let (plugin, memory) = if let Some(source) = &volume.config_map {
        let optional = source.optional.unwrap_or(false);
        files.add_config_map(
            &source.name,
            source.items.as_deref(),
            source.default_mode.unwrap_or(0o644),
            optional,
        )?;
        ("kubernetes.io~configmap", false)
    } else if let Some(source) = &volume.secret {
        let (name, optional) = (
            source.secret_name.as_deref().unwrap_or_default(),
            source.optional.unwrap_or(false),
        );
        files.add_secret(
            name,
            source.items.as_deref(),
            source.default_mode.unwrap_or(0o644),
            optional,
        )?;
        ("kubernetes.io~secret", true)
    } else if let Some(source) = &volume.downward_api {
        files.add_downward(
            source.items.as_deref().unwrap_or_default(),
            source.default_mode.unwrap_or(0o644),
        )?;
        ("kubernetes.io~downward-api", true)
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(0o644);
        for source in projected.sources.iter().flatten() {
            files.add_projection(source, mode)?;
        }
        ("kubernetes.io~projected", true)
    } else {
        return Err(PlanError::Unsupported(kind_of(volume)));
    };
    Ok(planned(
        plugin,
        Content::Files {
            memory,
            files: files.files,
        },
    ))
}

fn kind_of(volume: &Volume) -> &'static str {
    let kinds = [
        (
            volume.persistent_volume_claim.is_some(),
            "persistentVolumeClaim",
        ),
        (volume.csi.is_some(), "csi"),
        (volume.nfs.is_some(), "nfs"),
        (volume.iscsi.is_some(), "iscsi"),
        (volume.ephemeral.is_some(), "ephemeral"),
        (volume.image.is_some(), "image"),
        (volume.fc.is_some(), "fc"),
    ];
    kinds
        .iter()
        .find(|(present, _)| *present)
        .map_or("unknown", |(_, name)| name)
}

struct Files<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    sources: &'a Sources,
    fs_group: Option<i64>,
    files: BTreeMap<String, File>,
}

impl Files<'_> {
    fn insert(
        &mut self,
        path: &str,
        data: Vec<u8>,
        mode: i32,
        uid: Option<i64>,
    ) -> Result<(), PlanError> {
        let inside = !path.is_empty()
            && Path::new(path)
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        // `..data` and the like are the writer's own names.
        if !inside || path.starts_with("..") || path.contains('\0') {
            return Err(PlanError::InvalidPath(path.to_owned()));
        }
        self.files.insert(
            path.to_owned(),
            File {
                data,
                mode: mode as u32 & 0o777,
                uid,
            },
        );
        Ok(())
    }

    fn add_config_map(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: bool,
    ) -> Result<(), PlanError> {
        let Some(config_map) = self.sources.config_maps.get(name).cloned().flatten() else {
            return if optional {
                Ok(())
            } else {
                Err(PlanError::NoConfigMap(name.to_owned()))
            };
        };
        let value = |key: &str| {
            let text = config_map
                .data
                .as_ref()
                .and_then(|data| data.get(key))
                .map(|text| text.clone().into_bytes());
            text.or_else(|| {
                config_map
                    .binary_data
                    .as_ref()
                    .and_then(|data| data.get(key))
                    .map(|bytes| bytes.0.clone())
            })
        };
        let keys = config_map
            .data
            .iter()
            .flat_map(BTreeMap::keys)
            .chain(config_map.binary_data.iter().flat_map(BTreeMap::keys));
        self.add_keys(
            items,
            keys,
            &value,
            mode,
            optional,
            PlanError::NoConfigMapKey,
        )
    }

    fn add_secret(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: bool,
    ) -> Result<(), PlanError> {
        let Some(secret) = self.sources.secrets.get(name).cloned().flatten() else {
            return if optional {
                Ok(())
            } else {
                Err(PlanError::NoSecret(name.to_owned()))
            };
        };
        let value = |key: &str| {
            secret
                .data
                .as_ref()
                .and_then(|data| data.get(key))
                .map(|bytes| bytes.0.clone())
        };
        self.add_keys(
            items,
            secret.data.iter().flat_map(BTreeMap::keys),
            &value,
            mode,
            optional,
            PlanError::NoSecretKey,
        )
    }

    fn add_keys<'k>(
        &mut self,
        items: Option<&[KeyToPath]>,
        keys: impl Iterator<Item = &'k String>,
        value: &dyn Fn(&str) -> Option<Vec<u8>>,
        mode: i32,
        optional: bool,
        missing: fn(String) -> PlanError,
    ) -> Result<(), PlanError> {
        match items.filter(|items| !items.is_empty()) {
            None => {
                for key in keys {
                    self.insert(key, value(key).unwrap_or_default(), mode, None)?;
                }
            }
            Some(items) => {
                for item in items {
                    match value(&item.key) {
                        Some(data) => {
                            self.insert(&item.path, data, item.mode.unwrap_or(mode), None)?
                        }
                        None if optional => {}
                        None => return Err(missing(item.key.clone())),
                    }
                }
            }
        }
        Ok(())
    }

    fn add_downward(
        &mut self,
        items: &[DownwardAPIVolumeFile],
        mode: i32,
    ) -> Result<(), PlanError> {
        for item in items {
            let value = if let Some(field) = &item.field_ref {
                downward::pod_field(self.pod, &field.field_path, &self.sources.facts)?
            } else if let Some(resource) = &item.resource_field_ref {
                downward::resource_field(self.pod, None, resource, &self.sources.facts)?
            } else {
                continue;
            };
            self.insert(
                &item.path,
                value.into_bytes(),
                item.mode.unwrap_or(mode),
                None,
            )?;
        }
        Ok(())
    }

    fn add_projection(&mut self, source: &VolumeProjection, mode: i32) -> Result<(), PlanError> {
        if let Some(secret) = &source.secret {
            return self.add_secret(
                &secret.name,
                secret.items.as_deref(),
                mode,
                secret.optional.unwrap_or(false),
            );
        }
        if let Some(config_map) = &source.config_map {
            return self.add_config_map(
                &config_map.name,
                config_map.items.as_deref(),
                mode,
                config_map.optional.unwrap_or(false),
            );
        }
        if let Some(downward) = &source.downward_api {
            return self.add_downward(downward.items.as_deref().unwrap_or_default(), mode);
        }
        if let (Some(token), Some(need)) = (&source.service_account_token, token_need(source)) {
            let value = self
                .sources
                .tokens
                .get(&need)
                .ok_or(PlanError::NoToken(need.audience))?;
            let uid = single_user(self.spec);
            // With an owner or a group the token is nobody else's; the group's bits are added with the group.
            let mode = if uid.is_some() || self.fs_group.is_some() {
                0o600
            } else {
                mode
            };
            return self.insert(&token.path, value.clone().into_bytes(), mode, uid);
        }
        if source.cluster_trust_bundle.is_some() {
            return Err(PlanError::Unsupported("projected clusterTrustBundle"));
        }
        if source.pod_certificate.is_some() {
            return Err(PlanError::Unsupported("projected podCertificate"));
        }
        Ok(())
    }
}

/// The user that all containers run as, if the spec names one and the same for each.
fn single_user(spec: &PodSpec) -> Option<i64> {
    let of_pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.run_as_user);
    let mut users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|container| {
            container
                .security_context
                .as_ref()
                .and_then(|context| context.run_as_user)
                .or(of_pod)
        });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn sources() -> Sources {
        let config: ConfigMap = serde_json::from_value(
            json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}}),
        )
        .unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"password": "cHc="}})).unwrap();
        Sources {
            config_maps: BTreeMap::from([
                ("config".to_owned(), Some(Arc::new(config))),
                ("gone".to_owned(), None),
            ]),
            secrets: BTreeMap::from([("secret".to_owned(), Some(Arc::new(secret)))]),
            tokens: BTreeMap::from([(
                TokenNeed {
                    audience: String::new(),
                    expiration_seconds: 3607,
                },
                "token".to_owned(),
            )]),
            facts: Facts::default(),
        }
    }

    fn check(volume: Value, security: Value, expect: Result<&[(&str, &str, u32)], &str>) {
        let mut volume_with_name = volume.clone();
        volume_with_name["name"] = json!("v");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {"x": "y"}},
            "spec": {"securityContext": security, "containers": [{"name": "c"}], "volumes": [volume_with_name]}
        }))
        .unwrap();
        let (_, result) = plan(&pod, &sources()).pop().unwrap();
        let files = match &result {
            Ok(PlannedVolume {
                content: Content::Files { files, .. },
                ..
            }) => Ok(files
                .iter()
                .map(|(path, file)| {
                    (
                        path.clone(),
                        String::from_utf8_lossy(&file.data).into_owned(),
                        file.mode,
                    )
                })
                .collect::<Vec<_>>()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        };
        let expect = expect
            .map(|files| {
                files
                    .iter()
                    .map(|(path, data, mode)| ((*path).to_owned(), (*data).to_owned(), *mode))
                    .collect::<Vec<_>>()
            })
            .map_err(str::to_owned);
        assert_eq!(files, expect, "{volume}");
    }

    #[test]
    fn files_of_each_kind() {
        check(
            json!({"configMap": {"name": "config"}}),
            json!({}),
            Ok(&[
                ("a", "1", 0o644),
                ("b", "2", 0o644),
                ("c", "\0\u{1}", 0o644),
            ]),
        );
        check(
            json!({"configMap": {"name": "config", "defaultMode": 256, "items": [{"key": "a", "path": "dir/x"}, {"key": "b", "path": "y", "mode": 511}]}}),
            json!({}),
            Ok(&[("dir/x", "1", 0o400), ("y", "2", 0o777)]),
        );
        check(
            json!({"configMap": {"name": "gone"}}),
            json!({}),
            Err("configmap \"gone\" not found"),
        );
        check(
            json!({"configMap": {"name": "gone", "optional": true}}),
            json!({}),
            Ok(&[]),
        );
        check(
            json!({"configMap": {"name": "config", "items": [{"key": "z", "path": "z"}]}}),
            json!({}),
            Err("configmap references non-existent config key: z"),
        );
        check(
            json!({"configMap": {"name": "config", "optional": true, "items": [{"key": "z", "path": "z"}]}}),
            json!({}),
            Ok(&[]),
        );
        check(
            json!({"secret": {"secretName": "secret"}}),
            json!({}),
            Ok(&[("password", "pw", 0o644)]),
        );
        check(
            json!({"secret": {"secretName": "nope"}}),
            json!({}),
            Err("secret \"nope\" not found"),
        );
        check(
            json!({"configMap": {"name": "config", "items": [{"key": "a", "path": "../x"}]}}),
            json!({}),
            Err("invalid path \"../x\": it must be relative and must not contain \"..\""),
        );
        check(
            json!({"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}),
            json!({}),
            Ok(&[("labels", "x=\"y\"", 0o644)]),
        );
        let projected = json!({"projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "config", "items": [{"key": "a", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}});
        check(
            projected.clone(),
            json!({}),
            Ok(&[
                ("ca.crt", "1", 0o644),
                ("name", "p", 0o644),
                ("token", "token", 0o644),
            ]),
        );
        check(
            projected,
            json!({"fsGroup": 5}),
            Ok(&[
                ("ca.crt", "1", 0o644),
                ("name", "p", 0o644),
                ("token", "token", 0o600),
            ]),
        );
        check(
            json!({"persistentVolumeClaim": {"claimName": "x"}}),
            json!({}),
            Err("volume kind persistentVolumeClaim is not supported by this node"),
        );
    }
}
