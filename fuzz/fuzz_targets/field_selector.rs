//! Field selectors: what prints parses back to the same.
#![no_main]

use api::selector::Fields;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(selector) = Fields::parse(text) {
        selector.matches(|_| None);
        assert_eq!(Fields::parse(&selector.to_string()), Ok(selector));
    }
});
