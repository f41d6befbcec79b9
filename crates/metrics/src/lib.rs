//! `metrics.k8s.io`: what pods and nodes use. Kubelets are scraped while somebody asks, and what two
//! scrapes differ by is the use of processor time; nothing is stored. Runs one task, see [`Service::start`].
//!
//! It answers objects, not requests: the API server serves them as a group whose resources are
//! computed ([`RESOURCES`]). Deliberately not here: HTTP towards clients, custom and external metrics.
#![forbid(unsafe_code)]

mod exposition;
mod kubelet;
mod objects;
mod pod;
mod publish;
mod sample;
mod service;

pub use kubelet::{Error, Kubelets};
pub use objects::{GROUP, RESOURCES, VERSION};
pub use publish::{ACCOUNT, publish};
pub use service::Service;
