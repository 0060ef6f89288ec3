//! What the zygote's children do between fork and exec.
//!
//! Enter at [`sandbox`], [`container`] or [`exec`]; none of them returns. They report over a
//! sequenced-packet socket that exec closes. A child that must enter an existing process namespace
//! first moves into the container's mount namespace and forks there, so that nobody inside ever sees
//! a process that stands on the node's root.

pub mod inside;
pub mod process;
pub mod root;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::protocol::{
    CgroupMembership, ContainerSpec, PidNamespace, ProcessSpec, Report, SandboxSpec,
};
use super::sys::{self, BpfInstruction, Forked};
use super::wire;
use super::zygote::attendant::{self, Attendant};

/// Why a child could not become what it should.
#[derive(Debug)]
pub struct Fault {
    /// The container's own fault: its command, user or directory.
    pub start: bool,
    pub message: String,
}

impl Fault {
    pub fn of(what: impl AsRef<str>, error: io::Error) -> Self {
        Self {
            start: false,
            message: format!("{}: {}", what.as_ref(), process::errno_text(&error)),
        }
    }
    pub fn runtime(message: impl Into<String>) -> Self {
        Self {
            start: false,
            message: message.into(),
        }
    }
    pub fn start(message: impl Into<String>) -> Self {
        Self {
            start: true,
            message: message.into(),
        }
    }
}

/// Descriptors of the standard streams; `None` with a terminal.
pub type Stdio = Option<[OwnedFd; 3]>;

/// The socket on which a child reports.
pub struct Reporter(pub OwnedFd);

impl Reporter {
    fn send(&self, report: &Report, fds: &[BorrowedFd<'_>]) {
        // If the zygote is gone there is nobody to tell.
        let _ = wire::send(&self.0, report, fds);
    }
    fn warn(&self, message: impl Into<String>) {
        self.send(&Report::Warning(message.into()), &[]);
    }
    pub fn fail(&self, fault: Fault) -> ! {
        self.send(
            &Report::Error {
                start: fault.start,
                message: fault.message,
            },
            &[],
        );
        sys::exit_now(1)
    }
}

/// The soft limit on descriptors that containers inherit; the zygote raises its own.
static DESCRIPTOR_LIMIT: std::sync::OnceLock<rustix::process::Rlimit> = std::sync::OnceLock::new();

/// Called once by the zygote.
pub fn remember_descriptor_limit(limit: rustix::process::Rlimit) {
    let _ = DESCRIPTOR_LIMIT.set(limit);
}

/// What every child needs that the zygote found out once.
#[derive(Clone, Copy)]
pub struct Own {
    /// Device and inode of the program.
    pub binary: (u64, u64),
    /// Whether this machine gives `CAP_MKNOD`.
    pub can_make_nodes: bool,
}

/// Makes the namespaces of a sandbox and hands them over.
pub fn sandbox(spec: &SandboxSpec, reporter: &Reporter) -> ! {
    match make_sandbox(spec, reporter) {
        Ok(()) => sys::exit_now(0),
        Err(fault) => reporter.fail(fault),
    }
}

fn make_sandbox(spec: &SandboxSpec, reporter: &Reporter) -> Result<(), Fault> {
    // fork_into has unshared net, ipc and uts as asked for.
    if spec.own_net {
        sys::loopback_up().map_err(|e| Fault::of("put the loopback interface up", e))?;
    }
    if !spec.hostname.is_empty() && spec.own_net {
        rustix::system::sethostname(spec.hostname.as_bytes())
            .map_err(|e| Fault::of("set the hostname", e.into()))?;
    }
    for (name, value) in &spec.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        std::fs::write(&path, value)
            .map_err(|e| Fault::of(format!("set sysctl {name}={value}"), e))?;
    }
    let open = |name: &str| {
        rustix::fs::open(
            format!("/proc/self/ns/{name}"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| Fault::of(format!("open the {name} namespace"), e.into()))
    };
    let mut fds = Vec::new();
    if spec.own_net {
        fds.push(open("net")?);
        fds.push(open("uts")?);
    }
    if spec.own_ipc {
        fds.push(open("ipc")?);
    }
    let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    reporter.send(&Report::Namespaces, &borrowed);
    if spec.shared_pid {
        join_cgroups(&spec.cgroup)?;
        match sys::fork_into(
            libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_PARENT,
            None,
        )
        .map_err(|e| Fault::of("fork the first process of the pod", e))?
        {
            Forked::Parent { pid, pidfd } => {
                reporter.send(&Report::Successor { pid: pid as u32 }, &[pidfd.as_fd()])
            }
            Forked::Child => pause(),
        }
    }
    Ok(())
}

/// First process of a shared process namespace: holds nothing, sees nothing, reaps orphans.
fn pause() -> ! {
    let _ = sys::close_range(0, false);
    let _ = rustix::thread::set_name(c"pause");
    let confined = (|| -> io::Result<()> {
        root::enter_empty_root()?;
        for capability in 0..=40 {
            let _ = sys::prctl(libc::PR_CAPBSET_DROP, capability, 0);
        }
        sys::capset(0, 0, 0)
    })();
    if confined.is_err() {
        sys::exit_now(1);
    }
    sys::signals_reset();
    // The kernel reaps orphans of a process that ignores SIGCHLD.
    sys::signal_disposition(libc::SIGCHLD, true);
    loop {
        sys::wait_for_signal();
    }
}

/// Descriptors of the sandbox's namespaces, where it has its own.
#[derive(Default)]
pub struct Namespaces<'a> {
    pub net: Option<BorrowedFd<'a>>,
    pub uts: Option<BorrowedFd<'a>>,
    pub ipc: Option<BorrowedFd<'a>>,
    /// Pidfd of the first process of a shared process namespace.
    pub pause: Option<BorrowedFd<'a>>,
}

/// What a child reaches by descriptor, wherever it stands.
#[derive(Clone, Copy)]
pub struct Places<'a> {
    /// The node's `/proc`.
    pub proc: BorrowedFd<'a>,
    /// A mount namespace with nothing in it: the container's own is a copy of it.
    pub empty: BorrowedFd<'a>,
    /// Holds the container's mount namespace until after its end.
    pub closer: Option<&'a Attendant>,
}

/// Runs a container's command. The process is already in its own process namespace, if it has one.
///
/// `overlay` is the root, where the server has mounted it ahead.
pub fn container(
    spec: &ContainerSpec,
    namespaces: &Namespaces<'_>,
    places: Places<'_>,
    (stdio, overlay): (Stdio, Option<OwnedFd>),
    filter: &[BpfInstruction],
    own: Own,
    reporter: Reporter,
) -> ! {
    let result = (|| -> Result<root::Built, Fault> {
        oom_score(&spec.process, &reporter);
        join_cgroups(&spec.cgroup)?;
        let join = |fd: Option<BorrowedFd<'_>>, flag, what: &str| match fd {
            Some(fd) => sys::setns(fd, flag)
                .map_err(|e| Fault::of(format!("join the pod's {what} namespace"), e)),
            None => Ok(()),
        };
        join(namespaces.net, libc::CLONE_NEWNET, "network")?;
        join(namespaces.uts, libc::CLONE_NEWUTS, "uts")?;
        join(namespaces.ipc, libc::CLONE_NEWIPC, "ipc")?;
        if spec.pid == PidNamespace::Sandbox {
            join(namespaces.pause, libc::CLONE_NEWPID, "process")?;
        }
        rustix::process::umask(Mode::empty());
        root::build(
            &spec.root,
            &spec.cgroup,
            overlay,
            own.can_make_nodes,
            || {
                sys::setns(places.empty, libc::CLONE_NEWNS)?;
                sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP)?;
                if let Some(closer) = places.closer {
                    // Without it the container's end takes as long as its mounts.
                    let _ = closer.hold(&spec.id, &attendant::namespace(places.proc, "mnt")?);
                }
                Ok(())
            },
        )
    })();
    let built = match result {
        Ok(built) => built,
        Err(fault) => reporter.fail(fault),
    };
    if spec.pid == PidNamespace::Sandbox {
        succeed(&reporter);
    }
    if let Err(fault) = root::mount_proc(&built, spec.root.masked) {
        reporter.fail(fault);
    }
    finish(&spec.process, stdio, filter, own, reporter)
}

/// Runs a command in a running container, which `target` (its first process) stands for.
#[expect(clippy::too_many_arguments, reason = "called once, in the zygote")]
pub fn exec(
    spec: &ProcessSpec,
    cgroup: &CgroupMembership,
    target: BorrowedFd<'_>,
    own_pid_namespace: bool,
    stdio: Stdio,
    filter: &[BpfInstruction],
    own: Own,
    reporter: Reporter,
) -> ! {
    oom_score(spec, &reporter);
    let result = (|| -> Result<(), Fault> {
        join_cgroups(cgroup)?;
        let mut flags = libc::CLONE_NEWNS
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWCGROUP;
        if own_pid_namespace {
            flags |= libc::CLONE_NEWPID;
        }
        sys::setns(target, flags).map_err(|e| Fault::of("join the container's namespaces", e))
    })();
    if let Err(fault) = result {
        reporter.fail(fault);
    }
    if own_pid_namespace {
        succeed(&reporter);
    }
    finish(spec, stdio, filter, own, reporter)
}

/// Goes on as a new process (a child of the zygote) in the process namespace that was joined.
fn succeed(reporter: &Reporter) {
    match sys::fork_into(libc::CLONE_PARENT, None) {
        Ok(Forked::Child) => {}
        Ok(Forked::Parent { pid, pidfd }) => {
            reporter.send(&Report::Successor { pid: pid as u32 }, &[pidfd.as_fd()]);
            sys::exit_now(0)
        }
        Err(error) => reporter.fail(Fault::of("enter the process namespace", error)),
    }
}

fn finish(
    process: &ProcessSpec,
    stdio: Stdio,
    filter: &[BpfInstruction],
    own: Own,
    reporter: Reporter,
) -> ! {
    let _ = rustix::process::setsid();
    let stdio = match stdio {
        Some(fds) => Ok(fds),
        None => terminal(&reporter),
    };
    let stdio = match stdio {
        Ok(fds) => fds,
        Err(fault) => reporter.fail(fault),
    };
    // Standard streams to 0, 1, 2 and the report socket to 3: first out of each other's way.
    let status = match move_descriptors(&stdio, &reporter.0) {
        Ok(fd) => Reporter(fd),
        Err(error) => reporter.fail(Fault::of("set up the standard streams", error)),
    };
    // Owners of what close_range closes: they must never be dropped.
    std::mem::forget((stdio, reporter));
    if let Err(error) = sys::close_range(4, false) {
        status.fail(Fault::of("close descriptors", error));
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::signals_reset();
    if let Some(limit) = DESCRIPTOR_LIMIT.get() {
        let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, *limit);
    }
    let fault = process::become_command(process, filter, own.binary);
    status.fail(fault)
}

fn move_descriptors(stdio: &[OwnedFd; 3], report: &OwnedFd) -> io::Result<OwnedFd> {
    let high = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 16);
    let parked = [high(&stdio[0])?, high(&stdio[1])?, high(&stdio[2])?];
    let report = high(report)?;
    for (number, fd) in parked.iter().enumerate() {
        let mut target = sys::adopt(number as i32);
        rustix::io::dup2(fd, &mut target)?;
        std::mem::forget(target);
    }
    let mut status = sys::adopt(3);
    rustix::io::dup3(&report, &mut status, rustix::io::DupFlags::CLOEXEC)?;
    Ok(status)
}

/// A terminal from the container's own devpts; its master side goes to the zygote.
fn terminal(reporter: &Reporter) -> Result<[OwnedFd; 3], Fault> {
    let context = |e: io::Error| Fault::of("open a terminal", e);
    let master = crate::confined::openat2(
        CWD,
        "/dev/pts/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        rustix::fs::ResolveFlags::NO_SYMLINKS | rustix::fs::ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|e| context(e.into()))?;
    let status = rustix::fs::fstat(&master).map_err(|e| context(e.into()))?;
    let kind = rustix::fs::fstatfs(&master)
        .map_err(|e| context(e.into()))?
        .f_type as i64;
    if status.st_rdev != rustix::fs::makedev(5, 2) || kind != 0x1cd1 {
        return Err(Fault::runtime(
            "/dev/pts/ptmx of the container is not a terminal multiplexer",
        ));
    }
    sys::terminal_unlock(master.as_fd()).map_err(context)?;
    let slave = sys::terminal_peer(master.as_fd()).map_err(context)?;
    sys::set_controlling_terminal(slave.as_fd()).map_err(context)?;
    reporter.send(&Report::Terminal, &[master.as_fd()]);
    let copy = || slave.try_clone().map_err(context);
    Ok([copy()?, copy()?, copy()?])
}

/// Joins the v1 hierarchies; the v2 one was joined at fork.
///
/// A single-threaded process that writes `0` to `tasks` moves itself without the system-wide lock
/// whose writers wait for an RCU grace period (7 to 16 ms on an idle machine).
fn join_cgroups(membership: &CgroupMembership) -> Result<(), Fault> {
    for (_, directory) in &membership.v1 {
        write_once(&directory.join("tasks"), b"0")
            .map_err(|e| Fault::of(format!("join cgroup {}", directory.display()), e))?;
    }
    Ok(())
}

fn write_once(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(bytes)
}

/// Sets the OOM score while the node's `/proc` is in reach; takes the lowest allowed one if need be.
fn oom_score(process: &ProcessSpec, reporter: &Reporter) {
    let Some(wanted) = process.oom_score_adj else {
        return;
    };
    let wanted = wanted.clamp(-1000, 1000);
    let path = Path::new("/proc/self/oom_score_adj");
    if write_once(path, wanted.to_string().as_bytes()).is_ok() {
        return;
    }
    let current = std::fs::read_to_string(path).unwrap_or_default();
    reporter.warn(format!(
        "oom_score_adj {wanted} needs CAP_SYS_RESOURCE, which this machine does not give; it stays {}",
        current.trim()
    ));
}

/// The filter behind a descriptor, as it is installed.
pub fn read_filter(fd: &OwnedFd) -> io::Result<Vec<BpfInstruction>> {
    let mut out = Vec::new();
    let mut buffer = [0u8; 4096 * 8];
    let mut offset = 0u64;
    loop {
        let count = rustix::io::pread(fd, &mut buffer, offset)?;
        if count == 0 {
            return Ok(out);
        }
        offset += count as u64;
        out.extend(buffer[..count].chunks_exact(8).map(|c| BpfInstruction {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jump_true: c[2],
            jump_false: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        }));
        if out.len() > 4096 || count % 8 != 0 {
            return Err(io::Error::other(format!(
                "not a seccomp filter: descriptor {}",
                fd.as_raw_fd()
            )));
        }
    }
}
