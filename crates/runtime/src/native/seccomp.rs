//! Seccomp filters: profiles, our compiler to classic BPF, and a cache of what it made.
//!
//! Enter at [`Cache::of`]. A filter is compiled once per profile and set of capabilities and kept in
//! a sealed memory file that is sent along with every start. libseccomp is the oracle in tests: for
//! every input of a generated table both filters decide alike.

mod compile;
mod default;
#[cfg(test)]
mod oracle;
mod profile;
mod table;

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, SealFlags};
use sha2::{Digest, Sha256};

use super::capabilities;
use super::connection::lock;
use super::sys::BpfInstruction;
use crate::service::{SeccompProfile, SecurityContext};

pub use profile::Profile;

/// Longest profile file that is read.
const PROFILE_BYTES_MAX: u64 = 4 << 20;

/// What a filter is compiled from: hash of the profile's text (none: the default) and the capabilities.
type Key = (Option<[u8; 32]>, u64);

/// Compiled filters by what they were compiled from.
#[derive(Default)]
pub struct Cache {
    filters: Mutex<HashMap<Key, Arc<OwnedFd>>>,
}

impl Cache {
    /// The filter of a container as a descriptor; `None` where it runs unconfined.
    ///
    /// Errors name the profile and what is wrong in it.
    pub fn of(
        &self,
        security: &SecurityContext,
        permitted: u64,
    ) -> Result<Option<Arc<OwnedFd>>, String> {
        let profile = match &security.seccomp {
            _ if security.privileged => return Ok(None),
            SeccompProfile::Unconfined => return Ok(None),
            SeccompProfile::RuntimeDefault => None,
            SeccompProfile::Localhost(path) => Some((path, read(path)?)),
        };
        let capabilities = permitted
            & capabilities::of(
                false,
                &security.add_capabilities,
                &security.drop_capabilities,
            )?;
        let key = (
            profile
                .as_ref()
                .map(|(_, text)| Sha256::digest(text).into()),
            capabilities,
        );
        if let Some(filter) = lock(&self.filters).get(&key) {
            return Ok(Some(filter.clone()));
        }
        let parsed = match profile {
            None => default::profile(capabilities, std::env::consts::ARCH),
            Some((path, text)) => Profile::parse(&text, capabilities)
                .map_err(|e| format!("seccomp profile {}: {e}", path.display()))?,
        };
        let filter = compile::compile(&parsed)?;
        let filter = Arc::new(seal(&filter).map_err(|e| format!("keep the seccomp filter: {e}"))?);
        lock(&self.filters).insert(key, filter.clone());
        Ok(Some(filter))
    }
}

/// The default profile of an unprivileged container in OCI's JSON form, for other runtimes to compare with.
pub fn oci_profile() -> String {
    let held = capabilities::of(false, &[], &[]).unwrap_or(0);
    default::profile(held, std::env::consts::ARCH).to_oci()
}

fn read(path: &PathBuf) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(PROFILE_BYTES_MAX).read_to_end(&mut text))
        .map_err(|e| format!("cannot load seccomp profile \"{}\": {e}", path.display()))?;
    Ok(text)
}

fn seal(filter: &[BpfInstruction]) -> std::io::Result<OwnedFd> {
    let mut bytes = Vec::with_capacity(filter.len() * 8);
    for instruction in filter {
        bytes.extend_from_slice(&instruction.code.to_ne_bytes());
        bytes.extend_from_slice(&[instruction.jump_true, instruction.jump_false]);
        bytes.extend_from_slice(&instruction.k.to_ne_bytes());
    }
    let file = rustix::fs::memfd_create(
        "seccomp-filter",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    let mut file = File::from(file);
    file.write_all(&bytes)?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(file.into())
}
