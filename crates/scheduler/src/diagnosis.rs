//! Why a pod waits or where it goes, in words: the message of its PodScheduled condition and FailedScheduling event.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::class::PodClass;
use crate::filter::Rejection;
use crate::resources::ResourceSpace;
use crate::snapshot::Snapshot;

/// What a node is to a class of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It would do; of two such nodes the one with the higher score is preferred.
    Feasible {
        score: i64,
    },
    Rejected(Rejection),
}

/// The verdict on every node, for one class of pods at one moment of a plan.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    pub verdicts: Vec<(Arc<str>, Verdict)>,
    /// What is said of preemption; empty where nothing true can be said.
    pub preemption: String,
}

impl Diagnosis {
    /// `0/5 nodes are available: 3 Insufficient cpu, 2 node(s) had untolerated taint(s). preemption: …`
    pub fn message(&self, space: &ResourceSpace) -> String {
        if self.verdicts.is_empty() {
            return "no nodes available to schedule pods".into();
        }
        let mut histogram: BTreeMap<String, usize> = BTreeMap::new();
        let mut by_rejection: BTreeMap<usize, (&Rejection, usize)> = BTreeMap::new();
        let mut index_of: std::collections::HashMap<&Rejection, usize> =
            std::collections::HashMap::new();
        for (_, verdict) in &self.verdicts {
            if let Verdict::Rejected(rejection) = verdict {
                let next = index_of.len();
                let index = *index_of.entry(rejection).or_insert(next);
                by_rejection.entry(index).or_insert((rejection, 0)).1 += 1;
            }
        }
        for (rejection, count) in by_rejection.values() {
            for reason in rejection.reasons(space) {
                *histogram.entry(reason).or_insert(0) += count;
            }
        }
        // Upstream sorts the finished phrases as text.
        let mut phrases: Vec<String> = histogram
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        phrases.sort();
        let mut message = format!("0/{} nodes are available:", self.verdicts.len());
        if !phrases.is_empty() {
            message.push_str(&format!(" {}.", phrases.join(", ")));
        }
        if !self.preemption.is_empty() {
            message.push_str(&format!(" preemption: {}", self.preemption));
        }
        message
    }
}

/// What can truly be said of preemption, which this scheduler does not do yet: that no node has victims, or nothing.
pub(crate) fn preemption_message(
    snapshot: &Snapshot,
    class: &PodClass,
    verdicts: &[(Arc<str>, Verdict)],
) -> String {
    if verdicts.is_empty() {
        return String::new();
    }
    if class.never_preempts {
        return "not eligible due to preemptionPolicy=Never.".into();
    }
    let (mut no_victims, mut no_help) = (0usize, 0usize);
    for (name, verdict) in verdicts {
        match verdict {
            Verdict::Rejected(rejection) if rejection.is_resolvable() => {
                let victims = snapshot.node(name).is_some_and(|node| {
                    node.pods
                        .values()
                        .any(|pod| pod.class.priority < class.priority)
                });
                if victims {
                    return String::new();
                }
                no_victims += 1;
            }
            _ => no_help += 1,
        }
    }
    let mut phrases = Vec::new();
    if no_victims > 0 {
        phrases.push(format!(
            "{no_victims} No preemption victims found for incoming pod"
        ));
    }
    if no_help > 0 {
        phrases.push(format!(
            "{no_help} Preemption is not helpful for scheduling"
        ));
    }
    phrases.sort();
    format!(
        "0/{} nodes are available: {}.",
        verdicts.len(),
        phrases.join(", ")
    )
}
