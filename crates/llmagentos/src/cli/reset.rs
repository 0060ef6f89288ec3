//! `llmagentos reset`: remove the cluster here and everything it ever made on this machine.
//!
//! Goes on past failures and reports all of them at the end, so that one busy mount does not
//! leave the rest in place. Run again it removes what was left.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::output::say;
use crate::config::Config;
use crate::{boot, instance};

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  llmagentos reset --dry-run\n  llmagentos reset")]
pub struct ResetArgs {
    /// Only list what would be removed
    #[arg(long)]
    dry_run: bool,
}

pub fn run(config_dir: &Path, args: &ResetArgs) -> anyhow::Result<ExitCode> {
    let config = match Config::load(config_dir) {
        Ok(config) => config,
        Err(_) if !Config::path(config_dir).exists() => {
            say!(
                "There is no cluster here ({} does not exist); nothing to remove.",
                Config::path(config_dir).display()
            );
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(error),
    };
    if !rustix::process::geteuid().is_root() {
        bail!("llmagentos reset needs root; run it with sudo");
    }
    let mut removal = Removal {
        dry_run: args.dry_run,
        count: 0,
        planned: HashSet::new(),
        failures: Vec::new(),
    };
    if let Some(process) = instance::server_process(&config) {
        removal.note(&format!("process {} (server)", process.pid));
        if !args.dry_run {
            super::stop::stop_server(&config)?;
        }
    }
    match boot::reset_containers_and_network(&config, args.dry_run) {
        Ok(removed) => removed.iter().for_each(|what| removal.note(what)),
        Err(error) => removal.failures.push(format!("{error:#}")),
    }
    // A state that could not be torn down is needed for the next try: its files stay.
    if removal.failures.is_empty() {
        removal.files(&config);
    }
    if !removal.failures.is_empty() {
        for failure in &removal.failures {
            eprintln!("not removed: {failure}");
        }
        bail!(
            "{} things could not be removed; mend what they say and run 'llmagentos reset' again",
            removal.failures.len()
        );
    }
    match (args.dry_run, removal.count) {
        (true, count) => say!("{count} things would be removed."),
        (false, count) => say!("{count} things removed."),
    }
    Ok(ExitCode::SUCCESS)
}

struct Removal {
    dry_run: bool,
    count: usize,
    /// Paths that a dry run has listed: what holds nothing else would be empty by then.
    planned: HashSet<PathBuf>,
    failures: Vec<String>,
}

impl Removal {
    fn note(&mut self, what: &str) {
        say!(
            "{} {what}",
            if self.dry_run {
                "would remove"
            } else {
                "removed"
            }
        );
        self.count += 1;
    }

    fn files(&mut self, config: &Config) {
        let cluster = &config.cluster;
        let unit = instance::unit_path(config);
        if instance::has_systemd() {
            self.path(&unit);
        }
        self.pod_logs(config);
        self.path(&cluster.run_dir);
        self.path(&cluster.data_dir);
        if !config.kubeconfig_path().starts_with(&config.config_dir) {
            self.path(&config.kubeconfig_path());
        }
        // The registries file is the user's, all else in the directory is ours; the configuration
        // goes last: it is what names the instance.
        for name in ["kubeconfig.yaml", "config.json"] {
            self.path(&config.config_dir.join(name));
        }
        for directory in [config.manifests_dir(), config.config_dir.clone()] {
            self.empty_directory(&directory);
        }
    }

    /// The log directory may be shared with another program's pods: only ours are removed.
    fn pod_logs(&mut self, config: &Config) {
        for directory in boot::pod_log_directories(config) {
            self.path(&directory);
        }
        self.empty_directory(&config.cluster.log_dir);
    }

    fn path(&mut self, path: &Path) {
        let Ok(metadata) = path.symlink_metadata() else {
            return;
        };
        if !self.dry_run {
            let result = if metadata.is_dir() {
                std::fs::remove_dir_all(path)
            } else {
                std::fs::remove_file(path)
            };
            if let Err(error) = result
                && error.kind() != ErrorKind::NotFound
            {
                self.failures.push(format!("{}: {error}", path.display()));
                return;
            }
        }
        self.note_path(path);
    }

    /// Removes a directory that others may have put files in, if they have not.
    fn empty_directory(&mut self, path: &Path) {
        let is_removed = if self.dry_run {
            std::fs::read_dir(path).is_ok_and(|mut entries| {
                entries.all(|entry| entry.is_ok_and(|entry| self.planned.contains(&entry.path())))
            })
        } else {
            std::fs::remove_dir(path).is_ok()
        };
        if is_removed {
            self.note_path(path);
        }
    }

    fn note_path(&mut self, path: &Path) {
        self.planned.insert(path.to_owned());
        self.note(&path.display().to_string());
    }
}
