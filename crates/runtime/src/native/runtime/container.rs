//! Containers: create, start, stop, remove, update.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use super::{
    Beside, ContainerEntry, Filter, NativeRuntime, Unstoppable, blocking, io_error, new_id,
};
use crate::image_roots::ImageRoot;
use crate::native::child::root::overlay;
use crate::native::cleaner::Job;
use crate::native::connection::{CallError, lock};
use crate::native::protocol::{Answer, ContainerSpec, Request, RootSpec};
use crate::native::records::{Container, Sandbox};
use crate::native::{cgroup, spec, zygote};
use crate::service::{
    ContainerConfig, ContainerState, ImageError, LinuxResources, NamespaceMode, RuntimeError,
    RuntimeEvent, SandboxState,
};

/// How long a container may take to die after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

fn image_error(error: ImageError) -> RuntimeError {
    match error {
        ImageError::NotFound(id) => RuntimeError::NotFound { kind: "image", id },
        other => RuntimeError::Internal(other.to_string()),
    }
}

impl NativeRuntime {
    pub(in crate::native) fn sandbox(&self, id: &str) -> Result<Sandbox, RuntimeError> {
        lock(&self.state)
            .sandboxes
            .get(id)
            .cloned()
            .ok_or_else(|| Self::not_found("sandbox", id))
    }

    pub(super) async fn create(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
    ) -> Result<String, RuntimeError> {
        let sandbox = self.sandbox(sandbox_id)?;
        if sandbox.state != SandboxState::Ready {
            return Err(RuntimeError::InvalidArgument(format!(
                "sandbox {sandbox_id} is not ready"
            )));
        }
        let id = new_id();
        let cgroup = spec::cgroup_of(&sandbox.config.cgroup_parent, &id)?;
        let (_, allowed) = spec::device_access(&config)?;
        let image_id = config.image_id.clone();
        self.images.hold(&image_id, &id).map_err(image_error)?;
        let undo = |error: RuntimeError| {
            self.images.release(&image_id, &id);
            error
        };
        let image = self
            .images
            .prepare(&image_id)
            .map_err(|e| undo(image_error(e)))?;
        let resources = config.resources.clone();
        let (me, also_me) = (self.arc()?, self.arc()?);
        let directory = self.layout.container_dir(&id);
        let made = blocking({
            let cgroup = cgroup.clone();
            let id = id.clone();
            move || {
                let relative = cgroup.clone();
                let limits = Beside::start(move || {
                    also_me.make_cgroup(&relative, &resources, allowed.as_deref())
                });
                let files = me.make_container(id, sandbox, config, cgroup, &image);
                let limits = limits.finish()??;
                let (mut record, root) = files?;
                if !limits.is_empty() {
                    record.warnings.extend(limits);
                    me.layout
                        .save_state(&record)
                        .map_err(|e| io_error("record the container", &e))?;
                }
                Ok((record, root))
            }
        })
        .await;
        let (record, root) = match made {
            Ok(made) => made,
            Err(error) => {
                self.clean(Job::Cgroup(cgroup));
                self.clean(Job::Tree(directory));
                return Err(undo(error));
            }
        };
        let entry = ContainerEntry {
            record,
            ended: watch::Sender::new(false),
            starting: false,
            root,
        };
        lock(&self.state).containers.insert(id.clone(), entry);
        Ok(id)
    }

    /// The container's cgroup with its limits; answers what it could not have.
    fn make_cgroup(
        &self,
        relative: &str,
        resources: &LinuxResources,
        allowed_devices: Option<&[String]>,
    ) -> Result<Vec<String>, RuntimeError> {
        let mut warnings = Vec::new();
        self.hierarchies
            .create(relative)
            .map_err(|e| io_error("make the container's cgroup", &e))?;
        self.hierarchies.apply(relative, resources, &mut warnings);
        if let Some(allowed) = allowed_devices {
            self.hierarchies
                .restrict_devices(relative, allowed, &mut warnings);
        }
        Ok(warnings)
    }

    /// Checks the configuration, makes the container's files and mounts its root ahead where the kernel can.
    fn make_container(
        &self,
        id: String,
        sandbox: Sandbox,
        config: ContainerConfig,
        cgroup: String,
        image: &ImageRoot,
    ) -> Result<(Container, Option<OwnedFd>), RuntimeError> {
        let repeated = sandbox.warnings.iter().map(|text| format!("pod: {text}"));
        let mut warnings: Vec<String> = repeated.collect();
        // What cannot be carried out is refused now.
        spec::process(&config, &image.config, self.permitted, &mut warnings)?;
        spec::mounts(&config)?;
        self.filter(&config)?;
        let log_path = if config.log_path.as_os_str().is_empty() {
            PathBuf::new()
        } else {
            sandbox.config.log_directory.join(&config.log_path)
        };
        let record = Container {
            sandbox_id: sandbox.id,
            state: ContainerState::Created,
            created_at_nanos: zygote::now_nanos(),
            started_at_nanos: 0,
            finished_at_nanos: 0,
            exit_code: 0,
            signal: 0,
            reason: String::new(),
            message: String::new(),
            log_path,
            pid: None,
            stop_signal: spec::stop_signal(&config, &image.config)?,
            cgroup,
            warnings,
            config,
            id,
        };
        let directory = self.layout.container_dir(&record.id);
        let made = (|| {
            std::fs::create_dir(&directory)?;
            std::fs::create_dir(directory.join("upper"))?;
            std::fs::create_dir(directory.join("work"))?;
            self.layout.save_container(&record)
        })();
        made.map_err(|e| io_error("make the container's directory", &e))?;
        let root = overlay(
            &image.lowerdirs,
            &directory.join("upper"),
            &directory.join("work"),
        )
        .ok();
        Ok((record, root))
    }

    /// The compiled seccomp filter, by the container's profile and capabilities.
    fn filter(&self, config: &ContainerConfig) -> Result<Filter, RuntimeError> {
        self.filters
            .of(&config.security, self.permitted)
            .map_err(RuntimeError::InvalidArgument)
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        let (record, root) = {
            let mut state = lock(&self.state);
            let entry = state
                .containers
                .get_mut(id)
                .ok_or_else(|| Self::not_found("container", id))?;
            if entry.record.state != ContainerState::Created || entry.starting {
                return Err(RuntimeError::InvalidArgument(format!(
                    "{} is not waiting to be started",
                    spec::describe(&entry.record)
                )));
            }
            entry.starting = true;
            (entry.record.clone(), entry.root.take())
        };
        // Goes on when the caller gives up: the zygote will start it all the same.
        let me = self.arc()?;
        let id = id.to_owned();
        Unstoppable::new(async move {
            let result = me.start_recorded(&record, root).await;
            me.note_start(&id, result)
        })
        .await
    }

    async fn start_recorded(
        &self,
        record: &Container,
        root: Option<OwnedFd>,
    ) -> Result<(i64, u32, Vec<String>), CallError> {
        let internal = |message: String| {
            CallError::Failed(crate::native::protocol::Failure {
                not_found: false,
                start: false,
                message,
            })
        };
        let (mut wanted, filter) = self
            .container_spec(record)
            .map_err(|e| internal(e.to_string()))?;
        wanted.root.mounted = root.is_some();
        if root.is_none() {
            // A volatile overlay refuses a work directory that was in use before.
            let renewed = std::fs::remove_dir_all(&wanted.root.workdir)
                .and_then(|()| std::fs::create_dir(&wanted.root.workdir));
            renewed.map_err(|e| internal(format!("renew the work directory: {e}")))?;
        }
        let fds: Vec<_> = filter
            .iter()
            .map(|fd| fd.as_fd())
            .chain(root.iter().map(|fd| fd.as_fd()))
            .collect();
        match self
            .zygote()
            .call(Request::Start(Box::new(wanted)), &fds)
            .await?
            .0
        {
            Answer::Started {
                pid,
                started_at_nanos,
                warnings,
            } => Ok((started_at_nanos, pid, warnings)),
            _ => Err(internal("the zygote answered something else".to_owned())),
        }
    }

    fn note_start(
        &self,
        id: &str,
        result: Result<(i64, u32, Vec<String>), CallError>,
    ) -> Result<(), RuntimeError> {
        let mut state = lock(&self.state);
        let entry = state
            .containers
            .get_mut(id)
            .ok_or_else(|| Self::not_found("container", id))?;
        entry.starting = false;
        let sandbox_id = entry.record.sandbox_id.clone();
        let outcome = match result {
            Ok((started_at_nanos, pid, warnings)) => {
                entry.record.started_at_nanos = started_at_nanos;
                entry.record.warnings.extend(warnings);
                // Its end may have been told before this task ran.
                if entry.record.state == ContainerState::Created {
                    entry.record.state = ContainerState::Running;
                    entry.record.pid = Some(pid);
                }
                Ok(())
            }
            Err(CallError::Failed(failure)) => {
                entry
                    .record
                    .not_started(failure.message.clone(), zygote::now_nanos());
                entry.ended.send_replace(true);
                Err(RuntimeError::StartFailed {
                    id: id.to_owned(),
                    message: failure.message,
                })
            }
            Err(CallError::Lost(why)) => {
                entry.record.not_started(why.clone(), zygote::now_nanos());
                entry.ended.send_replace(true);
                Err(RuntimeError::Unavailable(why))
            }
        };
        if let Err(error) = self.layout.save_state(&entry.record) {
            tracing::error!(container = %id, %error, "cannot record the start of a container");
        }
        drop(state);
        let container_id = id.to_owned();
        self.announce(match outcome {
            Ok(()) => RuntimeEvent::ContainerStarted {
                sandbox_id,
                container_id,
            },
            Err(_) => RuntimeEvent::ContainerStopped {
                sandbox_id,
                container_id,
            },
        });
        outcome
    }

    fn container_spec(&self, record: &Container) -> Result<(ContainerSpec, Filter), RuntimeError> {
        let sandbox = self.sandbox(&record.sandbox_id)?;
        let config = &record.config;
        let ImageRoot {
            lowerdirs,
            config: image,
        } = self.images.prepare(&config.image_id).map_err(image_error)?;
        let mut process = spec::process(config, &image, self.permitted, &mut Vec::new())?;
        let filter = self.filter(config)?;
        process.seccomp = filter.is_some();
        add_hostname(&mut process.env, &sandbox);
        let mut mounts = spec::mounts(config)?;
        if let Some(resolv) = self.resolv_conf(&sandbox, config)? {
            mounts.push(resolv);
        }
        if let Some(hostname) = self.hostname_file(&sandbox, config)? {
            mounts.push(hostname);
        }
        let (devices, _) = spec::device_access(config)?;
        let directory = self.layout.container_dir(&record.id);
        let own_ipc = sandbox.config.ipc != NamespaceMode::Node;
        let wanted = ContainerSpec {
            id: record.id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            own_net: sandbox.config.network != NamespaceMode::Node,
            own_ipc,
            pid: spec::pid_namespace(&config.security, sandbox.config.pid),
            cgroup: self.hierarchies.membership(&record.cgroup),
            root: RootSpec {
                lowerdirs,
                upperdir: directory.join("upper"),
                workdir: directory.join("work"),
                mounted: false,
                mount_point: self.config.run_dir.join("root"),
                readonly: config.security.readonly_rootfs,
                mounts,
                devices,
                all_devices: config.security.privileged,
                shm: if own_ipc {
                    sandbox.shm.clone()
                } else {
                    Some(PathBuf::from("/dev/shm"))
                },
                masked: !config.security.privileged && !config.security.unmasked_proc,
                sys_writable: config.security.privileged,
            },
            process,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            log_path: (!record.log_path.as_os_str().is_empty()).then(|| record.log_path.clone()),
        };
        Ok((wanted, filter))
    }

    /// The sandbox's own resolv.conf, where the kubelet asks for one and mounts none itself.
    fn resolv_conf(
        &self,
        sandbox: &Sandbox,
        config: &ContainerConfig,
    ) -> Result<Option<crate::native::protocol::MountSpec>, RuntimeError> {
        use std::fmt::Write;
        let target = PathBuf::from("/etc/resolv.conf");
        let Some(dns) = &sandbox.config.dns else {
            return Ok(None);
        };
        if config.mounts.iter().any(|m| m.container_path == target) {
            return Ok(None);
        }
        let mut text = String::new();
        for server in &dns.servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !dns.searches.is_empty() {
            let _ = writeln!(text, "search {}", dns.searches.join(" "));
        }
        if !dns.options.is_empty() {
            let _ = writeln!(text, "options {}", dns.options.join(" "));
        }
        let directory = self.config.run_dir.join("resolv");
        let source = directory.join(&sandbox.id);
        std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(&source, text))
            .map_err(|e| io_error("write resolv.conf", &e))?;
        Ok(Some(crate::native::protocol::MountSpec {
            source,
            target,
            readonly: false,
            propagation: crate::native::protocol::Propagation::Private,
        }))
    }

    /// The sandbox's own `/etc/hostname`, where the kubelet mounts none.
    fn hostname_file(
        &self,
        sandbox: &Sandbox,
        config: &ContainerConfig,
    ) -> Result<Option<crate::native::protocol::MountSpec>, RuntimeError> {
        let target = PathBuf::from("/etc/hostname");
        if config.mounts.iter().any(|m| m.container_path == target) {
            return Ok(None);
        }
        let mut text = match sandbox.config.hostname.as_str() {
            // One that shares the node's network has the node's name.
            "" => rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            own => own.to_owned(),
        };
        text.push('\n');
        let directory = self.config.run_dir.join("hostname");
        let source = directory.join(&sandbox.id);
        std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(&source, text))
            .map_err(|e| io_error("write the hostname", &e))?;
        Ok(Some(crate::native::protocol::MountSpec {
            source,
            target,
            readonly: false,
            propagation: crate::native::protocol::Propagation::Private,
        }))
    }

    pub(super) async fn stop(&self, id: &str, grace_period: Duration) -> Result<(), RuntimeError> {
        let (signal, mut ended) = {
            let state = lock(&self.state);
            let entry = state
                .containers
                .get(id)
                .ok_or_else(|| Self::not_found("container", id))?;
            if entry.record.state != ContainerState::Running && !entry.starting {
                return Ok(());
            }
            (entry.record.stop_signal, entry.ended.subscribe())
        };
        if !grace_period.is_zero() {
            self.signal(id, signal).await?;
            if tokio::time::timeout(grace_period, ended.wait_for(|ended| *ended))
                .await
                .is_ok()
            {
                return Ok(());
            }
        }
        self.kill(id).await
    }

    async fn signal(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        match self
            .zygote()
            .call(
                Request::Signal {
                    id: id.to_owned(),
                    signal,
                },
                &[],
            )
            .await
        {
            Err(CallError::Failed(failure)) if failure.not_found => Ok(()),
            other => other.map(drop).map_err(|e| e.into_runtime("container", id)),
        }
    }

    /// SIGKILL to everything in it; returns when it has ended.
    pub(super) async fn kill(&self, id: &str) -> Result<(), RuntimeError> {
        let (membership, mut ended) = {
            let state = lock(&self.state);
            let entry = state
                .containers
                .get(id)
                .ok_or_else(|| Self::not_found("container", id))?;
            if entry.record.state != ContainerState::Running && !entry.starting {
                return Ok(());
            }
            (
                self.hierarchies.membership(&entry.record.cgroup),
                entry.ended.subscribe(),
            )
        };
        self.signal(id, libc::SIGKILL).await?;
        blocking(move || {
            cgroup::kill_all(&membership);
            Ok(())
        })
        .await?;
        match tokio::time::timeout(KILL_PATIENCE, ended.wait_for(|ended| *ended)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(RuntimeError::Timeout {
                operation: format!("killing container {id}"),
                seconds: KILL_PATIENCE.as_secs(),
            }),
        }
    }

    pub(super) async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        match self.kill(id).await {
            Err(RuntimeError::NotFound { .. }) => return Ok(()),
            other => other?,
        }
        let Some(entry) = lock(&self.state).containers.remove(id) else {
            return Ok(());
        };
        let record = entry.record;
        self.zygote().post(Request::Forget { id: id.to_owned() });
        // Renamed first: a half-removed container must not be found as a record.
        let trash = self.layout.trash().join(id);
        match std::fs::rename(self.layout.container_dir(id), &trash) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error("remove the container's directory", &error));
            }
            _ => {}
        }
        self.images.release(&record.config.image_id, id);
        self.clean(Job::Cgroup(record.cgroup));
        self.clean(Job::Tree(trash));
        self.announce(RuntimeEvent::ContainerRemoved {
            sandbox_id: record.sandbox_id,
            container_id: id.to_owned(),
        });
        Ok(())
    }

    pub(super) async fn update(
        &self,
        id: &str,
        resources: LinuxResources,
    ) -> Result<(), RuntimeError> {
        let record = self.container(id)?;
        if record.state == ContainerState::Exited {
            return Err(RuntimeError::InvalidArgument(format!(
                "{} has ended",
                spec::describe(&record)
            )));
        }
        let me = self.arc()?;
        let wanted = resources.clone();
        let warnings = blocking(move || {
            let mut warnings = Vec::new();
            me.hierarchies.apply(&record.cgroup, &wanted, &mut warnings);
            Ok(warnings)
        })
        .await?;
        if !warnings.is_empty() {
            return Err(RuntimeError::Internal(warnings.join("; ")));
        }
        let mut state = lock(&self.state);
        if let Some(entry) = state.containers.get_mut(id) {
            let config = &mut entry.record.config.resources;
            let merged = LinuxResources {
                cpu_shares: resources.cpu_shares.or(config.cpu_shares),
                cpu_quota_micros: resources.cpu_quota_micros.or(config.cpu_quota_micros),
                cpu_period_micros: resources.cpu_period_micros.or(config.cpu_period_micros),
                cpuset_cpus: resources.cpuset_cpus.or(config.cpuset_cpus.take()),
                memory_limit_bytes: resources.memory_limit_bytes.or(config.memory_limit_bytes),
                pids_limit: resources.pids_limit.or(config.pids_limit),
                oom_score_adj: config.oom_score_adj,
                hugepage_limits_bytes: resources.hugepage_limits_bytes,
                unified: resources.unified,
            };
            *config = merged;
            self.layout
                .save_container(&entry.record)
                .map_err(|e| io_error("record the container", &e))?;
        }
        Ok(())
    }
}

/// Commands find the pod's hostname in their environment, unless the pod says otherwise.
pub(in crate::native) fn add_hostname(env: &mut Vec<String>, sandbox: &Sandbox) {
    let hostname = &sandbox.config.hostname;
    if !hostname.is_empty() && !env.iter().any(|line| line.starts_with("HOSTNAME=")) {
        env.push(format!("HOSTNAME={hostname}"));
    }
}
