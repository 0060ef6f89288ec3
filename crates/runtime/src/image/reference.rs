//! Image references: what users write (`nginx`, `gcr.io/a/b:1.0@sha256:…`) and what it means.
//!
//! The grammar and the defaults (`docker.io`, `library/`, `latest`) are those of
//! `github.com/distribution/reference`, which Docker, containerd and the kubelet share; so are the
//! words of the errors. A [`Reference`] is always normalised: it has a domain, and a tag or a digest.

use std::fmt;
use std::str::FromStr;

use super::digest::{Digest, DigestError};
use crate::service::ImageError;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_REPOSITORY_PREFIX: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Longest `domain/path`, as upstream limits it.
const NAME_LENGTH_MAX: usize = 255;
const TAG_LENGTH_MAX: usize = 128;
/// Upstream's grammar asks for this many hex digits before it looks at the algorithm.
const DIGEST_HEX_LENGTH_MIN: usize = 32;

/// A normalised image reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("repository name must not be more than {NAME_LENGTH_MAX} characters")]
    NameTooLong,
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Reference {
    /// Parses and normalises; the error carries the text as given.
    pub fn parse(image: &str) -> Result<Reference, ImageError> {
        image
            .parse()
            .map_err(|error: ReferenceError| ImageError::InvalidName {
                image: image.to_owned(),
                reason: error.to_string(),
            })
    }

    /// The registry as named in the reference: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `domain/path`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// `domain/path:tag`, if it has a tag.
    pub fn tagged(&self) -> Option<String> {
        self.tag
            .as_ref()
            .map(|tag| format!("{}/{}:{tag}", self.domain, self.path))
    }

    /// `domain/path@digest` of this repository.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.domain, self.path)
    }

    /// What a registry's manifest address ends with: the digest where there is one, else the tag.
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (domain, remainder) = split_domain(text);
        let (name_and_tag, digest) = match remainder.split_once('@') {
            Some((before, digest)) => (before, Some(digest)),
            None => (remainder, None),
        };
        let (path, tag) = match name_and_tag.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (name_and_tag, None),
        };
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{OFFICIAL_REPOSITORY_PREFIX}/{path}")
        } else {
            path.to_owned()
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(path));
        }
        if !domain_is_valid(domain)
            || !path.split('/').all(path_component_is_valid)
            || !tag.is_none_or(tag_is_valid)
        {
            return Err(ReferenceError::Format);
        }
        let digest = digest.map(parse_digest).transpose()?;
        if domain.len() + 1 + path.len() > NAME_LENGTH_MAX {
            return Err(ReferenceError::NameTooLong);
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG),
            (tag, _) => tag,
        };
        Ok(Reference {
            domain: domain.to_owned(),
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// The first component is a registry if it cannot be a repository's: it has a dot or a port, has an
/// uppercase letter, or is `localhost`.
fn split_domain(text: &str) -> (&str, &str) {
    let Some((first, rest)) = text.split_once('/') else {
        return (DEFAULT_DOMAIN, text);
    };
    let is_domain = first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase());
    match (is_domain, first) {
        (false, _) => (DEFAULT_DOMAIN, text),
        (true, LEGACY_DEFAULT_DOMAIN) => (DEFAULT_DOMAIN, rest),
        (true, _) => (first, rest),
    }
}

fn domain_is_valid(domain: &str) -> bool {
    let (host, port) = if let Some(bracketed) = domain.strip_prefix('[') {
        let Some((address, after)) = bracketed.split_once(']') else {
            return false;
        };
        let address_is_valid =
            !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
        return address_is_valid
            && (after.is_empty() || after.strip_prefix(':').is_some_and(port_is_valid));
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        }
    };
    host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    }) && port.is_none_or(port_is_valid)
}

fn port_is_valid(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// `[a-z0-9]+` joined by single dots, one or two underscores, or any number of dashes.
fn path_component_is_valid(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alphanumeric(*first)
        && alphanumeric(*last)
        && bytes
            .split(|b| alphanumeric(*b))
            .all(|separator| match separator {
                b"" | b"." | b"_" | b"__" => true,
                other => other.iter().all(|b| *b == b'-'),
            })
}

fn tag_is_valid(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !tag.is_empty()
        && tag.len() <= TAG_LENGTH_MAX
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn parse_digest(text: &str) -> Result<Digest, ReferenceError> {
    let hex_is_plausible = text.split_once(':').is_some_and(|(_, hex)| {
        hex.len() >= DIGEST_HEX_LENGTH_MIN && hex.bytes().all(|b| b.is_ascii_hexdigit())
    });
    if !hex_is_plausible {
        return Err(ReferenceError::Format);
    }
    Ok(text.parse::<Digest>()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[track_caller]
    fn check(text: &str, expect: Result<&str, ReferenceError>) {
        let answer = text.parse::<Reference>().map(|r| r.to_string());
        assert_eq!(answer.as_deref(), expect.as_ref().map(|s| *s), "{text}");
    }

    #[test]
    fn normalises_as_docker_does() {
        check("nginx", Ok("docker.io/library/nginx:latest"));
        check("nginx:1.25", Ok("docker.io/library/nginx:1.25"));
        check("a/b", Ok("docker.io/a/b:latest"));
        check("docker.io/nginx", Ok("docker.io/library/nginx:latest"));
        check(
            "index.docker.io/nginx",
            Ok("docker.io/library/nginx:latest"),
        );
        check(
            "gcr.io/google-samples/hello-app:1.0",
            Ok("gcr.io/google-samples/hello-app:1.0"),
        );
        check("localhost/hello-app:1.0", Ok("localhost/hello-app:1.0"));
        check("localhost:5000/a", Ok("localhost:5000/a:latest"));
        check("LOCAL/a", Ok("LOCAL/a:latest"));
        check("[::1]:5000/a/b:x", Ok("[::1]:5000/a/b:x"));
        check("a__b/c.d/e---f", Ok("docker.io/a__b/c.d/e---f:latest"));
        let digest = format!("a@sha256:{HEX}");
        check(&digest, Ok(&format!("docker.io/library/{digest}")));
        let both = format!("q.io/a:t@sha256:{HEX}");
        check(&both, Ok(&both));
    }

    #[test]
    fn refuses_with_upstreams_words() {
        use ReferenceError::*;
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            ":",
            "a:",
            "a@",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a b",
            "a:b:c",
            "..",
            "../a",
            "a/../b",
            "q.io:x/a",
            "-q.io/a",
            "q..io/a",
            "[zz]/a",
            "[::1/a",
            "a:-b",
            "ä",
            "a@sha256:abc",
            "a@b@c",
            "http://a/b",
        ] {
            check(text, Err(Format));
        }
        check("Nginx", Err(Uppercase("library/Nginx".into())));
        check("a/B:1", Err(Uppercase("a/B".into())));
        check(HEX, Err(LooksLikeId(HEX.into())));
        check("a/".repeat(128).trim_end_matches('/'), Err(NameTooLong));
        check(&format!("a:{}", "t".repeat(129)), Err(Format));
        check(
            &format!("a@md5:{}", &HEX[..32]),
            Err(Digest(DigestError::Unsupported)),
        );
        check(
            &format!("a@sha256:{}", &HEX[..40]),
            Err(Digest(DigestError::Length)),
        );
    }

    #[test]
    fn the_error_is_kubelets() {
        let error = Reference::parse("Foo").expect_err("uppercase");
        assert_eq!(
            error.to_string(),
            "couldn't parse image name \"Foo\": invalid reference format: repository name (library/Foo) must be lowercase"
        );
    }

    proptest! {
        #[test]
        fn safety_normal_form_is_stable(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,80}|.{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let normal = reference.to_string();
                prop_assert_eq!(normal.parse::<Reference>(), Ok(reference));
            }
        }
    }
}
