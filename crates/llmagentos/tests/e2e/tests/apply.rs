//! Declarative changes: apply on both sides, explain, label, annotate, patch, edit.

use crate::cluster::Cluster;
use crate::kubectl::{Kubectl, contains};

use super::deploy::sleeper;

pub fn client_side(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "apply-client")?;
    let manifest = |key: &str, value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{{key}: \"{value}\"}}\n"
        )
    };
    contains(
        &kubectl.apply(&manifest("a", "1"))?,
        "configmap/settings created",
    )?;
    contains(
        &kubectl.apply(&manifest("a", "1"))?,
        "configmap/settings unchanged",
    )?;
    contains(
        &kubectl
            .run_with_input(&["diff", "-f", "-"], &manifest("a", "1"))
            .unwrap_or_default(),
        "",
    )?;
    contains(
        &kubectl.apply(&manifest("b", "2"))?,
        "configmap/settings configured",
    )?;
    anyhow::ensure!(
        kubectl.value("configmap/settings", ".data")? == r#"{"b":"2"}"#,
        "the key that was left out is gone"
    );
    contains(
        &kubectl.run_with_input(
            &["apply", "--dry-run=server", "-f", "-"],
            &manifest("c", "3"),
        )?,
        "server dry run",
    )?;
    anyhow::ensure!(
        kubectl.value("configmap/settings", ".data")? == r#"{"b":"2"}"#,
        "a dry run changes nothing"
    );
    kubectl.apply(&sleeper("web", 1, ""))?;
    contains(
        &kubectl.apply(&sleeper("web", 2, ""))?,
        "deployment.apps/web configured",
    )?;
    kubectl.wait_for_value("deployment/web", ".status.availableReplicas", "2")
}

pub fn server_side(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "apply-server")?;
    let apply = |manager: &str, replicas: u32, further: &[&str]| {
        let manager = format!("--field-manager={manager}");
        let mut arguments = vec!["apply", "--server-side", &manager, "-f", "-"];
        arguments.extend(further);
        kubectl.run_with_input(&arguments, &sleeper("web", replicas, ""))
    };
    contains(
        &apply("one", 1, &[])?,
        "deployment.apps/web serverside-applied",
    )?;
    let conflict = apply("two", 2, &[])
        .map(drop)
        .expect_err("another manager has the field")
        .to_string();
    contains(&conflict, "conflict with \"one\"")?;
    contains(&conflict, ".spec.replicas")?;
    apply("two", 2, &["--force-conflicts"])?;
    kubectl.wait_for_value("deployment/web", ".status.availableReplicas", "2")?;
    let owners = kubectl.run(&[
        "get",
        "deployment",
        "web",
        "--show-managed-fields",
        "-o",
        "jsonpath={.metadata.managedFields[*].manager}",
    ])?;
    contains(&owners, "one")?;
    contains(&owners, "two")
}

pub fn explain(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "explain")?;
    let text = kubectl.run(&["explain", "deployment.spec.strategy.rollingUpdate"])?;
    contains(&text, "maxSurge")?;
    contains(&text, "FIELD: rollingUpdate")?;
    contains(
        &kubectl.run(&["explain", "pod.spec.containers.resources"])?,
        "limits",
    )?;
    contains(&kubectl.run(&["api-resources"])?, "deployments")
}

pub fn label_annotate_patch_edit(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "patch")?;
    kubectl.apply(&sleeper("web", 1, ""))?;
    kubectl.run(&["label", "deployment", "web", "tier=front"])?;
    contains(
        &kubectl.fails(&["label", "deployment", "web", "tier=back"])?,
        "already has a value",
    )?;
    kubectl.run(&["label", "deployment", "web", "tier=back", "--overwrite"])?;
    kubectl.run(&["annotate", "deployment", "web", "note=one"])?;
    contains(
        &kubectl.run(&["get", "deployments", "-l", "tier=back"])?,
        "web",
    )?;
    contains(
        &kubectl.run(&[
            "get",
            "deployments",
            "-l",
            "tier in (front)",
            "--ignore-not-found",
        ])?,
        "",
    )?;
    // Strategic merge: a container is found by its name, and its other fields are kept.
    kubectl.run(&["patch", "deployment", "web", "-p", r#"{"spec":{"template":{"spec":{"containers":[{"name":"main","env":[{"name":"A","value":"1"}]}]}}}}"#])?;
    kubectl.wait_for_value(
        "deployment/web",
        ".spec.template.spec.containers[0].env[0].value",
        "1",
    )?;
    kubectl.wait_for_value(
        "deployment/web",
        ".spec.template.spec.containers[0].command[0]",
        "sh",
    )?;
    kubectl.run(&[
        "patch",
        "deployment",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/replicas","value":2}]"#,
    ])?;
    kubectl.run(&[
        "patch",
        "deployment",
        "web",
        "--type=merge",
        "-p",
        r#"{"metadata":{"annotations":{"note":null}}}"#,
    ])?;
    anyhow::ensure!(
        kubectl
            .value("deployment/web", ".metadata.annotations.note")?
            .is_empty(),
        "a null removes the annotation"
    );
    contains(
        &kubectl.fails(&[
            "patch",
            "deployment",
            "web",
            "--type=json",
            "-p",
            r#"[{"op":"test","path":"/spec/replicas","value":9}]"#,
        ])?,
        "the server rejected our request due to an error in our request",
    )?;
    let mut edit = kubectl.command(&["edit", "deployment", "web"]);
    edit.env("KUBE_EDITOR", "sed -i s/replicas:.2/replicas:\\ 1/");
    contains(
        &crate::cluster::succeed(edit)?,
        "deployment.apps/web edited",
    )?;
    kubectl.wait_for_value("deployment/web", ".spec.replicas", "1")
}
