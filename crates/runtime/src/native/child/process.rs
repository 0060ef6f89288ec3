//! From a process that stands inside its container to the container's command.
//!
//! Enter at [`become_command`]. Order matters: descriptors of the node are closed first, then the
//! user is looked up, the directory entered and checked, the command found, and only then are the
//! privileges given up and the filter installed.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

use super::{Fault, inside};
use crate::native::protocol::{ProcessSpec, UserSpec};
use crate::native::sys::{self, BpfInstruction};

/// Where commands are looked for when the image says nothing; containerd's default.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest account file that is read.
const ACCOUNT_FILE_BYTES_MAX: u64 = 8 << 20;
const CAPABILITY_LAST: u64 = 40;

/// Who the process will be.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Gives up every privilege that the command may not have, and executes it. Returns only a fault.
///
/// `own_binary` is device and inode of the program itself, which no container may execute.
pub fn become_command(
    process: &ProcessSpec,
    filter: &[BpfInstruction],
    own_binary: (u64, u64),
) -> Fault {
    match prepare_and_execute(process, filter, own_binary) {
        Ok(never) => match never {},
        Err(fault) => fault,
    }
}

fn prepare_and_execute(
    process: &ProcessSpec,
    filter: &[BpfInstruction],
    own_binary: (u64, u64),
) -> Result<std::convert::Infallible, Fault> {
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| Fault::of("open /", e.into()))?;
    let identity = identity(&process.user, |path| {
        inside::read_text(root.as_fd(), path, ACCOUNT_FILE_BYTES_MAX)
    })?;
    let env = environment(process, &identity.home);
    enter_directory(&root, &process.working_dir)?;
    drop(root);
    let command = process
        .args
        .first()
        .ok_or_else(|| Fault::start("no command specified"))?;
    let path = find_command(command, &env, own_binary)?;
    let strings = |list: &[String]| {
        list.iter()
            .map(|s| CString::new(s.as_bytes()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Fault::start("a NUL byte in the command or its environment"))
    };
    let args = strings(&process.args)?;
    let env = strings(&env)?;
    let path_text = path.to_string_lossy().into_owned();
    let path = CString::new(path_text.as_bytes())
        .map_err(|_| Fault::start("a NUL byte in the command"))?;
    if let Some(stdio) = process.tty.then(|| {
        rustix::fs::fchown(
            std::io::stdin(),
            Some(rustix::fs::Uid::from_raw(identity.uid)),
            None,
        )
    }) {
        stdio.map_err(|e| Fault::of("give the terminal to its user", e.into()))?;
    }

    if !process.no_new_privs && !filter.is_empty() {
        // Needs CAP_SYS_ADMIN, so it comes before the capabilities go.
        sys::seccomp_install(filter).map_err(|e| Fault::of("install the seccomp filter", e))?;
    }
    drop_privileges(process, &identity)?;
    if process.no_new_privs {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
            .map_err(|e| Fault::of("set no_new_privs", e))?;
        if !filter.is_empty() {
            sys::seccomp_install(filter).map_err(|e| Fault::of("install the seccomp filter", e))?;
        }
    }
    let error = sys::execve(&path, &args, &env);
    Err(Fault::start(format!(
        "exec {path_text}: {}",
        errno_text(&error)
    )))
}

fn drop_privileges(process: &ProcessSpec, identity: &Identity) -> Result<(), Fault> {
    for capability in 0..=CAPABILITY_LAST {
        if process.capabilities & 1 << capability == 0 {
            match sys::prctl(libc::PR_CAPBSET_DROP, capability, 0) {
                // A capability that this kernel does not know.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                other => drop(
                    other.map_err(|e| Fault::of("drop a capability from the bounding set", e))?,
                ),
            }
        }
    }
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).map_err(|e| Fault::of("keep capabilities", e))?;
    sys::set_identity(identity.uid, identity.gid, &identity.groups)
        .map_err(|e| Fault::of(format!("become user {}:{}", identity.uid, identity.gid), e))?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 0, 0).map_err(|e| Fault::of("keep capabilities", e))?;
    sys::capset(process.capabilities, process.capabilities, 0)
        .map_err(|e| Fault::of("set capabilities", e))
}

/// `NAME=value` lines: the process's own, with `PATH` and `HOME` where they are missing.
fn environment(process: &ProcessSpec, home: &str) -> Vec<String> {
    let mut env = process.env.clone();
    let missing = |env: &[String], name: &str| !env.iter().any(|line| line.starts_with(name));
    if missing(&env, "PATH=") {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    if missing(&env, "HOME=") {
        env.push(format!("HOME={home}"));
    }
    if process.tty && missing(&env, "TERM=") {
        env.push("TERM=xterm".to_owned());
    }
    env
}

fn enter_directory(root: &OwnedFd, directory: &str) -> Result<(), Fault> {
    let directory = if directory.is_empty() { "/" } else { directory };
    let context = |e: io::Error| {
        Fault::start(format!(
            "chdir to cwd (\"{directory}\"): {}",
            errno_text(&e)
        ))
    };
    let fd = match inside::resolve(
        root.as_fd(),
        Path::new(directory),
        OFlags::PATH | OFlags::DIRECTORY,
    ) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            inside::resolve_or_create(root.as_fd(), Path::new(directory), true)
        }
        other => other,
    }
    .map_err(context)?;
    rustix::process::fchdir(&fd).map_err(|e| context(e.into()))?;
    // A directory outside of the root has no path in it: the kernel says "(unreachable)".
    let here = rustix::process::getcwd(Vec::new()).map_err(|e| context(e.into()))?;
    if here.to_bytes().first() != Some(&b'/') {
        return Err(Fault::start(format!(
            "working directory \"{directory}\" is outside of the container"
        )));
    }
    Ok(())
}

fn find_command(command: &str, env: &[String], own_binary: (u64, u64)) -> Result<PathBuf, Fault> {
    if command.contains('/') {
        return match executable(Path::new(command), own_binary) {
            Ok(()) => Ok(PathBuf::from(command)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Fault::start(format!(
                "exec: \"{command}\": stat {command}: no such file or directory"
            ))),
            Err(error) => Err(Fault::start(format!(
                "exec: \"{command}\": {}",
                errno_text(&error)
            ))),
        };
    }
    let path = env
        .iter()
        .find_map(|line| line.strip_prefix("PATH="))
        .unwrap_or("");
    let mut denied = false;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(command);
        match executable(&candidate, own_binary) {
            Ok(()) if !command.is_empty() => return Ok(candidate),
            Ok(()) => {}
            Err(error) => denied |= error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
    let why = if denied {
        "permission denied"
    } else {
        "executable file not found in $PATH"
    };
    Err(Fault::start(format!("exec: \"{command}\": {why}")))
}

fn executable(path: &Path, own_binary: (u64, u64)) -> io::Result<()> {
    let status = rustix::fs::statat(CWD, path, AtFlags::empty())?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        FileType::RegularFile
            if status.st_mode & 0o111 != 0 && (status.st_dev, status.st_ino) != own_binary =>
        {
            Ok(())
        }
        _ => Err(io::Error::from_raw_os_error(libc::EACCES)),
    }
}

/// The kernel's words, as Go programs print them.
pub fn errno_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::EISDIR) => "is a directory".to_owned(),
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        Some(libc::ENOTDIR) => "not a directory".to_owned(),
        Some(libc::EPERM) => "operation not permitted".to_owned(),
        Some(libc::E2BIG) => "argument list too long".to_owned(),
        _ => error.to_string(),
    }
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// Resolves names and numbers with the container's own account files.
pub fn identity(user: &UserSpec, read: impl Fn(&str) -> Option<String>) -> Result<Identity, Fault> {
    let accounts: Vec<Account> = read("/etc/passwd")
        .map(|text| text.lines().filter_map(account).collect())
        .unwrap_or_default();
    let by_uid = |uid: u32| accounts.iter().find(|a| a.uid == uid);
    let (user_part, group_part) = user
        .image_user
        .split_once(':')
        .unwrap_or((&user.image_user, ""));
    let account = match user.uid {
        Some(uid) => (uid, by_uid(uid)),
        None if user_part.is_empty() => (0, by_uid(0)),
        None => match accounts.iter().find(|a| a.name == user_part) {
            Some(a) => (a.uid, Some(a)),
            None => match user_part.parse() {
                Ok(uid) => (uid, by_uid(uid)),
                Err(_) => {
                    return Err(Fault::start(format!(
                        "unable to find user {user_part}: no matching entries in passwd file"
                    )));
                }
            },
        },
    };
    let groups_text = read("/etc/group").unwrap_or_default();
    let groups: Vec<(&str, u32, Vec<&str>)> = groups_text.lines().filter_map(group).collect();
    let gid = match (user.gid, user.uid.is_none(), group_part) {
        (Some(gid), _, _) => gid,
        (None, true, name) if !name.is_empty() => match groups.iter().find(|g| g.0 == name) {
            Some(g) => g.1,
            None => name.parse().map_err(|_| {
                Fault::start(format!(
                    "unable to find group {name}: no matching entries in group file"
                ))
            })?,
        },
        _ => account.1.map_or(0, |a| a.gid),
    };
    let mut all = vec![gid];
    if let Some(a) = account.1 {
        all.extend(
            groups
                .iter()
                .filter(|g| g.2.contains(&a.name.as_str()))
                .map(|g| g.1),
        );
    }
    all.extend(&user.supplemental_groups);
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|gid| seen.insert(*gid));
    let home = account
        .1
        .map(|a| a.home.clone())
        .filter(|h| !h.is_empty())
        .unwrap_or_else(|| "/".to_owned());
    Ok(Identity {
        uid: account.0,
        gid,
        groups: all,
        home,
    })
}

fn account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).unwrap_or("").to_owned();
    Some(Account {
        name,
        uid,
        gid,
        home,
    })
}

fn group(line: &str) -> Option<(&str, u32, Vec<&str>)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let gid = fields.nth(1)?.parse().ok()?;
    let members = fields
        .next()
        .unwrap_or("")
        .split(',')
        .filter(|m| !m.is_empty())
        .collect();
    Some((name, gid, members))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/false\nbad line\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\ndisk:x:6:web,other\nlogs:x:4:web\n";

    #[test]
    fn users_as_images_and_pods_name_them() {
        let check = |uid: Option<u32>,
                     gid: Option<u32>,
                     image_user: &str,
                     expect: Result<(u32, u32, &[u32], &str), &str>| {
            let user = UserSpec {
                uid,
                gid,
                supplemental_groups: vec![7],
                image_user: image_user.to_owned(),
            };
            let got = identity(&user, |path| {
                Some(if path == "/etc/passwd" { PASSWD } else { GROUP }.to_owned())
            });
            match (got, expect) {
                (Ok(i), Ok((uid, gid, groups, home))) => {
                    assert_eq!(
                        (i.uid, i.gid, &i.groups[..], &i.home[..]),
                        (uid, gid, groups, home),
                        "{image_user}"
                    );
                }
                (Err(e), Err(text)) => assert!(e.message.contains(text), "{}", e.message),
                (got, expect) => panic!("{image_user}: {got:?} instead of {expect:?}"),
            }
        };
        check(None, None, "", Ok((0, 0, &[0, 7], "/root")));
        check(None, None, "web", Ok((33, 34, &[34, 6, 4, 7], "/srv")));
        check(None, None, "web:root", Ok((33, 0, &[0, 6, 4, 7], "/srv")));
        check(None, None, "33:99", Ok((33, 99, &[99, 6, 4, 7], "/srv")));
        check(None, None, "1234", Ok((1234, 0, &[0, 7], "/")));
        check(Some(33), None, "root", Ok((33, 34, &[34, 6, 4, 7], "/srv")));
        check(
            Some(1000),
            Some(2000),
            "web",
            Ok((1000, 2000, &[2000, 7], "/")),
        );
        check(None, None, "nobody", Err("unable to find user nobody"));
        check(
            None,
            None,
            "web:nogroup",
            Err("unable to find group nogroup"),
        );
    }
}
