//! Network namespaces of a test's own.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// Runs a test in a network namespace that ends with its thread.
pub fn in_new_namespace(test: impl FnOnce() + Send + 'static) {
    let result = std::thread::spawn(|| {
        unshare_network();
        test();
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[expect(
    deprecated,
    reason = "its danger is CLONE_FILES; a new network namespace touches no memory"
)]
fn unshare_network() {
    rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
}

/// A namespace kept alive by this handle, as a sandbox's is.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        Self(
            std::thread::spawn(|| {
                unshare_network();
                File::open("/proc/thread-self/ns/net").unwrap()
            })
            .join()
            .unwrap(),
        )
    }

    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let netns = self.0.try_clone().unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }
}
