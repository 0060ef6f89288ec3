//! The server's end of the socket to the zygote.
//!
//! Enter at [`Connection::open`], then [`Connection::call`]. One task reads; it completes calls in
//! the order of the answers and hands events on. Sending may be done from anywhere.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::protocol::{
    Answer, ContainerRecord, Envelope, Exit, Failure, FromZygote, Request, SandboxRecord, VERSION,
};
use super::{wire, zygote};
use crate::service::RuntimeError;

type Reply = Result<(Answer, Vec<OwnedFd>), Failure>;

/// What the zygote knows when the connection opens.
pub struct Hello {
    pub sandboxes: Vec<SandboxRecord>,
    pub containers: Vec<ContainerRecord>,
}

/// Something that happened by itself.
pub enum Event {
    ContainerExited { id: String, exit: Exit },
    ExecExited { id: String, exit: Exit },
}

pub struct Connection {
    socket: OwnedFd,
    pub zygote_pid: u32,
    pending: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
    next_sequence: AtomicU64,
}

/// How to find or make the zygote.
pub struct Zygote<'a> {
    pub run_dir: &'a Path,
    /// Program and arguments that end in [`super::zygote_main`].
    pub command: &'a [String],
    pub cgroups: Vec<PathBuf>,
}

impl Connection {
    /// Connects to the zygote of the run directory, if one runs.
    pub fn to_existing(run_dir: &Path) -> io::Result<(Self, Hello)> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let path = run_dir.join(zygote::SOCKET_NAME);
        rustix::net::connect(&socket, &SocketAddrUnix::new(&path)?)?;
        Self::greet(socket)
    }

    /// Connects to the zygote, and starts one first if there is none.
    pub fn open(zygote: &Zygote<'_>) -> io::Result<(Self, Hello)> {
        match Self::to_existing(zygote.run_dir) {
            Ok(found) => return Ok(found),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => return Err(error),
        }
        let (program, args) = zygote
            .command
            .split_first()
            .ok_or_else(|| io::Error::other("the zygote's command is empty"))?;
        let mut command = Command::new(program);
        command.args(args).arg("--run-dir").arg(zygote.run_dir);
        for cgroup in &zygote.cgroups {
            command.arg("--cgroup").arg(cgroup);
        }
        let output = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!(
                "the zygote did not start: {}",
                text.trim()
            )));
        }
        Self::to_existing(zygote.run_dir)
    }

    fn greet(socket: OwnedFd) -> io::Result<(Self, Hello)> {
        wire::send(
            &socket,
            &Envelope {
                sequence: 0,
                request: Request::Hello,
            },
            &[],
        )?;
        let mut buffer = Vec::new();
        loop {
            // Events that overtake the answer are in it already.
            match wire::receive::<FromZygote>(&socket, &mut buffer)? {
                Some((
                    FromZygote::Reply {
                        sequence: 0,
                        result,
                    },
                    _,
                )) => {
                    let Ok(Answer::Hello {
                        version,
                        pid,
                        sandboxes,
                        containers,
                    }) = result
                    else {
                        return Err(io::Error::other("the zygote does not know us"));
                    };
                    if version != VERSION {
                        return Err(io::Error::other(format!(
                            "the running zygote speaks version {version}, this program {VERSION}: stop the containers with `llmagentos reset` first"
                        )));
                    }
                    let connection = Self {
                        socket,
                        zygote_pid: pid,
                        pending: Mutex::default(),
                        next_sequence: AtomicU64::new(1),
                    };
                    return Ok((
                        connection,
                        Hello {
                            sandboxes,
                            containers,
                        },
                    ));
                }
                Some(_) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Sends a request and waits for its answer.
    pub async fn call(
        &self,
        request: Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>), CallError> {
        let (sender, receiver) = oneshot::channel();
        let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
        lock(&self.pending).insert(sequence, sender);
        if let Err(error) = wire::send(&self.socket, &Envelope { sequence, request }, fds) {
            lock(&self.pending).remove(&sequence);
            return Err(CallError::Lost(error.to_string()));
        }
        match receiver.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failure)) => Err(CallError::Failed(failure)),
            Err(_) => Err(CallError::Lost("the zygote went away".to_owned())),
        }
    }

    /// Sends without waiting; the answer is dropped.
    pub fn post(&self, request: Request) {
        let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
        let _ = wire::send(&self.socket, &Envelope { sequence, request }, &[]);
    }

    /// Reads until the connection ends, then fails what waits.
    ///
    /// The task that waits for an answer runs on the thread that this one was woken on: there is no
    /// other switch between the zygote and it.
    pub async fn read(&self, mut on_event: impl FnMut(Event)) {
        let mut buffer = Vec::new();
        #[expect(
            deprecated,
            reason = "an OwnedFd stays open as long as the AsyncFd that holds it"
        )]
        let watch = |socket| AsyncFd::with_interest(socket, Interest::READABLE);
        if let Ok(socket) = self.socket.try_clone().and_then(watch) {
            while let Ok(mut ready) = socket.readable().await {
                match wire::receive_now::<FromZygote>(socket.get_ref(), &mut buffer) {
                    Ok(Some((message, fds))) => self.take(message, fds, &mut on_event),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(None) | Err(_) => break,
                }
            }
        }
        self.close();
        lock(&self.pending).clear();
    }

    fn take(&self, message: FromZygote, fds: Vec<OwnedFd>, on_event: &mut impl FnMut(Event)) {
        match message {
            FromZygote::Reply { sequence, result } => {
                if let Some(waiting) = lock(&self.pending).remove(&sequence) {
                    let _ = waiting.send(result.map(|answer| (answer, fds)));
                }
            }
            FromZygote::ContainerExited { id, exit } => {
                on_event(Event::ContainerExited { id, exit });
            }
            FromZygote::ExecExited { id, exit } => on_event(Event::ExecExited { id, exit }),
        }
    }

    /// Waits for the end of the connection. Blocks.
    pub fn wait_for_end(&self) {
        let mut buffer = Vec::new();
        while let Ok(Some(_)) = wire::receive::<FromZygote>(&self.socket, &mut buffer) {}
    }

    /// Ends [`Connection::read`].
    pub fn close(&self) {
        let _ = rustix::net::shutdown(self.socket.as_fd(), Shutdown::Both);
    }
}

/// Why a call has no answer.
#[derive(Debug)]
pub enum CallError {
    Failed(Failure),
    Lost(String),
}

impl CallError {
    pub fn into_runtime(self, kind: &'static str, id: &str) -> RuntimeError {
        match self {
            Self::Failed(failure) if failure.not_found => RuntimeError::NotFound {
                kind,
                id: id.to_owned(),
            },
            Self::Failed(failure) => RuntimeError::Internal(failure.message),
            Self::Lost(why) => RuntimeError::Unavailable(why),
        }
    }
}

/// A poisoned lock means that a panic was contained elsewhere; the data is still whole.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
