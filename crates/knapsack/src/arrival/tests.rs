#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use super::*;
use crate::Random;

fn node(capacity: i64, devices: &[i64], class: u32) -> Node {
    Node {
        capacity: vec![capacity],
        devices: devices.to_vec(),
        class,
    }
}

fn request(size: i64, device_count: u32, device_share: i64) -> Request {
    Request {
        size: vec![size],
        device_count,
        device_share,
        classes: None,
    }
}

fn evenly(requests: &[Request]) -> Vec<Expected> {
    requests
        .iter()
        .map(|request| Expected {
            request: request.clone(),
            weight: 1.0,
        })
        .collect()
}

const POLICIES: [Policy; 2] = [Policy::Foresight, Policy::FragmentationGradient];

#[test]
fn what_fits_is_placed_and_what_does_not_is_not() {
    let table: &[(&str, Node, Request, bool)] = &[
        ("plain", node(10, &[], 0), request(10, 0, 0), true),
        ("too much plain", node(10, &[], 0), request(11, 0, 0), false),
        (
            "a share of one",
            node(10, &[1000], 0),
            request(1, 1, 1000),
            true,
        ),
        (
            "a share is not split over devices",
            node(10, &[500, 500], 0),
            request(1, 1, 600),
            false,
        ),
        (
            "two whole",
            node(10, &[1000, 1000], 0),
            request(1, 2, 1000),
            true,
        ),
        (
            "two whole of which one is not",
            node(10, &[1000, 999], 0),
            request(1, 2, 1000),
            false,
        ),
        (
            "two shares take two devices",
            node(10, &[1000], 0),
            request(1, 2, 500),
            false,
        ),
        (
            "the right class",
            node(10, &[1000], 3),
            Request {
                classes: Some(vec![1, 3]),
                ..request(1, 1, 10)
            },
            true,
        ),
        (
            "the wrong class",
            node(10, &[1000], 3),
            Request {
                classes: Some(vec![1]),
                ..request(1, 1, 10)
            },
            false,
        ),
        (
            "classes bind devices only",
            node(10, &[1000], 3),
            Request {
                classes: Some(vec![1]),
                ..request(1, 0, 0)
            },
            true,
        ),
    ];
    for policy in POLICIES {
        for (name, node, request, fits) in table {
            let mut fleet = Fleet::new(
                vec![node.clone()],
                evenly(std::slice::from_ref(request)),
                policy,
            )
            .unwrap();
            assert_eq!(fleet.place(request).unwrap().is_some(), *fits, "{name}");
        }
    }
}

#[test]
fn shares_that_make_a_whole_go_together() {
    let kinds = [request(1, 1, 600), request(1, 1, 400), request(1, 1, 1000)];
    for policy in POLICIES {
        let mut fleet = Fleet::new(vec![node(100, &[1000; 4], 0)], evenly(&kinds), policy).unwrap();
        let first = fleet.place(&kinds[0]).unwrap().unwrap();
        let second = fleet.place(&kinds[1]).unwrap().unwrap();
        assert_eq!(first.devices, second.devices, "{policy:?}");
    }
}

#[test]
fn devices_are_not_stranded_without_plain_resources() {
    // Item by item both nodes have room; only the second keeps enough plain resources for its second device.
    let nodes = vec![node(10, &[1000, 1000], 0), node(16, &[1000, 1000], 0)];
    let device = request(5, 1, 1000);
    let mut fleet = Fleet::new(nodes, evenly(&[device]), Policy::Foresight).unwrap();
    let plain = fleet.place(&request(6, 0, 0)).unwrap().unwrap();
    assert_eq!(plain.node, 1);
}

#[test]
fn contradictions_are_errors() {
    let fleet = |nodes, expected| Fleet::new(nodes, expected, Policy::Foresight).map(|_| ());
    let two = Node {
        capacity: vec![1, 1],
        devices: vec![],
        class: 0,
    };
    let length = |what, expected, actual| {
        Err(ArrivalError::DimensionCount {
            what,
            expected,
            actual,
        })
    };
    assert_eq!(
        fleet(vec![node(1, &[], 0), two], vec![]),
        length("a node", 1, 2)
    );
    assert_eq!(
        fleet(vec![node(-1, &[], 0)], vec![]),
        Err(ArrivalError::Negative("a node"))
    );
    assert_eq!(
        fleet(vec![node(1, &[-5], 0)], vec![]),
        Err(ArrivalError::Negative("a node"))
    );
    let mut one = Fleet::new(vec![node(5, &[1000], 0)], vec![], Policy::Foresight).unwrap();
    assert_eq!(
        one.place(&request(-1, 0, 0)),
        Err(ArrivalError::Negative("a request"))
    );
    let placed = one.place(&request(2, 1, 500)).unwrap().unwrap();
    assert_eq!(
        one.release(&request(2, 1, 501), &placed),
        Err(ArrivalError::NotPlaced(0))
    );
    assert_eq!(
        one.release(
            &request(2, 1, 500),
            &Placement {
                node: 7,
                devices: vec![0]
            }
        ),
        Err(ArrivalError::NoNode(7))
    );
    one.release(&request(2, 1, 500), &placed).unwrap();
    assert_eq!(
        one.release(&request(2, 1, 500), &placed),
        Err(ArrivalError::NotPlaced(0))
    );
}

/// Arrivals and departures at random, on a ledger of the test's own.
#[test]
fn safety_nothing_is_overcommitted_and_nothing_that_fits_is_refused() {
    for policy in POLICIES {
        let mut random = Random(41);
        let nodes: Vec<Node> = (0..40)
            .map(|index| {
                node(
                    20 + index % 3 * 40,
                    &vec![1000; index as usize % 5],
                    (index % 2) as u32,
                )
            })
            .collect();
        let kinds: Vec<Request> = [
            (3, 0, 0),
            (2, 1, 300),
            (4, 1, 700),
            (1, 1, 50),
            (9, 1, 1000),
            (12, 2, 1000),
            (30, 4, 1000),
        ]
        .map(|(size, count, share)| request(size, count, share))
        .into_iter()
        .chain([Request {
            classes: Some(vec![1]),
            ..request(5, 1, 450)
        }])
        .collect();
        let mut fleet = Fleet::new(nodes.clone(), evenly(&kinds), policy).unwrap();
        let mut left = nodes.clone();
        let mut placed: Vec<(Request, Placement)> = Vec::new();
        for _ in 0..4_000 {
            if random.next().is_multiple_of(3) && !placed.is_empty() {
                let (request, placement) =
                    placed.swap_remove((random.next() % placed.len() as u64) as usize);
                fleet.release(&request, &placement).unwrap();
                left[placement.node].capacity[0] += request.size[0];
                placement.devices.iter().for_each(|&device| {
                    left[placement.node].devices[device] += request.device_share
                });
                continue;
            }
            let request = &kinds[(random.next() % kinds.len() as u64) as usize];
            let suits = |node: &Node| {
                node.capacity[0] >= request.size[0]
                    && node
                        .devices
                        .iter()
                        .filter(|&&device| device >= request.device_share)
                        .count()
                        >= request.device_count as usize
                    && (request.device_count == 0
                        || request
                            .classes
                            .as_ref()
                            .is_none_or(|classes| classes.contains(&node.class)))
            };
            match fleet.place(request).unwrap() {
                None => assert!(!left.iter().any(suits), "{request:?} fits"),
                Some(placement) => {
                    let node = &mut left[placement.node];
                    assert!(suits(node));
                    node.capacity[0] -= request.size[0];
                    placement
                        .devices
                        .iter()
                        .for_each(|&device| node.devices[device] -= request.device_share);
                    assert!(node.devices.iter().all(|&device| device >= 0));
                    assert_eq!(Some(&*node), fleet.left(placement.node));
                    placed.push((request.clone(), placement));
                }
            }
        }
        for (request, placement) in placed.drain(..) {
            fleet.release(&request, &placement).unwrap();
        }
        assert!((0..nodes.len()).all(|index| fleet.left(index) == Some(&nodes[index])));
        assert_eq!(
            fleet.state_count(),
            nodes
                .iter()
                .map(|node| (&node.capacity, &node.devices, node.class))
                .collect::<std::collections::HashSet<_>>()
                .len()
        );
    }
}

#[test]
fn numbers_near_the_largest_do_not_overflow() {
    let huge = i64::MAX / 8;
    let nodes = vec![
        Node {
            capacity: vec![i64::MAX],
            devices: vec![huge; 8],
            class: 0
        };
        3
    ];
    let kinds = [
        request(i64::MAX / 2, 1, huge),
        request(i64::MAX, 8, huge),
        request(0, 1, 1),
        request(1, 1, 0),
    ];
    for policy in POLICIES {
        let mut fleet = Fleet::new(nodes.clone(), evenly(&kinds), policy).unwrap();
        for kind in kinds.iter().cycle().take(40) {
            fleet.place(kind).unwrap();
        }
    }
}
