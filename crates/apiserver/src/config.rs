//! What a server is started with.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Everything that differs between two API servers.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the authority, certificates and keys are kept.
    pub pki_directory: PathBuf,
    /// Where to listen; port 0 lets the kernel choose one ([`crate::Server::local_addr`] says which).
    pub bind_address: SocketAddr,
    /// The address at which the Service `default/kubernetes` reaches this server; `None`: the
    /// bound address, or none at all while it is a loopback or unspecified one.
    pub advertise_address: Option<IpAddr>,
    /// DNS names and addresses of the serving certificate, besides those it always has.
    pub extra_names: Vec<String>,
    pub service_cidr: Ipv4Cidr,
    pub node_port_range: RangeInclusive<u16>,
    pub cluster_domain: String,
    /// `iss` of service-account tokens, and their default audience.
    pub service_account_issuer: String,
    /// How long an Event is kept.
    pub event_ttl: Duration,
    /// How long old revisions stay readable (for continued lists and late watches).
    pub compaction_interval: Duration,
    /// What other parts of this process count, told by `/metrics` after the server's own.
    pub further_metrics: Option<FurtherMetrics>,
}

/// Renders metrics in Prometheus' text form.
#[derive(Clone)]
pub struct FurtherMetrics(pub Arc<dyn Fn() -> String + Send + Sync>);

impl std::fmt::Debug for FurtherMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FurtherMetrics")
    }
}

impl Config {
    /// The defaults for a data directory.
    pub fn new(pki_directory: impl Into<PathBuf>) -> Self {
        Self {
            pki_directory: pki_directory.into(),
            bind_address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 6443)),
            advertise_address: None,
            extra_names: Vec::new(),
            service_cidr: Ipv4Cidr {
                address: Ipv4Addr::new(10, 43, 0, 0),
                prefix_len: 16,
            },
            node_port_range: 30000..=32767,
            cluster_domain: "cluster.local".into(),
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".into(),
            event_ttl: Duration::from_secs(3600),
            compaction_interval: Duration::from_secs(300),
            further_metrics: None,
        }
    }
}

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Cidr {
    pub address: Ipv4Addr,
    pub prefix_len: u8,
}

impl Ipv4Cidr {
    fn base(self) -> u32 {
        let mask = if self.prefix_len == 0 {
            0
        } else {
            u32::MAX << (32 - u32::from(self.prefix_len.min(32)))
        };
        u32::from(self.address) & mask
    }

    /// Count of addresses, the network's and the broadcast address included.
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix_len.min(32)))
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u64::from(u32::from(address).wrapping_sub(self.base())) < self.size()
    }

    /// The address at an offset from the network's; `None` past its end.
    pub fn nth(self, offset: u64) -> Option<Ipv4Addr> {
        (offset < self.size()).then(|| {
            Ipv4Addr::from(
                self.base()
                    .wrapping_add(u32::try_from(offset).unwrap_or(u32::MAX)),
            )
        })
    }

    pub fn offset(self, address: Ipv4Addr) -> Option<u64> {
        self.contains(address)
            .then(|| u64::from(u32::from(address).wrapping_sub(self.base())))
    }
}

impl std::fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base()), self.prefix_len)
    }
}

/// Not an `address/prefix-length`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no IPv4 network; write it like 10.43.0.0/16")]
pub struct BadCidr(String);

impl std::str::FromStr for Ipv4Cidr {
    type Err = BadCidr;

    fn from_str(text: &str) -> Result<Self, BadCidr> {
        let bad = || BadCidr(text.into());
        let (address, prefix_len) = text.split_once('/').ok_or_else(bad)?;
        let prefix_len = prefix_len
            .parse::<u8>()
            .ok()
            .filter(|len| *len <= 32)
            .ok_or_else(bad)?;
        Ok(Self {
            address: address.parse().map_err(|_| bad())?,
            prefix_len,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn networks() {
        let network: Ipv4Cidr = "10.43.7.9/16".parse().unwrap();
        assert_eq!(network.to_string(), "10.43.0.0/16");
        assert_eq!(network.size(), 65536);
        assert_eq!(network.nth(1), Some(Ipv4Addr::new(10, 43, 0, 1)));
        assert_eq!(network.nth(65536), None);
        assert_eq!(network.offset(Ipv4Addr::new(10, 43, 1, 0)), Some(256));
        for (address, inside) in [
            ("10.43.255.255", true),
            ("10.44.0.0", false),
            ("10.42.255.255", false),
        ] {
            assert_eq!(
                network.contains(address.parse().unwrap()),
                inside,
                "{address}"
            );
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/", ""] {
            assert!(text.parse::<Ipv4Cidr>().is_err(), "{text}");
        }
    }
}
