//! Who asks, from a verified client certificate. Pure.

use x509_parser::prelude::{FromDer, X509Certificate};

/// User (common name) and groups (organizations) of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

impl Identity {
    pub fn of_certificate(der: &[u8]) -> Option<Identity> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject
            .iter_organization()
            .filter_map(|name| name.as_str().ok().map(str::to_owned))
            .collect();
        Some(Identity { user, groups })
    }

    /// May it use the kubelet's API?
    pub fn may_ask(&self, allowed_users: &[String]) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
            || allowed_users.contains(&self.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_masters_and_the_named_may_ask() {
        let identity = |user: &str, group: &str| Identity {
            user: user.into(),
            groups: vec![group.into()],
        };
        let allowed = ["kube-apiserver".to_owned()];
        for (who, expect) in [
            (identity("admin", "system:masters"), true),
            (identity("kube-apiserver", ""), true),
            (identity("system:node:a", "system:nodes"), false),
            (identity("alice", "dev"), false),
        ] {
            assert_eq!(who.may_ask(&allowed), expect, "{who:?}");
        }
    }
}
