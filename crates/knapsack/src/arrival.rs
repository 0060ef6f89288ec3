//! Placement of items as they arrive: each is placed at once, never moved, and the future is known only as a distribution.
//!
//! Enter at [`Fleet::new`] and [`Fleet::place`]. A node has plain resources (CPU, memory: one number a
//! dimension) and devices (GPUs), each of which can be shared in parts. An item asks for plain
//! resources, and for a share of one device or for several devices whole; it may be restricted to
//! classes of nodes (GPU models).
//!
//! Nodes in the same condition are one [`state`], and what an item costs there is worked out once
//! and remembered, so that a decision costs a look at each distinct state and not at each node.
//! [`Policy`] says how states are valued; the item goes where its coming costs the least value.
//!
//! Invariants: no resource and no device is ever overcommitted; the same calls yield the same
//! placements. Deliberately absent: removal by anything but [`Fleet::release`] (no eviction, no moves), and
//! refusal of an item that fits somewhere.

mod state;
mod value;

use std::collections::HashMap;

use state::{State, States};
pub use value::Policy;

/// A node as it is when empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// What it has of each plain resource.
    pub capacity: Vec<i64>,
    /// How many parts each device has to give, one number a device.
    pub devices: Vec<i64>,
    /// Nodes of one class are alike to [`Request::classes`].
    pub class: u32,
}

/// What an item asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    pub size: Vec<i64>,
    /// Number of devices; zero: none.
    pub device_count: u32,
    /// Parts of each of these devices. Different devices are taken even where one would have room for two.
    pub device_share: i64,
    /// Classes that will do; `None`: every class.
    pub classes: Option<Vec<u32>>,
}

/// A request and how often it comes, relative to the others.
#[derive(Clone, Debug)]
pub struct Expected {
    pub request: Request,
    pub weight: f64,
}

/// Kinds of requests whose costs are remembered; one more, and all are forgotten and worked out anew as they come.
const KINDS_MAX: usize = 4_096;

/// Where an item went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub node: usize,
    /// Device indexes, in the order of [`Node::devices`].
    pub devices: Vec<usize>,
}

/// Why nodes or requests are not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArrivalError {
    #[error("{what} has {actual} resources, and the first node has {expected}")]
    DimensionCount {
        what: &'static str,
        expected: usize,
        actual: usize,
    },
    #[error("{0} holds a number that is negative or too large")]
    Negative(&'static str),
    #[error("node {0} does not exist")]
    NoNode(usize),
    #[error("node {0} does not hold such an item")]
    NotPlaced(usize),
}

/// Nodes and what is left of them.
pub struct Fleet {
    nodes: Vec<Node>,
    /// What is left of each node's resources and devices, device by device.
    left: Vec<Node>,
    states: States,
    /// Every request seen, by number.
    kinds: HashMap<Request, usize>,
}

impl Fleet {
    /// An empty fleet. `expected` is what the policy takes for the future.
    ///
    /// # Errors
    /// [`ArrivalError`] if lengths differ or a number is negative.
    pub fn new(
        nodes: Vec<Node>,
        expected: Vec<Expected>,
        policy: Policy,
    ) -> Result<Fleet, ArrivalError> {
        let dimensions = nodes.first().map_or(0, |node| node.capacity.len());
        for node in &nodes {
            check_length("a node", dimensions, node.capacity.len())?;
            let parts = node
                .devices
                .iter()
                .try_fold(0i64, |sum, &parts| sum.checked_add(parts));
            if parts.is_none()
                || node
                    .capacity
                    .iter()
                    .chain(&node.devices)
                    .any(|&number| number < 0)
            {
                return Err(ArrivalError::Negative("a node"));
            }
        }
        for expected in &expected {
            check_request(dimensions, &expected.request)?;
        }
        let mut states = States::new(value::Valuer::new(policy, &expected, &nodes));
        for (index, node) in nodes.iter().enumerate() {
            states.put(State::of(node), index);
        }
        Ok(Fleet {
            left: nodes.clone(),
            nodes,
            states,
            kinds: HashMap::new(),
        })
    }

    /// Places an item where it costs the least; `None` if it fits nowhere.
    ///
    /// # Errors
    /// [`ArrivalError`] if the request's length differs or a number is negative.
    pub fn place(&mut self, request: &Request) -> Result<Option<Placement>, ArrivalError> {
        check_request(
            self.nodes.first().map_or(0, |node| node.capacity.len()),
            request,
        )?;
        if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(request) {
            self.kinds.clear();
            self.states.forget_costs();
        }
        let next_kind = self.kinds.len();
        let kind = match self.kinds.get(request) {
            Some(&kind) => kind,
            None => *self.kinds.entry(request.clone()).or_insert(next_kind),
        };
        let Some((from, step)) = self.states.best(kind, request) else {
            return Ok(None);
        };
        let node = self.states.take(from);
        let left = &mut self.left[node];
        for (left, size) in left.capacity.iter_mut().zip(&request.size) {
            *left -= size;
        }
        let mut devices = Vec::with_capacity(step.device_lefts.len());
        for &device_left in &step.device_lefts {
            let device = (0..left.devices.len())
                .find(|device| left.devices[*device] == device_left && !devices.contains(device));
            let device = device.expect("a state lists what its nodes' devices have left");
            left.devices[device] -= request.device_share;
            devices.push(device);
        }
        self.states.put(step.next, node);
        Ok(Some(Placement { node, devices }))
    }

    /// Takes an item away again.
    ///
    /// # Errors
    /// [`ArrivalError`] if the node cannot have held it.
    pub fn release(
        &mut self,
        request: &Request,
        placement: &Placement,
    ) -> Result<(), ArrivalError> {
        let node = placement.node;
        let whole = self.nodes.get(node).ok_or(ArrivalError::NoNode(node))?;
        check_request(whole.capacity.len(), request)?;
        let mut left = self.left[node].clone();
        for (dimension, size) in request.size.iter().enumerate() {
            left.capacity[dimension] = left.capacity[dimension].saturating_add(*size);
        }
        for &device in &placement.devices {
            let parts = left
                .devices
                .get_mut(device)
                .ok_or(ArrivalError::NotPlaced(node))?;
            *parts = parts.saturating_add(request.device_share);
        }
        let over = left
            .capacity
            .iter()
            .chain(&left.devices)
            .zip(whole.capacity.iter().chain(&whole.devices))
            .any(|(left, whole)| left > whole);
        if over || placement.devices.len() != request.device_count as usize {
            return Err(ArrivalError::NotPlaced(node));
        }
        self.states.remove(&State::of(&self.left[node]), node);
        self.left[node] = left;
        self.states.put(State::of(&self.left[node]), node);
        Ok(())
    }

    /// What is left of a node.
    pub fn left(&self, node: usize) -> Option<&Node> {
        self.left.get(node)
    }

    /// Distinct conditions in which nodes are now: what one decision looks at.
    pub fn state_count(&self) -> usize {
        self.states.count()
    }
}

fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<(), ArrivalError> {
    if expected == actual {
        Ok(())
    } else {
        Err(ArrivalError::DimensionCount {
            what,
            expected,
            actual,
        })
    }
}

fn check_request(dimensions: usize, request: &Request) -> Result<(), ArrivalError> {
    check_length("a request", dimensions, request.size.len())?;
    if request.size.iter().any(|&size| size < 0) || request.device_share < 0 {
        return Err(ArrivalError::Negative("a request"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
