//! Known vulnerabilities among our dependencies, by the RustSec advisory database.
//!
//! The database is fetched anew, or taken from a directory. Where it cannot be reached (a machine without a
//! network is no reason to stop work), that is said and nothing is checked; `--db` makes it an error.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rustsec::advisory::Informational;
use rustsec::database::Query;
use rustsec::{Database, Lockfile};

const DATABASE_URL: &str = "https://github.com/rustsec/advisory-db";
/// Advisories that do not concern us, each with its reason.
const IGNORED: &[(&str, &str)] = &[];

pub fn run(directory: Option<&Path>) -> anyhow::Result<()> {
    let fetched = tempfile::tempdir().context("make a directory for the database")?;
    let directory = match directory {
        Some(directory) => directory,
        None if fetch(fetched.path())? => fetched.path(),
        None => {
            eprintln!("advisories: {DATABASE_URL} is not reachable from here; nothing was checked");
            return Ok(());
        }
    };
    let database = Database::open(directory)
        .with_context(|| format!("read the advisory database in {}", directory.display()))?;
    let lockfile = Lockfile::load("Cargo.lock").context("read Cargo.lock")?;
    let mut found = 0;
    let mut notices = 0;
    // Unsound and unmaintained crates too, which the default query leaves out.
    let query = Query::new().withdrawn(false);
    for vulnerability in database.query_vulnerabilities(&lockfile, &query) {
        let advisory = &vulnerability.advisory;
        if let Some((_, reason)) = IGNORED.iter().find(|(id, _)| advisory.id.as_str() == *id) {
            println!("{}: ignored: {reason}", advisory.id);
            continue;
        }
        let notice = matches!(
            advisory.informational,
            Some(Informational::Unmaintained | Informational::Notice)
        );
        println!(
            "{} {} {}: {}{}",
            advisory.id,
            vulnerability.package.name,
            vulnerability.package.version,
            advisory.title,
            if notice { " (notice)" } else { "" }
        );
        if notice {
            notices += 1;
        } else {
            found += 1;
        }
    }
    if found > 0 {
        bail!(
            "{found} advisories concern our dependencies; update them with 'cargo update -p NAME', or ignore one with its reason in xtask/src/advisories.rs"
        );
    }
    println!(
        "advisories: {} packages checked against {} advisories; none concerns us, {notices} notices",
        lockfile.packages.len(),
        database.iter().count()
    );
    Ok(())
}

/// Clones the database; false if its host cannot be reached.
fn fetch(into: &Path) -> anyhow::Result<bool> {
    let status = Command::new("git")
        .args(["clone", "--quiet", "--depth=1", DATABASE_URL])
        .arg(into)
        // Never ask anybody for a password.
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("run git")?;
    Ok(status.success())
}
