//! Cron jobs: a job for each time of a schedule, and only so many of the old ones kept. [`times`]
//! says which time is due, [`plan`] decides, `sync` acts.

pub mod plan;
mod sync;
mod times;

pub use sync::start;
