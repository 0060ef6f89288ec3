//! One class's index over all nodes: who is open to it, and which of them is the best.
//!
//! Built once, then brought up to date by what changed ([`View::catch_up`]), so that the next pod of a
//! class costs work in proportion to the changes and not to the nodes. How:
//!
//! - A node's own score moves only when the node does. Scores that are relative to the other candidates
//!   (taints, node affinity, wishes about pods, crowding) are the same for many nodes: nodes of equal
//!   standing form a [`Group`], a heap by own score, and only the tops of the groups are compared.
//! - Topology keys with large domains (zones) divide the nodes into cells; what holds for a domain is
//!   asked once a cell. Keys with small domains (hosts) are a matter of the single node.
//!
//! Invariant: after `catch_up` a node is open here exactly if no rule rejects it ([`View::rejection`]).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use crate::class::PodClass;
use crate::diagnosis::{Diagnosis, Refusals};
use crate::domains::{Domain, KeyIndex};
use crate::filter::{self, Rejection};
use crate::log::Change;
use crate::preemption::{Allowances, Search};
use crate::profile::{Profile, Rule};
use crate::score::{self, FULL, Scorer, normalized};
use crate::snapshot::{NodeIndex, Snapshot, address};
use crate::topology::{self, OUTSIDE, Topology, Touched};
use crate::volumes::{self, Needs};

const NO_GROUP: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The group it is in; [`NO_GROUP`] if it is closed by a rule of its own.
    group: u32,
    /// Of the latest heap entry; older ones are stale.
    version: u32,
    cell: u32,
    own: i64,
    liked: i32,
    unwelcoming: u16,
    /// Rules that depend on the node alone hold.
    admits: bool,
    /// False until they were asked.
    asked: bool,
}

const UNSEEN: Entry = Entry {
    group: NO_GROUP,
    version: 0,
    cell: 0,
    own: 0,
    liked: 0,
    unwelcoming: 0,
    admits: false,
    asked: false,
};

/// What makes nodes equal but for their own score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Standing {
    cell: u32,
    wish: i64,
    crowding: i64,
    unwelcoming: i64,
    liked: i64,
}

#[derive(Debug)]
struct Group {
    standing: Standing,
    /// Own score, node, version.
    heap: BinaryHeap<(i64, Reverse<NodeIndex>, u32)>,
    live_count: usize,
    /// Nobody is in it and nobody will be: its place may be used for another.
    vacant: bool,
}

/// Nodes in the same large domains.
#[derive(Debug)]
struct Cell {
    sample: NodeIndex,
}

#[derive(Debug)]
pub(crate) struct View {
    pub class: Arc<PodClass>,
    pub profile: Arc<Profile>,
    position: u64,
    shape_epoch: u64,
    storage_epoch: u64,
    scorer: Scorer,
    topology: Option<Topology>,
    needs: Option<Needs>,
    /// The pod as a whole is refused.
    refusal: Option<String>,
    /// The only nodes that the class accepts, sorted; entries are parallel to it.
    pinned: Option<Vec<NodeIndex>>,
    entries: Vec<Entry>,
    image_bytes: HashMap<NodeIndex, i64>,
    fine: Vec<KeyIndex>,
    coarse: Vec<KeyIndex>,
    cells: Vec<Cell>,
    cell_of: HashMap<Vec<Domain>, u32>,
    groups: Vec<Group>,
    group_of: HashMap<Standing, u32>,
    vacant_groups: Vec<u32>,
    /// The group that was entered last.
    latest_group: u32,
    known: Option<Known>,
    /// Candidates for preemption, as of a position of the log.
    search: Option<(u64, Search)>,
}

/// The latest diagnosis, and each node's part in it.
#[derive(Debug)]
struct Known {
    position: u64,
    by_node: Vec<Option<Rejection>>,
    diagnosis: Arc<Diagnosis>,
}

impl View {
    fn build(snapshot: &mut Snapshot, class: &Arc<PodClass>, profile: &Arc<Profile>) -> View {
        let topology = Topology::survey(snapshot, class, profile);
        let keys = topology.as_ref().map(Topology::keys).unwrap_or_default();
        let is_fine = |key: &KeyIndex| snapshot.domains.key(*key).is_fine();
        let (fine, coarse): (Vec<_>, Vec<_>) = keys.into_iter().partition(is_fine);
        let (needs, refusal) = match Needs::of(snapshot, class) {
            _ if class.claims_devices => (
                None,
                Some("pod has resource claims, which this scheduler does not allocate".into()),
            ),
            Ok(needs) => (needs, None),
            Err(refusal) => (None, Some(refusal)),
        };
        let pinned = class
            .pinned()
            .filter(|_| profile.upholds(Rule::NodeAffinity))
            .map(|names| {
                let mut nodes: Vec<_> = names
                    .iter()
                    .filter_map(|name| snapshot.index(name))
                    .collect();
                nodes.sort_unstable();
                nodes
            });
        let entry_count = pinned.as_ref().map_or(snapshot.nodes.len(), Vec::len);
        let mut image_bytes = HashMap::new();
        if profile.weights.image_locality != 0 {
            for (node, bytes) in score::image_bytes(snapshot, class) {
                *image_bytes.entry(node).or_insert(0) += bytes;
            }
        }
        let mut view = View {
            class: class.clone(),
            profile: profile.clone(),
            position: snapshot.log.end(),
            shape_epoch: snapshot.shape_epoch,
            storage_epoch: snapshot.storage_epoch,
            scorer: Scorer::new(&snapshot.space, class, profile),
            topology,
            needs,
            refusal,
            pinned,
            entries: vec![UNSEEN; entry_count],
            image_bytes,
            fine,
            coarse,
            cells: Vec::new(),
            cell_of: HashMap::new(),
            groups: Vec::new(),
            group_of: HashMap::new(),
            vacant_groups: Vec::new(),
            latest_group: 0,
            known: None,
            search: None,
        };
        if view.refusal.is_none() {
            view.evaluate_all(snapshot);
        }
        view
    }

    /// Brings the view up to date with the snapshot.
    pub fn catch_up(&mut self, snapshot: &mut Snapshot) {
        let end = snapshot.log.end();
        if self.position == end
            && self.storage_epoch == snapshot.storage_epoch
            && self.shape_epoch == snapshot.shape_epoch
        {
            return;
        }
        let stale_storage =
            !self.class.claims.is_empty() && self.storage_epoch != snapshot.storage_epoch;
        let minds = self.topology.is_some();
        let stale_shape =
            self.shape_epoch != snapshot.shape_epoch && (minds || self.pinned.is_some());
        let begins_to_mind = !minds && topology::concerns(snapshot, &self.class);
        let Some(changes) = snapshot
            .log
            .since(self.position)
            .filter(|_| !stale_storage && !stale_shape && !begins_to_mind)
        else {
            *self = View::build(snapshot, &self.class, &self.profile);
            return;
        };
        if minds {
            let changes: Vec<Change> = changes.cloned().collect();
            for change in changes {
                self.take_in(snapshot, change);
            }
        } else {
            let nodes: Vec<(NodeIndex, bool)> = changes
                .map(|change| match change {
                    Change::Node(node) => (*node, true),
                    Change::Pod { node, .. } => (*node, false),
                })
                .collect();
            for (node, anew) in nodes {
                self.evaluate(snapshot, node, anew);
            }
        }
        self.position = end;
        self.shape_epoch = snapshot.shape_epoch;
        self.storage_epoch = snapshot.storage_epoch;
    }

    fn take_in(&mut self, snapshot: &mut Snapshot, change: Change) {
        match change {
            Change::Node(node) => self.evaluate(snapshot, node, true),
            Change::Pod {
                node,
                class,
                delta,
                terminating,
            } => {
                self.evaluate(snapshot, node, false);
                let Some(topology) = &mut self.topology else {
                    return;
                };
                let touched = topology.apply(
                    snapshot,
                    &self.class,
                    &self.profile,
                    &class,
                    node,
                    i64::from(delta),
                    terminating,
                );
                match touched {
                    Touched::Nothing => {}
                    Touched::Domains => self.evaluate_domains(snapshot, node),
                    Touched::All => {
                        let keys = topology.keys();
                        if keys.len() != self.fine.len() + self.coarse.len() {
                            self.regroup(snapshot, keys);
                        } else if !self.fine.is_empty() {
                            self.evaluate_all(snapshot);
                        }
                    }
                }
            }
        }
    }

    /// A rule about a new topology key came up.
    fn regroup(&mut self, snapshot: &Snapshot, keys: Vec<KeyIndex>) {
        let is_fine = |key: &KeyIndex| snapshot.domains.key(*key).is_fine();
        (self.fine, self.coarse) = keys.into_iter().partition(is_fine);
        self.cells.clear();
        self.cell_of.clear();
        for entry in &mut self.entries {
            entry.asked = false;
        }
        self.evaluate_all(snapshot);
    }

    fn evaluate_all(&mut self, snapshot: &Snapshot) {
        match self.pinned.clone() {
            Some(nodes) => nodes
                .into_iter()
                .for_each(|node| self.evaluate(snapshot, node, false)),
            None => (0..snapshot.nodes.len()).for_each(|node| self.evaluate(snapshot, node, false)),
        }
    }

    /// Nodes that share a small domain with this one.
    fn evaluate_domains(&mut self, snapshot: &Snapshot, node: NodeIndex) {
        for at in 0..self.fine.len() {
            let key = snapshot.domains.key(self.fine[at]);
            let Some(members) = key.members.get(key.domain(node) as usize) else {
                continue;
            };
            for member in members {
                self.evaluate(snapshot, *member, false);
            }
        }
    }

    fn slot(&self, node: NodeIndex) -> Option<usize> {
        match &self.pinned {
            Some(nodes) => nodes.binary_search(&node).ok(),
            None => Some(node),
        }
    }

    /// Finds the node's standing anew. `anew`: the node itself may have changed.
    fn evaluate(&mut self, snapshot: &Snapshot, node: NodeIndex, anew: bool) {
        let Some(slot) = self.slot(node) else {
            return;
        };
        if slot >= self.entries.len() {
            self.entries.resize(slot + 1, UNSEEN);
        }
        let state = &snapshot.nodes[node];
        let mut entry = self.entries[slot];
        if entry.group != NO_GROUP {
            self.groups[entry.group as usize].live_count -= 1;
            entry.group = NO_GROUP;
        }
        if anew || !entry.asked {
            entry.asked = true;
            entry.admits = state.present
                && filter::static_rejection(&self.class, state, &self.profile).is_none();
            if entry.admits {
                entry.cell = self.cell(snapshot, node);
                entry.unwelcoming = if state.taints.is_empty() {
                    0
                } else {
                    let count = filter::unwelcoming_taint_count(&self.class, state);
                    u16::try_from(count).unwrap_or(u16::MAX)
                };
                entry.liked = if score::has_node_preference(&self.class, &self.profile) {
                    let weight = score::affinity_weight(&self.class, state, &self.profile);
                    i32::try_from(weight).unwrap_or(i32::MAX)
                } else {
                    0
                };
            }
        }
        entry.version = entry.version.wrapping_add(1);
        if entry.admits && self.is_open_by_itself(snapshot, node) {
            let bytes = if self.image_bytes.is_empty() {
                0
            } else {
                self.image_bytes.get(&node).copied().unwrap_or(0)
            };
            entry.own = self.scorer.own_score(&self.class, state, bytes);
            let (wish, crowding) = match &self.topology {
                Some(topology) if !self.fine.is_empty() => {
                    topology.standing_over(snapshot, node, |key| self.fine.contains(&key))
                }
                _ => (0, 0),
            };
            let standing = Standing {
                cell: entry.cell,
                wish,
                crowding,
                unwelcoming: i64::from(entry.unwelcoming),
                liked: i64::from(entry.liked),
            };
            entry.group = self.enter(standing, entry.own, node, entry.version);
        }
        self.entries[slot] = entry;
    }

    /// No rule about what the node holds closes it; rules about large domains apart.
    fn is_open_by_itself(&self, snapshot: &Snapshot, node: NodeIndex) -> bool {
        let state = &snapshot.nodes[node];
        filter::has_room(&self.class, state, &self.profile, &snapshot.space)
            && !(self.profile.upholds(Rule::VolumeRestrictions)
                && volumes::disks_conflict(&self.class, state))
            && self
                .needs
                .as_ref()
                .is_none_or(|needs| needs.rejection(snapshot, &self.profile, node).is_none())
            && (self.fine.is_empty()
                || self.topology.as_ref().is_none_or(|topology| {
                    !topology.rejects_over(snapshot, &self.profile, node, |key| {
                        self.fine.contains(&key)
                    })
                }))
    }

    fn cell(&mut self, snapshot: &Snapshot, node: NodeIndex) -> u32 {
        if self.coarse.is_empty() && !self.cells.is_empty() {
            return 0;
        }
        let domains: Vec<Domain> = self
            .coarse
            .iter()
            .map(|key| snapshot.domains.key(*key).domain(node))
            .collect();
        let cells = &mut self.cells;
        *self.cell_of.entry(domains).or_insert_with(|| {
            cells.push(Cell { sample: node });
            (cells.len() - 1) as u32
        })
    }

    fn enter(&mut self, standing: Standing, own: i64, node: NodeIndex, version: u32) -> u32 {
        let groups = &mut self.groups;
        let vacant = &mut self.vacant_groups;
        // Neighbours are often alike: most nodes are where the one before was.
        let latest = self.latest_group as usize;
        let known = groups
            .get(latest)
            .filter(|group| group.standing == standing && !group.vacant);
        let index = if known.is_some() {
            self.latest_group
        } else {
            *self.group_of.entry(standing).or_insert_with(|| {
                let group = Group {
                    standing,
                    heap: BinaryHeap::new(),
                    live_count: 0,
                    vacant: false,
                };
                match vacant.pop() {
                    Some(index) => {
                        groups[index as usize] = group;
                        index
                    }
                    None => {
                        groups.push(group);
                        (groups.len() - 1) as u32
                    }
                }
            })
        };
        self.latest_group = index;
        let group = &mut groups[index as usize];
        group.live_count += 1;
        group.heap.push((own, Reverse(node), version));
        if group.heap.len() > 2 * group.live_count + 64 {
            let (entries, pinned) = (&self.entries, &self.pinned);
            group.heap.retain(|(_, Reverse(other), stamp)| {
                if *other == node {
                    return *stamp == version;
                }
                let slot = match pinned {
                    Some(nodes) => nodes.binary_search(other).ok(),
                    None => Some(*other),
                };
                slot.is_some_and(|slot| {
                    let entry = &entries[slot];
                    entry.version == *stamp && entry.group == index
                })
            });
        }
        index
    }

    /// The best open node, or the best of one domain. The view has caught up.
    pub fn best(
        &mut self,
        snapshot: &Snapshot,
        within: Option<(KeyIndex, Domain)>,
    ) -> Option<NodeIndex> {
        if let Some((key, domain)) = within {
            return self.best_within(snapshot, key, domain);
        }
        let mut tops: Vec<(Standing, i64, NodeIndex)> = Vec::new();
        let mut cells: Vec<Option<(bool, i64, i64)>> = vec![None; self.cells.len()];
        for index in 0..self.groups.len() {
            let Some((own, node)) = self.top(index) else {
                continue;
            };
            let mut standing = self.groups[index].standing;
            if let Some(topology) = self.topology.as_ref().filter(|_| !self.coarse.is_empty()) {
                let cell = standing.cell as usize;
                let (rejected, wish, crowding) = *cells[cell].get_or_insert_with(|| {
                    let sample = self.cells[cell].sample;
                    let is_coarse = |key| self.coarse.contains(&key);
                    let (wish, crowding) = topology.standing_over(snapshot, sample, is_coarse);
                    (
                        topology.rejects_over(snapshot, &self.profile, sample, is_coarse),
                        wish,
                        crowding,
                    )
                });
                if rejected {
                    continue;
                }
                standing.wish += wish;
                standing.crowding += crowding;
            }
            tops.push((standing, own, node));
        }
        if tops.len() == 1 {
            return Some(tops[0].2);
        }
        let scored = self.blend(tops);
        scored
            .into_iter()
            .max_by_key(|(score, node)| (*score, Reverse(*node)))
            .map(|(_, node)| node)
    }

    /// The best live node of a group.
    fn top(&mut self, index: usize) -> Option<(i64, NodeIndex)> {
        let group = &mut self.groups[index];
        if group.live_count == 0 {
            if !group.vacant {
                group.vacant = true;
                group.heap = BinaryHeap::new();
                self.group_of.remove(&group.standing);
                self.vacant_groups.push(index as u32);
            }
            return None;
        }
        while let Some((own, Reverse(node), version)) = self.groups[index].heap.peek().copied() {
            let live = self.slot(node).is_some_and(|slot| {
                let entry = &self.entries[slot];
                entry.version == version && entry.group as usize == index
            });
            if live {
                return Some((own, node));
            }
            self.groups[index].heap.pop();
        }
        None
    }

    /// Own scores and standings as one score each.
    fn blend(&self, tops: Vec<(Standing, i64, NodeIndex)>) -> Vec<(i64, NodeIndex)> {
        let range = |part: fn(&Standing) -> i64| {
            let parts = tops
                .iter()
                .map(|(standing, _, _)| part(standing))
                .filter(|part| *part < OUTSIDE);
            parts.fold((i64::MAX, i64::MIN), |(low, high), part| {
                (low.min(part), high.max(part))
            })
        };
        let wish = range(|standing| standing.wish);
        let crowding = range(|standing| standing.crowding);
        let unwelcoming = range(|standing| standing.unwelcoming);
        let liked = range(|standing| standing.liked);
        let weights = &self.profile.weights;
        let soft = self
            .topology
            .as_ref()
            .is_some_and(Topology::has_soft_spread);
        let score = |(standing, own, node): (Standing, i64, NodeIndex)| {
            let mut score = own;
            score += weights.pod_affinity * normalized(standing.wish, wish.0, wish.1, true);
            score += weights.taint_toleration
                * normalized(standing.unwelcoming, 0, unwelcoming.1, false);
            score += weights.node_affinity * normalized(standing.liked, 0, liked.1, true);
            if soft && standing.crowding < OUTSIDE {
                // Upstream's form: the least crowded gets everything, an equal crowd everybody.
                let share = if crowding.1 <= 0 {
                    FULL
                } else {
                    let above = i128::from(crowding.1) + i128::from(crowding.0)
                        - i128::from(standing.crowding);
                    (above * i128::from(FULL) / i128::from(crowding.1)) as i64
                };
                score += weights.topology_spread * share;
            }
            (score, node)
        };
        tops.into_iter().map(score).collect()
    }

    /// All open nodes with their whole standing, for questions that an index does not answer.
    fn open_nodes(&self, snapshot: &Snapshot) -> Vec<(Standing, i64, NodeIndex)> {
        let nodes = match &self.pinned {
            Some(nodes) => nodes.clone(),
            None => (0..self.entries.len()).collect(),
        };
        let mut open = Vec::new();
        for (slot, node) in nodes.into_iter().enumerate() {
            let entry = &self.entries[slot];
            if entry.group == NO_GROUP || self.is_rejected_by_domain(snapshot, node) {
                continue;
            }
            let topology = self.topology.as_ref();
            let standing = Standing {
                cell: entry.cell,
                wish: topology.map_or(0, |topology| topology.wish(snapshot, node)),
                crowding: topology.map_or(0, |topology| topology.crowding(snapshot, node)),
                unwelcoming: i64::from(entry.unwelcoming),
                liked: i64::from(entry.liked),
            };
            open.push((standing, entry.own, node));
        }
        open
    }

    fn best_within(&self, snapshot: &Snapshot, key: KeyIndex, domain: Domain) -> Option<NodeIndex> {
        let mut open = self.open_nodes(snapshot);
        open.retain(|(_, _, node)| snapshot.domains.key(key).domain(*node) == domain);
        let scored = self.blend(open);
        scored
            .into_iter()
            .max_by_key(|(score, node)| (*score, Reverse(*node)))
            .map(|(_, node)| node)
    }

    /// All open nodes with their scores, best first.
    pub fn ranking(&self, snapshot: &Snapshot) -> Vec<(i64, NodeIndex)> {
        let mut scored = self.blend(self.open_nodes(snapshot));
        scored.sort_by_key(|(score, node)| (Reverse(*score), *node));
        scored
    }

    fn is_rejected_by_domain(&self, snapshot: &Snapshot, node: NodeIndex) -> bool {
        !self.coarse.is_empty()
            && self.topology.as_ref().is_some_and(|topology| {
                topology.rejects_over(snapshot, &self.profile, node, |key| {
                    self.coarse.contains(&key)
                })
            })
    }

    /// Would the node do now? The view has caught up.
    pub fn is_open(&self, snapshot: &Snapshot, node: NodeIndex) -> bool {
        let entry = self.slot(node).and_then(|slot| self.entries.get(slot));
        entry.is_some_and(|entry| entry.group != NO_GROUP)
            && !self.is_rejected_by_domain(snapshot, node)
    }

    /// Would the node do if it were empty? Rules about pods that are matched along with the class are left out.
    pub fn admits_but_for_room(&self, snapshot: &Snapshot, node: NodeIndex) -> bool {
        if !self.admits(node) {
            return false;
        }
        let state = &snapshot.nodes[node];
        if self.class.demands_reported_bandwidth && !state.reports_bandwidth {
            return false;
        }
        self.class.is_entangled()
            || self
                .topology
                .as_ref()
                .is_none_or(|topology| topology.rejection(snapshot, &self.profile, node).is_none())
    }

    /// Do the rules that depend on the node alone hold?
    pub fn admits(&self, node: NodeIndex) -> bool {
        let entry = self.slot(node).and_then(|slot| self.entries.get(slot));
        entry.is_some_and(|entry| entry.admits)
    }

    /// No node is preferred more for its own sake.
    pub fn preference_max(&self) -> i64 {
        if !score::has_node_preference(&self.class, &self.profile) {
            return score::preference(0, 0, 0);
        }
        let total = score::affinity_weight_max(&self.class, &self.profile);
        let admitting = self.entries.iter().filter(|entry| entry.admits);
        let preferences = admitting.map(|entry| {
            score::preference(i64::from(entry.liked), total, i64::from(entry.unwelcoming))
        });
        preferences.max().unwrap_or(0)
    }

    /// The first rule that rejects a node.
    pub fn rejection(&self, snapshot: &Snapshot, node: NodeIndex) -> Option<Rejection> {
        let state = &snapshot.nodes[node];
        let profile = &self.profile;
        if self.class.node_name.is_none() && self.slot(node).is_none() {
            return Some(Rejection::NotNamed);
        }
        filter::static_rejection(&self.class, state, profile)
            .or_else(|| filter::room_rejection(&self.class, state, profile, &snapshot.space))
            .or_else(|| {
                let conflict = profile.upholds(Rule::VolumeRestrictions)
                    && volumes::disks_conflict(&self.class, state);
                conflict.then_some(Rejection::DiskConflict)
            })
            .or_else(|| self.needs.as_ref()?.rejection(snapshot, profile, node))
            .or_else(|| self.topology.as_ref()?.rejection(snapshot, profile, node))
    }

    /// Why the class has no node, counted over all nodes. The view has caught up. Only nodes that changed are asked again.
    pub fn diagnose(&mut self, snapshot: &Snapshot) -> Arc<Diagnosis> {
        // A rule about other pods may turn anywhere.
        let known = self.known.take().filter(|_| !self.minds_others());
        let changed = known
            .as_ref()
            .and_then(|known| snapshot.log.nodes_since(known.position));
        let (mut by_node, mut refusals, changed) = match (known, changed) {
            (Some(known), Some(changed)) if changed.is_empty() => {
                let diagnosis = known.diagnosis.clone();
                self.known = Some(known);
                return diagnosis;
            }
            (Some(known), Some(changed)) => {
                (known.by_node, known.diagnosis.refusals.clone(), changed)
            }
            _ => (
                Vec::new(),
                Refusals::default(),
                (0..snapshot.nodes.len()).collect(),
            ),
        };
        by_node.resize(snapshot.nodes.len(), None);
        if self.refusal.is_none() {
            for node in changed {
                if let Some(before) = by_node[node].take() {
                    refusals.remove(&before);
                }
                if snapshot.nodes[node].present
                    && let Some(rejection) = self.rejection(snapshot, node)
                {
                    refusals.add(rejection.clone());
                    by_node[node] = Some(rejection);
                }
            }
        }
        let diagnosis = Arc::new(Diagnosis {
            node_count: snapshot.node_count(),
            refusal: self.refusal.clone(),
            refusals,
            preemption: String::new(),
        });
        self.known = Some(Known {
            position: snapshot.log.end(),
            by_node,
            diagnosis: diagnosis.clone(),
        });
        diagnosis
    }

    /// The candidates for preemption, kept from before where nothing but single nodes can have changed them.
    pub fn search(&mut self, snapshot: &mut Snapshot, allowances: &mut Allowances) -> Search {
        let kept = self
            .search
            .take()
            .filter(|_| !self.minds_others() && self.needs.is_none() && allowances.is_empty());
        if let Some((position, mut search)) = kept
            && let Some(changed) = snapshot.log.nodes_since(position)
        {
            for node in changed {
                search.look(snapshot, self, allowances, node);
            }
            return search;
        }
        Search::new(snapshot, self, allowances)
    }

    /// Keeps the candidates for the next time; they are up to date.
    pub fn keep_search(&mut self, snapshot: &Snapshot, search: Search) {
        self.search = Some((snapshot.log.end(), search));
    }

    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    pub fn needs(&self) -> Option<&Needs> {
        self.needs.as_ref()
    }

    pub fn topology_mut(&mut self) -> Option<&mut Topology> {
        self.topology.as_mut()
    }

    /// Do rules about other pods take part?
    pub fn minds_others(&self) -> bool {
        self.topology.is_some()
    }
}

/// The views that are kept for classes which come again.
#[derive(Debug, Default)]
pub(crate) struct Views {
    kept: HashMap<usize, (u64, View)>,
    tick: u64,
}

/// Entries over all kept views: a bound on memory of some tens of megabytes.
const ENTRIES_MAX: usize = 600_000;
const VIEWS_MAX: usize = 256;

impl Snapshot {
    /// The view of a class, up to date. Give it back with [`Snapshot::keep_view`].
    pub(crate) fn view(&mut self, class: &Arc<PodClass>, profile: &Arc<Profile>) -> View {
        match self.views.kept.remove(&address(class)) {
            Some((_, mut view))
                if Arc::ptr_eq(&view.profile, profile) || view.profile == *profile =>
            {
                view.catch_up(self);
                view
            }
            _ => View::build(self, class, profile),
        }
    }

    pub(crate) fn keep_view(&mut self, view: View) {
        let kept_max = (ENTRIES_MAX / (self.nodes.len() + 1)).clamp(4, VIEWS_MAX);
        let views = &mut self.views;
        views.tick += 1;
        views.kept.insert(address(&view.class), (views.tick, view));
        if views.kept.len() > kept_max {
            // The older half goes, so that this costs little on average.
            let mut ticks: Vec<u64> = views.kept.values().map(|(tick, _)| *tick).collect();
            ticks.sort_unstable();
            let oldest_kept = ticks[ticks.len() - kept_max / 2 - 1];
            views.kept.retain(|_, (tick, _)| *tick >= oldest_kept);
        }
    }
}
