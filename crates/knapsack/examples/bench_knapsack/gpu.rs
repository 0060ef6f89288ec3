//! FGD's arrival experiment on Alibaba's openb cluster (USENIX ATC 2023): shares of GPUs, pods one by one.
//!
//! As in its authors' simulator: the whole list in random order; then pods drawn from the list at
//! random until 130% of the GPUs were asked for (a list that asks for more loses random pods). Every
//! pod that fits is placed at once and never moved. A share must fit on one GPU, whole GPUs must be
//! free, a model may be demanded, CPU and memory must suffice. The measure is the share of all GPUs
//! in use at the end, over ten seeds. Both policies know the list's distribution and not the order.
//! The peers: FGD in this same run, and the figures its authors publish.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use knapsack::arrival::{Expected, Fleet, Node, Placement, Policy, Request};

use crate::report::{Row, mean};
use crate::{Context, Stream, files};

const SEEDS: u64 = 10;
/// The share of all GPUs that is asked for, in percent.
const ASKED_PERCENT: i64 = 130;

pub fn run(context: &Context) -> Vec<Row> {
    let Some(folder) = context.folder("openb") else {
        return Vec::new();
    };
    let published = published(&folder.join("fgd_gpu_allocation_at_130.csv"));
    let mut models = Models::default();
    let nodes = nodes(&folder.join("openb_node_list_gpu_node.csv"), &mut models);
    let mut rows = Vec::new();
    for path in files(&folder) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let Some(list) = name.strip_prefix("openb_pod_list_") else {
            continue;
        };
        let pods = pods(&path, &mut models);
        let expected = distribution(&pods);
        let mut shares: [Vec<f64>; 2] = Default::default();
        let mut micros = Vec::new();
        for seed in 0..SEEDS.min(context.limit as u64) {
            let sequence = draw(&nodes, &pods, seed);
            for (shares, policy) in shares
                .iter_mut()
                .zip([Policy::Foresight, Policy::FragmentationGradient])
            {
                let (share, times) = arrive(&nodes, &expected, &sequence, policy);
                shares.push(share);
                if policy == Policy::Foresight {
                    micros.extend(times);
                }
            }
        }
        let [ours, fgd] = shares;
        if context.verbose {
            println!(
                "openb {list}: {:.3}% here, {:.3}% FGD here, published {:?}",
                mean(&ours),
                mean(&fgd),
                published.get(&name)
            );
        }
        let row = |peer: &str, peers: Vec<f64>, target| Row {
            name: format!("openb GPU arrival {list} (peer: {peer})"),
            unit: "% GPU",
            samples: ours.clone(),
            peer: peers,
            target,
            smaller_is_better: false,
        };
        rows.push(row("FGD, same run", fgd, None));
        if let Some(&published) = published.get(&name) {
            rows.push(row("FGD, published", vec![published], Some(published)));
        }
        rows.push(Row {
            name: format!("openb GPU arrival {list}: one decision"),
            unit: "us",
            samples: micros,
            peer: Vec::new(),
            target: Some(100.0),
            smaller_is_better: true,
        });
    }
    rows
}

/// GPU models by number.
#[derive(Default)]
struct Models(HashMap<String, u32>);

impl Models {
    fn number(&mut self, name: &str) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(name.to_owned()).or_insert(next)
    }
}

fn lines(path: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .skip(1)
        .map(|line| {
            line.split(',')
                .map(|field| field.trim().to_owned())
                .collect()
        })
        .collect()
}

fn published(path: &Path) -> HashMap<String, f64> {
    lines(path)
        .into_iter()
        .filter(|line| line[1].contains("FGD"))
        .map(|line| (line[0].clone(), line[3].parse().unwrap()))
        .collect()
}

fn nodes(path: &Path, models: &mut Models) -> Vec<Node> {
    let number = |field: &String| field.parse::<i64>().unwrap();
    lines(path)
        .iter()
        .map(|line| Node {
            capacity: vec![number(&line[1]), number(&line[2])],
            devices: vec![1000; number(&line[3]) as usize],
            class: models.number(&line[4]),
        })
        .collect()
}

fn pods(path: &Path, models: &mut Models) -> Vec<Request> {
    let number = |field: &String| field.parse::<i64>().unwrap();
    lines(path)
        .iter()
        .map(|line| {
            let device_count = number(&line[3]) as u32;
            let classes: Vec<u32> = line
                .get(5)
                .map_or("", String::as_str)
                .split('|')
                .filter(|model| !model.is_empty())
                .map(|model| models.number(model))
                .collect();
            Request {
                size: vec![number(&line[1]), number(&line[2])],
                device_count,
                device_share: if device_count == 0 {
                    0
                } else {
                    number(&line[4])
                },
                classes: (!classes.is_empty()).then_some(classes),
            }
        })
        .collect()
}

/// Each distinct request and how often it is in the list, in the order of first appearance.
fn distribution(pods: &[Request]) -> Vec<Expected> {
    let mut place: HashMap<&Request, usize> = HashMap::new();
    let mut expected: Vec<Expected> = Vec::new();
    for pod in pods {
        let index = *place.entry(pod).or_insert(expected.len());
        if index == expected.len() {
            expected.push(Expected {
                request: pod.clone(),
                weight: 0.0,
            });
        }
        expected[index].weight += 1.0;
    }
    expected
}

fn parts(pod: &Request) -> i64 {
    pod.device_share * i64::from(pod.device_count)
}

fn parts_of(nodes: &[Node]) -> i64 {
    nodes.iter().flat_map(|node| &node.devices).sum()
}

fn draw(nodes: &[Node], pods: &[Request], seed: u64) -> Vec<Request> {
    let mut stream = Stream(seed);
    let mut below = |count: usize| (stream.draw() % count as u64) as usize;
    let limit = parts_of(nodes) * ASKED_PERCENT / 100;
    let mut sequence = pods.to_vec();
    for last in (1..sequence.len()).rev() {
        sequence.swap(last, below(last + 1));
    }
    let mut asked: i64 = sequence.iter().map(parts).sum();
    while asked > limit {
        asked -= parts(&sequence.remove(below(sequence.len())));
    }
    loop {
        let pod = &pods[below(pods.len())];
        if asked + parts(pod) > limit {
            return sequence;
        }
        asked += parts(pod);
        sequence.push(pod.clone());
    }
}

/// The percentage of device parts in use at the end, and the time of every decision in microseconds.
fn arrive(
    nodes: &[Node],
    expected: &[Expected],
    sequence: &[Request],
    policy: Policy,
) -> (f64, Vec<f64>) {
    let mut fleet = Fleet::new(nodes.to_vec(), expected.to_vec(), policy).unwrap();
    let mut left = nodes.to_vec();
    let mut micros = Vec::with_capacity(sequence.len());
    for pod in sequence {
        let started = Instant::now();
        let placement = fleet.place(pod).unwrap();
        micros.push(started.elapsed().as_nanos() as f64 / 1000.0);
        verify(&mut left, pod, placement.as_ref());
    }
    (
        100.0 - parts_of(&left) as f64 / parts_of(nodes) as f64 * 100.0,
        micros,
    )
}

/// Carries the placement out on a ledger of its own, and refuses what does not fit; a pod that fits somewhere must be placed.
fn verify(left: &mut [Node], pod: &Request, placement: Option<&Placement>) {
    let suits = |node: &Node| {
        node.capacity
            .iter()
            .zip(&pod.size)
            .all(|(left, size)| left >= size)
            && node
                .devices
                .iter()
                .filter(|&&left| left >= pod.device_share)
                .count()
                >= pod.device_count as usize
            && (pod.device_count == 0
                || pod
                    .classes
                    .as_ref()
                    .is_none_or(|classes| classes.contains(&node.class)))
    };
    let Some(placement) = placement else {
        assert!(!left.iter().any(suits), "a pod that fits was not placed");
        return;
    };
    let node = &mut left[placement.node];
    assert!(suits(node), "a pod was placed where it does not fit");
    let mut devices = placement.devices.clone();
    devices.sort_unstable();
    devices.dedup();
    assert_eq!(
        devices.len(),
        pod.device_count as usize,
        "a pod got another number of devices"
    );
    for (left, size) in node.capacity.iter_mut().zip(&pod.size) {
        *left -= size;
    }
    for device in devices {
        node.devices[device] -= pod.device_share;
        assert!(node.devices[device] >= 0, "a device is overcommitted");
    }
}
