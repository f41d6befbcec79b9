//! Disruption budgets: how many pods may be taken away now, for evictions to spend. [`plan`] decides,
//! `scale` finds out how many pods there should be, `stale` takes back announcements of disruptions
//! that did not happen.

pub mod plan;
mod scale;
mod stale;
mod sync;

pub use sync::start;
