//! A full disk: a clear error, nothing half done, and writes again when there is space.
//!
//! Needs root: the test starts itself in a mount namespace of its own, on a small tmpfs.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use common::*;
use store::*;

const DIRECTORY: &str = "STORE_DISK_FULL_DIRECTORY";

fn run(size: &str, test: &str) {
    let directory = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size="$0" tmpfs "$1" && exec "$2" --exact "$3" --nocapture"#;
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            size,
        ])
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(DIRECTORY, directory.path())
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}");
}

fn inside(test: impl AsyncFnOnce(&Path)) {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test(Path::new(&directory)));
}

/// 32 KiB that do not compress, and are told from their neighbours.
fn value(number: u64) -> String {
    static NOISE: LazyLock<String> = LazyLock::new(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut noise = String::new();
        while noise.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            noise += &format!("{state:016x}");
        }
        noise
    });
    let offset = usize::try_from(number * 7919).unwrap() % (NOISE.len() - (32 << 10));
    NOISE[offset..offset + (32 << 10)].to_owned()
}

async fn try_put(store: &Embedded, number: u64) -> Result<u64, StoreError> {
    let txn = ops(vec![put_op(&format!("{number:06}"), &value(number))]);
    Ok(store.txn(txn).await?.revision.0)
}

/// Puts until the disk is full; gives the next number.
async fn fill(store: &Embedded, from: u64) -> u64 {
    for number in from.. {
        match try_put(store, number).await {
            Ok(_) => {}
            Err(StoreError::DiskFull { .. }) => return number,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!()
}

async fn check(store: &Embedded, count: u64) {
    let current = revision(store).await;
    assert_eq!(
        current,
        1 + count,
        "no revision was lost, and none is there that was refused"
    );
    for number in 0..count {
        let found = store
            .range(get(&format!("{number:06}")))
            .await
            .unwrap()
            .kvs
            .pop()
            .unwrap();
        assert!(found.value == value(number), "value {number}");
        assert_eq!(found.mod_revision.0, 2 + number);
    }
}

/// Puts number `count` as soon as it goes again.
async fn recover(store: &Embedded, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = try_put(store, count).await {
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn another_program_fills_the_disk() {
    run("96m", "filled_by_another");
}

#[test]
fn filled_by_another() {
    inside(async |directory| {
        let store = Embedded::open(directory.join("store")).unwrap();
        for number in 0..20 {
            try_put(&store, number).await.unwrap();
        }
        let filler = directory.join("filler");
        let _ = std::fs::write(&filler, vec![1; 128 << 20]);
        assert_eq!(fill(&store, 20).await, 20);
        check(&store, 20).await;
        std::fs::remove_file(&filler).unwrap();
        recover(&store, 20).await;
        check(&store, 21).await;
        drop(store);
        check(&Embedded::open(directory.join("store")).unwrap(), 21).await;
    });
}

#[test]
fn the_store_fills_the_disk() {
    run("64m", "filled_by_itself");
}

#[test]
fn filled_by_itself() {
    inside(async |directory| {
        let store = Embedded::open(directory.join("store")).unwrap();
        let mut count = fill(&store, 0).await;
        for _ in 0..3 {
            assert!(matches!(
                try_put(&store, count).await,
                Err(StoreError::DiskFull { .. })
            ));
        }
        check(&store, count).await;
        grow(directory, "160m");
        recover(&store, count).await;
        count = fill(&store, count + 1).await;
        check(&store, count).await;
        // A start with a full disk either works or says so, and harms nothing.
        drop(store);
        match Embedded::open(directory.join("store")) {
            Ok(store) => check(&store, count).await,
            Err(error) => assert!(matches!(error, StoreError::DiskFull { .. }), "{error}"),
        }
        grow(directory, "400m");
        let store = Embedded::open(directory.join("store")).unwrap();
        check(&store, count).await;
        recover(&store, count).await;
        drop(store);
        check(&Embedded::open(directory.join("store")).unwrap(), count + 1).await;
    });
}

fn grow(directory: &Path, size: &str) {
    let status = Command::new("mount")
        .args(["-o", &format!("remount,size={size}")])
        .arg(directory)
        .status()
        .unwrap();
    assert!(status.success());
}
