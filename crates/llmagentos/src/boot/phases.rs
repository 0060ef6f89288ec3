//! The phases of a start, in order, and their end in the opposite order.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apiserver::{FurtherMetrics, Identity, Server};
use controlplane::{SchedulerMetrics, SchedulerOptions};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kubelet::Kubelet;
use network::host_ports::HostPorts;
use network::ipam::Ipv4Cidr;
use network::pod_network::{PodNetwork, PodNetworkConfig, node_address};
use network::proxy::{ProxyConfig, ServiceProxy};
use runtime::image::ImageStore;
use runtime::native::NativeRuntime;
use runtime::service::{RuntimeService, SandboxNetwork};
use store::Embedded;

use super::Progress;
use crate::config::{Config, parse_cidr, parse_port_range};
use crate::net_adapter::PodNetworkAdapter;

/// Everything that runs.
pub struct Cluster {
    server: Server,
    controlplane: controlplane::Handle,
    service_proxy: ServiceProxy,
    kubelet: Kubelet,
    store: Arc<Embedded>,
}

impl Cluster {
    /// Ends in the opposite order of the start; containers go on.
    pub async fn shutdown(self) {
        self.kubelet.shutdown().await;
        self.service_proxy.shutdown().await;
        self.controlplane.stop().await;
        self.server.shutdown().await;
        drop(self.store);
    }
}

/// Brings everything up; answers when the node is Ready.
pub async fn start(config: &Config, progress: &mut Progress) -> anyhow::Result<Cluster> {
    progress.phase("directories")?;
    make_directories(config)?;
    let node_ip = node_ip(config)?;

    progress.phase("store and container runtime")?;
    let (store, node) = tokio::join!(open_store(config), start_runtime(config));
    let (store, node) = (store?, node?);

    progress.phase("API server")?;
    let scheduler_metrics = Arc::new(SchedulerMetrics::default());
    let counted = Arc::clone(&scheduler_metrics);
    let mut api_config = api_config(config, node_ip)?;
    api_config.further_metrics = Some(FurtherMetrics(Arc::new(move || counted.render())));
    let server = Server::start(api_config, store.clone())
        .await
        .context("start the API server")?;
    let url = write_kubeconfig(config, &server, node_ip)?;
    progress.api_url(url)?;

    progress.phase("control plane")?;
    let controlplane = controlplane::start(
        // One identity for both: they run in one process and share their watches.
        server.client_of(Identity::admin(), "kube-controller-manager"),
        controlplane::Options {
            root_ca_pem: Some(server.pki().ca_certificate_pem().to_owned()),
            scheduler: Some(SchedulerOptions {
                metrics: scheduler_metrics,
                ..SchedulerOptions::default()
            }),
            ..controlplane::Options::default()
        },
    );

    progress.phase("service proxy")?;
    if let Err(error) = network::firewall::follow(&config.cluster.nft_table, &config.cluster.bridge)
    {
        tracing::warn!(%error, "firewalls beside our rules are not looked for");
    }
    let service_proxy = ServiceProxy::start(
        server.client_of(Identity::admin(), "kube-proxy"),
        ProxyConfig {
            table: config.cluster.nft_table.clone(),
            bridge: config.cluster.bridge.clone(),
            cluster_cidr: Ipv4Cidr::parse(&config.cluster.cluster_cidr)?,
            pod_cidr: Ipv4Cidr::parse(&config.pod_cidr())?,
            node_name: config.node_name.clone(),
            node_ip,
        },
        node.host_ports,
    )
    .await
    .context("start the service proxy")?;

    progress.phase("node agent")?;
    let kubelet = Kubelet::start(
        kubelet_config(config, &server, node_ip)?,
        server.client_of(Identity::node(&config.node_name), "kubelet"),
        node.runtime,
        node.images,
    )
    .await
    .context("start the node agent")?;

    progress.phase("waiting for the node to become Ready")?;
    wait_until_ready(server.client(Identity::admin()), &config.node_name).await?;
    mark_control_plane(
        server.client_of(Identity::admin(), "llmagentos"),
        &config.node_name,
    )
    .await?;
    progress.node_ready()?;
    Ok(Cluster {
        server,
        controlplane,
        service_proxy,
        kubelet,
        store,
    })
}

fn make_directories(config: &Config) -> anyhow::Result<()> {
    for directory in [
        &config.cluster.data_dir,
        &config.cluster.run_dir,
        &config.cluster.log_dir,
        &config.manifests_dir(),
        &config.kubelet_dir(),
        &config.images_dir(),
        &config.containers_dir(),
        &config.pki_dir(),
        &config.network_dir(),
    ] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
    }
    Ok(())
}

/// What was given, else what the network says, else loopback: a machine without a network is a cluster too.
fn node_ip(config: &Config) -> anyhow::Result<IpAddr> {
    if let Some(given) = config.cluster.node_ip {
        return Ok(given);
    }
    let found = node_address(&config.cluster.bridge).context("find this node's address")?;
    Ok(IpAddr::V4(found.unwrap_or(Ipv4Addr::LOCALHOST)))
}

async fn open_store(config: &Config) -> anyhow::Result<Arc<Embedded>> {
    let directory = config.store_dir();
    let store = tokio::task::spawn_blocking(move || Embedded::open(directory))
        .await
        .context("open the store")?;
    Ok(Arc::new(store.context("open the store")?))
}

/// The parts of this node that run containers.
struct NodeParts {
    runtime: Arc<NativeRuntime>,
    images: Arc<ImageStore>,
    host_ports: Arc<HostPorts>,
}

async fn start_runtime(config: &Config) -> anyhow::Result<NodeParts> {
    let images = Arc::new(super::offline::open_images(config)?);
    let pod_network = PodNetwork::open(PodNetworkConfig {
        bridge: config.cluster.bridge.clone(),
        pod_cidr: Ipv4Cidr::parse(&config.pod_cidr())?,
        service_cidr: Some(Ipv4Cidr::parse(&config.cluster.service_cidr)?),
        state_dir: config.network_dir(),
    })
    .context("set up the pod network")?;
    let host_ports = HostPorts::open(config.network_dir().join("host-ports"))
        .map(Arc::new)
        .context("read the host ports")?;
    let adapter = Arc::new(PodNetworkAdapter::new(pod_network, Arc::clone(&host_ports)));
    let runtime = NativeRuntime::new(
        super::offline::runtime_config(config)?,
        images.clone(),
        Some(adapter.clone() as Arc<dyn SandboxNetwork>),
    )
    .context("start the container runtime")?;
    let sandboxes = runtime
        .list_pod_sandboxes()
        .await
        .context("list pod sandboxes")?;
    adapter.recover(&sandboxes)?;
    Ok(NodeParts {
        runtime,
        images,
        host_ports,
    })
}

fn api_config(config: &Config, node_ip: IpAddr) -> anyhow::Result<apiserver::Config> {
    let mut api = apiserver::Config::new(config.pki_dir());
    api.bind_address = SocketAddr::new(config.cluster.bind_address, config.cluster.api_port);
    api.advertise_address = Some(node_ip);
    api.extra_names = config
        .cluster
        .tls_san
        .iter()
        .cloned()
        .chain([config.node_name.clone(), node_ip.to_string()])
        .collect();
    let services = parse_cidr(&config.cluster.service_cidr)?;
    api.service_cidr = apiserver::Ipv4Cidr {
        address: services.address,
        prefix_len: services.prefix_length,
    };
    api.node_port_range = parse_port_range(&config.cluster.node_port_range)?;
    Ok(api)
}

/// Writes the administrator's kubeconfig and answers the server's URL.
fn write_kubeconfig(config: &Config, server: &Server, node_ip: IpAddr) -> anyhow::Result<String> {
    let port = server.local_addr().port();
    // Loopback is always one of the certificate's names, and works on this machine whatever its network does.
    let host = match config.cluster.bind_address {
        address if address.is_unspecified() || address.is_loopback() => "127.0.0.1".to_owned(),
        address => address.to_string(),
    };
    let local_url = format!("https://{host}:{port}");
    let path = config.kubeconfig_path();
    let credentials = server
        .pki()
        .admin()
        .context("make the administrator's certificate")?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    apiserver::Kubeconfig {
        server: &local_url,
        cluster_name: "llmagentos",
        user_name: "llmagentos-admin",
        ca_certificate_pem: server.pki().ca_certificate_pem(),
        credentials: &credentials,
    }
    .write(&path)
    .with_context(|| format!("write {}", path.display()))?;
    Ok(if config.cluster.bind_address.is_unspecified() {
        format!("https://{node_ip}:{port}")
    } else {
        local_url
    })
}

fn kubelet_config(
    config: &Config,
    server: &Server,
    node_ip: IpAddr,
) -> anyhow::Result<kubelet::Config> {
    let mut agent = kubelet::Config::new(
        &config.node_name,
        config.kubelet_dir(),
        &config.cluster.log_dir,
    );
    agent.node_ips = vec![node_ip];
    agent.manifests_dir = Some(config.manifests_dir());
    agent.pod_cidr = Some(config.pod_cidr());
    agent.resolv_conf = resolv_conf().to_owned();
    let serving = server
        .pki()
        .kubelet_serving(
            &config.node_name,
            &[node_ip, IpAddr::V4(Ipv4Addr::LOCALHOST)],
        )
        .context("make the node agent's certificate")?;
    agent.server = Some(kubelet::config::ServerConfig {
        address: SocketAddr::new(config.cluster.bind_address, config.cluster.kubelet_port),
        certificate_pem: serving.certificate.into_bytes(),
        key_pem: serving.key.into_bytes(),
        client_ca_pem: server.pki().ca_certificate_pem().as_bytes().to_vec(),
        allowed_users: vec!["kube-apiserver-kubelet-client".to_owned()],
    });
    Ok(agent)
}

/// systemd-resolved's stub on 127.0.0.53 is of no use to a pod; its own list of servers is beside it.
fn resolv_conf() -> &'static Path {
    let uplinks = Path::new("/run/systemd/resolve/resolv.conf");
    let default = Path::new("/etc/resolv.conf");
    let stub = std::fs::read_to_string(default).is_ok_and(|text| {
        text.lines()
            .any(|line| line.trim() == "nameserver 127.0.0.53")
    });
    if stub && uplinks.exists() {
        uplinks
    } else {
        default
    }
}

async fn wait_until_ready(client: kube::Client, node_name: &str) -> anyhow::Result<()> {
    let api: Api<Node> = Api::all(client);
    let mut changes = std::pin::pin!(watcher::watch_object(api, node_name));
    while let Some(change) = changes.next().await {
        match change {
            Ok(Some(node)) if is_ready(&node) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "watch of the own node");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    anyhow::bail!("the watch of node {node_name} ended")
}

/// The role that `kubectl get nodes` shows. No taint: the one node runs everything.
async fn mark_control_plane(client: kube::Client, node_name: &str) -> anyhow::Result<()> {
    let patch =
        serde_json::json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
    Api::<Node>::all(client)
        .patch(node_name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .with_context(|| format!("label node {node_name}"))?;
    Ok(())
}

fn is_ready(node: &Node) -> bool {
    node.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
