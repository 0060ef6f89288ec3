//! Logs, exec, attach, port-forward, cp.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::cluster::Cluster;
use crate::images::BUSYBOX;
use crate::kubectl::{Kubectl, contains};

/// Ends a program that a test started.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn run_pod(kubectl: &Kubectl<'_>, name: &str, script: &str) -> anyhow::Result<()> {
    kubectl.run(&[
        "run",
        name,
        &format!("--image={BUSYBOX}"),
        "--restart=Never",
        "--",
        "sh",
        "-c",
        script,
    ])?;
    kubectl.wait(&format!("pod/{name}"), "jsonpath={.status.phase}=Running")
}

pub fn logs(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "logs")?;
    run_pod(
        &kubectl,
        "talker",
        "for i in 1 2 3; do echo line $i; done; echo to-stderr >&2; sleep 1; echo late; exec sleep 3600",
    )?;
    let mut follow = kubectl.command(&["logs", "-f", "talker"]);
    let mut follow = Running(follow.stdout(Stdio::piped()).spawn()?);
    let mut lines = BufReader::new(follow.0.stdout.take().context("stdout is piped")?).lines();
    let mut seen = Vec::new();
    while !seen.iter().any(|line| line == "late") {
        seen.push(
            lines
                .next()
                .context("the log ended before its last line")??,
        );
    }
    anyhow::ensure!(
        seen == ["line 1", "line 2", "line 3", "to-stderr", "late"],
        "{seen:?}"
    );
    anyhow::ensure!(
        kubectl.run(&["logs", "talker", "--tail=1"])? == "late\n",
        "the last line only"
    );
    anyhow::ensure!(
        kubectl.run(&["logs", "talker", "--limit-bytes=6"])? == "line 1",
        "the first bytes only"
    );
    contains(
        &kubectl.run(&["logs", "talker", "--timestamps", "--tail=1"])?,
        "Z late",
    )?;
    contains(
        &kubectl.fails(&["logs", "talker", "-c", "other"])?,
        "container other is not valid for pod talker",
    )?;
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: nowhere}}\nspec: {{nodeSelector: {{no: such}}, containers: [{{name: main, image: {BUSYBOX}}}]}}\n"
    ))?;
    anyhow::ensure!(
        kubectl.run(&["logs", "nowhere"])?.is_empty(),
        "a pod that is on no node has logged nothing"
    );
    contains(
        &kubectl.fails(&["logs", "nobody"])?,
        "pods \"nobody\" not found",
    )
}

pub fn exec(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "exec")?;
    run_pod(&kubectl, "box", "exec sleep 3600")?;
    anyhow::ensure!(
        kubectl.run(&["exec", "box", "--", "echo", "hi"])? == "hi\n",
        "the output comes back"
    );
    anyhow::ensure!(
        kubectl.run_with_input(&["exec", "-i", "box", "--", "cat"], "in and out\n")?
            == "in and out\n",
        "standard input goes in"
    );
    let output = kubectl
        .command(&[
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 7",
        ])
        .output()?;
    anyhow::ensure!(
        output.status.code() == Some(7),
        "the exit code comes back, not {:?}",
        output.status
    );
    anyhow::ensure!(
        output.stdout == b"out\n",
        "only standard output is on standard output"
    );
    contains(&String::from_utf8_lossy(&output.stderr), "err\n")?;
    contains(
        &kubectl.fails(&["exec", "box", "--", "no-such-program"])?,
        "failed to exec in container: exec: \"no-such-program\": executable file not found in $PATH",
    )?;
    anyhow::ensure!(
        kubectl.run(&[
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "cat /etc/hostname; echo $HOSTNAME"
        ])? == "box\nbox\n",
        "the pod's hostname is in its file and in the environment of commands"
    );
    // Much data both ways, unharmed.
    let text = "0123456789abcdef".repeat(64 * 1024);
    anyhow::ensure!(
        kubectl.run_with_input(&["exec", "-i", "box", "--", "cat"], &text)? == text,
        "a megabyte goes through"
    );
    // The old protocol, which kubectl falls back to.
    let mut spdy = kubectl.command(&["exec", "box", "--", "echo", "by spdy"]);
    spdy.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
    anyhow::ensure!(
        crate::cluster::succeed(spdy)? == "by spdy\n",
        "SPDY/3.1 works too"
    );
    Ok(())
}

pub fn exec_with_terminal(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "terminal")?;
    run_pod(&kubectl, "box", "exec sleep 3600")?;
    // `script` gives kubectl the terminal that `-t` asks for.
    let command = kubectl.command(&[
        "exec",
        "-it",
        "box",
        "--",
        "sh",
        "-c",
        "tty; for i in $(seq 100); do stty size 2>&1 | grep -q 33 && break; sleep 0.1; done; stty size; echo done",
    ]);
    let line = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ");
    let output = Command::new("script")
        .args([
            "--quiet",
            "--return",
            "--command",
            &format!("stty rows 33 cols 99; {line}"),
            "/dev/null",
        ])
        .env("HOME", cluster.path().join("home"))
        .stdin(Stdio::null())
        .output()
        .context("run script")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    contains(&text, "/dev/pts/")?;
    contains(&text, "done")?;
    contains(&text, "33 99")
}

pub fn attach(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "attach")?;
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: echo}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: main, image: {BUSYBOX}, stdin: true, stdinOnce: true, command: [sh, -c, \"read line; echo got $line\"]}}\n"
    ))?;
    kubectl.wait("pod/echo", "jsonpath={.status.phase}=Running")?;
    let output = kubectl.run_with_input(&["attach", "-i", "echo"], "a word\n")?;
    contains(&output, "got a word")?;
    kubectl.wait("pod/echo", "jsonpath={.status.phase}=Succeeded")?;
    // One that keeps its input open outlives its clients: they end with their own input.
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: twice}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: main, image: {BUSYBOX}, stdin: true, command: [sh, -c, \"read line; echo got $line; read line; echo got $line\"]}}\n"
    ))?;
    kubectl.wait("pod/twice", "jsonpath={.status.phase}=Running")?;
    kubectl.run_with_input(&["attach", "-i", "twice"], "one\n")?;
    kubectl.wait_for_value("pod/twice", ".status.phase", "Running")?;
    kubectl.run_with_input(&["attach", "-i", "twice"], "two\n")?;
    kubectl.wait("pod/twice", "jsonpath={.status.phase}=Succeeded")?;
    let log = kubectl.run(&["logs", "twice"])?;
    anyhow::ensure!(log == "got one\ngot two\n", "{log}");
    Ok(())
}

pub fn port_forward(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "forward")?;
    run_pod(&kubectl, "web", "exec httpd -f -p 8080 -h /www")?;
    for websockets in ["true", "false"] {
        let mut command = kubectl.command(&["port-forward", "pod/web", ":8080"]);
        command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
        let mut forward = Running(command.stdout(Stdio::piped()).spawn()?);
        let mut line = String::new();
        // Held until the end: kubectl says more on it, and ends when nobody can hear.
        let mut output = BufReader::new(forward.0.stdout.take().context("stdout is piped")?);
        output.read_line(&mut line)?;
        let port: u16 = line
            .trim_start_matches("Forwarding from 127.0.0.1:")
            .split(' ')
            .next()
            .and_then(|port| port.parse().ok())
            .with_context(|| format!("port-forward said: {line}"))?;
        // kubectl listens in the cluster's namespace: so must its client.
        for _ in 0..3 {
            let body =
                crate::cluster::succeed(curl(cluster, &format!("http://127.0.0.1:{port}/")))?;
            anyhow::ensure!(body == "hello from busybox\n", "{body}");
        }
    }
    Ok(())
}

/// An HTTP client in the cluster's network namespace.
pub fn curl(cluster: &Cluster, url: &str) -> Command {
    let mut command = cluster.inside("curl");
    command.args([
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "10",
        url,
    ]);
    command
}

pub fn cp(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "cp")?;
    run_pod(&kubectl, "box", "exec sleep 3600")?;
    let (there, back) = (
        cluster.path().join("cp-there"),
        cluster.path().join("cp-back"),
    );
    let content = "some\ncontent\n".repeat(1000);
    std::fs::write(&there, &content)?;
    kubectl.run(&["cp", &there.display().to_string(), "box:/tmp/file"])?;
    kubectl.run(&["cp", "box:/tmp/file", &back.display().to_string()])?;
    let result = std::fs::read_to_string(&back)?;
    std::fs::remove_file(there)?;
    std::fs::remove_file(back)?;
    if result != content {
        bail!(
            "the file came back with {} of {} bytes",
            result.len(),
            content.len()
        );
    }
    Ok(())
}
