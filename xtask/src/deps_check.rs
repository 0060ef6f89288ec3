//! What we may depend on: licences, forbidden crates, and the direction of our own crates.
//!
//! Works on `cargo metadata` alone, so that it needs no network and no further tool. Known
//! vulnerabilities are looked up by `make advisories`, where the advisory database can be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

/// Permissive licences that may be linked in. An `OR` needs one of them, an `AND` all.
const LICENSES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that must not come in, each with its reason.
const FORBIDDEN: &[(&str, &str)] = &[
    ("openssl-sys", "one TLS implementation: rustls"),
    ("native-tls", "one TLS implementation: rustls"),
    (
        "aws-lc-rs",
        "one crypto provider: ring; two in one process panic",
    ),
    (
        "aws-lc-sys",
        "one crypto provider: ring; two in one process panic",
    ),
    ("rustables", "GPL"),
    ("nftnl", "links a GPL library"),
    ("prost-build", "a fresh machine has no protoc"),
];

/// Our crates from the bottom up: each may depend only on the ones named beside it.
const GRAPH: &[(&str, &[&str])] = &[
    ("knapsack", &[]),
    ("api", &[]),
    ("store", &[]),
    ("runtime", &[]),
    ("scheduler", &["knapsack", "api"]),
    ("controllers", &["api"]),
    ("client", &["api"]),
    ("network", &["api", "client"]),
    ("volumes", &["api"]),
    ("apiserver", &["api", "client", "store"]),
    (
        "controlplane",
        &["api", "client", "scheduler", "controllers"],
    ),
    (
        "kubelet",
        &["api", "client", "runtime", "network", "volumes"],
    ),
    (
        "llmagentos",
        &[
            "api",
            "client",
            "store",
            "apiserver",
            "controlplane",
            "scheduler",
            "runtime",
            "network",
            "volumes",
            "kubelet",
        ],
    ),
    ("hello-app", &[]),
    ("xtask", &["api"]),
];

/// Pure crates: no I/O, no task, no clock.
const PURE: &[&str] = &["knapsack", "api", "scheduler", "controllers"];
/// What a pure crate's manifest must not name.
const IMPURE_DEPENDENCIES: &[&str] = &[
    "tokio",
    "hyper",
    "nix",
    "libc",
    "rustix",
    "kube",
    "axum",
    "async-trait",
];

pub fn run() -> anyhow::Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let mut failures = Vec::new();
    for package in packages {
        check_package(package, &mut failures);
    }
    check_graph(packages, &mut failures);
    for failure in &failures {
        eprintln!("deps-check: {failure}");
    }
    if !failures.is_empty() {
        bail!("{} findings", failures.len());
    }
    println!(
        "deps-check: {} packages: licences, forbidden crates and our own graph are in order",
        packages.len()
    );
    Ok(())
}

fn check_package(package: &Value, failures: &mut Vec<String>) {
    let name = package["name"].as_str().unwrap_or_default();
    if let Some((_, reason)) = FORBIDDEN.iter().find(|(forbidden, _)| *forbidden == name) {
        failures.push(format!("crate {name} is forbidden: {reason}"));
    }
    match package["license"].as_str() {
        Some(expression) if is_permitted(expression) => {}
        Some(expression) => failures.push(format!(
            "crate {name} has licence \"{expression}\", which is not on the list"
        )),
        None => failures.push(format!("crate {name} names no licence")),
    }
}

/// Is there a choice of licences, all of them permitted? The old form `MIT/Apache-2.0` means OR.
fn is_permitted(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], " ");
    // AND binds tighter than OR, so that splitting at OR first is right without parentheses; with
    // them (`(A OR B) AND C`) every part is asked for by itself, which can only refuse too much.
    let has_both = expression.contains(" OR ") && expression.contains(" AND ");
    let parts: Vec<&str> = expression
        .split(" OR ")
        .flat_map(|choice| choice.split(" AND "))
        .map(str::trim)
        .collect();
    let permitted = |license: &&str| LICENSES.contains(license);
    if has_both {
        return parts.iter().filter(|license| permitted(license)).count() > 0
            && expression
                .split(" AND ")
                .all(|all| all.split(" OR ").any(|one| permitted(&one.trim())));
    }
    if expression.contains(" AND ") {
        parts.iter().all(permitted)
    } else {
        parts.iter().any(permitted)
    }
}

fn check_graph(packages: &[Value], failures: &mut Vec<String>) {
    let allowed: BTreeMap<&str, &[&str]> = GRAPH.iter().copied().collect();
    let ours: BTreeSet<&str> = packages
        .iter()
        .filter(|package| package["source"].is_null())
        .filter_map(|package| package["name"].as_str())
        .collect();
    for package in packages
        .iter()
        .filter(|package| package["source"].is_null())
    {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = allowed.get(name) else {
            failures.push(format!("crate {name} is not in the graph of xtask/src/deps_check.rs; add it with what it may depend on"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for dependency in dependencies.filter(|dependency| dependency["kind"].is_null()) {
            let dependency = dependency["name"].as_str().unwrap_or_default();
            if ours.contains(dependency) && !allowed.contains(&dependency) {
                failures.push(format!("crate {name} may not depend on {dependency}: dependencies point one way (ARCHITECTURE.md)"));
            }
            if PURE.contains(&name) && IMPURE_DEPENDENCIES.contains(&dependency) {
                failures.push(format!(
                    "crate {name} is pure and may not depend on {dependency}"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_permitted;

    #[test]
    fn licences() {
        fn check(expression: &str, expect: bool) {
            assert_eq!(is_permitted(expression), expect, "{expression}");
        }
        check("MIT", true);
        check("MIT/Apache-2.0", true);
        check("MIT OR GPL-3.0", true);
        check("GPL-3.0", false);
        check("MIT AND GPL-2.0", false);
        check("Apache-2.0 AND ISC", true);
        check("(MIT OR Apache-2.0) AND Unicode-3.0", true);
        check("(MIT OR Apache-2.0) AND GPL-3.0", false);
        check("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true);
    }
}
