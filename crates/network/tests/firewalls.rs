//! Traffic of pods and services beside firewalld, ufw and rules of nobody's.
//!
//! firewalld and ufw are the real ones, in network and mount namespaces of the test's own, with directories and a
//! message bus of its own; where they are not installed their tests say so and pass. `scripts/install.sh firewalls`
//! installs them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
#[path = "support/traffic.rs"]
mod traffic;

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use network::firewall::{self, Found};
use network::host_ports::HostPort;
use network::ipam::Ipv4Cidr;
use network::nft;
use network::plan::ruleset;
use network::pod_network::{PodNetwork, PodNetworkConfig};
use network::route_socket::RouteSocket;
use network::{ResetConfig, reset};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use serde_json::json;
use support::{Namespace, in_new_namespace};
use traffic::{
    BRIDGE, CLUSTER_IP, NODE_IP, TABLE, answer, ask_udp, ask_within, config, serve, serve_udp,
    service, slice,
};

const OUTSIDE_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// A firewall drops silently: long enough for a packet on a busy machine, short enough to be waited for.
const TIMEOUT: Duration = Duration::from_millis(700);

/// A node with two pods and a neighbour, all of them namespaces.
struct Node {
    _pods: PodNetwork,
    state_dir: tempfile::TempDir,
    left: Namespace,
    right: Namespace,
    outside: Namespace,
    right_ip: Ipv4Addr,
}

impl Node {
    fn new() -> Self {
        let state_dir = tempfile::tempdir().unwrap();
        let mut socket = RouteSocket::open().unwrap();
        let loopback = socket.link("lo").unwrap().unwrap().index;
        socket.set_up(loopback).unwrap();
        socket.add_bridge("uplink").unwrap();
        let uplink = socket.link("uplink").unwrap().unwrap().index;
        socket.add_address(uplink, NODE_IP, 24).unwrap();
        socket.set_up(uplink).unwrap();
        let outside = Namespace::new();
        let outside_file = std::fs::File::open(outside.path()).unwrap();
        socket
            .add_veth("out0", uplink, "eth0", outside_file.as_fd(), 1500)
            .unwrap();
        outside
            .run(|| {
                let mut socket = RouteSocket::open().unwrap();
                let index = socket.link("eth0").unwrap().unwrap().index;
                socket.add_address(index, OUTSIDE_IP, 24).unwrap();
                socket.set_up(index).unwrap();
            })
            .join()
            .unwrap();
        let pods = PodNetwork::open(PodNetworkConfig {
            bridge: BRIDGE.to_owned(),
            pod_cidr: Ipv4Cidr::parse("10.99.0.0/24").unwrap(),
            // There is no default route in this namespace: the node reaches services by this one.
            service_cidr: Some(Ipv4Cidr::parse("10.98.0.0/16").unwrap()),
            state_dir: state_dir.path().to_owned(),
        })
        .unwrap();
        let (left, right) = (Namespace::new(), Namespace::new());
        let left_ip = pods.set_up("aaaaaaaaaaaaaaaa", &left.path()).unwrap();
        let right_ip = pods.set_up("bbbbbbbbbbbbbbbb", &right.path()).unwrap();
        serve("left", &left, 8080);
        serve("right", &right, 8080);
        serve("outside", &outside, 7000);
        serve_udp("dns", &outside, 53);
        answer("node", TcpListener::bind((NODE_IP, 9000)).unwrap());
        let host_port = HostPort {
            protocol: "TCP".to_owned(),
            host_port: 8081,
            host_ip: None,
            pod_ip: left_ip,
            container_port: 8080,
        };
        let rules = ruleset(
            &[service(json!({}))],
            &[slice(&[(left_ip, "here")], 8080)],
            &[host_port],
            &config(),
        );
        nft::apply(TABLE, None, &rules).unwrap();
        Self {
            _pods: pods,
            state_dir,
            left,
            right,
            outside,
            right_ip,
        }
    }

    /// What does not work, by name.
    fn broken(&self) -> Vec<&'static str> {
        let right_ip = self.right_ip;
        let tcp = |address, port| move || ask_within(address, port, TIMEOUT).ok();
        let from_right = |work| self.right.run(work);
        let checks = [
            ("pod to pod", self.left.run(tcp(right_ip, 8080)), "right"),
            ("pod to service", from_right(tcp(CLUSTER_IP, 80)), "left"),
            (
                "pod to itself by its service",
                self.left.run(tcp(CLUSTER_IP, 80)),
                "left",
            ),
            ("pod to node", self.right.run(tcp(NODE_IP, 9000)), "node"),
            (
                "pod to the world, masqueraded",
                self.right.run(tcp(OUTSIDE_IP, 7000)),
                "outside 192.0.2.7",
            ),
            (
                "pod to a name server",
                self.right.run(|| ask_udp(OUTSIDE_IP, 53, TIMEOUT).ok()),
                "dns 192.0.2.7",
            ),
            (
                "world to node port",
                self.outside.run(tcp(NODE_IP, 30080)),
                "left",
            ),
            (
                "world to host port",
                self.outside.run(tcp(NODE_IP, 8081)),
                "left",
            ),
        ];
        let mut broken: Vec<&str> = checks
            .into_iter()
            .filter(|(_, _, expect)| !expect.is_empty())
            .filter_map(|(name, check, expect)| {
                let answer = check.join().unwrap();
                (!answer.is_some_and(|answer| answer.starts_with(expect))).then_some(name)
            })
            .collect();
        if ask_within(CLUSTER_IP, 80, TIMEOUT).as_deref() != Ok("left 10.99.0.1") {
            broken.push("node to service");
        }
        if ask_within(right_ip, 8080, TIMEOUT).as_deref() != Ok("right 10.99.0.1") {
            broken.push("node to pod");
        }
        broken
    }

    fn reset(&self) -> Vec<String> {
        let config = ResetConfig {
            bridge: BRIDGE.to_owned(),
            table: TABLE.to_owned(),
            state_dir: self.state_dir.path().to_owned(),
        };
        let planned = reset(&config, true).unwrap();
        let removed = reset(&config, false).unwrap();
        assert_eq!(removed, planned);
        removed
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// All rules but ours, without counters.
fn foreign_rules() -> String {
    let text = run("nft", &["--stateless", "list", "ruleset"]);
    let mut own = false;
    text.lines()
        .filter(|line| {
            own |= *line == format!("table ip {TABLE} {{");
            let keep = !own;
            own &= *line != "}";
            keep
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

#[track_caller]
fn assert_same(found: &str, expect: &str) {
    let pairs = found.lines().zip(expect.lines());
    let differs = pairs
        .enumerate()
        .find(|(_, (found, expect))| found != expect);
    assert!(found == expect, "first difference: {differs:?}");
}

fn installed(program: &str) -> bool {
    let there = ["/usr/sbin", "/usr/bin"]
        .iter()
        .any(|directory| Path::new(directory).join(program).exists());
    if !there {
        eprintln!("not tested: {program} is not installed");
    }
    there
}

/// A mount namespace in which `/run` is empty and `directory` is a copy.
fn private_files(directory: &str) -> tempfile::TempDir {
    #[expect(
        deprecated,
        reason = "its danger is CLONE_FILES; a new mount namespace touches no memory"
    )]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .unwrap();
    let copy = tempfile::tempdir().unwrap();
    run(
        "cp",
        &[
            "-a",
            directory,
            &copy.path().join("copy").display().to_string(),
        ],
    );
    mount_bind(copy.path().join("copy"), directory).unwrap();
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
    copy
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_chain_that_drops_is_found_and_its_remedy_works() {
    in_new_namespace(|| {
        let node = Node::new();
        assert_eq!(node.broken(), Vec::<&str>::new());
        assert_eq!(firewall::find(TABLE, BRIDGE).unwrap(), []);
        for (chain, hook) in [("mine-in", "input"), ("mine-forward", "forward")] {
            run(
                "nft",
                &[&format!(
                    "table inet mine {{ chain {chain} {{ type filter hook {hook} priority filter; policy drop; ct state established,related accept; }}; }}"
                )],
            );
        }
        assert!(node.broken().contains(&"pod to the world, masqueraded"));
        let found = firewall::find(TABLE, BRIDGE).unwrap();
        let names: Vec<String> = found.iter().map(Found::name).collect();
        assert_eq!(
            names,
            [
                "nftables chain inet mine mine-in",
                "nftables chain inet mine mine-forward"
            ]
        );
        let before = foreign_rules();
        for firewall in &found {
            assert!(
                !firewall::open(firewall, BRIDGE).unwrap(),
                "it is not ours to change"
            );
        }
        assert_same(&foreign_rules(), &before);
        for command in found.iter().flat_map(|firewall| firewall.remedy(BRIDGE)) {
            run("sh", &["-c", &command]);
        }
        assert_eq!(node.broken(), Vec::<&str>::new());
        assert_eq!(firewall::find(TABLE, BRIDGE).unwrap(), []);
        let before = foreign_rules();
        node.reset();
        assert_same(&foreign_rules(), &before);
    });
}

#[test]
fn ufw_lets_pods_through() {
    if !installed("ufw") {
        return;
    }
    in_new_namespace(|| {
        let _files = private_files("/etc/ufw");
        let node = Node::new();
        run("ufw", &["--force", "enable"]);
        // A rule of the user's, which must stay as it is.
        run("ufw", &["allow", "22/tcp", "comment", "mine"]);
        // After the first start it writes some of its own chains otherwise than ever after.
        run("ufw", &["reload"]);
        let rules_file = || std::fs::read_to_string("/etc/ufw/user.rules").unwrap();
        let before = (foreign_rules(), rules_file());
        let broken = node.broken();
        assert!(
            broken.contains(&"pod to the world, masqueraded")
                && broken.contains(&"world to node port"),
            "{broken:?}"
        );

        assert_eq!(firewall::find(TABLE, BRIDGE).unwrap(), [Found::Ufw]);
        assert!(firewall::open(&Found::Ufw, BRIDGE).unwrap());
        assert_eq!(node.broken(), Vec::<&str>::new());
        assert!(
            !firewall::open(&Found::Ufw, BRIDGE).unwrap(),
            "is idempotent"
        );
        run("ufw", &["reload"]);
        assert_eq!(node.broken(), Vec::<&str>::new());

        let removed = node.reset();
        assert!(
            removed.contains(&format!("ufw rule \"route allow in on {BRIDGE}\"")),
            "{removed:?}"
        );
        assert_same(&foreign_rules(), &before.0);
        assert_same(&rules_file(), &before.1);
        assert_eq!(node.reset(), Vec::<String>::new(), "is idempotent");
    });
}

/// Ends with the test.
struct Daemon(Child);

impl Daemon {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn firewalld_lets_pods_through() {
    if !installed("firewalld") || !installed("dbus-daemon") {
        return;
    }
    in_new_namespace(|| {
        let files = private_files("/etc/firewalld");
        let node = Node::new();
        std::fs::create_dir("/run/dbus").unwrap();
        let _bus = Daemon::start("dbus-daemon", &["--system", "--nofork", "--nopidfile"]);
        wait_until("the message bus", || {
            Path::new("/run/dbus/system_bus_socket").exists()
        });
        let log = files.path().join("log").display().to_string();
        let _daemon = Daemon::start(
            "firewalld",
            &["--nofork", "--nopid", &format!("--log-file={log}")],
        );
        let answers = |arguments: &[&str]| {
            let output = Command::new("firewall-cmd")
                .args(arguments)
                .output()
                .unwrap();
            output.status.success()
        };
        wait_until("firewalld", || answers(&["--state"]));
        let before = foreign_rules();
        let broken = node.broken();
        assert!(
            broken.contains(&"pod to the world, masqueraded"),
            "{broken:?}"
        );

        assert_eq!(firewall::find(TABLE, BRIDGE).unwrap(), [Found::Firewalld]);
        firewall::follow(TABLE, BRIDGE).unwrap();
        wait_until("the firewall to be open", || node.broken().is_empty());
        assert!(
            !firewall::open(&Found::Firewalld, BRIDGE).unwrap(),
            "is idempotent"
        );
        // What was asked for is forgotten by a reload, and asked for again.
        run("firewall-cmd", &["--reload"]);
        wait_until("the firewall to be open again", || node.broken().is_empty());

        let removed = node.reset();
        assert!(
            removed.contains(&format!("interface {BRIDGE} from firewalld's zone trusted")),
            "{removed:?}"
        );
        run("firewall-cmd", &["--reload"]);
        assert_same(&foreign_rules(), &before);
    });
}
