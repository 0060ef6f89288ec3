//! One scheduling cycle in five steps: collect demand, collect availability, match, reserve, start.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::class::{GroupApi, GroupKey, PodClass};
use crate::diagnosis::Verdict;
use crate::filter::{has_room, static_rejection};
use crate::snapshot::{Snapshot, Uid, address};
use crate::tier::{Run, match_tier};
use crate::{Decision, Plan, Policy};

/// A pod that has no node yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingPod {
    pub uid: Uid,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub class: Arc<PodClass>,
}

impl PendingPod {
    /// `None` for a pod without a UID, which no API server hands out.
    pub fn new(snapshot: &mut Snapshot, pod: &Pod) -> Option<Self> {
        Some(PendingPod {
            uid: pod.metadata.uid.as_deref()?.into(),
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default().into(),
            name: pod.metadata.name.as_deref().unwrap_or_default().into(),
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
#[derive(Clone, Debug, Default)]
pub struct Tier {
    pub priority: i32,
    pub gangs: Vec<Gang>,
    pub classes: Vec<(Arc<PodClass>, Vec<PendingPod>)>,
}

/// Pods that are placed all (as many as the group asks for) or not at all.
#[derive(Clone, Debug)]
pub struct Gang {
    pub key: GroupKey,
    /// Members that need a node at the same time, those that have one included; `None`: the group is not known yet.
    pub min_count: Option<usize>,
    pub topology_key: Option<String>,
    pub pods: Vec<PendingPod>,
}

/// Plans all pending pods (oldest first). The snapshot is the same afterwards as before; [`reserve`] puts the plan into it.
pub fn plan(snapshot: &mut Snapshot, pending: &[PendingPod], policy: &Policy) -> Plan {
    let demand = collect_demand(snapshot, pending);
    let plan = match_pods(snapshot, &demand, policy);
    release(snapshot);
    plan
}

/// Step 1: what is asked for, by priority and by class. Pods that are placed already ask for nothing.
pub fn collect_demand(snapshot: &Snapshot, pending: &[PendingPod]) -> Demand {
    let mut tiers: BTreeMap<std::cmp::Reverse<i32>, Tier> = BTreeMap::new();
    let mut position: HashMap<usize, usize> = HashMap::new();
    let mut gangs: HashMap<&GroupKey, Gang> = HashMap::new();
    let mut gang_order: Vec<&GroupKey> = Vec::new();
    let waiting = pending
        .iter()
        .filter(|pod| snapshot.placed_on(&pod.uid).is_none());
    for pod in waiting {
        if let Some(key) = &pod.class.group
            && let Some(gang) = gang_of(snapshot, key)
        {
            let gang = gangs.entry(key).or_insert_with(|| {
                gang_order.push(key);
                gang
            });
            gang.pods.push(pod.clone());
            continue;
        }
        let priority = pod.class.priority;
        let tier = tier_of(&mut tiers, priority);
        let index = *position.entry(address(&pod.class)).or_insert_with(|| {
            tier.classes.push((pod.class.clone(), Vec::new()));
            tier.classes.len() - 1
        });
        tier.classes[index].1.push(pod.clone());
    }
    for key in gang_order {
        let Some(gang) = gangs.remove(key) else {
            continue;
        };
        // A group without a priority of its own takes no room from anybody more important than its least important pod.
        let own = snapshot.groups.spec(key).and_then(|spec| spec.priority);
        let lowest = gang.pods.iter().map(|pod| pod.class.priority).min();
        let priority = own.or(lowest).unwrap_or(0);
        tier_of(&mut tiers, priority).gangs.push(gang);
    }
    Demand {
        tiers: tiers.into_values().collect(),
    }
}

fn tier_of(tiers: &mut BTreeMap<std::cmp::Reverse<i32>, Tier>, priority: i32) -> &mut Tier {
    tiers
        .entry(std::cmp::Reverse(priority))
        .or_insert_with(|| Tier {
            priority,
            ..Tier::default()
        })
}

/// The gang that a group makes; `None` if its pods do not depend on each other.
fn gang_of(snapshot: &Snapshot, key: &GroupKey) -> Option<Gang> {
    let gang = |min_count, topology_key| Gang {
        key: key.clone(),
        min_count,
        topology_key,
        pods: Vec::new(),
    };
    match (snapshot.groups.spec(key), key.api) {
        (Some(spec), _) => {
            let min_count = spec
                .min_count
                .or(spec.topology_key.is_some().then_some(1))?;
            Some(gang(Some(min_count), spec.topology_key.clone()))
        }
        // Kubernetes' own API promises that the object comes; a label alone promises nothing.
        (None, GroupApi::Kubernetes) => Some(gang(None, None)),
        (None, GroupApi::Label) => None,
    }
}

/// Step 2: the verdict on every node for one more pod of the class, as things stand.
///
/// [`match_pods`] asks the same of an index that is kept up to date ([`crate::view`]); this is the whole
/// answer, for whoever wants to know why.
pub fn collect_availability(
    snapshot: &mut Snapshot,
    class: &Arc<PodClass>,
    policy: &Policy,
) -> Vec<(Arc<str>, Verdict)> {
    let view = snapshot.view(class, &policy.profile(&class.scheduler_name));
    let scores: HashMap<usize, i64> = view
        .ranking(snapshot)
        .into_iter()
        .map(|(score, node)| (node, score))
        .collect();
    let verdicts = snapshot
        .nodes()
        .filter_map(|(index, node)| {
            let verdict = match scores.get(&index) {
                Some(score) => Verdict::Feasible { score: *score },
                None => Verdict::Rejected(view.rejection(snapshot, index)?),
            };
            Some((node.name.clone(), verdict))
        })
        .collect();
    snapshot.keep_view(view);
    verdicts
}

/// Step 3: pods to nodes. What the plan decides stays assumed in the snapshot until [`reserve`] makes it last or [`release`] takes it back.
///
/// Tier by tier, so that a lower priority only gets what a higher one leaves.
pub fn match_pods(snapshot: &mut Snapshot, demand: &Demand, policy: &Policy) -> Plan {
    snapshot.begin();
    let mut run = Run::new(policy);
    for tier in &demand.tiers {
        match_tier(snapshot, tier, &mut run);
    }
    run.plan
}

/// Step 4: takes the plan's room in the snapshot, so that the next cycle sees it as gone before the API server has confirmed it.
pub fn reserve(snapshot: &mut Snapshot, plan: &Plan) {
    snapshot.commit();
    for (pod, decision) in &plan.decisions {
        match decision {
            Decision::Place { node, volumes } => {
                if snapshot.assume(pod, node) {
                    snapshot.storage_assume(&pod.uid, node, volumes);
                }
            }
            Decision::Preempt { node, victims, .. } => {
                for victim in victims {
                    snapshot.doom(&victim.uid);
                }
                if snapshot.nominated_to(&pod.uid) != Some(node) {
                    snapshot.nominate(&pod.uid, &pod.class, node);
                }
            }
            Decision::Wait { .. } => {}
        }
    }
}

/// Takes a plan back that was matched and not reserved.
pub fn release(snapshot: &mut Snapshot) {
    snapshot.undo_to(0);
    snapshot.commit();
}

/// Step 5: the plan as Bindings, one a placed pod, each bound to the pod's UID so that a namesake is never bound in its stead.
pub fn start(plan: &Plan) -> Vec<(PendingPod, Binding)> {
    let binding = |pod: &PendingPod, node: &str| Binding {
        metadata: ObjectMeta {
            name: Some(pod.name.to_string()),
            namespace: Some(pod.namespace.to_string()),
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
pub fn may_fit(snapshot: &Snapshot, class: &PodClass, node: &str, policy: &Policy) -> bool {
    let profile = policy.profile(&class.scheduler_name);
    snapshot.node(node).is_some_and(|node| {
        static_rejection(class, node, &profile).is_none()
            && (class.is_entangled() || has_room(class, node, &profile, &snapshot.space))
    })
}
