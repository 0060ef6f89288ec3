//! Name resolution of a pod: its hostname and the resolv.conf that its policy asks for. Pure.

use std::net::IpAddr;

use runtime::service::DnsConfig;

use super::spec::PodSpecView;

/// glibc reads no more name servers.
const SERVERS_MAX: usize = 3;
/// As the API validates: more would not fit everywhere.
const SEARCHES_MAX: usize = 32;
const HOSTNAME_LENGTH_MAX: usize = 63;

/// Reads a resolv.conf; unknown lines are skipped.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            // The last line of its kind counts.
            Some("search" | "domain") => {
                dns.searches = words
                    .map(|word| word.trim_end_matches('.').to_owned())
                    .filter(|word| !word.is_empty())
                    .collect()
            }
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

/// What the pod's policy makes of the node's configuration. The flag tells that cluster DNS was asked
/// for and there is none.
pub fn of_pod(
    view: &PodSpecView,
    node: &DnsConfig,
    cluster_dns: &[IpAddr],
    cluster_domain: &str,
) -> (DnsConfig, bool) {
    let spec = view.pod.spec.as_ref();
    let policy = spec
        .and_then(|spec| spec.dns_policy.as_deref())
        .unwrap_or("ClusterFirst");
    let wants_cluster =
        policy == "ClusterFirstWithHostNet" || policy == "ClusterFirst" && !view.host_network();
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        _ if wants_cluster && !cluster_dns.is_empty() => {
            let namespace = view.namespace();
            let mut searches = vec![
                format!("{namespace}.svc.{cluster_domain}"),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_owned(),
            ];
            searches.extend(node.searches.iter().cloned());
            DnsConfig {
                servers: cluster_dns.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".into()],
            }
        }
        _ => node.clone(),
    };
    if let Some(config) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        dns.servers
            .extend(config.nameservers.iter().flatten().cloned());
        dns.searches
            .extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            dns.options
                .retain(|existing| existing.split(':').next() != Some(name));
            dns.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.clone(),
            });
        }
    }
    let mut seen = Vec::new();
    for list in [&mut dns.servers, &mut dns.searches] {
        seen.clear();
        list.retain(|item| {
            let new = !seen.contains(item);
            seen.push(item.clone());
            new
        });
    }
    dns.servers.truncate(SERVERS_MAX);
    dns.searches.truncate(SEARCHES_MAX);
    (dns, wants_cluster && cluster_dns.is_empty())
}

/// The pod's hostname and, with a subdomain, its domain (else empty).
pub fn hostname_and_domain(view: &PodSpecView, cluster_domain: &str) -> (String, String) {
    let spec = view.pod.spec.as_ref();
    let set = |value: Option<&String>| value.filter(|value| !value.is_empty()).cloned();
    if let Some(name) = set(spec.and_then(|spec| spec.hostname_override.as_ref())) {
        return (truncate(&name), String::new());
    }
    let hostname =
        set(spec.and_then(|spec| spec.hostname.as_ref())).unwrap_or_else(|| view.name().to_owned());
    let domain = set(spec.and_then(|spec| spec.subdomain.as_ref()))
        .map(|subdomain| format!("{subdomain}.{}.svc.{cluster_domain}", view.namespace()))
        .unwrap_or_default();
    (truncate(&hostname), domain)
}

/// What `hostname` answers in the pod: with setHostnameAsFQDN the full name.
pub fn kernel_hostname(view: &PodSpecView, hostname: &str, domain: &str) -> String {
    let fqdn = view
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.set_hostname_as_fqdn)
        .unwrap_or(false);
    if fqdn && !domain.is_empty() {
        truncate(&format!("{hostname}.{domain}"))
    } else {
        hostname.to_owned()
    }
}

fn truncate(hostname: &str) -> String {
    let end = hostname.len().min(HOSTNAME_LENGTH_MAX);
    let end = (0..=end)
        .rev()
        .find(|end| hostname.is_char_boundary(*end))
        .unwrap_or(0);
    if end == hostname.len() {
        hostname.to_owned()
    } else {
        hostname[..end].trim_end_matches(['-', '.']).to_owned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn view(spec: Value) -> PodSpecView {
        let mut spec = spec;
        spec["containers"] = json!([]);
        PodSpecView::new(Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": spec}),
            )
            .unwrap(),
        ))
    }

    #[test]
    fn policies() {
        let node = parse_resolv_conf(
            "# c\nnameserver 9.9.9.9\nnameserver 1.1.1.1\nsearch corp.example. lan\noptions edns0\n",
        );
        let check = |spec: Value,
                     cluster: bool,
                     servers: &[&str],
                     searches: &[&str],
                     options: &[&str],
                     missing: bool| {
            let cluster_dns: Vec<IpAddr> = if cluster {
                vec!["10.43.0.10".parse().unwrap()]
            } else {
                Vec::new()
            };
            let (dns, is_missing) =
                of_pod(&view(spec.clone()), &node, &cluster_dns, "cluster.local");
            assert_eq!(
                (dns.servers, dns.searches, dns.options, is_missing),
                (owned(servers), owned(searches), owned(options), missing),
                "{spec}"
            );
        };
        fn owned(list: &[&str]) -> Vec<String> {
            list.iter().map(|item| (*item).to_owned()).collect()
        }
        let cluster = [
            "shop.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local",
            "corp.example",
            "lan",
        ];
        check(
            json!({}),
            true,
            &["10.43.0.10"],
            &cluster,
            &["ndots:5"],
            false,
        );
        check(
            json!({}),
            false,
            &["9.9.9.9", "1.1.1.1"],
            &["corp.example", "lan"],
            &["edns0"],
            true,
        );
        check(
            json!({"hostNetwork": true}),
            true,
            &["9.9.9.9", "1.1.1.1"],
            &["corp.example", "lan"],
            &["edns0"],
            false,
        );
        check(
            json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
            true,
            &["10.43.0.10"],
            &cluster,
            &["ndots:5"],
            false,
        );
        check(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["8.8.8.8", "8.8.8.8"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            true,
            &["8.8.8.8"],
            &["a"],
            &["ndots:2", "edns0"],
            false,
        );
        check(
            json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
            true,
            &["10.43.0.10"],
            &cluster,
            &["ndots:1"],
            false,
        );
    }

    #[test]
    fn hostnames() {
        for (spec, hostname, domain, kernel) in [
            (json!({}), "web", "", "web"),
            (
                json!({"hostname": "h", "subdomain": "s"}),
                "h",
                "s.shop.svc.cluster.local",
                "h",
            ),
            (
                json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}),
                "h",
                "s.shop.svc.cluster.local",
                "h.s.shop.svc.cluster.local",
            ),
            (
                json!({"hostnameOverride": "o.example"}),
                "o.example",
                "",
                "o.example",
            ),
        ] {
            let view = view(spec);
            assert_eq!(
                hostname_and_domain(&view, "cluster.local"),
                (hostname.to_owned(), domain.to_owned())
            );
            assert_eq!(kernel_hostname(&view, hostname, domain), kernel);
        }
        assert_eq!(truncate(&format!("{}-x", "a".repeat(62))), "a".repeat(62));
    }
}
