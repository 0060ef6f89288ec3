//! The cluster's own certificate authority and what it issues.
//!
//! Enter at [`Pki::load_or_create`]. Layout of the directory, all files mode 0600:
//! ```text
//! ca.crt ca.key               authority: signs serving and client certificates (10 years)
//! apiserver.crt .key          serving certificate, with the SANs asked for (1 year)
//! <name>.crt .key             client and kubelet certificates, by name (1 year)
//! sa.key                      ECDSA P-256 key that signs service-account tokens
//! ```
//! Invariants: a certificate that is on disk is used again as long as it was issued by this
//! authority, says what was asked for and is not near its end; else it is issued afresh. A file
//! is replaced by a rename, never written in place.
//!
//! Deliberately absent: revocation, certificate signing requests, an external authority.

mod kubeconfig;

pub use kubeconfig::Kubeconfig;

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::authn::Identity;

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_VALID: Duration = Duration::from_secs(3650 * 24 * 3600);
const LEAF_VALID: Duration = Duration::from_secs(365 * 24 * 3600);
/// A leaf certificate with less than this left is issued afresh.
pub(crate) const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot access {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{path} is damaged: {detail}; restore it, or remove the pki directory to make a new authority (all kubeconfigs must then be written again)"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error("cannot issue the certificate {name}")]
    Issue {
        name: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("the certificate authority {path} expired; remove the pki directory to make a new one")]
    AuthorityExpired { path: PathBuf },
}

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct KeyPairPem {
    pub certificate: String,
    pub key: String,
}

/// The authority, its directory, and the keys that the server needs.
pub struct Pki {
    directory: PathBuf,
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    service_account_key_der: Vec<u8>,
}

/// What a certificate is for.
enum Usage {
    Client(Identity),
    Server {
        common_name: String,
        names: Vec<String>,
        group: Option<String>,
    },
}

impl Pki {
    /// Opens the directory; makes it and its authority where they are missing.
    pub fn load_or_create(directory: &Path) -> Result<Self, PkiError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| PkiError::File {
                path: directory.into(),
                source,
            })?;
        let ca_path = directory.join("ca.crt");
        let ca = match read_pair(directory, "ca")? {
            Some(pair) => pair,
            None => {
                let pair = new_authority().map_err(|source| PkiError::Issue {
                    name: "ca".into(),
                    source,
                })?;
                write_pair(directory, "ca", &pair)?;
                pair
            }
        };
        let damaged = |detail: String| PkiError::Damaged {
            path: ca_path.clone(),
            detail,
        };
        let ca_der = CertificateDer::from_pem_slice(ca.certificate.as_bytes())
            .map_err(|error| damaged(error.to_string()))?;
        if expires_at(&ca_der).map_err(damaged)? <= now() {
            return Err(PkiError::AuthorityExpired { path: ca_path });
        }
        let key = KeyPair::from_pem(&ca.key).map_err(|error| PkiError::Damaged {
            path: directory.join("ca.key"),
            detail: error.to_string(),
        })?;
        let issuer =
            Issuer::from_ca_cert_der(&ca_der, key).map_err(|error| damaged(error.to_string()))?;
        let service_account_key_der = service_account_key(directory)?;
        Ok(Self {
            directory: directory.into(),
            ca_pem: ca.certificate,
            ca_der,
            issuer,
            service_account_key_der,
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The authority's certificate; what clients and kubelets trust.
    pub fn ca_certificate_pem(&self) -> &str {
        &self.ca_pem
    }

    pub fn ca_certificate(&self) -> &CertificateDer<'static> {
        &self.ca_der
    }

    /// The key that signs service-account tokens, PKCS#8.
    pub fn service_account_key_pkcs8(&self) -> &[u8] {
        &self.service_account_key_der
    }

    /// The API server's serving certificate; `names` are DNS names and IP addresses.
    pub fn api_server(&self, names: &[String]) -> Result<KeyPairPem, PkiError> {
        self.leaf(
            "apiserver",
            &Usage::Server {
                common_name: "kube-apiserver".into(),
                names: names.to_vec(),
                group: None,
            },
        )
    }

    /// A client certificate, kept under `file_stem`.
    pub fn client(&self, file_stem: &str, identity: &Identity) -> Result<KeyPairPem, PkiError> {
        self.leaf(file_stem, &Usage::Client(identity.clone()))
    }

    /// `kubernetes-admin` in `system:masters`: may do everything.
    pub fn admin(&self) -> Result<KeyPairPem, PkiError> {
        self.client(
            "admin",
            &Identity::new("kubernetes-admin", ["system:masters"]),
        )
    }

    /// The client certificate with which the API server calls kubelets.
    pub fn api_server_kubelet_client(&self) -> Result<KeyPairPem, PkiError> {
        self.client(
            "apiserver-kubelet-client",
            &Identity::new("kube-apiserver-kubelet-client", ["system:masters"]),
        )
    }

    /// `system:node:<name>` in `system:nodes`.
    pub fn kubelet_client(&self, node_name: &str) -> Result<KeyPairPem, PkiError> {
        self.client(
            &format!("kubelet-client-{node_name}"),
            &Identity::node(node_name),
        )
    }

    /// The kubelet's serving certificate for its node's name and addresses.
    pub fn kubelet_serving(
        &self,
        node_name: &str,
        addresses: &[IpAddr],
    ) -> Result<KeyPairPem, PkiError> {
        let mut names = vec![node_name.to_owned()];
        names.extend(addresses.iter().map(IpAddr::to_string));
        self.leaf(
            &format!("kubelet-serving-{node_name}"),
            &Usage::Server {
                common_name: format!("system:node:{node_name}"),
                names,
                group: Some("system:nodes".into()),
            },
        )
    }

    pub fn controller_manager(&self) -> Result<KeyPairPem, PkiError> {
        self.client(
            "controller-manager",
            &Identity::new("system:kube-controller-manager", []),
        )
    }

    pub fn scheduler(&self) -> Result<KeyPairPem, PkiError> {
        self.client("scheduler", &Identity::new("system:kube-scheduler", []))
    }

    fn leaf(&self, name: &str, usage: &Usage) -> Result<KeyPairPem, PkiError> {
        let fingerprint = usage.fingerprint();
        if let Some(pair) = read_pair(&self.directory, name)?
            && self.is_current(name, &pair, &fingerprint)
        {
            return Ok(pair);
        }
        let pair = self.issue(usage).map_err(|source| PkiError::Issue {
            name: name.into(),
            source,
        })?;
        write_pair(&self.directory, name, &pair)?;
        // Beside the certificate: what it was issued for, so that a change of SANs is noticed.
        write_file(
            &self.directory.join(format!("{name}.for")),
            fingerprint.as_bytes(),
        )?;
        Ok(pair)
    }

    fn is_current(&self, name: &str, pair: &KeyPairPem, fingerprint: &str) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(pair.certificate.as_bytes()) else {
            return false;
        };
        let issued_for =
            std::fs::read_to_string(self.directory.join(format!("{name}.for"))).unwrap_or_default();
        issued_for == fingerprint
            && KeyPair::from_pem(&pair.key).is_ok()
            && expires_at(&der).is_ok_and(|end| end > now() + RENEW_BEFORE)
            && is_issued_by(&der, &self.ca_der)
    }

    fn issue(&self, usage: &Usage) -> Result<KeyPairPem, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        validity(&mut params, LEAF_VALID);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.use_authority_key_identifier_extension = true;
        match usage {
            Usage::Client(identity) => {
                params
                    .distinguished_name
                    .push(DnType::CommonName, identity.user.as_str());
                // An X.509 name of rcgen holds one organisation; no built-in identity needs two.
                if let Some(group) = identity.groups.first() {
                    params
                        .distinguished_name
                        .push(DnType::OrganizationName, group.as_str());
                }
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
            Usage::Server {
                common_name,
                names,
                group,
            } => {
                params
                    .distinguished_name
                    .push(DnType::CommonName, common_name.as_str());
                if let Some(group) = group {
                    params
                        .distinguished_name
                        .push(DnType::OrganizationName, group.as_str());
                }
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                for name in names {
                    params.subject_alt_names.push(match name.parse::<IpAddr>() {
                        Ok(address) => SanType::IpAddress(address),
                        Err(_) => SanType::DnsName(name.as_str().try_into()?),
                    });
                }
            }
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(KeyPairPem {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Usage {
    fn fingerprint(&self) -> String {
        match self {
            Self::Client(identity) => {
                format!("client {} {}", identity.user, identity.groups.join(","))
            }
            Self::Server {
                common_name,
                names,
                group,
            } => {
                let mut names = names.clone();
                names.sort();
                format!(
                    "server {common_name} {} {}",
                    group.as_deref().unwrap_or_default(),
                    names.join(",")
                )
            }
        }
    }
}

impl KeyPairPem {
    /// The chain and key as rustls takes them.
    pub fn to_rustls(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), rustls_pki_types::pem::Error>
    {
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()?;
        Ok((chain, PrivateKeyDer::from_pem_slice(self.key.as_bytes())?))
    }
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn new_authority() -> Result<KeyPairPem, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    validity(&mut params, CA_VALID);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(
        DnType::CommonName,
        format!("llmagentos-ca-{:08x}", rand::random::<u32>()),
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let certificate = params.self_signed(&key)?;
    Ok(KeyPairPem {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn validity(params: &mut CertificateParams, valid: Duration) {
    let epoch = date_time_ymd(1970, 1, 1);
    // A day back: clocks of nodes differ.
    params.not_before = epoch + now().saturating_sub(DAY);
    params.not_after = epoch + (now() + valid);
}

fn service_account_key(directory: &Path) -> Result<Vec<u8>, PkiError> {
    let path = directory.join("sa.key");
    let pem = match read_file(&path)? {
        Some(pem) => pem,
        None => {
            let pem = KeyPair::generate()
                .map_err(|source| PkiError::Issue {
                    name: "sa".into(),
                    source,
                })?
                .serialize_pem();
            write_file(&path, pem.as_bytes())?;
            pem
        }
    };
    KeyPair::from_pem(&pem)
        .map(|key| key.serialize_der())
        .map_err(|error| PkiError::Damaged {
            path,
            detail: error.to_string(),
        })
}

/// Unix time of the end of a certificate.
pub(crate) fn expires_at(der: &[u8]) -> Result<Duration, String> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|error| error.to_string())?;
    Ok(Duration::from_secs(
        certificate
            .validity()
            .not_after
            .timestamp()
            .max(0)
            .unsigned_abs(),
    ))
}

/// By name and key identifier; the signature itself is checked by whoever trusts the certificate.
fn is_issued_by(der: &[u8], ca: &[u8]) -> bool {
    let (Ok((_, leaf)), Ok((_, ca))) = (
        x509_parser::parse_x509_certificate(der),
        x509_parser::parse_x509_certificate(ca),
    ) else {
        return false;
    };
    leaf.issuer().as_raw() == ca.subject().as_raw()
}

fn read_pair(directory: &Path, name: &str) -> Result<Option<KeyPairPem>, PkiError> {
    let certificate = read_file(&directory.join(format!("{name}.crt")))?;
    let key = read_file(&directory.join(format!("{name}.key")))?;
    Ok(certificate
        .zip(key)
        .map(|(certificate, key)| KeyPairPem { certificate, key }))
}

fn write_pair(directory: &Path, name: &str, pair: &KeyPairPem) -> Result<(), PkiError> {
    write_file(&directory.join(format!("{name}.key")), pair.key.as_bytes())?;
    write_file(
        &directory.join(format!("{name}.crt")),
        pair.certificate.as_bytes(),
    )
}

fn read_file(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File {
            path: path.into(),
            source,
        }),
    }
}

/// Writes beside the file, syncs, and renames: a crash leaves the old file or the new one.
pub(crate) fn write_file(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        PkiError::File {
            path: path.into(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn certificates_are_kept_until_something_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pki");
        let pki = Pki::load_or_create(&path).unwrap();
        let names = |list: &[&str]| {
            list.iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let first = pki
            .api_server(&names(&["kubernetes", "127.0.0.1"]))
            .unwrap();
        let key = pki.service_account_key_pkcs8().to_vec();
        drop(pki);

        let pki = Pki::load_or_create(&path).unwrap();
        assert_eq!(pki.service_account_key_pkcs8(), key);
        assert_eq!(
            pki.api_server(&names(&["127.0.0.1", "kubernetes"]))
                .unwrap()
                .certificate,
            first.certificate
        );
        let more_names = pki
            .api_server(&names(&["127.0.0.1", "kubernetes", "example"]))
            .unwrap();
        assert_ne!(more_names.certificate, first.certificate);
        for entry in std::fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(
                entry.metadata().unwrap().permissions().mode() & 0o777,
                0o600,
                "{:?}",
                entry.path()
            );
        }
    }

    #[test]
    fn a_new_authority_issues_everything_afresh() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(directory.path()).unwrap();
        let first = pki.admin().unwrap();
        std::fs::remove_file(directory.path().join("ca.crt")).unwrap();
        std::fs::remove_file(directory.path().join("ca.key")).unwrap();
        let second = Pki::load_or_create(directory.path())
            .unwrap()
            .admin()
            .unwrap();
        assert_ne!(first.certificate, second.certificate);
    }

    #[test]
    fn damage_is_named() {
        let directory = tempfile::tempdir().unwrap();
        drop(Pki::load_or_create(directory.path()).unwrap());
        std::fs::write(directory.path().join("ca.key"), "garbage").unwrap();
        let error = Pki::load_or_create(directory.path())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("ca.key is damaged"), "{error}");
    }
}
