//! `llmagentos explain pod NAME`: why this node and not the others, or why none.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::scheduler::{configuration, install_crypto};
use crate::boot;
use crate::config::Config;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  llmagentos explain pod web-5d9c-x2x7k --namespace default")]
pub struct ExplainArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Plan the pod anew, without writing anything, and say why
    #[command(after_help = "Example:\n  llmagentos explain pod web-5d9c-x2x7k")]
    Pod(PodArgs),
}

#[derive(Args, Debug)]
struct PodArgs {
    name: String,
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Another cluster than the one here
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The scheduler's configuration (KubeSchedulerConfiguration), if it has one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub fn run(config_dir: &Path, args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let What::Pod(args) = &args.what;
    let kubeconfig = match &args.kubeconfig {
        Some(path) => path.clone(),
        None => Config::load(config_dir)?.kubeconfig_path(),
    };
    let configuration = configuration(args.config.as_deref())?;
    install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let text = runtime.block_on(async {
        let client = boot::kubeconfig_client(&kubeconfig).await?;
        let explained =
            controlplane::explain_pod(&client, &args.namespace, &args.name, &configuration);
        anyhow::Ok(explained.await?)
    })?;
    print!("{text}");
    Ok(ExitCode::SUCCESS)
}
