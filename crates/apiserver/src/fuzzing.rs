//! What the fuzz targets reach of the readers of requests; compiled by `make fuzz` alone.

use crate::codec::yaml_to_json;
use crate::request::{Query, ResourcePath, Target, decode_path, verb};

/// A path and a query.
pub fn request(text: &str) {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let query = Query::parse(Some(query));
    for parameter in ["limit", "timeoutSeconds", "gracePeriodSeconds"] {
        let _ = query.integer(parameter);
    }
    let decoded = decode_path(path);
    for path in [path, &decoded] {
        let Target::Resource(target) = Target::parse(path) else {
            continue;
        };
        let ResourcePath {
            version, resource, ..
        } = target;
        assert!(!version.is_empty() && !resource.is_empty(), "{path}");
        assert!(!verb(&http::Method::GET, &target, &query).is_empty());
    }
}

/// A body in YAML: what it becomes is JSON.
pub fn yaml(body: &[u8]) {
    if let Ok(json) = yaml_to_json(body) {
        serde_json::from_slice::<serde_json::Value>(&json).expect("it is JSON");
    }
}
