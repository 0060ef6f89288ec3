//! Real traffic through the service rules, in network namespaces of the test's own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
#[path = "support/traffic.rs"]
mod traffic;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use network::host_ports::HostPort;
use network::ipam::Ipv4Cidr;
use network::nft::{self, Ruleset};
use network::plan::ruleset;
use network::pod_network::{PodNetwork, PodNetworkConfig};
use network::route_socket::RouteSocket;
use network::{ResetConfig, reset};
use serde_json::json;
use support::{Namespace, in_new_namespace};
use traffic::{BRIDGE, CLUSTER_IP, NODE_IP, TABLE, ask, config, serve, service, slice};

/// What `nft` itself reads back, one line each.
fn listing() -> String {
    let output = std::process::Command::new("nft")
        .args(["list", "table", "ip", TABLE])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn traffic_reaches_endpoints() {
    in_new_namespace(|| {
        let state_dir = tempfile::tempdir().unwrap();
        let mut socket = RouteSocket::open().unwrap();
        let loopback = socket.link("lo").unwrap().unwrap().index;
        socket.set_up(loopback).unwrap();
        socket.add_bridge("uplink").unwrap();
        let uplink = socket.link("uplink").unwrap().unwrap().index;
        socket.add_address(uplink, NODE_IP, 24).unwrap();
        socket.set_up(uplink).unwrap();
        socket
            .add_default_route(uplink, Ipv4Addr::new(192, 0, 2, 1))
            .unwrap();
        let pods = PodNetwork::open(PodNetworkConfig {
            bridge: BRIDGE.to_owned(),
            pod_cidr: Ipv4Cidr::parse("10.99.0.0/24").unwrap(),
            service_cidr: None,
            state_dir: state_dir.path().to_owned(),
        })
        .unwrap();
        std::fs::write(
            format!("/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet"),
            "1",
        )
        .unwrap();
        let (left, right) = (Namespace::new(), Namespace::new());
        let left_ip = pods.set_up("aaaaaaaaaaaaaaaa", &left.path()).unwrap();
        let right_ip = pods.set_up("bbbbbbbbbbbbbbbb", &right.path()).unwrap();
        serve("left", &left, 8080);
        serve("right", &right, 8080);

        let mut held: Option<Ruleset> = None;
        let mut apply =
            |services: &[Arc<Service>], slices: &[Arc<EndpointSlice>], host_ports: &[HostPort]| {
                let next = ruleset(services, slices, host_ports, &config());
                nft::apply(TABLE, held.as_ref(), &next).unwrap();
                let changed = listing();
                nft::apply(TABLE, None, &next).unwrap();
                let mut made_anew: Vec<_> = listing().lines().map(str::to_owned).collect();
                let mut changed: Vec<_> = changed.lines().map(str::to_owned).collect();
                made_anew.sort();
                changed.sort();
                assert_eq!(changed, made_anew, "the difference leads to the same table");
                held = Some(next);
            };

        apply(
            &[service(json!({}))],
            &[slice(&[(left_ip, "here")], 8080)],
            &[],
        );
        let to_cluster_ip = || ask(CLUSTER_IP, 80);
        assert_eq!(to_cluster_ip().unwrap(), "left 10.99.0.1", "from the node");
        assert_eq!(
            right.run(to_cluster_ip).join().unwrap().unwrap(),
            format!("left {right_ip}"),
            "from a pod"
        );
        assert_eq!(
            left.run(to_cluster_ip).join().unwrap().unwrap(),
            "left 10.99.0.1",
            "from the endpoint itself"
        );
        assert_eq!(ask(NODE_IP, 30080).unwrap(), "left 10.99.0.1", "node port");
        assert_eq!(
            ask(Ipv4Addr::LOCALHOST, 30080).unwrap(),
            "left 10.99.0.1",
            "node port by localhost"
        );
        assert_eq!(
            right.run(|| ask(NODE_IP, 30080)).join().unwrap().unwrap(),
            "left 10.99.0.1"
        );

        let both = slice(&[(left_ip, "here"), (right_ip, "here")], 8080);
        apply(&[service(json!({}))], std::slice::from_ref(&both), &[]);
        let seen: BTreeSet<String> = (0..40).map(|_| ask(CLUSTER_IP, 80).unwrap()).collect();
        assert_eq!(seen.len(), 2, "both endpoints are chosen");

        apply(
            &[service(json!({"sessionAffinity": "ClientIP"}))],
            std::slice::from_ref(&both),
            &[],
        );
        let seen: BTreeSet<String> = (0..40).map(|_| ask(CLUSTER_IP, 80).unwrap()).collect();
        assert_eq!(seen.len(), 1, "a client stays with its endpoint");
        let to_node_port = || ask(NODE_IP, 30080);
        let from_pod: BTreeSet<String> = (0..20)
            .map(|_| {
                let answer = right.run(to_node_port).join().unwrap().unwrap();
                answer.split(' ').next().unwrap().to_owned()
            })
            .collect();
        assert_eq!(from_pod.len(), 1, "by the node port, too");
        // Elements of a list of clients stand in lines of their own: address, and when it is forgotten.
        let forgotten = || !listing().contains("expires");
        let short = json!({"sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}});
        apply(&[service(short)], &[both], &[]);
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seen = BTreeSet::new();
        while seen.len() < 2 {
            assert!(
                Instant::now() < deadline,
                "a client that is forgotten is given any endpoint: {seen:?}"
            );
            seen.insert(ask(CLUSTER_IP, 80).unwrap());
            assert!(!forgotten(), "a client is remembered");
            while !forgotten() {
                assert!(
                    Instant::now() < deadline,
                    "a client is forgotten after its time"
                );
                std::thread::yield_now();
            }
        }

        apply(&[service(json!({}))], &[], &[]);
        assert_eq!(ask(CLUSTER_IP, 80), Err(ErrorKind::ConnectionRefused));
        assert_eq!(
            right.run(to_cluster_ip).join().unwrap(),
            Err(ErrorKind::ConnectionRefused)
        );
        assert_eq!(ask(NODE_IP, 30080), Err(ErrorKind::ConnectionRefused));

        let host_port = HostPort {
            protocol: "TCP".to_owned(),
            host_port: 8081,
            host_ip: None,
            pod_ip: left_ip,
            container_port: 8080,
        };
        let bound = HostPort {
            host_port: 8082,
            host_ip: Some(NODE_IP.into()),
            ..host_port.clone()
        };
        apply(&[], &[], &[host_port, bound]);
        assert_eq!(ask(NODE_IP, 8081).unwrap().split(' ').next(), Some("left"));
        assert_eq!(ask(Ipv4Addr::LOCALHOST, 8081).unwrap(), "left 10.99.0.1");
        assert_eq!(
            left.run(|| ask(NODE_IP, 8081)).join().unwrap().unwrap(),
            "left 10.99.0.1",
            "hairpin"
        );
        assert_eq!(
            right.run(|| ask(NODE_IP, 8082)).join().unwrap().unwrap(),
            format!("left {right_ip}")
        );
        assert_eq!(
            ask(Ipv4Addr::LOCALHOST, 8082),
            Err(ErrorKind::ConnectionRefused),
            "only on its address"
        );

        let reset_config = ResetConfig {
            bridge: BRIDGE.to_owned(),
            table: TABLE.to_owned(),
            state_dir: state_dir.path().to_owned(),
        };
        let planned = reset(&reset_config, true).unwrap();
        assert_eq!(planned[0], format!("nftables table ip {TABLE}"));
        assert_eq!(reset(&reset_config, false).unwrap(), planned);
        assert_eq!(
            reset(&reset_config, false).unwrap(),
            Vec::<String>::new(),
            "is idempotent"
        );
        assert_eq!(listing(), "");
    });
}

#[test]
fn many_services_fit_one_batch() {
    in_new_namespace(|| {
        let services: Vec<Arc<Service>> = (0..500_u16)
            .map(|index| {
                let address = Ipv4Addr::from(u32::from(CLUSTER_IP) + u32::from(index));
                let mut service = (*service(
                    json!({"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address]}),
                ))
                .clone();
                service.metadata.name = Some(format!("web-{index}"));
                Arc::new(service)
            })
            .collect();
        let slices: Vec<Arc<EndpointSlice>> = services
            .iter()
            .map(|service| {
                let mut slice = (*slice(
                    &[
                        (Ipv4Addr::new(10, 99, 0, 2), "here"),
                        (Ipv4Addr::new(10, 99, 0, 3), "here"),
                    ],
                    8080,
                ))
                .clone();
                let name = service.metadata.name.clone().unwrap();
                slice.metadata.labels =
                    Some([("kubernetes.io/service-name".to_owned(), name)].into());
                Arc::new(slice)
            })
            .collect();
        let all = ruleset(&services, &slices, &[], &config());
        nft::apply(TABLE, None, &all).unwrap();
        let fewer = ruleset(&services[1..], &slices, &[], &config());
        nft::apply(TABLE, Some(&all), &fewer).unwrap();
        assert!(nft::delete_table(TABLE).unwrap());
        assert!(!nft::delete_table(TABLE).unwrap());
    });
}
