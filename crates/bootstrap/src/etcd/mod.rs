//! Members of etcd, as real etcd processes that stand beside the server of their machine: certificates in kubeadm's
//! layout, a supervisor, and joining, replacing and leaving a cluster of them.
//!
//! ```text
//! new cluster:  certificates → process → healthy
//! join:         certificates → plan over the member list → added as a learner → process → caught up → promoted
//! afterwards:   the process alone; its data know where it belongs
//! ```
//!
//! Whether a process runs does not depend on the server: one that the server left behind when it was killed is taken
//! over at its next start. What is done about the member list is decided in [`plan`], from what the cluster says.

pub mod certs;
mod client;
mod join;
mod member;
pub mod plan;
mod process;

pub use client::{Access, Cluster, Error, Health};
pub use join::{JoinError, Patience, join, leave, refresh};
pub use member::{Member, Note, Program, ProgramError, find_program};
pub use process::{State, Supervisor, end_left, left};

/// etcd's own name of a member in the member list.
pub use proto::etcd::Member as Listed;
