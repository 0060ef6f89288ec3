//! Hostile images and configurations get nowhere.

use std::os::unix::fs::symlink;

use runtime::service::{Mount, MountPropagation, RuntimeError, RuntimeService};

use crate::harness::{Harness, container};

/// Starts a command in an image and answers the failure's message, or the exit code and output.
async fn attempt(
    harness: &Harness,
    image: &str,
    command: &[&str],
    change: impl FnOnce(&mut runtime::service::ContainerConfig),
) -> Result<(i32, String), String> {
    let sandbox = harness.sandbox().await;
    let mut config = container(command);
    config.image_id = image.to_owned();
    config.log_path = format!("{}.log", &sandbox[..12]).into();
    change(&mut config);
    let id = harness
        .runtime()
        .create_container(&sandbox, config)
        .await
        .map_err(|e| e.to_string())?;
    let result = match harness.runtime().start_container(&id).await {
        Ok(()) => {
            let status = harness.ended(&id).await;
            Ok((status.exit_code, harness.log_text(&status)))
        }
        Err(RuntimeError::StartFailed { message, .. }) => Err(message),
        Err(other) => Err(other.to_string()),
    };
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
    result
}

#[tokio::test]
async fn kernel_directories_as_links() {
    let harness = Harness::new();
    for name in ["proc", "sys", "dev"] {
        let image = format!("link-{name}");
        // Layers above busybox replace its directory with a link to somewhere else.
        harness.layer(&image, |root| symlink("/tmp", root.join(name)).unwrap());
        let error = attempt(&harness, &image, &["true"], |_| {})
            .await
            .unwrap_err();
        assert!(error.contains("is not an ordinary directory"), "{error}");
        let image = format!("file-{name}");
        harness.layer(&image, |root| std::fs::write(root.join(name), "x").unwrap());
        assert!(attempt(&harness, &image, &["true"], |_| {}).await.is_err());
    }
}

#[tokio::test]
async fn mounts_over_links_stay_inside() {
    let harness = Harness::new();
    let outside = harness.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let volume = harness.directory.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("mark"), "volume\n").unwrap();
    let target = outside.clone();
    harness.layer("links", move |root| {
        symlink(&target, root.join("absolute")).unwrap();
        symlink("../../../../../../../../../..", root.join("up")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        symlink("/proc", root.join("to-proc")).unwrap();
    });
    for path in [
        "/absolute/x",
        "/up/tmp/llmagentos-escaped",
        "/dangling",
        "/magic/x",
        "/to-proc/1",
    ] {
        let result = attempt(
            &harness,
            "links",
            &["sh", "-c", &format!("cat {path}/mark")],
            |c| {
                c.mounts = vec![Mount {
                    container_path: path.into(),
                    host_path: volume.clone(),
                    readonly: false,
                    propagation: MountPropagation::Private,
                }];
            },
        )
        .await;
        // Either refused, or mounted inside the root.
        if let Ok((code, text)) = result {
            assert!(
                path == "/to-proc/1" || (code == 0 && text == "volume\n"),
                "{path}: {code} {text}"
            );
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{path}");
    }
    assert!(!std::path::Path::new("/tmp/llmagentos-escaped").exists());
}

#[tokio::test]
async fn working_directories_outside() {
    // CVE-2024-21626: a descriptor of the node as the working directory.
    let harness = Harness::new();
    for number in 3..20 {
        let directory = format!("/proc/self/fd/{number}");
        let result = attempt(&harness, "busybox", &["sh", "-c", "pwd; ls"], |c| {
            c.working_dir = directory.clone()
        })
        .await;
        let error = result.unwrap_err();
        assert!(error.contains("cwd"), "{error}");
    }
    harness.layer("cwd-link", |root| {
        for number in 3..20 {
            symlink(
                format!("/proc/self/fd/{number}"),
                root.join(format!("fd{number}")),
            )
            .unwrap();
        }
        symlink("/proc/self/cwd", root.join("cwd")).unwrap();
    });
    for directory in ["/fd3", "/fd7", "/fd8", "/fd12", "/cwd"] {
        let result = attempt(&harness, "cwd-link", &["ls"], |c| {
            c.working_dir = directory.to_owned()
        })
        .await;
        assert!(result.is_err(), "{directory}: {result:?}");
    }
    let (_, text) = attempt(&harness, "busybox", &["pwd"], |c| {
        c.working_dir = "/../../..".to_owned()
    })
    .await
    .unwrap();
    assert_eq!(text, "/\n");
}

#[tokio::test]
async fn nothing_is_inherited() {
    let harness = Harness::new();
    let (_, text) = harness
        .shell("ls -l /proc/self/fd 2>/dev/null | awk 'NR>1{print $9}' | tr '\\n' ' '")
        .await;
    // 3 is the directory that ls reads.
    assert_eq!(text.trim(), "0 1 2 3");
    let (_, text) = harness
        .shell("cat /proc/1/environ | tr '\\0' '\\n' | sort")
        .await;
    assert_eq!(
        text,
        "HOME=/root\nHOSTNAME=pod-host\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );
}

#[tokio::test]
async fn our_own_program_cannot_be_run_or_written() {
    // CVE-2019-5736: the runtime's binary through /proc/self/exe.
    let harness = Harness::new();
    let before = std::fs::metadata(crate::harness::zygote_program()).unwrap();
    for command in ["/proc/self/exe", "/proc/1/exe"] {
        let error = attempt(&harness, "busybox", &[command, "--run-dir", "/x"], |_| {})
            .await
            .unwrap_err();
        assert!(error.contains("permission denied"), "{error}");
    }
    harness.layer("shebang", |root| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir(root.join("opt")).unwrap();
        std::fs::write(root.join("opt/run"), "#!/proc/self/exe\n").unwrap();
        std::fs::set_permissions(root.join("opt/run"), std::fs::Permissions::from_mode(0o755))
            .unwrap();
        symlink("/proc/self/exe", root.join("opt/link")).unwrap();
    });
    let error = attempt(&harness, "shebang", &["/opt/link"], |_| {})
        .await
        .unwrap_err();
    assert!(error.contains("permission denied"), "{error}");
    // The kernel resolves an interpreter itself; what runs then is a read-only copy that does nothing.
    let result = attempt(&harness, "shebang", &["/opt/run"], |_| {}).await;
    assert!(!matches!(result, Ok((0, _))), "{result:?}");
    // While an exec comes in, its binary may be seen, but neither read nor written.
    let sandbox = harness.sandbox().await;
    let mut config = container(&[
        "sh",
        "-c",
        "while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] || (echo x >> $p/exe) 2>/dev/null && echo WRITTEN $p $(readlink $p/exe); done; done",
    ]);
    config.log_path = "writer.log".into();
    let id = harness.start(&sandbox, config).await;
    for _ in 0..50 {
        harness
            .runtime()
            .exec_sync(&id, vec!["true".into()], 10)
            .await
            .unwrap();
    }
    harness.runtime().stop_container(&id, 0).await.unwrap();
    let after = std::fs::metadata(crate::harness::zygote_program()).unwrap();
    assert_eq!(
        (before.len(), before.modified().unwrap()),
        (after.len(), after.modified().unwrap())
    );
    let status = harness.ended(&id).await;
    assert!(
        !harness.log_text(&status).contains("zygote"),
        "{}",
        harness.log_text(&status)
    );
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

#[tokio::test]
async fn masks_cannot_be_replaced() {
    // CVE-2025-31133, -52565, -52881: links where masks and consoles go, made by the image.
    let harness = Harness::new();
    harness.layer("fake-dev", |root| {
        std::fs::create_dir(root.join("dev")).unwrap();
        symlink("/proc/sys/kernel/core_pattern", root.join("dev/null")).unwrap();
        symlink("/proc/sysrq-trigger", root.join("dev/pts")).unwrap();
        symlink("/etc/passwd", root.join("dev/console")).unwrap();
        symlink("/etc/passwd", root.join("dev/ptmx")).unwrap();
    });
    let line = "stat -c %t:%T /dev/null; wc -c < /proc/keys; wc -c < /proc/timer_list; (echo x > /proc/sys/kernel/core_pattern) 2>/dev/null || echo ro; test -L /dev/pts || echo real";
    let (_, text) = attempt(&harness, "fake-dev", &["sh", "-c", line], |_| {})
        .await
        .unwrap();
    assert_eq!(text, "1:3\n0\n0\nro\nreal\n");
    let (code, text) = attempt(&harness, "fake-dev", &["tty"], |c| c.tty = true)
        .await
        .unwrap();
    assert_eq!((code, text.trim()), (0, "/dev/pts/0"));
    // Unmounting a mask needs what nobody has.
    let (_, text) = harness
        .shell("umount /proc/keys 2>&1; mount -t proc proc /tmp 2>&1; wc -c < /proc/keys")
        .await;
    assert!(text.ends_with("0\n") && !text.is_empty(), "{text}");
}

#[tokio::test]
async fn devices_are_restricted() {
    let harness = Harness::new();
    let (_, text) = harness
        .shell("mknod /tmp/disk b 254 0 && (head -c1 /tmp/disk >/dev/null) 2>&1; mknod /tmp/kmsg c 1 11 && (head -c1 /tmp/kmsg >/dev/null) 2>&1; mknod /tmp/n c 1 3 && echo x > /tmp/n && echo fine")
        .await;
    assert_eq!(
        text,
        "head: /tmp/disk: Operation not permitted\nhead: /tmp/kmsg: Operation not permitted\nfine\n"
    );
}

#[tokio::test]
async fn account_files_that_are_no_files() {
    let harness = Harness::new();
    harness.layer("fifo", |root| {
        std::fs::create_dir(root.join("etc")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("etc/passwd"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        symlink("/proc/self/environ", root.join("etc/group")).unwrap();
    });
    let (code, text) = attempt(&harness, "fifo", &["echo", "fine"], |_| {})
        .await
        .unwrap();
    assert_eq!((code, text.as_str()), (0, "fine\n"));
}

#[tokio::test]
async fn below_the_root_there_is_nothing() {
    // The root is entered by chroot over an empty directory; both ways under it end there.
    let harness = Harness::new();
    let climb = "mkdir -p /tmp/cage; cp /bin/busybox /tmp/cage/; cd /; \
         chroot /tmp/cage /busybox true && echo caged; ls / | tr '\\n' ' '; ls -a /../../.. | wc -l; \
         grep -c . /proc/self/mountinfo; grep -cE ' / /(boot|home|var|work)' /proc/self/mountinfo";
    let (_, text) = harness.shell(climb).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "caged", "{text}");
    // Only what the container itself has mounted, nothing of the node.
    assert_eq!(lines.last(), Some(&"0"), "{text}");
    // With every capability: after the root is unmounted, an empty directory that cannot be written.
    let bottom = "cd /; umount -l /sys /dev/pts /dev 2>/dev/null; nsenter -t 1 -m -- true; umount -l / 2>&1; \
         nsenter -t 1 -m -- /bin/true 2>&1 | grep -c 'No such file'";
    let (_, text) = harness
        .shell_with(bottom, |c| c.security.privileged = true)
        .await;
    assert!(text.ends_with("1\n"), "{text}");
    // Nobody else notices: the empty directory is each container's own mount.
    assert_eq!(harness.shell("echo fine").await, (0, "fine\n".to_owned()));
}

/// Makes `path` a link to `target` and a directory in turns until dropped.
struct Flipper {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flipper {
    fn start(directory: std::path::PathBuf, target: std::path::PathBuf) -> Self {
        use std::sync::atomic::{AtomicBool, Ordering};
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let (link, plain) = (directory.join("link"), directory.join("plain"));
        symlink(target, &link).unwrap();
        std::fs::create_dir(&plain).unwrap();
        let thread = std::thread::spawn(move || {
            let path = directory.join("flip");
            std::fs::create_dir(&path).unwrap();
            while !told.load(Ordering::Relaxed) {
                // Two names change places at once, so that the path is never missing.
                for other in [&link, &plain] {
                    let _ = rustix::fs::renameat_with(
                        rustix::fs::CWD,
                        &path,
                        rustix::fs::CWD,
                        other,
                        rustix::fs::RenameFlags::EXCHANGE,
                    );
                }
                std::thread::yield_now();
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Flipper {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[tokio::test]
async fn mounts_race_with_links() {
    // CVE-2021-30465: a volume's directory becomes a link while something is mounted below it.
    let harness = Harness::new();
    let outside = harness.directory.path().join("outside");
    let shared = harness.directory.path().join("shared");
    let secret = harness.directory.path().join("secret");
    for directory in [&outside, &shared, &secret] {
        std::fs::create_dir(directory).unwrap();
    }
    std::fs::write(secret.join("mark"), "secret\n").unwrap();
    let flipper = Flipper::start(shared.clone(), outside.clone());
    let mut mounted = 0;
    for _ in 0..20 {
        let result = attempt(
            &harness,
            "busybox",
            &["sh", "-c", "cat /proc/self/mountinfo | grep -c outside"],
            |c| {
                let mount = |container: &str, host: &std::path::Path| Mount {
                    container_path: container.into(),
                    host_path: host.to_owned(),
                    readonly: false,
                    propagation: MountPropagation::Private,
                };
                c.mounts = vec![mount("/vol", &shared), mount("/vol/flip/below", &secret)];
            },
        )
        .await;
        if let Ok((_, text)) = result {
            mounted += 1;
            // Never onto the node's directory, wherever the link led at that moment.
            assert_eq!(text, "0\n");
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
    drop(flipper);
    assert!(mounted > 0, "not one container started");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(outside.to_str().unwrap()));
}
