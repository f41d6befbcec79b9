//! ResourceQuotas: counts what a namespace uses, and so frees what was charged and is gone. The
//! charging itself is the API server's, at each write. [`plan`] sums up, `counts` knows how many
//! objects there are of any kind.

mod counts;
pub mod plan;
mod sync;

pub use sync::start;
