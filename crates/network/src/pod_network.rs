//! The built-in bridge network: an IPv4 address per pod.
//!
//! The bridge has the node's first pod address and is every pod's gateway; a pod is joined by a
//! veth pair whose name follows from the sandbox's id, so that nothing but the id is needed to
//! take it down. Set-up is synchronous netlink (about two milliseconds); the deletion of a pair
//! takes the kernel some 20 ms and is left to a thread of its own, off the path.
//!
//! Deliberately absent: routes to other nodes, IPv6.

use std::collections::HashSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, mpsc};

use netlink_packet_route::link::InfoKind;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::NetworkError;
use crate::ipam::{Ipam, Ipv4Cidr};
use crate::route_socket::RouteSocket;

/// Interface names have at most 15 bytes (IFNAMSIZ less the end).
const INTERFACE_NAME_BYTES_MAX: usize = 15;
/// What our pairs' names begin with, before the sandbox id's first characters.
const VETH_PREFIX: &str = "llm";
/// Ethernet's; a bridge on one machine has no encapsulation to leave room for.
const MTU_BYTES: u32 = 1500;

#[derive(Clone, Debug)]
pub struct PodNetworkConfig {
    pub bridge: String,
    /// This node's pods.
    pub pod_cidr: Ipv4Cidr,
    /// Addresses of services: the node sends to them by the bridge, so that they are reached on a machine without
    /// a default route, and a service that is no more is asked for nowhere else.
    pub service_cidr: Option<Ipv4Cidr>,
    /// Where the address files are kept.
    pub state_dir: PathBuf,
}

pub struct PodNetwork {
    config: PodNetworkConfig,
    bridge_index: u32,
    state: Mutex<State>,
    deletions: mpsc::Sender<String>,
}

struct State {
    ipam: Ipam,
    socket: RouteSocket,
}

impl PodNetwork {
    /// Makes the bridge, or finds it, in the calling thread's network namespace, and reads the addresses in use.
    pub fn open(config: PodNetworkConfig) -> Result<Self, NetworkError> {
        crate::sysctl::enable_forwarding(&config.state_dir)?;
        let mut socket = open_socket()?;
        let bridge_index = ensure_bridge(&mut socket, &config)?;
        let ipam = Ipam::open(config.pod_cidr, &config.state_dir.join("addresses"))?;
        let deletions = start_deleter(open_socket()?)?;
        Ok(Self {
            config,
            bridge_index,
            state: Mutex::new(State { ipam, socket }),
            deletions,
        })
    }

    /// Joins the namespace at `netns_path` to the bridge and answers its address. Idempotent. Blocks for some milliseconds.
    pub fn set_up(&self, sandbox_id: &str, netns_path: &Path) -> Result<Ipv4Addr, NetworkError> {
        let netns = File::open(netns_path)
            .map_err(|error| NetworkError::file("open", netns_path, error))?;
        let name = veth_name(sandbox_id);
        let mut state = self.state();
        let address = state.ipam.allocate(sandbox_id)?;
        let result = self.join(&mut state.socket, &name, netns, address);
        if result.is_err() {
            state.ipam.release(sandbox_id)?;
            let _ = self.deletions.send(name);
        }
        result.map(|()| address)
    }

    fn join(
        &self,
        socket: &mut RouteSocket,
        name: &str,
        netns: File,
        address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let kernel = |operation: String| move |error| NetworkError::kernel(operation, error);
        match socket.add_veth(name, self.bridge_index, "eth0", netns.as_fd(), MTU_BYTES) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => result.map_err(kernel(format!("make veth pair {name}")))?,
        }
        if let Some(link) = socket.link(name).map_err(kernel(format!("find {name}")))? {
            socket
                .set_hairpin(link.index)
                .map_err(kernel(format!("set hairpin mode of {name}")))?;
        }
        let cidr = self.config.pod_cidr;
        in_namespace(netns, move |inside| {
            if let Some(loopback) = inside.link("lo")? {
                inside.set_up(loopback.index)?;
            }
            let Some(link) = inside.link("eth0")? else {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    "eth0 is not in the pod's namespace",
                ));
            };
            // Alone in its network: packets to other pods too go by the gateway, where services' addresses are translated both ways.
            inside.add_address(link.index, address, 32)?;
            inside.set_up(link.index)?;
            inside.add_default_route(link.index, cidr.gateway())
        })
        .map_err(kernel(format!("set up the pod's end of {name}")))
    }

    /// Gives the sandbox's address back and deletes its pair, off the path. Idempotent. Answers the address it had.
    pub fn tear_down(&self, sandbox_id: &str) -> Result<Option<Ipv4Addr>, NetworkError> {
        let address = self.state().ipam.release(sandbox_id)?;
        let _ = self.deletions.send(veth_name(sandbox_id));
        Ok(address)
    }

    /// After a start: gives back the addresses and deletes the pairs of sandboxes that are no more.
    pub fn retain(&self, live_sandbox_ids: &HashSet<String>) -> Result<(), NetworkError> {
        let mut state = self.state();
        state.ipam.retain(|id| live_sandbox_ids.contains(id))?;
        let live_names: HashSet<String> = live_sandbox_ids.iter().map(|id| veth_name(id)).collect();
        for link in state
            .socket
            .links()
            .map_err(|error| NetworkError::kernel("list links", error))?
        {
            if self.is_ours(&link) && !live_names.contains(&link.name) {
                let _ = self.deletions.send(link.name);
            }
        }
        Ok(())
    }

    fn is_ours(&self, link: &crate::route_socket::Link) -> bool {
        link.controller == Some(self.bridge_index)
            && link.kind == Some(InfoKind::Veth)
            && link.name.starts_with(VETH_PREFIX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

/// Removes the bridge and its pairs, or only lists them. Answers what was (or would be) removed.
pub fn reset_links(bridge: &str, dry_run: bool) -> Result<Vec<String>, NetworkError> {
    let mut socket = open_socket()?;
    let mut removed = Vec::new();
    let Some(found) = socket
        .link(bridge)
        .map_err(|error| NetworkError::kernel(format!("find {bridge}"), error))?
    else {
        return Ok(removed);
    };
    if found.kind != Some(InfoKind::Bridge) {
        return Err(NetworkError::NotABridge {
            name: bridge.to_owned(),
        });
    }
    let mut names: Vec<String> = socket
        .links()
        .map_err(|error| NetworkError::kernel("list links", error))?
        .into_iter()
        .filter(|link| link.controller == Some(found.index) && link.name.starts_with(VETH_PREFIX))
        .map(|link| link.name)
        .collect();
    names.push(bridge.to_owned());
    for name in names {
        if !dry_run {
            socket
                .delete_link(&name)
                .map_err(|error| NetworkError::kernel(format!("delete link {name}"), error))?;
        }
        removed.push(format!("network interface {name}"));
    }
    Ok(removed)
}

/// This machine's address: that of the default route's link, else the first that is not loopback's or the bridge's.
pub fn node_address(bridge: &str) -> Result<Option<Ipv4Addr>, NetworkError> {
    let mut socket = open_socket()?;
    let kernel = |operation: &'static str| move |error| NetworkError::kernel(operation, error);
    let default_link = socket.default_route_link().map_err(kernel("list routes"))?;
    let links = socket.links().map_err(kernel("list links"))?;
    let addresses = socket.addresses().map_err(kernel("list addresses"))?;
    if let Some(index) = default_link
        && let Some((_, address, _)) = addresses.iter().find(|(link, ..)| *link == index)
    {
        return Ok(Some(*address));
    }
    Ok(addresses.iter().find_map(|(index, address, _)| {
        let name = links
            .iter()
            .find(|link| link.index == *index)
            .map(|link| link.name.as_str());
        (!address.is_loopback() && name != Some(bridge)).then_some(*address)
    }))
}

fn open_socket() -> Result<RouteSocket, NetworkError> {
    RouteSocket::open().map_err(|error| NetworkError::kernel("open a netlink socket", error))
}

fn ensure_bridge(socket: &mut RouteSocket, config: &PodNetworkConfig) -> Result<u32, NetworkError> {
    let name = &config.bridge;
    let kernel = |operation: String| move |error| NetworkError::kernel(operation, error);
    match socket.add_bridge(name) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        result => result.map_err(kernel(format!("make bridge {name}")))?,
    }
    let link = socket
        .link(name)
        .map_err(kernel(format!("find bridge {name}")))?;
    let Some(link) = link.filter(|link| link.kind == Some(InfoKind::Bridge)) else {
        return Err(NetworkError::NotABridge { name: name.clone() });
    };
    socket
        .add_address(
            link.index,
            config.pod_cidr.gateway(),
            config.pod_cidr.prefix_length,
        )
        .map_err(kernel(format!("give bridge {name} its address")))?;
    socket
        .set_up(link.index)
        .map_err(kernel(format!("set bridge {name} up")))?;
    if let Some(services) = config.service_cidr {
        socket
            .add_link_route(
                link.index,
                (services.network, services.prefix_length),
                config.pod_cidr.gateway(),
            )
            .map_err(kernel(format!("route services' addresses to {name}")))?;
    }
    Ok(link.index)
}

/// Runs `work` with a socket of another network namespace, on a thread that ends with it: a
/// thread that changed its namespace must not be used for anything else.
fn in_namespace<T: Send + 'static>(
    netns: File,
    work: impl FnOnce(&mut RouteSocket) -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    std::thread::Builder::new()
        .name("netns".to_owned())
        .stack_size(128 * 1024)
        .spawn(move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            work(&mut RouteSocket::open()?)
        })?
        .join()
        .map_err(|_| std::io::Error::other("the thread in the pod's namespace panicked"))?
}

/// A thread that deletes links in the order they come, in the caller's namespace; it ends with the last sender.
fn start_deleter(mut socket: RouteSocket) -> Result<mpsc::Sender<String>, NetworkError> {
    let (sender, receiver) = mpsc::channel::<String>();
    std::thread::Builder::new()
        .name("link-deleter".to_owned())
        .stack_size(128 * 1024)
        .spawn(move || {
            for name in receiver {
                if let Err(error) = socket.delete_link(&name) {
                    tracing::warn!(%name, %error, "link not deleted; the next start tries again");
                }
            }
        })
        .map_err(|error| NetworkError::kernel("start a thread", error))?;
    Ok(sender)
}

/// Name of a sandbox's link on the node: ids are random hex, so their first characters tell them apart.
fn veth_name(sandbox_id: &str) -> String {
    let rest = INTERFACE_NAME_BYTES_MAX - VETH_PREFIX.len();
    format!(
        "{VETH_PREFIX}{}",
        &sandbox_id[..sandbox_id.floor_char_boundary(rest.min(sandbox_id.len()))]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn veth_names() {
        fn check(id: &str, expect: &str) {
            assert_eq!(veth_name(id), expect);
        }
        check("0123456789abcdef0123", "llm0123456789ab");
        check("ab", "llmab");
        check("", "llm");
    }
}
