//! A cluster of the test's own: program, network namespace, directories, cgroup.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use network::route_socket::RouteSocket;
use tempfile::TempDir;

use crate::images;
use crate::listing::Listing;

/// The node's address in the namespace (TEST-NET-1, RFC 5737).
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

pub struct Cluster {
    directory: TempDir,
    netns: File,
    cgroup_root: String,
}

impl Cluster {
    /// Starts a cluster and loads the images that the tests use.
    pub fn start() -> anyhow::Result<Self> {
        let cluster = Self::prepare()?;
        let started = cluster.init(&[]);
        if let Err(error) = started {
            let tail = cluster.log_tail();
            cluster.llmagentos(&["reset"]).output().ok();
            bail!("{error:#}\n{tail}");
        }
        images::load_all(&cluster)?;
        Ok(cluster)
    }

    /// Everything but the server.
    pub fn prepare() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Ok(Self {
            directory: tempfile::Builder::new()
                .prefix(&directory_prefix())
                .tempdir()
                .context("make a directory")?,
            netns: new_network_namespace()?,
            cgroup_root: format!(
                "/{}{}",
                cgroup_prefix(),
                COUNT.fetch_add(1, Ordering::Relaxed)
            ),
        })
    }

    pub fn init(&self, further: &[&str]) -> anyhow::Result<()> {
        succeed(self.init_command(further)).map(drop)
    }

    pub fn init_command(&self, further: &[&str]) -> Command {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let (data, run, log) = (path("data"), path("run"), path("log"));
        let mut arguments = vec![
            "init",
            "--no-systemd",
            "--api-port",
            "0",
            "--kubelet-port",
            "0",
            "--node-name",
            "e2e",
            "--data-dir",
            &data,
            "--run-dir",
            &run,
            "--log-dir",
            &log,
            "--cgroup-root",
            &self.cgroup_root,
        ];
        arguments.extend(further);
        self.llmagentos(&arguments)
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.path().join("config/kubeconfig.yaml")
    }

    /// The program under test, in the cluster's network namespace.
    pub fn llmagentos(&self, arguments: &[&str]) -> Command {
        let mut command = self.inside(env!("CARGO_BIN_EXE_llmagentos"));
        command
            .arg("--config-dir")
            .arg(self.path().join("config"))
            .args(arguments);
        command
    }

    /// Any program, in the cluster's network namespace.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!(
                "--net=/proc/{}/fd/{}",
                std::process::id(),
                self.netns.as_raw_fd()
            ))
            .arg("--")
            .arg(program)
            .stdin(Stdio::null())
            // The server inherits what init is given: never the test's own streams.
            .env_remove("KUBECONFIG");
        command
    }

    /// Process id of the server.
    pub fn server_pid(&self) -> anyhow::Result<u32> {
        let status: serde_json::Value =
            serde_json::from_slice(&std::fs::read(self.path().join("run/status.json"))?)?;
        status["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok())
            .context("the status names no process")
    }

    /// The end of the server's log, for a failure's message.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.path().join("data/server.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!(
            "server log:\n{}",
            lines[lines.len().saturating_sub(30)..].join("\n")
        )
    }

    /// Resets, and compares the machine with what it was before `init`.
    pub fn reset_and_compare(self, before: &Listing) -> anyhow::Result<()> {
        let dry_run = succeed(self.llmagentos(&["reset", "--dry-run"]))?;
        let result = succeed(self.llmagentos(&["reset"]));
        // What kubectl keeps for itself.
        for home in ["home", "nobody"] {
            std::fs::remove_dir_all(self.path().join(home)).ok();
        }
        let left = std::fs::read_dir(self.path())?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<_>>>()?;
        let output = result?;
        let difference = before.difference(&Listing::of_machine());
        if !left.is_empty() || !difference.is_empty() {
            bail!("left behind: files {left:?}; {difference:#?}\nreset said:\n{output}");
        }
        // What the dry run listed is what was removed. Pods that ended meanwhile are gone either way.
        for line in output
            .lines()
            .filter_map(|line| line.strip_prefix("removed /"))
        {
            if !dry_run.contains(&format!("would remove /{line}\n")) {
                bail!("the dry run did not list /{line}:\n{dry_run}");
            }
        }
        Ok(())
    }
}

/// What the names of all directories of this run begin with: other runs may go on beside it.
pub fn directory_prefix() -> String {
    format!("llma-e2e-{}-", std::process::id())
}

/// What the names of all cgroups of this run begin with.
pub fn cgroup_prefix() -> String {
    format!("llmagentos-e2e-{}-", std::process::id())
}

/// Runs a command that must succeed; answers its standard output.
pub fn succeed(mut command: Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
    }
    Ok(text(&output.stdout))
}

/// Runs a command that must fail; answers what it wrote to standard error.
pub fn fail(mut command: Command) -> anyhow::Result<String> {
    let output: Output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if output.status.success() {
        bail!(
            "{command:?} succeeded, and should not have\n{}",
            text(&output.stdout)
        );
    }
    Ok(text(&output.stderr))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asks again until the answer is there; the last error if it never comes.
pub fn eventually<T>(
    what: &str,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        match attempt() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("never came: {what}")));
            }
            // Between two looks at another process there is nothing to wait on.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A network namespace with loopback and an interface that has the node's address.
fn new_network_namespace() -> anyhow::Result<File> {
    std::thread::spawn(|| -> anyhow::Result<File> {
        #[expect(
            deprecated,
            reason = "its danger is CLONE_FILES; a new network namespace touches no memory"
        )]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET)
            .context("make a network namespace; the tests need root")?;
        let mut socket = RouteSocket::open()?;
        let loopback = socket.link("lo")?.context("a namespace has loopback")?;
        socket.set_up(loopback.index)?;
        socket.add_bridge("uplink")?;
        let uplink = socket.link("uplink")?.context("it was just made")?;
        socket.add_address(uplink.index, NODE_ADDRESS, 24)?;
        // No default route: services must be reached without one, too.
        Ok(File::open("/proc/thread-self/ns/net")?)
    })
    .join()
    .expect("the thread does not panic")
}
