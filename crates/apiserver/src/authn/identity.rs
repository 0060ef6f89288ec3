//! Who asks: a user name, its groups, and what else a credential says.

use std::collections::BTreeMap;

/// What authentication found out about a caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    pub user: String,
    pub uid: String,
    pub groups: Vec<String>,
    /// Further facts, for example the pod that a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const ANONYMOUS: &str = "system:anonymous";
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
pub const GROUP_MASTERS: &str = "system:masters";
pub const GROUP_NODES: &str = "system:nodes";

impl Identity {
    pub fn new<'a>(user: &str, groups: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            user: user.into(),
            groups: groups.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// A caller that showed no credential.
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, [GROUP_UNAUTHENTICATED])
    }

    /// May do everything; for the parts of the program that upstream runs as cluster admin.
    pub fn admin() -> Self {
        Self::new("system:admin", [GROUP_MASTERS])
    }

    pub fn node(name: &str) -> Self {
        Self::new(&format!("system:node:{name}"), [GROUP_NODES])
    }

    pub fn controller_manager() -> Self {
        Self::new("system:kube-controller-manager", [])
    }

    pub fn scheduler() -> Self {
        Self::new("system:kube-scheduler", [])
    }

    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            [
                "system:serviceaccounts",
                &format!("system:serviceaccounts:{namespace}"),
            ],
        )
    }

    pub fn is_anonymous(&self) -> bool {
        self.user == ANONYMOUS
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// Adds `system:authenticated`, which every caller with a credential is in.
    pub(crate) fn authenticated(mut self) -> Self {
        if !self.is_anonymous() && !self.in_group(GROUP_AUTHENTICATED) {
            self.groups.push(GROUP_AUTHENTICATED.into());
        }
        self
    }
}
