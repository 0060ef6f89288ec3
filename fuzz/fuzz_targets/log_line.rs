//! Lines of a container's log: the content is the end of the line.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &[u8]| {
    let Some(line) = kubelet::logs::line::parse(raw) else {
        return;
    };
    assert!(
        raw.strip_suffix(b"\n")
            .unwrap_or(raw)
            .ends_with(line.content)
    );
    assert!(!line.timestamp.contains(' '));
});
