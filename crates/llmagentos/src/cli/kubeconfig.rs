//! `llmagentos kubeconfig`: print the administrator's kubeconfig, or merge it into another.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use super::output::say;
use crate::config::{Config, write_atomically};

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  llmagentos kubeconfig > ~/cluster.yaml\n  llmagentos kubeconfig --merge"
)]
pub struct KubeconfigArgs {
    /// Print only the file's path
    #[arg(long, conflicts_with = "merge")]
    path: bool,
    /// Merge into ~/.kube/config (or the first file of $KUBECONFIG) and make it the current context
    #[arg(long)]
    merge: bool,
}

pub fn run(config_dir: &Path, args: &KubeconfigArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(config_dir)?;
    let path = config.kubeconfig_path();
    if args.path {
        say!("{}", path.display());
    } else if args.merge {
        say!(
            "Merged into {}; the current context is \"llmagentos\".",
            merge(&config)?.display()
        );
    } else {
        super::output::write(format_args!("{}", read(&path)?));
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| {
        format!(
            "read {}; 'llmagentos init' writes it when the cluster starts",
            path.display()
        )
    })
}

/// Merges the administrator's kubeconfig into the user's, and answers where that is.
pub fn merge(config: &Config) -> anyhow::Result<PathBuf> {
    let ours: Value = serde_yaml::from_str(&read(&config.kubeconfig_path())?)
        .context("read the cluster's kubeconfig")?;
    let target = user_kubeconfig()?;
    let existing = match std::fs::read_to_string(&target) {
        Ok(text) if !text.trim().is_empty() => serde_yaml::from_str(&text).with_context(|| {
            format!(
                "{} is not YAML; mend or move it, nothing was changed",
                target.display()
            )
        })?,
        Ok(_) => Value::Null,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Value::Null,
        Err(error) => return Err(error).with_context(|| format!("read {}", target.display())),
    };
    let merged = merged(existing, &ours).with_context(|| {
        format!(
            "{} is not a kubeconfig; nothing was changed",
            target.display()
        )
    })?;
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    let text = serde_yaml::to_string(&merged).context("write the merged kubeconfig")?;
    write_atomically(&target, text.as_bytes(), 0o600)?;
    Ok(target)
}

fn user_kubeconfig() -> anyhow::Result<PathBuf> {
    if let Some(first) = std::env::var_os("KUBECONFIG")
        .and_then(|list| std::env::split_paths(&list).find(|path| !path.as_os_str().is_empty()))
    {
        return Ok(first);
    }
    match std::env::var_os("HOME") {
        Some(home) => Ok(Path::new(&home).join(".kube/config")),
        None => {
            bail!("neither KUBECONFIG nor HOME is set; set KUBECONFIG to the file to merge into")
        }
    }
}

/// `theirs` with our cluster, user and context in it, each replacing the one of the same name.
fn merged(theirs: Value, ours: &Value) -> anyhow::Result<Value> {
    let mut result = match theirs {
        Value::Null => Map::from_iter([
            ("apiVersion".to_owned(), json!("v1")),
            ("kind".to_owned(), json!("Config")),
        ]),
        Value::Object(map) => map,
        _ => bail!("its top is not a mapping"),
    };
    for list in ["clusters", "users", "contexts"] {
        let entries = result.entry(list).or_insert_with(|| json!([]));
        if entries.is_null() {
            *entries = json!([]);
        }
        let Some(entries) = entries.as_array_mut() else {
            bail!("{list} is not a list")
        };
        for entry in ours[list].as_array().into_iter().flatten() {
            entries.retain(|other| other["name"] != entry["name"]);
            entries.push(entry.clone());
        }
    }
    result.insert(
        "current-context".to_owned(),
        ours["current-context"].clone(),
    );
    Ok(Value::Object(result))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Value {
        json!({
            "clusters": [{"name": "llmagentos", "cluster": {"server": "https://new"}}],
            "users": [{"name": "llmagentos-admin", "user": {}}],
            "contexts": [{"name": "llmagentos", "context": {}}],
            "current-context": "llmagentos",
        })
    }

    #[test]
    fn merge_keeps_others_and_replaces_ours() {
        let theirs = json!({
            "apiVersion": "v1", "kind": "Config", "preferences": {"colors": true},
            "clusters": [{"name": "other"}, {"name": "llmagentos", "cluster": {"server": "https://old"}}],
            "users": null,
            "current-context": "other",
        });
        let merged = merged(theirs, &ours()).expect("a kubeconfig");
        assert_eq!(
            merged["clusters"],
            json!([{"name": "other"}, {"name": "llmagentos", "cluster": {"server": "https://new"}}])
        );
        assert_eq!(merged["users"].as_array().map(Vec::len), Some(1));
        assert_eq!(merged["preferences"]["colors"], json!(true));
        assert_eq!(merged["current-context"], json!("llmagentos"));
    }

    #[test]
    fn merge_refuses_what_is_no_kubeconfig() {
        assert!(merged(json!(["list"]), &ours()).is_err());
        assert!(merged(json!({"clusters": "text"}), &ours()).is_err());
    }

    #[test]
    fn merge_into_nothing_is_whole() {
        let merged = merged(Value::Null, &ours()).expect("a kubeconfig");
        assert_eq!(merged["kind"], json!("Config"));
        assert_eq!(merged["contexts"][0]["name"], json!("llmagentos"));
    }
}
