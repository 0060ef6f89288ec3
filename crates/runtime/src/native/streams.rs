//! Streams into containers: exec, attach, port-forward.
//!
//! The server makes the pipes and keeps its ends; the zygote passes terminals and standard input as
//! descriptors. So bytes of an exec never go through the zygote.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::pipe::PipeFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::connection::lock;
use super::protocol::{Answer, ProcessSpec, Request};
use super::runtime::{NativeRuntime, add_hostname, io_error, new_id};
use super::{spec, sys};
use crate::service::{
    Connection, ContainerState, ExecResult, Reader, RuntimeError, SandboxState, Session,
    StreamRequest, TerminalSize, Writer,
};

/// Output of `exec_sync` beyond this is dropped, as containerd does.
const EXEC_SYNC_BYTES_MAX: u64 = 16 << 20;
/// How long output is waited for after the command has ended, when something else holds its pipes.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// An attached reader may fall this far behind before it loses output.
const ATTACH_PIPE_BYTES: usize = 1 << 20;

/// The master side of a terminal.
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        #[expect(
            deprecated,
            reason = "an OwnedFd stays open as long as the AsyncFd that holds it"
        )]
        let fd = AsyncFd::new(fd)?;
        Ok(Self(Arc::new(fd)))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            match guard.try_io(|fd| {
                Ok(rustix::io::read(
                    fd.get_ref(),
                    buffer.initialize_unfilled(),
                )?)
            }) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // Nobody holds the other side any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            if let Ok(result) = guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Sends SIGKILL to an exec'ed command when dropped.
struct KillOnDrop {
    runtime: Weak<NativeRuntime>,
    exec_id: String,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.upgrade()
            && lock(&runtime.execs).contains_key(&self.exec_id)
        {
            runtime.zygote().post(Request::Signal {
                id: self.exec_id.clone(),
                signal: libc::SIGKILL,
            });
        }
    }
}

/// Our ends of a command's standard streams, or its terminal.
struct Running {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    exit: oneshot::Receiver<Result<i32, RuntimeError>>,
    kill: KillOnDrop,
}

fn resizer(terminal: &Arc<AsyncFd<OwnedFd>>) -> mpsc::Sender<TerminalSize> {
    let (sender, mut receiver) = mpsc::channel::<TerminalSize>(8);
    // Weak: waiting for a new size must not keep the terminal open.
    let terminal = Arc::downgrade(terminal);
    tokio::spawn(async move {
        while let Some(size) = receiver.recv().await {
            let Some(terminal) = terminal.upgrade() else {
                return;
            };
            let _ = sys::terminal_resize(terminal.get_ref().as_fd(), size.width, size.height);
        }
    });
    sender
}

fn reader(fd: OwnedFd) -> Result<Reader, RuntimeError> {
    Ok(Box::new(
        pipe::Receiver::from_owned_fd(fd).map_err(|e| io_error("open a stream", &e))?,
    ))
}

fn writer(fd: OwnedFd) -> Result<Writer, RuntimeError> {
    Ok(Box::new(
        pipe::Sender::from_owned_fd(fd).map_err(|e| io_error("open a stream", &e))?,
    ))
}

impl NativeRuntime {
    async fn run_in(&self, request: &StreamRequest) -> Result<Running, RuntimeError> {
        let record = self.container(&request.container_id)?;
        if record.state != ContainerState::Running {
            return Err(RuntimeError::InvalidArgument(format!(
                "{} is not running",
                spec::describe(&record)
            )));
        }
        if request.command.is_empty() {
            return Err(RuntimeError::InvalidArgument(
                "no command specified".to_owned(),
            ));
        }
        let image = self
            .images
            .prepare(&record.config.image_id)
            .map_err(|e| RuntimeError::Internal(e.to_string()))?;
        let base = spec::process(
            &record.config,
            &image.config,
            self.permitted,
            &mut Vec::new(),
        )?;
        let filter = self
            .filters
            .of(&record.config.security, self.permitted)
            .map_err(RuntimeError::InvalidArgument)?;
        let mut process = ProcessSpec {
            args: request.command.clone(),
            tty: request.tty,
            seccomp: filter.is_some(),
            ..base
        };
        add_hostname(&mut process.env, &self.sandbox(&record.sandbox_id)?);
        let exec_id = format!("exec-{}", new_id());

        let open = || {
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                .map_err(|e| io_error("make a pipe", &e.into()))
        };
        let null = |flags| {
            rustix::fs::open(
                "/dev/null",
                flags | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .map_err(|e| io_error("open /dev/null", &e.into()))
        };
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        let mut theirs = Vec::new();
        if !request.tty {
            if request.stdin {
                let (read, write) = open()?;
                stdin = Some(write);
                theirs.push(read);
            } else {
                theirs.push(null(rustix::fs::OFlags::RDONLY)?);
            }
            for (wanted, slot) in [(request.stdout, &mut stdout), (request.stderr, &mut stderr)] {
                if wanted {
                    let (read, write) = open()?;
                    *slot = Some(read);
                    theirs.push(write);
                } else {
                    theirs.push(null(rustix::fs::OFlags::WRONLY)?);
                }
            }
        }
        let fds: Vec<_> = filter
            .iter()
            .map(|f| f.as_fd())
            .chain(theirs.iter().map(|f| f.as_fd()))
            .collect();
        let (sender, exit) = oneshot::channel();
        lock(&self.execs).insert(exec_id.clone(), sender);
        let kill = KillOnDrop {
            runtime: Arc::downgrade(&self.arc()?),
            exec_id: exec_id.clone(),
        };
        let wanted = Request::Exec {
            exec_id: exec_id.clone(),
            container_id: record.id.clone(),
            process: Box::new(process),
        };
        match self.zygote().call(wanted, &fds).await {
            Ok((Answer::ExecStarted { .. }, mut fds)) => Ok(Running {
                stdin,
                stdout,
                stderr,
                terminal: fds.pop(),
                exit,
                kill,
            }),
            Ok(_) => Err(RuntimeError::Internal(
                "the zygote answered something else".to_owned(),
            )),
            Err(error) => {
                lock(&self.execs).remove(&exec_id);
                Err(match error {
                    super::connection::CallError::Failed(failure) if failure.start => {
                        RuntimeError::ExecFailed(failure.message)
                    }
                    other => other.into_runtime("running container", &record.id),
                })
            }
        }
    }

    pub(super) async fn exec_streams(
        &self,
        request: StreamRequest,
    ) -> Result<Session, RuntimeError> {
        let running = self.run_in(&request).await?;
        let mut session = Session {
            stdin: None,
            stdout: None,
            stderr: None,
            resize: None,
            exit: running.exit,
            kill_on_drop: Box::new(running.kill),
        };
        match running.terminal {
            Some(fd) => {
                let terminal = Terminal::new(fd).map_err(|e| io_error("open the terminal", &e))?;
                session.resize = Some(resizer(&terminal.0));
                session.stdin = request
                    .stdin
                    .then(|| Box::new(Terminal(terminal.0.clone())) as Writer);
                session.stdout = Some(Box::new(terminal));
            }
            None => {
                session.stdin = running.stdin.map(writer).transpose()?;
                session.stdout = running.stdout.map(reader).transpose()?;
                session.stderr = running.stderr.map(reader).transpose()?;
            }
        }
        Ok(session)
    }

    pub(super) async fn exec_and_wait(
        &self,
        id: &str,
        command: Vec<String>,
        timeout_seconds: u64,
    ) -> Result<ExecResult, RuntimeError> {
        let request = StreamRequest {
            container_id: id.to_owned(),
            command: command.clone(),
            stdout: true,
            stderr: true,
            ..StreamRequest::default()
        };
        let mut session = self.exec_streams(request).await?;
        let (out, err) = (session.stdout.take(), session.stderr.take());
        let collect = |stream: Option<Reader>| {
            let bytes = Arc::new(std::sync::Mutex::new(Vec::new()));
            let shared = bytes.clone();
            let task = tokio::spawn(async move {
                let Some(mut stream) = stream else { return };
                let mut buffer = vec![0; 16 * 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    let mut all = lock(&shared);
                    let room = (EXEC_SYNC_BYTES_MAX as usize)
                        .saturating_sub(all.len())
                        .min(count);
                    all.extend_from_slice(&buffer[..room]);
                }
            });
            (bytes, task)
        };
        let (stdout, mut out_task) = collect(out);
        let (stderr, mut err_task) = collect(err);
        let wait = async {
            match (&mut session.exit).await {
                Ok(result) => result,
                Err(_) => Err(RuntimeError::Unavailable("the zygote went away".to_owned())),
            }
        };
        let exit_code = if timeout_seconds == 0 {
            wait.await
        } else {
            match tokio::time::timeout(Duration::from_secs(timeout_seconds), wait).await {
                Ok(result) => result,
                Err(_) => Err(RuntimeError::Timeout {
                    operation: format!("command \"{}\"", command.join(" ")),
                    seconds: timeout_seconds,
                }),
            }
        };
        let drained = async {
            let _ = (&mut out_task).await;
            let _ = (&mut err_task).await;
        };
        if exit_code.is_ok() {
            let _ = tokio::time::timeout(DRAIN_PATIENCE, drained).await;
        }
        out_task.abort();
        err_task.abort();
        let exit_code = exit_code?;
        let take = |bytes: &std::sync::Mutex<Vec<u8>>| std::mem::take(&mut *lock(bytes));
        Ok(ExecResult {
            stdout: take(&stdout),
            stderr: take(&stderr),
            exit_code,
        })
    }

    pub(super) async fn attach_streams(
        &self,
        request: StreamRequest,
    ) -> Result<Session, RuntimeError> {
        let record = self.container(&request.container_id)?;
        if record.state != ContainerState::Running {
            return Err(RuntimeError::InvalidArgument(format!(
                "{} is not running",
                spec::describe(&record)
            )));
        }
        let id = record.id;
        let (mut stdout, mut stderr) = (None, None);
        let mut theirs = Vec::new();
        let want_stderr = request.stderr && !record.config.tty;
        for (wanted, slot) in [(request.stdout, &mut stdout), (want_stderr, &mut stderr)] {
            if wanted {
                let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                    .map_err(|e| io_error("make a pipe", &e.into()))?;
                let _ = rustix::pipe::fcntl_setpipe_size(&write, ATTACH_PIPE_BYTES);
                *slot = Some(reader(read)?);
                theirs.push(write);
            }
        }
        let fds: Vec<_> = theirs.iter().map(|f| f.as_fd()).collect();
        let wanted = Request::Attach {
            id: id.clone(),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: want_stderr,
        };
        let (answer, mut inputs) = self
            .zygote()
            .call(wanted, &fds)
            .await
            .map_err(|e| e.into_runtime("running container", &id))?;
        let Answer::Attached { tty, .. } = answer else {
            return Err(RuntimeError::Internal(
                "the zygote answered something else".to_owned(),
            ));
        };
        let (mut stdin, mut resize) = (None, None);
        match (inputs.pop(), tty) {
            (Some(fd), true) => {
                let terminal = Terminal::new(fd).map_err(|e| io_error("open the terminal", &e))?;
                resize = Some(resizer(&terminal.0));
                // Kept open by whoever resizes when nobody types.
                stdin = Some(Box::new(terminal) as Writer);
            }
            (Some(fd), false) if request.stdin => stdin = Some(writer(fd)?),
            _ => {}
        }
        let (sender, exit) = oneshot::channel();
        let ended = lock(&self.state)
            .containers
            .get(&id)
            .map(|entry| entry.ended.subscribe());
        let me = Arc::downgrade(&self.arc()?);
        tokio::spawn(async move {
            if let Some(mut ended) = ended {
                let _ = ended.wait_for(|ended| *ended).await;
            }
            if let Some(me) = me.upgrade() {
                let _ = sender.send(me.container(&id).map(|record| record.exit_code));
            }
        });
        Ok(Session {
            stdin,
            stdout,
            stderr,
            resize,
            exit,
            kill_on_drop: Box::new(()),
        })
    }

    pub(super) async fn connect_inside(
        &self,
        sandbox_id: &str,
        port: u16,
    ) -> Result<Box<dyn Connection>, RuntimeError> {
        let sandbox = self.sandbox(sandbox_id)?;
        if sandbox.state != SandboxState::Ready {
            return Err(RuntimeError::InvalidArgument(format!(
                "sandbox {sandbox_id} is not ready"
            )));
        }
        let netns = self.netns_path(&sandbox);
        let (sender, receiver) = oneshot::channel();
        // A thread of its own: it changes its network namespace and must never serve anything else.
        std::thread::Builder::new()
            .name("port-forward".to_owned())
            .spawn(move || drop(sender.send(connect(netns, port))))
            .map_err(|e| io_error("start a thread", &e))?;
        let stream = receiver
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the connecting thread ended")))
            .map_err(|e| {
                let words = e.to_string().to_lowercase();
                let words = words.split(" (os error").next().unwrap_or(&words);
                RuntimeError::Internal(format!(
                    "failed to connect to localhost:{port} inside the pod: dial tcp 127.0.0.1:{port}: connect: {words}"
                ))
            })?;
        let stream = tokio::net::TcpStream::from_std(stream)
            .map_err(|e| io_error("use the connection", &e))?;
        Ok(Box::new(stream))
    }
}

fn connect(netns: Option<PathBuf>, port: u16) -> io::Result<std::net::TcpStream> {
    if let Some(path) = netns {
        let fd = rustix::fs::open(
            &path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        sys::setns(fd.as_fd(), libc::CLONE_NEWNET)?;
    }
    let v4 = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let v6 = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    let stream = std::net::TcpStream::connect_timeout(&v4, CONNECT_PATIENCE).or_else(|error| {
        std::net::TcpStream::connect_timeout(&v6, CONNECT_PATIENCE).map_err(|_| error)
    })?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
