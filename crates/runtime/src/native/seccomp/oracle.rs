//! libseccomp as the oracle: both filters decide alike on every input of a generated table.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Seek};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};

use super::compile::{Arch, compile, compile_with};
use super::default;
use super::profile::{ALLOW, Operator, Profile};
use super::table::SYSCALLS;
use crate::native::capabilities;
use crate::native::sys::BpfInstruction;

struct Input {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

/// A classic BPF machine, as far as seccomp goes.
fn run(program: &[BpfInstruction], input: &Input) -> u32 {
    let load = |offset: u32| match offset {
        0 => input.number,
        4 => input.arch,
        8 | 12 => 0,
        _ => {
            let arg = input.args[(offset as usize - 16) / 8];
            if offset.is_multiple_of(8) {
                arg as u32
            } else {
                (arg >> 32) as u32
            }
        }
    };
    let (mut accumulator, mut at, mut index, mut memory) = (0u32, 0usize, 0u32, [0u32; 16]);
    loop {
        let BpfInstruction {
            code,
            jump_true,
            jump_false,
            k,
        } = program[at];
        at += 1;
        let mut branch =
            |taken: bool| at += usize::from(if taken { jump_true } else { jump_false });
        match code {
            0x20 => accumulator = load(k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => branch(accumulator == k),
            0x25 => branch(accumulator > k),
            0x35 => branch(accumulator >= k),
            0x45 => branch(accumulator & k != 0),
            0x06 => return k,
            0x02 => memory[k as usize] = accumulator,
            0x60 => accumulator = memory[k as usize],
            0x07 => index = accumulator,
            0x87 => accumulator = index,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn scmp_arch(arch: Arch) -> ScmpArch {
    match arch {
        Arch::X86_64 => ScmpArch::X8664,
        Arch::X86 => ScmpArch::X86,
        Arch::X32 => ScmpArch::X32,
        Arch::Aarch64 => ScmpArch::Aarch64,
        Arch::Arm => ScmpArch::Arm,
        Arch::Ppc64le => ScmpArch::Ppc64Le,
    }
}

fn action(value: u32) -> ScmpAction {
    match value & 0xffff_0000 {
        0x7fff_0000 => ScmpAction::Allow,
        0x0005_0000 => ScmpAction::Errno((value & 0xffff) as i32),
        0x8000_0000 => ScmpAction::KillProcess,
        0x7ffc_0000 => ScmpAction::Log,
        _ => panic!("{value:#x}"),
    }
}

fn reference(profile: &Profile) -> Vec<BpfInstruction> {
    let mut context = ScmpFilterContext::new(action(profile.default_action)).unwrap();
    for arch in &profile.arches {
        context.add_arch(scmp_arch(*arch)).unwrap();
    }
    if !profile.arches.contains(&Arch::X86_64) {
        context.remove_arch(ScmpArch::X8664).unwrap();
    }
    for rule in profile
        .rules
        .iter()
        .filter(|r| r.action != profile.default_action)
    {
        let Ok(call) = ScmpSyscall::from_name(&rule.name) else {
            continue;
        };
        let conditions: Vec<_> = rule
            .conditions
            .iter()
            .map(|c| {
                let operator = match c.operator {
                    Operator::Equal => ScmpCompareOp::Equal,
                    Operator::NotEqual => ScmpCompareOp::NotEqual,
                    Operator::Less => ScmpCompareOp::Less,
                    Operator::LessOrEqual => ScmpCompareOp::LessOrEqual,
                    Operator::Greater => ScmpCompareOp::Greater,
                    Operator::GreaterOrEqual => ScmpCompareOp::GreaterEqual,
                    Operator::Masked(mask) => ScmpCompareOp::MaskedEqual(mask),
                };
                ScmpArgCompare::new(u32::from(c.argument), operator, c.value)
            })
            .collect();
        context
            .add_rule_conditional(action(rule.action), call, &conditions)
            .unwrap();
    }
    let mut file = tempfile::tempfile().unwrap();
    context.export_bpf(&file).unwrap();
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
        .chunks_exact(8)
        .map(|c| BpfInstruction {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jump_true: c[2],
            jump_false: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect()
}

fn known_to_oracle(mut profile: Profile) -> Profile {
    profile
        .rules
        .retain(|rule| ScmpSyscall::from_name(&rule.name).is_ok());
    profile
}

/// Every call number that means something, and the edges between.
fn numbers() -> Vec<u32> {
    let mut out: Vec<u32> = (0..520)
        .chain([
            1000,
            4095,
            u32::MAX,
            u32::MAX - 1,
            0x3fff_ffff,
            0x7fff_ffff,
            0x8000_0000,
        ])
        .collect();
    out.extend((0..600).map(|n| n | 0x4000_0000));
    out.extend((0..8).map(|n| 0x000f_0000 + n));
    out
}

fn values(profile: &Profile) -> Vec<u64> {
    let mut out = vec![0, 1, u64::MAX, 1 << 32, 1 << 63, 0xffff_ffff];
    for condition in profile.rules.iter().flat_map(|r| &r.conditions) {
        let mut near = vec![condition.value];
        if let Operator::Masked(mask) = condition.operator {
            near.extend([
                mask,
                mask << 1,
                mask >> 1,
                mask & mask.wrapping_neg(),
                !mask,
            ]);
        }
        for value in near {
            out.extend([
                value,
                value.wrapping_add(1),
                value.wrapping_sub(1),
                value | 1 << 32,
                value | 1 << 40,
                value ^ 1 << 31,
            ]);
        }
    }
    out.extend(0..30);
    out.sort_unstable();
    out.dedup();
    out
}

fn differences(profile: &Profile) -> Vec<String> {
    let ours = compile_with(profile, false).unwrap();
    let theirs = reference(profile);
    let values = values(profile);
    let conditional: Vec<u8> = {
        let mut all: Vec<u8> = profile
            .rules
            .iter()
            .flat_map(|r| &r.conditions)
            .map(|c| c.argument)
            .collect();
        all.push(0);
        all.sort_unstable();
        all.dedup();
        all
    };
    // Only these look at arguments; `socketcall` and `ipc` stand for the calls that go through them.
    let looked_at: Vec<u32> = profile
        .rules
        .iter()
        .filter(|r| !r.conditions.is_empty())
        .map(|r| r.name.as_str())
        .chain(["socketcall", "ipc"])
        .filter_map(|name| SYSCALLS.iter().find(|(n, _)| *n == name))
        .flat_map(|(_, row)| row.iter().map(|n| *n as u32))
        .collect();
    assert!(theirs.len() > 10, "the oracle has compiled something");
    let mut out = Vec::new();
    for arch in [
        0xc000_003e,
        0x4000_0003,
        0xc000_00b7,
        0x4000_0028,
        0xc000_0015,
        0,
        0x8000_0016,
    ] {
        for number in numbers() {
            for argument in &conditional {
                let few = [0, 1, u64::MAX];
                let values = if looked_at.contains(&number) {
                    &values[..]
                } else {
                    &few
                };
                for value in values {
                    let mut args = [7u64; 6];
                    args[usize::from(*argument)] = *value;
                    let input = Input { arch, number, args };
                    let (a, b) = (run(&ours, &input), run(&theirs, &input));
                    if a != b {
                        out.push(format!("arch {arch:#x} number {number:#x} arg{argument}={value:#x}: ours {a:#x}, libseccomp {b:#x}"));
                        break;
                    }
                }
            }
        }
    }
    out
}

fn check(profile: Profile) {
    let found = differences(&known_to_oracle(profile));
    assert!(
        found.is_empty(),
        "{} differences, such as\n{}",
        found.len(),
        found[..found.len().min(40)].join("\n")
    );
}

#[test]
fn the_default_profile_equals_libseccomp() {
    let standard = capabilities::of(false, &[], &[]).unwrap();
    for arch in ["x86_64", "aarch64", "powerpc64"] {
        for held in [
            0,
            standard,
            capabilities::ALL,
            standard | capabilities::bit("SYS_ADMIN").unwrap(),
        ] {
            check(default::profile(held, arch));
        }
    }
}

#[test]
fn docker_profiles_equal_libseccomp() {
    let check_text = |text: &str| check(Profile::parse(text.as_bytes(), 0).unwrap());
    check_text(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
        "syscalls":[{"names":["mkdir","chmod","semop","socket"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#,
    );
    check_text(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],
        "syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
        {"name":"ioctl","action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":21522,"op":"SCMP_CMP_NE"},{"index":2,"value":4294967297,"op":"SCMP_CMP_GE"}]}]}"#,
    );
    for operator in ["EQ", "NE", "LT", "LE", "GT", "GE"] {
        for value in [
            0u64,
            5,
            0xffff_ffff,
            0x1_0000_0000,
            0x1_0000_0005,
            u64::MAX - 1,
        ] {
            check_text(&format!(
                r#"{{"defaultAction":"SCMP_ACT_KILL_PROCESS","archMap":[{{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]}}],
                "syscalls":[{{"names":["prctl"],"action":"SCMP_ACT_LOG","args":[{{"index":3,"value":{value},"op":"SCMP_CMP_{operator}"}}]}}]}}"#
            ));
        }
    }
    for (mask, value) in [
        (0xffu64, 3u64),
        (0xff_0000_0000, 0x3_0000_0000),
        (u64::MAX, 9),
    ] {
        check_text(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}}],
            "syscalls":[{{"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{{"index":0,"value":{mask},"valueTwo":{value},"op":"SCMP_CMP_MASKED_EQ"}}]}}]}}"#
        ));
    }
}

#[test]
fn calls_beyond_the_profile_are_unknown() {
    let program = compile(&default::profile(0, "x86_64")).unwrap();
    let decide = |arch, number| {
        run(
            &program,
            &Input {
                arch,
                number,
                args: [0; 6],
            },
        )
    };
    for arch in [0xc000_003e, 0x4000_0003] {
        assert_eq!(decide(arch, 4000), 0x0005_0000 | 38);
        assert_eq!(decide(arch, u32::MAX), 0x0005_0000 | 38);
    }
    assert_eq!(decide(0xc000_003e, 0x4000_0fff), 0x0005_0000 | 38);
    assert_eq!(decide(0xc000_003e, 0), ALLOW);
    // mount
    assert_eq!(decide(0xc000_003e, 165), 0x0005_0000 | 1);
    // clone3
    assert_eq!(decide(0xc000_003e, 435), 0x0005_0000 | 38);
    let arm = compile(&default::profile(0, "aarch64")).unwrap();
    // arm's set_tls
    assert_eq!(
        run(
            &arm,
            &Input {
                arch: 0x4000_0028,
                number: 0xf0005,
                args: [0; 6]
            }
        ),
        ALLOW
    );
}

#[test]
fn the_table_is_sorted_and_small_programs_result() {
    assert!(SYSCALLS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let program = compile(&default::profile(0, "x86_64")).unwrap();
    assert!(program.len() < 1500, "{}", program.len());
}

#[test]
fn bad_profiles_are_refused() {
    for (text, expect) in [
        ("{", "EOF"),
        (
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
            "unsupported action",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_TSYNC"]}"#,
            "flags",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"read","action":"SCMP_ACT_KILL","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "argument 6",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"read","action":"SCMP_ACT_KILL","args":[{"index":1,"value":0,"op":"X"}]}]}"#,
            "unknown operator",
        ),
    ] {
        let error = Profile::parse(text.as_bytes(), 0).unwrap_err();
        assert!(error.contains(expect), "{error}");
    }
}
