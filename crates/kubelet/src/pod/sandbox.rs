//! The sandbox of a pod in the runtime's terms. Pure.

use std::path::PathBuf;

use runtime::service::{
    DnsConfig, NamespaceMode, PodSandboxConfig, PodSandboxMetadata, PortMapping,
};

use super::spec::{Kind, PodSpecView};
use super::{labels, resources, security};

/// `<namespace>_<name>_<uid>`, the pod's directory of logs.
pub fn log_directory_name(namespace: &str, name: &str, uid: &str) -> String {
    format!("{namespace}_{name}_{uid}")
}

pub fn config(
    view: &PodSpecView,
    attempt: u32,
    hostname: String,
    dns: DnsConfig,
    log_directory: PathBuf,
    pod_pids_limit: Option<i64>,
) -> PodSandboxConfig {
    let spec = view.pod.spec.as_ref();
    let security = spec.and_then(|spec| spec.security_context.as_ref());
    let sysctls = security.and_then(|context| context.sysctls.as_ref());
    let mode = |node: bool, else_mode| if node { NamespaceMode::Node } else { else_mode };
    PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: view.name().into(),
            uid: view.uid().into(),
            namespace: view.namespace().into(),
            attempt,
        },
        hostname,
        log_directory,
        dns: Some(dns),
        port_mappings: port_mappings(view),
        labels: labels::of_sandbox(view),
        annotations: view.pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: resources::cgroup_parent(&view.pod),
        resources: resources::of_pod(&view.pod, pod_pids_limit),
        network: mode(view.host_network(), NamespaceMode::Pod),
        pid: security::pid_mode(view),
        ipc: mode(
            spec.and_then(|spec| spec.host_ipc) == Some(true),
            NamespaceMode::Pod,
        ),
        sysctls: sysctls
            .into_iter()
            .flatten()
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect(),
    }
}

fn port_mappings(view: &PodSpecView) -> Vec<PortMapping> {
    if view.host_network() {
        return Vec::new();
    }
    let long_running = view
        .containers
        .iter()
        .filter(|spec| matches!(spec.kind, Kind::Regular | Kind::Sidecar));
    let ports = long_running.flat_map(|spec| spec.container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(PortMapping {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                container_port: u16::try_from(port.container_port).ok()?,
                host_port: port
                    .host_port
                    .and_then(|port| u16::try_from(port).ok())
                    .filter(|port| *port > 0)?,
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
            })
        })
        .collect()
}
