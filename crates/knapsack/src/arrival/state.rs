//! Conditions in which nodes are, each once, and what it would cost to put an item there.
//!
//! A condition has a slot while any node is in it. Costs are remembered by kind of item and slot, a
//! column a kind, so that finding the least is one pass over adjacent numbers. Invariants: every node
//! is in the list of exactly one slot; an unused slot costs infinity; memory is bounded by kinds times
//! conditions that exist at one time.

use std::collections::HashMap;

use super::value::Valuer;
use super::{Node, Request};

/// What is left of a node; its devices in descending order, so that nodes that differ only in which device is which are alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) class: u32,
    pub(super) capacity: Vec<i64>,
    pub(super) devices: Vec<i64>,
}

/// What an item does to a state.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) next: State,
    /// What the devices that it takes have left before.
    pub(super) device_lefts: Vec<i64>,
    cost: f64,
}

struct Slot {
    state: State,
    value: f64,
    nodes: Vec<usize>,
}

pub(super) struct States {
    valuer: Valuer,
    index: HashMap<State, u32>,
    slots: Vec<Slot>,
    unused: Vec<u32>,
    /// `[kind][slot]`; not a number: not worked out yet; infinite: does not fit, or nobody there.
    costs: Vec<Vec<f64>>,
}

impl State {
    pub(super) fn of(node: &Node) -> State {
        let mut devices = node.devices.clone();
        devices.sort_unstable_by(|a, b| b.cmp(a));
        State {
            class: node.class,
            capacity: node.capacity.clone(),
            devices,
        }
    }

    pub(super) fn fits(&self, request: &Request) -> bool {
        self.admits(request)
            && request
                .size
                .iter()
                .zip(&self.capacity)
                .all(|(size, left)| size <= left)
            && self
                .devices
                .iter()
                .filter(|&&left| left >= request.device_share)
                .count()
                >= request.device_count as usize
    }

    pub(super) fn admits(&self, request: &Request) -> bool {
        request.device_count == 0
            || request
                .classes
                .as_ref()
                .is_none_or(|classes| classes.contains(&self.class))
    }

    /// The ways to take the request's devices: for one share each different device, for several the fullest that will do.
    pub(super) fn choices(&self, request: &Request) -> Vec<Vec<i64>> {
        let count = request.device_count as usize;
        let mut will_do: Vec<i64> = self
            .devices
            .iter()
            .copied()
            .filter(|&left| left >= request.device_share)
            .collect();
        match count {
            0 => vec![Vec::new()],
            1 => {
                will_do.dedup();
                will_do.into_iter().map(|left| vec![left]).collect()
            }
            _ => vec![will_do.split_off(will_do.len() - count)],
        }
    }

    pub(super) fn after(&self, request: &Request, device_lefts: &[i64]) -> State {
        let mut next = self.clone();
        for (left, size) in next.capacity.iter_mut().zip(&request.size) {
            *left -= size;
        }
        for device_left in device_lefts {
            let device = next
                .devices
                .iter()
                .position(|left| left == device_left)
                .expect("chosen from this list");
            next.devices[device] -= request.device_share;
            // Keep the order: move the smaller number down to its place.
            let smaller = next.devices.remove(device);
            let place = next.devices.partition_point(|left| *left >= smaller);
            next.devices.insert(place, smaller);
        }
        next
    }
}

impl States {
    pub(super) fn new(valuer: Valuer) -> States {
        States {
            valuer,
            index: HashMap::new(),
            slots: Vec::new(),
            unused: Vec::new(),
            costs: Vec::new(),
        }
    }

    /// Puts a node into the slot of its state.
    pub(super) fn put(&mut self, state: State, node: usize) {
        if let Some(&slot) = self.index.get(&state) {
            self.slots[slot as usize].nodes.push(node);
            return;
        }
        let value = self.valuer.value(&state);
        let new = Slot {
            state: state.clone(),
            value,
            nodes: vec![node],
        };
        let slot = match self.unused.pop() {
            Some(slot) => {
                self.slots[slot as usize] = new;
                self.costs
                    .iter_mut()
                    .for_each(|costs| costs[slot as usize] = f64::NAN);
                slot
            }
            None => {
                self.slots.push(new);
                self.costs.iter_mut().for_each(|costs| costs.push(f64::NAN));
                u32::try_from(self.slots.len() - 1).expect("fewer states than 2^32")
            }
        };
        self.index.insert(state, slot);
    }

    /// Takes some node out of a slot.
    pub(super) fn take(&mut self, slot: u32) -> usize {
        let node = self.slots[slot as usize]
            .nodes
            .pop()
            .expect("a slot that can be chosen has nodes");
        self.close_if_empty(slot);
        node
    }

    /// Takes this node out of the slot of its state.
    pub(super) fn remove(&mut self, state: &State, node: usize) {
        let slot = *self
            .index
            .get(state)
            .expect("the state of a node has a slot");
        let nodes = &mut self.slots[slot as usize].nodes;
        let place = nodes
            .iter()
            .position(|&other| other == node)
            .expect("a node is in the list of its state");
        nodes.swap_remove(place);
        self.close_if_empty(slot);
    }

    fn close_if_empty(&mut self, slot: u32) {
        if self.slots[slot as usize].nodes.is_empty() {
            self.index.remove(&self.slots[slot as usize].state);
            self.costs
                .iter_mut()
                .for_each(|costs| costs[slot as usize] = f64::INFINITY);
            self.unused.push(slot);
        }
    }

    /// The slot where the item costs the least, and the step it takes there.
    pub(super) fn best(&mut self, kind: usize, request: &Request) -> Option<(u32, Step)> {
        if self.costs.len() <= kind {
            let unknown = self
                .slots
                .iter()
                .map(|slot| {
                    if slot.nodes.is_empty() {
                        f64::INFINITY
                    } else {
                        f64::NAN
                    }
                })
                .collect();
            self.costs.resize(kind + 1, unknown);
        }
        let mut best = (f64::INFINITY, 0);
        for slot in 0..self.slots.len() {
            let mut cost = self.costs[kind][slot];
            if cost.is_nan() {
                cost = self
                    .step(slot, request)
                    .map_or(f64::INFINITY, |step| step.cost);
                self.costs[kind][slot] = cost;
            }
            if cost < best.0 {
                best = (cost, slot);
            }
        }
        if best.0 == f64::INFINITY {
            return None;
        }
        let step = self.step(best.1, request).expect("its cost is finite");
        Some((best.1 as u32, step))
    }

    /// The cheapest way to take the request; `None` if it does not fit.
    fn step(&self, slot: usize, request: &Request) -> Option<Step> {
        let Slot { state, value, .. } = &self.slots[slot];
        if !state.fits(request) {
            return None;
        }
        let mut best: Option<Step> = None;
        for device_lefts in state.choices(request) {
            let next = state.after(request, &device_lefts);
            let cost = self.valuer.cost(*value, self.valuer.value(&next));
            // Of equals the fullest device, which comes last.
            if best.as_ref().is_none_or(|best| cost <= best.cost) {
                best = Some(Step {
                    next,
                    device_lefts,
                    cost,
                });
            }
        }
        best
    }

    pub(super) fn forget_costs(&mut self) {
        self.costs.clear();
    }

    pub(super) fn count(&self) -> usize {
        self.index.len()
    }
}
