//! Processes beside the zygote for what takes long and nobody should wait for.
//!
//! Enter at [`start`]. Two run the same loop, so that neither delays the other: one makes the
//! namespaces of pods ahead of need, one holds the mount namespaces of containers until after their
//! end: when the last descriptor is closed, the kernel takes the mounts down and waits for RCU (1 to 7
//! ms), which else the exit of the container's last process does. They live in an empty mount
//! namespace, which is also what containers are built in. They end with the zygote's end of the socket.
//!
//! Invariants: at most [`READY_MAX`] sets of namespaces stand ready; without attendants everything
//! still works, in the zygote itself and slower.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::report_socket;
use crate::native::child::root;
use crate::native::sys::{self, Forked};
use crate::native::wire;

/// Sets that stand ready, for pods that come together.
pub const READY_MAX: usize = 4;

/// Fresh namespaces of a pod; loopback is up.
pub struct NamespaceSet {
    pub net: OwnedFd,
    pub uts: OwnedFd,
    pub ipc: OwnedFd,
}

#[derive(Serialize, Deserialize)]
enum Order {
    Make,
    /// Descriptor: the mount namespace of a container. The container's own child sends it: whoever
    /// had a copy and closed it last would wait.
    Hold(String),
    Release(String),
}

#[derive(Serialize, Deserialize)]
enum Report {
    /// Descriptor: the empty mount namespace.
    Ready,
    /// Descriptors: net, uts, ipc.
    Made,
    Failed(String),
}

/// The zygote's end.
pub struct Attendant {
    pub socket: OwnedFd,
    pub pidfd: OwnedFd,
    /// Sets that were asked for and have not come yet.
    pub wanted: usize,
}

/// Starts one; also answers its empty mount namespace. `proc` is the node's `/proc`.
pub fn start(proc: BorrowedFd<'_>) -> io::Result<(Attendant, OwnedFd)> {
    let (ours, theirs) = report_socket()?;
    match sys::fork_into(0, None)? {
        Forked::Child => super::tasks::in_child(|| {
            // Not the zygote's lock, nor its listener, nor what says that it has started.
            if close_all_but([proc.as_raw_fd(), theirs.as_raw_fd()]).is_ok() {
                serve(proc, &theirs);
            }
            sys::exit_now(0)
        }),
        Forked::Parent { pidfd, .. } => {
            drop(theirs);
            rustix::io::ioctl_fionbio(&ours, false)?;
            let answer = wire::receive::<Report>(&ours, &mut Vec::new())?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            let empty = match answer {
                Some((Report::Ready, mut fds)) => fds.pop(),
                Some((Report::Failed(why), _)) => return Err(io::Error::other(why)),
                _ => None,
            };
            let empty = empty.ok_or_else(|| io::Error::other("an attendant did not start"))?;
            let attendant = Attendant {
                socket: ours,
                pidfd,
                wanted: 0,
            };
            Ok((attendant, empty))
        }
    }
}

impl Attendant {
    /// Asks for a set; it comes as an event on the socket.
    pub fn ask(&mut self) {
        if wire::send(&self.socket, &Order::Make, &[]).is_ok() {
            self.wanted += 1;
        }
    }

    /// Hands a container's mount namespace over.
    pub fn hold(&self, container: &str, mounts: &OwnedFd) -> io::Result<()> {
        let order = Order::Hold(container.to_owned());
        wire::send(&self.socket, &order, &[mounts.as_fd()])
    }

    /// Lets a container's mount namespace go.
    pub fn release(&self, container: &str) -> io::Result<()> {
        wire::send(&self.socket, &Order::Release(container.to_owned()), &[])
    }

    /// A set that has come; `None`: nothing there. An error means that this attendant is gone or useless.
    pub fn receive(&mut self) -> io::Result<Option<NamespaceSet>> {
        let (report, fds) = match wire::receive::<Report>(&self.socket, &mut Vec::new()) {
            Ok(Some(message)) => message,
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        self.wanted = self.wanted.saturating_sub(1);
        let mut fds = fds.into_iter();
        match (report, fds.next(), fds.next(), fds.next()) {
            (Report::Made, Some(net), Some(uts), Some(ipc)) => {
                Ok(Some(NamespaceSet { net, uts, ipc }))
            }
            (Report::Failed(why), ..) => Err(io::Error::other(why)),
            _ => Err(io::Error::other("an attendant answered something else")),
        }
    }
}

/// Closes what was inherited above the standard streams. Owners of those descriptors never run again.
fn close_all_but(mut keep: [RawFd; 2]) -> io::Result<()> {
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep.map(|fd| fd as u32) {
        if from < fd {
            sys::close_between(from, fd - 1, false)?;
        }
        from = from.max(fd + 1);
    }
    sys::close_range(from, false)
}

fn serve(proc: BorrowedFd<'_>, socket: &OwnedFd) {
    sys::signals_reset();
    let ready = (|| -> io::Result<(OwnedFd, [OwnedFd; 3])> {
        sys::unshare(libc::CLONE_NEWNS)?;
        root::enter_empty_root()?;
        let home = ["net", "uts", "ipc"].map(|name| namespace(proc, name));
        let [net, uts, ipc] = home;
        Ok((namespace(proc, "mnt")?, [net?, uts?, ipc?]))
    })();
    let home = match ready {
        Ok((empty, home)) => {
            let _ = wire::send(socket, &Report::Ready, &[empty.as_fd()]);
            home
        }
        Err(error) => {
            let why = format!("make an empty mount namespace: {error}");
            let _ = wire::send(socket, &Report::Failed(why), &[]);
            return;
        }
    };
    let mut buffer = Vec::new();
    let mut held: HashMap<String, OwnedFd> = HashMap::new();
    loop {
        match wire::receive::<Order>(socket, &mut buffer) {
            Ok(Some((Order::Make, _))) => {
                let sent = match make(proc, &home) {
                    Ok(fds) => {
                        wire::send(socket, &Report::Made, &fds.each_ref().map(|fd| fd.as_fd()))
                    }
                    Err(error) => wire::send(
                        socket,
                        &Report::Failed(format!("make namespaces ahead: {error}")),
                        &[],
                    ),
                };
                if sent.is_err() {
                    return;
                }
            }
            Ok(Some((Order::Hold(container), mut fds))) => {
                if let Some(mounts) = fds.pop() {
                    held.insert(container, mounts);
                }
            }
            Ok(Some((Order::Release(container), _))) => drop(held.remove(&container)),
            Ok(None) | Err(_) => return,
        }
    }
}

/// New namespaces, and back into our own: the next set must not inherit this pod's host name.
fn make(proc: BorrowedFd<'_>, home: &[OwnedFd; 3]) -> io::Result<[OwnedFd; 3]> {
    const FLAGS: [libc::c_int; 3] = [libc::CLONE_NEWNET, libc::CLONE_NEWUTS, libc::CLONE_NEWIPC];
    sys::unshare(FLAGS.iter().fold(0, |all, flag| all | flag))?;
    let made = (|| {
        sys::loopback_up()?;
        Ok([
            namespace(proc, "net")?,
            namespace(proc, "uts")?,
            namespace(proc, "ipc")?,
        ])
    })();
    for (fd, flag) in home.iter().zip(FLAGS) {
        sys::setns(fd.as_fd(), flag)?;
    }
    made
}

/// One of the calling process's namespaces.
pub fn namespace(proc: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        proc,
        format!("self/ns/{name}"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// The node's `/proc`, to look at oneself from anywhere.
pub fn node_proc() -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        CWD,
        "/proc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
