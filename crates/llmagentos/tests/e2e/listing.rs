//! What a machine holds that a cluster could leave behind.

use std::collections::BTreeSet;
use std::path::Path;

use crate::cluster::{cgroup_prefix, directory_prefix};

/// Mounts, cgroups and processes by their command lines. Links, nftables and routes are in the
/// test's network namespace, which ends with it; `network` has its own tests of them.
#[derive(Debug, Default)]
pub struct Listing {
    items: BTreeSet<String>,
}

impl Listing {
    pub fn of_machine() -> Self {
        let mut items = BTreeSet::new();
        let directory = directory_prefix();
        for line in std::fs::read_to_string("/proc/self/mountinfo")
            .unwrap_or_default()
            .lines()
        {
            let target = line.split(' ').nth(4).unwrap_or_default();
            // Other clusters may come and go on this machine meanwhile.
            if target.contains(&directory) {
                items.insert(format!("mount {target}"));
            }
        }
        cgroups(Path::new("/sys/fs/cgroup"), 0, &mut items);
        let own = env!("CARGO_BIN_EXE_llmagentos");
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command_line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command_line = String::from_utf8_lossy(&command_line).replace('\0', " ");
            if command_line.contains(own) && command_line.contains(&directory) {
                items.insert(format!(
                    "process {} {command_line}",
                    entry.file_name().display()
                ));
            }
        }
        Self { items }
    }

    /// What is in `after` and not in this.
    pub fn difference(&self, after: &Self) -> Vec<String> {
        after.items.difference(&self.items).cloned().collect()
    }
}

/// Only what could be ours: groups at the top, and all below one that has our name.
fn cgroups(directory: &Path, depth: usize, items: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if path.to_string_lossy().contains(&cgroup_prefix()) {
            items.insert(format!("cgroup {}", path.display()));
        } else if depth == 0 {
            cgroups(&path, depth + 1, items);
        }
    }
}
