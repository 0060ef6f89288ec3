//! `llmagentos stop`: end the server and, unless told otherwise, the containers.
//!
//! Everything stored is kept: `llmagentos init` starts the same cluster again.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rustix::process::Signal;

use super::output::say;
use crate::config::Config;
use crate::{boot, instance};

/// The server ends within milliseconds unless its disk hangs.
const SERVER_STOP_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  llmagentos stop\n  llmagentos stop --keep-containers")]
pub struct StopArgs {
    /// Leave the containers running without a server
    #[arg(long)]
    keep_containers: bool,
    /// Seconds that containers get between SIGTERM and SIGKILL
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    grace_period_seconds: u64,
}

pub fn run(config_dir: &Path, args: &StopArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(config_dir)?;
    match stop_server(&config)? {
        true => say!("The server has stopped."),
        false => say!("The server was not running."),
    }
    if args.keep_containers {
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "Ending the containers; those that do not heed SIGTERM are killed after {} s (--grace-period-seconds).",
        args.grace_period_seconds
    );
    let stopped = boot::stop_containers(&config, args.grace_period_seconds)?;
    say!("{stopped} pods stopped. 'llmagentos init' starts the cluster again.");
    Ok(ExitCode::SUCCESS)
}

/// Ends the server; false if none ran.
pub fn stop_server(config: &Config) -> anyhow::Result<bool> {
    let process = instance::server_process(config);
    if instance::unit_path(config).exists() && instance::has_systemd() {
        // By systemd, or it would start the server again.
        let unit = instance::unit_name(config);
        let output = Command::new("systemctl")
            .args(["disable", "--quiet", "--now", &unit])
            .output()
            .context("run systemctl")?;
        if !output.status.success() {
            bail!(
                "systemctl disable --now {unit}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
    }
    let Some(process) = process else {
        if instance::is_running(config) {
            bail!(
                "a server holds {} but its status file is missing; end that process by hand ('fuser {}' names it)",
                config.cluster.run_dir.display(),
                config.cluster.run_dir.join("server.lock").display()
            );
        }
        return Ok(false);
    };
    if instance::is_running(config) {
        process.signal(Signal::TERM)?;
    }
    if !process.wait(SERVER_STOP_TIMEOUT) {
        bail!(
            "the server (process {}) did not end within {} s; it may wait for a slow disk: try again, or end it with 'kill -9 {}' (nothing acknowledged is lost)",
            process.pid,
            SERVER_STOP_TIMEOUT.as_secs(),
            process.pid
        );
    }
    Ok(true)
}
