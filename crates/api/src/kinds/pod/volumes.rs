//! Validation of volumes of every source, and of the paths that volumes and mounts name.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    AzureDiskVolumeSource, CSIVolumeSource, FCVolumeSource, ISCSIVolumeSource, KeyToPath,
    QuobyteVolumeSource, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::claim::validate_claim_template;
use super::containers::{slice, validate_pull_policy};
use super::projected::{validate_downward_file, validate_projected};
use crate::error::{
    ErrorList, duplicate, forbidden, invalid, invalid_each, not_supported, required, too_long,
};
use crate::kinds::resources::amount;
use crate::name;
use crate::path::Path;

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const ONE_TYPE: &str = "may not specify more than 1 volume type";

/// Validates the volumes of a pod or template; answers with the good ones by name.
pub(super) fn validate_all<'a>(
    volumes: &'a [Volume],
    meta: Option<&ObjectMeta>,
    is_pod: bool,
    path: &Path<'_>,
    errors: &mut ErrorList,
) -> BTreeMap<&'a str, &'a Volume> {
    let pod_name = meta.and_then(|meta| meta.name.as_deref()).unwrap_or("");
    let mut good = BTreeMap::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        let before = errors.len();
        validate_source(volume, pod_name, is_pod, &path, errors);
        if volume.name.is_empty() {
            errors.push(required(&path.child("name"), ""));
        } else {
            invalid_each(
                errors,
                &path.child("name"),
                &volume.name,
                name::dns1123_label(&volume.name),
            );
        }
        if good.contains_key(volume.name.as_str()) {
            errors.push(duplicate(&path.child("name"), &volume.name));
        }
        if errors.len() == before {
            good.insert(volume.name.as_str(), volume);
        }
        // A claim that will be made for an ephemeral volume cannot be claimed by another.
        if let Some(claim) = volume
            .persistent_volume_claim
            .as_ref()
            .filter(|_| !pod_name.is_empty())
            && volumes.iter().any(|other| {
                other.ephemeral.is_some()
                    && claim.claim_name == format!("{pod_name}-{}", other.name)
            })
        {
            errors.push(invalid(
                &path.child("persistentVolumeClaim").child("claimName"),
                &claim.claim_name,
                "must not reference a PVC that gets created for an ephemeral volume",
            ));
        }
    }
    good
}

/// Counts the sources of a volume; all but the first are one too many.
struct Sources<'e, 'p> {
    count: u32,
    path: &'p Path<'p>,
    errors: &'e mut ErrorList,
}

impl Sources<'_, '_> {
    /// Validates a source under its field; `name_of_extra` is the field that upstream names when it is one too many.
    fn check<S>(
        &mut self,
        source: Option<&S>,
        field: &'static str,
        name_of_extra: &'static str,
        validate: impl FnOnce(&S, &Path<'_>, &mut ErrorList),
    ) {
        let Some(source) = source else { return };
        self.count += 1;
        if self.count > 1 {
            self.errors
                .push(forbidden(&self.path.child(name_of_extra), ONE_TYPE));
        } else {
            validate(source, &self.path.child(field), self.errors);
        }
    }

    /// A source whose only rule is that some texts are not empty.
    fn texts<'s, S>(
        &mut self,
        source: Option<&'s S>,
        field: &'static str,
        texts: impl FnOnce(&'s S) -> Vec<(&'static str, &'s str)>,
    ) {
        self.check(source, field, field, |_, _, _| {});
        if self.count > 1 {
            return;
        }
        if let Some(source) = source {
            let path = self.path.child(field);
            for (name, text) in texts(source) {
                if text.is_empty() {
                    self.errors.push(required(&path.child(name), ""));
                }
            }
        }
    }
}

fn validate_source(
    volume: &Volume,
    pod_name: &str,
    is_pod: bool,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let mut sources = Sources {
        count: 0,
        path,
        errors,
    };
    sources.check(
        volume.empty_dir.as_ref(),
        "emptyDir",
        "emptyDir",
        |source, path, errors| {
            if source
                .size_limit
                .as_ref()
                .is_some_and(|limit| amount(limit).is_negative())
            {
                errors.push(forbidden(
                    &path.child("sizeLimit"),
                    "SizeLimit field must be a valid resource quantity",
                ));
            }
        },
    );
    sources.check(
        volume.host_path.as_ref(),
        "hostPath",
        "hostPath",
        |source, path, errors| {
            if source.path.is_empty() {
                errors.push(required(&path.child("path"), ""));
                return;
            }
            validate_no_backsteps(&source.path, &path.child("path"), errors);
            const TYPES: &[&str] = &[
                "",
                "BlockDevice",
                "CharDevice",
                "Directory",
                "DirectoryOrCreate",
                "File",
                "FileOrCreate",
                "Socket",
            ];
            if let Some(type_) = source
                .type_
                .as_deref()
                .filter(|type_| !TYPES.contains(type_))
            {
                errors.push(not_supported(&path.child("type"), type_, TYPES));
            }
        },
    );
    sources.check(
        volume.git_repo.as_ref(),
        "gitRepo",
        "gitRepo",
        |source, path, errors| {
            if source.repository.is_empty() {
                errors.push(required(&path.child("repository"), ""));
            }
            validate_local_descending_path(
                source.directory.as_deref().unwrap_or(""),
                &path.child("directory"),
                errors,
            );
        },
    );
    sources.check(
        volume.gce_persistent_disk.as_ref(),
        "persistentDisk",
        "gcePersistentDisk",
        |source, path, errors| {
            if source.pd_name.is_empty() {
                errors.push(required(&path.child("pdName"), ""));
            }
            validate_partition(source.partition, path, errors);
        },
    );
    sources.check(
        volume.aws_elastic_block_store.as_ref(),
        "awsElasticBlockStore",
        "awsElasticBlockStore",
        |source, path, errors| {
            if source.volume_id.is_empty() {
                errors.push(required(&path.child("volumeID"), ""));
            }
            validate_partition(source.partition, path, errors);
        },
    );
    sources.check(
        volume.secret.as_ref(),
        "secret",
        "secret",
        |source, path, errors| {
            if source.secret_name.as_deref().unwrap_or("").is_empty() {
                errors.push(required(&path.child("secretName"), ""));
            }
            validate_mode(source.default_mode, &path.child("defaultMode"), errors);
            validate_items(slice(&source.items), &path.child("items"), errors);
        },
    );
    sources.check(volume.nfs.as_ref(), "nfs", "nfs", |source, path, errors| {
        for (field, text) in [("server", &source.server), ("path", &source.path)] {
            if text.is_empty() {
                errors.push(required(&path.child(field), ""));
            }
        }
        if !source.path.starts_with('/') {
            errors.push(invalid(
                &path.child("path"),
                &source.path,
                "must be an absolute path",
            ));
        }
    });
    sources.check(volume.iscsi.as_ref(), "iscsi", "iscsi", validate_iscsi);
    if let Some(source) = volume
        .iscsi
        .as_ref()
        .filter(|source| source.initiator_name.is_some())
        && volume.name.len() + 1 + source.target_portal.len() > 64
    {
        let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
        sources
            .errors
            .push(invalid(&path.child("name"), &volume.name, detail));
    }
    sources.texts(volume.glusterfs.as_ref(), "glusterfs", |source| {
        vec![("endpoints", &source.endpoints), ("path", &source.path)]
    });
    sources.check(
        volume.flocker.as_ref(),
        "flocker",
        "flocker",
        |source, path, errors| {
            let (name, uuid) = (
                source.dataset_name.as_deref().unwrap_or(""),
                source.dataset_uuid.as_deref().unwrap_or(""),
            );
            if name.is_empty() && uuid.is_empty() {
                errors.push(required(
                    path,
                    "one of datasetName and datasetUUID is required",
                ));
            }
            if !name.is_empty() && !uuid.is_empty() {
                errors.push(invalid(
                    path,
                    "resource",
                    "datasetName and datasetUUID can not be specified simultaneously",
                ));
            }
            if name.contains('/') {
                errors.push(invalid(
                    &path.child("datasetName"),
                    name,
                    "must not contain '/'",
                ));
            }
        },
    );
    sources.texts(
        volume.persistent_volume_claim.as_ref(),
        "persistentVolumeClaim",
        |source| vec![("claimName", &source.claim_name)],
    );
    sources.texts(volume.rbd.as_ref(), "rbd", |source| {
        vec![
            ("monitors", source.monitors.first().map_or("", |_| "set")),
            ("image", &source.image),
        ]
    });
    sources.check(
        volume.cinder.as_ref(),
        "cinder",
        "cinder",
        |source, path, errors| {
            if source.volume_id.is_empty() {
                errors.push(required(&path.child("volumeID"), ""));
            }
            if source
                .secret_ref
                .as_ref()
                .is_some_and(|reference| reference.name.is_empty())
            {
                errors.push(required(&path.child("secretRef").child("name"), ""));
            }
        },
    );
    sources.check(
        volume.cephfs.as_ref(),
        "cephfs",
        "cephFS",
        |source, path, errors| {
            if source.monitors.is_empty() {
                errors.push(required(&path.child("monitors"), ""));
            }
        },
    );
    sources.check(
        volume.quobyte.as_ref(),
        "quobyte",
        "quobyte",
        validate_quobyte,
    );
    sources.check(
        volume.downward_api.as_ref(),
        "downwardAPI",
        "downwarAPI",
        |source, path, errors| {
            validate_mode(source.default_mode, &path.child("defaultMode"), errors);
            for file in source.items.iter().flatten() {
                validate_downward_file(file, path, errors);
            }
        },
    );
    sources.check(volume.fc.as_ref(), "fc", "fc", validate_fc);
    sources.check(
        volume.flex_volume.as_ref(),
        "flexVolume",
        "flexVolume",
        |source, path, errors| {
            if source.driver.is_empty() {
                errors.push(required(&path.child("driver"), ""));
            }
            for key in source.options.iter().flatten().map(|(key, _)| key) {
                let domain = format!(
                    ".{}",
                    key.split_once('/')
                        .map_or(key.as_str(), |(domain, _)| domain)
                        .to_lowercase()
                );
                if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
                    let detail = "kubernetes.io and k8s.io namespaces are reserved";
                    errors.push(invalid(&path.child("options").key(key), key, detail));
                }
            }
        },
    );
    sources.check(
        volume.config_map.as_ref(),
        "configMap",
        "configMap",
        |source, path, errors| {
            if source.name.is_empty() {
                errors.push(required(&path.child("name"), ""));
            }
            validate_mode(source.default_mode, &path.child("defaultMode"), errors);
            validate_items(slice(&source.items), &path.child("items"), errors);
        },
    );
    sources.texts(volume.azure_file.as_ref(), "azureFile", |source| {
        vec![
            ("secretName", &source.secret_name),
            ("shareName", &source.share_name),
        ]
    });
    sources.texts(volume.vsphere_volume.as_ref(), "vsphereVolume", |source| {
        vec![("volumePath", &source.volume_path)]
    });
    sources.texts(
        volume.photon_persistent_disk.as_ref(),
        "photonPersistentDisk",
        |source| vec![("pdID", &source.pd_id)],
    );
    sources.texts(
        volume.portworx_volume.as_ref(),
        "portworxVolume",
        |source| vec![("volumeID", &source.volume_id)],
    );
    sources.check(
        volume.azure_disk.as_ref(),
        "azureDisk",
        "azureDisk",
        validate_azure_disk,
    );
    sources.check(
        volume.storageos.as_ref(),
        "storageos",
        "storageos",
        |source, path, errors| {
            let (name, namespace) = (
                source.volume_name.as_deref().unwrap_or(""),
                source.volume_namespace.as_deref().unwrap_or(""),
            );
            if name.is_empty() {
                errors.push(required(&path.child("volumeName"), ""));
            } else {
                invalid_each(
                    errors,
                    &path.child("volumeName"),
                    name,
                    name::dns1123_label(name),
                );
            }
            if !namespace.is_empty() {
                invalid_each(
                    errors,
                    &path.child("volumeNamespace"),
                    namespace,
                    name::dns1123_label(namespace),
                );
            }
            if source
                .secret_ref
                .as_ref()
                .is_some_and(|reference| reference.name.is_empty())
            {
                errors.push(required(&path.child("secretRef").child("name"), ""));
            }
        },
    );
    sources.check(
        volume.projected.as_ref(),
        "projected",
        "projected",
        validate_projected,
    );
    sources.texts(volume.scale_io.as_ref(), "scaleIO", |source| {
        vec![
            ("gateway", &source.gateway),
            ("system", &source.system),
            ("volumeName", source.volume_name.as_deref().unwrap_or("")),
        ]
    });
    sources.check(volume.csi.as_ref(), "csi", "csi", validate_csi);
    sources.check(
        volume.ephemeral.as_ref(),
        "ephemeral",
        "ephemeral",
        |source, path, errors| match &source.volume_claim_template {
            None => errors.push(required(&path.child("volumeClaimTemplate"), "")),
            Some(template) => {
                validate_claim_template(template, &path.child("volumeClaimTemplate"), errors)
            }
        },
    );
    if sources.count == 1
        && volume.ephemeral.is_some()
        && !pod_name.is_empty()
        && !volume.name.is_empty()
    {
        let claim = format!("{pod_name}-{}", volume.name);
        for complaint in name::dns1123_subdomain(&claim) {
            let detail = format!("PVC name {claim:?}: {complaint}");
            sources
                .errors
                .push(invalid(&path.child("name"), &volume.name, detail));
        }
    }
    sources.check(
        volume.image.as_ref(),
        "image",
        "image",
        |source, path, errors| {
            if is_pod && source.reference.as_deref().unwrap_or("").is_empty() {
                errors.push(required(&path.child("reference"), ""));
            }
            validate_pull_policy(
                source.pull_policy.as_deref(),
                &path.child("pullPolicy"),
                errors,
            );
        },
    );
    if sources.count == 0 {
        errors.push(required(path, "must specify a volume type"));
    }
}

fn validate_partition(partition: Option<i32>, path: &Path<'_>, errors: &mut ErrorList) {
    if let Some(partition) = partition.filter(|partition| !(0..=255).contains(partition)) {
        errors.push(invalid(
            &path.child("partition"),
            &partition,
            name::range_complaint(1, 255),
        ));
    }
}

pub(super) fn validate_mode(mode: Option<i32>, path: &Path<'_>, errors: &mut ErrorList) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        errors.push(invalid(path, &mode, FILE_MODE));
    }
}

fn validate_items(items: &[KeyToPath], path: &Path<'_>, errors: &mut ErrorList) {
    for (index, item) in items.iter().enumerate() {
        validate_item(item, &path.index(index), errors);
    }
}

pub(super) fn validate_item(item: &KeyToPath, path: &Path<'_>, errors: &mut ErrorList) {
    for (field, text) in [("key", &item.key), ("path", &item.path)] {
        if text.is_empty() {
            errors.push(required(&path.child(field), ""));
        }
    }
    validate_local_path(&item.path, &path.child("path"), errors);
    validate_mode(item.mode, &path.child("mode"), errors);
}

pub(super) fn has_backsteps(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

fn validate_no_backsteps(text: &str, path: &Path<'_>, errors: &mut ErrorList) {
    if has_backsteps(text) {
        errors.push(invalid(path, text, "must not contain '..'"));
    }
}

pub(super) fn validate_local_descending_path(text: &str, path: &Path<'_>, errors: &mut ErrorList) {
    if text.starts_with('/') {
        errors.push(invalid(path, text, "must be a relative path"));
    }
    validate_no_backsteps(text, path, errors);
}

/// A relative path that neither steps back nor starts with the dots that atomic updates of volumes use.
pub(super) fn validate_local_path(text: &str, path: &Path<'_>, errors: &mut ErrorList) {
    validate_local_descending_path(text, path, errors);
    if text.starts_with("..") && !text.starts_with("../") {
        errors.push(invalid(path, text, "must not start with '..'"));
    }
}

fn validate_iscsi(source: &ISCSIVolumeSource, path: &Path<'_>, errors: &mut ErrorList) {
    if source.target_portal.is_empty() {
        errors.push(required(&path.child("targetPortal"), ""));
    }
    if source.iqn.is_empty() {
        errors.push(required(&path.child("iqn"), ""));
    } else if !["iqn", "eui", "naa"]
        .iter()
        .any(|prefix| source.iqn.starts_with(prefix))
    {
        errors.push(invalid(
            &path.child("iqn"),
            &source.iqn,
            "must be valid format starting with iqn, eui, or naa",
        ));
    } else if !is_iscsi_name(&source.iqn) {
        errors.push(invalid(
            &path.child("iqn"),
            &source.iqn,
            "must be valid format",
        ));
    }
    if !(0..=255).contains(&source.lun) {
        errors.push(invalid(
            &path.child("lun"),
            &source.lun,
            name::range_complaint(0, 255),
        ));
    }
    let uses_chap =
        source.chap_auth_discovery == Some(true) || source.chap_auth_session == Some(true);
    if uses_chap && source.secret_ref.is_none() {
        errors.push(required(&path.child("secretRef"), ""));
    }
    if source
        .secret_ref
        .as_ref()
        .is_some_and(|reference| reference.name.is_empty())
    {
        errors.push(required(&path.child("secretRef").child("name"), ""));
    }
    if let Some(initiator) = source
        .initiator_name
        .as_deref()
        .filter(|initiator| !is_iscsi_name(initiator))
    {
        errors.push(invalid(
            &path.child("initiatorname"),
            initiator,
            "must be valid format",
        ));
    }
}

/// `iqn.2015-02.example.com:name`, `eui.` + 16 or `naa.` + 32 letters and digits.
fn is_iscsi_name(text: &str) -> bool {
    let fixed = |prefix: &str, length: usize| {
        text.strip_prefix(prefix)
            .and_then(|rest| rest.char_indices().nth(1).map(|(index, _)| &rest[index..]))
            .is_some_and(|rest| {
                rest.len() == length && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
            })
    };
    if text.starts_with("eui") || text.starts_with("naa") {
        return fixed("eui", 16) || fixed("naa", 32);
    }
    let Some(rest) = text.strip_prefix("iqn.") else {
        return false;
    };
    let Some((authority, target)) = rest.split_once(':') else {
        return false;
    };
    let bytes = authority.as_bytes();
    let dated = bytes.len() > 8
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && bytes[4] == b'-'
        && bytes[5..7].iter().all(u8::is_ascii_digit)
        && bytes[7] == b'.'
        && bytes[8..]
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    dated
        && !target.is_empty()
        && !target
            .chars()
            .any(|c| ",;*&$|".contains(c) || c.is_ascii_whitespace())
}

fn validate_fc(source: &FCVolumeSource, path: &Path<'_>, errors: &mut ErrorList) {
    let (targets, ids) = (slice(&source.target_wwns), slice(&source.wwids));
    let targets_path = path.child("targetWWNs");
    if targets.is_empty() && ids.is_empty() {
        errors.push(required(
            &targets_path,
            "must specify either targetWWNs or wwids, but not both",
        ));
    }
    if !targets.is_empty() && !ids.is_empty() {
        errors.push(invalid(
            &targets_path,
            targets,
            "targetWWNs and wwids can not be specified simultaneously",
        ));
    }
    if !targets.is_empty() {
        match source.lun {
            None => errors.push(required(
                &path.child("lun"),
                "lun is required if targetWWNs is specified",
            )),
            Some(lun) if !(0..=255).contains(&lun) => {
                errors.push(invalid(
                    &path.child("lun"),
                    &lun,
                    name::range_complaint(0, 255),
                ));
            }
            Some(_) => {}
        }
    }
}

fn validate_quobyte(source: &QuobyteVolumeSource, path: &Path<'_>, errors: &mut ErrorList) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    if source.registry.is_empty() {
        errors.push(required(&path.child("registry"), PAIRS));
    } else if source
        .tenant
        .as_ref()
        .is_some_and(|tenant| tenant.len() >= 65)
    {
        errors.push(required(
            &path.child("tenant"),
            "must be a UUID and may not exceed a length of 64 characters",
        ));
    } else {
        for pair in source.registry.split(',') {
            let good = pair.rsplit_once(':').is_some_and(|(host, _)| {
                !host.contains(':') || (host.starts_with('[') && host.ends_with(']'))
            });
            if !good {
                errors.push(invalid(&path.child("registry"), &source.registry, PAIRS));
            }
        }
    }
    if source.volume.is_empty() {
        errors.push(required(&path.child("volume"), ""));
    }
}

fn validate_azure_disk(source: &AzureDiskVolumeSource, path: &Path<'_>, errors: &mut ErrorList) {
    for (field, text) in [
        ("diskName", &source.disk_name),
        ("diskURI", &source.disk_uri),
    ] {
        if text.is_empty() {
            errors.push(required(&path.child(field), ""));
        }
    }
    const MODES: &[&str] = &["None", "ReadOnly", "ReadWrite"];
    const KINDS: &[&str] = &["Dedicated", "Managed", "Shared"];
    if let Some(mode) = source
        .caching_mode
        .as_deref()
        .filter(|mode| !MODES.contains(mode))
    {
        errors.push(not_supported(&path.child("cachingMode"), mode, MODES));
    }
    let Some(kind) = source.kind.as_deref() else {
        return;
    };
    if !KINDS.contains(&kind) {
        errors.push(not_supported(&path.child("kind"), kind, KINDS));
    }
    let (prefix, form) = if kind == "Managed" {
        (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        )
    } else {
        (
            "https://",
            "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd",
        )
    };
    if !source.disk_uri.starts_with(prefix) {
        errors.push(not_supported(
            &path.child("diskURI"),
            &source.disk_uri,
            &[form],
        ));
    }
}

fn validate_csi(source: &CSIVolumeSource, path: &Path<'_>, errors: &mut ErrorList) {
    let driver_path = path.child("driver");
    if source.driver.is_empty() {
        errors.push(required(&driver_path, ""));
    } else {
        if source.driver.len() > 63 {
            errors.push(too_long(&driver_path, 63));
        }
        invalid_each(
            errors,
            &driver_path,
            &source.driver,
            name::dns1123_subdomain(&source.driver.to_lowercase()),
        );
    }
    if let Some(reference) = &source.node_publish_secret_ref {
        if reference.name.is_empty() {
            errors.push(required(
                &path.child("nodePublishSecretRef").child("name"),
                "",
            ));
        } else {
            invalid_each(
                errors,
                &path.child("name"),
                &reference.name,
                name::dns1123_subdomain(&reference.name),
            );
        }
    }
}
