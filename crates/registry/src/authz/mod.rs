//! The authorizers: RBAC and Node. `system:masters` is let through by `apiserver`'s own.

pub(crate) mod node;
pub(crate) mod rbac;
pub(crate) mod rules;
