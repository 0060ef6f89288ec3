//! Pod sandboxes: namespaces in the zygote, a cgroup, shared memory, a network.

use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::{NativeRuntime, io_error, new_id};
use crate::native::cleaner::Job;
use crate::native::connection::lock;
use crate::native::protocol::{Answer, Request, SandboxSpec};
use crate::native::records::Sandbox;
use crate::native::{spec, zygote};
use crate::service::{
    ContainerState, NamespaceMode, PodSandbox, PodSandboxConfig, RuntimeError, RuntimeEvent,
    SandboxNetworkRequest, SandboxState,
};

impl NativeRuntime {
    pub(super) async fn run_sandbox(
        &self,
        config: PodSandboxConfig,
    ) -> Result<PodSandbox, RuntimeError> {
        let id = new_id();
        // Also checks the path.
        let pause_cgroup =
            spec::cgroup_of(&config.cgroup_parent, &format!("sandbox-{}", &id[..12]))?;
        let own_net = config.network != NamespaceMode::Node;
        let own_ipc = config.ipc != NamespaceMode::Node;
        let shared_pid = config.pid == NamespaceMode::Pod;
        let wanted = SandboxSpec {
            id: id.clone(),
            hostname: config.hostname.clone(),
            own_net,
            own_ipc,
            shared_pid,
            sysctls: spec::sysctls(&config.sysctls, own_net, own_ipc)?,
            cgroup: if shared_pid {
                self.hierarchies.membership(&pause_cgroup)
            } else {
                Default::default()
            },
        };
        let mut sandbox = Sandbox {
            id: id.clone(),
            state: SandboxState::Ready,
            created_at_nanos: zygote::now_nanos(),
            ips: Vec::new(),
            networked: false,
            warnings: Vec::new(),
            shm: own_ipc.then(|| self.config.run_dir.join("shm").join(&id)),
            net_fd: None,
            config,
        };
        let result = self
            .make_sandbox(&mut sandbox, wanted, shared_pid.then_some(pause_cgroup))
            .await;
        if let Err(error) = result {
            self.take_down(&sandbox).await;
            self.clean(Job::Tree(self.layout.sandbox_file(&id)));
            return Err(error);
        }
        let status = sandbox.status();
        lock(&self.state).sandboxes.insert(id, sandbox);
        Ok(status)
    }

    async fn make_sandbox(
        &self,
        sandbox: &mut Sandbox,
        wanted: SandboxSpec,
        pause_cgroup: Option<String>,
    ) -> Result<(), RuntimeError> {
        let zygote = self.zygote();
        let own_net = wanted.own_net;
        // Its first process is born in the pod's cgroup.
        let after_cgroups = pause_cgroup.is_some();
        let id = sandbox.id.clone();
        let zygote_side = async move {
            let answer = zygote.call(Request::CreateSandbox(wanted), &[]).await;
            match answer.map_err(|e| e.into_runtime("sandbox", &id))? {
                (Answer::Sandbox(record), _) => Ok(record),
                _ => Err(RuntimeError::Internal(
                    "the zygote answered something else".to_owned(),
                )),
            }
        };
        // Written before the network is set up: a crash in between must give the address back.
        sandbox.networked = self.network.is_some() && own_net;
        let record = if after_cgroups {
            self.make_host_side(sandbox, pause_cgroup)?;
            zygote_side.await?
        } else {
            // The zygote is asked first, and works while we do.
            let host_side = async { self.make_host_side(sandbox, None) };
            let (answer, host) = tokio::join!(zygote_side, host_side);
            host?;
            answer?
        };
        sandbox.net_fd = record.net_fd;
        if let (Some(network), Some(netns_path)) = (&self.network, self.netns_path(sandbox)) {
            sandbox.ips = network
                .set_up(SandboxNetworkRequest {
                    sandbox_id: sandbox.id.clone(),
                    metadata: sandbox.config.metadata.clone(),
                    netns_path,
                    port_mappings: sandbox.config.port_mappings.clone(),
                    annotations: sandbox.config.annotations.clone(),
                })
                .await?;
            self.layout
                .save_sandbox(sandbox)
                .map_err(|e| io_error("record the sandbox", &e))?;
        }
        Ok(())
    }

    /// The pod's cgroup with its limits, its shared memory and its record: half a millisecond of work
    /// in kernel memory and one small file, which a switch to another thread would not make shorter.
    fn make_host_side(
        &self,
        sandbox: &mut Sandbox,
        pause_cgroup: Option<String>,
    ) -> Result<(), RuntimeError> {
        let context = |e| io_error("make the pod's cgroup", &e);
        let parent = sandbox.config.cgroup_parent.clone();
        self.hierarchies.create(&parent).map_err(context)?;
        if let Some(cgroup) = &pause_cgroup {
            self.hierarchies.create(cgroup).map_err(context)?;
        }
        self.hierarchies
            .apply(&parent, &sandbox.config.resources, &mut sandbox.warnings);
        for warning in &sandbox.warnings {
            tracing::warn!(sandbox = %sandbox.id, %warning, "a limit of the pod");
        }
        if let Some(path) = &sandbox.shm {
            mount_shm(path).map_err(|e| io_error("mount the pod's shared memory", &e))?;
        }
        self.layout
            .save_sandbox(sandbox)
            .map_err(|e| io_error("record the sandbox", &e))
    }

    /// The network namespace as a path; `None` for the node's.
    pub(in crate::native) fn netns_path(&self, sandbox: &Sandbox) -> Option<PathBuf> {
        sandbox
            .net_fd
            .map(|fd| PathBuf::from(format!("/proc/{}/fd/{fd}", self.zygote_pid())))
    }

    pub(super) async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.end_sandbox(id, true).await
    }

    /// `kept`: its record stays.
    async fn end_sandbox(&self, id: &str, kept: bool) -> Result<(), RuntimeError> {
        let Some(sandbox) = lock(&self.state).sandboxes.get(id).cloned() else {
            return Ok(());
        };
        let running: Vec<String> = lock(&self.state)
            .containers
            .values()
            .filter(|e| {
                e.record.sandbox_id == id
                    && (e.record.state == ContainerState::Running || e.starting)
            })
            .map(|e| e.record.id.clone())
            .collect();
        for container in running {
            self.kill(&container).await?;
        }
        if sandbox.state == SandboxState::NotReady && !sandbox.networked {
            return Ok(());
        }
        if sandbox.networked
            && let Some(network) = &self.network
        {
            network.tear_down(id).await?;
        }
        self.zygote()
            .post(Request::RemoveSandbox { id: id.to_owned() });
        if let Some(shm) = &sandbox.shm {
            self.clean(Job::Mount(shm.clone()));
        }
        let mut state = lock(&self.state);
        if let Some(sandbox) = state.sandboxes.get_mut(id) {
            sandbox.state = SandboxState::NotReady;
            sandbox.networked = false;
            sandbox.net_fd = None;
            if kept {
                self.layout
                    .save_sandbox(sandbox)
                    .map_err(|e| io_error("record the sandbox", &e))?;
            }
        }
        drop(state);
        self.announce(RuntimeEvent::SandboxStopped {
            sandbox_id: id.to_owned(),
        });
        Ok(())
    }

    pub(super) async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.end_sandbox(id, false).await?;
        let containers: Vec<String> = lock(&self.state)
            .containers
            .values()
            .filter(|e| e.record.sandbox_id == id)
            .map(|e| e.record.id.clone())
            .collect();
        for container in containers {
            self.remove(&container).await?;
        }
        let mut state = lock(&self.state);
        let Some(sandbox) = state.sandboxes.remove(id) else {
            return Ok(());
        };
        let shared = state
            .sandboxes
            .values()
            .any(|s| s.config.cgroup_parent == sandbox.config.cgroup_parent);
        drop(state);
        self.clean(Job::Tree(self.config.run_dir.join("hostname").join(id)));
        if sandbox.config.dns.is_some() {
            self.clean(Job::Tree(self.config.run_dir.join("resolv").join(id)));
        }
        match std::fs::remove_file(self.layout.sandbox_file(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error("remove the sandbox's record", &error));
            }
            _ => {}
        }
        if !shared {
            self.clean(Job::Cgroup(sandbox.config.cgroup_parent));
        }
        Ok(())
    }

    /// Undoes a sandbox that did not come up.
    async fn take_down(&self, sandbox: &Sandbox) {
        if sandbox.networked
            && let Some(network) = &self.network
            && let Err(error) = network.tear_down(&sandbox.id).await
        {
            tracing::warn!(sandbox = %sandbox.id, %error, "cannot give the network back");
        }
        self.zygote().post(Request::RemoveSandbox {
            id: sandbox.id.clone(),
        });
        if let Some(shm) = &sandbox.shm {
            self.clean(Job::Mount(shm.clone()));
        }
        self.clean(Job::Cgroup(sandbox.config.cgroup_parent.clone()));
    }
}

/// 64 MiB that the pod's containers share as `/dev/shm`.
fn mount_shm(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("mode", "1777"), ("size", "65536k"), ("source", "shm")] {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    rustix::mount::move_mount(
        &mount,
        "",
        rustix::fs::CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}
