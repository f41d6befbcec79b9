//! The authorizers: RBAC, Node, webhooks and policies of a file, and the chain that they make. `system:masters` is let through by
//! `apiserver`'s own.

pub(crate) mod abac;
pub(crate) mod chain;
pub(crate) mod config;
pub(crate) mod node;
pub(crate) mod rbac;
pub(crate) mod rules;
mod webhook;
