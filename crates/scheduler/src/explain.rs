//! Why this node and not the others: a plan's decision about one pod, in words.

use std::collections::BTreeMap;

use crate::cycle::{PendingPod, plan};
use crate::diagnosis::Verdict;
use crate::{Decision, Plan, Policy, Snapshot, collect_availability};

/// Alternatives that are named one by one.
const NAMED_MAX: usize = 5;

/// The answer; `to_string` gives it as lines of text.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    pub pod: String,
    /// What is done: the node, the victims, or the reason to wait.
    pub decision: String,
    /// Nodes that would have done, best first, with their scores.
    pub alternatives: Vec<(String, i64)>,
    /// Nodes that would not, by reason.
    pub rejected: Vec<(String, usize)>,
    pub node_count: usize,
    /// Pods that are planned along with it.
    pub batch_count: usize,
    pub value: i64,
    pub upper_bound: i64,
    pub gap: f64,
}

/// Plans all pending pods and explains the decision about one of them; `None` if it is not among them. The snapshot is as it was afterwards.
pub fn explain(
    snapshot: &mut Snapshot,
    pending: &[PendingPod],
    uid: &str,
    policy: &Policy,
) -> Option<Explanation> {
    let made = plan(snapshot, pending, policy);
    explain_plan(snapshot, &made, uid, policy)
}

fn explain_plan(
    snapshot: &mut Snapshot,
    made: &Plan,
    uid: &str,
    policy: &Policy,
) -> Option<Explanation> {
    let (pod, decision) = made.decisions.iter().find(|(pod, _)| *pod.uid == *uid)?;
    let verdicts = collect_availability(snapshot, &pod.class, policy);
    let mut alternatives: Vec<(String, i64)> = Vec::new();
    let mut rejected: BTreeMap<String, usize> = BTreeMap::new();
    for (name, verdict) in &verdicts {
        match verdict {
            Verdict::Feasible { score } => alternatives.push((name.to_string(), *score)),
            Verdict::Rejected(rejection) => {
                let reason = rejection.reasons(&snapshot.space).join(", ");
                *rejected.entry(reason).or_default() += 1;
            }
        }
    }
    alternatives.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let decision = match decision {
        Decision::Place { node, .. } => format!("goes to node {node}"),
        Decision::Preempt { node, victims, .. } => {
            let names: Vec<String> = victims
                .iter()
                .map(|victim| {
                    format!(
                        "{}/{} (priority {})",
                        victim.namespace, victim.name, victim.priority
                    )
                })
                .collect();
            format!(
                "goes to node {node} when these have left it: {}",
                names.join(", ")
            )
        }
        Decision::Wait { why } => format!("waits: {}", why.message(&snapshot.space)),
    };
    Some(Explanation {
        pod: format!("{}/{}", pod.namespace, pod.name),
        decision,
        alternatives,
        rejected: rejected.into_iter().collect(),
        node_count: verdicts.len(),
        batch_count: made.decisions.len(),
        value: made.value,
        upper_bound: made.upper_bound,
        gap: made.gap(),
    })
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "pod {} {}", self.pod, self.decision)?;
        writeln!(
            f,
            "{} of {} nodes would do by themselves:",
            self.alternatives.len(),
            self.node_count
        )?;
        for (name, score) in self.alternatives.iter().take(NAMED_MAX) {
            writeln!(f, "  {name}: score {score}")?;
        }
        if self.alternatives.len() > NAMED_MAX {
            writeln!(f, "  and {} more", self.alternatives.len() - NAMED_MAX)?;
        }
        for (reason, count) in &self.rejected {
            writeln!(f, "  not {count}: {reason}")?;
        }
        writeln!(
            f,
            "planned together with {} other pod(s): value {}, proven bound {}, gap {:.4}%",
            self.batch_count.saturating_sub(1),
            self.value,
            self.upper_bound,
            self.gap * 100.0
        )
    }
}
