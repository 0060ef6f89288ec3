//! Removes what is no longer needed, off the path of requests: cgroups, writable layers, mounts.
//!
//! One thread takes jobs in order. A cgroup whose processes are still leaving is tried again; what
//! remains at a stop of the server is found again at its next start.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::cgroup::{self, Hierarchies};

/// How long a cgroup may take to become empty.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// One thing to remove.
pub enum Job {
    /// Kills what is in it first.
    Cgroup(String),
    Tree(PathBuf),
    Mount(PathBuf),
    /// Says when everything before it is done.
    Barrier(mpsc::Sender<()>),
}

/// Starts the thread; it ends when the sender is dropped.
pub fn start(hierarchies: Hierarchies) -> mpsc::Sender<Job> {
    let (sender, receiver) = mpsc::channel();
    let body = move || run(&hierarchies, &receiver);
    if let Err(error) = std::thread::Builder::new()
        .name("runtime-cleaner".to_owned())
        .spawn(body)
    {
        tracing::error!(%error, "no thread for cleaning: leftovers wait for the next start");
    }
    sender
}

fn run(hierarchies: &Hierarchies, receiver: &mpsc::Receiver<Job>) {
    let mut waiting: VecDeque<(String, Instant)> = VecDeque::new();
    loop {
        let job = if waiting.is_empty() {
            match receiver.recv() {
                Ok(job) => Some(job),
                Err(_) => return,
            }
        } else {
            match receiver.recv_timeout(RETRY_AFTER) {
                Ok(job) => Some(job),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        };
        waiting.retain(|(relative, since)| {
            if hierarchies.remove(relative) {
                return false;
            }
            if since.elapsed() > PATIENCE {
                tracing::warn!(cgroup = %relative, "processes stay in a cgroup that should be empty");
                return false;
            }
            true
        });
        match job {
            Some(Job::Cgroup(relative)) if hierarchies.remove(&relative) => {}
            Some(Job::Cgroup(relative)) => {
                cgroup::kill_all(&hierarchies.membership(&relative));
                waiting.push_back((relative, Instant::now()));
            }
            Some(Job::Tree(path)) => {
                let removed = if path.is_dir() {
                    std::fs::remove_dir_all(&path)
                } else {
                    std::fs::remove_file(&path)
                };
                if let Err(error) = removed
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %path.display(), %error, "cannot remove");
                }
            }
            Some(Job::Mount(path)) => {
                let _ =
                    rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
                let _ = std::fs::remove_dir(&path);
                if let Some(parent) = path.parent() {
                    let _ = std::fs::remove_dir(parent);
                }
            }
            Some(Job::Barrier(done)) => {
                while !waiting.is_empty() {
                    waiting.retain(|(relative, since)| {
                        !hierarchies.remove(relative) && since.elapsed() < PATIENCE
                    });
                    std::thread::sleep(RETRY_AFTER);
                }
                let _ = done.send(());
            }
            None => {}
        }
    }
}
