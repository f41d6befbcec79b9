//! From the model to the rule set. Pure.
//!
//! ```text
//! prerouting, output (nat)  → services → map of service addresses ─┬→ cluster-… ┬→ (ep-…) → dnat
//!                                      → map of node ports ────────┴→ external-…┴→ local-…
//! prerouting, output (filter) → unreachable → maps of what has no endpoint → reject or drop
//! postrouting (nat)         → masquerade what is marked, and pods that reach themselves
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use nft::{
    Elements, Family, Field, Hook, HookKind, HookPoint, Key, LOCAL, Reject, Rule, RuleSet, Set, Statement, Type,
    Verdict, ct_state, ct_status,
};

use crate::{Config, MASQUERADE_MARK, Model, ServicePort};

/// Clients remembered an endpoint, at most.
const AFFINITY_CLIENTS: u32 = 65_535;

const TCP: u8 = 6;

const SERVICE_IPS: &str = "service-ips";
const NODE_PORTS: &str = "node-ports";
const EMPTY_IPS: &str = "no-endpoint-ips";
const EMPTY_NODE_PORTS: &str = "no-endpoint-node-ports";
const CLUSTER_IPS: &str = "cluster-ips";
const HAIRPINS: &str = "hairpins";

fn hook(kind: HookKind, point: HookPoint, priority: i32) -> Option<Hook> {
    Some(Hook { kind, point, priority })
}

/// Sets the bit that asks for masquerade.
pub(crate) fn mark() -> Statement {
    // Clearing before flipping makes it the same whether the bit was set or not.
    Statement::Mark { keep: !MASQUERADE_MARK, flip: MASQUERADE_MARK }
}

fn unmark() -> Statement {
    Statement::Mark { keep: !MASQUERADE_MARK, flip: 0 }
}

pub(crate) fn to_this_machine() -> Statement {
    Statement::Is(Field::DestinationType, LOCAL.to_ne_bytes().to_vec())
}

fn goto(chain: impl Into<String>) -> Verdict {
    Verdict::Goto(chain.into())
}

/// A name that is stable while the service port exists and short enough for nf_tables.
fn identifier(port: &ServicePort) -> String {
    let text = format!("{}/{}/{}", port.name, port.protocol, port.port);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

/// Compiles the rule set.
pub fn compile(config: &Config, model: &Model) -> RuleSet {
    let mut rules = RuleSet::new(model.family, config.table(), "rules for services");
    let mut maps = Maps::default();
    for port in &model.ports {
        service_port(config, &mut rules, &mut maps, port);
    }
    for address in &model.local_addresses {
        maps.hairpins.insert(Key::new().address(*address).address(*address), None);
    }
    base_chains(config, model.family, &mut rules);
    maps.install(&mut rules);
    rules
}

#[derive(Default)]
struct Maps {
    service_ips: BTreeMap<Key, Verdict>,
    node_ports: BTreeMap<Key, Verdict>,
    empty_ips: BTreeMap<Key, Verdict>,
    empty_node_ports: BTreeMap<Key, Verdict>,
    cluster_ips: BTreeMap<Key, Option<String>>,
    hairpins: BTreeMap<Key, Option<String>>,
}

impl Maps {
    fn install(self, rules: &mut RuleSet) {
        let destination = || vec![Type::Address, Type::Protocol, Type::Port];
        let port = || vec![Type::Protocol, Type::Port];
        let mut add = |name: &str, key, elements| rules.sets.insert(name.to_owned(), Set { key, elements });
        add(SERVICE_IPS, destination(), Elements::Verdicts(self.service_ips));
        add(NODE_PORTS, port(), Elements::Verdicts(self.node_ports));
        add(EMPTY_IPS, destination(), Elements::Verdicts(self.empty_ips));
        add(EMPTY_NODE_PORTS, port(), Elements::Verdicts(self.empty_node_ports));
        add(CLUSTER_IPS, vec![Type::Address], Elements::Keys(self.cluster_ips));
        add(HAIRPINS, vec![Type::Address, Type::Address], Elements::Keys(self.hairpins));
    }
}

fn base_chains(config: &Config, family: Family, rules: &mut RuleSet) {
    let destination = vec![Field::DestinationAddress, Field::Protocol, Field::DestinationPort];
    let port = vec![Field::Protocol, Field::DestinationPort];
    let jump = |chain: &str| Statement::Verdict(Verdict::Jump(chain.into()));

    let mut from_outside = vec![Statement::InSet(vec![Field::DestinationAddress], CLUSTER_IPS.into())];
    let ranges: Vec<_> = config.cluster_cidrs.iter().filter(|r| Family::of(r.address) == family).collect();
    from_outside.extend(ranges.iter().map(|r| Statement::NotIn(Field::SourceAddress, r.address, r.length)));
    from_outside.push(mark());
    let mut services = Vec::new();
    if !ranges.is_empty() {
        services.push(Rule::new(from_outside).comment("masquerade what does not come from pods"));
    }
    services.push(Rule::new([Statement::Map(destination.clone(), SERVICE_IPS.into())]));
    services.push(Rule::new([to_this_machine(), Statement::Map(port.clone(), NODE_PORTS.into())]));
    rules.chain("services", None, services);

    let new = || Statement::HasBits(Field::ConnectionState, ct_state::NEW);
    rules.chain(
        "unreachable",
        None,
        vec![
            Rule::new([Statement::Map(destination, EMPTY_IPS.into())]),
            Rule::new([to_this_machine(), Statement::Map(port, EMPTY_NODE_PORTS.into())]),
            Rule::new([
                Statement::InSet(vec![Field::DestinationAddress], CLUSTER_IPS.into()),
                Statement::Verdict(goto("reject")),
            ])
            .comment("ports that the service does not have"),
        ],
    );
    // An ICMP error that arrives while connect() still holds the socket, as it does over a veth pair,
    // is not noticed before the retransmission a second later; a reset is.
    rules.chain(
        "reject",
        None,
        vec![
            Rule::new([Statement::Is(Field::Protocol, vec![TCP]), Statement::Reject(Reject::TcpReset)]),
            Rule::new([Statement::Reject(Reject::PortUnreachable)]),
        ],
    );

    for (name, point) in [("prerouting", HookPoint::Prerouting), ("output", HookPoint::Output)] {
        let nat = hook(HookKind::Nat, point, -100);
        rules.chain(format!("nat-{name}"), nat, vec![Rule::new([jump("services")])]);
        let filter = hook(HookKind::Filter, point, 0);
        rules.chain(format!("filter-{name}"), filter, vec![Rule::new([new(), jump("unreachable")])]);
    }
    rules.chain(
        "nat-postrouting",
        hook(HookKind::Nat, HookPoint::Postrouting, 100),
        vec![
            Rule::new([Statement::HasBits(Field::Mark, MASQUERADE_MARK), unmark(), Statement::Masquerade]),
            Rule::new([
                Statement::HasBits(Field::ConnectionStatus, ct_status::DNAT),
                Statement::InSet(vec![Field::SourceAddress, Field::DestinationAddress], HAIRPINS.into()),
                Statement::Masquerade,
            ])
            .comment("pods that reach themselves"),
        ],
    );
}

fn service_port(config: &Config, rules: &mut RuleSet, maps: &mut Maps, port: &ServicePort) {
    let id = identifier(port);
    let (cluster, local, external) = (format!("cluster-{id}"), format!("local-{id}"), format!("external-{id}"));
    if !port.endpoints.is_empty() {
        endpoints(rules, &cluster, &id, port, &port.endpoints);
    }
    let needs_local = port.internal_local || port.external_local;
    if needs_local && !port.local.is_empty() {
        endpoints(rules, &local, &id, port, &port.local);
    }

    let (inside, inside_empty) = if port.internal_local {
        (&local, port.local.is_empty())
    } else {
        (&cluster, port.endpoints.is_empty())
    };
    // No endpoint at all is refused; none here, while there are elsewhere, is a silent drop, because
    // a balancer in front is about to choose another node.
    let empty = if port.endpoints.is_empty() { goto("reject") } else { Verdict::Drop };
    for address in &port.cluster_ips {
        let key = Key::new().address(*address).protocol(port.protocol).port(port.port);
        maps.cluster_ips.insert(Key::new().address(*address), None);
        if inside_empty {
            maps.empty_ips.insert(key, empty.clone());
        } else {
            maps.service_ips.insert(key, goto(inside));
        }
    }

    if port.external_ips.is_empty() && port.node_port.is_none() {
        return;
    }
    let outside_empty = port.endpoints.is_empty();
    if !outside_empty {
        external_chain(config, rules, &external, &cluster, &local, port);
    }
    let verdict = if outside_empty { goto("reject") } else { goto(&external) };
    for address in &port.external_ips {
        let key = Key::new().address(*address).protocol(port.protocol).port(port.port);
        let map = if outside_empty { &mut maps.empty_ips } else { &mut maps.service_ips };
        map.insert(key.clone(), verdict.clone());
        if !outside_empty && port.external_local && port.local.is_empty() {
            maps.empty_ips.insert(key, Verdict::Drop);
        }
    }
    if let Some(number) = port.node_port {
        let key = Key::new().protocol(port.protocol).port(number);
        let map = if outside_empty { &mut maps.empty_node_ports } else { &mut maps.node_ports };
        map.insert(key.clone(), verdict);
        if !outside_empty && port.external_local && port.local.is_empty() {
            maps.empty_node_ports.insert(key, Verdict::Drop);
        }
    }
}

/// What comes for an external address or a node port.
fn external_chain(config: &Config, rules: &mut RuleSet, name: &str, cluster: &str, local: &str, port: &ServicePort) {
    let cluster = || Statement::Verdict(goto(cluster));
    let content = if port.external_local {
        // Pods and the node itself are inside: they may be sent anywhere.
        let mut content: Vec<Rule> = config
            .cluster_cidrs
            .iter()
            .filter(|r| rules.family == Family::of(r.address))
            .map(|r| Rule::new([Statement::In(Field::SourceAddress, r.address, r.length), cluster()]))
            .collect();
        let from_here = Statement::Is(Field::SourceType, LOCAL.to_ne_bytes().to_vec());
        content.push(Rule::new([from_here, mark(), cluster()]));
        if !port.local.is_empty() {
            // The client's address is kept.
            content.push(Rule::new([Statement::Verdict(goto(local))]));
        }
        content
    } else {
        vec![Rule::new([mark(), cluster()])]
    };
    rules.chain(name, None, with_comment(content, port));
}

fn with_comment(mut rules: Vec<Rule>, port: &ServicePort) -> Vec<Rule> {
    if let Some(first) = rules.first_mut() {
        first.comment = Some(port.name.clone());
    }
    rules
}

/// The chain that chooses among endpoints.
fn endpoints(rules: &mut RuleSet, chain: &str, id: &str, port: &ServicePort, targets: &[(IpAddr, u16)]) {
    let Some(seconds) = port.affinity else {
        let content = vec![Rule::new([Statement::Dnat(targets.to_vec())])];
        rules.chain(chain, None, with_comment(content, port));
        return;
    };
    let client = || vec![Field::SourceAddress];
    let mut content = Vec::new();
    let mut chains = Vec::new();
    for target in targets {
        // The cluster's and the local choice share what is remembered of an endpoint.
        let name = format!("ep-{id}-{}-{}", target.0, target.1);
        content.push(Rule::new([Statement::InSet(client(), name.clone()), Statement::Verdict(goto(&name))]));
        let elements = Elements::Dynamic(AFFINITY_CLIENTS);
        rules.sets.insert(name.clone(), Set { key: vec![Type::Address], elements });
        rules.chain(
            name.clone(),
            None,
            vec![Rule::new([Statement::Remember(client(), name.clone(), seconds), Statement::Dnat(vec![*target])])],
        );
        chains.push(name);
    }
    content.push(Rule::new([Statement::GotoRandom(chains)]));
    rules.chain(chain, None, with_comment(content, port));
}
