//! A registry's `WWW-Authenticate` header.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &str| runtime::image::fuzzing::challenges(header));
