//! Whether the rules of nf_tables that are in force let the cluster's connections in. They are read as `nft` lists them,
//! and each needed port is followed through them; what cannot be known of a packet beforehand (who sends it, how fast)
//! counts in its favour.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::Findings;

/// A range of ports that others must reach here, and what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needed {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The first one.
    pub from: u16,
    /// The last one.
    pub to: u16,
    /// Who listens.
    pub what: &'static str,
}

impl Needed {
    /// `6443/tcp`, as firewalls write it.
    pub fn text(&self) -> String {
        let Needed { protocol, from, to, .. } = self;
        if from == to { format!("{from}/{protocol}") } else { format!("{from}-{to}/{protocol}") }
    }
}

/// What others reach on a node, by the port tables of upstream's installation guide; the overlay's port is knarr's.
pub fn ports(api_server: Option<u16>, etcd: bool) -> Vec<Needed> {
    let mut all = Vec::new();
    if let Some(port) = api_server {
        all.push(Needed { protocol: "tcp", from: port, to: port, what: "API server" });
    }
    if etcd {
        all.push(Needed { protocol: "tcp", from: 2379, to: 2380, what: "etcd" });
    }
    all.push(Needed { protocol: "tcp", from: super::KUBELET_PORT, to: super::KUBELET_PORT, what: "kubelet" });
    all.push(Needed { protocol: "tcp", from: 30000, to: 32767, what: "NodePort services" });
    all.push(Needed { protocol: "udp", from: 8472, to: 8472, what: "pod network (VXLAN)" });
    all
}

/// Tells of chains that keep others away from the needed ports. Rules that firewalld made are firewalld's affair.
pub fn check(findings: &mut Findings, needed: &[Needed], firewalld: bool) {
    let Some(rules) = listed() else { return };
    for closed in closed(&rules, needed) {
        if firewalld && closed.table == "firewalld" {
            continue;
        }
        findings.warn("Firewall", closed.text());
    }
}

/// The rules in force; none where there is no `nft` to list them.
fn listed() -> Option<Value> {
    let output = Command::new("nft").args(["-j", "list", "ruleset"]).stdin(Stdio::null()).output().ok()?;
    serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
}

/// A base chain, and what it keeps out.
#[derive(Debug, PartialEq)]
struct Closed {
    family: String,
    table: String,
    chain: String,
    hook: String,
    ports: Vec<Needed>,
}

impl Closed {
    fn text(&self) -> String {
        let Closed { family, table, chain, hook, .. } = self;
        let place = format!("the chain {chain:?} of the nf_tables table \"{family} {table}\"");
        if hook == "forward" {
            return format!(
                "{place} drops what this machine passes on: pods would not be reached from other machines; \
                 nft insert rule {family} {table} {chain} accept, or set its policy to accept, and the same in /etc/nftables.conf for the next boot"
            );
        }
        let names: Vec<String> = self.ports.iter().map(|p| format!("{} ({})", p.text(), p.what)).collect();
        let rules = ["tcp", "udp"].into_iter().filter_map(|protocol| {
            let ranges = self.ports.iter().filter(|p| p.protocol == protocol);
            let list: Vec<String> = ranges.map(|p| p.text().trim_end_matches(&format!("/{protocol}")).to_string()).collect();
            (!list.is_empty()).then(|| format!("nft insert rule {family} {table} {chain} {protocol} dport '{{ {} }}' accept", list.join(", ")))
        });
        let rules: Vec<String> = rules.collect();
        format!(
            "{place} lets nobody in at {}: other machines of the cluster could not reach this one there; {}, and the same in /etc/nftables.conf for the next boot",
            names.join(", "),
            rules.join("; ")
        )
    }
}

/// Which chains keep out what.
fn closed(listed: &Value, needed: &[Needed]) -> Vec<Closed> {
    let rules = Rules(listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default());
    let mut all = Vec::new();
    for chain in rules.of("chain").filter(|c| matches!(word(c, "family"), "inet" | "ip") && matches!(word(c, "hook"), "input" | "forward")) {
        let policy = word(chain, "policy") != "drop";
        let passes = |packet: Packet| match rules.follow(chain, word(chain, "name"), packet, 0) {
            End::Decided(accepted) => accepted,
            End::Left => policy,
        };
        let hook = word(chain, "hook");
        let ports: Vec<Needed> = match hook {
            "input" => {
                let out = |n: &&Needed| [n.from, n.to].into_iter().any(|port| !passes(Packet { protocol: n.protocol, port: Some(port) }));
                needed.iter().filter(out).copied().collect()
            }
            // Any port of a pod.
            _ if !passes(Packet { protocol: "tcp", port: None }) => needed.to_vec(),
            _ => Vec::new(),
        };
        if !ports.is_empty() {
            let text = |key: &str| word(chain, key).to_string();
            all.push(Closed { family: text("family"), table: text("table"), chain: text("name"), hook: hook.into(), ports });
        }
    }
    all
}

fn word<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

/// The first packet of a connection from another machine.
#[derive(Clone, Copy)]
struct Packet {
    protocol: &'static str,
    /// None for: whichever.
    port: Option<u16>,
}

/// How a chain ends for a packet.
enum End {
    /// It is accepted, or it is not.
    Decided(bool),
    /// No rule decides.
    Left,
}

struct Rules<'a>(&'a [Value]);

impl<'a> Rules<'a> {
    fn of(&self, kind: &'static str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter_map(move |object| object.get(kind))
    }

    /// What becomes of a packet in a chain of the same table.
    fn follow(&self, of: &Value, chain: &str, packet: Packet, depth: usize) -> End {
        let here = |rule: &&Value| word(rule, "chain") == chain && word(rule, "family") == word(of, "family") && word(rule, "table") == word(of, "table");
        // The kernel itself allows sixteen.
        if depth > 16 {
            return End::Left;
        }
        for rule in self.of("rule").filter(here) {
            match self.rule(of, rule, packet, depth) {
                Some(Step::Done(end)) => return end,
                Some(Step::Return) => return End::Left,
                None => {}
            }
        }
        End::Left
    }

    fn rule(&self, of: &Value, rule: &Value, packet: Packet, depth: usize) -> Option<Step> {
        let mut sure = true;
        for statement in rule["expr"].as_array().into_iter().flatten() {
            if let Some(condition) = statement.get("match") {
                match self.holds(of, &condition["left"], word(condition, "op"), &condition["right"], packet) {
                    Some(false) => return None,
                    Some(true) => {}
                    None => sure = false,
                }
            } else if statement.get("limit").is_some() || statement.get("xt").is_some() {
                sure = false;
            } else if let Some(map) = statement.get("vmap") {
                let entries = self.elements(of, &map["data"]);
                let found = entries.into_iter().find(|e| self.holds(of, &map["key"], "==", &e[0], packet) == Some(true));
                if let Some(step) = found.and_then(|e| self.verdict(of, &e[1], sure, packet, depth)) {
                    return Some(step);
                }
            } else if let Some(step) = self.verdict(of, statement, sure, packet, depth) {
                return Some(step);
            }
        }
        None
    }

    /// What a verdict does; who may be meant is let in, and is not kept out.
    fn verdict(&self, of: &Value, statement: &Value, sure: bool, packet: Packet, depth: usize) -> Option<Step> {
        let has = |name: &str| statement.get(name).is_some();
        if has("accept") || has("queue") {
            return Some(Step::Done(End::Decided(true)));
        }
        if has("drop") || has("reject") {
            return sure.then_some(Step::Done(End::Decided(false)));
        }
        if has("return") {
            return sure.then_some(Step::Return);
        }
        for name in ["jump", "goto"] {
            let Some(target) = statement.get(name).and_then(|j| j["target"].as_str()) else { continue };
            return match self.follow(of, target, packet, depth + 1) {
                End::Decided(true) => Some(Step::Done(End::Decided(true))),
                End::Decided(false) => sure.then_some(Step::Done(End::Decided(false))),
                End::Left if name == "goto" && sure => Some(Step::Return),
                End::Left => None,
            };
        }
        None
    }

    /// Whether a condition holds, where that can be known.
    fn holds(&self, of: &Value, left: &Value, op: &str, right: &Value, packet: Packet) -> Option<bool> {
        let plain = self.is(of, left, right, packet);
        match op {
            "==" | "in" => plain,
            "!=" => plain.map(|it| !it),
            // An order of something that is not looked at.
            _ => None,
        }
    }

    fn is(&self, of: &Value, left: &Value, right: &Value, packet: Packet) -> Option<bool> {
        if let Some(payload) = left.get("payload") {
            let (protocol, field) = (word(payload, "protocol"), word(payload, "field"));
            return match (protocol, field) {
                ("ip", "protocol") | ("ip6", "nexthdr") => Some(self.contains(of, right, &packet.protocol.into())),
                ("tcp" | "udp", _) if protocol != packet.protocol => Some(false),
                ("tcp" | "udp" | "th", "dport") => packet.port.map(|port| self.contains(of, right, &port.into())),
                ("icmp" | "icmpv6" | "sctp" | "dccp" | "udplite" | "esp" | "ah", _) => Some(false),
                // Knarr's nodes reach each other by IPv4.
                ("ip6", _) => Some(false),
                _ => None,
            };
        }
        if left["ct"]["key"] == "state" {
            return Some(self.contains(of, right, &"new".into()));
        }
        match word(&left["meta"], "key") {
            "l4proto" => Some(self.contains(of, right, &packet.protocol.into())),
            "nfproto" => Some(self.contains(of, right, &"ipv4".into())),
            "iif" | "iifname" if right == "lo" => Some(false),
            _ => None,
        }
    }

    fn contains(&self, of: &Value, right: &Value, value: &Value) -> bool {
        if let Some(range) = right["range"].as_array() {
            let number = |v: &Value| v.as_u64();
            let (Some(from), Some(to), Some(it)) = (range.first().and_then(number), range.get(1).and_then(number), value.as_u64()) else { return false };
            return (from..=to).contains(&it);
        }
        let all = self.elements(of, right);
        if all.is_empty() { right == value } else { all.iter().any(|one| self.contains(of, one, value)) }
    }

    /// The elements of a list, a set in place, or a set or map that has a name.
    fn elements(&self, of: &Value, right: &Value) -> Vec<Value> {
        let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
        if let Some(elem) = right.get("elem").filter(|e| e.get("val").is_some()) {
            return vec![elem["val"].clone()];
        }
        match right {
            Value::Array(all) => all.clone(),
            Value::Object(_) => list(&right["set"]),
            Value::String(name) if name.starts_with('@') => {
                let named = |s: &&Value| word(s, "name") == &name[1..] && word(s, "table") == word(of, "table") && word(s, "family") == word(of, "family");
                self.of("set").chain(self.of("map")).find(named).map(|s| list(&s["elem"])).unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }
}

/// What a rule does with a packet that it is about.
enum Step {
    Done(End),
    Return,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A table with one base chain and one other, each with rules in `nft`'s form.
    fn table(policy: &str, base: Vec<Value>, other: Vec<Value>) -> Value {
        let place = |chain: &str, expr: Value| json!({"rule": {"family": "inet", "table": "filter", "chain": chain, "handle": 1, "expr": expr}});
        let mut all = vec![
            json!({"metainfo": {"version": "1.0.6"}}),
            json!({"table": {"family": "inet", "name": "filter"}}),
            json!({"set": {"family": "inet", "name": "allowed", "table": "filter", "type": "inet_service", "elem": [22, {"range": [2379, 2380]}]}}),
            json!({"chain": {"family": "inet", "table": "filter", "name": "other"}}),
            json!({"chain": {"family": "inet", "table": "filter", "name": "input", "type": "filter", "hook": "input", "prio": 0, "policy": policy}}),
        ];
        all.extend(base.into_iter().map(|e| place("input", e)));
        all.extend(other.into_iter().map(|e| place("other", e)));
        json!({"nftables": all})
    }

    fn dport(protocol: &str, right: Value) -> Value {
        json!({"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": "dport"}}, "right": right}})
    }

    fn kept_out(rules: &Value) -> Vec<String> {
        closed(rules, &ports(Some(6443), true)).iter().flat_map(|c| c.ports.iter().map(Needed::text)).collect()
    }

    #[test]
    fn what_a_server_of_a_distribution_has() {
        let ours = vec![
            json!([{"match": {"op": "==", "left": {"meta": {"key": "iif"}}, "right": "lo"}}, {"accept": null}]),
            json!([{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}]),
            json!([{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}], ["established", {"accept": null}]]}}}]),
            json!([{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "protocol"}}, "right": "icmp"}}, {"accept": null}]),
            json!([dport("tcp", json!({"set": [22, 6443, {"range": [30000, 32767]}]})), {"counter": {"packets": 0, "bytes": 0}}, {"accept": null}]),
        ];
        let rules = table("drop", ours, vec![]);
        assert_eq!(kept_out(&rules), ["2379-2380/tcp", "10250/tcp", "8472/udp"]);
        let text = closed(&rules, &ports(Some(6443), true))[0].text();
        for part in ["\"inet filter\"", "10250/tcp (kubelet)", "nft insert rule inet filter input tcp dport '{ 2379-2380, 10250 }' accept", "udp dport '{ 8472 }' accept", "/etc/nftables.conf"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }

    #[test]
    fn rules_decide_before_the_policy() {
        assert!(kept_out(&table("drop", vec![json!([{"accept": null}])], vec![])).is_empty());
        let all = ports(Some(6443), true).len();
        assert_eq!(kept_out(&table("accept", vec![json!([{"counter": null}, {"reject": {"type": "icmpx"}}])], vec![])).len(), all, "a last rule that rejects");
        // what is limited or depends on the sender may be meant for others
        let limited = vec![json!([{"limit": {"rate": 5, "per": "minute"}}, {"drop": null}])];
        assert!(kept_out(&table("accept", limited, vec![])).is_empty());
        let from = json!({"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "10.0.0.0", "len": 8}}}});
        assert!(kept_out(&table("drop", vec![json!([from, {"accept": null}])], vec![])).is_empty());
        assert!(kept_out(&table("accept", vec![], vec![json!([{"drop": null}])])).is_empty(), "nobody goes there");
    }

    #[test]
    fn chains_sets_and_maps_are_followed() {
        let jump = vec![json!([{"jump": {"target": "other"}}]), json!([{"drop": null}])];
        let other = vec![
            json!([dport("tcp", json!("@allowed")), {"accept": null}]),
            json!([{"vmap": {"key": {"payload": {"protocol": "th", "field": "dport"}}, "data": {"set": [[8472, {"accept": null}], [10250, {"drop": null}]]}}}]),
            json!([{"match": {"op": "!=", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}, {"return": null}]),
            json!([dport("tcp", json!({"range": [6000, 32767]})), {"accept": null}]),
        ];
        assert_eq!(kept_out(&table("accept", jump, other)), ["10250/tcp"]);
        // a chain that leads to itself has an end
        assert!(kept_out(&table("accept", vec![json!([{"jump": {"target": "other"}}])], vec![json!([{"goto": {"target": "other"}}])])).is_empty());
    }

    #[test]
    fn what_is_passed_on_to_pods() {
        let chain = json!({"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}});
        let all = closed(&json!({"nftables": [chain]}), &ports(None, false));
        assert!(all[0].text().contains("pods would not be reached"), "{}", all[0].text());
        assert!(closed(&json!({}), &ports(None, false)).is_empty());
    }
}
