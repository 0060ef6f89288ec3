//! Label selectors: what prints parses back to the same.
#![no_main]

use api::selector::Labels;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(selector) = Labels::parse(text) {
        selector.matches(None);
        assert_eq!(Labels::parse(&selector.to_string()), Ok(selector));
    }
});
