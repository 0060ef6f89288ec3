//! Why a pod waits, in words: the message of its PodScheduled condition and FailedScheduling event.

use std::collections::BTreeMap;

use crate::filter::Rejection;
use crate::resources::ResourceSpace;

/// What a node is to a class of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It would do; of two such nodes the one with the higher score is preferred.
    Feasible {
        score: i64,
    },
    Rejected(Rejection),
}

/// How many nodes were rejected for each reason, in no order that matters.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Vec<(Rejection, usize)>);

impl PartialEq for Refusals {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().all(|entry| other.0.contains(entry))
    }
}

impl Eq for Refusals {}

impl Refusals {
    pub fn add(&mut self, rejection: Rejection) {
        // There are few distinct ones, and the last is often the next.
        match self
            .0
            .iter_mut()
            .rev()
            .find(|(known, _)| *known == rejection)
        {
            Some((_, count)) => *count += 1,
            None => self.0.push((rejection, 1)),
        }
    }

    pub(crate) fn remove(&mut self, rejection: &Rejection) {
        if let Some(at) = self.0.iter().position(|(known, _)| known == rejection) {
            self.0[at].1 -= 1;
            if self.0[at].1 == 0 {
                self.0.remove(at);
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Rejection, usize)> {
        self.0.iter().map(|(rejection, count)| (rejection, *count))
    }
}

/// Why no node would do, for one class of pods at one moment of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    pub node_count: usize,
    /// The pod is refused whatever the node.
    pub refusal: Option<String>,
    pub refusals: Refusals,
    /// What is said of preemption; empty where nothing is to be said.
    pub preemption: String,
}

impl Diagnosis {
    /// A pod that is not even tried, and why.
    pub(crate) fn untried(why: impl Into<String>) -> Self {
        Diagnosis {
            refusal: Some(why.into()),
            ..Diagnosis::default()
        }
    }

    /// `0/5 nodes are available: 3 Insufficient cpu, 2 node(s) had untolerated taint(s). no new claims to deallocate, preemption: …`
    pub fn message(&self, space: &ResourceSpace) -> String {
        if self.node_count == 0 {
            let why = self.refusal.as_deref();
            return why.unwrap_or("no nodes available to schedule pods").into();
        }
        let mut message = format!("0/{} nodes are available:", self.node_count);
        match &self.refusal {
            Some(refusal) => message.push_str(&format!(" {refusal}.")),
            None => {
                let phrases = phrases(&self.refusals, space);
                if !phrases.is_empty() {
                    message.push_str(&format!(" {}.", phrases.join(", ")));
                }
            }
        }
        if !self.preemption.is_empty() {
            // Upstream's plugin for resource claims is asked before preemption, and says this where there are none.
            message.push_str(&format!(
                " no new claims to deallocate, preemption: {}",
                self.preemption
            ));
        }
        message
    }
}

/// `3 Insufficient cpu`, each reason once, sorted as finished phrases like upstream.
fn phrases(refusals: &Refusals, space: &ResourceSpace) -> Vec<String> {
    let mut histogram: BTreeMap<String, usize> = BTreeMap::new();
    for (rejection, count) in refusals.iter() {
        for reason in rejection.reasons(space) {
            *histogram.entry(reason).or_insert(0) += count;
        }
    }
    let mut phrases: Vec<String> = histogram
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    phrases.sort();
    phrases
}

/// What a search for victims came to, node by node, when it found none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fruitless {
    /// Nodes with nobody who could be asked to leave.
    pub no_victims: usize,
    /// Nodes whose rejection has nothing to do with other pods.
    pub not_helpful: usize,
    /// Nodes that would not do even without everybody of lower priority.
    pub still: Refusals,
}

impl Fruitless {
    pub fn message(&self, node_count: usize, space: &ResourceSpace) -> String {
        let mut all = phrases(&self.still, space);
        if self.no_victims > 0 {
            all.push(format!(
                "{} No preemption victims found for incoming pod",
                self.no_victims
            ));
        }
        if self.not_helpful > 0 {
            all.push(format!(
                "{} Preemption is not helpful for scheduling",
                self.not_helpful
            ));
        }
        all.sort();
        format!("0/{node_count} nodes are available: {}.", all.join(", "))
    }
}
