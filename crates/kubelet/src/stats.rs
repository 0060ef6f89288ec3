//! `/stats/summary`: what the node and its pods use.

use std::collections::BTreeMap;

use jiff::Timestamp;
use runtime::service::{ContainerStats, RuntimeError};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::node::machine;
use crate::pod::labels;
use crate::pod::machine::timestamp;

/// The summary in upstream's form, as far as the runtime measures.
pub async fn summary(agent: &Agent) -> Result<Value, RuntimeError> {
    let stats = agent.context.runtime.container_stats().await?;
    let mut by_pod: BTreeMap<String, Vec<ContainerStats>> = BTreeMap::new();
    for stat in stats {
        let uid = stat
            .labels
            .get(labels::POD_UID)
            .cloned()
            .unwrap_or_default();
        by_pod.entry(uid).or_default().push(stat);
    }
    let pods: Vec<Value> = by_pod
        .values()
        .filter_map(|containers| {
            let first = containers.first()?;
            let label = |name: &str| first.labels.get(name).cloned().unwrap_or_default();
            let sum = |field: fn(&ContainerStats) -> u64| containers.iter().map(field).sum::<u64>();
            let time = timestamp(first.timestamp_nanos).to_string();
            Some(json!({
                "podRef": {"name": label(labels::POD_NAME), "namespace": label(labels::POD_NAMESPACE), "uid": label(labels::POD_UID)},
                "containers": containers.iter().map(container).collect::<Vec<_>>(),
                "cpu": {"time": time, "usageCoreNanoSeconds": sum(|stat| stat.cpu_usage_core_nanos)},
                "memory": {"time": time, "usageBytes": sum(|stat| stat.memory_usage_bytes), "workingSetBytes": sum(|stat| stat.memory_working_set_bytes), "rssBytes": sum(|stat| stat.memory_rss_bytes)},
                "process_stats": {"process_count": sum(|stat| stat.process_count)},
            }))
        })
        .collect();
    let now = Timestamp::now().to_string();
    let available = machine::meminfo_bytes("MemAvailable").unwrap_or(0);
    let config = &agent.context.config;
    let filesystem = machine::filesystem(&config.root_dir).unwrap_or_default();
    Ok(json!({
        "node": {
            "nodeName": config.node_name,
            "memory": {"time": now, "availableBytes": available, "workingSetBytes": agent.context.capacity.memory_bytes - available},
            "fs": {"time": now, "availableBytes": filesystem.available_bytes, "capacityBytes": filesystem.capacity_bytes,
                   "usedBytes": filesystem.capacity_bytes - filesystem.available_bytes, "inodes": filesystem.inodes, "inodesFree": filesystem.inodes_free},
        },
        "pods": pods,
    }))
}

fn container(stat: &ContainerStats) -> Value {
    let time = timestamp(stat.timestamp_nanos).to_string();
    json!({
        "name": stat.name,
        "cpu": {"time": time, "usageCoreNanoSeconds": stat.cpu_usage_core_nanos},
        "memory": {"time": time, "usageBytes": stat.memory_usage_bytes, "workingSetBytes": stat.memory_working_set_bytes, "rssBytes": stat.memory_rss_bytes},
        "rootfs": {"time": time, "usedBytes": stat.writable_layer_bytes},
    })
}
