//! The cluster's names: what Services and EndpointSlices mean to DNS. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Deref;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The names of a cluster.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Labels of the domain, lower case.
    domain: Vec<String>,
    serial: u32,
    /// Namespace to name to what it is.
    services: BTreeMap<String, BTreeMap<String, Entry>>,
    reverse: HashMap<IpAddr, BTreeSet<String>>,
}

#[derive(Clone, Debug)]
enum Content {
    Cluster { addresses: Vec<IpAddr>, ports: Vec<Port> },
    Headless,
    External(String),
}

#[derive(Clone, Debug)]
struct Entry {
    content: Content,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug)]
struct Endpoint {
    host: String,
    address: IpAddr,
    ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: String,
    protocol: &'static str,
    number: u16,
}

/// One place that a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The place's own full name, for SRV.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 when it has none.
    pub port: u16,
}

/// What a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Not in the cluster's domain.
    Foreign,
    /// In the domain, and does not exist.
    Missing,
    /// Exists without addresses: a domain that others lie in.
    Empty,
    /// Leads to these.
    Places(Vec<Place>),
    /// Another name for this one.
    Alias(String),
    /// The text of the specification's version.
    Version,
    /// The domain itself.
    Apex,
    /// An address' names.
    Pointers(Vec<String>),
}

fn protocol(name: Option<&str>) -> &'static str {
    match name.unwrap_or("TCP") {
        "UDP" => "udp",
        "SCTP" => "sctp",
        _ => "tcp",
    }
}

/// The label of an endpoint without host name.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

fn undashed(label: &str) -> Option<IpAddr> {
    let four = label.replace('-', ".").parse().map(IpAddr::V4);
    four.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6)).ok()
}

impl Zone {
    /// Reads the objects. The serial number is the caller's clock in seconds.
    pub fn new<S: Deref<Target = Service>, E: Deref<Target = EndpointSlice>>(
        domain: &str,
        serial: u32,
        services: &[S],
        slices: &[E],
    ) -> Self {
        let domain: Vec<String> =
            domain.split('.').filter(|l| !l.is_empty()).map(str::to_ascii_lowercase).collect();
        let mut zone = Self { domain, serial, services: BTreeMap::new(), reverse: HashMap::new() };
        let mut by_service: HashMap<(&str, &str), Vec<Endpoint>> = HashMap::new();
        for slice in slices {
            let labels = slice.metadata.labels.as_ref();
            let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else { continue };
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            by_service.entry((namespace, service)).or_default().extend(endpoints(slice));
        }
        for service in services {
            let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
            let name = service.metadata.name.as_deref().unwrap_or_default();
            let endpoints = by_service.remove(&(namespace, name)).unwrap_or_default();
            zone.add(namespace, name, service, endpoints);
        }
        zone
    }

    fn add(&mut self, namespace: &str, name: &str, service: &Service, mut endpoints: Vec<Endpoint>) {
        let Some(spec) = &service.spec else { return };
        let own = format!("{name}.{namespace}.svc.{}", self.domain());
        let content = if spec.type_.as_deref() == Some("ExternalName") {
            Content::External(spec.external_name.clone().unwrap_or_default())
        } else if spec.cluster_ip.as_deref() == Some("None") {
            for endpoint in &endpoints {
                let pointer = format!("{}.{own}", endpoint.host);
                self.reverse.entry(endpoint.address).or_default().insert(pointer);
            }
            Content::Headless
        } else {
            let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
            let mut addresses: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
            addresses.sort();
            addresses.dedup();
            if addresses.is_empty() {
                return;
            }
            for address in &addresses {
                self.reverse.entry(*address).or_default().insert(own.clone());
            }
            let ports = spec.ports.iter().flatten().map(|port| Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: protocol(port.protocol.as_deref()),
                number: u16::try_from(port.port).unwrap_or_default(),
            });
            Content::Cluster { addresses, ports: ports.collect() }
        };
        endpoints.sort_by(|a, b| (&a.host, a.address).cmp(&(&b.host, b.address)));
        let entries = self.services.entry(namespace.to_owned()).or_default();
        entries.insert(name.to_owned(), Entry { content, endpoints });
    }

    /// The domain without a final dot.
    pub fn domain(&self) -> String {
        self.domain.join(".")
    }

    /// The serial number.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// What a name is; labels in lower case, the root left out.
    pub fn lookup(&self, labels: &[String]) -> Lookup {
        if let Some(address) = reverse_address(labels) {
            return match self.reverse.get(&address) {
                Some(names) => Lookup::Pointers(names.iter().cloned().collect()),
                None => Lookup::Foreign,
            };
        }
        let Some(rest) = labels.strip_suffix(&self.domain[..]) else { return Lookup::Foreign };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        match &rest[..] {
            [] => Lookup::Apex,
            ["dns-version"] => Lookup::Version,
            ["dns" | "svc" | "pod"] => Lookup::Empty,
            ["ns", "dns"] => self.service("kube-system", "kube-dns", None, None),
            [namespace, "svc" | "pod"] if self.services.contains_key(*namespace) => Lookup::Empty,
            [pod, namespace, "pod"] if !namespace.is_empty() => self.pod(pod, namespace),
            [name, namespace, "svc"] => self.service(namespace, name, None, None),
            [host, name, namespace, "svc"] if !host.starts_with('_') => {
                self.service(namespace, name, Some(host), None)
            }
            [protocol, name, namespace, "svc"] if self.has_protocol(namespace, name, protocol) => Lookup::Empty,
            [port, protocol, name, namespace, "svc"] => {
                let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                    return Lookup::Missing;
                };
                self.service(namespace, name, None, Some((port, protocol)))
            }
            _ => Lookup::Missing,
        }
    }

    fn pod(&self, label: &str, namespace: &str) -> Lookup {
        let Some(address) = undashed(label) else { return Lookup::Missing };
        let name = format!("{label}.{namespace}.pod.{}", self.domain());
        Lookup::Places(vec![Place { name, address, port: 0 }])
    }

    fn has_protocol(&self, namespace: &str, name: &str, label: &str) -> bool {
        let Some(entry) = self.services.get(namespace).and_then(|s| s.get(name)) else { return false };
        let same = |port: &Port| label.strip_prefix('_') == Some(port.protocol) && !port.name.is_empty();
        match &entry.content {
            Content::Cluster { ports, .. } => ports.iter().any(same),
            Content::Headless => entry.endpoints.iter().any(|e| e.ports.iter().any(same)),
            Content::External(_) => false,
        }
    }

    fn service(&self, namespace: &str, name: &str, host: Option<&str>, port: Option<(&str, &str)>) -> Lookup {
        let Some(entry) = self.services.get(namespace).and_then(|services| services.get(name)) else {
            return Lookup::Missing;
        };
        let own = format!("{name}.{namespace}.svc.{}", self.domain());
        let wanted = |p: &&Port| port.is_none_or(|(name, protocol)| p.name == name && p.protocol == protocol);
        let mut places = Vec::new();
        match &entry.content {
            Content::External(target) => {
                return if host.is_none() && port.is_none() && !target.is_empty() {
                    Lookup::Alias(target.trim_end_matches('.').to_ascii_lowercase())
                } else {
                    Lookup::Missing
                };
            }
            Content::Cluster { addresses, ports } if host.is_none() => {
                for port in ports.iter().filter(wanted) {
                    let place = |address: &IpAddr| Place { name: own.clone(), address: *address, port: port.number };
                    places.extend(addresses.iter().map(place));
                }
                // A Service always has a port, unless it was made long ago.
                if ports.is_empty() && port.is_none() {
                    places.extend(addresses.iter().map(|a| Place { name: own.clone(), address: *a, port: 0 }));
                }
            }
            Content::Cluster { .. } | Content::Headless => {
                for endpoint in entry.endpoints.iter().filter(|e| host.is_none_or(|host| e.host == host)) {
                    let name = format!("{}.{own}", endpoint.host);
                    for port in endpoint.ports.iter().filter(wanted) {
                        places.push(Place { name: name.clone(), address: endpoint.address, port: port.number });
                    }
                    if endpoint.ports.is_empty() && port.is_none() {
                        places.push(Place { name, address: endpoint.address, port: 0 });
                    }
                }
            }
        }
        if places.is_empty() { Lookup::Missing } else { Lookup::Places(places) }
    }
}

fn endpoints(slice: &EndpointSlice) -> impl Iterator<Item = Endpoint> + '_ {
    let ports: Vec<Port> = slice
        .ports
        .iter()
        .flatten()
        .map(|port| Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: protocol(port.protocol.as_deref()),
            number: port.port.and_then(|p| u16::try_from(p).ok()).unwrap_or_default(),
        })
        .collect();
    let ready = |e: &&k8s_openapi::api::discovery::v1::Endpoint| {
        e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
    };
    slice.endpoints.iter().flatten().filter(ready).flat_map(move |endpoint| {
        let ports = ports.clone();
        endpoint.addresses.iter().filter_map(|a| a.parse().ok()).map(move |address| Endpoint {
            host: endpoint.hostname.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| dashed(address)),
            address,
            ports: ports.clone(),
        })
    })
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse_address(labels: &[String]) -> Option<IpAddr> {
    let [rest @ .., kind, arpa] = labels else { return None };
    if arpa != "arpa" {
        return None;
    }
    match (kind.as_str(), rest.len()) {
        ("in-addr", 4) => {
            let bytes: Vec<u8> = rest.iter().rev().filter_map(|l| l.parse().ok()).collect();
            <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from)
        }
        ("ip6", 32) => {
            let digits = rest.iter().rev().map(|l| u128::from_str_radix(l, 16).ok().filter(|d| *d < 16));
            let bits = digits.collect::<Option<Vec<_>>>()?.into_iter().fold(0, |bits, digit| bits << 4 | digit);
            Some(IpAddr::V6(bits.into()))
        }
        _ => None,
    }
}
