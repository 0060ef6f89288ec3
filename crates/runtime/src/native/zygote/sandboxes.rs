//! Sandboxes of the zygote: the namespaces that a pod's containers share.
//!
//! Enter at [`Zygote::create_sandbox`]. The namespaces were made ahead, where the pod asks for nothing
//! special; else a child makes them, reports their descriptors and ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::process::Signal;

use super::attendant::NamespaceSet;
use super::tasks::{cgroup_target, in_child};
use super::{ReplyTo, Source, Zygote, report_socket};
use crate::native::child::{self, Reporter};
use crate::native::protocol::{Answer, Failure, Report, SandboxRecord, SandboxSpec};
use crate::native::sys::{self, Forked};
use crate::native::wire;

pub(super) struct Sandbox {
    pub(super) record: SandboxRecord,
    pub(super) net: Option<OwnedFd>,
    pub(super) uts: Option<OwnedFd>,
    pub(super) ipc: Option<OwnedFd>,
    pub(super) pause: Option<OwnedFd>,
    pub(super) report: Option<(u64, OwnedFd, ReplyTo)>,
    failure: Option<Failure>,
}

impl Zygote {
    pub(super) fn create_sandbox(
        &mut self,
        reply_to: ReplyTo,
        spec: SandboxSpec,
    ) -> Result<(), Failure> {
        if self.sandboxes.contains_key(&spec.id) {
            return Err(Failure {
                not_found: false,
                start: false,
                message: format!("sandbox {} exists already", spec.id),
            });
        }
        let fail = |e: io::Error| Failure::io("create the sandbox", &e);
        if spec.own_net && spec.own_ipc && !spec.shared_pid && spec.sysctls.is_empty() {
            self.read_maker();
            if let Some(set) = self.ready.pop() {
                let named = self.name_namespace(&set, &spec.hostname);
                named.map_err(|e| Failure::io("set the hostname", &e))?;
                let record = SandboxRecord {
                    id: spec.id.clone(),
                    net_fd: Some(set.net.as_raw_fd()),
                    pause_pid: None,
                };
                let sandbox = Sandbox {
                    record: record.clone(),
                    net: Some(set.net),
                    uts: Some(set.uts),
                    ipc: Some(set.ipc),
                    pause: None,
                    report: None,
                    failure: None,
                };
                self.sandboxes.insert(spec.id, sandbox);
                self.reply(reply_to, Ok(Answer::Sandbox(record)));
                if self.ready.is_empty() {
                    self.order_namespaces();
                }
                return Ok(());
            }
        }
        let (ours, theirs) = report_socket().map_err(fail)?;
        let mut flags = 0;
        if spec.own_net {
            flags |= libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
        }
        if spec.own_ipc {
            flags |= libc::CLONE_NEWIPC;
        }
        let cgroup = if spec.shared_pid {
            cgroup_target(&spec.cgroup).map_err(fail)?
        } else {
            None
        };
        match sys::fork_into(flags, cgroup.as_ref().map(|c| c.as_fd())).map_err(fail)? {
            Forked::Child => in_child(|| child::sandbox(&spec, &Reporter(theirs))),
            Forked::Parent { pidfd, .. } => {
                drop(theirs);
                self.reap_later(pidfd);
                let token = self
                    .watch(&ours, Source::SandboxReport(spec.id.clone()))
                    .map_err(fail)?;
                self.sandboxes.insert(
                    spec.id.clone(),
                    Sandbox {
                        record: SandboxRecord {
                            id: spec.id,
                            net_fd: None,
                            pause_pid: None,
                        },
                        net: None,
                        uts: None,
                        ipc: None,
                        pause: None,
                        report: Some((token, ours, reply_to)),
                        failure: None,
                    },
                );
                Ok(())
            }
        }
    }

    /// Gives a set that was made ahead its pod's host name.
    fn name_namespace(&self, set: &NamespaceSet, hostname: &str) -> io::Result<()> {
        if hostname.is_empty() {
            return Ok(());
        }
        sys::setns(set.uts.as_fd(), libc::CLONE_NEWUTS)?;
        let named = rustix::system::sethostname(hostname.as_bytes());
        sys::setns(self.uts.as_fd(), libc::CLONE_NEWUTS)?;
        Ok(named?)
    }

    pub(super) fn read_sandbox_report(&mut self, id: &str) {
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(sandbox) = self.sandboxes.get_mut(id) {
            let Some((_, socket, _)) = &sandbox.report else {
                break;
            };
            match wire::receive::<Report>(socket, &mut buffer) {
                Ok(Some((Report::Namespaces, fds))) => {
                    let mut fds = fds.into_iter();
                    // Net and uts come together; ipc may come alone.
                    if fds.len() >= 2 {
                        sandbox.net = fds.next();
                        sandbox.uts = fds.next();
                    }
                    sandbox.ipc = fds.next();
                    sandbox.record.net_fd = sandbox.net.as_ref().map(|fd| fd.as_raw_fd());
                }
                Ok(Some((Report::Successor { pid }, mut fds))) => {
                    sandbox.pause = fds.pop();
                    sandbox.record.pause_pid = Some(pid);
                }
                Ok(Some((Report::Error { start, message }, _))) => {
                    sandbox.failure = Some(Failure {
                        not_found: false,
                        start,
                        message,
                    });
                }
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(None) | Err(_) => {
                    self.sandbox_made(id);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    fn sandbox_made(&mut self, id: &str) {
        let Some(sandbox) = self.sandboxes.get_mut(id) else {
            return;
        };
        let Some((token, socket, reply_to)) = sandbox.report.take() else {
            return;
        };
        let result = match sandbox.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(Answer::Sandbox(sandbox.record.clone())),
        };
        self.unwatch(token, &socket);
        if result.is_err() {
            self.remove_sandbox(id);
        }
        self.reply(reply_to, result);
    }

    pub(super) fn remove_sandbox(&mut self, id: &str) {
        if let Some(mut sandbox) = self.sandboxes.remove(id) {
            if let Some(pause) = sandbox.pause.take() {
                let _ = rustix::process::pidfd_send_signal(&pause, Signal::KILL);
                self.reap_later(pause);
            }
            if let Some((token, socket, _)) = sandbox.report.take() {
                self.unwatch(token, &socket);
            }
        }
    }
}
