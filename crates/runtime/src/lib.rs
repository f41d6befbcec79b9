//! Sandboxes and containers over the shim; owns the Network trait. Does not know the Kubernetes API.
//!
//! [`Runtime`] is both services of the CRI. It keeps what it was asked for in files below `root`, and
//! asks the shims (one a sandbox, found by their sockets below `run`) for what is; so it can be killed
//! at any moment and opened again without a container noticing.
//!
//! ```text
//! root/sandboxes/ID/   request.pb, state.json, hosts, hostname, resolv.conf
//! root/containers/ID/  state.json, rootfs, upper, work, links to config.json and config.pb, and
//!                      start.json and exit.json, which the shim writes
//! run/ID/              the shim's launch.json, socket and log, libcontainer's state, shm, netns
//! run/stream.sock      where exec, attach and port-forward are streamed
//! ```
//!
//! Seccomp profiles are not applied yet, AppArmor and SELinux labels neither; on cgroup version 2
//! device access is limited by capabilities alone.
#![forbid(unsafe_code)]

mod config;
mod container;
mod exec;
mod files;
mod images;
mod network;
mod open;
mod purge;
mod sandbox;
mod service;
mod shim;
mod spec;
mod state;
mod stats;
mod streams;
mod user;

pub use config::Config;
pub use network::{Network, PortMapping, SandboxRef};
pub use open::Error as OpenError;
pub use purge::{Error as PurgeError, purge};
pub use state::Runtime;
