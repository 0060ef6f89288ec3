//! An API server alone, for trying things with kubectl:
//! `cargo run -p apiserver --example serve -- <data directory> [address:port]`.
//! Writes `<data directory>/admin.kubeconfig`; Ctrl-C stops it.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use apiserver::{Config, Kubeconfig, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("name a data directory")?);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());
    std::fs::create_dir_all(&directory)?;
    let begin = std::time::Instant::now();
    let store = store::Embedded::open(directory.join("store"))?;
    let mut config = Config::new(directory.join("pki"));
    config.bind_address = address.parse()?;
    let server = Server::start(config, Arc::new(store)).await?;
    let credentials = server.pki().admin()?;
    let kubeconfig = directory.join("admin.kubeconfig");
    Kubeconfig {
        server: &format!("https://{}", server.local_addr()),
        cluster_name: "serve",
        user_name: "admin",
        ca_certificate_pem: server.pki().ca_certificate_pem(),
        credentials: &credentials,
    }
    .write(&kubeconfig)?;
    println!(
        "serving https://{} after {:?}; kubeconfig {}",
        server.local_addr(),
        begin.elapsed(),
        kubeconfig.display()
    );
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
