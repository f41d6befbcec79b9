//! A backend and its mode: whether requests wait until their events are there, and how events are gathered if not.
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::config::{BatchConfig, TruncateConfig};
use super::counters::Counters;
use super::event::Event;
use super::hook::{self, Hook};
use super::log::{self, Log};

/// Batches that are on their way at once; while a server is gone, the rest waits in the buffer.
const UNDERWAY: usize = 64;
const BUFFERED: &str = "buffered";

/// Where events go.
#[derive(Clone)]
pub(super) enum Backend {
    Log(Log),
    Hook(Arc<Hook>),
}

impl Backend {
    async fn deliver(&self, events: Vec<Arc<Event>>, counters: &Counters) -> bool {
        match self {
            Backend::Hook(hook) => hook.deliver(&events).await,
            Backend::Log(log) => match log.offer(events) {
                Ok(written) => written.await.unwrap_or(false),
                Err(events) => {
                    counters.failed(log::PLUGIN, "audit buffer queue blocked", &events);
                    false
                }
            },
        }
    }
}

enum Item {
    Event(Arc<Event>),
    Flush(oneshot::Sender<()>),
}

/// A backend in one of the modes.
pub(super) struct Sink {
    backend: Backend,
    /// What waits to be gathered, in the mode `batch`.
    queue: Option<mpsc::Sender<Item>>,
    /// A request whose first event is lost is refused.
    pub strict: bool,
    truncate: Option<TruncateConfig>,
    counters: Arc<Counters>,
    /// Deliveries of events on their own.
    tasks: TaskTracker,
}

/// What became of an event that was given to a sink.
pub(super) enum Offered {
    Done(bool),
    /// It will be known.
    Waits(oneshot::Receiver<bool>),
}

impl Sink {
    /// Starts the gathering, if there is any; within a runtime.
    pub fn start(backend: Backend, mode: &str, batch: &BatchConfig, truncate: &TruncateConfig, counters: Arc<Counters>) -> Sink {
        let limits = truncate.enabled.then(|| truncate.clone());
        let queue = (mode == "batch").then(|| {
            let (sender, receiver) = mpsc::channel(usize::try_from(batch.buffer_size).unwrap_or(1).max(1));
            let gatherer = Gatherer::new(backend.clone(), batch, limits.as_ref(), counters.clone());
            tokio::spawn(gatherer.run(receiver));
            sender
        });
        Sink { backend, queue, strict: mode == "blocking-strict", truncate: limits, counters, tasks: TaskTracker::new() }
    }

    /// Takes an event. Never waits.
    pub fn offer(&self, event: &Arc<Event>) -> Offered {
        let event = match &self.truncate {
            None => event.clone(),
            Some(limits) => match event.truncated(usize::try_from(limits.max_event_size).unwrap_or(0)) {
                Some(event) => event,
                None => {
                    self.counters.failed("truncate", "event is too large even after truncating", std::slice::from_ref(event));
                    return Offered::Done(true);
                }
            },
        };
        if let Some(queue) = &self.queue {
            if let Err(refused) = queue.try_send(Item::Event(event)) {
                let why = if matches!(refused, mpsc::error::TrySendError::Full(_)) { "audit buffer queue blocked" } else { "audit backend shut down" };
                if let Item::Event(event) = refused.into_inner() {
                    self.counters.failed(BUFFERED, why, &[event]);
                }
            }
            return Offered::Done(true);
        }
        match &self.backend {
            Backend::Log(log) => match log.offer(vec![event]) {
                Ok(written) => Offered::Waits(written),
                Err(events) => {
                    self.counters.failed(log::PLUGIN, "audit buffer queue blocked", &events);
                    Offered::Done(false)
                }
            },
            Backend::Hook(hook) => {
                // a request may end with the runtime itself
                let Ok(runtime) = tokio::runtime::Handle::try_current() else {
                    self.counters.failed(hook::PLUGIN, "audit backend shut down", &[event]);
                    return Offered::Done(false);
                };
                let (hook, (done, sent)) = (hook.clone(), oneshot::channel());
                // who waits for it may give up; it is sent all the same
                let delivery = async move {
                    let _ = done.send(hook.deliver(&[event]).await);
                };
                self.tasks.spawn_on(delivery, &runtime);
                Offered::Waits(sent)
            }
        }
    }

    /// Returns when everything is delivered, or given up, that was taken so far.
    pub async fn flush(&self) {
        if let Some(queue) = &self.queue {
            let (done, flushed) = oneshot::channel();
            if queue.send(Item::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
        if let Backend::Log(log) = &self.backend {
            log.flush().await;
        }
    }

    /// Events that wait to be gathered.
    pub fn waiting(&self) -> usize {
        self.queue.as_ref().map_or(0, |q| q.max_capacity() - q.capacity())
    }
}

/// Makes batches of events.
struct Gatherer {
    backend: Backend,
    size: usize,
    /// In bytes, of the events of a batch.
    bytes: Option<usize>,
    wait: Duration,
    throttle: Option<Throttle>,
    counters: Arc<Counters>,
    underway: Arc<Semaphore>,
    deliveries: JoinSet<()>,
}

impl Gatherer {
    fn new(backend: Backend, config: &BatchConfig, limits: Option<&TruncateConfig>, counters: Arc<Counters>) -> Gatherer {
        // Lines of a file come one after the other.
        let underway = if matches!(backend, Backend::Log(_)) { 1 } else { UNDERWAY };
        Gatherer {
            backend,
            size: usize::try_from(config.max_size).unwrap_or(1).max(1),
            bytes: limits.and_then(|l| usize::try_from(l.max_batch_size).ok()),
            wait: config.max_wait,
            throttle: config.throttle.then(|| Throttle::new(config.qps, config.burst)),
            counters,
            underway: Arc::new(Semaphore::new(underway)),
            deliveries: JoinSet::new(),
        }
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Item>) {
        loop {
            let Some(first) = queue.recv().await else { break };
            let mut batch = Vec::new();
            let mut flush = None;
            match first {
                Item::Event(event) => batch.push(event),
                Item::Flush(done) => flush = Some(done),
            }
            let until = Instant::now() + self.wait;
            while flush.is_none() && batch.len() < self.size {
                match tokio::time::timeout_at(until, queue.recv()).await {
                    Ok(Some(Item::Event(event))) => batch.push(event),
                    Ok(Some(Item::Flush(done))) => flush = Some(done),
                    Ok(None) | Err(_) => break,
                }
            }
            for part in parts(batch, self.bytes) {
                self.send(part).await;
            }
            if let Some(done) = flush {
                while self.deliveries.join_next().await.is_some() {}
                let _ = done.send(());
            }
        }
        while self.deliveries.join_next().await.is_some() {}
    }

    async fn send(&mut self, batch: Vec<Arc<Event>>) {
        if let Some(throttle) = &self.throttle {
            throttle.turn().await;
        }
        while self.deliveries.try_join_next().is_some() {}
        let Ok(place) = self.underway.clone().acquire_owned().await else { return };
        let (backend, counters) = (self.backend.clone(), self.counters.clone());
        self.deliveries.spawn(async move {
            backend.deliver(batch, &counters).await;
            drop(place);
        });
    }
}

/// A batch as batches whose events together are no larger than this, in bytes.
fn parts(batch: Vec<Arc<Event>>, bytes: Option<usize>) -> Vec<Vec<Arc<Event>>> {
    let Some(most) = bytes else { return if batch.is_empty() { Vec::new() } else { vec![batch] } };
    let mut parts: Vec<Vec<Arc<Event>>> = Vec::new();
    let mut size = 0;
    for event in batch {
        let own = event.to_json().len();
        match parts.last_mut().filter(|_| size + own <= most) {
            Some(part) => {
                part.push(event);
                size += own;
            }
            None => {
                parts.push(vec![event]);
                size = own;
            }
        }
    }
    parts
}

/// A bucket of tokens: so many a second, and so many at once after a rest.
struct Throttle {
    qps: f64,
    burst: f64,
    /// How many there were, and when.
    tokens: Mutex<(f64, Instant)>,
}

impl Throttle {
    fn new(qps: f64, burst: i64) -> Throttle {
        let burst = burst.max(1) as f64;
        Throttle { qps, burst, tokens: Mutex::new((burst, Instant::now())) }
    }

    /// How long to wait for the token that is taken now.
    fn take(&self, now: Instant) -> Duration {
        let mut tokens = self.tokens.lock();
        let refilled = tokens.0 + now.duration_since(tokens.1).as_secs_f64() * self.qps;
        *tokens = (refilled.min(self.burst) - 1.0, now);
        Duration::from_secs_f64((-tokens.0 / self.qps).clamp(0.0, 3600.0))
    }

    async fn turn(&self) {
        tokio::time::sleep(self.take(Instant::now())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::tests::event;
    use super::*;

    #[test]
    fn turns() {
        let throttle = Throttle::new(2.0, 3);
        let start = throttle.tokens.lock().1;
        let wait = |seconds: f64| throttle.take(start + Duration::from_secs_f64(seconds)).as_secs_f64();
        assert_eq!([wait(0.0), wait(0.0), wait(0.0)], [0.0; 3], "a burst");
        assert_eq!([wait(0.0), wait(0.0)], [0.5, 1.0], "then two a second");
        assert_eq!(wait(2.0), 0.0);
        assert_eq!([wait(60.0), wait(60.0), wait(60.0), wait(60.0)], [0.0, 0.0, 0.0, 0.5], "rest fills the bucket, not more");
    }

    #[test]
    fn batches_have_a_size() {
        let events: Vec<Arc<Event>> = (0..5).map(|i| Arc::new(event(&i.to_string()))).collect();
        let one = events[0].to_json().len();
        let sizes = |bytes: Option<usize>| parts(events.clone(), bytes).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(None), [5]);
        assert_eq!(sizes(Some(2 * one)), [2, 2, 1]);
        assert_eq!(sizes(Some(1)), [1, 1, 1, 1, 1], "none is lost");
        assert!(parts(Vec::new(), None).is_empty() && parts(Vec::new(), Some(1)).is_empty());
    }
}
