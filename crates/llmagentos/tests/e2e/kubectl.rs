//! The stock kubectl, in a namespace that a test has for itself.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::cluster::{Cluster, eventually, fail, succeed};

pub struct Kubectl<'a> {
    pub cluster: &'a Cluster,
    pub namespace: String,
}

impl<'a> Kubectl<'a> {
    /// Makes the test's namespace and waits for its service account, without which no pod is admitted.
    pub fn in_new_namespace(cluster: &'a Cluster, namespace: &str) -> anyhow::Result<Self> {
        let kubectl = Self {
            cluster,
            namespace: namespace.to_owned(),
        };
        kubectl.run(&["create", "namespace", namespace])?;
        eventually("the namespace's service account", || {
            kubectl.run(&["get", "serviceaccount", "default"])
        })?;
        Ok(kubectl)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
        let mut command = self.cluster.inside(&program);
        command
            .arg("--kubeconfig")
            .arg(self.cluster.kubeconfig())
            .args(["--namespace", &self.namespace])
            .args(arguments)
            // Discovery is cached below HOME: each cluster has a cache of its own.
            .env("HOME", self.cluster.path().join("home"));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        succeed(self.command(arguments))
    }

    /// Runs what must fail; answers its error text.
    pub fn fails(&self, arguments: &[&str]) -> anyhow::Result<String> {
        fail(self.command(arguments))
    }

    /// Runs with `input` on standard input.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = self.command(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("stdin is piped")?;
        match stdin.write_all(input.as_bytes()) {
            // A program that was refused need not read to the end.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(error.into());
            }
            _ => drop(stdin),
        }
        let output = child.wait_with_output()?;
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        if !output.status.success() {
            bail!("{command:?}: {}\n{stdout}{stderr}", output.status);
        }
        Ok(stdout.into_owned())
    }

    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        self.run_with_input(&["apply", "-f", "-"], manifest)
    }

    /// One value of an object, by JSON path.
    pub fn value(&self, object: &str, path: &str) -> anyhow::Result<String> {
        self.run(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }

    pub fn wait(&self, object: &str, condition: &str) -> anyhow::Result<()> {
        self.run(&["wait", "--for", condition, object, "--timeout=90s"])
            .map(drop)
    }

    /// Waits until a value of an object is what is expected.
    pub fn wait_for_value(&self, object: &str, path: &str, expect: &str) -> anyhow::Result<()> {
        eventually(&format!("{object} {path} = {expect}"), || {
            let actual = self.value(object, path)?;
            if actual != expect {
                bail!("{object} {path} is \"{actual}\"");
            }
            Ok(())
        })
    }
}

/// A test's assertion on a text.
pub fn contains(text: &str, part: &str) -> anyhow::Result<()> {
    if !text.contains(part) {
        bail!("\"{part}\" is not in:\n{text}");
    }
    Ok(())
}
