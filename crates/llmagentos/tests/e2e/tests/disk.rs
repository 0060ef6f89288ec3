//! Disks that are slow, full, or hold what this program does not know. Each test has a cluster of its own.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::cluster::{Cluster, eventually, fail, succeed};
use crate::images::{self, BUSYBOX};
use crate::kubectl::{Kubectl, contains};

/// Delays fsync and fdatasync by as many milliseconds as the file named by SLOW_FSYNC_FILE says.
const SLOW_FSYNC: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static void delay(void) {
    const char *path = getenv("SLOW_FSYNC_FILE");
    FILE *file = path ? fopen(path, "re") : NULL;
    long milliseconds = 0;
    if (!file)
        return;
    if (fscanf(file, "%ld", &milliseconds) == 1) {
        struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
        nanosleep(&time, NULL);
    }
    fclose(file);
}
int fsync(int fd) {
    delay();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
int fdatasync(int fd) {
    delay();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
"#;

/// With an fsync of three seconds everything goes on, only slower: the node stays Ready, its lease is renewed,
/// pods start, and the server is the same process.
pub fn slow(_: &Cluster) -> anyhow::Result<()> {
    let cluster = Cluster::prepare()?;
    let (source, shim) = (
        cluster.path().join("slow.c"),
        cluster.path().join("slow.so"),
    );
    std::fs::write(&source, SLOW_FSYNC)?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]);
    compiler.arg(&shim).arg(&source).arg("-ldl");
    succeed(compiler)?;
    let delay = cluster.path().join("delay");
    let mut init = cluster.init_command(&[]);
    init.env("LD_PRELOAD", &shim).env("SLOW_FSYNC_FILE", &delay);
    succeed(init)?;
    let result = go_slowly(&cluster, &delay);
    let tail = cluster.log_tail();
    std::fs::remove_file(&delay).ok();
    succeed(cluster.llmagentos(&["reset"]))?;
    result.context(tail)
}

fn go_slowly(cluster: &Cluster, delay: &Path) -> anyhow::Result<()> {
    images::load_all(cluster)?;
    let kubectl = Kubectl::in_new_namespace(cluster, "slow")?;
    let server = cluster.server_pid()?;
    let renewed = || {
        kubectl.run(&[
            "get",
            "lease",
            "e2e",
            "--namespace=kube-node-lease",
            "-o",
            "jsonpath={.spec.renewTime}",
        ])
    };
    let before = renewed()?;
    std::fs::write(delay, "3000")?;
    let began = Instant::now();
    kubectl.run(&["create", "configmap", "first"])?;
    ensure!(
        began.elapsed() >= Duration::from_secs(3),
        "a write is answered when it is durable, not before: {:?}",
        began.elapsed()
    );
    kubectl.run(&[
        "run",
        "pod",
        &format!("--image={BUSYBOX}"),
        "--",
        "sleep",
        "1000",
    ])?;
    kubectl.wait_for_value("pod/pod", ".status.phase", "Running")?;
    let ready = || {
        let value = kubectl.value(
            "node/e2e",
            ".status.conditions[?(@.type==\"Ready\")].status",
        )?;
        ensure!(value == "True", "the node is Ready: {value}");
        let taints = kubectl.value("node/e2e", ".spec.taints")?;
        ensure!(taints.is_empty(), "the node has taints: {taints}");
        Ok(())
    };
    let mut seen = vec![before];
    eventually("the lease is renewed twice", || {
        ready().context("while the disk is slow")?;
        let now = renewed()?;
        if !seen.contains(&now) {
            seen.push(now);
        }
        if seen.len() < 3 {
            bail!("renewals: {seen:?}");
        }
        Ok(())
    })?;
    // Longer than any client's patience: what waits is answered when the disk is back.
    std::fs::write(delay, "20000")?;
    let waiting = std::thread::scope(|scope| {
        let create = scope.spawn(|| kubectl.run(&["create", "configmap", "second"]));
        std::thread::sleep(Duration::from_secs(2));
        std::fs::remove_file(delay)?;
        create.join().expect("it does not panic")
    });
    waiting?;
    kubectl.run(&["get", "configmap", "first", "second"])?;
    ready()?;
    ensure!(cluster.server_pid()? == server, "the server is the same");
    succeed(kubectl.command(&["delete", "pod", "pod", "--now"])).map(drop)
}

/// A tmpfs, unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path, size: &str) -> anyhow::Result<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]);
        mount.arg(path);
        succeed(mount)?;
        Ok(Self(path))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0).status().ok();
    }
}

/// A disk too small to begin with is said, and a disk that fills up loses nothing and works again when there is space.
pub fn full(_: &Cluster) -> anyhow::Result<()> {
    let cluster = Cluster::prepare()?;
    let disk = SmallDisk::mount(cluster.path(), "900k")?;
    let said = fail(cluster.init_command(&[]));
    succeed(cluster.llmagentos(&["reset"]))?;
    contains(
        &said?,
        &format!(
            "no space left on the disk of {}",
            cluster.path().join("data").display()
        ),
    )?;
    drop(disk);

    let cluster = Cluster::prepare()?;
    let _disk = SmallDisk::mount(cluster.path(), "256m")?;
    succeed(cluster.init_command(&[]))?;
    let result = fill_up(&cluster);
    let tail = cluster.log_tail();
    succeed(cluster.llmagentos(&["reset"]))?;
    result.context(tail)
}

fn fill_up(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "full")?;
    let server = cluster.server_pid()?;
    kubectl.run(&["create", "configmap", "before"])?;
    let ballast = cluster.path().join("ballast");
    let mut zeros = std::fs::File::open("/dev/zero")?;
    let filled = std::io::copy(&mut zeros, &mut std::fs::File::create(&ballast)?);
    ensure!(filled.is_err(), "the disk is full now");
    let mut stored = Vec::new();
    let large = "x".repeat(500_000);
    let said = (0..1000)
        .find_map(|number| {
            let name = format!("number-{number}");
            let manifest = format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: {large}{number}}}\n"
            );
            match kubectl.run_with_input(&["create", "-f", "-"], &manifest) {
                Ok(_) => {
                    stored.push(name);
                    None
                }
                Err(error) => Some(error.to_string()),
            }
        })
        .context("writes are refused when there is no space")?;
    contains(&said, "no space left on the disk of")?;
    contains(&said, "free some space, nothing was written")?;
    // Reads go on, and what was acknowledged is there.
    kubectl.run(&["get", "configmap", "before"])?;
    for name in &stored {
        kubectl.run(&["get", "configmap", name])?;
    }
    contains(
        &kubectl.fails(&["get", "configmap", &format!("number-{}", stored.len())])?,
        "not found",
    )?;
    std::fs::remove_file(ballast)?;
    eventually("writes are taken again", || {
        kubectl.run(&["create", "configmap", "after"])
    })?;
    ensure!(cluster.server_pid()? == server, "the server is the same");
    Ok(())
}

/// A data directory that a newer version has written is left alone.
pub fn newer_version(_: &Cluster) -> anyhow::Result<()> {
    let cluster = Cluster::prepare()?;
    let store = cluster.path().join("data/store");
    std::fs::create_dir_all(&store)?;
    let format = store.join("format");
    std::fs::write(&format, "llmagentos store format 999\n")?;
    let said = fail(cluster.init_command(&[]));
    let left = std::fs::read_to_string(&format);
    succeed(cluster.llmagentos(&["reset"]))?;
    let said = said?;
    contains(&said, "999")?;
    contains(&said, "newer")?;
    contains(&said, &store.display().to_string())?;
    ensure!(
        left? == "llmagentos store format 999\n",
        "it is left as it was"
    );
    Ok(())
}
