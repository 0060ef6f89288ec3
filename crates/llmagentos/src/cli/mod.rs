//! The command line: one file a verb.
//!
//! Every verb finds its instance by `--config-dir`. Every error says what to do next.

mod completion;
mod explain;
mod image;
mod init;
mod kubeconfig;
mod output;
mod reset;
mod scheduler;
mod server;
mod status;
mod stop;
mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::InstanceArgs;

/// An operating system for containers: makes this machine a Kubernetes cluster.
#[derive(Parser, Debug)]
#[command(
    name = "llmagentos",
    version,
    after_help = "Example:\n  llmagentos init\n  export KUBECONFIG=/etc/llmagentos/kubeconfig.yaml\n  kubectl create deployment hello-world --image=gcr.io/google-samples/hello-app:1.0"
)]
pub struct Cli {
    #[command(flatten)]
    instance: InstanceArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Start a cluster here, in the background
    Init(Box<init::InitArgs>),
    /// Say how the cluster here is
    Status(status::StatusArgs),
    /// Stop the cluster here; everything it stores is kept
    Stop(stop::StopArgs),
    /// Remove the cluster here and everything it ever made on this machine
    Reset(reset::ResetArgs),
    /// Print the administrator's kubeconfig, or merge it into ~/.kube/config
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Work with the images on this node
    Image(image::ImageArgs),
    /// Say why a pod is where it is
    Explain(explain::ExplainArgs),
    /// Run the scheduler alone, for any Kubernetes cluster
    Scheduler(scheduler::SchedulerArgs),
    /// Print the version
    Version(version::VersionArgs),
    /// Print a shell's completion script
    Completion(completion::CompletionArgs),
    /// Run the server in the foreground (what 'init' starts)
    #[command(hide = true)]
    Server(server::ServerArgs),
}

pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let config_dir = cli.instance.config_dir;
    match cli.verb {
        Verb::Init(args) => init::run(&config_dir, *args),
        Verb::Status(args) => status::run(&config_dir, &args),
        Verb::Stop(args) => stop::run(&config_dir, &args),
        Verb::Reset(args) => reset::run(&config_dir, &args),
        Verb::Kubeconfig(args) => kubeconfig::run(&config_dir, &args),
        Verb::Image(args) => image::run(&config_dir, args),
        Verb::Explain(args) => explain::run(&config_dir, &args),
        Verb::Scheduler(args) => scheduler::run(&config_dir, &args),
        Verb::Version(args) => version::run(&args),
        Verb::Completion(args) => completion::run(&args),
        Verb::Server(args) => server::run(&config_dir, &args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_an_example() {
        for verb in Cli::command()
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
        {
            let help = verb
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains("Example"),
                "{} has no example",
                verb.get_name()
            );
            for nested in verb.get_subcommands() {
                let help = nested
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(
                    help.contains("Example"),
                    "{} {} has no example",
                    verb.get_name(),
                    nested.get_name()
                );
            }
        }
    }
}
