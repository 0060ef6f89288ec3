//! Facts of the machine, read from the kernel.

use std::path::Path;

/// CPUs that are online.
pub fn cpu_count() -> i64 {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online")
        .ok()
        .and_then(|text| count_ranges(text.trim()));
    online.unwrap_or_else(|| {
        std::thread::available_parallelism().map_or(1, |count| count.get() as i64)
    })
}

/// `0-3,5` is five.
fn count_ranges(text: &str) -> Option<i64> {
    let mut count = 0;
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        count += last.parse::<i64>().ok()? - first.parse::<i64>().ok()? + 1;
    }
    (count > 0).then_some(count)
}

/// A field of `/proc/meminfo` in bytes.
pub fn meminfo_bytes(field: &str) -> Option<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace()
        .next()?
        .parse::<i64>()
        .ok()
        .map(|kibibytes| kibibytes * 1024)
}

pub fn memory_bytes() -> i64 {
    meminfo_bytes("MemTotal").unwrap_or(0)
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Filesystem {
    pub capacity_bytes: i64,
    pub available_bytes: i64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// The filesystem that holds `path`.
pub fn filesystem(path: &Path) -> Option<Filesystem> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let bytes =
        |blocks: u64| i64::try_from(blocks.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX);
    Some(Filesystem {
        capacity_bytes: bytes(stat.f_blocks),
        available_bytes: bytes(stat.f_bavail),
        inodes: stat.f_files,
        inodes_free: stat.f_favail,
    })
}

/// Go's name of the architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release")
        .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(
        || "Linux".to_owned(),
        |name| name.trim_matches('"').to_owned(),
    )
}

/// Reserved huge pages as resources: `hugepages-2Mi` and how many bytes.
pub fn hugepages() -> Vec<(String, i64)> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten();
    let mut list: Vec<(String, i64)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kibibytes: i64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let count: i64 = std::fs::read_to_string(entry.path().join("nr_hugepages"))
                .ok()?
                .trim()
                .parse()
                .ok()?;
            let size = if kibibytes % (1 << 20) == 0 {
                format!("{}Gi", kibibytes >> 20)
            } else {
                format!("{}Mi", kibibytes >> 10)
            };
            Some((format!("hugepages-{size}"), count * kibibytes * 1024))
        })
        .collect();
    list.sort();
    list
}

/// Processes running and allowed.
pub fn processes() -> Option<(u64, u64)> {
    let loadavg = std::fs::read_to_string("/proc/loadavg").ok()?;
    let running = loadavg
        .split_whitespace()
        .nth(3)?
        .split_once('/')?
        .1
        .parse()
        .ok()?;
    let max = std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some((running, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expect) in [
            ("0-3", Some(4)),
            ("0", Some(1)),
            ("0-1,4,6-7", Some(5)),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(count_ranges(text), expect, "{text}");
        }
        assert!(cpu_count() > 0 && memory_bytes() > 0);
    }
}
