//! Resource amounts as integer vectors: which number stands for what, and how much a pod asks for and a node has.
//!
//! Units: CPU in milli-CPUs, memory and storage in bytes, bandwidth in bits per second, the rest as counts.
//! Requests round up, capacities round down, everything saturates.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A pod's and a node's network bandwidth in bits per second; a node reports it as allocatable, a pod asks for it (in both directions) like CPU.
pub const NETWORK_BANDWIDTH: &str = "llmagentos.io/network-bandwidth";
/// Bandwidth a pod asks for in one direction; established by the bandwidth CNI plugin.
pub const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
pub const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";

/// Index of a resource in every vector of one [`ResourceSpace`].
pub type ResourceIndex = usize;
pub const CPU: ResourceIndex = 0;
pub const MEMORY: ResourceIndex = 1;
pub const EPHEMERAL_STORAGE: ResourceIndex = 2;
pub const PODS: ResourceIndex = 3;
pub const INGRESS: ResourceIndex = 4;
pub const EGRESS: ResourceIndex = 5;
const FIXED: [&str; 6] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "pods",
    NETWORK_BANDWIDTH,
    NETWORK_BANDWIDTH,
];

/// The names of all resources seen so far. Grows, never shrinks: vectors of different ages differ in length and a missing entry is zero.
#[derive(Clone, Debug)]
pub struct ResourceSpace {
    names: Vec<String>,
    by_name: HashMap<String, ResourceIndex>,
}

impl Default for ResourceSpace {
    fn default() -> Self {
        let mut space = ResourceSpace {
            names: FIXED.iter().map(ToString::to_string).collect(),
            by_name: HashMap::new(),
        };
        for (index, name) in FIXED.iter().enumerate().take(PODS + 1) {
            space.by_name.insert((*name).to_string(), index);
        }
        space
    }
}

impl ResourceSpace {
    /// The index of a resource other than bandwidth, new if it was never seen.
    pub fn index(&mut self, name: &str) -> ResourceIndex {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        self.names.push(name.to_string());
        self.by_name.insert(name.to_string(), self.names.len() - 1);
        self.names.len() - 1
    }

    /// The name as messages show it.
    pub fn name(&self, index: ResourceIndex) -> &str {
        self.names.get(index).map_or("", String::as_str)
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// The index of a resource that has been seen.
    pub fn find(&self, name: &str) -> Option<ResourceIndex> {
        self.by_name.get(name).copied()
    }
}

/// Amounts by [`ResourceIndex`]; entries past the end are zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Amounts(Vec<i64>);

impl Amounts {
    pub fn amount(&self, index: ResourceIndex) -> i64 {
        self.0.get(index).copied().unwrap_or(0)
    }

    pub fn set(&mut self, index: ResourceIndex, amount: i64) {
        if index >= self.0.len() {
            self.0.resize(index + 1, 0);
        }
        self.0[index] = amount;
    }

    pub fn add(&mut self, other: &Amounts) {
        for (index, amount) in other.iter() {
            self.set(index, self.amount(index).saturating_add(amount));
        }
    }

    pub fn subtract(&mut self, other: &Amounts) {
        for (index, amount) in other.iter() {
            self.set(index, self.amount(index).saturating_sub(amount));
        }
    }

    /// Did a sum reach the end of the scale? Then it cannot be undone by subtraction.
    pub(crate) fn is_saturated(&self) -> bool {
        self.0
            .iter()
            .any(|amount| *amount == i64::MAX || *amount == i64::MIN)
    }

    fn raise_to(&mut self, other: &Amounts) {
        for (index, amount) in other.iter() {
            self.set(index, self.amount(index).max(amount));
        }
    }

    /// All entries that are not zero.
    pub fn iter(&self) -> impl Iterator<Item = (ResourceIndex, i64)> + '_ {
        self.0
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, amount)| *amount != 0)
    }
}

/// The whole value of a quantity in units of 10^-`decimals`, rounded up (`up`) or down, saturating; `None` if it is no quantity.
fn scaled(quantity: &str, decimals: i32, up: bool) -> Option<i64> {
    let text = quantity.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (negative, digits) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty())
        || !whole
            .bytes()
            .chain(fraction.bytes())
            .all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let (binary_shift, exponent): (u32, i32) = match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => (0, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    // More digits than a u128 takes carry no weight in an i64: past 24 places the fraction only matters as "not zero".
    let mut mantissa: u128 = 0;
    for digit in whole.bytes() {
        mantissa = mantissa
            .saturating_mul(10)
            .saturating_add(u128::from(digit - b'0'));
    }
    let kept = fraction.len().min(18);
    for digit in fraction.bytes().take(kept) {
        mantissa = mantissa
            .saturating_mul(10)
            .saturating_add(u128::from(digit - b'0'));
    }
    let lost = fraction.bytes().skip(kept).any(|digit| digit != b'0');
    let mut value = mantissa.saturating_mul(1u128 << binary_shift);
    let power = exponent
        .saturating_add(decimals)
        .saturating_sub(kept as i32);
    let mut inexact = lost;
    if power >= 0 {
        value = if value == 0 {
            0
        } else {
            value.saturating_mul(
                10u128
                    .checked_pow(power.min(39) as u32)
                    .unwrap_or(u128::MAX),
            )
        };
    } else {
        let divisor = 10u128
            .checked_pow(power.unsigned_abs())
            .unwrap_or(u128::MAX);
        inexact |= !value.is_multiple_of(divisor);
        value /= divisor;
    }
    if inexact && up != negative {
        value = value.saturating_add(1);
    }
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    Some(if negative { -value } else { value })
}

/// A request: rounded up, never negative; what is no quantity asks for nothing (the API server lets none through).
fn request(quantity: &Quantity, decimals: i32) -> i64 {
    scaled(&quantity.0, decimals, true).unwrap_or(0).max(0)
}

/// A capacity: rounded down; what is no quantity is no capacity.
fn capacity(quantity: &Quantity, decimals: i32) -> i64 {
    scaled(&quantity.0, decimals, false).unwrap_or(0)
}

/// A storage request in bytes.
pub(crate) fn request_bytes(quantity: &Quantity) -> i64 {
    request(quantity, 0)
}

/// A storage capacity in bytes.
pub(crate) fn capacity_bytes(quantity: &Quantity) -> i64 {
    capacity(quantity, 0)
}

fn decimals(name: &str) -> i32 {
    if name == "cpu" { 3 } else { 0 }
}

fn requests_of(space: &mut ResourceSpace, list: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let mut amounts = Amounts::default();
    for (name, quantity) in list.into_iter().flatten() {
        let amount = request(quantity, decimals(name));
        if name == NETWORK_BANDWIDTH {
            amounts.set(INGRESS, amount);
            amounts.set(EGRESS, amount);
        } else {
            let index = space.index(name);
            amounts.set(index, amount);
        }
    }
    amounts
}

fn container_requests(space: &mut ResourceSpace, container: &Container) -> Amounts {
    requests_of(
        space,
        container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref()),
    )
}

/// What a pod takes of a node: containers and restartable init containers together, or the largest
/// moment of its init sequence, pod-level requests in their place where set, and overhead on top
/// (KEP-753, KEP-2837); one pod; bandwidth by request or annotation, whichever is larger.
pub fn pod_request(space: &mut ResourceSpace, pod: &Pod) -> Amounts {
    let mut total = Amounts::default();
    if let Some(spec) = &pod.spec {
        for container in &spec.containers {
            total.add(&container_requests(space, container));
        }
        let mut restartable = Amounts::default();
        let mut init_peak = Amounts::default();
        for container in spec.init_containers.iter().flatten() {
            let mut moment = container_requests(space, container);
            if container.restart_policy.as_deref() == Some("Always") {
                restartable.add(&moment);
                moment = restartable.clone();
            } else {
                moment.add(&restartable);
            }
            init_peak.raise_to(&moment);
        }
        total.add(&restartable);
        total.raise_to(&init_peak);
        let pod_level = requests_of(
            space,
            spec.resources
                .as_ref()
                .and_then(|resources| resources.requests.as_ref()),
        );
        for (index, amount) in pod_level.iter() {
            total.set(index, amount);
        }
        total.add(&requests_of(space, spec.overhead.as_ref()));
    }
    total.set(PODS, 1);
    let annotation = |name: &str| {
        let text = pod.metadata.annotations.as_ref()?.get(name)?;
        scaled(text, 0, true).map(|amount| amount.max(0))
    };
    for (index, name) in [(INGRESS, INGRESS_BANDWIDTH), (EGRESS, EGRESS_BANDWIDTH)] {
        if let Some(amount) = annotation(name) {
            total.set(index, total.amount(index).max(amount));
        }
    }
    total
}

/// True if the pod asks for bandwidth as a resource: then only nodes that report it will do.
pub fn demands_reported_bandwidth(pod: &Pod) -> bool {
    let asks = |container: &Container| {
        container
            .resources
            .as_ref()
            .and_then(|r| r.requests.as_ref())
            .is_some_and(|requests| requests.contains_key(NETWORK_BANDWIDTH))
    };
    pod.spec.as_ref().is_some_and(|spec| {
        let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
        whole.is_some_and(|requests| requests.contains_key(NETWORK_BANDWIDTH))
            || spec.containers.iter().any(asks)
            || spec.init_containers.iter().flatten().any(asks)
    })
}

/// What a node can give. Bandwidth that a node does not report is unlimited for annotations.
pub fn node_allocatable(
    space: &mut ResourceSpace,
    allocatable: Option<&BTreeMap<String, Quantity>>,
) -> (Amounts, bool) {
    let mut amounts = Amounts::default();
    let mut reports_bandwidth = false;
    amounts.set(INGRESS, i64::MAX);
    amounts.set(EGRESS, i64::MAX);
    for (name, quantity) in allocatable.into_iter().flatten() {
        let amount = capacity(quantity, decimals(name));
        if name == NETWORK_BANDWIDTH {
            amounts.set(INGRESS, amount);
            amounts.set(EGRESS, amount);
            reports_bandwidth = true;
        } else {
            let index = space.index(name);
            amounts.set(index, amount);
        }
    }
    (amounts, reports_bandwidth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_scale_and_round() {
        let check = |text: &str, decimals: i32, up: i64, down: i64| {
            assert_eq!(scaled(text, decimals, true), Some(up), "{text} up");
            assert_eq!(scaled(text, decimals, false), Some(down), "{text} down");
        };
        check("1", 3, 1000, 1000);
        check("100m", 3, 100, 100);
        check("0.5", 3, 500, 500);
        check("1Gi", 0, 1 << 30, 1 << 30);
        check("1.5Ki", 0, 1536, 1536);
        check("1n", 3, 1, 0);
        check("-1500m", 0, -1, -2);
        check("10e6", 0, 10_000_000, 10_000_000);
        check("100000Ei", 0, i64::MAX, i64::MAX);
        check("1e999999999", 0, i64::MAX, i64::MAX);
        check("1e-99", 0, 1, 0);
        check("0.0000000000000000000000000001", 0, 1, 0);
        for text in ["", "abc", "1x", ".", "1e", "--1"] {
            assert_eq!(scaled(text, 0, true), None, "{text}");
        }
    }
}
