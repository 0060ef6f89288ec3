//! `llmagentos scheduler`: the scheduler alone, for a cluster of any make that a kubeconfig names.
//!
//! It plans the pods whose `spec.schedulerName` is its own, beside or in place of the cluster's scheduler.
//! Several instances elect one that acts, by a Lease.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::routing::get;
use clap::Args;
use controlplane::{LeaderElection, Options, SchedulerMetrics, SchedulerOptions};
use scheduler::{Configuration, Profile};
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
    /// Profiles, scoring and back-off: a KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1)
    #[arg(long, value_name = "FILE", conflicts_with = "scheduler_name")]
    config: Option<PathBuf>,
    /// Without --config: plan pods with this spec.schedulerName, by the default profile
    #[arg(long, default_value = scheduler::DEFAULT_SCHEDULER, value_name = "NAME")]
    scheduler_name: String,
    /// Where /metrics and /healthz are served, by plain HTTP and to everybody who reaches it
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_address: Option<SocketAddr>,
    /// Act without electing a leader: for the only instance
    #[arg(long)]
    no_leader_election: bool,
    /// Namespace of the Lease [default: kube-system]
    #[arg(long, value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
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

pub fn run(config_dir: &Path, args: &SchedulerArgs) -> anyhow::Result<ExitCode> {
    super::server::start_log(&args.log)?;
    let kubeconfig = kubeconfig(config_dir, args.kubeconfig.as_deref())?;
    let mut configuration = configuration(args.config.as_deref())?;
    if args.config.is_none() {
        let mut profile = Profile::default();
        profile.scheduler_name.clone_from(&args.scheduler_name);
        configuration.profiles = [Arc::new(profile)].into();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(schedule(&kubeconfig, configuration, args))?;
    Ok(ExitCode::SUCCESS)
}

/// What a configuration file says; without one, the defaults.
pub fn configuration(path: Option<&Path>) -> anyhow::Result<Configuration> {
    let Some(path) = path else {
        return Ok(Configuration::default());
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let value = serde_yaml::from_str(&text)
        .with_context(|| format!("{} is neither YAML nor JSON", path.display()))?;
    Configuration::from_value(value).with_context(|| format!("use {}", path.display()))
}

/// The given kubeconfig, or the administrator's of the cluster here.
pub fn kubeconfig(config_dir: &Path, given: Option<&Path>) -> anyhow::Result<PathBuf> {
    match given {
        Some(path) => Ok(path.to_owned()),
        None => Ok(crate::config::Config::load(config_dir)
            .context("no --kubeconfig was given, and there is no cluster here")?
            .kubeconfig_path()),
    }
}

async fn schedule(
    kubeconfig: &Path,
    configuration: Configuration,
    args: &SchedulerArgs,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let client = boot::kubeconfig_client(kubeconfig).await?;
    let version = client
        .apiserver_version()
        .await
        .with_context(|| format!("reach the cluster of {}", kubeconfig.display()))?;
    tracing::info!(version = version.git_version, "cluster reached");
    let leader_election = leader_election(&configuration, args)?;
    let metrics = Arc::new(SchedulerMetrics::default());
    if let Some(address) = args.metrics_address {
        serve_metrics(address, Arc::clone(&metrics)).await?;
    }
    let handle = controlplane::start(
        client,
        Options {
            root_ca_pem: None,
            scheduler: Some(SchedulerOptions {
                configuration,
                metrics,
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

/// Who leads: by the arguments, then by the configuration file's `leaderElection`, then as kube-scheduler does.
fn leader_election(
    configuration: &Configuration,
    args: &SchedulerArgs,
) -> anyhow::Result<Option<LeaderElection>> {
    let file = configuration.leader_election.as_ref();
    let field = |name: &str| file.and_then(|file| file.get(name));
    let text = |name: &str| field(name).and_then(|value| value.as_str());
    if args.no_leader_election || field("leaderElect").is_some_and(|value| value == false) {
        return Ok(None);
    }
    let own_name = configuration
        .profiles
        .first()
        .map_or(scheduler::DEFAULT_SCHEDULER, |profile| {
            profile.scheduler_name.as_str()
        });
    let name = args
        .lease_name
        .as_deref()
        .or(text("resourceName"))
        .map_or_else(|| lease_name(own_name), ToOwned::to_owned);
    let mut election = LeaderElection::new(name, identity());
    if let Some(namespace) = args
        .lease_namespace
        .as_deref()
        .or(text("resourceNamespace"))
    {
        election.namespace = namespace.to_owned();
    }
    for (name, duration) in [
        ("leaseDuration", &mut election.lease_duration),
        ("renewDeadline", &mut election.renew_deadline),
        ("retryPeriod", &mut election.retry_period),
    ] {
        if let Some(given) = text(name) {
            *duration = parse_duration(given)
                .with_context(|| format!("leaderElection.{name}: \"{given}\" is no duration"))?;
        }
    }
    Ok(Some(election))
}

/// A Go duration of hours, minutes, seconds and milliseconds, as configuration files have them: `1m30s`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits =
            rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let (seconds, length) = match unit.as_bytes() {
            [b'm', b's', ..] => (0.001, 2),
            [b'h', ..] => (3600.0, 1),
            [b'm', ..] => (60.0, 1),
            [b's', ..] => (1.0, 1),
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = &unit[length..];
    }
    (!text.is_empty()).then_some(total)
}

async fn serve_metrics(address: SocketAddr, metrics: Arc<SchedulerMetrics>) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} for metrics"))?;
    let ok = || async { "ok" };
    let router = Router::new()
        .route("/metrics", get(move || async move { metrics.render() }))
        .route("/healthz", get(ok))
        .route("/livez", get(ok))
        .route("/readyz", get(ok));
    tracing::info!(address = %listener.local_addr().unwrap_or(address), "metrics are served");
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!(%error, "metrics are no longer served");
        }
    });
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::parse_duration;

    #[test]
    fn durations() {
        for (text, expect) in [
            ("15s", Some(Duration::from_secs(15))),
            ("1m30s", Some(Duration::from_secs(90))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("250ms", Some(Duration::from_millis(250))),
            ("2h", Some(Duration::from_secs(7200))),
            ("", None),
            ("15", None),
            ("s", None),
            ("1d", None),
            ("99999999999999999999999999h", None),
        ] {
            assert_eq!(parse_duration(text), expect, "{text}");
        }
    }
}
