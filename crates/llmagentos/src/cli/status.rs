//! `llmagentos status`: how the cluster here is.
//!
//! Exit code 0: running and Ready; 1: not running; 2: running, not Ready.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use network::firewall::Found;
use serde_json::json;

use super::output::say;
use crate::config::Config;
use crate::instance;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  llmagentos status\n  llmagentos status --output json")]
pub struct StatusArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

struct Report {
    server_pid: Option<u32>,
    phase: Option<String>,
    api_url: Option<String>,
    nodes: Vec<NodeLine>,
    pod_count: usize,
    running_pod_count: usize,
    api_error: Option<String>,
    /// One line for each firewall beside our rules.
    firewalls: Vec<String>,
    resident_bytes: u64,
}

struct NodeLine {
    name: String,
    ready: bool,
    reason: String,
}

pub fn run(config_dir: &Path, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(config_dir)?;
    let report = gather(&config)?;
    let ready = !report.nodes.is_empty() && report.nodes.iter().all(|node| node.ready);
    match args.output {
        Output::Json => say!(
            "{}",
            json!({
                "running": report.server_pid.is_some(),
                "ready": ready,
                "serverPid": report.server_pid,
                "phase": report.phase,
                "apiUrl": report.api_url,
                "kubeconfig": config.kubeconfig_path(),
                "dataDir": config.cluster.data_dir,
                "nodes": report.nodes.iter().map(|node| json!({"name": node.name, "ready": node.ready, "reason": node.reason})).collect::<Vec<_>>(),
                "podCount": report.pod_count,
                "runningPodCount": report.running_pod_count,
                "residentBytes": report.resident_bytes,
                "apiError": report.api_error,
                "firewalls": report.firewalls,
            })
        ),
        Output::Text => print_text(&config, &report),
    }
    Ok(match (report.server_pid, ready) {
        (None, _) => ExitCode::from(1),
        (Some(_), false) => ExitCode::from(2),
        (Some(_), true) => ExitCode::SUCCESS,
    })
}

fn gather(config: &Config) -> anyhow::Result<Report> {
    let process = instance::server_process(config);
    let status = instance::read_status(config);
    let mut report = Report {
        server_pid: process.map(|process| process.pid),
        phase: status.as_ref().map(|status| status.phase.clone()),
        api_url: status.and_then(|status| status.api_url),
        nodes: Vec::new(),
        pod_count: 0,
        running_pod_count: 0,
        api_error: None,
        firewalls: Vec::new(),
        resident_bytes: 0,
    };
    if report.server_pid.is_none() {
        return Ok(report);
    }
    report.resident_bytes = resident_bytes(config)?;
    report.firewalls = firewalls(config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    if let Err(error) = runtime.block_on(ask_api(config, &mut report)) {
        report.api_error = Some(format!("{error:#}"));
    }
    Ok(report)
}

async fn ask_api(config: &Config, report: &mut Report) -> anyhow::Result<()> {
    let client = crate::boot::kubeconfig_client(&config.kubeconfig_path()).await?;
    for node in Api::<Node>::all(client.clone())
        .list(&ListParams::default())
        .await
        .context("list nodes")?
    {
        let condition = node
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref())
            .and_then(|conditions| {
                conditions
                    .iter()
                    .find(|condition| condition.type_ == "Ready")
            });
        report.nodes.push(NodeLine {
            name: node.metadata.name.clone().unwrap_or_default(),
            ready: condition.is_some_and(|condition| condition.status == "True"),
            reason: condition
                .and_then(|condition| condition.reason.clone())
                .unwrap_or_else(|| "NoStatusYet".to_owned()),
        });
    }
    let pods = Api::<Pod>::all(client)
        .list(&ListParams::default())
        .await
        .context("list pods")?;
    report.pod_count = pods.items.len();
    report.running_pod_count = pods
        .iter()
        .filter(|pod| {
            pod.status
                .as_ref()
                .and_then(|status| status.phase.as_deref())
                == Some("Running")
        })
        .count();
    Ok(())
}

fn print_text(config: &Config, report: &Report) {
    let Some(pid) = report.server_pid else {
        say!("Server:      not running ('llmagentos init' starts it)");
        say!("Data:        {}", config.cluster.data_dir.display());
        return;
    };
    say!("Server:      running (process {pid})");
    if let Some(phase) = report.phase.as_ref().filter(|_| report.nodes.is_empty()) {
        say!("Phase:       {phase}");
    }
    if let Some(url) = &report.api_url {
        say!("API server:  {url}");
    }
    say!("Kubeconfig:  {}", config.kubeconfig_path().display());
    say!("Data:        {}", config.cluster.data_dir.display());
    say!(
        "Memory:      {:.1} MB resident in all our processes",
        report.resident_bytes as f64 / 1e6
    );
    for node in &report.nodes {
        say!(
            "Node:        {} {}",
            node.name,
            if node.ready { "Ready" } else { &node.reason }
        );
    }
    say!(
        "Pods:        {} of {} running",
        report.running_pod_count,
        report.pod_count
    );
    for firewall in &report.firewalls {
        say!("Firewall:    {firewall}");
    }
    if let Some(error) = &report.api_error {
        say!("API error:   {error}");
    }
}

/// The firewalls beside our rules, with what opens the ones that the server cannot ask. Only root can list them.
fn firewalls(config: &Config) -> Vec<String> {
    let bridge = &config.cluster.bridge;
    network::firewall::find(&config.cluster.nft_table, bridge)
        .unwrap_or_default()
        .iter()
        .map(|firewall| match firewall {
            Found::Other(_) => format!(
                "{} drops what none of its rules accepts, pods' packets too; open it with: {}",
                firewall.name(),
                firewall.remedy(bridge).join("; ")
            ),
            Found::Firewalld | Found::Ufw => {
                format!(
                    "{} is active, and asked to let {bridge} through",
                    firewall.name()
                )
            }
        })
        .collect()
}

/// Resident memory of the server and its zygote; pages that both share count once (by PSS).
fn resident_bytes(config: &Config) -> anyhow::Result<u64> {
    let program = std::env::current_exe().context("find this program's path")?;
    let mut sum_bytes = 0;
    for entry in std::fs::read_dir("/proc").context("read /proc")? {
        let path = entry.context("read /proc")?.path();
        if std::fs::read_link(path.join("exe")).ok().as_deref() != Some(&program) {
            continue;
        }
        let Ok(command_line) = std::fs::read(path.join("cmdline")) else {
            continue;
        };
        let mentions = |directory: &Path| {
            let wanted = directory.as_os_str().as_encoded_bytes();
            command_line
                .split(|byte| *byte == 0)
                .any(|argument| argument.starts_with(wanted))
        };
        if !(mentions(&config.config_dir) || mentions(&config.cluster.run_dir))
            || path.ends_with(std::process::id().to_string())
        {
            continue;
        }
        let Ok(rollup) = std::fs::read_to_string(path.join("smaps_rollup")) else {
            continue;
        };
        let kibibytes: u64 = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .unwrap_or(0);
        sum_bytes += kibibytes * 1024;
    }
    Ok(sum_bytes)
}
