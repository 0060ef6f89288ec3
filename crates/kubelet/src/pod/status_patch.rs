//! The patch that takes a pod's status from what was written to what is wanted. Pure.
//!
//! A strategic merge patch: conditions and addresses merge by their keys, so that those of others (readiness
//! gates, the scheduler) stay; lists of containers are replaced whole; fields that went away become null.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

pub fn make(uid: &str, written: &PodStatus, desired: &PodStatus) -> Value {
    let object = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, mut new) = (object(written), object(desired));
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    new.retain(|key, value| old.get(key) != Some(value));
    for (key, value) in new {
        let merged = match key.as_str() {
            "conditions" => merge_by(&old, &key, value, "type"),
            "podIPs" | "hostIPs" => merge_by(&old, &key, value, "ip"),
            _ => value,
        };
        patch.insert(key, merged);
    }
    json!({"metadata": {"uid": uid}, "status": patch})
}

/// Of a keyed list what changed, deletions of what went away, and the order.
fn merge_by(old: &Map<String, Value>, name: &str, new: Value, key: &str) -> Value {
    let empty = Vec::new();
    let old = old.get(name).and_then(Value::as_array).unwrap_or(&empty);
    let Value::Array(new) = new else { return new };
    let keys: BTreeSet<String> = new
        .iter()
        .filter_map(|item| item.get(key)?.as_str().map(str::to_owned))
        .collect();
    let mut list: Vec<Value> = new.into_iter().filter(|item| !old.contains(item)).collect();
    for item in old {
        if let Some(gone) = item
            .get(key)
            .and_then(Value::as_str)
            .filter(|own| !keys.contains(*own))
        {
            list.push(json!({key: gone, "$patch": "delete"}));
        }
    }
    // Within a merged item, a field that went away has to be named too.
    for item in &mut list {
        let before = old.iter().find(|before| before.get(key) == item.get(key));
        if let (Some(Value::Object(before)), Value::Object(item)) = (before, item) {
            for field in before.keys() {
                item.entry(field.clone()).or_insert(Value::Null);
            }
        }
    }
    Value::Array(list)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_changes_are_sent() {
        let status = |json: Value| serde_json::from_value::<PodStatus>(json).unwrap();
        let old = status(json!({"phase": "Pending", "reason": "X", "conditions": [
            {"type": "Ready", "status": "False", "reason": "R"}, {"type": "Own", "status": "True"}], "podIPs": [{"ip": "1"}]}));
        let new = status(json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Own", "status": "True"}], "podIPs": [{"ip": "2"}], "hostIP": "h"}));
        assert_eq!(
            make("u", &old, &new),
            json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "reason": null, "hostIP": "h",
                "conditions": [{"type": "Ready", "status": "True", "reason": null}],
                "podIPs": [{"ip": "2"}, {"ip": "1", "$patch": "delete"}]}})
        );
        assert_eq!(
            make("u", &new, &new),
            json!({"metadata": {"uid": "u"}, "status": {}})
        );
    }
}
