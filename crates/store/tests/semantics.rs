//! etcd's semantics of the embedded engine: transactions, ranges, watches, compaction, leases, restarts.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use store::*;

fn open() -> (tempfile::TempDir, Embedded) {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    (directory, store)
}

#[tokio::test]
async fn revisions_versions_and_restart() {
    let (directory, store) = open();
    assert_eq!(revision(&store).await, 1);
    assert_eq!(put(&store, "a", "1").await, 2);
    assert_eq!(put(&store, "a", "2").await, 3);
    assert_eq!(put(&store, "b", "x").await, 4);
    assert_eq!(delete(&store, "a").await, 5);
    assert_eq!(
        delete(&store, "a").await,
        5,
        "deleting nothing is no revision"
    );
    assert_eq!(put(&store, "a", "3").await, 6);
    let check = async |store: &Embedded, request: RangeRequest, expect: &str| {
        assert_eq!(
            show(&store.range(request.clone()).await.unwrap().kvs),
            expect,
            "{request:?}"
        );
    };
    drop(store);
    let store = Embedded::open(directory.path()).unwrap();
    assert_eq!(revision(&store).await, 6);
    check(&store, list(""), "a=3@6/6/1,b=x@4/4/1").await;
    check(&store, get("a"), "a=3@6/6/1").await;
    check(&store, get("aa"), "").await;
    check(&store, list_at("", 1), "").await;
    check(&store, list_at("", 2), "a=1@2/2/1").await;
    check(&store, list_at("", 3), "a=2@3/2/2").await;
    check(&store, list_at("", 4), "a=2@3/2/2,b=x@4/4/1").await;
    check(&store, list_at("", 5), "b=x@4/4/1").await;
    check(&store, list_at("a", 5), "").await;
    let error = store.range(list_at("", 7)).await.unwrap_err();
    assert!(matches!(
        error,
        StoreError::FutureRevision {
            requested: Revision(7),
            current: Revision(6)
        }
    ));
}

#[tokio::test]
async fn range_limits_and_counts() {
    let (_directory, store) = open();
    for key in ["a/1", "a/2", "a/3", "b/1"] {
        put(&store, key, "v").await;
    }
    for revision in [None, Some(Revision(5))] {
        let check = async |limit, count_only, expect: (usize, bool, usize)| {
            let response = store
                .range(RangeRequest {
                    limit,
                    count_only,
                    revision,
                    ..list("a/")
                })
                .await
                .unwrap();
            assert_eq!((response.kvs.len(), response.more, response.count), expect);
            assert_eq!(response.revision, Revision(5));
        };
        check(0, false, (3, false, 3)).await;
        check(2, false, (2, true, 3)).await;
        check(3, false, (3, false, 3)).await;
        check(1, true, (0, false, 3)).await;
    }
}

#[tokio::test]
async fn transactions_compare_then_run_one_branch() {
    let (_directory, store) = open();
    put(&store, "a", "1").await;
    let check = async |compare: Compare, expect: bool| {
        let txn = Txn {
            compare: vec![compare],
            success: vec![Op::Range(get("a"))],
            failure: vec![Op::Range(list(""))],
        };
        let response = store.txn(txn).await.unwrap();
        assert_eq!(
            (response.succeeded, response.revision),
            (expect, Revision(2))
        );
    };
    let modified = |key, equals| Compare::ModRevision {
        key: bytes(key),
        equals: Revision(equals),
    };
    let exists = |key, exists| Compare::Exists {
        key: bytes(key),
        exists,
    };
    check(modified("a", 2), true).await;
    check(modified("a", 1), false).await;
    check(modified("b", 0), true).await;
    check(exists("a", true), true).await;
    check(exists("b", true), false).await;
    check(exists("b", false), true).await;

    // Several operations are one revision, and later ones see earlier ones.
    let response = store
        .txn(ops(vec![
            put_op("b", "2"),
            put_op("c", "3"),
            Op::Range(list("")),
            delete_op(KeyRange::single("a")),
        ]))
        .await
        .unwrap();
    assert_eq!(response.revision, Revision(3));
    let [
        OpResponse::Put,
        OpResponse::Put,
        OpResponse::Range(range),
        OpResponse::Delete { deleted },
    ] = &response.responses[..]
    else {
        panic!("{response:?}");
    };
    assert_eq!(show(&range.kvs), "a=1@2/2/1,b=2@3/3/1,c=3@3/3/1");
    assert_eq!(show(deleted), "a=1@2/2/1");
    assert_eq!(
        show(&store.range(list("")).await.unwrap().kvs),
        "b=2@3/3/1,c=3@3/3/1"
    );

    // One that fails leaves nothing.
    for refused in [
        vec![put_op("d", "1"), put_op("d", "2")],
        vec![put_op("d", "1"), delete_op(KeyRange::prefix("d"))],
        vec![put_op("d", "1"), leased_put_op("e", LeaseId(99))],
    ] {
        store.txn(ops(refused)).await.unwrap_err();
    }
    assert_eq!(revision(&store).await, 3);
    assert_eq!(store.range(list("")).await.unwrap().count, 2);
}

#[tokio::test]
async fn too_large_values_are_refused() {
    let (_directory, store) = open();
    let value = bytes::Bytes::from(vec![0; (8 << 20) + 1]);
    let error = store
        .txn(ops(vec![Op::Put {
            key: bytes("a"),
            value,
            lease: None,
        }]))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        StoreError::TooLarge {
            limit_bytes: 8_388_608,
            ..
        }
    ));
}

#[tokio::test]
async fn watch_from_history_and_from_now() {
    let (_directory, store) = open();
    put(&store, "a", "1").await;
    put(&store, "x", "1").await;
    let mut now = store.watch(watch_from("a", None)).await.unwrap();
    let mut past = store.watch(watch_from("a", Some(1))).await.unwrap();
    let mut future = store.watch(watch_from("a", Some(6))).await.unwrap();
    put(&store, "a", "2").await;
    delete(&store, "a").await;
    put(&store, "a", "3").await;
    let expect = [
        "+a=1@2/2/1",
        "+a=2@4/2/2(a=1@2/2/1)",
        "-a@5(a=2@4/2/2)",
        "+a=3@6/6/1",
    ];
    assert_eq!(events_through(&mut past, 6).await, expect);
    assert_eq!(events_through(&mut now, 6).await, expect[1..]);
    assert_eq!(events_through(&mut future, 6).await, expect[3..]);
}

#[tokio::test]
async fn slow_watchers_miss_nothing_and_block_nobody() {
    let (_directory, store) = open();
    let mut watcher = store.watch(watch_from("", None)).await.unwrap();
    let count = 500;
    for number in 0..count {
        put(&store, "key", &number.to_string()).await;
    }
    // Nothing was read meanwhile, and the queue is shorter than that.
    let mut expect = 2;
    while expect < 2 + count {
        for event in next(&mut watcher).await.unwrap().events {
            let Event::Put { kv, prev } = event else {
                panic!("{event:?}")
            };
            assert_eq!(kv.mod_revision, Revision(expect));
            assert_eq!(
                prev.map(|prev| prev.mod_revision.0),
                (expect > 2).then(|| expect - 1)
            );
            expect += 1;
        }
    }
    let last = put(&store, "key", "again").await;
    assert_eq!(events_through(&mut watcher, last).await.len(), 1);
}

#[tokio::test]
async fn progress_is_told_when_other_keys_change() {
    let (_directory, store) = open();
    let mut watcher = store
        .watch(WatchRequest {
            progress: true,
            ..watch_from("a", None)
        })
        .await
        .unwrap();
    assert_eq!(
        next(&mut watcher).await.unwrap().revision,
        Revision(1),
        "at once, when it begins"
    );
    put(&store, "b", "1").await;
    let response = next(&mut watcher).await.unwrap();
    assert_eq!((response.revision, response.events.len()), (Revision(2), 0));
}

#[tokio::test]
async fn compaction_forgets_what_was_replaced() {
    let (directory, mut store) = open();
    for value in ["1", "2", "3"] {
        put(&store, "a", value).await; // 2, 3, 4
    }
    put(&store, "b", "1").await; // 5
    delete(&store, "b").await; // 6
    put(&store, "c", "1").await; // 7
    put(&store, "b", "2").await; // 8
    delete(&store, "c").await; // 9
    store.compact(Revision(7)).await.unwrap();
    store.compact(Revision(7)).await.unwrap();
    assert!(matches!(
        store.compact(Revision(6)).await,
        Err(StoreError::Compacted {
            oldest: Revision(7),
            ..
        })
    ));
    assert!(matches!(
        store.compact(Revision(10)).await,
        Err(StoreError::FutureRevision { .. })
    ));
    for _ in 0..2 {
        assert_eq!(
            store.revisions().await.unwrap(),
            Revisions {
                current: Revision(9),
                compacted: Revision(7)
            }
        );
        let check = async |revision, expect: &str| {
            assert_eq!(
                show(&store.range(list_at("", revision)).await.unwrap().kvs),
                expect,
                "at {revision}"
            );
        };
        check(7, "a=3@4/2/3,c=1@7/7/1").await;
        check(8, "a=3@4/2/3,b=2@8/8/1,c=1@7/7/1").await;
        check(9, "a=3@4/2/3,b=2@8/8/1").await;
        assert!(matches!(
            store.range(list_at("", 6)).await,
            Err(StoreError::Compacted {
                oldest: Revision(7),
                ..
            })
        ));
        assert!(matches!(
            store.watch(watch_from("", Some(6))).await,
            Err(StoreError::Compacted { .. })
        ));
        let mut watcher = store.watch(watch_from("", Some(7))).await.unwrap();
        assert_eq!(
            events_through(&mut watcher, 9).await,
            ["+c=1@7/7/1", "+b=2@8/8/1", "-c@9(c=1@7/7/1)"]
        );
        drop(store);
        store = Embedded::open(directory.path()).unwrap();
    }
    store.compact(Revision(9)).await.unwrap();
    put(&store, "d", "1").await;
    store.compact(Revision(10)).await.unwrap();
    drop(store);
    store = Embedded::open(directory.path()).unwrap();
    assert_eq!(
        show(&store.range(list("")).await.unwrap().kvs),
        "a=3@4/2/3,b=2@8/8/1,d=1@10/10/1"
    );
}

#[tokio::test]
async fn leases_delete_their_keys_as_one_revision() {
    let (_directory, store) = open();
    let long = store.lease_grant(1000).await.unwrap();
    let short = store.lease_grant(1).await.unwrap();
    store
        .txn(ops(vec![
            leased_put_op("a", short),
            leased_put_op("b", short),
            leased_put_op("c", short),
        ]))
        .await
        .unwrap();
    // c goes over to another lease, b to none.
    store
        .txn(ops(vec![leased_put_op("c", long), put_op("b", "kept")]))
        .await
        .unwrap();
    let mut watcher = store.watch(watch_from("", None)).await.unwrap();
    assert_eq!(
        events_through(&mut watcher, 4).await,
        ["-a@4(a=leased@2/2/1)"]
    );
    assert!(matches!(
        store.lease_keep_alive(short).await,
        Err(StoreError::LeaseNotFound(_))
    ));
    store.lease_keep_alive(long).await.unwrap();
    store.lease_revoke(long).await.unwrap();
    assert_eq!(
        show(&store.range(list("")).await.unwrap().kvs),
        "b=kept@3/2/2"
    );
    assert!(matches!(
        store.lease_revoke(long).await,
        Err(StoreError::LeaseNotFound(_))
    ));
}

#[tokio::test]
async fn leases_survive_a_restart() {
    let (directory, store) = open();
    let lease = store.lease_grant(1).await.unwrap();
    store
        .txn(ops(vec![leased_put_op("a", lease)]))
        .await
        .unwrap();
    drop(store);
    let store = Embedded::open(directory.path()).unwrap();
    let mut watcher = store.watch(watch_from("", Some(3))).await.unwrap();
    assert_eq!(
        events_through(&mut watcher, 3).await,
        ["-a@3(a=leased@2/2/1)"]
    );
}

#[tokio::test]
async fn keep_alive_keeps_alive() {
    let (_directory, store) = open();
    let lease = store.lease_grant(1).await.unwrap();
    store
        .txn(ops(vec![leased_put_op("a", lease)]))
        .await
        .unwrap();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(1500) {
        store.lease_keep_alive(lease).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(revision(&store).await, 2);
}

#[tokio::test]
async fn a_second_instance_is_refused() {
    let (directory, store) = open();
    let error = Embedded::open(directory.path()).err().unwrap();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(store);
    Embedded::open(directory.path()).unwrap();
}

#[tokio::test]
async fn other_formats_and_damage_are_refused() {
    let (directory, store) = open();
    put(&store, "a", "1").await;
    drop(store);
    let check = |format: &str, expect: &str| {
        std::fs::write(directory.path().join("format"), format).unwrap();
        let error = Embedded::open(directory.path())
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(error.contains(expect), "{format}: {error}");
    };
    check("llmagentos store format 2\n", "has format 2, newer than 1");
    check("garbage", "is damaged: the file format reads");
    check("llmagentos store format 1\n", "");
    std::fs::remove_file(directory.path().join("format")).unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    assert_eq!(show(&store.range(list("")).await.unwrap().kvs), "a=1@2/2/1");
    drop(store);
    std::fs::rename(
        directory.path().join("db"),
        directory.path().join("elsewhere"),
    )
    .unwrap();
    check("llmagentos store format 1\n", "db is missing");
}

#[tokio::test]
async fn an_unfinished_creation_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("creating"), "").unwrap();
    std::fs::create_dir(directory.path().join("db")).unwrap();
    std::fs::write(directory.path().join("db/0.jnl"), "half").unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    assert_eq!(put(&store, "a", "1").await, 2);
}

#[tokio::test]
async fn dropping_the_store_ends_watches() {
    let (_directory, store) = open();
    let mut watcher = store.watch(watch_from("", None)).await.unwrap();
    drop(store);
    assert!(watcher.responses.recv().await.is_none());
}

/// An idle store moves what it holds in memory to tables, and everything is there as before.
#[tokio::test]
async fn an_idle_store_writes_its_memory_out() {
    let (directory, store) = open();
    let value = |index: u32| format!("{index}-{}", "x".repeat(4000));
    for part in 0..10 {
        let ops_of = (0..100)
            .map(|index| put_op(&format!("key-{index}"), &value(part * 100 + index)))
            .collect();
        store.txn(ops(ops_of)).await.unwrap();
    }
    let tables = || -> usize {
        let keyspaces = std::fs::read_dir(directory.path().join("db/keyspaces")).unwrap();
        keyspaces
            .filter_map(|keyspace| std::fs::read_dir(keyspace.unwrap().path().join("tables")).ok())
            .map(Iterator::count)
            .sum()
    };
    let before = tables();
    let deadline = Instant::now() + Duration::from_secs(60);
    // Both the log and the values.
    while tables() < before + 2 {
        assert!(Instant::now() < deadline, "nothing was written out");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let check = async |store: &Embedded| {
        let current = revision(store).await;
        assert_eq!(current, 11);
        for (revision, part) in [(current, 9), (4, 2)] {
            let kvs = store.range(list_at("key-", revision)).await.unwrap().kvs;
            assert_eq!(kvs.len(), 100);
            for kv in kvs {
                let index: u32 = std::str::from_utf8(&kv.key[4..]).unwrap().parse().unwrap();
                assert_eq!(kv.value, value(part * 100 + index));
            }
        }
    };
    check(&store).await;
    drop(store);
    let store = Embedded::open(directory.path()).unwrap();
    check(&store).await;
    assert_eq!(put(&store, "key-0", "new").await, 12);
}
