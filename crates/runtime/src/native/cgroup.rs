//! Cgroups: v1 (as systemd's hybrid layout mounts it) and v2 behind one face.
//!
//! Enter at [`Hierarchies`]. Everything lives below one directory, the root given at construction,
//! in every hierarchy; nothing above it is written, except that on v2 the controllers are enabled on
//! the way down to it. What a kernel does not offer becomes a warning, never a failure.
//! Of v1's hierarchies containers join only those that limit or count something for them; in the
//! others they stay where the zygote is. Every one that is joined costs a start about 0.1 ms.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::devices::{self, Programs};
use super::protocol::CgroupMembership;
use crate::service::LinuxResources;

/// v1 controllers that containers have a cgroup of their own in.
const V1_CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "hugetlb"];
/// Controllers that containers use, on v2.
const V2_CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "pids", "hugetlb"];
/// Rounds of killing where there is no `cgroup.kill`.
const KILL_ROUNDS_MAX: usize = 16;

/// One mounted v1 hierarchy.
#[derive(Clone, Debug)]
struct V1 {
    /// Base name of its mount point, for example `cpu,cpuacct`.
    name: String,
    mount: PathBuf,
    controllers: BTreeSet<String>,
}

/// The mounted hierarchies and our root in them.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    v1: Vec<V1>,
    unified: Option<PathBuf>,
    /// Relative to every mount point.
    root: PathBuf,
    /// On the unified hierarchy; v1's devices controller where that cannot be had.
    device_programs: Option<Arc<Programs>>,
}

/// Usage of one cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanos: u64,
    pub memory_bytes: u64,
    pub memory_inactive_file_bytes: u64,
    pub memory_rss_bytes: u64,
    pub process_count: u64,
}

impl Hierarchies {
    /// Finds what is mounted. `root` is the directory below which everything is made.
    pub fn discover(root: &Path) -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo")?, root)
    }

    fn parse(mountinfo: &str, root: &Path) -> io::Result<Self> {
        let root: PathBuf = root
            .components()
            .filter(|c| matches!(c, std::path::Component::Normal(_)))
            .collect();
        if root.as_os_str().is_empty() {
            return Err(io::Error::other(
                "the cgroup root must not be the root of the hierarchy",
            ));
        }
        let mut found = Self {
            v1: Vec::new(),
            unified: None,
            root,
            device_programs: None,
        };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(mount) = left.split(' ').nth(4) else {
                continue;
            };
            let mut right = right.split(' ');
            let kind = right.next().unwrap_or("");
            let mount = PathBuf::from(mount);
            if !mount.starts_with("/sys/fs/cgroup") {
                continue;
            }
            match kind {
                "cgroup2" => found.unified = Some(mount),
                "cgroup" => {
                    let name = mount
                        .file_name()
                        .map(|n| n.to_string_lossy().into_owned())
                        .unwrap_or_default();
                    let controllers: BTreeSet<String> = right
                        .nth(1)
                        .unwrap_or("")
                        .split(',')
                        .filter(|o| !matches!(*o, "rw" | "ro" | "xattr" | "clone_children"))
                        .map(str::to_owned)
                        .collect();
                    found.v1.push(V1 {
                        name,
                        mount,
                        controllers,
                    });
                }
                _ => {}
            }
        }
        if found.v1.is_empty() && found.unified.is_none() {
            return Err(io::Error::other(
                "no cgroup hierarchy is mounted below /sys/fs/cgroup",
            ));
        }
        Ok(found)
    }

    /// Whether only the unified hierarchy exists.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }

    fn directory(&self, mount: &Path, relative: &str) -> PathBuf {
        mount.join(&self.root).join(relative.trim_matches('/'))
    }

    /// Makes the zygote's own cgroup and answers its directories: only where services are tracked,
    /// so that stopping the server's service leaves containers alone. From then on device programs
    /// are used where the kernel takes them.
    pub fn prepare(&mut self) -> io::Result<Vec<PathBuf>> {
        const OWN: &str = "zygote";
        let mut directories = Vec::new();
        for hierarchy in self.v1.iter().filter(|h| h.name == "systemd") {
            let directory = self.directory(&hierarchy.mount, OWN);
            make(&directory, &hierarchy.mount, &|_| Ok(()))?;
            directories.push(directory);
        }
        if let Some(mount) = &self.unified {
            let directory = self.directory(mount, OWN);
            self.make_unified(mount, OWN)?;
            // The kernel patches its code when the first program comes and when the last one goes:
            // one that allows everything stays.
            let programs = Programs::default();
            match programs.attach(&directory, &[devices::ALL_ALLOWED.to_owned()]) {
                Ok(()) => self.device_programs = Some(Arc::new(programs)),
                Err(error) => {
                    tracing::info!(%error, "no device programs on cgroups here");
                    if self.is_v2() {
                        self.device_programs = Some(Arc::new(programs));
                    }
                }
            }
            directories.push(directory);
        }
        Ok(directories)
    }

    /// v1 hierarchies that containers join.
    fn joined(&self) -> impl Iterator<Item = &V1> {
        self.v1.iter().filter(|hierarchy| {
            V1_CONTROLLERS
                .iter()
                .copied()
                .chain(self.device_programs.is_none().then_some("devices"))
                .any(|name| hierarchy.controllers.contains(name))
        })
    }

    /// What a process joins to be in the cgroup `relative` (to our root).
    pub fn membership(&self, relative: &str) -> CgroupMembership {
        CgroupMembership {
            v1: self
                .joined()
                .map(|h| (h.name.clone(), self.directory(&h.mount, relative)))
                .collect(),
            unified: self
                .unified
                .as_ref()
                .map(|mount| self.directory(mount, relative)),
        }
    }

    /// Our root directory in every hierarchy.
    pub fn roots(&self) -> Vec<PathBuf> {
        let mounts = self.v1.iter().map(|h| &h.mount).chain(&self.unified);
        mounts.map(|mount| mount.join(&self.root)).collect()
    }

    /// Makes the cgroup and its parents. Idempotent.
    pub fn create(&self, relative: &str) -> io::Result<()> {
        for hierarchy in self.joined() {
            let directory = self.directory(&hierarchy.mount, relative);
            let cpuset = hierarchy.controllers.contains("cpuset");
            make(&directory, &hierarchy.mount, &|made| {
                if cpuset {
                    inherit_cpuset(made)?;
                }
                Ok(())
            })?;
        }
        match &self.unified {
            Some(mount) => self.make_unified(mount, relative),
            None => Ok(()),
        }
    }

    fn make_unified(&self, mount: &Path, relative: &str) -> io::Result<()> {
        let enable = self.v1.is_empty();
        make(&self.directory(mount, relative), mount, &|made| {
            if enable && let Some(parent) = made.parent() {
                enable_controllers(parent);
            }
            Ok(())
        })
    }

    /// Writes limits; what cannot be set is named in `warnings`.
    pub fn apply(&self, relative: &str, resources: &LinuxResources, warnings: &mut Vec<String>) {
        let mut set = |controller: &str, file: &str, value: &str| match self
            .file(controller, relative, file)
        {
            Some(path) => {
                if let Err(error) = write(&path, value) {
                    warnings.push(format!("cgroup {file}={value} was not accepted: {error}"));
                }
            }
            None => warnings.push(format!(
                "cgroup controller {controller} is not available: {file}={value} is not enforced"
            )),
        };
        // Nobody need hear that what was not asked for is not forbidden either.
        let counted = |size: &str| {
            let file = if self.is_v2() {
                "current"
            } else {
                "usage_in_bytes"
            };
            self.file("hugetlb", relative, &format!("hugetlb.{size}.{file}"))
                .is_some_and(|path| path.exists())
        };
        let hugepages = resources
            .hugepage_limits_bytes
            .iter()
            .filter(|(size, bytes)| **bytes > 0 || counted(size));
        if self.is_v2() {
            if let Some(shares) = resources.cpu_shares {
                set("cpu", "cpu.weight", &cpu_weight(shares).to_string());
            }
            if resources.cpu_quota_micros.is_some() || resources.cpu_period_micros.is_some() {
                let quota = resources
                    .cpu_quota_micros
                    .filter(|q| *q > 0)
                    .map_or("max".to_owned(), |q| q.to_string());
                set(
                    "cpu",
                    "cpu.max",
                    &format!("{quota} {}", resources.cpu_period_micros.unwrap_or(100_000)),
                );
            }
            if let Some(limit) = resources.memory_limit_bytes.filter(|l| *l != 0) {
                set(
                    "memory",
                    "memory.max",
                    &if limit < 0 {
                        "max".to_owned()
                    } else {
                        limit.to_string()
                    },
                );
                let swap = self.file("memory", relative, "memory.swap.max");
                if let (true, Some(swap)) = (limit > 0, swap.filter(|s| s.exists())) {
                    let _ = write(&swap, "0");
                }
            }
            for (size, bytes) in hugepages {
                set(
                    "hugetlb",
                    &format!("hugetlb.{size}.max"),
                    &bytes.to_string(),
                );
            }
            for (file, value) in &resources.unified {
                let controller = file.split('.').next().unwrap_or("");
                let path = self.file(controller, relative, file);
                // Where the kernel does not count swap, there is none to limit.
                let no_swap = file == "memory.swap.max" && path.is_some_and(|p| !p.exists());
                if file.contains('/') || no_swap {
                    continue;
                }
                set(controller, file, value);
            }
        } else {
            if let Some(shares) = resources.cpu_shares {
                set("cpu", "cpu.shares", &shares.max(2).to_string());
            }
            if let Some(period) = resources.cpu_period_micros.filter(|p| *p > 0) {
                set("cpu", "cpu.cfs_period_us", &period.to_string());
            }
            if let Some(quota) = resources.cpu_quota_micros.filter(|q| *q != 0) {
                set("cpu", "cpu.cfs_quota_us", &quota.to_string());
            }
            if let Some(limit) = resources.memory_limit_bytes.filter(|l| *l != 0) {
                let with_swap = self.file("memory", relative, "memory.memsw.limit_in_bytes");
                let plain = self.file("memory", relative, "memory.limit_in_bytes");
                let text = limit.to_string();
                // The limit with swap must never be below the one without: lowered first, or raised last.
                let lowered = plain.is_some_and(|path| write(&path, &text).is_ok());
                if let Some(path) = &with_swap {
                    let _ = write(path, &text);
                }
                if !lowered {
                    set("memory", "memory.limit_in_bytes", &text);
                }
            }
            for (size, bytes) in hugepages {
                set(
                    "hugetlb",
                    &format!("hugetlb.{size}.limit_in_bytes"),
                    &bytes.to_string(),
                );
            }
        }
        if let Some(cpus) = resources.cpuset_cpus.as_ref().filter(|c| !c.is_empty()) {
            set("cpuset", "cpuset.cpus", cpus);
        }
        if let Some(limit) = resources.pids_limit.filter(|l| *l != 0) {
            set(
                "pids",
                "pids.max",
                &if limit < 0 {
                    "max".to_owned()
                } else {
                    limit.to_string()
                },
            );
        }
    }

    /// Path of a controller's file; `None` if the controller is not there.
    fn file(&self, controller: &str, relative: &str, file: &str) -> Option<PathBuf> {
        if self.is_v2() {
            let directory = self.directory(self.unified.as_ref()?, relative);
            return Some(directory.join(file));
        }
        let hierarchy = self
            .v1
            .iter()
            .find(|h| h.controllers.contains(controller))?;
        Some(self.directory(&hierarchy.mount, relative).join(file))
    }

    /// Restricts devices to `allowed` (`c 1:3 rwm` lines, as v1 takes them).
    pub fn restrict_devices(&self, relative: &str, allowed: &[String], warnings: &mut Vec<String>) {
        let result = if let (Some(programs), Some(mount)) = (&self.device_programs, &self.unified) {
            programs.attach(&self.directory(mount, relative), allowed)
        } else if let Some(hierarchy) = self.v1.iter().find(|h| h.controllers.contains("devices")) {
            let directory = self.directory(&hierarchy.mount, relative);
            (|| {
                write(&directory.join("devices.deny"), "a")?;
                let mut allow = fs::OpenOptions::new()
                    .write(true)
                    .open(directory.join("devices.allow"))?;
                allowed
                    .iter()
                    .try_for_each(|line| allow.write_all(line.as_bytes()))
            })()
        } else {
            Err(io::Error::other("no devices controller"))
        };
        if let Err(error) = result {
            warnings.push(format!("access to devices is not restricted: {error}"));
        }
    }

    /// What the cgroup uses; zero where a controller is missing.
    pub fn usage(&self, relative: &str) -> Usage {
        let number = |controller: &str, file: &str| -> u64 {
            self.file(controller, relative, file)
                .and_then(|path| fs::read_to_string(path).ok())
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0)
        };
        let table = |controller: &str, file: &str| {
            self.file(controller, relative, file)
                .and_then(|path| fs::read_to_string(path).ok())
                .unwrap_or_default()
        };
        if self.is_v2() {
            let memory = table("memory", "memory.stat");
            Usage {
                cpu_nanos: entry(&table("cpu", "cpu.stat"), "usage_usec") * 1000,
                memory_bytes: number("memory", "memory.current"),
                memory_inactive_file_bytes: entry(&memory, "inactive_file"),
                memory_rss_bytes: entry(&memory, "anon"),
                process_count: number("pids", "pids.current"),
            }
        } else {
            let memory = table("memory", "memory.stat");
            Usage {
                cpu_nanos: number("cpuacct", "cpuacct.usage"),
                memory_bytes: number("memory", "memory.usage_in_bytes"),
                memory_inactive_file_bytes: entry(&memory, "total_inactive_file"),
                memory_rss_bytes: entry(&memory, "total_rss"),
                process_count: number("pids", "pids.current"),
            }
        }
    }

    /// Removes the cgroup and what is below it; `false` while a process is still in it.
    pub fn remove(&self, relative: &str) -> bool {
        // In every hierarchy: an earlier server may have joined others.
        let mounts = self.v1.iter().map(|h| &h.mount).chain(&self.unified);
        let left = mounts.filter(|mount| !remove_tree(&self.directory(mount, relative)));
        left.count() == 0
    }
}

/// Makes missing directories from below `top` down, calling `each` on every new one.
fn make(directory: &Path, top: &Path, each: &dyn Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    match fs::create_dir(directory) {
        Ok(()) => each(directory),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = directory
                .parent()
                .filter(|p| p.starts_with(top) && *p != top);
            make(parent.ok_or(error)?, top, each)?;
            match fs::create_dir(directory) {
                Ok(()) => each(directory),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", directory.display()),
        )),
    }
}

/// A new v1 cpuset is empty, and nothing can join it, unless its parent says that it is copied.
fn inherit_cpuset(made: &Path) -> io::Result<()> {
    let Some(parent) = made.parent() else {
        return Ok(());
    };
    let file = "cpuset.mems";
    if fs::read(made.join(file))?.iter().any(u8::is_ascii_digit) {
        return Ok(());
    }
    for file in ["cpuset.cpus", file] {
        let value = fs::read(parent.join(file))?;
        write_bytes(&made.join(file), &value)?;
    }
    // What is made below needs no copying by hand.
    write_bytes(&made.join("cgroup.clone_children"), b"1")
}

fn enable_controllers(directory: &Path) {
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let available = read("cgroup.controllers");
    let enabled = read("cgroup.subtree_control");
    for controller in V2_CONTROLLERS {
        let has = |list: &str| list.split_whitespace().any(|c| c == controller);
        if has(&available) && !has(&enabled) {
            // One at a time: one that cannot be had must not cost the others.
            let _ = write(
                &directory.join("cgroup.subtree_control"),
                &format!("+{controller}"),
            );
        }
    }
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    write_bytes(path, value.as_bytes())
}

fn write_bytes(path: &Path, value: &[u8]) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value)
}

/// Value of a `key value` line.
fn entry(table: &str, key: &str) -> u64 {
    table
        .lines()
        .find_map(|line| line.split_once(' ').filter(|(k, _)| *k == key))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

/// v1's 2..262144 onto v2's 1..10000, through 1024 and 100, the defaults of both: the formula of the
/// OCI runtimes since 2025, with which one CPU of a pod weighs as much as a service of the node.
fn cpu_weight(shares: u64) -> u64 {
    let power = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (power * power + 125.0 * power) / 612.0 - 7.0 / 34.0;
    // The three points are whole numbers up to rounding.
    (10f64.powf(exponent) - 1e-9).ceil() as u64
}

/// Processes that the OOM killer has ended in this cgroup.
pub fn oom_kill_count(membership: &CgroupMembership) -> u64 {
    if membership.v1.is_empty() {
        let events = membership
            .unified
            .as_ref()
            .and_then(|d| fs::read_to_string(d.join("memory.events")).ok());
        return entry(&events.unwrap_or_default(), "oom_kill");
    }
    let memory = membership
        .v1
        .iter()
        .find(|(name, _)| name.split(',').any(|n| n == "memory"));
    let control = memory.and_then(|(_, d)| fs::read_to_string(d.join("memory.oom_control")).ok());
    entry(&control.unwrap_or_default(), "oom_kill")
}

/// Kills every process of the cgroup and of those below it.
pub fn kill_all(membership: &CgroupMembership) {
    if let Some(directory) = &membership.unified
        && write(&directory.join("cgroup.kill"), "1").is_ok()
    {
        return;
    }
    let directory = membership
        .v1
        .iter()
        .find(|(name, _)| name == "pids")
        .or(membership.v1.first());
    let Some((_, directory)) = directory else {
        return;
    };
    for _ in 0..KILL_ROUNDS_MAX {
        let pids = processes(directory);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// Processes in a cgroup and below.
pub fn processes(directory: &Path) -> Vec<i32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let mut out: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        {
            out.extend(processes(&entry.path()));
        }
    }
    out
}

/// Removes a cgroup directory, deepest first; `true` when it is gone.
pub fn remove_tree(directory: &Path) -> bool {
    if fs::remove_dir(directory).is_ok() {
        return true;
    }
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        {
            remove_tree(&entry.path());
        }
    }
    match fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn layouts() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let found = Hierarchies::parse(hybrid, Path::new("/kubepods")).unwrap();
        assert!(!found.is_v2());
        let membership = found.membership("burstable/podx");
        assert_eq!(
            membership.unified.unwrap(),
            Path::new("/sys/fs/cgroup/unified/kubepods/burstable/podx")
        );
        // The systemd hierarchy is not joined.
        let v1: Vec<_> = membership
            .v1
            .iter()
            .map(|(_, path)| path.as_path())
            .collect();
        assert_eq!(
            v1,
            [Path::new(
                "/sys/fs/cgroup/cpu,cpuacct/kubepods/burstable/podx"
            )]
        );
        assert!(
            found
                .file("cpuacct", "x", "f")
                .unwrap()
                .starts_with("/sys/fs/cgroup/cpu,cpuacct")
        );
        assert!(found.file("memory", "x", "f").is_none());
        let unified = "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert!(
            Hierarchies::parse(unified, Path::new("/kubepods"))
                .unwrap()
                .is_v2()
        );
        assert!(Hierarchies::parse(unified, Path::new("/")).is_err());
        assert!(Hierarchies::parse("", Path::new("/kubepods")).is_err());
    }

    #[test]
    fn weights() {
        for (shares, weight) in [
            (0, 1),
            (2, 1),
            (102, 17),
            (512, 59),
            (1024, 100),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }
}
