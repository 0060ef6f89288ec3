//! Durable pod creates through the API: TLS and authorization on, 64 clients of HTTP/1.1 keep-alive.
//!
//! `cargo run --release -p apiserver --example bench_creates -- [--seconds N] [--clients N] [--json FILE]`
//! Prints creates per second, over windows of 250 ms, and the CPU time that a create takes, server and client
//! together, which a busy machine disturbs less: name, unit, p10, median, p90, peer, ratio. There is no peer: Debian
//! has no kube-apiserver.

use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use apiserver::{Config, Identity, Server, crypto_provider};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio_rustls::TlsConnector;

/// The program's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type AnyError = Box<dyn Error + Send + Sync>;

const WINDOW: Duration = Duration::from_millis(250);
const WARM_UP: Duration = Duration::from_secs(1);

struct Arguments {
    seconds: u64,
    clients: usize,
    json: Option<String>,
}

fn arguments() -> Result<Arguments, AnyError> {
    let mut found = Arguments {
        seconds: 8,
        clients: 64,
        json: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words
            .next()
            .ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--seconds" => found.seconds = value.parse()?,
            "--clients" => found.clients = value.parse()?,
            "--json" => found.json = Some(value),
            _ => {
                return Err(format!(
                    "unknown argument {word}: --seconds, --clients and --json are known"
                )
                .into());
            }
        }
    }
    Ok(found)
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let arguments = arguments()?;
    let directory = std::env::temp_dir().join(format!("bench-creates-{}", std::process::id()));
    let result = run(&arguments, &directory).await;
    std::fs::remove_dir_all(&directory)?;
    let Samples {
        rates,
        cpu_microseconds,
    } = result?;
    println!(
        "{:<28} {:>10} {:>9} {:>9} {:>9} {:>6} {:>6}",
        "name", "unit", "p10", "median", "p90", "peer", "ratio"
    );
    for (name, unit, mut samples) in [
        ("api_pod_creates", "creates/s", rates),
        ("api_pod_create_cpu", "us", cpu_microseconds),
    ] {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| {
            samples
                .get((samples.len() as f64 * share) as usize)
                .copied()
                .unwrap_or_default()
                .round()
        };
        let (p10, median, p90) = (at(0.1), at(0.5), at(0.9));
        println!(
            "{name:<28} {unit:>10} {p10:>9} {median:>9} {p90:>9} {:>6} {:>6}",
            "-", "-"
        );
        if let Some(path) = &arguments.json {
            let line = json!({"name": name, "unit": unit, "p10": p10, "median": median, "p90": p90, "peer": null, "ratio": null});
            writeln!(
                std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)?,
                "{line}"
            )?;
        }
    }
    Ok(())
}

/// One number a window.
#[derive(Default)]
struct Samples {
    rates: Vec<f64>,
    /// CPU time of this process for one create.
    cpu_microseconds: Vec<f64>,
}

/// CPU time that this process has used, by its threads' own accounts, which are exact to the nanosecond.
fn cpu_seconds() -> Result<f64, AnyError> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        // A thread may end meanwhile.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let used: u64 = text.split(' ').next().unwrap_or_default().parse()?;
        nanoseconds += used;
    }
    Ok(nanoseconds as f64 / 1e9)
}

async fn run(arguments: &Arguments, directory: &std::path::Path) -> Result<Samples, AnyError> {
    std::fs::create_dir_all(directory)?;
    let store = store::Embedded::open(directory.join("store"))?;
    let mut config = Config::new(directory.join("pki"));
    config.bind_address = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::start(config, Arc::new(store)).await?;
    prepare(&server).await?;
    let tls = tls(&server)?;
    let created = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let address = server.local_addr();
    let clients: Vec<_> = (0..arguments.clients)
        .map(|client| {
            tokio::spawn(create_pods(
                client,
                address,
                tls.clone(),
                created.clone(),
                stop.clone(),
            ))
        })
        .collect();
    tokio::time::sleep(WARM_UP).await;
    let mut samples = Samples::default();
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let reading = || {
        Ok::<_, AnyError>((
            created.load(Ordering::Relaxed),
            cpu_seconds()?,
            Instant::now(),
        ))
    };
    let mut last = reading()?;
    while Instant::now() < end {
        tokio::time::sleep(WINDOW).await;
        let now = reading()?;
        let count = (now.0 - last.0) as f64;
        samples.rates.push(count / (now.2 - last.2).as_secs_f64());
        if count > 0.0 {
            samples
                .cpu_microseconds
                .push((now.1 - last.1) * 1e6 / count);
        }
        last = now;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await??;
    }
    server.shutdown().await;
    Ok(samples)
}

/// The default service account, and a user who may create pods in one namespace.
async fn prepare(server: &Server) -> Result<(), AnyError> {
    let client = server.client(Identity::admin());
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "bench"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "benchers"}],
    });
    for (path, object) in [
        ("/api/v1/namespaces/default/serviceaccounts", account),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            binding,
        ),
    ] {
        client
            .request_text(Request::post(path).body(object.to_string().into_bytes())?)
            .await?;
    }
    Ok(())
}

fn tls(server: &Server) -> Result<TlsConnector, AnyError> {
    let mut roots = RootCertStore::empty();
    roots.add(server.pki().ca_certificate().clone())?;
    let (chain, key) = server
        .pki()
        .client("bench", &Identity::new("bench", ["benchers"]))?
        .to_rustls()?;
    let config = ClientConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn create_pods(
    client: usize,
    address: SocketAddr,
    tls: TlsConnector,
    created: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Result<(), AnyError> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let stream = tls.connect("localhost".try_into()?, stream).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let request = Request::post("/api/v1/namespaces/default/pods?fieldManager=bench")
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(pod(client, number))))?;
        let response = sender.send_request(request).await?;
        let code = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if code != 201 {
            return Err(
                format!("create answered {code}: {}", String::from_utf8_lossy(&body)).into(),
            );
        }
        created.fetch_add(1, Ordering::Relaxed);
        number += 1;
    }
    drop(sender);
    connection.await??;
    Ok(())
}

/// A pod like those of a deployment.
fn pod(client: usize, number: u64) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": format!("bench-{client}-{number}"), "labels": {"app": "bench", "pod-template-hash": "5d4b8f7c9"}},
        "spec": {
            "containers": [{
                "name": "web",
                "image": "registry.example.com/web:1.0",
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "ports": [{"containerPort": 8080}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
            }],
        },
    })
    .to_string()
}
