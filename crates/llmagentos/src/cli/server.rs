//! `llmagentos server`: the server in the foreground; what `init` and systemd start.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

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

/// How many pools glibc's allocator may have, unless the environment says.
///
/// It gives threads pools of their own, and what is freed in one is of no use to the others, which costs
/// memory with every pool. One pool, though, is a lock that threads queue at: from create to bound, two
/// handled 4,300 pods a second on two cores where one handled 2,400, for 1 MB more in a fresh cluster.
const MALLOC_POOLS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// Runs this program again, as the same process, with its allocator told so: it listens only at its start.
fn limit_malloc_pools() {
    let (name, count) = MALLOC_POOLS;
    if std::env::var_os(name).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    let mut again = Command::new("/proc/self/exe");
    if let Some(own_name) = arguments.next() {
        again.arg0(own_name);
    }
    let error = again.args(arguments).env(name, count).exec();
    // It works without, and needs more memory.
    eprintln!("warning: the allocator is not limited: {error}");
}

pub fn run(config_dir: &Path, args: &ServerArgs) -> anyhow::Result<ExitCode> {
    limit_malloc_pools();
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
