//! OpenAPI of what is served: v2 (JSON and gnostic's protobuf) and v3 (an index and a document a group-version).
//!
//! Enter at [`v3_index`], [`v3_document`], [`v2_json`] and [`v2_protobuf`]. They take a plain description of the served
//! resources, so that custom resources come in as they do in discovery, and answer with bytes; nothing is kept here.
//! Structure (types, list types, merge keys, defaults, enums) comes from [`crate::schema`], descriptions come from
//! k8s-openapi. A document of the core group takes some 20 ms and a few megabytes while it is built: ask for it when
//! it is asked for, and keep the bytes, not the values.

mod definitions;
mod gnostic;
mod paths;
mod roots;

use std::collections::BTreeSet;
use std::hash::Hasher;

use serde_json::{Map, Value, json};

use crate::kind::{Kind, Subresource, Verb};
use definitions::Definitions;

pub const V2_PROTOBUF_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The same with the `@` that clients put into `Accept`.
pub const V2_PROTOBUF_ACCEPT: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// One served resource.
#[derive(Clone, Copy)]
pub struct Resource<'a> {
    /// Empty for the core group.
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub plural: &'a str,
    pub namespaced: bool,
    pub verbs: &'a [Verb],
    pub subresources: &'a [Subresource],
    /// The `openAPIV3Schema` of a custom resource.
    pub schema: Option<&'a Value>,
}

/// Which version of OpenAPI a document is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    V2,
    V3,
}

impl Flavour {
    fn reference(self, name: &str) -> String {
        match self {
            Self::V2 => format!("#/definitions/{name}"),
            Self::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

impl<'a> From<&'a Kind> for Resource<'a> {
    fn from(kind: &'a Kind) -> Self {
        Self {
            group: &kind.group,
            version: &kind.version,
            kind: &kind.kind,
            plural: &kind.plural,
            namespaced: kind.namespaced,
            verbs: kind.verbs,
            subresources: &kind.subresources,
            schema: None,
        }
    }
}

impl Resource<'_> {
    fn group_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `/api/v1`, `/apis/apps/v1`.
    fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }
}

/// `/openapi/v3`: where the document of each group-version is. The hash in its address changes with its content, so
/// a client may keep what it fetched from there.
pub fn v3_index(resources: &[Resource<'_>]) -> Vec<u8> {
    let roots: BTreeSet<String> = resources.iter().map(Resource::root).collect();
    let paths: Map<String, Value> = roots
        .into_iter()
        .map(|root| {
            let address = format!(
                "/openapi/v3{root}?hash={}",
                hash(resources.iter().filter(|resource| resource.root() == root))
            );
            (
                root.trim_start_matches('/').to_owned(),
                json!({"serverRelativeURL": address}),
            )
        })
        .collect();
    json!({"paths": paths}).to_string().into_bytes()
}

/// The hash that [`v3_index`] gives for a group-version; `None` if it is not served.
pub fn v3_hash(resources: &[Resource<'_>], group: &str, version: &str) -> Option<String> {
    let mut served = resources
        .iter()
        .filter(|resource| resource.group == group && resource.version == version)
        .peekable();
    served.peek()?;
    Some(hash(served))
}

/// `/openapi/v3/apis/<group>/<version>` (`/openapi/v3/api/v1` for the core group); `None` if it is not served.
pub fn v3_document(resources: &[Resource<'_>], group: &str, version: &str) -> Option<Vec<u8>> {
    let served: Vec<Resource<'_>> = resources
        .iter()
        .filter(|resource| resource.group == group && resource.version == version)
        .copied()
        .collect();
    if served.is_empty() {
        return None;
    }
    let (paths, definitions) = build(&served, Flavour::V3);
    let document = json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {"BearerToken": security()},
        },
    });
    Some(serde_json::to_vec(&document).expect("a value is JSON"))
}

/// `/openapi/v2` as JSON.
pub fn v2_json(resources: &[Resource<'_>]) -> Vec<u8> {
    serde_json::to_vec(&v2(resources)).expect("a value is JSON")
}

/// `/openapi/v2` as gnostic's protobuf, which is the form that client-go asks for.
pub fn v2_protobuf(resources: &[Resource<'_>]) -> Vec<u8> {
    gnostic::encode(&v2(resources))
}

/// The hash of the v2 document, for its `ETag`.
pub fn v2_hash(resources: &[Resource<'_>]) -> String {
    hash(resources.iter())
}

fn v2(resources: &[Resource<'_>]) -> Value {
    let (paths, definitions) = build(resources, Flavour::V2);
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths,
        "definitions": definitions,
        "securityDefinitions": {"BearerToken": security()},
        "security": [{"BearerToken": []}],
    })
}

fn build(resources: &[Resource<'_>], flavour: Flavour) -> (Map<String, Value>, Map<String, Value>) {
    let mut definitions = Definitions::new(flavour);
    for resource in resources {
        definitions.add_resource(resource);
    }
    let paths = paths::build(resources, flavour, &mut definitions);
    (paths, definitions.finish())
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.0"})
}

fn security() -> Value {
    json!({"type": "apiKey", "in": "header", "name": "authorization", "description": "Bearer Token authentication"})
}

/// A hash of what a document is made from: this program's version and the descriptions of the resources. FNV-1a,
/// twice, is enough: nobody gains by a collision.
fn hash<'a>(resources: impl Iterator<Item = &'a Resource<'a>>) -> String {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        fn finish(&self) -> u64 {
            self.0
        }
    }
    let (mut first, mut second) = (Fnv(0xcbf2_9ce4_8422_2325), Fnv(0x8422_2325_cbf2_9ce4));
    let mut write = |text: &str| {
        for hasher in [&mut first, &mut second] {
            hasher.write(text.as_bytes());
            hasher.write_u8(0xff);
        }
    };
    write(env!("CARGO_PKG_VERSION"));
    for resource in resources {
        for text in [
            resource.group,
            resource.version,
            resource.kind,
            resource.plural,
        ] {
            write(text);
        }
        write(if resource.namespaced {
            "namespaced"
        } else {
            ""
        });
        resource
            .verbs
            .iter()
            .for_each(|verb| write(&format!("{verb:?}")));
        resource
            .subresources
            .iter()
            .for_each(|subresource| write(&format!("{subresource:?}")));
        if let Some(schema) = resource.schema {
            write(&schema.to_string());
        }
    }
    format!("{:016X}{:016X}", first.finish(), second.finish())
}

#[cfg(test)]
mod tests;
