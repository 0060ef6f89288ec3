//! WebSocket: bytes of a client after the handshake, by each protocol of remote commands.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| kubelet::streaming::fuzzing::websocket(input));
