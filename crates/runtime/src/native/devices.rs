//! Device access by a small eBPF program on the unified hierarchy instead of v1's lists.
//!
//! Enter at [`Programs::attach`]. It serves v2 and the hybrid layout, where it spares a hierarchy.
//! The program compares the request with each allowed rule in turn and denies what matches none.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};

use super::connection::lock;
use super::sys;

/// Devices that every container may use, as `type major:minor access`.
pub const DEFAULT_ALLOWED: [&str; 10] = [
    // Making nodes is harmless where opening them is restricted.
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// Everything, for a cgroup that only keeps the kernel's switch for such programs on.
pub const ALL_ALLOWED: &str = "a";

/// Rule sets whose programs are kept; nearly every container has the default one.
const PROGRAMS_MAX: usize = 16;

/// Loaded programs by their rules: the kernel checks and compiles each only once.
#[derive(Debug, Default)]
pub struct Programs {
    loaded: Mutex<HashMap<Vec<String>, Arc<OwnedFd>>>,
}

impl Programs {
    /// Attaches a program that allows only `allowed` to the v2 cgroup.
    pub fn attach(&self, cgroup: &Path, allowed: &[String]) -> io::Result<()> {
        let directory = rustix::fs::open(
            cgroup,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        sys::bpf_attach_devices(directory.as_fd(), self.of(allowed)?.as_fd())
    }

    fn of(&self, allowed: &[String]) -> io::Result<Arc<OwnedFd>> {
        if let Some(found) = lock(&self.loaded).get(allowed) {
            return Ok(found.clone());
        }
        let made = Arc::new(sys::bpf_load_devices(&program(allowed)?)?);
        let mut loaded = lock(&self.loaded);
        if loaded.len() == PROGRAMS_MAX {
            loaded.clear();
        }
        loaded.insert(allowed.to_vec(), made.clone());
        Ok(made)
    }
}

const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

struct Rule {
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

fn rule(text: &str) -> io::Result<Rule> {
    let bad = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("device rule \"{text}\""),
        )
    };
    let mut parts = text.split(' ');
    let kind = match parts.next().ok_or_else(bad)? {
        "a" => {
            return Ok(Rule {
                kind: None,
                major: None,
                minor: None,
                access: MKNOD | READ | WRITE,
            });
        }
        "b" => Some(BLOCK),
        "c" => Some(CHARACTER),
        _ => return Err(bad()),
    };
    let (major, minor) = parts
        .next()
        .and_then(|n| n.split_once(':'))
        .ok_or_else(bad)?;
    let number = |text: &str| {
        if text == "*" {
            Ok(None)
        } else {
            text.parse().map(Some).map_err(|_| bad())
        }
    };
    let access = parts
        .next()
        .unwrap_or("rwm")
        .bytes()
        .try_fold(0, |all, letter| match letter {
            b'r' => Ok(all | READ),
            b'w' => Ok(all | WRITE),
            b'm' => Ok(all | MKNOD),
            _ => Err(bad()),
        })?;
    Ok(Rule {
        kind,
        major: number(major)?,
        minor: number(minor)?,
        access,
    })
}

/// One eBPF instruction: opcode, destination, source, jump offset, immediate.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> u64 {
    u64::from(code)
        | u64::from(destination & 15) << 8
        | u64::from(source & 15) << 12
        | u64::from(offset as u16) << 16
        | u64::from(immediate) << 32
}

/// Registers: r2 type, r3 access wanted, r4 major, r5 minor. The context is `bpf_cgroup_dev_ctx`.
fn program(allowed: &[String]) -> io::Result<Vec<u64>> {
    const LOAD_WORD: u8 = 0x61;
    const MOVE: u8 = 0xbf;
    const MOVE_IMMEDIATE: u8 = 0xb7;
    const AND_32: u8 = 0x54;
    const SHIFT_RIGHT_32: u8 = 0x74;
    const JUMP_NOT_EQUAL: u8 = 0x55;
    const EXIT: u8 = 0x95;
    let mut out = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE, 3, 2, 0, 0),
        instruction(AND_32, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_32, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for text in allowed {
        let rule = rule(text)?;
        // Each failed test jumps over the rest of this rule; built back to front to know how far.
        let mut body = vec![
            instruction(MOVE_IMMEDIATE, 0, 0, 0, 1),
            instruction(EXIT, 0, 0, 0, 0),
        ];
        let mut test = |register: u8, wanted: Option<u32>| {
            if let Some(wanted) = wanted {
                body.insert(
                    0,
                    instruction(JUMP_NOT_EQUAL, register, 0, body.len() as i16, wanted),
                );
            }
        };
        test(5, rule.minor);
        test(4, rule.major);
        test(2, rule.kind);
        if rule.access != MKNOD | READ | WRITE {
            // Whatever is wanted beyond the rule's access remains after masking.
            body.insert(0, instruction(JUMP_NOT_EQUAL, 0, 0, body.len() as i16, 0));
            body.insert(0, instruction(AND_32, 0, 0, 0, !rule.access));
            body.insert(0, instruction(MOVE, 0, 3, 0, 0));
        }
        out.extend(body);
    }
    out.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, 0));
    out.push(instruction(EXIT, 0, 0, 0, 0));
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_kernel_accepts_the_program() {
        // The unified hierarchy of a hybrid layout takes the program too.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let Some(line) = mounts.lines().find(|l| l.contains(" - cgroup2 ")) else {
            return;
        };
        let mount = Path::new(line.split(' ').nth(4).unwrap());
        let directory = mount.join(format!("llmagentos-test-devices-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let rules: Vec<String> = DEFAULT_ALLOWED.iter().map(|s| (*s).to_owned()).collect();
        let result = Programs::default().attach(&directory, &rules);
        let probe = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!(
                "echo $$ > {}/cgroup.procs; cat /dev/null && head -c1 /dev/zero >/dev/null && ! head -c1 /dev/kmsg 2>/dev/null && ! head -c1 /dev/vda 2>/dev/null",
                directory.display()
            ))
            .status()
            .unwrap();
        std::fs::remove_dir(&directory).unwrap();
        result.unwrap();
        assert!(probe.success());
    }
}
