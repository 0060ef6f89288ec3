//! Pods that wait for a node: active, backing off, or parked until an event may help them.
//!
//! A parked crowd costs nothing: an event is held against each distinct class once, and only the pods of
//! classes that it may help are woken. No event at all is needed after [`FLUSH_AFTER`], in case one was missed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use scheduler::{GroupKey, PendingPod, PodClass, Policy, Snapshot, Uid};
use tokio::time::Instant;

/// Back-off after the first failed attempt, doubled with each further one up to the second, as kube-scheduler's.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub initial: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(10),
        }
    }
}

impl Backoff {
    fn after(self, attempts: u32) -> Duration {
        let factor = 1u32
            .checked_shl(attempts.saturating_sub(1))
            .unwrap_or(u32::MAX);
        self.initial.saturating_mul(factor).min(self.max)
    }
}

/// A parked pod is tried again after this long without a helpful event, as kube-scheduler's.
const FLUSH_AFTER: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Active(u64),
    /// Due at a time: backing off (woken) or parked (flush).
    Timed {
        due: Instant,
        parked: bool,
    },
}

struct Waiting {
    pending: PendingPod,
    pod: Arc<Pod>,
    attempts: u32,
    /// End of the back-off after the last attempt.
    ready_at: Instant,
    state: State,
}

#[derive(Default)]
pub struct Queue {
    waiting: HashMap<Uid, Waiting>,
    active: BTreeMap<u64, Uid>,
    timed: BTreeSet<(Instant, Uid)>,
    parked: HashMap<usize, (Arc<PodClass>, BTreeSet<Uid>)>,
    /// Members of gangs, in whatever state.
    groups: HashMap<GroupKey, BTreeSet<Uid>>,
    sequence: u64,
    backoff: Backoff,
}

impl Queue {
    pub fn new(backoff: Backoff) -> Self {
        Queue {
            backoff,
            ..Queue::default()
        }
    }

    /// Pods that are active, backing off, and parked.
    pub fn counts(&self) -> (usize, usize, usize) {
        let parked = self.parked.values().map(|(_, uids)| uids.len()).sum();
        (self.active.len(), self.timed.len() - parked, parked)
    }

    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    pub fn active_count(&self) -> usize {
        self.active.len()
    }

    /// All active pods, oldest first, and with a member of a gang all others that wait: they are planned together or not at all.
    pub fn active(&self) -> Vec<PendingPod> {
        let mut pods: Vec<PendingPod> = Vec::with_capacity(self.active.len());
        let mut gangs: BTreeSet<&GroupKey> = BTreeSet::new();
        for uid in self.active.values() {
            let Some(waiting) = self.waiting.get(uid) else {
                continue;
            };
            match &waiting.pending.class.group {
                None => pods.push(waiting.pending.clone()),
                Some(group) => {
                    if gangs.insert(group) {
                        let members = self.groups.get(group).into_iter().flatten();
                        pods.extend(
                            members.filter_map(|uid| Some(self.waiting.get(uid)?.pending.clone())),
                        );
                    }
                }
            }
        }
        pods
    }

    /// When the next back-off or park ends.
    pub fn next_due(&self) -> Option<Instant> {
        self.timed.first().map(|(due, _)| *due)
    }

    /// A pod that is new, or has changed: a change of what it asks for makes it active at once.
    pub fn add(&mut self, pending: PendingPod, pod: Arc<Pod>) {
        let uid = pending.uid.clone();
        if let Some(known) = self.waiting.get_mut(&uid) {
            known.pod = pod;
            if Arc::ptr_eq(&known.pending.class, &pending.class) {
                return;
            }
            self.leave_state(&uid);
            self.leave_group(&uid);
            if let Some(known) = self.waiting.get_mut(&uid) {
                known.pending = pending;
            }
        } else {
            let now = Instant::now();
            self.waiting.insert(
                uid.clone(),
                Waiting {
                    pending,
                    pod,
                    attempts: 0,
                    ready_at: now,
                    state: State::Active(0),
                },
            );
        }
        self.join_group(&uid);
        self.activate(&uid);
    }

    fn join_group(&mut self, uid: &Uid) {
        if let Some(group) = self
            .waiting
            .get(uid)
            .and_then(|waiting| waiting.pending.class.group.clone())
        {
            self.groups.entry(group).or_default().insert(uid.clone());
        }
    }

    fn leave_group(&mut self, uid: &str) {
        let group = self
            .waiting
            .get(uid)
            .and_then(|waiting| waiting.pending.class.group.as_ref());
        if let Some(group) = group
            && let Some(members) = self.groups.get_mut(group)
        {
            members.remove(uid);
            if members.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    /// A pod whose binding failed: it backs off.
    pub fn retry(&mut self, pending: PendingPod, pod: Arc<Pod>) {
        let uid = pending.uid.clone();
        self.remove(&uid);
        let ready_at = Instant::now() + self.backoff.after(1);
        let state = State::Timed {
            due: ready_at,
            parked: false,
        };
        self.waiting.insert(
            uid.clone(),
            Waiting {
                pending,
                pod,
                attempts: 1,
                ready_at,
                state,
            },
        );
        self.timed.insert((ready_at, uid.clone()));
        self.join_group(&uid);
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.waiting.contains_key(uid)
    }

    /// Answers whether the pod was there.
    pub fn remove(&mut self, uid: &str) -> bool {
        self.take(uid).is_some()
    }

    /// Takes a pod out, to be bound.
    pub fn take(&mut self, uid: &str) -> Option<Arc<Pod>> {
        self.leave_state(uid);
        self.leave_group(uid);
        self.waiting.remove(uid).map(|waiting| waiting.pod)
    }

    /// A pod that no node would have: it waits for an event. Answers the pod.
    pub fn park(&mut self, uid: &Uid) -> Option<Arc<Pod>> {
        self.leave_state(uid);
        let waiting = self.waiting.get_mut(uid)?;
        let now = Instant::now();
        waiting.attempts = waiting.attempts.saturating_add(1);
        waiting.ready_at = now + self.backoff.after(waiting.attempts);
        let due = now + FLUSH_AFTER;
        waiting.state = State::Timed { due, parked: true };
        let class = &waiting.pending.class;
        self.parked
            .entry(Arc::as_ptr(class) as usize)
            .or_insert_with(|| (class.clone(), BTreeSet::new()))
            .1
            .insert(uid.clone());
        self.timed.insert((due, uid.clone()));
        Some(waiting.pod.clone())
    }

    /// Moves what is due to the active ones.
    pub fn promote(&mut self, now: Instant) {
        while let Some((due, uid)) = self.timed.first().cloned() {
            if due > now {
                return;
            }
            self.leave_state(&uid);
            self.activate(&uid);
        }
    }

    /// A node changed, or room on it was given back.
    pub fn wake_for_node(&mut self, snapshot: &Snapshot, node: &str, policy: &Policy) {
        // Whose victims have left, all of them, does not wait any longer: the room is kept for nobody else.
        let state = snapshot.node(node);
        let nominated = state.into_iter().flat_map(|state| &state.nominated);
        for (uid, class) in nominated {
            if state.is_none_or(|state| state.has_victims_of(class.priority))
                || !matches!(
                    self.waiting.get(uid).map(|w| w.state),
                    Some(State::Timed { .. })
                )
            {
                continue;
            }
            self.leave_state(uid);
            self.activate(uid);
        }
        self.wake(|class| scheduler::may_fit(snapshot, class, node, policy));
        // Room given back in one place may close no domain any more in another.
        self.wake_entangled();
    }

    /// Something changed that only matters to pods with rules about other pods.
    pub fn wake_entangled(&mut self) {
        self.wake(PodClass::is_entangled);
    }

    /// A pod was placed: pods that want to be near it may go now, and a spread may have moved on.
    pub fn wake_affine(&mut self) {
        self.wake(|class| !class.affinity.is_empty() || !class.spread.is_empty());
    }

    /// Something about volumes changed.
    pub fn wake_claimants(&mut self) {
        self.wake(|class| !class.claims.is_empty());
    }

    /// A group's own object changed, or it has a new member.
    pub fn wake_group(&mut self, group: &GroupKey) {
        self.wake(|class| class.group.as_ref() == Some(group));
    }

    fn wake(&mut self, helps: impl Fn(&PodClass) -> bool) {
        let woken: Vec<Uid> = self
            .parked
            .values()
            .filter(|(class, _)| helps(class))
            .flat_map(|(_, uids)| uids.iter().cloned())
            .collect();
        let now = Instant::now();
        for uid in woken {
            self.leave_state(&uid);
            let Some(waiting) = self.waiting.get_mut(&uid) else {
                continue;
            };
            if waiting.ready_at <= now {
                self.activate(&uid);
            } else {
                waiting.state = State::Timed {
                    due: waiting.ready_at,
                    parked: false,
                };
                self.timed.insert((waiting.ready_at, uid));
            }
        }
    }

    fn activate(&mut self, uid: &str) {
        if let Some((uid, _)) = self.waiting.get_key_value(uid) {
            let uid = uid.clone();
            self.sequence += 1;
            self.active.insert(self.sequence, uid.clone());
            if let Some(waiting) = self.waiting.get_mut(&uid) {
                waiting.state = State::Active(self.sequence);
            }
        }
    }

    fn leave_state(&mut self, uid: &str) {
        let Some((uid, waiting)) = self.waiting.get_key_value(uid) else {
            return;
        };
        match waiting.state {
            State::Active(sequence) => {
                self.active.remove(&sequence);
            }
            State::Timed { due, parked } => {
                self.timed.remove(&(due, uid.clone()));
                let class = Arc::as_ptr(&waiting.pending.class) as usize;
                if parked && let Some((_, uids)) = self.parked.get_mut(&class) {
                    uids.remove(uid);
                    if uids.is_empty() {
                        self.parked.remove(&class);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    fn pod(name: &str, cpu: &str) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "a", "uid": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}),
        )
        .unwrap()
    }

    fn node(cpu: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": cpu, "pods": "9"}}})).unwrap()
    }

    fn names(queue: &Queue) -> Vec<String> {
        queue
            .active()
            .into_iter()
            .map(|pending| pending.name.to_string())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn parked_pods_wake_only_for_what_helps_them() {
        let mut snapshot = Snapshot::new();
        let mut queue = Queue::default();
        for (name, cpu) in [("small", "1"), ("large", "8")] {
            let pod = pod(name, cpu);
            let pending = PendingPod::new(&mut snapshot, &pod).unwrap();
            queue.add(pending, Arc::new(pod));
        }
        assert_eq!(names(&queue), ["small", "large"]);
        for uid in ["small", "large"] {
            queue.park(&uid.into()).unwrap();
        }
        assert!(!queue.has_active());
        snapshot.observe_node(&node("2"));
        // The back-off is not over yet: woken, but not active.
        queue.wake_for_node(&snapshot, "n", &Policy::default());
        assert!(!queue.has_active());
        tokio::time::advance(Duration::from_millis(1001)).await;
        queue.promote(Instant::now());
        assert_eq!(names(&queue), ["small"]);
        // Without any event, everything is tried again in the end.
        tokio::time::advance(FLUSH_AFTER).await;
        queue.promote(Instant::now());
        assert_eq!(names(&queue), ["small", "large"]);
        assert!(queue.remove("small") && !queue.remove("small"));
        assert_eq!(
            queue.take("large").unwrap().metadata.name.as_deref(),
            Some("large")
        );
        assert!(queue.timed.is_empty() && queue.parked.is_empty() && queue.active.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_pod_is_tried_at_once_and_an_unchanged_one_is_not() {
        let mut snapshot = Snapshot::new();
        let mut queue = Queue::default();
        let add = |queue: &mut Queue, snapshot: &mut Snapshot, cpu: &str| {
            let pod = pod("p", cpu);
            let pending = PendingPod::new(snapshot, &pod).unwrap();
            queue.add(pending, Arc::new(pod));
        };
        add(&mut queue, &mut snapshot, "1");
        queue.park(&"p".into()).unwrap();
        add(&mut queue, &mut snapshot, "1");
        assert!(!queue.has_active());
        add(&mut queue, &mut snapshot, "2");
        assert!(queue.has_active());
    }

    #[tokio::test(start_paused = true)]
    async fn a_gang_is_planned_together_whatever_state_its_members_are_in() {
        let mut snapshot = Snapshot::new();
        let mut queue = Queue::default();
        let add = |queue: &mut Queue, snapshot: &mut Snapshot, name: &str| {
            let mut pod = pod(name, "1");
            pod.spec.get_or_insert_default().scheduling_group =
                serde_json::from_value(json!({"podGroupName": "g"})).unwrap();
            let pending = PendingPod::new(snapshot, &pod).unwrap();
            queue.add(pending, Arc::new(pod));
        };
        add(&mut queue, &mut snapshot, "first");
        queue.park(&"first".into()).unwrap();
        assert!(queue.active().is_empty());
        add(&mut queue, &mut snapshot, "second");
        assert_eq!(names(&queue), ["first", "second"]);
        // Taken from wherever they are, they leave nothing behind.
        for uid in ["first", "second"] {
            queue.take(uid).unwrap();
        }
        assert!(queue.groups.is_empty() && queue.parked.is_empty() && queue.timed.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whose_victims_have_all_left_goes_without_back_off() {
        let mut snapshot = Snapshot::new();
        snapshot.observe_node(&node("2"));
        for name in ["first", "second"] {
            let mut victim = pod(name, "1");
            victim.spec.as_mut().unwrap().node_name = Some("n".into());
            snapshot.observe_pod(&victim);
            snapshot.doom(name);
        }
        let mut queue = Queue::default();
        let mut pod = pod("p", "2");
        pod.spec.as_mut().unwrap().priority = Some(1);
        let pending = PendingPod::new(&mut snapshot, &pod).unwrap();
        queue.add(pending.clone(), Arc::new(pod));
        queue.park(&"p".into()).unwrap();
        snapshot.nominate(&pending.uid, &pending.class, "n");
        snapshot.forget_pod("first");
        queue.wake_for_node(&snapshot, "n", &Policy::default());
        assert!(!queue.has_active(), "one of its victims is still there");
        snapshot.forget_pod("second");
        queue.wake_for_node(&snapshot, "n", &Policy::default());
        assert_eq!(names(&queue), ["p"]);
    }
}
