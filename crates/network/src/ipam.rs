//! Addresses of pods: one file an address, named by it, holding the sandbox's id.
//!
//! A crash leaves either the whole file or none, so that an address is never given twice; files
//! whose sandbox is gone are removed by [`Ipam::retain`] at the next start. Addresses are handed
//! out in a circle, so that one just freed is the last to be given again (its neighbours' ARP
//! caches and conntrack entries have gone stale by then).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::NetworkError;

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Cidr {
    /// Host bits zero.
    pub network: Ipv4Addr,
    pub prefix_length: u8,
}

impl Ipv4Cidr {
    pub fn parse(text: &str) -> Result<Self, NetworkError> {
        let invalid = || NetworkError::InvalidCidr {
            text: text.to_owned(),
        };
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let prefix_length: u8 = prefix
            .parse()
            .ok()
            .filter(|bits| *bits <= 32)
            .ok_or_else(invalid)?;
        let network = u32::from(address)
            & Self {
                network: address,
                prefix_length,
            }
            .mask();
        Ok(Self {
            network: network.into(),
            prefix_length,
        })
    }

    /// The network mask as a number.
    pub fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix_length))
            .unwrap_or(0)
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.network)
    }

    /// The first host address, which the bridge has.
    pub fn gateway(self) -> Ipv4Addr {
        (u32::from(self.network) + 1).into()
    }

    /// Addresses for pods: all but the network's, the gateway's and the broadcast one.
    fn pod_addresses(self) -> std::ops::Range<u32> {
        let first = u32::from(self.network).saturating_add(2);
        let broadcast = u32::from(self.network) | !self.mask();
        first..broadcast.max(first)
    }
}

impl std::fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_length)
    }
}

pub struct Ipam {
    cidr: Ipv4Cidr,
    directory: PathBuf,
    by_address: BTreeMap<u32, String>,
    by_sandbox: HashMap<String, u32>,
    /// The next address to try.
    next: u32,
}

impl Ipam {
    /// Reads what an earlier run handed out.
    pub fn open(cidr: Ipv4Cidr, directory: &Path) -> Result<Self, NetworkError> {
        fs::create_dir_all(directory)
            .map_err(|error| NetworkError::file("make", directory, error))?;
        let mut ipam = Self {
            cidr,
            directory: directory.to_owned(),
            by_address: BTreeMap::new(),
            by_sandbox: HashMap::new(),
            next: cidr.pod_addresses().start,
        };
        for entry in
            fs::read_dir(directory).map_err(|error| NetworkError::file("read", directory, error))?
        {
            let path = entry
                .map_err(|error| NetworkError::file("read", directory, error))?
                .path();
            let address: Option<Ipv4Addr> = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.parse().ok());
            let Some(address) = address else {
                // A temporary file of a write that a crash cut off.
                fs::remove_file(&path)
                    .map_err(|error| NetworkError::file("remove", &path, error))?;
                continue;
            };
            let sandbox_id = fs::read_to_string(&path)
                .map_err(|error| NetworkError::file("read", &path, error))?;
            ipam.by_sandbox.insert(sandbox_id.clone(), address.into());
            ipam.by_address.insert(address.into(), sandbox_id);
        }
        // Behind the highest one in use: the circle goes on where it most likely was.
        if let Some((highest, _)) = ipam.by_address.last_key_value() {
            ipam.next = highest.saturating_add(1);
        }
        Ok(ipam)
    }

    pub fn cidr(&self) -> Ipv4Cidr {
        self.cidr
    }

    pub fn address_of(&self, sandbox_id: &str) -> Option<Ipv4Addr> {
        self.by_sandbox
            .get(sandbox_id)
            .map(|address| (*address).into())
    }

    /// The sandbox's address; a new one if it has none.
    pub fn allocate(&mut self, sandbox_id: &str) -> Result<Ipv4Addr, NetworkError> {
        if let Some(address) = self.address_of(sandbox_id) {
            return Ok(address);
        }
        let addresses = self.cidr.pod_addresses();
        let start = if addresses.contains(&self.next) {
            self.next
        } else {
            addresses.start
        };
        let address = (start..addresses.end)
            .chain(addresses.start..start)
            .find(|address| !self.by_address.contains_key(address))
            .ok_or_else(|| NetworkError::AddressesExhausted {
                cidr: self.cidr.to_string(),
            })?;
        self.write(address.into(), sandbox_id)?;
        self.next = address + 1;
        self.by_address.insert(address, sandbox_id.to_owned());
        self.by_sandbox.insert(sandbox_id.to_owned(), address);
        Ok(address.into())
    }

    /// Gives the sandbox's address back; answers what it was.
    pub fn release(&mut self, sandbox_id: &str) -> Result<Option<Ipv4Addr>, NetworkError> {
        let Some(address) = self.address_of(sandbox_id) else {
            return Ok(None);
        };
        let path = self.path(address);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(NetworkError::file("remove", &path, error));
            }
            _ => {}
        }
        self.by_sandbox.remove(sandbox_id);
        self.by_address.remove(&address.into());
        Ok(Some(address))
    }

    /// Gives back every address whose sandbox `is_live` denies; answers those sandboxes.
    pub fn retain(&mut self, is_live: impl Fn(&str) -> bool) -> Result<Vec<String>, NetworkError> {
        let gone: Vec<String> = self
            .by_sandbox
            .keys()
            .filter(|id| !is_live(id))
            .cloned()
            .collect();
        for sandbox_id in &gone {
            self.release(sandbox_id)?;
        }
        Ok(gone)
    }

    /// Written whole or not at all: the name appears by a rename. No fsync: after a power cut no pod runs.
    fn write(&self, address: Ipv4Addr, sandbox_id: &str) -> Result<(), NetworkError> {
        let path = self.path(address);
        let temporary = self.directory.join(format!("{address}.tmp"));
        let write = || -> std::io::Result<()> {
            fs::File::create(&temporary)?.write_all(sandbox_id.as_bytes())?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| NetworkError::file("write", &path, error))
    }

    fn path(&self, address: Ipv4Addr) -> PathBuf {
        self.directory.join(address.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Ipv4Cidr {
        Ipv4Cidr::parse(text).expect("a valid range")
    }

    #[test]
    fn ranges() {
        fn check(text: &str, expect: Option<(&str, &str)>) {
            let actual = Ipv4Cidr::parse(text)
                .ok()
                .map(|range| (range.to_string(), range.gateway().to_string()));
            assert_eq!(
                actual,
                expect.map(|(range, gateway)| (range.to_owned(), gateway.to_owned())),
                "{text}"
            );
        }
        check("10.42.0.0/24", Some(("10.42.0.0/24", "10.42.0.1")));
        check("10.42.3.77/24", Some(("10.42.3.0/24", "10.42.3.1")));
        check("10.42.0.0", None);
        check("10.42.0.0/40", None);
        check("x/24", None);
        assert!(cidr("10.42.0.0/24").contains(Ipv4Addr::new(10, 42, 0, 255)));
        assert!(!cidr("10.42.0.0/24").contains(Ipv4Addr::new(10, 42, 1, 0)));
    }

    #[test]
    fn addresses_go_round_and_survive() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut ipam = Ipam::open(cidr("10.1.0.0/29"), directory.path()).expect("opens");
        // A /29 has eight addresses: network, gateway, five pods, broadcast.
        let first = ipam.allocate("a").expect("free");
        assert_eq!(first, Ipv4Addr::new(10, 1, 0, 2));
        assert_eq!(
            ipam.allocate("a").expect("its own"),
            first,
            "asking again answers the same"
        );
        for id in ["b", "c", "d", "e"] {
            ipam.allocate(id).expect("free");
        }
        assert!(matches!(
            ipam.allocate("f"),
            Err(NetworkError::AddressesExhausted { .. })
        ));
        assert_eq!(ipam.release("a").expect("releases"), Some(first));
        assert_eq!(ipam.release("a").expect("is idempotent"), None);

        let mut again = Ipam::open(cidr("10.1.0.0/29"), directory.path()).expect("opens again");
        assert_eq!(again.address_of("c"), Some(Ipv4Addr::new(10, 1, 0, 4)));
        assert_eq!(again.allocate("f").expect("the freed one"), first);
        let mut gone = again.retain(|id| id == "f").expect("retains");
        gone.sort();
        assert_eq!(gone, ["b", "c", "d", "e"]);
        assert_eq!(fs::read_dir(directory.path()).expect("reads").count(), 1);
    }

    #[test]
    fn a_cut_off_write_is_cleaned() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("10.1.0.2.tmp"), "a").expect("writes");
        let ipam = Ipam::open(cidr("10.1.0.0/24"), directory.path()).expect("opens");
        assert_eq!(ipam.address_of("a"), None);
        assert_eq!(fs::read_dir(directory.path()).expect("reads").count(), 0);
    }
}
