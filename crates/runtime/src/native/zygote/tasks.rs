//! Containers and exec'ed commands of the zygote: start, output, end.
//!
//! ```text
//! request -> fork -> child reports (warnings, terminal, successor) -> end of reports = exec happened -> answer
//!                                   \-> error -> answer with the failure, nothing remains
//! running -> pidfd readable -> output drained -> exit recorded and told; a container's record stays until Forget
//! ```

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::log::{Log, Stream};
use super::{ReplyTo, Source, Zygote, now_nanos, report_socket};
use crate::native::child::{self, Fault, Namespaces, Places, Reporter};
use crate::native::protocol::{
    Answer, CgroupMembership, ContainerRecord, ContainerSpec, Exit, Failure, FromZygote,
    PidNamespace, ProcessSpec, Report,
};
use crate::native::sys::{self, Forked};
use crate::native::{cgroup, wire};

/// Most turns that the output of an ended process is drained for: pipes hold 64 KiB, others may still write.
const DRAIN_TURNS_MAX: usize = 64;

/// Most readers attached to one container; the oldest makes room.
const ATTACHED_MAX: usize = 16;

pub(super) struct Task {
    pid: u32,
    pidfd: OwnedFd,
    pidfd_token: u64,
    /// Until exec has happened.
    report: Option<(u64, OwnedFd, ReplyTo)>,
    failure: Option<Failure>,
    warnings: Vec<String>,
    started_at_nanos: i64,
    terminal: Option<OwnedFd>,
    cgroup: CgroupMembership,
    exit: Option<Exit>,
    kind: Kind,
}

enum Kind {
    Container(Box<ContainerState>),
    Exec { client: u64 },
}

struct ContainerState {
    pid_namespace: PidNamespace,
    stdin: Option<OwnedFd>,
    stdin_once: bool,
    /// Read ends of stdout and stderr; the terminal's copy stands in the first.
    outputs: [Option<(u64, OwnedFd)>; 2],
    log: Option<Log>,
    attached: Vec<[Option<OwnedFd>; 2]>,
}

impl Failure {
    pub(super) fn not_found(kind: &str, id: &str) -> Self {
        Self {
            not_found: true,
            start: false,
            message: format!("{kind} {id} is not known to the zygote"),
        }
    }
    pub(super) fn io(what: &str, error: &io::Error) -> Self {
        Self {
            not_found: false,
            start: false,
            message: format!("{what}: {error}"),
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self {
            not_found: false,
            start: fault.start,
            message: fault.message,
        }
    }
}

/// Exit code and signal of an ended child; `None` if it still runs.
pub(super) fn wait(pidfd: &OwnedFd) -> Option<(i32, i32)> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options) {
        Ok(Some(status)) => {
            if let Some(code) = status.exit_status() {
                Some((code, 0))
            } else {
                let signal = status.terminating_signal().unwrap_or(libc::SIGKILL);
                Some((128 + signal, signal))
            }
        }
        Ok(None) => None,
        Err(_) => Some((255, 0)),
    }
}

pub(super) fn cgroup_target(membership: &CgroupMembership) -> io::Result<Option<OwnedFd>> {
    match &membership.unified {
        None => Ok(None),
        Some(path) => Ok(Some(rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?)),
    }
}

/// Runs what a child does; nothing of the zygote's loop may ever run in it.
pub(super) fn in_child(body: impl FnOnce()) -> ! {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    sys::exit_now(70)
}

impl Zygote {
    pub(super) fn hello(&self) -> Answer {
        Answer::Hello {
            version: crate::native::protocol::VERSION,
            pid: rustix::process::getpid().as_raw_nonzero().get() as u32,
            sandboxes: self
                .sandboxes
                .values()
                .filter(|s| s.report.is_none())
                .map(|s| s.record.clone())
                .collect(),
            containers: self
                .tasks
                .iter()
                .filter(|(_, t)| matches!(t.kind, Kind::Container(_)) && t.report.is_none())
                .map(|(id, t)| ContainerRecord {
                    id: id.clone(),
                    pid: t.pid,
                    started_at_nanos: t.started_at_nanos,
                    exit: t.exit,
                })
                .collect(),
        }
    }

    pub(super) fn reap_later(&mut self, pidfd: OwnedFd) {
        if let Ok(token) = self.watch(&pidfd, Source::Reap) {
            self.reaping.insert(token, pidfd);
        }
    }

    pub(super) fn start_container(
        &mut self,
        reply_to: ReplyTo,
        spec: ContainerSpec,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let fail = |e: io::Error| Failure::io("start the container", &e);
        let overlay = if spec.root.mounted { fds.pop() } else { None };
        if self.tasks.contains_key(&spec.id) {
            return Err(Failure {
                not_found: false,
                start: false,
                message: format!("container {} was started already", spec.id),
            });
        }
        let sandbox = self
            .sandboxes
            .get(&spec.sandbox_id)
            .ok_or_else(|| Failure::not_found("sandbox", &spec.sandbox_id))?;
        let log = match &spec.log_path {
            Some(path) => Some(
                Log::open(path.clone())
                    .map_err(|e| Failure::io(&format!("open the log {}", path.display()), &e))?,
            ),
            None => None,
        };
        let (ours, theirs) = report_socket().map_err(fail)?;
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| fail(e.into()));
        let mut stdio = None;
        let (mut stdin, mut outputs) = (None, [None, None]);
        if !spec.process.tty {
            let input = if spec.stdin {
                let (read, write) = pipe()?;
                rustix::io::ioctl_fionbio(&write, true).map_err(|e| fail(e.into()))?;
                stdin = Some(write);
                read
            } else {
                rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|e| fail(e.into()))?
            };
            let (out_read, out_write) = pipe()?;
            let (error_read, error_write) = pipe()?;
            rustix::io::ioctl_fionbio(&out_read, true).map_err(|e| fail(e.into()))?;
            rustix::io::ioctl_fionbio(&error_read, true).map_err(|e| fail(e.into()))?;
            outputs = [Some(out_read), Some(error_read)];
            stdio = Some([input, out_write, error_write]);
        }
        let cgroup = cgroup_target(&spec.cgroup).map_err(fail)?;
        let flags = if spec.pid == PidNamespace::Own {
            libc::CLONE_NEWPID
        } else {
            0
        };
        let (pid, pidfd) =
            match sys::fork_into(flags, cgroup.as_ref().map(|c| c.as_fd())).map_err(fail)? {
                Forked::Child => {
                    let own = self.own;
                    in_child(|| {
                        let reporter = Reporter(theirs);
                        let filter = filter(&spec.process, &fds, &reporter);
                        let places = Places {
                            proc: self.proc.as_fd(),
                            empty: self.empty.as_fd(),
                            closer: self.closer.as_ref(),
                        };
                        let namespaces = Namespaces {
                            net: sandbox
                                .net
                                .as_ref()
                                .filter(|_| spec.own_net)
                                .map(|f| f.as_fd()),
                            uts: sandbox
                                .uts
                                .as_ref()
                                .filter(|_| spec.own_net)
                                .map(|f| f.as_fd()),
                            ipc: sandbox
                                .ipc
                                .as_ref()
                                .filter(|_| spec.own_ipc)
                                .map(|f| f.as_fd()),
                            pause: sandbox.pause.as_ref().map(|f| f.as_fd()),
                        };
                        child::container(
                            &spec,
                            &namespaces,
                            places,
                            (stdio, overlay),
                            &filter,
                            own,
                            reporter,
                        )
                    })
                }
                Forked::Parent { pid, pidfd } => (pid as u32, pidfd),
            };
        drop((theirs, stdio));
        let id = spec.id.clone();
        let mut watched = [None, None];
        for (index, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            if let Some(fd) = outputs[index].take() {
                let token = self
                    .watch(&fd, Source::TaskOutput(id.clone(), stream))
                    .map_err(fail)?;
                watched[index] = Some((token, fd));
            }
        }
        let kind = Kind::Container(Box::new(ContainerState {
            pid_namespace: spec.pid,
            stdin,
            stdin_once: spec.stdin_once,
            outputs: watched,
            log,
            attached: Vec::new(),
        }));
        self.add_task(reply_to, id, (pid, pidfd), ours, spec.cgroup, kind)
            .map_err(fail)
    }

    fn add_task(
        &mut self,
        reply_to: ReplyTo,
        id: String,
        (pid, pidfd): (u32, OwnedFd),
        report: OwnedFd,
        cgroup: CgroupMembership,
        kind: Kind,
    ) -> io::Result<()> {
        let report_token = self.watch(&report, Source::TaskReport(id.clone()))?;
        let pidfd_token = self.watch(&pidfd, Source::TaskEnd(id.clone()))?;
        self.tasks.insert(
            id,
            Task {
                pid,
                pidfd,
                pidfd_token,
                report: Some((report_token, report, reply_to)),
                failure: None,
                warnings: Vec::new(),
                started_at_nanos: now_nanos(),
                terminal: None,
                cgroup,
                exit: None,
                kind,
            },
        );
        Ok(())
    }

    pub(super) fn start_exec(
        &mut self,
        reply_to: ReplyTo,
        exec_id: String,
        container_id: &str,
        process: &ProcessSpec,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let fail = |e: io::Error| Failure::io("start the command", &e);
        let container = match self.tasks.get(container_id) {
            Some(t) if t.exit.is_none() && t.report.is_none() => t,
            _ => return Err(Failure::not_found("running container", container_id)),
        };
        let Kind::Container(state) = &container.kind else {
            return Err(Failure::not_found("container", container_id));
        };
        let own_pid = state.pid_namespace != PidNamespace::Node;
        let stdio = if process.tty {
            None
        } else {
            if fds.len() < 3 {
                return Err(Failure {
                    not_found: false,
                    start: false,
                    message: "exec without streams".to_owned(),
                });
            }
            let mut streams = fds.split_off(fds.len() - 3).into_iter();
            match (streams.next(), streams.next(), streams.next()) {
                (Some(a), Some(b), Some(c)) => Some([a, b, c]),
                _ => None,
            }
        };
        let membership = container.cgroup.clone();
        let (ours, theirs) = report_socket().map_err(fail)?;
        let cgroup = cgroup_target(&membership).map_err(fail)?;
        let own = self.own;
        match sys::fork_into(0, cgroup.as_ref().map(|c| c.as_fd())).map_err(fail)? {
            Forked::Child => in_child(|| {
                let reporter = Reporter(theirs);
                let filter = filter(process, &fds, &reporter);
                let target = container.pidfd.as_fd();
                child::exec(
                    process,
                    &membership,
                    target,
                    own_pid,
                    stdio,
                    &filter,
                    own,
                    reporter,
                )
            }),
            Forked::Parent { pid, pidfd } => {
                drop((theirs, stdio));
                let kind = Kind::Exec {
                    client: reply_to.client,
                };
                self.add_task(
                    reply_to,
                    exec_id,
                    (pid as u32, pidfd),
                    ours,
                    membership,
                    kind,
                )
                .map_err(fail)
            }
        }
    }

    pub(super) fn read_report(&mut self, id: &str) {
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(task) = self.tasks.get_mut(id) {
            let Some((_, socket, _)) = &task.report else {
                break;
            };
            match wire::receive::<Report>(socket, &mut buffer) {
                Ok(Some((Report::Warning(text), _))) => task.warnings.push(text),
                Ok(Some((Report::Error { start, message }, _))) => {
                    task.failure = Some(Failure {
                        not_found: false,
                        start,
                        message,
                    });
                }
                Ok(Some((Report::Terminal, mut fds))) => task.terminal = fds.pop(),
                Ok(Some((Report::Successor { pid }, mut fds))) => {
                    if let Some(pidfd) = fds.pop() {
                        self.replace_process(id, pid, pidfd);
                    }
                }
                Ok(Some((Report::Namespaces, _))) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(None) | Err(_) => {
                    self.reports_ended(id);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    fn replace_process(&mut self, id: &str, pid: u32, pidfd: OwnedFd) {
        let Ok(token) = self.watch(&pidfd, Source::TaskEnd(id.to_owned())) else {
            return;
        };
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        task.pid = pid;
        let old_token = std::mem::replace(&mut task.pidfd_token, token);
        let old = std::mem::replace(&mut task.pidfd, pidfd);
        self.unwatch(old_token, &old);
        self.reap_later(old);
    }

    /// Exec has happened, or the child has given up.
    fn reports_ended(&mut self, id: &str) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        let Some((token, socket, reply_to)) = task.report.take() else {
            return;
        };
        let failure = task.failure.take();
        self.unwatch(token, &socket);
        if let Some(failure) = failure {
            if let Some(task) = self.tasks.remove(id) {
                self.discard(task);
                self.release_mounts(id.to_owned());
            }
            self.reply(reply_to, Err(failure));
            return;
        }
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        task.started_at_nanos = now_nanos();
        let warnings = std::mem::take(&mut task.warnings);
        let (pid, started_at_nanos) = (task.pid, task.started_at_nanos);
        match &task.kind {
            Kind::Exec { .. } => {
                let terminal = task.terminal.take();
                self.reply_with(
                    reply_to,
                    Answer::ExecStarted { pid },
                    &terminal.iter().collect::<Vec<_>>(),
                );
            }
            Kind::Container(_) => {
                self.watch_terminal(id);
                self.reply(
                    reply_to,
                    Ok(Answer::Started {
                        pid,
                        started_at_nanos,
                        warnings,
                    }),
                );
            }
        }
    }

    fn watch_terminal(&mut self, id: &str) {
        let Some(copy) = self
            .tasks
            .get(id)
            .and_then(|t| t.terminal.as_ref())
            .and_then(|t| t.try_clone().ok())
        else {
            return;
        };
        let _ = rustix::io::ioctl_fionbio(&copy, true);
        if let Ok(token) = self.watch(&copy, Source::TaskOutput(id.to_owned(), Stream::Stdout))
            && let Some(Task {
                kind: Kind::Container(state),
                ..
            }) = self.tasks.get_mut(id)
        {
            state.outputs[0] = Some((token, copy));
        }
    }

    /// Ends a task that never became one.
    fn discard(&mut self, task: Task) {
        let _ = rustix::process::pidfd_send_signal(&task.pidfd, Signal::KILL);
        self.unwatch(task.pidfd_token, &task.pidfd);
        if let Kind::Container(mut state) = task.kind {
            for (token, fd) in state.outputs.iter_mut().filter_map(Option::take) {
                self.unwatch(token, &fd);
            }
        }
        self.reap_later(task.pidfd);
    }

    /// Copies what is there; `false` when the stream has ended.
    fn copy_some(&mut self, id: &str, stream: Stream) -> Option<bool> {
        let mut copy = std::mem::take(&mut self.copy);
        let result = match self.tasks.get_mut(id) {
            Some(Task {
                kind: Kind::Container(state),
                ..
            }) => state.copy(stream, &mut copy),
            _ => Some(false),
        };
        self.copy = copy;
        result
    }

    pub(super) fn copy_output(&mut self, id: &str, stream: Stream) {
        if self.copy_some(id, stream) == Some(false) {
            self.close_output(id, stream);
        }
    }

    fn close_output(&mut self, id: &str, stream: Stream) {
        if let Some(Task {
            kind: Kind::Container(state),
            ..
        }) = self.tasks.get_mut(id)
            && let Some((token, fd)) = state.outputs[stream as usize].take()
        {
            self.unwatch(token, &fd);
        }
    }

    pub(super) fn task_ended(&mut self, id: &str) {
        // What the child said before it ended comes first.
        self.read_report(id);
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        let Some((code, signal)) = wait(&task.pidfd) else {
            return;
        };
        if task.report.is_some() {
            self.reports_ended(id);
        }
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        let mut exit = Exit {
            code,
            signal,
            oom_killed: false,
            finished_at_nanos: now_nanos(),
        };
        let (token, is_exec) = (task.pidfd_token, matches!(task.kind, Kind::Exec { .. }));
        self.sources.remove(&token);
        if let Some(task) = self.tasks.get(id) {
            let _ = rustix::event::epoll::delete(&self.epoll, &task.pidfd);
        }
        if is_exec {
            self.tasks.remove(id);
            self.broadcast(&FromZygote::ExecExited {
                id: id.to_owned(),
                exit,
            });
            return;
        }
        if let Some(task) = self.tasks.get_mut(id) {
            exit.oom_killed = cgroup::oom_kill_count(&task.cgroup) > 0;
            if let Kind::Container(state) = &task.kind
                && state.pid_namespace != PidNamespace::Own
            {
                cgroup::kill_all(&task.cgroup);
            }
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            for _ in 0..DRAIN_TURNS_MAX {
                if self.copy_some(id, stream) != Some(true) {
                    break;
                }
            }
            self.close_output(id, stream);
        }
        if let Some(task) = self.tasks.get_mut(id) {
            task.exit = Some(exit);
            task.terminal = None;
            if let Kind::Container(state) = &mut task.kind {
                state.stdin = None;
                state.attached.clear();
                if let Some(mut log) = state.log.take() {
                    log.finish(now_nanos());
                }
            }
        }
        self.broadcast(&FromZygote::ContainerExited {
            id: id.to_owned(),
            exit,
        });
        self.release_mounts(id.to_owned());
    }

    pub(super) fn signal(&mut self, id: &str, signal: i32) -> Result<Answer, Failure> {
        let task = self
            .tasks
            .get(id)
            .ok_or_else(|| Failure::not_found("container", id))?;
        if task.exit.is_some() {
            return Ok(Answer::Done);
        }
        match sys::pidfd_signal(task.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                Err(Failure::io("signal the container", &error))
            }
            _ => Ok(Answer::Done),
        }
    }

    pub(super) fn attach(
        &mut self,
        reply_to: ReplyTo,
        id: &str,
        stdin: bool,
        (stdout, stderr): (bool, bool),
        fds: Vec<OwnedFd>,
    ) {
        let Some(task) = self
            .tasks
            .get_mut(id)
            .filter(|t| t.exit.is_none() && t.report.is_none())
        else {
            self.reply(reply_to, Err(Failure::not_found("running container", id)));
            return;
        };
        let Kind::Container(state) = &mut task.kind else {
            return;
        };
        let mut fds = fds.into_iter();
        let mut take = |wanted: bool| if wanted { fds.next() } else { None };
        let client = [take(stdout), take(stderr)];
        for fd in client.iter().flatten() {
            let _ = rustix::io::ioctl_fionbio(fd, true);
        }
        if state.attached.len() == ATTACHED_MAX {
            state.attached.remove(0);
        }
        if client.iter().any(Option::is_some) {
            state.attached.push(client);
        }
        let tty = task.terminal.is_some();
        let input = match (&task.terminal, stdin) {
            (Some(terminal), _) => terminal.try_clone().ok(),
            (None, true) if state.stdin_once => state.stdin.take(),
            (None, true) => state.stdin.as_ref().and_then(|fd| fd.try_clone().ok()),
            (None, false) => None,
        };
        let answer = Answer::Attached {
            tty,
            has_input: input.is_some(),
        };
        self.reply_with(reply_to, answer, &input.iter().collect::<Vec<_>>());
    }

    pub(super) fn reopen_log(&mut self, id: &str) -> Result<Answer, Failure> {
        match self.tasks.get_mut(id) {
            Some(Task {
                kind: Kind::Container(state),
                exit: None,
                ..
            }) => match &mut state.log {
                Some(log) => log
                    .reopen()
                    .map(|()| Answer::Done)
                    .map_err(|e| Failure::io("open the log again", &e)),
                None => Ok(Answer::Done),
            },
            _ => Err(Failure::not_found("running container", id)),
        }
    }

    pub(super) fn forget(&mut self, id: &str) {
        if self.tasks.get(id).is_some_and(|t| t.exit.is_some()) {
            self.tasks.remove(id);
        }
    }

    pub(super) fn kill_execs_of(&mut self, client: u64) {
        for task in self.tasks.values() {
            if matches!(task.kind, Kind::Exec { client: c } if c == client) {
                let _ = rustix::process::pidfd_send_signal(&task.pidfd, Signal::KILL);
            }
        }
    }

    pub(super) fn kill_all(&mut self) {
        for task in self.tasks.values().filter(|t| t.exit.is_none()) {
            let _ = rustix::process::pidfd_send_signal(&task.pidfd, Signal::KILL);
            cgroup::kill_all(&task.cgroup);
        }
        let sandboxes: HashMap<_, _> = std::mem::take(&mut self.sandboxes);
        for sandbox in sandboxes.values() {
            if let Some(pause) = &sandbox.pause {
                let _ = rustix::process::pidfd_send_signal(pause, Signal::KILL);
            }
        }
    }
}

/// The seccomp filter that came with a request, read in the child.
fn filter(process: &ProcessSpec, fds: &[OwnedFd], reporter: &Reporter) -> Vec<sys::BpfInstruction> {
    if !process.seccomp {
        return Vec::new();
    }
    let result = match fds.first() {
        Some(fd) => child::read_filter(fd),
        None => Err(io::Error::other("the request came without its filter")),
    };
    match result {
        Ok(filter) => filter,
        Err(error) => reporter.fail(Fault::of("read the seccomp filter", error)),
    }
}

impl ContainerState {
    /// `Some(true)`: copied; `Some(false)`: the stream has ended; `None`: nothing there now.
    fn copy(&mut self, stream: Stream, buffer: &mut [u8]) -> Option<bool> {
        let index = stream as usize;
        let (_, fd) = self.outputs[index].as_ref()?;
        match rustix::io::read(fd, &mut *buffer) {
            Ok(0) => Some(false),
            Ok(count) => {
                let bytes = &buffer[..count];
                if let Some(log) = &mut self.log {
                    log.write(stream, bytes, now_nanos());
                }
                self.attached.retain_mut(|client| {
                    let Some(fd) = &client[index] else {
                        return client.iter().any(Option::is_some);
                    };
                    match rustix::io::write(fd, bytes) {
                        // A reader that does not keep up loses output; the log has it.
                        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
                        Err(_) => {
                            client[index] = None;
                            client.iter().any(Option::is_some)
                        }
                    }
                });
                Some(true)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => None,
            // EIO: nobody holds the terminal's other side any more.
            Err(_) => Some(false),
        }
    }
}
