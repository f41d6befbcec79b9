//! Pods that wait for a node: those that are ready by priority and age, those that wait a while after
//! a failure, those that no change has helped yet, and those behind gates. All times are given to it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pod::PodInfo;

/// An unschedulable pod is looked at again after this time though nothing changed.
const FORGOTTEN: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active(Reverse<i32>, u64),
    /// Until then.
    BackingOff(Instant, u64),
    /// Since then.
    Unschedulable(Instant, u64),
    Gated,
    /// Decided on, or being decided on.
    InFlight,
}

/// A pod that waits.
#[derive(Debug)]
pub(crate) struct Entry {
    pub pod: Arc<PodInfo>,
    /// Number of its profile.
    pub profile: usize,
    pub attempts: u32,
    /// Plug-ins that rejected it last.
    pub rejected_by: Vec<&'static str>,
    failed: Option<Instant>,
    place: Place,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Queue {
    entries: HashMap<Box<str>, Entry>,
    active: BTreeMap<(Reverse<i32>, u64), Box<str>>,
    backing_off: BTreeMap<(Instant, u64), Box<str>>,
    unschedulable: BTreeMap<(Instant, u64), Box<str>>,
    gated: HashSet<Box<str>>,
    number: u64,
    pub first_backoff: Duration,
    pub last_backoff: Duration,
}

impl Queue {
    pub fn new(first_backoff: Duration, last_backoff: Duration) -> Queue {
        Queue { first_backoff, last_backoff, ..Queue::default() }
    }

    /// A pod came or changed. One that waits goes on waiting, unless its own change may help it.
    pub fn put(&mut self, pod: &Arc<PodInfo>, profile: usize, gated: bool) {
        let uid: Box<str> = pod.uid().into();
        let Some(entry) = self.entries.get_mut(&uid) else {
            let place = if gated { Place::Gated } else { Place::InFlight };
            self.entries.insert(uid.clone(), Entry { pod: pod.clone(), profile, attempts: 0, rejected_by: Vec::new(), failed: None, place });
            if gated {
                self.gated.insert(uid);
            } else {
                self.activate(&uid);
            }
            return;
        };
        // What pods ask for cannot change but for tolerations, labels, gates and resources: each may help.
        let changed = !Arc::ptr_eq(&entry.pod.shape, &pod.shape) || entry.pod.made_claims != pod.made_claims;
        entry.pod = pod.clone();
        entry.profile = profile;
        match entry.place {
            Place::Gated if !gated => self.activate(&uid),
            Place::Unschedulable(..) if changed => self.ready(&uid),
            _ => {}
        }
    }

    fn leave(&mut self, uid: &str) {
        match self.entries.get(uid).map(|e| e.place) {
            Some(Place::Active(priority, n)) => drop(self.active.remove(&(priority, n))),
            Some(Place::BackingOff(at, n)) => drop(self.backing_off.remove(&(at, n))),
            Some(Place::Unschedulable(at, n)) => drop(self.unschedulable.remove(&(at, n))),
            Some(Place::Gated) => drop(self.gated.remove(uid)),
            _ => {}
        }
    }

    /// A pod is to be tried now.
    pub fn activate(&mut self, uid: &str) {
        self.leave(uid);
        self.number += 1;
        if let Some(entry) = self.entries.get_mut(uid) {
            let at = (Reverse(entry.pod.shape.priority), self.number);
            entry.place = Place::Active(at.0, at.1);
            self.active.insert(at, uid.into());
        }
    }

    /// A pod that waits for a change is to be tried at once.
    pub fn activate_waiting(&mut self, uid: &str) {
        if self.entries.get(uid).is_some_and(|e| matches!(e.place, Place::Unschedulable(..))) {
            self.activate(uid);
        }
    }

    /// A pod is to be tried once its back-off is over.
    pub fn ready(&mut self, uid: &str) {
        let Some(due) = self.entries.get(uid).map(|e| e.failed.map(|at| at + self.backoff(e.attempts))) else { return };
        let Some(due) = due else { return self.activate(uid) };
        self.leave(uid);
        self.number += 1;
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.place = Place::BackingOff(due, self.number);
            self.backing_off.insert((due, self.number), uid.into());
        }
    }

    fn backoff(&self, attempts: u32) -> Duration {
        (self.first_backoff * 2u32.saturating_pow(attempts.saturating_sub(1).min(20))).min(self.last_backoff)
    }

    /// A pod is bound, gone, or nobody's concern.
    pub fn remove(&mut self, uid: &str) {
        self.leave(uid);
        self.entries.remove(uid);
    }

    /// A pod that is bound by nobody yet.
    pub fn get(&self, uid: &str) -> Option<&Entry> {
        self.entries.get(uid)
    }

    /// The pod that is next.
    pub fn pop(&mut self) -> Option<&Entry> {
        let (_, uid) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InFlight;
        entry.attempts += 1;
        Some(entry)
    }

    /// A pod that was popped does not fit: it waits for something to change.
    pub fn failed(&mut self, uid: &str, rejected_by: Vec<&'static str>, now: Instant) {
        self.leave(uid);
        self.number += 1;
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.rejected_by = rejected_by;
            entry.failed = Some(now);
            entry.place = Place::Unschedulable(now, self.number);
            self.unschedulable.insert((now, self.number), uid.into());
        }
    }

    /// Something went wrong with a pod that was popped: it is tried again after its back-off.
    pub fn error(&mut self, uid: &str, now: Instant) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.rejected_by.clear();
            entry.failed = Some(now);
            self.ready(uid);
        }
    }

    /// True when nothing waits for a change.
    pub fn nobody_waits(&self) -> bool {
        self.unschedulable.is_empty()
    }

    /// Those that wait for a change and that it helps are tried again.
    pub fn wake(&mut self, mut helped: impl FnMut(&Entry) -> bool) {
        let woken: Vec<Box<str>> = self.unschedulable.values().filter(|uid| self.entries.get(*uid).is_some_and(&mut helped)).cloned().collect();
        woken.iter().for_each(|uid| self.ready(uid));
    }

    /// Those that are held and need not be any longer are tried.
    pub fn free(&mut self, mut freed: impl FnMut(&Entry) -> bool) {
        let freed: Vec<Box<str>> = self.gated.iter().filter(|uid| self.entries.get(*uid).is_some_and(&mut freed)).cloned().collect();
        freed.iter().for_each(|uid| self.activate(uid));
    }

    /// Makes those ready whose back-off is over, or that have waited for very long; returns when the
    /// next one is.
    pub fn promote(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, uid)) = self.backing_off.first_key_value().map(|((at, _), uid)| (*at, uid.clone()))
            && at <= now
        {
            self.activate(&uid);
        }
        while let Some((since, uid)) = self.unschedulable.first_key_value().map(|((at, _), uid)| (*at, uid.clone()))
            && since + FORGOTTEN <= now
        {
            self.ready(&uid);
            if self.backing_off.first_key_value().is_some_and(|((at, _), first)| *at <= now && *first == uid) {
                self.activate(&uid);
            }
        }
        let due = self.backing_off.keys().next().map(|(at, _)| *at);
        let forgotten = self.unschedulable.keys().next().map(|(at, _)| *at + FORGOTTEN);
        due.into_iter().chain(forgotten).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32, tolerations: serde_json::Value) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"priority": priority, "tolerations": tolerations}});
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn queue() -> Queue {
        Queue::new(Duration::from_secs(1), Duration::from_secs(10))
    }

    fn counts(queue: &Queue) -> [usize; 3] {
        [queue.active.len(), queue.backing_off.len(), queue.unschedulable.len()]
    }

    fn pop(queue: &mut Queue) -> Option<String> {
        queue.pop().map(|e| e.pod.name().to_string())
    }

    #[test]
    fn priority_goes_before_age() {
        let mut queue = queue();
        for (name, priority) in [("old", 0), ("new", 0), ("urgent", 5)] {
            queue.put(&pod(name, priority, json!([])), 0, false);
        }
        assert_eq!([pop(&mut queue), pop(&mut queue), pop(&mut queue), pop(&mut queue)], ["urgent", "old", "new"].map(|n| Some(n.to_string())).into_iter().chain([None]).collect::<Vec<_>>()[..]);
    }

    #[test]
    fn a_failed_pod_waits_for_a_change_and_its_back_off() {
        let (mut queue, begin) = (queue(), Instant::now());
        let seconds = |n: f64| begin + Duration::from_secs_f64(n);
        queue.put(&pod("p", 0, json!([])), 0, false);
        let mut at = 0.0;
        for wait in [1.0, 2.0, 4.0, 8.0, 10.0, 10.0] {
            assert_eq!(pop(&mut queue).as_deref(), Some("p"));
            queue.failed("p", vec!["NodeResourcesFit"], seconds(at));
            assert_eq!(queue.promote(seconds(at + 200.0)), Some(seconds(at + 300.0)), "nothing changed");
            queue.wake(|_| false);
            assert_eq!(counts(&queue)[2], 1, "the change did not help");
            queue.wake(|entry| entry.rejected_by == ["NodeResourcesFit"]);
            assert_eq!(queue.promote(seconds(at + wait - 0.1)), Some(seconds(at + wait)));
            assert_eq!(pop(&mut queue), None);
            at += wait;
            queue.promote(seconds(at));
        }
    }

    #[test]
    fn a_forgotten_pod_is_tried_after_five_minutes() {
        let (mut queue, begin) = (queue(), Instant::now());
        queue.put(&pod("p", 0, json!([])), 0, false);
        pop(&mut queue);
        queue.failed("p", vec!["NodePorts"], begin);
        queue.promote(begin + Duration::from_secs(299));
        assert_eq!(pop(&mut queue), None);
        queue.promote(begin + Duration::from_secs(301));
        assert_eq!(pop(&mut queue).as_deref(), Some("p"));
        // Unless its back-off is longer.
        let mut patient = Queue::new(Duration::from_secs(1000), Duration::from_secs(1000));
        patient.put(&pod("p", 0, json!([])), 0, false);
        pop(&mut patient);
        patient.failed("p", vec!["NodePorts"], begin);
        assert_eq!(patient.promote(begin + Duration::from_secs(301)), Some(begin + Duration::from_secs(1000)));
        assert_eq!(pop(&mut patient), None);
    }

    #[test]
    fn who_goes_leaves_the_others_in_their_places() {
        let (mut queue, begin) = (queue(), Instant::now());
        for name in ["a", "b", "c"] {
            queue.put(&pod(name, 0, json!([])), 0, false);
        }
        assert!(queue.nobody_waits());
        queue.remove("a");
        assert!(queue.get("a").is_none() && queue.get("b").is_some_and(|e| e.attempts == 0));
        // Two that fail at the same time are both there again.
        assert_eq!([pop(&mut queue), pop(&mut queue), pop(&mut queue)].map(Option::unwrap_or_default), ["b", "c", ""]);
        for name in ["b", "c"] {
            queue.failed(name, vec!["NodePorts"], begin);
        }
        assert!(!queue.nobody_waits());
        assert_eq!(counts(&queue), [0, 0, 2]);
        queue.wake(|_| true);
        assert_eq!(counts(&queue), [0, 2, 0]);
        queue.activate_waiting("b");
        assert_eq!(counts(&queue), [0, 2, 0], "its back-off goes on");
        queue.promote(begin + Duration::from_secs(1));
        assert_eq!([pop(&mut queue), pop(&mut queue)].map(Option::unwrap_or_default), ["b", "c"]);
        queue.failed("c", vec!["NodePorts"], begin);
        queue.activate_waiting("c");
        assert_eq!(pop(&mut queue).as_deref(), Some("c"));
    }

    #[test]
    fn gates_that_are_left_hold() {
        let mut queue = queue();
        queue.put(&pod("p", 0, json!([])), 0, true);
        queue.put(&pod("p", 0, json!([{"operator": "Exists"}])), 0, true);
        assert_eq!((pop(&mut queue), queue.gated.len()), (None, 1));
        queue.remove("p");
        assert_eq!(queue.gated.len(), 0);
    }

    #[test]
    fn gates_hold_and_a_pods_own_change_frees() {
        let (mut queue, begin) = (queue(), Instant::now());
        queue.put(&pod("gated", 0, json!([])), 0, true);
        assert_eq!(pop(&mut queue), None);
        queue.put(&pod("gated", 0, json!([])), 0, false);
        assert_eq!(pop(&mut queue).as_deref(), Some("gated"));
        queue.failed("gated", vec!["TaintToleration"], begin);
        queue.put(&pod("gated", 0, json!([])), 0, false);
        assert_eq!(counts(&queue), [0, 0, 1], "the same again does not help");
        queue.put(&pod("gated", 0, json!([{"operator": "Exists"}])), 0, false);
        assert_eq!(counts(&queue), [0, 1, 0]);
        queue.remove("gated");
        assert_eq!(counts(&queue), [0, 0, 0]);
    }

    #[test]
    fn an_error_is_retried_without_a_change() {
        let (mut queue, begin) = (queue(), Instant::now());
        queue.put(&pod("p", 0, json!([])), 0, false);
        pop(&mut queue);
        queue.error("p", begin);
        assert_eq!(queue.promote(begin), Some(begin + Duration::from_secs(1)));
        queue.promote(begin + Duration::from_secs(1));
        assert_eq!(pop(&mut queue).as_deref(), Some("p"));
    }
}
