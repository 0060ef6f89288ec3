//! Opening a path that must not lead out of a directory.
//!
//! openat2(2) answers EAGAIN when any rename or mount on the machine raced with a `..` that it
//! followed, because it then cannot vouch for the result. The answer to that is to ask again.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A race is over in microseconds; a machine that renames without end must not hold us forever.
const TRIES_MAX: u32 = 10_000;

/// openat2(2), again for as long as races make it undecided. Errors: those of openat2.
pub fn openat2(
    directory: impl AsFd,
    path: impl rustix::path::Arg + Copy,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    for _ in 1..TRIES_MAX {
        match rustix::fs::openat2(directory.as_fd(), path, flags, mode, resolve) {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            result => return result,
        }
    }
    rustix::fs::openat2(directory.as_fd(), path, flags, mode, resolve)
}
