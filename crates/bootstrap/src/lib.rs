//! Clusters from scratch, as kubeadm makes them: the phases of `init` and `join`, tokens, certificates, kubeconfigs,
//! `reset`; and what keeps a control plane reachable. Starts no component itself: the binary does, and is told by data.
#![forbid(unsafe_code)]

pub mod balancer;
pub mod certs;
pub mod cli;
pub mod cluster;
mod commands;
pub mod config;
pub mod discovery;
pub mod error;
pub mod etcd;
pub mod files;
pub mod fixes;
pub mod host;
pub mod init;
pub mod join;
pub mod kubeconfigs;
pub mod kubelet;
pub mod node;
pub mod patches;
pub mod phases;
pub mod preflight;
pub mod process;
pub mod readdress;
pub mod renew;
pub mod reset;
pub mod shared_certs;
pub mod tokens;
pub mod vip;
