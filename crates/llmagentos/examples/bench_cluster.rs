//! Measures a whole cluster: start, restart with 10,000 objects, idle cost, pod start.
//!
//! `bench_cluster --program target/release/llmagentos [--json FILE]`, as root, in a network
//! namespace of its own (`make bench-cluster` makes one). Prints a table and, with `--json`, one
//! object a line: name, unit, p10, median, p90, peer, ratio. No Debian package offers a peer for
//! these; the peer's columns are empty.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

const START_COUNT: usize = 10;
const RESTART_COUNT: usize = 10;
const POD_COUNT: usize = 50;
const OBJECT_COUNT: usize = 10_000;
/// Each long enough to hold a lease renewal or two.
const IDLE_WINDOW: Duration = Duration::from_secs(20);
const IDLE_WINDOWS: usize = 3;
const IMAGE: &str = "localhost/bench:1";

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut program, mut json_path) = (None, None);
    while let Some(flag) = arguments.next() {
        match flag.as_str() {
            "--program" => program = arguments.next().map(PathBuf::from),
            "--json" => json_path = arguments.next(),
            other => bail!("unknown argument {other}"),
        }
    }
    let program = program.context("--program FILE is needed")?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let mut report = Report::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    starts(&program, &mut report)?;
    let bench = Instance::new(&program)?;
    bench.init()?;
    let measured = idle(&bench, "fresh cluster", &mut report)
        .and_then(|()| runtime.block_on(running(&bench, &mut report)))
        .and_then(|()| restarts(&bench, &mut report));
    bench.run(&["reset"])?;
    measured?;
    report.print(json_path.as_deref())
}

/// A cluster in a temporary directory.
struct Instance {
    program: PathBuf,
    directory: tempfile::TempDir,
}

impl Instance {
    fn new(program: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            program: program.to_owned(),
            directory: tempfile::Builder::new().prefix("llma-bench-").tempdir()?,
        })
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.program)
            .args(["--config-dir", &self.path("config")])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("run the program")?;
        if !output.status.success() {
            bail!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn init(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let cgroup_root = format!("/llmagentos-bench-{}", std::process::id());
        self.run(&[
            "init",
            "--no-systemd",
            "--api-port",
            "0",
            "--kubelet-port",
            "0",
            "--data-dir",
            &self.path("data"),
            "--run-dir",
            &self.path("run"),
            "--log-dir",
            &self.path("log"),
            "--cgroup-root",
            &cgroup_root,
            "--node-name",
            "bench",
        ])?;
        Ok(begun.elapsed())
    }

    async fn client(&self) -> anyhow::Result<kube::Client> {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.path("config/kubeconfig.yaml"))?;
        let config = kube::Config::from_custom_kubeconfig(
            kubeconfig,
            &kube::config::KubeConfigOptions::default(),
        )
        .await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// The server and its zygote.
    fn processes(&self) -> anyhow::Result<Vec<PathBuf>> {
        let wanted = self.directory.path().to_string_lossy().into_owned();
        let program = std::fs::canonicalize(&self.program)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let path = entry?.path();
            let command_line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let is_ours = String::from_utf8_lossy(&command_line).contains(&wanted);
            if is_ours && std::fs::read_link(path.join("exe")).is_ok_and(|exe| exe == program) {
                found.push(path);
            }
        }
        Ok(found)
    }
}

fn starts(program: &Path, report: &mut Report) -> anyhow::Result<()> {
    let mut samples = Vec::new();
    for _ in 0..START_COUNT {
        let instance = Instance::new(program)?;
        let elapsed = instance.init();
        instance.run(&["reset"])?;
        samples.push(elapsed?.as_secs_f64() * 1e3);
    }
    report.add("init on an empty directory to node Ready", "ms", samples);
    Ok(())
}

async fn running(instance: &Instance, report: &mut Report) -> anyhow::Result<()> {
    instance.run(&["image", "build", "--binary", "/bin/busybox", IMAGE])?;
    let client = instance.client().await?;
    pod_starts(&client, report).await?;
    let configmaps: Api<ConfigMap> = Api::namespaced(client, "default");
    let batch = futures::stream::iter(0..OBJECT_COUNT).map(|index| {
        let configmaps = configmaps.clone();
        async move {
            let object = serde_json::from_value(json!({
                "metadata": {"name": format!("object-{index}"), "labels": {"set": "bench"}},
                "data": {"content": "x".repeat(512)},
            }))?;
            configmaps.create(&PostParams::default(), &object).await?;
            anyhow::Ok(())
        }
    });
    batch.buffer_unordered(32).try_collect::<Vec<_>>().await?;
    Ok(())
}

/// Create to Running, as a watch sees it, image present.
async fn pod_starts(client: &kube::Client, report: &mut Report) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    wait_for_service_account(client).await?;
    let mut samples = Vec::new();
    for index in 0..POD_COUNT {
        let name = format!("start-{index}");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": IMAGE, "command": ["/busybox", "sleep", "3600"]}]},
        }))?;
        let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut events = std::pin::pin!(pods.watch(&parameters, "0").await?);
        let begun = Instant::now();
        pods.create(&PostParams::default(), &pod).await?;
        while let Some(event) = events.next().await {
            if let WatchEvent::Modified(pod) | WatchEvent::Added(pod) = event?
                && pod.status.and_then(|status| status.phase).as_deref() == Some("Running")
            {
                break;
            }
        }
        samples.push(begun.elapsed().as_secs_f64() * 1e3);
        pods.delete(&name, &DeleteParams::default().grace_period(0))
            .await?;
        // The next start should not wait for this one's end.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    report.add("pod create to Running seen by a watch", "ms", samples);
    Ok(())
}

async fn wait_for_service_account(client: &kube::Client) -> anyhow::Result<()> {
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
        Api::namespaced(client.clone(), "default");
    let deadline = Instant::now() + Duration::from_secs(10);
    while accounts.get_opt("default").await?.is_none() {
        anyhow::ensure!(
            Instant::now() < deadline,
            "the default service account never came"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn restarts(instance: &Instance, report: &mut Report) -> anyhow::Result<()> {
    let mut samples = Vec::new();
    for _ in 0..RESTART_COUNT {
        instance.run(&["stop", "--keep-containers"])?;
        let begun = Instant::now();
        let mut child = Command::new(&instance.program)
            .args([
                "--config-dir",
                &instance.path("config"),
                "server",
                "--new-session",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        serving(instance, &mut child)?;
        samples.push(begun.elapsed().as_secs_f64() * 1e3);
        // init finds it running, and waits until the node is Ready.
        std::thread::spawn(move || child.wait());
        instance.init()?;
    }
    report.add("restart with 10,000 objects to serving", "ms", samples);
    idle(instance, "10,000 objects", report)
}

/// Waits until the API answers a list of what is stored.
fn serving(instance: &Instance, child: &mut std::process::Child) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let status_path = instance.path("run/status.json");
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            bail!("the server ended: {status}");
        }
        let current = std::fs::read(&status_path)
            .ok()
            .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
        let is_ours = current
            .is_some_and(|status| status["pid"] == child.id() && status["api_url"].is_string());
        if is_ours {
            return runtime.block_on(async {
                let configmaps: Api<ConfigMap> =
                    Api::namespaced(instance.client().await?, "default");
                let name = format!("object-{}", OBJECT_COUNT - 1);
                configmaps
                    .get(&name)
                    .await
                    .context("the last object that was written")?;
                Ok(())
            });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("the server did not serve")
}

/// Resident memory and CPU time of all our processes while nothing happens.
fn idle(instance: &Instance, holding: &str, report: &mut Report) -> anyhow::Result<()> {
    // What the start began should be over.
    std::thread::sleep(Duration::from_secs(5));
    let processes = instance.processes()?;
    let mut shares = Vec::new();
    let mut before = processor_time(&processes)?;
    for _ in 0..IDLE_WINDOWS {
        std::thread::sleep(IDLE_WINDOW);
        let after = processor_time(&processes)?;
        let spent = after.saturating_sub(before);
        shares.push(spent.as_secs_f64() / IDLE_WINDOW.as_secs_f64() * 100.0);
        before = after;
    }
    report.add(
        &format!("CPU idle, {holding}, all our processes"),
        "% of a core",
        shares,
    );
    let mut resident_kib = 0;
    for process in &processes {
        let rollup = std::fs::read_to_string(process.join("smaps_rollup"))?;
        resident_kib += rollup
            .lines()
            .find_map(|line| {
                line.strip_prefix("Rss:")?
                    .split_whitespace()
                    .next()?
                    .parse::<u64>()
                    .ok()
            })
            .context("smaps_rollup has Rss")?;
    }
    report.add(
        &format!("memory idle, {holding}, resident, all our processes"),
        "MB",
        vec![resident_kib as f64 * 1024.0 / 1e6],
    );
    Ok(())
}

/// Of all their living threads, to the nanosecond: ticks of utime would round an idle process down to nothing.
fn processor_time(processes: &[PathBuf]) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for process in processes {
        for thread in std::fs::read_dir(process.join("task"))? {
            let schedstat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            let running = schedstat.split_whitespace().next();
            nanoseconds += running
                .and_then(|time| time.parse::<u64>().ok())
                .context("schedstat begins with the time spent running")?;
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

#[derive(Default)]
struct Report {
    rows: Vec<(String, String, [f64; 3])>,
}

impl Report {
    fn add(&mut self, name: &str, unit: &str, mut samples: Vec<f64>) {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
        let row = [at(0.1), at(0.5), at(0.9)];
        eprintln!("{name}: {:.2} {unit}", row[1]);
        self.rows.push((name.to_owned(), unit.to_owned(), row));
    }

    fn print(&self, json_path: Option<&str>) -> anyhow::Result<()> {
        println!(
            "{:<66} {:<12} {:>9} {:>9} {:>9}",
            "name", "unit", "p10", "median", "p90"
        );
        let mut lines = String::new();
        for (name, unit, [p10, median, p90]) in &self.rows {
            println!("{name:<66} {unit:<12} {p10:>9.2} {median:>9.2} {p90:>9.2}");
            let line = json!({"name": name, "unit": unit, "p10": p10, "median": median, "p90": p90, "peer": null, "ratio": null});
            lines.push_str(&format!("{line}\n"));
        }
        if let Some(path) = json_path {
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)?
                .write_all(lines.as_bytes())?;
        }
        Ok(())
    }
}
