//! What is looked after from time to time: full logs, unused images, a node short of memory or disk.
//!
//! Enter at [`run`]. What to evict ([`victim`]) and which images go ([`unused`]) is decided by pure functions.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use runtime::service::{ContainerState, ContainerStats, Image};

use crate::agent::{Agent, Pressure, lock};
use crate::config::{Eviction, ImageGc};
use crate::events::{Severity, node_reference};
use crate::logs::rotate;
use crate::node::machine;
use crate::pod::labels;
use crate::pod::resources;
use crate::pod::worker::{Input, Snapshot};

/// Pods of this priority and above keep the node alive and are not evicted.
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Runs until dropped.
pub async fn run(agent: Arc<Agent>) {
    let eviction = agent.context.config.eviction;
    let mut tick = tokio::time::interval(Duration::from_secs(eviction.interval_seconds.max(1)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut images = ImageUse::default();
    let mut since = PressureSince::default();
    let mut collect_at = Timestamp::now();
    loop {
        tick.tick().await;
        let now = Timestamp::now();
        rotate_logs(&agent, now).await;
        let shortage = shortage(&agent, &eviction).await;
        if shortage.disk || now >= collect_at {
            let gc = agent.context.config.image_gc;
            collect_at =
                now + SignedDuration::from_secs(i64::try_from(gc.interval_seconds).unwrap_or(300));
            collect_images(&agent, &mut images, &gc, shortage.disk, now).await;
        }
        set_pressure(
            &agent,
            since.update(shortage, eviction.transition_seconds, now),
        );
        if shortage.memory || shortage.disk {
            evict_one(&agent, shortage, &eviction).await;
        }
        enforce_limits(&agent).await;
    }
}

async fn rotate_logs(agent: &Agent, now: Timestamp) {
    for snapshot in agent.snapshots() {
        for status in snapshot
            .containers
            .iter()
            .filter(|status| status.state == ContainerState::Running)
        {
            if let Err(error) = rotate::rotate(
                agent.context.runtime.as_ref(),
                &status.id,
                &status.log_path,
                rotate::FILE_BYTES_MAX,
                now,
            )
            .await
            {
                tracing::warn!(%error, path = %status.log_path.display(), "log was not rotated");
            }
        }
    }
}

// --- images ---

#[derive(Default)]
struct ImageUse {
    first_seen: HashMap<String, Timestamp>,
    last_used: HashMap<String, Timestamp>,
}

/// Which images go, the longest unused first, until `bytes` are free. Pure.
pub fn unused<'a>(
    images: &'a [Image],
    in_use: &HashSet<String>,
    last_used: &HashMap<String, Timestamp>,
    first_seen: &HashMap<String, Timestamp>,
    min_age_seconds: i64,
    bytes: u64,
    now: Timestamp,
) -> Vec<&'a Image> {
    let old_enough = |image: &Image| {
        first_seen
            .get(&image.id)
            .is_some_and(|seen| now.duration_since(*seen).as_secs() >= min_age_seconds)
    };
    let mut list: Vec<&Image> = images
        .iter()
        .filter(|image| !image.pinned && !in_use.contains(&image.id) && old_enough(image))
        .collect();
    list.sort_by_key(|image| {
        (
            last_used.get(&image.id).copied(),
            first_seen.get(&image.id).copied(),
        )
    });
    let mut freed = 0;
    list.into_iter()
        .take_while(|image| {
            let more = freed < bytes;
            freed += image.size_bytes;
            more
        })
        .collect()
}

async fn collect_images(
    agent: &Agent,
    usage: &mut ImageUse,
    gc: &ImageGc,
    urgent: bool,
    now: Timestamp,
) {
    let context = &agent.context;
    let Ok(images) = context.images.list().await else {
        return;
    };
    context.pulls.prune(&images, now);
    let in_use: HashSet<String> = agent
        .snapshots()
        .iter()
        .flat_map(|snapshot| {
            snapshot
                .containers
                .iter()
                .map(|status| status.image_id.clone())
        })
        .collect();
    for image in &images {
        usage.first_seen.entry(image.id.clone()).or_insert(now);
        if in_use.contains(&image.id) {
            usage.last_used.insert(image.id.clone(), now);
        }
    }
    let known: HashSet<&String> = images.iter().map(|image| &image.id).collect();
    usage.first_seen.retain(|id, _| known.contains(id));
    usage.last_used.retain(|id, _| known.contains(id));
    let Ok(filesystem) = context.images.filesystem_usage().await else {
        return;
    };
    let Some(disk) = machine::filesystem(&filesystem.mountpoint) else {
        return;
    };
    if disk.capacity_bytes <= 0 {
        return;
    }
    let used = disk.capacity_bytes - disk.available_bytes;
    let used_percent = used * 100 / disk.capacity_bytes;
    if used_percent < i64::from(gc.high_threshold_percent) && !urgent {
        return;
    }
    let keep = disk.capacity_bytes / 100 * i64::from(gc.low_threshold_percent);
    let wanted = u64::try_from(used - keep).unwrap_or(0);
    let mut freed = 0;
    for image in unused(
        &images,
        &in_use,
        &usage.last_used,
        &usage.first_seen,
        gc.min_age_seconds,
        wanted.max(u64::from(urgent)),
        now,
    ) {
        match context.images.remove(&image.id).await {
            Ok(()) => freed += image.size_bytes,
            Err(error) => tracing::warn!(image = image.id, %error, "image was not removed"),
        }
    }
    if freed < wanted {
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
        );
        context.events.tell(
            node_reference(&context.config.node_name),
            Severity::Warning,
            "FreeDiskSpaceFailed",
            message,
        );
    }
}

// --- pressure and eviction ---

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shortage {
    memory: bool,
    memory_available_bytes: i64,
    disk: bool,
    disk_available_bytes: i64,
    pids: bool,
}

async fn shortage(agent: &Agent, eviction: &Eviction) -> Shortage {
    let mut shortage = Shortage {
        memory_available_bytes: machine::meminfo_bytes("MemAvailable").unwrap_or(i64::MAX),
        ..Shortage::default()
    };
    shortage.memory = shortage.memory_available_bytes
        < i64::try_from(eviction.memory_available_bytes_min).unwrap_or(0);
    shortage.disk_available_bytes = i64::MAX;
    let images = agent
        .context
        .images
        .filesystem_usage()
        .await
        .map(|usage| usage.mountpoint)
        .unwrap_or_default();
    for path in [agent.context.config.root_dir.as_path(), images.as_path()] {
        let Some(disk) = machine::filesystem(path) else {
            continue;
        };
        let few_bytes = disk.available_bytes
            < disk.capacity_bytes / 100 * i64::from(eviction.disk_available_percent_min);
        let few_inodes = disk.inodes > 0
            && disk.inodes_free < disk.inodes / 100 * u64::from(eviction.inodes_free_percent_min);
        shortage.disk |= few_bytes || few_inodes;
        shortage.disk_available_bytes = shortage.disk_available_bytes.min(disk.available_bytes);
    }
    // As many processes as the kernel gives out numbers, less a margin of 5%.
    shortage.pids = machine::processes().is_some_and(|(running, max)| running > max - max / 20);
    shortage
}

/// When each shortage was last seen: a condition stays for a while, so that it does not flap.
#[derive(Default)]
struct PressureSince {
    memory: Option<Timestamp>,
    disk: Option<Timestamp>,
    pids: Option<Timestamp>,
}

impl PressureSince {
    fn update(&mut self, shortage: Shortage, transition_seconds: i64, now: Timestamp) -> Pressure {
        let hold = |seen: &mut Option<Timestamp>, short: bool| {
            if short {
                *seen = Some(now);
            }
            seen.is_some_and(|seen| {
                now.duration_since(seen).as_secs() < transition_seconds || short
            })
        };
        Pressure {
            memory: hold(&mut self.memory, shortage.memory),
            disk: hold(&mut self.disk, shortage.disk),
            pids: hold(&mut self.pids, shortage.pids),
        }
    }
}

fn set_pressure(agent: &Agent, pressure: Pressure) {
    let mut current = lock(&agent.pressure);
    if *current != pressure {
        *current = pressure;
        agent.pressure_changed.notify_one();
    }
}

/// What a pod uses and asked for of the short resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub uid: String,
    pub priority: i32,
    pub usage_bytes: i64,
    pub request_bytes: i64,
}

/// Who goes first: those over their request, then the least important, then the furthest over. Pure.
pub fn victim(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates
        .iter()
        .filter(|candidate| candidate.priority < CRITICAL_PRIORITY)
        .min_by_key(|candidate| {
            (
                candidate.usage_bytes <= candidate.request_bytes,
                candidate.priority,
                candidate.request_bytes - candidate.usage_bytes,
            )
        })
}

fn active(agent: &Agent) -> Vec<Snapshot> {
    let over = |snapshot: &Snapshot| {
        snapshot.finished
            || matches!(
                snapshot.status.phase.as_deref(),
                Some("Succeeded" | "Failed")
            )
    };
    agent
        .snapshots()
        .into_iter()
        .filter(|snapshot| !over(snapshot))
        .collect()
}

async fn evict_one(agent: &Agent, shortage: Shortage, eviction: &Eviction) {
    let Ok(stats) = agent.context.runtime.container_stats().await else {
        return;
    };
    let (resource, available, threshold) = if shortage.memory {
        (
            "memory",
            shortage.memory_available_bytes,
            format!("{}Ki", eviction.memory_available_bytes_min >> 10),
        )
    } else {
        (
            "ephemeral-storage",
            shortage.disk_available_bytes,
            format!("{}%", eviction.disk_available_percent_min),
        )
    };
    let is_static = |pod: &Pod| {
        pod.metadata
            .annotations
            .as_ref()
            .is_some_and(|annotations| annotations.contains_key(labels::CONFIG_SOURCE))
    };
    let candidates: Vec<Candidate> = active(agent)
        .iter()
        .filter_map(|snapshot| {
            let pod = snapshot
                .pod
                .as_ref()
                .filter(|pod| !is_static(pod) && pod.metadata.deletion_timestamp.is_none())?;
            let uid = pod.metadata.uid.clone()?;
            let requests = resources::requests(pod);
            let usage = |stat: &ContainerStats| {
                if shortage.memory {
                    stat.memory_working_set_bytes
                } else {
                    stat.writable_layer_bytes
                }
            };
            let usage_bytes: u64 = stats
                .iter()
                .filter(|stat| stat.labels.get(labels::POD_UID) == Some(&uid))
                .map(usage)
                .sum();
            Some(Candidate {
                priority: pod
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.priority)
                    .unwrap_or(0),
                usage_bytes: i64::try_from(usage_bytes).unwrap_or(i64::MAX),
                request_bytes: if shortage.memory {
                    requests.memory_bytes
                } else {
                    requests
                        .others
                        .get("ephemeral-storage")
                        .copied()
                        .unwrap_or(0)
                },
                uid,
            })
        })
        .collect();
    let Some(victim) = victim(&candidates) else {
        return;
    };
    let message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {}Ki. Pod was using {}Ki, request is {}Ki, has larger consumption of {resource}. ",
        available >> 10,
        victim.usage_bytes >> 10,
        victim.request_bytes >> 10
    );
    agent.send(
        &victim.uid,
        Input::Evict {
            reason: "Evicted".into(),
            message,
            grace_period_seconds: 0,
        },
    );
}

/// Evicts pods that use more local storage than their limits allow.
async fn enforce_limits(agent: &Agent) {
    let limited = |snapshot: &Snapshot| {
        let spec = snapshot.pod.as_ref().and_then(|pod| pod.spec.as_ref());
        spec.is_some_and(|spec| {
            let volume = spec.volumes.iter().flatten().any(|volume| {
                volume.empty_dir.as_ref().is_some_and(|empty_dir| {
                    empty_dir.size_limit.is_some() && empty_dir.medium.as_deref() != Some("Memory")
                })
            });
            let limit = |resources: &k8s_openapi::api::core::v1::ResourceRequirements| {
                resources
                    .limits
                    .as_ref()
                    .is_some_and(|limits| limits.contains_key("ephemeral-storage"))
            };
            volume
                || spec
                    .containers
                    .iter()
                    .any(|container| container.resources.as_ref().is_some_and(limit))
        })
    };
    let pods: Vec<Snapshot> = active(agent).into_iter().filter(limited).collect();
    if pods.is_empty() {
        return;
    }
    let Ok(stats) = agent.context.runtime.container_stats().await else {
        return;
    };
    let root = agent.context.config.root_dir.clone();
    let excesses = tokio::task::spawn_blocking(move || {
        pods.iter()
            .filter_map(|snapshot| excess(snapshot, &stats, &root))
            .collect::<Vec<_>>()
    })
    .await
    .unwrap_or_default();
    for (uid, message) in excesses {
        agent.send(
            &uid,
            Input::Evict {
                reason: "Evicted".into(),
                message,
                grace_period_seconds: 0,
            },
        );
    }
}

fn excess(snapshot: &Snapshot, stats: &[ContainerStats], root: &Path) -> Option<(String, String)> {
    let pod = snapshot.pod.as_ref()?;
    let (uid, spec) = (pod.metadata.uid.clone()?, pod.spec.as_ref()?);
    for volume in spec.volumes.iter().flatten() {
        let Some(limit) = volume
            .empty_dir
            .as_ref()
            .filter(|empty_dir| empty_dir.medium.as_deref() != Some("Memory"))
            .and_then(|empty_dir| empty_dir.size_limit.as_ref())
        else {
            continue;
        };
        let path = root
            .join("pods")
            .join(&uid)
            .join("volumes/kubernetes.io~empty-dir")
            .join(&volume.name);
        if used_bytes(&path) > u64::try_from(volumes::amount::units(limit)).unwrap_or(0) {
            return Some((
                uid,
                format!(
                    "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                    volume.name, limit.0
                ),
            ));
        }
    }
    for container in &spec.containers {
        let Some(limit) = container
            .resources
            .as_ref()
            .and_then(|resources| resources.limits.as_ref()?.get("ephemeral-storage"))
        else {
            continue;
        };
        let layer: u64 = stats
            .iter()
            .filter(|stat| {
                stat.name == container.name && stat.labels.get(labels::POD_UID) == Some(&uid)
            })
            .map(|stat| stat.writable_layer_bytes)
            .sum();
        let logs = snapshot
            .containers
            .iter()
            .find(|status| status.metadata.name == container.name)
            .and_then(|status| status.log_path.parent().map(used_bytes))
            .unwrap_or(0);
        if layer + logs > u64::try_from(volumes::amount::units(limit)).unwrap_or(0) {
            return Some((
                uid,
                format!(
                    "Container {} exceeded its local ephemeral storage limit {:?}. ",
                    container.name, limit.0
                ),
            ));
        }
    }
    None
}

/// Bytes on disk of a directory, links not followed.
fn used_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| used_bytes(&entry.path()))
        .sum::<u64>()
        + own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn victims() {
        let candidate = |uid: &str, priority, usage_bytes, request_bytes| Candidate {
            uid: uid.into(),
            priority,
            usage_bytes,
            request_bytes,
        };
        for (candidates, expect) in [
            (
                vec![
                    candidate("within", 0, 5, 10),
                    candidate("over", 100, 20, 10),
                ],
                Some("over"),
            ),
            (
                vec![candidate("low", 0, 20, 10), candidate("high", 100, 90, 10)],
                Some("low"),
            ),
            (
                vec![candidate("little", 0, 11, 10), candidate("much", 0, 90, 10)],
                Some("much"),
            ),
            (vec![candidate("critical", CRITICAL_PRIORITY, 90, 0)], None),
            (vec![], None),
        ] {
            assert_eq!(
                victim(&candidates).map(|victim| victim.uid.as_str()),
                expect,
                "{candidates:?}"
            );
        }
    }

    #[test]
    fn the_longest_unused_images_go_first() {
        let image = |id: &str, size_bytes, pinned| Image {
            id: id.into(),
            size_bytes,
            pinned,
            ..Image::default()
        };
        let images = [
            image("used", 10, false),
            image("new", 10, false),
            image("old", 10, false),
            image("older", 10, false),
            image("pinned", 10, true),
        ];
        let in_use = HashSet::from(["used".to_owned()]);
        let first_seen: HashMap<String, Timestamp> = images
            .iter()
            .map(|image| {
                (
                    image.id.clone(),
                    if image.id == "new" { at(990) } else { at(0) },
                )
            })
            .collect();
        let last_used = HashMap::from([("old".to_owned(), at(500)), ("older".to_owned(), at(400))]);
        let ids = |bytes| {
            unused(
                &images,
                &in_use,
                &last_used,
                &first_seen,
                120,
                bytes,
                at(1000),
            )
            .iter()
            .map(|image| image.id.clone())
            .collect::<Vec<_>>()
        };
        assert_eq!(ids(5), ["older"]);
        assert_eq!(ids(15), ["older", "old"]);
        assert_eq!(ids(500), ["older", "old"]);
    }

    #[test]
    fn pressure_stays_for_a_while() {
        let mut since = PressureSince::default();
        let short = Shortage {
            memory: true,
            ..Shortage::default()
        };
        assert!(!since.update(Shortage::default(), 300, at(0)).memory);
        assert!(since.update(short, 300, at(10)).memory);
        assert!(since.update(Shortage::default(), 300, at(100)).memory);
        assert!(!since.update(Shortage::default(), 300, at(310)).memory);
    }
}
