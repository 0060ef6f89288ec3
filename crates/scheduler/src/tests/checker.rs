//! An independent judge of plans: it reads the objects as JSON and shares no code with the scheduler.
//!
//! It looks at the final state only, which suffices: within a plan pods are only added, so that an
//! anti-affinity that is broken stays broken, and the smallest count of a spread constraint only grows.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// A quantity of the forms that the tests use, in thousandths.
fn thousandths(quantity: &Value) -> i128 {
    let text = quantity.as_str().unwrap_or("0");
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let number: i128 = digits.parse().unwrap_or(0);
    match &text[digits.len()..] {
        "m" => number,
        "" => number * 1000,
        "Mi" => (number * 1000) << 20,
        "Gi" => (number * 1000) << 30,
        "M" => number * 1_000_000_000,
        other => panic!("suffix {other}"),
    }
}

fn requests(pod: &Value) -> BTreeMap<String, i128> {
    let mut sum = BTreeMap::from([("pods".to_string(), 1000)]);
    for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
        for (name, quantity) in container["resources"]["requests"]
            .as_object()
            .into_iter()
            .flatten()
        {
            *sum.entry(name.clone()).or_default() += thousandths(quantity);
        }
    }
    sum
}

fn allocatable(node: &Value, name: &str) -> i128 {
    thousandths(&node["status"]["allocatable"][name])
}

fn labels_match(selector: &Value, labels: &Value) -> bool {
    if selector.is_null() {
        return false;
    }
    let exact = selector["matchLabels"].as_object();
    let expressions = selector["matchExpressions"].as_array();
    exact
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value))
        && expressions.into_iter().flatten().all(|expression| {
            let value = expression["key"].as_str().and_then(|key| labels.get(key));
            let listed = || {
                expression["values"]
                    .as_array()
                    .is_some_and(|values| value.is_some_and(|v| values.contains(v)))
            };
            match expression["operator"].as_str() {
                Some("In") => listed(),
                Some("NotIn") => !listed(),
                Some("Exists") => value.is_some(),
                _ => value.is_none(),
            }
        })
}

fn tolerated(pod: &Value, taint: &Value) -> bool {
    pod["spec"]["tolerations"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|toleration| {
            let effect = toleration["effect"].is_null() || toleration["effect"] == taint["effect"];
            let key = toleration["key"] == taint["key"];
            let value = toleration["operator"] == "Exists" || toleration["value"] == taint["value"];
            effect && key && value
        })
}

fn node_admits(node: &Value, pod: &Value) -> bool {
    let labels = &node["metadata"]["labels"];
    let selected = pod["spec"]["nodeSelector"].as_object();
    let taints = node["spec"]["taints"].as_array();
    node["spec"]["unschedulable"] != true
        && selected
            .into_iter()
            .flatten()
            .all(|(key, value)| labels.get(key) == Some(value))
        && taints
            .into_iter()
            .flatten()
            .all(|taint| taint["effect"] == "PreferNoSchedule" || tolerated(pod, taint))
}

fn ports(pod: &Value) -> BTreeSet<i64> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports =
        containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    ports.filter_map(|port| port["hostPort"].as_i64()).collect()
}

/// Terms of a kind of affinity that are required.
fn terms<'p>(pod: &'p Value, kind: &str) -> impl Iterator<Item = &'p Value> {
    let required =
        pod["spec"]["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"].as_array();
    required.into_iter().flatten()
}

fn speaks_of(term: &Value, owner: &Value, other: &Value) -> bool {
    owner["metadata"]["namespace"] == other["metadata"]["namespace"]
        && labels_match(&term["labelSelector"], &other["metadata"]["labels"])
}

/// All pods that have a node: the object and the node's name.
pub struct State<'s> {
    pub nodes: &'s [Value],
    pub placed: Vec<(&'s Value, String)>,
    /// Pods that were there before the plan.
    pub earlier: BTreeSet<String>,
}

impl State<'_> {
    fn node(&self, name: &str) -> &Value {
        let found = self
            .nodes
            .iter()
            .find(|node| node["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("there is no node {name}"))
    }

    fn domain(&self, node: &str, key: &Value) -> Option<&Value> {
        self.node(node)["metadata"]["labels"].get(key.as_str().unwrap_or_default())
    }

    /// Everything that is wrong, in words; empty if the state is right.
    pub fn complaints(&self) -> Vec<String> {
        let mut all = Vec::new();
        for node in self.nodes {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let here: Vec<&Value> = self
                .placed
                .iter()
                .filter(|(_, at)| at == name)
                .map(|(pod, _)| *pod)
                .collect();
            let mut used: BTreeMap<String, i128> = BTreeMap::new();
            let mut held = BTreeSet::new();
            for pod in &here {
                for (resource, amount) in requests(pod) {
                    *used.entry(resource).or_default() += amount;
                }
                if !node_admits(node, pod) {
                    all.push(format!("{name} does not admit {}", pod["metadata"]["name"]));
                }
                for port in ports(pod) {
                    if !held.insert(port) {
                        all.push(format!("port {port} twice on {name}"));
                    }
                }
            }
            for (resource, amount) in used {
                if amount > 0 && amount > allocatable(node, &resource) {
                    all.push(format!("{name} holds {amount} of {resource}"));
                }
            }
        }
        for (pod, node) in &self.placed {
            self.complain_of_others(pod, node, &mut all);
            self.complain_of_spread(pod, &mut all);
        }
        all
    }

    fn complain_of_others(&self, pod: &Value, node: &str, all: &mut Vec<String>) {
        let others = || {
            self.placed
                .iter()
                .filter(|(other, _)| other["metadata"]["uid"] != pod["metadata"]["uid"])
        };
        for term in terms(pod, "podAntiAffinity") {
            let own = self.domain(node, &term["topologyKey"]);
            for (other, at) in others() {
                let together = own.is_some() && self.domain(at, &term["topologyKey"]) == own;
                if together && speaks_of(term, pod, other) {
                    all.push(format!(
                        "{} is with {}",
                        pod["metadata"]["name"], other["metadata"]["name"]
                    ));
                }
            }
        }
        for term in terms(pod, "podAffinity") {
            let own = self.domain(node, &term["topologyKey"]);
            let matching: Vec<_> = others()
                .filter(|(other, _)| speaks_of(term, pod, other))
                .collect();
            let near = matching
                .iter()
                .any(|(_, at)| own.is_some() && self.domain(at, &term["topologyKey"]) == own);
            // The first of a series may be alone: those that came in the same plan may have come after it.
            let is_earlier = |pod: &Value| {
                self.earlier
                    .contains(pod["metadata"]["uid"].as_str().unwrap_or_default())
            };
            let preceded = !is_earlier(pod) && matching.iter().any(|(other, _)| is_earlier(other));
            let first = !preceded && speaks_of(term, pod, pod) && own.is_some();
            if !near && !first {
                all.push(format!(
                    "{} is without those it wants to be near",
                    pod["metadata"]["name"]
                ));
            }
        }
    }

    fn complain_of_spread(&self, pod: &Value, all: &mut Vec<String>) {
        for constraint in pod["spec"]["topologySpreadConstraints"]
            .as_array()
            .into_iter()
            .flatten()
        {
            if constraint["whenUnsatisfiable"] != "DoNotSchedule" {
                continue;
            }
            let key = constraint["topologyKey"].as_str().unwrap_or_default();
            let mut counts: BTreeMap<String, i64> = BTreeMap::new();
            for node in self.nodes {
                let selected = pod["spec"]["nodeSelector"].as_object();
                let labels = &node["metadata"]["labels"];
                if let Some(domain) = labels[key].as_str()
                    && selected
                        .into_iter()
                        .flatten()
                        .all(|(key, value)| labels.get(key) == Some(value))
                {
                    counts.entry(domain.into()).or_default();
                }
            }
            for (other, node) in &self.placed {
                let counted = other["metadata"]["namespace"] == pod["metadata"]["namespace"]
                    && labels_match(&constraint["labelSelector"], &other["metadata"]["labels"]);
                let domain = self.node(node)["metadata"]["labels"][key].as_str();
                if let Some(count) = domain
                    .filter(|_| counted)
                    .and_then(|domain| counts.get_mut(domain))
                {
                    *count += 1;
                }
            }
            let skew = counts.values().max().unwrap_or(&0) - counts.values().min().unwrap_or(&0);
            if skew > constraint["maxSkew"].as_i64().unwrap_or(0) {
                all.push(format!(
                    "{} is in a spread of {counts:?}",
                    pod["metadata"]["name"]
                ));
            }
        }
    }

    /// Would a pod fit on some node by resources, if the pods of lower priority among `removable` were not there?
    pub fn would_fit_instead(&self, pod: &Value, removable: &BTreeSet<String>) -> Option<String> {
        let priority = |pod: &Value| pod["spec"]["priority"].as_i64().unwrap_or(0);
        for node in self.nodes.iter().filter(|node| node_admits(node, pod)) {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let mut used: BTreeMap<String, i128> = BTreeMap::new();
            for (other, _) in self.placed.iter().filter(|(_, at)| at == name) {
                let uid = other["metadata"]["uid"].as_str().unwrap_or_default();
                if !(removable.contains(uid) && priority(other) < priority(pod)) {
                    for (resource, amount) in requests(other) {
                        *used.entry(resource).or_default() += amount;
                    }
                }
            }
            let fits = requests(pod).into_iter().all(|(resource, amount)| {
                amount == 0
                    || used.get(&resource).unwrap_or(&0) + amount <= allocatable(node, &resource)
            });
            if fits {
                return Some(name.into());
            }
        }
        None
    }
}
