//! One runtime with directories and a cgroup root of its own, and a busybox image.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use runtime::image_roots::{ImageConfig, ImageRoot, ImageRoots};
use runtime::native::{Config, NativeRuntime, reset};
use runtime::service::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ImageError, NamespaceMode,
    PodSandboxConfig, PodSandboxMetadata, RuntimeService, SecurityContext,
};

/// Layer directories by image id.
pub struct Images {
    pub layers: PathBuf,
    pub config: ImageConfig,
    /// What the runtime said, after its start, who holds images.
    pub retained: Retained,
}

pub type Retained = Arc<Mutex<Vec<String>>>;

impl ImageRoots for Images {
    fn prepare(&self, image_id: &str) -> Result<ImageRoot, ImageError> {
        let layer = self.layers.join(image_id);
        if !layer.is_dir() {
            return Err(ImageError::NotFound(image_id.to_owned()));
        }
        let mut lowerdirs = vec![layer];
        // An image may stand on busybox.
        if image_id != "busybox" {
            lowerdirs.push(self.layers.join("busybox"));
        }
        Ok(ImageRoot {
            lowerdirs,
            config: self.config.clone(),
        })
    }
    fn hold(&self, _: &str, _: &str) -> Result<(), ImageError> {
        Ok(())
    }
    fn release(&self, _: &str, _: &str) {}
    fn retain_holders(&self, holders: &[&str]) -> Result<(), ImageError> {
        *self.retained.lock().unwrap() = holders.iter().map(|h| (*h).to_owned()).collect();
        Ok(())
    }
}

pub struct Harness {
    runtime: Option<Arc<NativeRuntime>>,
    pub config: Config,
    pub directory: tempfile::TempDir,
    pub image: ImageConfig,
    pub retained: Retained,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Harness {
    pub fn new() -> Self {
        Self::with_image(ImageConfig::default())
    }

    pub fn with_image(image: ImageConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        busybox(&directory.path().join("layers/busybox"));
        let config = Config {
            run_dir: directory.path().join("run"),
            data_dir: directory.path().join("data"),
            cgroup_root: PathBuf::from(format!("/llmagentos-test-{}-{number}", std::process::id())),
            zygote_command: vec![zygote_program()],
        };
        let retained = Retained::default();
        let runtime = open(&config, directory.path(), &image, &retained);
        Self {
            runtime: Some(runtime),
            config,
            directory,
            image,
            retained,
        }
    }

    /// As a new server would: the old one is gone, without a word to the zygote.
    pub fn restart(&mut self) {
        drop(self.runtime.take());
        self.runtime = Some(open(
            &self.config,
            self.directory.path(),
            &self.image,
            &self.retained,
        ));
    }

    pub fn runtime(&self) -> &Arc<NativeRuntime> {
        self.runtime.as_ref().expect("only a drop takes it")
    }

    /// An image layer over busybox; `fill` writes its files.
    pub fn layer(&self, name: &str, fill: impl FnOnce(&Path)) {
        let path = self.directory.path().join("layers").join(name);
        std::fs::create_dir_all(&path).unwrap();
        fill(&path);
    }

    pub fn logs(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    pub fn pod(&self) -> PodSandboxConfig {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: "pod".to_owned(),
                uid: format!("uid-{number}"),
                namespace: "default".to_owned(),
                attempt: 0,
            },
            hostname: "pod-host".to_owned(),
            log_directory: self.logs(),
            cgroup_parent: format!("burstable/pod{number}"),
            network: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            ipc: NamespaceMode::Pod,
            ..PodSandboxConfig::default()
        }
    }

    pub async fn sandbox(&self) -> String {
        self.runtime().run_pod_sandbox(self.pod()).await.unwrap().id
    }

    pub async fn start(&self, sandbox: &str, config: ContainerConfig) -> String {
        let id = self
            .runtime()
            .create_container(sandbox, config)
            .await
            .unwrap();
        self.runtime().start_container(&id).await.unwrap();
        id
    }

    /// Runs a shell line to its end in a new sandbox; exit code and log text.
    pub async fn shell(&self, line: &str) -> (i32, String) {
        self.shell_with(line, |_| {}).await
    }

    pub async fn shell_with(
        &self,
        line: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> (i32, String) {
        let sandbox = self.sandbox().await;
        let mut config = container(&["sh", "-c", line]);
        config.log_path = PathBuf::from(format!("{}.log", &sandbox[..12]));
        change(&mut config);
        let id = self.start(&sandbox, config).await;
        let status = self.ended(&id).await;
        let text = self.log_text(&status);
        self.runtime().remove_pod_sandbox(&sandbox).await.unwrap();
        (status.exit_code, text)
    }

    pub fn log_text(&self, status: &ContainerStatus) -> String {
        std::fs::read_to_string(&status.log_path)
            .unwrap_or_default()
            .lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap_or("").to_owned() + "\n")
            .collect()
    }

    pub async fn ended(&self, id: &str) -> ContainerStatus {
        wait_for(|| async {
            let status = self.runtime().container_status(id).await.unwrap();
            (status.state == ContainerState::Exited).then_some(status)
        })
        .await
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.runtime().settle();
        // A live server would start a new zygote.
        drop(self.runtime.take());
        let lines = reset(&self.config).unwrap();
        if !std::thread::panicking() {
            let left: Vec<_> = lines
                .iter()
                .filter(|l| l.starts_with("process ") && !l.ends_with(" zygote"))
                .collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }
}

/// Cargo builds this crate's binaries beside the directory of its test programs.
pub fn zygote_program() -> String {
    let tests = std::env::current_exe().unwrap();
    let path = tests
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("runtime-zygote");
    path.to_str().unwrap().to_owned()
}

fn open(
    config: &Config,
    directory: &Path,
    image: &ImageConfig,
    retained: &Retained,
) -> Arc<NativeRuntime> {
    let images = Images {
        layers: directory.join("layers"),
        config: image.clone(),
        retained: retained.clone(),
    };
    NativeRuntime::new(config.clone(), Arc::new(images), None).unwrap()
}

/// Polls until there is an answer, for at most 20 seconds.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(mut check: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited for too long");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn container(command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: ContainerMetadata {
            name: "main".to_owned(),
            attempt: 0,
        },
        image_id: "busybox".to_owned(),
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        log_path: PathBuf::from("main/0.log"),
        security: SecurityContext {
            pid: NamespaceMode::Container,
            ..SecurityContext::default()
        },
        ..ContainerConfig::default()
    }
}

/// A root file system of Debian's static busybox.
fn busybox(root: &Path) {
    for directory in ["bin", "etc", "tmp", "root", "proc", "sys", "dev"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let list = std::process::Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .unwrap();
    for name in String::from_utf8(list.stdout)
        .unwrap()
        .lines()
        .filter(|n| *n != "busybox")
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(
        root.join("etc/group"),
        "root:x:0:\nwww:x:34:\nlogs:x:4:web\n",
    )
    .unwrap();
}
