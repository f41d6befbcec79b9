//! Links, addresses, routes and neighbours over rtnetlink. Knows no Kubernetes.
//!
//! The API is synchronous: every request is answered by the kernel before the system call returns,
//! so there is nothing to wait for. Callers in async code use a blocking thread for long batches.
//! [`Handle`] talks to the kernel, [`fake::Fake`] to itself; both are [`Netlink`].
//! A handle stays in the network namespace it was opened in; [`netns`] opens one elsewhere.

mod announce;
mod dump;
mod error;
pub mod fake;
mod kernel;
pub mod netns;
mod types;

pub use announce::announce;
pub use error::{Error, Result};
pub use kernel::Handle;
pub use types::*;

/// Access to the links, addresses, routes and neighbours of one network namespace.
///
/// Additions are idempotent (an equal object that exists already is replaced) except for links,
/// and deletions say whether there was something to delete.
pub trait Netlink: Send + Sync {
    /// All links.
    fn links(&self) -> Result<Vec<Link>>;
    /// The link of this name.
    fn link(&self, name: &str) -> Result<Option<Link>>;
    /// Creates a link. Fails with [`Error::is_exists`] when the name is taken.
    fn create_link(&self, link: &NewLink) -> Result<()>;
    /// Deletes a link; the other end of a veth pair goes too.
    fn delete_link(&self, name: &str) -> Result<bool>;
    /// Sets a link up or down, its MTU, address or namespace.
    fn change_link(&self, index: u32, change: &LinkChange) -> Result<()>;
    /// The addresses of a link.
    fn addresses(&self, index: u32) -> Result<Vec<Prefix>>;
    /// Adds an address.
    fn add_address(&self, index: u32, address: Prefix) -> Result<()>;
    /// Deletes an address.
    fn delete_address(&self, index: u32, address: Prefix) -> Result<bool>;
    /// The unicast routes of the main table.
    fn routes(&self) -> Result<Vec<Route>>;
    /// Adds or replaces a route of the main table.
    fn add_route(&self, route: &Route) -> Result<()>;
    /// Deletes a route of the main table.
    fn delete_route(&self, route: &Route) -> Result<bool>;
    /// The permanent neighbours and forwarding entries of a link.
    fn neighbours(&self, index: u32) -> Result<Vec<Neighbour>>;
    /// Adds or replaces a permanent neighbour or forwarding entry.
    fn add_neighbour(&self, neighbour: &Neighbour) -> Result<()>;
    /// Deletes a neighbour or forwarding entry.
    fn delete_neighbour(&self, neighbour: &Neighbour) -> Result<bool>;
}
