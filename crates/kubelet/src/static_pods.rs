//! Static pods: manifests in a directory, run without the API server, shown to it by mirror pods.
//!
//! A pod's uid is the hash of its manifest, so a changed file is another pod: the old one ends, the new one
//! starts. The mirror carries that uid in its annotations; one that does not fit is deleted and made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use api::kind::Kind;
use api::registry::Registry;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use rustix::fs::inotify;
use serde_json::Value;
use tokio::net::unix::pipe;

use crate::agent::{Agent, Found, lock};
use crate::pod::labels::{CONFIG_HASH, CONFIG_MIRROR, CONFIG_SOURCE};
use crate::watch::{Change, follow};

/// Editors write a file in several steps; they are taken as one.
const SETTLE: Duration = Duration::from_millis(50);
const MIRROR_RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest is neither YAML nor JSON: {0}")]
    Syntax(String),
    #[error("manifest is not a v1 Pod: {0}")]
    NotAPod(String),
    #[error("pod has no name")]
    NoName,
    #[error("pod \"{name}\" is invalid: {why}")]
    Invalid { name: String, why: String },
}

/// The pod that a manifest describes, as it runs on this node: with the API's own defaults, held to its own rules. Pure.
pub fn parse(text: &str, node_name: &str) -> Result<Pod, ManifestError> {
    let mut value: Value =
        serde_yaml::from_str(text).map_err(|error| ManifestError::Syntax(error.to_string()))?;
    if value["kind"] != "Pod" || value["apiVersion"] != "v1" {
        return Err(ManifestError::NotAPod(format!(
            "apiVersion {} kind {}",
            value["apiVersion"], value["kind"]
        )));
    }
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    let strategy = &POD_KIND.strategy;
    let mut object = strategy
        .from_value(value)
        .map_err(|error| ManifestError::NotAPod(error.to_string()))?;
    let metadata = object.metadata_mut();
    let name = metadata
        .name
        .take()
        .filter(|name| !name.is_empty())
        .ok_or(ManifestError::NoName)?;
    let uid = hash(&format!("{node_name}\0{text}"));
    metadata.name = Some(format!("{name}-{}", node_name.to_lowercase()));
    metadata
        .namespace
        .get_or_insert_with(|| "default".to_owned());
    metadata.uid = Some(uid.clone());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_SOURCE.into(), "file".into());
    annotations.insert(CONFIG_HASH.into(), uid);
    let pod: &mut Pod = object
        .as_any_mut()
        .downcast_mut()
        .expect("the strategy of pods decodes pods");
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node_name.to_owned());
    // A static pod stays whatever the node is tainted with.
    let tolerations = spec.tolerations.get_or_insert_default();
    tolerations.push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    });
    strategy.default(object.as_mut());
    let errors = strategy.validate_create(object.as_ref());
    if !errors.is_empty() {
        return Err(ManifestError::Invalid {
            name,
            why: api::error::aggregate(&errors),
        });
    }
    Ok(object
        .as_any()
        .downcast_ref::<Pod>()
        .expect("the strategy of pods decodes pods")
        .clone())
}

/// What the API knows of pods.
static POD_KIND: LazyLock<Arc<Kind>> = LazyLock::new(|| {
    Registry::builtin()
        .by_kind("", "v1", "Pod")
        .expect("Pod is a built-in kind")
        .clone()
});

/// 128 bits of FNV-1a in hexadecimal: a name, not a protection.
fn hash(text: &str) -> String {
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58du128;
    for byte in text.bytes() {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    format!("{hash:032x}")
}

/// All manifests of the directory by file name; unusable ones are left out, with a warning.
fn read_all(directory: &Path, node_name: &str) -> BTreeMap<String, Pod> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(%error, path = %directory.display(), "manifests could not be read");
            return BTreeMap::new();
        }
    };
    let mut pods = BTreeMap::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || !entry.path().is_file() {
            continue;
        }
        match std::fs::read_to_string(entry.path())
            .map_err(|error| error.to_string())
            .and_then(|text| parse(&text, node_name).map_err(|error| error.to_string()))
        {
            Ok(pod) => {
                pods.insert(name, pod);
            }
            Err(error) => tracing::warn!(manifest = name, error, "manifest is not used"),
        }
    }
    pods
}

/// Takes the manifests as they are now: new pods start, gone ones end.
pub fn load(agent: &Arc<Agent>, directory: &Path, found: &mut Found) {
    let pods = read_all(directory, &agent.context.config.node_name);
    let uids: BTreeSet<String> = pods
        .values()
        .filter_map(|pod| pod.metadata.uid.clone())
        .collect();
    agent.retain(&|uid| uids.contains(uid), true);
    for pod in pods.into_values() {
        // Nothing about a static pod changes but with its file.
        if !pod.metadata.uid.as_ref().is_some_and(|uid| agent.has(uid)) {
            agent.apply(Arc::new(pod), true, found);
        }
    }
}

/// Follows the directory and keeps the mirrors until dropped.
pub async fn run(agent: Arc<Agent>) {
    let Some(directory) = agent.context.config.manifests_dir.clone() else {
        return;
    };
    futures::join!(
        follow_directory(&agent, &directory),
        keep_mirrors(&agent),
        follow_mirrors(&agent)
    );
}

async fn follow_directory(agent: &Arc<Agent>, directory: &Path) {
    let open = || -> std::io::Result<pipe::Receiver> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let flags = inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::MOVED_FROM
            | inotify::WatchFlags::DELETE;
        inotify::add_watch(&fd, directory, flags)?;
        // No pipe, but read and polled like one.
        pipe::Receiver::from_owned_fd_unchecked(fd)
    };
    let fd = match open() {
        Ok(fd) => fd,
        Err(error) => {
            tracing::warn!(%error, path = %directory.display(), "manifests are not followed");
            return;
        }
    };
    // What changed between the first load and now.
    load(agent, directory, &mut Found::default());
    agent.mirrors_due.notify_one();
    loop {
        if fd.readable().await.is_err() {
            return;
        }
        tokio::time::sleep(SETTLE).await;
        let mut buffer = [0u8; 4096];
        while fd.try_read(&mut buffer).is_ok_and(|count| count > 0) {}
        load(agent, directory, &mut Found::default());
        agent.mirrors_due.notify_one();
    }
}

/// Tells when a mirror goes, so that it is made again.
async fn follow_mirrors(agent: &Arc<Agent>) {
    let api: Api<Pod> = Api::all(agent.context.client.clone());
    let selector = format!("spec.nodeName={}", agent.context.config.node_name);
    let due = Arc::clone(agent);
    follow(api, Some(selector), move |change| {
        let is_mirror = |pod: &Pod| {
            pod.metadata
                .annotations
                .as_ref()
                .is_some_and(|annotations| annotations.contains_key(CONFIG_MIRROR))
        };
        match change {
            Change::Reset(_) => due.mirrors_due.notify_one(),
            Change::Deleted(pod) if is_mirror(&pod) => due.mirrors_due.notify_one(),
            Change::Applied(pod)
                if is_mirror(&pod) && pod.metadata.deletion_timestamp.is_some() =>
            {
                due.mirrors_due.notify_one()
            }
            _ => {}
        }
        true
    })
    .await;
}

async fn keep_mirrors(agent: &Arc<Agent>) {
    loop {
        match ensure_mirrors(agent).await {
            Ok(()) => agent.mirrors_due.notified().await,
            Err(error) => {
                tracing::debug!(%error, "mirror pods are not right yet");
                tokio::time::sleep(MIRROR_RETRY).await;
            }
        }
    }
}

async fn ensure_mirrors(agent: &Arc<Agent>) -> Result<(), kube::Error> {
    let client = &agent.context.client;
    let wanted: Vec<Arc<Pod>> = agent.static_pods();
    for pod in &wanted {
        let (namespace, name) = (
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        if let Some(existing) = api.get_opt(&name).await? {
            let of = existing
                .metadata
                .annotations
                .as_ref()
                .and_then(|annotations| annotations.get(CONFIG_MIRROR));
            if of == Some(&uid) && existing.metadata.deletion_timestamp.is_none() {
                agent.send(
                    &uid,
                    crate::pod::worker::Input::Mirror(Some(Arc::new(existing))),
                );
                continue;
            }
            if of.is_none() {
                tracing::warn!(
                    namespace,
                    name,
                    "a pod of this name exists that is no mirror; the static pod is not shown"
                );
                continue;
            }
            delete(&api, &existing).await?;
        }
        let mirror = api
            .create(&PostParams::default(), &mirror(agent, pod, &uid))
            .await?;
        agent.send(
            &uid,
            crate::pod::worker::Input::Mirror(Some(Arc::new(mirror))),
        );
    }
    // Mirrors of pods that are no more.
    let selector = kube::api::ListParams::default()
        .fields(&format!("spec.nodeName={}", agent.context.config.node_name));
    for pod in Api::<Pod>::all(client.clone()).list(&selector).await?.items {
        let of = pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(CONFIG_MIRROR));
        if let Some(of) = of
            && !wanted
                .iter()
                .any(|wanted| wanted.metadata.uid.as_ref() == Some(of))
        {
            let api: Api<Pod> = Api::namespaced(
                client.clone(),
                pod.metadata.namespace.as_deref().unwrap_or("default"),
            );
            delete(&api, &pod).await?;
        }
    }
    Ok(())
}

fn mirror(agent: &Agent, pod: &Pod, uid: &str) -> Pod {
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(CONFIG_MIRROR.into(), uid.to_owned());
    if let Some(node) = lock(&agent.node).as_ref() {
        mirror.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: node.metadata.name.clone().unwrap_or_default(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            ..OwnerReference::default()
        }]);
    }
    mirror
}

async fn delete(api: &Api<Pod>, pod: &Pod) -> Result<(), kube::Error> {
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api
        .delete(pod.metadata.name.as_deref().unwrap_or_default(), &params)
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn manifests() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: c\n    image: i\n";
        let pod = parse(text, "node1").unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(pod.metadata.uid.as_ref().unwrap().len(), 32);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(container.image_pull_policy.as_deref(), Some("Always"));
        assert_eq!(
            container.termination_message_path.as_deref(),
            Some("/dev/termination-log")
        );
        assert_eq!(parse(text, "node1").unwrap().metadata.uid, pod.metadata.uid);
        assert_ne!(
            parse(&text.replace("image: i", "image: j"), "node1")
                .unwrap()
                .metadata
                .uid,
            pod.metadata.uid
        );
        for bad in [
            "",
            "}{",
            "apiVersion: v1\nkind: Service\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {}\n",
            "apiVersion: v1\nkind: Pod\nmetadata: []\n",
            // No container, and a name that cannot be one.
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: []}\n",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: Not_A_Name}\nspec: {containers: [{name: c, image: i}]}\n",
        ] {
            assert!(parse(bad, "n").is_err(), "{bad}");
        }
    }
}
