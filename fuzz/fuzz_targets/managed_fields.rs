//! Field ownership of pods: a live object and a configuration, parted by a zero byte.
#![no_main]

use api::managed_fields::{Write, apply, created, update};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let write = Write {
        manager: "m",
        api_version: "v1",
        subresource: "",
        now: "2024-01-01T00:00:00Z",
        type_: api::schema::table().kind("v1", "Pod"),
        ignored_fields: &["status"],
    };
    let _ = created(data, &write);
    let Some(split) = data.iter().position(|byte| *byte == 0) else {
        return;
    };
    let (Ok(live), Ok(config)) = (
        serde_json::from_slice::<Value>(&data[..split]),
        serde_json::from_slice::<Value>(&data[split + 1..]),
    ) else {
        return;
    };
    let _ = apply(Some(&live), &config, &write, false);
    let _ = apply(Some(&live), &config, &write, true);
    let mut new = config;
    update(Some(&live), &mut new, &write);
});
