//! Reading what others have in nftables: their base chains, and that something of theirs came.
//!
//! Deliberately absent: rules and sets as values; [`mentions`] only looks whether a rule names an interface.

use std::io;
use std::time::Duration;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::encode::{
    FAMILY_IPV4, HEADER_BYTES, NEW_CHAIN, NEW_TABLE, NLMSG_ERROR, SUBSYSTEM, chain_rules_request,
    chains_request,
};

const NLMSG_DONE: u16 = 3;
/// Of `struct nfgenmsg`, which follows the netlink header.
const GENERIC_HEADER_BYTES: usize = 4;
const ATTRIBUTE_KIND_MASK: u16 = 0x3fff;
const FAMILY_INET: u8 = 1;
const POLICY_DROP: u32 = 0;
/// Multicast group of changes (NFNLGRP_NFTABLES).
const CHANGES_GROUP: u32 = 7;
const BUFFER_BYTES: usize = 64 << 10;

/// A chain of any table that IPv4 packets may pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignChain {
    /// `ip` or `inet`.
    pub family: &'static str,
    pub table: String,
    pub name: String,
    /// Number of the hook, if the kernel enters it there.
    pub hook: Option<u32>,
    pub drops_by_default: bool,
}

/// Every chain of the network namespace in families `ip` and `inet`.
pub fn chains() -> io::Result<Vec<ForeignChain>> {
    let mut chains = Vec::new();
    dump(&chains_request(), |message| {
        chains.extend(chain_of(message))
    })?;
    Ok(chains)
}

/// Whether a rule of the chain names the interface.
pub fn mentions(chain: &ForeignChain, interface: &str) -> io::Result<bool> {
    let family = if chain.family == "inet" {
        FAMILY_INET
    } else {
        FAMILY_IPV4
    };
    let mut found = false;
    dump(
        &chain_rules_request(family, &chain.table, &chain.name),
        |message| {
            found |= message
                .body
                .windows(interface.len())
                .any(|bytes| bytes == interface.as_bytes());
        },
    )?;
    Ok(found)
}

fn dump(request: &[u8], mut each: impl FnMut(&Message<'_>)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send(request, 0)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = socket.recv(&mut &mut buffer[..], 0)?;
        for message in messages(&buffer[..length]) {
            match message.kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => match message.number(0) {
                    Some(0) => return Ok(()),
                    error => {
                        let error = error.unwrap_or_default().cast_signed();
                        return Err(io::Error::from_raw_os_error(error.saturating_neg()));
                    }
                },
                _ => each(&message),
            }
        }
    }
}

/// Tells when a table or a chain is made that is not of our table.
pub struct Changes {
    socket: Socket,
    own_table: String,
    buffer: Vec<u8>,
}

impl Changes {
    /// Everything that comes after this call is told.
    pub fn subscribe(own_table: &str) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.add_membership(CHANGES_GROUP)?;
        Ok(Self {
            socket,
            own_table: own_table.to_owned(),
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Blocks until a change came and none followed for `quiet`.
    pub fn wait(&mut self, quiet: Duration) -> io::Result<()> {
        let mut changed = false;
        loop {
            use std::os::fd::AsFd;
            set_socket_timeout(self.socket.as_fd(), Timeout::Recv, changed.then_some(quiet))?;
            match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(length) => {
                    changed |= messages(&self.buffer[..length])
                        .any(|message| message.makes_foreign(&self.own_table));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // More changes than the socket holds: one of them may have been of interest.
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) =>
                {
                    changed = true;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A netlink message: its kind and what follows the netlink header.
struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    fn number(&self, offset: usize) -> Option<u32> {
        let bytes = self.body.get(offset..offset + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        attributes(self.body.get(GENERIC_HEADER_BYTES..).unwrap_or_default())
    }

    fn makes_foreign(&self, own_table: &str) -> bool {
        [NEW_TABLE, NEW_CHAIN].contains(&(self.kind & 0xff))
            && self.kind >> 8 == SUBSYSTEM
            && self
                .attributes()
                .any(|(kind, value)| kind == 1 && text(value) != own_table)
    }
}

fn chain_of(message: &Message<'_>) -> Option<ForeignChain> {
    if message.kind != SUBSYSTEM << 8 | NEW_CHAIN {
        return None;
    }
    let family = match *message.body.first()? {
        FAMILY_INET => "inet",
        FAMILY_IPV4 => "ip",
        _ => return None,
    };
    let mut chain = ForeignChain {
        family,
        ..ForeignChain::default()
    };
    for (kind, value) in message.attributes() {
        match kind {
            1 => chain.table = text(value),
            3 => chain.name = text(value),
            4 => {
                chain.hook = attributes(value)
                    .find(|(kind, _)| *kind == 1)
                    .and_then(|(_, number)| network_order(number));
            }
            5 => chain.drops_by_default = network_order(value) == Some(POLICY_DROP),
            _ => {}
        }
    }
    Some(chain)
}

/// The chains that a datagram names.
#[cfg(any(test, fuzzing))]
pub(crate) fn chains_in(datagram: &[u8]) -> Vec<ForeignChain> {
    messages(datagram)
        .filter_map(|message| chain_of(&message))
        .collect()
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER_BYTES)?;
        let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        let body = bytes.get(HEADER_BYTES..length)?;
        let kind = u16::from_ne_bytes(header[4..6].try_into().ok()?);
        // Messages and attributes are padded to four bytes.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, body })
    })
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes(header[..2].try_into().ok()?));
        let kind = u16::from_ne_bytes(header[2..4].try_into().ok()?) & ATTRIBUTE_KIND_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn network_order(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    /// A message with one nested attribute within a list.
    fn message(family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        for (kind, value) in attributes {
            body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(HEADER_BYTES + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend((SUBSYSTEM << 8 | NEW_CHAIN).to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn chains_are_read() {
        let hook = [8, 0, 1, 0, 0, 0, 0, 2];
        let datagram = [
            message(
                2,
                &[
                    (1, b"filter\0"),
                    (3, b"FORWARD\0"),
                    (0x8004, &hook),
                    (5, &[0, 0, 0, 0]),
                ],
            ),
            message(1, &[(1, b"t\0"), (3, b"c\0")]),
            message(10, &[(1, b"six\0"), (3, b"c\0")]),
        ]
        .concat();
        let chain = |family, table: &str, name: &str, hook, drops_by_default| ForeignChain {
            family,
            table: table.to_owned(),
            name: name.to_owned(),
            hook,
            drops_by_default,
        };
        assert_eq!(
            chains_in(&datagram),
            [
                chain("ip", "filter", "FORWARD", Some(2), true),
                chain("inet", "t", "c", None, false)
            ]
        );
        for end in 0..datagram.len() {
            chains_in(&datagram[..end]);
        }
    }

    proptest! {
        #[test]
        fn safety_any_datagram_ends(
            noise in proptest::collection::vec(any::<u8>(), 0..200),
            edits in proptest::collection::vec((0usize..200, any::<u8>()), 0..4),
        ) {
            chains_in(&noise);
            let mut bytes = message(2, &[(1, b"filter\0"), (3, b"FORWARD\0"), (4, &[8, 0, 1, 0, 0, 0, 0, 2])]);
            for (at, value) in edits {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            prop_assert!(chains_in(&bytes).len() <= 1 + bytes.len() / HEADER_BYTES);
        }
    }
}
