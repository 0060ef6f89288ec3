//! The program's own verbs.

use std::net::Ipv4Addr;
use std::process::{Child, Stdio};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::{Cluster, fail, succeed};
use crate::images::BUSYBOX;
use crate::kubectl::{Kubectl, contains};

pub fn status_version_completion_kubeconfig(cluster: &Cluster) -> anyhow::Result<()> {
    let status = succeed(cluster.llmagentos(&["status"]))?;
    contains(&status, "Server:      running (process ")?;
    contains(&status, "Node:        e2e Ready")?;
    let json: serde_json::Value =
        serde_json::from_str(&succeed(cluster.llmagentos(&["status", "-o", "json"]))?)?;
    anyhow::ensure!(
        json["ready"] == true
            && json["residentBytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 1_000_000),
        "{json}"
    );
    contains(
        &succeed(cluster.llmagentos(&["version"]))?,
        "Kubernetes API v1.36",
    )?;
    for shell in ["bash", "zsh", "fish"] {
        contains(
            &succeed(cluster.llmagentos(&["completion", shell]))?,
            "kubeconfig",
        )?;
    }
    // A reader that has seen enough, as `head -1`, and a disk that is full.
    for verb in ["status", "completion", "kubeconfig", "version"] {
        let arguments: &[&str] = if verb == "completion" {
            &[verb, "bash"]
        } else {
            &[verb]
        };
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = cluster.llmagentos(arguments).stdout(writer).output()?;
        anyhow::ensure!(
            output.status.success() && output.stderr.is_empty(),
            "{verb} to a closed pipe: {output:?}"
        );
        let mut full = cluster.llmagentos(arguments);
        full.stdout(std::fs::File::options().write(true).open("/dev/full")?);
        contains(
            &fail(full)?,
            "error: write to standard output: No space left on device",
        )?;
    }
    let printed = succeed(cluster.llmagentos(&["kubeconfig"]))?;
    anyhow::ensure!(
        printed == std::fs::read_to_string(cluster.kubeconfig())?,
        "the kubeconfig is printed as it is"
    );
    let target = cluster.path().join("merged.yaml");
    let mut merge = cluster.llmagentos(&["kubeconfig", "--merge"]);
    merge.env("KUBECONFIG", &target);
    succeed(merge)?;
    contains(
        &std::fs::read_to_string(&target)?,
        "current-context: llmagentos",
    )?;
    std::fs::remove_file(target)?;
    Ok(())
}

pub fn second_instance_and_port_in_use(cluster: &Cluster) -> anyhow::Result<()> {
    contains(
        &fail(cluster.llmagentos(&["server"]))?,
        "a server already runs on",
    )?;
    let again = succeed(cluster.llmagentos(&[
        "init",
        "--no-systemd",
        "--data-dir",
        &cluster.path().join("data").display().to_string(),
        "--run-dir",
        &cluster.path().join("run").display().to_string(),
    ]))?;
    contains(&again, "already running")?;
    // Another instance that wants a port that this one has.
    let status: serde_json::Value =
        serde_json::from_slice(&std::fs::read(cluster.path().join("run/status.json"))?)?;
    let port = status["api_url"]
        .as_str()
        .and_then(|url| url.rsplit(':').next())
        .unwrap_or_default()
        .to_owned();
    let other = cluster.path().join("other");
    let mut second = cluster.inside(env!("CARGO_BIN_EXE_llmagentos"));
    second
        .arg("--config-dir")
        .arg(&other)
        .args([
            "init",
            "--no-systemd",
            "--api-port",
            &port,
            "--bind-address",
            &Ipv4Addr::UNSPECIFIED.to_string(),
            "--data-dir",
        ])
        .arg(other.join("data"))
        .arg("--run-dir")
        .arg(other.join("run"));
    contains(
        &fail(second)?,
        &format!("port {port} is in use by another program"),
    )?;
    anyhow::ensure!(!other.exists(), "a refused init leaves nothing behind");
    Ok(())
}

pub fn images(cluster: &Cluster) -> anyhow::Result<()> {
    contains(&succeed(cluster.llmagentos(&["image", "list"]))?, BUSYBOX)?;
    succeed(cluster.llmagentos(&["image", "tag", BUSYBOX, "localhost/other-name:1"]))?;
    contains(
        &succeed(cluster.llmagentos(&["image", "list"]))?,
        "localhost/other-name:1",
    )?;
    succeed(cluster.llmagentos(&["image", "remove", "localhost/other-name:1"]))?;
    anyhow::ensure!(
        !succeed(cluster.llmagentos(&["image", "list"]))?.contains("other-name"),
        "the name is gone"
    );
    contains(
        &fail(cluster.llmagentos(&["image", "remove", "localhost/other-name:1"]))?,
        "is not here",
    )?;
    contains(
        &fail(cluster.llmagentos(&["image", "pull", "127.0.0.1:1/nothing:1"]))?,
        "127.0.0.1:1",
    )
}

/// The scheduler alone, as a second one of this cluster.
pub fn scheduler_alone(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "scheduler-alone")?;
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: second}}\nspec:\n  schedulerName: second\n  \
         containers: [{{name: c, image: \"{BUSYBOX}\", command: [sleep, \"3600\"]}}]\n"
    ))?;
    let mut command = cluster.llmagentos(&["scheduler", "--scheduler-name", "second"]);
    command
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .stderr(Stdio::null());
    let mut scheduler = Ended(command.spawn().context("start the scheduler")?);
    kubectl.wait("pod/second", "condition=Ready")?;
    contains(
        &kubectl.run(&["describe", "pod", "second"])?,
        "Successfully assigned scheduler-alone/second to e2e",
    )?;
    // The built-in scheduler leaves it alone, and says so.
    contains(
        &fail(cluster.llmagentos(&["explain", "pod", "second", "-n", "scheduler-alone"]))?,
        "pod scheduler-alone/second is left to the scheduler \"second\"",
    )?;
    contains(
        &kubectl.run(&[
            "--namespace=kube-system",
            "get",
            "lease",
            "second",
            "-o",
            "jsonpath={.spec.holderIdentity}",
        ])?,
        &format!("_{}_", scheduler.0.id()),
    )?;
    let pid = Pid::from_raw(i32::try_from(scheduler.0.id())?).context("a process id is not 0")?;
    kill_process(pid, Signal::TERM)?;
    let status = scheduler.0.wait()?;
    anyhow::ensure!(status.success(), "the scheduler ended with {status}");
    Ok(())
}

/// A process that ends with the test, whatever its outcome.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Why a pod is where it is, or why it is nowhere.
pub fn explain(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "explain-pod")?;
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: fits}}\nspec:\n  \
         containers: [{{name: c, image: \"{BUSYBOX}\", command: [sleep, \"3600\"]}}]\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: too-large}}\nspec:\n  \
         containers: [{{name: c, image: \"{BUSYBOX}\", resources: {{requests: {{cpu: \"1000\"}}}}}}]\n"
    ))?;
    kubectl.wait("pod/fits", "condition=PodScheduled")?;
    let explain = |name: &str| cluster.llmagentos(&["explain", "pod", name, "-n", "explain-pod"]);
    let fits = succeed(explain("fits"))?;
    contains(&fits, "pod explain-pod/fits is on node e2e")?;
    contains(&fits, "proven bound")?;
    contains(
        &succeed(explain("too-large"))?,
        "waits: 0/1 nodes are available: 1 Insufficient cpu.",
    )?;
    contains(
        &fail(explain("missing"))?,
        "pod explain-pod/missing does not exist",
    )?;
    let metrics = kubectl.run(&["get", "--raw", "/metrics"])?;
    contains(&metrics, "apiserver_request_duration_seconds_bucket")?;
    contains(
        &metrics,
        "scheduler_schedule_attempts_total{result=\"scheduled\"}",
    )
}
