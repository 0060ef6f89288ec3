//! Disruption budgets by kubectl, and evictions that ask them.

use super::deploy::sleeper;
use crate::cluster::Cluster;
use crate::kubectl::{Kubectl, contains};

pub fn budget_holds_evictions_back(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "disruption")?;
    kubectl.apply(&sleeper("guarded", 2, ""))?;
    kubectl.wait_for_value("deployment/guarded", ".status.availableReplicas", "2")?;
    kubectl.run(&[
        "create",
        "poddisruptionbudget",
        "guarded",
        "--selector=app=guarded",
        "--max-unavailable=0",
    ])?;
    kubectl.wait_for_value("pdb/guarded", ".status.currentHealthy", "2")?;
    let table = kubectl.run(&["get", "pdb"])?;
    contains(
        &table,
        "MIN AVAILABLE   MAX UNAVAILABLE   ALLOWED DISRUPTIONS   AGE",
    )?;
    contains(&table, "N/A")?;
    let pod = kubectl.value("pods", ".items[0].metadata.name")?;
    let path = format!("/api/v1/namespaces/disruption/pods/{pod}/eviction");
    let body = format!(
        r#"{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{pod}","namespace":"disruption"}}}}"#
    );
    let evict = || kubectl.run_with_input(&["create", "--raw", &path, "-f", "-"], &body);
    let refusal = match evict() {
        Ok(answer) => anyhow::bail!("a pod without spare was evicted: {answer}"),
        Err(error) => format!("{error:#}"),
    };
    contains(
        &refusal,
        "Cannot evict pod as it would violate the pod's disruption budget.",
    )?;
    kubectl.run(&[
        "patch",
        "pdb",
        "guarded",
        "--type=merge",
        "-p",
        r#"{"spec":{"maxUnavailable":1}}"#,
    ])?;
    kubectl.wait_for_value("pdb/guarded", ".status.disruptionsAllowed", "1")?;
    evict()?;
    kubectl.wait(&format!("pod/{pod}"), "delete")?;
    kubectl.wait_for_value("pdb/guarded", ".status.currentHealthy", "2")?;
    let described = kubectl.run(&["describe", "pdb", "guarded"])?;
    contains(&described, "Allowed disruptions:  1")
}
