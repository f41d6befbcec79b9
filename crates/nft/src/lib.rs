//! nf_tables transactions over netlink. Knows no Kubernetes.
//!
//! A [`RuleSet`] is one table as data. [`Nftables::apply`] puts it in force in one transaction:
//! either as a replacement of the whole table or, when the caller says what is in force now, by the
//! difference, so that sets which the kernel fills keep their elements. [`fake::Fake`] holds rule
//! sets in memory and traces packets through them. [`conntrack`] forgets connections.

mod attributes;
mod batch;
mod compile;
pub mod conntrack;
pub mod fake;
mod kernel;
mod model;
mod socket;

use std::io;

pub use kernel::Kernel;
pub use model::*;

/// Puts rule sets in force.
pub trait Nftables: Send + Sync {
    /// Makes the kernel's table equal to `next` in one transaction; other tables are not touched.
    /// With `previous`, which must be what is in force, only differences are written.
    fn apply(&self, previous: Option<&RuleSet>, next: &RuleSet) -> Result<()>;
    /// Deletes a table; says whether there was one.
    fn delete(&self, family: Family, table: &str) -> Result<bool>;
    /// Forgets the connections that match; says how many.
    fn forget_connections(&self, matching: &dyn Fn(&conntrack::Flow) -> bool) -> Result<usize>;
}

/// The result of a transaction.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a transaction failed. Nothing of it is in force then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink socket could not be opened or used.
    #[error("nf_tables socket")]
    Socket(#[source] io::Error),
    /// The kernel refused an object.
    #[error("nf_tables: {object}: {source}")]
    Refused {
        /// The first object that it refused.
        object: String,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// The rule set contradicts itself.
    #[error("rule set: {0}")]
    Invalid(String),
    /// The kernel's answer was not understood, or there was none.
    #[error("nf_tables: malformed answer from the kernel")]
    Malformed,
}

impl Error {
    /// The kernel does not know an object that the transaction refers to.
    pub fn is_absent(&self) -> bool {
        matches!(self, Error::Refused { source, .. } if source.raw_os_error() == Some(libc::ENOENT))
    }
}
