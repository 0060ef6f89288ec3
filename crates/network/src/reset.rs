//! Removing what this crate made on a machine.

use std::path::PathBuf;

use crate::pod_network::reset_links;
use crate::{NetworkError, firewall, nft, sysctl};

#[derive(Clone, Debug)]
pub struct ResetConfig {
    pub bridge: String,
    pub table: String,
    pub state_dir: PathBuf,
}

/// Removes rules, links and settings, or only lists them. Answers what was (or would be) removed. Idempotent.
pub fn reset(config: &ResetConfig, dry_run: bool) -> Result<Vec<String>, NetworkError> {
    let mut removed = Vec::new();
    let had_table = if dry_run {
        nft::table_exists(&config.table)?
    } else {
        nft::delete_table(&config.table)?
    };
    if had_table {
        removed.push(format!("nftables table ip {}", config.table));
    }
    removed.extend(reset_links(&config.bridge, dry_run)?);
    removed.extend(sysctl::restore_forwarding(&config.state_dir, dry_run)?);
    // Last: it is another program that may fail, and what is ours is gone by then.
    removed.extend(firewall::close(&config.bridge, dry_run)?);
    Ok(removed)
}
