//! Services and host ports, from the node and from pods.

use anyhow::bail;

use crate::cluster::{Cluster, NODE_ADDRESS, eventually, succeed};
use crate::images::BUSYBOX;
use crate::kubectl::Kubectl;

use super::streams::curl;

fn web(name: &str, replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n\
         \x20     terminationGracePeriodSeconds: 0\n      containers:\n      - name: web\n        image: {BUSYBOX}\n        command: [sh, -c, \"hostname > /www/index.html; exec httpd -f -p 8080 -h /www\"]\n        ports: [{{containerPort: 8080}}]\n"
    )
}

pub fn cluster_ip_and_node_port(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "services")?;
    kubectl.apply(&web("web", 2))?;
    kubectl.run(&[
        "expose",
        "deployment",
        "web",
        "--type=NodePort",
        "--port=80",
        "--target-port=8080",
    ])?;
    kubectl.wait_for_value("deployment/web", ".status.availableReplicas", "2")?;
    let address = kubectl.value("service/web", ".spec.clusterIP")?;
    let node_port = kubectl.value("service/web", ".spec.ports[0].nodePort")?;
    anyhow::ensure!(address.starts_with("10.43."), "{address}");
    let mut names: Vec<String> = kubectl
        .value("pods", ".items[*].metadata.name")?
        .split(' ')
        .map(|name| format!("{name}\n"))
        .collect();
    names.sort();
    for url in [
        format!("http://{address}/"),
        format!("http://{NODE_ADDRESS}:{node_port}/"),
    ] {
        // Random choice: both answer within some tries.
        let mut seen = std::collections::BTreeSet::new();
        eventually(&format!("both pods answer on {url}"), || {
            seen.insert(succeed(curl(cluster, &url))?);
            if !seen.iter().eq(names.iter()) {
                bail!("answers so far: {seen:?}, pods: {names:?}");
            }
            Ok(())
        })
        .map_err(|error| {
            let slices = kubectl.run(&["get", "endpointslices,pods", "-o", "yaml"]);
            let mut nft = cluster.inside("nft");
            nft.args(["list", "ruleset"]);
            anyhow::anyhow!("{error:#}\n{slices:?}\n{:?}", succeed(nft))
        })?;
    }
    // From a pod, also to itself by the service.
    let pod = names[0].trim().to_owned();
    for _ in 0..8 {
        kubectl.run(&[
            "exec",
            &pod,
            "--",
            "sh",
            "-c",
            &format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 80 | grep 200"),
        ])?;
    }
    // No endpoints: refused at once, not a time-out.
    kubectl.run(&["scale", "deployment", "web", "--replicas=0"])?;
    eventually("a service without endpoints refuses", || {
        let said = crate::cluster::fail(curl(cluster, &format!("http://{address}/")))?;
        if said.contains("timed out")
            || !(said.contains("onnect to server") || said.contains("refused"))
        {
            bail!("{said}");
        }
        Ok(())
    })?;
    kubectl.run(&["delete", "service", "web"])?;
    Ok(())
}

pub fn host_port(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "host-port")?;
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: web, image: {BUSYBOX}, command: [httpd, -f, -p, \"8080\", -h, /www], ports: [{{containerPort: 8080, hostPort: 18080}}]}}\n"
    ))?;
    kubectl.wait("pod/web", "condition=Ready")?;
    for host in [NODE_ADDRESS.to_string(), "127.0.0.1".to_owned()] {
        let body = succeed(curl(cluster, &format!("http://{host}:18080/")))?;
        anyhow::ensure!(body == "hello from busybox\n", "{host}: {body}");
    }
    // A second pod with that port fits on no node.
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: second}}\nspec:\n  containers:\n  - {{name: web, image: {BUSYBOX}, command: [sleep, \"60\"], ports: [{{containerPort: 1, hostPort: 18080}}]}}\n"
    ))?;
    eventually("the second pod is told why", || {
        let message = kubectl.value(
            "pod/second",
            ".status.conditions[?(@.type==\"PodScheduled\")].message",
        )?;
        if !message.contains(
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports",
        ) {
            bail!("the message is: {message}");
        }
        Ok(())
    })
}
