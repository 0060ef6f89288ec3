//! How long a container takes: create, start, wait for its end, delete, of `true`.
//!
//! `cargo run --release -p runtime --example container_start [-- --json FILE] [--rounds N] [--alone]`
//!
//! All namespaces, cgroup limits, the default seccomp profile, capabilities. Ours includes the pod
//! sandbox and an overlay; runc and crun (`run`, one process) get a ready root directory and the same
//! profile, and take turns of five with us. crun refuses the hybrid cgroup layout unless the unified hierarchy
//! is hidden: its shell has a mount namespace of its own where that is so.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::image_roots::{ImageConfig, ImageRoot, ImageRoots};
use runtime::native::{Config, NativeRuntime, oci_seccomp_profile, reset, zygote_main};
use runtime::service::{
    ContainerConfig, ImageError, LinuxResources, NamespaceMode, PodSandboxConfig, RuntimeEvent,
    RuntimeService, SecurityContext,
};

struct OneImage(PathBuf);

impl ImageRoots for OneImage {
    fn prepare(&self, _: &str) -> Result<ImageRoot, ImageError> {
        Ok(ImageRoot {
            lowerdirs: vec![self.0.clone()],
            config: ImageConfig::default(),
        })
    }
    fn hold(&self, _: &str, _: &str) -> Result<(), ImageError> {
        Ok(())
    }
    fn release(&self, _: &str, _: &str) {}
    fn retain_holders(&self, _: &[&str]) -> Result<(), ImageError> {
        Ok(())
    }
}

/// Starts in a row before the others have their turn.
const TURN: usize = 5;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "zygote") {
        zygote_main(std::env::args_os().skip(2));
    }
    let alone = args
        .iter()
        .position(|a| a == "--alone")
        .map(|at| args.remove(at));
    let mut option = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        args.remove(at);
        (at < args.len()).then(|| args.remove(at))
    };
    let json = option("--json");
    let rounds: usize = option("--rounds").map_or(Ok(30), |n| n.parse())?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        // On a thread of its own kind, as in the server.
        .block_on(async { tokio::spawn(bench(json, rounds, alone.is_some())).await? })
}

async fn bench(json: Option<String>, rounds: usize, alone: bool) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let root = directory.path().join("rootfs");
    busybox(&root)?;
    let cgroup_root = format!("/llmagentos-bench-{}", std::process::id());
    // As on a node, what does not outlive a reboot is in memory: our run directory, the peers' state.
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let config = Config {
        run_dir: memory.path().join("run"),
        data_dir: directory.path().join("data"),
        cgroup_root: PathBuf::from(&cgroup_root),
        zygote_command: vec![
            std::env::current_exe()?.display().to_string(),
            "zygote".to_owned(),
        ],
    };
    let runtime = NativeRuntime::new(config.clone(), Arc::new(OneImage(root.clone())), None)?;
    let mut peers = Vec::new();
    // Alone: for a profile of our side.
    for name in ["runc", "crun"].into_iter().filter(|_| !alone) {
        match Peer::start(name, directory.path(), memory.path(), &root, &cgroup_root) {
            Ok(peer) => peers.push(peer),
            Err(error) => eprintln!("{name} is left out: {error}"),
        }
    }
    let mut lines = Vec::new();
    for (name, pause) in [
        ("container start, back to back", 0),
        ("container start, 60 ms between", 60),
    ] {
        let mut ours = Vec::new();
        let mut theirs = vec![Vec::new(); peers.len()];
        let pause = Duration::from_millis(pause);
        // What we clean up after a container is there while the next one of ours starts, and not
        // while a peer's does. The first turn fills caches.
        for turn in 0..rounds.div_ceil(TURN) + 1 {
            let mut times = vec![Vec::new(); peers.len() + 1];
            for number in turn * TURN..(turn + 1) * TURN {
                tokio::time::sleep(pause).await;
                times[peers.len()].push(one(&runtime, number).await?);
            }
            tokio::task::block_in_place(|| runtime.settle());
            for (peer, times) in peers.iter_mut().zip(&mut times) {
                for number in turn * TURN..(turn + 1) * TURN {
                    tokio::time::sleep(pause).await;
                    times.push(peer.run(number)?);
                }
            }
            if turn > 0 {
                ours.append(&mut times[peers.len()]);
                for (all, mut some) in theirs.iter_mut().zip(times) {
                    all.append(&mut some);
                }
            }
        }
        let (p10, median, p90) = quantiles(&mut ours);
        println!("{name}: ours p10 {p10:.2} ms, median {median:.2} ms, p90 {p90:.2} ms");
        for (peer, times) in peers.iter().zip(&mut theirs) {
            let (peer_p10, peer_median, peer_p90) = quantiles(times);
            let ratio = peer_median / median;
            println!(
                "{name}: {} p10 {peer_p10:.2} ms, median {peer_median:.2} ms, p90 {peer_p90:.2} ms; ratio {ratio:.1}",
                peer.name
            );
            lines.push(format!(
                r#"{{"name":"{name} vs {}","unit":"ms","p10":{p10:.3},"median":{median:.3},"p90":{p90:.3},"peer":{peer_median:.3},"ratio":{ratio:.2}}}"#,
                peer.name
            ));
        }
        if peers.is_empty() {
            lines.push(format!(
                r#"{{"name":"{name}","unit":"ms","p10":{p10:.3},"median":{median:.3},"p90":{p90:.3},"peer":null,"ratio":null}}"#
            ));
        }
    }
    if let Some(path) = json {
        fs::write(path, lines.join("\n") + "\n")?;
    }
    drop(peers);
    runtime.settle();
    drop(runtime);
    reset(&config)?;
    Ok(())
}

async fn one(runtime: &NativeRuntime, round: usize) -> Outcome<f64> {
    let mut events = runtime.events();
    let pod = PodSandboxConfig {
        hostname: "bench".to_owned(),
        cgroup_parent: format!("burstable/pod{round}"),
        network: NamespaceMode::Pod,
        pid: NamespaceMode::Container,
        ipc: NamespaceMode::Pod,
        ..PodSandboxConfig::default()
    };
    let container = ContainerConfig {
        image_id: "busybox".to_owned(),
        command: vec!["/bin/true".to_owned()],
        resources: LinuxResources {
            cpu_shares: Some(512),
            cpu_quota_micros: Some(50_000),
            cpu_period_micros: Some(100_000),
            memory_limit_bytes: Some(64 << 20),
            pids_limit: Some(100),
            ..LinuxResources::default()
        },
        security: SecurityContext {
            pid: NamespaceMode::Container,
            ..SecurityContext::default()
        },
        ..ContainerConfig::default()
    };
    let trace = std::env::var_os("TRACE").is_some();
    let begin = Instant::now();
    let sandbox = runtime.run_pod_sandbox(pod).await?.id;
    let sandboxed = begin.elapsed();
    let id = runtime.create_container(&sandbox, container).await?;
    let created = begin.elapsed();
    runtime.start_container(&id).await?;
    let started = begin.elapsed();
    while let Some(event) = events.recv().await {
        if matches!(event, RuntimeEvent::ContainerStopped { .. }) {
            break;
        }
    }
    let ended = begin.elapsed();
    runtime.remove_container(&id).await?;
    runtime.remove_pod_sandbox(&sandbox).await?;
    let all = begin.elapsed();
    if trace {
        eprintln!(
            "sandbox {sandboxed:?} create {:?} start {:?} end {:?} remove {:?}",
            created - sandboxed,
            started - created,
            ended - started,
            all - ended
        );
    }
    Ok(all.as_secs_f64() * 1000.0)
}

/// A shell that runs one container for each line it reads.
struct Peer {
    name: &'static str,
    shell: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(
        name: &'static str,
        directory: &Path,
        memory: &Path,
        root: &Path,
        cgroup_root: &str,
    ) -> Outcome<Self> {
        let bundle = directory.join(name);
        fs::create_dir_all(&bundle)?;
        fs::write(
            bundle.join("config.json"),
            oci_config(root, &format!("{cgroup_root}/{name}")),
        )?;
        let state = memory.join(format!("{name}-state"));
        let hide = if name == "crun" && Path::new("/sys/fs/cgroup/unified").is_dir() {
            "mount --make-rprivate / && mount -t tmpfs none /sys/fs/cgroup/unified && "
        } else {
            ""
        };
        let line = format!(
            "{hide} while read id; do {name} --root {} run --bundle {} $id </dev/null >/dev/null 2>{}; echo $?; done",
            state.display(),
            bundle.display(),
            directory.join(format!("{name}.err")).display()
        );
        let mut shell = Command::new("unshare")
            .args(["-m", "sh", "-c", &line])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = shell.stdin.take();
        let output = BufReader::new(shell.stdout.take().ok_or("no output")?);
        let mut peer = Self {
            name,
            shell,
            input,
            output,
        };
        peer.run(9_999_999).map_err(|error| {
            let text =
                fs::read_to_string(directory.join(format!("{name}.err"))).unwrap_or_default();
            format!("{error}: {text}")
        })?;
        Ok(peer)
    }

    fn run(&mut self, round: usize) -> Outcome<f64> {
        let begin = Instant::now();
        let input = self.input.as_mut().ok_or("the shell is gone")?;
        writeln!(input, "bench{round}")?;
        let mut code = String::new();
        self.output.read_line(&mut code)?;
        if code.trim() != "0" {
            return Err(format!("{} ended with {}", self.name, code.trim()).into());
        }
        Ok(begin.elapsed().as_secs_f64() * 1000.0)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.shell.wait();
    }
}

fn quantiles(times: &mut [f64]) -> (f64, f64, f64) {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part).round() as usize];
    (at(0.1), at(0.5), at(0.9))
}

fn busybox(root: &Path) -> Outcome<()> {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/true"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    Ok(())
}

fn oci_config(root: &Path, cgroup: &str) -> String {
    let capabilities = r#"["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_FSETID","CAP_FOWNER","CAP_MKNOD","CAP_NET_RAW","CAP_SETGID","CAP_SETUID","CAP_SETFCAP","CAP_SETPCAP","CAP_NET_BIND_SERVICE","CAP_SYS_CHROOT","CAP_KILL","CAP_AUDIT_WRITE"]"#;
    format!(
        r#"{{"ociVersion":"1.0.2","root":{{"path":"{}"}},"hostname":"bench",
        "process":{{"args":["/bin/true"],"cwd":"/","env":["PATH=/bin"],"user":{{"uid":0,"gid":0}},
          "capabilities":{{"bounding":{capabilities},"effective":{capabilities},"permitted":{capabilities}}}}},
        "mounts":[{{"destination":"/proc","type":"proc","source":"proc","options":["nosuid","noexec","nodev"]}},
          {{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","strictatime","mode=755","size=65536k"]}},
          {{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620","gid=5"]}},
          {{"destination":"/dev/mqueue","type":"mqueue","source":"mqueue","options":["nosuid","noexec","nodev"]}},
          {{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","noexec","nodev","mode=1777","size=65536k"]}},
          {{"destination":"/sys","type":"sysfs","source":"sysfs","options":["nosuid","noexec","nodev","ro"]}},
          {{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["nosuid","noexec","nodev","relatime","ro"]}}],
        "linux":{{"cgroupsPath":"{cgroup}","namespaces":[{{"type":"pid"}},{{"type":"mount"}},{{"type":"ipc"}},{{"type":"uts"}},{{"type":"network"}},{{"type":"cgroup"}}],
          "resources":{{"cpu":{{"shares":512,"quota":50000,"period":100000}},"memory":{{"limit":67108864}},"pids":{{"limit":100}}}},
          "maskedPaths":["/proc/acpi","/proc/asound","/proc/kcore","/proc/keys","/proc/latency_stats","/proc/timer_list","/proc/timer_stats","/proc/sched_debug","/sys/firmware","/sys/devices/virtual/powercap","/proc/scsi"],
          "readonlyPaths":["/proc/bus","/proc/fs","/proc/irq","/proc/sys","/proc/sysrq-trigger"],
          "seccomp":{}}}}}"#,
        root.display(),
        oci_seccomp_profile()
    )
}
