//! Short forms of requests, for tests.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "tests; each test program uses its own part"
)]

use std::time::Duration;

use bytes::Bytes;
use store::*;

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn put_op(key: &str, value: &str) -> Op {
    Op::Put {
        key: bytes(key),
        value: bytes(value),
        lease: None,
    }
}

pub fn leased_put_op(key: &str, lease: LeaseId) -> Op {
    Op::Put {
        key: bytes(key),
        value: bytes("leased"),
        lease: Some(lease),
    }
}

pub fn delete_op(range: KeyRange) -> Op {
    Op::Delete { range }
}

pub fn ops(ops: Vec<Op>) -> Txn {
    Txn {
        compare: vec![],
        success: ops,
        failure: vec![],
    }
}

pub fn get(key: &str) -> RangeRequest {
    RangeRequest {
        range: KeyRange::single(bytes(key)),
        revision: None,
        limit: 0,
        count_only: false,
    }
}

pub fn list(prefix: &str) -> RangeRequest {
    RangeRequest {
        range: KeyRange::prefix(bytes(prefix)),
        ..get("")
    }
}

pub fn list_at(prefix: &str, revision: u64) -> RangeRequest {
    RangeRequest {
        revision: Some(Revision(revision)),
        ..list(prefix)
    }
}

pub fn watch_from(prefix: &str, from: Option<u64>) -> WatchRequest {
    WatchRequest {
        range: KeyRange::prefix(bytes(prefix)),
        from: from.map(Revision),
        progress: false,
    }
}

pub async fn put(store: &Embedded, key: &str, value: &str) -> u64 {
    store
        .txn(ops(vec![put_op(key, value)]))
        .await
        .unwrap()
        .revision
        .0
}

pub async fn delete(store: &Embedded, key: &str) -> u64 {
    store
        .txn(ops(vec![delete_op(KeyRange::single(bytes(key)))]))
        .await
        .unwrap()
        .revision
        .0
}

pub async fn revision(store: &Embedded) -> u64 {
    store.revisions().await.unwrap().current.0
}

/// `key=value@mod/create/version`, comma-separated.
pub fn show(kvs: &[KeyValue]) -> String {
    let show = |kv: &KeyValue| {
        let (key, value) = (kv.key.escape_ascii(), kv.value.escape_ascii());
        format!(
            "{key}={value}@{}/{}/{}",
            kv.mod_revision, kv.create_revision, kv.version
        )
    };
    kvs.iter().map(show).collect::<Vec<_>>().join(",")
}

/// `+key=value@mod/create/version(prev)` and `-key@mod(prev)`.
pub fn show_event(event: &Event) -> String {
    let prev = |prev: &Option<KeyValue>| {
        prev.as_ref().map_or(String::new(), |prev| {
            format!("({})", show(std::slice::from_ref(prev)))
        })
    };
    match event {
        Event::Put { kv, prev: before } => {
            format!("+{}{}", show(std::slice::from_ref(kv)), prev(before))
        }
        Event::Delete {
            key,
            mod_revision,
            prev: before,
        } => {
            format!("-{}@{mod_revision}{}", key.escape_ascii(), prev(before))
        }
    }
}

/// The next response, or a failed test after a while.
pub async fn next(watcher: &mut Watcher) -> Result<WatchResponse, StoreError> {
    tokio::time::timeout(Duration::from_secs(20), watcher.responses.recv())
        .await
        .expect("a response in time")
        .expect("an open watch")
}

/// Events up to and with the one at `revision`.
pub async fn events_through(watcher: &mut Watcher, revision: u64) -> Vec<String> {
    let mut events = Vec::new();
    loop {
        let response = next(watcher).await.unwrap();
        events.extend(response.events.iter().map(show_event));
        if response.revision.0 >= revision {
            return events;
        }
    }
}
