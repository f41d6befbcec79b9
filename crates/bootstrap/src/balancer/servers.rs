//! What a node knows of the cluster's API servers, and in which order it turns to them. Pure.

use std::collections::BTreeSet;

/// How a server was when it was last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// It serves.
    Ready,
    /// Nobody has asked yet.
    Unknown,
    /// It answers, and wants no new clients: it starts, ends, or has no store.
    NotReady,
    /// It does not answer.
    Dead,
}

/// What came of asking a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is ready.
    Ready,
    /// It is there and not ready.
    NotReady,
    /// Nobody listens there.
    Refused,
    /// Nothing came in time, or the connection broke.
    Silent,
}

/// So many silences in a row are a death.
const SILENCES: u32 = 2;

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `host:port`.
    pub address: String,
    /// How it is.
    pub health: Health,
    silent: u32,
}

/// All that are known.
#[derive(Debug, Clone)]
pub struct Servers {
    seed: String,
    /// As they were learned; without the seed if it is none of them.
    learned: Vec<Server>,
    /// The seed's own state.
    fallback: Server,
    /// Different on each node, so that not all turn to the same server.
    offset: usize,
}

fn server(address: &str) -> Server {
    Server { address: address.into(), health: Health::Unknown, silent: 0 }
}

impl Servers {
    /// With the address that was given, and those that were remembered.
    pub fn new(seed: &str, remembered: &[String], offset: usize) -> Servers {
        let mut servers = Servers { seed: seed.into(), learned: Vec::new(), fallback: server(seed), offset };
        servers.learn(remembered);
        servers
    }

    /// Takes in what the cluster says of itself; whether that is news, and the servers that are no more. A cluster
    /// without any server says nothing.
    pub fn learn(&mut self, addresses: &[String]) -> (bool, Vec<String>) {
        let wanted: BTreeSet<&String> = addresses.iter().collect();
        if wanted.is_empty() || wanted == self.learned.iter().map(|s| &s.address).collect() {
            return (false, Vec::new());
        }
        let gone = self.learned.iter().filter(|s| !wanted.contains(&s.address) && s.address != self.seed).map(|s| s.address.clone()).collect();
        let known = |address: &str| self.learned.iter().find(|s| s.address == address).cloned();
        self.learned = wanted.into_iter().map(|address| known(address).unwrap_or_else(|| server(address))).collect();
        (true, gone)
    }

    /// What was learned.
    pub fn learned(&self) -> Vec<String> {
        self.learned.iter().map(|s| s.address.clone()).collect()
    }

    /// All servers, those that should be turned to first before the others. The address that was given may be a load
    /// balancer of somebody's: it comes after the servers, but before those that do not serve.
    pub fn order(&self) -> Vec<Server> {
        let count = self.learned.len();
        let mut order: Vec<Server> = (0..count).map(|i| self.learned[(i + self.offset) % count].clone()).collect();
        if !self.learned.iter().any(|s| s.address == self.seed) {
            order.push(self.fallback.clone());
        }
        order.sort_by_key(|s| s.health);
        order
    }

    /// Takes in an answer; whether the connections to that server are to be cut.
    pub fn report(&mut self, address: &str, answer: Answer) -> bool {
        let found = self.learned.iter_mut().chain([&mut self.fallback]).filter(|s| s.address == address);
        let mut cut = false;
        for server in found {
            let before = server.health;
            server.silent = if answer == Answer::Silent { server.silent + 1 } else { 0 };
            server.health = match answer {
                Answer::Ready => Health::Ready,
                Answer::NotReady => Health::NotReady,
                Answer::Refused => Health::Dead,
                Answer::Silent if server.silent >= SILENCES => Health::Dead,
                Answer::Silent => before,
            };
            cut |= server.health == Health::Dead && before != Health::Dead;
        }
        cut
    }

    /// How a server is.
    pub fn health(&self, address: &str) -> Option<Health> {
        self.order().into_iter().find(|s| s.address == address).map(|s| s.health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(offset: usize) -> Servers {
        Servers::new("lb:6443", &["a:1".into(), "b:1".into(), "c:1".into()], offset)
    }

    fn order(servers: &Servers) -> Vec<String> {
        servers.order().into_iter().map(|s| s.address).collect()
    }

    #[test]
    fn nodes_spread_and_turn_to_who_serves() {
        assert_eq!(order(&three(0)), ["a:1", "b:1", "c:1", "lb:6443"]);
        let mut servers = three(1);
        assert_eq!(order(&servers), ["b:1", "c:1", "a:1", "lb:6443"]);
        assert!(!servers.report("c:1", Answer::Ready));
        assert_eq!(order(&servers), ["c:1", "b:1", "a:1", "lb:6443"]);
        servers.report("b:1", Answer::NotReady);
        assert_eq!(order(&servers), ["c:1", "a:1", "lb:6443", "b:1"]);
        assert!(servers.report("c:1", Answer::Refused), "what is on its way there will not arrive");
        assert!(!servers.report("c:1", Answer::Refused), "once");
        assert_eq!(order(&servers), ["a:1", "lb:6443", "b:1", "c:1"]);
        servers.report("c:1", Answer::Ready);
        assert_eq!(order(&servers)[0], "c:1");
    }

    #[test]
    fn one_silence_is_no_death() {
        let mut servers = three(0);
        servers.report("a:1", Answer::Ready);
        assert!(!servers.report("a:1", Answer::Silent));
        assert_eq!(order(&servers)[0], "a:1");
        servers.report("a:1", Answer::Ready);
        assert!(!servers.report("a:1", Answer::Silent), "it answered in between");
        assert!(servers.report("a:1", Answer::Silent));
        assert_eq!(servers.health("a:1"), Some(Health::Dead));
    }

    #[test]
    fn servers_come_and_go_and_never_all() {
        let mut servers = three(0);
        servers.report("b:1", Answer::Ready);
        assert_eq!(servers.learn(&[]), (false, vec![]));
        assert_eq!(servers.learn(&["c:1".into(), "b:1".into(), "a:1".into()]), (false, vec![]));
        assert_eq!(servers.learn(&["b:1".into(), "d:1".into()]), (true, vec!["a:1".into(), "c:1".into()]));
        assert_eq!(order(&servers), ["b:1", "d:1", "lb:6443"], "b is as it was");
        let mut only = Servers::new("a:1", &[], 3);
        assert_eq!(order(&only), ["a:1"]);
        assert_eq!(only.learn(&["a:1".into()]), (true, vec![]));
        assert_eq!(order(&only), ["a:1"], "once");
        assert!(only.report("a:1", Answer::Refused));
    }
}
