//! What API servers of one cluster know of each other: who stands behind the service `kubernetes`, and which of them
//! live.

pub(crate) mod endpoints;
pub(crate) mod identity;
pub(crate) mod tracking;
