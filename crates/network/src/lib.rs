//! The pod network and the service proxy: what links, addresses, routes and nftables should be, and making them so.
//!
//! Enter at [`pod_network::PodNetwork`] for the built-in bridge network, at
//! [`proxy::ServiceProxy`] for services and host ports, at [`reset`] to remove both, at
//! [`firewall`] for the firewalls of others beside them. Links, addresses and
//! routes are set over synchronous netlink sockets ([`route_socket`]): a request costs
//! microseconds, and a socket belongs to the network namespace of the thread that made it.
//!
//! Deliberately absent: any external program at run time but the tool of a firewall that is active, any rule or link that is not ours.

pub mod error;
pub mod firewall;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod host_ports;
pub mod ipam;
pub mod nft;
pub mod plan;
pub mod pod_network;
pub mod proxy;
mod reset;
pub mod route_socket;
mod sysctl;

pub use error::NetworkError;
pub use reset::{ResetConfig, reset};
