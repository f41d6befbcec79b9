//! When a node takes the address, keeps it and gives it up. Pure.

use std::time::{Duration, Instant};

/// Who has not seen the key written for so long may take it.
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
    /// The key was ours, and is written again.
    Mine,
    /// It was ours, and is not any more.
    Lost,
    /// It is another node's.
    Others {
        /// Which wrote it last.
        revision: i64,
    },
    /// There is none.
    Free,
    /// etcd did not answer, or was not asked.
    Unknown,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Try to be the one.
    Compete {
        /// The revision that wrote the key, if nobody has done so since; 0 where there is none.
        seen: i64,
    },
    /// Have the kernel keep the address for so long.
    Hold {
        /// From now.
        seconds: u32,
        /// It was not here before.
        new: bool,
    },
    /// Take it away, and the key too.
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
    /// Nobody else takes the key before that.
    until: Option<Instant>,
    /// The revision that wrote another one's key, and when it was first seen.
    watched: Option<(i64, Instant)>,
    /// Whether the kernel has the address.
    here: bool,
}

impl Candidate {
    /// The key is ours since a question that was asked then.
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
            Seen::Lost | Seen::Others { .. } | Seen::Free => self.until = None,
            Seen::Unknown => {}
        }
        let free = match seen {
            Seen::Free => Some(0),
            Seen::Others { revision } => {
                let since = self.watched.filter(|(at, _)| *at == revision).map_or(now, |(_, since)| since);
                self.watched = Some((revision, since));
                (asked.saturating_duration_since(since) >= LEASE).then_some(revision)
            }
            _ => None,
        };
        let seconds = self.until.map_or(0, |until| until.saturating_duration_since(now + MARGIN).as_secs() as u32);
        if !self.fit || seconds == 0 {
            let had = std::mem::take(&mut self.here) || (seen == Seen::Mine && !self.fit && self.until.is_some());
            self.until = None;
            return match free {
                _ if had => Action::Drop { why: if self.fit { "etcd could not be told in time that it is" } else { "the server is not ready" } },
                Some(seen) if self.fit => Action::Compete { seen },
                _ => Action::Nothing,
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

    const OTHERS: Seen = Seen::Others { revision: 7 };

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
            node.look(true, OTHERS);
            assert_eq!(node.look(true, Seen::Free), Action::Compete { seen: 0 });
            node.0.won(node.1);
            assert_eq!(node.look(true, Seen::Mine), Action::Hold { seconds: 4, new: true });
            node
        }
    }

    #[test]
    fn a_node_that_is_ready_takes_what_is_free() {
        let mut node = Node::new();
        assert_eq!(node.look(true, Seen::Free), Action::Nothing, "once is not enough");
        assert_eq!(node.look(true, OTHERS), Action::Nothing);
        assert_eq!(node.look(true, Seen::Unknown), Action::Nothing);
        assert_eq!(node.look(true, Seen::Free), Action::Compete { seen: 0 });
        let mut ill = Node::new();
        for _ in 0..5 {
            assert_eq!(ill.look(false, Seen::Free), Action::Nothing);
        }
    }

    #[test]
    fn what_nobody_writes_any_more_is_taken() {
        let mut node = Node::new();
        for revision in 1..30 {
            assert_eq!(node.look(true, Seen::Others { revision }), Action::Nothing, "somebody writes");
        }
        let since = node.1;
        while node.1 < since + LEASE - Duration::from_millis(500) {
            assert_eq!(node.look(true, Seen::Others { revision: 29 }), Action::Nothing);
            assert_eq!(node.0.decide(true, Seen::Unknown, node.1, node.1), Action::Nothing);
        }
        assert_eq!(node.look(true, Seen::Others { revision: 29 }), Action::Compete { seen: 29 });
        assert_eq!(node.look(true, Seen::Others { revision: 30 }), Action::Nothing, "somebody was faster");
        // An answer that was late: it was asked for before the time was over.
        let asked = node.1;
        assert_eq!(node.0.decide(true, Seen::Others { revision: 30 }, asked, asked + LEASE), Action::Nothing);
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
        assert_eq!(node.look(true, Seen::Free), Action::Compete { seen: 0 }, "well again");
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
        assert_eq!(last, Action::Drop { why: "etcd could not be told in time that it is" });
        assert_eq!(Node::holding().look(true, Seen::Lost), Action::Drop { why: "etcd could not be told in time that it is" });
    }
}
