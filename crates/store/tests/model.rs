//! The embedded engine against a model that keeps every state of the past in memory.
//!
//! A case is a list of steps; after each, the answers must be equal, and at the end everything that
//! can still be read or watched is compared. A failing case is printed in its smallest form.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use common::*;
use proptest::prelude::*;
use store::*;

/// Few keys, so that steps meet each other; one has the others as its prefix's neighbours.
const KEYS: [&str; 5] = ["a", "a/1", "a/2", "b", "b\0"];

#[derive(Clone, Debug)]
enum Step {
    Put { key: usize, value: u8 },
    PutIfModified { key: usize, value: u8, back: u64 },
    CreateOrList { key: usize },
    Delete { key: usize },
    DeletePrefix { key: usize },
    PutTwoDeleteOne { keys: [usize; 3] },
    Compact { back: u64 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..KEYS.len();
    prop_oneof![
        6 => (key(), any::<u8>()).prop_map(|(key, value)| Step::Put { key, value }),
        3 => (key(), any::<u8>(), 0..4u64).prop_map(|(key, value, back)| Step::PutIfModified { key, value, back }),
        2 => key().prop_map(|key| Step::CreateOrList { key }),
        3 => key().prop_map(|key| Step::Delete { key }),
        1 => key().prop_map(|key| Step::DeletePrefix { key }),
        2 => [key(), key(), key()].prop_map(|keys| Step::PutTwoDeleteOne { keys }),
        1 => (0..6u64).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ]
}

type State = BTreeMap<String, KeyValue>;

/// `states[r]` is the state at revision `r`; `events[r]` is what made it.
struct Model {
    states: Vec<State>,
    events: Vec<Vec<String>>,
    compacted: u64,
}

impl Model {
    fn current(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    fn state(&self) -> &State {
        self.states.last().unwrap()
    }

    /// The transaction's answer, in short: whether it succeeded and what it listed or deleted.
    fn apply(&mut self, txn: &Txn) -> Result<(bool, String), ()> {
        let modified = |key: &[u8]| {
            let key = std::str::from_utf8(key).unwrap();
            self.state().get(key).map_or(0, |kv| kv.mod_revision.0)
        };
        let succeeded = txn.compare.iter().all(|compare| match compare {
            Compare::ModRevision { key, equals } => modified(key) == equals.0,
            Compare::Exists { key, exists } => (modified(key) > 0) == *exists,
        });
        let revision = Revision(self.current() + 1);
        let mut state = self.state().clone();
        let (mut events, mut changed, mut shown) = (vec![], vec![], vec![]);
        for op in if succeeded {
            &txn.success
        } else {
            &txn.failure
        } {
            match op {
                Op::Put { key, value, lease } => {
                    if changed.contains(key) {
                        return Err(());
                    }
                    changed.push(key.clone());
                    let name = String::from_utf8(key.to_vec()).unwrap();
                    let prev = state.get(&name).cloned();
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: prev
                            .as_ref()
                            .map_or(revision, |prev| prev.create_revision),
                        mod_revision: revision,
                        version: prev.as_ref().map_or(0, |prev| prev.version) + 1,
                        lease: *lease,
                    };
                    state.insert(name, kv.clone());
                    events.push(show_event(&Event::Put { kv, prev }));
                }
                Op::Delete { range } => {
                    let inside = state
                        .values()
                        .filter(|kv| range.contains(&kv.key))
                        .cloned()
                        .collect::<Vec<_>>();
                    shown.push(show(&inside));
                    for prev in inside {
                        if changed.contains(&prev.key) {
                            return Err(());
                        }
                        changed.push(prev.key.clone());
                        state.remove(std::str::from_utf8(&prev.key).unwrap());
                        let key = prev.key.clone();
                        events.push(show_event(&Event::Delete {
                            key,
                            mod_revision: revision,
                            prev: Some(prev),
                        }));
                    }
                }
                Op::Range(request) => {
                    let inside = state
                        .values()
                        .filter(|kv| request.range.contains(&kv.key))
                        .cloned();
                    shown.push(show(&inside.collect::<Vec<_>>()));
                }
            }
        }
        if !events.is_empty() {
            self.states.push(state);
            self.events.push(events);
        }
        Ok((succeeded, shown.join(";")))
    }
}

fn transaction(step: &Step, model: &Model) -> Option<Txn> {
    let put = |key: usize, value: u8| put_op(KEYS[key], &value.to_string());
    let single = |key: usize| KeyRange::single(bytes(KEYS[key]));
    Some(match step {
        Step::Put { key, value } => ops(vec![put(*key, *value)]),
        Step::PutIfModified { key, value, back } => Txn {
            compare: vec![Compare::ModRevision {
                key: bytes(KEYS[*key]),
                equals: Revision(model.current().saturating_sub(*back)),
            }],
            success: vec![put(*key, *value)],
            failure: vec![Op::Range(get(KEYS[*key]))],
        },
        Step::CreateOrList { key } => Txn {
            compare: vec![Compare::Exists {
                key: bytes(KEYS[*key]),
                exists: false,
            }],
            success: vec![put(*key, 0), Op::Range(list("a"))],
            failure: vec![Op::Range(list("a"))],
        },
        Step::Delete { key } => ops(vec![delete_op(single(*key))]),
        Step::DeletePrefix { key } => ops(vec![delete_op(KeyRange::prefix(bytes(KEYS[*key])))]),
        Step::PutTwoDeleteOne { keys } => ops(vec![
            put(keys[0], 1),
            delete_op(single(keys[1])),
            put(keys[2], 2),
            Op::Range(list("")),
        ]),
        Step::Compact { .. } | Step::Reopen => return None,
    })
}

async fn check(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Embedded::open(directory.path()).unwrap();
    let mut model = Model {
        states: vec![State::new(); 2],
        events: vec![vec![]; 2],
        compacted: 0,
    };
    let mut live = store.watch(watch_from("", Some(2))).await.unwrap();
    let mut live_from = 2;
    for step in &steps {
        match step {
            Step::Compact { back } => {
                let revision = model.current().saturating_sub(*back);
                match store.compact(Revision(revision)).await {
                    Ok(()) => {
                        if revision > 1 {
                            model.compacted = revision;
                        }
                    }
                    Err(error) => {
                        assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
                        assert!(revision < model.compacted);
                    }
                }
            }
            Step::Reopen => {
                check_live(&mut live, live_from, &model).await;
                drop(store);
                store = Embedded::open(directory.path()).unwrap();
                live_from = model.current() + 1;
                live = store.watch(watch_from("", Some(live_from))).await.unwrap();
            }
            _ => {
                let txn = transaction(step, &model).unwrap();
                let expect = model.apply(&txn);
                match store.txn(txn).await {
                    Ok(response) => {
                        let shown =
                            response
                                .responses
                                .iter()
                                .filter_map(|response| match response {
                                    OpResponse::Put => None,
                                    OpResponse::Delete { deleted } => Some(show(deleted)),
                                    OpResponse::Range(range) => Some(show(&range.kvs)),
                                });
                        assert_eq!(
                            Ok((response.succeeded, shown.collect::<Vec<_>>().join(";"))),
                            expect,
                            "{step:?}"
                        );
                        assert_eq!(response.revision, Revision(model.current()), "{step:?}");
                    }
                    Err(error) => {
                        assert!(matches!(error, StoreError::DuplicateKey { .. }), "{error}");
                        assert_eq!(expect, Err(()), "{step:?}");
                    }
                }
            }
        }
    }
    check_live(&mut live, live_from, &model).await;
    check_all(&store, &model).await;
    drop(store);
    check_all(&Embedded::open(directory.path()).unwrap(), &model).await;
}

/// A watch that was there when the changes came saw all of them.
async fn check_live(watcher: &mut Watcher, from: u64, model: &Model) {
    if from <= model.current() {
        let expect = model.events[from as usize..].concat();
        assert_eq!(events_through(watcher, model.current()).await, expect);
    }
}

/// Everything that can still be read.
async fn check_all(store: &Embedded, model: &Model) {
    let expect = Revisions {
        current: Revision(model.current()),
        compacted: Revision(model.compacted),
    };
    assert_eq!(store.revisions().await.unwrap(), expect);
    for revision in 1..=model.current() {
        let answer = store.range(list_at("", revision)).await;
        if revision < model.compacted {
            assert!(matches!(answer, Err(StoreError::Compacted { .. })));
            continue;
        }
        let expect = model.states[revision as usize]
            .values()
            .cloned()
            .collect::<Vec<_>>();
        assert_eq!(show(&answer.unwrap().kvs), show(&expect), "at {revision}");
    }
    let from = model.compacted.max(2);
    if from <= model.current() {
        let mut watcher = store.watch(watch_from("", Some(from))).await.unwrap();
        let seen = events_through(&mut watcher, model.current()).await;
        // What came before the oldest event may be forgotten.
        let strip = |event: &String| event.split('(').next().unwrap().to_owned();
        let expect = model.events[from as usize..].concat();
        assert_eq!(
            seen.iter().map(strip).collect::<Vec<_>>(),
            expect.iter().map(strip).collect::<Vec<_>>()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn safety_answers_are_those_of_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(steps));
    }
}
