//! `kill -9` of the server: containers go on, and a new server takes them over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::{Cluster, eventually};
use crate::images::BUSYBOX;
use crate::kubectl::{Kubectl, contains};
use crate::load::{Line, Load};

/// Kills under load; `E2E_CRASH_ROUNDS` sets another number.
const CRASH_ROUNDS: usize = 15;
/// Longest time from a start to the kill.
const LIFE_MAX: Duration = Duration::from_millis(400);

pub fn kill_keeps_containers(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "restart")?;
    let container = start_ticking(&kubectl)?;
    kill_server(cluster)?;
    cluster.init(&[])?;
    is_the_same(&kubectl, &container)?;
    // Lines that were written while the server was away and after it came back.
    let log = eventually("some lines are in the log", || {
        let log = kubectl.run(&["logs", "steady"])?;
        contains(&log, "tick 12").map(|()| log)
    })?;
    is_whole(&log)?;
    contains(
        &kubectl.run(&["exec", "steady", "--", "echo", "still here"])?,
        "still here",
    )
}

/// Kills at random moments under load: every acknowledged write is there, no revision is used twice, the watch goes
/// on without a gap, the container still runs.
pub fn kill_under_load(cluster: &Cluster) -> anyhow::Result<()> {
    let rounds = std::env::var("E2E_CRASH_ROUNDS")
        .ok()
        .map_or(Ok(CRASH_ROUNDS), |text| text.parse())
        .context("E2E_CRASH_ROUNDS is a number")?;
    let kubectl = Kubectl::in_new_namespace(cluster, "crash")?;
    let container = start_ticking(&kubectl)?;
    let load = Load::start(cluster, "crash")?;
    let mut random = u64::from(std::process::id()) | 1;
    for round in 0..rounds {
        let acknowledged = load.acknowledged_count();
        eventually("writes are acknowledged", || {
            anyhow::ensure!(load.acknowledged_count() > acknowledged, "none yet");
            Ok(())
        })?;
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Not a wait for something: the moment of the kill is the input of this test.
        std::thread::sleep(LIFE_MAX.mul_f64((random % 1000) as f64 / 1000.0));
        kill_server(cluster)?;
        cluster
            .init(&[])
            .with_context(|| format!("start after kill {round}"))?;
    }
    let lines = load.finish()?;
    let acknowledged = check_history(&lines)?;
    anyhow::ensure!(
        acknowledged.len() >= rounds,
        "only {} writes were acknowledged in {rounds} rounds",
        acknowledged.len()
    );
    let stored = kubectl.run(&[
        "get",
        "configmaps",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name} {.metadata.resourceVersion}{\"\\n\"}{end}",
    ])?;
    let stored: BTreeMap<&str, &str> = stored
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    for (name, revision) in &acknowledged {
        anyhow::ensure!(
            stored.get(name.as_str()) == Some(&revision.to_string().as_str()),
            "{name} was acknowledged at revision {revision}; stored is {:?}",
            stored.get(name.as_str())
        );
    }
    is_the_same(&kubectl, &container)?;
    is_whole(&kubectl.run(&["logs", "steady"])?)
}

/// A pod that writes a numbered line five times a second; answers its container's id.
fn start_ticking(kubectl: &Kubectl) -> anyhow::Result<String> {
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
    kubectl.value("pod/steady", ".status.containerStatuses[0].containerID")
}

/// `kill -9`; returns at once, as the user's shell does.
fn kill_server(cluster: &Cluster) -> anyhow::Result<()> {
    let pid = i32::try_from(cluster.server_pid()?)?;
    kill_process(
        Pid::from_raw(pid).context("a process id is not 0")?,
        Signal::KILL,
    )
    .with_context(|| format!("kill the server, process {pid}"))
}

fn is_the_same(kubectl: &Kubectl, container: &str) -> anyhow::Result<()> {
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
    )
}

/// No line is missing, though the server was away while some were written.
fn is_whole(log: &str) -> anyhow::Result<()> {
    for (index, line) in log.lines().enumerate() {
        anyhow::ensure!(
            line == format!("tick {index}"),
            "line {index} is \"{line}\""
        );
    }
    Ok(())
}

/// Checks what the load said; answers the acknowledged writes.
fn check_history(lines: &[Line]) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut acknowledged = BTreeMap::new();
    let mut revisions = BTreeSet::new();
    let mut watched = BTreeMap::new();
    let mut last_watched = 0;
    for line in lines {
        match line {
            Line::Acknowledged { name, revision } => {
                anyhow::ensure!(
                    revisions.insert(*revision),
                    "revision {revision} was used twice"
                );
                acknowledged.insert(name.clone(), *revision);
            }
            Line::Watched { name, revision } => {
                anyhow::ensure!(
                    *revision > last_watched,
                    "the watch told of revision {revision} after {last_watched}"
                );
                last_watched = *revision;
                watched.insert(name.clone(), *revision);
            }
            Line::Gap { why } => bail!("the watch could not go on: {why}"),
        }
    }
    for (name, revision) in &acknowledged {
        anyhow::ensure!(
            watched.get(name) == Some(revision),
            "{name} was acknowledged at revision {revision}; the watch saw {:?}",
            watched.get(name)
        );
    }
    Ok(acknowledged)
}
