//! SPDY: whole frames with header blocks packed as they must be, so that what lies behind the packing is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| kubelet::streaming::fuzzing::spdy_frames(input));
