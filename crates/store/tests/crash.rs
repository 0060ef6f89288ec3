//! `kill -9` under load, again and again, on one data directory.
//!
//! The test starts itself as a child that writes; the child says on its standard output what was
//! acknowledged and what a watch has seen. After each kill every acknowledged write must be there,
//! under its own revision, revisions must be dense, none may be used again, and a watch from the
//! last revision known must go on without a gap.
//!
//! `STORE_CRASH_ROUNDS` sets the count of kills (30).

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use store::*;

const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";
const WRITERS: u64 = 8;
const KEYS_PER_WRITER: u64 = 20;

/// The child: not a test by itself.
#[test]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(write_until_killed(Path::new(&directory)));
}

async fn write_until_killed(directory: &Path) {
    let store = std::sync::Arc::new(Embedded::open(directory).unwrap());
    let start = revision(&store).await;
    let mut watcher = store.watch(watch_from("", Some(start + 1))).await.unwrap();
    for writer in 0..WRITERS {
        let store = store.clone();
        tokio::spawn(async move {
            for number in start.. {
                let key = format!("w{writer}/{}", number % KEYS_PER_WRITER);
                let txn = if number % 7 == 6 {
                    ops(vec![delete_op(KeyRange::single(bytes(&key)))])
                } else {
                    ops(vec![put_op(&key, &value(writer, number))])
                };
                let deletion = number % 7 == 6;
                let response = store.txn(txn).await.unwrap();
                // A deletion of nothing has no revision of its own.
                if !matches!(&response.responses[..], [OpResponse::Delete { deleted }] if deleted.is_empty())
                {
                    let what = if deletion {
                        "delete".to_owned()
                    } else {
                        number.to_string()
                    };
                    say(&format!("acknowledged {} {key} {what}", response.revision));
                }
            }
        });
    }
    tokio::spawn({
        let store = store.clone();
        async move { store.compact(Revision(start)).await }
    });
    say("open");
    loop {
        for event in next(&mut watcher).await.unwrap().events {
            let (key, revision, what) = parts(&event);
            say(&format!("watched {revision} {key} {what}"));
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("store: {line}\n").as_bytes())
        .unwrap();
}

/// Begins with its number; up to 16 KiB, so that memtables are flushed now and then.
fn value(writer: u64, number: u64) -> String {
    let length = (number * 7919 + writer * 104_729) % 16_384;
    format!("{number} ").repeat(1 + length as usize / 8)
}

fn parts(event: &Event) -> (String, u64, String) {
    match event {
        Event::Put { kv, .. } => {
            let value = std::str::from_utf8(&kv.value).unwrap();
            let number = value.split(' ').next().unwrap().to_owned();
            let writer = kv.key[1] - b'0';
            assert_eq!(
                value,
                self::value(writer.into(), number.parse().unwrap()),
                "a whole value"
            );
            (
                String::from_utf8(kv.key.to_vec()).unwrap(),
                kv.mod_revision.0,
                number,
            )
        }
        Event::Delete {
            key, mod_revision, ..
        } => (
            String::from_utf8(key.to_vec()).unwrap(),
            mod_revision.0,
            "delete".into(),
        ),
    }
}

#[test]
fn safety_acknowledged_writes_survive_kill_9() {
    let rounds = std::env::var("STORE_CRASH_ROUNDS").map_or(30, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("STORE_CRASH_SEED")
        .map_or_else(|_| std::process::id(), |seed| seed.parse::<u32>().unwrap());
    println!("STORE_CRASH_SEED={seed}");
    let mut random = u64::from(seed) | 1;
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut newest = 1;
    let mut acknowledged_count = 0;
    for round in 0..rounds {
        // Some kills fall into the opening.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let delay = Duration::from_micros(random % 150_000);
        let said = run_and_kill(directory.path(), delay, round % 5 == 4);
        acknowledged_count += said
            .iter()
            .filter(|line| line.starts_with("acknowledged"))
            .count();
        newest = runtime.block_on(check(directory.path(), newest, &said));
    }
    println!("{rounds} kills, {acknowledged_count} acknowledged writes, newest revision {newest}");
    assert!(acknowledged_count > rounds, "the children got to write");
}

/// What the child said before it was killed, `delay` after its start, or after it had opened the store.
fn run_and_kill(directory: &Path, delay: Duration, from_start: bool) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let mut said = Vec::new();
    if !from_start {
        said.extend(lines.by_ref().take_while(|line| line != "store: open"));
    }
    let reader = std::thread::spawn(move || lines.collect::<Vec<_>>());
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    said.extend(reader.join().unwrap());
    said.iter()
        .filter_map(|line| line.strip_prefix("store: "))
        .map(str::to_owned)
        .collect()
}

/// Compares what is there after `before` with what the child said; gives the newest revision.
async fn check(directory: &Path, before: u64, said: &[String]) -> u64 {
    let store = Embedded::open(directory).unwrap();
    let current = revision(&store).await;
    assert!(
        current >= before,
        "revision went back from {before} to {current}"
    );
    let mut there = BTreeMap::new();
    if current > before {
        let mut watcher = store.watch(watch_from("", Some(before + 1))).await.unwrap();
        let mut through = before;
        while through < current {
            let response = next(&mut watcher).await.unwrap();
            through = response.revision.0;
            for event in &response.events {
                let (key, revision, what) = parts(event);
                assert!(
                    there.insert(revision, format!("{key} {what}")).is_none(),
                    "one event each"
                );
            }
        }
    }
    let revisions: Vec<u64> = there.keys().copied().collect();
    assert_eq!(
        revisions,
        (before + 1..=current).collect::<Vec<_>>(),
        "dense"
    );
    for line in said {
        let mut words = line.splitn(3, ' ');
        let (kind, revision) = (words.next().unwrap(), words.next());
        if kind == "open" {
            continue;
        }
        let revision = revision.unwrap().parse().unwrap();
        assert!(revision > before, "{line}: used again");
        assert_eq!(
            there.get(&revision).map(String::as_str),
            words.next(),
            "{line}"
        );
    }
    // The newest state is that of the last event of each key.
    let mut newest = BTreeMap::new();
    for event in there.values() {
        let (key, what) = event.split_once(' ').unwrap();
        newest.insert(key, what);
    }
    for (key, what) in newest {
        let found = store.range(get(key)).await.unwrap().kvs.pop();
        let number = found.map(|kv| {
            String::from_utf8(kv.value.to_vec())
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .to_owned()
        });
        assert_eq!(
            number.as_deref(),
            (what != "delete").then_some(what),
            "{key}"
        );
    }
    current
}
