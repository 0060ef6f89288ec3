//! `llmagentos completion`: scripts for bash, zsh and fish.

use std::process::ExitCode;

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SupportedShell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  source <(llmagentos completion bash)\n  llmagentos completion fish > ~/.config/fish/completions/llmagentos.fish"
)]
pub struct CompletionArgs {
    /// Shell to complete for
    shell: SupportedShell,
}

pub fn run(args: &CompletionArgs) -> anyhow::Result<ExitCode> {
    let shell = match args.shell {
        SupportedShell::Bash => Shell::Bash,
        SupportedShell::Zsh => Shell::Zsh,
        SupportedShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::Cli::command(), "llmagentos", &mut script);
    super::output::write(format_args!("{}", String::from_utf8_lossy(&script)));
    Ok(ExitCode::SUCCESS)
}
