//! Image references: the normal form means the same, and no part of it climbs out of a directory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use runtime::image::Reference;

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    assert_eq!(
        reference.to_string().parse::<Reference>(),
        Ok(reference.clone())
    );
    for component in reference.repository().split('/') {
        assert!(!component.is_empty() && component != "." && component != "..");
    }
});
