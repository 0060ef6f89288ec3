//! `llmagentos server`: the server in the foreground; what `init` and systemd start.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::boot;
use crate::config::Config;

pub const LOG_DEFAULT: &str = "info,kube=warn,hyper=warn,tower=warn";

#[derive(Args, Debug)]
pub struct ServerArgs {
    /// Leave the caller's session, so that its end does not end the server
    #[arg(long)]
    new_session: bool,
    /// What is logged, as tracing directives
    #[arg(
        long,
        env = "LLMAGENTOS_LOG",
        default_value = LOG_DEFAULT,
        value_name = "FILTER"
    )]
    log: String,
}

pub fn run(config_dir: &Path, args: &ServerArgs) -> anyhow::Result<ExitCode> {
    if args.new_session {
        // Refused only to the leader of a process group: one that a shell started by itself, with no session to leave.
        rustix::process::setsid().ok();
    }
    let config = Config::load(config_dir)?;
    start_log(&args.log)?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("this is the only provider of the process");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |count| count.get().min(8)))
        .max_blocking_threads(64)
        .thread_name("llmagentos")
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(boot::serve(config))?;
    // Blocking calls that are still under way hold nothing that must be saved.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// Logs to standard error from now on.
pub fn start_log(directives: &str) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(directives).with_context(|| format!("--log \"{directives}\""))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}
