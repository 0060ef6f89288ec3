//! Validation of security contexts: users and groups, seccomp, AppArmor, sysctls, and what excludes what.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
    Sysctl, WindowsSecurityContextOptions,
};

use super::containers::as_container;
use crate::error::{
    ErrorList, FieldError, duplicate, forbidden, invalid, invalid_each, not_supported,
    print_go_struct, required, too_long,
};
use crate::name;
use crate::path::Path;

use super::volumes::validate_local_descending_path;

fn validate_id(id: Option<i64>, path: &Path<'_>, errors: &mut ErrorList) {
    if let Some(id) = id {
        errors.extend(
            name::in_range(id, 0, i64::from(i32::MAX))
                .into_iter()
                .map(|text| invalid(path, &id, text)),
        );
    }
}

pub(super) fn validate_container(
    context: &SecurityContext,
    host_users: bool,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    validate_id(context.run_as_user, &path.child("runAsUser"), errors);
    validate_id(context.run_as_group, &path.child("runAsGroup"), errors);
    if let Some(mount) = context.proc_mount.as_deref() {
        let mount_path = path.child("procMount");
        if !matches!(mount, "Default" | "Unmasked") {
            errors.push(not_supported(&mount_path, mount, &["Default", "Unmasked"]));
        }
        if host_users && mount == "Unmasked" {
            errors.push(invalid(
                &mount_path,
                mount,
                "`hostUsers` must be false to use `Unmasked`",
            ));
        }
    }
    validate_seccomp(
        context.seccomp_profile.as_ref(),
        &path.child("seccompProfile"),
        errors,
    );
    if context.allow_privilege_escalation == Some(false) {
        if context.privileged == Some(true) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(refused(context, path, detail));
        }
        let added = context
            .capabilities
            .iter()
            .flat_map(|capabilities| capabilities.add.iter().flatten());
        for _ in added.filter(|capability| *capability == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(refused(context, path, detail));
        }
    }
    validate_windows(
        context.windows_options.as_ref(),
        &path.child("windowsOptions"),
        errors,
    );
    validate_app_armor(
        context.app_armor_profile.as_ref(),
        &path.child("appArmorProfile"),
        errors,
    );
}

pub(super) fn validate_pod(
    context: &PodSecurityContext,
    spec: &PodSpec,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    validate_id(context.fs_group, &path.child("fsGroup"), errors);
    validate_id(context.run_as_user, &path.child("runAsUser"), errors);
    validate_id(context.run_as_group, &path.child("runAsGroup"), errors);
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        validate_id(
            Some(*group),
            &path.child("supplementalGroups").index(index),
            errors,
        );
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(invalid(&path.child("shareProcessNamespace"), &true, detail));
    }
    validate_sysctls(
        context.sysctls.as_deref().unwrap_or(&[]),
        spec,
        &path.child("sysctls"),
        errors,
    );
    for (field, value, supported) in [
        (
            "fsGroupChangePolicy",
            &context.fs_group_change_policy,
            &["Always", "OnRootMismatch"],
        ),
        (
            "supplementalGroupsPolicy",
            &context.supplemental_groups_policy,
            &["Merge", "Strict"],
        ),
        (
            "seLinuxChangePolicy",
            &context.se_linux_change_policy,
            &["MountOption", "Recursive"],
        ),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !supported.contains(value)) {
            errors.push(not_supported(&path.child(field), value, supported));
        }
    }
    validate_seccomp(
        context.seccomp_profile.as_ref(),
        &path.child("seccompProfile"),
        errors,
    );
    validate_windows(
        context.windows_options.as_ref(),
        &path.child("windowsOptions"),
        errors,
    );
    validate_app_armor(
        context.app_armor_profile.as_ref(),
        &path.child("appArmorProfile"),
        errors,
    );
}

fn validate_sysctls(sysctls: &[Sysctl], spec: &PodSpec, path: &Path<'_>, errors: &mut ErrorList) {
    for (index, sysctl) in sysctls.iter().enumerate() {
        let path = path.index(index);
        let path = path.child("name");
        let sysctl_name = sysctl.name.as_str();
        if sysctl_name.is_empty() {
            errors.push(required(&path, ""));
        } else if !is_sysctl_name(sysctl_name) {
            let detail = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(invalid(&path, sysctl_name, detail));
        } else if sysctls[..index]
            .iter()
            .any(|other| other.name == sysctl.name)
        {
            errors.push(duplicate(&path, sysctl_name));
        }
        let normal = sysctl_name.replace('/', ".");
        let ipc = matches!(normal.as_str(), "kernel.sem")
            || ["kernel.shm", "kernel.msg", "fs.mqueue."]
                .iter()
                .any(|prefix| normal.starts_with(prefix));
        if spec.host_network == Some(true) && normal.starts_with("net.") {
            errors.push(invalid(
                &path,
                sysctl_name,
                "may not be specified when 'hostNetwork' is true",
            ));
        } else if spec.host_ipc == Some(true) && ipc {
            errors.push(invalid(
                &path,
                sysctl_name,
                "may not be specified when 'hostIPC' is true",
            ));
        }
    }
}

fn is_sysctl_name(text: &str) -> bool {
    let segment = |segment: &str| {
        let edge = |byte: Option<&u8>| {
            byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        edge(segment.as_bytes().first())
            && edge(segment.as_bytes().last())
            && segment.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
            })
    };
    text.len() <= 253 && text.split(['.', '/']).all(segment)
}

/// A container's security context that contradicts itself.
fn refused(context: &SecurityContext, path: &Path<'_>, detail: &str) -> FieldError {
    let capabilities = context
        .capabilities
        .as_ref()
        .map(|own| serde_json::json!({"Add": own.add, "Drop": own.drop}));
    let mut error = invalid(path, "", detail);
    error.bad_value = print_go_struct(&[
        ("Capabilities", &capabilities),
        ("Privileged", &context.privileged),
        ("SELinuxOptions", &context.se_linux_options),
        ("WindowsOptions", &context.windows_options),
        ("RunAsUser", &context.run_as_user),
        ("RunAsGroup", &context.run_as_group),
        ("RunAsNonRoot", &context.run_as_non_root),
        ("ReadOnlyRootFilesystem", &context.read_only_root_filesystem),
        (
            "AllowPrivilegeEscalation",
            &context.allow_privilege_escalation,
        ),
        ("ProcMount", &context.proc_mount),
        ("SeccompProfile", &context.seccomp_profile),
        ("AppArmorProfile", &context.app_armor_profile),
    ]);
    error
}

fn validate_seccomp(profile: Option<&SeccompProfile>, path: &Path<'_>, errors: &mut ErrorList) {
    let Some(profile) = profile else { return };
    match profile.type_.as_str() {
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        "" => errors.push(required(
            &path.child("type"),
            "type is required when seccompProfile is set",
        )),
        other => {
            errors.push(not_supported(
                &path.child("type"),
                other,
                &["Localhost", "RuntimeDefault", "Unconfined"],
            ));
        }
    }
    let file_path = path.child("localhostProfile");
    match (
        profile.type_ == "Localhost",
        profile.localhost_profile.as_deref(),
    ) {
        (true, None) => errors.push(required(
            &file_path,
            "must be set when seccomp type is Localhost",
        )),
        (true, Some(file)) => validate_local_descending_path(file, &file_path, errors),
        (false, Some(file)) => {
            let mut error = invalid(
                &file_path,
                "",
                "can only be set when seccomp type is Localhost",
            );
            error.bad_value =
                print_go_struct(&[("Type", &profile.type_), ("LocalhostProfile", &file)]);
            errors.push(error);
        }
        (false, None) => {}
    }
}

fn validate_app_armor(profile: Option<&AppArmorProfile>, path: &Path<'_>, errors: &mut ErrorList) {
    let Some(profile) = profile else { return };
    let file_path = path.child("localhostProfile");
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("Localhost", None) => errors.push(required(
            &file_path,
            "must be set when AppArmor type is Localhost",
        )),
        ("Localhost", Some(file)) => {
            if file.trim() != file {
                errors.push(invalid(
                    &file_path,
                    file,
                    "must not be padded with whitespace",
                ));
            } else if file.is_empty() {
                errors.push(required(
                    &file_path,
                    "must be set when AppArmor type is Localhost",
                ));
            }
            if file.len() > 4095 {
                errors.push(too_long(&file_path, 4095));
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(file)) => {
            errors.push(invalid(
                &file_path,
                file,
                "can only be set when AppArmor type is Localhost",
            ));
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => errors.push(required(
            &path.child("type"),
            "type is required when appArmorProfile is set",
        )),
        (other, _) => {
            errors.push(not_supported(
                &path.child("type"),
                other,
                &["Localhost", "RuntimeDefault", "Unconfined"],
            ));
        }
    }
}

fn validate_windows(
    options: Option<&WindowsSecurityContextOptions>,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let Some(options) = options else { return };
    if let Some(spec_name) = &options.gmsa_credential_spec_name {
        invalid_each(
            errors,
            &path.child("gmsaCredentialSpecName"),
            spec_name,
            name::dns1123_subdomain(spec_name),
        );
    }
    if let Some(spec) = &options.gmsa_credential_spec {
        let path = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.push(invalid(
                &path,
                spec,
                "gmsaCredentialSpec cannot be an empty string",
            ));
        } else if spec.len() > 64 * 1024 {
            errors.push(invalid(
                &path,
                spec,
                "gmsaCredentialSpec size must be under 64 KiB",
            ));
        }
    }
    if let Some(user_name) = &options.run_as_user_name {
        let path = path.child("runAsUserName");
        errors.extend(
            windows_user_complaints(user_name)
                .into_iter()
                .map(|text| invalid(&path, user_name, text)),
        );
    }
}

fn windows_user_complaints(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["runAsUserName cannot be an empty string".to_string()];
    }
    if text.chars().any(|character| character.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters".to_string()];
    }
    let (domain, user) = match text.split_once('\\') {
        Some((_, rest)) if rest.contains('\\') => {
            return vec!["runAsUserName cannot contain more than one backslash".to_string()];
        }
        Some((domain, user)) => (Some(domain), user),
        None => (None, text),
    };
    let mut complaints = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            complaints
                .push("runAsUserName's Domain length must be under 256 characters".to_string());
        }
        let net_bios = (1..=15).contains(&domain.chars().count())
            && !domain.starts_with('.')
            && !domain
                .chars()
                .any(|character| "\\/:*?\"<>|".contains(character));
        let dns = domain.split('.').all(|label| {
            label.len() <= 63
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
        if !net_bios && !dns {
            complaints.push(
                "runAsUserName's Domain doesn't match the NetBios nor the DNS format".to_string(),
            );
        }
    }
    if user.is_empty() {
        complaints.push("runAsUserName's User cannot be empty".to_string());
    } else if user.len() > 104 {
        complaints
            .push("runAsUserName's User length must not be longer than 104 characters".to_string());
    }
    if !user.is_empty() && user.chars().all(|character| matches!(character, '.' | ' ')) {
        complaints.push("runAsUserName's User cannot contain only periods or spaces".to_string());
    }
    if user
        .chars()
        .any(|character| "\"/\\:;|=,+*?<>@[]".contains(character))
    {
        complaints.push(
            "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]"
                .to_string(),
        );
    }
    complaints
}

/// Calls `visit` with every container of the pod and its path: init, regular, ephemeral.
pub(super) fn visit_containers(
    spec: &PodSpec,
    path: &Path<'_>,
    mut visit: impl FnMut(&Container, &Path<'_>),
) {
    let init_path = path.child("initContainers");
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        visit(container, &init_path.index(index));
    }
    let containers_path = path.child("containers");
    for (index, container) in spec.containers.iter().enumerate() {
        visit(container, &containers_path.index(index));
    }
    let ephemeral_path = path.child("ephemeralContainers");
    for (index, container) in spec.ephemeral_containers.iter().flatten().enumerate() {
        visit(&as_container(container), &ephemeral_path.index(index));
    }
}

/// A pod in a user namespace of its own shares no other namespace with the host.
pub(super) fn validate_host_users(spec: &PodSpec, path: &Path<'_>, errors: &mut ErrorList) {
    if spec.host_users != Some(false) {
        return;
    }
    const DETAIL: &str = "when `hostUsers` is false";
    for (field, shared) in [
        ("hostNetwork", spec.host_network),
        ("HostPID", spec.host_pid),
        ("HostIPC", spec.host_ipc),
    ] {
        if shared == Some(true) {
            errors.push(forbidden(&path.child(field), DETAIL));
        }
    }
    visit_containers(spec, path, |container, path| {
        if container
            .volume_devices
            .as_ref()
            .is_some_and(|devices| !devices.is_empty())
        {
            errors.push(forbidden(&path.child("volumeDevices"), DETAIL));
        }
    });
}

/// Host-process containers (Windows): all or none, and on the host's network.
pub(super) fn validate_host_process(spec: &PodSpec, path: &Path<'_>, errors: &mut ErrorList) {
    let of_pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.windows_options.as_ref()?.host_process);
    let (mut container_count, mut host_process_count) = (0, 0);
    visit_containers(spec, path, |container, path| {
        container_count += 1;
        let own = container
            .security_context
            .as_ref()
            .and_then(|context| context.windows_options.as_ref()?.host_process);
        if let (Some(of_pod), Some(own)) = (of_pod, own)
            && of_pod != own
        {
            let detail = format!(
                "pod hostProcess value must be identical if both are specified, was {of_pod}"
            );
            let context_path = path.child("securityContext");
            errors.push(invalid(
                &context_path.child("windowsOptions").child("hostProcess"),
                &own,
                detail,
            ));
        }
        host_process_count += u32::from(own.or(of_pod) == Some(true));
    });
    if host_process_count == 0 {
        return;
    }
    if host_process_count != container_count {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.push(invalid(path, "", detail));
    }
    if spec.host_network != Some(true) {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.push(invalid(&path.child("hostNetwork"), &false, detail));
    }
}

/// Fields of the one operating system in a pod that says it is for the other.
pub(super) fn validate_os(spec: &PodSpec, path: &Path<'_>, errors: &mut ErrorList) {
    let Some(os) = &spec.os else { return };
    let context = spec.security_context.as_ref();
    match os.name.as_str() {
        "" => errors.push(required(&path.child("os").child("name"), "")),
        "linux" => {
            const DETAIL: &str = "windows options cannot be set for a linux pod";
            if context.is_some_and(|context| context.windows_options.is_some()) {
                errors.push(forbidden(
                    &path.child("securityContext").child("windowsOptions"),
                    DETAIL,
                ));
            }
            visit_containers(spec, path, |container, path| {
                if container
                    .security_context
                    .as_ref()
                    .is_some_and(|context| context.windows_options.is_some())
                {
                    errors.push(forbidden(
                        &path.child("securityContext").child("windowsOptions"),
                        DETAIL,
                    ));
                }
            });
        }
        "windows" => validate_no_linux_fields(spec, path, errors),
        other => errors.push(not_supported(
            &path.child("os"),
            other,
            &["linux", "windows"],
        )),
    }
}

fn validate_no_linux_fields(spec: &PodSpec, path: &Path<'_>, errors: &mut ErrorList) {
    const DETAIL: &str = "cannot be set for a windows pod";
    let context_path = path.child("securityContext");
    for (field, is_set) in [
        ("hostUsers", spec.host_users.is_some()),
        ("hostPID", spec.host_pid == Some(true)),
        ("hostIPC", spec.host_ipc == Some(true)),
        (
            "shareProcessNamespace",
            spec.share_process_namespace.is_some(),
        ),
    ] {
        if is_set {
            errors.push(forbidden(&path.child(field), DETAIL));
        }
    }
    if let Some(context) = &spec.security_context {
        for (field, is_set) in [
            ("appArmorProfile", context.app_armor_profile.is_some()),
            ("seLinuxOptions", context.se_linux_options.is_some()),
            ("seccompProfile", context.seccomp_profile.is_some()),
            ("fsGroup", context.fs_group.is_some()),
            (
                "fsGroupChangePolicy",
                context.fs_group_change_policy.is_some(),
            ),
            (
                "sysctls",
                context
                    .sysctls
                    .as_ref()
                    .is_some_and(|sysctls| !sysctls.is_empty()),
            ),
            ("runAsUser", context.run_as_user.is_some()),
            ("runAsGroup", context.run_as_group.is_some()),
            ("supplementalGroups", context.supplemental_groups.is_some()),
            (
                "supplementalGroupsPolicy",
                context.supplemental_groups_policy.is_some(),
            ),
            (
                "seLinuxChangePolicy",
                context.se_linux_change_policy.is_some(),
            ),
        ] {
            if is_set {
                errors.push(forbidden(&context_path.child(field), DETAIL));
            }
        }
    }
    visit_containers(spec, path, |container, path| {
        let Some(context) = &container.security_context else {
            return;
        };
        let path = path.child("securityContext");
        for (field, is_set) in [
            ("appArmorProfile", context.app_armor_profile.is_some()),
            ("seLinuxOptions", context.se_linux_options.is_some()),
            ("seccompProfile", context.seccomp_profile.is_some()),
            ("capabilities", context.capabilities.is_some()),
            (
                "readOnlyRootFilesystem",
                context.read_only_root_filesystem.is_some(),
            ),
            ("privileged", context.privileged.is_some()),
            (
                "allowPrivilegeEscalation",
                context.allow_privilege_escalation.is_some(),
            ),
            ("procMount", context.proc_mount.is_some()),
            ("runAsUser", context.run_as_user.is_some()),
            ("runAsGroup", context.run_as_group.is_some()),
        ] {
            if is_set {
                errors.push(forbidden(&path.child(field), DETAIL));
            }
        }
    });
}

const APP_ARMOR_PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER_PREFIX: &str = "container.seccomp.security.alpha.kubernetes.io/";

/// Profiles in annotations, the form before there were fields.
pub(super) fn validate_annotations(
    annotations: &BTreeMap<String, String>,
    spec: &PodSpec,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    for (key, profile) in annotations {
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER_PREFIX) {
            match profile.as_str() {
                "runtime/default" | "docker/default" | "unconfined" => {}
                profile => match profile.strip_prefix("localhost/") {
                    Some(file) => validate_local_descending_path(file, &path.child(key), errors),
                    None => errors.push(invalid(
                        &path.child(key),
                        profile,
                        "must be a valid seccomp profile",
                    )),
                },
            }
        }
        if let Some(container_name) = key.strip_prefix(APP_ARMOR_PREFIX) {
            let mut found = false;
            visit_containers(spec, path, |container, _| {
                found |= container.name == container_name
            });
            if !found {
                errors.push(invalid(
                    &path.key(key),
                    container_name,
                    "container not found",
                ));
            }
            if !matches!(profile.as_str(), "" | "runtime/default" | "unconfined")
                && !profile.starts_with("localhost/")
            {
                let detail = format!("invalid AppArmor profile name: {profile:?}");
                errors.push(invalid(&path.key(key), profile, detail));
            }
        }
    }
}

/// On creation, profiles given both ways have to agree.
pub(super) fn validate_annotations_match(
    annotations: &BTreeMap<String, String>,
    spec: &PodSpec,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let of_pod = spec.security_context.as_ref();
    let seccomp_of_pod = of_pod.and_then(|context| context.seccomp_profile.as_ref());
    if let (Some(profile), Some(annotation)) = (seccomp_of_pod, annotations.get(SECCOMP_POD)) {
        let path = path.child("securityContext");
        let default = &["runtime/default", "docker/default"];
        validate_profile_match(
            "seccomp",
            &profile.type_,
            profile.localhost_profile.as_deref(),
            default,
            annotation,
            &path.child("seccompProfile"),
            errors,
        );
    }
    let windows = spec.os.as_ref().is_some_and(|os| os.name == "windows");
    let app_armor_of_pod = of_pod.and_then(|context| context.app_armor_profile.as_ref());
    visit_containers(spec, path, |container, path| {
        let context = container.security_context.as_ref();
        let path = path.child("securityContext");
        let seccomp = context.and_then(|context| context.seccomp_profile.as_ref());
        if let (Some(profile), Some(annotation)) = (
            seccomp,
            annotations.get(&format!("{SECCOMP_CONTAINER_PREFIX}{}", container.name)),
        ) {
            let default = &["runtime/default", "docker/default"];
            validate_profile_match(
                "seccomp",
                &profile.type_,
                profile.localhost_profile.as_deref(),
                default,
                annotation,
                &path.child("seccompProfile"),
                errors,
            );
        }
        let app_armor = context
            .and_then(|context| context.app_armor_profile.as_ref())
            .or(app_armor_of_pod);
        if let (Some(profile), Some(annotation), false) = (
            app_armor,
            annotations.get(&format!("{APP_ARMOR_PREFIX}{}", container.name)),
            windows,
        ) {
            validate_profile_match(
                "apparmor",
                &profile.type_,
                profile.localhost_profile.as_deref(),
                &["runtime/default"],
                annotation,
                &path.child("appArmorProfile"),
                errors,
            );
        }
    });
}

fn validate_profile_match(
    what: &str,
    type_: &str,
    file: Option<&str>,
    defaults: &[&str],
    annotation: &str,
    path: &Path<'_>,
    errors: &mut ErrorList,
) {
    let types_match = match type_ {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => defaults.contains(&annotation),
        "Localhost" => annotation.starts_with("localhost/"),
        _ => true,
    };
    if !types_match {
        errors.push(forbidden(
            &path.child("type"),
            format!("{what} type in annotation and field must match"),
        ));
    } else if type_ == "Localhost" && annotation.strip_prefix("localhost/") != file {
        errors.push(forbidden(
            &path.child("localhostProfile"),
            format!("{what} profile in annotation and field must match"),
        ));
    }
}

/// AppArmor annotations are set once and for all.
pub(super) fn is_app_armor_annotation(key: &str) -> bool {
    key.starts_with(APP_ARMOR_PREFIX)
}
