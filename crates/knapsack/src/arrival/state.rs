//! Conditions in which nodes are, each once, and what an item would make of them.
//!
//! Invariant: every node is in the list of exactly one state, and only states with nodes are live.

use std::collections::HashMap;
use std::rc::Rc;

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
    pub(super) next: u32,
    /// What the devices that it takes have left before.
    pub(super) device_lefts: Vec<i64>,
    /// Value lost.
    pub(super) cost: f64,
}

struct Known {
    state: State,
    value: f64,
    nodes: Vec<usize>,
    /// One entry a kind of item that was tried: `None` if it does not fit.
    steps: Vec<Option<Option<Rc<Step>>>>,
    live_index: usize,
}

pub(super) struct States {
    valuer: Valuer,
    index: HashMap<State, u32>,
    known: Vec<Known>,
    live: Vec<u32>,
}

impl State {
    pub(super) fn of(node: &Node) -> State {
        let mut devices = node.devices.clone();
        devices.sort_unstable_by(|a, b| b.cmp(a));
        State { class: node.class, capacity: node.capacity.clone(), devices }
    }

    pub(super) fn fits(&self, request: &Request) -> bool {
        self.admits(request)
            && request.size.iter().zip(&self.capacity).all(|(size, left)| size <= left)
            && self.devices.iter().filter(|&&left| left >= request.device_share).count() >= request.device_count as usize
    }

    pub(super) fn admits(&self, request: &Request) -> bool {
        request.device_count == 0 || request.classes.as_ref().is_none_or(|classes| classes.contains(&self.class))
    }

    /// The ways to take the request's devices: for one share each different device, for several the fullest that will do.
    pub(super) fn choices(&self, request: &Request) -> Vec<Vec<i64>> {
        let count = request.device_count as usize;
        let mut will_do: Vec<i64> = self.devices.iter().copied().filter(|&left| left >= request.device_share).collect();
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
            let device = next.devices.iter().position(|left| left == device_left).expect("chosen from this list");
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
        States { valuer, index: HashMap::new(), known: Vec::new(), live: Vec::new() }
    }

    pub(super) fn intern(&mut self, state: State) -> u32 {
        if let Some(&index) = self.index.get(&state) {
            return index;
        }
        let index = u32::try_from(self.known.len()).expect("fewer states than 2^32");
        let value = self.valuer.value(&state);
        self.index.insert(state.clone(), index);
        self.known.push(Known { state, value, nodes: Vec::new(), steps: Vec::new(), live_index: usize::MAX });
        index
    }

    pub(super) fn put(&mut self, state: u32, node: usize) {
        let known = &mut self.known[state as usize];
        if known.nodes.is_empty() {
            known.live_index = self.live.len();
            self.live.push(state);
        }
        known.nodes.push(node);
    }

    pub(super) fn take(&mut self, state: u32) -> usize {
        let node = self.known[state as usize].nodes.pop().expect("a live state has nodes");
        self.bury_if_empty(state);
        node
    }

    pub(super) fn remove(&mut self, state: u32, node: usize) {
        let nodes = &mut self.known[state as usize].nodes;
        let place = nodes.iter().position(|&other| other == node).expect("a node is in the list of its state");
        nodes.swap_remove(place);
        self.bury_if_empty(state);
    }

    fn bury_if_empty(&mut self, state: u32) {
        let known = &mut self.known[state as usize];
        if known.nodes.is_empty() {
            let place = known.live_index;
            known.live_index = usize::MAX;
            self.live.swap_remove(place);
            if let Some(&moved) = self.live.get(place) {
                self.known[moved as usize].live_index = place;
            }
        }
    }

    /// The state where the item costs the least, and the step it takes there.
    pub(super) fn best(&mut self, kind: u32, request: &Request) -> Option<(u32, Rc<Step>)> {
        let mut best: Option<(u32, Rc<Step>)> = None;
        for place in 0..self.live.len() {
            let state = self.live[place];
            let Some(step) = self.step(state, kind, request) else { continue };
            let better = best.as_ref().is_none_or(|(best_state, best_step)| {
                step.cost < best_step.cost || (step.cost == best_step.cost && state < *best_state)
            });
            if better {
                best = Some((state, step));
            }
        }
        best
    }

    fn step(&mut self, state: u32, kind: u32, request: &Request) -> Option<Rc<Step>> {
        let steps = &mut self.known[state as usize].steps;
        if steps.len() <= kind as usize {
            steps.resize(kind as usize + 1, None);
        }
        if let Some(step) = &steps[kind as usize] {
            return step.clone();
        }
        let step = self.work_out(state, request);
        self.known[state as usize].steps[kind as usize] = Some(step.clone());
        step
    }

    fn work_out(&mut self, index: u32, request: &Request) -> Option<Rc<Step>> {
        let state = self.known[index as usize].state.clone();
        if !state.fits(request) {
            return None;
        }
        let mut best: Option<Step> = None;
        for device_lefts in state.choices(request) {
            let next = self.intern(state.after(request, &device_lefts));
            let cost = self.valuer.cost(self.known[index as usize].value, self.known[next as usize].value);
            if best.as_ref().is_none_or(|best| cost <= best.cost) {
                best = Some(Step { next, device_lefts, cost });
            }
        }
        best.map(Rc::new)
    }

    pub(super) fn live_count(&self) -> usize {
        self.live.len()
    }
}
