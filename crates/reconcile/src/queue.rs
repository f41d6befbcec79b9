//! A keyed work queue: a key waits at most once, is never worked on twice at a time, and comes back
//! after a growing delay when its work failed.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Tasks;
use crate::metrics::{Histogram, Numbers, Observed};

/// First delay after a failure; it doubles with each further one.
const BASE_DELAY: Duration = Duration::from_millis(5);
/// Longest delay after failures.
const MAX_DELAY: Duration = Duration::from_secs(1000);
/// Longest time for which a key that wants to come back later is not looked at: the clock by which it has
/// reckoned may jump, and the one that we wait by does not.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// A queue of keys. Clones are the same queue.
pub struct Queue<K>(Arc<Shared<K>>);

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Queue(self.0.clone())
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys that are to be worked on: those in `ready`, and those that came while being worked on.
    dirty: HashMap<K, Instant>,
    /// Since when each is worked on.
    working: HashMap<K, Instant>,
    delayed: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    sequence: u64,
    adds: u64,
    retries: u64,
    waited: Histogram,
    worked: Histogram,
}

impl<K: Clone + Eq + Hash + Send + 'static> Default for Queue<K> {
    fn default() -> Self {
        Queue::new()
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Queue<K> {
    /// An empty queue.
    pub fn new() -> Queue<K> {
        Queue(Arc::new(Shared {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashMap::new(),
                working: HashMap::new(),
                delayed: BTreeMap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
                sequence: 0,
                adds: 0,
                retries: 0,
                waited: Histogram::default(),
                worked: Histogram::default(),
            }),
            wake: Notify::new(),
        }))
    }

    /// Puts a key in; nothing happens when it already waits.
    pub fn add(&self, key: K) {
        self.0.state.lock().add(key);
        self.0.wake.notify_one();
    }

    /// Puts a key in after `delay`. When it is already due earlier, that stands.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.0.state.lock();
        let at = Instant::now() + delay;
        if let Some(&due) = state.due.get(&key) {
            if due.0 <= at {
                return;
            }
            state.delayed.remove(&due);
        }
        state.sequence += 1;
        let due = (at, state.sequence);
        state.delayed.insert(due, key.clone());
        state.due.insert(key, due);
        drop(state);
        self.0.wake.notify_one();
    }

    /// Puts a key in after a delay that doubles with each call, from 5 ms to 1000 s.
    pub fn add_rate_limited(&self, key: K) {
        let delay = {
            let mut state = self.0.state.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            let delay = BASE_DELAY.saturating_mul(1 << (*failures).min(20)).min(MAX_DELAY);
            *failures += 1;
            state.retries += 1;
            delay
        };
        self.add_after(key, delay);
    }

    /// Forgets the key's failures.
    pub fn forget(&self, key: &K) {
        self.0.state.lock().failures.remove(key);
    }

    /// How often in a row the key has failed.
    pub fn failures(&self, key: &K) -> u32 {
        self.0.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Keys that are ready to be worked on.
    pub fn len(&self) -> usize {
        self.0.state.lock().ready.len()
    }

    /// True when no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The queue as it is looked at for its counts.
    pub(crate) fn observed(&self) -> Weak<dyn Observed> {
        let shared: Arc<dyn Observed> = self.0.clone();
        Arc::downgrade(&shared)
    }

    /// Waits for a key. The caller must call [`Queue::done`] with it when the work is over.
    pub async fn next(&self) -> K {
        loop {
            let wait = {
                let mut state = self.0.state.lock();
                state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    let now = Instant::now();
                    if let Some(since) = state.dirty.remove(&key) {
                        state.waited.observe(now - since);
                    }
                    state.working.insert(key.clone(), now);
                    if !state.ready.is_empty() {
                        self.0.wake.notify_one();
                    }
                    return key;
                }
                state.delayed.first_key_value().map(|((at, _), _)| *at)
            };
            match wait {
                None => self.0.wake.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = self.0.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// The work on a key is over; when it was put in meanwhile, it is ready again.
    pub fn done(&self, key: &K) {
        let mut state = self.0.state.lock();
        if let Some(since) = state.working.remove(key) {
            state.worked.observe(since.elapsed());
        }
        if state.dirty.contains_key(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.0.wake.notify_one();
        }
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) {
        if self.dirty.contains_key(&key) {
            return;
        }
        self.adds += 1;
        self.dirty.insert(key.clone(), Instant::now());
        if !self.working.contains_key(&key) {
            self.ready.push_back(key);
        }
    }

    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
    }
}

impl<K: Send> Observed for Shared<K> {
    fn numbers(&self) -> Numbers {
        let state = self.state.lock();
        let running = || state.working.values().map(|since| since.elapsed());
        Numbers {
            depth: state.ready.len(),
            adds: state.adds,
            retries: state.retries,
            waited: state.waited.clone(),
            worked: state.worked.clone(),
            unfinished: running().sum(),
            longest: running().max().unwrap_or_default(),
        }
    }
}

/// What becomes of a key after its work succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeue {
    /// Nothing, until something changes.
    No,
    /// It comes back after this time.
    After(Duration),
}

/// What a panic says.
fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("of what is not known"))
}

/// Runs `workers` workers over `queue`, each named `name`. A key whose work fails is logged and
/// comes back after a growing delay; so does one over which the work panics.
pub fn run_workers<K, F, Fut, E>(tasks: &Tasks, name: &'static str, workers: usize, queue: Queue<K>, work: F)
where
    K: Clone + Eq + Hash + Debug + Send + Sync + 'static,
    F: Fn(K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Requeue, E>> + Send + 'static,
    E: Display + Send + 'static,
{
    let work = Arc::new(work);
    tasks.queues.register(name, queue.observed());
    for _ in 0..workers {
        let queue = queue.clone();
        let work = work.clone();
        tasks.spawn(name, async move {
            loop {
                let key = queue.next().await;
                // One key that the work cannot bear must not end the worker for all others.
                let outcome = match AssertUnwindSafe(async { work(key.clone()).await }).catch_unwind().await {
                    Ok(outcome) => outcome.map_err(|error| error.to_string()),
                    Err(panic) => Err(panicked(&*panic)),
                };
                match outcome {
                    Ok(Requeue::No) => queue.forget(&key),
                    Ok(Requeue::After(delay)) => {
                        queue.forget(&key);
                        queue.add_after(key.clone(), delay.min(LONGEST_WAIT));
                    }
                    Err(error) => {
                        let failures = queue.failures(&key);
                        if failures < 3 {
                            tracing::debug!(reconciler = name, ?key, "will try again: {error}");
                        } else {
                            tracing::warn!(reconciler = name, ?key, failures, "will try again: {error}");
                        }
                        queue.add_rate_limited(key.clone());
                    }
                }
                queue.done(&key);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_waits_once_and_is_not_worked_on_twice_at_a_time() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert!(queue.is_empty(), "it is being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn delays_are_kept_and_the_earlier_one_wins() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(900));
        queue.add_after("early", Duration::from_millis(5));
        queue.add_after("late", Duration::from_millis(30));
        queue.add_after("early", Duration::from_secs(500));
        assert_eq!(queue.next().await, "early");
        assert!(start.elapsed() >= Duration::from_millis(5));
        assert_eq!(queue.next().await, "late");
        assert!(start.elapsed() >= Duration::from_millis(30));
    }

    #[tokio::test]
    async fn failures_double_the_delay_until_forgotten() {
        let queue = Queue::new();
        let mut delays = Vec::new();
        for round in 0..5 {
            if round == 4 {
                queue.forget(&1);
            }
            let start = Instant::now();
            queue.add_rate_limited(1);
            queue.next().await;
            delays.push((start.elapsed(), queue.failures(&1)));
            queue.done(&1);
        }
        for (delay, (elapsed, _)) in [5, 10, 20, 40, 5].into_iter().zip(&delays) {
            assert!(*elapsed >= Duration::from_millis(delay), "{elapsed:?} is shorter than {delay} ms");
        }
        assert_eq!(delays.iter().map(|d| d.1).collect::<Vec<_>>(), [1, 2, 3, 4, 1]);
    }

    #[tokio::test]
    async fn a_key_that_makes_the_work_panic_does_not_stop_the_others() {
        let (tasks, queue, seen) = (Tasks::new(), Queue::new(), Arc::new(Mutex::new(Vec::new())));
        let (log, q) = (seen.clone(), queue.clone());
        run_workers(&tasks, "test", 1, queue, move |key: u32| {
            let log = log.clone();
            async move {
                log.lock().push(key);
                assert!(key != 1 || log.lock().len() > 2, "as the test wants");
                Ok::<_, String>(Requeue::No)
            }
        });
        q.add(1);
        q.add(2);
        let done = async {
            while *seen.lock() != [1, 2, 1] {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), done).await.expect("one is tried again, two in between");
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
    }
}
