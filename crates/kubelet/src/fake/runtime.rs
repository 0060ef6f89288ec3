//! A runtime that only remembers: containers run until a test (or their image's name) ends them.
//!
//! Images: `missing…` cannot be pulled, `exit-<code>` ends at once, `stubborn` ignores its stop signal,
//! `nostart` cannot be started, `absent…` is not there until pulled, `absent.example/private…` only with a password; anything else runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::runtime::service::*;
use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::mpsc;

#[derive(Clone, Default)]
pub struct FakeRuntime(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
}

#[derive(Default)]
pub struct State {
    next: u64,
    pub sandboxes: BTreeMap<String, PodSandbox>,
    pub sandbox_configs: BTreeMap<String, PodSandboxConfig>,
    pub containers: BTreeMap<String, ContainerStatus>,
    pub configs: BTreeMap<String, ContainerConfig>,
    pub pulled: Vec<String>,
    /// What was asked for, in order: `start web`, `stop web 30`, …
    pub log: Vec<String>,
    /// Exit code of `exec_sync` by the command's first word; 0 if not named.
    pub exec_codes: BTreeMap<String, i32>,
    events: Vec<mpsc::Sender<RuntimeEvent>>,
}

fn now() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap()
}

impl State {
    fn id(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{}", self.next)
    }

    fn tell(&mut self, event: RuntimeEvent) {
        self.events
            .retain(|sender| sender.try_send(event.clone()).is_ok() || !sender.is_closed());
    }

    fn end(&mut self, id: &str, exit_code: i32) {
        let Some(status) = self
            .containers
            .get_mut(id)
            .filter(|status| status.state != ContainerState::Exited)
        else {
            return;
        };
        status.state = ContainerState::Exited;
        status.exit_code = exit_code;
        status.finished_at_nanos = now();
        status.reason = if exit_code == 0 {
            "Completed".into()
        } else {
            "Error".into()
        };
        let (sandbox_id, container_id) = (status.sandbox_id.clone(), id.to_owned());
        self.tell(RuntimeEvent::ContainerStopped {
            sandbox_id,
            container_id,
        });
    }
}

impl FakeRuntime {
    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// The newest running container of that name.
    pub fn running(&self, name: &str) -> Option<ContainerStatus> {
        let state = self.state();
        let mut list: Vec<_> = state
            .containers
            .values()
            .filter(|status| {
                status.metadata.name == name && status.state == ContainerState::Running
            })
            .cloned()
            .collect();
        list.sort_by_key(|status| status.created_at_nanos);
        list.pop()
    }

    /// Ends the running container of that name.
    pub fn exit(&self, name: &str, exit_code: i32) {
        let id = self.running(name).expect("a running container").id;
        self.state().end(&id, exit_code);
    }

    pub fn config(&self, id: &str) -> ContainerConfig {
        self.state().configs[id].clone()
    }
}

#[async_trait]
impl RuntimeService for FakeRuntime {
    fn version(&self) -> String {
        "fake://1".into()
    }

    async fn ready(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<PodSandbox, RuntimeError> {
        let mut state = self.state();
        let id = state.id("s");
        let ip = format!("10.42.0.{}", state.next).parse().unwrap();
        state.log.push(format!(
            "sandbox {} {}",
            config.metadata.name, config.metadata.attempt
        ));
        let sandbox = PodSandbox {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: SandboxState::Ready,
            created_at_nanos: now(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            ips: if config.network == NamespaceMode::Node {
                vec![]
            } else {
                vec![ip]
            },
        };
        state.sandboxes.insert(id.clone(), sandbox.clone());
        state.sandbox_configs.insert(id, config);
        Ok(sandbox)
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let mut state = self.state();
        let ids: Vec<String> = state
            .containers
            .values()
            .filter(|status| status.sandbox_id == id)
            .map(|status| status.id.clone())
            .collect();
        for container in ids {
            state.end(&container, 137);
        }
        if let Some(sandbox) = state.sandboxes.get_mut(id) {
            sandbox.state = SandboxState::NotReady;
            let name = sandbox.metadata.name.clone();
            state.log.push(format!("stop-sandbox {name}"));
        }
        state.tell(RuntimeEvent::SandboxStopped {
            sandbox_id: id.into(),
        });
        Ok(())
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let mut state = self.state();
        if let Some(sandbox) = state.sandboxes.remove(id) {
            state
                .log
                .push(format!("remove-sandbox {}", sandbox.metadata.name));
        }
        state.containers.retain(|_, status| status.sandbox_id != id);
        Ok(())
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>, RuntimeError> {
        Ok(self.state().sandboxes.values().cloned().collect())
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
    ) -> Result<String, RuntimeError> {
        let mut state = self.state();
        let id = state.id("c");
        let directory = state.sandbox_configs[sandbox_id].log_directory.clone();
        let status = ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox_id.into(),
            metadata: config.metadata.clone(),
            state: ContainerState::Created,
            created_at_nanos: now(),
            started_at_nanos: 0,
            finished_at_nanos: 0,
            exit_code: 0,
            signal: 0,
            image_id: config.image_id.clone(),
            user_image: config.user_image.clone(),
            reason: String::new(),
            message: String::new(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: directory.join(&config.log_path),
            pid: None,
            warnings: Vec::new(),
        };
        state.containers.insert(id.clone(), status);
        state.configs.insert(id.clone(), config);
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        let mut state = self.state();
        let (name, image) = {
            let config = &state.configs[id];
            (config.metadata.name.clone(), config.user_image.clone())
        };
        state.log.push(format!("start {name}"));
        if image == "nostart" {
            state.end(id, 128);
            return Err(RuntimeError::StartFailed {
                id: id.into(),
                message: "exec: \"x\": executable file not found in $PATH".into(),
            });
        }
        let status = state.containers.get_mut(id).unwrap();
        status.state = ContainerState::Running;
        status.started_at_nanos = now();
        std::fs::create_dir_all(status.log_path.parent().unwrap()).unwrap();
        std::fs::write(
            &status.log_path,
            format!("2026-01-01T00:00:00Z stdout F hello from {name}\n"),
        )
        .unwrap();
        let sandbox_id = status.sandbox_id.clone();
        state.tell(RuntimeEvent::ContainerStarted {
            sandbox_id,
            container_id: id.into(),
        });
        if let Some(code) = image
            .strip_prefix("exit-")
            .and_then(|code| code.split(':').next()?.parse().ok())
        {
            state.end(id, code);
        }
        Ok(())
    }

    async fn stop_container(
        &self,
        id: &str,
        grace_period_seconds: u64,
    ) -> Result<(), RuntimeError> {
        let stubborn = {
            let mut state = self.state();
            let config = state
                .configs
                .get(id)
                .ok_or_else(|| RuntimeError::NotFound {
                    kind: "container",
                    id: id.into(),
                })?;
            let (name, stubborn) = (
                config.metadata.name.clone(),
                config.user_image == "stubborn",
            );
            state
                .log
                .push(format!("stop {name} {grace_period_seconds}"));
            stubborn
        };
        if stubborn {
            tokio::time::sleep(Duration::from_secs(grace_period_seconds)).await;
        }
        self.state().end(id, if stubborn { 137 } else { 143 });
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.state().containers.remove(id);
        Ok(())
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus, RuntimeError> {
        self.state()
            .containers
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound {
                kind: "container",
                id: id.into(),
            })
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(self.state().containers.values().cloned().collect())
    }

    async fn update_container_resources(
        &self,
        _: &str,
        _: LinuxResources,
    ) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn reopen_container_log(&self, id: &str) -> Result<(), RuntimeError> {
        let path = self.state().containers[id].log_path.clone();
        std::fs::write(path, "").map_err(|error| RuntimeError::Internal(error.to_string()))
    }

    async fn container_stats(&self) -> Result<Vec<ContainerStats>, RuntimeError> {
        let state = self.state();
        let running = state
            .containers
            .values()
            .filter(|status| status.state == ContainerState::Running);
        Ok(running
            .map(|status| ContainerStats {
                id: status.id.clone(),
                name: status.metadata.name.clone(),
                labels: status.labels.clone(),
                memory_working_set_bytes: 1 << 20,
                ..Default::default()
            })
            .collect())
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        _: u64,
    ) -> Result<ExecResult, RuntimeError> {
        let mut state = self.state();
        let name = state.configs[id].metadata.name.clone();
        let first = command.first().cloned().unwrap_or_default();
        state.log.push(format!("exec {name} {first}"));
        Ok(ExecResult {
            stdout: b"output".to_vec(),
            stderr: Vec::new(),
            exit_code: state.exec_codes.get(&first).copied().unwrap_or(0),
        })
    }

    async fn exec(&self, _: StreamRequest) -> Result<Session, RuntimeError> {
        Err(RuntimeError::Unavailable("fake".into()))
    }

    async fn attach(&self, _: StreamRequest) -> Result<Session, RuntimeError> {
        Err(RuntimeError::Unavailable("fake".into()))
    }

    async fn port_forward(&self, _: &str, _: u16) -> Result<Box<dyn Connection>, RuntimeError> {
        Err(RuntimeError::Unavailable("fake".into()))
    }

    fn events(&self) -> mpsc::Receiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::channel(1000);
        self.state().events.push(sender);
        receiver
    }
}

#[async_trait]
impl ImageService for FakeRuntime {
    async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let image = |id: &str, tag: &str| Image {
            id: format!("sha256:{id}"),
            repo_tags: vec![tag.to_owned()],
            size_bytes: 10,
            ..Image::default()
        };
        let state = self.state();
        let pulled = state.pulled.iter().map(|name| image(name, name));
        Ok(pulled.chain([image("img", "img:1")]).collect())
    }

    async fn status(&self, image: &str) -> Result<Option<Image>, ImageError> {
        if image.contains(' ') {
            return Err(ImageError::InvalidName {
                image: image.into(),
                reason: "invalid reference format".into(),
            });
        }
        let absent = image.starts_with("missing") || image.starts_with("absent");
        let here = !absent || self.state().pulled.iter().any(|pulled| pulled == image);
        Ok(here.then(|| Image {
            id: format!("sha256:{image}"),
            size_bytes: 10,
            ..Image::default()
        }))
    }

    async fn pull(
        &self,
        image: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<PullResult, ImageError> {
        if image.contains(' ') {
            return Err(ImageError::InvalidName {
                image: image.into(),
                reason: "invalid reference format".into(),
            });
        }
        let mut state = self.state();
        state.log.push(format!("pull {image}"));
        let is_refused =
            image.contains("/private") && auth.is_none_or(|auth| auth.password != "right");
        if is_refused {
            return Err(ImageError::Pull {
                image: image.into(),
                reason: "unauthorized".into(),
            });
        }
        if image.starts_with("missing") {
            return Err(ImageError::Pull {
                image: image.into(),
                reason: "not found".into(),
            });
        }
        state.pulled.push(image.into());
        Ok(PullResult {
            image_id: image.into(),
            size_bytes: 10,
            warnings: vec![],
        })
    }

    async fn remove(&self, _: &str) -> Result<(), ImageError> {
        Ok(())
    }

    async fn filesystem_usage(&self) -> Result<FilesystemUsage, ImageError> {
        Ok(FilesystemUsage::default())
    }
}
