//! Which topology domain each node is in, for every label key that some rule speaks of.
//!
//! Kept as nodes come and go, so that a rule costs work by domain and not by node. A domain's number is
//! used again when its last node has left; whoever holds counts by number starts afresh then
//! ([`crate::snapshot::Snapshot::shape_epoch`]).

use std::collections::HashMap;

use crate::selector::Labels;
use crate::snapshot::NodeIndex;

pub(crate) type KeyIndex = usize;
pub(crate) type Domain = u32;
/// The node has no such label.
pub(crate) const NO_DOMAIN: Domain = Domain::MAX;
/// Domains with more nodes than this are handled as a whole, others node by node.
const FINE_MAX: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct TopologyKey {
    pub name: String,
    by_value: HashMap<String, Domain>,
    free: Vec<Domain>,
    /// By node index.
    of_node: Vec<Domain>,
    /// Nodes of each domain.
    pub members: Vec<Vec<NodeIndex>>,
}

impl TopologyKey {
    pub fn domain(&self, node: NodeIndex) -> Domain {
        self.of_node.get(node).copied().unwrap_or(NO_DOMAIN)
    }

    /// One past the highest domain number.
    pub fn domain_count(&self) -> usize {
        self.members.len()
    }

    /// Are all domains small, so that a change of one touches few nodes?
    pub fn is_fine(&self) -> bool {
        self.members.iter().all(|nodes| nodes.len() <= FINE_MAX)
    }

    fn enter(&mut self, node: NodeIndex, labels: &Labels) {
        let Some(value) = labels.get(&self.name) else {
            return;
        };
        let domain = match self.by_value.get(value) {
            Some(domain) => *domain,
            None => {
                let domain = self.free.pop().unwrap_or_else(|| {
                    self.members.push(Vec::new());
                    (self.members.len() - 1) as Domain
                });
                self.by_value.insert(value.clone(), domain);
                domain
            }
        };
        self.members[domain as usize].push(node);
        if self.of_node.len() <= node {
            self.of_node.resize(node + 1, NO_DOMAIN);
        }
        self.of_node[node] = domain;
    }

    fn leave(&mut self, node: NodeIndex, labels: &Labels) {
        let domain = self.domain(node);
        if domain == NO_DOMAIN {
            return;
        }
        self.of_node[node] = NO_DOMAIN;
        let members = &mut self.members[domain as usize];
        if let Some(position) = members.iter().position(|member| *member == node) {
            members.swap_remove(position);
        }
        if members.is_empty() {
            if let Some(value) = labels.get(&self.name) {
                self.by_value.remove(value);
            }
            self.free.push(domain);
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Domains {
    keys: Vec<TopologyKey>,
    by_name: HashMap<String, KeyIndex>,
}

impl Domains {
    pub fn key(&self, index: KeyIndex) -> &TopologyKey {
        &self.keys[index]
    }

    /// The number of a key, which is indexed from now on. `nodes` are all that exist.
    pub fn intern<'n>(
        &mut self,
        name: &str,
        nodes: impl Iterator<Item = (NodeIndex, &'n Labels)>,
    ) -> KeyIndex {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let mut key = TopologyKey {
            name: name.into(),
            ..TopologyKey::default()
        };
        for (node, labels) in nodes {
            key.enter(node, labels);
        }
        self.keys.push(key);
        self.by_name.insert(name.into(), self.keys.len() - 1);
        self.keys.len() - 1
    }

    pub fn enter(&mut self, node: NodeIndex, labels: &Labels) {
        self.keys.iter_mut().for_each(|key| key.enter(node, labels));
    }

    pub fn leave(&mut self, node: NodeIndex, labels: &Labels) {
        self.keys.iter_mut().for_each(|key| key.leave(node, labels));
    }
}
