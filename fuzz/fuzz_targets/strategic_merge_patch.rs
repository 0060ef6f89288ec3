//! Strategic merge patches of pods: the text of an object and that of a patch, parted by a zero byte.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(split) = data.iter().position(|byte| *byte == 0) else {
        return;
    };
    let (Ok(object), Ok(patch)) = (
        serde_json::from_slice(&data[..split]),
        serde_json::from_slice(&data[split + 1..]),
    ) else {
        return;
    };
    let pod = api::schema::table()
        .kind("v1", "Pod")
        .expect("pods are known");
    let _ = api::patch::strategic_merge_patch(object, patch, pod);
});
