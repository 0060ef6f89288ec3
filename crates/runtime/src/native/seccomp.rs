//! Seccomp filters.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::service::SecurityContext;

#[derive(Default)]
pub struct Cache {}

impl Cache {
    pub fn of(&self, _security: &SecurityContext, _permitted: u64) -> Result<Option<Arc<OwnedFd>>, String> {
        Ok(None)
    }
}
