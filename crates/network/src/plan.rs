//! What the nftables table should hold, from Services, EndpointSlices and host ports. Pure.
//!
//! Enter at [`ruleset`]. A packet to a service's address is looked up in one map, whose answer is
//! the service port's chain; that picks one endpoint's chain at random, which rewrites the
//! destination. Ports of the node (node ports, host ports) have maps of their own.
//!
//! Deliberately absent: IPv6, load balancer source ranges, topology hints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::host_ports::HostPort;
use crate::ipam::Ipv4Cidr;
use crate::nft::{
    Chain, CmpOp, Expr, Hook, KeyType, Reject, Rule, Ruleset, Set, Verdict, register,
};

/// Marks packets to be masqueraded when they leave (the bit that Kubernetes' own proxy uses).
const MASQUERADE_MARK: u32 = 0x4000;
const META_MARK: u32 = 3;
const META_IN_NAME: u32 = 6;
const META_OUT_NAME: u32 = 7;
const META_PROTOCOL: u32 = 16;
const ICMP: u8 = 1;
const ICMP_REDIRECT: u8 = 5;
const TCP: u8 = 6;
const RTN_LOCAL: u32 = 2;
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
/// Of ClientIP session affinity, unless the service says otherwise: three hours.
const AFFINITY_TIMEOUT_SECONDS: u64 = 10_800;

const MARK: &str = "mark";
const REFUSE: &str = "refuse";
const DROP: &str = "drop";
const DISPATCH: &str = "dispatch";
const REFUSE_DISPATCH: &str = "refuse-dispatch";
const SERVICES: &str = "services";
const NODE_PORTS: &str = "node-ports";
const HOST_PORTS: &str = "host-ports";
const REFUSED: &str = "refused";
const REFUSED_NODE_PORTS: &str = "refused-node-ports";

#[derive(Clone, Debug)]
pub struct PlanConfig {
    pub bridge: String,
    pub cluster_cidr: Ipv4Cidr,
    pub pod_cidr: Ipv4Cidr,
    pub node_name: String,
}

/// Where a service's packet may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    address: Ipv4Addr,
    port: u16,
}

/// The endpoints of a service port: everywhere, and of this node.
#[derive(Default)]
struct Targets {
    all: BTreeSet<Target>,
    local: BTreeSet<Target>,
}

pub fn ruleset(
    services: &[Arc<Service>],
    slices: &[Arc<EndpointSlice>],
    host_ports: &[HostPort],
    config: &PlanConfig,
) -> Ruleset {
    let mut builder = Builder::new(config);
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let service = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("kubernetes.io/service-name"));
        if let Some(service) = service {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            by_service
                .entry((namespace, service))
                .or_default()
                .push(slice);
        }
    }
    // Who was there first keeps a port; the order must not depend on the caller's.
    let mut services: Vec<&Arc<Service>> = services.iter().collect();
    services.sort_by_key(|service| (&service.metadata.namespace, &service.metadata.name));
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let slices = by_service
            .get(&(namespace, name))
            .map_or(&[][..], Vec::as_slice);
        for port in spec.ports.iter().flatten() {
            builder.service_port(service, spec, port, slices);
        }
    }
    for host_port in host_ports {
        builder.host_port(host_port);
    }
    builder.ruleset
}

struct Builder<'a> {
    config: &'a PlanConfig,
    ruleset: Ruleset,
}

impl<'a> Builder<'a> {
    /// The chains and maps that are there whatever the services are.
    fn new(config: &'a PlanConfig) -> Self {
        let mut builder = Self {
            config,
            ruleset: Ruleset::default(),
        };
        for (name, key) in [
            (SERVICES, KeyType::AddressPort),
            (NODE_PORTS, KeyType::Port),
            (HOST_PORTS, KeyType::Port),
            (REFUSED, KeyType::AddressPort),
            (REFUSED_NODE_PORTS, KeyType::Port),
        ] {
            let elements = BTreeMap::new();
            builder
                .ruleset
                .sets
                .insert(name.to_owned(), Set::VerdictMap { key, elements });
        }
        let mark = MASQUERADE_MARK.to_ne_bytes();
        builder.chain(
            MARK,
            vec![vec![
                meta(META_MARK),
                Expr::Bitwise {
                    mask: (!MASQUERADE_MARK).to_ne_bytes(),
                    xor: mark,
                },
                Expr::MetaSet {
                    key: META_MARK,
                    register: register::FIRST,
                },
            ]],
        );
        builder.chain(
            REFUSE,
            vec![
                vec![
                    meta(META_PROTOCOL),
                    equal(vec![TCP]),
                    Expr::Reject(Reject::TcpReset),
                ],
                vec![Expr::Reject(Reject::PortUnreachable)],
            ],
        );
        builder.chain(DROP, vec![vec![Expr::Verdict(Verdict::Drop)]]);
        let to_node = || {
            vec![
                Expr::RouteKind { source: false },
                equal(RTN_LOCAL.to_ne_bytes().to_vec()),
            ]
        };
        builder.chain(
            DISPATCH,
            vec![
                address_port(SERVICES),
                [to_node(), port_lookup(HOST_PORTS)].concat(),
                [to_node(), port_lookup(NODE_PORTS)].concat(),
            ],
        );
        builder.chain(
            REFUSE_DISPATCH,
            vec![
                address_port(REFUSED),
                [to_node(), port_lookup(REFUSED_NODE_PORTS)].concat(),
            ],
        );
        builder.base_chains();
        builder
    }

    fn base_chains(&mut self) {
        let jump = |chain: &str| vec![Expr::Verdict(Verdict::Jump(chain.to_owned()))];
        let bridge = interface_name(&self.config.bridge);
        // Loopback is routable on the bridge, for local clients of node ports; nothing on it may send there.
        let guard = vec![
            meta(META_IN_NAME),
            equal(bridge.clone()),
            header(DESTINATION_OFFSET, 1),
            equal(vec![127]),
            Expr::Verdict(Verdict::Drop),
        ];
        // Pods talk through their gateway, so that answers pass the address translation; a
        // redirect would have them go around it.
        let no_redirects = vec![
            meta(META_OUT_NAME),
            equal(bridge.clone()),
            meta(META_PROTOCOL),
            equal(vec![ICMP]),
            Expr::Payload {
                base: 2,
                offset: 0,
                length: 1,
                register: register::FIRST,
            },
            equal(vec![ICMP_REDIRECT]),
            Expr::Verdict(Verdict::Drop),
        ];
        let marked = vec![
            meta(META_MARK),
            Expr::Bitwise {
                mask: MASQUERADE_MARK.to_ne_bytes(),
                xor: [0; 4],
            },
            Expr::Cmp {
                op: CmpOp::Neq,
                data: vec![0; 4],
            },
            Expr::Masquerade,
        ];
        let mut leaving = in_cidr(SOURCE_OFFSET, self.config.pod_cidr, CmpOp::Eq);
        leaving.extend(in_cidr(
            DESTINATION_OFFSET,
            self.config.cluster_cidr,
            CmpOp::Neq,
        ));
        leaving.push(meta(META_OUT_NAME));
        leaving.push(Expr::Cmp {
            op: CmpOp::Neq,
            data: bridge,
        });
        leaving.push(Expr::Masquerade);
        for (name, kind, number, priority, rules) in [
            ("raw-prerouting", "filter", 0, -300, vec![guard]),
            (
                "filter-prerouting",
                "filter",
                0,
                -110,
                vec![jump(REFUSE_DISPATCH)],
            ),
            (
                "filter-output",
                "filter",
                3,
                -110,
                vec![no_redirects, jump(REFUSE_DISPATCH)],
            ),
            ("nat-prerouting", "nat", 0, -100, vec![jump(DISPATCH)]),
            ("nat-output", "nat", 3, -100, vec![jump(DISPATCH)]),
            ("nat-postrouting", "nat", 4, 100, vec![marked, leaving]),
        ] {
            let hook = Some(Hook {
                kind,
                number,
                priority,
            });
            self.ruleset
                .chains
                .insert(name.to_owned(), Chain { hook, rules });
        }
    }

    fn service_port(
        &mut self,
        service: &Service,
        spec: &ServiceSpec,
        port: &ServicePort,
        slices: &[&EndpointSlice],
    ) {
        let type_ = spec.type_.as_deref().unwrap_or("ClusterIP");
        let (Some(protocol), Ok(number)) = (
            protocol_number(port.protocol.as_deref().unwrap_or("TCP")),
            u16::try_from(port.port),
        ) else {
            return;
        };
        if type_ == "ExternalName" {
            return;
        }
        let targets = self.targets(port, slices);
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP"))
            .then(|| affinity_timeout_seconds(spec));
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let hash = fnv1a(format!("{namespace}/{name}/{protocol}/{number}").as_bytes());
        let id = format!("{hash:016x}-{name}");

        let local_only = spec.internal_traffic_policy.as_deref() == Some("Local");
        let cluster = self.balancer(&id, &targets.all, affinity);
        let inside = if local_only {
            self.balancer(&format!("local-{id}"), &targets.local, affinity)
        } else {
            cluster.clone()
        };
        let inside = match inside {
            Some(balancer) => {
                let mut outsiders = in_cidr(SOURCE_OFFSET, self.config.cluster_cidr, CmpOp::Neq);
                outsiders.push(jump_to(MARK));
                Ok(self.chain(
                    &format!("cluster-{id}"),
                    vec![outsiders, vec![go_to(&balancer)]],
                ))
            }
            None if targets.all.is_empty() => Err(REFUSE),
            None => Err(DROP),
        };
        for address in cluster_addresses(spec) {
            self.at_address(address, protocol, number, &inside);
        }

        let node_port = port
            .node_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0);
        let externals = external_addresses(service, spec);
        if externals.is_empty() && node_port.is_none() {
            return;
        }
        let outside = self.external(&id, spec, cluster.as_deref(), &targets, affinity);
        for address in externals {
            self.at_address(address, protocol, number, &outside);
        }
        if let Some(node_port) = node_port.filter(|_| matches!(type_, "NodePort" | "LoadBalancer"))
        {
            let key = port_key(protocol, node_port);
            match &outside {
                Ok(chain) => self.element(NODE_PORTS, key, chain),
                Err(refusal) => self.element(REFUSED_NODE_PORTS, key, refusal),
            }
        }
    }

    /// The chain for packets to an address from outside.
    fn external(
        &mut self,
        id: &str,
        spec: &ServiceSpec,
        cluster: Option<&str>,
        targets: &Targets,
        affinity: Option<u64>,
    ) -> Result<String, &'static str> {
        let Some(cluster) = cluster else {
            return Err(REFUSE);
        };
        let mut rules = Vec::new();
        if spec.external_traffic_policy.as_deref() == Some("Local") {
            // From pods and from this node itself every endpoint is as good as any.
            let mut pods = in_cidr(SOURCE_OFFSET, self.config.cluster_cidr, CmpOp::Eq);
            pods.push(go_to(cluster));
            let this_node = || {
                vec![
                    Expr::RouteKind { source: true },
                    equal(RTN_LOCAL.to_ne_bytes().to_vec()),
                ]
            };
            rules.push(pods);
            rules.push([this_node(), vec![jump_to(MARK)]].concat());
            rules.push([this_node(), vec![go_to(cluster)]].concat());
            let local = self.balancer(&format!("local-{id}"), &targets.local, affinity);
            rules.push(vec![go_to(local.as_deref().unwrap_or(DROP))]);
        } else {
            rules.push(vec![jump_to(MARK)]);
            rules.push(vec![go_to(cluster)]);
        }
        Ok(self.chain(&format!("external-{id}"), rules))
    }

    fn at_address(
        &mut self,
        address: Ipv4Addr,
        protocol: u8,
        port: u16,
        chain: &Result<String, &'static str>,
    ) {
        let key = address_port_key(address, protocol, port);
        match chain {
            Ok(chain) => self.element(SERVICES, key, chain),
            Err(refusal) => self.element(REFUSED, key, refusal),
        }
    }

    /// The chain that picks one of the targets; `None` if there are none.
    fn balancer(
        &mut self,
        id: &str,
        targets: &BTreeSet<Target>,
        affinity: Option<u64>,
    ) -> Option<String> {
        if targets.is_empty() {
            return None;
        }
        let name = format!("balance-{id}");
        let mut rules = Vec::new();
        let mut elements = BTreeMap::new();
        for (index, target) in (0_u32..).zip(targets) {
            let recent = affinity.map(|seconds| {
                let set = format!("recent-{id}-{}-{}-{seconds}", target.address, target.port);
                let key = KeyType::Address;
                self.ruleset.sets.insert(
                    set.clone(),
                    Set::Recent {
                        key,
                        timeout_millis: seconds * 1000,
                    },
                );
                set
            });
            let chain = format!("to-{id}-{}-{}", target.address, target.port);
            let mut endpoint = vec![vec![
                header(SOURCE_OFFSET, 4),
                equal(target.address.octets().to_vec()),
                jump_to(MARK),
            ]];
            if let Some(set) = recent {
                rules.push(vec![
                    header(SOURCE_OFFSET, 4),
                    Expr::Lookup {
                        set: set.clone(),
                        verdict: false,
                    },
                    go_to(&chain),
                ]);
                endpoint.push(vec![header(SOURCE_OFFSET, 4), Expr::Remember { set }]);
            }
            endpoint.push(destination(*target));
            self.chain(&chain, endpoint);
            elements.insert(index.to_ne_bytes().to_vec(), chain);
        }
        if let (1, Some(chain)) = (elements.len(), elements.values().next()) {
            rules.push(vec![go_to(chain)]);
        } else {
            let modulus = u32::try_from(elements.len()).unwrap_or(u32::MAX);
            let set = format!("pick-{id}");
            rules.push(vec![
                Expr::Random { modulus },
                Expr::Lookup {
                    set: set.clone(),
                    verdict: true,
                },
            ]);
            self.ruleset.sets.insert(
                set,
                Set::VerdictMap {
                    key: KeyType::Index,
                    elements,
                },
            );
        }
        Some(self.chain(&name, rules))
    }

    /// The ready endpoints; if there are none, those that end but still serve.
    fn targets(&self, port: &ServicePort, slices: &[&EndpointSlice]) -> Targets {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let mut ready = Targets::default();
        let mut ending = Targets::default();
        for slice in slices {
            let number = slice.ports.iter().flatten().find_map(|slice_port| {
                let same = slice_port.name.as_deref().unwrap_or_default()
                    == port.name.as_deref().unwrap_or_default()
                    && slice_port.protocol.as_deref().unwrap_or("TCP") == protocol;
                same.then(|| {
                    slice_port
                        .port
                        .and_then(|number| u16::try_from(number).ok())
                })
                .flatten()
            });
            let Some(number) = number else { continue };
            for endpoint in slice.endpoints.iter().flatten() {
                let conditions = endpoint.conditions.clone().unwrap_or_default();
                let targets = if conditions.ready != Some(false) {
                    &mut ready
                } else if conditions.serving != Some(false) && conditions.terminating == Some(true)
                {
                    &mut ending
                } else {
                    continue;
                };
                self.add_endpoint(targets, endpoint, number);
            }
        }
        if ready.all.is_empty() {
            return ending;
        }
        if ready.local.is_empty() {
            ready.local = ending.local;
        }
        ready
    }

    fn add_endpoint(&self, targets: &mut Targets, endpoint: &Endpoint, port: u16) {
        // All addresses of an endpoint are the same backend.
        let Some(address) = endpoint
            .addresses
            .first()
            .and_then(|text| text.parse::<Ipv4Addr>().ok())
        else {
            return;
        };
        // A pod cannot be sent to the node's loopback; the bridge is the same machine.
        let address = if address.is_loopback() {
            self.config.pod_cidr.gateway()
        } else {
            address
        };
        let target = Target { address, port };
        targets.all.insert(target);
        if endpoint.node_name.as_deref() == Some(&self.config.node_name) {
            targets.local.insert(target);
        }
    }

    fn host_port(&mut self, host_port: &HostPort) {
        let Some(protocol) = protocol_number(&host_port.protocol) else {
            return;
        };
        let host_address = match host_port.host_ip {
            Some(IpAddr::V4(address)) if !address.is_unspecified() => Some(address),
            Some(IpAddr::V6(address)) if !address.is_unspecified() => return,
            _ => None,
        };
        let target = Target {
            address: host_port.pod_ip,
            port: host_port.container_port,
        };
        let place = host_address.map_or("any".to_owned(), |address| address.to_string());
        let name = format!(
            "host-port-{place}-{protocol}-{}-{}-{}",
            host_port.host_port, target.address, target.port
        );
        let chain = self.chain(
            &name,
            vec![
                vec![
                    header(SOURCE_OFFSET, 4),
                    equal(target.address.octets().to_vec()),
                    jump_to(MARK),
                ],
                vec![header(SOURCE_OFFSET, 1), equal(vec![127]), jump_to(MARK)],
                destination(target),
            ],
        );
        match host_address {
            Some(address) => self.element(
                SERVICES,
                address_port_key(address, protocol, host_port.host_port),
                &chain,
            ),
            None => self.element(HOST_PORTS, port_key(protocol, host_port.host_port), &chain),
        }
    }

    fn chain(&mut self, name: &str, rules: Vec<Rule>) -> String {
        self.ruleset
            .chains
            .insert(name.to_owned(), Chain { hook: None, rules });
        name.to_owned()
    }

    /// The first of two that claim a key keeps it.
    fn element(&mut self, set: &str, key: Vec<u8>, chain: &str) {
        if let Some(Set::VerdictMap { elements, .. }) = self.ruleset.sets.get_mut(set) {
            elements.entry(key).or_insert_with(|| chain.to_owned());
        }
    }
}

fn cluster_addresses(spec: &ServiceSpec) -> BTreeSet<Ipv4Addr> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    all.filter_map(|text| text.parse().ok()).collect()
}

fn external_addresses(service: &Service, spec: &ServiceSpec) -> BTreeSet<Ipv4Addr> {
    let ingress = service
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref())
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        .filter_map(|ingress| ingress.ip.as_ref());
    let all = spec.external_ips.iter().flatten().chain(ingress);
    all.filter_map(|text| text.parse().ok()).collect()
}

fn affinity_timeout_seconds(spec: &ServiceSpec) -> u64 {
    spec.session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .unwrap_or(AFFINITY_TIMEOUT_SECONDS)
}

fn protocol_number(protocol: &str) -> Option<u8> {
    match protocol {
        "TCP" => Some(TCP),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

/// Protocol and port, each padded to four bytes, as concatenated keys are.
fn port_key(protocol: u8, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![protocol, 0, 0, 0, high, low, 0, 0]
}

fn address_port_key(address: Ipv4Addr, protocol: u8, port: u16) -> Vec<u8> {
    [address.octets().to_vec(), port_key(protocol, port)].concat()
}

fn interface_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn meta(key: u32) -> Expr {
    Expr::Meta {
        key,
        register: register::FIRST,
    }
}

fn equal(data: Vec<u8>) -> Expr {
    Expr::Cmp {
        op: CmpOp::Eq,
        data,
    }
}

/// Bytes of the IPv4 header.
fn header(offset: u32, length: u32) -> Expr {
    Expr::Payload {
        base: 1,
        offset,
        length,
        register: register::FIRST,
    }
}

fn in_cidr(offset: u32, cidr: Ipv4Cidr, op: CmpOp) -> Rule {
    vec![
        header(offset, 4),
        Expr::Bitwise {
            mask: cidr.mask().to_be_bytes(),
            xor: [0; 4],
        },
        Expr::Cmp {
            op,
            data: cidr.network.octets().to_vec(),
        },
    ]
}

fn port_lookup(set: &str) -> Rule {
    vec![
        meta(META_PROTOCOL),
        Expr::Payload {
            base: 2,
            offset: 2,
            length: 2,
            register: register::SECOND_WORD,
        },
        Expr::Lookup {
            set: set.to_owned(),
            verdict: true,
        },
    ]
}

fn address_port(set: &str) -> Rule {
    vec![
        header(DESTINATION_OFFSET, 4),
        Expr::Meta {
            key: META_PROTOCOL,
            register: register::SECOND_WORD,
        },
        Expr::Payload {
            base: 2,
            offset: 2,
            length: 2,
            register: register::THIRD_WORD,
        },
        Expr::Lookup {
            set: set.to_owned(),
            verdict: true,
        },
    ]
}

/// Rewrites the destination. The match on protocols that have ports is implied by the maps.
fn destination(target: Target) -> Rule {
    vec![
        Expr::Immediate {
            register: register::FIRST,
            data: target.address.octets().to_vec(),
        },
        Expr::Immediate {
            register: register::SECOND,
            data: target.port.to_be_bytes().to_vec(),
        },
        Expr::Dnat,
    ]
}

fn jump_to(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Jump(chain.to_owned()))
}

fn go_to(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.to_owned()))
}

/// FNV-1a: short names that tell services apart.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
