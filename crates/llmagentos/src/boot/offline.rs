//! What can be done to an instance without its server: stop its containers, remove what it made, use its images.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use network::ResetConfig;
use runtime::image::{ImageStore, StoreOptions};
use runtime::native::{self, NativeRuntime};
use runtime::service::RuntimeService;
use rustix::mount::{UnmountFlags, unmount};

use crate::config::Config;

pub fn open_images(config: &Config) -> anyhow::Result<ImageStore> {
    let mut options = StoreOptions::new(config.images_dir());
    options.registries_file = config.registries_path();
    ImageStore::open(options).context("open the image store")
}

pub fn runtime_config(config: &Config) -> anyhow::Result<native::Config> {
    let program = std::env::current_exe().context("find this program's path")?;
    Ok(native::Config {
        run_dir: config.cluster.run_dir.join("runtime"),
        data_dir: config.containers_dir(),
        cgroup_root: config.cluster.cgroup_root.clone().into(),
        zygote_command: vec![program.display().to_string(), "zygote".to_owned()],
    })
}

/// Stops every pod's containers, all at once; answers how many pods there were.
pub fn stop_containers(config: &Config, grace_period_seconds: u64) -> anyhow::Result<usize> {
    async_runtime()?.block_on(async {
        let images = Arc::new(open_images(config)?);
        let runtime = NativeRuntime::new(runtime_config(config)?, images, None)
            .context("reach the container runtime")?;
        let containers = runtime.list_containers().await.context("list containers")?;
        let stops = containers
            .iter()
            .map(|container| runtime.stop_container(&container.id, grace_period_seconds));
        for result in futures::future::join_all(stops).await {
            result?;
        }
        let sandboxes = runtime
            .list_pod_sandboxes()
            .await
            .context("list pod sandboxes")?;
        for result in futures::future::join_all(
            sandboxes
                .iter()
                .map(|sandbox| runtime.stop_pod_sandbox(&sandbox.id)),
        )
        .await
        {
            result?;
        }
        runtime.settle();
        // A live runtime would start another.
        drop(runtime);
        native::end_zygote(&runtime_config(config)?).context("end the zygote")?;
        Ok(sandboxes.len())
    })
}

/// Removes containers, links, rules and volumes' mounts; answers what was (or would be) removed.
pub fn reset_containers_and_network(config: &Config, dry_run: bool) -> anyhow::Result<Vec<String>> {
    let runtime = runtime_config(config)?;
    let mut removed = if dry_run {
        native::planned_reset(&runtime)
    } else {
        native::reset(&runtime)
    }
    .context("remove the containers")?;
    removed.extend(volume_mounts(config, dry_run)?);
    let network = ResetConfig {
        bridge: config.cluster.bridge.clone(),
        table: config.cluster.nft_table.clone(),
        state_dir: config.network_dir(),
    };
    removed.extend(network::reset(&network, dry_run).context("remove the network")?);
    Ok(removed)
}

/// What is mounted below the pods' directories, innermost first.
fn volume_mounts(config: &Config, dry_run: bool) -> anyhow::Result<Vec<String>> {
    let table =
        std::fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let mut targets: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|target| PathBuf::from(unescaped(target)))
        .filter(|target| target.starts_with(config.kubelet_dir()))
        .collect();
    targets.reverse();
    let mut removed = Vec::new();
    for target in targets {
        if !dry_run {
            unmount(&target, UnmountFlags::DETACH)
                .with_context(|| format!("unmount {}", target.display()))?;
        }
        removed.push(format!("mount {}", target.display()));
    }
    Ok(removed)
}

/// A path of mountinfo: blanks and backslashes are written in octal there (proc(5)).
fn unescaped(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Directories of our pods' logs: `<namespace>_<name>_<uid>`, of the pods that the node agent has a directory for.
pub fn pod_log_directories(config: &Config) -> Vec<PathBuf> {
    let names = |directory: &Path| -> Vec<String> {
        std::fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    let uids: HashSet<String> = names(&config.kubelet_dir().join("pods"))
        .into_iter()
        .collect();
    names(&config.cluster.log_dir)
        .into_iter()
        .filter(|name| {
            name.rsplit('_')
                .next()
                .is_some_and(|uid| uids.contains(uid))
        })
        .map(|name| config.cluster.log_dir.join(name))
        .collect()
}

fn async_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")
}
