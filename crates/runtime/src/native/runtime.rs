//! [`NativeRuntime`]: the server's side, as [`RuntimeService`].
//!
//! State changes in one place, [`State`], under one lock that is never held across a wait. Every
//! change that must outlive the server is written to its record before it is announced.

mod container;
mod sandbox;

pub(in crate::native) use container::add_hostname;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, RwLock, Weak, mpsc as std_mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use super::Config;
use super::cgroup::Hierarchies;
use super::cleaner::{self, Job};
use super::connection::{Connection, Event, Hello, Zygote, lock};
use super::protocol::Exit;
use super::records::{Container, Layout, Sandbox};
use super::zygote::rfc3339_nanos;
use super::{sys, zygote};
use crate::image_roots::ImageRoots;
use crate::service::{
    Connection as ServiceConnection, ContainerConfig, ContainerState, ContainerStats,
    ContainerStatus, ExecResult, LinuxResources, PodSandbox, PodSandboxConfig, RuntimeError,
    RuntimeEvent, RuntimeService, SandboxNetwork, SandboxState, Session, StreamRequest,
};

/// Events that one slow receiver may be behind before it is told to list again.
const EVENTS_MAX: usize = 1024;
/// Pause between attempts to get a zygote back.
const RECONNECT_AFTER: Duration = Duration::from_millis(200);

pub(super) struct ContainerEntry {
    pub(super) record: Container,
    /// `true` from its end on.
    pub(super) ended: watch::Sender<bool>,
    /// A start is under way.
    pub(super) starting: bool,
    /// The root, mounted ahead of the start; gone after a restart of the server.
    pub(super) root: Option<OwnedFd>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) sandboxes: HashMap<String, Sandbox>,
    pub(super) containers: HashMap<String, ContainerEntry>,
}

/// Containers on this machine's kernel.
pub struct NativeRuntime {
    pub(super) config: Config,
    pub(super) layout: Layout,
    pub(super) hierarchies: Hierarchies,
    zygote_cgroups: Vec<PathBuf>,
    pub(super) images: Arc<dyn ImageRoots>,
    pub(super) network: Option<Arc<dyn SandboxNetwork>>,
    pub(super) state: Mutex<State>,
    pub(super) execs: Mutex<HashMap<String, oneshot::Sender<Result<i32, RuntimeError>>>>,
    pub(super) filters: super::seccomp::Cache,
    connection: RwLock<Arc<Connection>>,
    listeners: Mutex<Vec<mpsc::Sender<RuntimeEvent>>>,
    cleaner: Mutex<std_mpsc::Sender<Job>>,
    /// Capabilities that this machine gives.
    pub(super) permitted: u64,
    layer_sizes: Mutex<HashMap<String, (std::time::Instant, u64)>>,
    me: Weak<Self>,
}

impl NativeRuntime {
    /// Connects to the zygote (starts it if there is none) and takes over what runs in it.
    ///
    /// Inside of a tokio runtime, which has to live as long.
    pub fn new(
        config: Config,
        images: Arc<dyn ImageRoots>,
        network: Option<Arc<dyn SandboxNetwork>>,
    ) -> Result<Arc<Self>, RuntimeError> {
        let context = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| RuntimeError::Internal(format!("{what}: {error}"))
        };
        let mut hierarchies = Hierarchies::discover(&config.cgroup_root)
            .map_err(context("find the cgroup hierarchies"))?;
        let cgroups = hierarchies
            .prepare()
            .map_err(context("make the zygote's cgroup"))?;
        for directory in [&config.run_dir, &config.data_dir] {
            make_private(directory).map_err(context(&format!("make {}", directory.display())))?;
        }
        std::fs::create_dir_all(config.run_dir.join("root"))
            .map_err(context("make the root's mount point"))?;
        let layout = Layout {
            data_dir: config.data_dir.clone(),
        };
        layout
            .create()
            .map_err(context("make the data directory"))?;
        let (connection, hello) =
            open_zygote(&config, cgroups.clone()).map_err(context("reach the zygote"))?;
        let connection = Arc::new(connection);
        let runtime = Arc::new_cyclic(|me: &Weak<Self>| Self {
            cleaner: Mutex::new(cleaner::start(hierarchies.clone())),
            layout,
            hierarchies,
            zygote_cgroups: cgroups,
            images,
            network,
            state: Mutex::default(),
            execs: Mutex::default(),
            filters: super::seccomp::Cache::default(),
            connection: RwLock::new(connection.clone()),
            listeners: Mutex::default(),
            permitted: sys::permitted_capabilities().unwrap_or(0),
            layer_sizes: Mutex::default(),
            me: me.clone(),
            config,
        });
        runtime
            .recover(&hello)
            .map_err(context("read the records"))?;
        tokio::runtime::Handle::try_current()
            .map_err(|e| RuntimeError::Internal(e.to_string()))?
            .spawn(read_forever(Arc::downgrade(&runtime), connection));
        Ok(runtime)
    }

    pub(super) fn zygote(&self) -> Arc<Connection> {
        self.connection
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// For work that goes on after a request's future is dropped.
    pub(super) fn arc(&self) -> Result<Arc<Self>, RuntimeError> {
        self.me
            .upgrade()
            .ok_or_else(|| RuntimeError::Unavailable("the runtime is stopping".to_owned()))
    }

    pub(super) fn clean(&self, job: Job) {
        let _ = lock(&self.cleaner).send(job);
    }

    /// Waits until everything removed so far is really gone. Blocks.
    pub fn settle(&self) {
        let (sender, receiver) = std_mpsc::channel();
        self.clean(Job::Barrier(sender));
        let _ = receiver.recv();
    }

    /// Process id of the zygote.
    pub fn zygote_pid(&self) -> u32 {
        self.zygote().zygote_pid
    }

    pub(super) fn announce(&self, event: RuntimeEvent) {
        lock(&self.listeners).retain(|listener| match listener.try_send(event.clone()) {
            Ok(()) => true,
            // The slot that is kept free tells the slow reader to list again.
            Err(mpsc::error::TrySendError::Full(_)) => {
                let listener = listener.clone();
                std::thread::spawn(move || {
                    let _ = listener.blocking_send(RuntimeEvent::Resync);
                });
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    }

    /// Brings records and the zygote's knowledge together, at a start and after a lost connection.
    fn recover(&self, hello: &Hello) -> io::Result<()> {
        let now = zygote::now_nanos();
        let (sandboxes, containers, broken) = self.layout.load()?;
        for path in broken {
            tracing::warn!(path = %path.display(), "removing a record that cannot be read");
            self.clean(Job::Tree(path));
        }
        if let Ok(entries) = std::fs::read_dir(self.layout.trash()) {
            entries
                .flatten()
                .for_each(|entry| self.clean(Job::Tree(entry.path())));
        }
        let mut state = lock(&self.state);
        for mut sandbox in sandboxes {
            match hello.sandboxes.iter().find(|known| known.id == sandbox.id) {
                Some(known) => sandbox.net_fd = known.net_fd,
                None if sandbox.state == SandboxState::Ready => {
                    sandbox.state = SandboxState::NotReady;
                    self.layout.save_sandbox(&sandbox)?;
                }
                None => {}
            }
            state.sandboxes.insert(sandbox.id.clone(), sandbox);
        }
        for mut record in containers {
            let known = hello.containers.iter().find(|known| known.id == record.id);
            let before = record.state;
            match (known, record.state) {
                (Some(known), ContainerState::Created | ContainerState::Running) => {
                    record.started_at_nanos = known.started_at_nanos;
                    match known.exit {
                        Some(exit) => record.ended(exit),
                        None => {
                            record.state = ContainerState::Running;
                            record.pid = Some(known.pid);
                        }
                    }
                }
                (None, ContainerState::Running) => {
                    record.lost(now);
                    // A killed zygote leaves its containers behind.
                    super::cgroup::kill_all(&self.hierarchies.membership(&record.cgroup));
                }
                _ => {}
            }
            if record.state != before {
                self.layout.save_state(&record)?;
            }
            if let Err(error) = self.images.hold(&record.config.image_id, &record.id) {
                tracing::warn!(container = %record.id, %error, "the image of a container is gone");
            }
            let ended = watch::Sender::new(record.state == ContainerState::Exited);
            state.containers.insert(
                record.id.clone(),
                ContainerEntry {
                    record,
                    ended,
                    starting: false,
                    root: None,
                },
            );
        }
        let holders: Vec<&str> = state.containers.keys().map(String::as_str).collect();
        if let Err(error) = self.images.retain_holders(&holders) {
            tracing::warn!(%error, "images may be held by containers that are gone");
        }
        // Started, but never recorded: nobody asked for it any more.
        for known in hello
            .containers
            .iter()
            .filter(|known| !state.containers.contains_key(&known.id))
        {
            self.zygote().post(super::protocol::Request::Signal {
                id: known.id.clone(),
                signal: libc::SIGKILL,
            });
            self.zygote().post(super::protocol::Request::Forget {
                id: known.id.clone(),
            });
        }
        for known in hello
            .sandboxes
            .iter()
            .filter(|known| !state.sandboxes.contains_key(&known.id))
        {
            self.zygote().post(super::protocol::Request::RemoveSandbox {
                id: known.id.clone(),
            });
        }
        Ok(())
    }

    fn on_event(&self, event: Event) {
        match event {
            Event::ContainerExited { id, exit } => self.container_exited(&id, exit),
            Event::ExecExited { id, exit } => {
                if let Some(waiting) = lock(&self.execs).remove(&id) {
                    let _ = waiting.send(Ok(exit.code));
                }
            }
        }
    }

    fn container_exited(&self, id: &str, exit: Exit) {
        let (sandbox_id, ended) = {
            let mut state = lock(&self.state);
            let Some(entry) = state.containers.get_mut(id) else {
                return;
            };
            entry.record.ended(exit);
            if let Err(error) = self.layout.save_state(&entry.record) {
                tracing::error!(container = %id, %error, "cannot record the end of a container");
            }
            (entry.record.sandbox_id.clone(), entry.ended.clone())
        };
        tracing::debug!(container = %id, code = exit.code, finished_at = %rfc3339_nanos(exit.finished_at_nanos), "container ended");
        self.announce(RuntimeEvent::ContainerStopped {
            sandbox_id,
            container_id: id.to_owned(),
        });
        // Last: who waits for it goes on to announce more.
        ended.send_replace(true);
    }

    /// The connection ended: what waits for exits must hear of it. `true` when a new one stands.
    fn reconnect(&self) -> Option<Arc<Connection>> {
        let (connection, hello) = match open_zygote(&self.config, self.zygote_cgroups.clone()) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the zygote cannot be reached");
                return None;
            }
        };
        let connection = Arc::new(connection);
        *self
            .connection
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = connection.clone();
        for (_, waiting) in lock(&self.execs).drain() {
            let _ = waiting.send(Err(RuntimeError::Unavailable(
                "the zygote went away".to_owned(),
            )));
        }
        let now = zygote::now_nanos();
        let mut state = lock(&self.state);
        for sandbox in state.sandboxes.values_mut() {
            let known = hello.sandboxes.iter().find(|known| known.id == sandbox.id);
            sandbox.net_fd = known.and_then(|k| k.net_fd);
            if known.is_none() && sandbox.state == SandboxState::Ready {
                sandbox.state = SandboxState::NotReady;
                let _ = self.layout.save_sandbox(sandbox);
            }
        }
        for entry in state
            .containers
            .values_mut()
            .filter(|e| e.record.state == ContainerState::Running)
        {
            match hello
                .containers
                .iter()
                .find(|known| known.id == entry.record.id)
            {
                Some(known) => match known.exit {
                    Some(exit) => entry.record.ended(exit),
                    None => continue,
                },
                None => {
                    super::cgroup::kill_all(&self.hierarchies.membership(&entry.record.cgroup));
                    entry.record.lost(now);
                }
            }
            let _ = self.layout.save_state(&entry.record);
            entry.ended.send_replace(true);
        }
        drop(state);
        self.announce(RuntimeEvent::Resync);
        Some(connection)
    }

    pub(super) fn not_found(kind: &'static str, id: &str) -> RuntimeError {
        RuntimeError::NotFound {
            kind,
            id: id.to_owned(),
        }
    }

    /// A copy of a container's record.
    pub(super) fn container(&self, id: &str) -> Result<Container, RuntimeError> {
        lock(&self.state)
            .containers
            .get(id)
            .map(|entry| entry.record.clone())
            .ok_or_else(|| Self::not_found("container", id))
    }

    fn layer_bytes(&self, record: &Container) -> u64 {
        const FRESH: Duration = Duration::from_secs(30);
        if let Some((at, bytes)) = lock(&self.layer_sizes).get(&record.id)
            && at.elapsed() < FRESH
        {
            return *bytes;
        }
        let bytes = tree_bytes(&self.layout.container_dir(&record.id).join("upper"));
        lock(&self.layer_sizes).insert(record.id.clone(), (std::time::Instant::now(), bytes));
        bytes
    }
}

impl Drop for NativeRuntime {
    fn drop(&mut self) {
        self.zygote().close();
    }
}

fn open_zygote(config: &Config, cgroups: Vec<PathBuf>) -> io::Result<(Connection, Hello)> {
    Connection::open(&Zygote {
        run_dir: &config.run_dir,
        command: &config.zygote_command,
        cgroups,
    })
}

async fn read_forever(runtime: Weak<NativeRuntime>, mut connection: Arc<Connection>) {
    loop {
        connection
            .read(|event| {
                if let Some(runtime) = runtime.upgrade() {
                    runtime.on_event(event);
                }
            })
            .await;
        loop {
            let Some(alive) = runtime.upgrade() else {
                return;
            };
            let again = tokio::task::spawn_blocking(move || alive.reconnect()).await;
            if let Ok(Some(new)) = again {
                connection = new;
                break;
            }
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
    }
}

fn make_private(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
}

/// Bytes that a tree occupies; what vanishes meanwhile does not count.
fn tree_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.path().symlink_metadata() {
            Ok(data) if data.is_dir() => data.blocks() * 512 + tree_bytes(&entry.path()),
            Ok(data) => data.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// 64 hexadecimal digits.
pub(super) fn new_id() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// Work that goes on by itself where the caller gives up waiting; while the caller waits, it runs in
/// the caller's task, which spares two switches between threads.
pub(super) struct Unstoppable<T: Send + 'static>(Option<BoxFuture<'static, T>>);

impl<T: Send + 'static> Unstoppable<T> {
    pub(super) fn new(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Some(Box::pin(work)))
    }
}

impl<T: Send + 'static> Future for Unstoppable<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(work) = &mut self.0 else {
            return Poll::Pending;
        };
        let result = work.as_mut().poll(context);
        if result.is_ready() {
            self.0 = None;
        }
        result
    }
}

impl<T: Send + 'static> Drop for Unstoppable<T> {
    fn drop(&mut self) {
        if let (Some(work), Ok(tokio)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            tokio.spawn(work);
        }
    }
}

/// An I/O error where something was being done.
pub(super) fn io_error(what: impl std::fmt::Display, error: &io::Error) -> RuntimeError {
    if error.raw_os_error() == Some(libc::ENOSPC) {
        RuntimeError::DiskFull(what.to_string())
    } else {
        RuntimeError::Internal(format!("{what}: {error}"))
    }
}

/// Runs file-system work where it may block: on this thread, whose other tasks move elsewhere, or on
/// one of its own where there is no other thread for them.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    use tokio::runtime::{Handle, RuntimeFlavor};
    if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        return tokio::task::block_in_place(work);
    }
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(RuntimeError::Internal(format!(
                "a task of the runtime failed: {error}"
            )))
        })
}

/// Work that another thread takes on if one is free; whoever needs the result does it otherwise, so
/// that on a busy machine nobody waits for a thread to be woken.
pub(super) struct Beside<T> {
    work: Arc<Mutex<Option<Box<dyn FnOnce() -> T + Send>>>>,
    result: std_mpsc::Receiver<T>,
}

impl<T: Send + 'static> Beside<T> {
    pub(super) fn start(work: impl FnOnce() -> T + Send + 'static) -> Self {
        let work: Arc<Mutex<Option<Box<dyn FnOnce() -> T + Send>>>> =
            Arc::new(Mutex::new(Some(Box::new(work))));
        let (sender, result) = std_mpsc::channel();
        let taken = Arc::clone(&work);
        tokio::task::spawn_blocking(move || {
            let work = lock(&taken).take();
            if let Some(work) = work {
                let _ = sender.send(work());
            }
        });
        Self { work, result }
    }

    /// The result. Blocks. An error says that the work has panicked.
    pub(super) fn finish(self) -> Result<T, RuntimeError> {
        let work = lock(&self.work).take();
        match work {
            Some(work) => Ok(work()),
            None => self
                .result
                .recv()
                .map_err(|_| RuntimeError::Internal("a task of the runtime failed".to_owned())),
        }
    }
}

#[async_trait]
impl RuntimeService for NativeRuntime {
    fn version(&self) -> String {
        concat!("llmagentos://", env!("CARGO_PKG_VERSION")).to_owned()
    }

    async fn ready(&self) -> Result<(), RuntimeError> {
        self.zygote()
            .call(super::protocol::Request::Hello, &[])
            .await
            .map(drop)
            .map_err(|e| e.into_runtime("zygote", ""))
    }

    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<PodSandbox, RuntimeError> {
        self.run_sandbox(config).await
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.stop_sandbox(id).await
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.remove_sandbox(id).await
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>, RuntimeError> {
        Ok(lock(&self.state)
            .sandboxes
            .values()
            .map(Sandbox::status)
            .collect())
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
    ) -> Result<String, RuntimeError> {
        self.create(sandbox_id, config).await
    }

    async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.start(id).await
    }

    async fn stop_container(
        &self,
        id: &str,
        grace_period_seconds: u64,
    ) -> Result<(), RuntimeError> {
        self.stop(id, Duration::from_secs(grace_period_seconds))
            .await
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.remove(id).await
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus, RuntimeError> {
        self.container(id).map(|record| record.status())
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(lock(&self.state)
            .containers
            .values()
            .map(|entry| entry.record.status())
            .collect())
    }

    async fn update_container_resources(
        &self,
        id: &str,
        resources: LinuxResources,
    ) -> Result<(), RuntimeError> {
        self.update(id, resources).await
    }

    async fn reopen_container_log(&self, id: &str) -> Result<(), RuntimeError> {
        self.container(id)?;
        self.zygote()
            .call(
                super::protocol::Request::ReopenLog { id: id.to_owned() },
                &[],
            )
            .await
            .map(drop)
            .map_err(|e| e.into_runtime("running container", id))
    }

    async fn container_stats(&self) -> Result<Vec<ContainerStats>, RuntimeError> {
        let me = self.arc()?;
        blocking(move || {
            let running: Vec<Container> = lock(&me.state)
                .containers
                .values()
                .filter(|entry| entry.record.state == ContainerState::Running)
                .map(|entry| entry.record.clone())
                .collect();
            lock(&me.layer_sizes).retain(|id, _| running.iter().any(|r| r.id == *id));
            Ok(running
                .into_iter()
                .map(|record| {
                    let usage = me.hierarchies.usage(&record.cgroup);
                    ContainerStats {
                        cpu_usage_core_nanos: usage.cpu_nanos,
                        memory_usage_bytes: usage.memory_bytes,
                        memory_working_set_bytes: usage
                            .memory_bytes
                            .saturating_sub(usage.memory_inactive_file_bytes),
                        memory_rss_bytes: usage.memory_rss_bytes,
                        process_count: usage.process_count,
                        writable_layer_bytes: me.layer_bytes(&record),
                        timestamp_nanos: zygote::now_nanos(),
                        name: record.config.metadata.name.clone(),
                        labels: record.config.labels.clone(),
                        id: record.id,
                    }
                })
                .collect())
        })
        .await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout_seconds: u64,
    ) -> Result<ExecResult, RuntimeError> {
        self.exec_and_wait(id, command, timeout_seconds).await
    }

    async fn exec(&self, request: StreamRequest) -> Result<Session, RuntimeError> {
        self.exec_streams(request).await
    }

    async fn attach(&self, request: StreamRequest) -> Result<Session, RuntimeError> {
        self.attach_streams(request).await
    }

    async fn port_forward(
        &self,
        sandbox_id: &str,
        port: u16,
    ) -> Result<Box<dyn ServiceConnection>, RuntimeError> {
        self.connect_inside(sandbox_id, port).await
    }

    fn events(&self) -> mpsc::Receiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        lock(&self.listeners).push(sender);
        receiver
    }
}

/// The filter that a container gets, as a descriptor to send along.
pub(super) type Filter = Option<Arc<OwnedFd>>;
