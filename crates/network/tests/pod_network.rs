//! The bridge network with real links, in network namespaces of the test's own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use network::ipam::Ipv4Cidr;
use network::pod_network::{PodNetwork, PodNetworkConfig, node_address, reset_links};
use network::route_socket::RouteSocket;
use support::{Namespace, in_new_namespace};

fn open(state_dir: &std::path::Path) -> PodNetwork {
    PodNetwork::open(PodNetworkConfig {
        bridge: "llmtest0".to_owned(),
        pod_cidr: Ipv4Cidr::parse("10.99.0.0/24").unwrap(),
        service_cidr: None,
        state_dir: state_dir.to_owned(),
    })
    .unwrap()
}

#[test]
fn pods_reach_each_other_and_the_node() {
    in_new_namespace(|| {
        let state_dir = tempfile::tempdir().unwrap();
        let pods = open(state_dir.path());
        let (left, right) = (Namespace::new(), Namespace::new());
        let left_address = pods.set_up("aaaaaaaaaaaaaaaa", &left.path()).unwrap();
        let right_address = pods.set_up("bbbbbbbbbbbbbbbb", &right.path()).unwrap();
        assert_ne!(left_address, right_address);
        assert_eq!(
            pods.set_up("aaaaaaaaaaaaaaaa", &left.path()).unwrap(),
            left_address,
            "is idempotent"
        );

        let listener = left
            .run(|| TcpListener::bind("0.0.0.0:0").unwrap())
            .join()
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            for _ in 0..3 {
                let (mut stream, peer) = listener.accept().unwrap();
                stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
            }
        });
        let ask = move || {
            let mut answer = String::new();
            TcpStream::connect_timeout(&(left_address, port).into(), Duration::from_secs(10))
                .unwrap()
                .read_to_string(&mut answer)
                .unwrap();
            answer
        };
        assert_eq!(
            right.run(ask).join().unwrap(),
            right_address.to_string(),
            "from pod to pod"
        );
        assert_eq!(
            left.run(ask).join().unwrap(),
            left_address.to_string(),
            "from a pod to itself"
        );
        assert_eq!(ask(), "10.99.0.1", "from the node");
        server.join().unwrap();
    });
}

#[test]
fn tear_down_gives_everything_back() {
    in_new_namespace(|| {
        let state_dir = tempfile::tempdir().unwrap();
        let pods = open(state_dir.path());
        let namespace = Namespace::new();
        let address = pods.set_up("cccccccccccccccc", &namespace.path()).unwrap();
        assert_eq!(pods.tear_down("cccccccccccccccc").unwrap(), Some(address));
        assert_eq!(
            pods.tear_down("cccccccccccccccc").unwrap(),
            None,
            "is idempotent"
        );
        wait_for_links(&["llmtest0"]);
    });
}

#[test]
fn a_start_removes_what_belongs_to_no_sandbox() {
    in_new_namespace(|| {
        let state_dir = tempfile::tempdir().unwrap();
        let (kept, lost) = (Namespace::new(), Namespace::new());
        let address = {
            let pods = open(state_dir.path());
            pods.set_up("eeeeeeeeeeeeeeee", &lost.path()).unwrap();
            pods.set_up("dddddddddddddddd", &kept.path()).unwrap()
        };
        let pods = open(state_dir.path());
        pods.retain(&HashSet::from(["dddddddddddddddd".to_owned()]))
            .unwrap();
        wait_for_links(&["llmdddddddddddd", "llmtest0"]);
        assert_eq!(
            pods.set_up("dddddddddddddddd", &kept.path()).unwrap(),
            address
        );

        let listed = reset_links("llmtest0", true).unwrap();
        assert_eq!(
            listed,
            [
                "network interface llmdddddddddddd",
                "network interface llmtest0"
            ]
        );
        assert_eq!(reset_links("llmtest0", false).unwrap(), listed);
        wait_for_links(&[]);
        assert!(
            reset_links("llmtest0", false).unwrap().is_empty(),
            "is idempotent"
        );
    });
}

#[test]
fn the_node_address_is_not_the_bridges() {
    in_new_namespace(|| {
        let state_dir = tempfile::tempdir().unwrap();
        let _pods = open(state_dir.path());
        assert_eq!(node_address("llmtest0").unwrap(), None);
        let mut socket = RouteSocket::open().unwrap();
        socket.add_bridge("uplink").unwrap();
        let index = socket.link("uplink").unwrap().unwrap().index;
        socket
            .add_address(index, "192.0.2.7".parse().unwrap(), 24)
            .unwrap();
        assert_eq!(
            node_address("llmtest0").unwrap(),
            Some("192.0.2.7".parse().unwrap())
        );
    });
}

/// Waits until the links, but for loopback, are these.
fn wait_for_links(expect: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut socket = RouteSocket::open().unwrap();
    loop {
        let mut names: Vec<String> = socket
            .links()
            .unwrap()
            .into_iter()
            .map(|link| link.name)
            .filter(|name| name != "lo")
            .collect();
        names.sort();
        if names == expect {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "links are {names:?}, not {expect:?}"
        );
        std::thread::yield_now();
    }
}
