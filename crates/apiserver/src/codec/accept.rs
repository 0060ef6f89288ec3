//! Which form of an answer the client wants.

use http::HeaderMap;
use http::header::{ACCEPT, USER_AGENT};

use crate::request::Query;
use crate::status::{ApiError, ApiResult};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

/// Objects as they are, or transformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    /// `Table`, with what of the object beside the cells.
    Table(IncludeObject),
    /// `PartialObjectMetadata`, `PartialObjectMetadataList`.
    Metadata,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    Metadata,
    Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    pub encoding: Encoding,
    pub shape: Shape,
    pub pretty: bool,
}

pub const MEDIA_TYPES: &str =
    "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// People read what these fetch: they get indented JSON unless they say otherwise.
const AGENTS_OF_PEOPLE: [&str; 3] = ["curl", "Wget", "Mozilla/5.0"];

fn wants_pretty(headers: &HeaderMap, query: &Query) -> bool {
    query.boolean("pretty").unwrap_or_else(|| {
        headers
            .get(USER_AGENT)
            .and_then(|agent| agent.to_str().ok())
            .is_some_and(|agent| AGENTS_OF_PEOPLE.iter().any(|own| agent.starts_with(own)))
    })
}

impl Accept {
    /// The first form in the client's list that there is; `protobuf`: whether the answer has one.
    pub fn negotiate(headers: &HeaderMap, query: &Query, protobuf: bool) -> ApiResult<Self> {
        let include = match query.value("includeObject") {
            None | Some("Metadata") => IncludeObject::Metadata,
            Some("None") => IncludeObject::None,
            Some("Object") => IncludeObject::Object,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
                )));
            }
        };
        let pretty = wants_pretty(headers, query);
        let mut named = false;
        for header in headers.get_all(ACCEPT) {
            let Ok(header) = header.to_str() else {
                continue;
            };
            for clause in header
                .split(',')
                .map(str::trim)
                .filter(|clause| !clause.is_empty())
            {
                named = true;
                if let Some(mut accept) = Self::clause(clause, include, protobuf) {
                    accept.pretty = pretty;
                    return Ok(accept);
                }
            }
        }
        if named {
            return Err(ApiError::not_acceptable(MEDIA_TYPES));
        }
        Ok(Self {
            encoding: Encoding::Json,
            shape: Shape::Object,
            pretty,
        })
    }

    fn clause(clause: &str, include: IncludeObject, protobuf: bool) -> Option<Self> {
        let mut parameters = clause.split(';').map(str::trim);
        let encoding = match parameters.next()? {
            "application/json" | "*/*" | "application/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            "application/vnd.kubernetes.protobuf" if protobuf => Encoding::Protobuf,
            _ => return None,
        };
        let (mut kind, mut group, mut version) = ("", "", "");
        for parameter in parameters {
            match parameter.split_once('=')? {
                ("as", value) => kind = value,
                ("g", value) => group = value,
                ("v", value) => version = value,
                _ => {}
            }
        }
        let shape = match kind {
            "" => Shape::Object,
            "Table" if group == "meta.k8s.io" && matches!(version, "v1" | "v1beta1") => {
                Shape::Table(include)
            }
            "PartialObjectMetadata" | "PartialObjectMetadataList"
                if group == "meta.k8s.io" && matches!(version, "v1" | "v1beta1") =>
            {
                Shape::Metadata
            }
            _ => return None,
        };
        // Tables and partial objects are only made in JSON and YAML.
        (encoding != Encoding::Protobuf || shape == Shape::Object).then_some(Self {
            encoding,
            shape,
            pretty: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_first_clause_that_can_be_served_wins() {
        let check = |accept: &'static str, expect: Option<(Encoding, Shape)>| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            let found = Accept::negotiate(&headers, &Query::default(), true)
                .ok()
                .map(|accept| (accept.encoding, accept.shape));
            assert_eq!(found, expect, "{accept}");
        };
        let table = Shape::Table(IncludeObject::Metadata);
        check("application/json", Some((Encoding::Json, Shape::Object)));
        check("*/*", Some((Encoding::Json, Shape::Object)));
        check(
            "application/vnd.kubernetes.protobuf, */*",
            Some((Encoding::Protobuf, Shape::Object)),
        );
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Encoding::Json, table)),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io",
            Some((Encoding::Json, table)),
        );
        check(
            "application/json;as=Other;v=v1;g=meta.k8s.io,application/yaml",
            Some((Encoding::Yaml, Shape::Object)),
        );
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Encoding::Json, Shape::Metadata)),
        );
        check("text/html", None);
    }
}
