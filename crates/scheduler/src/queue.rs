//! Pods that wait for a node: ready ones by priority and age, and unschedulable ones that a change may
//! help, after a back-off.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Namespace and name.
pub(crate) type Key = (String, String);

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// An unschedulable pod is looked at again after this time though nothing changed.
const FORGOTTEN: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy)]
struct Waiting {
    attempts: u32,
    since: Instant,
    /// Something changed that may help it.
    hopeful: bool,
}

/// The queue. All times are given to it.
#[derive(Default)]
pub(crate) struct Pending {
    /// By descending priority, then age.
    ready: BTreeSet<(i64, i64, Key)>,
    index: HashMap<Key, (i64, i64)>,
    waiting: HashMap<Key, Waiting>,
    order: HashMap<Key, (i64, i64)>,
}

impl Pending {
    /// A pod came or changed: it is ready, unless it waits and the change is none that helps.
    pub fn put(&mut self, key: Key, priority: i32, created: i64) {
        let order = (-i64::from(priority), created);
        self.order.insert(key.clone(), order);
        if self.waiting.contains_key(&key) {
            return;
        }
        self.make_ready(key, order);
    }

    fn make_ready(&mut self, key: Key, order: (i64, i64)) {
        if let Some(old) = self.index.insert(key.clone(), order) {
            self.ready.remove(&(old.0, old.1, key.clone()));
        }
        self.ready.insert((order.0, order.1, key));
    }

    /// A pod is bound or gone.
    pub fn remove(&mut self, key: &Key) {
        self.order.remove(key);
        self.waiting.remove(key);
        if let Some(old) = self.index.remove(key) {
            self.ready.remove(&(old.0, old.1, key.clone()));
        }
    }

    /// The most important ready pod, with the number of its failed attempts.
    pub fn pop(&mut self) -> Option<Key> {
        let (_, _, key) = self.ready.pop_first()?;
        self.index.remove(&key);
        Some(key)
    }

    /// A pod did not fit.
    pub fn failed(&mut self, key: Key, attempts: u32, now: Instant) {
        if self.order.contains_key(&key) {
            self.waiting.insert(key, Waiting { attempts, since: now, hopeful: false });
        }
    }

    /// Something changed that may help those that wait.
    pub fn changed(&mut self) {
        self.waiting.values_mut().for_each(|w| w.hopeful = true);
    }

    /// A pod itself changed so that it may fit now.
    pub fn changed_one(&mut self, key: &Key) {
        if let Some(waiting) = self.waiting.get_mut(key) {
            waiting.hopeful = true;
        }
    }

    fn due(waiting: &Waiting) -> Instant {
        if !waiting.hopeful {
            return waiting.since + FORGOTTEN;
        }
        let factor = 1u32 << waiting.attempts.saturating_sub(1).min(8);
        waiting.since + (FIRST_BACKOFF * factor).min(LAST_BACKOFF)
    }

    /// Makes those ready whose back-off is over; returns when the next one is.
    pub fn promote(&mut self, now: Instant, attempts: &mut HashMap<Key, u32>) -> Option<Instant> {
        let over: Vec<Key> = self.waiting.iter().filter(|(_, w)| Self::due(w) <= now).map(|(k, _)| k.clone()).collect();
        for key in over {
            if let Some(waiting) = self.waiting.remove(&key) {
                attempts.insert(key.clone(), waiting.attempts);
            }
            if let Some(order) = self.order.get(&key).copied() {
                self.make_ready(key, order);
            }
        }
        self.waiting.values().map(Self::due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("ns".into(), name.into())
    }

    #[test]
    fn priority_goes_before_age_and_failures_back_off() {
        let (mut queue, mut attempts) = (Pending::default(), HashMap::new());
        queue.put(key("old"), 0, 1);
        queue.put(key("young"), 0, 2);
        queue.put(key("vip"), 1000, 3);
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(key("vip")), Some(key("old")), Some(key("young"))]);
        let now = Instant::now();
        queue.failed(key("old"), 2, now);
        assert_eq!(queue.promote(now + Duration::from_secs(5), &mut attempts), Some(now + FORGOTTEN));
        queue.changed();
        assert_eq!(queue.promote(now, &mut attempts), Some(now + Duration::from_secs(2)));
        assert_eq!(queue.promote(now + Duration::from_secs(2), &mut attempts), None);
        assert_eq!((queue.pop(), attempts[&key("old")]), (Some(key("old")), 2));
        queue.failed(key("old"), 3, now);
        queue.remove(&key("old"));
        queue.changed();
        assert_eq!(queue.promote(now + FORGOTTEN, &mut attempts), None);
        assert_eq!(queue.pop(), None);
    }
}
