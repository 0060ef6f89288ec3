//! The reader of KubeSchedulerConfiguration: whatever it is given, an answer or an error, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) {
        let _ = scheduler::Configuration::from_value(value);
    }
});
