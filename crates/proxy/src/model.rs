//! What Services and EndpointSlices mean on one node, for one address family. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Deref;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use nft::Family;

/// The label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Services with this label belong to another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The API's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

/// One port of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name:port`, for people.
    pub name: String,
    /// Transport protocol number.
    pub protocol: u8,
    /// The Service's port.
    pub port: u16,
    /// Its cluster addresses of this family.
    pub cluster_ips: Vec<IpAddr>,
    /// External and load balancer addresses of this family.
    pub external_ips: Vec<IpAddr>,
    /// The port of every node.
    pub node_port: Option<u16>,
    /// How long a client stays with its endpoint, in seconds.
    pub affinity: Option<u32>,
    /// `internalTrafficPolicy: Local`
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`
    pub external_local: bool,
    /// Where connections may go, on any node.
    pub endpoints: Vec<(IpAddr, u16)>,
    /// Where connections may go on this node.
    pub local: Vec<(IpAddr, u16)>,
}

/// All Services of one address family as one node sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The family.
    pub family: Family,
    /// The ports, ordered by name.
    pub ports: Vec<ServicePort>,
    /// Endpoint addresses on this node.
    pub local_addresses: BTreeSet<IpAddr>,
}

#[derive(Clone)]
struct Candidate {
    address: IpAddr,
    port: u16,
    local: bool,
    ready: bool,
    serving_terminating: bool,
    hints: Option<Vec<String>>,
}

fn protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

fn parse_all<'a>(family: Family, texts: impl Iterator<Item = &'a str>) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> =
        texts.filter_map(|text| text.parse().ok()).filter(|ip| Family::of(*ip) == family).collect();
    found.sort();
    found.dedup();
    found
}

impl Model {
    /// Reads the objects.
    pub fn new<S: Deref<Target = Service>, E: Deref<Target = EndpointSlice>>(
        family: Family,
        node: &str,
        services: &[S],
        slices: &[E],
    ) -> Self {
        let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
        let kind = if family == Family::Ip { "IPv4" } else { "IPv6" };
        for slice in slices.iter().map(Deref::deref).filter(|slice| slice.address_type == kind) {
            let labels = slice.metadata.labels.as_ref();
            let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else { continue };
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            by_service.entry((namespace, service)).or_default().push(slice);
        }
        let mut model = Self { family, ports: Vec::new(), local_addresses: BTreeSet::new() };
        for service in services {
            model.service(node, service, &by_service);
        }
        model.ports.sort_by(|a, b| (&a.name, a.protocol).cmp(&(&b.name, b.protocol)));
        model
    }

    fn service(&mut self, node: &str, service: &Service, slices: &BTreeMap<(&str, &str), Vec<&EndpointSlice>>) {
        let Some(spec) = &service.spec else { return };
        let metadata = &service.metadata;
        let foreign = metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME));
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        if foreign || kind == "ExternalName" {
            return;
        }
        let cluster_ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).map(String::as_str);
        // Headless Services say "None", which is no address.
        let cluster_ips = parse_all(self.family, cluster_ips);
        if cluster_ips.is_empty() {
            return;
        }
        let balancers = service.status.iter().filter_map(|s| s.load_balancer.as_ref()).flat_map(|b| b.ingress.iter());
        let balancers =
            balancers.flatten().filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_deref());
        let externals = spec.external_ips.iter().flatten().map(String::as_str).chain(balancers);
        let external_ips = parse_all(self.family, externals);
        let seconds = || {
            let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            let seconds = config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok());
            seconds.unwrap_or(AFFINITY_SECONDS)
        };
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(seconds);
        let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        let slices = slices.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        for port in spec.ports.iter().flatten() {
            let (Some(protocol), Ok(number)) = (protocol(port.protocol.as_deref()), u16::try_from(port.port)) else {
                continue;
            };
            let port_name = port.name.as_deref().unwrap_or_default();
            let candidates = candidates(node, slices, port_name, protocol);
            self.local_addresses.extend(candidates.iter().filter(|c| c.local).map(|c| c.address));
            let suffix = if port_name.is_empty() { String::new() } else { format!(":{port_name}") };
            let local: Vec<_> = candidates.iter().filter(|c| c.local).cloned().collect();
            self.ports.push(ServicePort {
                name: format!("{namespace}/{name}{suffix}"),
                protocol,
                port: number,
                cluster_ips: cluster_ips.clone(),
                external_ips: external_ips.clone(),
                node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0),
                affinity,
                internal_local: is_local(&spec.internal_traffic_policy),
                external_local: is_local(&spec.external_traffic_policy),
                endpoints: usable(&near(node, &candidates)),
                local: usable(&local),
            });
        }
    }
}

/// The endpoints of a port in the slices of its Service.
fn candidates(node: &str, slices: &[&EndpointSlice], port_name: &str, proto: u8) -> Vec<Candidate> {
    let mut found: BTreeMap<(IpAddr, u16), Candidate> = BTreeMap::new();
    for slice in slices {
        for port in slice.ports.iter().flatten() {
            let same = port.name.as_deref().unwrap_or_default() == port_name
                && protocol(port.protocol.as_deref()) == Some(proto);
            let Some(number) = port.port.and_then(|p| u16::try_from(p).ok()).filter(|_| same) else { continue };
            for endpoint in slice.endpoints.iter().flatten() {
                let Some(candidate) = candidate(node, endpoint, number) else { continue };
                let key = (candidate.address, number);
                // Two slices may both have it while one replaces the other; ready wins.
                let known = found.get(&key).is_some_and(|known| known.ready);
                if !known {
                    found.insert(key, candidate);
                }
            }
        }
    }
    found.into_values().collect()
}

fn candidate(node: &str, endpoint: &Endpoint, port: u16) -> Option<Candidate> {
    let address = endpoint.addresses.first()?.parse().ok()?;
    let conditions = endpoint.conditions.as_ref();
    // Unknown counts as ready, and serving as ready (API reference of EndpointConditions).
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    let hints = endpoint.hints.as_ref().and_then(|h| h.for_nodes.as_ref());
    Some(Candidate {
        address,
        port,
        local: endpoint.node_name.as_deref() == Some(node),
        ready,
        serving_terminating: serving && terminating,
        hints: hints.map(|nodes| nodes.iter().map(|n| n.name.clone()).collect()),
    })
}

/// The endpoints that hints direct this node to, if every ready one has hints and one names us
/// (`trafficDistribution: PreferSameNode`); all otherwise.
fn near(node: &str, candidates: &[Candidate]) -> Vec<Candidate> {
    let ready = || candidates.iter().filter(|c| c.ready);
    let names_us = |c: &Candidate| c.hints.as_ref().is_some_and(|nodes| nodes.iter().any(|n| n == node));
    if ready().all(|c| c.hints.is_some()) && ready().any(names_us) {
        return candidates.iter().filter(|c| names_us(c)).cloned().collect();
    }
    candidates.to_vec()
}

/// The ready ones or, when there is none, those that still serve while they terminate.
fn usable(candidates: &[Candidate]) -> Vec<(IpAddr, u16)> {
    let pick = |wanted: fn(&Candidate) -> bool| -> Vec<(IpAddr, u16)> {
        candidates.iter().filter(|c| wanted(c)).map(|c| (c.address, c.port)).collect()
    };
    let ready = pick(|c| c.ready);
    if ready.is_empty() { pick(|c| c.serving_terminating) } else { ready }
}
