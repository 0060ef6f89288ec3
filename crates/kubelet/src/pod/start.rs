//! Carries out the longer actions of a pod: create its sandbox, start and stop a container.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use runtime::service::{ContainerState, ContainerStatus, Image, Mount, PodSandbox, RuntimeError};

use super::container_config::{self, Parts};
use super::spec::{ContainerSpec, PodSpecView};
use super::{dns, env, fetch, hosts, labels, resources, sandbox, security};
use crate::context::Context;
use crate::events::Severity;
use crate::hooks;

/// More of a termination message is not kept.
const MESSAGE_BYTES_MAX: u64 = 4096;
/// Of a log, when it stands in for the message.
const LOG_TAIL_BYTES_MAX: usize = 2048;
const LOG_TAIL_LINES_MAX: usize = 80;

/// Why a container did not start, as its status shows it.
#[derive(Clone, Debug)]
pub struct StartFailure {
    pub reason: &'static str,
    pub message: String,
    /// The runtime's view, if a container was made.
    pub status: Option<ContainerStatus>,
}

/// Makes the pod's directories and runs its sandbox.
pub async fn create_sandbox(
    context: &Context,
    view: &PodSpecView,
    attempt: u32,
) -> Result<PodSandbox, RuntimeError> {
    let config = &context.config;
    let log_directory = config.log_dir.join(sandbox::log_directory_name(
        view.namespace(),
        view.name(),
        view.uid(),
    ));
    std::fs::create_dir_all(&log_directory).map_err(|error| {
        RuntimeError::Internal(format!(
            "cannot create log directory {}: {error}",
            log_directory.display()
        ))
    })?;
    let (dns, missing) = dns::of_pod(
        view,
        &context.node_dns(),
        &config.cluster_dns,
        &config.cluster_domain,
    );
    if missing {
        let message = format!(
            "pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
            view.formatted()
        );
        context.tell_pod(view, Severity::Warning, "MissingClusterDNS", message);
    }
    let (hostname, domain) = dns::hostname_and_domain(view, &config.cluster_domain);
    let hostname = dns::kernel_hostname(view, &hostname, &domain);
    let sandbox = sandbox::config(
        view,
        attempt,
        hostname,
        dns,
        log_directory,
        config.pod_pids_limit,
    );
    let result = context.runtime.run_pod_sandbox(sandbox).await;
    if let Err(error) = &result {
        context.tell_pod(
            view,
            Severity::Warning,
            "FailedCreatePodSandBox",
            format!("Failed to create pod sandbox: {error}"),
        );
    }
    result
}

pub struct StartRequest {
    pub view: PodSpecView,
    pub spec: ContainerSpec,
    pub sandbox: PodSandbox,
    pub pod_ips: Vec<String>,
    pub image: Image,
    pub volumes: BTreeMap<String, PathBuf>,
    /// One more than the last start's, if there was one.
    pub restart_count: Option<u32>,
}

/// Creates and starts the container and runs its postStart hook.
pub async fn start_container(
    context: &Context,
    request: &StartRequest,
) -> Result<ContainerStatus, StartFailure> {
    let (view, spec) = (&request.view, &request.spec);
    let tell =
        |severity, reason, message| context.tell_container(view, spec, severity, reason, message);
    let fail = |reason, message: String, status| {
        tell(Severity::Warning, "Failed", format!("Error: {message}"));
        Err(StartFailure {
            reason,
            message,
            status,
        })
    };
    let config = match configure(context, request).await {
        Ok(config) => config,
        Err(message) => return fail("CreateContainerConfigError", message, None),
    };
    let id = match context
        .runtime
        .create_container(&request.sandbox.id, config)
        .await
    {
        Ok(id) => id,
        Err(error) => return fail("CreateContainerError", error.to_string(), None),
    };
    tell(Severity::Normal, "Created", "Container created".to_owned());
    if let Err(error) = context.runtime.start_container(&id).await {
        let status = observe(context, &id).await.ok();
        // In the words of the container's own state, which the message stands beside.
        let message = match error {
            RuntimeError::StartFailed { message, .. } => message,
            other => other.to_string().replace(&id, &spec.container.name),
        };
        return fail("RunContainerError", message, status);
    }
    tell(Severity::Normal, "Started", "Container started".to_owned());
    let status = match observe(context, &id).await {
        Ok(status) => status,
        Err(error) => return fail("RunContainerError", error.to_string(), None),
    };
    for warning in &status.warnings {
        tell(Severity::Warning, "RuntimeWarning", warning.clone());
    }
    let post_start = spec
        .container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.post_start.as_ref());
    if let Some(handler) = post_start {
        let pod_ip = request.pod_ips.first().map_or("", String::as_str);
        if let Err(message) = hooks::run(context, view, &id, &spec.container, pod_ip, handler).await
        {
            // The message stays out of the event: it may hold what the hook printed.
            tell(
                Severity::Warning,
                "FailedPostStartHook",
                "PostStartHook failed".to_owned(),
            );
            tell(
                Severity::Normal,
                "Killing",
                "FailedPostStartHook".to_owned(),
            );
            let grace = view.grace_period_seconds();
            let _ = stop(context, view, Some(&spec.container), &id, pod_ip, grace).await;
            let status = observe(context, &id).await.ok();
            return Err(StartFailure {
                reason: "PostStartHookError",
                message,
                status,
            });
        }
        return observe(context, &id).await.or(Ok(status));
    }
    Ok(status)
}

async fn configure(
    context: &Context,
    request: &StartRequest,
) -> Result<runtime::service::ContainerConfig, String> {
    let (view, spec) = (&request.view, &request.spec);
    let config = &context.config;
    let sources = fetch::env_sources(context, view.namespace(), env::needs(&spec.container))
        .await
        .map_err(|error| error.to_string())?;
    let links = view
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.enable_service_links)
        .unwrap_or(true);
    let services = env::of_services(
        context.services.list().await.iter(),
        view.namespace(),
        links,
    );
    let facts = context.facts(request.pod_ips.clone());
    let env = env::make(view, &spec.container, &sources, &services, &facts)
        .map_err(|error| error.to_string())?;
    let security = security::of_container(
        view,
        &spec.container,
        &request.image,
        &config.seccomp_dir,
        config.seccomp_default,
    )
    .map_err(|error| error.to_string())?;
    if let Some(target) = &spec.target
        && view.container(target).is_none()
    {
        return Err(format!("unable to find target container {target}"));
    }
    let log_directory = config
        .log_dir
        .join(sandbox::log_directory_name(
            view.namespace(),
            view.name(),
            view.uid(),
        ))
        .join(&spec.container.name);
    let restart_count = request
        .restart_count
        .unwrap_or_else(|| next_log_number(&log_directory));
    let place = Place {
        pod_dir: config.pod_dir(view.uid()),
        log_directory,
        hosts: hosts_file(context, request),
        mount_hosts: !view.host_network()
            || view
                .pod
                .spec
                .as_ref()
                .is_some_and(|spec| spec.host_aliases.is_some())
            || cfg!(target_os = "linux"),
    };
    let (container, volumes, env_copy) =
        (spec.container.clone(), request.volumes.clone(), env.clone());
    let (mounts, termination_message_file) =
        tokio::task::spawn_blocking(move || make_files(&place, &container, &volumes, &env_copy))
            .await
            .map_err(|error| error.to_string())??;
    let huge_pages = crate::node::machine::hugepages().into_iter().collect();
    let resources = resources::of_container(
        view,
        spec,
        resources::NodeFacts {
            memory_bytes: context.capacity.memory_bytes,
            others: &huge_pages,
            unified_cgroups: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        },
        config.pod_pids_limit,
    );
    let parts = Parts {
        restart_count,
        image_id: request.image.id.clone(),
        image_ref: request
            .image
            .repo_digests
            .first()
            .cloned()
            .unwrap_or_default(),
        env,
        mounts,
        resources,
        security,
        termination_message_file,
    };
    Ok(container_config::make(view, spec, parts))
}

struct Place {
    pod_dir: PathBuf,
    log_directory: PathBuf,
    hosts: String,
    mount_hosts: bool,
}

fn hosts_file(context: &Context, request: &StartRequest) -> String {
    let view = &request.view;
    let aliases = view
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.host_aliases.as_deref())
        .unwrap_or_default();
    if view.host_network() {
        return hosts::of_node(
            &std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
            aliases,
        );
    }
    let (hostname, domain) = dns::hostname_and_domain(view, &context.config.cluster_domain);
    hosts::of_pod(&request.pod_ips, &hostname, &domain, aliases)
}

/// Makes what the container mounts; answers its mounts and the file of its termination message.
fn make_files(
    place: &Place,
    container: &Container,
    volumes: &BTreeMap<String, PathBuf>,
    env: &[(String, String)],
) -> Result<(Vec<Mount>, PathBuf), String> {
    let io = |what: &str, path: &Path, error: std::io::Error| {
        format!("cannot {what} {}: {error}", path.display())
    };
    std::fs::create_dir_all(&place.log_directory)
        .map_err(|error| io("create", &place.log_directory, error))?;
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let Some(volume) = volumes.get(&mount.name) else {
            let error = container_config::MountError::NoVolume {
                volume: mount.name.clone(),
                container: container.name.clone(),
            };
            return Err(error.to_string());
        };
        let sub_path = container_config::sub_path(mount, env).map_err(|error| error.to_string())?;
        let host_path = if sub_path.is_empty() {
            volume.clone()
        } else {
            let target = place
                .pod_dir
                .join("volume-subpaths")
                .join(&mount.name)
                .join(&container.name)
                .join(index.to_string());
            volumes::subpath::bind(volume, &sub_path, &target).map_err(|error| {
                format!(
                    "failed to prepare subPath for volumeMount {:?} of container {:?}: {error}",
                    mount.name, container.name
                )
            })?
        };
        mounts.push(container_config::mount(mount, host_path));
    }
    let mounted = |path: &str| {
        mounts
            .iter()
            .any(|mount: &Mount| mount.container_path == Path::new(path))
    };
    if place.mount_hosts && !mounted("/etc/hosts") {
        let path = place.pod_dir.join("etc-hosts");
        std::fs::write(&path, &place.hosts).map_err(|error| io("write", &path, error))?;
        mounts.push(Mount {
            container_path: "/etc/hosts".into(),
            host_path: path,
            ..Mount::default()
        });
    }
    let directory = place.pod_dir.join("containers").join(&container.name);
    std::fs::create_dir_all(&directory).map_err(|error| io("create", &directory, error))?;
    let file = directory.join(format!("{:08x}", rand::random::<u32>()));
    let message_path = container
        .termination_message_path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or("/dev/termination-log");
    // Any user of the container may write it.
    std::fs::write(&file, "")
        .and_then(|()| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)))
        .map_err(|error| io("create", &file, error))?;
    mounts.push(Mount {
        container_path: message_path.into(),
        host_path: file.clone(),
        ..Mount::default()
    });
    Ok((mounts, file))
}

/// One more than the highest `<n>.log` there is: the runtime may have lost what ran before.
fn next_log_number(directory: &Path) -> u32 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| {
        entry
            .file_name()
            .to_str()?
            .split_once(".log")?
            .0
            .parse::<u32>()
            .ok()
    });
    numbers.max().map_or(0, |last| last + 1)
}

/// preStop hook, then the stop signal, then the kill when the grace period is over.
pub async fn stop(
    context: &Context,
    view: &PodSpecView,
    container: Option<&Container>,
    id: &str,
    pod_ip: &str,
    grace_period_seconds: i64,
) -> Result<(), RuntimeError> {
    let begun = Instant::now();
    let mut grace = grace_period_seconds;
    let pre_stop = container
        .and_then(|container| Some((container, container.lifecycle.as_ref()?.pre_stop.as_ref()?)));
    if let Some((container, handler)) = pre_stop
        && grace > 0
    {
        let limit = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        match tokio::time::timeout(
            limit,
            hooks::run(context, view, id, container, pod_ip, handler),
        )
        .await
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::info!(
                    error,
                    container = container.name,
                    pod = view.name(),
                    "preStop hook failed"
                );
                if let Some(spec) = view.container(&container.name) {
                    context.tell_container(
                        view,
                        spec,
                        Severity::Warning,
                        "FailedPreStopHook",
                        "PreStopHook failed".to_owned(),
                    );
                }
            }
            Err(_) => tracing::info!(
                container = container.name,
                pod = view.name(),
                "preStop hook took longer than the grace period"
            ),
        }
        grace = (grace - i64::try_from(begun.elapsed().as_secs()).unwrap_or(grace)).max(2);
    }
    match context
        .runtime
        .stop_container(id, u64::try_from(grace).unwrap_or(0))
        .await
    {
        Err(RuntimeError::NotFound { .. }) | Ok(()) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The container's status, with its termination message.
pub async fn observe(context: &Context, id: &str) -> Result<ContainerStatus, RuntimeError> {
    let mut status = context.runtime.container_status(id).await?;
    add_message(&mut status);
    Ok(status)
}

/// Reads what an ended container left as its termination message.
pub fn add_message(status: &mut ContainerStatus) {
    use std::io::Read;
    if status.state != ContainerState::Exited {
        return;
    }
    if let Some(path) = status.annotations.get(labels::TERMINATION_MESSAGE_FILE) {
        let mut text = Vec::new();
        if let Ok(file) = std::fs::File::open(path)
            && file.take(MESSAGE_BYTES_MAX).read_to_end(&mut text).is_ok()
            && !text.is_empty()
        {
            status.message = String::from_utf8_lossy(&text).into_owned();
            return;
        }
    }
    let fall_back = status
        .annotations
        .get(labels::TERMINATION_MESSAGE_POLICY)
        .is_some_and(|policy| policy == "FallbackToLogsOnError");
    if fall_back && status.exit_code != 0 && status.message.is_empty() {
        status.message =
            crate::logs::tail_text(&status.log_path, LOG_TAIL_LINES_MAX, LOG_TAIL_BYTES_MAX);
    }
}

/// Seconds since 1970 as a start for probes: how long ago the container started.
pub fn age(status: &ContainerStatus, now: Timestamp) -> Duration {
    let started = super::machine::timestamp(status.started_at_nanos);
    Duration::try_from(now.duration_since(started)).unwrap_or_default()
}
