//! The documents of an image: index, manifest, configuration. OCI image-spec v1.1 and Docker's
//! schema 2, which differ in media types only.
//!
//! Fields that nothing reads are left out; the bytes as received are what is kept and hashed.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// Bytes of the content; refused if negative.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// What a manifest address can answer.
#[derive(Clone, Debug)]
pub enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    #[serde(default, deserialize_with = "null_is_default")]
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: String,
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default, rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Tells an index from a manifest by the document itself; `content_type` breaks no tie, it is
    /// only refused when it contradicts the document (one digest must not mean two things).
    pub fn parse(bytes: &[u8], content_type: &str) -> Result<Document, String> {
        let shape: Shape = serde_json::from_slice(bytes)
            .map_err(|e| format!("manifest is not valid JSON: {e}"))?;
        if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
            return Err(
                "image has the retired manifest schema 1; push it again with a current client"
                    .into(),
            );
        }
        if shape.schema_version != Some(2) {
            return Err(format!(
                "manifest has schemaVersion {}, expected 2",
                shape
                    .schema_version
                    .map_or("none".to_owned(), |v| v.to_string())
            ));
        }
        let says_index = |media_type: &str| matches!(media_type, OCI_INDEX | DOCKER_LIST);
        let says_manifest = |media_type: &str| matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST);
        match (shape.manifests, shape.config) {
            (Some(manifests), None) => {
                if says_manifest(&shape.media_type) || says_manifest(content_type) {
                    return Err("manifest and its media type contradict each other".into());
                }
                Ok(Document::Index(manifests))
            }
            (None, Some(_)) => {
                if says_index(&shape.media_type) || says_index(content_type) {
                    return Err("manifest and its media type contradict each other".into());
                }
                let manifest: Manifest = serde_json::from_slice(bytes)
                    .map_err(|e| format!("manifest is malformed: {e}"))?;
                manifest.check_media_types()?;
                Ok(Document::Manifest(manifest))
            }
            (Some(_), Some(_)) => Err("manifest is an index and an image at once".into()),
            (None, None) => Err("manifest has neither a config nor manifests".into()),
        }
    }
}

impl Manifest {
    fn check_media_types(&self) -> Result<(), String> {
        let config = self.config.media_type.as_str();
        if !matches!(config, "" | OCI_CONFIG | DOCKER_CONFIG) {
            return Err(format!(
                "not a container image: its config has media type {config}"
            ));
        }
        for layer in &self.layers {
            let media_type = layer.media_type.as_str();
            if media_type.contains("+encrypted") {
                return Err(format!(
                    "layer {} is encrypted, which is not supported",
                    layer.digest
                ));
            }
            let is_layer = media_type.is_empty()
                || media_type.starts_with("application/vnd.oci.image.layer.")
                || media_type.starts_with("application/vnd.docker.image.rootfs.diff.tar")
                || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar");
            if !is_layer {
                return Err(format!(
                    "layer {} has media type {media_type}, which is no layer",
                    layer.digest
                ));
            }
        }
        Ok(())
    }
}

/// An image's configuration, as far as anything here reads it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: ProcessConfig,
    #[serde(default)]
    pub rootfs: RootFs,
}

/// How a container of the image starts, if the pod does not say otherwise.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProcessConfig {
    /// `uid`, `name`, `uid:gid`, … or empty for root.
    #[serde(default, deserialize_with = "null_is_default")]
    pub user: String,
    /// `NAME=value`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// `SIGTERM` form or a number.
    #[serde(default, deserialize_with = "null_is_default")]
    pub stop_signal: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// `80/tcp`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    /// Directories that the image declares as volumes.
    #[serde(default, deserialize_with = "null_is_default")]
    pub volumes: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct RootFs {
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<Digest>,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl Platform {
    /// The platform that this program was built for, in OCI's (Go's) names.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "powerpc64" => ("ppc64", ""),
            "x86" => ("386", ""),
            "arm" => ("arm", "v7"),
            other => (other, ""),
        };
        Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.into(),
        }
    }

    /// How well `self` (an image's) runs on `host`: `None` not at all, lower is better.
    fn distance(&self, host: &Platform) -> Option<u32> {
        if self.os != host.os || self.architecture != host.architecture {
            return None;
        }
        let level = |platform: &Platform| -> Option<u32> {
            let default = match platform.architecture.as_str() {
                "arm64" => 8,
                "arm" => 7,
                _ => 1,
            };
            match platform.variant.strip_prefix('v') {
                Some(digits) => digits.split('.').next()?.parse().ok(),
                None if platform.variant.is_empty() => Some(default),
                None => None,
            }
        };
        // A host runs what is as old as itself or older; the nearest below is the best.
        level(host)?.checked_sub(level(self)?)
    }

    /// Whether an image made for `self` runs on `host`; an image that does not say runs.
    pub fn runs_on(&self, host: &Platform) -> bool {
        (self.os.is_empty() || self.os == host.os)
            && (self.architecture.is_empty() || self.architecture == host.architecture)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// An image's configuration, refused if it is for another platform.
pub fn parse_config(bytes: &[u8], host: &Platform) -> Result<ImageConfig, String> {
    let config: ImageConfig = serde_json::from_slice(bytes)
        .map_err(|e| format!("the image's configuration is malformed: {e}"))?;
    let platform = Platform {
        os: config.os.clone(),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
    };
    if !platform.runs_on(host) {
        return Err(format!(
            "no match for platform {host}: the image is for {platform}"
        ));
    }
    Ok(config)
}

/// The index's best manifest for `host`; the error lists what there is.
pub fn choose_platform<'a>(
    manifests: &'a [Descriptor],
    host: &Platform,
) -> Result<&'a Descriptor, String> {
    let best = manifests
        .iter()
        .filter_map(|m| Some((m.platform.as_ref()?.distance(host)?, m)))
        .min_by_key(|(distance, _)| *distance);
    if let Some((_, manifest)) = best {
        return Ok(manifest);
    }
    // An index of one image that names no platform leaves no choice; the image's config is checked later.
    if let [only] = manifests
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let available: Vec<String> = manifests
        .iter()
        .filter_map(|m| m.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(Platform::to_string)
        .collect();
    Err(format!(
        "no match for platform {host} in manifest; the image has {}",
        if available.is_empty() {
            "no platform at all".into()
        } else {
            available.join(", ")
        }
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptor(platform: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::of(platform.unwrap_or_default().as_bytes()),
            size: 1,
            platform: platform.map(|p| {
                let mut parts = p.split('/');
                let mut part = || parts.next().unwrap_or_default().to_owned();
                Platform {
                    os: part(),
                    architecture: part(),
                    variant: part(),
                }
            }),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn chooses_the_platform() {
        #[track_caller]
        fn check(host: (&str, &str), index: &[&str], expect: Option<&str>) {
            let host = Platform {
                os: "linux".into(),
                architecture: host.0.into(),
                variant: host.1.into(),
            };
            let manifests: Vec<_> = index.iter().map(|p| descriptor(Some(p))).collect();
            let chosen = choose_platform(&manifests, &host).ok();
            let chosen = chosen
                .and_then(|d| d.platform.as_ref())
                .map(|p| p.to_string());
            assert_eq!(chosen.as_deref(), expect, "{host} of {index:?}");
        }
        check(
            ("amd64", ""),
            &["linux/arm64", "linux/amd64"],
            Some("linux/amd64"),
        );
        check(("amd64", ""), &["windows/amd64", "unknown/unknown"], None);
        check(
            ("amd64", ""),
            &["linux/amd64/v3", "linux/amd64"],
            Some("linux/amd64"),
        );
        check(("amd64", ""), &["linux/amd64/v3"], None);
        check(
            ("arm64", "v8"),
            &["linux/arm/v7", "linux/arm64"],
            Some("linux/arm64"),
        );
        check(("arm64", "v8"), &["linux/arm64/v8"], Some("linux/arm64/v8"));
        check(
            ("arm", "v7"),
            &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"],
            Some("linux/arm/v6"),
        );
        check(
            ("ppc64le", ""),
            &["linux/ppc64le", "linux/amd64"],
            Some("linux/ppc64le"),
        );
        assert!(choose_platform(&[descriptor(None)], &Platform::host()).is_ok());
    }

    #[test]
    fn parses_documents() {
        #[track_caller]
        fn check(text: &str, content_type: &str, expect: Result<&str, &str>) {
            let answer = Document::parse(text.as_bytes(), content_type).map(|d| match d {
                Document::Index(_) => "index",
                Document::Manifest(_) => "manifest",
            });
            match (&answer, expect) {
                (Ok(a), Ok(b)) => assert_eq!(*a, b),
                (Err(a), Err(b)) => assert!(a.contains(b), "{a}"),
                _ => panic!("{text}: {answer:?}, expected {expect:?}"),
            }
        }
        let digest = Digest::of(b"");
        let d = format!(r#"{{"digest":"{digest}","size":2}}"#);
        check(
            &format!(r#"{{"schemaVersion":2,"config":{d},"layers":[{d}]}}"#),
            "",
            Ok("manifest"),
        );
        check(
            &format!(r#"{{"schemaVersion":2,"config":{d},"layers":null}}"#),
            OCI_MANIFEST,
            Ok("manifest"),
        );
        check(
            &format!(r#"{{"schemaVersion":2,"manifests":[{d}]}}"#),
            OCI_INDEX,
            Ok("index"),
        );
        check(
            &format!(r#"{{"schemaVersion":2,"manifests":[{d}]}}"#),
            OCI_MANIFEST,
            Err("contradict"),
        );
        check(
            &format!(r#"{{"schemaVersion":2,"manifests":[{d}],"config":{d}}}"#),
            "",
            Err("at once"),
        );
        check(r#"{"schemaVersion":1,"fsLayers":[]}"#, "", Err("schema 1"));
        check(r#"{"schemaVersion":2}"#, "", Err("neither"));
        check("{}", "", Err("schemaVersion none"));
        check("[", "", Err("not valid JSON"));
        check(
            r#"{"schemaVersion":2,"config":{"digest":"x","size":1}}"#,
            "",
            Err("checksum"),
        );
        check(
            &format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"application/x-helm","digest":"{digest}","size":2}}}}"#
            ),
            "",
            Err("not a container image"),
        );
    }

    #[test]
    fn config_takes_nulls() {
        let config: ImageConfig =
            serde_json::from_str(r#"{"config":{"User":null,"Env":null,"Cmd":["a"],"Volumes":{"/v":{}}},"rootfs":{"diff_ids":null}}"#)
                .expect("valid");
        assert_eq!(config.config.cmd, ["a"]);
        assert!(config.config.volumes.contains_key("/v"));
    }

    proptest! {
        #[test]
        fn safety_any_document_is_survived(
            noise in ".{0,60}",
            edits in proptest::collection::vec((0usize..600, any::<u8>()), 1..4),
        ) {
            let digest = Digest::of(b"");
            let descriptor = format!("{{\"mediaType\":\"\",\"digest\":\"{digest}\",\"size\":0,\"platform\":{{\"os\":\"linux\",\"architecture\":\"arm\",\"variant\":\"v7\"}}}}");
            for text in [
                format!("{{\"schemaVersion\":2,\"config\":{descriptor},\"layers\":[{descriptor}]}}"),
                format!("{{\"schemaVersion\":2,\"manifests\":[{descriptor},{descriptor}]}}"),
                "{\"os\":\"linux\",\"config\":{\"Env\":[\"a=b\"],\"Labels\":null},\"rootfs\":{\"diff_ids\":[]}}".to_owned(),
                noise,
            ] {
                let mut bytes = text.into_bytes();
                for (at, value) in &edits {
                    let length = bytes.len().max(1);
                    if let Some(byte) = bytes.get_mut(at % length) {
                        *byte = *value;
                    }
                }
                if let Ok(Document::Index(manifests)) = Document::parse(&bytes, "") {
                    let _ = choose_platform(&manifests, &Platform::host());
                }
                let _ = parse_config(&bytes, &Platform::host());
            }
        }
    }
}
