//! Stops and removes everything that a native runtime ever made, with or without a server running.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use super::Config;
use super::cgroup::{self, Hierarchies};
use super::connection::Connection;
use super::protocol::Request;

/// How long processes may take to die.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the runtime makes in its two directories; anything else there is not its own.
const RUN_ENTRIES: [&str; 7] = [
    "shm",
    "root",
    "resolv",
    "hostname",
    "zygote.sock",
    "zygote.lock",
    "zygote.log",
];
const DATA_ENTRIES: [&str; 3] = ["containers", "sandboxes", "trash"];

/// What there is to remove, in the order of removal; one line each.
struct Found {
    zygote: Option<u32>,
    processes: Vec<i32>,
    mounts: Vec<PathBuf>,
    cgroups: Vec<PathBuf>,
    paths: Vec<PathBuf>,
}

/// What [`reset`] would remove, without touching it.
pub fn planned_reset(config: &Config) -> io::Result<Vec<String>> {
    Ok(find(config)?.lines())
}

/// Removes everything and lists it. Idempotent. Errors name what could not be removed; the rest is gone.
pub fn reset(config: &Config) -> io::Result<Vec<String>> {
    let found = find(config)?;
    let lines = found.lines();
    let mut failed = Vec::new();
    if found.zygote.is_some() {
        let _ = shut_down(&config.run_dir);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let alive = find(config)?;
        let pids: Vec<i32> = alive
            .processes
            .iter()
            .copied()
            .chain(alive.zygote.map(|z| z as i32))
            .collect();
        if pids.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            failed.extend(pids.iter().map(|pid| format!("process {pid} does not end")));
            break;
        }
        for pid in pids {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for mount in &found.mounts {
        if let Err(error) =
            rustix::mount::unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        {
            failed.push(format!("mount {}: {error}", mount.display()));
        }
    }
    for directory in found.cgroups.iter().filter(|d| d.is_dir()) {
        // The kernel lets go of a dead process's cgroup a moment after its end.
        while !cgroup::remove_tree(directory) {
            if Instant::now() > deadline {
                failed.push(format!("cgroup {} is busy", directory.display()));
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    for path in &found.paths {
        let removed = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                failed.push(format!("{}: {error}", path.display()))
            }
            _ => {}
        }
    }
    for directory in [&config.run_dir, &config.data_dir] {
        // Only if nobody else keeps something there.
        let _ = fs::remove_dir(directory);
    }
    if failed.is_empty() {
        Ok(lines)
    } else {
        Err(io::Error::other(failed.join("; ")))
    }
}

/// Ends the zygote, if one runs, with every container that is still in it.
pub fn end_zygote(config: &Config) -> io::Result<()> {
    match shut_down(&config.run_dir) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

impl Found {
    fn lines(&self) -> Vec<String> {
        let mut out = Vec::new();
        out.extend(
            self.processes
                .iter()
                .map(|pid| format!("process {pid} {}", command_of(*pid))),
        );
        out.extend(self.zygote.map(|pid| format!("process {pid} zygote")));
        out.extend(self.mounts.iter().map(|m| format!("mount {}", m.display())));
        out.extend(
            self.cgroups
                .iter()
                .map(|c| format!("cgroup {}", c.display())),
        );
        out.extend(self.paths.iter().map(|p| format!("path {}", p.display())));
        out
    }
}

fn find(config: &Config) -> io::Result<Found> {
    let hierarchies = Hierarchies::discover(&config.cgroup_root)?;
    let zygote = Connection::to_existing(&config.run_dir)
        .ok()
        .map(|(connection, _)| connection.zygote_pid);
    let mut processes = Vec::new();
    let mut cgroups = Vec::new();
    for root in hierarchies.roots() {
        if root.is_dir() {
            processes.extend(cgroup::processes(&root));
            // One line for each directory, deepest first.
            list_directories(&root, &mut cgroups);
        }
    }
    processes.sort_unstable();
    processes.dedup();
    processes.retain(|pid| Some(*pid as u32) != zygote && *pid != std::process::id() as i32);
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let mut mounts: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| {
            RUN_ENTRIES
                .iter()
                .any(|name| path.starts_with(config.run_dir.join(name)))
                || DATA_ENTRIES
                    .iter()
                    .any(|name| path.starts_with(config.data_dir.join(name)))
        })
        .collect();
    mounts.reverse();
    let entries = RUN_ENTRIES
        .iter()
        .map(|n| config.run_dir.join(n))
        .chain(DATA_ENTRIES.iter().map(|n| config.data_dir.join(n)));
    let paths = entries
        .filter(|path| path.symlink_metadata().is_ok())
        .collect();
    Ok(Found {
        zygote,
        processes,
        mounts,
        cgroups,
        paths,
    })
}

fn list_directories(directory: &Path, out: &mut Vec<PathBuf>) {
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        {
            list_directories(&entry.path(), out);
        }
    }
    out.push(directory.to_owned());
}

fn command_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn shut_down(run_dir: &Path) -> io::Result<()> {
    let (connection, _) = Connection::to_existing(run_dir)?;
    connection.post(Request::Shutdown);
    // The end of the stream says that it is gone.
    connection.wait_for_end();
    Ok(())
}
