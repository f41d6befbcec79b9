//! Pure rules of Kubernetes that several components have to agree on, over the types of clients: what a
//! label selector selects, which nodes a pod's spec allows, and what claims, volumes and classes say of
//! each other. No client, no clock, no decision on any action.
#![forbid(unsafe_code)]

pub mod labels;
pub mod node_affinity;
pub mod storage;
