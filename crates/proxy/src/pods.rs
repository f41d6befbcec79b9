//! The pod network's own rules: masquerade of what leaves the cluster, host ports, and a guard for
//! loopback addresses (which `route_localnet` on pod links would open to pods).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use nft::{
    Elements, Family, Field, Hook, HookKind, HookPoint, Key, Nftables, Rule, RuleSet, Set, Statement, Type, Verdict,
    ct_status,
};

use crate::rules::to_this_machine;
use crate::{MASQUERADE_MARK, Range};

/// What the pod network of a node wants of the packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// This node's pod range.
    pub pod_cidr: Range,
    /// The pod ranges of the cluster.
    pub cluster_cidrs: Vec<Range>,
    /// How names of the host's ends of pod links begin.
    pub link_prefix: String,
    /// Protocol number, address of the node if one is wanted, port of the node, pod, port of the pod.
    pub host_ports: Vec<(u8, Option<IpAddr>, u16, Ipv4Addr, u16)>,
}

/// Keeps the table `<prefix>-pods`.
pub struct PodRules {
    nft: Arc<dyn Nftables>,
    table: String,
    last: Mutex<Option<RuleSet>>,
}

impl PodRules {
    /// Rules in a table whose name begins with this prefix.
    pub fn new(nft: Arc<dyn Nftables>, prefix: &str) -> Self {
        Self { nft, table: table(prefix), last: Mutex::new(None) }
    }

    /// Puts the rules in force. Blocks for a transaction.
    pub fn apply(&self, network: &PodNetwork) -> nft::Result<()> {
        let rules = compile(&self.table, network);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut result = self.nft.apply(last.as_ref(), &rules);
        if result.is_err() && last.is_some() {
            // Somebody may have removed the table.
            result = self.nft.apply(None, &rules);
        }
        *last = result.is_ok().then_some(rules);
        result
    }
}

pub(crate) fn table(prefix: &str) -> String {
    format!("{prefix}-pods")
}

/// The rule set of a pod network.
fn compile(table: &str, network: &PodNetwork) -> RuleSet {
    let mut rules = RuleSet::new(Family::Ip, table, "rules for the pod network");
    let hook = |kind, point, priority| Some(Hook { kind, point, priority });
    let loopback = || IpAddr::from(Ipv4Addr::new(127, 0, 0, 0));

    rules.chain(
        "raw-prerouting",
        hook(HookKind::Filter, HookPoint::Prerouting, -300),
        vec![
            Rule::new([
                Statement::Is(Field::InputLink, network.link_prefix.as_bytes().to_vec()),
                Statement::In(Field::DestinationAddress, loopback(), 8),
                Statement::Verdict(Verdict::Drop),
            ])
            .comment("loopback is not the pods'"),
        ],
    );

    let mut hairpins = BTreeMap::new();
    let mut ports = Vec::new();
    for (protocol, address, port, pod, pod_port) in &network.host_ports {
        let pod = IpAddr::from(*pod);
        let mut statements = vec![
            Statement::Is(Field::Protocol, vec![*protocol]),
            Statement::Is(Field::DestinationPort, port.to_be_bytes().to_vec()),
        ];
        if let Some(address) = address.filter(|a| a.is_ipv4() && !a.is_unspecified()) {
            statements.push(Statement::Is(Field::DestinationAddress, nft::address_bytes(address)));
        }
        statements.push(Statement::Dnat(vec![(pod, *pod_port)]));
        ports.push(Rule::new(statements));
        hairpins.insert(Key::new().address(pod).address(pod), None);
    }
    rules.chain("host-ports", None, ports);
    let key = vec![Type::Address, Type::Address];
    rules.sets.insert("hairpins".into(), Set { key, elements: Elements::Keys(hairpins) });
    let jump = || Statement::Verdict(Verdict::Jump("host-ports".into()));
    for (name, point) in [("nat-prerouting", HookPoint::Prerouting), ("nat-output", HookPoint::Output)] {
        rules.chain(name, hook(HookKind::Nat, point, -100), vec![Rule::new([to_this_machine(), jump()])]);
    }

    let translated = || Statement::HasBits(Field::ConnectionStatus, ct_status::DNAT);
    let pods = network.pod_cidr;
    let mut leaving = vec![
        Statement::In(Field::SourceAddress, pods.address, pods.length),
        Statement::NotIn(Field::DestinationAddress, pods.address, pods.length),
    ];
    leaving.extend(
        network
            .cluster_cidrs
            .iter()
            .filter(|r| r.address.is_ipv4())
            .map(|r| Statement::NotIn(Field::DestinationAddress, r.address, r.length)),
    );
    leaving.push(Statement::HasNotBits(Field::Mark, MASQUERADE_MARK));
    leaving.push(Statement::Masquerade);
    rules.chain(
        "nat-postrouting",
        hook(HookKind::Nat, HookPoint::Postrouting, 99),
        vec![
            Rule::new([
                translated(),
                Statement::In(Field::SourceAddress, loopback(), 8),
                Statement::NotIn(Field::DestinationAddress, loopback(), 8),
                Statement::Masquerade,
            ])
            .comment("from the node by its loopback address"),
            Rule::new([
                translated(),
                Statement::InSet(vec![Field::SourceAddress, Field::DestinationAddress], "hairpins".into()),
                Statement::Masquerade,
            ])
            .comment("pods that reach themselves"),
            Rule::new(leaving).comment("from pods to outside the cluster"),
        ],
    );
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use nft::fake::{Fake, Machine, Outcome, Packet};

    fn delivered(to: &str, port: u16, masqueraded: bool) -> Outcome {
        Outcome::Delivered { to: (to.parse().unwrap(), port), masqueraded }
    }

    #[test]
    fn masquerade_host_ports_and_loopback() {
        let fake = Arc::new(Fake::new());
        let rules = PodRules::new(fake.clone(), "t");
        let mut network = PodNetwork {
            pod_cidr: "10.244.0.0/24".parse().unwrap(),
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            link_prefix: "knarr".into(),
            host_ports: vec![(6, None, 80, Ipv4Addr::new(10, 244, 0, 2), 8080)],
        };
        rules.apply(&network).unwrap();
        let addresses = ["192.0.2.1", "127.0.0.1", "10.244.0.1"].map(|a| a.parse().unwrap()).to_vec();
        let machine = Machine { addresses, route: |_| "knarr0", random: 0 };
        let trace = |packet| fake.trace(&machine, packet);
        assert_eq!(trace(Packet::tcp("10.244.0.2", "1.1.1.1", 443, "knarr0")), delivered("1.1.1.1", 443, true));
        assert_eq!(trace(Packet::tcp("10.244.0.2", "10.244.7.2", 1, "knarr0")), delivered("10.244.7.2", 1, false));
        assert_eq!(trace(Packet::tcp("198.51.100.1", "192.0.2.1", 80, "eth0")), delivered("10.244.0.2", 8080, false));
        assert_eq!(trace(Packet::tcp("198.51.100.1", "192.0.2.1", 81, "eth0")), delivered("192.0.2.1", 81, false));
        assert_eq!(trace(Packet::tcp("10.244.0.2", "192.0.2.1", 80, "knarr0")), delivered("10.244.0.2", 8080, true));
        let own = Packet::tcp("127.0.0.1", "127.0.0.1", 80, "").local();
        assert_eq!(trace(own), delivered("10.244.0.2", 8080, true));
        assert_eq!(trace(Packet::tcp("10.244.0.2", "127.0.0.1", 10250, "knarr0")), Outcome::Dropped);
        network.host_ports.clear();
        rules.apply(&network).unwrap();
        assert_eq!(trace(Packet::tcp("198.51.100.1", "192.0.2.1", 80, "eth0")), delivered("192.0.2.1", 80, false));
    }
}
