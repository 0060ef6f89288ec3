//! One scheduling cycle in five steps: collect demand, collect availability, match, reserve, start.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::class::PodClass;
use crate::diagnosis::{Diagnosis, Verdict, preemption_message};
use crate::filter::{room_rejection, static_rejection};
use crate::resources::{PODS, ResourceIndex};
use crate::snapshot::{NodeIndex, Snapshot, Uid};
use crate::topology::Topology;
use crate::{Decision, Placement, Plan, Policy, score};

/// A pod that has no node yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingPod {
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    pub class: Arc<PodClass>,
}

impl PendingPod {
    /// `None` for a pod without a UID, which no API server hands out.
    pub fn new(snapshot: &mut Snapshot, pod: &Pod) -> Option<Self> {
        Some(PendingPod {
            uid: pod.metadata.uid.as_deref()?.into(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            class: snapshot.classify(pod),
        })
    }
}

/// Pending pods in the order in which they have a claim.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// Highest priority first.
    pub tiers: Vec<Tier>,
}

/// Pods of one priority, identical ones together; classes in the order of their first pod, pods in the order given.
#[derive(Clone, Debug)]
pub struct Tier {
    pub priority: i32,
    pub classes: Vec<(Arc<PodClass>, Vec<PendingPod>)>,
}

/// Plans all pending pods (oldest first). The snapshot is the same afterwards as before; [`reserve`] puts the plan into it.
pub fn plan(snapshot: &mut Snapshot, pending: &[PendingPod], policy: &Policy) -> Plan {
    let demand = collect_demand(pending);
    let plan = match_pods(snapshot, &demand, policy);
    for (pod, _) in plan.placements() {
        snapshot.unassume(&pod.uid);
    }
    plan
}

/// Step 1: what is asked for, by priority and by class. Pods that are placed already ask for nothing.
pub fn collect_demand(pending: &[PendingPod]) -> Demand {
    let mut tiers: BTreeMap<std::cmp::Reverse<i32>, Tier> = BTreeMap::new();
    let mut position: std::collections::HashMap<*const PodClass, usize> =
        std::collections::HashMap::new();
    for pod in pending {
        let priority = pod.class.priority;
        let tier = tiers
            .entry(std::cmp::Reverse(priority))
            .or_insert_with(|| Tier {
                priority,
                classes: Vec::new(),
            });
        let index = *position.entry(Arc::as_ptr(&pod.class)).or_insert_with(|| {
            tier.classes.push((pod.class.clone(), Vec::new()));
            tier.classes.len() - 1
        });
        tier.classes[index].1.push(pod.clone());
    }
    Demand {
        tiers: tiers.into_values().collect(),
    }
}

/// Step 2: the verdict on every node for one more pod of the class, as things stand.
pub fn collect_availability(
    snapshot: &Snapshot,
    class: &PodClass,
    placement: Placement,
) -> Vec<(Arc<str>, Verdict)> {
    let topology = Topology::concerns(snapshot, class).then(|| Topology::survey(snapshot, class));
    availability(snapshot, class, topology.as_ref(), placement).named(snapshot)
}

/// The verdict on every node, by index; the two lists are parallel.
struct Availability {
    nodes: Vec<NodeIndex>,
    verdicts: Vec<Verdict>,
}

impl Availability {
    fn named(self, snapshot: &Snapshot) -> Vec<(Arc<str>, Verdict)> {
        self.nodes
            .iter()
            .map(|index| snapshot.nodes[*index].name.clone())
            .zip(self.verdicts)
            .collect()
    }

    /// The feasible node with the highest score; of equals the first by name.
    fn best(&self, snapshot: &Snapshot) -> Option<NodeIndex> {
        let scored = self
            .nodes
            .iter()
            .zip(&self.verdicts)
            .filter_map(|(index, verdict)| match verdict {
                Verdict::Feasible { score } => Some((*score, *index)),
                Verdict::Rejected(_) => None,
            });
        scored
            .max_by(|a, b| {
                a.0.cmp(&b.0)
                    .then_with(|| snapshot.nodes[b.1].name.cmp(&snapshot.nodes[a.1].name))
            })
            .map(|(_, index)| index)
    }
}

fn availability(
    snapshot: &Snapshot,
    class: &PodClass,
    topology: Option<&Topology>,
    placement: Placement,
) -> Availability {
    let mut nodes = Vec::with_capacity(snapshot.node_count());
    let mut verdicts = Vec::with_capacity(snapshot.node_count());
    let mut feasible = Vec::new();
    for (index, node) in snapshot.nodes() {
        let rejection = static_rejection(class, node)
            .or_else(|| room_rejection(class, node))
            .or_else(|| topology.and_then(|topology| topology.rejection(snapshot, class, node)));
        nodes.push(index);
        verdicts.push(match rejection {
            Some(rejection) => Verdict::Rejected(rejection),
            None => {
                feasible.push(index);
                Verdict::Feasible { score: 0 }
            }
        });
    }
    let mut scores = score::scores(snapshot, class, topology, placement, &feasible).into_iter();
    for verdict in &mut verdicts {
        if let Verdict::Feasible { score } = verdict {
            *score = scores.next().unwrap_or(0);
        }
    }
    Availability { nodes, verdicts }
}

/// Step 3: pods to nodes. The placements stay assumed in the snapshot; [`plan`] takes them back.
///
/// Tier by tier, so that a lower priority only gets what a higher one leaves. Within a tier, pods whose
/// rules speak of other pods go one by one, each seeing those before it; all others are matched together
/// by the solver.
pub fn match_pods(snapshot: &mut Snapshot, demand: &Demand, policy: &Policy) -> Plan {
    let mut plan = Plan::default();
    for tier in &demand.tiers {
        match_tier(snapshot, tier, policy, &mut plan);
    }
    plan
}

fn match_tier(snapshot: &mut Snapshot, tier: &Tier, policy: &Policy, plan: &mut Plan) {
    let pod_count: usize = tier.classes.iter().map(|(_, pods)| pods.len()).sum();
    let value_before = plan.value;
    if pod_count == 1 {
        let (class, pods) = &tier.classes[0];
        let bound = match_one_by_one(snapshot, class, pods, policy, plan);
        plan.upper_bound = plan
            .upper_bound
            .saturating_add(bound.max(plan.value - value_before));
        return;
    }
    let (entangled, plain): (Vec<_>, Vec<_>) = tier
        .classes
        .iter()
        .partition(|(class, _)| class.is_entangled());
    let mut bound = None;
    if !entangled.is_empty() {
        let all: Vec<_> = tier.classes.iter().collect();
        let problem = problem_of(snapshot, &all).0;
        bound = Some(knapsack::upper_bound(&problem));
        for (class, pods) in entangled {
            match_one_by_one(snapshot, class, pods, policy, plan);
        }
    }
    let plain_bound = match_together(snapshot, &plain, policy, plan);
    let value = plan.value.saturating_sub(value_before);
    plan.upper_bound = plan
        .upper_bound
        .saturating_add(bound.unwrap_or(plain_bound).max(value));
}

/// Places the pods of one class in turn. Answers the worth of the best node for the first of them.
fn match_one_by_one(
    snapshot: &mut Snapshot,
    class: &Arc<PodClass>,
    pods: &[PendingPod],
    policy: &Policy,
    plan: &mut Plan,
) -> i64 {
    let worth = score::worth(snapshot.totals(), class);
    let mut topology =
        Topology::concerns(snapshot, class).then(|| Topology::survey(snapshot, class));
    let mut bound = None;
    let mut refused: Option<Arc<Diagnosis>> = None;
    for pod in pods {
        // What one pod was refused, the next of its class is refused too: nothing was given back meanwhile.
        if let Some(why) = &refused {
            plan.decisions
                .push((pod.clone(), Decision::Wait { why: why.clone() }));
            continue;
        }
        let availability = availability(snapshot, class, topology.as_ref(), policy.placement);
        bound.get_or_insert_with(|| {
            let feasible = availability
                .nodes
                .iter()
                .zip(&availability.verdicts)
                .filter(|(_, verdict)| matches!(verdict, Verdict::Feasible { .. }));
            feasible
                .map(|(index, _)| worth + score::node_preference(class, &snapshot.nodes[*index]))
                .max()
                .unwrap_or(0)
        });
        let Some(best) = availability.best(snapshot) else {
            let verdicts = availability.named(snapshot);
            let preemption = preemption_message(snapshot, class, &verdicts);
            let why = Arc::new(Diagnosis {
                verdicts,
                preemption,
            });
            plan.decisions
                .push((pod.clone(), Decision::Wait { why: why.clone() }));
            refused = Some(why);
            continue;
        };
        let node = snapshot.nodes[best].name.clone();
        plan.value = plan
            .value
            .saturating_add(worth + score::node_preference(class, &snapshot.nodes[best]));
        let why = Arc::new(Diagnosis {
            verdicts: availability.named(snapshot),
            preemption: String::new(),
        });
        if snapshot.assume(&pod.uid, class, &node) {
            if pods.len() > 1
                && let Some(topology) = &mut topology
            {
                topology.note_placed(snapshot, class, class, best);
            } else if pods.len() > 1 && !class.anti_affinity.is_empty() {
                topology = Some(Topology::survey(snapshot, class));
            }
        }
        plan.decisions
            .push((pod.clone(), Decision::Place { node, why }));
    }
    bound.unwrap_or(0)
}

/// Places the pods of classes that do not mind each other by solving for all of them at once. Answers the proven bound.
fn match_together(
    snapshot: &mut Snapshot,
    classes: &[&(Arc<PodClass>, Vec<PendingPod>)],
    policy: &Policy,
    plan: &mut Plan,
) -> i64 {
    if classes.is_empty() {
        return 0;
    }
    let (problem, nodes) = problem_of(snapshot, classes);
    let secondary = match policy.placement {
        Placement::Pack => knapsack::Secondary::Pack,
        Placement::Spread => knapsack::Secondary::Spread,
    };
    let options = knapsack::Options {
        work_max: policy.work_max,
        seed: policy.seed,
        stop: policy.stop,
        secondary,
    };
    let solution = knapsack::solve(&problem, &options).expect(
        "the problem is built from vectors of one length and from requests that are never negative",
    );
    let whys: Vec<Arc<Diagnosis>> = classes
        .iter()
        .map(|(class, _)| {
            Arc::new(Diagnosis {
                verdicts: collect_availability(snapshot, class, policy.placement),
                preemption: String::new(),
            })
        })
        .collect();
    let mut next: Vec<usize> = vec![0; classes.len()];
    for placed in &solution.placed {
        let (class, pods) = &classes[placed.item as usize];
        let node = snapshot.nodes[nodes[placed.knapsack as usize]].name.clone();
        let from = next[placed.item as usize];
        let to = from + placed.count as usize;
        for pod in &pods[from..to] {
            snapshot.assume(&pod.uid, class, &node);
            plan.decisions.push((
                pod.clone(),
                Decision::Place {
                    node: node.clone(),
                    why: whys[placed.item as usize].clone(),
                },
            ));
        }
        next[placed.item as usize] = to;
    }
    plan.value = plan.value.saturating_add(solution.value);
    for (index, (class, pods)) in classes.iter().enumerate() {
        if next[index] == pods.len() {
            continue;
        }
        let verdicts = collect_availability(snapshot, class, policy.placement);
        let preemption = preemption_message(snapshot, class, &verdicts);
        let why = Arc::new(Diagnosis {
            verdicts,
            preemption,
        });
        for pod in &pods[next[index]..] {
            plan.decisions
                .push((pod.clone(), Decision::Wait { why: why.clone() }));
        }
    }
    solution.upper_bound
}

/// Pods as items and nodes as knapsacks: the one place where the two worlds meet. Only nodes that some class may use take part.
fn problem_of(
    snapshot: &Snapshot,
    classes: &[&(Arc<PodClass>, Vec<PendingPod>)],
) -> (knapsack::Problem, Vec<NodeIndex>) {
    let mut dimensions: Vec<ResourceIndex> = classes
        .iter()
        .flat_map(|(class, _)| class.request.iter().map(|(index, _)| index))
        .collect();
    dimensions.push(PODS);
    dimensions.sort_unstable();
    dimensions.dedup();
    let nodes: Vec<NodeIndex> = snapshot.nodes().map(|(index, _)| index).collect();
    let knapsacks = nodes
        .iter()
        .map(|index| knapsack::Knapsack {
            capacity: dimensions
                .iter()
                .map(|resource| snapshot.nodes[*index].free(*resource))
                .collect(),
        })
        .collect();
    let totals = snapshot.totals();
    let items = classes
        .iter()
        .map(|(class, pods)| {
            let topology =
                Topology::concerns(snapshot, class).then(|| Topology::survey(snapshot, class));
            let worth = score::worth(totals, class);
            let allowed: knapsack::KnapsackSet = nodes
                .iter()
                .enumerate()
                .filter(|(_, index)| {
                    let node = &snapshot.nodes[**index];
                    let closed = || {
                        !class.is_entangled()
                            && topology.as_ref().is_some_and(|topology| {
                                topology.rejection(snapshot, class, node).is_some()
                            })
                    };
                    static_rejection(class, node).is_none()
                        && (!class.demands_reported_bandwidth || node.reports_bandwidth)
                        && !closed()
                })
                .map(|(position, _)| position)
                .collect();
            knapsack::Item {
                weight: knapsack::Weight::Same(
                    dimensions
                        .iter()
                        .map(|resource| class.request.amount(*resource))
                        .collect(),
                ),
                profit: knapsack::Profit::PerKnapsack(
                    nodes
                        .iter()
                        .map(|index| worth + score::node_preference(class, &snapshot.nodes[*index]))
                        .collect(),
                ),
                multiplicity: u32::try_from(pods.len()).unwrap_or(u32::MAX),
                allowed: Some(Arc::new(allowed)),
            }
        })
        .collect();
    (
        knapsack::Problem {
            dimension_count: dimensions.len(),
            knapsacks,
            items,
            conflicts: Vec::new(),
            gangs: Vec::new(),
        },
        nodes,
    )
}

/// Step 4: takes the plan's room in the snapshot, so that the next cycle sees it as gone before the API server has confirmed it.
pub fn reserve(snapshot: &mut Snapshot, plan: &Plan) {
    for (pod, node) in plan.placements() {
        snapshot.assume(&pod.uid, &pod.class, node);
    }
}

/// Step 5: the plan as Bindings, one a placed pod, each bound to the pod's UID so that a namesake is never bound in its stead.
pub fn start(plan: &Plan) -> Vec<(PendingPod, Binding)> {
    let binding = |pod: &PendingPod, node: &str| Binding {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.to_string()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.into()),
            ..ObjectReference::default()
        },
    };
    plan.placements()
        .map(|(pod, node)| (pod.clone(), binding(pod, node)))
        .collect()
}

/// Might one more pod of the class go to this node now, as far as the node by itself tells? Cheap; for waking those who wait.
pub fn may_fit(snapshot: &Snapshot, class: &PodClass, node: &str) -> bool {
    snapshot.node(node).is_some_and(|node| {
        static_rejection(class, node).is_none()
            && (class.is_entangled() || room_rejection(class, node).is_none())
    })
}
