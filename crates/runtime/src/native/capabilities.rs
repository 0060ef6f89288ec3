//! Capability names and sets as bit masks.

/// In the kernel's order: the position is the number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// containerd's default set.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability that this table knows.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// Bit of a name, with or without `CAP_`.
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES
        .iter()
        .position(|n| *n == short)
        .map(|number| 1 << number)
}

/// `CAP_…` names of a set.
pub fn names(set: u64) -> Vec<String> {
    (0..NAMES.len())
        .filter(|n| set & 1 << n != 0)
        .map(|n| format!("CAP_{}", NAMES[n]))
        .collect()
}

/// The set of a container: default or everything, then `drop`, then `add`, `ALL` first in each.
///
/// Errors name the capability that does not exist.
pub fn of(privileged: bool, add: &[String], drop: &[String]) -> Result<u64, String> {
    if privileged {
        return Ok(ALL);
    }
    let mut set = DEFAULT
        .iter()
        .filter_map(|name| bit(name))
        .fold(0, |all, b| all | b);
    let is_all = |name: &&String| name.eq_ignore_ascii_case("ALL");
    if add.iter().any(|n| is_all(&n)) {
        set = ALL;
    }
    if drop.iter().any(|n| is_all(&n)) {
        set = 0;
    }
    let find = |name: &String| bit(name).ok_or_else(|| format!("unknown capability \"{name}\""));
    for name in add.iter().filter(|n| !is_all(n)) {
        set |= find(name)?;
    }
    for name in drop.iter().filter(|n| !is_all(n)) {
        set &= !find(name)?;
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn sets() {
        let check = |privileged, add: &[&str], drop: &[&str], expect: Result<&[&str], &str>| {
            let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            let got = of(privileged, &own(add), &own(drop)).map(names);
            match expect {
                Ok(list) => assert_eq!(got.unwrap(), own(list)),
                Err(text) => assert!(got.unwrap_err().contains(text)),
            }
        };
        check(false, &["NET_ADMIN"], &["ALL"], Ok(&["CAP_NET_ADMIN"]));
        check(false, &[], &["all"], Ok(&[]));
        check(
            false,
            &["cap_sys_time"],
            &["ALL", "CHOWN"],
            Ok(&["CAP_SYS_TIME"]),
        );
        check(false, &["FLY"], &[], Err("unknown capability \"FLY\""));
        assert_eq!(of(false, &[], &[]).unwrap().count_ones(), 14);
        assert_eq!(
            of(false, &["ALL".into()], &["CHOWN".into()]).unwrap(),
            ALL & !1
        );
        assert_eq!(of(true, &[], &["ALL".into()]).unwrap(), ALL);
    }
}
