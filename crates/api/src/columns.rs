//! Building blocks of the tables that `kubectl get` shows.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use serde_json::Value;

use crate::kind::Column;

/// A column that is always shown.
pub const fn column(name: &'static str, type_: &'static str, description: &'static str) -> Column {
    Column {
        name,
        type_,
        format: "",
        description,
        priority: 0,
    }
}

/// A column that only `-o wide` shows.
pub const fn wide(name: &'static str, type_: &'static str, description: &'static str) -> Column {
    Column {
        name,
        type_,
        format: "",
        description,
        priority: 1,
    }
}

pub const NAME: Column = Column {
    name: "Name",
    type_: "string",
    format: "name",
    description: "Name must be unique within a namespace.",
    priority: 0,
};
pub const AGE: Column = column("Age", "string", "Time since the object was created.");
pub const NAME_AND_AGE: &[Column] = &[NAME, AGE];
/// The generic table of a kind that has no printer of its own.
pub const NAME_AND_CREATED: &[Column] = &[
    NAME,
    Column {
        name: "Created At",
        type_: "date",
        format: "",
        description: "When the object was created.",
        priority: 0,
    },
];

pub fn name_and_created(meta: &ObjectMeta) -> Vec<Value> {
    let created = meta
        .creation_timestamp
        .as_ref()
        .map_or(Value::Null, |time| {
            serde_json::to_value(time).expect("a time encodes as a string")
        });
    vec![name(meta), created]
}

pub fn name(meta: &ObjectMeta) -> Value {
    Value::from(meta.name.as_deref().unwrap_or(""))
}

/// The age of an object in words; `<unknown>` while it has no creation time.
pub fn age(meta: &ObjectMeta, now_seconds: i64) -> Value {
    Value::from(since(meta.creation_timestamp.as_ref(), now_seconds))
}

pub fn since(time: Option<&Time>, now_seconds: i64) -> String {
    match time {
        Some(Time(time)) => human_duration(now_seconds - time.as_second()),
        None => "<unknown>".to_string(),
    }
}

pub fn since_micro(time: Option<&MicroTime>, now_seconds: i64) -> String {
    match time {
        Some(MicroTime(time)) => human_duration(now_seconds - time.as_second()),
        None => "<unknown>".to_string(),
    }
}

/// A span of time as kubectl words it: `5s`, `3m10s`, `4h`, `2d3h`, `400d`.
///
/// Two seconds of clock difference into the future count as now; more is `<invalid>`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        _ => format!("{big}{big_unit}{small}{small_unit}"),
    };
    match () {
        () if seconds < -1 => "<invalid>".to_string(),
        () if seconds < 0 => "0s".to_string(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(days, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

/// A list in one cell: `<none>` when empty, at most `shown_max` items and ` + N more...` after them.
pub fn joined_with_more(items: &[String], shown_max: usize) -> String {
    match items.len() {
        0 => "<none>".to_string(),
        count if count <= shown_max => items.join(","),
        count => format!(
            "{} + {} more...",
            items[..shown_max].join(","),
            count - shown_max
        ),
    }
}

/// Go's `%v` of a possibly absent label map as a selector: `a=b,c=d`, `<none>` when empty.
pub fn labels(labels: Option<&std::collections::BTreeMap<String, String>>) -> String {
    match labels {
        Some(labels) if !labels.is_empty() => labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(","),
        _ => "<none>".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        const DAY: i64 = 86_400;
        for (seconds, expect) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (599, "9m59s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 61, "3h1m"),
            (8 * 3600, "8h"),
            (47 * 3600, "47h"),
            (2 * DAY, "2d"),
            (2 * DAY + 3600, "2d1h"),
            (8 * DAY + 3600, "8d"),
            (729 * DAY, "729d"),
            (730 * DAY, "2y"),
            (731 * DAY, "2y1d"),
            (8 * 365 * DAY + DAY, "8y"),
        ] {
            assert_eq!(human_duration(seconds), expect, "{seconds}");
        }
    }

    #[test]
    fn lists() {
        let items: Vec<String> = ["a", "b", "c", "d"].map(String::from).into();
        assert_eq!(joined_with_more(&items, 3), "a,b,c + 1 more...");
        assert_eq!(joined_with_more(&items[..3], 3), "a,b,c");
        assert_eq!(joined_with_more(&[], 3), "<none>");
    }
}
