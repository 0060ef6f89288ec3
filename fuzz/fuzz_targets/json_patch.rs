//! JSON patches: the text of an object and that of a patch, parted by a zero byte.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(split) = data.iter().position(|byte| *byte == 0) else {
        return;
    };
    let Ok(object) = serde_json::from_slice(&data[..split]) else {
        return;
    };
    let _ = api::patch::json_patch(object, &data[split + 1..]);
});
