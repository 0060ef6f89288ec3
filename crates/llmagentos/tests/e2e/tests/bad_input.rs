//! Bad input gets a specific error, and changes nothing.

use std::process::Stdio;

use anyhow::bail;

use crate::cluster::{Cluster, eventually};
use crate::images::BUSYBOX;
use crate::kubectl::{Kubectl, contains};

pub fn status_errors(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "bad-input")?;
    let said = |manifest: &str, further: &[&str]| {
        let mut arguments = vec!["create", "-f", "-"];
        arguments.extend(further);
        kubectl.run_with_input(&arguments, manifest).map_or_else(
            |error| error.to_string(),
            |output| format!("it was accepted: {output}"),
        )
    };
    let check =
        |manifest: &str, expect: &str| contains(&said(manifest, &["--validate=strict"]), expect);
    check(
        "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"a\"}, \"extra\": 1}",
        "unknown field \"extra\"",
    )?;
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}\n",
        "a lowercase RFC 1123 subdomain must consist of",
    )?;
    check(
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: a, image: {BUSYBOX}, resources: {{limits: {{cpu: lots}}}}}}]}}\n"
        ),
        "quantities must match the regular expression",
    )?;
    check(
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: a, image: {BUSYBOX}, ports: [{{containerPort: 70000}}]}}]}}\n"
        ),
        "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
    )?;
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: a, image: b}]}}}\n",
        "`selector` does not match template `labels`",
    )?;
    contains(
        &said(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: warned}\nextra: 1\n",
            &["--validate=ignore"],
        ),
        "created",
    )?;
    contains(
        &kubectl.fails(&["get", "pods", "-l", "a in (b"])?,
        "unable to parse requirement",
    )?;
    contains(
        &kubectl.fails(&["get", "pods", "--field-selector=nonsense=1"])?,
        "field label not supported",
    )?;
    contains(
        &kubectl.fails(&["create", "namespace", "bad-input"])?,
        "already exists",
    )?;
    contains(
        &kubectl.fails(&["get", "configmap", "nowhere"])?,
        "configmaps \"nowhere\" not found",
    )?;
    let stale = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: warned, resourceVersion: \"1\"}\ndata: {a: b}\n";
    let conflict = kubectl
        .run_with_input(&["replace", "-f", "-"], stale)
        .map_or_else(|error| error.to_string(), |_| String::new());
    contains(
        &conflict,
        "the object has been modified; please apply your changes to the latest version and try again",
    )?;
    raw_bodies(&kubectl)
}

/// Bodies that kubectl itself would never send.
fn raw_bodies(kubectl: &Kubectl<'_>) -> anyhow::Result<()> {
    let path = "/api/v1/namespaces/bad-input/configmaps";
    let said = |body: &str| {
        kubectl
            .run_with_input(&["create", "--raw", path, "-f", "-"], body)
            .map_or_else(
                |error| error.to_string(),
                |output| format!("accepted: {output}"),
            )
    };
    contains(&said("{\"apiVersion\": \"v1\", "), "BadRequest")
        .or_else(|_| contains(&said("{\"apiVersion\": \"v1\", "), "unexpected"))?;
    let large = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"large\"}},\"data\":{{\"a\":\"{}\"}}}}",
        "x".repeat(4 << 20)
    );
    contains(&said(&large), "limit")?;
    anyhow::ensure!(
        kubectl
            .fails(&["get", "configmap", "large"])?
            .contains("not found"),
        "nothing was stored"
    );
    Ok(())
}

pub fn images_and_commands(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "bad-images")?;
    for (name, image, reason) in [
        ("name", "Not/An Image!", "InvalidImageName"),
        ("missing", "localhost/no-such-image:1", "ErrImagePull"),
    ] {
        // Applied, because `kubectl run` itself refuses such names.
        kubectl.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: Never, containers: [{{name: main, image: \"{image}\"}}]}}\n"
        ))?;
        eventually(&format!("pod {name} says {reason}"), || {
            let actual = kubectl.value(
                &format!("pod/{name}"),
                ".status.containerStatuses[0].state.waiting.reason",
            )?;
            // The back-off after the first failure has a name of its own.
            if actual != reason && actual != "ImagePullBackOff" {
                bail!("the reason is \"{actual}\"");
            }
            Ok(())
        })?;
    }
    kubectl.run(&[
        "run",
        "command",
        &format!("--image={BUSYBOX}"),
        "--restart=Never",
        "--command",
        "--",
        "no-such-program",
    ])?;
    kubectl.wait_for_value("pod/command", ".status.phase", "Failed")?;
    contains(
        &kubectl.run(&["describe", "pod", "command"])?,
        "exec: \"no-such-program\": executable file not found in $PATH",
    )
}

pub fn credentials(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "bad-credentials")?;
    let server = kubectl.run(&[
        "config",
        "view",
        "--raw",
        "-o",
        "jsonpath={.clusters[0].cluster.server}",
    ])?;
    let mut command =
        cluster.inside(&std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned()));
    command
        .args([
            "--server",
            &server,
            "--insecure-skip-tls-verify",
            "--token",
            "not.a.token",
            "get",
            "pods",
        ])
        .env("HOME", cluster.path().join("nobody"))
        .env("KUBECONFIG", "/dev/null")
        .stdin(Stdio::null());
    let said = crate::cluster::fail(command)?;
    if !said.contains("Unauthorized") && !said.contains("You must be logged in") {
        bail!("{said}");
    }
    Ok(())
}
