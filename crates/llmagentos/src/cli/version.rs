//! `llmagentos version`.

use std::process::ExitCode;

use clap::Args;

use super::output::say;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  llmagentos version\n  llmagentos version --output json")]
pub struct VersionArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = super::status::Output::Text)]
    output: super::status::Output,
}

pub fn run(args: &VersionArgs) -> anyhow::Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    let kubernetes = "v1.36.0";
    match args.output {
        super::status::Output::Text => {
            say!("llmagentos {version} (Kubernetes API {kubernetes})")
        }
        super::status::Output::Json => say!(
            "{}",
            serde_json::json!({"version": version, "kubernetesVersion": kubernetes, "architecture": std::env::consts::ARCH})
        ),
    }
    Ok(ExitCode::SUCCESS)
}
