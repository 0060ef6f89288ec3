//! What a container is given, and what it is not.

use std::path::PathBuf;

use runtime::image_roots::ImageConfig;
use runtime::service::{
    LinuxResources, Mount, MountPropagation, NamespaceMode, RuntimeError, RuntimeService,
    SeccompProfile,
};

use crate::harness::{Harness, container};

#[tokio::test]
async fn capabilities_and_filters() {
    let harness = Harness::new();
    let status = "grep -E 'CapBnd|CapEff|NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t' | tr '\\n' ' '";
    let (_, text) = harness.shell(status).await;
    assert_eq!(
        text.trim(),
        "CapEff:00000000a80425fb CapBnd:00000000a80425fb NoNewPrivs:0 Seccomp:2"
    );
    let (_, text) = harness
        .shell_with(status, |c| {
            c.security.drop_capabilities = vec!["ALL".into()];
            c.security.add_capabilities = vec!["NET_BIND_SERVICE".into()];
            c.security.no_new_privs = true;
            c.security.seccomp = SeccompProfile::Unconfined;
        })
        .await;
    assert_eq!(
        text.trim(),
        "CapEff:0000000000000400 CapBnd:0000000000000400 NoNewPrivs:1 Seccomp:0"
    );
    // Filtered calls answer EPERM, even with the capability for them.
    let (code, _) = harness.shell("unshare -U true").await;
    assert_ne!(code, 0);
    let (code, text) = harness
        .shell_with(status, |c| c.security.privileged = true)
        .await;
    assert_eq!(code, 0);
    assert!(text.contains("Seccomp:0"), "{text}");
}

#[tokio::test]
async fn missing_capabilities_become_warnings() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let mut config = container(&["true"]);
    config.security.privileged = true;
    config.resources.oom_score_adj = Some(-998);
    let id = harness.start(&sandbox, config).await;
    let status = harness.ended(&id).await;
    assert_eq!(status.exit_code, 0);
    let held = std::fs::read_to_string("/proc/self/status").unwrap();
    let held = held
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .unwrap()
        .trim()
        .to_owned();
    let held = u64::from_str_radix(&held, 16).unwrap();
    for (number, start, name) in [
        (24, "oom_score_adj -998 needs", "CAP_SYS_RESOURCE"),
        (24, "this machine does not give", "CAP_SYS_RESOURCE"),
        (25, "this machine does not give", "CAP_SYS_TIME"),
        (27, "this machine does not give", "CAP_MKNOD"),
    ] {
        let warned = |w: &String| w.starts_with(start) && w.contains(name);
        assert_eq!(
            status.warnings.iter().any(warned),
            held & 1 << number == 0,
            "{name}: {:?}",
            status.warnings
        );
    }
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

#[test]
fn a_machine_with_fewer_capabilities() {
    // This program again, in a process that can never have these.
    let missing = "--bounding-set=-sys_resource,-sys_time,-sys_module,-mknod,-net_raw";
    let setpriv = |args: &[&str]| {
        std::process::Command::new("setpriv")
            .arg(missing)
            .args(args)
            .output()
    };
    if !setpriv(&["true"]).is_ok_and(|output| output.status.success()) {
        eprintln!("no setpriv that drops capabilities here");
        return;
    }
    let program = std::env::current_exe().unwrap();
    for name in [
        "confinement::missing_capabilities_become_warnings",
        "confinement::file_systems",
        "escape::masks_cannot_be_replaced",
    ] {
        let output = setpriv(&[program.to_str().unwrap(), "--exact", name]).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn users_and_groups() {
    let image = ImageConfig {
        user: "web".to_owned(),
        env: vec!["A=1".to_owned(), "B=2".to_owned()],
        ..Default::default()
    };
    let harness = Harness::with_image(image);
    let line = "id -u; id -G; echo $HOME $A $B; touch /x 2>/dev/null || echo denied; grep CapEff /proc/self/status | tr -d '\\t'";
    let (_, text) = harness
        .shell_with(line, |c| c.env = vec![("B".into(), "3".into())])
        .await;
    assert_eq!(
        text,
        "33\n34 4\n/srv 1 3\ndenied\nCapEff:0000000000000000\n"
    );
    let (_, text) = harness
        .shell_with(line, |c| {
            c.security.run_as_user = Some(1000);
            c.security.run_as_group = Some(2000);
            c.security.supplemental_groups = vec![3000];
        })
        .await;
    assert_eq!(
        text,
        "1000\n2000 3000\n/ 1 2\ndenied\nCapEff:0000000000000000\n"
    );
}

#[tokio::test]
async fn file_systems() {
    let harness = Harness::new();
    let (code, text) = harness
        .shell(
            "set -e; echo x > /dev/null; head -c1 /dev/zero | wc -c; test -c /dev/pts/ptmx; test -w /dev/shm; \
             ls /dev | tr '\\n' ' '; echo; cat /proc/sys/kernel/hostname; \
             (echo 1 > /proc/sys/kernel/hostname) 2>/dev/null || echo ro-sys; \
             (echo b > /proc/sysrq-trigger) 2>/dev/null || echo ro-sysrq; \
             wc -c < /proc/keys; ls /sys/firmware | wc -l; (mkdir /sys/x) 2>/dev/null || echo ro-sysfs; \
             ls /proc > /tmp/processes; grep -c '^[0-9]*$' /tmp/processes",
        )
        .await;
    assert_eq!(
        text,
        "1\nfd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero \npod-host\nro-sys\nro-sysrq\n0\n0\nro-sysfs\n2\n"
    );
    assert_eq!(code, 0);
    let (_, text) = harness
        .shell_with("touch /x 2>&1; touch /dev/shm/y && echo shm", |c| {
            c.security.readonly_rootfs = true
        })
        .await;
    assert_eq!(text, "touch: /x: Read-only file system\nshm\n");
    let (_, text) = harness
        .shell_with("pwd", |c| c.working_dir = "/made/for/it".into())
        .await;
    assert_eq!(text, "/made/for/it\n");
    let (_, text) = harness
        .shell("awk '$5==\"/\"{print $6}' /proc/self/mountinfo; wc -l < /proc/self/mountinfo")
        .await;
    assert!(text.starts_with("rw,relatime"), "{text}");
}

#[tokio::test]
async fn volumes() {
    let harness = Harness::new();
    let host = harness.directory.path().join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "content\n").unwrap();
    let mount = |source: PathBuf, target: &str, readonly| Mount {
        container_path: target.into(),
        host_path: source,
        readonly,
        propagation: MountPropagation::Private,
    };
    let (_, text) = harness
        .shell_with("cat /etc/hosts /data/file /deep/er/file; echo w > /data/new; (echo w > /ro/x) 2>/dev/null || echo ro; echo t > /dev/termination-log", |c| {
            c.mounts = vec![
                mount(host.join("file"), "/etc/hosts", false),
                mount(host.clone(), "/data", false),
                mount(host.clone(), "/deep/er", true),
                mount(host.clone(), "/ro", true),
                mount(host.join("file"), "/dev/termination-log", false),
            ];
        })
        .await;
    assert_eq!(text, "content\ncontent\ncontent\nro\n");
    assert_eq!(std::fs::read_to_string(host.join("new")).unwrap(), "w\n");
    assert_eq!(std::fs::read_to_string(host.join("file")).unwrap(), "t\n");
    let sandbox = harness.sandbox().await;
    for (target, source) in [("/proc/sys", "/tmp"), ("relative", "/tmp"), ("/", "/tmp")] {
        let mut config = container(&["true"]);
        config.mounts = vec![mount(source.into(), target, false)];
        let result = harness.runtime().create_container(&sandbox, config).await;
        assert!(
            matches!(result, Err(RuntimeError::InvalidArgument(_))),
            "{target}: {result:?}"
        );
    }
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

#[tokio::test]
async fn limits() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let mut config = container(&["sh", "-c", "x=a; while :; do x=$x$x; done"]);
    config.resources = LinuxResources {
        memory_limit_bytes: Some(16 << 20),
        cpu_shares: Some(512),
        cpu_quota_micros: Some(50_000),
        cpu_period_micros: Some(100_000),
        pids_limit: Some(20),
        ..LinuxResources::default()
    };
    let id = harness.start(&sandbox, config.clone()).await;
    let status = harness.ended(&id).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{:?}",
        status.warnings
    );
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (files, expect, memory) = if v2 {
        (
            "memory.max cpu.weight cpu.max pids.max memory.oom.group",
            "16777216\n59\n50000 100000\n20\n1\n",
            "memory.max",
        )
    } else {
        (
            "memory/memory.limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_quota_us pids/pids.max cpuset/tasks",
            "16777216\n512\n50000\n20\n1\n",
            "memory/memory.limit_in_bytes",
        )
    };
    config.resources.unified = [("memory.oom.group".to_owned(), "1".to_owned())].into();
    let line = format!("cd /sys/fs/cgroup; cat {files}; sleep 1000");
    config.command = vec!["sh".into(), "-c".into(), line];
    config.log_path = "l.log".into();
    let id = harness.start(&sandbox, config).await;
    crate::harness::wait_for(|| async {
        let status = harness.runtime().container_status(&id).await.unwrap();
        let text = harness.log_text(&status);
        assert!(status.warnings.is_empty(), "{:?}", status.warnings);
        (text.lines().count() >= 5).then(|| assert!(text.starts_with(expect), "{text}"))
    })
    .await;
    let stats = harness.runtime().container_stats().await.unwrap();
    assert_eq!(stats.len(), 1);
    assert!(
        stats[0].memory_usage_bytes > 0 && stats[0].process_count >= 1,
        "{stats:?}"
    );
    let update = LinuxResources {
        memory_limit_bytes: Some(32 << 20),
        cpu_shares: Some(100),
        ..Default::default()
    };
    harness
        .runtime()
        .update_container_resources(&id, update)
        .await
        .unwrap();
    let result = harness
        .runtime()
        .exec_sync(
            &id,
            vec!["cat".into(), format!("/sys/fs/cgroup/{memory}")],
            10,
        )
        .await
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&result.stdout), "33554432\n");
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

#[tokio::test]
async fn namespaces_of_a_pod() {
    let harness = Harness::new();
    let mut pod = harness.pod();
    pod.pid = NamespaceMode::Pod;
    pod.sysctls = [(
        "net.ipv4.ip_unprivileged_port_start".to_owned(),
        "0".to_owned(),
    )]
    .into();
    let sandbox = harness.runtime().run_pod_sandbox(pod).await.unwrap().id;
    let mut first = container(&["sh", "-c", "touch /dev/shm/shared; exec sleep 1000"]);
    first.log_path = "first.log".into();
    let first = harness.start(&sandbox, first).await;
    crate::harness::wait_for(|| async {
        let shm = harness
            .runtime()
            .exec_sync(&first, vec!["ls".into(), "/dev/shm".into()], 10)
            .await
            .unwrap();
        (shm.stdout == b"shared\n").then_some(())
    })
    .await;
    // `ps` runs by itself: what it is piped into is called `exe` until busybox gives itself a name.
    let mut second = container(&[
        "sh",
        "-c",
        "list=$(ps -o comm=); echo \"$list\" | sort | tr '\\n' ' '; ls /dev/shm; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/1/root/etc/shadow 2>&1; ls -l /proc/1/exe 2>&1 | grep -c denied",
    ]);
    second.log_path = "second.log".into();
    let second = harness.start(&sandbox, second).await;
    let status = harness.ended(&second).await;
    let text = harness.log_text(&status);
    assert!(text.starts_with("pause"), "{text}");
    assert!(text.contains("sleep"), "{text}");
    assert!(
        text.contains("\nshared\n0\n") || text.contains("shared\n0\n"),
        "{text}"
    );
    assert!(!text.contains("root:"), "{text}");
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();

    // The node's namespaces.
    let mut pod = harness.pod();
    pod.network = NamespaceMode::Node;
    pod.pid = NamespaceMode::Node;
    pod.ipc = NamespaceMode::Node;
    let sandbox = harness.runtime().run_pod_sandbox(pod).await.unwrap().id;
    let mut config = container(&[
        "sh",
        "-c",
        "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc; sleep 100 & exit 0",
    ]);
    config.security.pid = NamespaceMode::Node;
    let id = harness.start(&sandbox, config).await;
    let status = harness.ended(&id).await;
    let own = |name: &str| {
        std::fs::read_link(format!("/proc/self/ns/{name}"))
            .unwrap()
            .to_string_lossy()
            .into_owned()
    };
    assert_eq!(
        harness.log_text(&status),
        format!("{}\n{}\n{}\n", own("net"), own("pid"), own("ipc"))
    );
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_localhost_profile() {
    let harness = Harness::new();
    let path = harness.directory.path().join("profile.json");
    std::fs::write(&path, r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#).unwrap();
    let (_, text) = harness
        .shell_with("mkdir /x 2>&1", |c| {
            c.security.seccomp = SeccompProfile::Localhost(path)
        })
        .await;
    assert_eq!(
        text,
        "mkdir: can't create directory '/x': No space left on device\n"
    );
    let sandbox = harness.sandbox().await;
    let mut config = container(&["true"]);
    config.security.seccomp = SeccompProfile::Localhost("/nowhere.json".into());
    let result = harness.runtime().create_container(&sandbox, config).await;
    assert!(
        matches!(&result, Err(RuntimeError::InvalidArgument(text)) if text.contains("/nowhere.json")),
        "{result:?}"
    );
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}
