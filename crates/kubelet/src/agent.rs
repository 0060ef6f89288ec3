//! The kubelet as a whole: starts its parts, hands pods and runtime events to the workers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::Api;
use runtime::service::{
    ContainerState, ContainerStatus, ImageService, PodSandbox, RuntimeEvent, RuntimeService,
    SandboxState,
};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::context::{Context, Services};
use crate::events::Recorder;
use crate::objects::Objects;
use crate::pod::admission::{self, Refusal, Room};
use crate::pod::spec::PodSpecView;
use crate::pod::worker::{self, Begin, Input, SharedSnapshot, Snapshot};
use crate::pod::{labels, start};
use crate::pull_records::PullRecords;
use crate::watch::{Change, follow};
use crate::{node, probe, server, static_pods, upkeep};

/// Everything is listed again this often, should an event ever be lost.
const RELIST_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot create {path}")]
    Directory {
        path: String,
        source: std::io::Error,
    },
    #[error("container runtime does not answer")]
    Runtime(#[source] runtime::service::RuntimeError),
    #[error("the images that are here cannot be listed")]
    Images(#[source] runtime::service::ImageError),
    #[error("kubelet server could not be started")]
    Server(#[source] server::ServerError),
}

/// A running node agent. Dropping it stops it and leaves the containers running, as [`Kubelet::shutdown`] does.
pub struct Kubelet {
    agent: Arc<Agent>,
    tasks: JoinSet<()>,
    server_address: Option<SocketAddr>,
}

/// What the parts share of the pods.
pub struct Agent {
    pub context: Arc<Context>,
    workers: Mutex<HashMap<String, Handle>>,
    /// The node as last seen, for admission.
    pub node: Mutex<Option<Arc<Node>>>,
    /// Which pod a sandbox belongs to.
    sandboxes: Mutex<HashMap<String, String>>,
    room: Room,
    /// What the node is short of.
    pub pressure: Mutex<Pressure>,
    pub pressure_changed: Notify,
    /// A mirror pod may have to be made or deleted.
    pub mirrors_due: Notify,
}

/// What the node is short of, for its conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

struct Handle {
    sender: mpsc::UnboundedSender<Input>,
    snapshot: SharedSnapshot,
    task: tokio::task::AbortHandle,
    is_static: bool,
}

impl Kubelet {
    /// Starts the node agent: registers the node, takes over what runs, and follows the pods of this node.
    ///
    /// Answers once the server listens; the rest goes on in the background.
    pub async fn start(
        config: Config,
        client: kube::Client,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
    ) -> Result<Kubelet, StartError> {
        for directory in [
            &config.root_dir,
            &config.log_dir,
            &config.root_dir.join("pods"),
        ] {
            std::fs::create_dir_all(directory).map_err(|source| StartError::Directory {
                path: directory.display().to_string(),
                source,
            })?;
        }
        let records_dir = config.root_dir.join("image_manager");
        let pulls =
            PullRecords::open(records_dir.clone()).map_err(|source| StartError::Directory {
                path: records_dir.display().to_string(),
                source,
            })?;
        if pulls.was_interrupted() {
            pulls.settle(&images.list().await.map_err(StartError::Images)?);
        }
        let mut tasks = JoinSet::new();
        let (events, write_events) = Recorder::new(client.clone(), &config.node_name);
        tasks.spawn(write_events);
        let capacity = node::capacity(&config);
        let runtime_events = runtime.events();
        let version = runtime.version();
        let runtime_name = version.split("://").next().unwrap_or(&version).to_owned();
        let server_config = config.server.clone();
        let pod_count_max = config.pod_count_max as usize;
        let agent = Arc::new_cyclic(|weak: &Weak<Agent>| {
            let weak = weak.clone();
            let poke = Arc::new(move |uid: &str| {
                if let Some(agent) = weak.upgrade() {
                    agent.send(uid, Input::Objects);
                }
            });
            let context = Context {
                objects: Objects::new(client.clone(), poke),
                probes: probe::Prober {
                    tls: Arc::new(probe::http::trusting_tls()),
                },
                services: Services::default(),
                config,
                client,
                runtime,
                images,
                pulls,
                events,
                capacity,
                runtime_name,
            };
            Agent {
                context: Arc::new(context),
                workers: Mutex::default(),
                node: Mutex::default(),
                sandboxes: Mutex::default(),
                room: Room {
                    capacity,
                    pod_count_max,
                    others: node::machine::hugepages().into_iter().collect(),
                },
                pressure: Mutex::default(),
                pressure_changed: Notify::new(),
                mirrors_due: Notify::new(),
            }
        });
        let server_address = match server_config {
            Some(config) => {
                let (address, serve) = server::bind(Arc::clone(&agent), &config)
                    .await
                    .map_err(StartError::Server)?;
                tasks.spawn(serve);
                Some(address)
            }
            None => None,
        };
        agent
            .context
            .runtime
            .list_pod_sandboxes()
            .await
            .map_err(StartError::Runtime)?;
        if let Some(directory) = agent.context.config.manifests_dir.clone() {
            // Before the API server's pods, so that none of these is taken for left over.
            let mut found = Found::list(&agent.context).await.unwrap_or_default();
            static_pods::load(&agent, &directory, &mut found);
            tasks.spawn(static_pods::run(Arc::clone(&agent)));
        }
        tasks.spawn(upkeep::run(Arc::clone(&agent)));
        tasks.spawn(follow_services(Arc::clone(&agent)));
        tasks.spawn(follow_pods(Arc::clone(&agent)));
        tasks.spawn(follow_runtime(Arc::clone(&agent), runtime_events));
        tasks.spawn(node::run(Arc::clone(&agent), server_address));
        Ok(Kubelet {
            agent,
            tasks,
            server_address,
        })
    }

    /// Where the HTTPS server listens, if there is one.
    pub fn server_address(&self) -> Option<SocketAddr> {
        self.server_address
    }

    /// Stops the agent; containers go on running and are found again by the next start.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
        let workers: Vec<_> = lock(&self.agent.workers)
            .drain()
            .map(|(_, handle)| handle)
            .collect();
        for worker in workers {
            worker.task.abort();
        }
    }

    /// Ends every pod of this node, each with its own grace period but no longer than `grace_period_seconds_max`,
    /// and removes its sandbox; then stops the agent. The API server is told nothing, so the pods start again
    /// with the next start.
    pub async fn drain(mut self, grace_period_seconds_max: i64) {
        // Nothing new is taken from here on.
        self.tasks.shutdown().await;
        let mut runtime_events = self.agent.context.runtime.events();
        let agent = Arc::clone(&self.agent);
        let forward = tokio::spawn(async move {
            while let Some(event) = runtime_events.recv().await {
                agent.dispatch(&event);
            }
        });
        for handle in lock(&self.agent.workers).values() {
            let grace = lock(&handle.snapshot).pod.as_ref().map_or(30, |pod| {
                PodSpecView::new(Arc::clone(pod)).grace_period_seconds()
            });
            let _ = handle.sender.send(Input::Drain {
                grace_period_seconds: grace.min(grace_period_seconds_max),
            });
        }
        let deadline = tokio::time::Instant::now()
            + Duration::from_secs(u64::try_from(grace_period_seconds_max).unwrap_or(0) + 10);
        while tokio::time::Instant::now() < deadline
            && !self
                .agent
                .snapshots()
                .iter()
                .all(|snapshot| snapshot.finished)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        forward.abort();
        let context = &self.agent.context;
        match context.runtime.list_pod_sandboxes().await {
            Ok(sandboxes) => {
                let removals = sandboxes.iter().map(|sandbox| async move {
                    if let Err(error) = context.runtime.remove_pod_sandbox(&sandbox.id).await {
                        tracing::warn!(sandbox = sandbox.id, %error, "sandbox was not removed");
                    }
                });
                join_all(removals).await;
            }
            Err(error) => tracing::warn!(%error, "sandboxes could not be listed"),
        }
        self.shutdown().await;
    }
}

impl Agent {
    /// What is known of every pod of this node.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        lock(&self.workers)
            .values()
            .map(|handle| lock(&handle.snapshot).clone())
            .collect()
    }

    /// The pod of that name, if it is here.
    pub fn snapshot(&self, namespace: &str, name: &str) -> Option<Snapshot> {
        let workers = lock(&self.workers);

        workers
            .values()
            .map(|handle| lock(&handle.snapshot).clone())
            .find(|snapshot| {
                let metadata = snapshot.pod.as_ref().map(|pod| &pod.metadata);
                metadata.is_some_and(|metadata| {
                    metadata.namespace.as_deref() == Some(namespace)
                        && metadata.name.as_deref() == Some(name)
                })
            })
    }

    /// Is there a worker for the pod?
    pub fn has(&self, uid: &str) -> bool {
        lock(&self.workers)
            .get(uid)
            .is_some_and(|handle| !handle.task.is_finished())
    }

    /// The pods that come from manifests.
    pub fn static_pods(&self) -> Vec<Arc<Pod>> {
        let workers = lock(&self.workers);
        workers
            .values()
            .filter(|handle| handle.is_static)
            .filter_map(|handle| lock(&handle.snapshot).pod.clone())
            .collect()
    }

    /// Sends an input to a pod's worker; answers whether there is one.
    pub fn send(&self, uid: &str, input: Input) -> bool {
        lock(&self.workers)
            .get(uid)
            .is_some_and(|handle| handle.sender.send(input).is_ok())
    }

    /// A pod as a source has it now: a new one gets a worker.
    pub fn apply(self: &Arc<Self>, pod: Arc<Pod>, is_static: bool, found: &mut Found) {
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        let is_mirror = pod
            .metadata
            .annotations
            .as_ref()
            .is_some_and(|annotations| annotations.contains_key(labels::CONFIG_MIRROR));
        if is_mirror && !is_static {
            let of = pod
                .metadata
                .annotations
                .as_ref()
                .and_then(|annotations| annotations.get(labels::CONFIG_MIRROR))
                .cloned();
            if let Some(uid) = of {
                self.send(&uid, Input::Mirror(Some(pod)));
            }
            return;
        }
        let mut workers = lock(&self.workers);
        if let Some(handle) = workers.get(&uid)
            && !handle.task.is_finished()
        {
            let _ = handle.sender.send(Input::Pod(pod));
            return;
        }
        let (sandboxes, containers) = found.take(&uid);
        let refusal = if sandboxes.is_empty() && !is_known(&pod) {
            self.refuse(&pod, &workers)
        } else {
            None
        };
        for sandbox in &sandboxes {
            lock(&self.sandboxes).insert(sandbox.id.clone(), uid.clone());
        }
        let snapshot: SharedSnapshot = Arc::new(Mutex::new(Snapshot {
            pod: Some(Arc::clone(&pod)),
            status: pod.status.clone().unwrap_or_default(),
            ..Snapshot::default()
        }));
        let (sender, receiver) = mpsc::unbounded_channel();
        let begin = Begin {
            pod,
            mirror: None,
            is_static,
            sandboxes,
            containers,
            refusal,
            snapshot: Arc::clone(&snapshot),
        };
        let worker = worker::spawn(Arc::clone(&self.context), begin, sender.clone(), receiver);
        let task = worker.abort_handle();
        workers.insert(
            uid.clone(),
            Handle {
                sender,
                snapshot,
                task,
                is_static,
            },
        );
        let agent = Arc::downgrade(self);
        tokio::spawn(async move {
            let result = worker.await;
            let Some(agent) = agent.upgrade() else { return };
            if let Err(error) = result
                && error.is_panic()
            {
                tracing::error!(
                    uid,
                    "pod worker panicked; the pod is taken up again with the next listing"
                );
            }
            lock(&agent.workers).retain(|own, handle| *own != uid || !handle.task.is_finished());
            lock(&agent.sandboxes).retain(|_, owner| *owner != uid);
            // A mirror goes once its pod has ended.
            agent.mirrors_due.notify_one();
        });
    }

    /// Ends the pods of a source that it has no longer.
    pub fn retain(&self, keep: &dyn Fn(&str) -> bool, of_static: bool) {
        for (uid, handle) in lock(&self.workers).iter() {
            if handle.is_static == of_static && !keep(uid) {
                let _ = handle.sender.send(Input::Gone);
            }
        }
    }

    fn refuse(&self, pod: &Arc<Pod>, workers: &HashMap<String, Handle>) -> Option<Refusal> {
        let view = PodSpecView::new(Arc::clone(pod));
        let active: Vec<Arc<Pod>> = workers
            .values()
            .filter_map(|handle| {
                let snapshot = lock(&handle.snapshot);
                let over = snapshot.finished
                    || matches!(
                        snapshot.status.phase.as_deref(),
                        Some("Succeeded" | "Failed")
                    );
                snapshot.pod.clone().filter(|_| !over)
            })
            .collect();
        let active: Vec<&Pod> = active.iter().map(AsRef::as_ref).collect();
        let is_static = pod
            .metadata
            .annotations
            .as_ref()
            .is_some_and(|annotations| annotations.contains_key(labels::CONFIG_SOURCE));
        let critical = is_static
            || pod
                .spec
                .as_ref()
                .and_then(|spec| spec.priority)
                .is_some_and(|priority| priority >= upkeep::CRITICAL_PRIORITY);
        // What keeps the node alive is taken also by a node in need.
        let pressure = if critical {
            Pressure::default()
        } else {
            *lock(&self.pressure)
        };
        let best_effort =
            crate::pod::resources::qos_class(pod) == crate::pod::resources::QosClass::BestEffort;
        let short: Vec<&str> = [
            (pressure.memory && best_effort, "MemoryPressure"),
            (pressure.disk, "DiskPressure"),
            (pressure.pids, "PIDPressure"),
        ]
        .into_iter()
        .filter(|(short, _)| *short)
        .map(|(_, name)| name)
        .collect();
        if !short.is_empty() {
            return Some(Refusal {
                reason: "Evicted".into(),
                message: format!("The node had condition: [{}]. ", short.join(" ")),
            });
        }
        let node = lock(&self.node).clone();
        admission::admit(&view, &active, &self.room, node.as_deref()).err()
    }

    /// Hands a runtime event to the pod that it is about. Answers whether its owner is known.
    fn dispatch(&self, event: &RuntimeEvent) -> bool {
        let (sandbox_id, input) = match event {
            RuntimeEvent::ContainerStarted {
                sandbox_id,
                container_id,
            }
            | RuntimeEvent::ContainerStopped {
                sandbox_id,
                container_id,
            }
            | RuntimeEvent::ContainerRemoved {
                sandbox_id,
                container_id,
            } => (sandbox_id, Input::Container(container_id.clone())),
            RuntimeEvent::SandboxStopped { sandbox_id } => {
                (sandbox_id, Input::SandboxStopped(sandbox_id.clone()))
            }
            RuntimeEvent::Resync => return false,
        };
        let known = lock(&self.sandboxes).get(sandbox_id).cloned();
        let uid = known.or_else(|| self.owner(sandbox_id));
        uid.is_some_and(|uid| self.send(&uid, input))
    }

    /// Looks a sandbox up in what the workers show.
    fn owner(&self, sandbox_id: &str) -> Option<String> {
        let uid = {
            let workers = lock(&self.workers);
            workers
                .iter()
                .find(|(_, handle)| {
                    lock(&handle.snapshot)
                        .sandboxes
                        .iter()
                        .any(|sandbox| sandbox.id == sandbox_id)
                })
                .map(|(uid, _)| uid.clone())
        }?;
        lock(&self.sandboxes).insert(sandbox_id.to_owned(), uid.clone());
        Some(uid)
    }

    /// Lists what the runtime has and tells every worker what is its own; ends what belongs to nobody if `sources_known`.
    async fn relist(self: &Arc<Self>, sources_known: bool) {
        let Some(mut found) = Found::list(&self.context).await else {
            return;
        };
        let uids: Vec<String> = lock(&self.workers).keys().cloned().collect();
        for uid in uids {
            let (sandboxes, containers) = found.take(&uid);
            self.send(
                &uid,
                Input::Observed {
                    sandboxes,
                    containers,
                },
            );
        }
        if sources_known {
            end_orphans(Arc::clone(self), found).await;
        }
    }
}

/// Was the pod admitted to this node before?
fn is_known(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| {
        status.start_time.is_some()
            || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
    })
}

/// What the runtime has, by pod uid.
#[derive(Default)]
pub struct Found {
    sandboxes: HashMap<String, Vec<PodSandbox>>,
    containers: HashMap<String, Vec<ContainerStatus>>,
}

impl Found {
    async fn list(context: &Context) -> Option<Found> {
        let (sandboxes, containers) = futures::join!(
            context.runtime.list_pod_sandboxes(),
            context.runtime.list_containers()
        );
        let (sandboxes, containers) = match (sandboxes, containers) {
            (Ok(sandboxes), Ok(containers)) => (sandboxes, containers),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "runtime could not be listed");
                return None;
            }
        };
        let mut found = Found::default();
        for sandbox in sandboxes {
            found
                .sandboxes
                .entry(labels::pod_uid(&sandbox).to_owned())
                .or_default()
                .push(sandbox);
        }
        for container in containers {
            let uid = container
                .labels
                .get(labels::POD_UID)
                .cloned()
                .unwrap_or_default();
            found.containers.entry(uid).or_default().push(container);
        }
        Some(found)
    }

    fn take(&mut self, uid: &str) -> (Vec<PodSandbox>, Vec<ContainerStatus>) {
        (
            self.sandboxes.remove(uid).unwrap_or_default(),
            self.containers.remove(uid).unwrap_or_default(),
        )
    }
}

async fn follow_services(agent: Arc<Agent>) {
    let api: Api<Service> = Api::all(agent.context.client.clone());
    follow(api, None, move |change| {
        let slim = |mut service: Service| {
            service.metadata.managed_fields = None;
            service.metadata.annotations = None;
            service.status = None;
            service
        };
        let services = &agent.context.services;
        match change {
            Change::Reset(list) => services.set(list.into_iter().map(slim).collect()),
            Change::Applied(service) => services.apply(slim(service)),
            Change::Deleted(service) => services.delete(&service),
        }
        true
    })
    .await;
}

async fn follow_pods(agent: Arc<Agent>) {
    let api: Api<Pod> = Api::all(agent.context.client.clone());
    let selector = format!("spec.nodeName={}", agent.context.config.node_name);
    let (sender, mut changes) = mpsc::unbounded_channel();
    let follow = follow(api, Some(selector), move |change| {
        sender.send(change).is_ok()
    });
    let mut follow = std::pin::pin!(follow);
    loop {
        let change = tokio::select! {
            () = &mut follow => return,
            change = changes.recv() => match change {
                Some(change) => change,
                None => return,
            },
        };
        match change {
            Change::Reset(mut pods) => {
                let listed: std::collections::HashSet<String> = pods
                    .iter()
                    .filter_map(|pod| pod.metadata.uid.clone())
                    .collect();
                let mut found = loop {
                    match Found::list(&agent.context).await {
                        Some(found) => break found,
                        None => tokio::time::sleep(Duration::from_secs(1)).await,
                    }
                };
                // Older pods were admitted first.
                pods.sort_by(|a, b| {
                    a.metadata
                        .creation_timestamp
                        .cmp(&b.metadata.creation_timestamp)
                });
                for pod in pods {
                    agent.apply(Arc::new(slim(pod)), false, &mut found);
                }
                agent.retain(&|uid| listed.contains(uid), false);
                let workers: Vec<String> = lock(&agent.workers).keys().cloned().collect();
                for uid in workers {
                    found.take(&uid);
                }
                end_orphans(Arc::clone(&agent), found).await;
            }
            Change::Applied(pod) => agent.apply(Arc::new(slim(pod)), false, &mut Found::default()),
            Change::Deleted(pod) => {
                let mirror_of = pod
                    .metadata
                    .annotations
                    .as_ref()
                    .and_then(|annotations| annotations.get(labels::CONFIG_MIRROR));
                if let Some(uid) = mirror_of {
                    agent.send(uid, Input::Mirror(None));
                } else if let Some(uid) = &pod.metadata.uid {
                    agent.send(uid, Input::Gone);
                }
            }
        }
    }
}

/// Pods are kept without what the kubelet never reads.
fn slim(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    pod
}

async fn follow_runtime(agent: Arc<Agent>, mut events: mpsc::Receiver<RuntimeEvent>) {
    let mut relist = tokio::time::interval(RELIST_INTERVAL);
    relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    relist.tick().await;
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(RuntimeEvent::Resync) => agent.relist(false).await,
                Some(event) => {
                    // A sandbox that was made a moment ago may not be known yet; its own creation reports what it made.
                    if !agent.dispatch(&event) {
                        tracing::trace!(?event, "event of a pod that is not known");
                    }
                }
                None => {
                    events = agent.context.runtime.events();
                    agent.relist(false).await;
                }
            },
            _ = relist.tick() => agent.relist(true).await,
        }
    }
}

/// Ends what the runtime still runs of pods that are gone, and removes what they left on disk.
async fn end_orphans(agent: Arc<Agent>, found: Found) {
    let context = Arc::clone(&agent.context);
    let Found {
        sandboxes,
        mut containers,
    } = found;
    for (uid, sandboxes) in sandboxes {
        let containers = containers.remove(&uid).unwrap_or_default();
        let (context, agent) = (Arc::clone(&context), Arc::clone(&agent));
        tokio::spawn(async move {
            tracing::info!(uid, "pod is gone; ending what is left of it");
            let stops = containers.iter().filter(|status| status.state == ContainerState::Running).map(|status| {
                let context = &context;
                async move {
                    let grace = labels::grace_period_of(status).unwrap_or(30);
                    // The pod is gone, so its hook comes from the container's annotation.
                    let view = PodSpecView::new(Arc::default());
                    let container = labels::pre_stop_of(status).map(|pre_stop| k8s_openapi::api::core::v1::Container {
                        name: status.metadata.name.clone(),
                        lifecycle: Some(k8s_openapi::api::core::v1::Lifecycle { pre_stop: Some(pre_stop), ..Default::default() }),
                        ..Default::default()
                    });
                    if let Err(error) = start::stop(context, &view, container.as_ref(), &status.id, "", grace).await {
                        tracing::warn!(container = status.id, %error, "container of a gone pod was not stopped");
                    }
                }
            });
            join_all(stops).await;
            // It may have come back meanwhile (a manifest, a slow watch).
            if lock(&agent.workers).contains_key(&uid) {
                return;
            }
            for sandbox in sandboxes
                .iter()
                .filter(|sandbox| sandbox.state == SandboxState::Ready)
            {
                if let Err(error) = context.runtime.stop_pod_sandbox(&sandbox.id).await {
                    tracing::warn!(sandbox = sandbox.id, %error, "sandbox of a gone pod was not stopped");
                }
            }
            let log_directory = sandboxes.first().map(|sandbox| {
                let metadata = &sandbox.metadata;
                context
                    .config
                    .log_dir
                    .join(crate::pod::sandbox::log_directory_name(
                        &metadata.namespace,
                        &metadata.name,
                        &uid,
                    ))
            });
            worker::remove_remains(&context, &uid, &sandboxes, log_directory).await;
        });
    }
    remove_orphan_files(&agent).await;
}

/// Removes directories of pods that neither a source nor the runtime knows.
async fn remove_orphan_files(agent: &Arc<Agent>) {
    let context = &agent.context;
    let mut known: std::collections::HashSet<String> =
        lock(&agent.workers).keys().cloned().collect();
    match context.runtime.list_pod_sandboxes().await {
        Ok(sandboxes) => known.extend(
            sandboxes
                .iter()
                .map(|sandbox| labels::pod_uid(sandbox).to_owned()),
        ),
        Err(_) => return,
    }
    let names = |directory: &std::path::Path| -> Vec<String> {
        std::fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    for uid in names(&context.config.root_dir.join("pods")) {
        if !known.contains(&uid) {
            worker::remove_remains(context, &uid, &[], None).await;
        }
    }
    for name in names(&context.config.log_dir) {
        // Only directories of the form that pods have.
        let Some(uid) = name
            .rsplit_once('_')
            .map(|(_, uid)| uid)
            .filter(|_| name.matches('_').count() == 2)
        else {
            continue;
        };
        if !known.contains(uid) {
            let _ = std::fs::remove_dir_all(context.config.log_dir.join(&name));
        }
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
