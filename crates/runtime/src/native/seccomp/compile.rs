//! From a profile to classic BPF.
//!
//! For each architecture the calls become intervals of numbers with one decision each, found by
//! binary search; a call with conditions has a chain of comparisons. The program is made from its
//! end to its beginning, so that every jump knows how far its target is.
//!
//! Numbers beyond every call that the profile knows answer ENOSYS instead of the default errno, so
//! that programs fall back on a newer kernel as they do on an older one.

use std::collections::BTreeMap;

use super::profile::{Condition, ERRNO, KILL_THREAD, Operator, Profile, Rule};
use super::table::SYSCALLS;
use crate::native::sys::BpfInstruction;

/// Longest program that the kernel takes.
const INSTRUCTIONS_MAX: usize = 4096;
const X32_BIT: u32 = 0x4000_0000;
/// arm's private calls (`cacheflush` and the like) are far above the rest.
const PRIVATE_CALLS_FROM: u32 = 0x000f_0000;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
    Ppc64le,
}

impl Arch {
    /// The one this program was built for.
    pub fn own() -> Self {
        match std::env::consts::ARCH {
            "aarch64" => Self::Aarch64,
            "powerpc64" => Self::Ppc64le,
            _ => Self::X86_64,
        }
    }
    pub fn by_libseccomp_name(name: &str) -> Option<Self> {
        Some(match name {
            "SCMP_ARCH_X86_64" => Self::X86_64,
            "SCMP_ARCH_X86" => Self::X86,
            "SCMP_ARCH_X32" => Self::X32,
            "SCMP_ARCH_AARCH64" => Self::Aarch64,
            "SCMP_ARCH_ARM" => Self::Arm,
            "SCMP_ARCH_PPC64LE" => Self::Ppc64le,
            _ => return None,
        })
    }
    pub fn libseccomp_name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X86 => "SCMP_ARCH_X86",
            Self::X32 => "SCMP_ARCH_X32",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
            Self::Ppc64le => "SCMP_ARCH_PPC64LE",
        }
    }
    /// Architectures that one kernel may run together.
    pub fn family(self) -> u8 {
        match self {
            Self::X86_64 | Self::X86 | Self::X32 => 0,
            Self::Aarch64 | Self::Arm => 1,
            Self::Ppc64le => 2,
        }
    }
    /// `AUDIT_ARCH_*`.
    fn token(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Ppc64le => 0xc000_0015,
        }
    }
    fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::X86 => 1,
            Self::X32 => 2,
            Self::Aarch64 => 3,
            Self::Arm => 4,
            Self::Ppc64le => 5,
        }
    }
    /// Whether arguments are compared in full; else only their lower halves exist.
    fn wide(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64 | Self::Ppc64le)
    }
    fn multiplexes(self) -> bool {
        matches!(self, Self::X86 | Self::Ppc64le)
    }
}

/// Calls that also go through `socketcall` or `ipc`, with their number there.
fn multiplexed(name: &str) -> Option<(&'static str, u64)> {
    const SOCKET: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u64); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    if let Some(index) = SOCKET.iter().position(|n| *n == name) {
        return Some(("socketcall", index as u64 + 1));
    }
    IPC.iter()
        .find(|(n, _)| *n == name)
        .map(|(_, number)| ("ipc", *number))
}

fn number(arch: Arch, name: &str) -> Option<u32> {
    let row = SYSCALLS.binary_search_by(|(n, _)| (*n).cmp(name)).ok()?;
    u32::try_from(SYSCALLS[row].1[arch.column()]).ok()
}

/// Compiles a profile; an error if the program would be longer than the kernel allows.
pub fn compile(profile: &Profile) -> Result<Vec<BpfInstruction>, String> {
    compile_with(profile, true)
}

/// Without `enosys_beyond`, unknown calls get the default action like any other.
pub fn compile_with(profile: &Profile, enosys_beyond: bool) -> Result<Vec<BpfInstruction>, String> {
    let mut out = Assembler::default();
    let mut entries: Vec<(u32, Target)> = Vec::new();
    let has = |arch| profile.arches.contains(&arch);
    for arch in profile.arches.iter().copied().filter(|a| *a != Arch::X32) {
        let decisions = decisions(profile, arch, enosys_beyond);
        let mut tree = out.search(&decisions);
        if arch == Arch::X86_64 {
            let upper = if has(Arch::X32) {
                out.search(&self::decisions(profile, Arch::X32, enosys_beyond))
            } else {
                // -1 is what a tracer sets to skip a call: it is no call of another architecture.
                out.branch(JUMP_EQUAL, u32::MAX, tree, Target::Return(KILL_THREAD))
            };
            tree = out.branch(JUMP_GREATER_OR_EQUAL, X32_BIT, upper, tree);
        }
        let loaded = out.emit(LOAD, NUMBER, tree);
        entries.push((arch.token(), loaded));
    }
    let mut next = Target::Return(KILL_THREAD);
    // The own architecture is tested first.
    for (token, target) in entries.into_iter().rev() {
        next = out.branch(JUMP_EQUAL, token, target, next);
    }
    out.emit(LOAD, ARCHITECTURE, next);
    out.finish()
}

/// Conditions that must hold together, and what is done then; the first that holds decides.
type Chain = Vec<(Vec<Condition>, u32)>;

/// What is decided from a number on, up to the next entry.
type Decisions = Vec<(u32, Decision)>;

#[derive(Clone, Debug, PartialEq)]
enum Decision {
    Action(u32),
    /// In order; then the action.
    Chain(Arch, Chain, u32),
}

fn decisions(profile: &Profile, arch: Arch, enosys_beyond: bool) -> Decisions {
    let default = profile.default_action;
    // Per number: conditional rules in order, and what holds without condition.
    let mut calls: BTreeMap<u32, (Chain, Option<u32>)> = BTreeMap::new();
    let mut highest = None;
    for Rule {
        name,
        action,
        conditions,
    } in &profile.rules
    {
        let direct = number(arch, name);
        if let Some(number) = direct.filter(|n| *n & !X32_BIT < PRIVATE_CALLS_FROM) {
            highest = highest.max(Some(number));
        }
        if *action == default {
            continue;
        }
        let mut add = |number: u32, conditions: Vec<Condition>| {
            let call = calls.entry(number).or_default();
            if conditions.is_empty() {
                call.1.get_or_insert(*action);
            } else {
                call.0.push((conditions, *action));
            }
        };
        if let Some(number) = direct {
            add(number, conditions.clone());
        }
        if arch.multiplexes()
            && let Some((through, index)) = multiplexed(name)
            && let Some(number) = number(arch, through)
        {
            // What the call's arguments are cannot be seen there, only which call it is.
            add(
                number,
                vec![Condition {
                    argument: 0,
                    operator: Operator::Equal,
                    value: index,
                }],
            );
        }
    }
    let mut out: Decisions = vec![(0, Decision::Action(default))];
    let mut push = |from: u32, decision: Decision| match out.last_mut() {
        Some((start, last)) if *start == from => *last = decision,
        Some((_, last)) if *last == decision => {}
        _ => out.push((from, decision)),
    };
    for (number, (chain, unconditional)) in calls {
        let last = unconditional.unwrap_or(default);
        let chain: Vec<_> = chain
            .into_iter()
            .filter(|(_, action)| *action != last)
            .collect();
        push(
            number,
            if chain.is_empty() {
                Decision::Action(last)
            } else {
                Decision::Chain(arch, chain, last)
            },
        );
        push(number + 1, Decision::Action(default));
    }
    if let Some(highest) = highest
        && enosys_beyond
        && default & 0xffff_0000 == ERRNO
    {
        let enosys = ERRNO | libc::ENOSYS as u32;
        let private: Vec<_> = out
            .iter()
            .filter(|(from, _)| *from > highest + 1)
            .cloned()
            .collect();
        out.retain(|(from, _)| *from <= highest);
        out.push((highest + 1, Decision::Action(enosys)));
        for (from, decision) in private {
            let decision = if decision == Decision::Action(default) {
                Decision::Action(enosys)
            } else {
                decision
            };
            out.push((from, decision));
        }
    }
    out.dedup_by(|next, before| next.1 == before.1);
    out
}

/// Where control goes: an instruction by its distance from the end, or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Instruction(usize),
    Return(u32),
}

/// Instructions in reverse: the first one here is the last of the program.
#[derive(Default)]
struct Assembler {
    reversed: Vec<BpfInstruction>,
    returns: BTreeMap<u32, usize>,
    /// Chains that stand in the program, by whether arguments are 64 bits wide there: calls of other
    /// numbers and architectures with the same conditions share one.
    chains: Vec<(bool, Chain, u32, Target)>,
}

impl Assembler {
    fn push(&mut self, code: u16, jump_true: u8, jump_false: u8, k: u32) -> usize {
        self.reversed.push(BpfInstruction {
            code,
            jump_true,
            jump_false,
            k,
        });
        self.reversed.len() - 1
    }

    /// An instruction that goes on with `next`.
    fn emit(&mut self, code: u16, k: u32, next: Target) -> Target {
        let target = self.place(next);
        if target + 1 != self.reversed.len() {
            let distance = self.reversed.len() - 1 - target;
            self.push(JUMP, 0, 0, distance as u32);
        }
        Target::Instruction(self.push(code, 0, 0, k))
    }

    /// Position of a target; an answer that is not there yet is written now.
    fn place(&mut self, target: Target) -> usize {
        match target {
            Target::Instruction(position) => position,
            Target::Return(value) => match self.returns.get(&value) {
                Some(position) => *position,
                None => {
                    let position = self.push(RETURN, 0, 0, value);
                    self.returns.insert(value, position);
                    position
                }
            },
        }
    }

    /// A position within reach of a conditional jump that follows with at most one instruction between.
    fn near(&mut self, target: Target) -> usize {
        let position = self.place(target);
        if self.reversed.len() - position <= 254 {
            return position;
        }
        match target {
            Target::Return(value) => {
                let position = self.push(RETURN, 0, 0, value);
                self.returns.insert(value, position);
                position
            }
            Target::Instruction(_) => {
                let distance = self.reversed.len() - 1 - position;
                self.push(JUMP, 0, 0, distance as u32)
            }
        }
    }

    fn branch(&mut self, code: u16, k: u32, if_true: Target, if_false: Target) -> Target {
        let on_true = self.near(if_true);
        let on_false = self.near(if_false);
        let here = self.reversed.len();
        Target::Instruction(self.push(
            code,
            (here - 1 - on_true) as u8,
            (here - 1 - on_false) as u8,
            k,
        ))
    }

    /// Binary search for the accumulator among the decisions.
    fn search(&mut self, decisions: &[(u32, Decision)]) -> Target {
        match decisions {
            [] => Target::Return(KILL_THREAD),
            [(_, decision)] => self.decide(decision),
            several => {
                let middle = several.len() / 2;
                let upper = self.search(&several[middle..]);
                let lower = self.search(&several[..middle]);
                self.branch(JUMP_GREATER_OR_EQUAL, several[middle].0, upper, lower)
            }
        }
    }

    fn decide(&mut self, decision: &Decision) -> Target {
        match decision {
            Decision::Action(action) => Target::Return(*action),
            Decision::Chain(arch, rules, last) => {
                let wide = arch.wide();
                let shared = self
                    .chains
                    .iter()
                    .find(|(w, r, l, _)| (*w, r, *l) == (wide, rules, *last));
                if let Some((.., target)) = shared {
                    return *target;
                }
                let mut next = Target::Return(*last);
                for (conditions, action) in rules.iter().rev() {
                    let mut then = Target::Return(*action);
                    for condition in conditions.iter().rev() {
                        then = self.compare(*arch, condition, then, next);
                    }
                    next = then;
                }
                self.chains.push((wide, rules.clone(), *last, next));
                next
            }
        }
    }

    fn compare(
        &mut self,
        arch: Arch,
        condition: &Condition,
        then: Target,
        otherwise: Target,
    ) -> Target {
        // All of our architectures are little-endian: the lower half comes first.
        let low_at = ARGUMENTS + 8 * u32::from(condition.argument);
        let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
        let (code, yes, no) = match condition.operator {
            Operator::Masked(mask) => {
                let (mask_low, mask_high) = (mask as u32, (mask >> 32) as u32);
                let test = self.branch(JUMP_EQUAL, low & mask_low, then, otherwise);
                let masked = self.emit(AND, mask_low, test);
                let lower = self.emit(LOAD, low_at, masked);
                if !arch.wide() || mask_high == 0 {
                    return lower;
                }
                let test = self.branch(JUMP_EQUAL, high & mask_high, lower, otherwise);
                let masked = self.emit(AND, mask_high, test);
                return self.emit(LOAD, low_at + 4, masked);
            }
            Operator::Equal => (JUMP_EQUAL, then, otherwise),
            Operator::NotEqual => (JUMP_EQUAL, otherwise, then),
            Operator::Greater => (JUMP_GREATER, then, otherwise),
            Operator::LessOrEqual => (JUMP_GREATER, otherwise, then),
            Operator::GreaterOrEqual => (JUMP_GREATER_OR_EQUAL, then, otherwise),
            Operator::Less => (JUMP_GREATER_OR_EQUAL, otherwise, then),
        };
        let test = self.branch(code, low, yes, no);
        let lower = self.emit(LOAD, low_at, test);
        if !arch.wide() {
            return lower;
        }
        let equal = self.branch(JUMP_EQUAL, high, lower, no);
        let upper = if code == JUMP_EQUAL {
            equal
        } else {
            self.branch(JUMP_GREATER, high, yes, equal)
        };
        self.emit(LOAD, low_at + 4, upper)
    }

    fn finish(mut self) -> Result<Vec<BpfInstruction>, String> {
        if self.reversed.len() > INSTRUCTIONS_MAX {
            return Err(format!(
                "the seccomp profile needs {} instructions, and the kernel takes {INSTRUCTIONS_MAX}",
                self.reversed.len()
            ));
        }
        self.reversed.reverse();
        Ok(self.reversed)
    }
}
