//! Firewalls of others beside our rules: what they keep from pods, and how they are asked to let it through.
//!
//! The kernel asks every base chain of every table, and one that drops has the last word: no rule of ours can
//! undo it, and a rule in their chains would not be ours. So the firewall itself is asked, by its own tool:
//! - firewalld: the bridge joins zone `trusted`, in the running configuration only, as other container engines do.
//!   A reload forgets that, so [`follow`] says it again whenever the firewall makes its rules anew.
//! - ufw: three rules about the bridge, marked with [`UFW_COMMENT`]: pods may reach the node and be forwarded, and
//!   what is forwarded may reach pods.
//! - Any other chain that drops what no rule accepts is only found: [`Found::remedy`] says what opens it.
//!
//! Enter at [`follow`], [`find`] and [`close`]. Invariant: what was asked for is about the bridge alone, and
//! [`close`] takes back exactly that.
//!
//! Deliberately absent: opening this node's own ports (the API server's among them) to other machines, firewalld
//! with its iptables backend, and IPv6.

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::NetworkError;
use crate::nft::read::{self, Changes, ForeignChain};

/// What our rules in ufw are marked with.
pub const UFW_COMMENT: &str = "llmagentos pod network";
const TRUSTED: &str = "trusted";
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
/// A firewall that makes its rules anew does so in many steps.
const QUIET: Duration = Duration::from_secs(1);

/// A firewall that is active in this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Firewalld,
    Ufw,
    /// A chain that drops what no rule of it accepts, and none accepts the bridge's packets.
    Other(ForeignChain),
}

impl Found {
    pub fn name(&self) -> String {
        match self {
            Self::Firewalld => "firewalld".to_owned(),
            Self::Ufw => "ufw".to_owned(),
            Self::Other(chain) => {
                format!(
                    "nftables chain {} {} {}",
                    chain.family, chain.table, chain.name
                )
            }
        }
    }

    /// The commands that let the bridge's packets through, as a user would give them.
    pub fn remedy(&self, bridge: &str) -> Vec<String> {
        match self {
            Self::Firewalld => vec![format!(
                "firewall-cmd --zone={TRUSTED} --add-interface={bridge}"
            )],
            Self::Ufw => ufw_rules(bridge)
                .iter()
                .map(|rule| format!("ufw {rule} comment '{UFW_COMMENT}'"))
                .collect(),
            Self::Other(chain) => {
                let ForeignChain {
                    family,
                    table,
                    name,
                    hook,
                    ..
                } = chain;
                let insert = |direction: &str| {
                    format!(
                        "nft insert rule {family} {table} {name} {direction} \"{bridge}\" accept"
                    )
                };
                if *hook == Some(HOOK_FORWARD) {
                    vec![insert("iifname"), insert("oifname")]
                } else {
                    vec![insert("iifname")]
                }
            }
        }
    }
}

/// The firewalls that are active in the caller's network namespace.
pub fn find(own_table: &str, bridge: &str) -> Result<Vec<Found>, NetworkError> {
    let read = |error| NetworkError::kernel("list nftables chains", error);
    let chains = read::chains().map_err(read)?;
    let mut found = managed(&chains);
    for chain in &chains {
        let drops = chain.drops_by_default
            && matches!(chain.hook, Some(HOOK_INPUT | HOOK_FORWARD))
            && chain.table != own_table
            && !is_managed(chain, &found);
        if drops && !read::mentions(chain, bridge).map_err(read)? {
            found.push(Found::Other(chain.clone()));
        }
    }
    Ok(found)
}

/// The firewalls whose tool we know.
fn managed(chains: &[ForeignChain]) -> Vec<Found> {
    let mut found = Vec::new();
    if chains.iter().any(|chain| chain.table == "firewalld") {
        found.push(Found::Firewalld);
    }
    let ufw_in_nftables = chains
        .iter()
        .any(|chain| chain.table == "filter" && chain.name == "ufw-before-forward");
    if ufw_in_nftables || ufw_in_legacy_tables() {
        found.push(Found::Ufw);
    }
    found
}

/// Where iptables is the old one, its chains are not nftables'.
fn ufw_in_legacy_tables() -> bool {
    let says = |path: &str, line: &str| {
        std::fs::read_to_string(path)
            .is_ok_and(|text| text.lines().any(|found| found.trim() == line))
    };
    says("/proc/thread-self/net/ip_tables_names", "filter")
        && says("/etc/ufw/ufw.conf", "ENABLED=yes")
}

fn is_managed(chain: &ForeignChain, found: &[Found]) -> bool {
    (chain.table.starts_with("firewalld") && found.contains(&Found::Firewalld))
        || (chain.family == "ip" && chain.table == "filter" && found.contains(&Found::Ufw))
}

/// Asks the firewalls that are there to let the bridge's packets through, now and whenever one makes its rules anew.
///
/// Works on a thread of its own, which ends with the process. What cannot be opened is logged with its remedy.
pub fn follow(own_table: &str, bridge: &str) -> Result<(), NetworkError> {
    let mut changes = Changes::subscribe(own_table)
        .map_err(|error| NetworkError::kernel("watch nftables", error))?;
    let (own_table, bridge) = (own_table.to_owned(), bridge.to_owned());
    std::thread::Builder::new()
        .name("firewalls".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || {
            let mut told = Vec::new();
            loop {
                match find(&own_table, &bridge) {
                    Ok(found) => {
                        for firewall in &found {
                            report(firewall, &bridge, open(firewall, &bridge), &told);
                        }
                        told = found;
                    }
                    Err(error) => tracing::warn!(%error, "firewalls not looked for"),
                }
                if let Err(error) = changes.wait(QUIET) {
                    tracing::warn!(%error, "firewalls are not followed any more");
                    return;
                }
            }
        })
        .map_err(|error| NetworkError::kernel("start a thread", error))?;
    Ok(())
}

fn report(firewall: &Found, bridge: &str, result: Result<bool, ToolError>, told: &[Found]) {
    let name = firewall.name();
    match result {
        Ok(true) => tracing::info!(firewall = name, bridge, "the firewall lets pods through"),
        Ok(false) if told.contains(firewall) => {}
        Ok(false) if matches!(firewall, Found::Other(_)) => tracing::warn!(
            firewall = name,
            "this chain drops what none of its rules accepts, pods' packets too; open it with: {}",
            firewall.remedy(bridge).join("; ")
        ),
        Ok(false) => tracing::debug!(
            firewall = name,
            bridge,
            "the firewall let pods through before"
        ),
        Err(error) => tracing::warn!(
            firewall = name,
            %error,
            "the firewall may keep packets from pods; open it with: {}",
            firewall.remedy(bridge).join("; ")
        ),
    }
}

/// A firewall's own tool failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("{program} cannot be run: {source}")]
    Run {
        program: &'static str,
        source: io::Error,
    },
    #[error("{command}: {output}")]
    Failed { command: String, output: String },
    #[error("firewalld has {bridge} in zone \"{zone}\", which was not our doing and stays")]
    OtherZone { bridge: String, zone: String },
}

/// Asks for the bridge to be let through. `false`: there was nothing to do, or nothing that we may do.
pub fn open(firewall: &Found, bridge: &str) -> Result<bool, ToolError> {
    match firewall {
        Found::Firewalld => match zone(bridge)? {
            Some(zone) if zone == TRUSTED => Ok(false),
            Some(zone) => Err(ToolError::OtherZone {
                bridge: bridge.to_owned(),
                zone,
            }),
            None => firewall_cmd(&[
                &format!("--zone={TRUSTED}"),
                &format!("--add-interface={bridge}"),
            ])
            .map(|_| true),
        },
        Found::Ufw => {
            let there = run("ufw", &["show", "added"])?;
            let mut added = false;
            for rule in ufw_rules(bridge) {
                if added_rules(&there).any(|line| is_rule(line, &rule)) {
                    continue;
                }
                let mut arguments: Vec<&str> = rule.split(' ').collect();
                arguments.extend(["comment", UFW_COMMENT]);
                run("ufw", &arguments)?;
                added = true;
            }
            Ok(added)
        }
        Found::Other(_) => Ok(false),
    }
}

/// Takes back what [`open`] asked for, or only lists it. Answers what was (or would be) removed. Idempotent.
pub fn close(bridge: &str, dry_run: bool) -> Result<Vec<String>, NetworkError> {
    let chains =
        read::chains().map_err(|error| NetworkError::kernel("list nftables chains", error))?;
    let mut removed = Vec::new();
    let zone = if managed(&chains).contains(&Found::Firewalld) {
        match zone(bridge) {
            // Its rules may outlive it; what it was asked for does not.
            Err(ToolError::Failed { output, .. }) if output.contains("not running") => None,
            result => result?,
        }
    } else {
        None
    };
    if zone.as_deref() == Some(TRUSTED) {
        if !dry_run {
            firewall_cmd(&[
                &format!("--zone={TRUSTED}"),
                &format!("--remove-interface={bridge}"),
            ])?;
        }
        removed.push(format!(
            "interface {bridge} from firewalld's zone {TRUSTED}"
        ));
    }
    // ufw keeps its rules while it is not active, too; it is asked only if ours are among them.
    if !ufw_keeps_ours() {
        return Ok(removed);
    }
    let there = run("ufw", &["show", "added"])?;
    let ours = format!("comment '{UFW_COMMENT}'");
    for rule in ufw_rules(bridge) {
        if !added_rules(&there).any(|line| is_rule(line, &rule) && line.ends_with(&ours)) {
            continue;
        }
        if !dry_run {
            let arguments: Vec<&str> = match rule.strip_prefix("route ") {
                Some(rule) => ["route", "delete"]
                    .into_iter()
                    .chain(rule.split(' '))
                    .collect(),
                None => ["delete"].into_iter().chain(rule.split(' ')).collect(),
            };
            run("ufw", &arguments)?;
        }
        removed.push(format!("ufw rule \"{rule}\""));
    }
    Ok(removed)
}

/// Pods may be forwarded anywhere, anybody may be forwarded to pods, and pods reach this node (the API server).
fn ufw_rules(bridge: &str) -> [String; 3] {
    [
        format!("route allow in on {bridge}"),
        format!("route allow out on {bridge}"),
        format!("allow in on {bridge}"),
    ]
}

/// The rules that `ufw show added` lists, each without the program's name.
fn added_rules(listing: &str) -> impl Iterator<Item = &str> {
    listing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ufw "))
}

/// Whether a line of the list is that rule, with whatever comment.
fn is_rule(line: &str, rule: &str) -> bool {
    line.strip_prefix(rule)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(" comment "))
}

/// Whether a rule with our comment, which is kept in hexadecimal, is in ufw's files.
fn ufw_keeps_ours() -> bool {
    let comment: String = UFW_COMMENT
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ["/etc/ufw/user.rules", "/lib/ufw/user.rules"]
        .iter()
        .any(|path| std::fs::read_to_string(path).is_ok_and(|text| text.contains(&comment)))
}

/// The zone that firewalld has the interface in.
fn zone(interface: &str) -> Result<Option<String>, ToolError> {
    match firewall_cmd(&[&format!("--get-zone-of-interface={interface}")]) {
        Ok(zone) => Ok(Some(zone.trim().to_owned())),
        // Its exit code 2 has other meanings besides.
        Err(ToolError::Failed { output, .. }) if output.trim() == "no zone" => Ok(None),
        Err(error) => Err(error),
    }
}

fn firewall_cmd(arguments: &[&str]) -> Result<String, ToolError> {
    run("firewall-cmd", arguments)
}

/// Runs a firewall's tool and answers what it printed. Their words are read, so they are asked for in English.
fn run(program: &'static str, arguments: &[&str]) -> Result<String, ToolError> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        // Both are in sbin, which the path of a plain user's session leaves out.
        .env(
            "PATH",
            format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"),
        )
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ToolError::Run { program, source })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(ToolError::Failed {
        command: format!("{program} {}", arguments.join(" ")),
        output: format!("{}{}", text(&output.stdout), text(&output.stderr))
            .trim()
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: &str, name: &str, hook: Option<u32>) -> ForeignChain {
        ForeignChain {
            family: "ip",
            table: table.to_owned(),
            name: name.to_owned(),
            hook,
            drops_by_default: hook.is_some(),
        }
    }

    #[test]
    fn firewalls_are_told_by_their_chains() {
        let check = |chains: &[ForeignChain], expect: &[Found]| {
            assert_eq!(managed(chains), expect, "{chains:?}");
        };
        check(&[], &[]);
        check(&[chain("filter", "FORWARD", Some(2))], &[]);
        check(
            &[chain("filter", "ufw-before-forward", None)],
            &[Found::Ufw],
        );
        check(
            &[chain("firewalld", "filter_FORWARD", Some(2))],
            &[Found::Firewalld],
        );
    }

    #[test]
    fn remedies_are_commands() {
        let check = |found: Found, expect: &[&str]| assert_eq!(found.remedy("br0"), expect);
        check(
            Found::Firewalld,
            &["firewall-cmd --zone=trusted --add-interface=br0"],
        );
        check(
            Found::Ufw,
            &[
                "ufw route allow in on br0 comment 'llmagentos pod network'",
                "ufw route allow out on br0 comment 'llmagentos pod network'",
                "ufw allow in on br0 comment 'llmagentos pod network'",
            ],
        );
        check(
            Found::Other(chain("t", "c", Some(HOOK_FORWARD))),
            &[
                "nft insert rule ip t c iifname \"br0\" accept",
                "nft insert rule ip t c oifname \"br0\" accept",
            ],
        );
        check(
            Found::Other(chain("t", "c", Some(HOOK_INPUT))),
            &["nft insert rule ip t c iifname \"br0\" accept"],
        );
    }

    #[test]
    fn rules_of_ufw_are_read() {
        let listing = "Added user rules (see 'ufw status' for running firewall):\nufw allow 22/tcp\nufw route allow in on br0 comment 'x'\n";
        assert_eq!(
            added_rules(listing).collect::<Vec<_>>(),
            ["allow 22/tcp", "route allow in on br0 comment 'x'"]
        );
        let check = |line, expect| assert_eq!(is_rule(line, "allow in on br0"), expect, "{line}");
        check("allow in on br0", true);
        check("allow in on br0 comment 'x'", true);
        check("allow in on br01", false);
        check("allow in on br0 to any port 22", false);
        check("route allow in on br0", false);
    }
}
