//! When a node takes the address, keeps it and gives it up. Pure.

use std::time::{Duration, Instant};

/// How long a lease lasts in etcd after it was renewed.
pub const LEASE: Duration = Duration::from_secs(5);
/// So much earlier the kernel lets go of the address: it counts in whole seconds, and looks now and then.
const MARGIN: Duration = Duration::from_secs(1);
/// A server that was not ready so often in a row gives the address up.
const BAD: u32 = 4;
/// One that was ready so often in a row may have it.
const GOOD: u32 = 2;

/// What etcd says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The lease is ours, and was renewed.
    Mine,
    /// It was ours, and has run out.
    Lost,
    /// Another node has the address.
    Others,
    /// Nobody has it.
    Free,
    /// etcd did not answer.
    Unknown,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Try to be the one.
    Compete,
    /// Have the kernel keep the address for so long.
    Hold {
        /// From now.
        seconds: u32,
        /// It was not here before.
        new: bool,
    },
    /// Take it away, and give up the lease.
    Drop {
        /// The reason.
        why: &'static str,
    },
}

/// What a node remembers between two looks.
#[derive(Debug, Default)]
pub struct Candidate {
    good: u32,
    bad: u32,
    fit: bool,
    /// The lease lasts until then at least.
    until: Option<Instant>,
    /// Whether the kernel has the address.
    here: bool,
}

impl Candidate {
    /// The lease is ours since a question that was asked then.
    pub fn won(&mut self, asked: Instant) {
        self.until = Some(asked + LEASE);
    }

    /// Decides, from whether the server is ready and what etcd said to a question that was asked at `asked`.
    pub fn decide(&mut self, ready: bool, seen: Seen, asked: Instant, now: Instant) -> Action {
        if ready {
            (self.good, self.bad) = (self.good + 1, 0);
        } else {
            (self.good, self.bad) = (0, self.bad + 1);
        }
        // Not to and fro under load.
        self.fit = if self.fit { self.bad < BAD } else { self.good >= GOOD };
        match seen {
            Seen::Mine => self.until = Some(asked + LEASE),
            Seen::Lost | Seen::Others | Seen::Free => self.until = None,
            Seen::Unknown => {}
        }
        let seconds = self.until.map_or(0, |until| until.saturating_duration_since(now + MARGIN).as_secs() as u32);
        if !self.fit || seconds == 0 {
            let had = std::mem::take(&mut self.here) || (seen == Seen::Mine && !self.fit && self.until.is_some());
            let free = seen == Seen::Free && self.fit;
            self.until = None;
            return match (had, free) {
                (true, _) => Action::Drop { why: if self.fit { "the lease could not be renewed in time" } else { "the server is not ready" } },
                (false, true) => Action::Compete,
                (false, false) => Action::Nothing,
            };
        }
        let new = !std::mem::replace(&mut self.here, true);
        // What was not renewed is not prolonged.
        if seen == Seen::Mine || new { Action::Hold { seconds, new } } else { Action::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node(Candidate, Instant);

    impl Node {
        fn new() -> Node {
            Node(Candidate::default(), Instant::now())
        }

        fn look(&mut self, ready: bool, seen: Seen) -> Action {
            self.1 += Duration::from_millis(500);
            self.0.decide(ready, seen, self.1, self.1)
        }

        fn holding() -> Node {
            let mut node = Node::new();
            node.look(true, Seen::Others);
            assert_eq!(node.look(true, Seen::Free), Action::Compete);
            node.0.won(node.1);
            assert_eq!(node.look(true, Seen::Mine), Action::Hold { seconds: 4, new: true });
            node
        }
    }

    #[test]
    fn a_node_that_is_ready_takes_what_is_free() {
        let mut node = Node::new();
        assert_eq!(node.look(true, Seen::Free), Action::Nothing, "once is not enough");
        assert_eq!(node.look(true, Seen::Others), Action::Nothing);
        assert_eq!(node.look(true, Seen::Unknown), Action::Nothing);
        assert_eq!(node.look(true, Seen::Free), Action::Compete);
        let mut ill = Node::new();
        for _ in 0..5 {
            assert_eq!(ill.look(false, Seen::Free), Action::Nothing);
        }
    }

    #[test]
    fn it_is_kept_under_load_and_given_up_in_need() {
        let mut node = Node::holding();
        for ready in [true, false, false, false, true, false, true] {
            assert_eq!(node.look(ready, Seen::Mine), Action::Hold { seconds: 4, new: false });
        }
        for _ in 0..3 {
            node.look(false, Seen::Mine);
        }
        assert_eq!(node.look(false, Seen::Mine), Action::Drop { why: "the server is not ready" });
        assert_eq!(node.look(false, Seen::Free), Action::Nothing);
        assert_eq!(node.look(true, Seen::Free), Action::Nothing);
        assert_eq!(node.look(true, Seen::Free), Action::Compete, "well again");
    }

    #[test]
    fn what_is_not_renewed_is_not_kept_for_longer_than_it_lasts() {
        let mut node = Node::holding();
        let renewed = node.1;
        let mut last = Action::Nothing;
        while !matches!(last, Action::Drop { .. }) {
            last = node.look(true, Seen::Unknown);
            assert!(!matches!(last, Action::Hold { .. }), "{last:?}");
            assert!(node.1 < renewed + LEASE, "somebody else may have it");
        }
        assert_eq!(last, Action::Drop { why: "the lease could not be renewed in time" });
        assert_eq!(Node::holding().look(true, Seen::Lost), Action::Drop { why: "the lease could not be renewed in time" });
    }
}
