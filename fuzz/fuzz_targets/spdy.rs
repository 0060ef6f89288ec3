//! SPDY: bytes of a client, in pieces of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| kubelet::streaming::fuzzing::spdy(input));
