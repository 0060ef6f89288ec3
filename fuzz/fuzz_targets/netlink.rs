//! The kernel's answers about links, routes and nftables.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| network::fuzzing::netlink(datagram));
