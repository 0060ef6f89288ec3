//! A pod's containers of all kinds in one list, and the rules of restarting them. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

use super::labels;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: starts in the init order and then stays.
    Sidecar,
    Regular,
    /// Added to a running pod for debugging; never restarted.
    Ephemeral,
}

#[derive(Clone, Debug)]
pub struct ContainerSpec {
    pub kind: Kind,
    pub container: Container,
    /// Whose process namespace an ephemeral container joins.
    pub target: Option<String>,
    /// Changes when a running container must be replaced.
    pub hash: String,
}

/// A pod as the kubelet works with it: the object and its containers in the order of start.
#[derive(Clone, Debug)]
pub struct PodSpecView {
    pub pod: Arc<Pod>,
    pub containers: Vec<ContainerSpec>,
}

impl PodSpecView {
    pub fn new(pod: Arc<Pod>) -> PodSpecView {
        let mut containers = Vec::new();
        if let Some(spec) = &pod.spec {
            let mut add = |kind, container: Container, target| {
                let hash = labels::container_hash(&container);
                containers.push(ContainerSpec {
                    kind,
                    container,
                    target,
                    hash,
                });
            };
            for container in spec.init_containers.iter().flatten() {
                let kind = if container.restart_policy.as_deref() == Some("Always") {
                    Kind::Sidecar
                } else {
                    Kind::Init
                };
                add(kind, container.clone(), None);
            }
            for container in &spec.containers {
                add(Kind::Regular, container.clone(), None);
            }
            for container in spec.ephemeral_containers.iter().flatten() {
                let target = container
                    .target_container_name
                    .clone()
                    .filter(|name| !name.is_empty());
                add(Kind::Ephemeral, plain(container), target);
            }
        }
        PodSpecView { pod, containers }
    }

    pub fn container(&self, name: &str) -> Option<&ContainerSpec> {
        self.containers
            .iter()
            .find(|spec| spec.container.name == name)
    }

    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// `name_namespace(uid)`, as upstream's messages name a pod.
    pub fn formatted(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    pub fn host_network(&self) -> bool {
        self.pod
            .spec
            .as_ref()
            .and_then(|spec| spec.host_network)
            .unwrap_or(false)
    }

    pub fn restart_policy(&self) -> &str {
        self.pod
            .spec
            .as_ref()
            .and_then(|spec| spec.restart_policy.as_deref())
            .unwrap_or("Always")
    }

    /// Seconds between the request to stop and the kill, where nothing more specific is said.
    pub fn grace_period_seconds(&self) -> i64 {
        let metadata = &self.pod.metadata;
        let of_spec = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.termination_grace_period_seconds);
        metadata
            .deletion_grace_period_seconds
            .or(of_spec)
            .unwrap_or(30)
            .max(0)
    }

    /// Would this container run again after exiting with `exit_code`?
    pub fn restarts_after(&self, spec: &ContainerSpec, exit_code: i32) -> bool {
        let container = &spec.container;
        if spec.kind == Kind::Ephemeral {
            return false;
        }
        for rule in container.restart_policy_rules.iter().flatten() {
            let Some(exit_codes) = &rule.exit_codes else {
                continue;
            };
            let listed = exit_codes
                .values
                .iter()
                .flatten()
                .any(|value| *value == exit_code);
            if rule.action == "Restart" && listed == (exit_codes.operator == "In") {
                return true;
            }
        }
        match container
            .restart_policy
            .as_deref()
            .unwrap_or(self.restart_policy())
        {
            "Never" => false,
            "OnFailure" => exit_code != 0,
            // A regular init container that is done is never run again by policy Always.
            _ => spec.kind != Kind::Init || exit_code != 0,
        }
    }
}

/// An ephemeral container's fields as a container's.
fn plain(container: &EphemeralContainer) -> Container {
    let c = container.clone();
    Container {
        args: c.args,
        command: c.command,
        env: c.env,
        env_from: c.env_from,
        image: c.image,
        image_pull_policy: c.image_pull_policy,
        lifecycle: c.lifecycle,
        liveness_probe: c.liveness_probe,
        name: c.name,
        ports: c.ports,
        readiness_probe: c.readiness_probe,
        resize_policy: c.resize_policy,
        resources: c.resources,
        restart_policy: c.restart_policy,
        restart_policy_rules: c.restart_policy_rules,
        security_context: c.security_context,
        startup_probe: c.startup_probe,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path,
        termination_message_policy: c.termination_message_policy,
        tty: c.tty,
        volume_devices: c.volume_devices,
        volume_mounts: c.volume_mounts,
        working_dir: c.working_dir,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn restart_policies() {
        let check = |pod_policy: &str,
                     container: serde_json::Value,
                     init: bool,
                     exit_code: i32,
                     expect: bool| {
            let mut container = container;
            container["name"] = json!("c");
            let list = if init { "initContainers" } else { "containers" };
            let mut spec = json!({"restartPolicy": pod_policy, "containers": []});
            spec[list] = json!([container]);
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            let view = PodSpecView::new(Arc::new(pod));
            assert_eq!(
                view.restarts_after(&view.containers[0], exit_code),
                expect,
                "{pod_policy} {container} {exit_code}"
            );
        };
        check("Always", json!({}), false, 0, true);
        check("OnFailure", json!({}), false, 0, false);
        check("OnFailure", json!({}), false, 1, true);
        check("Never", json!({}), false, 1, false);
        check("Always", json!({}), true, 0, false);
        check("Always", json!({}), true, 1, true);
        check("Never", json!({"restartPolicy": "Always"}), true, 0, true);
        check(
            "Never",
            json!({"restartPolicy": "OnFailure"}),
            false,
            1,
            true,
        );
        let rules = json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]});
        check("Always", rules.clone(), false, 42, true);
        check("Always", rules, false, 41, false);
        let rules = json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [42]}}]});
        check("Always", rules, false, 41, true);
    }
}
