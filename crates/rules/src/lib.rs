//! Pure rules of Kubernetes that several components have to agree on, over the types of clients: what a
//! label selector selects, which nodes a pod's spec allows, what claims, volumes and classes say of each
//! other, and which CSI driver has got the volumes of a cloud. No client, no clock, no decision on any action.
#![forbid(unsafe_code)]

pub mod labels;
pub mod migration;
pub mod node_affinity;
pub mod storage;
