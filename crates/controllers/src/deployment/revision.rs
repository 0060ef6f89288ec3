//! Which replica set stands for which template, and the annotations that `kubectl rollout` reads.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::{API_VERSION, Action, KIND, Work, Working};
use crate::owner;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotations of a deployment that its replica sets do not inherit.
const NOT_INHERITED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// Upstream keeps about a hundred old revisions of one replica set.
const HISTORY_LENGTH_MAX: usize = 2000;
/// Longest name of an object.
const NAME_LENGTH_MAX: usize = 253;

impl Work<'_> {
    /// Finds the replica set of the deployment's template and brings its annotations up to date; with `create`, makes it if there is none.
    pub(super) fn find_new(&mut self, create: bool) {
        self.new = self.replica_sets.iter().position(|working| {
            let template = working
                .object
                .spec
                .as_ref()
                .and_then(|spec| spec.template.as_ref());
            template.is_some_and(|template| same_template(template, &self.spec.template))
        });
        let next_revision = 1 + self
            .old()
            .iter()
            .map(|index| revision_of(&self.replica_sets[*index].object.metadata))
            .max()
            .unwrap_or(0);
        match self.new {
            Some(index) => self.refresh_new(index, next_revision),
            None if create => self.create_new(next_revision),
            None => {}
        }
    }

    fn refresh_new(&mut self, index: usize, next_revision: i64) {
        let min_ready_seconds = self.spec.min_ready_seconds;
        let annotations = self.stored.metadata.annotations.clone();
        let working = &mut self.replica_sets[index];
        let mut changed = inherit_annotations(
            annotations.as_ref(),
            &mut working.object.metadata,
            next_revision,
        );
        let spec = working.object.spec.get_or_insert_default();
        if spec.min_ready_seconds.unwrap_or(0) != min_ready_seconds.unwrap_or(0) {
            spec.min_ready_seconds = min_ready_seconds;
            changed = true;
        }
        if changed {
            self.write(index);
        }
        let revision = self.replica_sets[index]
            .annotation(REVISION)
            .unwrap_or_default()
            .to_string();
        self.set_revision(revision);
        if self.progress_deadline_seconds().is_some() && self.condition("Progressing").is_none() {
            let name = self.replica_sets[index].name().to_string();
            self.set_condition(
                "Progressing",
                "True",
                "FoundNewReplicaSet",
                format!("Found new replica set \"{name}\""),
            );
        }
    }

    fn create_new(&mut self, next_revision: i64) {
        let hash = template_hash(&self.spec.template, self.status.collision_count);
        let mut template = self.spec.template.clone();
        template
            .metadata
            .get_or_insert_default()
            .labels
            .get_or_insert_default()
            .insert(TEMPLATE_HASH.into(), hash.clone());
        let mut selector = self.spec.selector.clone();
        selector
            .match_labels
            .get_or_insert_default()
            .insert(TEMPLATE_HASH.into(), hash.clone());
        let mut prefix = self.name().to_string();
        prefix.truncate(NAME_LENGTH_MAX - 1 - hash.len());
        let mut metadata = ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: self.stored.metadata.namespace.clone(),
            labels: template
                .metadata
                .as_ref()
                .and_then(|metadata| metadata.labels.clone()),
            owner_references: Some(vec![owner::controller_reference(
                API_VERSION,
                KIND,
                &self.stored.metadata,
            )]),
            ..ObjectMeta::default()
        };
        inherit_annotations(
            self.stored.metadata.annotations.as_ref(),
            &mut metadata,
            next_revision,
        );
        let maximum = self.desired().saturating_add(self.max_surge());
        set_size_annotations(&mut metadata, self.desired(), maximum);
        let object = ReplicaSet {
            metadata,
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        self.replica_sets.push(Working {
            object,
            exists: false,
        });
        let index = self.replica_sets.len() - 1;
        self.new = Some(index);
        let replicas = self.new_replicas(index);
        self.replica_sets[index]
            .object
            .spec
            .get_or_insert_default()
            .replicas = Some(replicas);
        self.write(index);
        let name = self.replica_sets[index].name().to_string();
        if replicas > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {replicas}");
            self.actions.push(Action::Event(crate::event::Event::normal(
                "ScalingReplicaSet",
                message,
            )));
        }
        self.set_revision(next_revision.to_string());
        if self.progress_deadline_seconds().is_some() {
            self.set_condition(
                "Progressing",
                "True",
                "NewReplicaSetCreated",
                format!("Created new replica set \"{name}\""),
            );
        }
    }

    fn set_revision(&mut self, revision: String) {
        let stored = self
            .stored
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(REVISION));
        if stored != Some(&revision) {
            self.actions
                .retain(|action| !matches!(action, Action::SetRevision(_)));
            self.actions.push(Action::SetRevision(revision));
        }
    }
}

/// The revision in an object's annotations; 0 if it has none or it is no number.
pub(super) fn revision_of(metadata: &ObjectMeta) -> i64 {
    metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(REVISION))
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// Copies the deployment's annotations and raises the revision, keeping the one it replaces as history (a rollback). True if something changed.
fn inherit_annotations(
    from: Option<&BTreeMap<String, String>>,
    metadata: &mut ObjectMeta,
    next_revision: i64,
) -> bool {
    let annotations = metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, value) in from
        .into_iter()
        .flatten()
        .filter(|(key, _)| !NOT_INHERITED.contains(&key.as_str()))
    {
        if annotations.get(key) != Some(value) {
            annotations.insert(key.clone(), value.clone());
            changed = true;
        }
    }
    let old = annotations.get(REVISION).cloned();
    let old_number = match old.as_deref() {
        None | Some("") => 0,
        Some(text) => match text.parse::<i64>() {
            Ok(number) => number,
            // Somebody else's annotation is left alone.
            Err(_) => return false,
        },
    };
    if old_number < next_revision {
        annotations.insert(REVISION.into(), next_revision.to_string());
        changed = true;
        if let Some(old) = old.filter(|old| !old.is_empty()) {
            let history = annotations
                .get(REVISION_HISTORY)
                .cloned()
                .unwrap_or_default();
            annotations.insert(REVISION_HISTORY.into(), extended_history(&history, &old));
        }
    }
    changed
}

/// The comma-separated history with one more entry, shortened from the front to stay within the limit.
fn extended_history(history: &str, revision: &str) -> String {
    let mut entries: Vec<&str> = history
        .split(',')
        .filter(|entry| !entry.is_empty())
        .collect();
    entries.push(revision);
    while entries.len() > 1
        && entries.iter().map(|entry| entry.len() + 1).sum::<usize>() > HISTORY_LENGTH_MAX
    {
        entries.remove(0);
    }
    entries.join(",")
}

/// Sets the two size annotations. True if something changed.
pub(super) fn set_size_annotations(metadata: &mut ObjectMeta, desired: i32, maximum: i32) -> bool {
    let annotations = metadata.annotations.get_or_insert_default();
    let mut set =
        |key: &str, value: String| annotations.insert(key.into(), value.clone()) != Some(value);
    let desired_changed = set(DESIRED_REPLICAS, desired.to_string());
    set(MAX_REPLICAS, maximum.to_string()) || desired_changed
}

/// Equal but for the hash label. Null and empty are the same, as they are in Kubernetes' semantic equality.
pub(super) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let bare = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(labels) = template
            .metadata
            .as_mut()
            .and_then(|metadata| metadata.labels.as_mut())
        {
            labels.remove(TEMPLATE_HASH);
        }
        template
    };
    let (a, b) = (bare(a), bare(b));
    a == b || canonical(&a) == canonical(&b)
}

/// JSON without nulls and empty values; keys are sorted.
fn canonical(template: &PodTemplateSpec) -> Value {
    fn prune(value: Value) -> Option<Value> {
        match value {
            Value::Null => None,
            Value::Object(fields) => {
                let kept: serde_json::Map<String, Value> = fields
                    .into_iter()
                    .filter_map(|(key, value)| Some((key, prune(value)?)))
                    .collect();
                (!kept.is_empty()).then_some(Value::Object(kept))
            }
            // An empty object among a list's elements still counts (an emptyDir volume has one as its field).
            Value::Array(elements) if elements.is_empty() => None,
            Value::Array(elements) => Some(Value::Array(
                elements
                    .into_iter()
                    .map(|element| prune(element).unwrap_or(Value::Null))
                    .collect(),
            )),
            other => Some(other),
        }
    }
    serde_json::to_value(template)
        .ok()
        .and_then(prune)
        .unwrap_or(Value::Null)
}

/// The `pod-template-hash` of a template: FNV-1a of its canonical form and of the collision count, in the
/// alphabet without vowels that keeps hashes from spelling words. The same kind of hash as upstream's; its
/// value differs, as upstream's differs between its own versions.
pub fn template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    feed(canonical(template).to_string().as_bytes());
    if let Some(count) = collision_count {
        feed(&count.to_le_bytes());
    }
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    hash.to_string()
        .bytes()
        .map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]))
        .collect()
}
