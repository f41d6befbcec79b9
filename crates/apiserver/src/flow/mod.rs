//! API priority and fairness: each request belongs to a priority level, which has seats of its own, and waits there in
//! the queue of its flow when they are taken.
//!
//! ```text
//! request → schema (rules) → level, flow → seats (work) → queues: served at once │ waits │ refused
//! FlowSchemas, PriorityLevelConfigurations → config (plan) → levels and schemas      (keep, whenever they change)
//! seats that each level could use → share → seats that each level has                (keep, every 10 seconds)
//! ```
//!
//! All that decides is pure: `rules`, `config`, `work`, `queues`, `shard`, `share`, `demand`. The one lock on a request's
//! way is its level's, for the time of a few additions. Without priority and fairness there is a plain bound (`inflight`).
mod config;
mod demand;
mod dropped;
mod dump;
pub mod inflight;
mod keep;
mod metrics;
mod queues;
mod rules;
mod share;
mod shard;
mod stats;
#[cfg(test)]
mod tests;
pub mod work;

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::ctx::UserInfo;
use crate::request::RequestInfo;
use config::LevelPlan;
pub(crate) use keep::PRODUCER;
use demand::Demand;
use dropped::Dropped;
use queues::{Details, Discipline, QueueSet, Start, Work};
use rules::{Distinguisher, Rules};

const SCHEMA_UID: &str = "x-kubernetes-pf-flowschema-uid";
const LEVEL_UID: &str = "x-kubernetes-pf-prioritylevel-uid";
/// Nothing waits longer, whatever its own deadline is.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The levels and schemas that requests are served by.
pub(crate) struct Flow {
    /// Seats of the whole server.
    seats: i64,
    now: ArcSwap<Config>,
    pub watches: Arc<work::Watches>,
    hasher: RandomState,
    started: (Instant, jiff::Timestamp),
    /// Told when time alone will let somebody go on who waits.
    lingers: Notify,
    /// The part of its target that each level has got.
    fair: Mutex<f64>,
}

struct Config {
    levels: BTreeMap<String, Arc<LevelState>>,
    schemas: Vec<Schema>,
}

/// A level as it is configured; its queues outlive that.
struct LevelState {
    plan: LevelPlan,
    uid: HeaderValue,
    level: Arc<Level>,
}

/// What of a level stays while it is configured anew.
struct Level {
    set: Mutex<QueueSet<oneshot::Sender<()>>>,
    dropped: Mutex<Dropped>,
    sharing: Mutex<Sharing>,
}

/// What sharing came to last.
#[derive(Default, Clone, Copy)]
struct Sharing {
    demand: Demand,
    target: f64,
    current: i64,
}

struct Schema {
    name: String,
    uid: HeaderValue,
    distinguisher: Distinguisher,
    rules: Rules,
    level: Arc<LevelState>,
    slot: usize,
}

/// Where a request belongs, for the headers of its answer.
pub(crate) struct Classified {
    schema: HeaderValue,
    level: HeaderValue,
    /// How long its turn took to come, if others had to be waited for.
    pub waited: Duration,
}

impl Classified {
    /// Says in an answer what it was served by.
    pub fn tell(&self, headers: &mut HeaderMap) {
        headers.insert(LEVEL_UID, self.level.clone());
        headers.insert(SCHEMA_UID, self.schema.clone());
    }
}

/// A request's seats; they are free when it goes.
pub(crate) struct Seat {
    flow: Arc<Flow>,
    level: Arc<Level>,
    /// Of the request at its level; nothing once it has given up waiting.
    id: Option<usize>,
}

impl Seat {
    /// False when the request's turn has come meanwhile.
    fn give_up(&mut self) -> bool {
        let Some(id) = self.id else { return true };
        let mut set = self.level.set.lock();
        let gave_up = set.cancel(self.flow.clock(), id);
        self.flow.after(set);
        if gave_up {
            self.id = None;
        }
        gave_up
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let now = self.flow.clock();
        let mut set = self.level.set.lock();
        if !set.cancel(now, id) {
            set.finish(now, id);
        }
        self.flow.after(set);
    }
}

/// A refused request is to be tried again after so many seconds.
pub(crate) struct TryAfter(pub u64);

impl Flow {
    /// With what must be there alone, until the API's objects have been read.
    pub fn new(seats: i64) -> Arc<Flow> {
        let flow = Flow {
            seats,
            now: ArcSwap::from_pointee(Config { levels: BTreeMap::new(), schemas: Vec::new() }),
            watches: Arc::default(),
            hasher: RandomState::new(),
            started: (Instant::now(), jiff::Timestamp::now()),
            lingers: Notify::new(),
            fair: Mutex::new(0.0),
        };
        flow.configure(&[], &[]);
        Arc::new(flow)
    }

    /// Nanoseconds since the start.
    fn clock(&self) -> u64 {
        self.started.0.elapsed().as_nanos() as u64
    }

    /// How long a request may wait that has so much time in all.
    pub fn patience(deadline: Duration) -> Duration {
        (deadline / 4).min(MAX_WAIT)
    }

    /// Finds the request's level and waits for seats there, at most for `patience`. `estimate` says what the request needs
    /// when a request of its level has so many seats at most (zero: no bound), and how many watches it has counted.
    pub async fn enter(
        self: &Arc<Flow>,
        info: &Arc<RequestInfo>,
        user: &UserInfo,
        patience: Duration,
        estimate: impl FnOnce(u32) -> (Work, Option<usize>),
    ) -> (Classified, Result<Seat, TryAfter>) {
        let (mut classified, level, start) = self.start(info, user, estimate);
        let (mut seat, turn) = match start {
            Ok(started) => started,
            Err(refused) => return (classified, Err(refused)),
        };
        let Some(turn) = turn else { return (classified, Ok(seat)) };
        let began = std::time::Instant::now();
        let waited = tokio::time::timeout(patience, turn).await;
        classified.waited = began.elapsed();
        if matches!(waited, Ok(Ok(()))) || !seat.give_up() {
            return (classified, Ok(seat));
        }
        (classified, Err(self.refused(&level)))
    }

    #[allow(clippy::type_complexity)]
    fn start(
        self: &Arc<Flow>,
        info: &Arc<RequestInfo>,
        user: &UserInfo,
        estimate: impl FnOnce(u32) -> (Work, Option<usize>),
    ) -> (Classified, Arc<Level>, Result<(Seat, Option<oneshot::Receiver<()>>), TryAfter>) {
        let config = self.now.load();
        // the last one matches everybody who is authenticated or not, and stands in for what nobody matches
        let Some(schema) = config.schemas.iter().find(|s| s.rules.matches(info, user)).or(config.schemas.last()) else {
            unreachable!("a configuration has the mandatory schemas")
        };
        let state = &schema.level;
        let classified = Classified { schema: schema.uid.clone(), level: state.uid.clone(), waited: Duration::ZERO };
        let (work, watches) = estimate(state.plan.max_seats);
        let mut details = Details { info: info.clone(), user: user.name.clone(), distinguisher: Distinguisher::None };
        let mut hash = 0;
        if let Discipline::Queue(queuing) = state.plan.spec.discipline
            && queuing.queues > 1
        {
            details.distinguisher = schema.distinguisher;
            hash = self.hasher.hash_one((schema.name.as_str(), details.flow()));
        }
        let mut set = state.level.set.lock();
        if let Some(watches) = watches {
            set.counters(schema.slot).watches.observe(watches as f64);
        }
        let start = set.start(self.clock(), details, work, hash, schema.slot);
        let turn = match start {
            Start::Waiting(id) => {
                let (send, receive) = oneshot::channel();
                set.set_waiter(id, send);
                Some(receive)
            }
            _ => None,
        };
        self.after(set);
        let level = state.level.clone();
        let result = match start {
            Start::Executing(id) | Start::Waiting(id) => Ok((Seat { flow: self.clone(), level: level.clone(), id: Some(id) }, turn)),
            Start::Refused(_) => Err(self.refused(&level)),
        };
        (classified, level, result)
    }

    fn refused(&self, level: &Level) -> TryAfter {
        TryAfter(level.dropped.lock().record(self.clock() / 1_000_000_000))
    }

    /// Wakes those whose turn has come, and whoever lets time pass for those who wait.
    fn after(&self, mut set: parking_lot::MutexGuard<'_, QueueSet<oneshot::Sender<()>>>) {
        let woken = set.woken();
        let lingers = set.announces();
        drop(set);
        for waiter in woken {
            // whoever has gone away gives the seats back by itself
            let _ = waiter.send(());
        }
        if lingers {
            self.lingers.notify_one();
        }
    }
}
