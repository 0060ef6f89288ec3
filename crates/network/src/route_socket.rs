//! A synchronous rtnetlink socket: links, addresses, routes.
//!
//! Each request waits for its acknowledgement. The socket acts in the network namespace of the
//! thread that opened it, also when it is used from another one later.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Routing table `main` (linux/rtnetlink.h, RT_TABLE_MAIN).
const MAIN_TABLE: u8 = 254;
/// The kernel sends at most this much in one datagram (linux/netlink.h, NLMSG_GOODSIZE is below it).
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;

/// A link as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `bridge`, `veth`, …; `None` for hardware and loopback.
    pub kind: Option<InfoKind>,
    /// Index of the bridge that it is a port of.
    pub controller: Option<u32>,
    pub up: bool,
}

pub struct RouteSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl RouteSocket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; RECEIVE_BUFFER_BYTES],
        })
    }

    /// The link of that name, or `None`.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        match self.request(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => Ok(answers.iter().find_map(link_of)),
            Err(error) if error.raw_os_error() == Some(libc_errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.request(
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            NLM_F_DUMP,
        )?;
        Ok(answers.iter().filter_map(link_of).collect())
    }

    /// Makes a bridge, up; an existing one is an error (`EEXIST`).
    pub fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.request(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .map(drop)
    }

    /// Makes a veth pair in one message: `name` here, up and a port of `bridge`; `peer_name` in the namespace `netns`.
    pub fn add_veth(
        &mut self,
        name: &str,
        bridge: u32,
        peer_name: &str,
        netns: BorrowedFd<'_>,
        mtu: u32,
    ) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(peer_name.to_owned()),
            LinkAttribute::NetNsFd(netns.as_raw_fd()),
            LinkAttribute::Mtu(mtu),
        ];
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Controller(bridge),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.request(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .map(drop)
    }

    /// Lets a bridge port send a frame back where it came from: a pod may reach itself by its service's address.
    pub fn set_hairpin(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(
                true,
            )])),
        ])];
        self.request(RouteNetlinkMessage::NewLink(message), 0)
            .map(drop)
    }

    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), 0)
            .map(drop)
    }

    /// Deletes a link; one that is gone already is no error.
    pub fn delete_link(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        match self.request(RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if error.raw_os_error() != Some(libc_errno::ENODEV) => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives a link an address; one that it has already is no error.
    pub fn add_address(
        &mut self,
        index: u32,
        address: Ipv4Addr,
        prefix_length: u8,
    ) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix_length;
        message.header.index = index;
        message.header.scope = AddressScope::Universe;
        let network =
            u32::from(address) | u32::MAX.checked_shr(u32::from(prefix_length)).unwrap_or(0);
        message.attributes = vec![
            AddressAttribute::Local(address.into()),
            AddressAttribute::Address(address.into()),
            AddressAttribute::Broadcast(network.into()),
        ];
        match self.request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        ) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Every IPv4 address with the index of its link and its prefix length.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, Ipv4Addr, u8)>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let answers = self.request(RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP)?;
        Ok(answers
            .iter()
            .filter_map(|answer| {
                let RouteNetlinkMessage::NewAddress(message) = answer else {
                    return None;
                };
                message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        AddressAttribute::Local(std::net::IpAddr::V4(address)) => {
                            Some((message.header.index, *address, message.header.prefix_len))
                        }
                        _ => None,
                    })
            })
            .collect())
    }

    /// Routes everything else by `gateway`, which is on that link whatever its addresses are.
    pub fn add_default_route(&mut self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = MAIN_TABLE;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.header.flags = RouteFlags::Onlink;
        message.attributes = vec![
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
            RouteAttribute::Oif(index),
        ];
        self.add_route(message)
    }

    /// Adds a route; one that is there already is no error.
    fn add_route(&mut self, message: RouteMessage) -> io::Result<()> {
        match self.request(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
        ) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Routes a network to the link itself, with `source` as the address of what this machine sends there.
    pub fn add_link_route(
        &mut self,
        index: u32,
        (network, prefix_length): (Ipv4Addr, u8),
        source: Ipv4Addr,
    ) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = MAIN_TABLE;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Link;
        message.header.kind = RouteType::Unicast;
        message.header.destination_prefix_length = prefix_length;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(network)),
            RouteAttribute::PrefSource(RouteAddress::Inet(source)),
            RouteAttribute::Oif(index),
        ];
        self.add_route(message)
    }

    /// Index of the link of the default IPv4 route with the best metric.
    pub fn default_route_link(&mut self) -> io::Result<Option<u32>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let answers = self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
        let best = answers.iter().filter_map(|answer| {
            let RouteNetlinkMessage::NewRoute(message) = answer else {
                return None;
            };
            if message.header.destination_prefix_length != 0 || message.header.table != MAIN_TABLE {
                return None;
            }
            let mut link = None;
            let mut metric = 0;
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => link = Some(*index),
                    RouteAttribute::Priority(priority) => metric = *priority,
                    _ => {}
                }
            }
            link.map(|link| (metric, link))
        });
        Ok(best.min().map(|(_, link)| link))
    }

    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST
            | flags
            | if flags & NLM_F_DUMP == NLM_F_DUMP {
                0
            } else {
                NLM_F_ACK
            };
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        self.answers()
    }

    /// Reads until the acknowledgement, the end of the dump or an error.
    fn answers(&mut self) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        loop {
            let byte_count = self.socket.recv(&mut &mut self.buffer[..], 0)?;
            if read_answers(&self.buffer[..byte_count], self.sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Adds a datagram's messages to `answers`; answers whether that was the last one.
pub(crate) fn read_answers(
    mut bytes: &[u8],
    sequence: u32,
    answers: &mut Vec<RouteNetlinkMessage>,
) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let length = message.header.length as usize;
        if length == 0 {
            break;
        }
        // Messages are padded to four bytes (NLMSG_ALIGN).
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => answers.push(inner),
            NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::Done(_) => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

fn link_of(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        controller: None,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}

/// Error numbers as raw integers, the form in which netlink answers carry them.
mod libc_errno {
    pub const ENODEV: i32 = rustix::io::Errno::NODEV.raw_os_error();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A whole answer: a link by name, then the end of the dump.
    fn answer() -> Vec<u8> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName("lo".to_owned()));
        let payloads = [
            NetlinkPayload::from(RouteNetlinkMessage::NewLink(message)),
            NetlinkPayload::Done(Default::default()),
        ];
        let mut bytes = Vec::new();
        for payload in payloads {
            let mut header = NetlinkHeader::default();
            header.sequence_number = 1;
            let mut packet = NetlinkMessage::new(header, payload);
            packet.finalize();
            let start = bytes.len();
            bytes.resize(start + packet.buffer_len(), 0);
            packet.serialize(&mut bytes[start..]);
        }
        bytes
    }

    #[test]
    fn answers_are_read_to_their_end() {
        let mut answers = Vec::new();
        assert!(read_answers(&answer(), 1, &mut answers).expect("a sound answer"));
        assert_eq!(answers.iter().filter_map(link_of).count(), 1);
        answers.clear();
        assert!(!read_answers(&answer(), 2, &mut answers).expect("another's answer"));
        assert!(answers.is_empty());
    }

    proptest! {
        #[test]
        fn safety_any_answer_is_survived(
            noise: Vec<u8>,
            edits in proptest::collection::vec((0usize..200, any::<u8>()), 0..4),
        ) {
            let mut bytes = answer();
            for (at, value) in edits {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            for bytes in [noise, bytes] {
                let mut answers = Vec::new();
                let _ = read_answers(&bytes, 1, &mut answers);
                prop_assert!(answers.len() <= bytes.len());
            }
        }
    }
}
