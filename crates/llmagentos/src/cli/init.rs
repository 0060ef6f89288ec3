//! `llmagentos init`: start a cluster here, in the background.
//!
//! Checks first, changes nothing before all checks passed; then writes the configuration, starts
//! the server (by systemd where it runs the machine, else as a session of its own) and follows
//! its status until the node is Ready. Run again it starts what `stop` ended, or finds it running.

use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::say;
use crate::config::{ClusterArgs, Config};
use crate::instance;

/// A start takes a second; a slow disk may take many.
const START_TIMEOUT_SECONDS: u64 = 120;
/// How often the status file is looked at while the server starts.
const STATUS_INTERVAL: Duration = Duration::from_millis(5);

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  llmagentos init\n  llmagentos init --api-port 7443 --node-name edge-1"
)]
pub struct InitArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Also merge the kubeconfig into ~/.kube/config
    #[arg(long)]
    merge_kubeconfig: bool,
    /// Do not use systemd, even where it runs this machine
    #[arg(long)]
    no_systemd: bool,
    /// Seconds to wait for the node to become Ready
    #[arg(long, default_value_t = START_TIMEOUT_SECONDS, value_name = "SECONDS")]
    timeout_seconds: u64,
}

pub fn run(config_dir: &Path, args: InitArgs) -> anyhow::Result<ExitCode> {
    let config = Config::new(config_dir, args.cluster)?;
    if instance::is_running_and_stays(&config) {
        say!("The cluster here is already running.");
        return report(&config, args.merge_kubeconfig, None);
    }
    preflight(&config)?;
    if let Ok(earlier) = Config::load(config_dir) {
        refuse_moved_data(&earlier, &config)?;
    }
    config.save()?;
    let begun = Instant::now();
    // A status left by an earlier run must not be taken for this one's.
    match std::fs::remove_file(instance::status_path(&config)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error)
                .with_context(|| format!("remove {}", instance::status_path(&config).display()));
        }
        _ => {}
    }
    let child = if instance::has_systemd() && !args.no_systemd {
        start_by_systemd(&config)?;
        None
    } else {
        Some(start_detached(&config)?)
    };
    follow(&config, child, Duration::from_secs(args.timeout_seconds))?;
    report(&config, args.merge_kubeconfig, Some(begun.elapsed()))
}

/// Everything that would make the start fail and can be known before it.
fn preflight(config: &Config) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "llmagentos init needs root (it mounts, makes namespaces and network interfaces); run it with sudo"
        );
    }
    for (flag, port) in [
        ("--api-port", config.cluster.api_port),
        ("--kubelet-port", config.cluster.kubelet_port),
    ] {
        if port == 0 {
            continue;
        }
        if let Err(error) = TcpListener::bind(SocketAddr::new(config.cluster.bind_address, port)) {
            if error.kind() == std::io::ErrorKind::AddrInUse {
                bail!(
                    "port {port} is in use by another program ('ss -ltnp sport = :{port}' names it); end it or choose another port with {flag}"
                );
            }
            return Err(error)
                .with_context(|| format!("listen on {}:{port}", config.cluster.bind_address));
        }
    }
    let filesystems =
        std::fs::read_to_string("/proc/filesystems").context("read /proc/filesystems")?;
    if !filesystems.lines().any(|line| line.ends_with("\toverlay")) {
        // Where it is a module, reading the list does not load it.
        let loaded = Command::new("modprobe")
            .arg("overlay")
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !loaded {
            bail!(
                "this kernel has no overlay file system, which containers' root file systems need; enable CONFIG_OVERLAY_FS"
            );
        }
    }
    if !Path::new("/sys/fs/cgroup").is_dir() {
        bail!(
            "cgroups are not mounted on /sys/fs/cgroup; mount them (on most systems the init program does)"
        );
    }
    Ok(())
}

fn refuse_moved_data(earlier: &Config, config: &Config) -> anyhow::Result<()> {
    if earlier.cluster.data_dir != config.cluster.data_dir && earlier.store_dir().exists() {
        bail!(
            "the cluster of {} has its data in {}, not in {}; give --data-dir {} or remove it with 'llmagentos reset'",
            config.config_dir.display(),
            earlier.cluster.data_dir.display(),
            config.cluster.data_dir.display(),
            earlier.cluster.data_dir.display()
        );
    }
    Ok(())
}

fn start_by_systemd(config: &Config) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find this program's path")?;
    let unit = format!(
        "[Unit]\nDescription=LLMAgentOS, an operating system for containers\nAfter=network-online.target\nWants=network-online.target\n\n\
         [Service]\nExecStart=\"{}\" --config-dir \"{}\" server\nRestart=always\nRestartSec=1\n\
         # Containers outlive the server: only the server itself is ended and started again.\nKillMode=process\nDelegate=yes\nTasksMax=infinity\nLimitNOFILE=1048576\nOOMScoreAdjust=-999\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        program.display(),
        config.config_dir.display()
    );
    let path = instance::unit_path(config);
    std::fs::write(&path, unit).with_context(|| format!("write {}", path.display()))?;
    for arguments in [
        vec!["daemon-reload"],
        vec!["enable", "--quiet"],
        vec!["restart"],
    ] {
        let mut command = Command::new("systemctl");
        command.args(&arguments);
        if arguments[0] != "daemon-reload" {
            command.arg(instance::unit_name(config));
        }
        let output = command
            .output()
            .context("run systemctl; is systemd installed? (--no-systemd does without)")?;
        if !output.status.success() {
            bail!(
                "systemctl {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
    }
    Ok(())
}

fn start_detached(config: &Config) -> anyhow::Result<Child> {
    std::fs::create_dir_all(&config.cluster.data_dir)
        .with_context(|| format!("make {}", config.cluster.data_dir.display()))?;
    let path = config.server_log_path();
    let log = std::fs::File::options()
        .append(true)
        .create(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let program = std::env::current_exe().context("find this program's path")?;
    let mut command = Command::new(program);
    command
        .arg("--config-dir")
        .arg(&config.config_dir)
        .arg("server")
        .arg("--new-session")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(
            log.try_clone()
                .with_context(|| format!("open {}", path.display()))?,
        )
        .stderr(log);
    command.spawn().context("start the server")
}

/// Shows the server's phases until its node is Ready.
fn follow(config: &Config, mut child: Option<Child>, timeout: Duration) -> anyhow::Result<()> {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    bar.set_style(
        ProgressStyle::with_template("{spinner} {msg}").expect("the template is constant"),
    );
    let deadline = Instant::now() + timeout;
    let mut seen = false;
    loop {
        let ended = match &mut child {
            Some(child) => child.try_wait().context("look at the server")?.is_some(),
            None => seen && !instance::is_running(config),
        };
        // Read after the look at the process: what it wrote last is seen.
        let status = instance::read_status(config);
        if let Some(status) = &status {
            bar.set_message(status.phase.clone());
            if let Some(error) = &status.error {
                bar.finish_and_clear();
                bail!(
                    "{error}\nwhile: {}\nthe server's log is {}",
                    status.phase,
                    log_hint(config)
                );
            }
            if status.node_ready {
                bar.finish_and_clear();
                return Ok(());
            }
            seen = true;
        }
        if ended {
            bar.finish_and_clear();
            bail!(
                "the server ended while it started; its log is {}",
                log_hint(config)
            );
        }
        if Instant::now() > deadline {
            bar.finish_and_clear();
            let phase =
                status.map_or_else(|| "start of the process".to_owned(), |status| status.phase);
            bail!(
                "the node is not Ready after {} s; the server is still at: {phase}\nit goes on; look at {} and 'llmagentos status'",
                timeout.as_secs(),
                log_hint(config)
            );
        }
        bar.tick();
        std::thread::sleep(STATUS_INTERVAL);
    }
}

fn log_hint(config: &Config) -> String {
    let path = config.server_log_path();
    if path.exists() {
        path.display().to_string()
    } else {
        format!("'journalctl -u {}'", instance::unit_name(config))
    }
}

fn report(config: &Config, merge: bool, elapsed: Option<Duration>) -> anyhow::Result<ExitCode> {
    let kubeconfig = config.kubeconfig_path();
    if let Some(elapsed) = elapsed {
        say!(
            "Node {} is Ready after {:.2} s.",
            config.node_name,
            elapsed.as_secs_f64()
        );
    }
    if let Some(url) = instance::read_status(config).and_then(|status| status.api_url) {
        say!("API server:  {url}");
    }
    say!("Kubeconfig:  {}", kubeconfig.display());
    if merge {
        let target = super::kubeconfig::merge(config)?;
        say!("Merged into: {}", target.display());
    } else {
        say!(
            "\nUse it:\n  export KUBECONFIG={}\n  kubectl get nodes",
            kubeconfig.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}
