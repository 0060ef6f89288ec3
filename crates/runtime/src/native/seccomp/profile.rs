//! Profiles: the model, and Docker's JSON format of it.

use serde::Deserialize;

use super::compile::Arch;
use crate::native::capabilities;

/// Return values of a filter, as the kernel takes them.
pub const ALLOW: u32 = 0x7fff_0000;
pub const ERRNO: u32 = 0x0005_0000;
pub const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;
const TRAP: u32 = 0x0003_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;

/// What is done with each system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Return value for calls that no rule names.
    pub default_action: u32,
    /// Own architecture first.
    pub arches: Vec<Arch>,
    pub rules: Vec<Rule>,
}

/// One call, under conditions that must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub name: String,
    pub action: u32,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u8,
    pub operator: Operator,
    pub value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Equal after masking the argument with this.
    Masked(u64),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<FileRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileRule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<FileCondition>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileCondition {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

impl Filter {
    fn has_capability(&self, held: u64) -> bool {
        self.caps
            .iter()
            .flatten()
            .any(|name| capabilities::bit(name).is_some_and(|bit| held & bit != 0))
    }
    fn lists_any_capability(&self) -> bool {
        self.caps.as_ref().is_some_and(|caps| !caps.is_empty())
    }
    fn names_arch(&self) -> bool {
        let go_name = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        self.arches.iter().flatten().any(|arch| arch == go_name)
    }
}

impl Profile {
    /// Reads Docker's JSON for a container that holds `held`.
    pub fn parse(text: &[u8], held: u64) -> Result<Self, String> {
        let file: File = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if file.flags.is_some_and(|flags| !flags.is_empty()) {
            return Err("filter flags are not supported".to_owned());
        }
        if file.listener_path.is_some_and(|path| !path.is_empty()) {
            return Err("a listener is not supported".to_owned());
        }
        let default_action = action(&file.default_action, file.default_errno_ret)?;
        let own = Arch::own();
        let mut arches = vec![own];
        for name in file.architectures.iter().flatten() {
            arches.extend(Arch::by_libseccomp_name(name));
        }
        for map in file.arch_map.iter().flatten() {
            if Arch::by_libseccomp_name(&map.architecture) == Some(own) {
                arches.extend(
                    map.sub_architectures
                        .iter()
                        .flatten()
                        .filter_map(|name| Arch::by_libseccomp_name(name)),
                );
            }
        }
        let mut seen = Vec::new();
        arches.retain(|arch| {
            let fresh = arch.family() == own.family() && !seen.contains(arch);
            seen.push(*arch);
            fresh
        });
        let mut rules = Vec::new();
        for rule in file.syscalls.into_iter().flatten() {
            if !applies(&rule, held) {
                continue;
            }
            let action = action(&rule.action, rule.errno_ret)?;
            let conditions = rule
                .args
                .iter()
                .flatten()
                .map(condition)
                .collect::<Result<Vec<_>, _>>()?;
            let repeats = conditions
                .iter()
                .enumerate()
                .any(|(i, c)| conditions[..i].iter().any(|o| o.argument == c.argument));
            for name in rule
                .name
                .into_iter()
                .chain(rule.names.into_iter().flatten())
            {
                if repeats {
                    // Two conditions on one argument mean either of them, as in runc.
                    rules.extend(conditions.iter().map(|c| Rule {
                        name: name.clone(),
                        action,
                        conditions: vec![*c],
                    }));
                } else {
                    rules.push(Rule {
                        name,
                        action,
                        conditions: conditions.clone(),
                    });
                }
            }
        }
        Ok(Self {
            default_action,
            arches,
            rules,
        })
    }
}

impl Profile {
    /// As `linux.seccomp` of an OCI configuration; actions as the default profile uses them.
    pub fn to_oci(&self) -> String {
        let action = |value: u32| {
            if value == ALLOW {
                "SCMP_ACT_ALLOW"
            } else {
                "SCMP_ACT_ERRNO"
            }
        };
        let rules: Vec<_> = self
            .rules
            .iter()
            .map(|rule| {
                let conditions: Vec<_> = rule
                    .conditions
                    .iter()
                    .map(|c| {
                        let (operator, value, value_two) = match c.operator {
                            Operator::Equal => ("EQ", c.value, 0),
                            Operator::NotEqual => ("NE", c.value, 0),
                            Operator::Less => ("LT", c.value, 0),
                            Operator::LessOrEqual => ("LE", c.value, 0),
                            Operator::Greater => ("GT", c.value, 0),
                            Operator::GreaterOrEqual => ("GE", c.value, 0),
                            Operator::Masked(mask) => ("MASKED_EQ", mask, c.value),
                        };
                        serde_json::json!({"index": c.argument, "value": value, "valueTwo": value_two, "op": format!("SCMP_CMP_{operator}")})
                    })
                    .collect();
                let mut rendered = serde_json::json!({"names": [rule.name], "action": action(rule.action), "args": conditions});
                if rule.action & 0xffff_0000 == ERRNO {
                    rendered["errnoRet"] = (rule.action & 0xffff).into();
                }
                rendered
            })
            .collect();
        let arches: Vec<_> = self.arches.iter().map(|a| a.libseccomp_name()).collect();
        serde_json::json!({"defaultAction": action(self.default_action), "architectures": arches, "syscalls": rules}).to_string()
    }
}

fn applies(rule: &FileRule, held: u64) -> bool {
    if let Some(excludes) = &rule.excludes {
        let kernel = excludes.min_kernel.as_deref().is_some_and(kernel_at_least);
        if excludes.names_arch() || excludes.has_capability(held) || kernel {
            return false;
        }
    }
    if let Some(includes) = &rule.includes {
        let arch = includes
            .arches
            .as_ref()
            .is_none_or(|list| list.is_empty() || includes.names_arch());
        let capability = !includes.lists_any_capability()
            || includes
                .caps
                .iter()
                .flatten()
                .all(|n| capabilities::bit(n).is_some_and(|bit| held & bit != 0));
        return arch && capability && includes.min_kernel.as_deref().is_none_or(kernel_at_least);
    }
    true
}

fn kernel_at_least(wanted: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        text.split(|c: char| !c.is_ascii_digit())
            .take(2)
            .map(|part| part.parse().unwrap_or(0))
            .collect()
    };
    let running = rustix::system::uname();
    numbers(&running.release().to_string_lossy()) >= numbers(wanted)
}

fn action(name: &str, errno: Option<u32>) -> Result<u32, String> {
    let data = errno.unwrap_or(libc::EPERM as u32) & 0xffff;
    Ok(match name {
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_ERRNO" => ERRNO | data,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_TRACE" => TRACE | data,
        "SCMP_ACT_LOG" => LOG,
        other => return Err(format!("unknown or unsupported action \"{other}\"")),
    })
}

fn condition(from: &FileCondition) -> Result<Condition, String> {
    let operator = match from.op.as_str() {
        "SCMP_CMP_EQ" => Operator::Equal,
        "SCMP_CMP_NE" => Operator::NotEqual,
        "SCMP_CMP_LT" => Operator::Less,
        "SCMP_CMP_LE" => Operator::LessOrEqual,
        "SCMP_CMP_GT" => Operator::Greater,
        "SCMP_CMP_GE" => Operator::GreaterOrEqual,
        "SCMP_CMP_MASKED_EQ" => Operator::Masked(from.value),
        other => return Err(format!("unknown operator \"{other}\"")),
    };
    if from.index > 5 {
        return Err(format!("a system call has no argument {}", from.index));
    }
    let value = if matches!(operator, Operator::Masked(_)) {
        from.value_two
    } else {
        from.value
    };
    Ok(Condition {
        argument: from.index,
        operator,
        value,
    })
}
