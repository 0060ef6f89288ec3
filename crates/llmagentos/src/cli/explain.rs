//! `llmagentos explain pod`: why this node and not the others.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;

use super::output::say;
use super::status::Output;
use crate::boot;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  llmagentos explain pod hello-world-5d9c7b9f4-abcde")]
pub struct ExplainArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Say why a pod has its node, or none, with the plan's value and its proven bound
    #[command(
        after_help = "Example:\n  llmagentos explain pod web-0 --namespace shop\n  llmagentos explain pod web-0 --kubeconfig ~/.kube/config --output json"
    )]
    Pod(PodArgs),
}

#[derive(Args, Debug)]
struct PodArgs {
    /// The pod
    name: String,
    #[arg(short, long, default_value = "default", value_name = "NAMESPACE")]
    namespace: String,
    /// Kubeconfig of the cluster; without it, the cluster here
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The scheduler's configuration (KubeSchedulerConfiguration), if it has one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub fn run(config_dir: &Path, args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let What::Pod(args) = &args.what;
    let configuration = super::scheduler::configuration(args.config.as_deref())?;
    let kubeconfig = super::scheduler::kubeconfig(config_dir, args.kubeconfig.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let explained = runtime.block_on(async {
        let client = boot::kubeconfig_client(&kubeconfig).await?;
        controlplane::explain(&client, &configuration, &args.namespace, &args.name)
            .await
            .map_err(anyhow::Error::from)
    })?;
    let explanation = &explained.explanation;
    match args.output {
        Output::Text => {
            if let Some(node) = &explained.bound_to {
                say!(
                    "pod {} is on node {node}; this is how it would be placed now:",
                    explanation.pod
                );
            }
            super::output::write(format_args!("{explanation}"));
        }
        Output::Json => say!(
            "{}",
            json!({
                "pod": explanation.pod,
                "boundTo": explained.bound_to,
                "decision": explanation.decision,
                "alternatives": explanation.alternatives.iter().map(|(node, score)| json!({"node": node, "score": score})).collect::<Vec<_>>(),
                "rejected": explanation.rejected.iter().map(|(reason, count)| json!({"reason": reason, "nodeCount": count})).collect::<Vec<_>>(),
                "nodeCount": explanation.node_count,
                "batchCount": explanation.batch_count,
                "value": explanation.value,
                "upperBound": explanation.upper_bound,
                "gap": explanation.gap,
            })
        ),
    }
    Ok(ExitCode::SUCCESS)
}
