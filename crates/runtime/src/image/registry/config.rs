//! `registries.yaml`: mirrors, credentials and TLS of registries. Its form is that of k3s:
//! ```yaml
//! mirrors:
//!   gcr.io:                                # or "*" for every registry not named here
//!     endpoint: ["http://127.0.0.1:5000"]  # tried in order, then the registry itself
//!     rewrite: {"^google-samples/(.*)": "samples/$1"}
//! configs:
//!   "127.0.0.1:5000":                      # host[:port] of an endpoint or registry, or "*"
//!     auth: {username: u, password: p}     # or auth: base64 of u:p, or identity_token
//!     tls: {ca_file: /etc/ca.pem, cert_file: c.pem, key_file: k.pem, insecure_skip_verify: false}
//! ```
//! The file may be absent. It is read again when it changes; while it is wrong, the last good one
//! stays in use and every pull warns about it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use base64::Engine as _;
use regex::Regex;
use rustls::ClientConfig;
use serde::Deserialize;

use super::auth::Credentials;
use super::client::{Address, HttpClient, http_client, tls_config};
use crate::image::reference::Reference;

const ANY: &str = "*";
/// Where Docker Hub's images really are.
const DOCKER_HUB_DOMAIN: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// What is wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistriesError {
    #[error("reading {file}: {reason}", file = .file.display())]
    Read { file: PathBuf, reason: String },
    /// Not YAML, or not of this form; the reason names line and key.
    #[error("{file} is malformed: {reason}", file = .file.display())]
    Malformed { file: PathBuf, reason: String },
    #[error("{file}: {key}: {reason}", file = .file.display())]
    Invalid {
        file: PathBuf,
        key: String,
        reason: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    #[serde(default)]
    mirrors: Option<BTreeMap<String, Option<MirrorForm>>>,
    #[serde(default)]
    configs: Option<BTreeMap<String, Option<HostForm>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MirrorForm {
    #[serde(default, alias = "endpoints")]
    endpoint: Vec<String>,
    #[serde(default)]
    rewrite: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostForm {
    #[serde(default)]
    auth: Option<AuthForm>,
    #[serde(default)]
    tls: Option<TlsForm>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthForm {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// Base64 of `username:password`, as in Docker's config.json.
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identity_token: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsForm {
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default)]
    cert_file: Option<PathBuf>,
    #[serde(default)]
    key_file: Option<PathBuf>,
    #[serde(default)]
    insecure_skip_verify: bool,
}

/// A checked configuration, with the HTTP clients it calls for.
pub struct Registries {
    mirrors: BTreeMap<String, Mirror>,
    hosts: HashMap<String, Host>,
    connect_timeout: std::time::Duration,
    default_client: OnceLock<Result<HttpClient, String>>,
}

#[derive(Default)]
struct Mirror {
    endpoints: Vec<Address>,
    rewrite: Vec<(Regex, String)>,
}

struct Host {
    credentials: Option<Credentials>,
    tls: Option<Arc<ClientConfig>>,
    client: OnceLock<HttpClient>,
}

/// One place to ask for an image.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub address: Address,
    /// The repository as this endpoint knows it.
    pub repository: String,
    /// Set for mirrors: the registry that it stands for.
    pub mirror_of: Option<String>,
    pub credentials: Option<Credentials>,
}

impl Registries {
    /// Checks the file's text. Files that it names are read, too.
    pub fn parse(
        text: &str,
        file: &Path,
        connect_timeout: std::time::Duration,
    ) -> Result<Registries, RegistriesError> {
        let form: FileForm = if text
            .lines()
            .all(|line| line.trim().is_empty() || line.trim().starts_with('#'))
        {
            FileForm::default()
        } else {
            serde_yaml::from_str(text).map_err(|e| RegistriesError::Malformed {
                file: file.to_owned(),
                reason: e.to_string(),
            })?
        };
        let invalid = |key: String, reason: String| RegistriesError::Invalid {
            file: file.to_owned(),
            key,
            reason,
        };
        let mut mirrors = BTreeMap::new();
        for (domain, form) in form.mirrors.unwrap_or_default() {
            let mut mirror = Mirror::default();
            let form = form.unwrap_or_default();
            check_host(&domain).map_err(|reason| invalid(format!("mirrors.{domain:?}"), reason))?;
            for (i, endpoint) in form.endpoint.iter().enumerate() {
                let address = Address::parse(endpoint).map_err(|reason| {
                    invalid(format!("mirrors.{domain:?}.endpoint[{i}]"), reason)
                })?;
                mirror.endpoints.push(address);
            }
            for (pattern, replacement) in form.rewrite {
                let regex = Regex::new(&pattern).map_err(|e| {
                    invalid(
                        format!("mirrors.{domain:?}.rewrite.{pattern:?}"),
                        format!("not a regular expression: {e}"),
                    )
                })?;
                mirror.rewrite.push((regex, replacement));
            }
            mirrors.insert(domain, mirror);
        }
        let mut hosts = HashMap::new();
        for (name, form) in form.configs.unwrap_or_default() {
            check_host(&name).map_err(|reason| invalid(format!("configs.{name:?}"), reason))?;
            let form = form.unwrap_or_default();
            let credentials = form
                .auth
                .map(AuthForm::credentials)
                .transpose()
                .map_err(|(key, reason)| invalid(format!("configs.{name:?}.auth.{key}"), reason))?;
            let tls = form
                .tls
                .map(|tls| tls.config(file))
                .transpose()
                .map_err(|(key, reason)| invalid(format!("configs.{name:?}.tls.{key}"), reason))?;
            hosts.insert(
                name,
                Host {
                    credentials,
                    tls,
                    client: OnceLock::new(),
                },
            );
        }
        Ok(Registries {
            mirrors,
            hosts,
            connect_timeout,
            default_client: OnceLock::new(),
        })
    }

    /// Where to look for an image, in order; `credentials` are the caller's for the registry itself,
    /// and are never shown to a mirror.
    pub fn endpoints(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Vec<Endpoint> {
        let domain = reference.domain();
        let mut endpoints = Vec::new();
        if let Some(mirror) = self.mirrors.get(domain).or_else(|| self.mirrors.get(ANY)) {
            let rewritten = mirror
                .rewrite
                .iter()
                .find(|(regex, _)| regex.is_match(reference.path()));
            let repository = match rewritten {
                Some((regex, replacement)) => regex
                    .replace_all(reference.path(), replacement)
                    .into_owned(),
                None => reference.path().to_owned(),
            };
            for address in &mirror.endpoints {
                // The registry itself under another scheme takes the caller's credentials.
                let is_itself = address.authority == upstream_host(domain);
                let own = if is_itself { credentials } else { None };
                endpoints.push(Endpoint {
                    credentials: own.or(self.credentials(&address.authority)).cloned(),
                    address: address.clone(),
                    repository: repository.clone(),
                    mirror_of: (!is_itself).then(|| domain.to_owned()),
                });
            }
        }
        let host = upstream_host(domain);
        if endpoints.iter().any(|e| e.address.authority == host) {
            return endpoints;
        }
        let credentials = credentials
            .or(self.credentials(host))
            .or(self.credentials(domain));
        // As in Docker: a registry on this very machine may do without TLS.
        let schemes: &[&str] = if is_loopback(host) {
            &["https", "http"]
        } else {
            &["https"]
        };
        for scheme in schemes {
            endpoints.push(Endpoint {
                address: Address {
                    is_https: *scheme == "https",
                    authority: host.to_owned(),
                    path: String::new(),
                },
                repository: reference.path().to_owned(),
                mirror_of: None,
                credentials: credentials.cloned(),
            });
        }
        endpoints
    }

    fn credentials(&self, authority: &str) -> Option<&Credentials> {
        self.host(authority)?.credentials.as_ref()
    }

    fn host(&self, authority: &str) -> Option<&Host> {
        self.hosts.get(authority).or_else(|| self.hosts.get(ANY))
    }

    /// The client for a host, with that host's TLS settings.
    pub fn client(&self, authority: &str) -> Result<HttpClient, String> {
        if let Some(host) = self.host(authority)
            && let Some(tls) = &host.tls
        {
            let client = host
                .client
                .get_or_init(|| http_client(tls.as_ref().clone(), self.connect_timeout));
            return Ok(client.clone());
        }
        self.default_client
            .get_or_init(|| {
                let tls = tls_config(None, None, false)?;
                Ok(http_client(tls, self.connect_timeout))
            })
            .clone()
    }
}

impl AuthForm {
    fn credentials(self) -> Result<Credentials, (&'static str, String)> {
        if !self.identity_token.is_empty() {
            return Ok(Credentials {
                identity_token: self.identity_token,
                ..Credentials::default()
            });
        }
        if !self.auth.is_empty() {
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(self.auth.trim())
                .ok();
            let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
            let (username, password) = text
                .as_deref()
                .and_then(|text| text.split_once(':'))
                .ok_or(("auth", "not the base64 of username:password".to_owned()))?;
            return Ok(Credentials::basic(username, password));
        }
        if self.username.is_empty() {
            return Err((
                "username",
                "missing (or give auth, or identity_token)".into(),
            ));
        }
        Ok(Credentials::basic(&self.username, &self.password))
    }
}

impl TlsForm {
    fn config(self, file: &Path) -> Result<Arc<ClientConfig>, (&'static str, String)> {
        // Relative to the file that names them.
        let directory = file.parent().unwrap_or(Path::new("/"));
        let read = |key: &'static str, path: &Path| {
            let path = directory.join(path);
            std::fs::read(&path).map_err(|e| (key, format!("reading {}: {e}", path.display())))
        };
        let ca = self
            .ca_file
            .as_deref()
            .map(|path| read("ca_file", path))
            .transpose()?;
        let identity = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some((read("cert_file", cert)?, read("key_file", key)?)),
            (None, None) => None,
            (Some(_), None) => return Err(("cert_file", "needs a key_file beside it".into())),
            (None, Some(_)) => return Err(("key_file", "needs a cert_file beside it".into())),
        };
        let key = if ca.is_some() { "ca_file" } else { "cert_file" };
        tls_config(
            ca.as_deref(),
            identity.as_ref().map(|(c, k)| (&c[..], &k[..])),
            self.insecure_skip_verify,
        )
        .map(Arc::new)
        .map_err(|reason| (key, reason))
    }
}

fn check_host(name: &str) -> Result<(), String> {
    let is_host = name == ANY
        || (!name.is_empty()
            && !name.contains('/')
            && format!("{name}/x").parse::<Reference>().is_ok());
    if is_host {
        return Ok(());
    }
    Err("not a registry's host[:port], such as gcr.io or 127.0.0.1:5000".into())
}

fn upstream_host(domain: &str) -> &str {
    if domain == DOCKER_HUB_DOMAIN {
        DOCKER_HUB_HOST
    } else {
        domain
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// The file, read again whenever it changes.
pub(in crate::image) struct RegistriesFile {
    path: PathBuf,
    connect_timeout: std::time::Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None`: never looked. `Some(None)`: the file was absent.
    seen: Option<Option<(SystemTime, u64)>>,
    good: Option<Arc<Registries>>,
    error: Option<RegistriesError>,
}

impl RegistriesFile {
    pub fn new(path: PathBuf, connect_timeout: std::time::Duration) -> Self {
        RegistriesFile {
            path,
            connect_timeout,
            state: Mutex::default(),
        }
    }

    /// What the file says now, leaving what is in force alone.
    pub fn check(&self) -> Result<(), RegistriesError> {
        self.read().map(drop)
    }

    fn read(&self) -> Result<Registries, RegistriesError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => {
                return Err(RegistriesError::Read {
                    file: self.path.clone(),
                    reason: e.to_string(),
                });
            }
        };
        Registries::parse(&text, &self.path, self.connect_timeout)
    }

    /// What is in force, with a warning if the file as it stands is not.
    pub fn current(&self) -> Result<(Arc<Registries>, Option<String>), RegistriesError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = std::fs::metadata(&self.path)
            .ok()
            .and_then(|m| Some((m.modified().ok()?, m.len())));
        // A file that was wrong is read every time: what it names may have appeared.
        if state.seen != Some(seen) || state.error.is_some() {
            state.seen = Some(seen);
            match self.read() {
                Ok(registries) => {
                    state.good = Some(Arc::new(registries));
                    state.error = None;
                }
                Err(error) => state.error = Some(error),
            }
        }
        match (&state.good, &state.error) {
            (Some(good), None) => Ok((Arc::clone(good), None)),
            (Some(good), Some(error)) => Ok((
                Arc::clone(good),
                Some(format!("{error}; its last good version stays in use")),
            )),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => unreachable!("the file was just looked at"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Registries, RegistriesError> {
        Registries::parse(
            text,
            Path::new("/etc/llmagentos/registries.yaml"),
            Duration::from_secs(1),
        )
    }

    #[test]
    fn endpoints_in_order() {
        let registries = parse(
            r#"
mirrors:
  gcr.io:
    endpoint: ["http://127.0.0.1:5000", "https://m.example/proxy/v2/"]
    rewrite: {"^google-samples/(.*)": "samples/$1"}
  docker.io: {endpoint: ["https://registry-1.docker.io"]}
  "*": {endpoint: ["http://cache:80"]}
  plain:5000: {endpoint: ["http://plain:5000"]}
configs:
  127.0.0.1:5000: {auth: {username: u, password: p}}
  gcr.io: {auth: {auth: dTI6cDI=}}
"#,
        )
        .expect("valid");
        let caller = Credentials::basic("caller", "secret");
        #[track_caller]
        fn check(
            registries: &Registries,
            image: &str,
            caller: Option<&Credentials>,
            expect: &[(&str, &str, &str)],
        ) {
            let reference = image.parse().expect("valid");
            let endpoints = registries.endpoints(&reference, caller);
            let endpoints: Vec<_> = endpoints
                .iter()
                .map(|e| {
                    let user = e.credentials.as_ref().map_or("", |c| c.username.as_str());
                    (e.address.to_string(), e.repository.clone(), user.to_owned())
                })
                .collect();
            let endpoints: Vec<_> = endpoints
                .iter()
                .map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str()))
                .collect();
            assert_eq!(endpoints, expect, "{image}");
        }
        check(
            &registries,
            "gcr.io/google-samples/hello-app:1.0",
            Some(&caller),
            &[
                ("http://127.0.0.1:5000", "samples/hello-app", "u"),
                ("https://m.example/proxy", "samples/hello-app", ""),
                ("https://gcr.io", "google-samples/hello-app", "caller"),
            ],
        );
        check(
            &registries,
            "nginx",
            None,
            &[("https://registry-1.docker.io", "library/nginx", "")],
        );
        check(
            &registries,
            "q.io/a",
            None,
            &[("http://cache:80", "a", ""), ("https://q.io", "a", "")],
        );
        check(
            &registries,
            "plain:5000/a",
            Some(&caller),
            &[("http://plain:5000", "a", "caller")],
        );
        let none = parse("# nothing\n").expect("valid");
        check(
            &none,
            "localhost:5000/a",
            None,
            &[
                ("https://localhost:5000", "a", ""),
                ("http://localhost:5000", "a", ""),
            ],
        );
        check(
            &none,
            "nginx",
            None,
            &[("https://registry-1.docker.io", "library/nginx", "")],
        );
    }

    #[test]
    fn errors_name_file_and_key() {
        #[track_caller]
        fn check(text: &str, expect: &[&str]) {
            let error = parse(text).err().map(|e| e.to_string()).expect("refused");
            assert!(error.contains("/etc/llmagentos/registries.yaml"), "{error}");
            for part in expect {
                assert!(error.contains(part), "{error}");
            }
        }
        check("mirrors: [1", &["malformed"]);
        check("mirors: {}", &["mirors"]);
        check("mirrors: {gcr.io: {endpoint: 5}}", &["endpoint"]);
        check(
            "mirrors: {gcr.io: {endpoint: ['ftp://x']}}",
            &["mirrors.\"gcr.io\".endpoint[0]", "http"],
        );
        check(
            "mirrors: {gcr.io: {endpoint: ['http://']}}",
            &["endpoint[0]"],
        );
        check(
            "mirrors: {'http://gcr.io': {}}",
            &["mirrors.\"http://gcr.io\"", "host[:port]"],
        );
        check(
            "mirrors: {gcr.io: {rewrite: {'(': x}}}",
            &["rewrite.\"(\"", "regular expression"],
        );
        check(
            "configs: {gcr.io: {auth: {password: p}}}",
            &["configs.\"gcr.io\".auth.username"],
        );
        check(
            "configs: {gcr.io: {auth: {auth: '!'}}}",
            &["auth.auth", "base64"],
        );
        check(
            "configs: {gcr.io: {tls: {ca_file: /none.pem}}}",
            &["tls.ca_file", "/none.pem"],
        );
        check(
            "configs: {gcr.io: {tls: {cert_file: /none.pem}}}",
            &["tls.cert_file", "key_file"],
        );
        check("configs: {gcr.io: {tls: {insecure: true}}}", &["insecure"]);
    }

    #[test]
    fn the_file_is_read_again_and_errors_keep_the_last_good_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("registries.yaml");
        let file = RegistriesFile::new(path.clone(), Duration::from_secs(1));
        let mirror_count = || {
            file.current()
                .map(|(r, warning)| (r.mirrors.len(), warning.is_some()))
        };
        assert_eq!(mirror_count(), Ok((0, false)));
        std::fs::write(&path, "mirrors: {a.io: {}}").expect("written");
        assert_eq!(mirror_count(), Ok((1, false)));
        std::fs::write(&path, "mirrors: {a.io: {}, b.io: 7}").expect("written");
        assert_eq!(mirror_count(), Ok((1, true)));
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(mirror_count(), Ok((0, false)));
        std::fs::write(&path, "{").expect("written");
        let fresh = RegistriesFile::new(path, Duration::from_secs(1));
        assert!(fresh.current().is_err());
    }

    proptest! {
        #[test]
        fn safety_any_text_is_survived(
            noise in ".{0,60}",
            words in proptest::collection::vec(proptest::sample::select(vec![
                "mirrors:", "configs:", "\n", "  ", "gcr.io", ":", "{", "}", "[", "]", ",", "endpoint", "rewrite",
                "http://a", "auth", "username", "\"", "*", "&a", "*a", "- ", "null", "(", "$1",
            ]), 0..24),
        ) {
            for text in [noise, words.concat()] {
                if let Ok(registries) = parse(&text) {
                    let reference = Reference::parse("gcr.io/a/b:1").expect("a reference");
                    prop_assert!(!registries.endpoints(&reference, None).is_empty());
                }
            }
        }
    }
}
