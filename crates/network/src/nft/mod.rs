//! nftables by our own netlink messages: one IPv4 table, described as a value and made so by its difference.
//!
//! Enter at [`apply`]. Invariants:
//! - A change is one batch, which the kernel takes as a whole or not at all.
//! - Only what differs between the two rulesets is sent: chains whose rules changed, elements that came or went.
//!
//! Deliberately absent: reading rules back ([`read`] lists the chains of others), families other than `ip`, anonymous and interval sets.

pub(crate) mod encode;
mod expr;
pub mod read;

use std::collections::{BTreeMap, HashSet};
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::NetworkError;
use encode::Batch;
pub use expr::{CmpOp, Expr, Hook, Reject, Verdict, register};

/// Room for a batch of some ten thousand endpoints; a netlink message must fit the send buffer.
const SEND_BUFFER_BYTES: usize = 64 << 20;
const ENOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();

/// Expressions of one rule, in order.
pub type Rule = Vec<Expr>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where the kernel enters it; `None` for a chain that others go to.
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// From keys to chains, gone to.
    VerdictMap {
        key: KeyType,
        elements: BTreeMap<Vec<u8>, String>,
    },
    /// Keys that rules put in (`dynset`), each for this long.
    Recent { key: KeyType, timeout_millis: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    Address,
    Index,
    /// Protocol and port.
    Port,
    /// Address, protocol and port.
    AddressPort,
}

/// What a table holds. Names of chains and sets are at most 127 bytes long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub chains: BTreeMap<String, Chain>,
    pub sets: BTreeMap<String, Set>,
}

/// Makes `table` hold `next`. With `previous`, what it held, only the difference is sent; without, the table is made anew.
pub fn apply(table: &str, previous: Option<&Ruleset>, next: &Ruleset) -> Result<(), NetworkError> {
    let mut batch = Batch::new(table);
    let empty = Ruleset::default();
    if previous.is_none() {
        batch.add_table();
        batch.delete_table();
        batch.add_table();
    }
    difference(&mut batch, previous.unwrap_or(&empty), next);
    send(batch)
        .map_err(|error| NetworkError::kernel(format!("change nftables table {table}"), error))
}

/// Removes the table; answers whether it was there.
pub fn delete_table(table: &str) -> Result<bool, NetworkError> {
    let mut batch = Batch::new(table);
    batch.delete_table();
    absent_is_false(send(batch))
        .map_err(|error| NetworkError::kernel(format!("delete nftables table {table}"), error))
}

pub fn table_exists(table: &str) -> Result<bool, NetworkError> {
    let answer = open().and_then(|socket| {
        request(
            &socket,
            &encode::table_request(table),
            encode::REQUEST_SEQUENCE,
        )
    });
    absent_is_false(answer)
        .map_err(|error| NetworkError::kernel(format!("find nftables table {table}"), error))
}

fn absent_is_false(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// New things first, then what refers to them, then what nothing refers to any more goes.
fn difference(batch: &mut Batch, previous: &Ruleset, next: &Ruleset) {
    // A set whose type changed is deleted and made anew; its name tells types apart, so it does not happen in one name.
    for (name, set) in &next.sets {
        if !previous.sets.contains_key(name) {
            batch.add_set(name, set);
        }
    }
    for (name, chain) in &next.chains {
        if !previous.chains.contains_key(name) {
            batch.add_chain(name, chain);
        }
    }
    let changed: HashSet<&String> = next
        .chains
        .iter()
        .filter(|(name, chain)| previous.chains.get(*name) != Some(chain))
        .map(|(name, _)| name)
        .collect();
    for name in previous.chains.keys() {
        if changed.contains(name) || !next.chains.contains_key(name) {
            batch.flush_chain(name);
        }
    }
    for (name, old) in &previous.sets {
        let new = elements(next.sets.get(name));
        let gone = elements(Some(old))
            .into_iter()
            .flatten()
            .filter(|(key, chain)| new.is_none_or(|new| new.get(*key) != Some(chain)));
        batch.delete_elements(name, gone);
    }
    for (name, set) in &next.sets {
        let old = elements(previous.sets.get(name));
        let added = elements(Some(set))
            .into_iter()
            .flatten()
            .filter(|(key, chain)| old.is_none_or(|old| old.get(*key) != Some(chain)));
        batch.add_elements(name, added);
    }
    for name in changed {
        for rule in &next.chains[name].rules {
            batch.add_rule(name, rule);
        }
    }
    for name in previous
        .sets
        .keys()
        .filter(|name| !next.sets.contains_key(*name))
    {
        batch.delete_set(name);
    }
    for name in previous
        .chains
        .keys()
        .filter(|name| !next.chains.contains_key(*name))
    {
        batch.delete_chain(name);
    }
}

fn elements(set: Option<&Set>) -> Option<&BTreeMap<Vec<u8>, String>> {
    match set {
        Some(Set::VerdictMap { elements, .. }) => Some(elements),
        _ => None,
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn send(batch: Batch) -> io::Result<()> {
    let Some((bytes, last_sequence)) = batch.finish() else {
        return Ok(());
    };
    let socket = open()?;
    grow_send_buffer(&socket)?;
    request(&socket, &bytes, last_sequence)
}

fn grow_send_buffer(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsFd;
    rustix::net::sockopt::set_socket_send_buffer_size_force(socket.as_fd(), SEND_BUFFER_BYTES)?;
    Ok(())
}

/// Sends and reads until the last message's acknowledgement. Errors of earlier ones come before it.
fn request(socket: &Socket, bytes: &[u8], last_sequence: u32) -> io::Result<()> {
    socket.send(bytes, 0)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = socket.recv(&mut &mut buffer[..], 0)?;
        for answer in encode::answers(&buffer[..length]) {
            if answer.error != 0 {
                return Err(io::Error::from_raw_os_error(-answer.error));
            }
            if answer.sequence == last_sequence {
                return Ok(());
            }
        }
    }
}
