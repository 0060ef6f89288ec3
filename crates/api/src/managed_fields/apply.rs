//! Server-side apply.

use serde_json::Value;

use super::entries::{self, Entry, Identity, Operation};
use super::set::FieldSet;
use super::update::{give_up, managed_fields, set_managed_fields, take, take_managed_fields};
use super::walk::{self, Malformed, Position};
use super::{BEFORE_FIRST_APPLY_MANAGER, Write};

const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The manager for which upstream carries client-side apply over to server-side apply.
const KUBECTL_MANAGER: &str = "kubectl";

/// What an apply made of the object.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The object with its managed fields; defaulting and validation are still to come.
    pub object: Value,
    /// Whether anything differs from the live object, managed fields aside.
    pub changed: bool,
}

/// Fields that other managers own with other values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.message())]
pub struct Conflicts(pub Vec<Conflict>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// As messages name it: `"kubectl-client-side-apply" using apps/v1`.
    pub manager: String,
    /// For example `.spec.template.spec.containers[name="a"].image`.
    pub field: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// HTTP 409 with a cause `FieldManagerConflict` for each conflict.
    #[error(transparent)]
    Conflicts(Conflicts),
    /// HTTP 400.
    #[error("{0}")]
    BadRequest(String),
    /// A configuration that does not fit its type; HTTP 500 upstream.
    #[error("{0}")]
    Malformed(String),
}

impl Conflict {
    /// The message of the `Status` cause.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

impl Conflicts {
    /// `Apply failed with 1 conflict: conflict with "…" using apps/v1: .spec.replicas`.
    pub fn message(&self) -> String {
        if let [conflict] = self.0.as_slice() {
            return format!(
                "Apply failed with 1 conflict: conflict with {}: {}",
                conflict.manager, conflict.field
            );
        }
        let mut managers: Vec<&str> = self
            .0
            .iter()
            .map(|conflict| conflict.manager.as_str())
            .collect();
        managers.sort_unstable();
        managers.dedup();
        let mut lines = Vec::new();
        for manager in managers {
            lines.push(format!("conflicts with {manager}:"));
            let fields = self.0.iter().filter(|conflict| conflict.manager == manager);
            lines.extend(fields.map(|conflict| format!("- {}", conflict.field)));
        }
        format!(
            "Apply failed with {} conflicts: {}",
            self.0.len(),
            lines.join("\n")
        )
    }
}

/// Applies `config` to `live` (`None`: the object does not exist yet) on behalf of `write.manager`.
///
/// Fields that the manager applied before and no longer states are removed, unless another manager owns them.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    write: &Write<'_>,
    force: bool,
) -> Result<Applied, ApplyError> {
    let stated_version = config
        .get("apiVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if stated_version != write.api_version {
        return Err(ApplyError::BadRequest(format!(
            "Incorrect version specified in apply patch. Specified patch version: {stated_version}, expected: {}",
            write.api_version
        )));
    }
    if managed_fields(config).is_some() {
        return Err(ApplyError::BadRequest(
            "metadata.managedFields must be nil".to_owned(),
        ));
    }
    let result = apply_once(live, config, write, force);
    let Err(ApplyError::Conflicts(conflicts)) = result else {
        return result;
    };
    let carried_over = if write.manager == KUBECTL_MANAGER {
        live.and_then(|live| last_applied_fields(live, write))
    } else {
        None
    };
    let Some(allowed) = carried_over else {
        return Err(ApplyError::Conflicts(conflicts));
    };
    // What client-side apply wrote last, and nobody changed since, is kubectl's to overwrite.
    let left: Vec<Conflict> = conflicts
        .0
        .into_iter()
        .filter(|conflict| !allowed.contains(&conflict.field))
        .collect();
    if left.is_empty() {
        apply_once(live, config, write, true)
    } else {
        Err(ApplyError::Conflicts(Conflicts(left)))
    }
}

fn apply_once(
    live: Option<&Value>,
    config: &Value,
    write: &Write<'_>,
    force: bool,
) -> Result<Applied, ApplyError> {
    let root = Position::root(write.type_);
    let malformed = |Malformed(problem): Malformed| {
        let of = |field: &str| config["metadata"][field].as_str().unwrap_or_default();
        // A group-version without a group is shown with an empty one.
        let separator = if write.api_version.contains('/') {
            ""
        } else {
            "/"
        };
        ApplyError::Malformed(format!(
            "failed to create typed patch object ({}/{}; {separator}{}, Kind={}): {problem}",
            of("namespace"),
            of("name"),
            write.api_version,
            config["kind"].as_str().unwrap_or_default(),
        ))
    };
    walk::check_declared(config, root).map_err(malformed)?;
    let managed = live.and_then(managed_fields);
    let mut bare_live = live
        .cloned()
        .unwrap_or(Value::Object(serde_json::Map::new()));
    take_managed_fields(&mut bare_live);

    let mut entries = managed.and_then(entries::parse).unwrap_or_default();
    if entries.is_empty() && live.is_some() {
        // What an untracked object holds already belongs to a manager of its own.
        let mut found = walk::compare(walk::empty_object(), &bare_live, root).changed;
        found.drop_fields(write.ignored_fields);
        found.strip_metadata();
        let identity = Identity {
            manager: BEFORE_FIRST_APPLY_MANAGER,
            operation: Operation::Update,
            api_version: write.api_version,
            subresource: "",
        };
        entries.push(Entry {
            identity,
            time: Some(write.now),
            fields: found,
        });
    }
    let identity = Identity {
        manager: write.manager,
        operation: Operation::Apply,
        api_version: write.api_version,
        subresource: write.subresource,
    };
    let mut stated = walk::field_set(config, root).map_err(malformed)?;
    stated.drop_fields(write.ignored_fields);
    let last = entries
        .iter()
        .find(|entry| entry.identity.is(&identity))
        .map(|entry| entry.fields.clone())
        .unwrap_or_default();
    let mut config_fields = config.clone();
    if let Some(fields) = config_fields.as_object_mut() {
        fields.retain(|name, _| !write.ignored_fields.contains(&name.as_str()));
    }
    let merged = walk::merge(bare_live.clone(), &config_fields, root).map_err(malformed)?;
    let others: Vec<&FieldSet<'_>> = entries
        .iter()
        .filter(|entry| !entry.identity.is(&identity))
        .map(|entry| &entry.fields)
        .collect();
    let mut object = prune(merged, &last, &stated, &others, root).map_err(malformed)?;

    let mut comparison = walk::compare(&bare_live, &object, root);
    comparison.changed.drop_fields(write.ignored_fields);
    comparison.removed.drop_fields(write.ignored_fields);
    if !force {
        let mut conflicts = Vec::new();
        for entry in entries.iter().filter(|entry| !entry.identity.is(&identity)) {
            let manager = entry.identity.print();
            let fields = entry.fields.intersection(&comparison.changed).paths();
            conflicts.extend(fields.into_iter().map(|field| Conflict {
                manager: manager.clone(),
                field,
            }));
        }
        if !conflicts.is_empty() {
            conflicts.sort_by(|a, b| (&a.manager, &a.field).cmp(&(&b.manager, &b.field)));
            return Err(ApplyError::Conflicts(Conflicts(conflicts)));
        }
    }
    let mut new_entries = entries.clone();
    give_up(
        &mut new_entries,
        &comparison.changed,
        &comparison.removed,
        Some(&identity),
    );
    stated.strip_metadata();
    let changed = object != bare_live;
    let own_before = entries.iter().find(|entry| entry.identity.is(&identity));
    // An apply that changes nothing leaves the time as it was: a new manager has none then, as upstream's.
    let time = if changed {
        Some(write.now)
    } else {
        own_before.and_then(|own| own.time)
    };
    new_entries.retain(|entry| !entry.identity.is(&identity));
    take(&mut new_entries, identity, stated, time);
    let after = entries::to_value(new_entries);
    if write.manager == KUBECTL_MANAGER {
        refresh_last_applied(&mut object, config);
    }
    set_managed_fields(&mut object, after);
    Ok(Applied { object, changed })
}

/// Removes what the manager applied last and does not state now, as far as no one else owns it.
fn prune(
    merged: Value,
    last: &FieldSet<'_>,
    stated: &FieldSet<'_>,
    others: &[&FieldSet<'_>],
    root: Position,
) -> Result<Value, Malformed> {
    let dropped = others.iter().fold(last.difference(stated), |left, other| {
        left.difference(other)
    });
    if dropped.is_empty() {
        return Ok(merged);
    }
    let last = walk::with_named_fields(last, root);
    let managed = others
        .iter()
        .fold(walk::with_named_fields(stated, root), |all, other| {
            all.union(&walk::with_named_fields(other, root))
        });
    let merged_fields = walk::with_named_fields(&walk::field_set(&merged, root)?, root);
    let pruned = walk::remove(&merged, &last, root);
    let pruned_fields = walk::with_named_fields(&walk::field_set(&pruned, root)?, root);
    // First what others (or the new configuration) own comes back, then what never was this manager's.
    let with_owned = walk::remove(
        &merged,
        &merged_fields.difference(&pruned_fields.union(&managed)),
        root,
    );
    let owned_fields = walk::with_named_fields(&walk::field_set(&with_owned, root)?, root);
    Ok(walk::remove(
        &merged,
        &merged_fields.difference(&owned_fields).intersection(&last),
        root,
    ))
}

/// The paths of what the last client-side apply stated and still has its value.
fn last_applied_fields(live: &Value, write: &Write<'_>) -> Option<Vec<String>> {
    let text = live
        .get("metadata")?
        .get("annotations")?
        .get(LAST_APPLIED_ANNOTATION)?
        .as_str()?;
    let last_applied: Value = serde_json::from_str(text).ok()?;
    if last_applied.get("apiVersion")?.as_str()? != write.api_version {
        return None;
    }
    let root = Position::root(write.type_);
    let stated = walk::field_set(&last_applied, root).ok()?;
    let comparison = walk::compare(&last_applied, live, root);
    Some(
        stated
            .difference(&comparison.changed)
            .difference(&comparison.removed)
            .paths(),
    )
}

/// Keeps the annotation of client-side apply in step, where the object has it.
fn refresh_last_applied(object: &mut Value, config: &Value) {
    let Some(annotations) = object
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("annotations"))
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    let Some(annotation) = annotations
        .get_mut(LAST_APPLIED_ANNOTATION)
        .filter(|annotation| annotation.as_str().is_some_and(|text| !text.is_empty()))
    else {
        return;
    };
    let mut config = config.clone();
    if let Some(annotations) = config
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("annotations"))
        .and_then(Value::as_object_mut)
    {
        annotations.remove(LAST_APPLIED_ANNOTATION);
    }
    *annotation = Value::from(format!("{config}\n"));
}
