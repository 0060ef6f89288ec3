//! The system calls that rustix does not offer, each behind a safe function.
//!
//! JUSTIFICATION for `unsafe`: process creation (`clone3`, `execve`), seccomp, bpf and terminal
//! control have no safe wrapper in a well-kept crate. Everything else in the crate goes through
//! rustix. Invariant: the zygote is single-threaded, so a forked child may allocate.
#![allow(
    unsafe_code,
    reason = "raw system calls; each block carries its SAFETY comment"
)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_long, c_ulong};

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Arguments of `clone3(2)`, version 2 (with the target cgroup).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which side of a fork we are on.
pub enum Forked {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Forks with namespace flags (`CLONE_NEW*`, `CLONE_PARENT`), optionally straight into a v2 cgroup.
///
/// Only for single-threaded processes: the child goes on with a copy of everything.
pub fn fork_into(flags: c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags as u64 | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: if flags & libc::CLONE_PARENT != 0 {
            0
        } else {
            libc::SIGCHLD as u64
        },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no stack and no CLONE_VM, so this is a fork; args outlives the call; the process has one thread.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel has stored a fresh descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent {
        pid: pid as i32,
        pidfd,
    })
}

/// `setns(2)` with any mixture of `CLONE_NEW*` flags (a pidfd) or one flag (a namespace).
pub fn setns(fd: BorrowedFd<'_>, flags: c_int) -> io::Result<()> {
    // SAFETY: plain integers.
    check(c_long::from(unsafe { libc::setns(fd.as_raw_fd(), flags) })).map(drop)
}

/// `unshare(2)`.
pub fn unshare(flags: c_int) -> io::Result<()> {
    // SAFETY: plain integers; never called with CLONE_FILES or CLONE_VM.
    check(c_long::from(unsafe { libc::unshare(flags) })).map(drop)
}

/// Ends the process without running destructors or exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `mount_setattr(2)` on the mount that `fd` stands on. `attributes` are `MOUNT_ATTR_*`, `propagation` `MS_*`.
pub fn mount_setattr(
    fd: BorrowedFd<'_>,
    recursive: bool,
    attributes: u64,
    propagation: u64,
) -> io::Result<()> {
    let attr = MountAttr {
        attr_set: attributes,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { 0x8000 } else { 0 };
    // SAFETY: attr and the path are valid for the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Marks every descriptor from `first` up close-on-exec, or closes it now.
pub fn close_range(first: u32, close_on_exec: bool) -> io::Result<()> {
    close_between(first, u32::MAX, close_on_exec)
}

/// [`close_range`] for `first..=last`.
pub fn close_between(first: u32, last: u32, close_on_exec: bool) -> io::Result<()> {
    let flags: u32 = if close_on_exec { 4 } else { 0 };
    // SAFETY: callers close only descriptors that no live owner in this process uses any more (just before exec).
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Replaces the process. Returns only the error.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let argv = pointers(args);
    let envp = pointers(env);
    // SAFETY: both arrays end in NULL and outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Executes the file behind `fd`. Returns only the error.
pub fn fexecve(fd: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Error {
    let argv = pointers(args);
    let envp = pointers(env);
    // SAFETY: both arrays end in NULL and outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain(std::iter::once(std::ptr::null()))
        .collect()
}

/// `prctl(2)` with integer arguments.
pub fn prctl(option: c_int, a: c_ulong, b: c_ulong) -> io::Result<c_int> {
    // SAFETY: callers use options whose arguments are integers only.
    check(c_long::from(unsafe { libc::prctl(option, a, b, 0, 0) })).map(|v| v as c_int)
}

/// One classic BPF instruction, as the kernel takes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BpfInstruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub k: u32,
}

#[repr(C)]
struct BpfProgram {
    length: u16,
    filter: *const BpfInstruction,
}

/// Installs a seccomp filter for the calling thread.
pub fn seccomp_install(filter: &[BpfInstruction]) -> io::Result<()> {
    let length =
        u16::try_from(filter.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = BpfProgram {
        length,
        filter: filter.as_ptr(),
    };
    // SAFETY: program and filter live through the call; the kernel checks the program.
    check(unsafe { libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program) }).map(drop)
}

/// Signals the process behind a pidfd; any number, real-time ones included.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    // SAFETY: no siginfo.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// Sets the default or ignore disposition of a signal.
pub fn signal_disposition(signal: c_int, ignore: bool) {
    // SAFETY: SIG_DFL and SIG_IGN run no code of ours.
    unsafe { libc::signal(signal, if ignore { libc::SIG_IGN } else { libc::SIG_DFL }) };
}

/// Sleeps until a signal ends the process.
pub fn wait_for_signal() {
    // SAFETY: no arguments.
    unsafe { libc::pause() };
}

/// What the zygote ignores; its children give exactly these their default action back.
const IGNORED: [c_int; 6] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGPIPE,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Every signal gets its default action, whatever was inherited, except what the zygote ignores.
pub fn signals_of_the_zygote() {
    for signal in 1..=libc::SIGRTMAX() {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            signal_disposition(signal, IGNORED.contains(&signal));
        }
    }
}

/// In a child of the zygote: unblocks every signal and gives every signal its default action.
pub fn signals_reset() {
    for signal in IGNORED {
        signal_disposition(signal, false);
    }
    // SAFETY: an empty set is a valid set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Makes `fd` the controlling terminal of this session.
pub fn set_controlling_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is an integer.
    check(c_long::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0)
    }))
    .map(drop)
}

/// The other end of a pseudo-terminal, without a path that somebody could have replaced.
pub fn terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is an integer and the result a fresh descriptor.
    let fd = check(c_long::from(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags)
    }))?;
    // SAFETY: just checked.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Unlocks the other end of a pseudo-terminal.
pub fn terminal_unlock(master: BorrowedFd<'_>) -> io::Result<()> {
    let zero: c_int = 0;
    // SAFETY: the kernel reads one integer.
    check(c_long::from(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const zero)
    }))
    .map(drop)
}

/// Window size of a terminal.
pub fn terminal_resize(fd: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel reads the struct during the call.
    check(c_long::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size)
    }))
    .map(drop)
}

/// Puts the loopback interface of the current network namespace up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: the request struct is plain data, named and sized as the kernel expects.
    unsafe {
        let socket = check(c_long::from(libc::socket(
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        )))?;
        let socket = OwnedFd::from_raw_fd(socket as RawFd);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        check(c_long::from(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )))
        .map(drop)
    }
}

/// Permitted, effective and inheritable sets at once.
pub fn capset(permitted: u64, effective: u64, inheritable: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes exactly two data words.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// The permitted set of this process.
pub fn permitted_capabilities() -> io::Result<u64> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut data = [[0u32; 3]; 2];
    // SAFETY: version 3 fills exactly two data words of three numbers.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[0][1]) | u64::from(data[1][1]) << 32)
}

/// User, group and supplementary groups of the calling (only) thread.
pub fn set_identity(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the list is valid for its length; raw calls, because there is one thread.
    unsafe {
        check(libc::syscall(
            libc::SYS_setgroups,
            groups.len(),
            groups.as_ptr(),
        ))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// `bpf(2)` command numbers used here.
const BPF_PROG_LOAD: c_int = 5;
const BPF_PROG_ATTACH: c_int = 8;

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program of 8-byte instructions.
pub fn bpf_load_devices(program: &[u64]) -> io::Result<OwnedFd> {
    const LICENSE: &CStr = c"Apache-2.0";
    let mut load = [0u64; 16];
    load[0] = 15 | (program.len() as u64) << 32; // prog_type, insn_cnt
    load[1] = program.as_ptr() as u64;
    load[2] = LICENSE.as_ptr() as u64;
    // SAFETY: the attribute block is larger than what this command reads, zero elsewhere, and its pointers live.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            load.as_ptr(),
            size_of_val(&load),
        )
    })?;
    // SAFETY: a fresh descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches a device program to a v2 cgroup, beside those that are there.
pub fn bpf_attach_devices(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // target_fd, attach_bpf_fd, attach_type = BPF_CGROUP_DEVICE (6), attach_flags = BPF_F_ALLOW_MULTI (2)
    let attach: [u32; 8] = [
        cgroup.as_raw_fd() as u32,
        program.as_raw_fd() as u32,
        6,
        2,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: as above.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            attach.as_ptr(),
            size_of_val(&attach),
        )
    })
    .map(drop)
}

/// Takes ownership of an inherited descriptor.
///
/// The caller says that nothing else in this process owns it.
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: used for descriptors that were inherited over exec and for 0, 1, 2 just before exec.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
