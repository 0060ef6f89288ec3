//! A kubeconfig with embedded certificates.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{KeyPairPem, PkiError, write_file};

/// What a kubeconfig of one cluster and one user says.
pub struct Kubeconfig<'a> {
    /// `https://host:port`.
    pub server: &'a str,
    pub cluster_name: &'a str,
    pub user_name: &'a str,
    pub ca_certificate_pem: &'a str,
    pub credentials: &'a KeyPairPem,
}

impl Kubeconfig<'_> {
    pub fn to_yaml(&self) -> String {
        let Self {
            server,
            cluster_name,
            user_name,
            ..
        } = self;
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority-data: {ca}\n    server: {server}\n  name: {cluster_name}\n\
             contexts:\n- context:\n    cluster: {cluster_name}\n    user: {user_name}\n  name: {cluster_name}\ncurrent-context: {cluster_name}\npreferences: {{}}\n\
             users:\n- name: {user_name}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n",
            ca = STANDARD.encode(self.ca_certificate_pem),
            certificate = STANDARD.encode(&self.credentials.certificate),
            key = STANDARD.encode(&self.credentials.key),
        )
    }

    /// Writes it with mode 0600; the directory must exist.
    pub fn write(&self, path: &Path) -> Result<(), PkiError> {
        write_file(path, self.to_yaml().as_bytes())
    }
}
