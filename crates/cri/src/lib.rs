//! CRI v1 as two traits, with an in-memory fake and a contract suite that every implementation runs.
//!
//! One method a remote procedure, named in snake case. The procedures that stream a list
//! (`StreamContainers` and its kin) are not here: they answer what the `List…` ones answer, and only
//! the gRPC sides need them. `exec`, `attach` and `port_forward` answer a URL; the embedded runtime's
//! is `unix:///path/stream.sock` followed by `/exec/<token>`, `/attach/<token>` or
//! `/portforward/<token>`.
#![forbid(unsafe_code)]

pub mod contract;
mod error;
mod fake;
mod service;

pub use error::{Code, Error};
pub use fake::Fake;
pub use proto::Message;
pub use proto::cri as v1;
pub use service::{EventStream, ImageService, Result, RuntimeService};
