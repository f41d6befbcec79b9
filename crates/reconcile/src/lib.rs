//! What everything that reconciles shares: supervised tasks, one informer a kind a process, keyed
//! queues with back-off, event recording, and leader election. Holds no business rules.
//!
//! A reconciler is a queue of keys and a function of one key. Informers put keys in when something
//! changes; the function reads everything again and brings the world closer to what is wanted.
#![forbid(unsafe_code)]

mod events;
mod feed;
mod informer;
pub mod leader;
mod lenient;
mod metrics;
mod queue;
mod slim;
mod tasks;

pub use events::{EventType, Recorder, Reference};
pub use feed::{Feed, Sink};
pub use informer::{Change, Informer, Informers, Object};
pub use queue::{Queue, Requeue, run_workers};
pub use tasks::Tasks;
