//! TLS of the listener: the serving certificate, and client certificates.
//!
//! A client certificate is asked for but not demanded, and the handshake checks only that the
//! client holds its key. Whether it was issued by our authority and is within its time is checked
//! after the handshake ([`ClientVerifier::identity`]), so that a foreign or expired certificate
//! gets a 401 that says so, where a failed handshake would say nothing.

use std::sync::{Arc, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::authn::Identity;
use crate::pki::KeyPairPem;

/// Why the TLS side cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot use the certificate")]
    Certificate(#[from] rustls_pki_types::pem::Error),
    #[error("cannot set up TLS")]
    Tls(#[from] Error),
    #[error("cannot use the certificate authority")]
    Authority(#[from] rustls::server::VerifierBuilderError),
}

/// The one crypto provider of the process.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()))
}

/// The serving certificate; replaced without a restart when it is renewed.
#[derive(Debug)]
pub struct ServingCertificate {
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServingCertificate {
    pub fn new(pair: &KeyPairPem) -> Result<Self, TlsError> {
        Ok(Self {
            current: RwLock::new(certified_key(pair)?),
        })
    }

    pub fn replace(&self, pair: &KeyPairPem) -> Result<(), TlsError> {
        let key = certified_key(pair)?;
        *self
            .current
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = key;
        Ok(())
    }
}

fn certified_key(pair: &KeyPairPem) -> Result<Arc<CertifiedKey>, TlsError> {
    let (chain, key) = pair.to_rustls()?;
    Ok(Arc::new(CertifiedKey::from_der(
        chain,
        key,
        &crypto_provider(),
    )?))
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(
            self.current
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .clone(),
        )
    }
}

/// Checks client certificates against our authority.
#[derive(Debug)]
pub struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ClientVerifier {
    pub fn new(ca: &CertificateDer<'static>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let provider = crypto_provider();
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()?;
        Ok(Self { inner, provider })
    }

    /// The identity that a certificate proves: CN is the user, each O a group.
    pub fn identity(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, String> {
        let (leaf, intermediates) = chain.split_first().ok_or("no certificate")?;
        self.inner
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(|error| match error {
                Error::InvalidCertificate(reason) => format!("x509: {reason}"),
                other => other.to_string(),
            })?;
        let (_, certificate) =
            x509_parser::parse_x509_certificate(leaf).map_err(|error| format!("x509: {error}"))?;
        let subject = certificate.subject();
        let user = subject
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .filter(|name| !name.is_empty());
        let user = user.ok_or("x509: the subject has no common name, which is the user's name")?;
        let groups: Vec<&str> = subject
            .iter_organization()
            .filter_map(|group| group.as_str().ok())
            .collect();
        Ok(Identity::new(user, groups).authenticated())
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // Checked after the handshake, see the module header.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

pub fn server_config(
    certificate: Arc<ServingCertificate>,
    clients: Arc<ClientVerifier>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
