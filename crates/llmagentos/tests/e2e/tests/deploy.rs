//! Deployments by kubectl.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, bail};

use crate::cluster::{Cluster, eventually};
use crate::images::{BUSYBOX, BUSYBOX_2};
use crate::kubectl::{Kubectl, contains};

/// A deployment of busybox that ends at once when told to.
pub fn sleeper(name: &str, replicas: u32, further_spec: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n{further_spec}\
         \n  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n\
         \x20     - name: main\n        image: {BUSYBOX}\n        command: [sh, -c, \"trap exit TERM; while true; do sleep 1 & wait; done\"]\n"
    )
}

pub fn create_get_describe_delete(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "deploy")?;
    let created = kubectl.run(&[
        "create",
        "deployment",
        "hello",
        &format!("--image={BUSYBOX}"),
        "--",
        "sleep",
        "3600",
    ])?;
    contains(&created, "deployment.apps/hello created")?;
    kubectl.wait("deployment/hello", "condition=Available")?;
    let table = kubectl.run(&["get", "deployments"])?;
    contains(&table, "READY   UP-TO-DATE   AVAILABLE   AGE")?;
    contains(&table, "1/1")?;
    let wide = kubectl.run(&["get", "pods", "-o", "wide"])?;
    for part in ["NOMINATED NODE", "Running", "e2e", "10.42.0."] {
        contains(&wide, part)?;
    }
    let described = kubectl.run(&["describe", "deployment", "hello"])?;
    contains(&described, "Scaled up replica set hello-")?;
    contains(&described, "NewReplicaSetAvailable")?;
    let pod = kubectl.value("pods", ".items[0].metadata.name")?;
    let described = kubectl.run(&["describe", "pod", &pod])?;
    for part in [
        "Successfully assigned deploy/hello-",
        "Started",
        "QoS Class:",
        "BestEffort",
        "kube-api-access-",
    ] {
        contains(&described, part)?;
    }
    contains(&kubectl.run(&["describe", "node", "e2e"])?, "Ready")?;
    let events = kubectl.run(&["get", "events"])?;
    for reason in [
        "ScalingReplicaSet",
        "SuccessfulCreate",
        "Scheduled",
        "Created",
        "Started",
    ] {
        contains(&events, reason)?;
    }
    kubectl.run(&["delete", "deployment", "hello", "--grace-period=1"])?;
    eventually("no pods are left", || {
        match kubectl.value("pods", ".items[*].metadata.name")?.as_str() {
            "" => Ok(()),
            names => bail!("pods {names} are left"),
        }
    })
}

pub fn scale(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "scale")?;
    kubectl.apply(&sleeper("web", 1, ""))?;
    kubectl.run(&["scale", "deployment", "web", "--replicas=3"])?;
    kubectl.wait_for_value("deployment/web", ".status.availableReplicas", "3")?;
    kubectl.run(&[
        "scale",
        "deployment",
        "web",
        "--replicas=1",
        "--current-replicas=3",
    ])?;
    eventually("one pod is left", || {
        match kubectl
            .value("pods", ".items[*].metadata.name")?
            .split(' ')
            .count()
        {
            1 => Ok(()),
            count => bail!("{count} pods"),
        }
    })
}

pub fn rollout(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "rollout")?;
    kubectl.apply(&sleeper("web", 2, ""))?;
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    kubectl.run(&[
        "set",
        "image",
        "deployment/web",
        &format!("main={BUSYBOX_2}"),
    ])?;
    contains(
        &kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?,
        "successfully rolled out",
    )?;
    let image = ".spec.template.spec.containers[0].image";
    kubectl.wait_for_value("deployment/web", image, BUSYBOX_2)?;
    let history = kubectl.run(&["rollout", "history", "deployment/web"])?;
    contains(&history, "1 ")?;
    contains(&history, "2 ")?;
    kubectl.run(&["rollout", "undo", "deployment/web"])?;
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    kubectl.wait_for_value("deployment/web", image, BUSYBOX)?;
    contains(
        &kubectl.run(&["rollout", "history", "deployment/web"])?,
        "3 ",
    )?;
    kubectl.run(&["rollout", "restart", "deployment/web"])?;
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    kubectl.run(&["rollout", "pause", "deployment/web"])?;
    kubectl.run(&[
        "set",
        "image",
        "deployment/web",
        &format!("main={BUSYBOX_2}"),
    ])?;
    kubectl.run(&["rollout", "resume", "deployment/web"])?;
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    Ok(())
}

pub fn recreate(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "recreate")?;
    kubectl.apply(&sleeper("web", 1, "  strategy: {type: Recreate}"))?;
    kubectl.wait("deployment/web", "condition=Available")?;
    let before = kubectl.value("pods", ".items[0].metadata.name")?;
    kubectl.run(&[
        "set",
        "image",
        "deployment/web",
        &format!("main={BUSYBOX_2}"),
    ])?;
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    let after = eventually("one new pod", || {
        let names = kubectl.value("pods", ".items[*].metadata.name")?;
        if names == before || names.contains(' ') {
            bail!("pods are {names}");
        }
        Ok(names)
    })?;
    anyhow::ensure!(after != before, "the pod was not replaced");
    Ok(())
}

pub fn watch(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "watch")?;
    let mut child = kubectl
        .command(&["get", "pods", "-o", "wide", "-w"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    kubectl.run(&[
        "run",
        "seen",
        &format!("--image={BUSYBOX}"),
        "--",
        "sleep",
        "3600",
    ])?;
    let mut seen = String::new();
    let found = loop {
        match lines.recv_timeout(std::time::Duration::from_secs(60)) {
            Ok(line) => {
                seen.push_str(&line);
                seen.push('\n');
                if line.starts_with("seen") && line.contains("Running") {
                    break true;
                }
            }
            Err(_) => break false,
        }
    };
    child.kill()?;
    child.wait()?;
    anyhow::ensure!(found, "no Running in the watch:\n{seen}");
    contains(&seen, "NOMINATED NODE")?;
    contains(&seen, "Pending")?;
    Ok(())
}
