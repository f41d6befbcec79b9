//! Mounts, namespaces, cgroups, pidfds and safe path opening. Knows neither Kubernetes nor containers.
//!
//! Everything here is synchronous and blocks only as long as the kernel does. What a test would want
//! to fake is faked by directories: [`cgroup::Cgroups::at`] works on any tree of files.

pub mod allocator;
pub mod beneath;
pub mod cgroup;
mod error;
pub mod kernel;
pub mod mount;
pub mod netns;
pub mod oom;
pub mod pidfd;
pub mod seqpacket;

pub use error::{Error, Result};
