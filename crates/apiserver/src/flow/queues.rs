//! The fair queues of one priority level: who is served, who waits, who is refused. Pure: the time comes in.
//!
//! A request takes seats: as many while it is served as its work in either phase needs, and, where others have work
//! through it (watchers), it keeps them for a while afterwards. While seats are free everybody is served. Otherwise
//! requests wait in the queues of their flows, and the next one comes from the queue whose head would be through first if
//! all queues were served at once, each with the same part of the seats. That is what the progress meter R is for: it
//! grows by the seat-seconds that each busy queue is due, and a queue remembers at which R its next request may start.
//!
//! Nothing here is proportional to the number of queues as long as nobody waits.
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::demand::Integrator;
use super::rules::Distinguisher;
use super::shard;
use super::stats::{Refusal, SchemaStats};
use crate::request::RequestInfo;

/// How long a request is thought to take until it is known.
const ESTIMATE: f64 = 0.003;

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Seats while it is served.
    pub initial: u32,
    /// Seats for `latency` after that.
    pub last: u32,
    pub latency: Duration,
}

impl Work {
    pub const ONE: Work = Work { initial: 1, last: 0, latency: Duration::ZERO };

    /// Seats that are taken in both phases.
    pub fn seats(&self) -> u32 {
        self.initial.max(self.last)
    }

    fn last_work(&self) -> f64 {
        f64::from(self.last) * self.latency.as_secs_f64()
    }

    fn total(&self) -> f64 {
        f64::from(self.initial) * ESTIMATE + self.last_work()
    }
}

/// What a level does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discipline {
    /// All are served.
    Exempt,
    /// What finds no seat is refused.
    Reject,
    Queue(Queuing),
}

/// How requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queuing {
    pub queues: usize,
    /// Queues that one flow may use.
    pub hand: usize,
    /// Requests that wait in one queue at most.
    pub length: usize,
}

/// Who makes a request, as dumps show it.
#[derive(Debug, Clone)]
pub struct Details {
    pub info: Arc<RequestInfo>,
    pub user: String,
    pub distinguisher: Distinguisher,
}

impl Details {
    /// The name of the request's flow.
    pub fn flow(&self) -> &str {
        self.distinguisher.of(&self.info, &self.user)
    }
}

/// A request that waits or is served. `W` is told when its turn comes.
pub struct Request<W> {
    pub details: Details,
    pub work: Work,
    pub arrived: u64,
    /// When it began to be served; nothing while it waits.
    pub started: Option<u64>,
    /// Which counters are its.
    pub slot: usize,
    queue: Option<usize>,
    arrival_r: f64,
    waiter: Option<W>,
}

/// A queue, as dumps show it.
#[derive(Default)]
pub struct Queue {
    /// Requests that wait, the oldest first.
    pub waiting: VecDeque<usize>,
    pub executing: usize,
    pub seats: u64,
    /// At which R its next request starts.
    pub next_r: f64,
    /// Work of all that wait.
    pub work: f64,
}

impl Queue {
    fn is_active(&self) -> bool {
        !self.waiting.is_empty() || self.executing > 0
    }
}

/// What became of a request that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Executing(usize),
    Waiting(usize),
    Refused(Refusal),
}

/// Seats that are kept after a request: until when (first, so that it orders), of which queue, how many, counters.
type Lingering = Reverse<(u64, Option<usize>, u32, usize)>;

/// The queues and seats of one level. Times are nanoseconds of any one clock.
pub struct QueueSet<W> {
    discipline: Discipline,
    /// Seats at the moment.
    limit: i64,
    queues: Vec<Queue>,
    requests: Vec<Option<Request<W>>>,
    free: Vec<usize>,
    /// Queues that are not empty.
    active: usize,
    r: f64,
    last: u64,
    robin: usize,
    enqueues: usize,
    waiting: usize,
    executing: usize,
    seats: u64,
    seats_waiting: u64,
    lingering: BinaryHeap<Lingering>,
    /// The next release that whoever lets time pass knows of.
    announced: Option<u64>,
    demand: Integrator,
    /// Those whose turn has come.
    woken: Vec<W>,
    stats: Vec<SchemaStats>,
    /// Dispatched, rejected, timed out, cancelled, as dumps show them.
    pub totals: [u64; 4],
    /// R of the last dispatch, and where its queue was.
    pub latest: (f64, f64),
}

impl<W> QueueSet<W> {
    pub fn new(discipline: Discipline, limit: i64, now: u64) -> QueueSet<W> {
        let mut set = QueueSet {
            discipline,
            limit,
            queues: Vec::new(),
            requests: Vec::new(),
            free: Vec::new(),
            active: 0,
            r: 0.0,
            last: now,
            robin: 0,
            enqueues: 0,
            waiting: 0,
            executing: 0,
            seats: 0,
            seats_waiting: 0,
            lingering: BinaryHeap::new(),
            announced: None,
            demand: Integrator::default(),
            woken: Vec::new(),
            stats: Vec::new(),
            totals: [0; 4],
            latest: (0.0, 0.0),
        };
        set.demand.reset(now);
        set.configure(now, discipline, limit);
        set
    }

    /// Another discipline or limit. Queues that are too many go once they are empty.
    pub fn configure(&mut self, now: u64, discipline: Discipline, limit: i64) {
        self.sync(now);
        self.discipline = discipline;
        self.limit = limit;
        if let Discipline::Queue(q) = discipline
            && q.queues > self.queues.len()
        {
            self.queues.resize_with(q.queues, Queue::default);
        }
        self.trim();
        self.dispatch();
    }

    /// The counters of a schema.
    pub fn slot(&mut self, schema: &str) -> usize {
        self.stats.iter().position(|s| s.schema == schema).unwrap_or_else(|| {
            self.stats.push(SchemaStats::new(schema));
            self.stats.len() - 1
        })
    }

    /// A request arrives. The hash is its flow's. Who has to wait names its waiter next.
    pub fn start(&mut self, now: u64, details: Details, work: Work, hash: u64, slot: usize) -> Start {
        self.advance(now);
        self.stats[slot].seats.observe(f64::from(work.seats()));
        let request =
            Request { details, work, arrived: now, started: None, slot, queue: None, arrival_r: self.r, waiter: None };
        let Discipline::Queue(queuing) = self.discipline else {
            if !self.fits(work.seats()) {
                return self.refuse(slot, Refusal::ConcurrencyLimit);
            }
            let id = self.insert(request);
            self.execute(id);
            return Start::Executing(id);
        };
        let chosen = self.choose(hash, queuing);
        let queue = &self.queues[chosen];
        if self.seats as i64 >= self.limit && queue.waiting.len() >= queuing.length {
            return self.refuse(slot, Refusal::QueueFull);
        }
        let id = self.insert(request);
        self.enqueue(id, chosen);
        if self.waiting > 1 {
            self.dispatch();
        } else if (self.seats as i64) < self.limit {
            // nobody else waits: no queue has to be searched for
            self.dispatch_from(chosen);
        }
        match &self.requests[id] {
            Some(Request { started: Some(_), .. }) => Start::Executing(id),
            _ => Start::Waiting(id),
        }
    }

    /// Whom to tell when the request's turn comes.
    pub fn set_waiter(&mut self, id: usize, waiter: W) {
        if let Some(request) = &mut self.requests[id] {
            request.waiter = Some(waiter);
        }
    }

    /// Gives up waiting; false when its turn has come meanwhile.
    pub fn cancel(&mut self, now: u64, id: usize) -> bool {
        self.advance(now);
        let waits = |r: &Option<Request<W>>| r.as_ref().is_some_and(|r| r.started.is_none());
        if !waits(&self.requests[id]) {
            return false;
        }
        let Some(request) = self.requests[id].take() else { return false };
        self.free.push(id);
        let index = request.queue.unwrap_or_default();
        self.queues[index].waiting.retain(|w| *w != id);
        self.left(index, &request);
        self.bound(index);
        self.settled(index);
        self.totals[3] += 1;
        let waited = self.seconds_since(request.arrived);
        self.stats[request.slot].waited[0].observe(waited);
        self.count_refusal(request.slot, Refusal::TimeOut);
        self.note_demand();
        // whoever is next may need fewer seats
        self.dispatch();
        true
    }

    /// A request that was served is through.
    pub fn finish(&mut self, now: u64, id: usize) {
        self.advance(now);
        let Some(request) = self.requests[id].take() else { return };
        self.free.push(id);
        self.executing -= 1;
        let Request { work, slot, queue, started, .. } = request;
        let took = self.seconds_since(started.unwrap_or(self.last));
        let watch = request.details.info.verb == "watch";
        let stats = &mut self.stats[slot];
        stats.executing -= 1;
        stats.served[usize::from(watch)].observe(took);
        if let Some(index) = queue {
            let queue = &mut self.queues[index];
            queue.executing -= 1;
            // now it is known how long it took
            queue.next_r -= f64::from(work.initial) * (ESTIMATE - took);
            self.bound(index);
            self.settled(index);
        }
        if work.latency.is_zero() || work.last == 0 {
            self.release(queue, work.seats(), slot);
        } else {
            let until = now.saturating_add(work.latency.as_nanos() as u64);
            self.lingering.push(Reverse((until, queue, work.seats(), slot)));
        }
        self.dispatch();
    }

    /// Lets time pass: seats that were kept become free.
    pub fn advance(&mut self, now: u64) {
        while let Some(Reverse((until, queue, seats, slot))) = self.lingering.peek().copied()
            && until <= now
        {
            self.lingering.pop();
            self.sync(until);
            self.release(queue, seats, slot);
            self.dispatch();
        }
        self.sync(now);
    }

    /// When time alone will let somebody go on who waits.
    pub fn next_release(&self) -> Option<u64> {
        if self.waiting == 0 {
            return None;
        }
        self.lingering.peek().map(|Reverse((until, ..))| *until)
    }

    /// Whether there is another such time than at the last call.
    pub fn announces(&mut self) -> bool {
        let next = self.next_release();
        let before = std::mem::replace(&mut self.announced, next);
        next.is_some() && next != before
    }

    /// Those whose turn has come since the last call.
    pub fn woken(&mut self) -> Vec<W> {
        std::mem::take(&mut self.woken)
    }

    /// Nobody waits or is served.
    pub fn is_idle(&self) -> bool {
        self.waiting == 0 && self.executing == 0
    }

    /// Ends a period of the seats that could have been used.
    pub fn demand(&mut self, now: u64) -> super::demand::Period {
        self.advance(now);
        self.demand.reset(now)
    }

    pub fn counters(&mut self, slot: usize) -> &mut SchemaStats {
        &mut self.stats[slot]
    }

    pub fn stats(&self) -> &[SchemaStats] {
        &self.stats
    }

    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// All requests, with the queue that they are in.
    pub fn requests(&self) -> impl Iterator<Item = (Option<usize>, &Request<W>)> {
        self.requests.iter().flatten().map(|r| (r.queue, r))
    }

    pub fn request(&self, id: usize) -> Option<&Request<W>> {
        self.requests.get(id)?.as_ref()
    }

    /// Waiting, executing.
    pub fn counts(&self) -> (usize, usize) {
        (self.waiting, self.executing)
    }

    /// The progress meter.
    pub fn r(&self) -> f64 {
        self.r
    }

    fn seconds_since(&self, then: u64) -> f64 {
        self.last.saturating_sub(then) as f64 / 1e9
    }

    /// Virtual time grows by what each busy queue is due.
    fn sync(&mut self, now: u64) {
        if now <= self.last {
            return;
        }
        let dt = (now - self.last) as f64 / 1e9;
        self.last = now;
        if self.active > 0 {
            let wanted = (self.seats + self.seats_waiting) as f64;
            self.r += dt * wanted.min(self.limit as f64) / self.active as f64;
        }
    }

    fn refuse(&mut self, slot: usize, why: Refusal) -> Start {
        self.stats[slot].waited[0].observe(0.0);
        self.count_refusal(slot, why);
        Start::Refused(why)
    }

    fn count_refusal(&mut self, slot: usize, why: Refusal) {
        self.totals[1] += 1;
        self.stats[slot].rejected[why as usize] += 1;
    }

    fn insert(&mut self, request: Request<W>) -> usize {
        match self.free.pop() {
            Some(id) => {
                self.requests[id] = Some(request);
                id
            }
            None => {
                self.requests.push(Some(request));
                self.requests.len() - 1
            }
        }
    }

    /// Of the flow's queues the one with the least work.
    fn choose(&mut self, hash: u64, queuing: Queuing) -> usize {
        let hand = queuing.hand.clamp(1, queuing.queues);
        // where the search begins goes around, so that overlapping hands do not favour anybody
        let offset = self.enqueues % hand;
        self.enqueues = self.enqueues.wrapping_add(1);
        let (mut at, mut best, mut least) = (0, (f64::INFINITY, usize::MAX), 0);
        let queues = &self.queues;
        shard::deal(hash, queuing.queues, hand, |card| {
            let rank = (queues[card].work, (at + hand - offset) % hand);
            if rank < best {
                (best, least) = (rank, card);
            }
            at += 1;
        });
        least
    }

    fn enqueue(&mut self, id: usize, index: usize) {
        let queue = &mut self.queues[index];
        if !queue.is_active() {
            queue.next_r = self.r;
            self.active += 1;
        }
        let Some(request) = &mut self.requests[id] else { return };
        request.queue = Some(index);
        queue.waiting.push_back(id);
        queue.work += request.work.total();
        let seats = request.work.seats();
        self.waiting += 1;
        self.seats_waiting += u64::from(seats);
        let stats = &mut self.stats[request.slot];
        stats.waiting += 1;
        stats.waiting_seats += i64::from(seats);
        stats.lengths.observe(queue.waiting.len() as f64);
        self.bound(index);
        self.note_demand();
    }

    /// What is counted of a request that waited is taken back.
    fn left(&mut self, index: usize, request: &Request<W>) {
        let queue = &mut self.queues[index];
        queue.work = if queue.waiting.is_empty() { 0.0 } else { (queue.work - request.work.total()).max(0.0) };
        self.waiting -= 1;
        self.seats_waiting -= u64::from(request.work.seats());
        let stats = &mut self.stats[request.slot];
        stats.waiting -= 1;
        stats.waiting_seats -= i64::from(request.work.seats());
    }

    fn fits(&self, seats: u32) -> bool {
        match self.discipline {
            Discipline::Exempt => true,
            // one that is wider than all the seats is served alone
            _ if i64::from(seats) > self.limit => self.executing == 0,
            _ => self.seats as i64 + i64::from(seats) <= self.limit,
        }
    }

    fn dispatch(&mut self) {
        while self.waiting > 0 && (self.discipline == Discipline::Exempt || (self.seats as i64) < self.limit) && self.dispatch_one() {}
    }

    /// The queue whose head would be through first, the queues being asked in turn.
    fn next_queue(&self) -> Option<usize> {
        let all = self.queues.len();
        let mut best: Option<(f64, usize)> = None;
        for i in 1..=all {
            let index = (self.robin + i) % all;
            let queue = &self.queues[index];
            let Some(oldest) = queue.waiting.front().and_then(|id| self.requests[*id].as_ref()) else { continue };
            let finish = queue.next_r + oldest.work.total();
            if best.is_none_or(|(least, _)| finish < least) {
                best = Some((finish, index));
            }
            if queue.waiting.len() == self.waiting {
                break;
            }
        }
        best.map(|(_, index)| index)
    }

    fn dispatch_one(&mut self) -> bool {
        self.next_queue().is_some_and(|index| self.dispatch_from(index))
    }

    fn dispatch_from(&mut self, index: usize) -> bool {
        let Some(id) = self.queues[index].waiting.front().copied() else { return false };
        let Some(mut request) = self.requests[id].take() else { return false };
        if !self.fits(request.work.seats()) {
            self.stats[request.slot].no_accommodation += 1;
            self.requests[id] = Some(request);
            return false;
        }
        self.queues[index].waiting.pop_front();
        self.robin = index;
        self.left(index, &request);
        // what is too wide is made longer instead
        if i64::from(request.work.last) > self.limit && self.limit > 0 {
            request.work.latency = Duration::from_secs_f64(request.work.last_work() / self.limit as f64);
            request.work.last = self.limit as u32;
        }
        let queue = &mut self.queues[index];
        self.latest = (self.r, queue.next_r);
        queue.next_r += request.work.total();
        queue.executing += 1;
        queue.seats += u64::from(request.work.seats());
        self.woken.extend(request.waiter.take());
        self.requests[id] = Some(request);
        self.bound(index);
        self.execute(id);
        true
    }

    fn execute(&mut self, id: usize) {
        let now = self.last;
        let Some(request) = &mut self.requests[id] else { return };
        request.started = Some(now);
        let (seats, slot, waited) = (request.work.seats(), request.slot, now.saturating_sub(request.arrived) as f64 / 1e9);
        self.executing += 1;
        self.seats += u64::from(seats);
        self.totals[0] += 1;
        let stats = &mut self.stats[slot];
        stats.dispatched += 1;
        stats.executing += 1;
        stats.executing_seats += i64::from(seats);
        if self.discipline != Discipline::Exempt {
            stats.waited[1].observe(waited);
        }
        self.note_demand();
    }

    fn release(&mut self, queue: Option<usize>, seats: u32, slot: usize) {
        self.seats -= u64::from(seats);
        self.stats[slot].executing_seats -= i64::from(seats);
        if let Some(index) = queue {
            self.queues[index].seats -= u64::from(seats);
            self.trim();
        }
        self.note_demand();
    }

    fn note_demand(&mut self) {
        self.demand.set(self.last, (self.seats + self.seats_waiting) as f64);
    }

    /// Nothing starts before it arrived: a queue that used less than its due does not save that up.
    fn bound(&mut self, index: usize) {
        let queue = &mut self.queues[index];
        if let Some(oldest) = queue.waiting.front().and_then(|id| self.requests[*id].as_ref()) {
            queue.next_r = queue.next_r.max(oldest.arrival_r);
        }
    }

    /// After a request left a queue that was active.
    fn settled(&mut self, index: usize) {
        if !self.queues[index].is_active() {
            self.active -= 1;
            self.trim();
        }
    }

    /// Empty queues at the end that are too many go.
    fn trim(&mut self) {
        let wanted = match self.discipline {
            Discipline::Queue(q) => q.queues,
            _ => 0,
        };
        while self.queues.len() > wanted && self.queues.last().is_some_and(|q| !q.is_active() && q.seats == 0) {
            self.queues.pop();
        }
        if self.robin >= self.queues.len() {
            self.robin = 0;
        }
    }
}
