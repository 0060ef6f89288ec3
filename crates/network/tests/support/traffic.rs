//! Services as values, and clients and servers of a test's own.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use network::ipam::Ipv4Cidr;
use network::plan::PlanConfig;
use serde_json::{Value, json};

use crate::support::Namespace;

pub const TABLE: &str = "llmtest";
pub const BRIDGE: &str = "llmtest0";
pub const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 10);
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

pub fn config() -> PlanConfig {
    PlanConfig {
        bridge: BRIDGE.to_owned(),
        cluster_cidr: Ipv4Cidr::parse("10.99.0.0/16").unwrap(),
        pod_cidr: Ipv4Cidr::parse("10.99.0.0/24").unwrap(),
        node_name: "here".to_owned(),
    }
}

/// Service `web` on port 80 and node port 30080, with further fields of its spec.
pub fn service(extra: Value) -> Arc<Service> {
    let mut value = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {
        "type": "NodePort", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP],
        "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}});
    for (key, field) in extra.as_object().unwrap() {
        value["spec"][key] = field.clone();
    }
    Arc::new(serde_json::from_value(value).unwrap())
}

/// The endpoints of `web`: addresses and the nodes they are on.
pub fn slice(targets: &[(Ipv4Addr, &str)], port: u16) -> Arc<EndpointSlice> {
    let endpoints: Vec<Value> = targets
        .iter()
        .map(|(address, node)| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}}))
        .collect();
    Arc::new(
        serde_json::from_value(json!({"addressType": "IPv4",
            "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": endpoints, "ports": [{"port": port, "protocol": "TCP"}]}))
        .unwrap(),
    )
}

/// Answers every connection with the server's name and the client's address.
pub fn serve(name: &'static str, namespace: &Namespace, port: u16) {
    let listener = namespace
        .run(move || TcpListener::bind(("0.0.0.0", port)).unwrap())
        .join()
        .unwrap();
    answer(name, listener);
}

/// Ends with the test's process.
pub fn answer(name: &'static str, listener: TcpListener) {
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(format!("{name} {}", peer.ip()).as_bytes());
        }
    });
}

#[allow(dead_code, reason = "not all of the tests that share this file use it")]
pub fn ask(address: Ipv4Addr, port: u16) -> Result<String, ErrorKind> {
    ask_within(address, port, Duration::from_secs(3))
}

pub fn ask_within(address: Ipv4Addr, port: u16, timeout: Duration) -> Result<String, ErrorKind> {
    let mut answer = String::new();
    TcpStream::connect_timeout(&(address, port).into(), timeout)
        .map_err(|error| error.kind())?
        .read_to_string(&mut answer)
        .map_err(|error| error.kind())?;
    Ok(answer)
}

/// Answers datagrams with the server's name and the client's address.
#[allow(
    dead_code,
    reason = "only one of the tests that share this file asks by UDP"
)]
pub fn serve_udp(name: &'static str, namespace: &Namespace, port: u16) {
    let socket = namespace
        .run(move || UdpSocket::bind(("0.0.0.0", port)).unwrap())
        .join()
        .unwrap();
    std::thread::spawn(move || {
        while let Ok((_, peer)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

#[allow(
    dead_code,
    reason = "only one of the tests that share this file asks by UDP"
)]
pub fn ask_udp(address: Ipv4Addr, port: u16, timeout: Duration) -> Result<String, ErrorKind> {
    let ask = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(timeout))?;
        socket.connect((address, port))?;
        socket.send(b"?")?;
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    ask().map_err(|error: std::io::Error| error.kind())
}
