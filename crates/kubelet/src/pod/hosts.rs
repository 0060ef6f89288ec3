//! The `/etc/hosts` that a pod's containers share. Pure.

use k8s_openapi::api::core::v1::HostAlias;

const HEADER: &str = "# Kubernetes-managed hosts file";

/// For a pod with a network of its own.
pub fn of_pod(pod_ips: &[String], hostname: &str, domain: &str, aliases: &[HostAlias]) -> String {
    let mut text = format!(
        "{HEADER}.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
    );
    for ip in pod_ips {
        if domain.is_empty() {
            text.push_str(&format!("{ip}\t{hostname}\n"));
        } else {
            text.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n"));
        }
    }
    add_aliases(&mut text, aliases);
    text
}

/// For a pod in the node's network: the node's file, and the aliases.
pub fn of_node(node_hosts: &str, aliases: &[HostAlias]) -> String {
    let mut text = format!("{HEADER} (host network).\n{node_hosts}");
    add_aliases(&mut text, aliases);
    text
}

fn add_aliases(text: &mut String, aliases: &[HostAlias]) {
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        text.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.as_deref().unwrap_or_default().join("\t")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let aliases = [HostAlias {
            ip: "1.2.3.4".into(),
            hostnames: Some(vec!["a".into(), "b".into()]),
        }];
        let text = of_pod(
            &["10.42.0.2".into()],
            "web",
            "db.ns.svc.cluster.local",
            &aliases,
        );
        assert!(text.ends_with("10.42.0.2\tweb.db.ns.svc.cluster.local\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
        assert!(
            of_pod(&["10.42.0.2".into()], "web", "", &[])
                .ends_with("ip6-allrouters\n10.42.0.2\tweb\n")
        );
        assert!(
            of_node("127.0.0.1 x\n", &[])
                .starts_with("# Kubernetes-managed hosts file (host network).\n127.0.0.1 x\n")
        );
    }
}
