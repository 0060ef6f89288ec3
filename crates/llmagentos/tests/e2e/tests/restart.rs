//! `kill -9` of the server: containers go on, and a new server takes them over.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::{Cluster, eventually};
use crate::images::BUSYBOX;
use crate::kubectl::{Kubectl, contains};

pub fn kill_keeps_containers(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "restart")?;
    kubectl.run(&[
        "run",
        "steady",
        &format!("--image={BUSYBOX}"),
        "--",
        "sh",
        "-c",
        "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.2; done",
    ])?;
    kubectl.wait("pod/steady", "condition=Ready")?;
    let container = kubectl.value("pod/steady", ".status.containerStatuses[0].containerID")?;
    let pid = i32::try_from(cluster.server_pid()?)?;
    kill_process(
        Pid::from_raw(pid).context("a process id is not 0")?,
        Signal::KILL,
    )?;
    eventually("the server is gone", || {
        if std::path::Path::new(&format!("/proc/{pid}/cmdline")).exists()
            && std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
        {
            bail!("process {pid} is still there");
        }
        Ok(())
    })?;
    cluster.init(&[])?;
    eventually("the pod is Ready after the restart", || {
        kubectl.run(&[
            "wait",
            "--for=condition=Ready",
            "pod/steady",
            "--timeout=1s",
        ])
    })?;
    anyhow::ensure!(
        kubectl.value("pod/steady", ".status.containerStatuses[0].containerID")? == container,
        "the same container"
    );
    kubectl.wait_for_value(
        "pod/steady",
        ".status.containerStatuses[0].restartCount",
        "0",
    )?;
    // No line is missing in the log, though the server was away while some were written.
    let log = eventually("some lines are in the log", || {
        let log = kubectl.run(&["logs", "steady"])?;
        contains(&log, "tick 5").map(|()| log)
    })?;
    for (index, line) in log.lines().enumerate() {
        anyhow::ensure!(
            line == format!("tick {index}"),
            "line {index} is \"{line}\""
        );
    }
    contains(
        &kubectl.run(&["exec", "steady", "--", "echo", "still here"])?,
        "still here",
    )
}
