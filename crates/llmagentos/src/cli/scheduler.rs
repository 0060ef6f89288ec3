//! `llmagentos scheduler --kubeconfig FILE`: the scheduler alone, as the default or a second scheduler of any conformant cluster.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use controlplane::{LeaderElection, Options, SchedulerConfiguration, SchedulerOptions};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::boot;

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  llmagentos scheduler --kubeconfig ~/.kube/config --config scheduler.yaml\n\nThe configuration is a KubeSchedulerConfiguration of kubescheduler.config.k8s.io/v1; its profiles name the\nspec.schedulerName of the pods to plan."
)]
pub struct SchedulerArgs {
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// KubeSchedulerConfiguration, YAML or JSON
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Act only while holding a lease, so that several instances may run
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    leader_elect: bool,
    /// The lease, in kube-system
    #[arg(long, default_value = "llmagentos-scheduler", value_name = "NAME")]
    leader_elect_resource_name: String,
    /// What is logged, as tracing directives
    #[arg(
        long,
        env = "LLMAGENTOS_LOG",
        default_value = "info,kube=warn,hyper=warn,tower=warn",
        value_name = "FILTER"
    )]
    log: String,
}

pub fn run(args: &SchedulerArgs) -> anyhow::Result<ExitCode> {
    let configuration = configuration(args.config.as_deref())?;
    let filter =
        EnvFilter::try_new(&args.log).with_context(|| format!("--log \"{}\"", args.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(async {
        let client = boot::kubeconfig_client(&args.kubeconfig).await?;
        let leader_election = args
            .leader_elect
            .then(|| LeaderElection::new(args.leader_elect_resource_name.clone(), identity()));
        let options = Options {
            root_ca_pem: None,
            scheduler: Some(SchedulerOptions {
                configuration,
                ..SchedulerOptions::default()
            }),
            controllers: false,
            leader_election,
        };
        let running = controlplane::start(client, options);
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        running.stop().await;
        anyhow::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a scheduler configuration; without a file, the default one.
pub fn configuration(path: Option<&Path>) -> anyhow::Result<SchedulerConfiguration> {
    let Some(path) = path else {
        return Ok(SchedulerConfiguration::default());
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let value: serde_json::Value =
        serde_yaml::from_str(&text).with_context(|| format!("read {} as YAML", path.display()))?;
    SchedulerConfiguration::from_value(value).with_context(|| format!("{}", path.display()))
}

/// This instance among others: the host and the process.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{}", host.trim(), std::process::id())
}

pub fn install_crypto() {
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("this is the only provider of the process");
}
