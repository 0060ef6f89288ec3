//! `llmagentos scheduler`: the scheduler alone, for a cluster of any make that a kubeconfig names.
//!
//! It plans the pods whose `spec.schedulerName` is its own, beside or in place of the cluster's scheduler.
//! Several instances elect one that acts, by a Lease.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use controlplane::{LeaderElection, Options, SchedulerOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::boot;

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  llmagentos scheduler --kubeconfig ~/.kube/config --scheduler-name knapsack"
)]
pub struct SchedulerArgs {
    /// Kubeconfig of the cluster; its user needs what the role system:kube-scheduler allows
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Plan pods with this spec.schedulerName
    #[arg(long, default_value = "default-scheduler", value_name = "NAME")]
    scheduler_name: String,
    /// Which node is taken among those of equal value: the fullest, or the emptiest
    #[arg(long, value_enum, default_value_t = Placement::Pack)]
    placement: Placement,
    /// Act without electing a leader: for the only instance
    #[arg(long)]
    no_leader_election: bool,
    /// Namespace of the Lease
    #[arg(long, default_value = "kube-system", value_name = "NAMESPACE")]
    lease_namespace: String,
    /// Name of the Lease; two schedulers with the same --scheduler-name must share it
    #[arg(long, value_name = "NAME")]
    lease_name: Option<String>,
    /// What is logged, as tracing directives
    #[arg(
        long,
        env = "LLMAGENTOS_LOG",
        default_value = super::server::LOG_DEFAULT,
        value_name = "FILTER"
    )]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Placement {
    Pack,
    Spread,
}

pub fn run(config_dir: &Path, args: &SchedulerArgs) -> anyhow::Result<ExitCode> {
    super::server::start_log(&args.log)?;
    let kubeconfig = match &args.kubeconfig {
        Some(path) => path.clone(),
        // The cluster here, if there is one.
        None => crate::config::Config::load(config_dir)
            .context("no --kubeconfig was given, and there is no cluster here")?
            .kubeconfig_path(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(schedule(&kubeconfig, args))?;
    Ok(ExitCode::SUCCESS)
}

async fn schedule(kubeconfig: &Path, args: &SchedulerArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let client = boot::kubeconfig_client(kubeconfig).await?;
    let version = client
        .apiserver_version()
        .await
        .with_context(|| format!("reach the cluster of {}", kubeconfig.display()))?;
    tracing::info!(version = version.git_version, "cluster reached");
    let leader_election = (!args.no_leader_election).then(|| LeaderElection {
        namespace: args.lease_namespace.clone(),
        ..LeaderElection::new(
            args.lease_name
                .clone()
                .unwrap_or_else(|| lease_name(&args.scheduler_name)),
            identity(),
        )
    });
    let handle = controlplane::start(
        client,
        Options {
            root_ca_pem: None,
            scheduler: Some(SchedulerOptions {
                name: args.scheduler_name.clone(),
                placement: match args.placement {
                    Placement::Pack => scheduler::Placement::Pack,
                    Placement::Spread => scheduler::Placement::Spread,
                },
                ..SchedulerOptions::default()
            }),
            controllers: false,
            leader_election,
        },
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    handle.stop().await;
    Ok(())
}

/// kube-scheduler's Lease where we stand in its place, so that the two never act at once.
fn lease_name(scheduler_name: &str) -> String {
    match scheduler_name {
        "default-scheduler" => "kube-scheduler".to_owned(),
        other => other.to_owned(),
    }
}

/// Host and process, as upstream's identities begin; a process number is not used twice while its lease lives.
fn identity() -> String {
    let uname = rustix::system::uname();
    format!(
        "{}_{}_{}",
        uname.nodename().to_string_lossy(),
        std::process::id(),
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis())
    )
}
