//! The zygote: a small, single-threaded process that is the parent of every container.
//!
//! Enter at [`zygote_main`]. It is exec'ed early, detaches from the server, and waits in one epoll
//! loop for requests (a listening socket in the run directory, so that a restarted server finds it),
//! for the ends of processes (pidfds), and for their output, which it copies into log files.
//!
//! Two more processes beside it ([`attendant`]) make namespaces ahead and take mounts down.
//!
//! Invariants: it never blocks on a peer; it holds per container a fixed amount of memory; its own
//! program file is reached through a read-only mount, so that no container can write it.
//! Deliberately absent: policy, retries, files other than logs. The server decides and remembers.

pub mod attendant;
mod log;
mod sandboxes;
mod tasks;

pub use log::rfc3339_nanos;

use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::child::Own;
use super::protocol::{Answer, Envelope, Failure, FromZygote, Request};
use super::{sys, wire};
use attendant::{Attendant, NamespaceSet};
use log::Stream;
use sandboxes::Sandbox;
use tasks::Task;

/// File names in the run directory.
pub const SOCKET_NAME: &str = "zygote.sock";
const LOCK_NAME: &str = "zygote.lock";
/// Without a request or an event for so long, spent namespaces are replaced.
const QUIET: rustix::time::Timespec = rustix::time::Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};
/// Most bytes that are copied for one stream before others get their turn.
const COPY_BYTES: usize = 64 * 1024;

/// What an epoll token stands for.
#[derive(Clone, Debug)]
enum Source {
    Listener,
    Client,
    TaskReport(String),
    TaskEnd(String),
    TaskOutput(String, Stream),
    SandboxReport(String),
    /// The attendant that makes namespaces.
    Maker,
    /// A process that only has to be reaped.
    Reap,
}

/// Where the answer to a request goes.
#[derive(Clone, Copy, Debug)]
struct ReplyTo {
    client: u64,
    sequence: u64,
}

struct Zygote {
    epoll: OwnedFd,
    listener: OwnedFd,
    sources: HashMap<u64, Source>,
    next_token: u64,
    clients: HashMap<u64, OwnedFd>,
    reaping: HashMap<u64, OwnedFd>,
    sandboxes: HashMap<String, Sandbox>,
    tasks: HashMap<String, Task>,
    own: Own,
    /// The node's `/proc`, our own uts namespace, and the empty mount namespace containers are built in.
    proc: OwnedFd,
    uts: OwnedFd,
    empty: OwnedFd,
    maker: Option<Attendant>,
    maker_token: u64,
    closer: Option<Attendant>,
    /// Ended containers whose mounts the closer was not told to drop yet.
    unreleased: VecDeque<String>,
    /// Made ahead.
    ready: Vec<NamespaceSet>,
    buffer: Vec<u8>,
    copy: Vec<u8>,
    stopping: bool,
}

/// Runs the zygote; the arguments are `--run-dir DIR` and any number of `--cgroup DIR` to join.
///
/// Called before anything has started a thread. The process returns to its caller (exits 0) as soon as
/// a detached child listens; an error goes to standard error with exit code 1.
pub fn zygote_main(args: impl IntoIterator<Item = OsString>) -> ! {
    match run(args.into_iter().collect()) {
        Ok(()) => sys::exit_now(0),
        Err(error) => {
            eprintln!("zygote: {error}");
            sys::exit_now(1)
        }
    }
}

fn run(args: Vec<OsString>) -> io::Result<()> {
    let mut run_dir = None;
    let mut cgroups = Vec::new();
    let mut sealed = false;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--run-dir") => run_dir = args.next().map(PathBuf::from),
            Some("--cgroup") => cgroups.extend(args.next().map(PathBuf::from)),
            Some("--sealed") => sealed = true,
            _ => return Err(io::Error::other(format!("unknown argument {arg:?}"))),
        }
    }
    let run_dir = run_dir.ok_or_else(|| io::Error::other("--run-dir is missing"))?;
    if !sealed {
        return Err(execute_sealed()?);
    }
    detach(&run_dir, &cgroups)
}

/// Executes this program again through a read-only mount of its file that exists nowhere else.
fn execute_sealed() -> io::Result<io::Error> {
    let file = rustix::mount::open_tree(
        CWD,
        "/proc/self/exe",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    sys::mount_setattr(file.as_fd(), false, 1, 0)?;
    let strings = |list: Vec<OsString>| -> io::Result<Vec<CString>> {
        list.into_iter()
            .map(|s| CString::new(s.as_bytes()).map_err(io::Error::from))
            .collect()
    };
    let mut args = strings(std::env::args_os().collect())?;
    args.push(c"--sealed".to_owned());
    let env = strings(vec![])?;
    Ok(sys::fexecve(file.as_fd(), &args, &env))
}

/// Forks the real zygote and waits until it listens.
fn detach(run_dir: &Path, cgroups: &[PathBuf]) -> io::Result<()> {
    let (ready, told) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let unified = cgroups
        .iter()
        .find(|c| !c.join("tasks").exists())
        .and_then(|c| {
            rustix::fs::open(
                c,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .ok()
        });
    match sys::fork_into(0, unified.as_ref().map(|fd| fd.as_fd()))? {
        sys::Forked::Parent { .. } => {
            drop(told);
            let mut text = String::new();
            io::Read::read_to_string(&mut File::from(ready), &mut text)?;
            match text.strip_prefix("ok") {
                Some(_) => Ok(()),
                None => Err(io::Error::other(text)),
            }
        }
        sys::Forked::Child => {
            drop(ready);
            let mut told = File::from(told);
            match Zygote::start(run_dir, cgroups) {
                Ok(mut zygote) => {
                    let _ = io::Write::write_all(&mut told, b"ok");
                    drop(told);
                    zygote.serve();
                    sys::exit_now(0)
                }
                Err(error) => {
                    let _ = io::Write::write_all(&mut told, error.to_string().as_bytes());
                    sys::exit_now(1)
                }
            }
        }
    }
}

impl Zygote {
    fn start(run_dir: &Path, cgroups: &[PathBuf]) -> io::Result<Self> {
        rustix::process::setsid()?;
        rustix::process::chdir("/")?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        for number in 0..3 {
            let mut target = sys::adopt(number);
            rustix::io::dup2(&null, &mut target)?;
            std::mem::forget(target);
        }
        for cgroup in cgroups {
            // Out of the server's cgroup, so that stopping the service leaves containers alone.
            if cgroup.join("tasks").exists() {
                std::fs::write(cgroup.join("tasks"), "0")?;
            }
        }
        // A second zygote in the same directory must not take the socket away.
        let lock = File::create(run_dir.join(LOCK_NAME))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
            |_| io::Error::other(format!("another zygote runs in {}", run_dir.display())),
        )?;
        std::mem::forget(lock);
        let path = run_dir.join(SOCKET_NAME);
        let _ = std::fs::remove_file(&path);
        let listener = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path)?)?;
        rustix::process::umask(umask);
        rustix::net::listen(&listener, 16)?;

        sys::signals_of_the_zygote();
        let _ = rustix::thread::set_name(c"zygote");
        // Nobody without full power over this machine may look into us or our children before exec.
        sys::prctl(libc::PR_SET_DUMPABLE, 0, 0)?;
        let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
        raise_descriptor_limit();
        let binary = std::fs::metadata("/proc/self/exe")?;
        let proc = attendant::node_proc()?;
        let uts = attendant::namespace(proc.as_fd(), "uts")?;
        let (maker, empty) = attendant::start(proc.as_fd())?;
        let (closer, _) = attendant::start(proc.as_fd())?;

        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut zygote = Self {
            epoll,
            listener,
            sources: HashMap::new(),
            next_token: 0,
            clients: HashMap::new(),
            reaping: HashMap::new(),
            sandboxes: HashMap::new(),
            tasks: HashMap::new(),
            own: Own {
                binary: (binary.dev(), binary.ino()),
                can_make_nodes: super::capabilities::bit("MKNOD")
                    .is_some_and(|bit| sys::permitted_capabilities().unwrap_or(0) & bit != 0),
            },
            proc,
            uts,
            empty,
            maker: None,
            maker_token: 0,
            closer: None,
            unreleased: VecDeque::new(),
            ready: Vec::new(),
            buffer: Vec::new(),
            copy: vec![0; COPY_BYTES],
            stopping: false,
        };
        zygote.reap_later(maker.pidfd.try_clone()?);
        zygote.reap_later(closer.pidfd.try_clone()?);
        zygote.closer = Some(closer);
        zygote.maker_token = zygote.watch(&maker.socket, Source::Maker)?;
        zygote.maker = Some(maker);
        zygote.order_namespaces();
        let token = zygote.token(Source::Listener);
        epoll::add(
            &zygote.epoll,
            &zygote.listener,
            EventData::new_u64(token),
            EventFlags::IN,
        )?;
        Ok(zygote)
    }

    fn token(&mut self, source: Source) -> u64 {
        self.next_token += 1;
        self.sources.insert(self.next_token, source);
        self.next_token
    }

    fn watch(&mut self, fd: &OwnedFd, source: Source) -> io::Result<u64> {
        let token = self.token(source);
        if let Err(error) = epoll::add(&self.epoll, fd, EventData::new_u64(token), EventFlags::IN) {
            self.sources.remove(&token);
            return Err(error.into());
        }
        Ok(token)
    }

    /// Must come before the descriptor is closed: a child may still hold a copy, which would keep it in the set.
    fn unwatch(&mut self, token: u64, fd: &OwnedFd) {
        self.sources.remove(&token);
        let _ = epoll::delete(&self.epoll, fd);
    }

    fn serve(&mut self) {
        let mut events = [const {
            epoll::Event {
                flags: EventFlags::empty(),
                data: EventData::new_u64(0),
            }
        }; 64];
        while !self.stopping {
            let short = self
                .maker
                .as_ref()
                .is_some_and(|maker| self.ready.len() + maker.wanted < attendant::READY_MAX);
            let later = (short || !self.unreleased.is_empty()).then_some(&QUIET);
            let count = match epoll::wait(&self.epoll, &mut events, later) {
                Ok(0) => {
                    // Making namespaces keeps a processor for most of a millisecond: when nobody waits.
                    self.order_namespaces();
                    self.release_more();
                    continue;
                }
                Ok(count) => count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
            };
            for event in events.iter().take(count) {
                let token = event.data.u64();
                let Some(source) = self.sources.get(&token).cloned() else {
                    continue;
                };
                // A mistake of ours about one container must not take the others down.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    self.dispatch(token, source)
                }));
            }
        }
    }

    fn dispatch(&mut self, token: u64, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Client => self.read_client(token),
            Source::TaskReport(id) => self.read_report(&id),
            Source::TaskEnd(id) => self.task_ended(&id),
            Source::TaskOutput(id, stream) => self.copy_output(&id, stream),
            Source::SandboxReport(id) => self.read_sandbox_report(&id),
            Source::Maker => self.read_maker(),
            Source::Reap => self.reap(token),
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            let client = match rustix::net::accept_with(&self.listener, flags) {
                Ok(client) => client,
                Err(
                    rustix::io::Errno::AGAIN
                    | rustix::io::Errno::INTR
                    | rustix::io::Errno::CONNABORTED,
                ) => return,
                Err(_) => {
                    // No descriptors left: the waiting peer must not make us spin.
                    let pause = rustix::time::Timespec {
                        tv_sec: 0,
                        tv_nsec: 10_000_000,
                    };
                    let _ = rustix::thread::nanosleep(&pause);
                    return;
                }
            };
            let trusted = rustix::net::sockopt::socket_peercred(&client)
                .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid());
            if !trusted {
                continue;
            }
            if let Ok(token) = self.watch(&client, Source::Client) {
                self.clients.insert(token, client);
            }
        }
    }

    fn read_client(&mut self, token: u64) {
        let mut buffer = std::mem::take(&mut self.buffer);
        // Several requests a turn, but not without end.
        for _ in 0..16 {
            let Some(client) = self.clients.get(&token) else {
                break;
            };
            match wire::receive::<Envelope>(client, &mut buffer) {
                Ok(Some((envelope, fds))) => {
                    let reply_to = ReplyTo {
                        client: token,
                        sequence: envelope.sequence,
                    };
                    self.handle(reply_to, envelope.request, fds);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The end of the stream, or something that is not our protocol.
                Ok(None) | Err(_) => {
                    self.drop_client(token);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    fn drop_client(&mut self, token: u64) {
        if let Some(fd) = self.clients.remove(&token) {
            self.unwatch(token, &fd);
            self.kill_execs_of(token);
        }
    }

    /// Answers that come later return `None`.
    fn handle(&mut self, reply_to: ReplyTo, request: Request, fds: Vec<OwnedFd>) {
        let result = match request {
            Request::Hello => Some(Ok(self.hello())),
            Request::CreateSandbox(spec) => self.create_sandbox(reply_to, spec).err().map(Err),
            Request::RemoveSandbox { id } => {
                self.remove_sandbox(&id);
                Some(Ok(Answer::Done))
            }
            Request::Start(spec) => self.start_container(reply_to, *spec, fds).err().map(Err),
            Request::Exec {
                exec_id,
                container_id,
                process,
            } => self
                .start_exec(reply_to, exec_id, &container_id, &process, fds)
                .err()
                .map(Err),
            Request::Signal { id, signal } => Some(self.signal(&id, signal)),
            Request::Attach {
                id,
                stdin,
                stdout,
                stderr,
            } => {
                self.attach(reply_to, &id, stdin, (stdout, stderr), fds);
                None
            }
            Request::ReopenLog { id } => Some(self.reopen_log(&id)),
            Request::Forget { id } => {
                self.forget(&id);
                Some(Ok(Answer::Done))
            }
            Request::Shutdown => {
                self.kill_all();
                self.stopping = true;
                Some(Ok(Answer::Done))
            }
        };
        if let Some(result) = result {
            self.reply(reply_to, result);
        }
    }

    fn reply(&mut self, to: ReplyTo, result: Result<Answer, Failure>) {
        self.send(
            to.client,
            &FromZygote::Reply {
                sequence: to.sequence,
                result,
            },
            &[],
        );
    }

    fn reply_with(&mut self, to: ReplyTo, answer: Answer, fds: &[&OwnedFd]) {
        self.send(
            to.client,
            &FromZygote::Reply {
                sequence: to.sequence,
                result: Ok(answer),
            },
            fds,
        );
    }

    fn send(&mut self, client: u64, message: &FromZygote, fds: &[&OwnedFd]) {
        let Some(socket) = self.clients.get(&client) else {
            return;
        };
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        if wire::send(socket, message, &fds).is_err() {
            // A peer that does not read loses its connection and asks again after the next one.
            self.drop_client(client);
        }
    }

    fn broadcast(&mut self, message: &FromZygote) {
        for client in self.clients.keys().copied().collect::<Vec<_>>() {
            self.send(client, message, &[]);
        }
    }

    /// Asks for as many sets of namespaces as should stand ready.
    fn order_namespaces(&mut self) {
        if let Some(maker) = &mut self.maker {
            for _ in self.ready.len() + maker.wanted..attendant::READY_MAX {
                maker.ask();
            }
        }
    }

    fn read_maker(&mut self) {
        while let Some(maker) = &mut self.maker {
            match maker.receive() {
                Ok(Some(set)) => self.ready.push(set),
                Ok(None) => return,
                // From now on each pod waits for its own.
                Err(_) => {
                    if let Some(maker) = self.maker.take() {
                        self.unwatch(self.maker_token, &maker.socket);
                    }
                }
            }
        }
    }

    /// The mounts of an ended container may go.
    fn release_mounts(&mut self, id: String) {
        self.unreleased.push_back(id);
        self.release_more();
    }

    fn release_more(&mut self) {
        while let (Some(closer), Some(id)) = (&self.closer, self.unreleased.front()) {
            match closer.release(id) {
                Ok(()) => {}
                // It is far behind: later.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What it held went with it.
                Err(_) => self.closer = None,
            }
            self.unreleased.pop_front();
        }
        if self.closer.is_none() {
            self.unreleased.clear();
        }
    }

    fn reap(&mut self, token: u64) {
        if let Some(pidfd) = self.reaping.remove(&token) {
            let _ = tasks::wait(&pidfd);
            self.unwatch(token, &pidfd);
        }
    }
}

/// The containers' descriptors are ours; their own soft limit is put back before exec.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    super::child::remember_descriptor_limit(limit);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}

/// A pair of sockets; ours does not block.
fn report_socket() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Nanoseconds since 1970.
pub fn now_nanos() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
