//! The configuration of registries, and where it sends the pull of an image.
#![no_main]

use std::path::Path;
use std::time::Duration;

use runtime::image::Reference;
use runtime::image::registry::config::Registries;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // Files that the configuration names are read: never this machine's.
    if text.contains("_file") {
        return;
    }
    let Ok(registries) = Registries::parse(text, Path::new("r.yaml"), Duration::from_secs(1))
    else {
        return;
    };
    let reference = Reference::parse("gcr.io/a/b:1").expect("a reference");
    let endpoints = registries.endpoints(&reference, None);
    assert!(!endpoints.is_empty(), "the registry itself is always asked");
});
