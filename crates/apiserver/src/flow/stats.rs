//! What is counted of a priority level: by flow schema, and as histograms.

use crate::histogram::Histogram;

/// Buckets of durations, in seconds.
pub const DURATIONS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
/// Buckets of lengths of queues.
pub const LENGTHS: &[f64] = &[0.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];
/// Buckets of seats.
pub const SEATS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0];
/// Buckets of watchers.
pub const WATCHES: &[f64] = &[0.0, 1.0, 10.0, 100.0, 1000.0, 10000.0];

/// Why a request was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The level does not queue, and its seats are taken.
    ConcurrencyLimit,
    QueueFull,
    /// It waited too long, or its client went away.
    TimeOut,
}

impl Refusal {
    pub const ALL: [(Refusal, &str); 3] =
        [(Refusal::ConcurrencyLimit, "concurrency-limit"), (Refusal::QueueFull, "queue-full"), (Refusal::TimeOut, "time-out")];
}

/// What is counted of a flow schema's requests at its level.
#[derive(Debug, Clone)]
pub struct SchemaStats {
    pub schema: String,
    pub dispatched: u64,
    /// In the order of [`Refusal::ALL`].
    pub rejected: [u64; 3],
    pub waiting: i64,
    pub waiting_seats: i64,
    pub executing: i64,
    pub executing_seats: i64,
    pub no_accommodation: u64,
    /// How long requests waited that were then refused, and those that were served.
    pub waited: [Histogram; 2],
    /// How long they were served: all but watches, and watches.
    pub served: [Histogram; 2],
    pub lengths: Histogram,
    pub seats: Histogram,
    pub watches: Histogram,
}

impl SchemaStats {
    pub fn new(schema: &str) -> SchemaStats {
        let durations = || [Histogram::new(DURATIONS), Histogram::new(DURATIONS)];
        SchemaStats {
            schema: schema.to_string(),
            dispatched: 0,
            rejected: [0; 3],
            waiting: 0,
            waiting_seats: 0,
            executing: 0,
            executing_seats: 0,
            no_accommodation: 0,
            waited: durations(),
            served: durations(),
            lengths: Histogram::new(LENGTHS),
            seats: Histogram::new(SEATS),
            watches: Histogram::new(WATCHES),
        }
    }
}
