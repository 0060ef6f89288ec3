//! How a cluster comes up: a list of named phases, each made of the parts' own constructors.
//!
//! Enter at [`serve`]. The phases that do not need each other run side by side; every phase is
//! written to the status file before it runs, so that a start that hangs says where. Parts meet
//! only here: nothing else in the program knows more than one of them.

mod offline;
mod phases;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::instance::{self, Status};

pub use offline::{
    open_images, pod_log_directories, reset_containers_and_network, stop_containers,
};

/// Runs a server until SIGTERM or SIGINT.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let lock = instance::lock(&config)?;
    raise_file_limit();
    let mut progress = Progress::new(&config)?;
    let started = std::time::Instant::now();
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let result = tokio::select! {
        result = phases::start(&config, &mut progress) => result,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let cluster = match result {
        Ok(cluster) => cluster,
        Err(error) => {
            progress.fail(&error)?;
            return Err(error);
        }
    };
    tracing::info!(
        elapsed_ms = started.elapsed().as_millis() as u64,
        "cluster is up"
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; containers go on");
    end_at_last();
    cluster.shutdown().await;
    drop(lock);
    Ok(())
}

/// How long an orderly end may take before the process ends without it.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Ends the process when its parts do not: a stop is then like a crash, which loses nothing.
fn end_at_last() {
    std::thread::spawn(|| {
        std::thread::sleep(SHUTDOWN_TIMEOUT);
        tracing::warn!("some parts did not end in time; ending without them");
        std::process::exit(0);
    });
}

/// The status file, kept up to date.
pub struct Progress {
    config: Config,
    status: Status,
}

impl Progress {
    fn new(config: &Config) -> anyhow::Result<Self> {
        let started = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let status = Status {
            pid: std::process::id(),
            started_at_seconds: i64::try_from(started).unwrap_or(i64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phase: "starting".to_owned(),
            api_url: None,
            node_ready: false,
            error: None,
        };
        instance::write_status(config, &status)?;
        Ok(Self {
            config: config.clone(),
            status,
        })
    }

    /// Names the phase that begins.
    fn phase(&mut self, name: &str) -> anyhow::Result<()> {
        tracing::info!(phase = name, "starting");
        self.status.phase = name.to_owned();
        self.write()
    }

    fn api_url(&mut self, url: String) -> anyhow::Result<()> {
        self.status.api_url = Some(url);
        self.write()
    }

    fn node_ready(&mut self) -> anyhow::Result<()> {
        self.status.phase = "running".to_owned();
        self.status.node_ready = true;
        self.write()
    }

    fn fail(&mut self, error: &anyhow::Error) -> anyhow::Result<()> {
        self.status.error = Some(format!("{error:#}"));
        self.write()
    }

    fn write(&self) -> anyhow::Result<()> {
        instance::write_status(&self.config, &self.status)
    }
}

/// A client from a kubeconfig file.
pub async fn kubeconfig_client(path: &Path) -> anyhow::Result<kube::Client> {
    // The second of two installations is refused, which is as good as the first.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let kubeconfig = kube::config::Kubeconfig::read_from(path)
        .with_context(|| format!("read {}", path.display()))?;
    let config = kube::Config::from_custom_kubeconfig(
        kubeconfig,
        &kube::config::KubeConfigOptions::default(),
    )
    .await
    .with_context(|| format!("use {}", path.display()))?;
    kube::Client::try_from(config).context("make a client")
}

/// As many open files as this process may have: every watch and every log is one.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    ) {
        tracing::warn!(%error, "limit of open files not raised");
    }
}
