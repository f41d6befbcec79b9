//! Clusters from scratch, as kubeadm makes them: the phases of `init` and `join`, tokens, certificates, kubeconfigs,
//! `reset`; and what keeps a control plane reachable. Starts no component itself: the binary does, and is told by data.
#![forbid(unsafe_code)]

pub mod config;
