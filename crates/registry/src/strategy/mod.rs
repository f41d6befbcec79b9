//! What differs from resource to resource.

pub(crate) mod crd;
pub(crate) mod csr;
pub(crate) mod devices;
pub(crate) mod eviction;
pub(crate) mod hooks;
pub(crate) mod namespace;
pub(crate) mod plain;
pub(crate) mod pod;
pub(crate) mod pod_actions;
pub(crate) mod policies;
pub(crate) mod rbac;
pub(crate) mod secret;
pub(crate) mod service;
pub(crate) mod token;
pub(crate) mod workloads;
