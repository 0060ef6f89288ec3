//! What the fuzz targets reach of the image store's private decoders; compiled by `make fuzz` alone.

use super::registry::auth::parse_challenges;
use super::spec::{Document, Platform, choose_platform, parse_config};

/// An index, a manifest or a configuration, as a registry sends it.
pub fn document(bytes: &[u8]) {
    let host = Platform::host();
    match Document::parse(bytes, "") {
        Ok(Document::Index(manifests)) => {
            let _ = choose_platform(&manifests, &host);
        }
        Ok(Document::Manifest(manifest)) => {
            let text = serde_json::to_vec(&manifest).expect("a manifest is JSON");
            assert!(
                matches!(Document::parse(&text, ""), Ok(Document::Manifest(_))),
                "a manifest that was written reads back"
            );
        }
        Err(reason) => assert!(!reason.is_empty()),
    }
    let _ = parse_config(bytes, &host);
}

/// A `WWW-Authenticate` header.
pub fn challenges(header: &str) {
    assert!(parse_challenges(header).len() <= header.len());
}
