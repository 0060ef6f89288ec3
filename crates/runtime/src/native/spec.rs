//! From CRI's configuration of a container to what the zygote's child carries out.
//!
//! Pure but for looking at the node's mount table and device nodes. Everything that the pod's author
//! can get wrong is refused here, at creation, by name.

use std::path::{Component, Path, PathBuf};

use super::capabilities;
use super::devices;
use super::protocol::{DeviceSpec, MountSpec, PidNamespace, ProcessSpec, Propagation, UserSpec};
use super::records::Container;
use crate::image_roots::ImageConfig;
use crate::service::{
    ContainerConfig, MountPropagation, NamespaceMode, RuntimeError, SecurityContext,
};

fn invalid(text: impl Into<String>) -> RuntimeError {
    RuntimeError::InvalidArgument(text.into())
}

/// What the container executes, by Kubernetes' rules for `command` and `args`.
pub fn arguments(
    config: &ContainerConfig,
    image: &ImageConfig,
) -> Result<Vec<String>, RuntimeError> {
    let mut all = config.command.clone();
    if config.command.is_empty() {
        all.extend(image.entrypoint.iter().cloned());
    }
    if !config.args.is_empty() {
        all.extend(config.args.iter().cloned());
    } else if config.command.is_empty() {
        all.extend(image.cmd.iter().cloned());
    }
    if all.is_empty() {
        return Err(invalid("no command specified"));
    }
    Ok(all)
}

/// The image's environment with the container's over it.
pub fn environment(config: &ContainerConfig, image: &ImageConfig) -> Vec<String> {
    let mut env: Vec<String> = image.env.clone();
    for (name, value) in &config.env {
        let prefix = format!("{name}=");
        env.retain(|line| !line.starts_with(&prefix));
        env.push(format!("{prefix}{value}"));
    }
    env
}

/// `SIGTERM`, `TERM`, `15` or `RTMIN+3` as a number.
pub fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = short.strip_prefix("RTMIN") {
        let offset: i32 = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('+')?.parse().ok()?
        };
        return Some(34 + offset).filter(|n| *n <= 64);
    }
    if let Some(offset) = short.strip_prefix("RTMAX") {
        let offset: i32 = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('-')?.parse().ok()?
        };
        return Some(64 - offset).filter(|n| *n >= 34);
    }
    NAMES.iter().position(|n| *n == short).map(|n| n as i32 + 1)
}

/// The stop signal that holds: the container's, else the image's, else SIGTERM.
pub fn stop_signal(config: &ContainerConfig, image: &ImageConfig) -> Result<i32, RuntimeError> {
    match config
        .stop_signal
        .as_deref()
        .or(image.stop_signal.as_deref())
        .filter(|s| !s.is_empty())
    {
        None => Ok(libc::SIGTERM),
        Some(name) => {
            signal_number(name).ok_or_else(|| invalid(format!("unknown stop signal \"{name}\"")))
        }
    }
}

/// Which process namespace; only these three exist.
pub fn pid_namespace(security: &SecurityContext, sandbox: NamespaceMode) -> PidNamespace {
    match (security.pid, sandbox) {
        (NamespaceMode::Node, _) | (_, NamespaceMode::Node) => PidNamespace::Node,
        (_, NamespaceMode::Pod) => PidNamespace::Sandbox,
        (_, NamespaceMode::Container) => PidNamespace::Own,
    }
}

/// The process as configured; capabilities that `permitted` lacks are left out and named in `warnings`.
pub fn process(
    config: &ContainerConfig,
    image: &ImageConfig,
    permitted: u64,
    warnings: &mut Vec<String>,
) -> Result<ProcessSpec, RuntimeError> {
    let security = &config.security;
    let wanted = capabilities::of(
        security.privileged,
        &security.add_capabilities,
        &security.drop_capabilities,
    )
    .map_err(invalid)?;
    let missing = capabilities::names(wanted & !permitted);
    if !missing.is_empty() {
        warnings.push(format!(
            "this machine does not give {}: the container runs without",
            missing.join(", ")
        ));
    }
    let number = |what: &str, value: Option<i64>| match value {
        None => Ok(None),
        Some(v) => u32::try_from(v)
            .ok()
            .filter(|v| *v != u32::MAX)
            .map(Some)
            .ok_or_else(|| invalid(format!("{what} {v} is out of range"))),
    };
    let uid = number("runAsUser", security.run_as_user)?;
    let gid = number("runAsGroup", security.run_as_group)?;
    let mut supplemental_groups = Vec::new();
    for group in &security.supplemental_groups {
        supplemental_groups.extend(number("supplementalGroups", Some(*group))?);
    }
    let working_dir = if config.working_dir.is_empty() {
        image.working_dir.clone()
    } else {
        config.working_dir.clone()
    };
    if !working_dir.is_empty() && !working_dir.starts_with('/') {
        return Err(invalid(format!(
            "working directory \"{working_dir}\" is not absolute"
        )));
    }
    Ok(ProcessSpec {
        args: arguments(config, image)?,
        env: environment(config, image),
        working_dir,
        user: UserSpec {
            uid,
            gid,
            supplemental_groups,
            image_user: image.user.clone(),
        },
        capabilities: wanted & permitted,
        no_new_privs: security.no_new_privs,
        seccomp: false,
        oom_score_adj: config.resources.oom_score_adj,
        tty: config.tty,
    })
}

/// The volumes, parents before what is mounted below them in the order given.
pub fn mounts(config: &ContainerConfig) -> Result<Vec<MountSpec>, RuntimeError> {
    let mut mountinfo = None;
    let mut out = Vec::new();
    for mount in &config.mounts {
        let target = normal(&mount.container_path).ok_or_else(|| {
            invalid(format!(
                "mount path {} is not absolute",
                mount.container_path.display()
            ))
        })?;
        if target == Path::new("/") || target.starts_with("/proc") {
            return Err(invalid(format!(
                "nothing can be mounted at {}",
                target.display()
            )));
        }
        utf8(&mount.host_path)?;
        utf8(&target)?;
        if mount.propagation == MountPropagation::Bidirectional {
            let table = match &mountinfo {
                Some(table) => table,
                None => mountinfo
                    .insert(std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()),
            };
            if !is_shared(table, &mount.host_path) {
                return Err(invalid(format!(
                    "path \"{}\" is not on a shared mount, which Bidirectional propagation needs",
                    mount.host_path.display()
                )));
            }
        }
        out.push(MountSpec {
            source: mount.host_path.clone(),
            target,
            readonly: mount.readonly,
            propagation: match mount.propagation {
                MountPropagation::Private => Propagation::Private,
                MountPropagation::HostToContainer => Propagation::Slave,
                MountPropagation::Bidirectional => Propagation::Shared,
            },
        });
    }
    Ok(out)
}

fn utf8(path: &Path) -> Result<(), RuntimeError> {
    path.to_str()
        .map(drop)
        .ok_or_else(|| invalid(format!("path {} is not UTF-8", path.display())))
}

/// Absolute and without dots.
fn normal(path: &Path) -> Option<PathBuf> {
    if !path.is_absolute() {
        return None;
    }
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    Some(out)
}

/// Whether the mount that `path` lies on is shared.
fn is_shared(mountinfo: &str, path: &Path) -> bool {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    mountinfo
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let mount = PathBuf::from(fields.nth(4)?);
            let shared = fields
                .skip(1)
                .take_while(|f| *f != "-")
                .any(|f| f.starts_with("shared:"));
            path.starts_with(&mount)
                .then_some((mount.as_os_str().len(), shared))
        })
        .max_by_key(|(length, _)| *length)
        .is_some_and(|(_, shared)| shared)
}

/// Device nodes to make, and what the device cgroup allows; `None`: everything.
pub fn device_access(
    config: &ContainerConfig,
) -> Result<(Vec<DeviceSpec>, Option<Vec<String>>), RuntimeError> {
    let mut nodes = Vec::new();
    let mut allowed: Vec<String> = devices::DEFAULT_ALLOWED
        .iter()
        .map(|s| (*s).to_owned())
        .collect();
    for device in &config.devices {
        utf8(&device.host_path)?;
        let status = rustix::fs::stat(&device.host_path)
            .map_err(|e| invalid(format!("device {}: {e}", device.host_path.display())))?;
        let kind = match rustix::fs::FileType::from_raw_mode(status.st_mode) {
            rustix::fs::FileType::BlockDevice => 'b',
            rustix::fs::FileType::CharacterDevice => 'c',
            _ => {
                return Err(invalid(format!(
                    "{} is not a device node",
                    device.host_path.display()
                )));
            }
        };
        let access = if device.permissions.is_empty() {
            "rwm"
        } else {
            device.permissions.as_str()
        };
        if !access.bytes().all(|b| b"rwm".contains(&b)) {
            return Err(invalid(format!(
                "device permissions \"{access}\" are not made of r, w and m"
            )));
        }
        let (major, minor) = (
            rustix::fs::major(status.st_rdev),
            rustix::fs::minor(status.st_rdev),
        );
        allowed.push(format!("{kind} {major}:{minor} {access}"));
        let target = normal(&device.container_path)
            .filter(|t| t.starts_with("/dev"))
            .ok_or_else(|| {
                invalid(format!(
                    "device path {} is not below /dev",
                    device.container_path.display()
                ))
            })?;
        nodes.push(DeviceSpec {
            source: device.host_path.clone(),
            target,
        });
    }
    Ok((nodes, (!config.security.privileged).then_some(allowed)))
}

/// Sysctls that act on the sandbox's namespaces only.
pub fn sysctls(
    wanted: &std::collections::BTreeMap<String, String>,
    own_net: bool,
    own_ipc: bool,
) -> Result<Vec<(String, String)>, RuntimeError> {
    const IPC: [&str; 7] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    ];
    wanted
        .iter()
        .map(|(name, value)| {
            let name = name.replace('/', ".");
            let plain = !name.contains("..")
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            let net = name.starts_with("net.") && own_net;
            let ipc = (IPC.contains(&name.as_str())
                || name == "kernel.shm_rmid_forced"
                || name.starts_with("fs.mqueue."))
                && own_ipc;
            if plain && (net || ipc) {
                Ok((name, value.clone()))
            } else {
                Err(invalid(format!(
                    "sysctl \"{name}\" is not separate for a pod with these namespaces"
                )))
            }
        })
        .collect()
}

/// Cgroup of a container below its pod's.
pub fn cgroup_of(cgroup_parent: &str, container_id: &str) -> Result<String, RuntimeError> {
    let parent = cgroup_parent.trim_matches('/');
    if parent.is_empty()
        || parent
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..")
    {
        return Err(invalid(format!(
            "cgroup parent \"{cgroup_parent}\" is not a path below the root"
        )));
    }
    Ok(format!("{parent}/{container_id}"))
}

/// Who must be told that the container is gone, for messages.
pub fn describe(container: &Container) -> String {
    format!(
        "container {} ({})",
        container.config.metadata.name, container.id
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn command_and_args() {
        let image = ImageConfig {
            entrypoint: strings(&["ep"]),
            cmd: strings(&["c"]),
            ..Default::default()
        };
        let check = |command: &[&str], args: &[&str], expect: &[&str]| {
            let config = ContainerConfig {
                command: strings(command),
                args: strings(args),
                ..Default::default()
            };
            assert_eq!(arguments(&config, &image).unwrap(), strings(expect));
        };
        check(&[], &[], &["ep", "c"]);
        check(&["x"], &[], &["x"]);
        check(&[], &["a"], &["ep", "a"]);
        check(&["x"], &["a"], &["x", "a"]);
        assert!(arguments(&ContainerConfig::default(), &ImageConfig::default()).is_err());
    }

    #[test]
    fn signals() {
        for (name, expect) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("SIGSYS", Some(31)),
            ("0", None),
            ("65", None),
            ("SIGNOPE", None),
            ("", None),
        ] {
            assert_eq!(signal_number(name), expect, "{name}");
        }
    }

    #[test]
    fn parents_of_cgroups() {
        for (parent, expect) in [
            ("burstable/podx", true),
            ("/a/b/", true),
            ("", false),
            ("a/../b", false),
            ("/", false),
        ] {
            assert_eq!(cgroup_of(parent, "c").is_ok(), expect, "{parent}");
        }
    }

    #[test]
    fn sysctls_that_are_separate() {
        let check = |name: &str, net, ipc, expect| {
            let map = [(name.to_owned(), "1".to_owned())].into();
            assert_eq!(sysctls(&map, net, ipc).is_ok(), expect, "{name}");
        };
        check("net.ipv4.ip_unprivileged_port_start", true, true, true);
        check("net.ipv4.ip_unprivileged_port_start", false, true, false);
        check("kernel.shmmax", true, true, true);
        check("kernel.shmmax", true, false, false);
        check("kernel.panic", true, true, false);
        check("net.../../../etc/x", true, true, false);
        check("vm.overcommit_memory", true, true, false);
    }
}
